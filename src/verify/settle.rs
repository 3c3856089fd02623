//! Generations after the first (design 12): only the keys that differed are looked at, until they are level, or have differed
//! for long enough, or have been written to all the time.
//!
//! Between two looks a mark is written to the primary, and the mirror has passed it. Invariant: a key is a mismatch only if
//! for the whole of the tolerance every look found the same two sides, and the mirror wrote nothing under it in between:
//! then all that was written to the primary before the mark has been brought, and the secondary is still another. A newer
//! write begins the time anew. So live traffic gives no false alarm, and a difference that it does not touch is never excused.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::digest::digest;
use super::generation::SUSPECTS;
use super::ledger::{Ledger, Look, Noted, Settled};
use super::recheck::{Difference, Suspect};
use super::stores::Stores;
use super::{Result, Turn, VerifyError};
use crate::anchor;
use crate::entity::Entity;

/// The pause between two looks at stores in use.
const PAUSE: Duration = Duration::from_millis(500);

/// How long keys are looked at that are written to all the time, beyond a few times the tolerance.
const UNSETTLED: Duration = Duration::from_secs(30);

/// Looks at keys that differ until each is settled.
pub struct Settling<'a> {
    pub stores: &'a Stores,
    pub ledger: &'a Ledger,
    pub turn: Turn,
    pub tolerance: Duration,
}

impl Settling<'_> {
    /// Settles every key that is noted.
    pub async fn settle(&self) -> Result<()> {
        // Without a mirror nothing is on its way: what differs now differs.
        let is_followed = anchor::is_followed(self.stores.pool())
            .await
            .map_err(|error| VerifyError::target("look whether a mirror runs", error))?;
        let tolerance = if is_followed { self.tolerance } else { Duration::ZERO };
        let deadline = Instant::now() + tolerance * 3 + UNSETTLED;
        loop {
            if self.ledger.noted(None).next(1).await?.is_empty() {
                return Ok(());
            }
            if is_followed {
                self.stores.until_level(self.turn).await?;
            }
            self.turn.require(self.stores).await?;
            let is_last = Instant::now() > deadline;
            self.round(tolerance, is_last).await?;
            fail::fail_point!("verify::after-round");
            if is_followed {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Looks at every open key once.
    async fn round(&self, tolerance: Duration, is_last: bool) -> Result<()> {
        let now = self.stores.target.now().await?;
        let mut walk = self.ledger.noted(None);
        loop {
            let noted = walk.next(SUSPECTS).await?;
            if noted.is_empty() {
                return Ok(());
            }
            for of_one in noted.chunk_by(|one, other| one.entity == other.entity) {
                self.look(of_one, now, tolerance, is_last).await?;
            }
        }
    }

    /// Looks at keys of one collection.
    async fn look(&self, noted: &[Noted], now: DateTime<Utc>, tolerance: Duration, is_last: bool) -> Result<()> {
        let entity = noted[0].entity;
        let suspects: Vec<Suspect> = noted.iter().map(|noted| noted.suspect.clone()).collect();
        let found = self.stores.recheck(entity)?.compare(suspects).await?;
        // After both sides were read: a write that is brought in between is a newer one for the next look.
        let written = self.written(entity, noted).await?;
        let mut found: HashMap<String, Difference> =
            found.into_iter().map(|one| (one.suspect.key.text().to_owned(), one)).collect();
        let (mut level, mut looks) = (Vec::new(), Vec::new());
        for noted in noted {
            let id = noted.suspect.key.text();
            let Some(Difference { kind, reason, print, .. }) = found.remove(id) else {
                level.push(id);
                continue;
            };
            let stamp = written.get(id).map_or(&[][..], |stamp| &stamp[..]);
            let print = digest(&[&print, stamp]);
            let is_same = noted.print.as_ref() == Some(&print);
            let since = if is_same { noted.since } else { now };
            let lasted = (now - since).to_std().unwrap_or_default();
            let settled = match (is_same && lasted >= tolerance, is_last) {
                (true, _) => Some(Settled::Lasting),
                (false, true) => Some(Settled::Unsettled),
                (false, false) => None,
            };
            let reason = reason.or_else(|| noted.reason.clone());
            looks.push(Look { id: id.to_owned(), kind, reason, print, since, settled });
        }
        self.ledger.looked(entity, &level, &looks).await
    }

    /// The stamps of the newest writes that the mirror brought under the keys, as far as it brought any.
    async fn written(&self, entity: &Entity, noted: &[Noted]) -> Result<HashMap<String, [u8; 12]>> {
        let ids: Vec<&str> = noted.iter().map(|noted| noted.suspect.key.text()).collect();
        let found: Vec<(String, i32, i64)> =
            sqlx::query_as("select id, epoch, clock from bridge.recheck where collection = $1 and id = any($2)")
                .bind(entity.name)
                .bind(ids)
                .fetch_all(self.stores.pool())
                .await
                .map_err(|error| VerifyError::target("look what the mirror wrote", error))?;
        let bytes = |epoch: i32, clock: i64| {
            let mut bytes = [0; 12];
            bytes[..4].copy_from_slice(&epoch.to_be_bytes());
            bytes[4..].copy_from_slice(&clock.to_be_bytes());
            bytes
        };
        Ok(found.into_iter().map(|(id, epoch, clock)| (id, bytes(epoch, clock))).collect())
    }
}
