//! Ctrl-C and SIGTERM: the first asks the command to stop, the second stops it. SIGHUP: the file is to be read again.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::output::complain;
use super::{Exit, Failure};

/// A token that the first signal cancels. The second ends the process at once; everything the bridge writes is
/// transactional, so that nothing half done remains.
///
/// Must be called inside a runtime, which owns the task that listens.
pub(super) fn watched() -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    let (interrupt, terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    drop(tokio::spawn(watch(interrupt, terminate, stop.clone())));
    Ok(stop)
}

/// Every SIGHUP from now on, which ends the process no more.
pub(super) fn hangups() -> Result<Signal, Failure> {
    listen(SignalKind::hangup())
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::system("listen for signals", &error))
}

async fn watch(mut interrupt: Signal, mut terminate: Signal, stop: CancellationToken) {
    either(&mut interrupt, &mut terminate).await;
    complain("stopping; once more to stop at once");
    stop.cancel();
    either(&mut interrupt, &mut terminate).await;
    std::process::exit(i32::from(Exit::Interrupted.code()));
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
