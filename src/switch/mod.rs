//! The switch (design 11): makes another store the primary, under load, without losing a write.
//!
//! A flip closes the fence of the old primary, waits until no write can commit behind it, brings the new primary level with
//! the last one, and opens the new primary's fence: that is the commit point. The rules are those of `tests/model`, whose
//! numbers stand at the steps. Nothing depends on who is noted to be at the switch: operators who exclude each other save
//! themselves work, and no more than that.

mod block;
mod clients;
mod error;
pub mod gate;
mod record;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

pub use self::error::SwitchError;

use self::error::Result;
use self::gate::{Limits, Look, Passed, Permit, Transition, Warrant};
use self::record::Record;
use crate::condition::Condition;
use crate::fence::mongo::{Instance, MongoFence, View};
use crate::fence::postgres::PostgresFence;
use crate::fence::{self, Fence, FenceError};
use crate::metrics;
use crate::mirror;
use crate::phase::{Backend, Phase};
use crate::scan::ANSWER_WAIT;
use crate::source::Source;
use crate::store::OPERATION_WAIT;
use crate::target::{Target, TargetError};
use crate::verify;

/// How often it is looked whether what is waited for has come.
const LOOK: Duration = Duration::from_millis(10);

/// How a switch goes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a process that does not answer is waited for beyond its lease.
    pub silent_wait: Duration,
    /// Whether the switch goes on without a process whose lease has run out; what it writes after that is a stray write.
    pub leave_behind: bool,
    /// How long the new primary may take to come level, while writers wait.
    pub level_wait: Duration,
    /// Whether MongoDB is to refuse the writes of all users that may not bypass that, once it is no primary any more.
    pub block_writes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            silent_wait: OPERATION_WAIT,
            leave_behind: false,
            level_wait: Duration::from_secs(10),
            block_writes: false,
        }
    }
}

/// A step that is done, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// A switch that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The phase.
    pub phase: Phase,
    /// Its epoch.
    pub epoch: i32,
    /// For how long writers waited.
    pub pause: Duration,
}

/// Both fences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fences {
    /// MongoDB's.
    pub mongo: Fence,
    /// PostgreSQL's.
    pub postgres: Fence,
}

/// What the fences say together (rule 13). The one of the higher epoch names the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The primary of this phase is open.
    Open(Phase),
    /// The primary of this phase is closed: a switch is half way.
    Closed(Phase),
    /// An abort is half way: the primary of this phase is to be opened again, at this epoch, and nothing else.
    Reopening(Phase, i32),
}

impl Fences {
    /// Both as they are. Where MongoDB has none, nothing was ever switched, or PostgreSQL's tells of it. The deadline of a fence
    /// is for those who hold a lease behind it: whoever only looks waits for a store that stands still as long as for any read.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn look(source: &Source, target: &Target) -> std::result::Result<Self, FenceError> {
        let deadline = Instant::now() + ANSWER_WAIT;
        loop {
            match Self::look_once(source, target).await {
                Err(FenceError::Silent { .. }) if Instant::now() < deadline => {}
                looked => return looked,
            }
        }
    }

    async fn look_once(source: &Source, target: &Target) -> std::result::Result<Self, FenceError> {
        let mongo = MongoFence::new(source.database()).look().await?.map_or(fence::FIRST, |view| view.fence);
        Ok(Self { mongo, postgres: PostgresFence::new(target.pool().clone()).look().await? })
    }

    /// The phase that is, or the last one that was, and its epoch.
    pub fn turn(&self) -> (Phase, i32) {
        match self.standing() {
            Standing::Open(phase) | Standing::Closed(phase) => (phase, self.of(phase.primary()).epoch),
            Standing::Reopening(phase, epoch) => (phase, epoch),
        }
    }

    fn of(&self, backend: Backend) -> Fence {
        match backend {
            Backend::Mongo => self.mongo,
            Backend::Postgres => self.postgres,
        }
    }

    /// What they say together.
    pub fn standing(&self) -> Standing {
        let (mongo, postgres) = (self.mongo, self.postgres);
        // Of two of one epoch either names the same primary; the open one knows the phase better.
        let newer = if (postgres.epoch, postgres.open) > (mongo.epoch, mongo.open) { postgres } else { mongo };
        let primary = self.of(newer.phase.primary());
        match primary {
            Fence { epoch, .. } if epoch < newer.epoch => Standing::Reopening(newer.phase, newer.epoch),
            Fence { open: true, phase, .. } => Standing::Open(phase),
            Fence { open: false, phase, .. } => Standing::Closed(phase),
        }
    }
}

/// The switch of one pair of stores.
#[derive(Debug, Clone)]
pub struct Switch {
    source: Source,
    target: Target,
    mongo: MongoFence,
    postgres: PostgresFence,
    record: Record,
}

impl Switch {
    /// The switch between `source` and `target`, used by `name`; others may take over when it has not been heard of for
    /// `lease`.
    pub fn new(source: Source, target: Target, name: String, lease: Duration) -> Self {
        let mongo = MongoFence::new(source.database());
        let postgres = PostgresFence::new(target.pool().clone());
        let record = Record::new(target.pool().clone(), name, lease);
        Self { source, target, mongo, postgres, record }
    }

    /// Both fences as they are; MongoDB's is made where nothing was ever switched.
    pub async fn fences(&self) -> Result<Fences> {
        fence::establish(&self.mongo, Some(&self.postgres)).await?;
        let mongo = self.view().await?.fence;
        Ok(Fences { mongo, postgres: self.postgres.look().await? })
    }

    async fn view(&self) -> Result<View> {
        Ok(self.mongo.look().await?.ok_or(FenceError::Missing { backend: Backend::Mongo })?)
    }

    /// The application's processes that write to MongoDB.
    pub async fn instances(&self) -> Result<Vec<Instance>> {
        Ok(self.view().await?.instances.into_values().collect())
    }

    /// The clients of MongoDB that are none of the application's processes, by name.
    pub async fn strangers(&self) -> Result<BTreeSet<String>> {
        Ok(clients::unregistered(&self.source, &self.view().await?).await?)
    }

    /// What must be so for `to` to follow, and whether it is.
    pub async fn examine(&self, to: Phase, limits: &Limits) -> Result<(Transition, Vec<Condition>)> {
        let fences = self.fences().await?;
        let Standing::Open(from) = fences.standing() else { return Err(SwitchError::Half) };
        let transition = Transition::new(from, to)?;
        let (view, epoch) = (self.view().await?, fences.of(from.primary()).epoch);
        let look = Look { pool: self.target.pool(), source: &self.source, view: &view, epoch, limits };
        Ok((transition, look.examine(transition).await?))
    }

    /// The permit to turn to `to` now.
    pub async fn permit(&self, to: Phase, limits: &Limits) -> Result<Permit> {
        let fences = self.fences().await?;
        let (transition, conditions) = self.examine(to, limits).await?;
        gate::permit(transition, fences.of(transition.from.primary()).epoch, conditions)
    }

    /// Turns to the phase of `permit`. Until the new primary is open, a failure undoes what was done. Dropping the future
    /// leaves the switch half way, to be resumed or aborted.
    pub async fn make(&self, permit: Permit, options: Options, told: &mut impl FnMut(Step)) -> Result<Made> {
        let fences = self.fences().await?;
        let passed = permit.used(|from| fences.of(from.primary()).epoch)?;
        let transition = passed.transition();
        self.record.take(transition, passed.conditions()).await?;
        let made = if transition.turns() {
            self.flip(fences, &passed, options, told).await
        } else {
            self.relabel(fences, &passed).await
        };
        match made {
            Ok(made) => self.finish(made, passed.conditions(), told).await,
            Err(error) => {
                // The first error is the one to tell; a fence that could not be opened again is told of by the next look.
                match self.back(transition).await {
                    Ok(()) => self.record.end().await?,
                    Err(undone) => {
                        tracing::error!(error = %crate::error_text(&undone), "the switch was not undone: abort it");
                    }
                }
                Err(error)
            }
        }
    }

    /// Goes on with a switch that was left half way.
    pub async fn resume(&self, options: Options, told: &mut impl FnMut(Step)) -> Result<Made> {
        let (transition, conditions) = self.record.take_over().await?;
        let fences = self.fences().await?;
        let passed = Passed::kept(transition, conditions)?;
        let made = match fences.standing() {
            Standing::Open(phase) if phase == transition.to => {
                Made { phase, epoch: fences.of(phase.primary()).epoch, pause: Duration::ZERO }
            }
            Standing::Reopening(..) => {
                self.back(transition).await?;
                self.record.end().await?;
                return Err(SwitchError::Aborted { phase: transition.from });
            }
            _ if transition.turns() => self.flip(fences, &passed, options, told).await?,
            _ => self.relabel(fences, &passed).await?,
        };
        self.finish(made, passed.conditions(), told).await
    }

    /// Undoes a switch that was left half way.
    pub async fn abort(&self) -> Result<Phase> {
        let (transition, _) = self.record.take_over().await?;
        self.back(transition).await?;
        self.record.end().await?;
        Ok(transition.from)
    }

    async fn relabel(&self, fences: Fences, passed: &Passed) -> Result<Made> {
        let transition = passed.transition();
        let backend = transition.to.primary();
        let old = fences.of(backend);
        self.open(backend, old, passed.warrant(old.epoch)).await?;
        Ok(Made { phase: transition.to, epoch: old.epoch, pause: Duration::ZERO })
    }

    async fn flip(
        &self,
        fences: Fences,
        passed: &Passed,
        options: Options,
        told: &mut impl FnMut(Step),
    ) -> Result<Made> {
        let transition = passed.transition();
        let (old, new) = (transition.from.primary(), transition.to.primary());
        let seen = fences.of(old);
        let closed = Fence { open: false, ..seen };
        let mut timed = Timed { since: Instant::now(), told };
        if seen.open {
            self.record.step("compare what was written since").await?;
            fail::fail_point!("switch::before-compare");
            verify::compare_queue(&self.source, &self.target).await?;
            timed.done("compared what was written since");
        }
        let begun = Instant::now();
        if seen.open {
            self.record.step("close the old primary").await?;
            fail::fail_point!("switch::before-close");
            self.close(old, seen, closed).await?; // rule 14
            timed.done("closed the old primary");
        }
        if old == Backend::Mongo {
            self.record.step("wait for the application's processes").await?;
            fail::fail_point!("switch::before-wait");
            self.until_acknowledged(closed, options).await?; // rule 15
            timed.done("no process writes any more");
            if options.block_writes {
                block::set(&self.source, true).await?;
                timed.done("MongoDB refuses other users' writes");
            }
        }
        self.record.step("bring the new primary level").await?;
        fail::fail_point!("switch::before-level");
        self.until_level(new, options.level_wait).await?; // rules 16 and 17
        timed.done("the new primary is level");
        self.record.step("compare what was written last").await?;
        self.until_equal(new, options.level_wait).await?;
        timed.done("both stores are equal");
        self.record.step("open the new primary").await?;
        fail::fail_point!("switch::before-open");
        let epoch = seen.epoch + 1;
        self.open(new, fences.of(new), passed.warrant(epoch)).await?; // rule 18
        timed.done("opened the new primary");
        let pause = begun.elapsed();
        metrics::SWITCH_PAUSE.record(pause);
        Ok(Made { phase: transition.to, epoch, pause })
    }

    /// What may still be done after the commit point, by whoever comes: it changes nothing for those that write.
    async fn finish(&self, made: Made, conditions: &[Condition], told: &mut impl FnMut(Step)) -> Result<Made> {
        let mut timed = Timed { since: Instant::now(), told };
        fail::fail_point!("switch::before-finish");
        let backend = made.phase.primary().other();
        let closed = self.fences().await?.of(backend);
        let same = Fence { phase: made.phase, epoch: made.epoch, open: false };
        if closed != same && !closed.open {
            self.close(backend, closed, same).await?;
        }
        self.record.made(&made, conditions).await?;
        timed.done("told the other store");
        Ok(made)
    }

    /// Opens the old primary again, unless the new one is open (rule 19). Where the primary stays, there is nothing to undo.
    async fn back(&self, transition: Transition) -> Result<()> {
        let fences = self.fences().await?;
        if !transition.turns() {
            return Ok(());
        }
        let (old, new) = (transition.from.primary(), transition.to.primary());
        let epoch = match fences.standing() {
            Standing::Open(phase) if phase == transition.to => return Err(SwitchError::Made { to: phase }),
            Standing::Reopening(_, epoch) => epoch,
            Standing::Open(_) | Standing::Closed(_) => {
                let epoch = fences.of(old).epoch + 1;
                // First: an opening that is still to come finds another fence, and fails.
                self.close(new, fences.of(new), Fence { phase: transition.from, epoch, open: false }).await?;
                fail::fail_point!("switch::before-reopen");
                epoch
            }
        };
        // Also when it is open: a closing that is still to come finds another fence, and fails.
        self.open(old, fences.of(old), Warrant::back(transition, epoch)).await
    }

    async fn open(&self, backend: Backend, expected: Fence, warrant: Warrant) -> Result<()> {
        let changed = match backend {
            Backend::Mongo => {
                block::lift(&self.source).await?;
                self.mongo.open(expected, warrant).await?.is_some()
            }
            Backend::Postgres => self.postgres.open(expected, warrant).await?,
        };
        if changed { Ok(()) } else { Err(SwitchError::Moved { backend }) }
    }

    async fn close(&self, backend: Backend, expected: Fence, closed: Fence) -> Result<()> {
        let changed = match backend {
            Backend::Mongo => self.mongo.close(expected, closed).await?.is_some(),
            Backend::Postgres => self.postgres.close(expected, closed).await?,
        };
        if changed { Ok(()) } else { Err(SwitchError::Moved { backend }) }
    }

    /// The last generation: every key that was written and not compared since. No writer writes now, but locks are taken and
    /// renewed behind no fence: a key that differs is looked at again when the mirror has passed, a few times.
    async fn until_equal(&self, new: Backend, wait: Duration) -> Result<()> {
        const LOOKS: u32 = 3;
        let mut looks = 0;
        loop {
            let compared = verify::compare_queue(&self.source, &self.target);
            let late = |_| SwitchError::Late { backend: new, waited: wait };
            let (keys, _) = tokio::time::timeout(wait, compared).await.map_err(late)??;
            looks += 1;
            match keys.is_empty() {
                true => return Ok(()),
                false if looks >= LOOKS => return Err(SwitchError::Differ { keys }),
                false => self.until_level(new, wait).await?,
            }
        }
    }

    /// Waits until every process has left the list, or cannot write any more since its lease has run out, and the longest
    /// operation with it.
    async fn until_acknowledged(&self, closed: Fence, options: Options) -> Result<()> {
        loop {
            let view = self.view().await?;
            if view.fence != closed {
                return Err(SwitchError::Moved { backend: Backend::Mongo });
            }
            let (over, waiting): (Vec<Instance>, Vec<Instance>) = view
                .instances
                .into_values()
                .partition(|instance| instance.silent > instance.lease + options.silent_wait);
            if waiting.is_empty() {
                return match over.is_empty() || options.leave_behind {
                    true => Ok(()),
                    false => Err(SwitchError::Silent { names: over.into_iter().map(|one| one.name).collect() }),
                };
            }
            self.record.keep().await?;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn until_level(&self, new: Backend, wait: Duration) -> Result<()> {
        let level = async {
            if new == Backend::Mongo {
                self.until_drained().await?;
            }
            // Also past what the drain wrote: a stray write there would be found now, and nowhere later.
            Ok(mirror::until_level(&self.source, &self.target).await?)
        };
        let late = |_| SwitchError::Late { backend: new, waited: wait };
        tokio::time::timeout(wait, level).await.map_err(late)?
    }

    /// Waits until the outbox is empty.
    async fn until_drained(&self) -> Result<()> {
        loop {
            let left = sqlx::query_scalar("select exists (select from bridge.outbox)").fetch_one(self.target.pool());
            let left: bool = left.await.map_err(|error| TargetError::of("look into the outbox", error))?;
            if !left {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

struct Timed<'a, T> {
    since: Instant,
    told: &'a mut T,
}

impl<T: FnMut(Step)> Timed<'_, T> {
    fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        (self.told)(Step { name, took: now - self.since });
        self.since = now;
    }
}
