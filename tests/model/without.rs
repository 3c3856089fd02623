//! Without any one of its guards the switch loses a property.

use stateright::{Checker, HasDiscoveries, Model};

use crate::configuration;
use crate::guard::Guard;
use crate::property::{EQUAL, FORWARD, KEPT, LEFT_OPEN, ONE_OPEN, SEEN};
use crate::switch::Switch;

fn assert_lost(property: &'static str, guard: Guard, with_all: Switch) {
    let switch = Switch { without: Some(guard), ..with_all };
    let finish = HasDiscoveries::AnyOf([property].into());
    let checker = switch.checker().finish_when(finish).spawn_bfs().join();
    let states = checker.unique_state_count();
    let path = checker.discovery(property);
    println!("{states} states, {:?} steps", path.as_ref().map(|path| path.clone().into_actions().len()));
    assert!(path.is_some(), "without {guard:?} it still holds that {property}, in {states} states");
}

#[test]
fn without_the_lease_before_a_write_an_acknowledged_write_is_lost() {
    assert_lost(KEPT, Guard::LeaseBeforeTheWrite, configuration::forth_back_and_forth());
}

#[test]
fn without_the_lease_after_the_answer_an_acknowledged_write_is_lost() {
    assert_lost(KEPT, Guard::LeaseAfterTheAnswer, configuration::forth_back_and_forth());
}

#[test]
fn without_waiting_for_its_own_writes_an_acknowledged_write_is_lost() {
    assert_lost(KEPT, Guard::OwnWritesFirst, configuration::forth_back_and_forth());
}

#[test]
fn without_the_fence_in_the_transaction_an_acknowledged_write_is_lost() {
    assert_lost(KEPT, Guard::FenceInTheTransaction, configuration::forth_back_and_forth());
}

#[test]
fn without_the_outbox_in_the_transaction_mongodb_misses_an_acknowledged_write() {
    assert_lost(KEPT, Guard::OutboxWithTheRow, configuration::forth_back_and_forth());
}

#[test]
fn without_the_stamp_in_postgresql_the_stores_differ() {
    assert_lost(EQUAL, Guard::StampInPostgres, configuration::forth_back_and_forth());
}

#[test]
fn without_the_position_beside_the_rows_the_stores_differ() {
    assert_lost(EQUAL, Guard::PositionWithTheRows, configuration::forth_back_and_forth());
}

#[test]
fn without_the_mirrors_look_at_the_fence_the_stores_differ() {
    assert_lost(EQUAL, Guard::MirrorLooksAtTheFence, configuration::forth_back_and_forth());
}

#[test]
fn without_the_stamp_in_mongodb_an_acknowledged_write_is_lost() {
    assert_lost(KEPT, Guard::StampInMongo, configuration::forth_back_and_forth());
}

#[test]
fn without_refusing_an_equal_stamp_an_acknowledged_write_is_lost() {
    assert_lost(KEPT, Guard::AnEqualStampStays, configuration::forth_back_and_forth());
}

#[test]
fn without_an_outbox_that_keeps_the_key_until_mongodb_has_the_row_mongodb_misses_an_acknowledged_write() {
    assert_lost(KEPT, Guard::OutboxAfterMongo, configuration::forth_back_and_forth());
}

#[test]
fn without_comparing_the_outbox_with_what_was_taken_mongodb_misses_an_acknowledged_write() {
    assert_lost(KEPT, Guard::OutboxAsTaken, configuration::forth_back_and_forth());
}

#[test]
fn without_the_repair_of_strays_the_stores_differ() {
    assert_lost(EQUAL, Guard::StraysAreRepaired, configuration::forth_back_and_forth());
}

#[test]
fn without_a_new_stamp_for_a_repair_the_stores_differ() {
    assert_lost(EQUAL, Guard::ARepairHasANewStamp, configuration::forth_back_and_forth());
}

#[test]
fn without_the_finality_of_an_abort_both_fences_are_open() {
    assert_lost(ONE_OPEN, Guard::AnAbortIsFinal, configuration::an_abort_and_another_flip());
}

#[test]
fn without_closing_first_both_fences_are_open() {
    assert_lost(ONE_OPEN, Guard::CloseFirst, configuration::forth_back_and_forth());
}

#[test]
fn without_the_epoch_in_the_closing_a_flip_that_was_aborted_closes_a_fence() {
    assert_lost(SEEN, Guard::ClosingNamesTheEpoch, configuration::an_abort_and_another_flip());
}

#[test]
fn without_the_acknowledgements_an_acknowledged_write_is_lost() {
    assert_lost(KEPT, Guard::WaitForAcknowledgements, configuration::forth_back_and_forth());
}

#[test]
fn without_draining_first_an_acknowledged_write_is_lost() {
    assert_lost(KEPT, Guard::DrainFirst, configuration::forth_back_and_forth());
}

#[test]
fn without_moving_the_stream_on_postgresql_goes_back() {
    assert_lost(FORWARD, Guard::StreamMovesOn, configuration::forth_back_and_forth());
}

#[test]
fn without_stopping_at_a_stray_the_stores_differ() {
    assert_lost(EQUAL, Guard::StreamStopsAtAStray, configuration::forth_back_and_forth());
}

#[test]
fn without_comparing_before_opening_both_fences_are_open() {
    assert_lost(ONE_OPEN, Guard::OpeningComparesAndSets, configuration::an_abort_and_another_flip());
}

#[test]
fn without_a_new_epoch_at_the_opening_the_stores_differ() {
    assert_lost(EQUAL, Guard::OpeningRaisesTheEpoch, configuration::forth_and_back());
}

#[test]
fn without_refusing_the_opening_first_both_fences_are_open() {
    assert_lost(ONE_OPEN, Guard::AbortRefusesTheOpening, configuration::an_abort_and_another_flip());
}

#[test]
fn without_a_new_epoch_after_an_abort_an_old_acknowledgement_loses_a_write() {
    assert_lost(KEPT, Guard::AbortRaisesTheEpoch, configuration::an_abort_and_another_flip());
}

#[test]
fn without_a_new_epoch_after_an_abort_both_fences_are_open() {
    assert_lost(ONE_OPEN, Guard::AbortRaisesTheEpoch, configuration::an_abort_and_another_flip());
}

#[test]
fn without_beginning_anew_no_store_is_open() {
    assert_lost(LEFT_OPEN, Guard::BeginsAnew, configuration::an_abort_and_another_flip());
}
