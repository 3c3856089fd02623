//! The store's sessions.
//!
//! The driver's pool asks the server whether a connection lives whenever it is given back: a round trip more for each
//! statement. So the pool only opens connections here, and one that has just served serves again. Invariants: at most as
//! many are open as the pool may have; one whose work was given up on the way, or failed in a way that leaves its state
//! unknown, is closed, which ends its transaction.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::target::{self, TRUSTED};

/// How long a session is kept that nobody needs.
const IDLE: Duration = Duration::from_secs(600);

/// How long a session is kept at all: what a server remembers for one grows.
const LIFE: Duration = Duration::from_secs(1_800);

/// The sessions of one store.
#[derive(Debug, Clone)]
pub struct Sessions {
    pool: PgPool,
    permits: Arc<Semaphore>,
    resting: Arc<Mutex<Vec<Resting>>>,
}

/// A session that waits for work; the one that has waited longest comes first.
#[derive(Debug)]
struct Resting {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

/// A session at work. Dropping it closes it; [`Session::rest`] keeps it.
#[derive(Debug)]
pub struct Session {
    connection: PgConnection,
    opened: Instant,
    resting: Arc<Mutex<Vec<Resting>>>,
    _permit: OwnedSemaphorePermit,
}

impl Sessions {
    /// Sessions that `pool` opens.
    pub fn new(pool: PgPool) -> Self {
        let most = usize::try_from(pool.options().get_max_connections()).unwrap_or(Semaphore::MAX_PERMITS);
        Self { pool, permits: Arc::new(Semaphore::new(most)), resting: Arc::default() }
    }

    /// A session that lives, as far as can be known.
    pub async fn open(&self) -> Result<Session, Error> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Error::PoolClosed)?;
        loop {
            let last = locked(&self.resting).pop();
            let (connection, opened) = match last {
                Some(mut last) => {
                    // A restart of the server is found before work is given to the session, not by the work.
                    if last.since.elapsed() >= TRUSTED && last.connection.ping().await.is_err() {
                        continue;
                    }
                    (last.connection, last.opened)
                }
                None => (self.pool.acquire().await?.detach(), Instant::now()),
            };
            return Ok(Session { connection, opened, resting: Arc::clone(&self.resting), _permit: permit });
        }
    }
}

impl Session {
    /// Keeps the session for the next who needs one, after work that ended as `done`, outside any transaction.
    pub fn rest<T>(self, done: &Result<T, Error>) {
        let is_whole = match done {
            Ok(_) => true,
            // A statement that the server refused; the session goes on.
            Err(error) => error.as_database_error().is_some() && !target::transient(error),
        };
        let mut resting = locked(&self.resting);
        resting.retain(|other| other.since.elapsed() < IDLE);
        if is_whole && self.opened.elapsed() < LIFE {
            resting.push(Resting { connection: self.connection, opened: self.opened, since: Instant::now() });
        }
    }
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// The list is whole even after a panic: each change of it is one step.
fn locked(resting: &Mutex<Vec<Resting>>) -> MutexGuard<'_, Vec<Resting>> {
    resting.lock().unwrap_or_else(PoisonError::into_inner)
}
