//! `bridge completions SHELL`.

use clap::Args;
use clap_complete::Shell;

use super::{Exit, Failure, Output};

/// Arguments of `bridge completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, mut command: clap::Command, output: Output) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "bridge", &mut script);
    let script = String::from_utf8_lossy(&script);
    output.text(script.trim_end())?;
    output.object(&serde_json::json!({ "shell": args.shell.to_string(), "script": script }))?;
    Ok(Exit::Clean)
}
