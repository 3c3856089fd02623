//! Looking again at what differed (design 10): only what lasts is told.
//!
//! A suspicion is looked at in rounds, until it [stands still](Standstill). So a key that is written all the time is never
//! told; whatever the mirror has not brought yet, neither.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;

use super::Worker;
use super::findings::{Difference, Outcome};
use crate::fence::gate::Turn;
use crate::parity::{Read, Seen, Standstill};
use crate::phase::Backend;
use crate::store::Cause;
use crate::verify::unified;

/// How many suspicions may wait.
const SUSPICIONS: usize = 500;

/// The pause between rounds.
const PAUSE: Duration = Duration::from_secs(1);

/// In how many rounds a suspicion is looked at.
const ROUNDS: u32 = 10;

/// A key, or a page, that may differ.
#[derive(Debug)]
pub struct Suspicion {
    turn: Turn,
    read: Read,
    since: DateTime<Utc>,
    rounds: u32,
    standstill: Standstill,
    is_settled: bool,
}

/// The suspicions that are not settled. A key is suspected once, however often it is read.
#[derive(Debug)]
pub struct Suspicions {
    reads: Mutex<Vec<Read>>,
    queue: mpsc::Sender<Suspicion>,
}

impl Suspicions {
    /// None, and where they will come from.
    pub fn new() -> (Self, mpsc::Receiver<Suspicion>) {
        let (queue, suspicions) = mpsc::channel(SUSPICIONS);
        (Self { reads: Mutex::default(), queue }, suspicions)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.reads().len()
    }

    fn reads(&self) -> MutexGuard<'_, Vec<Read>> {
        // Each change is one step, so it is whole even after a panic.
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room for it; nothing when it is there already.
    fn add(&self, turn: Turn, read: Read) -> Option<bool> {
        let mut reads = self.reads();
        if reads.contains(&read) {
            return None;
        }
        let suspicion = Suspicion {
            turn,
            read: read.clone(),
            since: Utc::now(),
            rounds: 0,
            standstill: Standstill::default(),
            is_settled: false,
        };
        let has_room = reads.len() < SUSPICIONS && self.queue.try_send(suspicion).is_ok();
        reads.extend(has_room.then_some(read));
        Some(has_room)
    }
}

impl Worker {
    /// Suspects what the stores have answered otherwise: each key, and of a page the whole of it.
    pub(super) fn suspect(&self, turn: Turn, read: Read, (primary, secondary): (&Seen, &Seen)) {
        let entity = read.entity();
        let keys = primary.differing(secondary, entity).into_iter().map(|key| Read::Keys(entity, vec![key]));
        let page = matches!(read, Read::Page(_)).then_some(read);
        for has_room in keys.chain(page).filter_map(|read| self.findings.suspicions.add(turn, read)) {
            self.findings.count(Outcome::Suspected);
            if !has_room {
                self.findings.count(Outcome::Forgotten);
            }
        }
    }

    /// Looks at suspicions for as long as there may be more.
    pub(super) async fn recheck(&self, mut suspicions: mpsc::Receiver<Suspicion>) {
        let mut waiting: Vec<Suspicion> = Vec::new();
        while !waiting.is_empty() || suspicions.recv_many(&mut waiting, SUSPICIONS).await > 0 {
            waiting.extend(std::iter::from_fn(|| suspicions.try_recv().ok()));
            let looked = self.round(&mut waiting).await;
            let settled = waiting.extract_if(.., |suspicion| suspicion.is_settled);
            for Suspicion { read, .. } in settled {
                self.findings.suspicions.reads().retain(|other| *other != read);
            }
            self.done(looked).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One round: all suspicions share one mark.
    async fn round(&self, waiting: &mut [Suspicion]) -> Result<(), Cause> {
        let Some(turn) = waiting.last().map(|newest| newest.turn) else { return Ok(()) };
        let mut prints = Vec::with_capacity(waiting.len());
        for suspicion in &mut *waiting {
            let seen = self.stores.read(&suspicion.read, turn.phase.primary()).await;
            // A read that fails by itself is not to stop the others for ever.
            prints.push(seen.inspect_err(|_| suspicion.is_settled = true)?.print());
        }
        let mark = self.stores.mark(turn.phase.primary()).await?;
        let is_passed = self.stores.is_passed(mark, turn).await?;
        let is_now = self.stores.is_now(turn).await;
        for (suspicion, print) in waiting.iter_mut().zip(prints) {
            let settled = if !is_now || !suspicion.turn.is_alike(turn) {
                Some(Outcome::Overtaken)
            } else if is_passed {
                self.look(suspicion, print).await.inspect_err(|_| suspicion.is_settled = true)?
            } else {
                None
            };
            if let Some(outcome) = settled {
                suspicion.is_settled = true;
                self.findings.count(outcome);
            }
        }
        Ok(())
    }

    /// Looks at a suspicion, of which the primary answered `print` before the mark. What it turns out to be, if it does.
    async fn look(&self, suspicion: &mut Suspicion, print: u64) -> Result<Option<Outcome>, Cause> {
        let (turn, read) = (suspicion.turn, &suspicion.read);
        let primary = turn.phase.primary();
        let other = self.stores.read(read, primary.other()).await?;
        let now = self.stores.read(read, primary).await?;
        if now.equals(&other) {
            return Ok(Some(Outcome::Level));
        }
        suspicion.rounds += 1;
        if suspicion.standstill.round(print, &now, &other) {
            if !self.stores.is_now(turn).await {
                return Ok(Some(Outcome::Overtaken));
            }
            self.tell(suspicion, &now, &other).await?;
            return Ok(Some(Outcome::Lasting));
        }
        let is_over = suspicion.rounds >= ROUNDS;
        Ok(is_over.then_some(Outcome::Busy))
    }

    /// Tells of a difference that lasts, once. A page that differs because of its keys is told by them.
    async fn tell(
        &self,
        Suspicion { turn, read, since, .. }: &Suspicion,
        now: &Seen,
        other: &Seen,
    ) -> Result<(), Cause> {
        let (turn, entity) = (*turn, read.entity());
        if let Read::Page(_) = read
            && self.differ_by_key(turn, &Read::Keys(entity, now.differing(other, entity))).await?
        {
            return Ok(());
        }
        let kind = read.kind(now, other);
        let [mongo, postgres] = match turn.phase.primary() {
            Backend::Mongo => [now, other],
            Backend::Postgres => [other, now],
        }
        .map(Seen::clone);
        let same = read.clone();
        // The diff of large documents takes its time, which is not that of the application's tasks.
        let diff = move || unified(&same.text(&mongo), &same.text(&postgres));
        let diff = tokio::task::spawn_blocking(diff).await?;
        let difference = Difference { collection: entity.name, id: read.id(), kind, diff, since: *since };
        if self.findings.keep(difference.clone()) {
            let Difference { collection, id, kind, diff, since } = difference;
            // Debug: nothing in a document can move the cursor or reorder a line of the log.
            tracing::warn!(collection, ?id, %kind, ?diff, %since, "the secondary differs");
        }
        if let Read::Keys(_, keys) = read {
            for key in keys {
                self.stores.queue(entity.name, key.text(), turn).await?;
            }
        }
        Ok(())
    }

    /// Whether the stores differ under any of the keys of `read`, which are suspected then.
    async fn differ_by_key(&self, turn: Turn, read: &Read) -> Result<bool, Cause> {
        let primary = turn.phase.primary();
        let (one, other) = tokio::try_join!(self.stores.read(read, primary), self.stores.read(read, primary.other()))?;
        if one.equals(&other) {
            return Ok(false);
        }
        self.suspect(turn, read.clone(), (&one, &other));
        Ok(true)
    }
}
