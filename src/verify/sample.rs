//! A report with something of everything, for tests of what is made of one.

use bson::{RawDocumentBuf, rawdoc};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::report::{Counts, Gate, IrregularField, Kind, Longest, Mismatch, Report, Sides, Surroundings, Verdict};
use crate::condition::Condition;
use crate::entity::ENTITIES;
use crate::phase::Phase;
use crate::quarantine::Entry;

/// When the sample's verification ended.
pub fn end() -> DateTime<Utc> {
    DateTime::from_timestamp(1_764_294_310, 0).unwrap()
}

/// A mismatch that was found so many seconds before the end.
pub fn mismatch(id: serde_json::Value, kind: Kind, seconds: i64, sides: Option<Sides>) -> Mismatch {
    Mismatch { collection: "runs", id, kind, since: end() - TimeDelta::seconds(seconds), reason: None, sides }
}

/// Both sides of a mismatch.
pub fn sides(source: Option<RawDocumentBuf>, target: Option<RawDocumentBuf>) -> Option<Sides> {
    Some(Sides { source, target })
}

/// A verification of all collections that found three mismatches, and its surroundings.
pub fn report() -> (Report, Surroundings) {
    let run = |state: &str| rawdoc! { "_id": "run-7", "tenantId": "acme", "state": state, "stats": { "queued": 2 } };
    let mut collections: Vec<_> = ENTITIES
        .iter()
        .map(|entity| Counts { name: entity.name, documents: 3, rows: 3, ..Counts::default() })
        .collect();
    collections[2] = Counts {
        documents: 200_000,
        rows: 199_998,
        quarantined: 2,
        missing: 1,
        extra: 1,
        content: 1,
        seconds: 12.34,
        ..collections[2]
    };
    let report = Report {
        verdict: Verdict::Mismatch,
        number: 42,
        phase: Phase::MongoPrimary,
        epoch: 3,
        sample: None,
        tolerance_seconds: 30.0,
        collections,
        mismatches: vec![
            mismatch(json!("run-7"), Kind::Content, 95, sides(Some(run("running")), Some(run("queued")))),
            mismatch(json!("run-8"), Kind::Missing, 40, sides(Some(run("queued")), None)),
            Mismatch {
                reason: Some("column id stands for no _id".to_owned()),
                ..mismatch(json!("x"), Kind::Extra, 4_000, None)
            },
        ],
        unlisted: 0,
        unsettled: 4,
        rechecked: 1_234,
        longest_query: Longest { mongodb_milliseconds: 12.5, postgresql_milliseconds: 80.0 },
        started_at: end() - TimeDelta::seconds(125),
        finished_at: end(),
    };
    (report, surroundings())
}

fn surroundings() -> Surroundings {
    let entry = |id: &str| Entry {
        collection: "runs".to_owned(),
        id: id.to_owned(),
        reason: "state is \"lost\", which is not known".to_owned(),
        bytes: 912,
        quarantined_at: end() - TimeDelta::hours(3),
        accepted_at: None,
    };
    let condition =
        |name: &str, met, found: &str, limit: &str| Condition { at: end(), ..Condition::new(name, met, found, limit) };
    Surroundings {
        bridge: "0.1.0",
        mongodb: "6.0.5".to_owned(),
        postgresql: "18.6".to_owned(),
        quarantine: vec![entry("run-901"), entry("run-902")],
        irregular_fields: vec![IrregularField {
            collection: "runs".to_owned(),
            field: "createdAt".to_owned(),
            documents: 1_500,
        }],
        gates: vec![Gate {
            to: Phase::PostgresPrimary,
            conditions: vec![
                condition("verification clean", false, "3 mismatches", "no mismatch"),
                condition("mirror lag", true, "0.2 s", "at most 5 s"),
            ],
        }],
    }
}
