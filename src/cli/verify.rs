//! `bridge verify`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio_util::task::AbortOnDropHandle;

use super::settings::{Workers, collection};
use super::{Context, Exit, Failure, report};
use crate::entity::{ENTITIES, Entity};
use crate::verify::{self, Options, Progress, Redaction, Report, Surroundings, Verdict, VerifyError};

/// How many differences are shown in full for each kind of mismatch when `--diffs` is not given.
const DIFFS: usize = 5;

/// How many mismatches are listed when `--list` is not given.
const LISTED: usize = 10_000;

/// Arguments of `bridge verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Compare this collection only; may be repeated
    #[arg(long = "collection", value_name = "COLLECTION", value_parser = collection())]
    pub collections: Vec<&'static Entity>,
    /// Write the report to this file too: as a page when it ends in .html or .htm, else as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Hide values, wherever the report goes: each becomes its type, its size and a digest that only tells equal values
    /// from others. The names of collections and fields, and every _id, stay
    #[arg(long)]
    pub redact: bool,
    /// Show this many differences in full for each kind of mismatch
    #[arg(long, value_name = "N", default_value_t = DIFFS)]
    pub diffs: usize,
    /// List at most this many mismatches; the rest is counted
    #[arg(long, value_name = "N", default_value_t = LISTED)]
    pub list: usize,
    #[command(flatten)]
    pub workers: Workers,
}

impl VerifyArgs {
    /// What `bridge verify` does without a flag.
    pub(super) fn plain() -> Self {
        let workers = Workers::default();
        Self { collections: Vec::new(), report: None, redact: false, diffs: DIFFS, list: LISTED, workers }
    }
}

pub(super) async fn run(args: VerifyArgs, context: &Context) -> Result<Exit, Failure> {
    let report = verify(&args, context).await?;
    Ok(match report.verdict {
        Verdict::Clean => Exit::Clean,
        Verdict::Mismatch => Exit::Mismatch,
        Verdict::Inconclusive => Exit::Inconclusive,
    })
}

/// Compares the stores and prints what it found.
pub(super) async fn verify(args: &VerifyArgs, context: &Context) -> Result<Report, Failure> {
    let workers = args.workers.settled(&context.settings);
    let stores = context.until_stopped(context.stores(workers.saturating_mul(TWO))).await?;
    let entities = if args.collections.is_empty() { ENTITIES.to_vec() } else { args.collections.clone() };
    let options = Options {
        entities,
        workers: workers.get(),
        listed: args.list,
        shown: args.diffs,
        chunk_bytes: crate::plan::CHUNK_BYTES,
    };
    let mut bars = None;
    let begun = |progress: &[Arc<Progress>]| bars = Some(AbortOnDropHandle::new(tokio::spawn(draw(progress.to_vec()))));
    let mut report = verify::run(&stores.source, &stores.target, &options, begun, context.stop.clone()).await?;
    drop(bars);
    let mut surroundings = Surroundings::of(&stores.source, &stores.target, &options.entities).await?;
    if args.redact {
        Redaction::default().hide(&mut report, &mut surroundings);
    }
    context.output.text(&report::text(&report, &surroundings, args.diffs))?;
    context.output.object(&report::object(&report, &surroundings)?)?;
    if let Some(file) = &args.report {
        report::write(file, &report, &surroundings)?;
    }
    Ok(report)
}

/// A range reads its rows on one connection and looks suspects up on another.
const TWO: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(1);

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Source(error) => error.into(),
            VerifyError::Target(error) => error.into(),
            VerifyError::Crashed => {
                Self::of(Exit::Refused, &error).hint("this is a bug: please report it with the log")
            }
            VerifyError::Interrupted => Self::of(Exit::Interrupted, &error).hint("run `bridge verify` again"),
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
