//! A store that is away: the error says so, within its deadline, and names what was attempted.

use scheduler_bridge::embedded::Stop;
use scheduler_bridge::error_text;
use scheduler_bridge::scheduler::{Error, Scheduler};

use crate::bed::Bed;
use crate::stores::both;
use crate::stores::samples::{run, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_unavailable_and_works_again_when_it_is_back() {
    let mut bed = Bed::with_own_servers().await;
    let [(_, mongo), (_, postgres)] = both(&bed).await;
    let (mongo, postgres) = (Scheduler::new(&mongo), Scheduler::new(&postgres));
    for scheduler in [&mongo, &postgres] {
        scheduler.runs.create(&run("a", "r")).await.expect("create");
    }
    bed.servers().mongo.stop(Stop::Kill).await.expect("stop");
    bed.servers().postgres.stop(Stop::Kill).await.expect("stop");
    let of = tenant("a");
    for scheduler in [&mongo, &postgres] {
        let (read, written) = tokio::join!(scheduler.runs.get(&of, "r"), async {
            scheduler.runs.create(&run("a", "r2")).await.map(|()| run("a", "r2"))
        });
        for (done, words) in [(read, "read runs"), (written, "write runs \"r2\"")] {
            let error = done.expect_err("the server is away");
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            assert!(error_text(&error).contains(words), "{}", error_text(&error));
        }
    }
    bed.servers().mongo.start_again().await.expect("start");
    bed.servers().postgres.start_again().await.expect("start");
    for scheduler in [&mongo, &postgres] {
        let back = async || scheduler.runs.get(&tenant("a"), "r").await.is_ok();
        crate::bed::until("the store is back", std::time::Duration::from_secs(60), back).await;
    }
}
