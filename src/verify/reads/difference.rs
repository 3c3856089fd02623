//! What is wrong with a page that differs for good, for the report.

use std::collections::{BTreeMap, BTreeSet};

use bson::{RawDocument, RawDocumentBuf};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::stores::Stores;
use super::walk::{Lasting, page};
use super::{ReadError, Result};
use crate::mapping::{Key, Mapping};
use crate::parity::{Kind, Read, Seen};
use crate::phase::Backend;
use crate::verify::{canonical, unified};

/// How many keys are named.
const NAMED: usize = 20;

/// How many documents are shown in full.
const SHOWN: usize = 3;

/// How many records are read at once while a key is looked for on later pages.
const AHEAD: u32 = 200;

/// The longest diff that is kept, in bytes.
const DIFF_BYTES: usize = 16 << 10;

/// A query that the secondary answers otherwise for good: the first page that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The collection.
    pub collection: &'static str,
    /// For which tenant it was asked; nothing for a query across tenants.
    pub tenant: Option<String>,
    /// The query.
    pub query: String,
    /// The page, the first being 1.
    pub page: u64,
    /// How the secondary's page differs.
    pub kind: Kind,
    /// The keys that are missing, extra, of other content or in other places; the first of them.
    pub ids: Vec<String>,
    /// How many keys there are besides.
    pub more_ids: u64,
    /// When it was seen first.
    pub since: DateTime<Utc>,
    /// A unified diff from MongoDB to PostgreSQL: of documents where the content differs, else of the page's keys. Only the
    /// first differences have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

/// What is wrong with the page on which `read` differs.
pub async fn describe(stores: &Stores, tenant: Option<&str>, read: &Read, lasting: &Lasting) -> Result<Difference> {
    let sides = Sides::look(stores, read, lasting).await?;
    let (kind, mut keys) = sides.finding(lasting);
    let texts = if kind == Kind::Content { sides.documents(lasting, &keys) } else { lists(lasting) };
    let [mongo, postgres] = match stores.primary() {
        Backend::Mongo => texts,
        Backend::Postgres => {
            let [primary, secondary] = texts;
            [secondary, primary]
        }
    };
    // The diff of large documents takes its time, which is not that of the other queries.
    let diff = tokio::task::spawn_blocking(move || unified(&mongo, &postgres)).await.map_err(|_| ReadError::Crashed);
    let mut diff = diff?;
    diff.truncate(diff.floor_char_boundary(DIFF_BYTES));
    let more_ids = u64::try_from(keys.len().saturating_sub(NAMED)).unwrap_or_default();
    keys.truncate(NAMED);
    Ok(Difference {
        collection: read.entity().name,
        tenant: tenant.map(str::to_owned),
        query: text(read),
        page: lasting.page,
        kind,
        ids: keys.iter().map(|key| key.text().to_owned()).collect(),
        more_ids,
        since: lasting.since,
        diff: Some(diff),
    })
}

fn text(read: &Read) -> String {
    match read {
        Read::Page(query) => query.to_string(),
        Read::Keys(..) => format!("of key {}", read.id()),
    }
}

/// The keys of each page.
fn lists(Lasting { reads, seen, .. }: &Lasting) -> [String; 2] {
    [reads[0].text(&seen[0]), reads[1].text(&seen[1])]
}

/// What each store answers, on the page and, of the other one's keys, after it.
struct Sides {
    primary: BTreeMap<Key, RawDocumentBuf>,
    secondary: BTreeMap<Key, RawDocumentBuf>,
    /// The keys that only the next page of one store shows, when all before is equal.
    beyond: [Vec<Key>; 2],
}

impl Sides {
    async fn look(stores: &Stores, read: &Read, Lasting { seen: [one, other], .. }: &Lasting) -> Result<Self> {
        let entity = read.entity();
        let owned = |seen: &Seen| -> BTreeMap<Key, RawDocumentBuf> {
            seen.by_key(entity).into_iter().map(|(key, document)| (key, document.to_owned())).collect()
        };
        let (mut primary, mut secondary) = (owned(one), owned(other));
        let only = |of: &BTreeMap<Key, RawDocumentBuf>, and: &BTreeMap<Key, RawDocumentBuf>| -> BTreeSet<Key> {
            of.keys().filter(|key| !and.contains_key(*key)).cloned().collect()
        };
        let (absent, foreign) = (only(&primary, &secondary), only(&secondary, &primary));
        let backend = stores.primary();
        secondary.extend(rest(stores, read, (backend.other(), other), absent).await?);
        primary.extend(rest(stores, read, (backend, one), foreign).await?);
        let beyond = match (&one.next, &other.next) {
            (Some(_), None) => [next(stores, read, (backend, one)).await?, Vec::new()],
            (None, Some(_)) => [Vec::new(), next(stores, read, (backend.other(), other)).await?],
            _ => [Vec::new(), Vec::new()],
        };
        Ok(Self { primary, secondary, beyond })
    }

    /// The kind of the difference and its keys, in the order of the pages.
    fn finding(&self, Lasting { seen: [one, other], reads, .. }: &Lasting) -> (Kind, Vec<Key>) {
        let mapping = Mapping::new(reads[0].entity());
        let keys = |seen: &Seen| seen.items.iter().map(|item| mapping.key(&item.document)).collect::<Vec<_>>();
        let (ones, others) = (keys(one), keys(other));
        let differs = |key: &Key| match (self.primary.get(key), self.secondary.get(key)) {
            (Some(one), Some(other)) => !canonical::equal(one, other),
            _ => false,
        };
        let all: Vec<Key> = ones.iter().chain(others.iter().filter(|key| !ones.contains(key))).cloned().collect();
        let content: Vec<Key> = all.into_iter().filter(differs).collect();
        if !content.is_empty() || one.unreadable.is_some() || other.unreadable.is_some() {
            return (Kind::Content, content);
        }
        let absent = |keys: &[Key], from: &BTreeMap<Key, RawDocumentBuf>, beyond: &[Key]| -> Vec<Key> {
            let absent: Vec<Key> = keys.iter().filter(|key| !from.contains_key(*key)).cloned().collect();
            if absent.is_empty() { beyond.to_vec() } else { absent }
        };
        let (missing, extra) =
            (absent(&ones, &self.secondary, &self.beyond[0]), absent(&others, &self.primary, &self.beyond[1]));
        match (missing.is_empty(), extra.is_empty()) {
            (false, _) => (Kind::Missing, missing),
            (true, false) => (Kind::Extra, extra),
            (true, true) => {
                let moved = ones.iter().zip(&others).filter(|(one, other)| one != other).map(|(one, _)| one.clone());
                (Kind::Order, moved.collect())
            }
        }
    }

    /// The first documents that differ, of each store; the pages' keys when one of them cannot be read.
    fn documents(&self, lasting: &Lasting, keys: &[Key]) -> [String; 2] {
        if keys.is_empty() {
            return lists(lasting);
        }
        let text = |side: &BTreeMap<Key, RawDocumentBuf>| -> String {
            let shown = keys.iter().take(SHOWN).filter_map(|key| side.get(key));
            shown.map(|document: &RawDocumentBuf| show(document)).collect()
        };
        [text(&self.primary), text(&self.secondary)]
    }
}

fn show(document: &RawDocument) -> String {
    canonical::text(document) + "\n"
}

/// Those of `wanted` that a store answers after the page that it answered with `seen`: there they have another place.
async fn rest(
    stores: &Stores,
    read: &Read,
    (from, seen): (Backend, &Seen),
    mut wanted: BTreeSet<Key>,
) -> Result<BTreeMap<Key, RawDocumentBuf>> {
    let (mapping, mut found, mut after) = (Mapping::new(read.entity()), BTreeMap::new(), seen.next.clone());
    while after.is_some() && !wanted.is_empty() {
        let seen = stores.read(&page(read, after.as_ref(), AHEAD), from).await?;
        for item in seen.items {
            let key = mapping.key(&item.document);
            if wanted.remove(&key) {
                found.insert(key, item.document);
            }
        }
        after = seen.next;
    }
    Ok(found)
}

/// The keys of the page after the one that a store answered with `seen`.
async fn next(stores: &Stores, read: &Read, (from, seen): (Backend, &Seen)) -> Result<Vec<Key>> {
    let seen = stores.read(&page(read, seen.next.as_ref(), AHEAD), from).await?;
    let mapping = Mapping::new(read.entity());
    Ok(seen.items.iter().map(|item| mapping.key(&item.document)).collect())
}
