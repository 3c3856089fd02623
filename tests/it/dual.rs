//! Both stores as one: the dual store, the fences, the switch.

mod away;
mod blows;
mod contract;
mod gate;
mod lost;
mod metrics;
mod pause;
mod settings;
mod shadow;
pub mod switch;

use std::time::Duration;

use scheduler_bridge::connect::{Backends, Connected};
use scheduler_bridge::fence::Fence;
use scheduler_bridge::fence::mongo::MongoFence;
use scheduler_bridge::phase::{Backend, Phase};
use scheduler_bridge::scheduler::Scheduler;
use secrecy::SecretString;

use crate::bed::Bed;

/// Long enough for a debug build on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Puts both fences into a phase, at an epoch.
pub async fn turn(bed: &Bed, phase: Phase, epoch: i32) {
    let is_mongo = phase.primary() == Backend::Mongo;
    let fence = sqlx::query("update bridge.fence set phase = $1, epoch = $2, open = $3");
    fence.bind(phase.name()).bind(epoch).bind(!is_mongo).execute(bed.pool()).await.expect("turn PostgreSQL's fence");
    MongoFence::new(&bed.database).create(Fence { phase, epoch, open: is_mongo }).await.expect("make MongoDB's fence");
}

/// The backends of a bed.
pub fn backends(bed: &Bed) -> Backends {
    let mongo = (SecretString::from(bed.mongo_url.as_str()), bed.database.name().to_owned());
    Backends::new(Some(mongo), Some(SecretString::from(bed.postgres_url.as_str())))
}

/// An application of a bed.
pub async fn connect(backends: &Backends) -> Connected {
    Scheduler::connect(backends).await.expect("connect")
}
