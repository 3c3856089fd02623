//! A pooler in transaction mode between the process and PostgreSQL.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use scheduler_bridge::lock::LockError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::any::postgres;
use crate::bed::Bed;

/// Which of the free sessions a transaction is given.
#[derive(Debug, Clone, Copy)]
enum Rule {
    LastFreed,
    LongestFree,
}

/// The sessions that no transaction has.
struct Pool {
    rule: Rule,
    free: Mutex<VecDeque<TcpStream>>,
    available: Semaphore,
    most: usize,
}

impl Pool {
    async fn take(&self) -> TcpStream {
        self.available.acquire().await.expect("an open pool").forget();
        let mut free = self.free.lock().expect("a pool");
        match self.rule {
            Rule::LastFreed => free.pop_back(),
            Rule::LongestFree => free.pop_front(),
        }
        .expect("a free session")
    }

    fn give(&self, session: TcpStream) {
        self.free.lock().expect("a pool").push_back(session);
        self.available.add_permits(1);
    }

    /// A session that a client has opened; those beyond the pool's size are closed.
    fn adopt(&self, session: TcpStream, opened: &Mutex<usize>) {
        let mut opened = opened.lock().expect("a count");
        if *opened < self.most {
            *opened += 1;
            self.give(session);
        }
    }
}

/// A message: its type and all its bytes.
async fn message(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut bytes = head.to_vec();
    bytes.resize(length + 1, 0);
    stream.read_exact(&mut bytes[5..]).await?;
    Ok((head[0], bytes))
}

/// The first message of a client has no type. A wish for TLS is declined.
async fn startup(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    loop {
        let mut head = [0; 8];
        client.read_exact(&mut head).await?;
        if head[4..] == 80_877_103_u32.to_be_bytes() {
            client.write_all(b"N").await?;
            continue;
        }
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let mut bytes = head.to_vec();
        bytes.resize(length, 0);
        client.read_exact(&mut bytes[8..]).await?;
        return Ok(bytes);
    }
}

/// Passes on what both say until the session is ready; whether it is in no transaction then.
async fn until_ready(client: &mut TcpStream, session: &mut TcpStream) -> std::io::Result<bool> {
    loop {
        let (kind, bytes) = message(session).await?;
        client.write_all(&bytes).await?;
        match kind {
            b'Z' => return Ok(bytes[5] == b'I'),
            // A step of the authentication that wants an answer (all but "ok" and SCRAM's end).
            b'R' if ![0, 12].contains(&bytes[8]) => {
                let (_, answer) = message(client).await?;
                session.write_all(&answer).await?;
            }
            _ => {}
        }
    }
}

async fn serve(
    mut client: TcpStream,
    address: String,
    pool: Arc<Pool>,
    opened: Arc<Mutex<usize>>,
) -> std::io::Result<()> {
    let mut session = TcpStream::connect(address).await?;
    session.write_all(&startup(&mut client).await?).await?;
    until_ready(&mut client, &mut session).await?;
    pool.adopt(session, &opened);
    loop {
        let (mut kind, mut bytes) = message(&mut client).await?;
        if kind == b'X' {
            return Ok(());
        }
        let mut session = pool.take().await;
        loop {
            session.write_all(&bytes).await?;
            let is_free = [b'Q', b'S'].contains(&kind) && until_ready(&mut client, &mut session).await?;
            if is_free {
                break;
            }
            (kind, bytes) = message(&mut client).await?;
        }
        pool.give(session);
    }
}

/// A pooler in front of the bed's PostgreSQL; the URL that leads through it.
async fn pooler(bed: &Bed, rule: Rule, most: usize) -> (String, tokio::task::JoinHandle<()>) {
    let url = bed.postgres_url.clone();
    let server = url.split('@').nth(1).and_then(|rest| rest.split('/').next()).expect("a host").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let pool = Arc::new(Pool { rule, free: Mutex::default(), available: Semaphore::new(0), most });
    let through = url.replace(&server, &format!("127.0.0.1:{port}"));
    let task = tokio::spawn(async move {
        let opened = Arc::new(Mutex::new(0));
        let mut clients = tokio::task::JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            clients.spawn(serve(client, server.clone(), pool.clone(), opened.clone()));
        }
    });
    (through, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_is_refused_whatever_session_it_gives() {
    let bed = Bed::new().await;
    for rule in [Rule::LastFreed, Rule::LongestFree] {
        for most in [1, 2, 5] {
            let (url, task) = pooler(&bed, rule, most).await;
            // It lets ordinary statements through.
            let mut plain = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.expect("connect");
            sqlx::raw_sql("select 1").execute(&mut plain).await.expect("a statement");
            drop(plain);
            let refused = postgres(&url).await.map(|_| ()).err();
            assert!(matches!(refused, Some(LockError::Pooler)), "{rule:?} {most}: {refused:?}");
            task.abort();
        }
    }
    postgres(&bed.postgres_url).await.expect("the server itself is not refused");
}
