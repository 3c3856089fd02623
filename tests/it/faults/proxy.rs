//! A proxy on loopback that can be told to fail.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the proxy does to what goes through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Everything goes through.
    Fair,
    /// Nothing goes through; connections stay open.
    Still,
    /// What clients send arrives, and the connection is cut in the place of the answer.
    NoAnswer,
    /// Connections are cut, and new ones too.
    Cut,
}

/// A proxy before one server, until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// A proxy before the server on loopback that `url` leads to, in fair weather.
    pub async fn before(url: &str) -> Self {
        let port = url::Url::parse(url).expect("a URL").port().expect("a port");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let weather = watch::Sender::new(Weather::Fair);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, to, weather.subscribe()));
        Self { address, weather, _tasks: tasks }
    }

    /// The URL that leads to the same server through the proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).expect("a URL");
        url.set_port(Some(self.address.port())).expect("a port");
        if url.scheme() == "mongodb" {
            // Its replica set would lead past the proxy.
            url.set_query(Some("directConnection=true"));
        }
        url.into()
    }

    /// Changes what it does, also to connections that are there.
    pub fn turn(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, weather: watch::Receiver<Weather>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        if *weather.borrow() == Weather::Cut {
            continue;
        }
        let weather = weather.clone();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(to).await else { return };
            let (client, server) = (client.into_split(), server.into_split());
            // Whichever direction ends first takes the other with it.
            tokio::select! {
                () = pass(client.0, server.1, weather.clone(), false) => {}
                () = pass(server.0, client.1, weather, true) => {}
            }
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>, is_answer: bool) {
    let (mut buffer, mut held) = (vec![0; 64 * 1024], Vec::new());
    loop {
        let now = *weather.borrow_and_update();
        match now {
            Weather::Cut => return,
            Weather::NoAnswer if is_answer && !held.is_empty() => return,
            Weather::Still => {}
            Weather::Fair | Weather::NoAnswer => {
                if to.write_all(&std::mem::take(&mut held)).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            // Also while nothing goes through: who goes away is seen to.
            read = from.read(&mut buffer) => match read {
                Ok(length @ 1..) => held.extend_from_slice(&buffer[..length]),
                _ => return,
            },
        }
    }
}
