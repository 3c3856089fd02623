//! What all repositories have in common: typed records over a store's documents.
//!
//! Invariants: a tenant sees its own records only; an update replaces exactly what was read, and touches only the fields
//! it changes, so that nothing an older writer left is lost; what the scheduler writes is regular.

use std::marker::PhantomData;
use std::time::Duration;

use bson::{Bson, RawDocument, RawDocumentBuf};

use super::Error;
use crate::entity::{Kind, NAME_LIMIT, Record};
use crate::mapping::{Key, Mapping, raw};
use crate::store::{Address, After, Change, Cursor, Filter, Query, Store, StoreError, Stored};

/// How often an update is tried when others change the same record.
const ATTEMPTS: u32 = 200;

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// The most items of one page.
pub const PAGE_LIMIT: u32 = 1_000;

/// Whose records: a text that is not empty, has at most [`NAME_LIMIT`] bytes and no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant(String);

impl Tenant {
    /// The tenant of that name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it cannot be one.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        check_name("the tenant", &name)?;
        if name.is_empty() { Err(Error::invalid("the tenant", "it is empty")) } else { Ok(Self(name)) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Refuses what no column of names can hold.
fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    if name.len() > NAME_LIMIT {
        return Err(Error::invalid(what, format!("it is longer than {NAME_LIMIT} bytes")));
    }
    if name.contains('\0') { Err(Error::invalid(what, "it contains NUL")) } else { Ok(()) }
}

/// Which part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// How many items at most: 1 to [`PAGE_LIMIT`].
    pub limit: u32,
    /// [`Listing::next`] of the page before; nothing for the first page.
    pub after: Option<String>,
}

impl PageRequest {
    /// The first `limit` items.
    pub fn first(limit: u32) -> Self {
        Self { limit, after: None }
    }
}

/// A part of a list, in the order of creation (or of what stands for it) and then of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<R> {
    /// The items.
    pub items: Vec<R>,
    /// What to ask for next; nothing at the end.
    pub next: Option<String>,
}

/// A record and the document it was read from.
#[derive(Debug, Clone)]
pub struct Held<R> {
    /// The record.
    pub record: R,
    stored: Stored,
}

/// The records of one entity.
#[derive(Debug, Clone)]
pub struct Records<S, R> {
    store: S,
    of: PhantomData<fn() -> R>,
}

impl<S: Store, R: Record> Records<S, R> {
    /// The records in `store`.
    pub fn new(store: S) -> Self {
        Self { store, of: PhantomData }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The record under `id`, whoever's it is.
    pub async fn any(&self, id: &str) -> Result<Held<R>, Error> {
        let address = address::<R>(id);
        match self.store.get(&address).await? {
            Some(stored) => held(&address, stored),
            None => Err(Error::NotFound { address }),
        }
    }

    /// The record under `id`, if it is the tenant's.
    pub async fn of(&self, tenant: &Tenant, id: &str) -> Result<Held<R>, Error> {
        let address = address::<R>(id);
        // Looked at before the record is read: not even whether it can be read is told of another's.
        let is_theirs = |stored: &Stored| {
            raw::find(&stored.document, "tenantId").is_some_and(|element| element.text() == Some(tenant.name()))
        };
        match self.store.get(&address).await?.filter(is_theirs) {
            Some(stored) => held(&address, stored),
            None => Err(Error::NotFound { address }),
        }
    }

    /// The records that `query` finds, and where the next page begins.
    pub async fn find(&self, query: &Query) -> Result<(Vec<Held<R>>, Option<Cursor>), Error> {
        let page = self.store.find(query).await?;
        let mapping = Mapping::new(R::ENTITY);
        let held = |stored: Stored| {
            let key = mapping.key(&stored.document);
            held(&Address { entity: R::ENTITY, key }, stored)
        };
        Ok((page.items.into_iter().map(held).collect::<Result<_, _>>()?, page.next))
    }

    /// One page of what `query` finds.
    pub async fn page(&self, query: Query, request: &PageRequest) -> Result<Listing<R>, Error> {
        if !(1..=PAGE_LIMIT).contains(&request.limit) {
            return Err(Error::invalid("the page", format!("its limit is not from 1 to {PAGE_LIMIT}")));
        }
        let after = request.after.as_deref().map(Cursor::from_text).transpose();
        let after = after.map_err(|error| Error::invalid("the page", error.to_string()))?;
        let (held, next) = self.find(&query.after(after).limit(request.limit)).await?;
        let items = held.into_iter().map(|held| held.record).collect();
        Ok(Listing { items, next: next.map(|next| next.to_text()) })
    }

    /// Puts a record where there is none.
    pub async fn create(&self, record: &R) -> Result<(), Error> {
        self.store.apply(&[creation(record)?]).await?;
        Ok(())
    }

    /// The records under those of `keys` that there are, in their order.
    pub async fn many(&self, keys: &[Key]) -> Result<Vec<Held<R>>, Error> {
        let found = self.store.get_many(R::ENTITY, keys).await?;
        let address = |key: &Key| Address { entity: R::ENTITY, key: key.clone() };
        let found = keys.iter().zip(found).filter_map(|(key, stored)| Some((address(key), stored?)));
        found.map(|(address, stored)| held(&address, stored)).collect()
    }

    /// Puts a record where there is none, or what `merge` makes of the one that is there; nothing leaves that as it is.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the id is taken by somebody else's record.
    pub async fn upsert(&self, record: &R, merge: impl Fn(&R) -> Option<R> + Send + Sync) -> Result<R, Error> {
        let address = address::<R>(&record.id());
        for attempt in 0..ATTEMPTS {
            let change = match self.store.get(&address).await? {
                None => creation(record)?,
                Some(stored) => {
                    let held: Held<R> = held(&address, stored)?;
                    if held.record.tenant() != record.tenant() {
                        return Err(Error::Conflict { address });
                    }
                    let Some(merged) = merge(&held.record) else { return Ok(held.record) };
                    held.replacement(&merged)?
                }
            };
            if let Some(record) = self.write(change, attempt).await? {
                return Ok(record);
            }
        }
        Err(Error::Conflict { address })
    }

    /// Reads the tenant's record, changes it, and puts it back if nobody has changed it meanwhile; again when somebody
    /// has. `change` sees the newest record each time, and answers nothing to leave it as it is.
    pub async fn update(
        &self,
        tenant: &Tenant,
        id: &str,
        change: impl Fn(&R) -> Result<Option<R>, Error> + Send + Sync,
    ) -> Result<Outcome<R>, Error> {
        self.retry(|| self.of(tenant, id), change, id).await
    }

    /// [`Records::update`] of a record that belongs to no tenant.
    pub async fn update_any(
        &self,
        id: &str,
        change: impl Fn(&R) -> Result<Option<R>, Error> + Send + Sync,
    ) -> Result<Outcome<R>, Error> {
        self.retry(|| self.any(id), change, id).await
    }

    async fn retry<F>(
        &self,
        read: impl Fn() -> F + Send + Sync,
        change: impl Fn(&R) -> Result<Option<R>, Error> + Send + Sync,
        id: &str,
    ) -> Result<Outcome<R>, Error>
    where
        F: Future<Output = Result<Held<R>, Error>> + Send,
    {
        for attempt in 0..ATTEMPTS {
            let held = read().await?;
            let Some(changed) = change(&held.record)? else { return Ok(Outcome::Kept(held.record)) };
            if let Some(record) = self.write(held.replacement(&changed)?, attempt).await? {
                return Ok(Outcome::Written(record));
            }
        }
        Err(Error::Conflict { address: address::<R>(id) })
    }

    /// Makes one change; nothing, after a pause, when somebody else was first.
    async fn write(&self, change: Change, attempt: u32) -> Result<Option<R>, Error> {
        match self.store.apply(&[change]).await {
            Ok(mut after) => after.pop().map(|after| Ok(Held::of_after(after)?.record)).transpose(),
            Err(StoreError::Conflict { .. }) => {
                pause(attempt).await;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What became of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<R> {
    /// The record as it stands now.
    Written(R),
    /// The record, which was as it should be.
    Kept(R),
}

impl<R> Outcome<R> {
    /// The record.
    pub fn record(self) -> R {
        match self {
            Self::Written(record) | Self::Kept(record) => record,
        }
    }
}

impl<R: Record> Held<R> {
    /// The change that puts `record` in the place of this, touching only the fields that differ.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it changes a name to one that no column can hold.
    pub fn replacement(&self, record: &R) -> Result<Change, Error> {
        let address = address::<R>(&record.id());
        // What this says of itself, not what the document says: only then is all that differs a change.
        let before = document_of(&read::<R>(&address, &self.stored)?)?;
        let after = document_of(record)?;
        check_names::<R>(&after, Some(&before))?;
        let merged = Mapping::new(R::ENTITY).merged(&self.stored.document, &before, &after);
        let merged = merged.ok_or_else(|| unreadable(&address, "its bytes are no document"))?;
        Ok(Change::replace(address, self.stored.clone(), merged))
    }

    /// The change that holds others to this record's being as it was read.
    pub fn check(&self) -> Change {
        Change::Check { address: address::<R>(&self.record.id()), unchanged: self.stored.clone() }
    }

    /// The record that stands after a replacement of this one.
    pub fn of_after(after: After) -> Result<Self, Error> {
        let address = after.address.clone();
        let not_found = || Error::NotFound { address: address.clone() };
        held(&address, after.stored().ok_or_else(not_found)?)
    }
}

/// The change that puts `record` where there is none.
///
/// # Errors
/// [`Error::Invalid`] when it holds a name that no column can hold, or its id is no plain text.
pub fn creation<R: Record>(record: &R) -> Result<Change, Error> {
    let document = document_of(record)?;
    check_names::<R>(&document, None)?;
    let change = Change::create(R::ENTITY, document);
    if !change.address().key.is_plain() {
        return Err(Error::invalid("the id", "it begins with '{', contains NUL or is too long"));
    }
    Ok(change)
}

/// The filter for a tenant's records.
pub fn of_tenant(tenant: &Tenant) -> Filter {
    Filter::Is("tenantId", tenant.name().into())
}

/// The filter for records with `name` in `field`.
pub fn named(field: &'static str, name: &str) -> Filter {
    Filter::Is(field, name.into())
}

/// The BSON date of `instant`.
pub fn date(instant: crate::entity::Instant) -> Bson {
    Bson::DateTime(bson::DateTime::from_chrono(instant.0))
}

pub fn address<R: Record>(id: &str) -> Address {
    Address::new(R::ENTITY, id)
}

fn held<R: Record>(address: &Address, stored: Stored) -> Result<Held<R>, Error> {
    Ok(Held { record: read(address, &stored)?, stored })
}

fn read<R: Record>(address: &Address, stored: &Stored) -> Result<R, Error> {
    let regular = Mapping::new(R::ENTITY).regular(&stored.document);
    let regular = regular.ok_or_else(|| unreadable(address, "its bytes are no document"))?;
    bson::deserialize_from_slice(regular.as_bytes()).map_err(|error| unreadable(address, error.to_string()))
}

fn unreadable(address: &Address, reason: impl Into<String>) -> Error {
    Error::Unreadable { address: address.clone(), reason: reason.into() }
}

fn document_of<R: Record>(record: &R) -> Result<RawDocumentBuf, Error> {
    bson::serialize_to_raw_document_buf(record).map_err(|error| Error::invalid("the record", error.to_string()))
}

/// Names are searched for: two that differ only beyond the limit would be one. Those that stood there before may stay.
fn check_names<R: Record>(document: &RawDocument, before: Option<&RawDocument>) -> Result<(), Error> {
    for field in R::ENTITY.fields.iter().filter(|field| matches!(field.kind, Kind::Name)) {
        let Some(element) = raw::find(document, field.name) else { continue };
        let was = before.and_then(|before| raw::find(before, field.name));
        let is_new = was.is_none_or(|was| was.identity() != element.identity());
        if let Some(name) = element.text().filter(|_| is_new) {
            check_name(field.name, name)?;
        }
    }
    Ok(())
}

/// A pause that grows, different in each task, so that those that met do not meet again.
async fn pause(attempt: u32) {
    let random = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
    let longest = Duration::from_micros(200).saturating_mul(attempt.saturating_add(1)).min(LONGEST_PAUSE);
    tokio::time::sleep(longest.mul_f64(f64::from(u32::try_from(random).unwrap_or_default()) / 255.0)).await;
}
