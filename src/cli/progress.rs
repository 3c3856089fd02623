//! What a person or a machine sees while collections are being read: a bar each on stderr, or a JSON line a second.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Failure, Output};
use crate::backfill::Progress;

/// How often the bars move.
const FRAME: Duration = Duration::from_millis(100);

/// How often machines hear of it.
const LINE: Duration = Duration::from_secs(1);

/// All bars of the process: whoever writes to the same terminal must make them step aside.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes to the terminal without tearing the bars.
pub(super) fn above_bars<R>(write: impl FnOnce() -> R) -> R {
    BARS.suspend(write)
}

/// A bar of its own, for work that has no collection. Hidden when stderr is no terminal; removed when dropped.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar for `length` things.
    pub(super) fn new(name: &'static str, length: u64) -> Self {
        Self(BARS.add(ProgressBar::new(length).with_style(style()).with_prefix(name)))
    }

    /// Moves it on.
    pub(super) fn add(&self, done: u64) {
        self.0.inc(done);
    }

    /// So many of so many are done.
    pub(super) fn set(&self, done: u64, length: u64) {
        self.0.set_length(length);
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        BARS.remove(&self.0);
    }
}

/// A line of its own, for work that has no end. Hidden when stderr is no terminal; removed when dropped.
pub(super) struct Spinner(ProgressBar);

impl Spinner {
    /// An empty line.
    pub(super) fn new() -> Self {
        Self(BARS.add(ProgressBar::new_spinner()))
    }

    /// Says this from now on.
    pub(super) fn say(&self, text: String) {
        self.0.set_message(text);
        self.0.tick();
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        BARS.remove(&self.0);
    }
}

fn style() -> ProgressStyle {
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people; the cast saturates"
        )]
        let rate = HumanCount(state.per_sec() as u64).to_string();
        write!(out, "{:>14}", format!("{rate}/s")).unwrap_or_default();
    };
    // A fault of the template shows in every run; the default is then better than nothing.
    ProgressStyle::with_template("{prefix:17} {wide_bar} {human_pos:>12} of {human_len:<12} {rate} {eta:>5}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", rate)
}

/// The progress of collections, as long as the value lives.
pub(super) struct Display {
    output: Output,
    rows: OnceLock<Vec<Row>>,
    started: Instant,
}

struct Row {
    progress: Arc<Progress>,
    bar: ProgressBar,
    /// Documents that were done when this process began.
    before: u64,
}

impl Display {
    /// Nothing to show yet.
    pub(super) fn new(output: Output) -> Self {
        Self { output, rows: OnceLock::new(), started: Instant::now() }
    }

    /// Shows these counters from now on; only the first call counts.
    pub(super) fn begin(&self, progress: &[Arc<Progress>]) {
        self.rows.get_or_init(|| progress.iter().map(|progress| Row::new(progress.clone(), self.output)).collect());
    }

    /// Runs `work`, which calls [`Self::begin`] and stops by itself when `stop` is cancelled from then on; before that
    /// it is dropped.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>, stop: &CancellationToken) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let (mut frames, mut lines) = (tokio::time::interval(FRAME), Lines::new(self.started));
        loop {
            tokio::select! {
                biased;
                done = &mut work => break Some(done),
                () = stop.cancelled(), if self.rows.get().is_none() => break None,
                _ = frames.tick() => self.show(&mut lines),
            }
        }
    }

    /// Documents that this process has read, and the time since it began.
    pub(super) fn done(&self) -> (u64, Duration) {
        (self.rows().iter().map(Row::read).sum(), self.started.elapsed())
    }

    fn rows(&self) -> &[Row] {
        self.rows.get().map_or(&[], Vec::as_slice)
    }

    fn show(&self, lines: &mut Lines) {
        self.rows().iter().for_each(Row::draw);
        // A stdout that takes nothing any more is told about when the result goes there too.
        if lines.are_due() && self.output.is_json() && !self.rows().is_empty() {
            drop(self.line(lines));
        }
    }

    fn line(&self, lines: &mut Lines) -> Result<(), Failure> {
        let taken = lines.next();
        lines.documents.resize(self.rows().len(), 0);
        let describe = |(row, last): (&Row, &mut u64)| {
            let read = row.read();
            let rate = per_second(read.saturating_sub(std::mem::replace(last, read)), taken);
            json!({
                "collection": row.progress.collection,
                "documents": row.progress.documents.load(Relaxed),
                "estimated": row.progress.estimated.load(Relaxed),
                "documents_per_second": rate,
                "bytes": row.progress.bytes.load(Relaxed),
            })
        };
        let progress: Vec<_> = self.rows().iter().zip(&mut lines.documents).map(describe).collect();
        self.output.object(&json!({ "progress": progress, "seconds": seconds(self.started.elapsed()) }))
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        for row in self.rows() {
            row.bar.finish_and_clear();
            BARS.remove(&row.bar);
        }
    }
}

/// When the last line was written, and what it said.
struct Lines {
    last: Instant,
    documents: Vec<u64>,
}

impl Lines {
    fn new(started: Instant) -> Self {
        Self { last: started, documents: Vec::new() }
    }

    fn are_due(&self) -> bool {
        self.last.elapsed() >= LINE
    }

    /// The time since the line before this one.
    fn next(&mut self) -> Duration {
        let taken = self.last.elapsed();
        self.last += taken;
        taken
    }
}

impl Row {
    fn new(progress: Arc<Progress>, output: Output) -> Self {
        let before = progress.documents.load(Relaxed);
        let bar = ProgressBar::new(progress.estimated.load(Relaxed)).with_style(style()).with_position(before);
        let bar = bar.with_prefix(progress.collection);
        let bar = if output.is_json() { bar } else { BARS.add(bar) };
        Self { progress, bar, before }
    }

    fn read(&self) -> u64 {
        self.progress.documents.load(Relaxed) - self.before
    }

    fn draw(&self) {
        let (documents, estimated) = (self.progress.documents.load(Relaxed), self.progress.estimated.load(Relaxed));
        if documents == self.before {
            // The rate is that of the collection's own time, not of the time it waited for others.
            self.bar.reset_elapsed();
            self.bar.reset_eta();
        }
        self.bar.set_length(documents.max(estimated));
        self.bar.set_position(documents);
        if documents >= estimated && !self.bar.is_finished() {
            self.bar.abandon();
        }
    }
}

/// Whole things a second.
pub(super) fn per_second(number: u64, taken: Duration) -> u64 {
    let millis = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX).max(1);
    number.saturating_mul(1_000) / millis
}

/// Seconds, to three places.
pub(super) fn seconds(taken: Duration) -> f64 {
    (taken.as_secs_f64() * 1_000.0).round() / 1_000.0
}
