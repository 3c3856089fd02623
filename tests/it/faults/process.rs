//! A running `bridge`.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::bed::Bed;

/// How long a backfill may take to end by itself, in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Many small chunks and batches, two workers, and a lease that a dead process does not hold for long.
const SETTINGS: [(&str, &str); 4] = [
    ("BRIDGE_WORKERS", "2"),
    ("BRIDGE_LEASE_SECONDS", "1"),
    ("BRIDGE_CHUNK_BYTES", "100000"),
    ("BRIDGE_BATCH_BYTES", "40000"),
];

/// A process; killed when dropped.
pub struct Bridge {
    process: Child,
    stdout: Heard,
    stderr: Heard,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Nothing when a signal ended it.
    pub exit: Option<i32>,
    /// What it said.
    pub stderr: String,
}

/// What a process says, read as it comes: a full pipe would stop it.
struct Heard {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Heard {
    fn from(mut pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let heard = text.clone();
        let reader = tokio::spawn(async move {
            let mut bytes = [0; 4_096];
            while let Ok(length @ 1..) = pipe.read(&mut bytes).await {
                heard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Self { text, reader }
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn all(self) -> String {
        self.reader.await.expect("read what it says");
        Arc::into_inner(self.text).expect("the reader has ended").into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bridge {
    /// Starts `bridge backfill` with more variables.
    pub fn backfill(bed: &Bed, variables: &[(&str, &str)]) -> Self {
        let mut command = bed.bridge(&["backfill"]);
        command.envs(SETTINGS).envs(variables.iter().copied());
        Self::start(command)
    }

    /// Starts a command.
    pub fn start(command: std::process::Command) -> Self {
        let mut command = Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("start bridge");
        let stdout = Heard::from(process.stdout.take().expect("a pipe"));
        let stderr = Heard::from(process.stderr.take().expect("a pipe"));
        Self { process, stdout, stderr }
    }

    /// Sends a signal. One that has ended already gets none.
    pub fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).expect("a process id")));
        if let Some(pid) = pid {
            kill_process(pid, signal).expect("send a signal");
        }
    }

    /// Its process id; nothing when it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        self.process.try_wait().expect("look at a process").is_some()
    }

    /// What it has said on stdout so far.
    pub fn said(&self) -> String {
        self.stdout.so_far()
    }

    /// Whether it has said `words` on stdout.
    pub fn has_said(&self, words: &str) -> bool {
        self.said().contains(words)
    }

    /// What it has said on stderr so far.
    pub fn complaints(&self) -> String {
        self.stderr.so_far()
    }

    /// `kill -9`; whether it was still running.
    pub async fn kill(mut self) -> bool {
        let running = !self.is_over();
        self.process.kill().await.expect("kill");
        running
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self) -> Ended {
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        let status = ended.expect("bridge ends").expect("wait for bridge");
        Ended { exit: status.code(), stderr: self.stderr.all().await }
    }
}

impl Ended {
    /// The exit code, and every word on stderr.
    pub fn says(&self, exit: i32, words: &[&str]) {
        assert_eq!(self.exit, Some(exit), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in\n{}", self.stderr);
        }
    }
}
