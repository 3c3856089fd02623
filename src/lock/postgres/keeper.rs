//! The keeper of the locks' connection: it serves requests, those that have piled up in one statement of each kind, lets go
//! what is over its lease, and tells the holders when the connection is gone.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use secrecy::SecretString;
use sqlx::{Connection, PgConnection};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::desk::Desk;
use super::statements::{self, Overdue, Statements};
use super::{Deadline, PostgresHeld, pooler};
use crate::layout::Layout;
use crate::lock::{ANSWER_WAIT, Given, LockError, LockKey, owner};

/// How long a connection is silent before it is looked at while locks are held.
pub const PING: Duration = Duration::from_millis(200);

/// How often those who wait look for holders that are over their lease.
const LOOK: Duration = Duration::from_millis(250);

/// How long such a holder is seen so before its session is ended: a session that has just taken the lock has not yet
/// written its row.
const GRACE: Duration = Duration::from_millis(700);

/// What is asked of the keeper.
#[derive(Debug)]
pub enum Request {
    /// Take a lock, if nobody holds it.
    Take {
        key: LockKey,
        lease: Duration,
        /// What MongoDB has given for the same acquisition.
        given: Option<Given>,
        /// Where the lock lets itself go.
        desk: Desk,
        reply: oneshot::Sender<Result<Option<PostgresHeld>, LockError>>,
    },
    /// Begin a lease anew.
    Renew {
        key: LockKey,
        token: i64,
        lease: Duration,
        given: Option<Given>,
        reply: oneshot::Sender<Result<(), LockError>>,
    },
    /// Let a lock go, if it is still the one with this token.
    LetGo { key: LockKey, token: i64, reply: Option<oneshot::Sender<Result<(), LockError>>> },
}

/// A lock that is held.
struct Entry {
    advisory: i64,
    token: i64,
    deadline: watch::Sender<Deadline>,
}

impl Entry {
    fn ends(&self) -> Instant {
        self.deadline.borrow().unwrap_or_else(Instant::now)
    }
}

/// The owner of the connection.
pub struct Keeper {
    url: SecretString,
    session: Option<Session>,
    instance: String,
    held: HashMap<String, Entry>,
    spoken: Instant,
    looked: Instant,
    overdue: HashMap<Overdue, Instant>,
}

struct Session {
    connection: PgConnection,
    owner: String,
    statements: Statements,
}

impl Session {
    /// The tokens of those that were taken, by id.
    async fn take(&mut self, wanted: &[Take]) -> sqlx::Result<Vec<(String, i64)>> {
        let Self { connection, owner, statements } = self;
        let mut taken = Vec::new();
        let mut keys = Vec::new();
        for (key, (lease, given), ..) in wanted {
            match given {
                None => keys.push((key, millis(*lease))),
                Some(given) => {
                    let token = statements.take_given(connection, key, given).await?;
                    taken.extend(token.map(|token| (key.id().to_owned(), token)));
                }
            }
        }
        if !keys.is_empty() {
            taken.extend(statements.take(connection, &keys, owner).await?);
        }
        Ok(taken)
    }
}

type Take = (LockKey, (Duration, Option<Given>), Desk, oneshot::Sender<Result<Option<PostgresHeld>, LockError>>);

impl Keeper {
    /// A keeper that connects when it is first asked.
    pub fn new(url: SecretString) -> Self {
        let (instance, held, overdue, now) = (owner(), HashMap::new(), HashMap::new(), Instant::now());
        Self { url, session: None, instance, held, spoken: now, looked: now, overdue }
    }

    /// A keeper with an open connection.
    pub async fn open(url: SecretString) -> Result<Self, LockError> {
        let mut keeper = Self::new(url);
        keeper.connect().await?;
        Ok(keeper)
    }

    /// Whether it has a connection.
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// When the first of the leases ends.
    pub fn ends(&self) -> Option<Instant> {
        self.held.values().map(Entry::ends).min()
    }

    /// Serves `requests`, looks whether the connection lives if it has been silent, and lets go what is over its lease.
    pub async fn round(&mut self, requests: Vec<Request>) {
        self.serve(requests).await;
        if !self.held.is_empty() && self.spoken.elapsed() >= PING {
            // A failure loses the session, which is all there is to do.
            drop(self.speak(async |session| session.connection.ping().await).await);
        }
        self.expire().await;
    }

    /// Ends the connection. The server lets everything go with the session, however it ends.
    pub async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            drop(tokio::time::timeout(ANSWER_WAIT, session.connection.close()).await);
        }
    }

    async fn serve(&mut self, batch: Vec<Request>) {
        let (mut takes, mut freed, mut replies): (Vec<Take>, _, _) = (Vec::new(), Vec::new(), Vec::new());
        for request in batch {
            match request {
                Request::Take { key, lease, given, desk, reply } => takes.push((key, (lease, given), desk, reply)),
                Request::LetGo { key, token, reply } => {
                    freed.extend(self.forget(&key, token));
                    replies.extend(reply);
                }
                Request::Renew { key, token, lease, given, reply } => {
                    let renewed = self.renew(&key, token, lease, given.as_ref()).await;
                    drop(reply.send(renewed));
                }
            }
        }
        self.free(&freed).await;
        // What is forgotten is let go, if not by the statement then by the end of the session.
        replies.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
        if !takes.is_empty() {
            self.take(takes).await;
        }
    }

    /// Takes what is asked for, each key once: the server would give one session the same advisory lock twice.
    async fn take(&mut self, takes: Vec<Take>) {
        let mut asked = HashSet::new();
        let is_new = |(key, ..): &Take| !self.held.contains_key(key.id()) && asked.insert(key.id().to_owned());
        let (wanted, refused): (Vec<Take>, Vec<Take>) = takes.into_iter().partition(is_new);
        refused.into_iter().for_each(|(.., reply)| drop(reply.send(Ok(None))));
        if wanted.is_empty() {
            return;
        }
        // Before the statement: the server's lease ends later than this one.
        let begun = Instant::now();
        let taken = match self.speak(async |session| session.take(&wanted).await).await {
            Ok(taken) => taken.into_iter().collect::<HashMap<String, i64>>(),
            Err(error) => {
                let source = error.map(|error| error.to_string());
                return wanted.into_iter().for_each(|(key, _, _, reply)| {
                    let attempted = format!("take lock {key}");
                    drop(reply.send(Err(LockError::Unavailable { attempted, source: source.clone().map(Into::into) })));
                });
            }
        };
        let missed: Vec<LockKey> =
            wanted.iter().map(|(key, ..)| key).filter(|key| !taken.contains_key(key.id())).cloned().collect();
        for (key, (lease, _), desk, reply) in wanted {
            let held = taken.get(key.id()).map(|token| self.hold(key, *token, begun + lease, desk));
            // Whoever went away meanwhile drops it, which lets it go.
            drop(reply.send(Ok(held)));
        }
        if !missed.is_empty() && self.looked.elapsed() >= LOOK {
            self.end_overdue(&missed).await;
        }
    }

    fn hold(&mut self, key: LockKey, token: i64, ends: Instant, desk: Desk) -> PostgresHeld {
        let (sender, deadline) = watch::channel(Some(ends));
        let entry = Entry { advisory: key.advisory(), token, deadline: sender };
        self.held.insert(key.id().to_owned(), entry);
        PostgresHeld { key, token, deadline, desk }
    }

    /// Ends the sessions of holders that have been over their lease for a while.
    async fn end_overdue(&mut self, missed: &[LockKey]) {
        self.looked = Instant::now();
        let Ok(found) = self.speak(async |session| statements::overdue(&mut session.connection, missed).await).await
        else {
            return;
        };
        self.overdue.retain(|overdue, _| found.contains(overdue) || !missed.iter().any(|key| key.id() == overdue.id));
        for overdue in found {
            let since = *self.overdue.entry(overdue.clone()).or_insert(self.looked);
            let Some(key) = missed.iter().find(|key| key.id() == overdue.id) else { continue };
            if since.elapsed() >= GRACE {
                let ended =
                    self.speak(async |session| statements::end(&mut session.connection, key, &overdue).await).await;
                tracing::warn!(lock = %key, pid = overdue.pid, ?ended, "ended a session that held a lock over its lease");
                self.overdue.remove(&overdue);
            }
        }
    }

    async fn renew(
        &mut self,
        key: &LockKey,
        token: i64,
        lease: Duration,
        given: Option<&Given>,
    ) -> Result<(), LockError> {
        let lost = || LockError::Lost { key: key.clone() };
        let begun = Instant::now();
        if !self.held.get(key.id()).is_some_and(|entry| entry.token == token && entry.ends() > begun) {
            return Err(lost());
        }
        let millis = millis(lease);
        match self
            .speak(async |session| {
                let Session { connection, statements, .. } = session;
                statements.renew(connection, key, (token, millis), given).await
            })
            .await
        {
            Ok(true) => {
                if let Some(entry) = self.held.get(key.id()) {
                    entry.deadline.send_replace(Some(begun + lease));
                }
                Ok(())
            }
            Ok(false) => {
                let freed: Vec<i64> = self.forget(key, token).into_iter().collect();
                self.free(&freed).await;
                Err(lost())
            }
            // The session is gone, and the lock with it.
            Err(_) => Err(lost()),
        }
    }

    /// Lets go what is over its lease.
    async fn expire(&mut self) {
        let now = Instant::now();
        let over = self.held.extract_if(|_, entry| entry.ends() <= now);
        let freed: Vec<i64> = over.map(|(_, entry)| told(&entry)).collect();
        self.free(&freed).await;
    }

    fn forget(&mut self, key: &LockKey, token: i64) -> Option<i64> {
        let is_it = self.held.get(key.id()).is_some_and(|entry| entry.token == token);
        is_it.then(|| self.held.remove(key.id())).flatten().map(|entry| told(&entry))
    }

    async fn free(&mut self, advisories: &[i64]) {
        if !advisories.is_empty() && self.session.is_some() {
            drop(self.speak(async |session| statements::let_go(&mut session.connection, advisories).await).await);
        }
    }

    /// Runs `work` on the connection, bounded. After a failure nobody knows what the session holds: it is given up, and the
    /// server lets everything go with it.
    async fn speak<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Session) -> sqlx::Result<T>,
    ) -> Result<T, Option<LockError>> {
        if self.session.is_none() {
            self.connect().await?;
        }
        let Some(session) = &mut self.session else { return Err(None) };
        let done = tokio::time::timeout(ANSWER_WAIT, work(session)).await;
        self.spoken = Instant::now();
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                self.lose();
                Err(Some(unavailable("speak to PostgreSQL", error)))
            }
            Err(_) => {
                self.lose();
                Err(None)
            }
        }
    }

    fn lose(&mut self) {
        self.session = None;
        // Whoever waits at the other end of an entry's channel hears that it is gone.
        self.held.clear();
    }

    async fn connect(&mut self) -> Result<(), LockError> {
        let mut connection = pooler::connect(&self.url).await?;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut connection)
            .await
            .map_err(|error| unavailable("ask PostgreSQL for the session's process", error))?;
        let layout = Layout::of(&mut connection).await;
        let layout = layout.map_err(|error| unavailable("ask PostgreSQL how its tables are laid out", error))?;
        let (owner, statements) = (format!("{}#{pid}", self.instance), Statements::of(layout));
        self.session = Some(Session { connection, owner, statements });
        Ok(())
    }
}

/// Tells the holder that it is none any more; the advisory lock to let go.
fn told(entry: &Entry) -> i64 {
    entry.deadline.send_replace(None);
    entry.advisory
}

fn unavailable(attempted: &str, error: sqlx::Error) -> LockError {
    LockError::Unavailable { attempted: attempted.to_owned(), source: Some(error.into()) }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
