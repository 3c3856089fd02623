//! `bridge verify`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio_util::task::AbortOnDropHandle;

use super::reads::{self, ReadsArgs};
use super::repair::{self, Wanted};
use super::settings::{Chunks, Lease, Rates, Workers, collection};
use super::switch::operator;
use super::{Context, Exit, Failure, report};
use crate::entity::{ENTITIES, Entity};
use crate::fence::FenceError;
use crate::verify::repair::Extras;
use crate::verify::{self, Options, Progress, Redaction, Report, Start, Surroundings, TOLERANCE, Verdict, VerifyError};

/// How many differences are shown in full for each kind of mismatch when `--diffs` is not given.
pub(super) const DIFFS: usize = 5;

/// The pause between two verifications when `--pause-seconds` is not given.
const PAUSE: Duration = Duration::from_secs(10);

/// How many mismatches are listed when `--list` is not given.
pub(super) const LISTED: usize = 10_000;

/// Arguments of `bridge verify`.
#[derive(Debug, Default, Args)]
pub(super) struct VerifyArgs {
    /// Compare this collection only; may be repeated
    #[arg(long = "collection", value_name = "COLLECTION", value_parser = collection())]
    pub collections: Vec<&'static Entity>,
    /// Compare this part of each collection only, drawn at random (0.05 is one in twenty)
    #[arg(long, value_name = "PART", value_parser = part)]
    pub sample: Option<f64>,
    /// How long a difference must last before it is a mismatch, while a mirror keeps the stores level [default: 10]
    #[arg(long, value_name = "N")]
    pub tolerance_seconds: Option<u32>,
    /// Begin again, also when a verification of the same collections was not finished (one that nobody was at for an hour is
    /// begun again in any case)
    #[arg(long)]
    pub anew: bool,
    /// Verify again and again, until told to stop
    #[arg(long)]
    pub continuous: bool,
    /// The pause between two verifications of --continuous, in seconds [default: 10]
    #[arg(long, value_name = "N", requires = "continuous")]
    pub pause_seconds: Option<u32>,
    /// Afterwards bring the mismatches level from the primary, by guarded writes
    #[arg(long, conflicts_with = "continuous")]
    pub repair: bool,
    /// With --repair: delete what only the secondary has
    #[arg(long, requires = "repair")]
    pub delete_extra: bool,
    /// With --repair: do not ask
    #[arg(long, requires = "repair")]
    pub yes: bool,
    /// Write the report to this file too: as a page when it ends in .html or .htm, else as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Hide values, wherever the report goes: each becomes its type, its size and a digest that only tells equal values
    /// from others. The names of collections and fields, and every _id, stay
    #[arg(long)]
    pub redact: bool,
    /// Show this many differences in full for each kind of mismatch [default: 5]
    #[arg(long, value_name = "N")]
    pub diffs: Option<usize>,
    /// List at most this many mismatches; the rest is counted [default: 10000]
    #[arg(long, value_name = "N")]
    pub list: Option<usize>,
    #[command(flatten)]
    pub reads: ReadsArgs,
    #[command(flatten)]
    pub workers: Workers,
    #[command(flatten)]
    pub rates: Rates,
    #[command(flatten)]
    pub chunks: Chunks,
    #[command(flatten)]
    pub lease: Lease,
}

fn part(text: &str) -> Result<f64, String> {
    let part = text.parse::<f64>().ok().filter(|part| *part > 0.0 && *part <= 1.0);
    part.ok_or_else(|| "a part is more than 0 and at most 1".to_owned())
}

pub(super) async fn run(args: VerifyArgs, context: &Context) -> Result<Exit, Failure> {
    if args.reads.reads {
        return reads::run(&args, context).await;
    }
    if args.continuous {
        return again_and_again(args, context).await;
    }
    let report = verify(&args, context).await?;
    if args.repair {
        let extras = if args.delete_extra { Extras::Delete } else { Extras::Leave };
        let stores = context.until_stopped(context.stores(NonZeroUsize::MIN)).await?;
        return repair::run(&report, Wanted { extras, yes: args.yes }, &stores, context).await;
    }
    Ok(exit(&report))
}

/// How the process ends after this report.
pub(super) fn exit(report: &Report) -> Exit {
    match report.verdict {
        Verdict::Clean => Exit::Clean,
        Verdict::Mismatch => Exit::Mismatch,
        Verdict::Inconclusive => Exit::Inconclusive,
    }
}

/// Verifies until the user stops it. What a store's absence has interrupted is gone on with.
async fn again_and_again(mut args: VerifyArgs, context: &Context) -> Result<Exit, Failure> {
    let pause = args.pause_seconds.map_or(PAUSE, |seconds| Duration::from_secs(seconds.into()));
    while !context.stop.is_cancelled() {
        match verify(&args, context).await {
            Ok(_) => args.anew = false,
            Err(failure) if matches!(failure.exit, Exit::Source | Exit::Target | Exit::Inconclusive) => {
                tracing::warn!(error = failure.message, "verifies again");
            }
            Err(failure) => return Err(failure),
        }
        context.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
    Err(VerifyError::Interrupted.into())
}

/// Compares the stores and prints what it found.
pub(super) async fn verify(args: &VerifyArgs, context: &Context) -> Result<Report, Failure> {
    let options = options(args, context);
    let workers = args.workers.settled(&context.settings);
    let stores = context.until_stopped(context.stores(workers.saturating_mul(TWO))).await?;
    let mut bars = None;
    let begun = |progress: &[Arc<Progress>]| bars = Some(AbortOnDropHandle::new(tokio::spawn(draw(progress.to_vec()))));
    let mut report = verify::run(&stores.source, &stores.target, &options, begun, context.stop.clone()).await?;
    drop(bars);
    let mut surroundings = Surroundings::of(&stores.source, &stores.target, &options.entities).await?;
    if args.redact {
        Redaction::default().hide(&mut report, &mut surroundings);
    }
    context.output.text(&report::text(&report, &surroundings, options.shown))?;
    context.output.object(&report::object(&report, &surroundings)?)?;
    if let Some(file) = &args.report {
        report::write(file, &report, &surroundings)?;
    }
    Ok(report)
}

fn options(args: &VerifyArgs, context: &Context) -> Options {
    let is_named =
        |entity: &Entity| args.collections.is_empty() || args.collections.iter().any(|one| one.name == entity.name);
    Options {
        entities: ENTITIES.iter().copied().filter(|entity| is_named(entity)).collect(),
        start: if args.anew { Start::Anew } else { Start::CarryOn },
        sample: args.sample,
        tolerance: args.tolerance_seconds.map_or(TOLERANCE, |seconds| Duration::from_secs(seconds.into())),
        workers: args.workers.settled(&context.settings).get(),
        rate: args.rates.settled(&context.settings),
        listed: args.list.unwrap_or(LISTED),
        shown: args.diffs.unwrap_or(DIFFS),
        chunk_bytes: args.chunks.settled(&context.settings),
        lease: args.lease.settled(&context.settings),
        name: operator(),
    }
}

/// A range reads its rows on one connection and looks suspects up on another.
const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Source(error) => error.into(),
            VerifyError::Target(error) => error.into(),
            VerifyError::Crashed => {
                Self::of(Exit::Refused, &error).hint("this is a bug: please report it with the log")
            }
            VerifyError::Fence(FenceError::Source(error)) => error.into(),
            VerifyError::Fence(FenceError::Target(error)) => error.into(),
            VerifyError::Fence(_) => Self::of(Exit::Refused, &error).hint("look at `bridge status`"),
            VerifyError::UnderWay { .. } => {
                Self::of(Exit::Refused, &error).hint("wait for it, or begin another beside it: --anew")
            }
            VerifyError::TakenOver => {
                Self::of(Exit::Refused, &error).hint("the other process goes on; this one has nothing left to do")
            }
            VerifyError::Turned => Self::of(Exit::Inconclusive, &error).hint("run the same command again"),
            VerifyError::Behind => Self::of(Exit::Inconclusive, &error)
                .hint("see that `bridge mirror` runs, then run the same command again; it carries on"),
            VerifyError::Unreadable { .. } => Self::of(Exit::Target, &error)
                .hint("somebody else has written to bridge.verification: begin again with --anew"),
            VerifyError::Interrupted => {
                Self::of(Exit::Interrupted, &error).hint("run the same command again; it carries on")
            }
        }
    }
}

/// Draws a bar for each collection until it is dropped.
async fn draw(progress: Vec<Arc<Progress>>) {
    let (bars, style) = (MultiProgress::new(), style());
    let bar = |one: &Arc<Progress>| bars.add(ProgressBar::new(one.estimated).with_style(style.clone()));
    let drawn: Vec<_> = progress.iter().map(|one| (one.clone(), bar(one))).collect();
    loop {
        for (one, bar) in &drawn {
            let documents = one.documents.load(Ordering::Relaxed);
            bar.set_length(one.estimated.max(documents));
            bar.set_position(documents);
            bar.set_prefix(one.collection);
            bar.set_message(format!("{} mismatches", one.mismatches.load(Ordering::Relaxed)));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn style() -> ProgressStyle {
    let template = "{prefix:17} {bar:24} {pos:>9}/{len:<9} {per_sec:>12} eta {eta:>4}  {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
