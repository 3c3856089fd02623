//! Documents at the limit of the server, and updates whose events would be over it.

use mongodb::Collection;
use mongodb::bson::{Document, doc, oid::ObjectId};
use scheduler_bridge::dataset::fixtures;

use super::{assert_clean, begun, level, mirror, stop};
use crate::bed::Bed;

/// A log line with two texts of so many bytes each.
fn line(number: u8, length: usize) -> Document {
    doc! {
        "_id": ObjectId::from_bytes([number; 12]), "tenantId": "t", "runId": "r", "sequence": i64::from(number),
        "message": "m".repeat(length), "more": "n".repeat(length),
    }
}

/// Inserts and updates documents whose events, with the description of the update and the document, exceed 16 MiB.
async fn write(logs: &Collection<Document>) {
    let largest = Document::try_from(&fixtures::largest().document).expect("a document");
    let id = largest.get_object_id("_id").expect("an id");
    let message = largest.get_str("message").expect("a text").to_uppercase();
    logs.insert_one(largest).await.expect("insert");
    logs.update_one(doc! { "_id": id }, doc! { "$set": { "message": message } }).await.expect("update");
    logs.insert_one(line(1, 7_500_000)).await.expect("insert");
    let both = doc! { "$set": { "message": "M".repeat(7_000_000), "more": "N".repeat(7_000_000) } };
    logs.update_one(doc! { "_id": ObjectId::from_bytes([1; 12]) }, both).await.expect("update");
    logs.insert_one(line(2, 7_500_000)).await.expect("insert");
    logs.replace_one(doc! { "_id": ObjectId::from_bytes([2; 12]) }, line(2, 8_000_000)).await.expect("replace");
    logs.insert_one(line(3, 7_500_000)).await.expect("insert");
    logs.delete_one(doc! { "_id": ObjectId::from_bytes([3; 12]) }).await.expect("delete");
    // An ordinary one among them.
    logs.insert_one(line(4, 10)).await.expect("insert");
    logs.update_one(doc! { "_id": ObjectId::from_bytes([4; 12]) }, doc! { "$inc": { "sequence": 1_i64 } })
        .await
        .expect("update");
}

async fn assert_comes_through(create: Document) {
    let bed = Bed::new().await;
    bed.database.run_command(create).await.expect("create");
    let logs = bed.database.collection("execution_logs");
    // As it happens, and all at once.
    let live = mirror(&bed);
    begun(&bed).await;
    write(&logs).await;
    level(&bed).await;
    assert_clean(&bed).await;
    stop(live).await;
    logs.delete_many(doc! {}).await.expect("delete");
    write(&logs).await;
    let late = mirror(&bed);
    level(&bed).await;
    assert_eq!(super::ids(&bed, "execution_logs").await.len(), 4);
    assert_clean(&bed).await;
    stop(late).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_over_16_mebibytes_come_through_with_post_images() {
    assert_comes_through(doc! { "create": "execution_logs", "changeStreamPreAndPostImages": { "enabled": true } })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_over_16_mebibytes_come_through_without_post_images() {
    assert_comes_through(doc! { "create": "execution_logs" }).await;
}
