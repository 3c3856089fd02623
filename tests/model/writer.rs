//! The processes of the application: they write to the primary, and hold leases for MongoDB.

use crate::guard::Guard;
use crate::state::{Author, Flight, Image, Late, Lease, Process, Stamp, State, Writes};
use crate::switch::Switch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Renew,
    LeaseRunsOut,
    Acknowledge,
    Send,
    Arrive,
    Answer,
    AnswerAndConverge,
    Crash,
    WriteToPostgres,
    /// Without the guard of rule 7: looks at the fence, and writes at some later time.
    SendToPostgres,
    ArriveAtPostgres,
    /// Without the guard of rule 8: the second transaction never comes.
    WriteWithoutOutbox,
}

impl Switch {
    pub fn act(&self, state: &State, index: usize, deed: Deed) -> Option<State> {
        let mut next = *state;
        match deed {
            Deed::Renew => self.renew(&mut next, index)?,
            Deed::LeaseRunsOut => self.run_out(&mut next, index)?,
            Deed::Acknowledge => self.acknowledge(&mut next, index)?,
            Deed::Send => self.send(&mut next, index)?,
            Deed::Arrive => arrive(&mut next, index)?,
            Deed::Answer => {
                answer(&mut next, index)?;
            }
            Deed::AnswerAndConverge if state.convergence.is_some() => return None,
            Deed::AnswerAndConverge => next.convergence = Some(answer(&mut next, index)?),
            Deed::Crash => crash(&mut next, index)?,
            Deed::WriteToPostgres if self.has(Guard::FenceInTheTransaction) => write_to_postgres(&mut next, index)?,
            Deed::WriteWithoutOutbox if !self.has(Guard::OutboxWithTheRow) => {
                write_to_postgres(&mut next, index)?;
                next.postgres.outbox = state.postgres.outbox;
            }
            Deed::SendToPostgres if !self.has(Guard::FenceInTheTransaction) => send_to_postgres(&mut next, index)?,
            Deed::ArriveAtPostgres => arrive_at_postgres(&mut next, index)?,
            _ => return None,
        }
        let process = &mut next.processes[index];
        if process.intended == 0 && process.flight.is_none() {
            // It leaves; no flip has to wait for it.
            process.lease = Lease::Missing;
        }
        Some(next)
    }

    /// Rule 2. A process without a lease that finds the fence closed can do nothing: it stays without one.
    fn renew(&self, state: &mut State, index: usize) -> Option<()> {
        let fence = state.mongo.fence;
        let seen = if fence.is_open { Lease::Open(fence.epoch) } else { Lease::Closed(fence.epoch) };
        let process = state.processes[index];
        let is_idle = process.intended == 0 && process.flight.is_none();
        let is_useless = process.lease == Lease::Missing && !fence.is_open;
        if is_idle || is_useless || process.lease == seen {
            return None;
        }
        if let Lease::Open(epoch) | Lease::Closed(epoch) = process.lease
            && epoch != fence.epoch
        {
            self.interrupt(state, index);
        }
        state.processes[index].lease = seen;
        Some(())
    }

    fn run_out(&self, state: &mut State, index: usize) -> Option<()> {
        state.processes[index].lease = match state.processes[index].lease {
            Lease::Open(epoch) if !self.has(Guard::LeaseBeforeTheWrite) => Lease::RunOut(epoch),
            Lease::Open(_) | Lease::Closed(_) => Lease::Missing,
            Lease::Missing | Lease::RunOut(_) => return None,
        };
        self.interrupt(state, index);
        Some(())
    }

    /// Rule 5: a write whose lease was interrupted can only end as unknown, so its process gives it up here.
    fn interrupt(&self, state: &mut State, index: usize) {
        if self.has(Guard::LeaseAfterTheAnswer) {
            give_up(state, index);
        }
    }

    fn acknowledge(&self, state: &mut State, index: usize) -> Option<()> {
        let fence = state.mongo.fence;
        let process = &mut state.processes[index];
        let is_asked = !fence.is_open && process.lease == Lease::Closed(fence.epoch) && !process.has_acknowledged;
        let is_quiet = process.flight.is_none() || !self.has(Guard::OwnWritesFirst);
        (is_asked && is_quiet).then(|| process.has_acknowledged = true)
    }

    fn send(&self, state: &mut State, index: usize) -> Option<()> {
        let (Lease::Open(epoch) | Lease::RunOut(epoch)) = state.processes[index].lease else { return None };
        let write = take_intended(&mut state.processes[index])?;
        state.processes[index].flight = Some(Flight::Sent { write, base: state.mongo.writes, epoch });
        Some(())
    }
}

fn take_intended(process: &mut Process) -> Option<Writes> {
    if process.flight.is_some() || process.intended == 0 {
        return None;
    }
    let write = 1 << process.intended.trailing_zeros();
    process.intended &= !write;
    Some(write)
}

/// Rule 4. While PostgreSQL is open, a write may reach MongoDB whose guard says less than the whole document.
pub fn is_taken(state: &State, base: Writes) -> bool {
    state.mongo.writes == base || state.postgres.fence.is_open
}

fn arrive(state: &mut State, index: usize) -> Option<()> {
    let Some(Flight::Sent { write, base, epoch }) = state.processes[index].flight else { return None };
    state.processes[index].flight = is_taken(state, base).then(|| {
        state.mongo.put(base | write, Author::Process);
        let stamp = Stamp { epoch, clock: state.mongo.clock };
        let image = Image { writes: state.mongo.writes, stamp };
        Flight::Answered { write, image, is_stray: state.postgres.fence.is_open }
    });
    Some(())
}

/// Acknowledges the write to the caller; what is to be brought to the secondary.
fn answer(state: &mut State, index: usize) -> Option<Image> {
    let Some(Flight::Answered { write, image, is_stray }) = state.processes[index].flight else { return None };
    state.faults.from_secondary |= is_stray || state.postgres.fence.is_open;
    state.acknowledged |= write;
    state.processes[index].flight = None;
    Some(image)
}

fn give_up(state: &mut State, index: usize) {
    if let Some(Flight::Sent { write, base, .. }) = state.processes[index].flight {
        state.late = state.late.or(Some(Late { write, base }));
    }
    state.processes[index].flight = None;
}

/// Dies, and begins anew as another process.
fn crash(state: &mut State, index: usize) -> Option<()> {
    let process = state.processes[index];
    if process.lease == Lease::Missing && process.flight.is_none() {
        return None;
    }
    state.budget.crashes = state.budget.crashes.checked_sub(1)?;
    give_up(state, index);
    state.processes[index].lease = Lease::Missing;
    Some(())
}

/// Rules 7 and 8: one transaction, so that one step is all there is to see of it.
fn write_to_postgres(state: &mut State, index: usize) -> Option<()> {
    let fence = state.postgres.fence;
    if !fence.is_open {
        return None;
    }
    let write = take_intended(&mut state.processes[index])?;
    state.postgres.put(state.postgres.writes | write, fence.epoch);
    state.acknowledged |= write;
    Some(())
}

fn send_to_postgres(state: &mut State, index: usize) -> Option<()> {
    let fence = state.postgres.fence;
    if !fence.is_open {
        return None;
    }
    let write = take_intended(&mut state.processes[index])?;
    state.processes[index].flight = Some(Flight::ToPostgres { write, epoch: fence.epoch });
    Some(())
}

fn arrive_at_postgres(state: &mut State, index: usize) -> Option<()> {
    let Some(Flight::ToPostgres { write, epoch }) = state.processes[index].flight else { return None };
    state.processes[index].flight = None;
    state.postgres.put(state.postgres.writes | write, epoch);
    state.faults.from_secondary |= state.mongo.fence.is_open;
    state.acknowledged |= write;
    Some(())
}
