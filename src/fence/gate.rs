//! Who may write now, in this process: what the watcher saw of the fences, and the writes that are under way.
//!
//! Invariants: a write begins only in an open turn whose lease has not run out; a turn that was interrupted, if only for a
//! moment, never goes on: what began before is of another turn than what begins after. So a write whose answer comes
//! while its turn holds was made while the fence was open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::metrics::Waiting;
use crate::phase::Phase;

/// What a process may write, from one opening of a fence that it saw to the next interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The phase.
    pub phase: Phase,
    /// The epoch of the writes.
    pub epoch: i32,
    /// Another one for each turn of this process.
    number: u64,
}

impl Turn {
    /// Whether it is the same one, whatever the phase is called by now.
    fn is(self, other: Self) -> bool {
        self.number == other.number
    }

    /// Whether the same store is the primary, of the same phase and epoch, whatever interruptions there were.
    pub fn is_alike(self, other: Self) -> bool {
        (self.phase, self.epoch) == (other.phase, other.epoch)
    }
}

/// The gate of one process.
#[derive(Debug, Clone)]
pub struct Gate {
    inside: Arc<Mutex<Inside>>,
    /// Counts what changed: turns, and the last write under way that is done.
    changed: watch::Sender<u64>,
    look: Arc<Notify>,
}

#[derive(Debug)]
struct Inside {
    turn: Option<Open>,
    /// The turn that was closed last. What is under way in it may come to its end as long as its lease lasts: nobody becomes
    /// the primary before that, or before the process has acknowledged, which it does when nothing is under way.
    closed: Option<Open>,
    turns: u64,
    under_way: usize,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    turn: Turn,
    /// When the lease ends; nothing where the store itself refuses what comes too late.
    until: Option<Instant>,
}

impl Open {
    fn lasts(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// A write that is under way. Dropping it says that it is done, or will never be.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    turn: Turn,
}

impl Gate {
    /// A closed gate.
    #[expect(clippy::new_without_default, reason = "a gate that nobody opens is of no use")]
    pub fn new() -> Self {
        let inside = Inside { turn: None, closed: None, turns: 0, under_way: 0 };
        Self { inside: Arc::new(Mutex::new(inside)), changed: watch::Sender::new(0), look: Arc::default() }
    }

    /// Opens it, or goes on with the turn of the same epoch if that has not been interrupted. Where the phase changes and
    /// the epoch does not, the primary stays, and what is under way goes on.
    pub fn open(&self, phase: Phase, epoch: i32, until: Option<Instant>) {
        let mut inside = self.inside();
        match &mut inside.turn {
            Some(open) if open.turn.epoch == epoch && open.lasts() => {
                (open.until, open.turn.phase) = (until, phase);
            }
            _ => {
                inside.turns += 1;
                inside.turn = Some(Open { turn: Turn { phase, epoch, number: inside.turns }, until });
                self.tell();
            }
        }
    }

    /// Closes it: nothing begins any more.
    pub fn close(&self) {
        let mut inside = self.inside();
        if let Some(open) = inside.turn.take() {
            inside.closed = Some(open);
            self.tell();
        }
    }

    /// Ends `turn`, of which a store has said that it is over, and has the fences looked at.
    pub fn interrupt(&self, turn: Turn) {
        let ended = self.inside().turn.take_if(|open| open.turn.is(turn));
        if ended.is_some() {
            self.tell();
            self.look.notify_one();
        }
    }

    /// Ends when the fences are to be looked at before their time.
    pub async fn asked_to_look(&self) {
        self.look.notified().await;
    }

    /// Waits until no write is under way.
    pub async fn idle(&self) {
        let mut changed = self.changed.subscribe();
        while self.inside().under_way > 0 {
            // The sender lives as long as this.
            drop(changed.changed().await);
        }
    }

    /// The turn, waited for as long as `wait`; nothing when none came.
    pub async fn turn(&self, wait: Duration) -> Option<Turn> {
        self.when_open(wait, None, |_, open| open.turn).await
    }

    /// Begins a write in the next turn, or in this one unless it is `not`.
    pub async fn enter(&self, wait: Duration, not: Option<Turn>) -> Option<Pass> {
        let begun = self.when_open(wait, not, |inside, open| {
            inside.under_way += 1;
            open.turn
        });
        begun.await.map(|turn| Pass { gate: self.clone(), turn })
    }

    async fn when_open<T>(
        &self,
        wait: Duration,
        not: Option<Turn>,
        mut begin: impl FnMut(&mut Inside, Open) -> T,
    ) -> Option<T> {
        let mut begun = || {
            let mut inside = self.inside();
            let open = inside.turn.filter(|open| open.lasts() && !not.is_some_and(|not| not.is(open.turn)))?;
            Some(begin(&mut inside, open))
        };
        // Every read and write comes through here: only one that waits needs to hear of changes.
        if let Some(begun) = begun() {
            return Some(begun);
        }
        let deadline = Instant::now() + wait;
        let mut changed = self.changed.subscribe();
        let _waiting = Waiting::begin();
        loop {
            changed.borrow_and_update();
            if let Some(begun) = begun() {
                return Some(begun);
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return None;
            }
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // Each change is one step, so it is whole even after a panic.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Pass {
    /// The turn it began in.
    pub fn turn(&self) -> Turn {
        self.turn
    }

    /// Whether the lease of the turn has lasted without interruption until now.
    pub fn holds(&self) -> bool {
        let inside = self.gate.inside();
        let mut turns = [inside.turn, inside.closed].into_iter().flatten();
        turns.any(|open| open.turn.is(self.turn) && open.lasts())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.inside();
        inside.under_way -= 1;
        if inside.under_way == 0 {
            drop(inside);
            self.gate.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn after(millis: u64) -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(millis))
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_ran_out_ends_the_turn_and_its_renewal_begins_another() {
        let gate = Gate::new();
        gate.open(Phase::Mongo, 1, after(100));
        let pass = gate.enter(LONG, None).await.unwrap();
        tokio::time::advance(Duration::from_millis(60)).await;
        gate.open(Phase::Mongo, 1, after(100));
        tokio::time::advance(Duration::from_millis(60)).await;
        assert!(pass.holds(), "it was renewed in time");
        tokio::time::advance(Duration::from_millis(60)).await;
        assert!(!pass.holds());
        assert!(gate.enter(Duration::from_millis(1), None).await.is_none());
        gate.open(Phase::Mongo, 1, after(100));
        assert!(!pass.holds(), "what was interrupted does not go on");
        assert!(gate.enter(LONG, None).await.unwrap().holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_lets_nobody_in_and_is_idle_when_the_last_one_is_done() {
        let gate = Gate::new();
        gate.open(Phase::MongoPrimary, 1, after(60_000));
        let passes = [gate.enter(LONG, None).await.unwrap(), gate.enter(LONG, None).await.unwrap()];
        gate.close();
        assert!(passes[0].holds(), "nobody becomes the primary while its lease lasts");
        assert!(gate.enter(Duration::from_secs(1), None).await.is_none());
        let idle = tokio::spawn({
            let gate = gate.clone();
            async move { gate.idle().await }
        });
        for pass in passes {
            tokio::task::yield_now().await;
            assert!(!idle.is_finished());
            drop(pass);
        }
        idle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_when_the_gate_closes_has_until_the_end_of_its_lease() {
        let gate = Gate::new();
        gate.open(Phase::MongoPrimary, 1, after(100));
        let pass = gate.enter(LONG, None).await.unwrap();
        gate.close();
        tokio::time::advance(Duration::from_millis(60)).await;
        assert!(pass.holds());
        tokio::time::advance(Duration::from_millis(60)).await;
        assert!(!pass.holds());
        gate.open(Phase::MongoPrimary, 1, after(100));
        assert!(!pass.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_phase_that_keeps_the_primary_interrupts_nothing() {
        let gate = Gate::new();
        gate.open(Phase::Mongo, 1, after(100));
        let pass = gate.enter(LONG, None).await.unwrap();
        gate.open(Phase::MongoPrimary, 1, after(100));
        assert!(pass.holds());
        assert_eq!(gate.turn(LONG).await.unwrap().phase, Phase::MongoPrimary);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_in_the_next_turn() {
        let gate = Gate::new();
        gate.open(Phase::MongoPrimary, 1, None);
        let old = gate.turn(LONG).await.unwrap();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(LONG, Some(old)).await.unwrap().turn() }
        });
        tokio::task::yield_now().await;
        gate.close();
        gate.open(Phase::PostgresPrimary, 2, None);
        let new = waiting.await.unwrap();
        assert_eq!((new.phase, new.epoch), (Phase::PostgresPrimary, 2));
    }
}
