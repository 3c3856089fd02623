//! Whether two stores answer alike: a read that can be repeated, what each store answers to it, how the answers differ, and
//! whether the difference lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use bson::RawDocument;
use serde::Serialize;

use crate::entity::Entity;
use crate::mapping::{Key, Mapping, RebuildError};
use crate::store::{Cursor, Query, Store, StoreError, Stored};
use crate::verify::canonical;

/// How the secondary differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The key is not in the secondary.
    Missing,
    /// The key is only in the secondary.
    Extra,
    /// Both have it, and differ.
    Content,
    /// Both have the same under each key, but a page shows other keys, or another order.
    Order,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Content => "content",
            Self::Order => "order",
        })
    }
}

/// A read.
#[derive(Debug, Clone, PartialEq)]
pub enum Read {
    /// What stands under some keys of an entity.
    Keys(&'static Entity, Vec<Key>),
    /// A page.
    Page(Query),
}

impl Read {
    /// Whose documents are read.
    pub fn entity(&self) -> &'static Entity {
        match self {
            Self::Keys(entity, _) => entity,
            Self::Page(query) => query.entity,
        }
    }

    /// What `store` answers.
    pub async fn of(&self, store: &impl Store) -> Result<Seen, StoreError> {
        let answered = match self {
            Self::Keys(entity, keys) => {
                let found = store.get_many(entity, keys).await;
                found.map(|found| Seen { items: found.into_iter().flatten().collect(), ..Seen::default() })
            }
            Self::Page(query) => {
                let page = store.find(query).await;
                page.map(|page| Seen { items: page.items, next: page.next, unreadable: None })
            }
        };
        answered.or_else(Seen::unreadable)
    }

    /// The text by which a difference is told: of one key, the key.
    pub fn id(&self) -> String {
        match self {
            Self::Keys(_, keys) => keys.iter().map(Key::text).collect::<Vec<_>>().join(", "),
            Self::Page(query) => format!("page of {} {query}", query.limit),
        }
    }

    /// How the secondary differs.
    pub fn kind(&self, primary: &Seen, secondary: &Seen) -> Kind {
        match (self, primary.is_there(), secondary.is_there()) {
            (Self::Page(_), _, _) => Kind::Order,
            (_, true, false) => Kind::Missing,
            (_, false, true) => Kind::Extra,
            _ => Kind::Content,
        }
    }

    /// An answer for people: the document of a key, the keys of a page.
    pub fn text(&self, seen: &Seen) -> String {
        let mapping = Mapping::new(self.entity());
        let item = |item: &Stored| match self {
            Self::Keys(..) => canonical::text(&item.document) + "\n",
            Self::Page(_) => format!("{:?}\n", mapping.key(&item.document).text()),
        };
        let mut text: String = seen.items.iter().map(item).collect();
        text.extend(seen.has_more().then_some("and more\n"));
        text.extend(seen.unreadable.iter().map(|why| format!("unreadable: {why}\n")));
        text
    }
}

/// What a store answers to a read.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What there is, in the order of the keys that were asked for, or of the page.
    pub items: Vec<Stored>,
    /// Where the next page begins; nothing when there was no more.
    pub next: Option<Cursor>,
    /// Why a row stands for no document, if that is so; then nothing else is known.
    pub unreadable: Option<String>,
}

impl Seen {
    /// A damaged row is an answer; any other error says nothing of what is stored.
    fn unreadable(error: StoreError) -> Result<Self, StoreError> {
        match error.source().filter(|source| source.is::<RebuildError>()) {
            Some(_) => Ok(Self { unreadable: Some(crate::error_text(&error)), ..Self::default() }),
            None => Err(error),
        }
    }

    fn has_more(&self) -> bool {
        self.next.is_some()
    }

    fn is_there(&self) -> bool {
        !self.items.is_empty() || self.unreadable.is_some()
    }

    /// Whether two stores answer alike. Stamps are no part of that, nor are cursors.
    pub fn equals(&self, other: &Self) -> bool {
        let same = |(one, other): (&Stored, &Stored)| canonical::equal(&one.document, &other.document);
        self.unreadable.is_none()
            && other.unreadable.is_none()
            && self.has_more() == other.has_more()
            && self.items.len() == other.items.len()
            && self.items.iter().zip(&other.items).all(same)
    }

    /// Another number for each answer of one store: it changes with every write, also with one that is taken back, where
    /// the store keeps stamps.
    pub fn print(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for Stored { document, stamp } in &self.items {
            (document.as_bytes(), stamp).hash(&mut hasher);
        }
        (self.has_more(), &self.unreadable).hash(&mut hasher);
        hasher.finish()
    }

    /// The keys of `entity` under which the answers have different documents.
    pub fn differing(&self, other: &Self, entity: &'static Entity) -> Vec<Key> {
        let [one, other] = [self, other].map(|seen| seen.by_key(entity));
        let equal = |key: &Key| match (one.get(key), other.get(key)) {
            (Some(one), Some(other)) => canonical::equal(one, other),
            _ => false,
        };
        let keys: BTreeSet<&Key> = one.keys().chain(other.keys()).collect();
        keys.into_iter().filter(|key| !equal(key)).cloned().collect()
    }

    /// The documents of the answer.
    pub fn by_key(&self, entity: &'static Entity) -> BTreeMap<Key, &RawDocument> {
        let mapping = Mapping::new(entity);
        self.items.iter().map(|item| (mapping.key(&item.document), item.document.as_ref())).collect()
    }
}

/// Whether a difference lasts. It is looked at in rounds: in each the primary is read, the mirror is waited for until it has
/// passed that point, then the secondary is read, and the primary again. Invariant: a difference lasts only when the primary
/// was not written from before the mark of one round until after that of the next, and the secondary answered the same in
/// both, stamps included: a key that is written to and fro is not taken for one that stands still.
#[derive(Debug, Default)]
pub struct Standstill {
    /// What the primary and the secondary answered in the round before, if they differed and nothing was written.
    before: Option<(u64, u64)>,
}

impl Standstill {
    /// Takes the answers of a round in which the stores differ: `before` is the print of the primary's before the mark.
    /// Whether the difference lasts.
    pub fn round(&mut self, before: u64, primary: &Seen, secondary: &Seen) -> bool {
        let is_quiet = primary.print() == before;
        let last = std::mem::replace(&mut self.before, is_quiet.then(|| (before, secondary.print())));
        self.is_quiet() && self.before == last
    }

    /// Whether nothing was written in the last round.
    pub fn is_quiet(&self) -> bool {
        self.before.is_some()
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::entity;
    use crate::stamp::Stamp;

    fn seen(ids: &[(&str, i32)]) -> Seen {
        let item = |(id, n): &(&str, i32)| Stored { document: rawdoc! { "_id": *id, "n": *n }, stamp: None };
        Seen { items: ids.iter().map(item).collect(), ..Seen::default() }
    }

    #[test]
    fn answers_are_equal_only_in_the_same_order_and_with_the_same_end() {
        let page = seen(&[("a", 1), ("b", 2)]);
        assert!(page.equals(&page) && page.differing(&page, entity::ENTITIES[0]).is_empty());
        let turned = seen(&[("b", 2), ("a", 1)]);
        assert!(!page.equals(&turned) && page.differing(&turned, entity::ENTITIES[0]).is_empty());
        let more =
            |id: &str| Seen { next: Some(Cursor { value: bson::Bson::Null, id: id.to_owned() }), ..page.clone() };
        // Each store goes on in its own way.
        assert!(!page.equals(&more("b")) && more("a").equals(&more("b")));
        let unreadable = Seen { unreadable: Some("why".to_owned()), ..Seen::default() };
        assert!(!unreadable.equals(&Seen::default()) && !unreadable.equals(&unreadable));
    }

    #[test]
    fn the_keys_that_differ_are_those_on_one_side_and_those_with_another_document() {
        let differing = seen(&[("a", 1), ("b", 2), ("c", 3)])
            .differing(&seen(&[("d", 4), ("b", 0), ("a", 1)]), entity::ENTITIES[0]);
        assert_eq!(differing.iter().map(Key::text).collect::<Vec<_>>(), ["b", "c", "d"]);
    }

    #[test]
    fn a_write_that_was_taken_back_shows_in_the_stamp() {
        let at = |clock| {
            let mut seen = seen(&[("a", 1)]);
            seen.items[0].stamp = Some(Stamp { epoch: 1, clock });
            seen
        };
        assert!(at(1).equals(&at(2)) && at(1).print() != at(2).print() && at(1).print() == at(1).print());
    }

    #[test]
    fn a_difference_lasts_when_two_rounds_in_a_row_found_the_same_and_nothing_was_written() {
        let [one, other, third] = [seen(&[("a", 1)]), seen(&[("a", 2)]), seen(&[("a", 3)])];
        let mut standstill = Standstill::default();
        let rounds = [(&one, &one, &other), (&one, &third, &other), (&one, &one, &other), (&one, &one, &third)];
        for (before, now, secondary) in rounds {
            assert!(!standstill.round(before.print(), now, secondary));
        }
        assert!(standstill.round(one.print(), &one, &third) && standstill.is_quiet());
        assert!(!standstill.round(third.print(), &one, &third) && !standstill.is_quiet());
    }
}
