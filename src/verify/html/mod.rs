//! A report as one page for a change ticket: it needs no network, runs no script and is readable on paper.
//!
//! It stays under 2 MB, whatever was found: what is left out is counted, and stands in the JSON.

mod diff;
mod markup;

use std::collections::BTreeMap;

use self::markup::Html;
use super::report::{Counts, Gate, Mismatch, Report, Surroundings, Verdict};
use super::words::instant;
use crate::condition::Condition;

/// The most that all differences take that are shown in full, in bytes.
const DIFFERENCES: usize = 250_000;

/// The most that the listed mismatches take, in bytes.
const LIST: usize = 1_500_000;

/// The most that a table of the surroundings takes, in bytes.
const TABLE: usize = 50_000;

/// The most that the ids of the listed mismatches take, in bytes, unless they are short.
const IDS: usize = 700_000;

/// The longest text of a server or a document in a table, in bytes of the page.
const TEXT: usize = 300;

/// All up to the title. The policy lets the page load nothing and run nothing; the one style sheet is known by its digest.
const HEAD: &str = concat!(
    "<!doctype html>\n<html lang=en dir=ltr>\n<meta charset=utf-8>\n",
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; base-uri 'none'; form-action 'none'; ",
    "style-src 'sha256-azfGXU/Yqvft+I54uusiUAQJYDB8++z8BZKg6MuSX4E='\">\n",
    "<meta name=viewport content=\"width=device-width, initial-scale=1\">\n<style>",
    include_str!("style.css"),
    "</style>\n<title>"
);

/// The page of a report. Of the mismatches that have their sides, the difference is shown.
pub fn page(report: &Report, surroundings: &Surroundings) -> String {
    let mut html = Html::default();
    html.markup(HEAD).text(&format!("Verification {}: {}", report.number, report.verdict.name())).markup("</title>\n");
    header(&mut html, report);
    facts(&mut html, report, surroundings);
    counts(&mut html, report);
    surroundings.gates.iter().for_each(|gate| self::gate(&mut html, gate));
    differences(&mut html, report);
    quarantine(&mut html, report, surroundings);
    irregular(&mut html, surroundings);
    mismatches(&mut html, report);
    html.markup("<footer>“… +12” stands for 12 characters that are left out.</footer>\n</html>\n");
    html.finish()
}

fn header(html: &mut Html, report: &Report) {
    html.markup(match report.verdict {
        Verdict::Clean => "<header class=clean>",
        Verdict::Mismatch => "<header class=mismatch>",
        Verdict::Inconclusive => "<header class=inconclusive>",
    });
    html.markup("<p>Verification of PostgreSQL against MongoDB<h1>").text(report.verdict.name()).markup("</h1>");
    html.markup("<p id=sentence>").text(&report.sentence()).markup("</header>\n");
}

fn facts(html: &mut Html, report: &Report, surroundings: &Surroundings) {
    html.markup("<dl>");
    for (name, value) in report.facts(surroundings) {
        html.markup("\n<div><dt>").markup(name).markup("<dd>").cut(&value, TEXT).markup("</div>");
    }
    html.markup("</dl>\n");
}

fn counts(html: &mut Html, report: &Report) {
    html.markup("<h2>Collections</h2>");
    html.markup("<div class=wide><table id=counts><thead><tr><th>collection<th>documents<th>rows<th>quarantined");
    html.markup("<th>missing<th>extra<th>content<th>seconds<tbody>");
    for one in &report.collections {
        html.markup("\n<tr><th>").text(one.name);
        numbers(html, one);
        html.markup("<td>").text(&format!("{:.1}", one.seconds));
    }
    html.markup("<tfoot>\n<tr><th>all");
    numbers(html, &report.total());
    html.markup("<td></table></div>\n");
}

fn numbers(html: &mut Html, one: &Counts) {
    for (number, is_found) in [
        (one.documents, false),
        (one.rows, false),
        (one.quarantined, false),
        (one.missing, true),
        (one.extra, true),
        (one.content, true),
    ] {
        html.markup(match (number, is_found) {
            (0, _) => "<td class=zero>",
            (_, true) => "<td class=bad>",
            (_, false) => "<td>",
        });
        html.number(number);
    }
}

fn gate(html: &mut Html, gate: &Gate) {
    html.markup("<h2>").text(&gate.summary()).markup("</h2>");
    let head = "<table class=gate><thead><tr><th>condition<th><th>found<th>limit<th>looked at";
    table(html, head, &gate.conditions, TABLE, |html, Condition { name, met, found, limit, at }| {
        html.cut(name, TEXT).markup(if *met { "<td class=good>met<td>" } else { "<td class=bad>NOT MET<td>" });
        html.cut(found, TEXT).markup("<td>").cut(limit, TEXT).markup("<td>").text(&instant(*at));
    });
}

fn differences(html: &mut Html, report: &Report) {
    let is_shown = |mismatch: &&Mismatch| {
        mismatch.sides.as_ref().is_some_and(|sides| sides.source.is_some() || sides.target.is_some())
    };
    let shown: Vec<_> = report.mismatches.iter().filter(is_shown).collect();
    if shown.is_empty() {
        return;
    }
    html.markup("<h2>Differences</h2>\n");
    let end = html.len() + DIFFERENCES;
    for (at, mismatch) in shown.iter().enumerate() {
        if html.len() > end {
            return more(html, length(&shown[at..]));
        }
        difference(html, mismatch, report);
    }
}

fn difference(html: &mut Html, mismatch: &Mismatch, report: &Report) {
    html.markup("<section><h3>").text(mismatch.collection).markup(" <code>");
    html.cut(&mismatch.id.to_string(), TEXT).markup("</code></h3><p><b>").markup(mismatch.kind.name()).markup("</b>: ");
    html.markup(mismatch.kind.meaning());
    if let Some(reason) = &mismatch.reason {
        html.markup("; ").cut(reason, TEXT);
    }
    html.markup("; for ").text(&mismatch.age(report.finished_at)).markup("</p>");
    if let Some(sides) = &mismatch.sides {
        diff::beside(html, sides);
    }
    html.markup("</section>\n");
}

fn quarantine(html: &mut Html, report: &Report, surroundings: &Surroundings) {
    if surroundings.quarantine.is_empty() {
        return;
    }
    html.markup("<h2>Quarantine</h2>");
    let head =
        "<table class=quarantine><thead><tr><th>collection<th>id<th>why it cannot become a row<th>bytes<th>since";
    let listed = table(html, head, &surroundings.quarantine, TABLE, |html, entry| {
        html.cut(&entry.collection, TEXT).markup("<td><code>").cut(&entry.id, TEXT).markup("</code><td>");
        html.cut(&entry.reason, TEXT).markup("<td>").number(entry.bytes);
        html.markup("<td>").text(&instant(entry.quarantined_at));
    });
    more(html, report.total().quarantined.saturating_sub(listed));
}

fn irregular(html: &mut Html, surroundings: &Surroundings) {
    if surroundings.irregular_fields.is_empty() {
        return;
    }
    html.markup("<h2>Irregular fields</h2><p>What their columns cannot hold is kept exactly, in the residue.</p>");
    let head = "<table class=irregular><thead><tr><th>collection<th>field<th>documents";
    let fields = &surroundings.irregular_fields;
    let listed = table(html, head, fields, TABLE, |html, field| {
        html.cut(&field.collection, TEXT).markup("<td><code>").cut(&field.field, TEXT).markup("</code><td>");
        html.number(field.documents);
    });
    more(html, length(fields) - listed);
}

/// All that are listed, by collection, kind and reason, the oldest first.
fn mismatches(html: &mut Html, report: &Report) {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for mismatch in &report.mismatches {
        let place = report.collections.iter().position(|one| one.name == mismatch.collection);
        groups.entry((place, mismatch.kind, mismatch.reason.as_deref())).or_default().push(mismatch);
    }
    if !groups.is_empty() {
        html.markup("<h2>Mismatches</h2>\n");
    }
    let (end, mut listed) = (html.len() + LIST, 0);
    for group in groups.values_mut() {
        group.sort_by_key(|mismatch| mismatch.since);
        listed += self::group(html, group, end.saturating_sub(html.len()), report);
    }
    more(html, length(&report.mismatches) + report.unlisted - listed);
}

/// Mismatches of one collection, kind and reason, in `limit` bytes; how many were listed.
fn group(html: &mut Html, group: &[&Mismatch], limit: usize, report: &Report) -> u64 {
    let (Some(first), 1..) = (group.first(), limit) else { return 0 };
    // So that as many as are usually listed find their place.
    let width = (IDS / report.mismatches.len().max(1)).clamp(64, TEXT);
    html.markup("<details open><summary>").number(group.len()).markup(" × <b>").text(first.collection).markup("</b> ");
    html.markup(first.kind.name()).markup(": ");
    html.cut(first.reason.as_deref().unwrap_or(first.kind.meaning()), TEXT);
    html.markup("</summary>");
    let head = "<table class=keys><thead><tr><th>id<th>since (UTC)<th>age at the end";
    let listed = table(html, head, group, limit, |html, mismatch| {
        html.cut(&mismatch.id.to_string(), width);
        html.markup("<td>").text(&mismatch.since.format("%F %T").to_string());
        html.markup("<td>").text(&mismatch.age(report.finished_at));
    });
    html.markup("</details>\n");
    listed
}

/// Writes a table, with rows until they have taken `limit` bytes; how many were written.
fn table<T>(html: &mut Html, head: &'static str, items: &[T], limit: usize, row: impl Fn(&mut Html, &T)) -> u64 {
    html.markup("<div class=wide>").markup(head).markup("<tbody>");
    let (end, mut written) = (html.len() + limit, 0);
    for item in items {
        if html.len() >= end {
            break;
        }
        html.markup("\n<tr><td>");
        row(html, item);
        written += 1;
    }
    html.markup("</table></div>\n");
    written
}

fn more(html: &mut Html, left: u64) {
    if left > 0 {
        html.markup("<p class=more>and ").number(left).markup(" more</p>\n");
    }
}

fn length<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bson::{Bson, RawDocumentBuf, doc};
    use serde_json::json;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::verify::Kind;
    use crate::verify::sample::{self, mismatch, sides};

    /// Text that would run, end a tag, move the cursor, turn the line or hide.
    const HOSTILE: &str = "</td></style><script>document.title='ran'</script>\"' onload=x &lt;\x1b[2J\u{9b}\u{202e}\u{2066}\u{200b}\u{feff}\0";

    const RAW: [char; 7] = ['\x1b', '\u{9b}', '\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}', '\0'];

    #[test]
    fn the_policy_knows_the_style_sheet_by_its_digest() {
        let bytes = Sha256::digest(include_str!("style.css")).to_vec();
        let binary = Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes });
        let digest = binary.into_canonical_extjson()["$binary"]["base64"].as_str().unwrap().to_owned();
        assert!(HEAD.contains(&format!("style-src 'sha256-{digest}'")), "the style sheet's digest is sha256-{digest}");
    }

    #[test]
    fn hostile_text_is_text_wherever_it_stands() {
        let (mut report, mut surroundings) = sample::report();
        let document =
            |value: &str| RawDocumentBuf::try_from(&doc! { "_id": 1, HOSTILE.replace('\0', ""): value }).unwrap();
        report.mismatches[0].id = json!({ HOSTILE: HOSTILE });
        report.mismatches[0].sides = sides(Some(document(HOSTILE)), Some(document("other")));
        report.mismatches[2].reason = Some(HOSTILE.to_owned());
        surroundings.mongodb = HOSTILE.to_owned();
        surroundings.postgresql = HOSTILE.to_owned();
        surroundings.irregular_fields[0].field = HOSTILE.to_owned();
        surroundings.irregular_fields[0].collection = HOSTILE.to_owned();
        let entry = &mut surroundings.quarantine[0];
        for text in [&mut entry.collection, &mut entry.id, &mut entry.reason] {
            *text = HOSTILE.to_owned();
        }
        let condition = &mut surroundings.gates[0].conditions[0];
        for text in [&mut condition.name, &mut condition.found, &mut condition.limit] {
            *text = HOSTILE.to_owned();
        }
        let page = page(&report, &surroundings);
        assert!(!page.contains(RAW) && !page.contains("<script"), "{page}");
        assert_eq!(page.matches("</style>").count(), 1);
        // Once in each place, and more often where names and values stand side by side.
        assert!(page.matches("&lt;script&gt;").count() >= 16, "{page}");
        assert!(page.matches(r"\u{202e}").count() >= 16, "{page}");
    }

    #[test]
    fn ten_thousand_mismatches_with_long_ids_are_all_listed_in_less_than_2_megabytes() {
        let (mut report, surroundings) = sample::report();
        let kinds = [Kind::Missing, Kind::Extra, Kind::Content];
        let long = |at: u32| Some(doc! { "_id": 1, "text": format!("<{at}>").repeat(50_000) });
        let side = |at| long(at).and_then(|document| RawDocumentBuf::try_from(&document).ok());
        report.mismatches = (0..10_000_u32)
            .map(|at| {
                let id = json!(format!("{at:05}{}", "<\u{202e}é".repeat(300)));
                let shown = (at < 15).then(|| sides(side(at), side(at + 1))).flatten();
                mismatch(id, kinds[at as usize % 3], i64::from(at), shown)
            })
            .collect();
        let html = page(&report, &surroundings);
        assert!(html.len() < 2_000_000, "{} bytes", html.len());
        let listed = html.split("\n<tr><td>\"").skip(1).filter_map(|row| row.get(..5)?.parse::<u32>().ok());
        assert_eq!(listed.collect::<std::collections::BTreeSet<_>>().len(), 10_000);
        assert!(html.contains("<i>… +"), "what is cut is counted");
        assert!(!html.contains("class=more"), "nothing is left out");
    }

    #[test]
    fn more_than_the_page_can_hold_is_counted() {
        let (mut report, mut surroundings) = sample::report();
        let many = |at: u32| mismatch(json!("x".repeat(100) + &at.to_string()), Kind::Missing, i64::from(at), None);
        report.mismatches = (0..50_000).map(many).collect();
        report.unlisted = 1_000;
        surroundings.quarantine = vec![surroundings.quarantine[0].clone(); 2_000];
        report.collections[2].quarantined = 5_000;
        let html = page(&report, &surroundings);
        assert!(html.len() < 2_000_000, "{} bytes", html.len());
        let keys = html.split("class=keys").nth(1).unwrap().matches("<tr><td>").count();
        let quarantined = html.split("class=quarantine").nth(1).unwrap().split("</table>").next().unwrap();
        let quarantined = quarantined.matches("<tr><td>").count();
        let more = |left: usize| format!("and {} more</p>", crate::verify::words::count(left as u64));
        assert!(html.contains(&more(51_000 - keys)), "{keys}");
        assert!(html.contains(&more(5_000 - quarantined)), "{quarantined}");
    }

    #[test]
    fn mismatches_stand_by_collection_kind_and_reason_the_oldest_first() {
        let (mut report, surroundings) = sample::report();
        report.mismatches = vec![
            mismatch(json!("new"), Kind::Missing, 1, None),
            Mismatch { collection: "schedules", ..mismatch(json!("first"), Kind::Extra, 5, None) },
            mismatch(json!("old"), Kind::Missing, 90_000, None),
        ];
        let html = page(&report, &surroundings);
        let list = &html[html.find("<details").unwrap()..];
        insta::assert_snapshot!(list, @r#"
<details open><summary>1 × <b>schedules</b> extra: only the secondary has it</summary><div class=wide><table class=keys><thead><tr><th>id<th>since (UTC)<th>age at the end<tbody>
<tr><td>"first"<td>2025-11-28 01:45:05<td>5.0 s</table></div>
</details>
<details open><summary>2 × <b>runs</b> missing: only the primary has it</summary><div class=wide><table class=keys><thead><tr><th>id<th>since (UTC)<th>age at the end<tbody>
<tr><td>"old"<td>2025-11-27 00:45:10<td>1 d 1 h
<tr><td>"new"<td>2025-11-28 01:45:09<td>1.0 s</table></div>
</details>
<footer>“… +12” stands for 12 characters that are left out.</footer>
</html>
"#);
    }

    #[test]
    fn what_is_empty_has_no_heading() {
        let (mut report, mut surroundings) = sample::report();
        (report.verdict, report.mismatches) = (Verdict::Clean, Vec::new());
        surroundings.quarantine.clear();
        surroundings.irregular_fields.clear();
        surroundings.gates.clear();
        report
            .collections
            .iter_mut()
            .for_each(|one| *one = Counts { name: one.name, documents: 1, rows: 1, ..Counts::default() });
        let html = page(&report, &surroundings);
        assert_eq!(html.matches("<h2>").count(), 1, "{html}");
        assert!(html.contains("<header class=clean>"));
    }
}
