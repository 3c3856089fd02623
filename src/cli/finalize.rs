//! `bridge finalize`.

use clap::Args;
use serde_json::json;

use super::confirm;
use super::escape::escape;
use super::report::conditions;
use super::summary::{fitted, number, table};
use super::{Context, Exit, Failure};
use crate::finalize::{self, Enforced, FinalizeError, Options, Survey};
use crate::target::Target;

/// The survey, and the statements after it; a transaction waits for no other connection.
const CONNECTIONS: u32 = 1;

/// Arguments of `bridge finalize`.
#[derive(Debug, Args)]
pub(super) struct FinalizeArgs {
    /// Show what stands in the way and what would be done, and do nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Lose what the columns of old rows cannot reproduce of their documents
    #[arg(long)]
    pub drop_residues: bool,
    /// Leave rows that refer to what is not there; the reference is enforced for new rows alone
    #[arg(long)]
    pub keep_dangling: bool,
}

pub(super) async fn run(args: &FinalizeArgs, context: &Context) -> Result<Exit, Failure> {
    let options = Options { drop_residues: args.drop_residues, keep_dangling: args.keep_dangling };
    let open = async {
        let target = Target::open(context.settings.postgres_url()?, CONNECTIONS).await?;
        let survey = finalize::survey(target.pool(), options).await?;
        Ok((target, survey))
    };
    let (target, survey) = context.until_stopped(open).await?;
    if survey.is_none() && args.dry_run {
        return told(&[], true, context);
    }
    if let Some(survey) = &survey {
        context.output.text(&text(survey))?;
        if args.dry_run {
            return planned(survey, context);
        }
        if !survey.is_met() {
            return Err(FinalizeError::Unmet { survey: survey.clone() }.into());
        }
        if !args.yes && !confirm::typed("finalize", "end the move for good")? {
            return Err(Failure::new(Exit::Refused, "not confirmed").hint("--yes does it without asking"));
        }
    }
    let work = async { Ok(finalize::run(target.pool(), options).await?) };
    let references = context.until_stopped(work).await?;
    told(&references, survey.is_none(), context)
}

fn told(references: &[Enforced], before: bool, context: &Context) -> Result<Exit, Failure> {
    context.output.text(&ended(references, before))?;
    context.output.object(&json!({ "finalized": true, "before": before, "references": references }))?;
    Ok(Exit::Clean)
}

fn planned(survey: &Survey, context: &Context) -> Result<Exit, Failure> {
    let statements = finalize::statements();
    context.output.text(&format!("\nwould be done, all or nothing:\n  {}", statements.join(";\n  ")))?;
    context.output.object(&json!({
        "conditions": survey.conditions, "met": survey.is_met(), "residues": survey.residues,
        "dangling": survey.dangling, "statements": statements,
    }))?;
    Ok(if survey.is_met() { Exit::Clean } else { Exit::Refused })
}

fn text(survey: &Survey) -> String {
    let mut text = conditions(&survey.conditions);
    if !survey.residues.is_empty() {
        let mut table = table(&["rows with a residue, which is lost", "rows"], 1);
        for one in &survey.residues {
            table.add_row([one.collection.to_owned(), number(one.rows)]);
        }
        text += &format!("\n\n{}", fitted(table));
    }
    if !survey.dangling.is_empty() {
        let mut table = table(&["references that lead nowhere", "rows", "the first"], 0);
        for one in &survey.dangling {
            let ids = one.ids.iter().map(|id| escape(id)).collect::<Vec<_>>().join(", ");
            table.add_row([one.reference.to_string(), number(one.rows), ids]);
        }
        text += &format!("\n\n{}", fitted(table));
    }
    text
}

fn ended(references: &[Enforced], before: bool) -> String {
    let mut lines = vec![match before {
        true => "the move was over before".to_owned(),
        false => "the move is over: PostgreSQL alone holds the scheduler's records".to_owned(),
    }];
    for Enforced { reference, is_valid, dangling } in references {
        lines.push(match is_valid {
            true => format!("  enforced: {reference}"),
            false => format!("  enforced for new rows alone: {reference} ({} rows lead nowhere)", number(*dangling)),
        });
    }
    if !before {
        lines.push("start the application again; MongoDB is not needed any more".to_owned());
    }
    lines.join("\n")
}

impl From<FinalizeError> for Failure {
    fn from(error: FinalizeError) -> Self {
        match error {
            FinalizeError::Schema(error) => error.into(),
            FinalizeError::Target(error) => error.into(),
            FinalizeError::Unmet { .. } => {
                Self::of(Exit::Refused, &error).hint("`bridge finalize --dry-run` shows what is missing")
            }
        }
    }
}
