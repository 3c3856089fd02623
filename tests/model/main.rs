//! The protocol of the switch, model-checked.

mod guard;
mod mirror;
mod operator;
mod property;
mod state;
mod switch;
mod writer;

use std::time::Instant;

use stateright::{Checker, Model};

use state::Budget;
use switch::Switch;

const NEVER: Budget = Budget { flips: 0, rollbacks: 0, aborts: 0, deaths: 0, crashes: 0 };

fn explore(switch: Switch) {
    let start = Instant::now();
    let checker = switch.checker().spawn_bfs().join();
    println!("{} states, depth {}, {:?}", checker.unique_state_count(), checker.max_depth(), start.elapsed());
    assert!(checker.is_done());
    for (name, path) in checker.discoveries() {
        if checker.model().property(name).expectation.discovery_is_failure() {
            println!("{name}: {:?}\n{:?}", path.clone().into_actions(), path.last_state());
        }
    }
    let mut found: Vec<_> = checker.discoveries().into_keys().collect();
    found.sort_unstable();
    println!("{found:?}");
    checker.assert_properties();
}

#[test]
fn a_flip_with_two_writers() {
    let budget = Budget { flips: 1, ..NEVER };
    explore(Switch { intended: [0b001, 0b010], operators: 1, budget, without: None });
}

#[test]
fn two_writes_of_one() {
    let budget = Budget { flips: 1, crashes: 1, ..NEVER };
    explore(Switch { intended: [0b101, 0b010], operators: 1, budget, without: None });
}

#[test]
fn forth_and_back() {
    let budget = Budget { flips: 1, rollbacks: 1, ..NEVER };
    explore(Switch { intended: [0b01, 0b10], operators: 1, budget, without: None });
}

#[test]
fn two_operators() {
    let budget = Budget { flips: 2, aborts: 1, ..NEVER };
    explore(Switch { intended: [0b01, 0b10], operators: 2, budget, without: None });
}

#[test]
fn two_operators_die() {
    let budget = Budget { flips: 1, aborts: 1, deaths: 1, ..NEVER };
    explore(Switch { intended: [0b01, 0b10], operators: 2, budget, without: None });
}

#[test]
fn back_abort() {
    let budget = Budget { flips: 1, rollbacks: 1, aborts: 1, deaths: 1, ..NEVER };
    explore(Switch { intended: [0b01, 0b00], operators: 2, budget, without: None });
}
