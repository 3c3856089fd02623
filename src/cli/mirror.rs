//! `bridge mirror`, and what it shows of itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::progress::{Spinner, per_second, seconds};
use super::settings::Lease;
use super::{Context, Exit, Failure, Output};
use crate::mirror::{self, MirrorError, Options, Progress};
use crate::source::Source;
use crate::target::Target;

/// How often it is looked whether there is something new to say.
const FRAME: Duration = Duration::from_millis(200);

/// How often machines hear of it.
const LINE: Duration = Duration::from_secs(1);

/// Arguments of `bridge mirror`.
#[derive(Debug, Args)]
pub(super) struct MirrorArgs {
    #[command(flatten)]
    pub lease: Lease,
}

pub(super) async fn run(args: MirrorArgs, context: &Context) -> Result<Exit, Failure> {
    let target = context.until_stopped(context.keyed_target()).await?;
    let source = context.until_stopped(context.source()).await?;
    let options = Options { lease: args.lease.settled(&context.settings) };
    let progress = Arc::new(Progress::default());
    let work = mirror::run(&source, &target, &options, progress.clone(), context.stop.clone());
    let mut shown = Watch::new(context.output, progress);
    shown.during(work).await??;
    shown.summary()?;
    Ok(Exit::Clean)
}

/// Shows what a mirror does.
pub(super) struct Watch {
    output: Output,
    progress: Arc<Progress>,
    started: Instant,
    said: Said,
}

const ACTIVE: &str = "mirroring: this process is the active one";
const STANDBY: &str = "standing by: another mirror is the active one, or a server is away";

/// What was said last.
#[derive(Debug, Default)]
struct Said {
    /// Whether this process was the active one.
    active: Option<bool>,
    line: Option<(Instant, u64)>,
}

/// What a mirror is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Another process is the active one.
    Standby,
    /// Events wait to be applied.
    Behind,
    /// Nothing is left to apply.
    Level,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Behind => "behind",
            Self::Level => "level",
        }
    }
}

impl Watch {
    /// Nothing shown yet.
    pub(super) fn new(output: Output, progress: Arc<Progress>) -> Self {
        Self { output, progress, started: Instant::now(), said: Said::default() }
    }

    /// Runs `work` to its end and shows the progress meanwhile.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let (mut work, spinner) = (std::pin::pin!(work), Spinner::new());
        // Most processes know after a moment what they are; to say otherwise before would only confuse.
        let mut frames = tokio::time::interval_at(tokio::time::Instant::now() + LINE, FRAME);
        loop {
            tokio::select! {
                biased;
                done = &mut work => break Ok(done),
                _ = frames.tick() => self.show(&spinner)?,
            }
        }
    }

    /// Shows the progress until `stop` is cancelled.
    pub(super) async fn until(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        self.during(stop.cancelled()).await
    }

    /// Shows the progress until the stores are level once, and says so; or until `stop` is cancelled.
    pub(super) async fn until_level(
        &mut self,
        source: &Source,
        target: &Target,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let level = stop.run_until_cancelled(mirror::until_level(source, target));
        if let Some(reached) = self.during(level).await? {
            reached?;
            let taken = self.started.elapsed();
            self.output.object(&json!({ "level": true, "seconds": seconds(taken) }))?;
            self.output.text("the stores are level")?;
        }
        Ok(())
    }

    /// What was done in all.
    pub(super) fn summary(&self) -> Result<(), Failure> {
        let (events, taken) = (self.progress.applied(), self.started.elapsed());
        self.output.text(&format!("stopped; applied {events} events in {:.1} s", taken.as_secs_f64()))?;
        let strays = self.progress.strays();
        self.output
            .object(&json!({ "state": "stopped", "events": events, "strays": strays, "seconds": seconds(taken) }))
    }

    fn state(&self) -> State {
        match self.progress.lag() {
            None => State::Standby,
            Some(lag) if lag.events == 0 && lag.seconds == 0.0 => State::Level,
            Some(_) => State::Behind,
        }
    }

    fn show(&mut self, spinner: &Spinner) -> Result<(), Failure> {
        let state = self.state();
        let lag = self.progress.lag().unwrap_or_default();
        spinner.say(format!(
            "{:8} {:>12} events applied, {} waiting, {:.0} s behind",
            state.word(),
            self.progress.applied(),
            lag.events,
            lag.seconds
        ));
        let active = state != State::Standby;
        if self.said.active.replace(active) != Some(active) {
            self.output.text(if active { ACTIVE } else { STANDBY })?;
        }
        self.line(state)
    }

    fn line(&mut self, state: State) -> Result<(), Failure> {
        let (now, applied) = (Instant::now(), self.progress.applied());
        let (last, before) = self.said.line.unwrap_or((self.started, 0));
        if now - last < LINE {
            return Ok(());
        }
        self.said.line = Some((now, applied));
        let lag = self.progress.lag().unwrap_or_default();
        self.output.object(&json!({
            "state": state.word(),
            "events": applied,
            "events_per_second": per_second(applied - before, now - last),
            "lag_seconds": lag.seconds,
            "lag_events": lag.events,
            "strays": self.progress.strays(),
        }))
    }
}

impl From<MirrorError> for Failure {
    fn from(error: MirrorError) -> Self {
        let resync = |names: &str| format!("run `bridge backfill --resync{names}`, then the mirror again");
        let (exit, hint) = match &error {
            MirrorError::HistoryLost { .. } => (Exit::Source, resync("") + "; a larger oplog keeps more history"),
            MirrorError::Invalidated => (Exit::Source, resync("")),
            MirrorError::Dropped { collection } => {
                (Exit::Source, resync(&format!(" {collection}")) + "; without a name if the database was dropped")
            }
            MirrorError::Renamed { from, to } => {
                let named = [from, to].map(|name| crate::entity::named(name).map(|entity| format!(" {}", entity.name)));
                (Exit::Source, resync(&named.into_iter().flatten().collect::<String>()))
            }
            MirrorError::Truncated { collections } => (Exit::Target, resync(&format!(" {}", collections.join(" ")))),
            MirrorError::Primary { .. } => {
                (Exit::Refused, "nothing is to be mirrored to PostgreSQL any more".to_owned())
            }
            MirrorError::Row { .. } => {
                (Exit::Target, "somebody else has written that row: correct it, then run the mirror again".to_owned())
            }
            MirrorError::Refused { .. } => {
                (Exit::Source, "write that key in PostgreSQL anew, then run the mirror again".to_owned())
            }
            MirrorError::Token => {
                (Exit::Target, "somebody else has written to bridge.stream: ".to_owned() + &resync(""))
            }
            MirrorError::Crashed => (Exit::Target, "report it with the log, then run the command again".to_owned()),
            MirrorError::Source(_) | MirrorError::Target(_) => (Exit::Source, String::new()),
        };
        match error {
            MirrorError::Source(error) => error.into(),
            MirrorError::Target(error) => error.into(),
            error => Self::of(exit, &error).hint(hint),
        }
    }
}
