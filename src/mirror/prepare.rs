//! From events to what is written: documents that events do not carry are looked up, everything is encoded, and cut into
//! parts of bounded size.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf, Timestamp, rawdoc};
use futures::TryStreamExt;
use mongodb::error::Error;
use tokio::sync::mpsc;

use super::fold::Fold;
use super::position::Position;
use super::stream::{Answer, Change, Event};
use super::{Fault, Result};
use crate::entity::Entity;
use crate::mapping::{Key, Mapping};
use crate::scan;
use crate::secondary::{Item, Level, State};
use crate::source::Source;
use crate::stamp::Stamp;

/// Bytes of documents in one transaction, aimed at.
const PART_BYTES: usize = 4 << 20;

/// Keys in one transaction at most.
const PART_ITEMS: usize = 2_000;

/// Documents that are looked up at once.
const LOOKED_UP: usize = 500;

/// What one transaction brings. No key is in two parts of the same fold, so it does not matter which comes first.
#[derive(Debug)]
pub struct Part {
    /// The keys.
    pub items: Vec<Item>,
    /// The same, encoded.
    pub level: Level,
    /// How many events are done with it.
    pub events: u64,
    /// Where the stream goes on, when this is the last part of what came before.
    pub position: Option<Position>,
}

/// Prepares what `answers` bring until there are no more. What comes while parts wait to be applied is folded together:
/// so batches grow under load, and single events go through at once.
pub async fn prepare(
    source: Source,
    epoch: i32,
    mut answers: mpsc::Receiver<Answer>,
    out: mpsc::Sender<Part>,
) -> Result<()> {
    while let Some(answer) = answers.recv().await {
        let mut fold = Fold::new(answer);
        while fold.has_room() {
            tokio::select! {
                biased;
                _permit = out.reserve() => break,
                answer = answers.recv() => match answer {
                    Some(answer) => fold.add(answer),
                    None => break,
                },
            }
        }
        let parts = Parts { epoch, items: Vec::new(), bytes: 0, events_left: fold.count, out: &out };
        if !parts.send_all(&source, fold).await? {
            return Ok(()); // the applier has failed, and says why
        }
    }
    Ok(())
}

/// The parts of one fold.
struct Parts<'a> {
    epoch: i32,
    items: Vec<Item>,
    bytes: usize,
    events_left: usize,
    out: &'a mpsc::Sender<Part>,
}

/// Nobody takes parts any more.
struct Closed;

impl Parts<'_> {
    /// Sends everything; whether somebody took it.
    async fn send_all(mut self, source: &Source, fold: Fold) -> Result<bool> {
        let position = fold.position.clone();
        let mut looks: HashMap<&str, (&'static Entity, Vec<Look>)> = HashMap::new();
        for Event { entity, key, time, change } in fold.into_events() {
            let state = match change {
                Change::Put(document) => State::Document(document),
                Change::Delete => State::Gone,
                Change::Look(id) => {
                    looks.entry(entity.name).or_insert_with(|| (entity, Vec::new())).1.push(Look { key, time, id });
                    continue;
                }
            };
            if self.push(entity, key, time, state).await.is_err() {
                return Ok(false);
            }
        }
        for (entity, looks) in looks.into_values() {
            for looks in looks.chunks(LOOKED_UP) {
                if self.look_up(source, entity, looks).await?.is_err() {
                    return Ok(false);
                }
            }
        }
        let events = self.events_left;
        Ok(self.send(events, Some(position)).await.is_ok())
    }

    async fn push(
        &mut self,
        entity: &'static Entity,
        key: Key,
        time: Timestamp,
        state: State,
    ) -> std::result::Result<(), Closed> {
        self.bytes += if let State::Document(document) = &state { document.as_bytes().len() } else { 0 };
        self.items.push(Item { entity, key, stamp: Stamp::of_oplog(self.epoch, time), state });
        if self.bytes < PART_BYTES && self.items.len() < PART_ITEMS {
            return Ok(());
        }
        let events = self.items.len().min(self.events_left);
        self.send(events, None).await
    }

    async fn send(&mut self, events: usize, position: Option<Position>) -> std::result::Result<(), Closed> {
        let items = std::mem::take(&mut self.items);
        self.bytes = 0;
        self.events_left -= events;
        let events = u64::try_from(events).unwrap_or_default();
        let part = Part { level: Level::of(&items, None), items, events, position };
        self.out.send(part).await.map_err(|_| Closed)
    }

    /// Reads the documents of `looks` as they are now. One that is not there any more is passed over: the event that
    /// deleted it comes later.
    async fn look_up(
        &mut self,
        source: &Source,
        entity: &'static Entity,
        looks: &[Look],
    ) -> Result<std::result::Result<(), Closed>> {
        let attempted = || format!("look up documents of {}", entity.name);
        let fault = |error: Error| Fault::source(attempted())(error);
        let times: HashMap<&str, Timestamp> = looks.iter().map(|look| (look.key.text(), look.time)).collect();
        let ids = looks.iter().map(|look| look.id.as_ref());
        // The member that answers may be another than the one the events came from, and behind it.
        let newest = looks.iter().map(|look| look.time).max();
        let command = scan::by_id(entity.name, ids, rawdoc! {}, newest).map_err(|error| fault(error.into()))?;
        let opened = source.database().run_raw_cursor_command(command).batch();
        let mut cursor = scan::deadline(opened).await.map_err(fault)?;
        let mapping = Mapping::new(entity);
        while let Some(batch) = scan::deadline(cursor.try_next()).await.map_err(fault)? {
            for document in scan::documents(&batch).map_err(fault)? {
                let key = mapping.key(document);
                let Some(time) = times.get(key.text()).copied() else { continue };
                if self.push(entity, key, time, found(document)).await.is_err() {
                    return Ok(Err(Closed));
                }
            }
        }
        Ok(Ok(()))
    }
}

fn found(document: &RawDocument) -> State {
    State::Document(document.to_owned())
}

/// An event whose document is to be looked up.
struct Look {
    key: Key,
    time: Timestamp,
    id: RawDocumentBuf,
}
