//! Many rows as one array for each column, in PostgreSQL's binary form.
//!
//! One statement takes any number of rows (`unnest`), so that there is one path for one row and for a hundred. The
//! elements of a binary array have the same form as the columns of a tuple. Source: `array_recv` in PostgreSQL's
//! `arrayfuncs.c`.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};

use crate::entity::Kind;

/// The types of columns, as `pg_type.dat` numbers them: name, element, array.
#[derive(Debug, Clone, Copy)]
pub struct Element {
    /// The type's name.
    pub name: &'static str,
    element: u32,
    array: u32,
}

/// `text`.
pub const TEXT: Element = Element { name: "text", element: 25, array: 1009 };
/// `bytea`.
pub const BYTEA: Element = Element { name: "bytea", element: 17, array: 1001 };
/// `integer`.
pub const INT4: Element = Element { name: "int4", element: 23, array: 1007 };
/// `bigint`.
pub const INT8: Element = Element { name: "int8", element: 20, array: 1016 };
const BOOL: Element = Element { name: "bool", element: 16, array: 1000 };
const JSONB: Element = Element { name: "jsonb", element: 3802, array: 3807 };
const TIMESTAMPTZ: Element = Element { name: "timestamptz", element: 1184, array: 1185 };

impl Element {
    /// The type of a column of `kind`.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Name | Kind::Text | Kind::Word(_) => TEXT,
            Kind::Instant => TIMESTAMPTZ,
            Kind::Int32 => INT4,
            Kind::Int64 => INT8,
            Kind::Bool => BOOL,
            Kind::Json => JSONB,
        }
    }
}

/// One column of many rows.
#[derive(Debug, Clone)]
pub struct Array {
    element: Element,
    count: i32,
    has_null: bool,
    elements: Vec<u8>,
}

impl Array {
    /// No rows yet.
    pub fn new(element: Element) -> Self {
        Self { element, count: 0, has_null: false, elements: Vec::new() }
    }

    /// The column of the next row, in its binary form.
    pub fn push(&mut self, value: Option<&[u8]>) {
        self.count += 1;
        // A value comes from a document, which ends at 16 MiB.
        let length = value.map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap_or(i32::MAX));
        self.elements.extend_from_slice(&length.to_be_bytes());
        self.elements.extend_from_slice(value.unwrap_or_default());
        self.has_null |= value.is_none();
    }

    /// The column of the first row, which must be the only one, as a value of its own.
    pub fn scalar(&self) -> Scalar {
        let bytes = (!self.has_null).then(|| self.elements.get(4..).unwrap_or_default().to_vec());
        Scalar { element: self.element, bytes }
    }
}

impl Type<Postgres> for Array {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TEXT.array))
    }
}

impl Encode<'_, Postgres> for Array {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let dimensions = i32::from(self.count > 0);
        for head in [dimensions, i32::from(self.has_null)] {
            buffer.extend_from_slice(&head.to_be_bytes());
        }
        buffer.extend_from_slice(&self.element.element.to_be_bytes());
        if self.count > 0 {
            buffer.extend_from_slice(&self.count.to_be_bytes());
            buffer.extend_from_slice(&1_i32.to_be_bytes());
        }
        buffer.extend_from_slice(&self.elements);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.element.array)))
    }
}

/// One value in its binary form.
#[derive(Debug, Clone)]
pub struct Scalar {
    /// Its type.
    pub element: Element,
    /// Its bytes; nothing for SQL null.
    pub bytes: Option<Vec<u8>>,
}

impl Type<Postgres> for Scalar {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TEXT.element))
    }
}

impl Encode<'_, Postgres> for Scalar {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let Some(bytes) = &self.bytes else { return Ok(IsNull::Yes) };
        buffer.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.element.element)))
    }
}
