//! What a test stands on: a database of its own in both servers, and `bridge` aimed at them.

use std::env;
use std::future::Future;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime};

use scheduler_bridge::embedded::{Endpoint, Endpoints, MongoServer, MongoSet, PostgresServer, Servers};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// The servers that all tests of this process share, and the name of their migrated template. They end with the process.
static SHARED: OnceCell<(Endpoints, String)> = OnceCell::const_new();

/// How the names of all databases of tests begin; the second of their creation follows.
const PREFIX: &str = "bridge_test";

/// A database of the test's own in both servers. Both are dropped with it, also when the test fails.
pub struct Bed {
    /// For `BRIDGE_MONGO_URL`.
    pub mongo_url: String,
    /// A client of this test's runtime.
    pub mongo: mongodb::Client,
    /// The database of this test, without collections as yet; its name is also that of the database in PostgreSQL.
    pub database: mongodb::Database,
    /// For `BRIDGE_POSTGRES_URL`: the database of this test, migrated.
    pub postgres_url: String,
    pool: OnceLock<PgPool>,
    /// To create and drop databases with.
    admin_url: String,
    own: Own,
}

/// The servers that no other test uses. What is in them goes with them.
enum Own {
    Nothing,
    Mongo(#[expect(dead_code, reason = "it is held, to end with the bed")] MongoServer),
    Both(Servers),
    Set(MongoSet, PostgresServer),
}

impl Bed {
    /// A bed in the servers that all tests share.
    pub async fn new() -> Self {
        let (endpoints, template) = SHARED.get_or_init(open_shared).await;
        let postgres_url = |name: &str| endpoints.postgres.url_of(name);
        Self::make(template, endpoints.mongo.url(), endpoints.postgres.url(), postgres_url).await
    }

    /// A bed in servers that no other test uses, see [`Self::servers`].
    pub async fn with_own_servers() -> Self {
        let servers = Servers::start().await.expect("start the servers");
        let postgres_url = |name: &str| servers.postgres.url_of(name);
        let template = make_template(&servers.postgres.url(), postgres_url).await;
        let mut bed = Self::make(&template, servers.mongo.url(), servers.postgres.url(), postgres_url).await;
        bed.own = Own::Both(servers);
        bed
    }

    /// A bed with a MongoDB server of its own, with these options of `mongod`.
    pub async fn with_own_mongo(settings: &[(&str, &str)]) -> Self {
        let mongo = MongoServer::start_with(settings).await.expect("start MongoDB");
        let (endpoints, template) = SHARED.get_or_init(open_shared).await;
        let postgres_url = |name: &str| endpoints.postgres.url_of(name);
        let mut bed = Self::make(template, mongo.url(), endpoints.postgres.url(), postgres_url).await;
        bed.own = Own::Mongo(mongo);
        bed
    }

    /// A bed in servers that no other test uses: a replica set of three members, and PostgreSQL; see [`Self::set`].
    pub async fn with_own_set() -> Self {
        let started = tokio::join!(MongoSet::start(3), PostgresServer::start());
        let (set, postgres) = (started.0.expect("start MongoDB"), started.1.expect("start PostgreSQL"));
        let postgres_url = |name: &str| postgres.url_of(name);
        let template = make_template(&postgres.url(), postgres_url).await;
        let mut bed = Self::make(&template, set.url(), postgres.url(), postgres_url).await;
        bed.own = Own::Set(set, postgres);
        bed
    }

    async fn make(template: &str, mongo_url: String, admin_url: String, postgres_url: impl Fn(&str) -> String) -> Self {
        let name = unique();
        run_sql(&admin_url, &format!("create database {name} template {template}")).await.expect("clone the template");
        let mongo = mongodb::Client::with_uri_str(&mongo_url).await.expect("open MongoDB");
        let database = mongo.database(&name);
        let postgres_url = postgres_url(&name);
        Self { mongo_url, mongo, database, postgres_url, pool: OnceLock::new(), admin_url, own: Own::Nothing }
    }

    /// At most five connections to the test's database in PostgreSQL, opened when they are needed.
    pub fn pool(&self) -> &PgPool {
        let open = || PgPoolOptions::new().max_connections(5).connect_lazy(&self.postgres_url).expect("a URL");
        self.pool.get_or_init(open)
    }

    /// The test's own servers, to stop them and start them again. Only after [`Self::with_own_servers`].
    pub fn servers(&mut self) -> &mut Servers {
        if let Own::Both(servers) = &mut self.own { servers } else { panic!("a bed without servers of its own") }
    }

    /// The test's own servers, to stop them and start them again. Only after [`Self::with_own_set`].
    pub fn set(&mut self) -> (&mut MongoSet, &mut PostgresServer) {
        if let Own::Set(set, postgres) = &mut self.own { (set, postgres) } else { panic!("a bed without a set") }
    }

    /// `bridge` with these arguments, aimed at the test's databases and at nothing else.
    pub fn bridge(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
        let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("BRIDGE_");
        env::vars_os().map(|(name, _)| name).filter(ours).for_each(|name| {
            command.env_remove(name);
        });
        command.env("BRIDGE_MONGO_URL", &self.mongo_url).env("BRIDGE_MONGO_DATABASE", self.database.name());
        command.env("BRIDGE_POSTGRES_URL", &self.postgres_url).args(arguments);
        command
    }
}

/// Blocks its task until the databases are gone. PostgreSQL drops one only when every session has taken note, also one
/// that waits for its client to authenticate: a task that drives several beds must not drop one while another connects.
impl Drop for Bed {
    fn drop(&mut self) {
        // Databases go with servers of the test's own, which may be down.
        let mongo_url = match self.own {
            Own::Both(_) | Own::Set(..) => return,
            Own::Mongo(_) => None,
            Own::Nothing => Some(self.mongo_url.clone()),
        };
        let (admin_url, name) = (self.admin_url.clone(), self.database.name().to_owned());
        // A thread of its own: the test's runtime cannot be waited for from inside.
        let cleaned = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(drop_databases(mongo_url.as_deref(), &admin_url, &name));
        });
        if cleaned.join().is_err() {
            println!("the databases {} stay behind", self.database.name());
        }
    }
}

/// Tries both before it complains of either.
async fn drop_databases(mongo_url: Option<&str>, admin_url: &str, name: &str) {
    let statement = format!("drop database {name} with (force)");
    let in_mongo = async {
        match mongo_url {
            Some(url) => drop_in_mongo(url, name).await,
            None => Ok(()),
        }
    };
    let (postgres, mongo) = tokio::join!(run_sql(admin_url, &statement), in_mongo);
    postgres.expect("drop the database in PostgreSQL");
    mongo.expect("drop the database in MongoDB");
}

async fn drop_in_mongo(url: &str, name: &str) -> Result<(), mongodb::error::Error> {
    let client = mongodb::Client::with_uri_str(url).await?;
    let dropped = client.database(name).drop().await;
    client.shutdown().await;
    dropped
}

/// Polls `condition` until it holds; fails with `what` when that takes longer than `limit`.
pub async fn until<C, A>(what: &str, limit: Duration, mut condition: C)
where
    C: FnMut() -> A,
    A: Future<Output = bool>,
{
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {limit:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn open_shared() -> (Endpoints, String) {
    let endpoints = Endpoints::open().await.expect("start the servers");
    if matches!(endpoints.postgres, Endpoint::Given(_)) {
        drop_forgotten(&endpoints.postgres.url()).await.expect("drop the databases of earlier runs");
    }
    let template = make_template(&endpoints.postgres.url(), |name| endpoints.postgres.url_of(name)).await;
    (endpoints, template)
}

/// Makes the database that every test clones and gives its name.
async fn make_template(admin_url: &str, url_of: impl Fn(&str) -> String) -> String {
    let name = unique();
    run_sql(admin_url, &format!("create database {name}")).await.expect("create the template");
    build_template(&url_of(&name)).await;
    // Whoever is connected to a template is in the way of its clones.
    let closed = format!("alter database {name} allow_connections false");
    run_sql(admin_url, &closed).await.expect("close the template");
    name
}

/// Fills the template.
async fn build_template(url: &str) {
    let mut connection = PgConnection::connect(url).await.expect("open the template");
    scheduler_bridge::migrate::run(&mut connection).await.expect("migrate the template");
    connection.close().await.expect("close the template");
}

/// Drops what earlier runs left in a server that is not ours: templates, and databases of tests that were killed.
async fn drop_forgotten(admin_url: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(admin_url).await?;
    let names: Vec<String> = sqlx::query_scalar(
        "select datname from pg_database
         where datname ~ ('^' || $1 || '_[0-9]+_[0-9a-f]+$')
           and split_part(datname, '_', 3)::bigint < extract(epoch from now()) - 3600",
    )
    .bind(PREFIX)
    .fetch_all(&mut connection)
    .await?;
    for name in names {
        connection.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await?;
    }
    connection.close().await
}

async fn run_sql(url: &str, statement: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(AssertSqlSafe(statement.to_owned())).await?;
    connection.close().await
}

/// A name for a database that no other test, process or machine takes.
fn unique() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970").as_secs();
    format!("{PREFIX}_{now}_{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}
