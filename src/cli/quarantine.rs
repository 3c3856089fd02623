//! `bridge quarantine`.

use std::num::NonZeroUsize;

use bson::raw::RawBsonRef;
use bson::{Bson, RawDocument};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::escape::{escape, escape_lines};
use super::settings::collection;
use super::summary::table;
use super::{Context, Exit, Failure};
use crate::entity::{ENTITIES, Entity};
use crate::mapping::hex;
use crate::quarantine::{self, Entry};
use crate::target::Target;

/// Arguments of `bridge quarantine`.
#[derive(Debug, Args)]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    pub command: QuarantineCommand,
}

/// What to do with the quarantine.
#[derive(Debug, Subcommand)]
pub(super) enum QuarantineCommand {
    /// List the quarantined documents, each with its reason
    List {
        /// The collections to list; all when none is named
        #[arg(value_name = "COLLECTION", value_parser = collection())]
        collections: Vec<&'static Entity>,
    },
    /// Show one quarantined document whole
    Show {
        /// The document's collection
        #[arg(value_name = "COLLECTION", value_parser = collection())]
        collection: &'static Entity,
        /// The document's id, as `quarantine list` prints it
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Accept that PostgreSQL does without a document: the gate does not stop at it until it changes
    Accept {
        /// The document's collection
        #[arg(value_name = "COLLECTION", value_parser = collection())]
        collection: &'static Entity,
        /// The document's id, as `quarantine list` prints it
        #[arg(value_name = "ID")]
        id: String,
    },
}

pub(super) async fn run(args: QuarantineArgs, context: &Context) -> Result<Exit, Failure> {
    let done = async {
        let target = context.target(NonZeroUsize::MIN).await?;
        match args.command {
            QuarantineCommand::List { collections } => list(&target, &collections, context).await,
            QuarantineCommand::Show { collection, id } => show(&target, collection, &id, context).await,
            QuarantineCommand::Accept { collection, id } => accept(&target, collection, &id, context).await,
        }
    };
    context.until_stopped(done).await
}

async fn list(target: &Target, collections: &[&'static Entity], context: &Context) -> Result<Exit, Failure> {
    let collections = if collections.is_empty() { ENTITIES } else { collections };
    let entries = quarantine::list(target, collections).await?;
    context.output.text(&text(&entries))?;
    context.output.object(&json!({ "quarantined": entries.iter().map(object).collect::<Vec<_>>() }))?;
    Ok(Exit::Clean)
}

fn text(entries: &[Entry]) -> String {
    let Some(first) = entries.first() else { return "the quarantine is empty".to_owned() };
    let mut table = table(&["collection", "id", "reason", "when", "accepted"], 0);
    for entry in entries {
        let accepted = entry.accepted_at.map_or("no".to_owned(), when);
        let quarantined = when(entry.quarantined_at);
        table.add_row([&*entry.collection, &escape(&entry.id), &escape(&entry.reason), &quarantined, &accepted]);
    }
    let next = format!("bridge quarantine show {} '{}'", first.collection, escape(&first.id));
    format!("{table}\n{} documents; to see one: {next}", entries.len())
}

fn when(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn object(entry: &Entry) -> Value {
    json!({
        "collection": entry.collection, "id": entry.id, "reason": entry.reason, "bytes": entry.bytes,
        "quarantined_at": when(entry.quarantined_at), "accepted_at": entry.accepted_at.map(when),
    })
}

/// The one of that id. An id is printed escaped, and may be given back that way.
async fn meant(target: &Target, entity: &'static Entity, id: &str) -> Result<Entry, Failure> {
    let mut entries = quarantine::list(target, &[entity]).await?;
    let exact = entries.iter().position(|entry| entry.id == id);
    let place = exact.or_else(|| entries.iter().position(|entry| escape(&entry.id) == id));
    place.map(|place| entries.swap_remove(place)).ok_or_else(|| none(entity, id))
}

async fn accept(target: &Target, entity: &'static Entity, id: &str, context: &Context) -> Result<Exit, Failure> {
    let entry = meant(target, entity, id).await?;
    let is_new = quarantine::accept(target, entity, &entry.id).await?;
    let accepted = if is_new { "accepted" } else { "was accepted before" };
    context.output.text(&format!("{accepted}: {} {}", entity.name, escape(&entry.id)))?;
    context.output.object(&json!({ "accepted": u8::from(is_new), "collection": entity.name, "id": entry.id }))?;
    Ok(Exit::Clean)
}

async fn show(target: &Target, entity: &'static Entity, id: &str, context: &Context) -> Result<Exit, Failure> {
    let entry = meant(target, entity, id).await?;
    let bytes = quarantine::document(target, entity, &entry.id).await?.ok_or_else(|| none(entity, id))?;
    let document = readable(&bytes);
    context.output.text(&whole(&entry, document.as_ref(), &bytes))?;
    let mut shown = object(&entry);
    match document {
        Some(document) => shown["document"] = document,
        None => shown["bson"] = hex(&bytes).into(),
    }
    context.output.object(&shown)?;
    Ok(Exit::Clean)
}

fn none(entity: &Entity, id: &str) -> Failure {
    Failure::new(Exit::Usage, format!("the quarantine has no document {id} of {}", entity.name))
        .hint(format!("`bridge quarantine list {}` shows what there is", entity.name))
}

/// Canonical extended JSON; nothing when the bytes cannot be read as a document.
pub(super) fn readable(bytes: &[u8]) -> Option<Value> {
    let document = RawDocument::from_bytes(bytes).ok()?;
    Some(Bson::try_from(RawBsonRef::Document(document)).ok()?.into_canonical_extjson())
}

fn whole(entry: &Entry, document: Option<&Value>, bytes: &[u8]) -> String {
    let head = format!("{} {}\n{}", entry.collection, escape(&entry.id), escape(&entry.reason));
    let pretty = document.and_then(|document| serde_json::to_string_pretty(document).ok());
    match pretty {
        Some(pretty) => format!("{head}\n{}", escape_lines(&pretty)),
        None => format!("{head}\nit cannot be read as BSON; its {} bytes:\n{}", bytes.len(), hex(bytes)),
    }
}
