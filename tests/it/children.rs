//! Processes of the tests' own: this binary once more, which plays one role and ends.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child as Process, ChildStdout, Command};

use crate::bed::Bed;

/// Which role a child plays; without it, a process is no child.
const ROLE: &str = "BRIDGE_TEST_ROLE";

/// What stands before each line that a child says, among those of the test harness.
const SAYS: &str = "child says: ";

/// A process that plays a role; killed when dropped.
pub struct Child {
    process: Process,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a child that plays `role` on the bed's servers, with more words for it.
    pub fn start(bed: &Bed, role: &str, words: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", "children::a_child_plays_its_role", "--nocapture", "--quiet"]);
        command.env(ROLE, role).env("BRIDGE_TEST_WORDS", words.join("\n"));
        command.env("BRIDGE_TEST_CHILD_MONGO", &bed.mongo_url).env("BRIDGE_TEST_CHILD_DATABASE", bed.database.name());
        command.env("BRIDGE_TEST_CHILD_POSTGRES", &bed.postgres_url);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("start a child");
        let lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        Self { process, lines }
    }

    /// The next line it says.
    pub async fn says(&mut self) -> String {
        let heard = async {
            while let Some(line) = self.lines.next_line().await.expect("read a child's output") {
                if let Some((_, words)) = line.split_once(SAYS) {
                    return words.to_owned();
                }
            }
            panic!("the child ended and said nothing")
        };
        tokio::time::timeout(std::time::Duration::from_secs(120), heard).await.expect("a child speaks in time")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.process.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).expect("a process id")));
        kill_process(pid.expect("a running child"), signal).expect("send a signal");
    }

    /// Waits until it ends; a child that failed fails the test.
    pub async fn ended(mut self) {
        let ended = tokio::time::timeout(std::time::Duration::from_secs(300), self.process.wait()).await;
        assert!(ended.expect("a child ends in time").expect("wait for a child").success(), "a child failed");
    }
}

/// Says a line to the test that started this child.
pub fn say(words: &str) {
    println!("{SAYS}{words}");
}

/// What a child is given.
pub struct Stage {
    pub mongo_url: String,
    pub database: String,
    pub postgres_url: String,
    pub words: Vec<String>,
}

/// In a child: its role. In the test run itself there is none, and nothing to show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let variable = |name: &str| std::env::var(name).expect(name);
    let stage = Stage {
        mongo_url: variable("BRIDGE_TEST_CHILD_MONGO"),
        database: variable("BRIDGE_TEST_CHILD_DATABASE"),
        postgres_url: variable("BRIDGE_TEST_CHILD_POSTGRES"),
        words: variable("BRIDGE_TEST_WORDS").lines().map(str::to_owned).collect(),
    };
    match role.as_str() {
        "lock" => crate::lock::roles::play(stage).await,
        "claim" => crate::stores::claims::play(stage).await,
        other => panic!("there is no role {other}"),
    }
}
