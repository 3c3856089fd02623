//! `bridge stray`.

use std::num::NonZeroUsize;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::escape::escape;
use super::quarantine::readable;
use super::settings::collection;
use super::summary::table;
use super::{Context, Exit, Failure};
use crate::entity::Entity;
use crate::mapping::hex;
use crate::stray::{self, Entry};
use crate::target::Target;

/// Arguments of `bridge stray`.
#[derive(Debug, Args)]
pub(super) struct StrayArgs {
    #[command(subcommand)]
    pub command: StrayCommand,
}

/// What to do with stray writes.
#[derive(Debug, Subcommand)]
pub(super) enum StrayCommand {
    /// List the stray writes that nobody has accepted; with --json each with the document that it left
    List {
        /// Those that were accepted as well
        #[arg(long)]
        all: bool,
    },
    /// Accept that stray writes are lost: the gate does not stop at them any more
    Accept {
        /// The collection of the key
        #[arg(value_name = "COLLECTION", value_parser = collection(), required_unless_present = "all")]
        collection: Option<&'static Entity>,
        /// The key, as `stray list` prints it
        #[arg(value_name = "ID", required_unless_present = "all")]
        id: Option<String>,
        /// Every one that is listed now
        #[arg(long, conflicts_with_all = ["collection", "id"])]
        all: bool,
    },
}

pub(super) async fn run(args: StrayArgs, context: &Context) -> Result<Exit, Failure> {
    let done = async {
        let target = context.target(NonZeroUsize::MIN).await?;
        match args.command {
            StrayCommand::List { all } => list(&target, all, context).await,
            StrayCommand::Accept { collection, id, .. } => accept(&target, collection.zip(id), context).await,
        }
    };
    context.until_stopped(done).await
}

async fn list(target: &Target, all: bool, context: &Context) -> Result<Exit, Failure> {
    let entries = stray::list(target, all).await?;
    context.output.text(&text(&entries))?;
    context.output.object(&json!({ "strays": entries.iter().map(object).collect::<Vec<_>>() }))?;
    Ok(Exit::Clean)
}

fn text(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "there are no stray writes".to_owned();
    }
    let mut table = table(&["collection", "id", "left", "found", "accepted"], 0);
    for entry in entries {
        let left = entry.document.as_ref().map_or("nothing".to_owned(), |bytes| format!("{} bytes", bytes.len()));
        let accepted = entry.accepted_at.map_or("no".to_owned(), when);
        table.add_row([&*entry.collection, &escape(&entry.id), &left, &when(entry.seen_at), &accepted]);
    }
    format!("{table}\n{} stray writes; `bridge stray list --json` shows what they left", entries.len())
}

fn when(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn object(entry: &Entry) -> Value {
    let mut object = json!({
        "collection": entry.collection, "id": entry.id, "seen_at": when(entry.seen_at),
        "accepted_at": entry.accepted_at.map(when),
    });
    if let Some(bytes) = &entry.document {
        match readable(bytes) {
            Some(document) => object["document"] = document,
            None => object["bson"] = hex(bytes).into(),
        }
    }
    object
}

async fn accept(target: &Target, key: Option<(&Entity, String)>, context: &Context) -> Result<Exit, Failure> {
    let entries = stray::list(target, false).await?;
    // An id is printed escaped, and may be given back that way.
    let is_meant = |entry: &&Entry| match &key {
        None => true,
        Some((entity, id)) => entry.collection == entity.name && (entry.id == *id || escape(&entry.id) == *id),
    };
    let keys: Vec<(&str, &str)> =
        entries.iter().filter(is_meant).map(|entry| (&*entry.collection, &*entry.id)).collect();
    if let (Some((entity, id)), true) = (&key, keys.is_empty()) {
        return Err(Failure::new(Exit::Usage, format!("there is no stray write to {id} of {}", entity.name))
            .hint("`bridge stray list` shows what there is"));
    }
    let accepted = stray::accept(target, &keys).await?;
    context.output.text(&format!("accepted {accepted} stray writes"))?;
    context.output.object(&json!({ "accepted": accepted }))?;
    Ok(Exit::Clean)
}
