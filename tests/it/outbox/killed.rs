//! Drains that die.

use super::{LIMIT, assert_level, create, delete, error_of, left, mirror, mirrored, replace, turn, until_drained};
use crate::bed::{Bed, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_killed_between_apply_and_delete_is_repeated_without_harm() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let mut held = create(&store, "a", "zero").await;
    let gone = create(&store, "b", "one").await;
    delete(&store, "b", gone).await;
    for round in 1..=3 {
        let error = round.to_string();
        held = replace(&store, "a", held, &error).await;
        let dies = mirror(&bed, &[("FAILPOINTS", "outbox::applied=pause")]);
        until("it is applied", LIMIT, async || error_of(&bed, "a").await.as_deref() == Some(&error)).await;
        assert!(dies.kill().await, "it was to be killed while it worked");
        assert!(left(&bed).await >= 3, "what is not committed is still there");
        // It was newer in MongoDB than any drain knows, and is so no more.
        assert_eq!(error_of(&bed, "b").await, None);
    }
    held = replace(&store, "a", held, "last").await;
    let _mirror = mirror(&bed, &[]);
    until_drained(&bed).await;
    assert_eq!(error_of(&bed, "a").await.as_deref(), Some("last"));
    assert_level(&bed).await;
    delete(&store, "a", held).await;
    until("it is gone", LIMIT, async || error_of(&bed, "a").await.is_none()).await;
}
