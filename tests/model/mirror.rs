//! What goes between the stores: the mirror, which follows MongoDB's log, the drain, which empties PostgreSQL's outbox,
//! and messages that nobody waits for.

use crate::guard::Guard;
use crate::state::{Author, Batch, Carry, Image, Stamp, State, Store};
use crate::switch::Switch;
use crate::writer::is_taken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Movement {
    /// The mirror reads and writes without a pause.
    Follow,
    ReadLog,
    WriteBatch,
    MirrorDies,
    /// The drain takes, brings and removes without a pause.
    Drain,
    TakeKey,
    BringKey,
    RemoveKey,
    DrainDies,
    /// The after-image that a process sent to PostgreSQL.
    Converge,
    /// A write that its process no longer waits for.
    ArriveLate,
}

impl Switch {
    pub fn carry(&self, state: &State, movement: Movement) -> Option<State> {
        let mut next = *state;
        match movement {
            Movement::Follow if state.postgres.fence.is_open => self.notice(&mut next)?,
            Movement::Follow => {
                let batch = self.read_log(&mut next)?;
                if !self.is_of_its_direction(&next, batch) {
                    return None;
                }
                self.write_batch(&mut next, batch);
            }
            Movement::ReadLog if state.mirror.is_none() => next.mirror = Some(self.read_log(&mut next)?),
            Movement::WriteBatch => {
                let batch = next.mirror.take()?;
                self.write_batch(&mut next, batch);
            }
            Movement::MirrorDies => {
                next.mirror.take()?;
            }
            Movement::Drain => {
                let Carry::Taken(image) = self.take_key(&mut next)? else { return None };
                self.bring_key(&mut next, image);
                self.remove_key(&mut next, image.stamp);
            }
            Movement::TakeKey if state.drain.is_none() => next.drain = Some(self.take_key(&mut next)?),
            Movement::BringKey => {
                let Some(Carry::Taken(image)) = state.drain else { return None };
                self.bring_key(&mut next, image);
                next.drain = Some(Carry::Applied(image.stamp));
            }
            Movement::RemoveKey => {
                let Some(Carry::Applied(stamp)) = state.drain else { return None };
                self.remove_key(&mut next, stamp);
                next.drain = None;
            }
            Movement::DrainDies => {
                next.drain.take()?;
            }
            Movement::Converge => {
                let image = next.convergence.take()?;
                next.bring_to_postgres(image, || self.has(Guard::StampInPostgres));
            }
            Movement::ArriveLate => {
                let late = next.late.take()?;
                if is_taken(&next, late.base) {
                    next.mongo.put(late.base | late.write, Author::Process);
                }
            }
            Movement::ReadLog | Movement::TakeKey => return None,
        }
        Some(next)
    }

    /// Rule 12: a write in MongoDB that is not the drain's own gives the row a new stamp, and so goes from MongoDB.
    fn notice(&self, state: &mut State) -> Option<()> {
        let entry = state.mongo.log.first()?;
        state.mongo.log.move_past(entry.clock);
        if entry.author == Author::Process && self.has(Guard::StraysAreRepaired) {
            let (writes, epoch) = (state.postgres.writes, state.postgres.fence.epoch);
            if self.has(Guard::ARepairHasANewStamp) {
                state.postgres.put(writes, epoch);
            } else {
                state.postgres.outbox = Some(state.postgres.stamp);
            }
        }
        Some(())
    }

    fn read_log(&self, state: &mut State) -> Option<Batch> {
        let entry = state.mongo.log.first()?;
        if state.mongo.fence.primary != Store::Mongo {
            return None;
        }
        if !self.has(Guard::PositionWithTheRows) {
            state.mongo.log.move_past(entry.clock);
        }
        Some(Batch { entry, epoch: state.mongo.fence.epoch })
    }

    /// Rule 10: looked at in the transaction that writes the rows.
    fn is_of_its_direction(&self, state: &State, batch: Batch) -> bool {
        let fence = state.postgres.fence;
        !self.has(Guard::MirrorLooksAtTheFence) || (!fence.is_open && fence.epoch <= batch.epoch)
    }

    fn write_batch(&self, state: &mut State, Batch { entry, epoch }: Batch) {
        if !self.is_of_its_direction(state, Batch { entry, epoch }) {
            return;
        }
        let image = Image { writes: entry.writes, stamp: Stamp { epoch, clock: entry.clock } };
        state.bring_to_postgres(image, || self.has(Guard::StampInPostgres));
        state.mongo.log.move_past(entry.clock);
    }

    fn take_key(&self, state: &mut State) -> Option<Carry> {
        state.postgres.outbox?;
        if !self.has(Guard::OutboxAfterMongo) {
            state.postgres.outbox = None;
        }
        Some(Carry::Taken(Image { writes: state.postgres.writes, stamp: state.postgres.stamp }))
    }

    fn bring_key(&self, state: &mut State, image: Image) {
        let drained = state.mongo.drained;
        let is_same = drained == image.stamp && !self.has(Guard::AnEqualStampStays);
        if drained < image.stamp || is_same || !self.has(Guard::StampInMongo) {
            state.faults.went_back |= state.mongo.writes & state.acknowledged & !image.writes != 0;
            state.mongo.put(image.writes, Author::Drain);
            state.mongo.drained = image.stamp;
        }
    }

    fn remove_key(&self, state: &mut State, taken: Stamp) {
        let is_taken = state.postgres.outbox.is_some_and(|stamp| stamp <= taken);
        if is_taken || !self.has(Guard::OutboxAsTaken) {
            state.postgres.outbox = None;
        }
    }
}
