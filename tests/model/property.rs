//! What is to hold in every state, and what is to happen at all.

use stateright::Property;

use crate::state::{Author, Entry, State, Store};
use crate::switch::Switch;

pub const ONE_OPEN: &str = "the two fences are never both open";
pub const KEPT: &str = "at rest both stores have every acknowledged write";
pub const EQUAL: &str = "at rest both stores are equal";
pub const FROM_PRIMARY: &str = "no store acknowledges a write while the other one is open";
pub const FORWARD: &str = "no store goes back behind an acknowledged write";
pub const SEEN: &str = "no fence closes at an epoch that its operator has not seen";
pub const LEFT_OPEN: &str = "operators that end leave a store open";
pub const RESCUED: &str = "an abort comes to a store that is open, whoever is paused";
pub const NO_DEAD_END: &str = "from everywhere it goes on to rest";

pub fn all() -> Vec<Property<Switch>> {
    let mut properties = vec![
        Property::always(ONE_OPEN, |_, state: &State| state.open_fences() < 2),
        Property::always(KEPT, |_, state| !is_at_rest(state) || has_all(state)),
        Property::always(EQUAL, |_, state| !is_at_rest(state) || state.mongo.writes == state.postgres.writes),
        Property::always(FROM_PRIMARY, |_, state: &State| !state.faults.from_secondary),
        // An abort raises the epoch, and what the mirror brings then of before may be older than what is there.
        Property::always(FORWARD, |switch: &Switch, state: &State| switch.budget.aborts > 0 || !state.faults.went_back),
        Property::always(SEEN, |_, state: &State| !state.faults.closed_unseen),
        Property::always(LEFT_OPEN, leaves_one_open),
        Property::always(RESCUED, |switch: &Switch, state: &State| state.open_fences() > 0 || switch.is_rescued(state)),
        Property::always(NO_DEAD_END, |switch, state| is_at_rest(state) || goes_on(switch, state)),
    ];
    properties.extend([
        Property::sometimes("rest", |_, state: &State| is_at_rest(state) && state.fence(Store::Postgres).epoch > 0),
        Property::sometimes("a flip completes", |_, state: &State| state.postgres.fence.is_open),
    ]);
    properties
}

/// What happens only where the configuration lets it.
pub fn happenings(switch: &Switch) -> Vec<Property<Switch>> {
    let mut properties = Vec::new();
    properties.extend((switch.budget.rollbacks > 0).then(|| {
        Property::sometimes("a rollback completes", |_, state: &State| {
            state.mongo.fence.is_open && state.postgres.fence.primary == Store::Postgres
        })
    }));
    properties.extend((switch.budget.aborts > 0).then(|| {
        Property::sometimes("an abort completes", |_, state: &State| {
            state.mongo.fence.is_open
                && state.mongo.fence.epoch == state.postgres.fence.epoch
                && state.mongo.fence.epoch > 0
        })
    }));
    properties.extend((switch.budget.crashes > 0).then(|| {
        Property::sometimes("a process dies with a write in flight", |switch: &Switch, state: &State| {
            state.budget.crashes < switch.budget.crashes && state.late.is_some()
        })
    }));
    properties.extend((switch.budget.deaths > 0).then(|| {
        Property::sometimes("an operator dies between the fences", |_, state: &State| {
            state.is_without_operator() && state.open_fences() == 0
        })
    }));
    properties.extend((switch.intended != [0; 2]).then(|| {
        Property::sometimes("a stray write happens", |_, state: &State| {
            let is_stray = |entry: Entry| entry.author == Author::Process;
            state.postgres.fence.is_open && state.mongo.log.first().is_some_and(is_stray)
        })
    }));
    properties
}

/// Nothing is on its way, and no flip is in between.
fn is_at_rest(state: &State) -> bool {
    let is_silent =
        state.late.is_none() && state.convergence.is_none() && state.mirror.is_none() && state.drain.is_none();
    let is_level = state.mongo.log.first().is_none() && state.postgres.outbox.is_none();
    let waits = state.processes.iter().any(|process| process.flight.is_some());
    is_silent && is_level && !waits && state.is_without_operator() && state.open_fences() == 1
}

fn has_all(state: &State) -> bool {
    let missing = state.acknowledged & !(state.mongo.writes & state.postgres.writes);
    missing == 0
}

fn leaves_one_open(switch: &Switch, state: &State) -> bool {
    let has_died = state.budget.deaths < switch.budget.deaths;
    has_died || !state.is_without_operator() || state.open_fences() > 0
}

/// Whether something can still be done that cannot be done without end.
fn goes_on(switch: &Switch, state: &State) -> bool {
    switch
        .moves()
        .into_iter()
        .any(|action| action.is_progress(state) && switch.follow(state, action).is_some_and(|next| next != *state))
}
