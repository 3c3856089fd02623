//! Logs go to stderr, and no password does.

use std::io::{IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::progress::above_bars;
use super::{Exit, Failure};
use crate::secret::Secrets;

/// What is logged when BRIDGE_LOG is not set. PostgreSQL's notices are for programmers: it warns of each transaction that is
/// rolled back when it was over, as one is whose commit was given up on the way.
const DEFAULT: &str = "warn,sqlx::postgres::notice=error";

/// Starts logging, as BRIDGE_LOG says.
pub(super) fn start(secrets: &Secrets) -> Result<(), Failure> {
    let wanted = std::env::var("BRIDGE_LOG").ok().filter(|wanted| !wanted.is_empty());
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or(DEFAULT)).map_err(|error| {
        Failure::new(Exit::Usage, format!("BRIDGE_LOG is not valid: {error}"))
            .hint("use a level (error, warn, info, debug, trace) or module=level, separated by commas")
    })?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let writer = Redacting { secrets: secrets.clone() };
    let started = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(writer).try_init();
    started.map_err(|error| Failure::new(Exit::Usage, format!("could not start logging: {error}")))
}

/// Writes to stderr without the passwords. The subscriber writes an event at once, so that none is cut in two.
#[derive(Debug, Clone)]
struct Redacting {
    secrets: Secrets,
}

impl Write for Redacting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = self.secrets.redact(&text);
        above_bars(|| std::io::stderr().lock().write_all(text.as_bytes()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
}

impl MakeWriter<'_> for Redacting {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
