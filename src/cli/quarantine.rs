//! `bridge quarantine`.

use std::num::NonZeroUsize;

use bson::raw::RawBsonRef;
use bson::{Bson, RawDocument};
use chrono::SecondsFormat;
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
}

pub(super) async fn run(args: QuarantineArgs, context: &Context) -> Result<Exit, Failure> {
    let done = async {
        let target = context.target(NonZeroUsize::MIN).await?;
        match args.command {
            QuarantineCommand::List { collections } => list(&target, &collections, context).await,
            QuarantineCommand::Show { collection, id } => show(&target, collection, &id, context).await,
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
    let mut table = table(&["collection", "id", "reason", "when"], 0);
    for entry in entries {
        table.add_row([&*entry.collection, &escape(&entry.id), &escape(&entry.reason), &when(entry)]);
    }
    let next = format!("bridge quarantine show {} '{}'", first.collection, escape(&first.id));
    format!("{table}\n{} documents; to see one: {next}", entries.len())
}

fn when(entry: &Entry) -> String {
    entry.quarantined_at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn object(entry: &Entry) -> Value {
    json!({
        "collection": entry.collection, "id": entry.id, "reason": entry.reason, "bytes": entry.bytes,
        "quarantined_at": when(entry),
    })
}

async fn show(target: &Target, entity: &'static Entity, id: &str, context: &Context) -> Result<Exit, Failure> {
    let entries = quarantine::list(target, &[entity]).await?;
    // An id is printed escaped, and may be given back that way.
    let exact = entries.iter().find(|entry| entry.id == id);
    let entry =
        exact.or_else(|| entries.iter().find(|entry| escape(&entry.id) == id)).ok_or_else(|| none(entity, id))?;
    let bytes = quarantine::document(target, entity, &entry.id).await?.ok_or_else(|| none(entity, id))?;
    let document = readable(&bytes);
    context.output.text(&whole(entry, document.as_ref(), &bytes))?;
    let mut shown = object(entry);
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
