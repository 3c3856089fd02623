//! `bridge verify --reads`.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use clap::Args;
use tokio_util::task::AbortOnDropHandle;

use super::escape::{escape, escape_lines};
use super::progress::Bar;
use super::summary::table;
use super::verify::VerifyArgs;
use super::{Context, Exit, Failure};
use crate::fence::FenceError;
use crate::phase::Backend;
use crate::target::Target;
use crate::verify::Verdict;
use crate::verify::reads::{self, Difference, Options, Progress, ReadError, ReadReport};

/// Arguments of `bridge verify` that are about reads.
#[derive(Debug, Default, Args)]
pub(super) struct ReadsArgs {
    /// Compare what the scheduler's queries answer on both stores, instead of document by document
    #[arg(long, conflicts_with_all = ["collections", "report", "redact", "sample", "continuous", "repair", "anew"])]
    pub reads: bool,
    /// With --reads: the queries of so many tenants, drawn at random; a gate wants those of all
    #[arg(long, value_name = "N", requires = "reads")]
    pub tenants: Option<NonZeroU64>,
}

/// Connections to PostgreSQL besides those of the workers: for the tenants, the mirror and the report.
const CONNECTIONS_BESIDES: u32 = 3;

pub(super) async fn run(args: &VerifyArgs, context: &Context) -> Result<Exit, Failure> {
    let workers = args.workers.settled(&context.settings).get();
    let options = Options {
        tenants: args.reads.tenants,
        workers,
        rate: args.rates.settled(&context.settings),
        listed: args.list.unwrap_or(super::verify::LISTED),
        shown: args.diffs.unwrap_or(super::verify::DIFFS),
    };
    let connections = u32::try_from(workers).unwrap_or(u32::MAX).saturating_add(CONNECTIONS_BESIDES);
    let open = async {
        let postgres = context.settings.postgres_url()?;
        let source = context.source().await?;
        Ok((source, Target::open_prepared(postgres, connections).await?))
    };
    let (source, target) = context.until_stopped(open).await?;
    let progress = Arc::new(Progress::default());
    let bar = AbortOnDropHandle::new(tokio::spawn(draw(progress.clone())));
    let report = reads::run(&source, &target, &options, progress, context.stop.clone()).await?;
    drop(bar);
    context.output.text(&text(&report))?;
    context.output.object(&report)?;
    Ok(match report.verdict {
        Verdict::Clean => Exit::Clean,
        Verdict::Mismatch => Exit::Mismatch,
        Verdict::Inconclusive => Exit::Inconclusive,
    })
}

/// Draws a bar of the tenants until it is dropped.
async fn draw(progress: Arc<Progress>) {
    let bar = Bar::new("tenants", 0);
    loop {
        bar.set(progress.done.load(Relaxed), progress.tenants.load(Relaxed));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn text(report: &ReadReport) -> String {
    let shown = report.differences.iter().filter(|difference| difference.diff.is_some()).map(block);
    let parts = [counts(report)].into_iter().chain(shown).chain([verdict(report)]);
    parts.collect::<Vec<_>>().join("\n\n")
}

fn counts(report: &ReadReport) -> String {
    let header = ["collection", "queries", "pages", "records", "rechecked", "unsettled", "differences"];
    let mut table = table(&header, header.len() - 1);
    for one in report.collections.iter().filter(|one| one.queries > 0) {
        let counts = [one.queries, one.pages, one.records, one.rechecked, one.unsettled, one.differences];
        table.add_row(std::iter::once(one.name.to_owned()).chain(counts.map(|count| count.to_string())));
    }
    table.to_string()
}

/// The longest diff that is printed, in lines.
const LINES: usize = 60;

fn block(difference: &Difference) -> String {
    let Difference { collection, tenant, query, page, kind, ids, more_ids, diff, .. } = difference;
    let tenant = tenant.as_ref().map_or_else(|| "across tenants".to_owned(), |name| format!("tenant {}", escape(name)));
    let ids: Vec<_> = ids.iter().map(|id| escape(id)).collect();
    let more = if *more_ids > 0 { format!(" and {more_ids} more") } else { String::new() };
    let diff = diff.as_deref().unwrap_or_default();
    let lines: Vec<_> = diff.lines().take(LINES).map(escape_lines).collect();
    let cut = if diff.lines().count() > LINES { "\n…" } else { "" };
    let head = format!("{collection}, {tenant}, page {page} {}", escape(query));
    format!("{head}\n{kind}: {}{more}\n{}{cut}", ids.join(", "), lines.join("\n")).trim_end().to_owned()
}

fn verdict(report: &ReadReport) -> String {
    let ReadReport { queries, tenants, tenants_in_all, records, .. } = report;
    let seconds = (report.finished_at - report.started_at).as_seconds_f64();
    let found: u64 = report.collections.iter().map(|one| one.differences).sum();
    let whose = match report.sampled {
        true => format!("{tenants} of {tenants_in_all} tenants (a sample)"),
        false => format!("{tenants} tenants"),
    };
    let unsettled = match report.unsettled {
        0 => String::new(),
        unsettled => {
            format!("; {unsettled} of them were written to all the time, so that not all of their pages are known")
        }
    };
    match report.verdict {
        Verdict::Clean => format!(
            "clean: {queries} queries of {whose} are answered alike, {records} records compared in {seconds:.1} s{unsettled}"
        ),
        Verdict::Mismatch => format!(
            "mismatch: {found} of {queries} queries of {whose} are answered otherwise, found in {seconds:.1} s{unsettled}"
        ),
        Verdict::Inconclusive => "inconclusive: nothing was compared, so nothing is proven".to_owned(),
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let (exit, hint) = match error {
            ReadError::Source(error) => return error.into(),
            ReadError::Target(error) => return error.into(),
            ReadError::Store { backend: Backend::Mongo, .. } => (Exit::Source, AGAIN),
            ReadError::Store { backend: Backend::Postgres, .. } => (Exit::Target, AGAIN),
            ReadError::Phase(FenceError::Source(_)) => (Exit::Source, AGAIN),
            ReadError::Phase(FenceError::Target(_)) => (Exit::Target, AGAIN),
            ReadError::Phase(_) => (Exit::Refused, "put the cause right, then run the command again"),
            ReadError::Alone => (Exit::Refused, "there is nothing to compare with any more"),
            ReadError::Half => (Exit::Refused, "when the switch is made, or undone, run `bridge verify --reads` again"),
            ReadError::Turned { .. } => (Exit::Refused, "run `bridge verify --reads` again in this phase"),
            ReadError::Behind { .. } => (
                Exit::Inconclusive,
                "see that `bridge mirror` runs and keeps up, then run `bridge verify --reads` again",
            ),
            ReadError::Query(_) | ReadError::Crashed => (Exit::Refused, "this is a bug: please report it with the log"),
            ReadError::Interrupted => (Exit::Interrupted, AGAIN),
        };
        Self::of(exit, &error).hint(hint)
    }
}

const AGAIN: &str = "run `bridge verify --reads` again";
