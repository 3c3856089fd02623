//! The owner's side of `supervise.sh`: one process that runs one server and clears up after it.

use std::env;
use std::fs;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::binaries::{NOBODY, open_to_all};
use super::{EmbeddedError, blocking, secret};

const SCRIPT: &str = include_str!("supervise.sh");

/// How long a server may take until it answers.
const READY: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// How much of a log an error carries, in bytes.
const TAIL: usize = 2_000;

/// Who runs the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// The user of this process.
    Own,
    /// User and group [`NOBODY`]; only root can choose this.
    Nobody,
}

/// Owns the supervisor process, the server and its folder; dropping it ends all three, and waits for that.
#[derive(Debug)]
pub(super) struct Supervisor {
    folder: PathBuf,
    channel: Mutex<Channel>,
}

#[derive(Debug)]
struct Channel {
    process: Child,
    /// Nothing once the supervisor was told to end.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Supervisor {
    /// Starts the supervisor, which makes a folder named after `server`; `last` is the signal that ends the server.
    pub(super) fn new(server: &str, last: &str, identity: Identity) -> Result<Arc<Self>, EmbeddedError> {
        let parent = if identity == Identity::Own || open_to_all(&env::temp_dir()) {
            env::temp_dir()
        } else {
            PathBuf::from("/tmp")
        };
        let folder = parent.join(format!("bridge-{server}-{}", secret()));
        let failed = |source| EmbeddedError::Supervisor { action: "start".into(), folder: folder.clone(), source };
        let channel = Channel::open(&parent, &folder, last, identity).map_err(failed)?;
        let supervisor = Self { folder, channel: Mutex::new(channel) };
        supervisor.answer_to("make the folder", |_| Ok(()), "ready")?;
        Ok(Arc::new(supervisor))
    }

    /// The server's folder; whatever is put there goes with the server.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a preparing command to its end. Blocks.
    pub(super) fn run(&self, command: &[String]) -> Result<(), EmbeddedError> {
        let program = command.first().cloned().unwrap_or_default();
        let status = self.answer_to(&program, |pipe| write_command(pipe, "run", command), "ended")?;
        if status == 0 { Ok(()) } else { Err(EmbeddedError::Command { command: program, status, log: self.log() }) }
    }

    /// Starts the server and gives its process id; one that still runs is killed first.
    pub(super) async fn start(self: &Arc<Self>, command: Vec<String>) -> Result<u32, EmbeddedError> {
        let this = Arc::clone(self);
        let write = move |pipe: &mut ChildStdin| write_command(pipe, "start", &command);
        blocking(move || this.answer_to("start the server", write, "started")).await
    }

    /// Ends the server with a signal and waits until all its processes are gone.
    pub(super) async fn stop(self: &Arc<Self>, signal: &'static str) -> Result<(), EmbeddedError> {
        let this = Arc::clone(self);
        let write = move |pipe: &mut ChildStdin| writeln!(pipe, "stop {signal}");
        blocking(move || this.answer_to("stop the server", write, "stopped")).await.map(|_| ())
    }

    /// From now on server and folder outlive the owner, until somebody ends the server.
    pub(super) async fn keep(self: &Arc<Self>) -> Result<(), EmbeddedError> {
        let this = Arc::clone(self);
        let write = |pipe: &mut ChildStdin| writeln!(pipe, "keep");
        blocking(move || this.answer_to("let go of the server", write, "kept")).await?;
        self.lock().commands = None;
        Ok(())
    }

    /// Polls `probe` until it is true. Fails when the server ends, or when it takes longer than [`READY`].
    pub(super) async fn until<P, A>(&self, port: u16, mut probe: P) -> Result<(), EmbeddedError>
    where
        P: FnMut() -> A,
        A: Future<Output = bool>,
    {
        let deadline = Instant::now() + READY;
        while !tokio::time::timeout_at(deadline, probe()).await.unwrap_or(false) {
            self.still_runs(port)?;
            if Instant::now() >= deadline {
                return Err(EmbeddedError::NotReady { port, seconds: READY.as_secs(), log: self.log() });
            }
            tokio::time::sleep(POLL).await;
        }
        self.still_runs(port)
    }

    fn still_runs(&self, port: u16) -> Result<(), EmbeddedError> {
        if !self.folder.join("ended").exists() {
            return Ok(());
        }
        let log = self.log();
        let taken = log.contains("Address already in use");
        Err(if taken { EmbeddedError::PortTaken { port } } else { EmbeddedError::Died { port, log } })
    }

    /// The end of the server's log.
    fn log(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(TAIL)..]).into_owned()
    }

    /// Writes a command and gives the number in the answer, whose first word must be `expected`.
    fn answer_to<W>(&self, action: &str, write: W, expected: &str) -> Result<u32, EmbeddedError>
    where
        W: FnOnce(&mut ChildStdin) -> io::Result<()>,
    {
        self.lock().ask(write, expected).map_err(|source| EmbeddedError::Supervisor {
            action: action.to_owned(),
            folder: self.folder.clone(),
            source,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    /// The supervisor is in a process group of its own: Ctrl-C reaches the owner alone, whose end it then sees.
    /// The pipes close on exec: no other child of the owner keeps them open.
    fn open(parent: &Path, folder: &Path, last: &str, identity: Identity) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        // By way of a variable, so that lists of processes show a line and not a script.
        command
            .args(["-c", "eval \"$SUPERVISE\"", "supervise"])
            .arg(folder)
            .arg(last)
            .current_dir(parent)
            .process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Nothing of the user's settings (PGDATA, PGOPTIONS, LANG …) reaches the server.
        let kept = ["PATH", "LD_LIBRARY_PATH"].map(|name| (name, env::var_os(name)));
        command.env_clear().env("LC_ALL", "C").env("HOME", folder).env("SUPERVISE", SCRIPT);
        command.envs(kept.into_iter().filter_map(|(name, value)| Some((name, value?))));
        if identity == Identity::Nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut process = command.spawn()?;
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let commands = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().ok_or_else(closed)?);
        Ok(Self { process, commands, answers })
    }

    fn ask<W>(&mut self, write: W, expected: &str) -> io::Result<u32>
    where
        W: FnOnce(&mut ChildStdin) -> io::Result<()>,
    {
        let pipe = self.commands.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        write(pipe)?;
        pipe.flush()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let answer = answer.trim_end();
        match answer.strip_prefix(expected) {
            Some(number) => Ok(number.trim().parse().unwrap_or_default()),
            None => Err(io::Error::other(format!("it answered {answer:?} in place of {expected:?}"))),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let channel = self.channel.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Nothing when the server is to be kept: then there is nothing to wait for either.
        if let Some(pipe) = channel.commands.take() {
            drop(pipe);
            if let Err(error) = channel.process.wait() {
                tracing::warn!(folder = %self.folder.display(), %error, "could not wait for the end of a private server");
            }
        }
    }
}

/// One argument a line, so that nothing in them is read as shell.
fn write_command(pipe: &mut ChildStdin, word: &str, command: &[String]) -> io::Result<()> {
    if command.iter().any(|argument| argument.as_bytes().contains(&b'\n')) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an argument holds a line break"));
    }
    let lines: String = command.iter().map(|argument| format!("{argument}\n")).collect();
    write!(pipe, "{word} {}\n{lines}", command.len())
}

/// A path as an argument of a command.
pub(super) fn argument(path: &Path) -> Result<String, EmbeddedError> {
    let refused = || EmbeddedError::File {
        action: "use the name of",
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidFilename, "it is not UTF-8"),
    };
    std::str::from_utf8(path.as_os_str().as_bytes()).map(str::to_owned).map_err(|_| refused())
}
