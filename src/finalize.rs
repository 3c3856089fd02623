//! The end of the move: what exists only for it is taken away, and the tables are tied to each other.
//!
//! Invariants: everything goes in one transaction, which holds off every write of the scheduler's and finds all conditions
//! met; what comes after it, the look whether old rows satisfy the references, may be interrupted and is finished by the next
//! run. MongoDB is not needed.

use std::fmt;

use serde::Serialize;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool, Row};

use crate::condition::Condition;
use crate::entity::ENTITIES;
use crate::layout::Layout;
use crate::mapping::BRIDGE_COLUMNS;
use crate::migrate::{self, MigrateError};
use crate::phase::Phase;
use crate::target::TargetError;

/// How long writes under way, and locks on the tables, are waited for.
const LOCK_WAIT: &str = "10s";

/// How long a process of the application must not have been heard of to count as ended, in seconds: longer than any of its
/// operations takes.
const SILENCE: f64 = 15.0;

/// How many ids of dangling references are shown.
const SHOWN: i64 = 5;

/// Why the move was not ended. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum FinalizeError {
    /// Something still needs what would be taken away.
    #[error("not every condition is met")]
    Unmet {
        /// What was looked at.
        survey: Survey,
    },
    /// The schema is not the one that the move leaves.
    #[error(transparent)]
    Schema(#[from] MigrateError),
    /// PostgreSQL failed.
    #[error(transparent)]
    Target(#[from] TargetError),
}

type Result<T> = std::result::Result<T, FinalizeError>;

/// What may be lost, or left as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Whether the residues go though the columns cannot reproduce what is in them.
    pub drop_residues: bool,
    /// Whether a reference of which rows dangle is enforced for new rows alone.
    pub keep_dangling: bool,
}

/// A column that holds keys of another table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reference {
    /// Whose column.
    pub collection: &'static str,
    /// The column.
    pub column: &'static str,
    /// Whose keys.
    pub parent: &'static str,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} -> {}", self.collection, self.column, self.parent)
    }
}

impl Reference {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        ENTITIES.iter().flat_map(|entity| {
            let of = |column, parent| Self { collection: entity.name, column, parent };
            entity.fields.iter().filter_map(move |field| Some(of(field.column, field.parent?)))
        })
    }

    /// The name of the constraint.
    fn constraint(self) -> String {
        format!("{}_{}_fkey", self.collection, self.column)
    }

    /// The rows whose references lead nowhere.
    async fn dangling(self, connection: &mut PgConnection) -> Result<Dangling> {
        let Self { collection, column, parent } = self;
        let sql = format!(
            "with dangling as materialized (
                select c.id from scheduler.{collection} c
                where c.{column} is not null and not exists (select from scheduler.{parent} p where p.id = c.{column})
            )
            select (select count(*) from dangling), array(select id from dangling order by id limit {SHOWN})"
        );
        let attempted = || format!("look for rows of {collection} that refer to no row of {parent}");
        let row = connection.fetch_one(AssertSqlSafe(sql)).await;
        let row = row.map_err(|error| TargetError::of(attempted(), error))?;
        Ok(Dangling { reference: self, rows: row.get(0), ids: row.get(1) })
    }
}

/// The rows whose reference leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dangling {
    /// The reference.
    #[serde(flatten)]
    pub reference: Reference,
    /// How many.
    pub rows: i64,
    /// The ids of the first.
    pub ids: Vec<String>,
}

/// The rows of a collection that have a residue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Residues {
    /// The collection.
    pub collection: &'static str,
    /// How many.
    pub rows: i64,
}

/// What stands in the way, and what would be lost.
#[derive(Debug, Clone, Serialize)]
pub struct Survey {
    /// What must be so.
    pub conditions: Vec<Condition>,
    /// The collections with residues.
    pub residues: Vec<Residues>,
    /// The references of which rows dangle.
    pub dangling: Vec<Dangling>,
}

impl Survey {
    /// Whether nothing stands in the way.
    pub fn is_met(&self) -> bool {
        self.conditions.iter().all(|condition| condition.met)
    }
}

/// A reference as it is enforced in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Enforced {
    /// The reference.
    #[serde(flatten)]
    pub reference: Reference,
    /// Whether for every row; otherwise for new ones alone.
    pub is_valid: bool,
    /// How many rows dangle.
    pub dangling: i64,
}

/// What must be so, and what is lost; nothing when the move is over already.
pub async fn survey(pool: &PgPool, options: Options) -> Result<Option<Survey>> {
    let mut connection = pool.acquire().await.map_err(failed("connect"))?;
    if layout(&mut connection).await? == Layout::Final {
        return Ok(None);
    }
    match looked(&mut connection, options).await {
        // Another process has ended it meanwhile, and what was looked at is gone.
        Err(_) if layout(&mut connection).await? == Layout::Final => Ok(None),
        looked => looked.map(Some),
    }
}

async fn looked(connection: &mut PgConnection, options: Options) -> Result<Survey> {
    migrate::check(connection).await?;
    Look { connection }.survey(options).await
}

/// The statements that end the move, in one transaction.
pub fn statements() -> Vec<String> {
    let columns = BRIDGE_COLUMNS.map(|column| format!("drop column if exists {column}")).join(", ");
    let tables = ENTITIES.iter().flat_map(|entity| {
        let table = format!("scheduler.{}", entity.name);
        [format!("drop trigger if exists noted on {table}"), format!("alter table {table} {columns}")]
    });
    let keys = Reference::all().map(|reference| {
        let Reference { collection, column, parent } = reference;
        format!(
            "alter table scheduler.{collection} add constraint {} foreign key ({column}) references scheduler.{parent} not valid",
            reference.constraint()
        )
    });
    tables.chain(["drop schema bridge cascade".to_owned()]).chain(keys).collect()
}

/// Ends the move, or finishes what an earlier run has left; how the references are enforced. Dropping the future is safe:
/// everything goes or nothing, and the next run goes on.
pub async fn run(pool: &PgPool, options: Options) -> Result<Vec<Enforced>> {
    let mut connection = pool.acquire().await.map_err(failed("connect"))?;
    if layout(&mut connection).await? == Layout::Moving {
        end(&mut connection, options).await?;
    }
    validate(&mut connection).await
}

/// The transaction.
async fn end(connection: &mut PgConnection, options: Options) -> Result<()> {
    let begin = format!("begin; set local lock_timeout = '{LOCK_WAIT}'");
    let mut transaction =
        sqlx::Connection::begin_with(connection, AssertSqlSafe(begin)).await.map_err(failed("begin the end"))?;
    let locked = sqlx::query("select pg_advisory_xact_lock($1)").bind(migrate::lock_id()).execute(&mut *transaction);
    locked.await.map_err(failed("wait for the end of a migration"))?;
    // In the order in which writers take them. From here on nobody writes.
    let tables = ENTITIES.iter().map(|entity| format!("scheduler.{}", entity.name)).collect::<Vec<_>>().join(", ");
    let locked = transaction.execute(AssertSqlSafe(format!("lock table {tables} in access exclusive mode"))).await;
    locked.map_err(failed("wait until nobody uses the scheduler's tables"))?;
    // Another process may have ended it meanwhile.
    if layout(&mut transaction).await? == Layout::Final {
        return Ok(());
    }
    let survey = looked(&mut transaction, options).await?;
    if !survey.is_met() {
        return Err(FinalizeError::Unmet { survey });
    }
    for statement in statements() {
        let attempted = statement.clone();
        let done = transaction.execute(AssertSqlSafe(statement)).await;
        done.map_err(|error| TargetError::of(attempted, error))?;
    }
    fail::fail_point!("finalize::before-commit");
    Ok(transaction.commit().await.map_err(failed("commit the end"))?)
}

/// Has PostgreSQL look whether old rows satisfy the references that are enforced for new ones.
async fn validate(connection: &mut PgConnection) -> Result<Vec<Enforced>> {
    fail::fail_point!("finalize::before-validation");
    let mut all = Vec::new();
    for reference in Reference::all() {
        // A reference that somebody dropped since stays dropped.
        let Some(is_valid) = is_valid(reference, connection).await? else { continue };
        if is_valid {
            all.push(Enforced { reference, is_valid, dangling: 0 });
            continue;
        }
        let dangling = reference.dangling(connection).await?.rows;
        if dangling == 0 {
            let (table, name) = (reference.collection, reference.constraint());
            let sql = format!("alter table scheduler.{table} validate constraint {name}");
            let validated = connection.execute(AssertSqlSafe(sql)).await;
            validated.map_err(|error| TargetError::of(format!("validate {name}"), error))?;
        }
        all.push(Enforced { reference, is_valid: dangling == 0, dangling });
    }
    Ok(all)
}

/// Whether a reference is enforced for every row; nothing where it is not enforced at all.
async fn is_valid(reference: Reference, connection: &mut PgConnection) -> Result<Option<bool>> {
    let found = sqlx::query_scalar(
        "select convalidated from pg_constraint where conrelid = to_regclass($1) and contype = 'f' and conname = $2",
    );
    let found = found.bind(format!("scheduler.{}", reference.collection)).bind(reference.constraint());
    Ok(found.fetch_optional(connection).await.map_err(failed("look which references are enforced"))?)
}

async fn layout(connection: &mut PgConnection) -> Result<Layout> {
    Ok(Layout::of(connection).await.map_err(failed("look how the scheduler's tables are laid out"))?)
}

fn failed(attempted: &'static str) -> impl FnOnce(sqlx::Error) -> TargetError {
    move |error| TargetError::of(attempted, error)
}

/// What the conditions are looked up in.
struct Look<'a> {
    connection: &'a mut PgConnection,
}

impl Look<'_> {
    async fn survey(&mut self, options: Options) -> Result<Survey> {
        let (residues, dangling) = (self.residues().await?, self.dangling().await?);
        let conditions = vec![
            self.phase().await?,
            self.switch().await?,
            self.workers().await?,
            self.processes().await?,
            self.count(
                "stray writes",
                "every stray write is accepted",
                "select count(*) from bridge.stray where accepted_at is null",
            )
            .await?,
            self.count(
                "quarantine",
                "the quarantine is empty or accepted",
                "select count(*) from bridge.quarantine where accepted_at is null",
            )
            .await?,
            losses(
                "no row has a residue",
                residues.iter().map(|one| one.rows).sum(),
                (options.drop_residues, "0, or --drop-residues"),
            ),
            losses(
                "no reference leads nowhere",
                dangling.iter().map(|one| one.rows).sum(),
                (options.keep_dangling, "0, or --keep-dangling"),
            ),
        ];
        Ok(Survey { conditions, residues, dangling })
    }

    async fn phase(&mut self) -> Result<Condition> {
        let found = sqlx::query_as("select phase, open from bridge.fence").fetch_optional(&mut *self.connection).await;
        let found: Option<(String, bool)> = found.map_err(failed("read the fence in PostgreSQL"))?;
        let (words, met) = match found {
            Some((phase, open)) => {
                let state = if open { "open" } else { "closed" };
                (format!("{phase}, its fence {state}"), phase == Phase::Postgres.name() && open)
            }
            None => ("no fence".to_owned(), false),
        };
        Ok(Condition::new("the phase is postgres", met, words, "postgres, open"))
    }

    async fn switch(&mut self) -> Result<Condition> {
        let sql = "select format('to %s by %s, at: %s', to_phase, held_by, step) from bridge.switch";
        let found: Vec<String> = self.list("look whether a switch is under way", sql).await?;
        Ok(Condition::new("no switch is under way", found.is_empty(), none_or(&found), "none"))
    }

    /// Those of the bridge's own whose leases have not run out.
    async fn workers(&mut self) -> Result<Condition> {
        let sql = "select 'the mirror' from bridge.stream where leased_until > clock_timestamp()
            union all
            select distinct 'a backfill of ' || b.collection
            from bridge.chunk c join bridge.backfill b on b.id = c.backfill
            where c.finished_at is null and c.leased_until > clock_timestamp()
            union all
            select format('verification %s by %s', id, held_by)
            from bridge.verification where finished_at is null and leased_until > clock_timestamp()";
        let found = self.list("look what else is at work", sql).await?;
        let name = "nothing of the bridge is at work";
        Ok(Condition::new(name, found.is_empty(), none_or(&found), "none"))
    }

    /// Each was opened while the tables had the bridge's columns, and names these in every statement: it has to be started
    /// anew.
    async fn processes(&mut self) -> Result<Condition> {
        let sql = format!(
            "select name from bridge.instance where seen_at > clock_timestamp() - interval '{SILENCE} s' order by name"
        );
        let found = self.list("look which processes run", AssertSqlSafe(sql)).await?;
        let limit = format!("none for {SILENCE} s");
        Ok(Condition::new("no process of the application runs", found.is_empty(), none_or(&found), limit))
    }

    async fn count(&mut self, what: &str, name: &str, sql: &'static str) -> Result<Condition> {
        let count = sqlx::query_scalar(sql).fetch_one(&mut *self.connection).await;
        let count: i64 = count.map_err(|error| TargetError::of(format!("count the {what}"), error))?;
        Ok(Condition::new(name, count == 0, count.to_string(), "0"))
    }

    async fn list(&mut self, attempted: &'static str, sql: impl sqlx::SqlSafeStr) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar(sql).fetch_all(&mut *self.connection).await.map_err(failed(attempted))?)
    }

    async fn residues(&mut self) -> Result<Vec<Residues>> {
        let mut all = Vec::new();
        for entity in ENTITIES {
            let sql = format!("select count(*) from scheduler.{} where residue is not null", entity.name);
            let rows = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *self.connection).await;
            let rows =
                rows.map_err(|error| TargetError::of(format!("count the residues of {}", entity.name), error))?;
            all.push(Residues { collection: entity.name, rows });
        }
        all.retain(|one| one.rows > 0);
        Ok(all)
    }

    async fn dangling(&mut self) -> Result<Vec<Dangling>> {
        let mut all = Vec::new();
        for reference in Reference::all() {
            all.push(reference.dangling(self.connection).await?);
        }
        all.retain(|one| one.rows > 0);
        Ok(all)
    }
}

/// That there are no such rows, or that they were reckoned with.
fn losses(name: &str, rows: i64, (allowed, limit): (bool, &str)) -> Condition {
    Condition::new(name, allowed || rows == 0, format!("{rows} rows"), limit)
}

fn none_or(found: &[String]) -> String {
    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
}
