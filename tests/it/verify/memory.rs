//! The peak memory of the real commands does not depend on the number of documents.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use scheduler_bridge::dataset::{self, fixtures};

use crate::bed::Bed;

/// The longest a command may take here.
const LIMIT: Duration = Duration::from_secs(120);

/// The most resident memory that a command ever had, in KiB. The kernel's own high-water mark, read until the process
/// ends: what grows between the last look and the end is missed, and a peak lies before the end.
fn peak(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().expect("run bridge");
    let (mut peak, deadline) = (0, Instant::now() + LIMIT);
    loop {
        peak = high_water(child.id()).unwrap_or_default().max(peak);
        if let Some(status) = child.try_wait().expect("wait") {
            assert!(status.success(), "{command:?}: {status}");
            return peak;
        }
        if Instant::now() > deadline {
            child.kill().expect("end bridge");
            panic!("{command:?} took longer than {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The most resident memory that the process has had so far, in KiB; nothing when there is no such process any more.
pub fn high_water(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The peak of `bridge` with these arguments.
async fn peak_of(bed: &Bed, arguments: &[&str]) -> u64 {
    let command = bed.bridge(arguments);
    tokio::task::spawn_blocking(|| peak(command)).await.expect("a thread")
}

async fn of_runs(count: u64) -> u64 {
    let bed = Bed::new().await;
    dataset::load_collection(&bed.database, "runs", (count, 1), |_| ()).await.expect("load");
    // Small batches: with the usual ones the buffers reach their full size only behind some 40,000 documents.
    peak_of(&bed, &["backfill", "--workers", "1", "--batch-bytes", "500000"]).await
}

async fn of_large(count: u8) -> [u64; 2] {
    let bed = Bed::new().await;
    let message = "large ".repeat(fixtures::largest().document.as_bytes().len() / 6 - 40);
    for number in 0..count {
        // One half with keys of the entity's own type, which are compared by range, the other with keys that are not.
        let (plain, other) = (Bson::ObjectId(ObjectId::from_bytes([number; 12])), Bson::Int32(number.into()));
        let id = if number % 2 == 0 { plain } else { other };
        let line = doc! { "_id": id, "tenantId": "t1", "runId": "r1", "sequence": 1_i64, "message": &*message };
        bed.database.collection::<Document>("execution_logs").insert_one(line).await.expect("insert");
    }
    [peak_of(&bed, &["backfill", "--workers", "1"]).await, peak_of(&bed, &["verify", "--workers", "1"]).await]
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_of_five_times_the_documents_takes_no_more_memory() {
    let (few, many) = (of_runs(20_000).await, of_runs(100_000).await);
    assert!(many * 100 < few * 115, "{few} KiB became {many} KiB");
}

/// In KiB. Sixteen documents alone are 256 MiB; a few of them are under way at once, in BSON and as rows.
const LARGE_BOUND: u64 = 384 * 1024;

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn documents_of_16_megabytes_stay_under_one_bound_however_many_they_are() {
    for count in [8, 24] {
        let peaks = of_large(count).await;
        assert!(peaks.iter().all(|peak| *peak < LARGE_BOUND), "{count}: {peaks:?} KiB of backfill and verify");
        println!("{count} documents of 16 MiB: {peaks:?} KiB of backfill and verify");
    }
}
