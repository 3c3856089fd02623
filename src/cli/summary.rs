//! What a backfill or its dry run brought, in the end.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle, presets};
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::escape::escape;
use super::progress::{per_second, seconds};
use super::{Failure, Output};
use crate::backfill::{Copied, Refused, Tally};

/// The most irregular fields that are listed.
const FIELDS: usize = 10;

/// The most refused documents that are listed for people; machines get all that are known.
const REFUSED: usize = 10;

/// Everything there is to say at the end.
pub(super) struct Summary<'a> {
    pub(super) copied: &'a [Copied],
    /// Documents that would be quarantined; a dry run only.
    pub(super) refused: &'a [Refused],
    /// Documents that this process has read.
    pub(super) read: u64,
    /// How long it took.
    pub(super) taken: Duration,
    pub(super) dry_run: bool,
}

impl Summary<'_> {
    pub(super) fn print(&self, output: Output) -> Result<(), Failure> {
        output.text(&self.text())?;
        output.object(&self.object())
    }

    fn object(&self) -> Value {
        let refused =
            |refused: &Refused| json!({ "collection": refused.collection, "id": refused.id, "reason": refused.reason });
        let mut object = json!({
            "collections": self.copied.iter().map(collection).collect::<Vec<_>>(),
            "seconds": seconds(self.taken),
            "documents_read": self.read,
            "documents_per_second": per_second(self.read, self.taken),
            "dry_run": self.dry_run,
        });
        if self.dry_run {
            object["refused"] = self.refused.iter().map(refused).collect();
        }
        object
    }

    fn text(&self) -> String {
        let parts = [self.table().to_string(), self.fields(), self.refusals(), self.pace(), self.next()];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    }

    fn table(&self) -> Table {
        let mut table = table(&["collection", "documents", "rows", "irregular", "quarantined", "removed", "size"], 6);
        for copied in self.copied {
            table.add_row(row(copied.collection, &copied.tally, copied.removed));
        }
        table.add_row(row("all", &self.total(), self.copied.iter().map(|copied| copied.removed).sum()));
        table
    }

    fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.copied.iter().for_each(|copied| total.add(&copied.tally));
        total
    }

    /// The most frequent irregular fields.
    fn fields(&self) -> String {
        let fields = |copied: &Copied| {
            let name = copied.collection;
            copied
                .tally
                .fields
                .iter()
                .map(move |(field, count)| (*count, format!("{name}.{field}")))
                .collect::<Vec<_>>()
        };
        let mut fields: Vec<_> = self.copied.iter().flat_map(fields).collect();
        if fields.is_empty() {
            return String::new();
        }
        fields.sort_by(|(one, left), (other, right)| other.cmp(one).then_with(|| left.cmp(right)));
        let line = |(count, field): &(i64, String)| format!("  {:>12}  {}", number(*count), escape(field));
        let listed: Vec<_> = fields.iter().take(FIELDS).map(line).collect();
        let rest = fields.len().saturating_sub(FIELDS);
        let rest = if rest > 0 { format!("\n                and {rest} more") } else { String::new() };
        format!("irregular fields, kept exactly in the residue:\n{}{rest}", listed.join("\n"))
    }

    fn refusals(&self) -> String {
        if self.refused.is_empty() {
            return String::new();
        }
        let line = |refused: &Refused| {
            format!("  {} {}: {}", refused.collection, escape(&refused.id), escape(&refused.reason))
        };
        let listed: Vec<_> = self.refused.iter().take(REFUSED).map(line).collect();
        let rest = self.total().quarantined - i64::try_from(listed.len()).unwrap_or_default();
        let rest = if rest > 0 { format!("\n  and {} more", number(rest)) } else { String::new() };
        format!("would be quarantined:\n{}{rest}", listed.join("\n"))
    }

    fn pace(&self) -> String {
        let (rate, taken) = (HumanCount(per_second(self.read, self.taken)), self.taken.as_secs_f64());
        let verb = if self.dry_run { "read" } else { "copied" };
        format!("{verb} {} documents in {taken:.1} s, {rate} a second", HumanCount(self.read))
    }

    fn next(&self) -> String {
        match (self.dry_run, self.total().quarantined) {
            (true, _) => "nothing was written; next: bridge backfill".to_owned(),
            (false, 0) => "next: bridge verify".to_owned(),
            (false, _) => "next: bridge quarantine list, bridge verify".to_owned(),
        }
    }
}

fn collection(copied: &Copied) -> Value {
    let Copied { collection, tally, removed } = copied;
    json!({
        "name": collection, "documents": tally.documents, "rows": tally.rows, "quarantined": tally.quarantined,
        "irregular": tally.irregular, "irregular_fields": tally.fields, "removed": removed, "bytes": tally.bytes,
    })
}

fn row(name: &str, tally: &Tally, removed: i64) -> Vec<String> {
    let counts = [tally.documents, tally.rows, tally.irregular, tally.quarantined, removed].map(number);
    let size = HumanBytes(u64::try_from(tally.bytes).unwrap_or_default()).to_string();
    [name.to_owned()].into_iter().chain(counts).chain([size]).collect()
}

/// A count with its thousands set apart.
pub(super) fn number(count: i64) -> String {
    HumanCount(u64::try_from(count).unwrap_or_default()).to_string()
}

/// The width of a terminal that everything fits.
const WIDTH: u16 = 100;

/// The text of a table with its lines broken at [`WIDTH`], without the spaces that fill them.
pub(super) fn fitted(mut table: Table) -> String {
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A line below the header, and nothing else.
const STYLE: TableStyle = presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─'));

/// A table whose last `numbers` columns stand to the right.
pub(super) fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header.to_vec());
    for column in table.column_iter_mut().skip(header.len() - numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
