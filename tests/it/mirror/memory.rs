//! The mirror's memory while PostgreSQL stands still for a minute and MongoDB does not.

use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::{assert_clean, backfill, level, mirror, run, stop};
use crate::bed::Bed;
use crate::verify::memory::high_water;

/// In KiB: a few answers of the server, of 16 MiB each, as documents and as rows. Of 900 MB of events it is no more.
const BOUND: u64 = 288 * 1024;

/// 400 MB in all.
const DOCUMENTS: usize = 4_000;
const LENGTH: usize = 100_000;

const MINUTE: Duration = Duration::from_secs(60);

/// Sends a signal to the server and to all its sessions. The postmaster first, and only then is it looked who they are:
/// one that is stopped starts no further ones.
pub fn signal(postmaster: u32, signal: Signal) {
    let send = |pid: u32| {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("a process id");
        let sent = kill_process(pid, signal);
        assert!(matches!(sent, Ok(()) | Err(Errno::SRCH)), "a session may only have ended since they were listed");
    };
    send(postmaster);
    let has_stopped =
        || std::fs::read_to_string(format!("/proc/{postmaster}/stat")).is_ok_and(|stat| stat.contains(") T "));
    let begun = Instant::now();
    while signal == Signal::STOP && !has_stopped() {
        assert!(begun.elapsed() < MINUTE, "the postmaster does not stop");
        std::thread::yield_now();
    }
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).expect("children");
    children.split_whitespace().map(|pid| pid.parse().expect("a number")).for_each(send);
}

/// Inserts large documents, and updates each small one again and again until a minute is over.
async fn write(bed: &Bed) {
    let begun = Instant::now();
    let logs = bed.database.collection::<Document>("execution_logs");
    for batch in 0..DOCUMENTS / 100 {
        let line = |number: usize| {
            let sequence = i64::try_from(number).expect("small");
            doc! { "tenantId": "t", "runId": "r", "sequence": sequence, "message": "m".repeat(LENGTH) }
        };
        logs.insert_many((batch * 100..(batch + 1) * 100).map(line)).await.expect("insert");
    }
    let runs = bed.database.collection::<Document>("runs");
    runs.insert_many((0..2_000).map(|number| run(&format!("run-{number}"), number))).await.expect("insert");
    for _ in 0..10 {
        runs.update_many(doc! {}, doc! { "$inc": { "number": 1_i64 } }).await.expect("update");
    }
    // A thousand a second from then on.
    let hundred = doc! { "_id": { "$regex": "^run-1[0-9]{2}$" } };
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    while begun.elapsed() < MINUTE {
        pace.tick().await;
        runs.update_many(hundred.clone(), doc! { "$inc": { "number": 1_i64 } }).await.expect("update");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_while_postgres_stands_still() {
    let mut bed = Bed::with_own_servers().await;
    bed.database.collection("runs").insert_one(run("first", 1)).await.expect("insert");
    backfill(&bed, &[]).await;
    let mirror = mirror(&bed);
    level(&bed).await;
    let (pid, postmaster) = (mirror.pid().expect("it runs"), bed.servers().postgres.pid());
    let before = high_water(pid).expect("it runs");
    signal(postmaster, Signal::STOP);
    write(&bed).await;
    let stopped = high_water(pid).expect("it runs");
    signal(postmaster, Signal::CONT);
    level(&bed).await;
    let after = high_water(pid).expect("it runs");
    println!("{before} KiB before, {stopped} KiB while PostgreSQL stood still, {after} KiB at the end");
    assert!(after < BOUND, "{before}, {stopped}, {after} KiB");
    assert_clean(&bed).await;
    stop(mirror).await;
}
