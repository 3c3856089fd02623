//! The tenants of both stores, a page of names at a time.

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use bson::{RawDocumentBuf, doc};
use futures::TryStreamExt;
use mongodb::options::{Collation, ReadConcern};
use sqlx::AssertSqlSafe;

use super::arguments::Draw;
use crate::entity::{ENTITIES, Entity};
use crate::scheduler::Tenant;
use crate::source::{Source, SourceError};
use crate::target::{Target, TargetError};

use super::Result;

/// How many names are in memory at once, of each collection and of each table.
const PAGE: u16 = 1_000;

/// The tenants to look at.
#[derive(Debug)]
pub struct Census {
    /// How many tenants there are.
    pub count: u64,
    /// Those that were drawn, when it was not to be all.
    pub drawn: Option<Vec<Tenant>>,
}

/// Counts the tenants, and draws `sample` of them if that is asked for and there are more.
pub async fn count(source: &Source, target: &Target, sample: Option<NonZeroU64>) -> Result<Census> {
    let most = sample.map_or(0, |sample| usize::try_from(sample.get()).unwrap_or(usize::MAX));
    let (mut count, mut draw, mut after) = (0, Draw::of(most), String::new());
    while let Some(page) = after_name(source, target, &mut after).await? {
        for tenant in page {
            count += 1;
            draw.note(tenant);
        }
    }
    let is_part = sample.is_some_and(|sample| sample.get() < count);
    Ok(Census { count, drawn: is_part.then(|| draw.values()) })
}

/// The next tenants after the name `after`, which moves on; nothing at the end.
///
/// Names that can be no tenant's are passed over: no repository asks for them.
pub async fn after_name(source: &Source, target: &Target, after: &mut String) -> Result<Option<Vec<Tenant>>> {
    let mut names = BTreeSet::new();
    for entity in ENTITIES.iter().filter(|entity| entity.field("tenantId").is_some()) {
        names.extend(in_mongo(source, entity, after).await?);
        names.extend(in_postgres(target, entity, after).await?);
    }
    let page: Vec<String> = names.into_iter().take(usize::from(PAGE)).collect();
    let Some(last) = page.last() else { return Ok(None) };
    after.clone_from(last);
    Ok(Some(page.into_iter().filter_map(|name| Tenant::new(name).ok()).collect()))
}

async fn in_mongo(source: &Source, entity: &Entity, after: &str) -> Result<Vec<String>> {
    let failed = |error| SourceError::of(format!("list the tenants of {}", entity.name), error);
    let stages = [
        doc! { "$match": { "tenantId": { "$gt": after } } },
        doc! { "$group": { "_id": "$tenantId" } },
        doc! { "$sort": { "_id": 1 } },
        doc! { "$limit": i64::from(PAGE) },
    ];
    let collection = source.database().collection::<RawDocumentBuf>(entity.name);
    // Raw: a name need not be UTF-8.
    let found = collection.aggregate(stages).with_type::<RawDocumentBuf>();
    let found = found.collation(Collation::builder().locale("simple").build()).read_concern(ReadConcern::majority());
    let found: Vec<RawDocumentBuf> =
        found.allow_disk_use(true).await.map_err(failed)?.try_collect().await.map_err(failed)?;
    Ok(found.iter().filter_map(|one| one.get_str("_id").ok()).map(str::to_owned).collect())
}

/// From one name to the next by the index: the rows of a tenant are not read.
async fn in_postgres(target: &Target, entity: &Entity, after: &str) -> Result<Vec<String>> {
    let sql = format!(
        "with recursive found (name) as (
            (select tenant_id from scheduler.{0} where tenant_id > $1 order by tenant_id limit 1)
            union all
            select (select tenant_id from scheduler.{0} where tenant_id > found.name order by tenant_id limit 1)
            from found where found.name is not null
        )
        select name from found where name is not null limit $2",
        entity.name
    );
    let found = sqlx::query_scalar(AssertSqlSafe(sql)).bind(after).bind(i64::from(PAGE)).fetch_all(target.pool()).await;
    Ok(found.map_err(|error| TargetError::of(format!("list the tenants of {}", entity.name), error))?)
}
