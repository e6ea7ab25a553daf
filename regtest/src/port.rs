//! Ports that nobody has, for servers that keep theirs over restarts.
//!
//! A port that is free now is somebody's a moment later if the system gives it away for a connection that leaves: so they are
//! taken from below the range from which it does. Each process begins elsewhere and goes on from there, so that two that start
//! servers at the same time do not look at the same ports.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below all of these are services that people know, above all the ports of connections that leave.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;
/// Process ids that follow each other begin so far from each other.
const APART: u32 = 199;

/// One that nobody listens on right now.
///
/// # Errors
/// If none of them can be listened on.
pub(crate) fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(APART);
    let mut last = io::Error::other("no port was tried");
    for _ in 0..COUNT {
        let place = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % u32::from(COUNT);
        let port = FIRST + place as u16;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_listener) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_is_free_and_none_comes_twice() {
        let ports: Vec<u16> = (0..100).map(|_| free_port().unwrap()).collect();
        let listeners: Vec<_> = ports.iter().map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port))).collect();
        assert!(listeners.iter().all(Result::is_ok), "{listeners:?}");
        let numbers: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
        assert!(numbers.len() == 100 && numbers.iter().all(|port| (FIRST..FIRST + COUNT).contains(port)));
    }
}
