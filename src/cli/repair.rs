//! `bridge verify --repair`: after a verification, what it found is brought level.

use super::escape::escape;
use super::{Context, Exit, Failure, Stores, confirm};
use crate::verify::repair::{Extras, Repaired, repair};
use crate::verify::{Counts, Report, Verdict};

/// What the operator has said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// What becomes of keys that only the secondary has.
    pub extras: Extras,
    /// Whether nobody is asked.
    pub yes: bool,
}

/// Brings the mismatches of `report`, which has just been shown, level; asks first.
pub(super) async fn run(report: &Report, wanted: Wanted, stores: &Stores, context: &Context) -> Result<Exit, Failure> {
    if report.verdict != Verdict::Mismatch {
        return Ok(super::verify::exit(report));
    }
    context.output.text(&plan(report, wanted.extras))?;
    if !wanted.yes && !confirm::typed("repair", "do so")? {
        return Err(Failure::new(Exit::Refused, "not confirmed").hint("--yes repairs without asking"));
    }
    let work = async { Ok(repair(&stores.source, &stores.target, report, wanted.extras).await?) };
    let repaired = context.until_stopped(work).await?;
    context.output.text(&done(&repaired))?;
    context.output.object(&serde_json::json!({ "repaired": repaired }))?;
    Ok(if repaired.left + repaired.still == 0 { Exit::Clean } else { Exit::Mismatch })
}

fn plan(report: &Report, extras: Extras) -> String {
    let sum = |of: fn(&Counts) -> u64| report.collections.iter().map(of).sum::<u64>();
    let (missing, content, extra) = (sum(|one| one.missing), sum(|one| one.content), sum(|one| one.extra));
    let (from, to) = (report.phase.primary(), report.phase.primary().other());
    let fate = match extras {
        Extras::Leave => "are left alone (--delete-extra deletes them)",
        Extras::Delete => "are deleted",
    };
    format!(
        "\nrepair: {missing} missing and {content} different keys are brought from {from} to {to} as they are now; {extra} extra keys {fate}"
    )
}

fn done(repaired: &Repaired) -> String {
    let mut text = format!(
        "repaired: {} keys are level, {} extra keys were left alone, {} keys still differ",
        repaired.level, repaired.left, repaired.still
    );
    for key in &repaired.differing {
        text += &format!("\n  {}", escape(key));
    }
    text + "\nthe gate wants a verification that was made since: `bridge verify`"
}
