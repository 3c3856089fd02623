//! `bridge status`.

use std::io::IsTerminal;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::Args;
use comfy_table::{Table, presets};
use tokio::time::MissedTickBehavior;

use super::escape::escape;
use super::report::conditions;
use super::summary::{fitted, number};
use super::{Context, Exit, Failure};
use crate::condition::Condition;
use crate::phase::Phase;
use crate::status::{
    Backfill, Compared, Counted, FenceState, Lookout, Made, Mirror, Mongo, Next, Postgres, Process, Status, Told,
};

/// How often `--watch` looks.
const FRAME: Duration = Duration::from_secs(1);

/// Less than this, in seconds, is level.
const LEVEL: f64 = 1.0;

/// Arguments of `bridge status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Look every second until Ctrl-C: in place on a terminal, otherwise a block for each change; with --json every look
    #[arg(long)]
    pub watch: bool,
}

pub(super) async fn run(args: &StatusArgs, context: &Context) -> Result<Exit, Failure> {
    let mongo = context.settings.mongo_url().ok().cloned();
    let mongo = mongo.map(|url| (url, context.settings.mongo_database.clone()));
    let mut lookout = Lookout::new(mongo, context.settings.postgres_url()?.clone());
    if args.watch {
        return watch(&mut lookout, context).await;
    }
    let status = context.until_stopped(async { Ok(lookout.look().await) }).await?;
    context.output.text(&text(&status))?;
    context.output.object(&status)?;
    Ok(exit(&status))
}

/// PostgreSQL first: it holds most of what there is to know.
fn exit(status: &Status) -> Exit {
    match (status.postgresql.error(), status.mongodb.error()) {
        (Some(_), _) => Exit::Target,
        (_, Some(_)) => Exit::Source,
        _ => Exit::Clean,
    }
}

async fn watch(lookout: &mut Lookout, context: &Context) -> Result<Exit, Failure> {
    let in_place = std::io::stdout().is_terminal();
    let mut last = None;
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = async || {
        frames.tick().await;
        lookout.look().await
    };
    while let Some(status) = context.stop.run_until_cancelled(look()).await {
        context.output.object(&status)?;
        if in_place {
            let (rows, _) = console::Term::stdout().size();
            context.output.text(&frame(&text(&status), rows, last.is_none()))?;
            last.get_or_insert_with(|| status.clone());
        } else if last.as_ref() != Some(&status.still()) {
            context.output.text(&(text(&status) + "\n"))?;
            last = Some(status.still());
        }
    }
    Ok(Exit::Clean)
}

/// `text` over the frame before: each line ends what was there, and the last one ends all below. What does not fit is cut
/// off, or the terminal would scroll.
fn frame(text: &str, rows: u16, is_first: bool) -> String {
    let lines: Vec<&str> = text.lines().take(usize::from(rows.saturating_sub(2)).max(1)).collect();
    let clear = if is_first { "\x1b[2J" } else { "" };
    format!("{clear}\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\n"))
}

/// A heading and what stands beside it.
type Line = (&'static str, String);

fn text(status: &Status) -> String {
    let mut lines = vec![("looked at", when(status.at))];
    if status.finalized {
        lines.push(("phase", "the move is over: PostgreSQL alone holds the scheduler's records".to_owned()));
        return laid_out(&lines);
    }
    lines.push(("phase", phase(status)));
    lines.push(("fences", format!("{}; {}", mongo_fence(&status.mongodb), postgres_fence(&status.postgresql))));
    let mut text;
    match status.postgresql.told() {
        Some(postgres) => {
            lines.extend(moving(status, postgres));
            text = laid_out(&lines);
            let unfinished = unfinished(&postgres.backfill);
            if !unfinished.is_empty() {
                text += &format!("\n\n{}", unfinished.join("\n"));
            }
        }
        None => {
            lines.extend(processes(status));
            text = laid_out(&lines);
        }
    }
    for next in &status.next {
        text += &format!("\n\n{}", gate(next));
    }
    text
}

/// The lines, each beside its heading.
fn laid_out(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (heading, text) in lines {
        table.add_row([&format!("{heading:<10}"), text]);
    }
    for (column, padding) in table.column_iter_mut().zip([(0, 2), (0, 0)]) {
        column.set_padding(padding);
    }
    fitted(table)
}

fn phase(status: &Status) -> String {
    let Some(stands) = status.standing else {
        return "not known: the fences that could be read do not tell".to_owned();
    };
    let half = if stands.open { "" } else { "; NO STORE TAKES WRITES: a switch is half way" };
    format!("{}, epoch {}{half}", stands.phase, stands.epoch)
}

fn mongo_fence(told: &Told<Mongo>) -> String {
    match told {
        Told::Told(Mongo { fence: Some(fence), .. }) => format!("MongoDB {}", fence_words(*fence)),
        Told::Told(Mongo { fence: None, .. }) => "MongoDB has none yet".to_owned(),
        Told::Silent { error } => format!("MongoDB DOES NOT TELL: {}", escape(error)),
        Told::NotAsked => "MongoDB is not needed any more".to_owned(),
    }
}

fn postgres_fence(told: &Told<Box<Postgres>>) -> String {
    match told {
        Told::Told(postgres) => format!("PostgreSQL {}", fence_words(postgres.fence)),
        Told::Silent { error } => format!("PostgreSQL DOES NOT TELL: {}", escape(error)),
        Told::NotAsked => "PostgreSQL has none".to_owned(),
    }
}

fn fence_words(fence: FenceState) -> String {
    let state = if fence.open { "open" } else { "closed" };
    format!("{state} ({}, epoch {})", fence.phase, fence.epoch)
}

/// All that PostgreSQL knows.
fn moving(status: &Status, postgres: &Postgres) -> Vec<Line> {
    let at = status.at;
    let mut lines = Vec::new();
    if let Some(switch) = &postgres.switch {
        let held = if switch.is_held { "" } else { "; NOBODY IS AT IT: bridge switch --resume, or --abort" };
        let (from, to, since) = (escape(&switch.from), escape(&switch.to), ago(at, switch.began_at));
        let (by, step) = (escape(&switch.by), escape(&switch.step));
        lines.push(("switch", format!("from {from} to {to} by {by}, begun {since}, at: {step}{held}")));
    }
    lines.extend(processes(status));
    lines.push(("backfill", copied(&postgres.backfill, at)));
    lines.push(("mirror", mirror(postgres.mirror.as_ref(), postgres.fence, at)));
    if !postgres.truncated.is_empty() {
        lines.push(("truncated", format!("{}: bridge backfill --resync", escape(&postgres.truncated.join(", ")))));
    }
    if postgres.outbox.count > 0 || postgres.fence.phase == Phase::PostgresPrimary.name() {
        lines.push(("outbox", outbox(postgres.outbox.count, postgres.outbox.oldest_seconds)));
    }
    lines.push(("recheck", counted(postgres.recheck, "key to compare again", "keys to compare again")));
    lines.push(("quarantine", accepted(&postgres.quarantine, "document", "documents")));
    lines.push(("strays", accepted(&postgres.strays, "stray write", "stray writes")));
    lines.push(("verified", verified(postgres, at)));
    lines.push(("reads", postgres.read_parity.as_ref().map_or_else(never, |last| compared(last, at))));
    if let Some(last) = &postgres.last_switch {
        lines.push(("turned", made(last, at)));
    }
    lines
}

fn processes(status: &Status) -> Option<Line> {
    let of = |store: &str, processes: &[Process]| {
        let names: Vec<String> = processes.iter().map(process).collect();
        format!("{} at {store}: {}", processes.len(), names.join(", "))
    };
    let mongo = status.mongodb.told().map(|told| of("MongoDB", &told.processes));
    let postgres = status.postgresql.told().map(|told| of("PostgreSQL", &told.processes));
    let told: Vec<String> = mongo.into_iter().chain(postgres).filter(|words| !words.starts_with('0')).collect();
    let words = if told.is_empty() { "none of the application".to_owned() } else { told.join("; ") };
    Some(("processes", words))
}

fn process(process: &Process) -> String {
    let name = escape(&process.name);
    // A process is heard of twice a second and more.
    if process.silent_seconds < 2.0 {
        return name.into_owned();
    }
    format!("{name} (SILENT for {:.0} s)", process.silent_seconds)
}

fn copied(backfill: &[Backfill], at: DateTime<Utc>) -> String {
    let unbegun: Vec<&str> =
        backfill.iter().filter(|one| one.began_at.is_none()).map(|one| one.collection.as_str()).collect();
    if unbegun.len() == backfill.len() {
        return "not begun".to_owned();
    }
    let finished: Vec<DateTime<Utc>> = backfill.iter().filter_map(|one| one.finished_at).collect();
    let last = finished.iter().max().map(|last| format!(", the last {}", ago(at, *last))).unwrap_or_default();
    let rest = if unbegun.is_empty() { String::new() } else { format!("; not begun: {}", unbegun.join(", ")) };
    format!("{} of {} collections{last}{rest}", finished.len(), backfill.len())
}

/// The collections whose copy has begun and not ended.
fn unfinished(backfill: &[Backfill]) -> Vec<String> {
    let open = backfill.iter().filter(|one| one.began_at.is_some() && one.finished_at.is_none());
    let line = |one: &Backfill| {
        format!(
            "  {:<17} {} of about {} documents, {} of {} chunks; {} under way",
            one.collection,
            number(one.documents),
            number(one.estimated_documents),
            one.chunks_finished,
            one.chunks,
            one.chunks_leased
        )
    };
    open.map(line).collect()
}

fn mirror(mirror: Option<&Mirror>, fence: FenceState, at: DateTime<Utc>) -> String {
    let Some(mirror) = mirror else { return "never ran".to_owned() };
    let level =
        mirror.level_at.map_or_else(|| "was never level".to_owned(), |level| format!("level {}", ago(at, level)));
    if !mirror.is_running {
        let is_wanted = fence.phase != Phase::Postgres.name();
        return format!("{}; {level}", if is_wanted { "DOES NOT RUN" } else { "does not run" });
    }
    match (mirror.lag_seconds, mirror.lag_events) {
        (Some(seconds), events) if seconds >= LEVEL => {
            format!(
                "runs, {seconds:.0} s and {} behind; {level}",
                counted(events.unwrap_or_default(), "event", "events")
            )
        }
        _ => format!("runs; {level}"),
    }
}

fn outbox(count: i64, oldest: f64) -> String {
    match count {
        0 => "empty".to_owned(),
        count => format!("{}, the first {oldest:.0} s old", counted(count, "write", "writes")),
    }
}

fn counted(count: i64, one: &str, several: &str) -> String {
    match count {
        0 => "none".to_owned(),
        1 => format!("1 {one}"),
        count => format!("{} {several}", number(count)),
    }
}

fn accepted(counts: &Counted, one: &str, several: &str) -> String {
    let words = counted(counts.count, one, several);
    match (counts.count, counts.count - counts.accepted) {
        (0, _) => words,
        (_, 0) => format!("{words}, accepted"),
        (_, open) => format!("{words}, {} NOT ACCEPTED", number(open)),
    }
}

fn verified(postgres: &Postgres, at: DateTime<Utc>) -> String {
    let last = postgres.verification.as_ref().map_or_else(never, |last| compared(last, at));
    match &postgres.verifying {
        None => last,
        Some(running) => format!(
            "number {} runs, begun {} by {}, {} of {} parts; before it: {last}",
            running.number,
            ago(at, running.began_at),
            escape(&running.by),
            running.shares_finished,
            running.shares
        ),
    }
}

fn compared(last: &Compared, at: DateTime<Utc>) -> String {
    let verdict = last.verdict.as_deref().unwrap_or("no verdict");
    let verdict = if verdict == "clean" { verdict.to_owned() } else { verdict.to_uppercase() };
    format!(
        "number {}: {}, {}, took {}; begun in phase {}, epoch {}",
        last.number,
        escape(&verdict),
        ago(at, last.finished_at),
        span(last.finished_at - last.began_at),
        escape(&last.phase),
        last.epoch
    )
}

fn made(last: &Made, at: DateTime<Utc>) -> String {
    let pause = last.pause_seconds.map(|pause| format!("; writers waited {:.0} ms", pause * 1_000.0));
    let (phase, by) = (escape(&last.phase), escape(&last.turned_by));
    let head = format!("to {phase} {} by {by}{}", ago(at, last.turned_at), pause.unwrap_or_default());
    let conditions: Vec<Condition> = serde_json::from_value(last.conditions.clone()).unwrap_or_default();
    if conditions.is_empty() {
        return head;
    }
    let found = conditions.iter().map(|one| format!("{}: {}", one.name, one.found)).collect::<Vec<_>>().join("; ");
    format!("{head}\nthe gate found {}", escape(&found))
}

fn gate(next: &Next) -> String {
    let to = next.to;
    if let Some(error) = &next.error {
        return laid_out(&[("next", format!("{to}; its gate could not be looked at: {}", escape(error)))]);
    }
    let unmet = next.conditions.iter().filter(|condition| !condition.met).count();
    let head = match unmet {
        0 => format!("{to} may follow: bridge switch {to}"),
        unmet => format!("{to}: {unmet} of {} conditions NOT MET", next.conditions.len()),
    };
    format!("{}\n{}", laid_out(&[("next", head)]), conditions(&next.conditions))
}

fn never() -> String {
    "never".to_owned()
}

fn when(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The moment, and how long ago it was.
fn ago(now: DateTime<Utc>, at: DateTime<Utc>) -> String {
    format!("{} ago", span(now - at))
}

/// A length of time in its largest unit.
fn span(length: TimeDelta) -> String {
    match length.num_seconds().max(0) {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7_200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_covers_the_one_before_and_never_scrolls() {
        assert_eq!(frame("a\nb", 24, true), "\x1b[2J\x1b[Ha\x1b[K\nb\x1b[K\x1b[J");
        assert_eq!(frame("a\nb\nc\nd", 4, false), "\x1b[Ha\x1b[K\nb\x1b[K\x1b[J");
        assert_eq!(frame("a\nb", 0, false), "\x1b[Ha\x1b[K\x1b[J");
    }

    #[test]
    fn a_length_of_time_is_told_in_its_largest_unit() {
        let told =
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (172_800, "2 days")];
        for (seconds, words) in told {
            assert_eq!(span(TimeDelta::seconds(seconds)), words);
        }
        assert_eq!(span(TimeDelta::seconds(-5)), "0 s");
    }
}
