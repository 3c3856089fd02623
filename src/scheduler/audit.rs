//! Audit: appended, never changed.

use super::Error;
use super::records::{Listing, PageRequest, Records, Tenant, date, named, of_tenant};
use crate::entity::audit::AuditRecord;
use crate::entity::{Instant, Record};
use crate::store::{Direction, Filter, Query, Store};

/// The audit records in a store.
#[derive(Debug, Clone)]
pub struct Audit<S> {
    records: Records<S, AuditRecord>,
}

/// Which audit records to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Only those about this record.
    pub entity_id: Option<String>,
    /// Only those from this moment on.
    pub from: Option<Instant>,
    /// Only those before this moment.
    pub before: Option<Instant>,
}

impl<S: Store> Audit<S> {
    /// The audit records in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is there already.
    pub async fn append(&self, record: &AuditRecord) -> Result<(), Error> {
        Tenant::new(record.tenant_id.as_str())?;
        self.records.create(record).await
    }

    /// The tenant's audit records in the order of their events.
    pub async fn query(
        &self,
        tenant: &Tenant,
        options: &ListOptions,
        page: &PageRequest,
    ) -> Result<Listing<AuditRecord>, Error> {
        let query = Query::of(AuditRecord::ENTITY)
            .only(of_tenant(tenant))
            .only_if(options.entity_id.as_deref().map(|entity| named("entityId", entity)))
            .only_if(options.from.map(|moment| Filter::From("occurredAt", date(moment))))
            .only_if(options.before.map(|moment| Filter::Below("occurredAt", date(moment))))
            .by("occurredAt", Direction::Ascending);
        self.records.page(query, page).await
    }
}
