//! A read that can be repeated, and what a store answers to it.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};

use bson::RawDocument;

use super::findings::Kind;
use crate::entity::Entity;
use crate::mapping::{Key, Mapping, RebuildError};
use crate::store::{Query, Store, StoreError, Stored};
use crate::verify::canonical;

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
                page.map(|page| Seen { items: page.items, has_more: page.next.is_some(), ..Seen::default() })
            }
        };
        answered.or_else(Seen::unreadable)
    }

    /// The text by which a difference is told: of one key, the key.
    pub fn id(&self) -> String {
        match self {
            Self::Keys(_, keys) => keys.iter().map(Key::text).collect::<Vec<_>>().join(", "),
            Self::Page(Query { filters, order, after, skip, limit, .. }) => {
                format!("page of {limit} where {filters:?} by {order:?} after {after:?}, {skip} passed over")
            }
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
        text.extend(seen.has_more.then_some("and more\n"));
        text.extend(seen.unreadable.iter().map(|why| format!("unreadable: {why}\n")));
        text
    }
}

/// What a store answers to a read.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What there is, in the order of the keys that were asked for, or of the page.
    pub items: Vec<Stored>,
    /// Whether another page follows.
    pub has_more: bool,
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

    fn is_there(&self) -> bool {
        !self.items.is_empty() || self.unreadable.is_some()
    }

    /// Whether two stores answer alike. Stamps are no part of that, nor are cursors.
    pub fn equals(&self, other: &Self) -> bool {
        let same = |(one, other): (&Stored, &Stored)| canonical::equal(&one.document, &other.document);
        self.unreadable.is_none()
            && other.unreadable.is_none()
            && self.has_more == other.has_more
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
        (self.has_more, &self.unreadable).hash(&mut hasher);
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

    fn by_key(&self, entity: &'static Entity) -> BTreeMap<Key, &RawDocument> {
        let mapping = Mapping::new(entity);
        self.items.iter().map(|item| (mapping.key(&item.document), item.document.as_ref())).collect()
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
        assert!(!page.equals(&Seen { has_more: true, ..page.clone() }));
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
}
