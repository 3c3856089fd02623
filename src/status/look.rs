//! Looking where the move stands: each store is asked on its own, and within a time.

use std::time::Duration;

use chrono::Utc;
use secrecy::SecretString;
use sqlx::{FromRow, PgConnection};

use super::{Backfill, FenceState, Mongo, Next, Postgres, Process, Stands, Status, Told};
use crate::entity::ENTITIES;
use crate::fence::mongo::MongoFence;
use crate::fence::postgres::PostgresFence;
use crate::fence::{Fence, FenceError};
use crate::layout::Layout;
use crate::phase::{Backend, Phase};
use crate::secret::Secrets;
use crate::source::{Source, SourceError};
use crate::switch::gate::{Limits, Transition};
use crate::switch::{Fences, Standing, Switch};
use crate::target::{Target, TargetError};

/// How long each of the stores may take to tell.
const WAIT: Duration = Duration::from_secs(15);

/// A process that was not heard of for so long is not shown, in seconds.
const FORGOTTEN: f64 = 60.0;

/// Connections to PostgreSQL: what is looked at together, and the gate's.
const CONNECTIONS: u32 = 2;

/// Looks at both stores, again and again on the same connections.
#[derive(Debug)]
pub struct Lookout {
    mongo: Option<(SecretString, String)>,
    postgres: SecretString,
    secrets: Secrets,
    source: Option<Source>,
    target: Option<Target>,
}

impl Lookout {
    /// A look at these stores: MongoDB's URL and the name of the database, PostgreSQL's URL.
    pub fn new(mongo: Option<(SecretString, String)>, postgres: SecretString) -> Self {
        let secrets = Secrets::of(mongo.iter().map(|(url, _)| url).chain([&postgres]));
        Self { mongo, postgres, secrets, source: None, target: None }
    }

    /// Where the move stands now. Ends within a minute, whatever the stores do; dropping it does no harm.
    pub async fn look(&mut self) -> Status {
        let at = Utc::now();
        let postgresql = match bounded(Backend::Postgres, self.postgres()).await {
            Ok(Some(postgres)) => Told::Told(Box::new(postgres)),
            Ok(None) => {
                let (mongodb, postgresql, next) = (Told::NotAsked, Told::NotAsked, Vec::new());
                return Status { at, finalized: true, standing: None, mongodb, postgresql, next };
            }
            Err(error) => self.silent(&error),
        };
        let fence = postgresql.told().map(|told| told.fence);
        let is_last = fence.is_some_and(|fence| fence.open && fence.phase == Phase::Postgres.name());
        let mongodb = match is_last {
            true => Told::NotAsked,
            false => match bounded(Backend::Mongo, self.mongo()).await {
                Ok(mongo) => Told::Told(mongo),
                Err(error) => self.silent(&error),
            },
        };
        let standing = standing(mongodb.told().map(|told| told.fence), fence);
        let next = self.next(&mongodb, standing).await;
        Status { at, finalized: false, standing, mongodb, postgresql, next }
    }

    fn silent<T>(&self, error: &str) -> Told<T> {
        Told::Silent { error: self.secrets.redact(error).into_owned() }
    }

    /// Nothing when the move is over.
    async fn postgres(&mut self) -> Result<Option<Postgres>, FenceError> {
        let target = match &self.target {
            Some(target) => target.clone(),
            None => self.target.insert(Target::open(&self.postgres, CONNECTIONS).await?).clone(),
        };
        if target.layout().await? == Layout::Final {
            return Ok(None);
        }
        target.require_schema().await?;
        let fence = PostgresFence::new(target.pool().clone()).look().await?.into();
        let failed = |error| TargetError::of("look where the move stands", error);
        let begin = "begin transaction isolation level repeatable read read only";
        let mut transaction = target.pool().begin_with(begin).await.map_err(failed)?;
        Ok(Some(postgres(fence, &mut transaction).await.map_err(failed)?))
    }

    async fn mongo(&mut self) -> Result<Mongo, FenceError> {
        let source = match (&self.source, &self.mongo) {
            (Some(source), _) => source.clone(),
            (None, Some((url, database))) => self.source.insert(Source::open(url, database).await?).clone(),
            (None, None) => {
                return Err(SourceError::Url { reason: "it is not said where MongoDB is".to_owned() }.into());
            }
        };
        let Some(view) = MongoFence::new(source.database()).look().await? else {
            return Ok(Mongo { fence: None, processes: Vec::new() });
        };
        let process = |(_, instance): (_, crate::fence::mongo::Instance)| Process {
            name: instance.name,
            silent_seconds: instance.silent.as_secs_f64(),
        };
        let mut processes: Vec<Process> = view.instances.into_iter().map(process).collect();
        processes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Mongo { fence: Some(view.fence.into()), processes })
    }

    /// The gate of each phase that may follow, as far as both stores are there to be asked.
    async fn next(&self, mongodb: &Told<Mongo>, standing: Option<Stands>) -> Vec<Next> {
        let phase = standing.filter(|stands| stands.open).and_then(|stands| stands.phase.parse::<Phase>().ok());
        let mut all = Vec::new();
        for to in phase.into_iter().flat_map(Transition::next) {
            let looked = match (&self.source, &self.target, mongodb) {
                (Some(source), Some(target), Told::Told(Mongo { fence: Some(_), .. })) => {
                    let switch = Switch::new(source.clone(), target.clone(), String::new(), WAIT);
                    // One that is accepted by name is accepted when it is turned.
                    let limits = Limits::default();
                    let examined = async { switch.examine(to, &limits).await.map(|(_, conditions)| conditions) };
                    bounded(Backend::Mongo, examined).await
                }
                (_, _, Told::Told(Mongo { fence: None, .. })) => Err(format!(
                    "MongoDB has no fence yet: `bridge switch {to} --dry-run` makes it, and shows the gate"
                )),
                _ => Err("it needs both stores".to_owned()),
            };
            let (conditions, error) = match looked {
                Ok(conditions) => (conditions, None),
                Err(error) => (Vec::new(), Some(self.secrets.redact(&error).into_owned())),
            };
            let met = error.is_none() && conditions.iter().all(|condition| condition.met);
            all.push(Next { to: to.name(), met, conditions, error });
        }
        all
    }
}

/// What the fences say together: MongoDB's, if it could be asked, and PostgreSQL's, if that could.
fn standing(mongo: Option<Option<FenceState>>, postgres: Option<FenceState>) -> Option<Stands> {
    let read = |state: FenceState| {
        let phase = state.phase.parse().ok()?;
        Some(Fence { phase, epoch: state.epoch, open: state.open })
    };
    let stands = |phase: Phase, epoch: i32, open: bool| Some(Stands { phase: phase.name(), epoch, open });
    match (mongo, postgres) {
        (Some(Some(mongo)), Some(postgres)) => {
            let (mongo, postgres) = (read(mongo)?, read(postgres)?);
            let epoch = mongo.epoch.max(postgres.epoch);
            match (Fences { mongo, postgres }).standing() {
                Standing::Open(phase) => stands(phase, epoch, true),
                Standing::Closed(phase) | Standing::Reopening(phase, _) => stands(phase, epoch, false),
            }
        }
        // Nothing was ever switched.
        (Some(None), Some(FenceState { phase, epoch: 1, open: false })) if phase == Phase::Mongo.name() => {
            stands(Phase::Mongo, 1, true)
        }
        // At no moment are both open.
        (Some(Some(only)), None) | (None | Some(None), Some(only)) if only.open => {
            stands(read(only)?.phase, only.epoch, true)
        }
        _ => None,
    }
}

/// What `work` on a store told, within [`WAIT`].
async fn bounded<T, E: std::error::Error>(
    backend: Backend,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(WAIT, work).await {
        Ok(done) => done.map_err(|error| crate::error_text(&error)),
        Err(_) => Err(format!("{backend} did not tell within {} s", WAIT.as_secs())),
    }
}

async fn postgres(fence: FenceState, connection: &mut PgConnection) -> sqlx::Result<Postgres> {
    let connection = &mut *connection;
    Ok(Postgres {
        fence,
        processes: sqlx::query_as(
            "select name, extract(epoch from clock_timestamp() - seen_at)::float8 as silent_seconds
            from bridge.instance where seen_at > clock_timestamp() - make_interval(secs => $1) order by name, id",
        )
        .bind(FORGOTTEN)
        .fetch_all(&mut *connection)
        .await?,
        switch: one(
            "select from_phase as from, to_phase as to, step, held_by as by, began_at,
                leased_until > clock_timestamp() as is_held
            from bridge.switch",
            connection,
        )
        .await?,
        backfill: backfill(connection).await?,
        mirror: one(
            "select coalesce(leased_until > clock_timestamp(), false) as is_running, lag_seconds, lag_events, level_at
            from bridge.stream",
            connection,
        )
        .await?,
        truncated: sqlx::query_scalar("select collection from bridge.truncated order by collection")
            .fetch_all(&mut *connection)
            .await?,
        outbox: sqlx::query_as(
            "select count(*), greatest(coalesce(extract(epoch from clock_timestamp() - min(written_at)), 0), 0)::float8
                as oldest_seconds
            from bridge.outbox",
        )
        .fetch_one(&mut *connection)
        .await?,
        recheck: sqlx::query_scalar("select count(*) from bridge.recheck").fetch_one(&mut *connection).await?,
        quarantine: sqlx::query_as("select count(*), count(accepted_at) as accepted from bridge.quarantine")
            .fetch_one(&mut *connection)
            .await?,
        strays: sqlx::query_as("select count(*), count(accepted_at) as accepted from bridge.stray")
            .fetch_one(&mut *connection)
            .await?,
        verification: one(
            "select id as number, report ->> 'verdict' as verdict, phase, epoch, began_at, finished_at
            from bridge.verification where finished_at is not null order by id desc limit 1",
            connection,
        )
        .await?,
        verifying: one(
            "select id as number, held_by as by, began_at, s.shares, s.shares_finished
            from bridge.verification v cross join lateral (
                select count(*) as shares, count(finished_at) as shares_finished
                from bridge.verification_share where verification = v.id
            ) s
            where finished_at is null and leased_until > clock_timestamp() order by id desc limit 1",
            connection,
        )
        .await?,
        read_parity: one(
            "select id as number, report ->> 'verdict' as verdict, phase, epoch, began_at, finished_at
            from bridge.read_parity order by id desc limit 1",
            connection,
        )
        .await?,
        last_switch: one(
            "select phase, epoch, turned_at, turned_by, pause_seconds, conditions
            from bridge.phase_history order by turned_at desc limit 1",
            connection,
        )
        .await?,
    })
}

async fn one<T>(sql: &'static str, connection: &mut PgConnection) -> sqlx::Result<Option<T>>
where
    T: for<'r> FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    sqlx::query_as(sql).fetch_optional(connection).await
}

/// Of each collection its last copy, also where there was none.
async fn backfill(connection: &mut PgConnection) -> sqlx::Result<Vec<Backfill>> {
    let names: Vec<&str> = ENTITIES.iter().map(|entity| entity.name).collect();
    sqlx::query_as(
        "select e.collection, b.started_at as began_at, b.finished_at, c.chunks, c.chunks_finished, c.chunks_leased,
            c.documents, coalesce(b.estimated_documents, 0) as estimated_documents
        from unnest($1::text[]) with ordinality as e (collection, place)
        left join lateral (
            select * from bridge.backfill b where b.collection = e.collection order by b.id desc limit 1
        ) b on true
        cross join lateral (
            select count(*) as chunks, count(finished_at) as chunks_finished,
                count(*) filter (where finished_at is null and leased_until > clock_timestamp()) as chunks_leased,
                coalesce(sum(documents), 0)::bigint as documents
            from bridge.chunk where backfill = b.id
        ) c
        order by e.place",
    )
    .bind(names)
    .fetch_all(connection)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(phase: Phase, epoch: i32, open: bool) -> FenceState {
        Fence { phase, epoch, open }.into()
    }

    #[test]
    fn the_phase_is_told_by_whoever_knows_it_and_by_nobody_else() {
        let told = |mongo, postgres| standing(mongo, postgres).map(|stands| (stands.phase, stands.epoch, stands.open));
        let copy = fence(Phase::Mongo, 1, false);
        let old = fence(Phase::MongoPrimary, 1, false);
        let new = fence(Phase::PostgresPrimary, 2, true);
        assert_eq!(told(Some(None), Some(copy)), Some(("mongo", 1, true)));
        assert_eq!(told(Some(Some(old)), Some(new)), Some(("postgres-primary", 2, true)));
        assert_eq!(told(Some(Some(old)), Some(copy)), Some(("mongo-primary", 1, false)));
        for silent in [None, Some(None)] {
            assert_eq!(told(silent, Some(new)), Some(("postgres-primary", 2, true)));
        }
        assert_eq!(told(Some(Some(fence(Phase::Mongo, 1, true))), None), Some(("mongo", 1, true)));
        // A closed fence alone does not say what the other store does; a lost one is not the first.
        for unknown in [(None, Some(copy)), (Some(Some(old)), None), (Some(None), Some(old)), (None, None)] {
            assert_eq!(told(unknown.0, unknown.1), None, "{unknown:?}");
        }
    }
}
