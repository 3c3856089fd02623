//! With all of its guards the switch keeps every property, in every state of every configuration.

use stateright::{Checker, Model};

use crate::configuration;
use crate::switch::Switch;

fn explore(switch: Switch) {
    let checker = switch.checker().spawn_bfs().join();
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    assert!(checker.is_done(), "not all of the states were looked at");
    checker.assert_properties();
}

#[test]
fn a_flip() {
    explore(configuration::a_flip());
}

#[test]
fn a_flip_forth_and_back() {
    explore(configuration::forth_and_back());
}

#[test]
fn a_flip_forth_back_and_forth_again() {
    explore(configuration::forth_back_and_forth());
}

#[test]
fn a_flip_that_another_operator_aborts() {
    explore(configuration::an_abort());
}

#[test]
fn a_flip_after_an_abort_of_one_that_was_paused() {
    explore(configuration::an_abort_and_another_flip());
}

#[test]
fn a_rollback_that_is_aborted_and_whose_operator_dies() {
    explore(configuration::an_aborted_rollback_and_a_death());
}

#[test]
fn a_flip_whose_operator_dies_and_another_one() {
    explore(configuration::a_death_and_another_flip());
}

#[test]
fn three_operators_at_once() {
    explore(configuration::three_operators());
}

#[test]
fn three_operators_at_once_forth_back_and_forth() {
    explore(configuration::three_operators_forth_back_and_forth());
}
