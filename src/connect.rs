//! The scheduler over whatever the phase says, now and after every switch.

use secrecy::SecretString;
use uuid::Uuid;

use crate::backend::{BackendSettings, SettingsError};
use crate::fence::gate::Gate;
use crate::fence::mongo::MongoFence;
use crate::fence::postgres::PostgresFence;
use crate::fence::watch::{Fences, Watcher};
use crate::fence::{self, FenceError};
use crate::lock::{DualLocks, LockTask, MongoLocks, PostgresLocks};
use crate::scheduler::Scheduler;
use crate::source::{Source, SourceError};
use crate::store::dual::{DualStore, Parts};
use crate::target::{Target, TargetError};

/// Which stores there are, and how they are used.
#[derive(Debug, Clone)]
pub struct Backends {
    /// MongoDB's URL and the name of the database; nothing once phase `postgres` is reached for good.
    pub mongo: Option<(SecretString, String)>,
    /// PostgreSQL's URL; nothing before phase `mongo-primary` is near.
    pub postgres: Option<SecretString>,
    /// How they are used.
    pub settings: BackendSettings,
}

impl Backends {
    /// Both stores, with the settings' defaults.
    pub fn new(mongo: Option<(SecretString, String)>, postgres: Option<SecretString>) -> Self {
        Self { mongo, postgres, settings: BackendSettings::default() }
    }
}

/// Why the scheduler's stores could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is neither URL.
    #[error("neither MongoDB's URL nor PostgreSQL's is given")]
    Nowhere,
    /// The settings are not valid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// MongoDB failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// PostgreSQL failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No fence tells which store is the primary.
    #[error(transparent)]
    Fence(#[from] FenceError),
}

/// An application's scheduler.
#[derive(Debug)]
pub struct Connected {
    /// The repositories.
    pub scheduler: Scheduler<DualStore>,
    /// The locks beside them.
    pub locks: DualLocks,
    /// The store below them.
    pub store: DualStore,
    settings: BackendSettings,
    watcher: Watcher,
    lock_task: Option<LockTask>,
}

impl Connected {
    /// Goes on with other settings: what is safe to change while the stores are used is used from the next operation on.
    ///
    /// # Errors
    /// [`SettingsError`], with what is out of range, or needs a restart; then nothing is changed.
    pub fn reconfigure(&self, settings: &BackendSettings) -> Result<(), SettingsError> {
        self.settings.check_change(settings)?;
        self.store.tune(settings.tuning);
        Ok(())
    }

    /// Ends the use: waits for what is under way, and takes the process out of the stores' lists. Dropping it instead is
    /// safe: the process is forgotten when its lease ends.
    pub async fn close(self) {
        let Self { scheduler, locks, store, watcher, lock_task, settings: _ } = self;
        watcher.end().await;
        store.close().await;
        locks.close().await;
        drop((scheduler, locks));
        // It ends with the last lock that is held, at the latest with its lease; nobody need wait for it.
        drop(lock_task);
    }
}

impl Scheduler<DualStore> {
    /// Opens the stores and begins to follow the phase. A store that is not needed in the phase of the moment may be away.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(backends: &Backends) -> Result<Connected, ConnectError> {
        let id = Uuid::new_v4();
        let settings = backends.settings;
        settings.check()?;
        let source = match &backends.mongo {
            Some((url, database)) => {
                let source = Source::of_process(url, database, id).await?;
                Some(source.clone().checked().await.unwrap_or_else(|error| {
                    tracing::warn!(error = %crate::error_text(&error), "MongoDB cannot be used yet");
                    source
                }))
            }
            None => None,
        };
        let target = match &backends.postgres {
            Some(url) => match Target::open_prepared(url, settings.connections).await {
                Ok(target) => Some(target),
                Err(error) => {
                    tracing::warn!(error = %crate::error_text(&error), "PostgreSQL cannot be used yet");
                    Some(Target::unchecked_prepared(url, settings.connections)?)
                }
            },
            None => None,
        };
        if source.is_none() && target.is_none() {
            return Err(ConnectError::Nowhere);
        }
        let (gate, pool) = (Gate::new(), target.map(|target| target.pool().clone()));
        let mongo = source.as_ref().map(|source| MongoFence::new(source.database()));
        let postgres = pool.clone().map(PostgresFence::new);
        if let Some(mongo) = &mongo
            && let Err(error) = fence::establish(mongo, postgres.as_ref()).await
        {
            tracing::warn!(error = %crate::error_text(&error), "MongoDB's fence is not known");
        }
        let fences = Fences { mongo, postgres, lease: settings.lease, first: settings.phase_source };
        let watcher = Watcher::start(fences, gate.clone(), (id, name())).await?;
        let (postgres_locks, lock_task) = backends.postgres.as_ref().map(PostgresLocks::unchecked).unzip();
        let mongo_locks = source.as_ref().map(|source| MongoLocks::new(source.database()));
        let store = DualStore::new(Parts {
            gate: gate.clone(),
            mongo: source.map(|source| (source.client().clone(), source.database().clone())),
            postgres: pool,
            tuning: settings.tuning,
        });
        let locks = DualLocks::new(gate, mongo_locks, postgres_locks, store.tuning());
        Ok(Connected { scheduler: Self::new(&store), locks, store, settings, watcher, lock_task })
    }
}

/// This process, for people.
fn name() -> String {
    format!("{}/{}", crate::machine(), std::process::id())
}
