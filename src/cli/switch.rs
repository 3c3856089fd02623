//! `bridge switch`.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::settings::{Lease, collection};
use super::{Context, Exit, Failure, Output, confirm};
use crate::condition::Condition;
use crate::entity::Entity;
use crate::fence::FenceError;
use crate::mirror::MirrorError;
use crate::phase::Phase;
use crate::switch::gate::{Limits, Transition};
use crate::switch::{Made, Options, Step, Switch, SwitchError};

/// Arguments of `bridge switch`.
#[derive(Debug, Args)]
pub(super) struct SwitchArgs {
    /// The phase to turn to: mongo-primary, postgres-primary or postgres
    #[arg(value_name = "PHASE", required_unless_present_any = ["abort", "resume"])]
    pub phase: Option<Phase>,
    /// Show the gate's conditions, and turn nothing
    #[arg(long, conflicts_with_all = ["abort", "resume", "yes"])]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Undo a switch that was left half way
    #[arg(long, conflicts_with_all = ["phase", "resume"])]
    pub abort: bool,
    /// Finish a switch that was left half way
    #[arg(long, conflicts_with = "phase")]
    pub resume: bool,
    /// How long a process that does not answer is waited for beyond its lease, in seconds
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub silent_seconds: u64,
    /// Go on without processes that do not answer; what they write later is lost to the new primary
    #[arg(long)]
    pub leave_behind: bool,
    /// How long the new primary may take to come level while writers wait, in seconds
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub level_seconds: u64,
    /// Accept that this client is connected to MongoDB, by its name as the gate shows it; may be repeated
    #[arg(long, value_name = "NAME")]
    pub accept_client: Vec<String>,
    /// Accept that the reads of this collection differ between the stores, as `bridge verify --reads` shows them; may be
    /// repeated
    #[arg(long, value_name = "COLLECTION", value_parser = collection())]
    pub accept_reads: Vec<&'static Entity>,
    /// Have MongoDB (6.0 on) refuse writes of every user without the privilege bypassWriteBlockingMode, in all databases,
    /// once it is no primary any more; the bridge and the application need that privilege
    #[arg(long)]
    pub block_writes: bool,
    /// How old the verification may be that the gate relies on, in seconds [default: 3600]
    #[arg(long, value_name = "N")]
    pub fresh_seconds: Option<u64>,
    /// For how long PostgreSQL must have been the primary before `postgres`, in seconds [default: 86400]
    #[arg(long, value_name = "N")]
    pub soak_seconds: Option<u64>,
    /// Confirm that there is no way back from `postgres`, which --yes alone does not
    #[arg(long)]
    pub no_way_back: bool,
    #[command(flatten)]
    pub lease: Lease,
}

pub(super) async fn run(args: SwitchArgs, context: &Context) -> Result<Exit, Failure> {
    let open = async {
        let target = context.target(NonZeroUsize::MIN).await?;
        let lease = args.lease.settled(&context.settings);
        Ok(Switch::new(context.source().await?, target, operator(), lease))
    };
    let switch = context.until_stopped(open).await?;
    // From here on it is not dropped on the way: Ctrl-C is heeded until the first fence is touched.
    match args {
        SwitchArgs { abort: true, .. } => {
            let phase = switch.abort().await?;
            context.output.text(&format!("undone: the phase is {phase}"))?;
            context.output.object(&json!({ "phase": phase.name(), "aborted": true }))?;
            Ok(Exit::Clean)
        }
        SwitchArgs { resume: true, .. } => {
            let made = switch.resume(options(&args), &mut |step| told(&step, context.output)).await?;
            made_known(&made, context)
        }
        SwitchArgs { phase: Some(phase), .. } => turn(&switch, phase, &args, context).await,
        SwitchArgs { phase: None, .. } => Err(Failure::new(Exit::Usage, "no phase is named")),
    }
}

async fn turn(switch: &Switch, to: Phase, args: &SwitchArgs, context: &Context) -> Result<Exit, Failure> {
    let limits = limits(args);
    let (transition, conditions) = switch.examine(to, &limits).await?;
    let instances = switch.instances().await?;
    context.output.text(&gate(transition, &conditions, instances.len()))?;
    let met = conditions.iter().all(|condition| condition.met);
    if args.dry_run {
        context.output.object(&json!({
            "from": transition.from.name(), "to": to.name(), "conditions": conditions, "met": met,
            "processes": instances.iter().map(|instance| &instance.name).collect::<Vec<_>>(),
        }))?;
        return Ok(if met { Exit::Clean } else { Exit::Refused });
    }
    if !met {
        return Err(SwitchError::Unmet { conditions }.into());
    }
    let is_last = to == Phase::Postgres;
    if !(args.yes && (!is_last || args.no_way_back)) && !confirm::typed(to.name(), "turn")? {
        let flags = if is_last { "--yes --no-way-back turns" } else { "--yes turns" };
        return Err(Failure::new(Exit::Refused, "not confirmed").hint(format!("{flags} without asking")));
    }
    if context.stop.is_cancelled() {
        return Err(Failure::new(Exit::Interrupted, "stopped before anything was turned"));
    }
    let permit = switch.permit(to, &limits).await?;
    let made = switch.make(permit, options(args), &mut |step| told(&step, context.output)).await?;
    made_known(&made, context)
}

fn limits(args: &SwitchArgs) -> Limits {
    let Limits { fresh, soak, .. } = Limits::default();
    Limits {
        accepted_clients: args.accept_client.iter().cloned().collect(),
        accepted_reads: args.accept_reads.iter().map(|entity| entity.name.to_owned()).collect(),
        fresh: args.fresh_seconds.map_or(fresh, Duration::from_secs),
        soak: args.soak_seconds.map_or(soak, Duration::from_secs),
    }
}

fn options(args: &SwitchArgs) -> Options {
    Options {
        silent_wait: Duration::from_secs(args.silent_seconds),
        leave_behind: args.leave_behind,
        level_wait: Duration::from_secs(args.level_seconds),
        block_writes: args.block_writes,
    }
}

fn gate(transition: Transition, conditions: &[Condition], processes: usize) -> String {
    let (Transition { from, to }, conditions) = (transition, super::report::conditions(conditions));
    format!("from {from} to {to}; {processes} processes of the application write to MongoDB\n{conditions}")
}

pub(super) fn told(step: &Step, output: Output) {
    let millis = step.took.as_secs_f64() * 1_000.0;
    // A terminal that is gone must not stop the switch.
    drop(output.text(&format!("{millis:>9.1} ms  {}", step.name)));
    drop(output.object(&json!({ "step": step.name, "milliseconds": millis })));
}

fn made_known(made: &Made, context: &Context) -> Result<Exit, Failure> {
    let millis = made.pause.as_secs_f64() * 1_000.0;
    context
        .output
        .text(&format!("the phase is {}, epoch {}; writers waited {millis:.0} ms", made.phase, made.epoch))?;
    context.output.object(&json!({
        "phase": made.phase.name(), "epoch": made.epoch, "pause_milliseconds": millis,
    }))?;
    Ok(Exit::Clean)
}

/// Whoever is at the terminal, for other operators.
pub(super) fn operator() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
    format!("{user}@{}", crate::machine()).chars().take(200).collect()
}

impl From<SwitchError> for Failure {
    fn from(error: SwitchError) -> Self {
        let error = match error {
            SwitchError::Verify(error) => return error.into(),
            error => error,
        };
        let exit = match &error {
            SwitchError::Fence(FenceError::Source(_)) | SwitchError::Source(_) => Exit::Source,
            SwitchError::Fence(FenceError::Target(_)) | SwitchError::Target(_) => Exit::Target,
            SwitchError::Mirror(MirrorError::Source(_)) => Exit::Source,
            SwitchError::Differ { .. } => Exit::Mismatch,
            SwitchError::Mirror(_) => Exit::Target,
            _ => Exit::Refused,
        };
        let hint = match &error {
            SwitchError::NoWay { from, .. } => {
                let next: Vec<&str> = Transition::next(*from).into_iter().map(Phase::name).collect();
                match next.as_slice() {
                    [] => "this phase is the last one".to_owned(),
                    next => format!("from {from} the way leads to {}", next.join(" or ")),
                }
            }
            SwitchError::Unmet { .. } => "`bridge switch PHASE --dry-run` shows what is missing".to_owned(),
            SwitchError::UnderWay { .. } | SwitchError::Half => {
                "when nobody is at it any more, `bridge switch --resume` finishes it and `--abort` undoes it".to_owned()
            }
            SwitchError::Made { .. } => "bridge switch --resume".to_owned(),
            SwitchError::Silent { .. } => {
                "end these processes, or turn with --leave-behind; the phase is as it was".to_owned()
            }
            SwitchError::Differ { .. } => "`bridge verify` shows how; the phase is as it was".to_owned(),
            SwitchError::Late { .. } => "see that `bridge mirror` runs; the phase is as it was".to_owned(),
            SwitchError::Expired | SwitchError::Aborted { .. } | SwitchError::Moved { .. } => {
                "look at the phase, then try again".to_owned()
            }
            SwitchError::NoneUnderWay => "`bridge switch PHASE` begins one".to_owned(),
            _ => "put the cause right, then run the command again".to_owned(),
        };
        Self::of(exit, &error).hint(hint)
    }
}
