//! How a command ends: its exit code and, when it failed, what it says about it.

use std::error::Error;
use std::process::ExitCode;

use crate::migrate::MigrateError;
use crate::secret::Secrets;
use crate::source::SourceError;
use crate::target::TargetError;

use super::Output;

/// What a script learns from a command's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well; for `verify`: the stores are equal.
    Clean = 0,
    /// The stores differ.
    Mismatch = 1,
    /// The command line, the environment or the file is wrong.
    Usage = 2,
    /// MongoDB cannot be used.
    Source = 3,
    /// PostgreSQL cannot be used.
    Target = 4,
    /// The command was understood and must not be done now.
    Refused = 5,
    /// Nothing was compared.
    Inconclusive = 6,
    /// Stopped by Ctrl-C or SIGTERM.
    Interrupted = 130,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A command that failed: what a person reads and what a script gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What failed, on which key, and why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure in words.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// A failure told by an error and all its sources.
    pub fn of(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        Self::new(exit, chain(error))
    }

    /// A failure of this machine: a file, the terminal, a thread.
    pub fn system(attempted: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::Usage, format!("could not {attempted}: {error}"))
    }

    /// The same failure with what to do next.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Prints the failure: text on stderr and, with `--json`, one object on stdout.
    pub fn report(&self, output: Output, secrets: &Secrets) -> ExitCode {
        let message = secrets.redact(&self.message);
        output.failure(&message, self.hint.as_deref(), self.exit.code());
        self.exit.into()
    }
}

/// An error and its sources, joined by `": "`.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = link(error);
    let mut next = error.source();
    while let Some(source) = next {
        let part = link(source);
        // Some drivers' texts end with their source's.
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        next = if is_database(source) { None } else { source.source() };
    }
    text
}

fn link(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error) {
        Some(answer) => format!("{} (code {})", answer.message(), answer.code().unwrap_or_default()),
        None => error.to_string(),
    }
}

fn is_database(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref::<sqlx::Error>(), Some(sqlx::Error::Database(_)))
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let exit = match error {
            SourceError::Url { .. } => Exit::Usage,
            _ => Exit::Source,
        };
        Self::of(exit, &error).hint(source_hint(&error))
    }
}

fn source_hint(error: &SourceError) -> &'static str {
    match error {
        SourceError::Url { .. } => {
            "it looks like mongodb://user:password@host:27017/?replicaSet=rs0; percent-encode : / ? # [ ] @ % in user and \
             password; set BRIDGE_MONGO_URL, or mongo-url in the file"
        }
        SourceError::Unreachable { .. } => {
            "check that mongod runs, host, port and replicaSet in BRIDGE_MONGO_URL, and that the names the replica set \
             gives its members can be reached from here (otherwise add directConnection=true)"
        }
        SourceError::Uninitiated => "run rs.initiate() in mongosh on that server",
        SourceError::Authentication { .. } => {
            "check user and password in BRIDGE_MONGO_URL, and authSource, the database that holds the user (default: \
             the one in the URL, else admin)"
        }
        SourceError::Privilege { .. } => {
            "give the user of BRIDGE_MONGO_URL the role readWrite on the scheduler's database, or use another user"
        }
        SourceError::Standalone => {
            "restart mongod with --replSet rs0 and run rs.initiate() once in mongosh; the data stays"
        }
        SourceError::Version { .. } => "upgrade MongoDB first",
        SourceError::MissingDatabase { .. } => "set BRIDGE_MONGO_DATABASE to the scheduler's database",
        SourceError::Command { .. } => "run the command again; it carries on where it stopped",
    }
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        if let TargetError::Schema { source } = error {
            return source.into();
        }
        let exit = match error {
            TargetError::Url { .. } => Exit::Usage,
            _ => Exit::Target,
        };
        Self::of(exit, &error).hint(target_hint(&error))
    }
}

fn target_hint(error: &TargetError) -> &'static str {
    match error {
        TargetError::Url { .. } => {
            "it looks like postgres://user:password@host:5432/database; percent-encode : / ? # [ ] @ % in user and \
             password; set BRIDGE_POSTGRES_URL, or postgres-url in the file"
        }
        TargetError::Unreachable { .. } | TargetError::Silent { .. } => {
            "check that PostgreSQL runs, and host, port and sslmode in BRIDGE_POSTGRES_URL"
        }
        TargetError::Authentication { .. } => {
            "check user and password in BRIDGE_POSTGRES_URL, and that pg_hba.conf lets the user in from here"
        }
        TargetError::MissingDatabase { .. } => "create it (createdb NAME), or correct the name in BRIDGE_POSTGRES_URL",
        TargetError::Privilege { .. } => PRIVILEGE,
        TargetError::Version { .. } => "upgrade PostgreSQL first",
        TargetError::Encoding { .. } => "create a database with encoding UTF8 (createdb -E UTF8 -T template0 NAME)",
        TargetError::ReadOnly { .. } => "give the URL of the primary in BRIDGE_POSTGRES_URL",
        TargetError::Schema { .. } => "run `bridge migrate`",
        TargetError::Query { source, .. } => answer_hint(source),
    }
}

const PRIVILEGE: &str = "give the user of BRIDGE_POSTGRES_URL the right to create schemas in the database (grant create \
                         on database NAME to USER) and to write to the tables of schemas scheduler and bridge";

/// What to do about an answer of PostgreSQL that no kind of error stands for.
fn answer_hint(error: &sqlx::Error) -> &'static str {
    let code = error.as_database_error().and_then(|answer| answer.code());
    match code.as_deref() {
        Some("42501") => PRIVILEGE,
        Some("53100" | "58030") => "free space on the disk of PostgreSQL, then run the command again; it carries on",
        Some("57014") => {
            "somebody, or statement_timeout, cancelled it: raise the timeout (alter role USER set statement_timeout = \
             0), then run the command again; it carries on"
        }
        Some("53300") => "use fewer --workers, or raise max_connections",
        Some("55P03") => "wait until the transaction that holds the lock is over (see pg_locks), then run it again",
        Some("42P01" | "3F000" | "42703") => "run `bridge migrate`",
        Some("25006") => "give the URL of the primary in BRIDGE_POSTGRES_URL",
        _ => "run the command again; it carries on where it stopped",
    }
}

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        let exit = if matches!(error, MigrateError::Over) { Exit::Refused } else { Exit::Target };
        Self::of(exit, &error).hint(migrate_hint(&error))
    }
}

fn migrate_hint(error: &MigrateError) -> &'static str {
    match error {
        MigrateError::Pending { .. } => "run `bridge migrate`",
        MigrateError::Over => "nothing is left to do: `bridge finalize` has ended the move",
        MigrateError::Changed { .. } => {
            "use the program that applied it, or restore the file's text (git checkout); changes to the schema go into a \
             new file"
        }
        MigrateError::Newer { .. } => "use the version of the program that migrated this database, or a newer one",
        MigrateError::Dirty { .. } => "check by hand what it did, then correct that row of bridge._sqlx_migrations",
        MigrateError::Locked { .. } => {
            "wait for the other `bridge migrate`, or end it (see pg_locks), then run it again"
        }
        MigrateError::Apply { source, .. } => apply_hint(source),
        MigrateError::Query { source, .. } => answer_hint(source),
    }
}

/// A migration's own SQL is sound (a test runs it); what stands in its way is in the database.
fn apply_hint(error: &sqlx::Error) -> &'static str {
    let code = error.as_database_error().and_then(|answer| answer.code());
    match code.as_deref() {
        Some(code) if code.starts_with("42") && code != "42501" => {
            "something of another shape stands in schema scheduler or bridge: compare it with the file in migrations/, \
             rename it or drop it, then run the command again"
        }
        _ => answer_hint(error),
    }
}

/// What clap says: help and version on stdout, errors on stderr.
pub(super) fn of_clap(error: &clap::Error, output: Output) -> ExitCode {
    if error.use_stderr() {
        // The failure's text is clap's own; only the object for machines is ours.
        output.clap_failure(error, Exit::Usage.code());
        return Exit::Usage.into();
    }
    // Help that nobody reads any more (a closed pipe) is no failure.
    drop(error.print());
    Exit::Clean.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not copy chunk 7 of runs")]
    struct Outer {
        source: std::io::Error,
    }

    #[test]
    fn an_error_is_told_with_its_sources() {
        let error = Outer { source: std::io::Error::other("the disk is full") };
        assert_eq!(Failure::of(Exit::Target, &error).message, "could not copy chunk 7 of runs: the disk is full");
    }

    #[test]
    fn a_source_that_the_text_already_holds_is_told_once() {
        let error = sqlx::Error::Io(std::io::Error::other("connection reset"));
        assert_eq!(chain(&error), "error communicating with database: connection reset");
    }

    #[test]
    fn the_exit_codes_are_those_scripts_rely_on() {
        let all = [Exit::Clean, Exit::Mismatch, Exit::Usage, Exit::Source, Exit::Target, Exit::Refused];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4, 5]);
        assert_eq!((Exit::Inconclusive.code(), Exit::Interrupted.code()), (6, 130));
    }
}
