//! The runbooks, rehearsed: their commands run as they stand there, one after the other, and what they promise appears.
//!
//! A block ```` ```console ```` holds commands (`$ bridge …`) and below each what it prints, in this order, with other lines
//! between; `…` stands for anything. `exit code N` is how the command ends, 0 where nothing is said. A command that ends in
//! `&` goes on beside the others. A comment `<!-- rehearsal: NAME -->` is a situation that the test brings about.

mod situations;

use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use self::situations::{Situation, WAIVED};
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;

const LIMIT: Duration = Duration::from_secs(120);

/// One line of a runbook that is rehearsed.
#[derive(Debug, PartialEq)]
enum Step {
    Situation(String),
    Command { line: String, exit: i32, promised: Vec<String>, beside: bool },
}

/// What is to be rehearsed of a runbook.
fn steps(text: &str) -> Vec<Step> {
    let (mut steps, mut is_console) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("<!-- rehearsal:").and_then(|rest| rest.strip_suffix("-->")) {
            steps.push(Step::Situation(name.trim().to_owned()));
        } else if line.starts_with("```") {
            is_console = line == "```console";
        } else if is_console && let Some(command) = line.strip_prefix("$ ") {
            let command = command.split("  #").next().unwrap_or_default().trim();
            let (line, beside) = command.strip_suffix('&').map_or((command, false), |line| (line.trim(), true));
            steps.push(Step::Command { line: line.to_owned(), exit: 0, promised: Vec::new(), beside });
        } else if is_console && !line.is_empty() {
            let Some(Step::Command { exit, promised, .. }) = steps.last_mut() else {
                panic!("no command before {line:?}")
            };
            match line.strip_prefix("exit code ").and_then(|code| code.parse().ok()) {
                Some(code) => *exit = code,
                None => promised.push(line.to_owned()),
            }
        }
    }
    steps
}

/// The lines that a terminal shows, with every run of spaces as one.
fn shown(output: &str) -> Vec<String> {
    let clean = console::strip_ansi_codes(output).into_owned();
    clean.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Whether a line is what was promised.
fn is_promised(line: &str, promised: &str) -> bool {
    let promised = promised.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts: VecDeque<&str> = promised.split('…').collect();
    let (first, mut rest) = (parts.pop_front().unwrap_or_default(), line);
    let Some(after) = rest.strip_prefix(first.trim_end()) else { return false };
    rest = after;
    let Some(last) = parts.pop_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part.trim()) else { return false };
        rest = after;
    }
    rest.ends_with(last.trim_start())
}

/// What of `promised` is not in `lines`, in this order.
fn missing<'a>(lines: &[String], promised: &'a [String]) -> Option<&'a String> {
    let mut lines = lines.iter();
    promised.iter().find(|promised| !lines.any(|line| is_promised(line, promised)))
}

/// A command aimed at the bed, from the operator's folder.
fn aimed(command: &mut std::process::Command, bed: &Bed, folder: &Path) {
    for (name, value) in bed.bridge(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let bridge = Path::new(env!("CARGO_BIN_EXE_bridge")).parent().expect("a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", bridge.display())).current_dir(folder);
    // Shorter than an operator's, so that what a dead process holds comes free soon.
    command.env("BRIDGE_LEASE_SECONDS", "2").env("FAILPOINTS", WAIVED);
}

/// A command as the shell of an operator runs it.
fn shell(bed: &Bed, folder: &Path, line: &str) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    aimed(&mut command, bed, folder);
    command.args(["-c", line]).stdin(Stdio::null());
    command
}

/// What the gate says of a secondary that lags a moment behind, as it may on a busy machine: whoever reads that tries again.
const LAGS: [&str; 2] = ["the mirror is level NOT MET", "the outbox is drained NOT MET"];

/// Runs a command to its end: how it ended, and what it printed.
async fn ran(bed: &Bed, folder: &Path, line: &str) -> (Option<i32>, Vec<String>) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let mut command = tokio::process::Command::from(shell(bed, folder, line));
        command.kill_on_drop(true);
        let output = tokio::time::timeout_at(deadline, command.output()).await.expect(line).expect(line);
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        let lines = shown(&said.join("\n"));
        let lags = lines.iter().any(|line| LAGS.iter().any(|lags| line.starts_with(lags)));
        if !lags || !line.contains("bridge switch") {
            return (output.status.code(), lines);
        }
    }
}

/// Rehearses a runbook on `bed`.
async fn rehearsed(name: &str, bed: &Bed) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("runbooks").join(name);
    let text = std::fs::read_to_string(&path).expect("the runbook");
    let steps = steps(&text);
    let commands = steps.iter().filter(|step| matches!(step, Step::Command { .. })).count();
    assert!(commands > 3, "{name}: {commands} commands");
    let (mut situation, begun) = (Situation::new(bed), Instant::now());
    for step in steps {
        println!("{:.1?} {step:?}", begun.elapsed());
        match step {
            Step::Situation(name) => situation.bring_about(&name).await,
            Step::Command { line, promised, beside: true, .. } => {
                let process = Bridge::start(shell(bed, situation.folder(), &format!("exec {line}")));
                let said = || shown(&(process.said() + "\n" + &process.complaints()));
                until(&line, LIMIT, async || missing(&said(), &promised).is_none()).await;
                situation.beside(process);
            }
            Step::Command { line, exit, promised, beside: false } => {
                let (ended, lines) = ran(bed, situation.folder(), &line).await;
                let told = lines.join("\n");
                println!("{told}");
                assert_eq!(ended, Some(exit), "{name}: {line}\n{told}");
                let missing = missing(&lines, &promised);
                assert!(missing.is_none(), "{name}: {line}\nlacks {missing:?}\n{told}");
            }
        }
    }
    situation.ends().await;
    println!("{name}: {:.1?}", begun.elapsed());
}

/// A rehearsal of each runbook.
macro_rules! rehearsals {
    ($($name:ident => $file:literal,)*) => {
        const REHEARSED: &[&str] = &[$($file),*];

        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            rehearsed($file, &Bed::new().await).await;
        })*
    };
}

rehearsals! {
    backfill => "backfill.md",
    mirror => "mirror.md",
    shadow => "shadow.md",
    verify => "verify.md",
    cutover => "cutover.md",
    rollback => "rollback.md",
    incidents => "incidents.md",
}

#[test]
fn every_runbook_is_rehearsed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("runbooks");
    let names = std::fs::read_dir(folder).expect("the runbooks").map(|file| file.expect("a file").file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().expect("a text")).collect();
    names.sort();
    let mut rehearsed = REHEARSED.to_vec();
    rehearsed.sort_unstable();
    assert_eq!(names, rehearsed);
}

#[test]
fn what_is_promised_is_told_from_what_is_not() {
    for (line, promised) in [
        ("clean: 5 documents", "clean: … documents"),
        ("the phase is mongo", "the phase is mongo"),
        ("a  b", "…"),
        ("condition met 0 s", "condition … met …"),
    ] {
        assert!(is_promised(&shown(line)[0], promised), "{line} {promised}");
    }
    for (line, promised) in
        [("mismatch: 5", "clean: …"), ("clean: 5 documents or so", "clean: … documents"), ("a", "a b")]
    {
        assert!(!is_promised(line, promised), "{line} {promised}");
    }
    let text =
        "```console\n$ bridge verify  # look\nexit code 1\nmismatch: …\n$ bridge mirror &\n```\n<!-- rehearsal: x -->";
    let command = |line: &str, exit, promised: &[&str], beside| Step::Command {
        line: line.to_owned(),
        exit,
        promised: promised.iter().map(|line| (*line).to_owned()).collect(),
        beside,
    };
    assert_eq!(
        steps(text),
        [
            command("bridge verify", 1, &["mismatch: …"], false),
            command("bridge mirror", 0, &[], true),
            Step::Situation("x".to_owned())
        ]
    );
}
