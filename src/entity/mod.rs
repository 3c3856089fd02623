//! What the scheduler keeps: eleven entities, each described once, in a file of its own.
//!
//! An entity's file holds the typed struct the scheduler uses and a `const` [`Entity`]: the table of its fields, from
//! which the engine (mapping, backfill, verification) does all its work. The engine walks [`ENTITIES`] and never names
//! one. A test holds files, list, structs and `information_schema` against each other, both ways.

pub mod audit;
pub mod execution_logs;
pub mod graph_jobs;
pub mod impact_snapshots;
pub mod locks;
pub mod policy_jobs;
pub mod run_summaries;
pub mod runs;
pub mod schedules;
pub mod triggers;
pub mod workers;

use bson::serde_helpers::datetime::FromChrono04DateTime;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Every entity, parents before children.
pub const ENTITIES: &[&Entity] = &[
    &schedules::ENTITY,
    &triggers::ENTITY,
    &runs::ENTITY,
    &graph_jobs::ENTITY,
    &policy_jobs::ENTITY,
    &impact_snapshots::ENTITY,
    &workers::ENTITY,
    &execution_logs::ENTITY,
    &locks::ENTITY,
    &run_summaries::ENTITY,
    &audit::ENTITY,
];

/// The entity of that name, if there is one.
pub fn named(name: &str) -> Option<&'static Entity> {
    ENTITIES.iter().copied().find(|entity| entity.name == name)
}

/// One kind of scheduler record.
#[derive(Debug)]
pub struct Entity {
    /// The name of the MongoDB collection and of the table in schema `scheduler`.
    pub name: &'static str,
    /// The BSON type of `_id` that stands in column `id` as it is.
    pub key: KeyType,
    /// Every field but `_id`, in the order of the table's columns.
    pub fields: &'static [Field],
    /// The indexes that serve the queries of the entity's repository in MongoDB, by field name. Those of the table stand in
    /// `migrations/`.
    pub indexes: &'static [&'static [&'static str]],
    /// Who writes it to MongoDB while PostgreSQL is the primary.
    pub owner: Owner,
}

/// Who writes the documents of an entity to the store that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The mirror alone: what anybody else writes there is a stray write.
    Mirror,
    /// The application itself, as long as MongoDB is there: its record stands, and PostgreSQL's follows. The field named
    /// never falls, wherever it was counted up.
    Application {
        /// An integer.
        rising: &'static str,
    },
}

impl Entity {
    /// The field of that name, if there is one; `_id` is none.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

impl PartialEq for Entity {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A typed struct of the scheduler and the entity that describes it.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The entity.
    const ENTITY: &'static Entity;

    /// What stands in column `id`.
    fn id(&self) -> String;

    /// Whose it is; a worker may be nobody's, and a lock always is.
    fn tenant(&self) -> Option<&str>;
}

/// The type of `_id` that an entity's own writers use. Keys of any other type are kept too, see [`crate::mapping::Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// A string, stored as it is.
    Text,
    /// An ObjectId, stored as 24 lower-case hexadecimal digits.
    ObjectId,
}

/// One field of a document and the column that holds it.
#[derive(Debug)]
pub struct Field {
    /// The field's name in the document.
    pub name: &'static str,
    /// The column's name. It is also accepted as a field name when `name` is absent (older writers used snake_case).
    pub column: &'static str,
    /// What the column holds.
    pub kind: Kind,
    /// Whether a row can do without it.
    pub presence: Presence,
    /// Further field names of older writers, accepted when `name` is absent.
    pub older: &'static [&'static str],
    /// The entity whose key it holds, where the scheduler never writes one without the other. Enforced once the move is
    /// over: while it lasts, rows come in any order.
    pub parent: Option<&'static str>,
}

impl Field {
    /// A field that a row can do without; the column is nullable.
    pub const fn new(name: &'static str, column: &'static str, kind: Kind) -> Self {
        Self { name, column, kind, presence: Presence::Optional, older: &[], parent: None }
    }

    /// A field without which there is no row: a document that lacks it is quarantined. The column is `not null`.
    pub const fn required(name: &'static str, column: &'static str, kind: Kind) -> Self {
        Self { name, column, kind, presence: Presence::Required, older: &[], parent: None }
    }

    /// Every field name that fills the column, the newest first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        [self.name, self.column].into_iter().chain(self.older.iter().copied())
    }

    /// The same field, which holds a key of `parent`.
    pub const fn refers_to(self, parent: &'static str) -> Self {
        Self { parent: Some(parent), ..self }
    }

    /// The same field with further names that older writers gave it.
    pub const fn older(self, older: &'static [&'static str]) -> Self {
        Self { older, ..self }
    }
}

/// Whether a row can do without a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The column is `not null`; a document whose value cannot fill it is quarantined.
    Required,
    /// The column is nullable.
    Optional,
}

/// What a column holds and which BSON value it gives back exactly (every other value goes to the residue too).
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `text collate "C"` that an index holds: a string of at most [`NAME_LIMIT`] bytes.
    Name,
    /// `text collate "C"` outside any index: a string of any length.
    Text,
    /// `text collate "C"` with a `check`: one word of a closed vocabulary.
    Word(&'static Vocabulary),
    /// `timestamptz`: a BSON date. ISO-8601 strings fill the column and stand in the residue.
    Instant,
    /// `integer`: a BSON Int32.
    Int32,
    /// `bigint`: a BSON Int64.
    Int64,
    /// `boolean`: a BSON boolean.
    Bool,
    /// `jsonb`: any BSON value. SQL null is an absent field, JSON null a null.
    Json,
}

impl Kind {
    /// The column's type as `information_schema.columns.data_type` gives it.
    pub const fn data_type(self) -> &'static str {
        match self {
            Self::Name | Self::Text | Self::Word(_) => "text",
            Self::Instant => "timestamp with time zone",
            Self::Int32 => "integer",
            Self::Int64 => "bigint",
            Self::Bool => "boolean",
            Self::Json => "jsonb",
        }
    }
}

/// Longest [`Kind::Name`], in bytes. Three of them and a key fit an index entry (2,704 bytes) together.
pub const NAME_LIMIT: usize = 384;

/// Longest text of a key in column `id`, in bytes. Documents with longer keys are quarantined.
pub const KEY_LIMIT: usize = 1_400;

/// The words of a closed vocabulary.
#[derive(Debug)]
pub struct Vocabulary {
    /// The words that the column's `check` allows.
    pub words: &'static [&'static str],
    /// Older spellings and the word each stands for.
    pub older: &'static [(&'static str, &'static str)],
}

impl Vocabulary {
    /// The word that stands in the column for `spelling`; nothing when the vocabulary does not know it.
    pub fn word(&self, spelling: &str) -> Option<&'static str> {
        let older = || self.older.iter().find(|(old, _)| *old == spelling).map(|(_, word)| *word);
        self.words.iter().copied().find(|word| *word == spelling).or_else(older)
    }

    /// `word` and its older spellings.
    pub fn spellings(&self, word: &'static str) -> impl Iterator<Item = &'static str> {
        let older = self.older.iter().filter(move |(_, newer)| *newer == word).map(|(old, _)| *old);
        std::iter::once(word).chain(older)
    }
}

/// A moment in a typed struct: a BSON date in the document, so milliseconds is all that it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(#[serde(with = "FromChrono04DateTime")] pub DateTime<Utc>);

/// Documents of anybody's making inside a typed struct: as they are, also where a key looks like extended JSON (`$date`),
/// which serde's way to a [`bson::Document`] would read as the value that it stands for.
mod exact {
    use bson::{Document, RawDocumentBuf};
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::mapping::raw::elements;

    /// Levels of documents inside each other that the conversion has the stack for.
    const LEVELS: usize = 100;

    pub fn serialize<S: Serializer>(document: &Document, serializer: S) -> Result<S::Ok, S::Error> {
        RawDocumentBuf::try_from(document).map_err(S::Error::custom)?.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Document, D::Error> {
        let raw = RawDocumentBuf::deserialize(deserializer)?;
        let is_shallow = elements(&raw).all(|element| element.is_ok_and(|element| element.is_within(LEVELS)));
        if !is_shallow {
            return Err(D::Error::custom(format!("it is nested deeper than {LEVELS} levels, or is no document")));
        }
        Document::try_from(raw.as_ref()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
