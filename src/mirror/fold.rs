//! Folding the events of answers that are applied together: of each key, the last one stands.
//!
//! That is what keeps the order of a key's events, also of those that one transaction brought, which share a stamp.

use std::collections::HashMap;

use super::position::Position;
use super::stream::{Answer, Change, Event};
use crate::mapping::Key;

/// Bytes of documents that are applied together, aimed at.
pub const FOLD_BYTES: usize = 8 << 20;

/// Events that are applied together at most, but for those of one answer.
pub const FOLD_EVENTS: usize = 8_000;

/// Answers of the stream, folded.
#[derive(Debug)]
pub struct Fold {
    /// The last event of each key, in no order.
    events: HashMap<(&'static str, Key), Event>,
    /// How many events and marks there were.
    pub count: usize,
    bytes: usize,
    /// Where the stream goes on after them.
    pub position: Position,
}

impl Fold {
    /// The events of one answer.
    pub fn new(answer: Answer) -> Self {
        let mut fold = Self { events: HashMap::new(), count: 0, bytes: 0, position: answer.position.clone() };
        fold.add(answer);
        fold
    }

    /// Adds the answer that came after those that are here.
    pub fn add(&mut self, answer: Answer) {
        self.position = answer.position;
        self.count += answer.events.len() + answer.marks;
        for event in answer.events {
            self.bytes += bytes(&event);
            if let Some(earlier) = self.events.insert((event.entity.name, event.key.clone()), event) {
                self.bytes -= bytes(&earlier);
            }
        }
    }

    /// Whether another answer may be added.
    pub fn has_room(&self) -> bool {
        self.bytes < FOLD_BYTES && self.count < FOLD_EVENTS
    }

    /// The events that stand.
    pub fn into_events(self) -> Vec<Event> {
        self.events.into_values().collect()
    }
}

fn bytes(event: &Event) -> usize {
    match &event.change {
        Change::Put(document) => document.as_bytes().len(),
        Change::Look(_) | Change::Delete => 0,
    }
}

#[cfg(test)]
mod tests {
    use bson::{Timestamp, rawdoc};

    use super::*;
    use crate::entity;

    fn answer(clock: u32, events: Vec<(&str, Change)>) -> Answer {
        let entity = entity::named("runs").unwrap();
        let time = Timestamp { time: clock, increment: 1 };
        let event = |(key, change): (&str, Change)| Event { entity, key: Key::from_text(key), time, change };
        let position = Position { token: None, clock: i64::from(clock) };
        let events = events.into_iter().map(event).collect();
        let whole = position.clone();
        Answer { events, position, whole, now: None, marks: 0, stamped: Vec::new(), is_last: true, end: None }
    }

    #[test]
    fn the_last_event_of_a_key_stands_also_among_those_of_one_time() {
        let put = |value: i32| Change::Put(rawdoc! { "_id": "k", "value": value });
        let mut fold =
            Fold::new(answer(1, vec![("k", put(1)), ("gone", put(1)), ("k", Change::Delete), ("k", put(2))]));
        fold.add(answer(2, vec![("gone", Change::Delete), ("other", put(3))]));
        assert_eq!((fold.count, fold.position.clock), (6, 2));
        let mut events = fold.into_events();
        events.sort_by(|one, other| one.key.cmp(&other.key));
        let found: Vec<_> = events.iter().map(|event| (event.key.text(), event.time.time, &event.change)).collect();
        assert!(matches!(found[0], ("gone", 2, Change::Delete)), "{found:?}");
        assert!(
            matches!(&found[1], ("k", 1, Change::Put(document)) if document.get_i32("value").is_ok_and(|value| value == 2)),
            "{found:?}"
        );
        assert!(matches!(found[2], ("other", 2, Change::Put(_))), "{found:?}");
    }

    #[test]
    fn a_fold_is_full_by_the_bytes_of_what_stands() {
        let large = || Change::Put(rawdoc! { "_id": "k", "value": "x".repeat(FOLD_BYTES / 2) });
        let mut fold = Fold::new(answer(1, vec![("k", large())]));
        fold.add(answer(2, vec![("k", large()), ("k", large())]));
        assert!(fold.has_room(), "one document stands");
        fold.add(answer(3, vec![("other", large())]));
        assert!(!fold.has_room());
    }
}
