//! What queries are asked with: a few values of the data itself, drawn at random.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, RandomState};

use bson::RawDocument;

use crate::entity::{Entity, Instant, Kind};
use crate::mapping::{Mapping, raw};

/// How many values of one field are drawn.
const DRAWN: usize = 2;

/// The names of an entity and of one of its fields.
type Place = (&'static str, &'static str);

/// Values of names and moments, by the field that holds them.
#[derive(Debug, Default)]
pub struct Arguments {
    texts: HashMap<Place, Draw<String>>,
    moments: HashMap<Place, Draw<Instant>>,
}

impl Arguments {
    /// Draws from a document of `entity`.
    pub fn note(&mut self, entity: &'static Entity, document: &RawDocument) {
        let key = Mapping::new(entity).key(document);
        if key.is_plain() {
            self.texts.entry((entity.name, "_id")).or_default().note(key.text().to_owned());
        }
        for element in raw::elements(document).flatten() {
            let Some(field) = entity.field(element.name()) else { continue };
            let place = (entity.name, field.name);
            match (field.kind, element.text(), element.fixed()) {
                (Kind::Name, Some(text), _) => self.texts.entry(place).or_default().note(text.to_owned()),
                (Kind::Instant, _, Some(millis)) => {
                    let moment = chrono::DateTime::from_timestamp_millis(i64::from_le_bytes(millis));
                    if let Some(moment) = moment {
                        self.moments.entry(place).or_default().note(Instant(moment));
                    }
                }
                _ => {}
            }
        }
    }

    /// Texts that `field` of `entity` holds.
    pub fn texts(&self, entity: &'static str, field: &'static str) -> Vec<String> {
        self.texts.get(&(entity, field)).map(Draw::values).unwrap_or_default()
    }

    /// Moments that `field` of `entity` holds, in order.
    pub fn moments(&self, entity: &'static str, field: &'static str) -> Vec<Instant> {
        let mut moments = self.moments.get(&(entity, field)).map(Draw::values).unwrap_or_default();
        moments.sort();
        moments
    }
}

/// A few of many values, each as likely as any other however often it comes: those with the least hashes, of a hasher that
/// is another one each time.
#[derive(Debug)]
pub struct Draw<T> {
    most: usize,
    hasher: RandomState,
    kept: BTreeMap<u64, T>,
}

impl<T> Default for Draw<T> {
    fn default() -> Self {
        Self::of(DRAWN)
    }
}

impl<T> Draw<T> {
    /// At most `most` values.
    pub fn of(most: usize) -> Self {
        Self { most, hasher: RandomState::new(), kept: BTreeMap::new() }
    }
}

impl<T: Hash + Clone> Draw<T> {
    /// Lets `value` take part.
    pub fn note(&mut self, value: T) {
        self.kept.insert(self.hasher.hash_one(&value), value);
        if self.kept.len() > self.most {
            self.kept.pop_last();
        }
    }

    /// The values drawn so far.
    pub fn values(&self) -> Vec<T> {
        self.kept.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_asked_for_are_drawn_and_each_is_as_likely() {
        let mut first = 0;
        for _ in 0..2_000 {
            let mut draw = Draw::of(3);
            (0..10).for_each(|value| draw.note(value));
            // One that comes often is no likelier.
            (0..50).for_each(|_| draw.note(0));
            let values = draw.values();
            assert_eq!(values.len(), 3);
            first += i32::from(values.contains(&0));
        }
        assert!((450..750).contains(&first), "{first} of 2000");
    }
}
