//! What an application's recorder is told while both stores are used, mirrored and switched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use scheduler_bridge::mirror::{self, Options};
use scheduler_bridge::phase::Phase;
use scheduler_bridge::source::Source;
use scheduler_bridge::switch::Switch;
use scheduler_bridge::switch::gate::Limits;
use scheduler_bridge::target::Target;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::{LIMIT, backends, connect, turn};
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;
use crate::faults::proxy::{Proxy, Weather};
use crate::stores::samples::run;

/// Conditions of the gate that need a verifier, and a server that no other test is connected to.
const WAIVED: [&str; 2] = ["switch::unverified", "switch::clients"];

/// What was told since it was last asked for, by name and outcome.
fn told(snapshotter: &Snapshotter) -> BTreeMap<String, Vec<f64>> {
    let values = snapshotter.snapshot().into_vec().into_iter().map(|(key, _, _, value)| {
        let labels = key.key().labels().map(|label| format!(" {}", label.value()));
        let name = std::iter::once(key.key().name().to_owned()).chain(labels).collect();
        let values = match value {
            DebugValue::Counter(count) => vec![f64::from(u32::try_from(count).expect("a small number"))],
            DebugValue::Gauge(now) => vec![now.into_inner()],
            DebugValue::Histogram(all) => all.into_iter().map(f64::from).collect(),
        };
        (name, values)
    });
    values.collect()
}

// One thread, whose recorder this is: no other test's metrics come into it.
#[tokio::test]
async fn writes_that_follow_fail_and_are_passed_over_are_counted() {
    let recorder = DebuggingRecorder::new();
    let _local = metrics::set_default_local_recorder(&recorder);
    let bed = Bed::new().await;
    turn(&bed, Phase::MongoPrimary, 1).await;
    let proxy = Proxy::before(&bed.postgres_url).await;
    let mut backends = backends(&bed);
    backends.postgres = Some(proxy.url(&bed.postgres_url).into());
    let protection = &mut backends.settings.tuning.protection;
    (protection.deadline, protection.pause) = (LIMIT, LIMIT);
    let connected = connect(&backends).await;
    let create = async |id: &str| connected.scheduler.runs.create(&run("a", id)).await.expect("no write fails");
    create("one").await;
    connected.store.idle().await;
    proxy.turn(Weather::Still);
    backends.settings.tuning.protection.deadline = Duration::from_millis(50);
    connected.reconfigure(&backends.settings).expect("a change at once");
    create("two").await;
    connected.store.idle().await;
    create("three").await;
    let told = told(&recorder.snapshotter());
    for outcome in ["level", "failed", "skipped"] {
        assert_eq!(told[&format!("bridge_secondary_writes_total {outcome}")], [1.0], "{outcome} {told:?}");
    }
    assert_eq!(
        (&told["bridge_breaker_open"][..], &told["bridge_breaker_openings_total"][..]),
        (&[1.0][..], &[1.0][..])
    );
    // The first took its time, the second as long as it was waited for, the third none.
    let took = &told["bridge_secondary_seconds"];
    assert!(took.len() == 2 && took[0] > 0.0 && took[1] >= 0.05, "{took:?}");
    proxy.turn(Weather::Fair);
    connected.close().await;
}

#[tokio::test]
async fn the_mirror_and_a_switch_tell_how_far_they_are_and_how_long_it_took() {
    let recorder = DebuggingRecorder::new();
    let _local = metrics::set_default_local_recorder(&recorder);
    let bed = Bed::new().await;
    turn(&bed, Phase::MongoPrimary, 1).await;
    let connected = connect(&backends(&bed)).await;
    connected.scheduler.runs.create(&run("a", "one")).await.expect("create");
    Bridge::start(bed.bridge(&["backfill"])).ended().await.says(0, &[]);

    let source = Source::open(&SecretString::from(bed.mongo_url.as_str()), bed.database.name()).await.expect("MongoDB");
    let target = Target::open_prepared(&SecretString::from(bed.postgres_url.as_str()), 5).await.expect("PostgreSQL");
    let (progress, stop) = (Arc::<mirror::Progress>::default(), CancellationToken::new());
    let running = tokio::spawn({
        let (source, target, progress, stop) = (source.clone(), target.clone(), progress.clone(), stop.clone());
        async move { mirror::run(&source, &target, &Options { lease: Duration::from_secs(5) }, progress, stop).await }
    });
    let writing = tokio::spawn({
        let (scheduler, stop) = (connected.scheduler.clone(), stop.clone());
        async move {
            for number in 0.. {
                if stop.is_cancelled() {
                    break;
                }
                scheduler.runs.create(&run("a", &format!("run-{number}"))).await.expect("no write fails");
            }
        }
    });
    until("the mirror has applied something", LIMIT, async || progress.applied() > 0).await;

    // Only here: no other test of this process turns a switch in it.
    for waived in WAIVED {
        fail::cfg(waived, "return").expect("waive a condition");
    }
    let switch = Switch::new(source, target, "a test".to_owned(), Duration::from_secs(5));
    let deadline = tokio::time::Instant::now() + LIMIT;
    let permit = loop {
        match switch.permit(Phase::PostgresPrimary, &Limits::default()).await {
            Ok(permit) => break permit,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error:?}"),
        }
    };
    let made = switch.make(permit, scheduler_bridge::switch::Options::default(), &mut |_| ()).await.expect("it turns");
    WAIVED.into_iter().for_each(fail::remove);
    stop.cancel();
    writing.await.expect("a writer");
    running.await.expect("a mirror").expect("it is told to stop");

    let told = told(&recorder.snapshotter());
    assert_eq!(told["bridge_switch_pause_seconds"], [made.pause.as_secs_f64()]);
    let waited = &told["bridge_gate_wait_seconds"];
    assert!(waited.iter().any(|waited| *waited > 0.0), "{waited:?}");
    assert_eq!(told["bridge_gate_waiting"], [0.0]);
    assert_eq!(told["bridge_mirror_events_total"], [f64::from(u32::try_from(progress.applied()).expect("few"))]);
    assert_eq!(told["bridge_mirror_active"], [0.0], "it has ended");
    assert!(told["bridge_mirror_lag_seconds"][0].is_nan() && told["bridge_mirror_lag_events"][0].is_nan());
    connected.close().await;
}
