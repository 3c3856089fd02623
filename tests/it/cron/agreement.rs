//! A million (expression, zone, instant) triples, answered by the program and by `cron.py`.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use chrono::{DateTime, Duration, Offset, TimeZone, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};
use scheduler_bridge::scheduler::cron::Cron;

use super::expressions::expression;
use crate::checker::python;
use crate::faults::killed::Moments;

const PAIRS: usize = 1_000;
const INSTANTS: usize = 1_000;

/// Instants lie between these: both sources of zones have every change there, and neither its own idea of the far future.
const YEARS: (i32, i32) = (1971, 2037);

/// Zones with rules of every kind: half hours, two in a year, changes of the base, days left out and days twice.
const AWKWARD: [Tz; 14] = [
    Tz::Europe__Berlin,
    Tz::America__New_York,
    Tz::Australia__Lord_Howe,
    Tz::Asia__Kathmandu,
    Tz::Pacific__Apia,
    Tz::America__Sao_Paulo,
    Tz::Africa__Casablanca,
    Tz::Asia__Tehran,
    Tz::America__St_Johns,
    Tz::Pacific__Kwajalein,
    Tz::Europe__Dublin,
    Tz::Antarctica__Troll,
    Tz::Asia__Pyongyang,
    Tz::America__Caracas,
];

fn start(year: i32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(year, 1, 1, 0, 0, 0).single().expect("a moment")
}

/// The instants at which the offset of `zone` changes.
fn changes(zone: Tz) -> Vec<i64> {
    let offset = |at: DateTime<Utc>| zone.offset_from_utc_datetime(&at.naive_utc()).fix();
    let (mut changes, mut at, step) = (Vec::new(), start(YEARS.0), Duration::days(7));
    while at < start(YEARS.1) {
        let (mut before, mut after) = (at, at + step);
        if offset(before) != offset(after) {
            while after - before > Duration::seconds(1) {
                let middle = before + (after - before) / 2;
                if offset(middle) == offset(before) { before = middle } else { after = middle }
            }
            changes.push(after.timestamp());
        }
        at += step;
    }
    changes
}

/// Rising instants: half of them anywhere, half around changes of the zone.
fn instants(dice: &mut Moments, changes: &[i64]) -> Vec<i64> {
    let (first, last) = (start(YEARS.0).timestamp(), start(YEARS.1).timestamp());
    let span = u64::try_from(last - first).expect("a span");
    let near = |dice: &mut Moments, width: u64| {
        i64::try_from(dice.below(2 * width)).expect("small") - i64::try_from(width).expect("small")
    };
    let mut instants: Vec<i64> = (0..INSTANTS)
        .map(|index| match (index % 4, changes.len()) {
            (0 | 1, _) | (_, 0) => first + i64::try_from(dice.below(span)).expect("an instant"),
            (kind, count) => {
                let change = changes[usize::try_from(dice.below(count as u64)).expect("small")];
                change + near(dice, if kind == 2 { 7_300 } else { 200_000 })
            }
        })
        .collect();
    instants.sort_unstable();
    instants
}

type Line = (String, Tz, Vec<i64>);

fn lines() -> Vec<Line> {
    let mut dice = Moments::new();
    let mut known: HashMap<Tz, Vec<i64>> = HashMap::new();
    let mut lines = Vec::new();
    while lines.len() < PAIRS {
        let expression = expression(&mut dice);
        let zone = match dice.below(2) {
            0 => AWKWARD[usize::try_from(dice.below(AWKWARD.len() as u64)).expect("small")],
            _ => TZ_VARIANTS[usize::try_from(dice.below(TZ_VARIANTS.len() as u64)).expect("small")],
        };
        // What never fires is refused, and has nothing to compare.
        if Cron::parse(&expression, zone.name()).is_ok() {
            let changes = known.entry(zone).or_insert_with(|| changes(zone));
            lines.push((expression, zone, instants(&mut dice, changes)));
        }
    }
    lines
}

/// The other program's answers, a line of numbers for each.
fn asked(lines: &[Line], folder: &Path) -> String {
    let mut text = String::new();
    for (expression, zone, instants) in lines {
        let instants = instants.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
        writeln!(text, "{expression}\t{}\t{instants}", zone.name()).expect("write a line");
    }
    let questions = folder.join("questions");
    std::fs::write(&questions, text).expect("write the questions");
    let answers = folder.join("answers");
    let mut command = python::command("cron.py");
    let done = command.arg(&questions).stdout(File::create(&answers).expect("a file")).status();
    assert!(done.expect("run cron.py").success(), "cron.py failed");
    std::fs::read_to_string(answers).expect("read the answers")
}

/// How many answers of each line were compared.
fn compared(lines: &[Line]) -> usize {
    let folder = tempfile::tempdir().expect("a folder");
    let answers = asked(lines, folder.path());
    assert_eq!(answers.lines().count(), lines.len());
    let mut count = 0;
    for ((expression, zone, instants), answers) in lines.iter().zip(answers.lines()) {
        let cron = Cron::parse(expression, zone.name()).expect(expression);
        let answers: Vec<&str> = answers.split_whitespace().collect();
        assert_eq!(answers.len(), instants.len(), "{expression}");
        for (instant, expected) in instants.iter().zip(answers) {
            let after = DateTime::from_timestamp(*instant, 0).expect("an instant");
            let found = cron.next(after).map_or_else(|| "-".to_owned(), |next| next.timestamp().to_string());
            assert_eq!(found, expected, "{expression:?} in {zone} after {instant} ({after})");
            count += 1;
        }
    }
    count
}

#[test]
fn a_million_firings_agree_with_a_second_implementation() {
    let lines = lines();
    let count: usize = std::thread::scope(|scope| {
        let halves: Vec<_> = lines.chunks(PAIRS / 2).map(|half| scope.spawn(|| compared(half))).collect();
        halves.into_iter().map(|half| half.join().expect("both halves agree")).sum()
    });
    assert_eq!(count, PAIRS * INSTANTS);
}
