//! What is explored: each configuration is small enough to be explored whole.

use crate::state::{Budget, Writes};
use crate::switch::Switch;

/// Two processes with a write each.
const ONE_EACH: [Writes; 2] = [0b01, 0b10];

/// Two processes, one of which writes twice.
const THREE: [Writes; 2] = [0b101, 0b010];

const ONE: [Writes; 2] = [0b1, 0];

const NEVER: Budget = Budget { flips: 0, rollbacks: 0, aborts: 0, deaths: 0, crashes: 0 };

fn of(intended: [Writes; 2], operators: usize, budget: Budget) -> Switch {
    Switch { intended, operators, budget, without: None }
}

pub fn a_flip() -> Switch {
    of(THREE, 1, Budget { flips: 1, crashes: 1, ..NEVER })
}

pub fn forth_and_back() -> Switch {
    of(THREE, 1, Budget { flips: 1, rollbacks: 1, ..NEVER })
}

pub fn forth_back_and_forth() -> Switch {
    of(ONE_EACH, 1, Budget { flips: 2, rollbacks: 1, ..NEVER })
}

pub fn an_abort() -> Switch {
    of(ONE_EACH, 2, Budget { flips: 1, aborts: 1, ..NEVER })
}

pub fn an_abort_and_another_flip() -> Switch {
    of(ONE, 2, Budget { flips: 2, aborts: 1, ..NEVER })
}

pub fn an_aborted_rollback_and_a_death() -> Switch {
    of(ONE, 2, Budget { flips: 1, rollbacks: 1, aborts: 1, deaths: 1, ..NEVER })
}

pub fn a_death_and_another_flip() -> Switch {
    of(ONE, 2, Budget { flips: 2, aborts: 1, deaths: 1, ..NEVER })
}

pub fn three_operators() -> Switch {
    of(ONE, 3, Budget { flips: 1, aborts: 1, ..NEVER })
}

/// The fences alone.
pub fn three_operators_forth_back_and_forth() -> Switch {
    of([0; 2], 3, Budget { flips: 2, rollbacks: 1, aborts: 1, ..NEVER })
}
