//! A private MongoDB replica set of several members.

use futures::future::{join_all, try_join_all};
use mongodb::bson::doc;

use super::mongo::{failed, initiation, is_writable};
use super::{EmbeddedError, MongoServer, secret};

/// A replica set whose members can be stopped, killed and started again one by one. Dropping it ends them all.
#[derive(Debug)]
pub struct MongoSet {
    name: String,
    members: Vec<MongoServer>,
}

impl MongoSet {
    /// Starts so many members, at least one, and waits until one of them takes writes and the others take reads.
    pub async fn start(members: usize) -> Result<Self, EmbeddedError> {
        let name = format!("bridge-{}", secret());
        let members = try_join_all((0..members.max(1)).map(|_| MongoServer::start_member(name.clone()))).await?;
        let set = Self { name, members };
        set.initiate().await?;
        Ok(set)
    }

    /// The URL with all members.
    pub fn url(&self) -> String {
        format!("mongodb://{}/?replicaSet={}", self.addresses().join(","), self.name)
    }

    /// The members, to stop them and start them again.
    pub fn members(&mut self) -> &mut [MongoServer] {
        &mut self.members
    }

    /// The index of the member that takes writes; nothing while there is none.
    pub async fn primary(&self) -> Result<Option<usize>, EmbeddedError> {
        let are = self.members.iter().map(async |member| {
            let client = member.client()?;
            let is = is_writable(&client.database("admin")).await;
            client.shutdown().await;
            Ok(is)
        });
        let are: Vec<_> = join_all(are).await.into_iter().collect::<Result<_, EmbeddedError>>()?;
        Ok(are.into_iter().position(|is| is))
    }

    /// Makes the primary a secondary, which it stays for at least so many seconds: the others elect one of them.
    ///
    /// # Errors
    /// When there is no primary, or the command fails.
    pub async fn step_down(&self, seconds: u32) -> Result<(), EmbeddedError> {
        let primary = self.primary().await?.and_then(|index| self.members.get(index));
        // Without a primary any member says so.
        let client = primary.unwrap_or(&self.members[0]).client()?;
        let command = doc! { "replSetStepDown": i64::from(seconds), "force": true };
        let stepped = client.database("admin").run_command(command).await;
        client.shutdown().await;
        stepped.map_err(failed("make the primary step down")).map(|_| ())
    }

    async fn initiate(&self) -> Result<(), EmbeddedError> {
        let first = self.members[0].client()?;
        let initiated = first.database("admin").run_command(initiation(&self.name, &self.addresses())).await;
        first.shutdown().await;
        initiated.map_err(failed("initiate the replica set"))?;
        for member in &self.members {
            let client = member.client()?;
            let ready = member.until_ready(&client.database("admin")).await;
            client.shutdown().await;
            ready?;
        }
        self.members[0].until(async || matches!(self.primary().await, Ok(Some(_)))).await
    }

    fn addresses(&self) -> Vec<String> {
        self.members.iter().map(MongoServer::address).collect()
    }
}
