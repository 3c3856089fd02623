//! Who is connected to MongoDB: a client that is none of the application's registered processes may go on to write there
//! when PostgreSQL is the primary.

use std::collections::BTreeSet;

use bson::{Document, doc};
use futures::TryStreamExt;

use crate::fence::mongo::View;
use crate::source::{APPLICATION, Source, SourceError};

/// What the members of a replica set call themselves to each other.
const MEMBERS: [&str; 2] = ["NetworkInterfaceTL", "MongoDB Internal Client"];

/// The names of clients that are neither registered in the fence, nor the bridge's own commands, nor other members of the
/// replica set, nor processes of a scheduler in another database. A client that gives no name has that of its driver and
/// its host. Needs the privilege `inprog`.
pub async fn unregistered(source: &Source, view: &View) -> Result<BTreeSet<String>, SourceError> {
    fail::fail_point!("switch::clients", |_| Ok(BTreeSet::new()));
    let failed = |error| SourceError::of("list the clients of MongoDB", error);
    let connections = [
        doc! { "$currentOp": { "allUsers": true, "idleConnections": true } },
        doc! { "$match": { "client": { "$type": "string" } } },
        doc! { "$project": { "appName": 1, "client": 1, "driver": "$clientMetadata.driver.name" } },
    ];
    let found = source.client().database("admin").aggregate(connections).await.map_err(failed)?;
    let found: Vec<Document> = found.try_collect().await.map_err(failed)?;
    let database = source.database().name();
    Ok(found.iter().filter_map(|connection| stranger(connection, database, view)).collect())
}

fn stranger(connection: &Document, database: &str, view: &View) -> Option<String> {
    let text = |field: &str| connection.get_str(field).unwrap_or_default();
    let (name, driver) = (text("appName"), text("driver"));
    if name.is_empty() {
        let host = text("client").rsplit_once(':').map_or(text("client"), |(host, _)| host);
        let is_member = MEMBERS.iter().any(|member| driver.starts_with(member));
        return (!is_member).then(|| format!("{driver} at {host}"));
    }
    let is_ours = match name.strip_prefix(APPLICATION).map(|rest| rest.trim_start().rsplit_once(' ')) {
        None => false,
        // A command.
        Some(None) => true,
        Some(Some((other, id))) => other != database || id.parse().is_ok_and(|id| view.instances.contains_key(&id)),
    };
    (!is_ours).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::fence::Fence;
    use crate::fence::mongo::Instance;
    use crate::phase::Phase;

    #[test]
    fn registered_processes_commands_members_and_other_databases_are_no_strangers() {
        let id = Uuid::new_v4();
        let instance = Instance { name: "n".to_owned(), silent: Duration::ZERO, lease: Duration::ZERO };
        let fence = Fence { phase: Phase::MongoPrimary, epoch: 1, open: true };
        let view = View { fence, instances: [(id, instance)].into() };
        let found = |name: &str, driver: &str| {
            stranger(&doc! { "appName": name, "client": "10.0.0.1:4711", "driver": driver }, "db", &view)
        };
        for name in
            [APPLICATION.to_owned(), format!("{APPLICATION} db {id}"), format!("{APPLICATION} other {}", Uuid::nil())]
        {
            assert_eq!(found(&name, "mongo-rust-driver"), None, "{name}");
        }
        assert_eq!(found("", "NetworkInterfaceTL-ReplNetwork"), None);
        assert_eq!(found("", "nodejs").as_deref(), Some("nodejs at 10.0.0.1"));
        assert_eq!(found("mongosh 2.1", "nodejs|mongosh").as_deref(), Some("mongosh 2.1"));
        let forgotten = format!("{APPLICATION} db {}", Uuid::nil());
        assert_eq!(found(&forgotten, "mongo-rust-driver").as_deref(), Some(forgotten.as_str()));
    }
}
