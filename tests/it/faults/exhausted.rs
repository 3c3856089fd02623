//! A target that cannot go on (statements cancelled, disk full), and a user who does not want to (Ctrl-C).

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Executor};

use super::gate::{Gate, LIMIT, until_bridge_waits};
use super::process::Bridge;
use super::{assert_complete, copied, fill};
use crate::bed::{Bed, until};

/// How many chunks somebody holds.
async fn held(bed: &Bed) -> i64 {
    let count = sqlx::query_scalar("select count(*) from bridge.chunk where holder is not null");
    count.fetch_one(bed.pool()).await.expect("count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_statement_ends_the_command_which_then_carries_on() {
    let bed = Bed::new().await;
    fill(&bed, 1_000).await;
    let gate = Gate::shut(&bed, "before insert on scheduler.runs for each statement").await;
    let name = bed.database.name();
    let set = format!("alter database {name} set statement_timeout = '2s'");
    bed.pool().execute(AssertSqlSafe(set)).await.expect("set the timeout");
    let ended = Bridge::backfill(&bed, &[]).ended().await;
    ended.says(4, &["could not copy runs", "57014", "hint:", "statement_timeout"]);
    assert_eq!(held(&bed).await, 0);
    gate.open().await;
    let reset = format!("alter database {name} reset statement_timeout");
    bed.pool().execute(AssertSqlSafe(reset)).await.expect("reset the timeout");
    Bridge::backfill(&bed, &[]).ended().await.says(0, &[]);
    assert_complete(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_command_gives_its_work_back_and_carries_on() {
    let bed = Bed::new().await;
    fill(&bed, 3_000).await;
    let bridge = Bridge::backfill(&bed, &[]);
    until("something is copied", LIMIT, async || copied(&bed).await > 100).await;
    bridge.signal(Signal::INT);
    bridge.ended().await.says(130, &["stopping", "carries on"]);
    assert_eq!(held(&bed).await, 0);
    Bridge::backfill(&bed, &[]).ended().await.says(0, &[]);
    assert_complete(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_interrupt_ends_at_once_whatever_the_server_does() {
    let bed = Bed::new().await;
    fill(&bed, 300).await;
    let stage = "before update on bridge.chunk for each row when (new.documents > old.documents)";
    let gate = Gate::shut(&bed, stage).await;
    let mut bridge = Bridge::backfill(&bed, &[]);
    until_bridge_waits(&bed).await;
    bridge.signal(Signal::INT);
    // Signals that come at once are one signal; the second is sent until it has come.
    let over = || {
        bridge.signal(Signal::INT);
        std::future::ready(bridge.is_over())
    };
    until("the second signal has ended it", LIMIT, over).await;
    bridge.ended().await.says(130, &[]);
    gate.open().await;
    Bridge::backfill(&bed, &[]).ended().await.says(0, &[]);
    assert_complete(&bed).await;
}

/// The table's file leads to `/dev/full` for a while: the system takes no byte more and says that the disk is full. Any
/// user can do that to a server of one's own, on any file system.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_command_which_carries_on_when_there_is_space() {
    let mut bed = Bed::with_own_servers().await;
    // Few enough for one write: the table's first page.
    scheduler_bridge::dataset::load(&bed.database, 300, 1, |_| ()).await.expect("load documents");
    let path = sqlx::query_scalar::<_, String>("select pg_relation_filepath('scheduler.locks')");
    let path = path.fetch_one(bed.pool()).await.expect("the table's file");
    let file = bed.servers().postgres.folder().join("data").join(path);
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).expect("put the file aside");
    std::os::unix::fs::symlink("/dev/full", &file).expect("fill the disk");

    let words = ["could not copy locks", "No space left on device", "53100", "hint: free space on the disk"];
    Bridge::backfill(&bed, &[]).ended().await.says(4, &words);
    assert_eq!(held(&bed).await, 0);
    let half = "select count(*) from bridge.chunk c join bridge.backfill b on b.id = c.backfill
        where b.collection = 'locks' and (c.documents > 0 or c.finished_at is not null)";
    assert_eq!(sqlx::query_scalar::<_, i64>(half).fetch_one(bed.pool()).await.expect("look"), 0);

    std::fs::rename(&aside, &file).expect("make space");
    Bridge::backfill(&bed, &[]).ended().await.says(0, &[]);
    assert_complete(&bed).await;
}
