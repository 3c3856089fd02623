#![allow(warnings, clippy::all)]
#[tokio::main]
async fn main() {
    let n: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let servers = scheduler_bridge::embedded::Servers::start().await.unwrap();
    let client = mongodb::Client::with_uri_str(servers.mongo.url()).await.unwrap();
    scheduler_bridge::dataset::load(&client.database("stellaops_scheduler"), n, 1, |_| ()).await.unwrap();
    std::fs::write(
        "/tmp/hold.env",
        format!(
            "export BRIDGE_MONGO_URL='{}'\nexport BRIDGE_POSTGRES_URL='{}'\n",
            servers.mongo.url(),
            servers.postgres.url()
        ),
    )
    .unwrap();
    println!("ready");
    tokio::signal::ctrl_c().await.unwrap();
}
