//! Repair: brings the mismatches of a verification level from the primary, by the writes that everybody uses.
//!
//! Invariant: what is written carries a stamp from before its document was read, so whatever was written since stands. A key
//! that only the secondary has is left alone unless the operator says otherwise.

use bson::{RawDocumentBuf, rawdoc};
use sqlx::PgConnection;

use super::generation::SUSPECTS;
use super::ledger::{Noted, Settled, Walk};
use super::recheck::Suspect;
use super::report::{Kind, Report};
use super::stores::Stores;
use super::turn::Turn;
use super::{Result, VerifyError};
use crate::anchor;
use crate::entity::{ENTITIES, Entity};
use crate::phase::Backend;
use crate::secondary::{Item, Level, Replaces, Secondary, State};
use crate::source::Source;
use crate::stamp::Stamp;
use crate::target::Target;

/// What to do with keys that only the secondary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extras {
    /// They stay.
    Leave,
    /// They are deleted.
    Delete,
}

/// What a repair has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Repaired {
    /// Keys that are level now.
    pub level: u64,
    /// Keys that only the secondary has, and that were left alone.
    pub left: u64,
    /// Keys that still differ: their collection and key, the first of them.
    pub differing: Vec<String>,
    /// How many they are.
    pub still: u64,
}

/// How many keys that still differ are named.
const NAMED: usize = 20;

/// Bytes of documents that are written at once, but for the last one.
const SLICE_BYTES: usize = 4 << 20;

/// Brings the mismatches of `report` level. May be dropped at any point: each key is whole, and the same call goes on.
///
/// # Errors
/// [`VerifyError`].
pub async fn repair(source: &Source, target: &Target, report: &Report, extras: Extras) -> Result<Repaired> {
    let turn = Turn::now(source, target).await?;
    if turn.epoch != report.epoch {
        return Err(VerifyError::Turned);
    }
    let stores = Stores::new(source, target, ENTITIES, turn.phase.primary());
    let repair = Repair { stores, turn, extras, secondary: Secondary::new(Replaces::Older) };
    repair.run(report.number).await
}

struct Repair {
    stores: Stores,
    turn: Turn,
    extras: Extras,
    secondary: Secondary,
}

impl Repair {
    async fn run(&self, number: i64) -> Result<Repaired> {
        let mut repaired = Repaired::default();
        let mut walk = Walk::new(self.stores.pool().clone(), number, Some(Settled::Lasting));
        loop {
            let noted = walk.next(SUSPECTS).await?;
            if noted.is_empty() {
                return Ok(repaired);
            }
            for of_one in noted.chunk_by(|one, other| one.entity == other.entity) {
                self.bring(of_one, &mut repaired).await?;
            }
        }
    }

    /// Brings keys of one collection level, and looks at them again.
    async fn bring(&self, noted: &[Noted], repaired: &mut Repaired) -> Result<()> {
        let entity = noted[0].entity;
        let is_left = |noted: &&Noted| noted.kind == Kind::Extra && self.extras == Extras::Leave;
        let (left, meant): (Vec<&Noted>, Vec<&Noted>) = noted.iter().partition(is_left);
        repaired.left += count(left.len());
        let suspects: Vec<Suspect> = meant.iter().map(|noted| noted.suspect.clone()).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        match self.turn.phase.primary() {
            Backend::Mongo => self.to_postgres(entity, &suspects).await?,
            Backend::Postgres => self.to_mongo(entity, &suspects).await?,
        }
        let compared = suspects.len();
        let found = self.stores.recheck(entity)?.compare(suspects).await?;
        repaired.level += count(compared - found.len());
        repaired.still += count(found.len());
        let room = NAMED - repaired.differing.len().min(NAMED);
        let names = found.iter().map(|one| format!("{} {}", entity.name, one.suspect.key.text()));
        repaired.differing.extend(names.take(room));
        Ok(())
    }

    /// Writes the documents as they are now, and deletes the rows of those that are not there.
    async fn to_postgres(&self, entity: &'static Entity, suspects: &[Suspect]) -> Result<()> {
        // Behind every write that was made before: a damaged row has the stamp of one of them.
        let time = anchor::take(self.stores.source.database()).await;
        let time = time.map_err(|error| VerifyError::source("write a mark".to_owned(), error))?;
        let stamp = Stamp::of_oplog(self.turn.epoch, time);
        let item = |suspect: &Suspect, state| Item { entity, key: suspect.key.clone(), stamp, state };
        let recheck = self.stores.recheck(entity)?;
        let gone = recheck.without_document(suspects.to_vec()).await?;
        if self.extras == Extras::Delete {
            self.write(gone.iter().map(|suspect| item(suspect, State::Gone)).collect()).await?;
        }
        let mut slice: (Vec<Item>, usize) = Default::default();
        for suspect in suspects {
            let mut found = None::<RawDocumentBuf>;
            let one = std::slice::from_ref(suspect);
            recheck.documents(one, rawdoc! {}, |_, document| found = Some(document.to_owned())).await?;
            let Some(document) = found else { continue };
            slice.1 += document.as_bytes().len();
            slice.0.push(item(suspect, State::Document(document)));
            if slice.1 >= SLICE_BYTES {
                self.write(std::mem::take(&mut slice).0).await?;
            }
        }
        self.write(slice.0).await
    }

    async fn write(&self, items: Vec<Item>) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let failed = |error| VerifyError::target("bring keys level", error);
        let mut transaction = self.stores.pool().begin().await.map_err(failed)?;
        self.secondary.write(Level::of(&items, None), &mut transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    /// Has the mirror bring the rows to MongoDB, and the deletion of those that are not there.
    async fn to_mongo(&self, entity: &'static Entity, suspects: &[Suspect]) -> Result<()> {
        let failed = |error| VerifyError::target("have keys brought level", error);
        let keys: Vec<&str> = suspects.iter().map(|suspect| suspect.key.text()).collect();
        let mut transaction = self.stores.pool().begin().await.map_err(failed)?;
        if self.extras == Extras::Delete {
            self.bury(entity, &keys, &mut transaction).await.map_err(failed)?;
        }
        sqlx::query("insert into bridge.outbox (collection, id) select $1, unnest($2::text[])")
            .bind(entity.name)
            .bind(&keys)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        self.stores.until_level(self.turn).await
    }

    /// Leaves tombstones for keys without a row: a write of the primary, made at its epoch.
    async fn bury(&self, entity: &'static Entity, keys: &[&str], connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query("select bridge.enter($1)").bind(self.turn.epoch).execute(&mut *connection).await?;
        let sql = format!(
            "insert into bridge.tombstone (collection, id, epoch, clock)
            select $1, key.id, $3, nextval('bridge.clock') from unnest($2::text[]) as key (id)
            where not exists (select from scheduler.{} r where r.id = key.id)
            on conflict (collection, id) do update set epoch = excluded.epoch, clock = excluded.clock",
            entity.name
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(entity.name)
            .bind(keys)
            .bind(self.turn.epoch)
            .execute(connection)
            .await?;
        Ok(())
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
