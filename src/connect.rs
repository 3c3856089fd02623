//! The scheduler over whatever the phase says, now and after every switch.

use secrecy::SecretString;
use uuid::Uuid;

use crate::backend::{BackendSettings, SettingsError};
use crate::fence::gate::Gate;
use crate::fence::mongo::MongoFence;
use crate::fence::postgres::PostgresFence;
use crate::fence::watch::{Fences, Watcher};
use crate::fence::{self, FenceError};
use crate::layout::Layout;
use crate::lock::{DualLocks, LockTask, MongoLocks, PostgresLocks};
use crate::phase::Phase;
use crate::scheduler::Scheduler;
use crate::source::{Source, SourceError};
use crate::store::dual::{DualStore, Parts};
use crate::target::{Target, TargetError};

/// The epoch when there are no epochs any more.
const AFTER_ALL: i32 = 0;

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
    layout: Layout,
    settings: BackendSettings,
    /// Once the move is over there is nothing to watch.
    watcher: Option<Watcher>,
    lock_task: Option<LockTask>,
}

impl Connected {
    /// How PostgreSQL's tables were laid out when they were opened: with the bridge's columns, or without them since the
    /// move is over.
    pub fn layout(&self) -> Layout {
        self.layout
    }

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
        let Self { scheduler, locks, store, watcher, lock_task, .. } = self;
        if let Some(watcher) = watcher {
            watcher.end().await;
        }
        store.close().await;
        locks.close().await;
        drop((scheduler, locks));
        // It ends with the last lock that is held, at the latest with its lease; nobody need wait for it.
        drop(lock_task);
    }
}

impl Scheduler<DualStore> {
    /// Opens the stores and begins to follow the phase. A store that is not needed in the phase of the moment may be away.
    /// Once the move is over (`bridge finalize`), PostgreSQL's tables are all there is: MongoDB is not asked for anything.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(backends: &Backends) -> Result<Connected, ConnectError> {
        let id = Uuid::new_v4();
        let settings = backends.settings;
        settings.check()?;
        let (target, layout) = match &backends.postgres {
            Some(url) => {
                let (target, layout) = postgres(url, settings.connections).await?;
                (Some(target), layout)
            }
            None => (None, Layout::Moving),
        };
        let source = match backends.mongo.as_ref().filter(|_| layout == Layout::Moving) {
            Some((url, database)) => {
                let source = Source::of_process(url, database, id).await?;
                Some(source.clone().checked().await.unwrap_or_else(|error| {
                    tracing::warn!(error = %crate::error_text(&error), "MongoDB cannot be used yet");
                    source
                }))
            }
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
        let watcher = match layout {
            Layout::Moving => Some(Watcher::start(fences, gate.clone(), (id, name())).await?),
            Layout::Final => {
                gate.open(Phase::Postgres, AFTER_ALL, None);
                None
            }
        };
        let (postgres_locks, lock_task) = backends.postgres.as_ref().map(PostgresLocks::unchecked).unzip();
        let mongo_locks = source.as_ref().map(|source| MongoLocks::new(source.database()));
        let store = DualStore::new(Parts {
            gate: gate.clone(),
            mongo: source.map(|source| (source.client().clone(), source.database().clone())),
            postgres: pool.map(|pool| (pool, layout)),
            tuning: settings.tuning,
        });
        let locks = DualLocks::new(gate, mongo_locks, postgres_locks, store.tuning());
        Ok(Connected { scheduler: Self::new(&store), locks, store, layout, settings, watcher, lock_task })
    }
}

/// PostgreSQL, and how its tables are laid out. When it is away they still have the bridge's columns, or nobody can write:
/// MongoDB is no primary any more when the move is over.
async fn postgres(url: &SecretString, connections: u32) -> Result<(Target, Layout), TargetError> {
    let open = async {
        let target = Target::open_prepared(url, connections).await?;
        let layout = target.layout().await?;
        Ok((target, layout))
    };
    open.await.or_else(|error: TargetError| {
        tracing::warn!(error = %crate::error_text(&error), "PostgreSQL cannot be used yet");
        Ok((Target::unchecked_prepared(url, connections)?, Layout::Moving))
    })
}

/// This process, for people.
fn name() -> String {
    format!("{}/{}", crate::machine(), std::process::id())
}
