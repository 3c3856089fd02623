//! The task that keeps a process's gate as the fences say: it renews the lease in MongoDB's and, once that is closed and no
//! write is under way, gives it up, which acknowledges the closing; and it notes the process in PostgreSQL's.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::gate::Gate;
use super::mongo::MongoFence;
use super::postgres::PostgresFence;
use super::{Fence, FenceError};
use crate::phase::Backend;

/// How often the fences are looked at while neither is open.
const CLOSED_LOOK: Duration = Duration::from_millis(20);

/// How often MongoDB's lease is renewed at least: a switch waits until every process has seen that the fence is closed.
const MONGO_LOOK: Duration = Duration::from_millis(200);

/// How often PostgreSQL's fence is looked at while it is open: its own check makes writes exact, so this is for the list of
/// processes, and for the phase.
const POSTGRES_LOOK: Duration = Duration::from_millis(500);

/// Which stores there are, and how long a lease in MongoDB is.
#[derive(Debug, Clone)]
pub struct Fences {
    /// MongoDB's, unless the application has given it up.
    pub mongo: Option<MongoFence>,
    /// PostgreSQL's, unless the application does not know it yet.
    pub postgres: Option<PostgresFence>,
    /// The lease in MongoDB's.
    pub lease: Duration,
    /// Which store is asked first.
    pub first: Backend,
}

/// The task behind a gate. It ends when this is dropped: who uses the stores no more must not seem to.
#[derive(Debug)]
pub struct Watcher {
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl Watcher {
    /// Begins to keep `gate` of the process of that id and name; the gate is open or waits for a switch to end when this returns.
    ///
    /// # Errors
    /// Those of [`FenceError`], when no fence can be read.
    pub async fn start(fences: Fences, gate: Gate, (id, name): (Uuid, String)) -> Result<Self, FenceError> {
        let at = fences.first;
        let mut watch = Watch { fences, gate, name, id, at, is_listed: false };
        watch.look().await?;
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { watch.run(&stop).await }
        });
        Ok(Self { task, stop: stop.drop_guard() })
    }

    /// Closes the gate, waits for what is under way, and takes the process out of both lists.
    pub async fn end(self) {
        let Self { task, stop } = self;
        drop(stop);
        if let Err(error) = task.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

struct Watch {
    fences: Fences,
    gate: Gate,
    name: String,
    id: Uuid,
    /// The store that was the primary when it was last seen.
    at: Backend,
    /// Whether it may be in MongoDB's list.
    is_listed: bool,
}

impl Watch {
    async fn run(mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let pause = match self.look().await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::warn!(error = %crate::error_text(&error), "the fence could not be read");
                    CLOSED_LOOK
                }
            };
            let asked = tokio::time::timeout(pause, self.gate.asked_to_look());
            stop.run_until_cancelled(asked).await;
        }
        self.gate.close();
        self.gate.idle().await;
        self.leave().await;
    }

    /// Looks at the fence of the store that was the primary, and at the other one's when it is closed or not told. How long
    /// to wait before the next look.
    ///
    /// # Errors
    /// That of the store that was the primary, unless the other one is now.
    async fn look(&mut self) -> Result<Duration, FenceError> {
        let (at, other) = (self.at, self.at.other());
        let first = self.look_at(at).await;
        if let Ok(Some(pause)) = first {
            return Ok(pause);
        }
        if let Some(pause) = self.look_at(other).await? {
            self.at = other;
            return Ok(pause);
        }
        first.map(|_| CLOSED_LOOK)
    }

    /// Opens the gate if the fence of `backend` is open, and closes it if it is not and was so.
    async fn look_at(&mut self, backend: Backend) -> Result<Option<Duration>, FenceError> {
        let opened = match backend {
            Backend::Mongo => self.open_mongo().await?,
            Backend::Postgres => self.open_postgres().await?,
        };
        if opened.is_none() && self.at == backend {
            self.gate.close();
            self.gate.idle().await;
            self.acknowledge().await?;
        }
        Ok(opened)
    }

    async fn open_mongo(&mut self) -> Result<Option<Duration>, FenceError> {
        let Some(mongo) = &self.fences.mongo else { return Ok(None) };
        let lease = self.fences.lease;
        // Before the lease is asked for: it ends here before it ends at the server.
        let begun = Instant::now();
        let renewed = mongo.renew(self.id, (&self.name, lease)).await;
        self.is_listed |= !matches!(renewed, Ok(None));
        let Some(view) = renewed? else { return Ok(None) };
        self.gate.open(view.fence.phase, view.fence.epoch, Some(begun + lease));
        Ok(Some((lease / 4).min(MONGO_LOOK)))
    }

    async fn open_postgres(&mut self) -> Result<Option<Duration>, FenceError> {
        let Some(postgres) = &self.fences.postgres else { return Ok(None) };
        let fence = match self.at {
            Backend::Mongo => postgres.look().await?,
            Backend::Postgres => postgres.renew(self.id, &self.name).await?,
        };
        let Fence { phase, epoch, open } = fence;
        if open {
            self.gate.open(phase, epoch, None);
        }
        Ok(open.then_some(POSTGRES_LOOK))
    }

    /// No write is under way: whoever closes MongoDB's fence need not wait for this process.
    async fn acknowledge(&mut self) -> Result<(), FenceError> {
        let Some(mongo) = self.fences.mongo.as_ref().filter(|_| self.is_listed) else { return Ok(()) };
        if let Some(view) = mongo.look().await?.filter(|view| !view.fence.open) {
            mongo.acknowledge(self.id, view.fence.epoch).await?;
            self.is_listed = false;
        }
        Ok(())
    }

    /// Whether it succeeds does not matter: a lease ends by itself.
    async fn leave(self) {
        let left = async {
            if let Some(mongo) = self.fences.mongo.as_ref().filter(|_| self.is_listed) {
                mongo.leave(self.id).await?;
            }
            match &self.fences.postgres {
                Some(postgres) => postgres.leave(self.id).await,
                None => Ok(()),
            }
        };
        if let Err(error) = left.await {
            tracing::warn!(error = %crate::error_text(&error), "this process is still in the list of a fence");
        }
    }
}
