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

#[test] fn c1_flip() { explore(Switch { intended: [0b101, 0b10], operators: 1, budget: Budget { flips: 1, crashes: 1, ..NEVER }, without: None }); }
#[test] fn c2_back3() { explore(Switch { intended: [0b101, 0b10], operators: 1, budget: Budget { flips: 1, rollbacks: 1, ..NEVER }, without: None }); }
#[test] fn c3_forth_back_forth() { explore(Switch { intended: [0b01, 0b10], operators: 1, budget: Budget { flips: 2, rollbacks: 1, ..NEVER }, without: None }); }
#[test] fn c4_two_ops() { explore(Switch { intended: [0b01, 0b10], operators: 2, budget: Budget { flips: 1, aborts: 1, ..NEVER }, without: None }); }
#[test] fn c5_two_ops_die() { explore(Switch { intended: [0b01, 0b00], operators: 2, budget: Budget { flips: 2, aborts: 1, deaths: 1, ..NEVER }, without: None }); }
#[test] fn c6_back_abort() { explore(Switch { intended: [0b01, 0b00], operators: 2, budget: Budget { flips: 1, rollbacks: 1, aborts: 1, deaths: 1, ..NEVER }, without: None }); }
#[test] fn c7_three_ops() { explore(Switch { intended: [0b01, 0b00], operators: 3, budget: Budget { flips: 1, aborts: 1, ..NEVER }, without: None }); }
#[test] fn c8_three_ops_back() { explore(Switch { intended: [0b00, 0b00], operators: 3, budget: Budget { flips: 2, rollbacks: 1, aborts: 1, ..NEVER }, without: None }); }

#[test]
fn table() {
    use guard::Guard::*;
    let all = [
        LeaseBeforeTheWrite, LeaseAfterTheAnswer, StampInMongo, PositionWithTheRows,
        MirrorLooksAtTheFence, StraysAreRepaired, ARepairHasANewStamp, StreamMovesOn, StreamStopsAtStray, OpeningComparesAndSets,
        OpeningRaisesTheEpoch, AbortRefusesTheOpening, AbortRaisesTheEpoch, AnAbortIsFinal,
    ];
    let configs = [
        ("flip", [0b01, 0b10], 1, Budget { flips: 1, ..NEVER }),
        ("back", [0b01, 0b10], 1, Budget { flips: 1, rollbacks: 1, ..NEVER }),
        ("backabort", [0b01, 0b00], 2, Budget { flips: 1, rollbacks: 1, aborts: 1, deaths: 1, ..NEVER }),
        ("twoops", [0b01, 0b00], 2, Budget { flips: 2, aborts: 1, ..NEVER }),
        ("back3", [0b101, 0b10], 1, Budget { flips: 1, rollbacks: 1, ..NEVER }),
    ];
    for guard in all {
        for (name, intended, operators, budget) in configs {
            let checker = Switch { intended, operators, budget, without: Some(guard) }.checker().target_state_count(1_500_000).spawn_bfs().join();
            let model = checker.model();
            let mut found: Vec<_> = checker.discoveries().into_iter().filter(|(name, _)| model.property(name).expectation.discovery_is_failure()).map(|(name, path)| (path.into_actions().len(), name)).collect();
            found.sort_unstable();
            println!("{guard:?} {name} {} {found:?}", checker.unique_state_count());
        }
    }
}
