//! The verifier, on real servers.

mod columns;
mod command;
mod fields;
mod keys;
mod killed;
mod live;
pub mod memory;
mod page;
mod ranges;
mod reads;
mod repair;

use scheduler_bridge::backfill;
use scheduler_bridge::entity::ENTITIES;
use scheduler_bridge::source::Source;
use scheduler_bridge::target::Target;
use scheduler_bridge::verify::{self, Verdict};
use secrecy::SecretString;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::bed::Bed;

/// The longest that anything may take here.
pub const LIMIT: Duration = Duration::from_secs(120);

pub async fn stores(bed: &Bed) -> (Source, Target) {
    let source = Source::open(&SecretString::from(bed.mongo_url.as_str()), bed.database.name()).await.expect("source");
    let target = Target::open(&SecretString::from(bed.postgres_url.as_str()), 8).await.expect("target");
    (source, target)
}

pub async fn backfill(bed: &Bed) -> Vec<backfill::Copied> {
    backfill_in_chunks_of(bed, 200_000).await
}

/// With chunks of about so many bytes.
pub async fn backfill_in_chunks_of(bed: &Bed, chunk_bytes: i64) -> Vec<backfill::Copied> {
    let (source, target) = stores(bed).await;
    let options = backfill::Options {
        entities: ENTITIES.to_vec(),
        start: backfill::Start::CarryOn,
        workers: 3,
        rate: backfill::Rate::default(),
        lease: Duration::from_secs(5),
        patience: Duration::from_secs(10),
        chunk_bytes,
        batch_bytes: 100_000,
    };
    backfill::run(&source, &target, &options, |_| (), CancellationToken::new()).await.expect("backfill")
}

pub async fn verify(bed: &Bed) -> verify::Report {
    verify_in_ranges_of(bed, 200_000).await
}

/// With ranges of about so many bytes.
pub async fn verify_in_ranges_of(bed: &Bed, chunk_bytes: i64) -> verify::Report {
    let (source, target) = stores(bed).await;
    verify::run(&source, &target, &options(chunk_bytes), |_| (), CancellationToken::new()).await.expect("verify")
}

/// How tests verify.
pub fn options(chunk_bytes: i64) -> verify::Options {
    verify::Options {
        entities: ENTITIES.to_vec(),
        start: verify::Start::CarryOn,
        sample: None,
        tolerance: Duration::from_secs(2),
        workers: 3,
        rate: backfill::Rate::default(),
        listed: 10_000,
        shown: 5,
        chunk_bytes,
        lease: Duration::from_secs(5),
        name: "a test".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_stores_are_clean_and_empty_ones_inconclusive() {
    let bed = Bed::new().await;
    scheduler_bridge::dataset::load(&bed.database, 5_000, 1, |_| ()).await.expect("load");
    let copied = backfill(&bed).await;
    assert_eq!(copied.iter().map(|one| one.tally.documents).sum::<i64>(), 5_000);
    let report = verify(&bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "{report:#?}");
    assert_eq!(report.collections.iter().map(|one| one.documents).sum::<u64>(), 5_000);
}
