//! One query on both stores, page by page to its end, or to the first page that differs for good.

use chrono::{DateTime, Utc};

use super::Result;
use super::stores::Stores;
use crate::parity::{Read, Seen, Standstill};
use crate::store::Cursor;

/// How many records the first pages have, so that most queries have several.
const FIRST: u32 = 10;

/// How many first pages there are.
const FIRST_PAGES: u64 = 10;

/// How many records later pages have.
const LATER: u32 = 200;

/// In how many rounds a page that differs is looked at.
const ROUNDS: u32 = 10;

/// What became of one query.
#[derive(Debug, Default)]
pub struct Walked {
    /// Pages compared.
    pub pages: u64,
    /// Records on them, in the primary.
    pub records: u64,
    /// Pages that were looked at again.
    pub rechecked: u64,
    /// Whether a page was written to all the time, so that nothing is known of it.
    pub is_unsettled: bool,
    /// Where it differs for good.
    pub lasting: Option<Lasting>,
}

/// A page that the secondary answers otherwise for good.
#[derive(Debug)]
pub struct Lasting {
    /// Which, the first being 1.
    pub page: u64,
    /// What was asked of each store.
    pub reads: [Read; 2],
    /// What each answered.
    pub seen: [Seen; 2],
    /// When the stores were seen to differ first.
    pub since: DateTime<Utc>,
}

/// What a page turned out to be, with the answers of the primary and the secondary.
struct Page {
    outcome: Outcome,
    reads: [Read; 2],
    seen: [Seen; 2],
    since: Option<DateTime<Utc>>,
}

enum Outcome {
    Level,
    Lasting,
    Unsettled,
}

/// Compares what both stores answer to `read`; `seen` is told what the primary answers.
pub async fn walk(stores: &Stores, read: &Read, mut seen: impl FnMut(&Seen)) -> Result<Walked> {
    let (mut walked, mut after) = (Walked::default(), [None, None]);
    loop {
        let limit = if walked.pages < FIRST_PAGES { FIRST } else { LATER };
        let page = compare(stores, read, &after, limit).await?;
        walked.pages += 1;
        walked.records += u64::try_from(page.seen[0].items.len()).unwrap_or_default();
        walked.rechecked += u64::from(page.since.is_some());
        seen(&page.seen[0]);
        after = match (page.outcome, page.since) {
            (Outcome::Lasting, Some(since)) => {
                walked.lasting = Some(Lasting { page: walked.pages, reads: page.reads, seen: page.seen, since });
                return Ok(walked);
            }
            // Both go on where the primary's page ended.
            (Outcome::Unsettled, _) => {
                walked.is_unsettled = true;
                [page.seen[0].next.clone(), page.seen[0].next.clone()]
            }
            _ => page.seen.map(|seen| seen.next),
        };
        if after[0].is_none() {
            return Ok(walked);
        }
    }
}

/// The page of `read` that begins at `after`.
pub fn page(read: &Read, after: Option<&Cursor>, limit: u32) -> Read {
    match read {
        Read::Page(query) => Read::Page(query.clone().after(after.cloned()).limit(limit)),
        Read::Keys(..) => read.clone(),
    }
}

async fn compare(stores: &Stores, read: &Read, after: &[Option<Cursor>; 2], limit: u32) -> Result<Page> {
    let primary = stores.primary();
    let reads = [page(read, after[0].as_ref(), limit), page(read, after[1].as_ref(), limit)];
    let (one, other) = tokio::try_join!(stores.read(&reads[0], primary), stores.read(&reads[1], primary.other()))?;
    if one.equals(&other) {
        return Ok(Page { outcome: Outcome::Level, reads, seen: [one, other], since: None });
    }
    settle(stores, read, after, limit).await
}

/// Looks at a page that differed, in rounds. While it is written to, it is cut shorter: what is left of it may be quiet, and
/// the rest is the next page's.
async fn settle(stores: &Stores, read: &Read, after: &[Option<Cursor>; 2], mut limit: u32) -> Result<Page> {
    let (since, primary, mut standstill, mut round) = (Some(Utc::now()), stores.primary(), Standstill::default(), 0);
    loop {
        let reads = [page(read, after[0].as_ref(), limit), page(read, after[1].as_ref(), limit)];
        let before = stores.read(&reads[0], primary).await?;
        stores.until_followed().await?;
        let other = stores.read(&reads[1], primary.other()).await?;
        let now = stores.read(&reads[0], primary).await?;
        // The secondary may be level with what the primary was a moment ago.
        for one in [&now, &before] {
            if one.equals(&other) {
                return Ok(Page { outcome: Outcome::Level, reads, seen: [one.clone(), other], since });
            }
        }
        round += 1;
        let lasts = standstill.round(before.print(), &now, &other);
        if lasts || round == ROUNDS {
            let outcome = if lasts { Outcome::Lasting } else { Outcome::Unsettled };
            return Ok(Page { outcome, reads, seen: [now, other], since });
        }
        if !standstill.is_quiet() {
            limit = (limit / 2).max(1);
        }
    }
}
