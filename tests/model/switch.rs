//! The model of the switch.

use stateright::{Model, Property};

use crate::guard::Guard;
use crate::mirror::Movement;
use crate::operator::{Command, Operation};
use crate::property;
use crate::state::{Budget, Log, State, Store, Writes};
use crate::writer::Deed;

/// A configuration: what is written, how often something may go wrong, and which guard is missing.
#[derive(Debug, Clone)]
pub struct Switch {
    pub intended: [Writes; 2],
    pub operators: usize,
    pub budget: Budget,
    pub without: Option<Guard>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Process(usize, Deed),
    Move(Movement),
    Operator(usize, Operation),
}

const DEEDS: [Deed; 12] = [
    Deed::Renew,
    Deed::LeaseRunsOut,
    Deed::Acknowledge,
    Deed::Send,
    Deed::Arrive,
    Deed::Answer,
    Deed::AnswerAndConverge,
    Deed::Crash,
    Deed::WriteToPostgres,
    Deed::SendToPostgres,
    Deed::ArriveAtPostgres,
    Deed::WriteWithoutOutbox,
];

const MOVEMENTS: [Movement; 11] = [
    Movement::Follow,
    Movement::ReadLog,
    Movement::WriteBatch,
    Movement::MirrorDies,
    Movement::Drain,
    Movement::TakeKey,
    Movement::BringKey,
    Movement::RemoveKey,
    Movement::DrainDies,
    Movement::Converge,
    Movement::ArriveLate,
];

const OPERATIONS: [Operation; 8] = [
    Operation::Start(Command::Flip(Store::Mongo)),
    Operation::Start(Command::Flip(Store::Postgres)),
    Operation::Start(Command::Abort(Store::Mongo)),
    Operation::Start(Command::Abort(Store::Postgres)),
    Operation::Start(Command::Resume),
    Operation::Step,
    Operation::GiveUp,
    Operation::Die,
];

impl Action {
    /// Whether it brings a history nearer to its rest.
    pub fn is_progress(self, state: &State) -> bool {
        match self {
            Self::Process(_, Deed::LeaseRunsOut) => !state.is_without_operator(),
            Self::Process(_, deed) => matches!(deed, Deed::Arrive | Deed::Answer | Deed::ArriveAtPostgres),
            Self::Move(movement) => !matches!(movement, Movement::MirrorDies | Movement::DrainDies),
            Self::Operator(_, Operation::Start(_)) => state.is_without_operator() && state.open_fences() == 0,
            Self::Operator(_, operation) => operation == Operation::Step,
        }
    }
}

impl Switch {
    pub fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    pub fn moves(&self) -> impl IntoIterator<Item = Action> + use<> {
        let operators = 0..self.operators;
        let deeds = (0..2).flat_map(|index| DEEDS.map(|deed| Action::Process(index, deed)));
        let operations = operators.flat_map(|index| OPERATIONS.map(|operation| Action::Operator(index, operation)));
        deeds.chain(MOVEMENTS.map(Action::Move)).chain(operations)
    }

    pub fn follow(&self, state: &State, action: Action) -> Option<State> {
        match action {
            Action::Process(index, deed) => self.act(state, index, deed),
            Action::Move(movement) => self.carry(state, movement),
            Action::Operator(index, operation) => self.operate(state, index, operation),
        }
    }
}

impl Model for Switch {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.intended, self.budget)]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.extend(self.moves());
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.follow(state, action)
    }

    /// Without its stamp, MongoDB takes the same thing over and over.
    fn within_boundary(&self, state: &State) -> bool {
        self.without.is_none() || usize::from(state.mongo.clock) < Log::ROOM
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = property::all();
        properties.extend(property::happenings(self));
        properties
    }
}
