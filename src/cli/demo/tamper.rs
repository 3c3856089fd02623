//! Three rows changed in PostgreSQL without the bridge's knowledge, and what a verification must say of them.

use bson::{Bson, RawDocumentBuf};
use serde_json::Value;
use sqlx::PgPool;

use super::{broken, document};
use crate::cli::Failure;
use crate::dataset;
use crate::escape::escape;
use crate::verify::{Kind, Report};

/// Where a row is changed, deleted and added.
const CHANGED: &str = "runs";
const DELETED: &str = "graph_jobs";
const ADDED: &str = "policy_jobs";

/// The three rows.
pub(super) struct Tampered {
    changed: Bson,
    deleted: Bson,
    added: Bson,
}

impl Tampered {
    /// The first of one collection, the first of another, and the one that would come next in a third, of `total`
    /// generated documents.
    pub(super) fn of(total: u64) -> std::result::Result<Self, Failure> {
        let next =
            dataset::proportions(total).into_iter().find(|(name, _)| *name == ADDED).map_or(0, |(_, count)| count);
        let of = |collection, index| Ok::<_, Failure>(id(&document(collection, index)?));
        Ok(Self { changed: of(CHANGED, 0)?, deleted: of(DELETED, 0)?, added: of(ADDED, next)? })
    }

    /// Changes, deletes, adds.
    pub(super) async fn apply(&self, pool: &PgPool) -> sqlx::Result<()> {
        for (statement, id) in [
            ("update scheduler.runs set error = 'changed behind the bridge''s back' where id = $1", &self.changed),
            ("delete from scheduler.graph_jobs where id = $1", &self.deleted),
            (
                "insert into scheduler.policy_jobs
                select (jsonb_populate_record(t, jsonb_build_object('id', $1::text))).* from scheduler.policy_jobs t limit 1",
                &self.added,
            ),
        ] {
            sqlx::query(statement).bind(id.as_str()).execute(pool).await?;
        }
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
            (DELETED, json(&self.deleted), Kind::Missing),
            (ADDED, json(&self.added), Kind::Extra),
        ]
    }
}

fn id(document: &RawDocumentBuf) -> Bson {
    document.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok()).unwrap_or(Bson::Null)
}
