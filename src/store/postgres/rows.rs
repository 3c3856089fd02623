//! Rows of the driver as documents with stamps.

use sqlx::postgres::PgRow;

use crate::mapping::{Key, Mapping};
use crate::stamp::Stamp;
use crate::store::{Address, StoreError, Stored};
use crate::target::columns;

/// The document of a row with the columns of [`Mapping::columns`].
pub fn stored(mapping: Mapping, row: &PgRow) -> Result<Stored, StoreError> {
    let failed = |source| StoreError::Failed { attempted: format!("read a row of {}", mapping.entity().name), source };
    let columns = columns(row).map_err(|error| failed(error.into()))?;
    let stamp = stamp(&columns).ok_or_else(|| failed("its stamp is not what this program writes".into()))?;
    let document = mapping.rebuild(&columns).map_err(|error| {
        let address = Address { entity: mapping.entity(), key: key(&columns) };
        StoreError::Failed { attempted: format!("rebuild {address}"), source: error.into() }
    })?;
    Ok(Stored { document, stamp: Some(stamp) })
}

fn stamp(columns: &[Option<&[u8]>]) -> Option<Stamp> {
    let [.., Some(epoch), Some(clock)] = columns else { return None };
    let epoch = i32::from_be_bytes((*epoch).try_into().ok()?);
    Some(Stamp { epoch, clock: i64::from_be_bytes((*clock).try_into().ok()?) })
}

fn key(columns: &[Option<&[u8]>]) -> Key {
    let id = columns.first().copied().flatten().unwrap_or_default();
    Key::from_text(String::from_utf8_lossy(id))
}
