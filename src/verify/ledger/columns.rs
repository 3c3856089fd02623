//! Shares and keys as the ledger's columns hold them.

use bson::RawDocumentBuf;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{Noted, Planned};
use crate::entity::{self, Entity};
use crate::mapping::Key;
use crate::scan::Range;
use crate::verify::error::{Result, VerifyError};
use crate::verify::generation::Share;
use crate::verify::recheck::Suspect;
use crate::verify::report::Kind;
use crate::verify::rows::Scope;

/// Shares as columns.
#[derive(Default)]
pub struct Columns {
    pub collections: Vec<&'static str>,
    pub kinds: Vec<&'static str>,
    pub lowers: Vec<Option<Vec<u8>>>,
    pub uppers: Vec<Option<Vec<u8>>>,
}

impl Columns {
    /// Those of `shares`.
    pub fn of(shares: &[(&'static Entity, Share)]) -> Self {
        let bytes = |bound: &Option<RawDocumentBuf>| bound.as_ref().map(|bound| bound.as_bytes().to_vec());
        let mut columns = Self::default();
        for (entity, share) in shares {
            let (kind, lower, upper) = match share {
                Share::Range(range) => ("range", bytes(&range.lower), bytes(&range.upper)),
                Share::Rows(Scope::Marked) => ("marked rows", None, None),
                Share::Rows(Scope::All) => ("all rows", None, None),
                Share::Quarantine => ("quarantine", None, None),
            };
            columns.collections.push(entity.name);
            columns.kinds.push(kind);
            columns.lowers.push(lower);
            columns.uppers.push(upper);
        }
        columns
    }
}

/// A share.
pub fn planned(row: &PgRow) -> Result<Planned> {
    let name: String = row.get("collection");
    let share = match row.get::<&str, _>("kind") {
        "range" => Share::Range(Range { lower: bound(row, "lower")?, upper: bound(row, "upper")? }),
        "marked rows" => Share::Rows(Scope::Marked),
        "all rows" => Share::Rows(Scope::All),
        _ => Share::Quarantine,
    };
    Ok(Planned { ordinal: row.get("ordinal"), entity: named(&name)?, share })
}

/// A key that differs.
pub fn noted(row: &PgRow) -> Result<Noted> {
    let (collection, id): (String, String) = (row.get("collection"), row.get("id"));
    Ok(Noted {
        entity: named(&collection)?,
        suspect: Suspect {
            key: Key::from_text(&id),
            id: bound(row, "document_id")?.ok_or(VerifyError::Unreadable { what: "the _id of a key that differs" })?,
        },
        kind: Kind::named(row.get("kind")).ok_or(VerifyError::Unreadable { what: "a kind of mismatch" })?,
        reason: row.get("reason"),
        print: row.get("print"),
        since: row.get("since"),
    })
}

fn named(collection: &str) -> Result<&'static Entity> {
    entity::named(collection).ok_or(VerifyError::Unreadable { what: "the name of a collection" })
}

fn bound(row: &PgRow, column: &str) -> Result<Option<RawDocumentBuf>> {
    let bytes: Option<Vec<u8>> = row.get(column);
    let unreadable = |_| VerifyError::Unreadable { what: "the bounds of a share" };
    bytes.map(RawDocumentBuf::from_bytes).transpose().map_err(unreadable)
}
