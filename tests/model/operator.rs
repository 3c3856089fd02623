//! The operator: the process of a flip, of its abort, or of going on with one that died.

use crate::guard::Guard;
use crate::state::{Author, Fence, Lease, State, Store};
use crate::switch::Switch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// Away from this store.
    Flip(Store),
    /// Back to this store, unless it is too late.
    Abort(Store),
    Resume,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    Close,
    Wait,
    /// Until the position is past this time, or the outbox empty.
    Drain(u8),
    MoveOn,
    Commit,
    Refuse,
    Reopen,
}

/// What an operator has seen, and goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plan {
    pub from: Store,
    /// The epoch of the fence of `from`.
    pub epoch: u8,
    /// The epoch of the other fence.
    pub other: u8,
    /// The epoch at which the one or the other store will open.
    pub next: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    Starting(Command),
    /// Has looked at PostgreSQL's fence.
    Looking(Command, Fence),
    At(Step, Plan),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Start(Command),
    Step,
    /// Something failed: back to where it came from.
    GiveUp,
    Die,
}

impl Switch {
    pub fn operate(&self, state: &State, index: usize, operation: Operation) -> Option<State> {
        let mut next = *state;
        next.operators[index] = match (operation, state.operators[index]) {
            (Operation::Start(command), None) if index < self.operators => {
                pay(&mut next, command)?;
                Some(Operator::Starting(command))
            }
            (Operation::Step, Some(operator)) => self.advance(&mut next, operator)?,
            (Operation::GiveUp, Some(Operator::At(step, plan))) if step > Step::Close && step < Step::Refuse => {
                next.budget.aborts = state.budget.aborts.checked_sub(1)?;
                Some(Operator::At(self.refusal(), plan))
            }
            (Operation::Die, Some(_)) => {
                next.budget.deaths = state.budget.deaths.checked_sub(1)?;
                None
            }
            _ => return None,
        };
        // Which of two operators is which makes no difference.
        next.operators.sort_unstable_by(|one, other| other.cmp(one));
        Some(next)
    }

    fn refusal(&self) -> Step {
        if self.has(Guard::AbortRefusesTheOpening) { Step::Refuse } else { Step::Reopen }
    }

    /// Whether a new operator that aborts, and nobody else, comes to a store that is open.
    pub fn is_rescued(&self, state: &State) -> bool {
        let mut next = *state;
        let primary = authority(state.postgres.fence, state.mongo.fence).primary;
        let mut operator = Some(Operator::Starting(Command::Abort(primary)));
        while let Some(at_work) = operator {
            let Some(moved) = self.advance(&mut next, at_work) else { return false };
            operator = moved;
        }
        next.open_fences() == 1
    }

    /// What becomes of the operator by its next step, if it has one: without a plan any more it ends.
    fn advance(&self, state: &mut State, operator: Operator) -> Option<Option<Operator>> {
        let (step, plan) = match operator {
            Operator::Starting(command) => return Some(Some(Operator::Looking(command, state.postgres.fence))),
            Operator::Looking(command, postgres) => return Some(self.decide(command, postgres, state.mongo.fence)),
            Operator::At(step, plan) => (step, plan),
        };
        let goes_to = |step| Some(Operator::At(step, plan));
        Some(match step {
            Step::Close if self.close(state, plan) => goes_to(after_closing(plan.from)),
            Step::Close => None,
            Step::Wait => Some(self.wait(state, plan)?),
            Step::Drain(until) => Some(self.drained(state, plan, until)?),
            Step::MoveOn => goes_to(self.move_on(state)),
            Step::Commit if self.commit(state, plan) || !self.has(Guard::BeginsAnew) => None,
            Step::Commit => Some(Operator::Starting(Command::Resume)),
            Step::Refuse if self.refuse(state, plan) => goes_to(Step::Reopen),
            Step::Refuse => Some(Operator::Starting(Command::Abort(plan.from))),
            Step::Reopen => {
                self.reopen(state, plan);
                None
            }
        })
    }

    /// Rule 13.
    fn decide(&self, command: Command, postgres: Fence, mongo: Fence) -> Option<Operator> {
        let authority = authority(postgres, mongo);
        let from = authority.primary;
        let (own, other) = if from == Store::Mongo { (mongo, postgres) } else { (postgres, mongo) };
        let next = own.epoch.max(other.epoch) + 1;
        let plan = Plan { from, epoch: own.epoch, other: other.epoch, next };
        let is_refused = own.epoch < authority.epoch;
        let is_settled = own.is_open && !self.has(Guard::AbortRaisesTheEpoch);
        let goes_on = !own.is_open && command == Command::Resume && !self.has(Guard::AnAbortIsFinal);
        if is_refused && !is_settled && !goes_on {
            let plan = Plan { next: authority.epoch, ..plan };
            return Some(Operator::At(Step::Reopen, plan));
        }
        let step = match command {
            Command::Flip(store) | Command::Abort(store) if store != from => return None,
            Command::Abort(_) => self.refusal(),
            Command::Resume if own.is_open => return None,
            Command::Flip(_) if own.is_open => self.first_step(from),
            Command::Flip(_) | Command::Resume => after_closing(from),
        };
        Some(Operator::At(step, plan))
    }

    fn first_step(&self, from: Store) -> Step {
        if self.has(Guard::CloseFirst) { Step::Close } else { after_closing(from) }
    }

    /// Rule 14; whether it did.
    fn close(&self, state: &mut State, plan: Plan) -> bool {
        let fence = state.fence(plan.from);
        let is_meant = fence.epoch == plan.epoch || !self.has(Guard::ClosingNamesTheEpoch);
        let closes = fence.is_open && is_meant;
        if closes {
            state.faults.closed_unseen |= fence.epoch != plan.epoch;
            state.set_fence(plan.from, Fence { is_open: false, ..fence });
        }
        closes
    }

    /// Rule 15; that the fence is still closed stands in the same document.
    fn wait(&self, state: &State, plan: Plan) -> Option<Operator> {
        let fence = state.mongo.fence;
        let is_closed = !fence.is_open && fence.epoch == plan.epoch;
        if !is_closed && self.has(Guard::CloseFirst) {
            return Some(Operator::Starting(Command::Resume));
        }
        let is_silent = |lease| matches!(lease, Lease::Missing | Lease::RunOut(_));
        let is_quiet = state.processes.iter().all(|process| process.has_acknowledged || is_silent(process.lease));
        let is_over = is_quiet || !self.has(Guard::WaitForAcknowledgements);
        is_over.then_some(Operator::At(Step::Drain(state.mongo.clock), plan))
    }

    /// Rule 16.
    fn drained(&self, state: &State, plan: Plan, until: u8) -> Option<Operator> {
        let is_level = match plan.from {
            Store::Mongo => state.mongo.log.first().is_none_or(|entry| entry.clock > until),
            Store::Postgres => state.postgres.outbox.is_none(),
        };
        let is_over = is_level || !self.has(Guard::DrainFirst);
        let moves_on = plan.from == Store::Postgres && self.has(Guard::StreamMovesOn);
        if !is_over {
            // It may wait for what comes no more.
            let is_overtaken = !is_as_planned(state, plan) && self.has(Guard::BeginsAnew);
            return is_overtaken.then_some(Operator::Starting(Command::Resume));
        }
        Some(Operator::At(if moves_on { Step::MoveOn } else { Step::Commit }, plan))
    }

    /// Rule 17: past the drain's own writes; a write of another's that nobody has noticed sends the operator back.
    fn move_on(&self, state: &mut State) -> Step {
        while let Some(entry) = state.mongo.log.first() {
            if entry.author != Author::Drain && self.has(Guard::StreamStopsAtAStray) {
                return self.refusal();
            }
            state.mongo.log.move_past(entry.clock);
        }
        Step::Commit
    }

    /// Rule 18; whether it did.
    fn commit(&self, state: &mut State, plan: Plan) -> bool {
        let target = plan.from.other();
        let fence = state.fence(target);
        let is_as_seen = !fence.is_open && fence.epoch == plan.other;
        let opens = is_as_seen || !self.has(Guard::OpeningComparesAndSets);
        if opens {
            let epoch = if self.has(Guard::OpeningRaisesTheEpoch) { plan.next } else { plan.epoch };
            state.set_fence(target, Fence { is_open: true, epoch, primary: target });
        }
        opens
    }

    /// Rule 19: takes the opening away from whoever is still about it; whether it did.
    fn refuse(&self, state: &mut State, plan: Plan) -> bool {
        let target = plan.from.other();
        let fence = state.fence(target);
        let is_as_seen = !fence.is_open && fence.epoch == plan.other;
        if is_as_seen {
            state.set_fence(target, Fence { is_open: false, epoch: plan.next, primary: plan.from });
        }
        is_as_seen
    }

    /// Rule 19, the rest of it.
    fn reopen(&self, state: &mut State, plan: Plan) {
        let fence = state.fence(plan.from);
        if fence.epoch == plan.epoch {
            let epoch = if self.has(Guard::AbortRaisesTheEpoch) { plan.next } else { plan.epoch };
            state.set_fence(plan.from, Fence { is_open: true, epoch, primary: plan.from });
        }
    }
}

/// The fence of the higher epoch says who is the primary.
fn authority(postgres: Fence, mongo: Fence) -> Fence {
    if postgres.epoch > mongo.epoch { postgres } else { mongo }
}

/// Whether both fences are as the plan went by.
fn is_as_planned(state: &State, plan: Plan) -> bool {
    let is_closed_at = |store, epoch| !state.fence(store).is_open && state.fence(store).epoch == epoch;
    is_closed_at(plan.from, plan.epoch) && is_closed_at(plan.from.other(), plan.other)
}

/// PostgreSQL's fence is exact: once it is closed there is nothing to wait for.
fn after_closing(from: Store) -> Step {
    match from {
        Store::Mongo => Step::Wait,
        Store::Postgres => Step::Drain(0),
    }
}

/// Flips and aborts are counted; but whoever finds both stores closed may always go to work.
fn pay(state: &mut State, command: Command) -> Option<()> {
    let is_between = state.open_fences() == 0;
    let budget = match command {
        Command::Flip(from) if !state.fence(from).is_open => return None,
        Command::Flip(Store::Mongo) => &mut state.budget.flips,
        Command::Flip(Store::Postgres) => &mut state.budget.rollbacks,
        Command::Abort(_) | Command::Resume if is_between => return Some(()),
        Command::Resume => return None,
        Command::Abort(_) if state.is_without_operator() => return None,
        Command::Abort(_) => &mut state.budget.aborts,
    };
    *budget = budget.checked_sub(1)?;
    Some(())
}
