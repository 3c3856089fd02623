//! A server that is lost while a switch is at any of its steps.

use scheduler_bridge::embedded::Stop;
use scheduler_bridge::fence::mongo::MongoFence;
use scheduler_bridge::phase::{Backend, Phase};

use super::LIMIT;
use super::switch::{Scheduler, WAIVED, command, followed, objects, standing, step, turned};
use crate::bed::{Bed, until};

/// The steps, and what the record says there.
const STEPS: [(&str, &str); 3] = [
    ("before-close", "close the old primary"),
    ("before-open", "open the new primary"),
    ("before-finish", "open the new primary"),
];

/// The phase of the one fence that is open; nothing when none is, or they cannot be read.
async fn open(bed: &Bed) -> Option<Phase> {
    let mongo = MongoFence::new(&bed.database).look().await.ok()??.fence;
    let postgres = sqlx::query_as("select phase, open from bridge.fence").fetch_one(bed.pool()).await;
    let (phase, is_open): (String, bool) = postgres.ok()?;
    assert!(!(mongo.open && is_open), "both fences are open: {mongo:?}, {phase}");
    if mongo.open { Some(mongo.phase) } else { is_open.then(|| phase.parse().expect("a phase")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_lost_at_any_step_leaves_a_phase_that_can_be_gone_on_from() {
    let mut bed = Bed::with_own_servers().await;
    let mut scheduler = Scheduler::start(&bed, 2);
    scheduler.at_work().await;
    let mut mirror = followed(&bed).await;
    turned(&bed, "mongo-primary").await;
    for (point, name) in STEPS {
        for lost in [Backend::Mongo, Backend::Postgres] {
            let from = open(&bed).await.expect("an open fence");
            let to = if from == Phase::MongoPrimary { Phase::PostgresPrimary } else { Phase::MongoPrimary };
            println!("{from} to {to}, {lost} lost {point}");
            // Long enough for the server to be gone when it goes on.
            let failpoints = format!("{WAIVED};switch::{point}=sleep(4000)");
            let stands = async || {
                step(&bed).await.expect("look").as_deref() == Some(name)
                    && (point != "before-finish" || open(&bed).await == Some(to))
            };
            let process = standing(&bed, to.name(), &failpoints, stands).await;
            match lost {
                Backend::Mongo => bed.servers().mongo.stop(Stop::Kill).await.expect("kill MongoDB"),
                Backend::Postgres => bed.servers().postgres.stop(Stop::Kill).await.expect("kill PostgreSQL"),
            }
            let ended = process.ended().await;
            assert!(matches!(ended.exit, Some(3..=5)), "{:?} {}", ended.exit, ended.stderr);
            match lost {
                Backend::Mongo => bed.servers().mongo.start_again().await.expect("start MongoDB"),
                Backend::Postgres => bed.servers().postgres.start_again().await.expect("start PostgreSQL"),
            }
            if mirror.is_over() {
                println!("{}", mirror.complaints());
                mirror = followed(&bed).await;
            }
            let is_legal = async || {
                if open(&bed).await.is_some() && matches!(step(&bed).await, Ok(None)) {
                    return true;
                }
                // What is half way is finished: the operator need not know how far it was.
                let (exit, _, stderr) = objects(command(&bed, &["--resume"], WAIVED)).await;
                println!("resumed: {exit:?} {}", stderr.lines().next().unwrap_or_default());
                false
            };
            until("the phase is a legal one", LIMIT, is_legal).await;
            scheduler.goes_on().await;
        }
    }
    scheduler.nothing_is_lost(&bed).await;
}
