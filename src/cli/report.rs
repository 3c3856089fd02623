//! The report of a verification, as text for people, as JSON for machines, and in a file.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use super::Failure;
use super::escape::{escape, escape_json, escape_lines};
use super::summary::{fitted, table};
use crate::condition::Condition;
use crate::verify::words::count;
use crate::verify::{self, Counts, Gate, Kind, Mismatch, Report, Surroundings, Verdict};

/// The longest difference that is printed, in lines.
const LINES: usize = 60;

/// The most quarantined documents and irregular fields that are printed.
const LISTED: usize = 10;

/// All of a report as one object. Of mismatches whose sides are known it has the difference too.
pub(super) fn object(report: &Report, surroundings: &Surroundings) -> Result<Value, Failure> {
    let failed = |error: serde_json::Error| Failure::system("write the report as JSON", &error.into());
    let mut object = serde_json::to_value(report).map_err(failed)?;
    let listed = object["mismatches"].as_array_mut().into_iter().flatten();
    for (listed, mismatch) in listed.zip(&report.mismatches) {
        if let Some(sides) = &mismatch.sides {
            listed["diff"] = sides.diff().into();
        }
    }
    let surroundings = serde_json::to_value(surroundings).map_err(failed)?;
    if let (Value::Object(object), Value::Object(surroundings)) = (&mut object, surroundings) {
        object.extend(surroundings);
    }
    Ok(object)
}

/// Writes a report to a file: as a page when its name says so, else as JSON. Who sees the file sees all of it.
pub(super) fn write(file: &Path, report: &Report, surroundings: &Surroundings) -> Result<(), Failure> {
    let attempted = format!("write the report to {}", file.display());
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let text = if ["html", "htm"].contains(&extension.to_lowercase().as_str()) {
        verify::page(report, surroundings)
    } else {
        escape_json(&format!("{:#}\n", object(report, surroundings)?)).into_owned()
    };
    replace(file, &text).map_err(|error| Failure::system(&attempted, &error))
}

fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    // What a link leads to is replaced, not the link.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if file.exists() && !file.is_file() {
        return fs::write(file, text); // a pipe or a terminal stays what it is
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut beside = tempfile::Builder::new();
    // As any new file, as far as the user's umask lets others read it.
    let mut beside = beside.prefix(".report-").permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    beside.write_all(text.as_bytes())?;
    beside.as_file().sync_all()?;
    beside.persist(file).map(|_| ()).map_err(|error| error.error)
}

/// A report for people, with at most `diffs` differences of each kind; what it says comes last.
pub(super) fn text(report: &Report, surroundings: &Surroundings, diffs: usize) -> String {
    let facts = report.facts(surroundings).into_iter().map(|(name, value)| format!("{name:14} {}", escape(&value)));
    let mut parts = vec![facts.collect::<Vec<_>>().join("\n"), counts(report), listed(report, diffs)];
    parts.extend([quarantine(report, surroundings), irregular(surroundings)]);
    parts.extend(surroundings.gates.iter().map(gate));
    parts.push(verdict(report));
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn counts(report: &Report) -> String {
    let mut table = table(&["collection", "documents", "rows", "quarantined", "missing", "extra", "content"], 6);
    for one in report.collections.iter().chain([&report.total()]) {
        let Counts { documents, rows, quarantined, missing, extra, content, .. } = *one;
        let counts = [documents, rows, quarantined, missing, extra, content].map(count);
        table.add_row([one.name.to_owned()].into_iter().chain(counts));
    }
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
            blocks.push(block(mismatch, report));
        }
    }
    blocks.join("\n\n")
}

fn block(mismatch: &Mismatch, report: &Report) -> String {
    let Mismatch { collection, id, kind, .. } = mismatch;
    let head = format!("{collection} {}\n{}: {}", escape(&id.to_string()), kind.name(), kind.meaning());
    let age = mismatch.age(report.finished_at);
    let reason = mismatch.reason.as_ref().map(|reason| format!("\n{}", escape(reason))).unwrap_or_default();
    let diff = mismatch.sides.as_ref().map(|sides| format!("\n{}", cut(&sides.diff()))).unwrap_or_default();
    format!("{head}, for {age}{reason}{}", diff.trim_end())
}

fn cut(diff: &str) -> String {
    let width = |line: &str| line[..line.floor_char_boundary(400)].to_owned();
    let mut lines: Vec<_> = diff.lines().take(LINES).map(|line| escape_lines(&width(line)).into_owned()).collect();
    if diff.lines().count() > LINES {
        lines.push("…".to_owned());
    }
    lines.join("\n")
}

fn quarantine(report: &Report, surroundings: &Surroundings) -> String {
    let line = |entry: &crate::quarantine::Entry| {
        format!("  {} {}: {}", escape(&entry.collection), escape(&entry.id), escape(&entry.reason))
    };
    let lines = surroundings.quarantine.iter().map(line);
    first("quarantined:", lines, report.total().quarantined)
}

fn irregular(surroundings: &Surroundings) -> String {
    let line = |one: &verify::IrregularField| {
        format!("  {:>12}  {}.{}", one.documents, escape(&one.collection), escape(&one.field))
    };
    let lines = surroundings.irregular_fields.iter().map(line);
    let all = u64::try_from(lines.len()).unwrap_or(u64::MAX);
    first("irregular fields, kept exactly in the residue:", lines, all)
}

/// The first lines of a list of `all` things, below its title.
fn first(title: &str, lines: impl Iterator<Item = String>, all: u64) -> String {
    let lines: Vec<_> = lines.take(LISTED).collect();
    let rest = all.saturating_sub(u64::try_from(lines.len()).unwrap_or(u64::MAX));
    let rest = if rest > 0 { format!("\n  and {} more", count(rest)) } else { String::new() };
    if lines.is_empty() { String::new() } else { format!("{title}\n{}{rest}", lines.join("\n")) }
}

fn gate(gate: &Gate) -> String {
    format!("{}\n{}", gate.summary(), conditions(&gate.conditions))
}

/// The conditions of a gate, each with what was found.
pub(super) fn conditions(conditions: &[Condition]) -> String {
    let mut table = table(&["condition", "", "found", "limit"], 0);
    for Condition { name, met, found, limit, .. } in conditions {
        let met = if *met { "met" } else { "NOT MET" };
        table.add_row([&*escape(name), met, &*escape(found), &*escape(limit)]);
    }
    fitted(table)
}

fn verdict(report: &Report) -> String {
    let next = if report.verdict == Verdict::Mismatch { "; `bridge verify --repair` brings them level" } else { "" };
    format!("{}: {}, in {}{next}", report.verdict.name(), report.sentence(), report.took())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::verify::sample;

    #[test]
    fn people_get_everything_and_the_verdict_last() {
        let (report, surroundings) = sample::report();
        let text = text(&report, &surroundings, 5);
        let text = text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(text, @r#"
scope          all 11 collections, whole
phase          mongo-primary, epoch 3
verification   number 42
begun          2025-11-28 01:43:05 UTC
ended          2025-11-28 01:45:10 UTC, after 2 min 5 s
tolerance      a difference must last 30 s
rechecked      1,234 keys that the mirror or a shadow read had named
unsettled      4 keys written to all the time: nothing is known of them
longest query  MongoDB 12.5 ms, PostgreSQL 80.0 ms
versions       bridge 0.1.0, MongoDB 6.0.5, PostgreSQL 18.6

 collection         documents      rows   quarantined   missing   extra   content
──────────────────────────────────────────────────────────────────────────────────
 schedules                  3         3             0         0       0         0
 triggers                   3         3             0         0       0         0
 runs                 200,000   199,998             2         1       1         1
 graph_jobs                 3         3             0         0       0         0
 policy_jobs                3         3             0         0       0         0
 impact_snapshots           3         3             0         0       0         0
 workers                    3         3             0         0       0         0
 execution_logs             3         3             0         0       0         0
 locks                      3         3             0         0       0         0
 run_summaries              3         3             0         0       0         0
 audit                      3         3             0         0       0         0
 all                  200,030   200,028             2         1       1         1

runs "run-7"
content: the two sides differ, for 1 min 35 s
--- mongodb
+++ postgresql
@@ -1,6 +1,6 @@
 {
   "_id": "run-7",
-  "state": "running",
+  "state": "queued",
   "stats": {
     "queued": {
       "$numberInt": "2"

runs "run-8"
missing: only the primary has it, for 40.0 s
--- mongodb
+++ postgresql
@@ -1,10 +0,0 @@
-{
-  "_id": "run-7",
-  "state": "queued",
-  "stats": {
-    "queued": {
-      "$numberInt": "2"
-    }
-  },
-  "tenantId": "acme"
-}

runs "x"
extra: only the secondary has it, for 1 h 6 min
column id stands for no _id

quarantined:
  runs run-901: state is "lost", which is not known
  runs run-902: state is "lost", which is not known

irregular fields, kept exactly in the residue:
          1500  runs.createdAt

gate to postgres-primary: 1 of 2 conditions met
 condition                      found          limit
───────────────────────────────────────────────────────────
 verification clean   NOT MET   3 mismatches   no mismatch
 mirror lag           met       0.2 s          at most 5 s

mismatch: 3 keys differ among 200,030 documents, 200,028 rows and 2 quarantined documents, in 2 min 5 s; `bridge verify --repair` brings them level
"#);
    }

    #[test]
    fn no_value_reaches_the_terminal_raw() {
        let (mut report, mut surroundings) = sample::report();
        let hostile = "\x1b[2J\u{202e}\u{200b}";
        report.mismatches[0].id = json!(hostile);
        report.mismatches[2].reason = Some(hostile.to_owned());
        surroundings.mongodb = hostile.to_owned();
        surroundings.quarantine[0].id = hostile.to_owned();
        surroundings.quarantine[0].reason = hostile.to_owned();
        surroundings.irregular_fields[0].field = hostile.to_owned();
        surroundings.gates[0].conditions[0].found = hostile.to_owned();
        surroundings.gates[0].conditions[0].limit = hostile.to_owned();
        let text = text(&report, &surroundings, 5);
        assert_eq!(text.matches(r"\u{202e}").count(), 8, "{text}");
        assert!(!text.contains(['\x1b', '\u{202e}', '\u{200b}']), "{text}");
    }

    #[test]
    fn the_name_of_the_file_says_what_is_written_and_all_of_it_is_there_at_once() {
        let (report, surroundings) = sample::report();
        let folder = tempfile::tempdir().unwrap();
        let written = |name: &str| {
            let file = folder.path().join(name);
            fs::write(&file, "old").unwrap();
            write(&file, &report, &surroundings).unwrap();
            fs::read_to_string(file).unwrap()
        };
        for page in ["report.html", "report.HTM"] {
            assert!(written(page).starts_with("<!doctype html>"));
        }
        let object: Value = serde_json::from_str(&written("report.json")).unwrap();
        assert_eq!((&object["verdict"], &object["number"]), (&json!("mismatch"), &json!(42)));
        assert_eq!((&object["mongodb"], &object["gates"][0]["to"]), (&json!("6.0.5"), &json!("postgres-primary")));
        assert!(object["mismatches"][0]["diff"].as_str().unwrap().contains("-  \"state\": \"running\""));
        assert!(object["mismatches"][2].get("diff").is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing else is left");
    }

    #[test]
    fn what_is_no_file_is_written_to_and_stays_what_it_is() {
        let (report, surroundings) = sample::report();
        write(Path::new("/dev/null"), &report, &surroundings).unwrap();
        assert!(!Path::new("/dev/null").is_file());
        let refused = write(Path::new("/nowhere/report.html"), &report, &surroundings).unwrap_err();
        assert!(refused.message.starts_with("could not write the report to /nowhere/report.html: "), "{refused:?}");
    }
}
