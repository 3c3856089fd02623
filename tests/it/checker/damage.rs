//! Damage: what is done to the stores behind the bridge's back, and what must be reported of it.

use std::collections::BTreeSet;

use mongodb::Collection;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{
    Binary, Bson, DateTime, Decimal128, Document, RawDocumentBuf, bson, doc, rawdoc, serialize_to_vec,
};
use scheduler_bridge::entity::{ENTITIES, Entity, KeyType, Kind};
use sqlx::AssertSqlSafe;

use super::{Finding, json};
use crate::bed::Bed;

/// One thing that is done to one document or its row.
#[derive(Clone, Copy)]
enum Wound {
    /// A statement. `$1` is the victim's key, `$2` a key that nobody has; `{table}` and the columns `{name}` and `{date}`
    /// are the collection's.
    Sql(&'static str),
    /// The document is replaced by what this makes of it.
    Document(fn(Document) -> Document),
    /// The document is deleted.
    Delete,
    /// A copy of the document with a key that nobody has is inserted.
    Copy,
    /// The victim's bytes stand in the quarantine, changed by this.
    Quarantine(fn(Document) -> Document),
    /// The same, and the row is removed.
    Move(fn(Document) -> Document),
}

/// What must be reported.
#[derive(Clone, Copy)]
enum Report {
    Nothing,
    Victim(&'static str),
    /// The key that nobody had.
    Fresh(&'static str),
    /// Both: the first of the victim, the second of the key that nobody had.
    Both(&'static str, &'static str),
}

use Report::{Both, Fresh, Nothing, Victim};

/// What is done in every collection, each to another regular document.
const EVERYWHERE: &[(Wound, Report)] = &[
    (Wound::Sql("delete from {table} where id = $1"), Victim("missing")),
    (Wound::Delete, Victim("extra")),
    (Wound::Copy, Fresh("missing")),
    (Wound::Sql(COPY_ROW), Fresh("extra")),
    (Wound::Sql("update {table} set id = $2 where id = $1"), Both("missing", "extra")),
    (Wound::Sql("update {table} set {name} = {name} || ' ' where id = $1"), Victim("content")),
    (Wound::Sql("update {table} set {date} = {date} + interval '1 ms' where id = $1"), Victim("content")),
    (Wound::Sql("update {table} set {date} = {date} + interval '1 us' where id = $1"), Victim("content")),
    (Wound::Sql("update {table} set {date} = null where id = $1"), Victim("content")),
    (Wound::Sql(ADD_RESIDUE), Victim("content")),
    (Wound::Sql(r"update {table} set residue = '\x0102' where id = $1"), Victim("content")),
    (Wound::Document(with_unknown), Victim("content")),
    (Wound::Document(without_last), Victim("content")),
    (Wound::Quarantine(same), Victim("content")),
    (Wound::Move(with_unknown), Victim("content")),
    (Wound::Move(same), Nothing),
    (Wound::Document(reversed), Nothing),
    (Wound::Sql("insert into bridge.tombstone values ({collection}, $1, 1000, 1)"), Nothing),
    (Wound::Sql("update {table} set epoch = epoch + 1, clock = clock + 1 where id = $1"), Nothing),
];

const COPY_ROW: &str = "insert into {table} select (jsonb_populate_record(t, jsonb_build_object('id', $2))).* \
                        from {table} t where id = $1";

/// `{"set": {"x": null}}`
const ADD_RESIDUE: &str = r"update {table} set residue = '\x120000000373657400080000000a78000000' where id = $1";

fn same(document: Document) -> Document {
    document
}

fn with_unknown(mut document: Document) -> Document {
    document.insert("planted", 1);
    document
}

fn without_last(mut document: Document) -> Document {
    let last = document.keys().last().cloned().expect("a field");
    document.remove(last);
    document
}

fn reversed(document: Document) -> Document {
    let fields: Vec<_> = document.into_iter().map(|(name, value)| (name, inside_out(value))).collect();
    fields.into_iter().rev().collect()
}

fn inside_out(value: Bson) -> Bson {
    match value {
        Bson::Document(document) => Bson::Document(reversed(document)),
        Bson::Array(values) => Bson::Array(values.into_iter().map(inside_out).collect()),
        value => value,
    }
}

/// A document that is seeded for one wound.
struct Special {
    collection: &'static str,
    document: Document,
    wound: Wound,
    report: Report,
}

/// A run with these fields besides, to be wounded.
fn run(fields: Document, wound: Wound, report: Report) -> Special {
    let mut document = doc! { "tenantId": "t1", "state": "queued" };
    document.extend(fields);
    Special { collection: "runs", document, wound, report }
}

fn of(collection: &'static str, document: Document, wound: Wound, report: Report) -> Special {
    Special { collection, document, wound, report }
}

const CONTENT: Report = Victim("content");

fn set(mut document: Document, name: &str, value: impl Into<Bson>) -> Document {
    document.insert(name, value);
    document
}

fn binary(subtype: BinarySubtype) -> Binary {
    Binary { subtype, bytes: vec![7; 16] }
}

fn decimal(text: &str) -> Decimal128 {
    text.parse().expect("a decimal")
}

fn nan(payload: u64) -> f64 {
    f64::from_bits(0x7ff8_0000_0000_0000 | payload)
}

/// Values of which one store holds another that looks like it.
fn values() -> Vec<Special> {
    use Wound::{Document, Sql};
    vec![
        run(doc! { "stats": { "v": -0.0 } }, Document(|d| set(d, "stats", doc! { "v": 0.0 })), CONTENT),
        run(doc! { "stats": { "v": 1 } }, Document(|d| set(d, "stats", doc! { "v": 1_i64 })), CONTENT),
        run(doc! { "stats": { "v": 1 } }, Document(|d| set(d, "stats", doc! { "v": 1.0 })), CONTENT),
        run(doc! { "stats": { "v": nan(1) } }, Document(|d| set(d, "stats", doc! { "v": nan(2) })), CONTENT),
        run(doc! { "stats": decimal("1.0") }, Document(|d| set(d, "stats", decimal("1.00"))), CONTENT),
        run(
            doc! { "stats": [] },
            Document(|mut d| {
                d.remove("stats");
                d
            }),
            CONTENT,
        ),
        run(
            doc! { "stats": Bson::Null },
            Document(|mut d| {
                d.remove("stats");
                d
            }),
            CONTENT,
        ),
        run(doc! {}, Document(|d| set(d, "stats", Bson::Null)), CONTENT),
        run(doc! {}, Document(|d| set(d, "startedAt", Bson::Null)), CONTENT),
        run(
            doc! { "startedAt": Bson::Null },
            Document(|mut d| {
                d.remove("startedAt");
                d
            }),
            CONTENT,
        ),
        run(doc! { "deltas": [1, 2] }, Document(|d| set(d, "deltas", bson!([2, 1]))), CONTENT),
        run(
            doc! { "reason": binary(BinarySubtype::UuidOld) },
            Document(|d| set(d, "reason", binary(BinarySubtype::Uuid))),
            CONTENT,
        ),
        run(doc! { "error": "\u{e9}" }, Document(|d| set(d, "error", "e\u{301}")), CONTENT),
        run(doc! { "error": "a" }, Document(|d| set(d, "error", Bson::Symbol("a".to_owned()))), CONTENT),
        run(
            doc! { "startedAt": "2025-10-26T12:00:00Z" },
            Document(|d| set(d, "startedAt", "2025-10-26T14:00:00+02:00")),
            CONTENT,
        ),
        run(
            doc! { "startedAt": DateTime::from_millis(i64::MAX) },
            Document(|d| set(d, "startedAt", DateTime::from_millis(i64::MAX - 1))),
            CONTENT,
        ),
        run(doc! { "state": "pending" }, Document(|d| set(d, "state", "queued")), CONTENT),
        of("graph_jobs", job(), Document(|d| set(d, "attempts", 3_i64)), CONTENT),
        of("graph_jobs", job(), Sql("update {table} set attempts = 4 where id = $1"), CONTENT),
        of("execution_logs", line(), Document(|d| set(d, "sequence", 5)), CONTENT),
        run(doc! { "stats": { "a": 1, "b": { "c": 1, "d": 2 } } }, Document(reversed), Nothing),
    ]
}

fn job() -> Document {
    doc! { "tenantId": "t1", "status": "pending", "attempts": 3 }
}

fn line() -> Document {
    doc! { "tenantId": "t1", "sequence": 5_i64 }
}

/// `jsonb` that was changed.
fn jsonb() -> Vec<Special> {
    use Wound::Sql;
    let stats = || doc! { "stats": { "v": 1, "t": DateTime::from_millis(5), "list": [1, 2] } };
    vec![
        run(stats(), Sql("update {table} set stats = stats || '{\"w\": 1}' where id = $1"), CONTENT),
        run(stats(), Sql("update {table} set stats = stats - 'v' where id = $1"), CONTENT),
        run(stats(), Sql("update {table} set stats = stats || '{\"v\": 1.0}' where id = $1"), CONTENT),
        run(
            stats(),
            Sql("update {table} set stats = stats || '{\"v\": {\"$numberLong\": \"1\"}}' where id = $1"),
            CONTENT,
        ),
        run(stats(), Sql("update {table} set stats = stats || '{\"v\": {\"$nonsense\": 1}}' where id = $1"), CONTENT),
        run(
            stats(),
            Sql("update {table} set stats = stats || '{\"t\": {\"$date\": {\"$numberLong\": \"6\"}}}' where id = $1"),
            CONTENT,
        ),
        run(stats(), Sql("update {table} set stats = jsonb_insert(stats, '{list,0}', '0') where id = $1"), CONTENT),
        run(stats(), Sql("update {table} set stats = null where id = $1"), CONTENT),
        run(stats(), Sql("update {table} set stats = 'null' where id = $1"), CONTENT),
        run(doc! {}, Sql("update {table} set stats = 'null' where id = $1"), CONTENT),
        run(doc! {}, Sql("update {table} set stats = '{}' where id = $1"), CONTENT),
    ]
}

/// Columns that the residue hides from the document: only their agreement shows the damage.
fn hidden() -> Vec<Special> {
    use Wound::Sql;
    let iso = || doc! { "startedAt": "2025-10-26T12:00:00Z" };
    let long = || doc! { "trigger": "n".repeat(500) };
    vec![
        run(iso(), Sql("update {table} set started_at = started_at + interval '1 us' where id = $1"), CONTENT),
        run(iso(), Sql("update {table} set started_at = null where id = $1"), CONTENT),
        run(iso(), Sql("update {table} set residue = null where id = $1"), CONTENT),
        run(doc! { "state": "pending" }, Sql("update {table} set state = 'running' where id = $1"), CONTENT),
        run(long(), Sql("update {table} set trigger = left(trigger, 383) where id = $1"), CONTENT),
        run(long(), Sql("update {table} set trigger = trigger || 'n' where id = $1"), CONTENT),
        run(doc! { "trigger": 5 }, Sql("update {table} set trigger = '5' where id = $1"), CONTENT),
        run(doc! { "error": Bson::Null }, Sql("update {table} set error = '' where id = $1"), CONTENT),
        run(doc! { "stats": { "$v": 1 } }, Sql("update {table} set stats = '{}' where id = $1"), CONTENT),
        run(
            doc! { "created_at": iso().get_str("startedAt").ok() },
            Sql("update {table} set created_at = now() where id = $1"),
            CONTENT,
        ),
        run(doc! { "retry_of": "r1" }, Sql("update {table} set retry_of = 'r2' where id = $1"), CONTENT),
        of("workers", worker(), Sql("update {table} set job_types = '[\"other\"]' where id = $1"), CONTENT),
        of("workers", worker(), Sql("update {table} set job_types = null where id = $1"), CONTENT),
        of("schedules", schedule(), Sql("update {table} set cron_expression = '@daily' where id = $1"), CONTENT),
        of(
            "graph_jobs",
            doc! { "tenantId": "t1", "status": "succeeded", "attempts": 3.7 },
            Sql("update {table} set attempts = 4 where id = $1"),
            CONTENT,
        ),
    ]
}

fn worker() -> Document {
    doc! { "status": "active", "job_types": ["run"] }
}

fn schedule() -> Document {
    doc! { "tenantId": "t1", "whenCron": "@hourly" }
}

/// Keys of other types, whose texts are marked.
fn marked() -> Vec<Special> {
    let keyed = |id: Bson, wound, report| {
        let mut special = run(doc! {}, wound, report);
        special.document.insert("_id", id);
        special
    };
    let delete = Wound::Sql("delete from {table} where id = $1");
    vec![
        keyed(bson!(424_242), delete, Victim("missing")),
        keyed(bson!({ "b": 1, "a": 2 }), Wound::Delete, Victim("extra")),
        keyed(bson!(0.125), Wound::Sql("update {table} set tenant_id = 't2' where id = $1"), CONTENT),
        keyed(bson!("{braced"), Wound::Document(with_unknown), CONTENT),
        keyed(Bson::DateTime(DateTime::from_millis(77)), Wound::Move(same), Nothing),
        keyed(bson!("loose"), Wound::Sql("update {table} set id = '{\"$loose\"' where id = $1"), Victim("missing")),
    ]
}

/// Documents that are quarantined.
fn quarantined() -> Vec<Special> {
    let refused = || doc! { "tenantId": Bson::Null };
    let entry = "where collection = 'runs' and id = $1";
    let sql = |statement: &str| Wound::Sql(String::leak(format!("{statement} {entry}")));
    vec![
        run(refused(), sql("delete from bridge.quarantine"), Victim("missing")),
        run(refused(), sql("update bridge.quarantine set document = document || 'x'"), CONTENT),
        run(refused(), sql("update bridge.quarantine set id = $2"), Both("missing", "extra")),
        run(refused(), sql("update bridge.quarantine set reason = 'another'"), Nothing),
        run(refused(), Wound::Delete, Victim("extra")),
        run(refused(), Wound::Document(with_unknown), CONTENT),
        run(refused(), Wound::Copy, Fresh("missing")),
    ]
}

/// The special documents, each with its `_id`.
fn specials() -> Vec<Special> {
    let mut specials: Vec<_> = [values(), jsonb(), hidden(), marked(), quarantined()].into_iter().flatten().collect();
    for (index, special) in specials.iter_mut().enumerate() {
        let id = special.document.remove("_id").unwrap_or_else(|| fresh(special.collection, 100_000 + index));
        let mut document = doc! { "_id": id };
        document.extend(std::mem::take(&mut special.document));
        special.document = document;
    }
    specials
}

/// An `_id` that no generated document and no fixture has.
fn fresh(collection: &str, number: usize) -> Bson {
    match scheduler_bridge::entity::named(collection).expect("a collection").key {
        KeyType::Text => Bson::String(format!("planted {number}")),
        KeyType::ObjectId => Bson::ObjectId(ObjectId::parse_str(format!("dead{number:020}")).expect("24 digits")),
    }
}

/// Inserts the documents that are to be damaged besides the generated ones. Before the backfill.
pub async fn seed(bed: &Bed) {
    for special in specials() {
        let collection = bed.database.collection::<Document>(special.collection);
        collection.insert_one(special.document).await.expect("insert a seed");
    }
}

/// Damages the stores and returns what must be found.
pub async fn plant(bed: &Bed) -> BTreeSet<Finding> {
    let mut ground = Ground { bed, planted: BTreeSet::new(), number: 0 };
    for special in specials() {
        let id = special.document.get("_id").expect("an _id").clone();
        let entity = scheduler_bridge::entity::named(special.collection).expect("a collection");
        ground.damage(entity, id, (special.wound, special.report)).await;
    }
    for entity in ENTITIES {
        let victims = ground.regular(entity).await;
        for (damage, id) in EVERYWHERE.iter().zip(victims) {
            ground.damage(entity, id, *damage).await;
        }
    }
    ground.planted
}

/// Where damage is planted.
struct Ground<'a> {
    bed: &'a Bed,
    planted: BTreeSet<Finding>,
    /// How many fresh keys were given out.
    number: usize,
}

impl Ground<'_> {
    /// Regular documents of `entity`, one for each damage. None that nests deep: the driver's documents would overflow the
    /// stack of a test.
    async fn regular(&self, entity: &Entity) -> Vec<Bson> {
        let statement = fill_in(
            "select id from {table} t where residue is null and isfinite({date}) and {name} is not null
             and id not like 'planted%' and id not like '{%' and t::text !~ '[]}]{30}' order by md5(id) limit $1",
            entity,
        );
        let limit = i64::try_from(EVERYWHERE.len()).expect("a few");
        let ids: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(limit)
            .fetch_all(self.bed.pool())
            .await
            .expect("find victims");
        assert_eq!(ids.len(), EVERYWHERE.len(), "{} has a victim for each damage", entity.name);
        ids.into_iter().map(|id| id_of(entity, id)).collect()
    }

    async fn damage(&mut self, entity: &Entity, id: Bson, (wound, report): (Wound, Report)) {
        self.number += 1;
        let fresh = fresh(entity.name, self.number);
        Box::pin(self.inflict(entity, (&id, &fresh), wound)).await;
        let mut expect = |id: &Bson, kind: &str| {
            self.planted.insert((entity.name.to_owned(), json(id), kind.to_owned()));
        };
        match report {
            Nothing => {}
            Victim(kind) => expect(&id, kind),
            Fresh(kind) => expect(&fresh, kind),
            Both(one, other) => {
                expect(&id, one);
                expect(&fresh, other);
            }
        }
        if text_of(entity, &id) == "loose" {
            expect(&Bson::String("{\"$loose\"".to_owned()), "extra");
        }
    }

    async fn inflict(&self, entity: &Entity, (id, fresh): (&Bson, &Bson), wound: Wound) {
        let collection: Collection<Document> = self.bed.database.collection(entity.name);
        let by_id = doc! { "_id": id.clone() };
        let read = async || collection.find_one(by_id.clone()).await.expect("read").expect("the victim");
        match wound {
            Wound::Sql(statement) => self.execute(entity, (id, fresh), statement).await,
            Wound::Document(change) => {
                let changed = RawDocumentBuf::try_from(&change(read().await)).expect("a document");
                let command = rawdoc! { "update": entity.name, "updates": [
                    { "q": RawDocumentBuf::try_from(&by_id).expect("a filter"), "u": changed },
                ] };
                let reply = self.bed.database.run_raw_command(command).await.expect("replace");
                assert_eq!(reply.get_i32("nModified").expect("a count"), 1, "{entity:?} {id}: {reply}");
            }
            Wound::Delete => {
                assert_eq!(collection.delete_one(by_id).await.expect("delete").deleted_count, 1);
            }
            Wound::Copy => {
                let copy = set(read().await, "_id", fresh.clone());
                collection.insert_one(copy).await.expect("insert a copy");
            }
            Wound::Quarantine(change) => self.quarantine(entity, id, change(read().await)).await,
            Wound::Move(change) => {
                self.quarantine(entity, id, change(read().await)).await;
                self.execute(entity, (id, fresh), "delete from {table} where id = $1").await;
            }
        }
    }

    async fn execute(&self, entity: &Entity, (id, fresh): (&Bson, &Bson), statement: &str) {
        let query = sqlx::query(AssertSqlSafe(fill_in(statement, entity))).bind(text_of(entity, id));
        let query = if statement.contains("$2") { query.bind(text_of(entity, fresh)) } else { query };
        let done = query.execute(self.bed.pool()).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        assert_eq!(done.rows_affected(), 1, "{} {id}: {statement}", entity.name);
    }

    async fn quarantine(&self, entity: &Entity, id: &Bson, document: Document) {
        sqlx::query("insert into bridge.quarantine values ($1, $2, $3, 'planted', 1, 1)")
            .bind(entity.name)
            .bind(text_of(entity, id))
            .bind(serialize_to_vec(&document).expect("BSON"))
            .execute(self.bed.pool())
            .await
            .expect("quarantine");
    }
}

/// The text of a key whose damage is planted.
fn text_of(entity: &Entity, id: &Bson) -> String {
    match (entity.key, id) {
        (KeyType::Text, Bson::String(text)) if !text.starts_with('{') => text.clone(),
        (KeyType::ObjectId, Bson::ObjectId(id)) => id.to_hex(),
        (_, Bson::String(text)) => {
            let value = serialize_to_vec(&doc! { "": text }).expect("BSON");
            let hex = scheduler_bridge::mapping::hex(&value[6..value.len() - 1]);
            format!("{{\"$bson\":\"02{hex}\"}}")
        }
        (_, id) => json(id),
    }
}

fn id_of(entity: &Entity, text: String) -> Bson {
    match entity.key {
        KeyType::Text => Bson::String(text),
        KeyType::ObjectId => Bson::ObjectId(ObjectId::parse_str(text).expect("24 digits")),
    }
}

/// The statement for one entity: its table, its first column of names, its first instant.
fn fill_in(statement: &str, entity: &Entity) -> String {
    let first = |is: fn(Kind) -> bool| entity.fields.iter().find(|field| is(field.kind)).expect("such a column").column;
    let name = match entity.name {
        "workers" => "hostname",
        _ => first(|kind| matches!(kind, Kind::Name)),
    };
    statement
        .replace("{table}", &format!("scheduler.{}", entity.name))
        .replace("{collection}", &format!("'{}'", entity.name))
        .replace("{name}", name)
        .replace("{date}", first(|kind| matches!(kind, Kind::Instant)))
}
