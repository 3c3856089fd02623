//! Every field of every document, changed in MongoDB; and whole documents, rows and quarantined documents that come or go.

use std::collections::BTreeMap;

use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::RawDocumentBuf;
use mongodb::bson::{Bson, DateTime, Document, doc};
use scheduler_bridge::entity::{ENTITIES, Entity, KeyType, Kind, Presence};
use scheduler_bridge::verify::Verdict;
use sqlx::{AssertSqlSafe, Executor};

use super::columns::{Finding, SHAPES, Shape, assert_same, found, id, insert, key, victim};
use super::{backfill, verify};
use crate::bed::Bed;

/// What a field becomes; nothing takes it away.
type Change = (&'static str, Option<Bson>);

/// Every way in which one value changes, from a change of type alone to its disappearance.
fn changes(old: &Bson) -> Vec<Change> {
    let mut changes: Vec<Change> =
        vec![("unset", None), ("null", Some(Bson::Null)), ("undefined", Some(Bson::Undefined))];
    let values: Vec<Change> = match old {
        Bson::String(text) => vec![
            ("value", Some(format!("{text} ").into())),
            ("case", Some(text.to_uppercase().into())),
            ("type", Some(Bson::Symbol(text.clone()))),
        ],
        Bson::DateTime(date) => vec![
            ("value", Some(DateTime::from_millis(date.timestamp_millis() + 1).into())),
            ("type", Some(date.try_to_rfc3339_string().expect("a date").into())),
            ("number", Some(date.timestamp_millis().into())),
        ],
        Bson::Int32(number) => vec![
            ("value", Some((number + 1).into())),
            ("type", Some(i64::from(*number).into())),
            ("double", Some(f64::from(*number).into())),
        ],
        Bson::Int64(number) => vec![
            ("value", Some((number + 1).into())),
            ("type", Some(i32::try_from(*number).expect("a small number").into())),
            ("text", Some(number.to_string().into())),
        ],
        Bson::Boolean(value) => vec![("value", Some((!value).into())), ("type", Some(i32::from(*value).into()))],
        Bson::Document(old) if old.contains_key("deep") => vec![
            ("nested value", Some(doc! { "deep": [{ "x": 2 }], "list": ["a", "b"] }.into())),
            ("nested type", Some(doc! { "deep": [{ "x": 1_i64 }], "list": ["a", "b"] }.into())),
            ("nested null", Some(doc! { "deep": [{ "x": null }], "list": ["a", "b"] }.into())),
            ("nested field", Some(doc! { "deep": [{ "x": 1, "y": 1 }], "list": ["a", "b"] }.into())),
            ("order of an array", Some(doc! { "deep": [{ "x": 1 }], "list": ["b", "a"] }.into())),
            ("end of an array", Some(doc! { "deep": [{ "x": 1 }], "list": ["a", "b", "b"] }.into())),
            ("array as a document", Some(doc! { "deep": { "0": { "x": 1 } }, "list": ["a", "b"] }.into())),
        ],
        Bson::Document(_) => vec![
            ("value", Some(doc! { "$date": 2 }.into())),
            ("type", Some(doc! { "$date": 1_i64 }.into())),
            ("a date", Some(DateTime::from_millis(1).into())),
        ],
        other => panic!("no change for {other:?}"),
    };
    changes.extend(values.into_iter().filter(|(_, value)| value.as_ref() != Some(old)));
    changes
}

/// What is done to the document of each victim: its shape, what is done, and the document afterwards.
fn damages(entity: &Entity) -> Vec<(Shape, String, Document)> {
    let mut damages = Vec::new();
    for shape in SHAPES {
        let before = victim(entity, 0, shape);
        for (name, old) in before.iter().filter(|(name, _)| *name != "_id" && *name != "unknownField") {
            for (what, new) in changes(old) {
                let mut after = before.clone();
                match new {
                    Some(new) => drop(after.insert(name, new)),
                    None => drop(after.remove(name)),
                }
                damages.push((shape, format!("{name}: {what}"), after));
            }
        }
        // Absent fields come into being, as null and with a value; unknown ones come, change and go.
        for field in entity.fields.iter().filter(|field| !before.contains_key(field.name)) {
            damages.push((shape, format!("{}: added", field.name), with(&before, field.name, sample(field.kind))));
            damages.push((shape, format!("{}: added null", field.name), with(&before, field.name, Bson::Null)));
        }
        damages.push((shape, "unknown field added".to_owned(), with(&before, "anotherField", 1.into())));
        damages.push((shape, "unknown null added".to_owned(), with(&before, "anotherField", Bson::Null)));
        if before.contains_key("unknownField") {
            let mut without = before.clone();
            without.remove("unknownField");
            damages.push((shape, "unknown field removed".to_owned(), without));
            damages.push((
                shape,
                "unknown field changed".to_owned(),
                with(&before, "unknownField", doc! { "a": 2 }.into()),
            ));
        }
    }
    damages
}

fn with(document: &Document, name: &str, value: Bson) -> Document {
    let mut document = document.clone();
    document.insert(name, value);
    document
}

fn sample(kind: Kind) -> Bson {
    match kind {
        Kind::Json => Bson::Array(Vec::new()),
        Kind::Instant => DateTime::from_millis(0).into(),
        Kind::Int32 => 0.into(),
        Kind::Int64 => 0_i64.into(),
        Kind::Bool => false.into(),
        Kind::Name | Kind::Text | Kind::Word(_) => "".into(),
    }
}

/// Puts `document` in the place of victim `number`, bytes and order of fields as they are.
async fn replace(bed: &Bed, entity: &Entity, number: u32, mut document: Document) {
    document.insert("_id", id(entity, number));
    let update = doc! { "update": entity.name, "updates": [{ "q": { "_id": id(entity, number) }, "u": document }] };
    let reply = bed.database.run_command(update).await.expect("update");
    assert_eq!(reply.get_i32("n").ok(), Some(1), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_any_field_is_found_under_its_key_and_the_order_of_fields_is_none() {
    let bed = Bed::new().await;
    for entity in ENTITIES {
        let damages = damages(entity);
        let documents = damages.iter().zip(0..).map(|((shape, ..), number)| victim(entity, number, *shape));
        let healthy = SHAPES.iter().zip(90_000..).map(|(shape, number)| victim(entity, number, *shape));
        insert(&bed, entity, &documents.chain(healthy).collect::<Vec<_>>()).await;
    }
    backfill(&bed).await;
    assert_eq!(verify(&bed).await.verdict, Verdict::Clean);

    for entity in ENTITIES {
        for (shape, number) in SHAPES.into_iter().zip(90_000..) {
            replace(&bed, entity, number, inside_out(victim(entity, number, shape))).await;
        }
    }
    let report = verify(&bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "the order of fields: {:#?}", report.mismatches);

    let mut expected = BTreeMap::new();
    for entity in ENTITIES {
        for ((shape, what, after), number) in damages(entity).into_iter().zip(0..) {
            replace(&bed, entity, number, after).await;
            let finding = (entity.name.to_owned(), key(entity, number), "content".to_owned());
            expected.insert(finding, format!("{shape:?} {what}"));
        }
    }
    assert!(expected.len() > 1_400, "{}", expected.len());
    assert_same(&found(&bed).await, &expected);
}

/// The fields in the opposite order, at every depth; arrays stay as they are.
fn inside_out(document: Document) -> Document {
    let turn = |value| match value {
        Bson::Document(inner) => Bson::Document(inside_out(inner)),
        value => value,
    };
    // The server keeps `_id` first.
    document.into_iter().collect::<Vec<_>>().into_iter().rev().map(|(name, value)| (name, turn(value))).collect()
}

/// A document that is refused: `_id` alone, or with a state that nobody knows.
fn refused(entity: &Entity, number: u32) -> Option<Document> {
    let required = entity.fields.iter().any(|field| field.presence == Presence::Required);
    required.then(|| doc! { "_id": id(entity, number), "note": "refused" })
}

struct Case<'a> {
    bed: &'a Bed,
    entity: &'static Entity,
    expected: BTreeMap<Finding, String>,
}

impl Case<'_> {
    async fn sql(&self, statement: &str, id: &str) {
        let sql = statement.replace("TABLE", &format!("scheduler.{}", self.entity.name));
        let sql = sql.replace("NAME", self.entity.name);
        let done = sqlx::query(AssertSqlSafe(sql.clone())).bind(id).execute(self.bed.pool()).await;
        let done = done.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(done.rows_affected(), 1, "{sql} {id}");
    }

    async fn delete(&self, number: u32) {
        let collection = self.bed.database.collection::<RawDocumentBuf>(self.entity.name);
        let deleted = collection.delete_one(doc! { "_id": id(self.entity, number) }).await.expect("delete");
        assert_eq!(deleted.deleted_count, 1);
    }

    fn expect(&mut self, id: &str, kind: &str, what: &str) {
        let finding = (self.entity.name.to_owned(), id.to_owned(), kind.to_owned());
        assert!(self.expected.insert(finding, what.to_owned()).is_none(), "{id}");
    }

    /// Rows and documents that come and go.
    async fn whole(&mut self) {
        let key = |number| key(self.entity, number);
        self.sql("delete from TABLE where id = $1", &key(1)).await;
        self.expect(&key(1), "missing", "row deleted");
        self.delete(2).await;
        self.expect(&key(2), "extra", "document deleted");
        insert(self.bed, self.entity, &[victim(self.entity, 500, Shape::Regular)]).await;
        self.expect(&key(500), "missing", "document added");
        self.copy_row(&key(501)).await;
        self.expect(&key(501), "extra", "row with a plain key added");
        // The same key in another spelling, keys of no spelling, and a key that is too long to be a row.
        for text in ["{broken", "{", "{}", "{\"$numberInt\": \"5\"}", "{\"$bson\":\"zz\"}", "{\"$sha256\":\"00\"}"] {
            self.copy_row(text).await;
            let id = if text.contains("numberInt") { "{\"$numberInt\":\"5\"}" } else { text };
            self.expect(id, "extra", "row with a text that is no key added");
        }
        if self.entity.key == KeyType::ObjectId {
            for text in ["", "no digits", "0A0A0A0A0A0A0A0A0A0A0A0A", "zzz"] {
                self.copy_row(text).await;
                self.expect(text, "extra", "row with a text that is no ObjectId added");
            }
        } else {
            for text in ["", "\u{1}", "~~~", "\u{10ffff}"] {
                self.copy_row(text).await;
                self.expect(text, "extra", "row at the edge of all keys added");
            }
        }
        let other = ObjectId::from_bytes([0xee; 12]);
        if self.entity.key == KeyType::Text {
            self.copy_row(&format!("{{\"$oid\":\"{other}\"}}")).await;
            self.expect(&other.to_hex(), "extra", "row with a marked key added");
        }
    }

    /// A copy of the healthy row under another id.
    async fn copy_row(&self, to: &str) {
        let columns: Vec<_> = self.entity.fields.iter().map(|field| field.column).collect();
        let columns = columns.join(", ");
        let from = key(self.entity, 0);
        let statement = format!(
            "insert into TABLE (id, {columns}, epoch, clock)
            select $1, {columns}, epoch, clock from TABLE where id = '{from}'"
        );
        self.sql(&statement, to).await;
    }

    /// Quarantined documents that change, go, come, and stand beside a row.
    async fn quarantined(&mut self) {
        let key = |number| key(self.entity, number);
        let change = "update bridge.quarantine set document = overlay(document placing '\\x66'::bytea
            from length(document) - 3) where collection = 'NAME' and id = $1";
        let add = "insert into bridge.quarantine (collection, id, document, reason, epoch, clock)
            select collection, $1, document, reason, epoch, clock from bridge.quarantine
            where collection = 'NAME' order by id limit 1";
        if refused(self.entity, 0).is_some() {
            self.sql(change, &key(10)).await;
            self.expect(&key(10), "content", "quarantined document changed");
            self.sql("delete from bridge.quarantine where collection = 'NAME' and id = $1", &key(11)).await;
            self.expect(&key(11), "missing", "quarantined document removed");
            self.copy_row(&key(12)).await;
            self.expect(&key(12), "content", "row added beside a quarantined document");
            self.delete(13).await;
            self.expect(&key(13), "extra", "refused document deleted");
        }
        self.sql(add, &key(502)).await;
        self.expect(&key(502), "extra", "quarantined document added");
        self.sql(add, &key(4)).await;
        self.delete(4).await;
        self.expect(&key(4), "extra", "quarantined document added beside a row without a document");
        self.sql(add, &key(5)).await;
        self.sql("update TABLE set residue = '\\x00' where id = $1", &key(5)).await;
        self.expect(&key(5), "content", "quarantined document added beside a row that differs");
        self.sql(add, &key(3)).await;
        self.expect(&key(3), "content", "quarantined document added beside a row");
        for text in ["{damaged", "{\"$sha256\":\"01\"}"] {
            self.sql(add, text).await;
            self.expect(text, "extra", "quarantined document added under a text that is no key");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_documents_and_quarantined_documents_that_come_or_go_are_found() {
    let bed = Bed::new().await;
    for entity in ENTITIES {
        let mut documents: Vec<_> = (0..6).map(|number| victim(entity, number, Shape::Regular)).collect();
        documents.extend((10..15).filter_map(|number| refused(entity, number)));
        // A key too long for a row: something is quarantined in every collection.
        documents.push(doc! { "_id": { "long": "x".repeat(2_000) } });
        insert(&bed, entity, &documents).await;
    }
    backfill(&bed).await;
    assert_eq!(verify(&bed).await.verdict, Verdict::Clean);
    let mut expected = BTreeMap::new();
    for entity in ENTITIES {
        let mut case = Case { bed: &bed, entity, expected: BTreeMap::new() };
        case.whole().await;
        case.quarantined().await;
        expected.append(&mut case.expected);
    }
    assert_same(&found(&bed).await, &expected);
    bed.pool().execute("truncate bridge.quarantine").await.expect("truncate");
    let report = verify(&bed).await;
    assert!(report.collections.iter().all(|one| one.quarantined == 0 && one.missing > 0), "{:#?}", report.collections);
}
