//! The change stream of the scheduler's collections.
//!
//! The server leaves out what makes events large: the description of an update, and documents over [`LARGE`]; a document
//! that is left out, or that the server does not know any more, is looked up by key when its event is applied. So no event
//! reaches 16 MiB, on any version of the server (`$changeStreamSplitLargeEvent` is there from 6.0.9 on only), and one
//! path serves collections with and without post-images. A looked-up document may be newer than its event: the events in
//! between come later, and the last of them stands.

use std::pin::Pin;
use std::time::Duration;

use bson::{Document, RawArrayBuf, RawDocument, RawDocumentBuf, Timestamp, doc, rawdoc};
use futures::StreamExt;
use mongodb::error::{Error, ErrorKind};
use mongodb::options::CursorType;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::position::{Anchors, Held, Position};
use super::{Fault, MirrorError, Result};
use crate::anchor;
use crate::entity::{self, ENTITIES, Entity};
use crate::mapping::{Key, raw};
use crate::scan;
use crate::source::{self, Source};
use crate::stamp::{clock, time_of};
use crate::store::mongo::STAMPS;

/// The largest document that an event carries, in bytes.
const LARGE: i32 = 8 << 20;

/// Events of one answer at most.
const BATCH: u32 = 2_000;

/// An answer with fewer events shows that there were no more; one of large events may have fewer all the same.
const FULL: usize = 200;

/// How long the server waits for an event before it answers that there is none.
const AWAIT: Duration = Duration::from_millis(500);

/// What happened to one key.
#[derive(Debug, Clone)]
pub struct Event {
    /// Whose key.
    pub entity: &'static Entity,
    /// The key.
    pub key: Key,
    /// When.
    pub time: Timestamp,
    /// What.
    pub change: Change,
}

/// What an event did to its key.
#[derive(Debug, Clone)]
pub enum Change {
    /// It holds this document.
    Put(RawDocumentBuf),
    /// It holds a document that the event does not carry: `{_id: …}` finds it.
    Look(RawDocumentBuf),
    /// It holds nothing.
    Delete,
}

/// A key whose document the drain wrote, in the transaction of that time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamped {
    /// When.
    pub time: Timestamp,
    /// The collection.
    pub collection: String,
    /// The key.
    pub id: String,
}

/// One answer of the server.
#[derive(Debug)]
pub struct Answer {
    /// The events, in order.
    pub events: Vec<Event>,
    /// Where the stream goes on after them.
    pub position: Position,
    /// The last place up to there that does not part the events of one transaction.
    pub whole: Position,
    /// The newest time that the server knew of.
    pub now: Option<Timestamp>,
    /// How many marks there were besides: whoever wrote one waits for the position to pass it.
    pub marks: usize,
    /// The keys of which MongoDB was told a stamp by the drain.
    pub stamped: Vec<Stamped>,
    /// Whether the server had no more events when it answered.
    pub is_last: bool,
    /// What happened behind the events, that no event tells in full.
    pub end: Option<End>,
}

/// A collection that was dropped or renamed, or all of them.
#[derive(Debug)]
pub struct End {
    /// Of whose documents nobody knows what became.
    pub whose: Vec<&'static Entity>,
    /// When.
    pub time: Timestamp,
    /// Where the stream would go on; nowhere when it was invalidated.
    pub behind: Option<RawDocumentBuf>,
    /// What happened.
    pub error: MirrorError,
}

/// An open change stream.
pub struct Stream {
    cursor: Pin<Box<RawBatchCursor>>,
    position: Position,
    /// See [`Answer::whole`]. A transaction may have more events than one answer.
    whole: Position,
    anchors: Anchors,
}

impl Stream {
    /// Opens the stream at `position`, without what `anchors` cover. Needs the privilege `changeStream` on the database.
    ///
    /// # Errors
    /// [`Fault::Ended`] when the server's history does not reach back that far.
    pub async fn open(source: &Source, held: Held) -> Result<Self> {
        let Held { position, anchors, .. } = held;
        let attempted = "open the change stream";
        let fault = |error| fault(attempted, error);
        let images = if source.has_post_images() { "whenAvailable" } else { "default" };
        let pipeline = pipeline(&position, images).map_err(|error| fault(error.into()))?;
        let command = rawdoc! { "aggregate": 1, "pipeline": pipeline, "cursor": { "batchSize": 0 } };
        let opened = source.database().run_raw_cursor_command(command).cursor_type(CursorType::TailableAwait);
        let opened = opened.batch_size(BATCH).max_time(AWAIT).batch();
        let cursor = scan::deadline(opened).await.map_err(fault)?;
        Ok(Self { cursor: Box::pin(cursor), whole: position.clone(), position, anchors })
    }

    /// The next answer; one without events when nothing happened for a while. Not cancel-safe: a dropped call loses an
    /// answer.
    pub async fn next(&mut self) -> Result<Answer> {
        let attempted = "read the change stream";
        let answer = scan::deadline(async { self.cursor.next().await.transpose() }).await;
        let batch = answer.map_err(|error| fault(attempted, error))?;
        // The server ends the cursor behind an event that invalidates the stream.
        let batch = batch.ok_or(Fault::Ended(MirrorError::Invalidated))?;
        self.answer(&batch).map_err(|error| fault(attempted, error))
    }

    fn answer(&mut self, batch: &RawBatch) -> std::result::Result<Answer, Error> {
        let now = batch.as_raw_document().get_timestamp("operationTime").ok();
        let documents = scan::documents(batch)?;
        let is_last = documents.len() < FULL;
        let (mut events, mut stamped, mut marks, mut end) = (Vec::new(), Vec::new(), 0, None);
        let mut is_whole = true;
        for document in documents {
            let time = time(document)?;
            if clock(time) != self.position.clock {
                self.whole = self.position.clone();
            }
            is_whole = false;
            match read(document, time)? {
                Read::Event(event) => events.push(event),
                Read::Stamped(key) => stamped.push(key),
                // Nothing else is in its transaction.
                Read::Mark => (marks, is_whole) = (marks + 1, true),
                Read::End(happened) if !self.anchors.cover(&happened.whose, time) => {
                    end = Some(happened);
                    break;
                }
                Read::End(_) | Read::Other => {}
            }
            self.position = Position { token: Some(token(document)?), clock: clock(time) };
        }
        if end.is_none()
            && let Ok(token) =
                batch.as_raw_document().get_document("cursor").and_then(|c| c.get_document("postBatchResumeToken"))
        {
            self.position.token = Some(token.to_owned());
        }
        let position = self.position.clone();
        if is_whole {
            self.whole = position.clone();
        }
        let whole = self.whole.clone();
        Ok(Answer { events, position, whole, now, marks, stamped, is_last, end })
    }
}

/// From where, which events, and what of them. The events are the same in both directions: a place behind one that this
/// filter leaves out is no place for the server, and whoever follows next may begin there.
fn pipeline(position: &Position, images: &str) -> bson::error::Result<RawArrayBuf> {
    // Documents after an update only where the collection keeps them: the server would look each of the others up by itself.
    let mut options = doc! { "fullDocument": images };
    match &position.token {
        Some(token) => options.insert("resumeAfter", Document::try_from(token.as_ref())?),
        None => options.insert("startAtOperationTime", time_of(position.clock)),
    };
    let names: Vec<&str> = ENTITIES.iter().map(|entity| entity.name).chain([anchor::COLLECTION, STAMPS]).collect();
    let of_us = doc! { "$or": [
        { "ns.coll": { "$in": &names } }, { "to.coll": { "$in": &names } },
        { "operationType": { "$in": ["dropDatabase", "invalidate"] } },
    ] };
    let is_large = doc! { "$gt": [{ "$bsonSize": "$fullDocument" }, LARGE] };
    let small = doc! { "fullDocument": { "$cond": [is_large, "$$REMOVE", "$fullDocument"] } };
    let needed = doc! {
        "operationType": 1, "ns": 1, "to": 1, "documentKey._id": 1, "clusterTime": 1, "fullDocument": 1,
    };
    let stages = [
        doc! { "$changeStream": options },
        doc! { "$match": of_us },
        doc! { "$set": small },
        doc! { "$project": needed },
    ];
    let mut pipeline = RawArrayBuf::new();
    for stage in stages {
        pipeline.push(RawDocumentBuf::try_from(&stage)?);
    }
    Ok(pipeline)
}

/// What a document of the stream says.
enum Read {
    /// A key changed.
    Event(Event),
    /// The drain has written this key's document.
    Stamped(Stamped),
    /// The bridge's own anchor.
    Mark,
    /// Nothing that concerns a row: an event of a kind that changes no document.
    Other,
    /// The stream cannot go on unless collections are copied anew from a later anchor.
    End(End),
}

fn read(event: &RawDocument, time: Timestamp) -> std::result::Result<Read, Error> {
    let kind = event.get_str("operationType").map_err(|_| malformed("operationType"))?;
    let collection = |field| event.get_document(field).ok().and_then(|ns| ns.get_str("coll").ok()).unwrap_or_default();
    let (from, to) = (collection("ns"), collection("to"));
    let end = |whose, error| {
        let behind = if matches!(error, MirrorError::Invalidated) { None } else { Some(token(event)?) };
        Ok(Read::End(End { whose, time, behind, error }))
    };
    let entity = entity::named(from);
    match (kind, entity) {
        ("drop", Some(entity)) => end(vec![entity], MirrorError::Dropped { collection: from.to_owned() }),
        ("rename", _) => {
            let whose: Vec<_> = [from, to].into_iter().filter_map(entity::named).collect();
            end(whose, MirrorError::Renamed { from: from.to_owned(), to: to.to_owned() })
        }
        ("dropDatabase" | "invalidate", _) => end(ENTITIES.to_vec(), MirrorError::Invalidated),
        ("insert" | "replace" | "update" | "delete", Some(entity)) => {
            let id = event.get_document("documentKey").map_err(|_| malformed("documentKey"))?;
            let key =
                raw::find(id, "_id").map(|id| Key::of(&id, entity.key)).ok_or_else(|| malformed("documentKey"))?;
            let change = match event.get_document("fullDocument") {
                _ if kind == "delete" => Change::Delete,
                Ok(document) => Change::Put(document.to_owned()),
                Err(_) => Change::Look(scan::id_of(id).ok_or_else(|| malformed("documentKey"))?),
            };
            Ok(Read::Event(Event { entity, key, time, change }))
        }
        ("insert" | "replace", None) if from == STAMPS => Ok(stamped(event, time).map_or(Read::Other, Read::Stamped)),
        (_, None) if from == anchor::COLLECTION => Ok(Read::Mark),
        _ => Ok(Read::Other),
    }
}

/// What the drain leaves has a clock; a tombstone of MongoDB's own, which a late process may leave, has none.
fn stamped(event: &RawDocument, time: Timestamp) -> Option<Stamped> {
    let stamp = event.get_document("fullDocument").ok()?;
    stamp.get_i64("clock").ok()?;
    let id = stamp.get_document("_id").ok()?;
    let part = |name: &str| id.get_str(name).ok().map(str::to_owned);
    Some(Stamped { time, collection: part("collection")?, id: part("id")? })
}

fn time(event: &RawDocument) -> std::result::Result<Timestamp, Error> {
    event.get_timestamp("clusterTime").map_err(|_| malformed("clusterTime"))
}

fn token(event: &RawDocument) -> std::result::Result<RawDocumentBuf, Error> {
    event.get_document("_id").map(ToOwned::to_owned).map_err(|_| malformed("_id"))
}

fn malformed(field: &str) -> Error {
    ErrorKind::Custom(std::sync::Arc::new(format!("an event of the change stream has no {field}"))).into()
}

/// The server's word that its history does not reach back to where the stream is to go on.
fn fault(attempted: &str, error: Error) -> Fault {
    // CappedPositionLost (an open cursor that was overtaken), InvalidResumeToken, ChangeStreamFatalError,
    // ChangeStreamHistoryLost. Source: the server's error_codes.yml.
    match source::code(&error) {
        Some(136 | 260 | 280 | 286) => Fault::Ended(MirrorError::HistoryLost { source: error.into() }),
        _ => Fault::source(attempted)(error),
    }
}
