//! The mirror: live writes follow, from the store that is the primary to the one that is not (design 9).
//!
//! Invariants: one process is active, the others stand by; progress moves only with the rows it speaks of; of each key
//! the newest write stands, whatever was repeated or came late. Every fault that passes has the same remedy: begin again
//! from what PostgreSQL says.

mod apply;
mod fold;
mod outbox;
mod position;
mod prepare;
mod progress;
mod strays;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::apply::Applier;
use self::outbox::Drain;
use self::position::{Direction, Held, Seat};
use self::strays::Watch;
use self::stream::{Answer, Stream};
use crate::anchor;
use crate::backoff::waits;
use crate::secondary::WriteError;
use crate::source::{DriverError, Source, SourceError};
use crate::store::StoreError;
use crate::target::{Target, TargetError};

pub use self::progress::{Lag, Progress};

/// How to run a mirror.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a process that is not heard of stays the active one.
    pub lease: Duration,
}

/// How often a process that stands by looks whether it is its turn, at least.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is looked whether the phase has changed: a switch back would wait for a mirror that does not know of it yet.
const TURN_LOOK: Duration = Duration::from_millis(200);

/// Why a mirror ended. What passes by itself does not end it.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// MongoDB failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// PostgreSQL failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The oplog does not reach back to where the mirror was.
    #[error("MongoDB's oplog does not reach back to where the mirror was: writes were missed")]
    HistoryLost {
        /// The server's answer.
        source: DriverError,
    },
    /// The database was dropped.
    #[error("the change stream was invalidated: the database was dropped")]
    Invalidated,
    /// A collection was dropped.
    #[error("collection {collection} was dropped: that its documents are gone, no event says")]
    Dropped {
        /// Which.
        collection: String,
    },
    /// A collection was renamed, or another took its name.
    #[error("collection {from} was renamed to {to}: what became of the documents of either, no event says")]
    Renamed {
        /// The name before.
        from: String,
        /// The name after.
        to: String,
    },
    /// Tables were truncated.
    #[error("truncated in PostgreSQL and not copied again: {}", collections.join(", "))]
    Truncated {
        /// Which.
        collections: Vec<String>,
    },
    /// Nobody follows any more.
    #[error("PostgreSQL is the primary in phase {phase}: its rows are not overwritten")]
    Primary {
        /// The phase.
        phase: String,
    },
    /// A row that no document was encoded to.
    #[error("a row that was written cannot be brought to MongoDB")]
    Row {
        /// Which, and why.
        source: StoreError,
    },
    /// A document that MongoDB does not take.
    #[error("a row that was written cannot be brought to MongoDB")]
    Refused {
        /// Which, and why.
        source: Box<WriteError>,
    },
    /// The row of the stream cannot be read.
    #[error("column token of bridge.stream holds no BSON document")]
    Token,
    /// A bug: a task panicked. Its own report is in the log.
    #[error("a task of the mirror ended by itself")]
    Crashed,
}

/// A failure inside the mirror, with what was attempted.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("could not {attempted}")]
    Source { attempted: String, source: Box<mongodb::error::Error> },
    #[error("could not {attempted}")]
    Target { attempted: String, source: sqlx::Error },
    #[error("PostgreSQL did not answer in time")]
    Silent,
    #[error("MongoDB did not answer in time")]
    SourceSilent,
    #[error("the phase has changed, and with it which store follows")]
    Turned,
    #[error("PostgreSQL's fence is closed: a switch is under way")]
    Switching,
    #[error(
        "another process is the active mirror now, or the phase has changed, or the mirror was told to go on elsewhere"
    )]
    LeaseLost,
    #[error(transparent)]
    Ended(MirrorError),
}

type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    fn source(attempted: impl Into<String>) -> impl Fn(mongodb::error::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Source { attempted: attempted.clone(), source: Box::new(source) }
    }

    fn target(attempted: impl Into<String>) -> impl Fn(sqlx::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Target { attempted: attempted.clone(), source }
    }

    fn is_transient(&self) -> bool {
        match self {
            Self::Source { source, .. } => crate::source::transient(source),
            Self::Target { source, .. } => crate::target::transient(source),
            Self::Silent | Self::SourceSilent | Self::Turned | Self::Switching | Self::LeaseLost => true,
            Self::Ended(_) => false,
        }
    }

    /// Whether PostgreSQL refuses what the rows hold.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Target { source, .. } if crate::target::refuses_data(source))
    }

    /// The reason of a quarantine.
    fn refusal(&self) -> String {
        format!("PostgreSQL refused it: {}", crate::error_text(self))
    }
}

impl From<Fault> for MirrorError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Source { attempted, source } => SourceError::of(attempted, *source).into(),
            Fault::Target { attempted, source } => TargetError::of(attempted, source).into(),
            Fault::Ended(error) => error,
            // They pass, and are tried again.
            Fault::Silent | Fault::SourceSilent | Fault::Turned | Fault::Switching | Fault::LeaseLost => Self::Crashed,
        }
    }
}

/// Mirrors live writes until `stop` is cancelled, then gives the lease back. Takes the anchor where no backfill has. When
/// the phase changes, it turns round.
///
/// Faults that pass are tried again for ever: a primary must not suffer because its secondary is away for an hour.
/// Dropping the future loses no more than the transaction under way; the lease then ends by itself.
pub async fn run(
    source: &Source,
    target: &Target,
    options: &Options,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> std::result::Result<(), MirrorError> {
    let seat = Seat::new(target.pool().clone(), options.lease);
    let drain = Drain::new(source, seat.clone(), progress.clone());
    let mirror = Mirror { source: source.clone(), seat, drain, progress, stop };
    mirror.progress.export();
    let mut waits = waits();
    let mut reached = None;
    while !mirror.stop.is_cancelled() {
        let Err(fault) = mirror.follow().await else { break };
        if !fault.is_transient() {
            mirror.leave().await;
            return Err(fault.into());
        }
        if matches!(fault, Fault::Turned) {
            tracing::info!("the phase has changed, and with it which store follows");
            continue;
        }
        // Patience begins anew with every progress.
        if reached.replace(mirror.progress.applied()) != Some(mirror.progress.applied()) {
            waits = crate::backoff::waits();
        }
        let wait = waits.next().unwrap_or(LOOK);
        tracing::warn!(error = %crate::error_text(&fault), ?wait, "will go on");
        mirror.pause(wait).await;
    }
    mirror.leave().await;
    Ok(())
}

/// How often it is looked whether the mirror has passed a mark.
const MARK_LOOK: Duration = Duration::from_millis(50);

/// Writes a mark to MongoDB and waits until the active mirror, of whichever process, has applied everything before it; waits
/// as long as that takes. Dropping the future does no harm.
pub async fn until_level(source: &Source, target: &Target) -> std::result::Result<(), MirrorError> {
    let time = anchor::take(source.database()).await;
    let time = time.map_err(|error| SourceError::of(format!("write a mark to {}", anchor::COLLECTION), error))?;
    loop {
        match anchor::is_passed(crate::stamp::clock(time), target.pool()).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if crate::target::transient(&error) => {}
            Err(error) => return Err(TargetError::of("look how far the mirror is", error).into()),
        }
        tokio::time::sleep(MARK_LOOK).await;
    }
}

struct Mirror {
    source: Source,
    seat: Seat,
    drain: Drain,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

impl Mirror {
    /// Follows whichever store is the primary: MongoDB's change stream, or PostgreSQL's outbox. Any number of processes may
    /// empty that; one of them watches MongoDB meanwhile.
    async fn follow(&self) -> Result<()> {
        let direction = self.seat.direction().await?;
        if !self.seat.is_there().await? {
            self.begin().await?;
        }
        match direction {
            Direction::ToPostgres => {
                let Some(held) = self.seated(direction).await? else { return Ok(()) };
                self.progress.activate(held.position.clock);
                let followed = self.until_turned(direction, self.tail(held)).await;
                self.progress.deactivate();
                followed
            }
            Direction::ToMongo => {
                let followed =
                    async { tokio::try_join!(self.drain.run(&self.stop), self.watch(direction)).map(|_| ()) };
                self.until_turned(direction, followed).await
            }
        }
    }

    /// Does `work` until the phase has another direction: what comes of a store that is not the primary any more, or nothing
    /// at all, would tell too late.
    async fn until_turned(&self, direction: Direction, work: impl Future<Output = Result<()>>) -> Result<()> {
        let turned = async {
            loop {
                tokio::time::sleep(TURN_LOOK).await;
                match self.seat.direction().await {
                    Ok(now) if now != direction => return Fault::Turned,
                    Err(fault) if !fault.is_transient() => return fault,
                    _ => {}
                }
            }
        };
        tokio::select! {
            done = work => done,
            fault = turned => Err(fault),
        }
    }

    async fn watch(&self, direction: Direction) -> Result<()> {
        let Some(held) = self.seated(direction).await? else { return Ok(()) };
        let watch = || Watch::new(self.source.clone(), self.seat.clone(), held.clone(), self.progress.clone());
        match watch().run(&self.stop).await {
            Err(Fault::Ended(error @ (MirrorError::HistoryLost { .. } | MirrorError::Invalidated))) => {
                // MongoDB must follow all the same; what happened meanwhile is the verifier's to find.
                tracing::error!(error = %crate::error_text(&error), "stray writes may have been missed: verify the stores");
                let time = anchor::take(self.source.database()).await.map_err(Fault::source("write an anchor"))?;
                watch().begin_anew(time).await?;
                Err(Fault::LeaseLost)
            }
            done => done,
        }
    }

    /// Waits until this process is the active one; nothing when it is to stop.
    async fn seated(&self, direction: Direction) -> Result<Option<Held>> {
        while !self.stop.is_cancelled() {
            if let Some(held) = self.seat.take(direction).await? {
                return Ok(Some(held));
            }
            self.pause(LOOK.min(self.seat.renewal())).await;
        }
        Ok(None)
    }

    /// Takes the anchor from which the stream begins.
    async fn begin(&self) -> Result<()> {
        let attempted = format!("write the anchor to {}", anchor::COLLECTION);
        let time = anchor::take(self.source.database()).await.map_err(Fault::source(attempted))?;
        let pool = self.seat.pool();
        let mut connection = pool.acquire().await.map_err(Fault::target("connect"))?;
        anchor::keep_start(time, &mut connection).await.map_err(Fault::target("store where the mirror begins"))
    }

    /// Follows the stream until this process is to stop. What was read before a fault of the source is applied.
    async fn tail(&self, held: Held) -> Result<()> {
        let (answers, answered) = mpsc::channel(1);
        let (parts, prepared) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(read(self.source.clone(), held.clone(), self.progress.clone(), answers));
        tasks.spawn(prepare::prepare(self.source.clone(), held.epoch, answered, parts));
        let applier = Applier::new(self.seat.clone(), held, self.progress.clone());
        let applied = applier.run(prepared, &self.stop).await;
        if applied.is_err() || self.stop.is_cancelled() {
            tasks.abort_all();
        }
        let mut failed = applied.err();
        while let Some(task) = tasks.join_next().await {
            match task {
                Ok(Err(fault)) => failed = failed.or(Some(fault)),
                Err(error) if error.is_panic() => failed = failed.or(Some(Fault::Ended(MirrorError::Crashed))),
                Ok(Ok(())) | Err(_) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn pause(&self, wait: Duration) {
        self.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
    }

    /// Whether that succeeds does not matter: the lease ends by itself.
    async fn leave(&self) {
        if let Err(fault) = self.seat.leave().await {
            tracing::warn!(error = %crate::error_text(&fault), "the lease was not given back; it ends by itself");
        }
    }
}

/// Reads the stream until nobody takes its answers any more.
async fn read(source: Source, held: Held, progress: Arc<Progress>, out: mpsc::Sender<Answer>) -> Result<()> {
    let mut stream = Stream::open(&source, held).await?;
    loop {
        let mut answer = stream.next().await?;
        let end = answer.end.take();
        progress.answered(answer.events.len() + answer.marks, answer.now, answer.is_last);
        if out.send(answer).await.is_err() {
            return Ok(()); // the applier has ended, and says why
        }
        if let Some(end) = end {
            return Err(Fault::Ended(end.error));
        }
    }
}
