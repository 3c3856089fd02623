//! Source documents = rows + quarantined, by key, whatever the types of `_id`.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use mongodb::bson::raw::{CString, RawDocumentBuf};
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Timestamp, doc, oid::ObjectId, rawdoc};
use mongodb::options::Collation;
use scheduler_bridge::dataset::fixtures;
use scheduler_bridge::entity::{ENTITIES, Entity, Kind, Presence};
use scheduler_bridge::mapping::Mapping;
use scheduler_bridge::verify::Verdict;
use sqlx::AssertSqlSafe;

use super::{backfill_in_chunks_of, verify_in_ranges_of};
use crate::bed::Bed;

/// The regular document of `entity` with this `_id`.
pub fn document(entity: &Entity, id: impl Into<Bson>) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::try_from(&doc! { "_id": id.into() }).expect("a document");
    for field in entity.fields.iter().filter(|field| field.presence == Presence::Required) {
        let value = match field.kind {
            Kind::Word(vocabulary) => vocabulary.words[0],
            _ => "t1",
        };
        document.append(CString::try_from(field.name).expect("a name"), value);
    }
    document
}

/// `_id`s of every type that the server takes, none of them among the fixtures.
fn ids(number: u8) -> Vec<Bson> {
    let n = i32::from(number);
    let binary = |subtype| Bson::Binary(Binary { subtype, bytes: vec![number; 16] });
    let mut ids = vec![
        format!("key-{n:03}").into(),
        format!("~above-{n:03}").into(),
        format!("{{brace-{n:03}").into(),
        Bson::ObjectId(ObjectId::from_bytes([number; 12])),
        (1_000 + n).into(),
        (2_000 + i64::from(n)).into(),
        (3_000.25 + f64::from(n)).into(),
        format!("{}.50", 4_000 + n).parse::<mongodb::bson::Decimal128>().expect("a decimal").into(),
        binary(BinarySubtype::UuidOld),
        binary(BinarySubtype::Uuid),
        binary(BinarySubtype::Generic),
        binary(BinarySubtype::UserDefined(0x90)),
        doc! { "tenant": "t", "n": n }.into(),
        doc! { "n": n, "tenant": "t" }.into(),
        doc! { "deep": { "list": [n, { "x": Bson::Null }] } }.into(),
        DateTime::from_millis(i64::from(n) * 1_000 + 7).into(),
        Bson::Timestamp(Timestamp { time: 77, increment: u32::from(number) }),
        Bson::Symbol(format!("symbol-{n}")),
        Bson::JavaScriptCode(format!("code-{n}")),
        doc! { "$ref": "runs", "$id": n }.into(),
    ];
    if number == 0 {
        // There is one of each; NaN, null, the infinities and both booleans are fixtures.
        ids.extend([Bson::Document(doc! {}), "".into()]);
    }
    ids
}

/// Inserts what of `documents` the collection does not have yet, by way of the plain command: the driver reads `_id`s.
async fn insert(bed: &Bed, collection: &str, documents: &[RawDocumentBuf]) {
    for document in documents {
        let mut batch = mongodb::bson::RawArrayBuf::new();
        batch.push(document.clone());
        let command = rawdoc! { "insert": collection, "documents": batch };
        let reply = bed.database.run_raw_command(command).await.expect("insert");
        let refused = reply.get_array("writeErrors").map(|errors| format!("{errors:?}"));
        assert!(refused.as_ref().map_or(true, |text| text.contains("E11000")), "{refused:?} {document:?}");
    }
}

/// The keys of the documents, and of the rows and the quarantined documents: sets, not counts.
async fn assert_every_key_is_once(bed: &Bed, entity: &'static Entity) -> usize {
    let collection = bed.database.collection::<RawDocumentBuf>(entity.name);
    let documents: Vec<RawDocumentBuf> =
        collection.find(doc! {}).await.expect("find").try_collect().await.expect("read");
    let mapping = Mapping::new(entity);
    let source: BTreeSet<String> = documents.iter().map(|document| mapping.key(document).text().to_owned()).collect();
    assert_eq!(source.len(), documents.len(), "two documents of {} have one key", entity.name);
    let ids = |sql: String| sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).fetch_all(bed.pool());
    let rows: BTreeSet<_> =
        ids(format!("select id from scheduler.{}", entity.name)).await.expect("rows").into_iter().collect();
    let quarantined: BTreeSet<_> =
        ids(format!("select id from bridge.quarantine where collection = '{}'", entity.name))
            .await
            .expect("quarantine")
            .into_iter()
            .collect();
    assert!(rows.is_disjoint(&quarantined), "{}", entity.name);
    let target: BTreeSet<_> = rows.union(&quarantined).cloned().collect();
    assert_eq!(source, target, "{}", entity.name);
    source.len()
}

async fn assert_clean(bed: &Bed, documents: usize, chunk_bytes: i64) {
    let report = verify_in_ranges_of(bed, chunk_bytes).await;
    assert_eq!(report.verdict, Verdict::Clean, "{chunk_bytes}: {:#?}", report.mismatches);
    let (mut seen, mut accounted) = (0, 0);
    for one in &report.collections {
        assert_eq!(one.documents, one.rows + one.quarantined, "{one:?}");
        seen += one.documents;
        accounted += one.rows + one.quarantined;
    }
    assert_eq!((seen, accounted), (documents as u64, documents as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_every_type_is_a_row_or_quarantined_and_never_both() {
    let bed = Bed::new().await;
    let mut all = fixtures::mapped().expect("fixtures");
    all.extend(fixtures::quarantined().expect("fixtures"));
    all.push(fixtures::largest());
    let mut expected = usize::try_from(fixtures::load(&bed.database, &all).await.expect("load")).expect("a count");
    for entity in ENTITIES {
        let before =
            bed.database.collection::<RawDocumentBuf>(entity.name).count_documents(doc! {}).await.expect("count");
        let ids = (0..12).flat_map(ids).chain([Bson::MinKey, Bson::MaxKey, Bson::Null, true.into(), f64::NAN.into()]);
        let documents: Vec<_> = ids.map(|id| document(entity, id)).collect();
        insert(&bed, entity.name, &documents).await;
        let after =
            bed.database.collection::<RawDocumentBuf>(entity.name).count_documents(doc! {}).await.expect("count");
        assert!(after >= before + 240, "{}: {before} and {after}", entity.name);
        expected += usize::try_from(after - before).expect("a count");
    }
    // Chunks of a few documents, so that their edges fall on and between all types.
    let copied = backfill_in_chunks_of(&bed, 500).await;
    assert_eq!(copied.iter().map(|one| one.tally.documents).sum::<i64>(), i64::try_from(expected).expect("a count"));
    let mut keys = 0;
    for entity in ENTITIES {
        keys += assert_every_key_is_once(&bed, entity).await;
    }
    assert_eq!(keys, expected);
    for chunk_bytes in [500, 5_000, 32 << 20] {
        assert_clean(&bed, expected, chunk_bytes).await;
    }
}

/// The server cannot index symbols by a collation.
fn is_symbol(id: &Bson) -> bool {
    matches!(id, Bson::Symbol(_))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_with_a_collation_of_its_own_is_copied_and_compared_by_bytes() {
    let bed = Bed::new().await;
    let collation = Collation::builder().locale("en").strength(mongodb::options::CollationStrength::Secondary).build();
    for entity in ENTITIES {
        bed.database.create_collection(entity.name).collation(collation.clone()).await.expect("create");
        let text = |n: usize| Bson::from(format!("{}{n:03}", ["b", "A", "ä", "Z", "a-", "Ö", "_"][n % 7]));
        let texts = (0..300).map(text);
        let documents: Vec<_> =
            texts.chain((0..4).flat_map(ids).filter(|id| !is_symbol(id))).map(|id| document(entity, id)).collect();
        insert(&bed, entity.name, &documents).await;
    }
    backfill_in_chunks_of(&bed, 500).await;
    let mut keys = 0;
    for entity in ENTITIES {
        keys += assert_every_key_is_once(&bed, entity).await;
    }
    assert_clean(&bed, keys, 500).await;

    // The server finds "b000" when asked for "B000"; the verifier must not.
    let renamed = "update scheduler.runs set id = 'B000' where id = 'b000'";
    sqlx::query(renamed).execute(bed.pool()).await.expect("rename");
    let changed = "update scheduler.runs set error = 'x' where id = 'A001'";
    sqlx::query(changed).execute(bed.pool()).await.expect("change");
    let mut found: Vec<_> = verify_in_ranges_of(&bed, 500)
        .await
        .mismatches
        .into_iter()
        .map(|one| format!("{} {:?}", one.id.as_str().unwrap_or_default(), one.kind))
        .collect();
    found.sort();
    assert_eq!(found, ["A001 Content", "B000 Extra", "b000 Missing"]);
}
