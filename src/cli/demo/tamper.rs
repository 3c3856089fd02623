//! Three documents changed in MongoDB without the bridge's knowledge, and what a verification must say of them.

use bson::{Bson, RawDocumentBuf, doc};
use mongodb::Database;
use mongodb::error::Result;
use serde_json::Value;

use super::{broken, document};
use crate::cli::Failure;
use crate::dataset;
use crate::escape::escape;
use crate::verify::{Kind, Report};

/// Where a document is changed, deleted and added.
const CHANGED: &str = "runs";
const DELETED: &str = "graph_jobs";
const ADDED: &str = "policy_jobs";

/// The three documents.
pub(super) struct Tampered {
    changed: Bson,
    deleted: Bson,
    added: RawDocumentBuf,
    added_id: Bson,
}

impl Tampered {
    /// The first of one collection, the first of another, and the one that would come next in a third, of `total`
    /// generated documents.
    pub(super) fn of(total: u64) -> std::result::Result<Self, Failure> {
        let next =
            dataset::proportions(total).into_iter().find(|(name, _)| *name == ADDED).map_or(0, |(_, count)| count);
        let added = document(ADDED, next)?;
        let (changed, deleted) = (id(&document(CHANGED, 0)?), id(&document(DELETED, 0)?));
        Ok(Self { changed, deleted, added_id: id(&added), added })
    }

    /// Changes, deletes, adds.
    pub(super) async fn apply(&self, database: &Database) -> Result<()> {
        let collection = |name| database.collection::<RawDocumentBuf>(name);
        let change = doc! { "$set": { "error": "changed behind the bridge's back" } };
        collection(CHANGED).update_one(doc! { "_id": self.changed.clone() }, change).await?;
        collection(DELETED).delete_one(doc! { "_id": self.deleted.clone() }).await?;
        collection(ADDED).insert_one(&self.added).await?;
        Ok(())
    }

    /// What was done.
    pub(super) fn text(&self) -> String {
        let line = |done: &str, (collection, id, _): (&str, Value, Kind)| {
            format!("{done} {collection} {}", escape(&id.to_string()))
        };
        let lines: Vec<_> = ["changed", "deleted", "added  "].into_iter().zip(self.expected()).collect();
        lines.into_iter().map(|(done, one)| line(done, one)).collect::<Vec<_>>().join("\n")
    }

    /// Each of the three must be found, as what it is, and nothing else.
    pub(super) fn expect_found(&self, report: &Report) -> std::result::Result<(), Failure> {
        let found = |(collection, id, kind): &(&str, Value, Kind)| {
            let is_it =
                |one: &&crate::verify::Mismatch| one.collection == *collection && one.id == *id && one.kind == *kind;
            report.mismatches.iter().filter(is_it).count() == 1
        };
        let is_exact = report.mismatches.len() == 3 && self.expected().iter().all(found);
        if is_exact { Ok(()) } else { Err(broken("the three changes were not found, or more than those")) }
    }

    /// Collection, `_id` and kind of the mismatches.
    fn expected(&self) -> [(&'static str, Value, Kind); 3] {
        let json = |id: &Bson| id.clone().into_canonical_extjson();
        [
            (CHANGED, json(&self.changed), Kind::Content),
            (DELETED, json(&self.deleted), Kind::Extra),
            (ADDED, json(&self.added_id), Kind::Missing),
        ]
    }
}

fn id(document: &RawDocumentBuf) -> Bson {
    document.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok()).unwrap_or(Bson::Null)
}
