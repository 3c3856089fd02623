//! The command `bridge`: settings, commands, errors and everything that is printed. No other module prints.

mod backfill;
mod completions;
mod confirm;
mod context;
mod demo;
mod exit;
mod finalize;
mod follow;
mod log;
mod migrate;
mod mirror;
mod output;
mod progress;
mod quarantine;
mod reads;
mod repair;
mod report;
mod settings;
mod signal;
mod simulate;
mod status;
mod stray;
mod summary;
mod switch;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::context::{Context, Stores};
pub use self::exit::{Exit, Failure};
pub use self::output::Output;
pub use self::settings::{Limits, Settings};

use self::settings::Given;
use crate::escape;
use crate::secret::Secrets;

/// Moves a running job scheduler from MongoDB to PostgreSQL without stopping it and without losing a write.
#[derive(Debug, Parser)]
#[command(name = "bridge", version, arg_required_else_help = true, max_term_width = 100, after_help = EXITS)]
struct Cli {
    #[command(flatten)]
    given: Given,
    /// Print JSON for machines instead of text for people
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXITS: &str = "Settings come from the flag, then the environment, then the file.\n\
Exit codes: 0 clean, 1 mismatch, 2 usage, 3 source (MongoDB), 4 target (PostgreSQL), 5 refused, 6 inconclusive, \
130 interrupted.\nLogs go to stderr; BRIDGE_LOG sets what is logged (warn, info, debug, scheduler_bridge=trace …).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Create or update the schemas in PostgreSQL
    Migrate,
    /// Copy collections into PostgreSQL; the same command carries on after an interruption
    Backfill(backfill::BackfillArgs),
    /// Keep PostgreSQL level with a MongoDB that is in use, until told to stop; others stand by
    Mirror(mirror::MirrorArgs),
    /// Compare both stores, document by document
    Verify(verify::VerifyArgs),
    /// Show where the move stands: phase, mirror, quarantine, verification, and which phase may follow
    Status(status::StatusArgs),
    /// Turn to another phase: make the other store the primary, or let writes follow there
    Switch(switch::SwitchArgs),
    /// End the move after phase postgres: take away what exists only for it; there is no way back
    Finalize(finalize::FinalizeArgs),
    /// Look at the documents that could not become a row
    Quarantine(quarantine::QuarantineArgs),
    /// Look at what others wrote to MongoDB while it followed PostgreSQL
    Stray(stray::StrayArgs),
    /// Run a small scheduler on one of the stores, and check afterwards that nothing was lost
    Simulate(simulate::SimulateArgs),
    /// Show the whole move on private servers that are removed afterwards
    Demo(demo::DemoArgs),
    /// Print the completions for a shell
    Completions(completions::CompletionsArgs),
}

/// Runs the command line `arguments` (the program's name first).
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let json = arguments.iter().any(|argument| argument == "--json");
    let output = Output::new(json);
    // Before clap, which would repeat a misplaced URL with its password.
    if let Err(failure) = settings::refuse_passwords(&arguments) {
        return failure.report(output, &Secrets::default());
    }
    let cli = Cli::command().try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    match cli {
        Ok(cli) => started(cli, output),
        Err(error) => exit::of_clap(&error, output),
    }
}

fn started(cli: Cli, output: Output) -> ExitCode {
    let settings = match cli.given.settled() {
        Ok(settings) => settings,
        Err(failure) => return failure.report(output, &Secrets::default()),
    };
    let secrets = settings.secrets();
    let done = log::start(&secrets).and_then(|()| run(cli.command, settings, output));
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(output, &secrets),
    }
}

fn run(command: Command, settings: Settings, output: Output) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::system("start the runtime", &error))?;
    runtime.block_on(async {
        let context = Context { settings, output, stop: signal::watched()? };
        dispatched(command, &context).await
    })
}

async fn dispatched(command: Command, context: &Context) -> Result<Exit, Failure> {
    match command {
        Command::Migrate => migrate::run(context).await,
        Command::Backfill(args) => backfill::run(args, context).await,
        Command::Mirror(args) => mirror::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Status(args) => status::run(&args, context).await,
        Command::Finalize(args) => finalize::run(&args, context).await,
        Command::Switch(args) => switch::run(args, context).await,
        Command::Quarantine(args) => quarantine::run(args, context).await,
        Command::Stray(args) => stray::run(args, context).await,
        Command::Simulate(args) => simulate::run(args, context).await,
        Command::Demo(args) => demo::run(args, context).await,
        Command::Completions(args) => completions::run(&args, Cli::command(), context.output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_has_a_flag_a_variable_and_a_key_and_the_help_shows_all_three() {
        let mut command = Cli::command();
        command.build();
        let subcommands = command.get_subcommands().flat_map(clap::Command::get_arguments);
        let mut found: Vec<String> = Vec::new();
        for argument in command.get_arguments().chain(subcommands) {
            let Some(variable) = argument.get_env().and_then(|variable| variable.to_str()) else { continue };
            let flag = argument.get_long().unwrap();
            assert_eq!(variable, format!("BRIDGE_{}", flag.to_uppercase().replace('-', "_")));
            assert!(argument.is_hide_env_values_set(), "{flag} would print its value");
            let help = argument.get_help().unwrap().to_string();
            if flag != "config" {
                assert!(help.contains(&format!("[file: {flag}]")), "{flag}: {help}");
                found.push(flag.to_owned());
            }
        }
        found.sort();
        found.dedup();
        assert_eq!(found, settings::keys());
    }
}
