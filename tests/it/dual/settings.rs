//! The table `[backend]`: changed while the stores are used, by an application and by a process that is told to read its
//! file again.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use scheduler_bridge::backend::SettingsError;
use scheduler_bridge::phase::Phase;

use super::{LIMIT, backends, connect, turn};
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;
use crate::faults::proxy::{Proxy, Weather};
use crate::simulate::text;
use crate::stores::samples::run;

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_deadline_counts_from_the_next_write_on_and_what_needs_a_restart_changes_nothing() {
    let bed = Bed::new().await;
    turn(&bed, Phase::MongoPrimary, 1).await;
    let proxy = Proxy::before(&bed.postgres_url).await;
    let mut backends = backends(&bed);
    backends.postgres = Some(proxy.url(&bed.postgres_url).into());
    let long = LIMIT;
    backends.settings.tuning.protection.deadline = long;
    let connected = connect(&backends).await;
    let create = async |id: &str| connected.scheduler.runs.create(&run("a", id)).await.expect("no write fails");
    create("one").await;
    connected.store.idle().await;
    proxy.turn(Weather::Still);

    let mut settings = backends.settings;
    settings.tuning.protection.deadline = Duration::from_millis(50);
    settings.connections += 1;
    let refused = connected.reconfigure(&settings).expect_err("it needs a restart");
    assert_eq!(refused, SettingsError::Restart { keys: vec!["connections"] });
    assert_eq!(connected.store.tuning().borrow().protection.deadline, long);
    settings.connections -= 1;
    settings.tuning.shadow_fraction = 1.5;
    let refused = connected.reconfigure(&settings).expect_err("it is out of range").to_string();
    assert_eq!(refused, "shadow-fraction must be a number from 0 to 1");
    assert_eq!(*connected.store.tuning().borrow(), backends.settings.tuning);

    settings.tuning.shadow_fraction = 0.5;
    connected.reconfigure(&settings).expect("they are fit");
    create("two").await;
    tokio::time::timeout(LIMIT / 2, connected.store.idle()).await.expect("it is given up after the shorter deadline");
    let followed = connected.store.followed().expect("a follower");
    assert_eq!((followed.level.count(), followed.failed.count()), (1, 1));
    proxy.turn(Weather::Fair);
    connected.close().await;
}

fn write(file: &Path, table: &str) {
    std::fs::write(file, format!("[backend]\n{table}\n")).expect("write the file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_reads_its_file_again_when_told_so_and_goes_on_whatever_it_says() {
    let bed = Bed::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (file, journal) = (folder.path().join("mine.toml"), folder.path().join("journal"));
    write(&file, "mirror-deadline-milliseconds = 500");
    let mut command = bed.bridge(&["simulate", "phase", "--seconds", "600", "--journal", text(&journal)]);
    command.env("BRIDGE_CONFIG", &file).env("BRIDGE_LOG", "warn,scheduler_bridge::cli=info");
    let mut process = Bridge::start(command);
    let length = || std::fs::metadata(&journal).map_or(0, |found| found.len());
    let goes_on = async |process: &mut Bridge| {
        let before = length();
        until("the scheduler goes on", LIMIT, async || length() > before + 2_000).await;
        assert!(!process.is_over(), "{}", process.complaints());
    };
    goes_on(&mut process).await;
    let changes = [
        ("mirror-deadline-milliseconds = 100\nshadow-fraction = 0.5", "goes on with the table [backend]"),
        ("mirror-deadline-milliseconds = 0", "expected mirror-deadline-milliseconds to be a whole number from 1 to"),
        ("mirror-deadlin = 9", "unknown key `mirror-deadlin`"),
        ("connections = 9\nlease-seconds = 4", "a change of lease-seconds, connections needs a restart"),
        ("phase-source = \"mongo\"", "expected phase-source to be mongodb or postgresql"),
        ("not toml", "mine.toml, line 2"),
    ];
    for (table, words) in changes {
        write(&file, table);
        process.signal(Signal::HUP);
        until(words, LIMIT, async || process.complaints().contains(words)).await;
        goes_on(&mut process).await;
    }
    std::fs::remove_file(&file).expect("remove the file");
    process.signal(Signal::HUP);
    until("it is missed", LIMIT, async || process.complaints().contains("could not read")).await;
    goes_on(&mut process).await;
    process.signal(Signal::TERM);
    process.ended().await.says(130, &["the table [backend] is used as it was"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_table_is_refused_before_anything_is_opened() {
    let bed = Bed::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mine.toml");
    write(&file, "shadow-fraction = 2");
    let mut command = bed.bridge(&["simulate", "phase"]);
    command.env("BRIDGE_CONFIG", &file);
    let ended = Bridge::start(command).ended().await;
    ended.says(2, &["mine.toml, line 2", "expected shadow-fraction to be a number from 0 to 1"]);
}
