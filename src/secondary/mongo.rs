//! MongoDB as the secondary.
//!
//! A document has no room for a stamp of the bridge's: it stands beside it, in [`STAMPS`], and is read and written in the
//! transaction that writes the document. Two writers of one key meet there, since both write its stamp: MongoDB ends one
//! of the transactions, and that one begins again with what the other has left.

use std::collections::HashMap;
use std::time::Duration;

use bson::raw::{CString, cstr};
use bson::spec::ElementType;
use bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use futures::TryStreamExt;
use mongodb::error::Error;
use mongodb::{Client, ClientSession, Database};

use super::{Item, State};
use crate::mapping::raw::{self, Builder, Element};
use crate::stamp::Stamp;
use crate::store::Address;
use crate::store::mongo::STAMPS;
use crate::store::mongo::transaction::{self, past_the_dead};

/// Bytes of documents of one command, aimed at. A command ends at 16 MiB and a little, so a larger document goes alone.
const COMMAND_BYTES: usize = 8 << 20;

/// The pause after a transaction that met another one; half of it is random, so that the two do not meet again.
const PAUSE_MILLIS: u64 = 20;

/// The server's word for an insertion that came second.
const DUPLICATE_KEY: i32 = 11_000;

/// The scheduler's collections, as what follows.
#[derive(Debug, Clone)]
pub struct MongoSecondary {
    client: Client,
    database: Database,
}

/// Why a write was not made. None of its transaction was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// MongoDB failed.
    #[error("could not {attempted}")]
    Driver {
        /// What was attempted.
        attempted: String,
        /// The driver's answer.
        source: Box<Error>,
    },
    /// MongoDB does not take it.
    #[error("MongoDB refused {address}: {message} (code {code})")]
    Refused {
        /// The key.
        address: Address,
        /// The server's words.
        message: String,
        /// The server's code.
        code: i32,
    },
    /// The key is one-way: there is no `_id` to write.
    #[error("{address} stands for no _id")]
    Key {
        /// The key.
        address: Address,
    },
    /// A stamp that this program does not write.
    #[error("the stamp of {address} in {STAMPS} cannot be read")]
    Stamp {
        /// The key.
        address: Address,
    },
}

impl WriteError {
    fn driver(attempted: impl Into<String>) -> impl FnOnce(Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Driver { attempted, source: Box::new(source) }
    }

    /// Whether another transaction was in the way.
    fn is_met(&self) -> bool {
        match self {
            Self::Driver { source, .. } => transaction::is_over(source),
            Self::Refused { code, .. } => *code == DUPLICATE_KEY,
            Self::Key { .. } | Self::Stamp { .. } => false,
        }
    }
}

type Result<T> = std::result::Result<T, WriteError>;

/// A write command, and its field for the statements.
type Command = [&'static str; 2];

const UPDATE: Command = ["update", "updates"];
const DELETE: Command = ["delete", "deletes"];
const INSERT: Command = ["insert", "documents"];

/// A statement of a write command and the key it is for.
struct Step<'a> {
    item: &'a Item,
    statement: RawDocumentBuf,
}

impl MongoSecondary {
    /// The collections of `database`.
    pub fn new(client: Client, database: Database) -> Self {
        Self { client, database }
    }

    /// Brings the keys of `items`, of which each stands there once, to what their items say, in one transaction, each unless
    /// its stamp says that something as new is there already.
    ///
    /// Begins again for as long as other transactions are in the way: give it a deadline. Dropping the future is safe: the
    /// transaction happens or not, and repeating it does no harm.
    pub async fn write(&self, items: &[Item]) -> Result<()> {
        let mut session = self.client.start_session().await.map_err(WriteError::driver("begin a session"))?;
        past_the_dead(&self.client, async {
            loop {
                match self.attempt(items, &mut session).await {
                    Err(error) if error.is_met() => tokio::time::sleep(pause()).await,
                    done => return done,
                }
            }
        })
        .await
    }

    async fn attempt(&self, items: &[Item], session: &mut ClientSession) -> Result<()> {
        transaction::begin(session).await.map_err(WriteError::driver("begin a transaction"))?;
        if let Err(error) = self.steps(items, session).await {
            // The server ends what cannot be aborted; the first error is the one to tell.
            drop(session.abort_transaction().await);
            return Err(error);
        }
        transaction::commit(session).await.map_err(WriteError::driver(format!("commit {} keys", items.len())))
    }

    async fn steps(&self, items: &[Item], session: &mut ClientSession) -> Result<()> {
        let stored = self.stamps(items, session).await?;
        let is_older = |item: &&Item| stored.get(&id_of(item)).is_none_or(|stored| *stored < item.stamp);
        let mut items: Vec<&Item> = items.iter().filter(is_older).collect();
        items.sort_unstable_by_key(|item| (item.entity.name, &item.key));
        // First of all, so that whoever meets another writer notices before documents travel.
        self.run(UPDATE, STAMPS, items.iter().map(|item| Ok(stamped(item))), session).await?;
        for items in items.chunk_by(|one, other| one.entity == other.entity) {
            self.collection(items, session).await?;
        }
        fail::fail_point!("mongo::before-commit");
        Ok(())
    }

    /// Writes documents of one collection.
    async fn collection(&self, items: &[&Item], session: &mut ClientSession) -> Result<()> {
        let name = items[0].entity.name;
        let gone = items.iter().filter(|item| kept(item).is_none_or(is_only_inserted));
        self.run(DELETE, name, gone.map(|item| removed(item)), session).await?;
        let documents = |inserted| {
            let documents = items.iter().filter_map(|item| Some((*item, kept(item)?)));
            documents.filter(move |(_, document)| is_only_inserted(document) == inserted)
        };
        self.run(UPDATE, name, documents(false).map(|(item, document)| replaced(item, document)), session).await?;
        let whole = documents(true).map(|(item, document)| Ok(Step { item, statement: document.clone() }));
        self.run(INSERT, name, whole, session).await
    }

    /// Runs a write command, or as many as it takes.
    async fn run<'a>(
        &self,
        command: Command,
        collection: &str,
        steps: impl Iterator<Item = Result<Step<'a>>>,
        session: &mut ClientSession,
    ) -> Result<()> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        for step in steps {
            let step = step?;
            let size = step.statement.as_bytes().len();
            if bytes + size > COMMAND_BYTES && !part.is_empty() {
                self.command(command, collection, std::mem::take(&mut part), session).await?;
                bytes = 0;
            }
            bytes += size;
            part.push(step);
        }
        if part.is_empty() { Ok(()) } else { self.command(command, collection, part, session).await }
    }

    async fn command(
        &self,
        [command, field]: Command,
        collection: &str,
        steps: Vec<Step<'_>>,
        session: &mut ClientSession,
    ) -> Result<()> {
        let mut statements = RawArrayBuf::new();
        steps.iter().for_each(|step| statements.push(&*step.statement));
        let attempted = || format!("{command} {} keys in {collection}", steps.len());
        let name = |name: &str| CString::try_from(name).map_err(|error| WriteError::driver(attempted())(error.into()));
        let mut raw = RawDocumentBuf::new();
        raw.append(name(command)?, collection);
        raw.append(name(field)?, statements);
        let reply = self.database.run_raw_command(raw).session(session).await;
        let reply = reply.map_err(WriteError::driver(attempted()))?;
        // The command succeeds also when statements were refused.
        let Some(refused) = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document()) else {
            return Ok(());
        };
        let at = refused.get_i32("index").ok().and_then(|index| usize::try_from(index).ok()).unwrap_or_default();
        let (message, code) = (refused.get_str("errmsg").unwrap_or_default(), refused.get_i32("code"));
        let address = address(steps.get(at).unwrap_or(&steps[0]).item);
        Err(WriteError::Refused { address, message: message.to_owned(), code: code.unwrap_or_default() })
    }

    /// The stamps that are stored, by their ids.
    async fn stamps(&self, items: &[Item], session: &mut ClientSession) -> Result<HashMap<(String, String), Stamp>> {
        let failed = || WriteError::driver(format!("read the stamps of {} keys", items.len()));
        let ids: Vec<Bson> = items.iter().map(|item| stamp_id(item).into()).collect();
        let stamps = self.database.collection::<Document>(STAMPS);
        let mut found = stamps.find(doc! { "_id": { "$in": ids } }).session(&mut *session).await.map_err(failed())?;
        let found: Vec<Document> = found.stream(session).try_collect().await.map_err(failed())?;
        found.iter().map(|document| read(document).ok_or_else(|| unreadable(document))).collect()
    }
}

fn pause() -> Duration {
    let half = PAUSE_MILLIS / 2;
    Duration::from_millis(half + u64::from(uuid::Uuid::new_v4().as_fields().1) % half)
}

fn address(item: &Item) -> Address {
    Address { entity: item.entity, key: item.key.clone() }
}

fn id_of(item: &Item) -> (String, String) {
    (item.entity.name.to_owned(), item.key.text().to_owned())
}

/// As [`crate::store::MongoStore`] names its tombstones.
fn stamp_id(item: &Item) -> Document {
    doc! { "collection": item.entity.name, "id": item.key.text() }
}

/// What a write leaves in [`STAMPS`]; it takes the place of a tombstone of MongoDB's own.
fn stamped(item: &Item) -> Step<'_> {
    let id = rawdoc! { "collection": item.entity.name, "id": item.key.text() };
    let Stamp { epoch, clock } = item.stamp;
    let mut stamp = rawdoc! { "_id": id.clone(), "epoch": epoch, "clock": clock };
    if kept(item).is_none() {
        stamp.append(cstr!("deleted"), true);
    }
    Step { item, statement: rawdoc! { "q": { "_id": id }, "u": stamp, "upsert": true } }
}

/// A stamp with its id. A tombstone of MongoDB's own has an oplog time; whichever of the two was written last stands alone
/// or, when it is that one, beside a clock of an earlier epoch.
fn read(document: &Document) -> Option<((String, String), Stamp)> {
    let id = document.get_document("_id").ok()?;
    let id = (id.get_str("collection").ok()?.to_owned(), id.get_str("id").ok()?.to_owned());
    let epoch = document.get_i32("epoch").ok()?;
    let stamp = match document.get_timestamp("at") {
        Ok(time) => Stamp::of_oplog(epoch, time),
        Err(_) => Stamp { epoch, clock: document.get_i64("clock").ok()? },
    };
    Some((id, stamp))
}

fn unreadable(document: &Document) -> WriteError {
    let id = document.get_document("_id").ok();
    let part = |name| id.and_then(|id| id.get_str(name).ok()).unwrap_or_default();
    let entity = crate::entity::named(part("collection")).unwrap_or(crate::entity::ENTITIES[0]);
    WriteError::Stamp { address: Address::new(entity, part("id")) }
}

fn kept(item: &Item) -> Option<&RawDocumentBuf> {
    match &item.state {
        State::Document(document) => Some(document),
        State::Gone => None,
    }
}

/// Whether the document can only be inserted, in the place of the one before.
///
/// That is so when a field begins with `$`, at any depth: MongoDB takes a replacement with such a field for an update by
/// operators. What looks like a name behind a type byte is taken for one, which does no harm. And it is so when the `_id` is
/// not UTF-8: the answer to an upsert repeats the `_id`, and the driver then cannot read the answer.
fn is_only_inserted(document: &RawDocumentBuf) -> bool {
    let is_kind = |byte: u8| matches!(byte, 1..=0x13 | 0x7f | 0xff);
    let has_dollars = document.as_bytes().windows(2).any(|pair| pair[1] == b'$' && is_kind(pair[0]));
    has_dollars || raw::first(document).is_none_or(|id| !is_text(&id))
}

/// Whether every text in the `_id` is UTF-8, as far as a look at the bytes tells.
fn is_text(id: &Element<'_>) -> bool {
    match id.kind() {
        ElementType::String => id.text().is_some(),
        ElementType::EmbeddedDocument | ElementType::JavaScriptCode | ElementType::Symbol => {
            id.value_bytes().is_ascii()
        }
        ElementType::JavaScriptCodeWithScope | ElementType::DbPointer => false,
        _ => true,
    }
}

/// The filter `{_id: {$eq: …}}`: the `_id` is data, whatever it contains, and need not be UTF-8.
fn filter(item: &Item) -> Result<RawDocumentBuf> {
    let refused = || WriteError::Key { address: address(item) };
    let id = item.key.document(item.entity.key).map_err(|_| refused())?;
    let id = raw::first(&id).ok_or_else(refused)?;
    let mut equal = Builder::default();
    equal.push(id.kind(), "$eq", id.value_bytes());
    Ok(rawdoc! { "_id": equal.finish().map_err(|_| refused())? })
}

fn removed(item: &Item) -> Result<Step<'_>> {
    Ok(Step { item, statement: rawdoc! { "q": filter(item)?, "limit": 1 } })
}

fn replaced<'a>(item: &'a Item, document: &RawDocumentBuf) -> Result<Step<'a>> {
    Ok(Step { item, statement: rawdoc! { "q": filter(item)?, "u": document.clone(), "upsert": true } })
}
