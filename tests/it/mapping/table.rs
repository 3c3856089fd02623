//! An entity's table as the judge: rows go in by COPY, come back by the binary protocol, and leave no trace.

use scheduler_bridge::entity::Entity;
use scheduler_bridge::mapping::{Mapping, tuple};
use scheduler_bridge::stamp::Stamp;
use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{AssertSqlSafe, Row, ValueRef};

use super::raw;
use super::regular;

/// The stamp of every row.
pub const STAMP: Stamp = Stamp { epoch: 3, clock: 0x0102_0304_0506_0708 };

/// A table that every exchange leaves empty.
pub struct Table<'a> {
    pub pool: &'a PgPool,
    pub mapping: Mapping,
    /// The names of all columns, as a list in SQL.
    pub columns: String,
}

/// A document that becomes a row.
pub struct Encoded {
    pub document: Vec<u8>,
    pub tuple: Vec<u8>,
    pub key: String,
    pub irregular: bool,
}

/// How many documents became rows and how many were refused.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub rows: usize,
    pub with_residue: usize,
    pub refused: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.with_residue += other.with_residue;
        self.refused += other.refused;
    }
}

impl<'a> Table<'a> {
    pub fn new(pool: &'a PgPool, entity: &'static Entity) -> Self {
        let mapping = Mapping::new(entity);
        let columns = mapping.columns().collect::<Vec<_>>().join(", ");
        Self { pool, mapping, columns }
    }

    pub fn name(&self) -> &'static str {
        self.mapping.entity().name
    }

    /// Copies the rows into the table of an open transaction.
    pub async fn copy(&self, connection: &mut PgConnection, rows: &[Encoded]) -> sqlx::Result<()> {
        let statement = format!("copy scheduler.{} ({}) from stdin (format binary)", self.name(), self.columns);
        let mut copy = connection.copy_in_raw(&statement).await?;
        let tuples = rows.iter().map(|row| row.tuple.as_slice());
        let stream: Vec<u8> =
            [tuple::HEADER].into_iter().chain(tuples).chain([tuple::TRAILER]).flatten().copied().collect();
        copy.send(stream).await?;
        copy.finish().await?;
        Ok(())
    }

    /// What PostgreSQL makes of the rows.
    async fn exchange(&self, rows: &[Encoded]) -> sqlx::Result<Vec<PgRow>> {
        let mut transaction = self.pool.begin().await?;
        self.copy(&mut transaction, rows).await?;
        let query = format!("select {} from scheduler.{}", self.columns, self.name());
        let stored = sqlx::query(AssertSqlSafe(query)).fetch_all(&mut *transaction).await?;
        transaction.rollback().await?;
        Ok(stored)
    }

    /// Sends documents there and back and says what went wrong, if anything did. Of several documents with one `_id` only
    /// the first goes.
    pub async fn check(&self, documents: &[Vec<u8>]) -> Result<Tally, String> {
        let mut keys = std::collections::HashMap::new();
        let (mut rows, mut tally) = (Vec::new(), Tally::default());
        for document in documents {
            let (key, outcome) = encode(self.mapping, document)?;
            let id = id_of(document);
            match keys.insert(key.clone(), id.clone()) {
                Some(other) if other == id && id.is_some() => continue,
                Some(other) => return Err(format!("{other:?} and {id:?} have one key: {key}")),
                None => {}
            }
            match outcome {
                Some(row) => rows.push(row),
                None => tally.refused += 1,
            }
        }
        let stored = self.exchange(&rows).await.map_err(|error| format!("PostgreSQL: {error}"))?;
        let mut stored: std::collections::HashMap<String, PgRow> =
            stored.into_iter().map(|row| (row.get::<String, _>(0), row)).collect();
        tally.rows = rows.len();
        tally.with_residue = rows.iter().filter(|row| row.irregular).count();
        for row in &rows {
            let stored = stored.remove(&row.key).ok_or_else(|| format!("no row has the key {}", row.key))?;
            compare(self.mapping, row, &columns(&stored))?;
        }
        if stored.is_empty() { Ok(tally) } else { Err(format!("rows of nothing: {:?}", stored.keys())) }
    }
}

/// The bytes of each column, as they came.
pub fn columns(row: &PgRow) -> Vec<Option<&[u8]>> {
    let column = |index| {
        let value = row.try_get_raw(index).expect("a column");
        (!value.is_null()).then(|| value.as_bytes().expect("bytes"))
    };
    (0..row.len()).map(column).collect()
}

fn id_of(document: &[u8]) -> Option<raw::Value> {
    raw::fields(document).into_iter().find(|(name, _)| name == b"_id").map(|(_, id)| id)
}

/// Encodes one document and checks what can be known without PostgreSQL: its key, and that a refusal has a reason and leaves
/// nothing behind. Gives the key, and the row unless the document was refused.
pub fn encode(mapping: Mapping, document: &[u8]) -> Result<(String, Option<Encoded>), String> {
    let parsed = bson::RawDocument::from_bytes(document).map_err(|error| format!("no document: {error}"))?;
    let before = b"the end of another row".to_vec();
    let mut out = before.clone();
    let outcome = mapping.encode(parsed, STAMP, &mut out);
    let key = match &outcome {
        Ok(encoded) => &encoded.key,
        Err(refusal) => &refusal.key,
    };
    check_key(mapping, document, key)?;
    let text = key.text().to_owned();
    match outcome {
        Err(refusal) if refusal.reason.is_empty() => Err("refused without a reason".to_owned()),
        Err(_) if out != before => Err("a refused document left something behind".to_owned()),
        Err(_) => Ok((text, None)),
        Ok(encoded) => {
            let tuple = out.strip_prefix(before.as_slice()).ok_or("the row before was changed")?.to_vec();
            let irregular = !encoded.irregular.is_empty();
            Ok((text.clone(), Some(Encoded { document: document.to_vec(), tuple, key: text, irregular })))
        }
    }
}

fn check_key(mapping: Mapping, document: &[u8], key: &scheduler_bridge::mapping::Key) -> Result<(), String> {
    use scheduler_bridge::entity::KEY_LIMIT;
    let parsed = bson::RawDocument::from_bytes(document).map_err(|error| format!("no document: {error}"))?;
    if key.text().len() > KEY_LIMIT {
        return Err(format!("the key has {} bytes", key.text().len()));
    }
    if mapping.key(parsed) != *key {
        return Err(format!("the key alone is {}, with the row {}", mapping.key(parsed).text(), key.text()));
    }
    let Some(id) = id_of(document).filter(|_| !key.is_over_limit()) else { return Ok(()) };
    let back = key.document(mapping.entity().key).map_err(|error| error.to_string())?;
    let same = back.as_bytes() == raw::document(&[(b"_id".to_vec(), id)]);
    if same { Ok(()) } else { Err(format!("the key {} gives back {back:?}", key.text())) }
}

/// Whether the columns that came back are the document's.
fn compare(mapping: Mapping, row: &Encoded, columns: &[Option<&[u8]>]) -> Result<(), String> {
    let (stamp, residue) = (&columns[columns.len() - 2..], columns.len() - 3);
    if stamp != [Some(STAMP.epoch.to_be_bytes().as_slice()), Some(STAMP.clock.to_be_bytes().as_slice())] {
        return Err(format!("another stamp: {stamp:?}"));
    }
    if columns[residue].is_some() != row.irregular {
        return Err("whether there is a residue was told wrongly".to_owned());
    }
    if regular::verdict(mapping.entity(), &row.document).is_some_and(|regular| regular == row.irregular) {
        return Err(format!("the residue {:?} is not what the document needs", columns[residue]));
    }
    let rebuilt = mapping.rebuild(columns).map_err(|error| scheduler_bridge::error_text(&error))?;
    if raw::without_order(rebuilt.as_bytes()) != raw::without_order(&row.document) {
        return Err(format!("came back as {}", raw::show(rebuilt.as_bytes())));
    }
    let without: Vec<_> = columns.iter().enumerate().map(|(index, is)| is.filter(|_| index != residue)).collect();
    let needless =
        |rebuilt: bson::RawDocumentBuf| raw::without_order(rebuilt.as_bytes()) == raw::without_order(&row.document);
    match row.irregular && mapping.rebuild(&without).is_ok_and(needless) {
        true => Err("the columns alone give the document back, and yet it has a residue".to_owned()),
        false => Ok(()),
    }
}
