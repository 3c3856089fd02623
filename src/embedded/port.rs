//! Ports nobody listens on.

use std::net::{Ipv4Addr, TcpListener};

use super::EmbeddedError;

/// Below the range from which systems take the ports of outgoing connections (32768 and up on Linux): from there, any
/// client could take the port while a server restarts, and a client that polls for the server could meet itself.
const FIRST: u16 = 15_000;
const COUNT: u16 = 17_000;

/// How often a server may meet a port that somebody took between our look and its start.
const ATTEMPTS: usize = 8;

/// A port of 127.0.0.1 that was free a moment ago.
fn guess() -> u16 {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(random).take(200).find(free).unwrap_or(FIRST)
}

fn random() -> u16 {
    let [a, b, ..] = uuid::Uuid::new_v4().into_bytes();
    FIRST + u16::from_le_bytes([a, b]) % COUNT
}

/// Starts a server on free ports until one is still free when the server comes to it.
pub(super) async fn on_a_free_one(
    mut start: impl AsyncFnMut(u16) -> Result<(), EmbeddedError>,
) -> Result<(), EmbeddedError> {
    for _ in 1..ATTEMPTS {
        match start(guess()).await {
            Err(EmbeddedError::PortTaken { .. }) => {}
            other => return other,
        }
    }
    start(guess()).await
}
