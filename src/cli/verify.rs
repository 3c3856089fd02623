//! `bridge verify`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio_util::task::AbortOnDropHandle;

use super::escape::{escape, escape_lines};
use super::reads::{self, ReadsArgs};
use super::settings::{Workers, collection};
use super::{Context, Exit, Failure};
use crate::entity::{ENTITIES, Entity};
use crate::verify::{self, Kind, Mismatch, Options, Progress, Report, Verdict, VerifyError};

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
    /// Write the result to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Show this many differences in full for each kind of mismatch
    #[arg(long, value_name = "N", default_value_t = DIFFS)]
    pub diffs: usize,
    /// List at most this many mismatches; the rest is counted
    #[arg(long, value_name = "N", default_value_t = LISTED)]
    pub list: usize,
    #[command(flatten)]
    pub reads: ReadsArgs,
    #[command(flatten)]
    pub workers: Workers,
}

impl VerifyArgs {
    /// What `bridge verify` does without a flag.
    pub(super) fn plain() -> Self {
        let workers = Workers::default();
        Self { collections: Vec::new(), report: None, diffs: DIFFS, list: LISTED, reads: ReadsArgs::default(), workers }
    }
}

pub(super) async fn run(args: VerifyArgs, context: &Context) -> Result<Exit, Failure> {
    if args.reads.reads {
        return reads::run(&args, context).await;
    }
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
    let report = verify::run(&stores.source, &stores.target, &options, begun, context.stop.clone()).await?;
    drop(bars);
    if let Some(file) = &args.report {
        write(file, &report)?;
    }
    context.output.text(&text(&report, args.diffs))?;
    context.output.object(&report)?;
    Ok(report)
}

/// A range reads its rows on one connection and looks suspects up on another.
const TWO: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(1);

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
        Kind::Missing => "missing: the document has no row",
        Kind::Extra => "extra: the row has no document",
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
                "mismatch: {found} of {documents} documents differ, found in {seconds:.1} s; `bridge backfill` copies again"
            )
        }
        Verdict::Inconclusive => "inconclusive: nothing was compared, so nothing is proven".to_owned(),
    }
}
