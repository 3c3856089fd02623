//! From a row back to its document.

use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf};

use super::key::{Key, NotAKey};
use super::raw::{Builder, elements};
use super::{Mapping, SET, UNSET, column, tuple};
use crate::entity::Kind;
use crate::stamp::Stamp;

/// A row that no document was encoded to: somebody else wrote it, or it is damaged.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Column `id` holds a text that is no key.
    #[error("column id stands for no _id")]
    Key(#[from] NotAKey),
    /// A column holds a value that is written for no BSON value.
    #[error("column {column} holds a value that stands for no BSON value")]
    Value {
        /// Its name.
        column: &'static str,
    },
    /// The residue cannot be read.
    #[error("column residue is not what this program writes")]
    Residue,
    /// A column disagrees with the residue, which holds the exact value of its field.
    #[error("column {column} disagrees with the exact value in column residue")]
    Disagreement {
        /// Its name.
        column: &'static str,
    },
    /// The row has another number of columns than the entity.
    #[error("the row has {found} columns")]
    Columns {
        /// How many it has.
        found: usize,
    },
}

impl Mapping {
    /// The document whose row has these columns, in the order of [`Mapping::columns`] (the stamp's two may be left
    /// out). Fields come in the order of the field table, those of the residue last.
    pub fn rebuild(&self, columns: &[Option<&[u8]>]) -> Result<RawDocumentBuf, RebuildError> {
        let fields = self.entity().fields;
        let shape = || RebuildError::Columns { found: columns.len() };
        let (id, rest) = columns.split_first().ok_or_else(shape)?;
        let (values, rest) = rest.split_at_checked(fields.len()).ok_or_else(shape)?;
        let residue = Residue::read(rest.first().copied().flatten())?;

        // Names, and what jsonb writes at greater length than BSON, are about as much as each other.
        let bytes = columns.iter().flatten().map(|column| column.len() + 16).sum();
        let mut builder = Builder::with_capacity(bytes);
        self.push_key(*id, &mut builder)?;
        for (field, value) in fields.iter().zip(values) {
            if let Some(bytes) = value.filter(|_| !residue.covers(field.name)) {
                let refused = RebuildError::Value { column: field.column };
                column::read(field.kind, bytes, field.name, builder.bytes()).ok_or(refused)?;
            }
        }
        residue.set.iter().for_each(|set| builder.bytes().extend_from_slice(content(set)));
        let document = builder.finish().map_err(|_| RebuildError::Residue)?;
        if residue.set.is_some() {
            self.agree(&document, &residue, columns)?;
        }
        Ok(document)
    }

    fn push_key(&self, id: Option<&[u8]>, builder: &mut Builder) -> Result<(), RebuildError> {
        let text = id.and_then(|id| std::str::from_utf8(id).ok()).unwrap_or_default();
        Ok(Key::from_text(text).push(self.entity().key, builder)?)
    }

    /// A field in the residue hides its column from the document, so a damaged column would not show there: the
    /// document must make the same row again.
    fn agree(
        &self,
        document: &RawDocument,
        residue: &Residue<'_>,
        columns: &[Option<&[u8]>],
    ) -> Result<(), RebuildError> {
        let mut tuple = Vec::new();
        let stamp = Stamp { epoch: 0, clock: 0 };
        self.encode(document, stamp, &mut tuple).map_err(|_| RebuildError::Residue)?;
        let again = tuple::columns(&tuple).ok_or(RebuildError::Residue)?;
        for (index, field) in (1..).zip(self.entity().fields) {
            let same = match (field.kind, columns[index], again[index]) {
                // What PostgreSQL prints has other spaces, and its fields in another order.
                (Kind::Json, Some(is), Some(must)) => !residue.covers(field.name) || column::is_same_json(is, must),
                (_, is, must) => is == must,
            };
            if !same {
                return Err(RebuildError::Disagreement { column: field.column });
            }
        }
        let last = self.entity().fields.len() + 1;
        if columns[last] == again[last] { Ok(()) } else { Err(RebuildError::Residue) }
    }
}

/// The elements of a document without its length and its NUL.
fn content(document: &RawDocument) -> &[u8] {
    &document.as_bytes()[4..document.as_bytes().len() - 1]
}

/// The residue of a row, read.
#[derive(Default)]
struct Residue<'a> {
    set: Option<&'a RawDocument>,
    names: Vec<&'a str>,
}

impl<'a> Residue<'a> {
    fn read(column: Option<&'a [u8]>) -> Result<Self, RebuildError> {
        let Some(bytes) = column else { return Ok(Self::default()) };
        let parsed = RawDocument::from_bytes(bytes).ok().and_then(Self::parse);
        parsed.filter(|residue| residue.set.is_some()).ok_or(RebuildError::Residue)
    }

    fn parse(document: &'a RawDocument) -> Option<Self> {
        let mut residue = Self::default();
        for element in elements(document) {
            let element = element.ok()?;
            let inside = element.document()?;
            match (element.name(), element.kind()) {
                (SET, ElementType::EmbeddedDocument) if residue.set.is_none() => residue.set = Some(inside),
                (UNSET, ElementType::Array) => {}
                _ => return None,
            }
            for inner in elements(inside) {
                let inner = inner.ok()?;
                residue.names.push(if element.name() == SET { inner.name() } else { inner.text()? });
            }
        }
        Some(residue)
    }

    /// Whether the residue, not the column, says what the document has as `name`.
    fn covers(&self, name: &str) -> bool {
        self.names.contains(&name)
    }
}
