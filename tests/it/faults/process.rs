//! A running `bridge`.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

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
pub struct Bridge(Child);

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Nothing when a signal ended it.
    pub exit: Option<i32>,
    /// What it said.
    pub stderr: String,
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
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        Self(command.spawn().expect("start bridge"))
    }

    /// Sends a signal. One that has ended already gets none.
    pub fn signal(&self, signal: Signal) {
        let pid = self.0.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).expect("a process id")));
        if let Some(pid) = pid {
            kill_process(pid, signal).expect("send a signal");
        }
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        self.0.try_wait().expect("look at a process").is_some()
    }

    /// `kill -9`; whether it was still running.
    pub async fn kill(mut self) -> bool {
        let running = !self.is_over();
        self.0.kill().await.expect("kill");
        running
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) -> Ended {
        let ended = tokio::time::timeout(PATIENCE, self.0.wait_with_output()).await;
        let output = ended.expect("bridge ends").expect("wait for bridge");
        Ended { exit: output.status.code(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
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
