//! Both sides of a key, line beside line.

use similar::DiffTag;

use super::markup::Html;
use crate::verify::report::{self, Sides};

/// The longest difference that is shown, in lines.
const LINES: usize = 60;

/// The longest line that is shown, in bytes of the page.
const WIDTH: usize = 400;

/// How much is shown of what two long lines have in common, before and after what differs.
const COMMON: usize = 80;

/// One line of the table.
enum Line<'a> {
    /// The same on both sides.
    Same(&'a str),
    /// Different, or on one side only.
    Changed(Option<&'a str>, Option<&'a str>),
    /// So many lines that are the same on both sides.
    Skipped(usize),
}

/// Writes the table. Beside what differs stand a few lines that are the same.
pub fn beside(html: &mut Html, sides: &Sides) {
    let [old, new] = sides.texts();
    let diff = report::lines(&old, &new);

    let olds: Vec<_> = diff.iter_old_slices().map(whole_line).collect();
    let news: Vec<_> = diff.iter_new_slices().map(whole_line).collect();
    let (mut lines, mut seen) = (Vec::new(), 0);
    for op in diff.grouped_ops(3).into_iter().flatten() {
        let (tag, before, after) = op.as_tag_tuple();
        if before.start > seen {
            lines.push(Line::Skipped(before.start - seen));
        }
        seen = before.end;
        let (before, after) = (&olds[before], &news[after]);
        match tag {
            DiffTag::Equal => lines.extend(before.iter().map(|line| Line::Same(line))),
            _ => lines.extend(
                (0..before.len().max(after.len()))
                    .map(|at| Line::Changed(before.get(at).copied(), after.get(at).copied())),
            ),
        }
    }
    if olds.len() > seen {
        lines.push(Line::Skipped(olds.len() - seen));
    }
    table(html, sides, &lines);
}

/// A line without its end.
fn whole_line(line: &str) -> &str {
    line.trim_end_matches('\n')
}

fn table(html: &mut Html, sides: &Sides, lines: &[Line<'_>]) {
    let there = |is_there| if is_there { "" } else { " has nothing" };
    html.markup("<table class=diff><thead><tr><th>MongoDB").markup(there(sides.source.is_some()));
    html.markup("<th>PostgreSQL").markup(there(sides.target.is_some())).markup("<tbody>");
    for line in lines.iter().take(LINES) {
        match *line {
            Line::Same(text) => {
                html.markup("\n<tr><td>  ").cut(text, WIDTH).markup("<td>  ").cut(text, WIDTH);
            }
            Line::Changed(old, new) => {
                html.markup("\n<tr>");
                side(html, "<td class=old>- ", old, new);
                side(html, "<td class=new>+ ", new, old);
            }
            Line::Skipped(lines) => gap(html, lines, " lines are the same"),
        }
    }
    if lines.len() > LINES {
        gap(html, lines.len() - LINES, " lines more");
    }
    html.markup("</table>");
}

fn gap(html: &mut Html, lines: usize, what: &'static str) {
    html.markup("\n<tr class=gap><td colspan=2>… ").number(lines).markup(what);
}

/// One side of a line that differs from the `other` one.
fn side(html: &mut Html, open: &'static str, line: Option<&str>, other: Option<&str>) {
    match (line, other) {
        (None, _) => html.markup("<td class=none>"),
        (Some(line), None) => html.markup(open).cut(line, WIDTH),
        (Some(line), Some(other)) => {
            let (before, differs, after) = split(line, other);
            let hidden = before.char_indices().rev().nth(COMMON).map_or(0, |(at, _)| at);
            html.markup(open);
            if hidden > 0 {
                html.left_out(&before[..hidden]);
            }
            html.cut(&before[hidden..], WIDTH).markup("<mark>").cut(differs, WIDTH).markup("</mark>");
            html.cut(after, COMMON)
        }
    };
}

/// A line in three parts: the first and the last also begin and end the other line.
fn split<'a>(line: &'a str, other: &str) -> (&'a str, &'a str, &'a str) {
    let same = line.chars().zip(other.chars()).take_while(|(one, other)| one == other);
    let start: usize = same.map(|(c, _)| c.len_utf8()).sum();
    let (rest, other) = (&line[start..], &other[start..]);
    let same = rest.chars().rev().zip(other.chars().rev()).take_while(|(one, other)| one == other);
    let end = rest.len() - same.map(|(c, _)| c.len_utf8()).sum::<usize>();
    (&line[..start], &rest[..end], &rest[end..])
}

#[cfg(test)]
mod tests {
    use bson::{RawDocumentBuf, rawdoc};

    use super::*;
    use crate::verify::sample;

    fn html(source: Option<RawDocumentBuf>, target: Option<RawDocumentBuf>) -> String {
        let mut html = Html::default();
        beside(&mut html, &sample::sides(source, target).unwrap());
        html.finish()
    }

    #[test]
    fn what_differs_stands_side_by_side_and_the_rest_is_counted() {
        let many = |last: &str| rawdoc! { "a": "1", "b": "2", "c": "3", "d": "4", "e": "5", "f": last, "z": "6" };
        insta::assert_snapshot!(html(Some(many("old <b>")), Some(many("old <i>"))), @r#"
<table class=diff><thead><tr><th>MongoDB<th>PostgreSQL<tbody>
<tr class=gap><td colspan=2>… 3 lines are the same
<tr><td>    "c": "3",<td>    "c": "3",
<tr><td>    "d": "4",<td>    "d": "4",
<tr><td>    "e": "5",<td>    "e": "5",
<tr><td class=old>-   "f": "old &lt;<mark>b</mark>&gt;",<td class=new>+   "f": "old &lt;<mark>i</mark>&gt;",
<tr><td>    "z": "6"<td>    "z": "6"
<tr><td>  }<td>  }</table>
"#);
    }

    #[test]
    fn a_side_that_is_not_there_is_told() {
        let one = html(Some(rawdoc! { "a": "1" }), None);
        assert!(one.contains("<th>MongoDB<th>PostgreSQL has nothing"), "{one}");
        assert!(one.contains("<td class=old>-   \"a\": \"1\"<td class=none>"), "{one}");
    }

    #[test]
    fn what_differs_late_in_a_long_line_is_shown() {
        let long = |last: &str| Some(rawdoc! { "a": "x".repeat(10_000) + last + &"y".repeat(10_000) });
        let html = html(long("old"), long("new"));
        assert!(html.contains("xxx<mark>old</mark>yyy") && html.contains("xxx<mark>new</mark>yyy"), "{html}");
        assert!(html.len() < 1_500, "{html}");
    }

    #[test]
    fn a_long_difference_is_cut() {
        let long = |first: i32| {
            Some(rawdoc! { "a": (first..first + 500).map(bson::RawBson::Int32).collect::<bson::RawArrayBuf>() })
        };
        assert!(html(long(0), long(1_000)).contains(" lines more</table>"));
    }

    #[test]
    fn the_parts_of_a_line_never_overlap() {
        assert_eq!(split("aaa", "aaaa"), ("aaa", "", ""));
        assert_eq!(split("aaaa", "aaa"), ("aaa", "a", ""));
        assert_eq!(split("äöü", "äxü"), ("ä", "ö", "ü"));
        assert_eq!(split("é", "è"), ("", "é", ""));
    }
}
