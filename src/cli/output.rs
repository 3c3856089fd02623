//! Where text goes: results to stdout, for people or (with `--json`) for machines; failures to stderr.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use super::Failure;
use super::escape::{escape, escape_json};
use super::progress::above_bars;

/// Which kind of output was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    json: bool,
}

impl Output {
    /// JSON for machines, or text for people.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON was asked for: then [`Self::text`] prints nothing, otherwise [`Self::object`] does not.
    pub const fn is_json(self) -> bool {
        self.json
    }

    /// A line, or several, for people. Data in it must have been through [`escape`].
    ///
    /// A reader that went away (`| head`) is no failure: the work goes on without it.
    pub fn text(self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { written(text) }
    }

    /// One object on one line, for machines.
    pub fn object(self, value: &impl Serialize) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        let text = serde_json::to_string(value).map_err(|error| Failure::system("write JSON", &error.into()))?;
        written(&escape_json(&text))
    }

    pub(super) fn failure(self, message: &str, hint: Option<&str>, exit: u8) {
        complain(&format!("error: {}", escape(message)));
        if let Some(hint) = hint {
            complain(&format!("hint: {hint}"));
        }
        self.failure_object(message, hint, exit);
    }

    pub(super) fn clap_failure(self, error: &clap::Error, exit: u8) {
        // When stderr is closed there is nobody left to tell.
        if error.print().is_ok() {
            self.failure_object(error.to_string().trim(), None, exit);
        }
    }

    fn failure_object(self, error: &str, hint: Option<&str>, exit: u8) {
        if let Err(failure) = self.object(&serde_json::json!({ "error": error, "hint": hint, "exit": exit })) {
            complain(&format!("error: {}", failure.message));
        }
    }
}

fn written(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::system("write to stdout", &error)),
        _ => Ok(()),
    }
}

/// A line on stderr. When it is closed there is nobody left to tell.
pub(super) fn complain(line: &str) {
    above_bars(|| drop(writeln!(std::io::stderr().lock(), "{line}")));
}
