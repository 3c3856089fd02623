//! Locks in PostgreSQL: a session's advisory lock excludes, and the record in `scheduler.locks` carries the token.
//!
//! All locks of one [`PostgresLocks`] live on one connection of its own, which its [`keeper`] has: the server lets them go
//! when the connection ends, whatever becomes of the process. A holder lets go by itself at the end of its
//! lease; one that cannot (paused, cut off) is found by those who wait, and its session is ended by the server. That is
//! safe: an ended session holds nothing, and the new holder's token is greater.

mod desk;
mod keeper;
mod pooler;
mod statements;

use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::desk::{Closed, Desk};
use self::keeper::{Keeper, Request};
use super::{ANSWER_WAIT, Given, Held, LockError, LockKey, Locks, check_lease};

/// The locks of one process in PostgreSQL.
#[derive(Debug, Clone)]
pub struct PostgresLocks {
    desk: Desk,
}

/// The task behind the locks. It ends when all [`PostgresLocks`] and all their held locks are dropped.
#[derive(Debug)]
pub struct LockTask(JoinHandle<()>);

impl LockTask {
    /// Waits for the end of the task: by then nothing is held.
    pub async fn ended(self) {
        if let Err(error) = self.0.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

impl PostgresLocks {
    /// Opens a connection for locks.
    ///
    /// # Errors
    /// [`LockError::Pooler`] behind a pooler in transaction mode, [`LockError::Unavailable`].
    pub async fn open(url: &SecretString) -> Result<(Self, LockTask), LockError> {
        Ok(Self::kept(Keeper::open(url.clone()).await?))
    }

    /// [`PostgresLocks::open`] of a server that may be away: it is asked when the first lock is.
    pub fn unchecked(url: &SecretString) -> (Self, LockTask) {
        Self::kept(Keeper::new(url.clone()))
    }

    fn kept(keeper: Keeper) -> (Self, LockTask) {
        let (desk, attendant) = desk::open(keeper);
        (Self { desk }, LockTask(tokio::spawn(attendant.run())))
    }

    /// [`Locks::try_acquire`] of a lock that another store has given already.
    pub(super) async fn try_acquire_with(
        &self,
        key: &LockKey,
        lease: Duration,
        given: Option<Given>,
    ) -> Result<Option<PostgresHeld>, LockError> {
        check_lease(key, lease)?;
        let desk = self.desk.clone();
        let request = |reply| Request::Take { key: key.clone(), lease, given, desk, reply };
        Self::ask(&self.desk, key, request).await
    }

    async fn ask<T>(
        desk: &Desk,
        key: &LockKey,
        request: impl FnOnce(oneshot::Sender<Result<T, LockError>>) -> Request,
    ) -> Result<T, LockError> {
        let unavailable = || LockError::Unavailable { attempted: format!("ask for lock {key}"), source: None };
        let (reply, answer) = oneshot::channel();
        let asked = async {
            desk.serve(request(reply)).await.map_err(|Closed| unavailable())?;
            answer.await.map_err(|_| unavailable())?
        };
        tokio::time::timeout(ANSWER_WAIT, asked).await.map_err(|_| unavailable())?
    }
}

impl Locks for PostgresLocks {
    type Held = PostgresHeld;

    async fn try_acquire(&self, key: &LockKey, lease: Duration) -> Result<Option<PostgresHeld>, LockError> {
        self.try_acquire_with(key, lease, None).await
    }
}

/// Until when a lock is held; nothing once it is not.
type Deadline = Option<Instant>;

/// A lock that is held in PostgreSQL.
#[derive(Debug)]
pub struct PostgresHeld {
    key: LockKey,
    token: i64,
    deadline: watch::Receiver<Deadline>,
    desk: Desk,
}

impl PostgresHeld {
    /// [`Held::renew`] of a lock that another store has renewed already.
    pub(super) async fn renew_with(&self, lease: Duration, given: Option<Given>) -> Result<(), LockError> {
        check_lease(&self.key, lease)?;
        let (key, token) = (self.key.clone(), self.token);
        PostgresLocks::ask(&self.desk, &self.key, |reply| Request::Renew { key, token, lease, given, reply }).await
    }
}

impl Held for PostgresHeld {
    fn key(&self) -> &LockKey {
        &self.key
    }

    fn token(&self) -> i64 {
        self.token
    }

    async fn renew(&self, lease: Duration) -> Result<(), LockError> {
        self.renew_with(lease, None).await
    }

    async fn release(self) -> Result<(), LockError> {
        let (key, token) = (self.key.clone(), self.token);
        PostgresLocks::ask(&self.desk, &self.key, |reply| Request::LetGo { key, token, reply: Some(reply) }).await
    }

    async fn lost(&self) {
        let mut deadline = self.deadline.clone();
        loop {
            let Some(at) = *deadline.borrow_and_update() else { return };
            tokio::select! {
                () = tokio::time::sleep_until(at) => return,
                changed = deadline.changed() => if changed.is_err() {
                    return;
                }
            }
        }
    }
}

impl Drop for PostgresHeld {
    fn drop(&mut self) {
        if self.deadline.borrow().is_some() {
            let request = Request::LetGo { key: self.key.clone(), token: self.token, reply: None };
            // When the queue is full, the end of the lease lets it go.
            self.desk.leave(request);
        }
    }
}
