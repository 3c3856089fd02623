//! What a switch is to those who write meanwhile: they wait, and go on.

use super::away::Writers;
use super::switch::{followed, turned};
use super::{backends, connect};
use crate::bed::Bed;

#[tokio::test(flavor = "multi_thread")]
async fn no_error_reaches_those_who_write_during_flips() {
    let bed = Bed::new().await;
    let connected = connect(&backends(&bed)).await;
    let writers = Writers::start(&connected.store, "w").await;
    let _mirror = followed(&bed).await;
    for phase in ["mongo-primary", "postgres-primary", "mongo-primary", "postgres-primary", "postgres"] {
        turned(&bed, phase).await;
        writers.go_on().await;
    }
    // Each of them would have ended with the first error.
    writers.end().await;
    connected.close().await;
}
