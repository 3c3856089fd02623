//! `bridge verify`.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio_util::task::AbortOnDropHandle;

use super::escape::{escape, escape_lines};
use super::repair::{self, Wanted};
use super::settings::{Chunks, Lease, Rates, Workers, collection};
use super::switch::operator;
use super::{Context, Exit, Failure};
use crate::entity::{ENTITIES, Entity};
use crate::fence::FenceError;
use crate::verify::repair::Extras;
use crate::verify::{self, Kind, Mismatch, Options, Progress, Report, Start, TOLERANCE, Verdict, VerifyError};

/// How many differences are shown in full for each kind of mismatch when `--diffs` is not given.
const DIFFS: usize = 5;

/// The pause between two verifications when `--pause-seconds` is not given.
const PAUSE: Duration = Duration::from_secs(10);

/// How many mismatches are listed when `--list` is not given.
const LISTED: usize = 10_000;

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
    /// Begin again, also when a verification of the same collections was not finished
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
    /// Write the result to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Show this many differences in full for each kind of mismatch [default: 5]
    #[arg(long, value_name = "N")]
    pub diffs: Option<usize>,
    /// List at most this many mismatches; the rest is counted [default: 10000]
    #[arg(long, value_name = "N")]
    pub list: Option<usize>,
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
    let report = verify::run(&stores.source, &stores.target, &options, begun, context.stop.clone()).await?;
    drop(bars);
    if let Some(file) = &args.report {
        write(file, &report)?;
    }
    context.output.text(&text(&report, options.shown))?;
    context.output.object(&report)?;
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

fn write(file: &std::path::Path, report: &Report) -> Result<(), Failure> {
    let attempted = format!("write the report to {}", file.display());
    let text = serde_json::to_string_pretty(report).map_err(|error| Failure::system(&attempted, &error.into()))?;
    std::fs::write(file, text + "\n").map_err(|error| Failure::system(&attempted, &error))
}

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

fn text(report: &Report, diffs: usize) -> String {
    let seconds = (report.finished_at - report.started_at).as_seconds_f64();
    let parts = [table(report), listed(report, diffs), verdict(report, seconds)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["collection", "documents", "rows", "quarantined", "missing", "extra", "content"]);
    for one in &report.collections {
        let counts = [one.documents, one.rows, one.quarantined, one.missing, one.extra, one.content];
        table.add_row(std::iter::once(one.name.to_owned()).chain(counts.map(|count| count.to_string())));
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.to_string()
}

/// The first mismatches of each kind, in full.
fn listed(report: &Report, diffs: usize) -> String {
    let mut shown: HashMap<Kind, usize> = HashMap::new();
    let mut blocks = Vec::new();
    for mismatch in &report.mismatches {
        let shown = shown.entry(mismatch.kind).or_default();
        *shown += 1;
        if *shown <= diffs {
            blocks.push(block(mismatch));
        }
    }
    blocks.join("\n\n")
}

/// The longest difference that is printed, in lines.
const LINES: usize = 60;

fn block(mismatch: &Mismatch) -> String {
    let kind = match mismatch.kind {
        Kind::Missing => "missing: only the primary has it",
        Kind::Extra => "extra: only the secondary has it",
        Kind::Content => "content: the two sides differ",
    };
    let head = format!("{} {}\n{kind}", mismatch.collection, escape(&mismatch.id.to_string()));
    let reason = mismatch.reason.as_ref().map(|reason| format!("\n{}", escape(reason))).unwrap_or_default();
    let diff = mismatch.sides.as_ref().map(|sides| format!("\n{}", cut(&sides.diff()))).unwrap_or_default();
    format!("{head}{reason}{}", diff.trim_end())
}

fn cut(diff: &str) -> String {
    let width = |line: &str| line[..line.floor_char_boundary(400)].to_owned();
    let mut lines: Vec<_> = diff.lines().take(LINES).map(|line| escape_lines(&width(line)).into_owned()).collect();
    if diff.lines().count() > LINES {
        lines.push("…".to_owned());
    }
    lines.join("\n")
}

fn verdict(report: &Report, seconds: f64) -> String {
    let documents: u64 = report.collections.iter().map(|one| one.documents).sum();
    let found: u64 = report.collections.iter().map(verify::Counts::mismatches).sum();
    match report.verdict {
        Verdict::Clean => format!("clean: {documents} documents compared in {seconds:.1} s, no difference"),
        Verdict::Mismatch => {
            format!(
                "mismatch: {found} of {documents} documents differ, found in {seconds:.1} s; `bridge verify --repair` brings them level"
            )
        }
        Verdict::Inconclusive => "inconclusive: nothing was compared, so nothing is proven".to_owned(),
    }
}
