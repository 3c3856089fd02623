//! Opens PostgreSQL: a server the bridge can write to, and what it means when it cannot.

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool, Row, ValueRef};

use crate::layout::Layout;
use crate::migrate::{self, MigrateError};
use crate::secret::Secrets;

/// The name under which the bridge's connections stand in `pg_stat_activity`.
pub const APPLICATION: &str = "scheduler-bridge";

/// How long a first connection may take.
pub const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// How long a worker waits for a connection of the pool. PostgreSQL may be restarting meanwhile.
pub const ACQUIRE_WAIT: Duration = Duration::from_secs(30);

/// How long an idle connection is taken to be alive.
pub const TRUSTED: Duration = Duration::from_millis(500);

/// What a session for statements by keys is set to: one plan for all values, joins by key, and pages in the order of an
/// index, never sorted out of all that match. A process that stands still in a transaction keeps its rows from others for
/// ten seconds and no longer.
pub const KEYED: &str = "set plan_cache_mode = force_generic_plan; set enable_hashjoin = off;
    set enable_mergejoin = off; set enable_bitmapscan = off; set enable_sort = off; set jit = off;
    set idle_in_transaction_session_timeout = '10s'";

/// Oldest supported server, as `server_version_num` gives it.
pub const OLDEST: i32 = 140_000;

/// An open PostgreSQL database.
#[derive(Debug, Clone)]
pub struct Target {
    pool: PgPool,
}

/// Why PostgreSQL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The URL cannot be read. The reason carries no password.
    #[error("the PostgreSQL URL is not valid: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// No server answers.
    #[error("could not reach PostgreSQL at {host}")]
    Unreachable {
        /// Host and port, or the socket's folder.
        host: String,
        /// The driver's answer.
        source: sqlx::Error,
    },
    /// No server answers in time.
    #[error("PostgreSQL at {host} did not answer within {} s", CONNECT_WAIT.as_secs())]
    Silent {
        /// Host and port, or the socket's folder.
        host: String,
    },
    /// Wrong user or password, or a user `pg_hba.conf` refuses.
    #[error("PostgreSQL refused the user or the password")]
    Authentication {
        /// The server's answer.
        source: sqlx::Error,
    },
    /// The server has no such database.
    #[error("PostgreSQL does not have the database of the URL")]
    MissingDatabase {
        /// The server's answer.
        source: sqlx::Error,
    },
    /// The user may not do what the bridge must do.
    #[error("PostgreSQL did not allow the user to {attempted}")]
    Privilege {
        /// What was attempted.
        attempted: String,
        /// The server's answer.
        source: sqlx::Error,
    },
    /// The server is too old.
    #[error("PostgreSQL {version} is too old: the bridge needs {} or newer", OLDEST / 10_000)]
    Version {
        /// The server's version.
        version: String,
    },
    /// The database's encoding cannot hold every document.
    #[error("the database is encoded in {encoding}: the bridge needs UTF8")]
    Encoding {
        /// The database's encoding.
        encoding: String,
    },
    /// The server takes no writes: a standby, or `default_transaction_read_only`.
    #[error("PostgreSQL at {host} is read-only")]
    ReadOnly {
        /// Host and port, or the socket's folder.
        host: String,
    },
    /// The schema is not the one this program needs.
    #[error("the schema is not ready")]
    Schema {
        /// What is missing.
        source: MigrateError,
    },
    /// Anything else.
    #[error("could not {attempted}")]
    Query {
        /// What was attempted.
        attempted: String,
        /// The driver's answer.
        source: sqlx::Error,
    },
}

impl TargetError {
    /// The kind of a failure while doing `attempted` (`"copy runs, chunk 7"`) on an open connection.
    pub fn of(attempted: impl Into<String>, source: sqlx::Error) -> Self {
        let attempted = attempted.into();
        match code(&source).as_deref() {
            Some("28P01" | "28000") => Self::Authentication { source },
            Some("3D000") => Self::MissingDatabase { source },
            Some("42501") => Self::Privilege { attempted, source },
            _ => Self::Query { attempted, source },
        }
    }
}

impl Target {
    /// Opens a pool of at most `connections` after one connection has shown that the server can be used.
    pub async fn open(url: &SecretString, connections: u32) -> Result<Self, TargetError> {
        Self::open_with(url, connections, None).await
    }

    /// [`Target::open`] for few statements that run many times, each by keys that an index finds. They are planned once for
    /// all values (PostgreSQL would plan those that take arrays anew each time, which takes longer than to run them), and
    /// never by reading a whole table, whatever the statistics say of it ([`KEYED`]).
    pub async fn open_prepared(url: &SecretString, connections: u32) -> Result<Self, TargetError> {
        Self::open_with(url, connections, Some(KEYED)).await
    }

    /// [`Target::open_prepared`] of a server that may be away: nothing is asked of it.
    pub fn unchecked_prepared(url: &SecretString, connections: u32) -> Result<Self, TargetError> {
        Ok(Self::lazy(options(url)?, connections, Some(KEYED)))
    }

    /// Each connection begins with the statement `first`, if there is one.
    async fn open_with(url: &SecretString, connections: u32, first: Option<&'static str>) -> Result<Self, TargetError> {
        let options = options(url)?;
        close(checked(&options).await?).await?;
        Ok(Self::lazy(options, connections, first))
    }

    fn lazy(options: PgConnectOptions, connections: u32, first: Option<&'static str>) -> Self {
        // A connection that a restart has broken is found before work is given to it, not by the work; one that has
        // just served needs no round trip for that.
        let pool = PgPoolOptions::new()
            .max_connections(connections.max(1))
            .acquire_timeout(ACQUIRE_WAIT)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    match first {
                        Some(first) => connection.execute(first).await.map(|_| ()),
                        None => Ok(()),
                    }
                })
            })
            .before_acquire(|connection, state| {
                Box::pin(async move { Ok(state.idle_for < TRUSTED || connection.ping().await.is_ok()) })
            })
            .after_release(|connection, _| Box::pin(is_outside_transactions(connection)))
            .connect_lazy_with(options);
        Self { pool }
    }

    /// The connections.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The time, by PostgreSQL's clock.
    pub async fn now(&self) -> Result<DateTime<Utc>, TargetError> {
        let now = sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await;
        now.map_err(|error| TargetError::of("ask PostgreSQL for the time", error))
    }

    /// How the scheduler's tables are laid out.
    pub async fn layout(&self) -> Result<Layout, TargetError> {
        let layout = Layout::of(&self.pool).await;
        layout.map_err(|source| TargetError::of("look how the scheduler's tables are laid out", source))
    }

    /// Refuses a database in which not every migration has run, or that needs none since the move is over.
    pub async fn require_schema(&self) -> Result<(), TargetError> {
        let mut connection = self.pool.acquire().await.map_err(|source| TargetError::of("connect", source))?;
        migrate::check(&mut connection).await.map_err(|source| TargetError::Schema { source })
    }
}

/// One connection outside any pool, to a server that can be used.
pub async fn connect(url: &SecretString) -> Result<PgConnection, TargetError> {
    checked(&options(url)?).await
}

/// Whether `connection` is in no transaction. The driver believes so of one whose `begin` was given up on the way, which
/// the server has begun all the same: it would go back to the pool, and what others write on it would be kept from
/// everybody and lost with it (sqlx 0.9.0; its issue 4393).
async fn is_outside_transactions(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // Of a statement alone, not prepared, both are the time of its arrival.
    connection.fetch_one("select now() = statement_timestamp()").await?.try_get(0)
}

/// The bytes of each column in its binary form.
pub fn columns(row: &PgRow) -> sqlx::Result<Vec<Option<&[u8]>>> {
    let column = |index| {
        let value = row.try_get_raw(index)?;
        if value.is_null() { Ok(None) } else { value.as_bytes().map(Some).map_err(sqlx::Error::Decode) }
    };
    (0..row.len()).map(column).collect()
}

/// Whether the same statement may succeed when tried again later, after a reconnect.
///
/// Kept apart from the errors: this is the policy of who retries, not what happened.
pub fn transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed | sqlx::Error::BeginFailed => true,
        // The driver's word for a connection that ends in the middle of an answer.
        sqlx::Error::Protocol(message) => {
            let broken = ["unexpected end", "closed", "SSLRequest: 0x00"];
            broken.iter().any(|words| message.contains(words))
        }
        sqlx::Error::Database(_) => code(error).is_some_and(|code| transient_code(&code)),
        _ => false,
    }
}

/// Whether the statement is refused for what its rows hold: classes 22 (data), 23 (constraints), 54 (limits), P0 (raised
/// by a function). Source: the PostgreSQL manual, appendix A.
pub fn refuses_data(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| ["22", "23", "54", "P0"].iter().any(|class| code.starts_with(class)))
}

/// PostgreSQL's error codes, appendix A of its manual.
fn transient_code(code: &str) -> bool {
    // 57P01, 02, 03: shut down by an administrator, crashed, starting up. 40001, 40P01: serialization, deadlock.
    // 53300: too many connections. 55P03: lock not available in time. 25P03, 57P05: the session of a process that stood
    // still was ended. 25006 is what a demoted primary answers, and stays.
    let transient = ["57P01", "57P02", "57P03", "57P05", "40001", "40P01", "53300", "55P03", "25P03"];
    transient.contains(&code) || code.starts_with("08")
}

fn options(url: &SecretString) -> Result<PgConnectOptions, TargetError> {
    let text = url.expose_secret();
    if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
        return Err(TargetError::Url { reason: "it must begin with postgres:// or postgresql://".to_owned() });
    }
    let options = PgConnectOptions::from_str(text)
        .map_err(|error| TargetError::Url { reason: Secrets::of([url]).redact(&error.to_string()).into_owned() })?;
    Ok(options.application_name(APPLICATION).disable_statement_logging())
}

async fn checked(options: &PgConnectOptions) -> Result<PgConnection, TargetError> {
    // `PgPool` repeats a refused connection until its time is over and then says only that; one connection says why.
    let connected = tokio::time::timeout(CONNECT_WAIT, options.connect()).await;
    let silent = |_| TargetError::Silent { host: host(options) };
    let mut connection = connected.map_err(silent)?.map_err(|source| refused(options, source))?;
    let server: Server = sqlx::query_as(
        "select current_setting('server_version') as version, current_setting('server_version_num')::int as number, \
         current_setting('server_encoding') as encoding, \
         pg_is_in_recovery() or current_setting('transaction_read_only')::bool as read_only",
    )
    .fetch_one(&mut connection)
    .await
    .map_err(|source| TargetError::of("ask PostgreSQL for its version", source))?;
    server.check(options)?;
    Ok(connection)
}

fn refused(options: &PgConnectOptions, source: sqlx::Error) -> TargetError {
    match source {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => TargetError::Unreachable { host: host(options), source },
        source => TargetError::of(format!("connect to PostgreSQL at {}", host(options)), source),
    }
}

fn host(options: &PgConnectOptions) -> String {
    let socket = options.get_socket().map(|folder| folder.display().to_string());
    socket.unwrap_or_else(|| format!("{}:{}", options.get_host(), options.get_port()))
}

async fn close(connection: PgConnection) -> Result<(), TargetError> {
    connection.close().await.map_err(|source| TargetError::of("close the first connection", source))
}

#[derive(sqlx::FromRow)]
struct Server {
    version: String,
    number: i32,
    encoding: String,
    read_only: bool,
}

impl Server {
    fn check(self, options: &PgConnectOptions) -> Result<(), TargetError> {
        if self.number < OLDEST {
            return Err(TargetError::Version { version: self.version });
        }
        if self.encoding != "UTF8" {
            return Err(TargetError::Encoding { encoding: self.encoding });
        }
        if self.read_only {
            return Err(TargetError::ReadOnly { host: host(options) });
        }
        Ok(())
    }
}

fn code(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        options(&SecretString::from(url)).unwrap_err().to_string()
    }

    #[test]
    fn a_lost_connection_is_transient_and_a_full_disk_is_not() {
        for code in ["57P01", "57P02", "57P03", "40001", "40P01", "08006", "08P01", "53300", "25P03"] {
            assert!(transient_code(code), "{code}");
        }
        for code in ["53100", "57014", "42501", "28P01", "22P02", "23505", "42P01", "25006"] {
            assert!(!transient_code(code), "{code}");
        }
        assert!(transient(&sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())));
        assert!(transient(&sqlx::Error::PoolTimedOut));
        assert!(!transient(&sqlx::Error::PoolClosed));
        assert!(!transient(&sqlx::Error::RowNotFound));
    }

    #[test]
    fn a_bad_url_is_refused_without_its_password() {
        let bad = [
            "mysql://me:hunter2@host/db",
            "postgres://me:hunter2/x@host/db",
            "postgres://me:hunter2#x@host/db",
            "postgres://me:hunter2@host:port/db",
            "postgres://me@host/db?password=hunter2&sslmode=hunter2",
            "host=localhost password=hunter2",
        ];
        for url in bad {
            let text = refusal(url);
            assert!(text.starts_with("the PostgreSQL URL is not valid: ") && !text.contains("hunter2"), "{text}");
        }
    }
}
