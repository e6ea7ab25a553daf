//! Connections, as events: with peers that have channels with us, and those that we made ourselves. Whoever else calls is
//! not written down, so that strangers cannot fill the journal by calling again and again.

use std::collections::HashSet;

use millrace_wire::PublicKey;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::channels::{ChannelState, Registry};
use crate::entry::{Entry, Kind};
use crate::happened::Happened;
use crate::peer::{PeerEvent, Peers};

/// The version that this build writes.
const VERSION: u8 = 1;

/// What is written down of a connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum LinkEntry {
    Connected { peer: PublicKey, address: String, is_inbound: bool },
    Disconnected { peer: PublicKey, reason: String },
}

impl LinkEntry {
    fn entry(&self) -> Entry {
        let bytes = postcard::to_extend(self, vec![VERSION]).expect("plain data into memory: nothing can fail");
        Entry::new(Kind::Link, bytes)
    }
}

/// What happened, by an entry.
///
/// # Errors
/// In words, if it is no entry of this kind.
pub(crate) fn happened(bytes: &[u8]) -> Result<Happened, String> {
    let entry = match bytes.split_first() {
        Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| error.to_string())?,
        Some((version, _)) => return Err(format!("version {version} of a connection's entry")),
        None => return Err("an empty entry of a connection".to_owned()),
    };
    Ok(match entry {
        LinkEntry::Connected { peer, address, is_inbound } => Happened::PeerConnected { peer, address, is_inbound },
        LinkEntry::Disconnected { peer, reason } => Happened::PeerDisconnected { peer, reason },
    })
}

/// Writes connections down until the node stops.
pub(crate) async fn write_down(mut events: broadcast::Receiver<PeerEvent>, peers: Peers, registry: Registry) {
    let journal = registry.journal();
    let mut told: HashSet<PublicKey> = HashSet::new();
    loop {
        let entry = match events.recv().await {
            Ok(PeerEvent::Connected { peer, address, is_inbound }) => {
                if is_inbound && !has_channel(&registry, &peer) {
                    continue;
                }
                told.insert(peer);
                LinkEntry::Connected { peer, address, is_inbound }
            }
            Ok(PeerEvent::Disconnected { peer, reason }) => {
                // The end of an older connection, beside a newer one, is no end.
                if peers.is_connected(&peer) || !told.remove(&peer) {
                    continue;
                }
                LinkEntry::Disconnected { peer, reason }
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "connections came and went faster than they could be written down");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        if journal.write(vec![entry.entry()]).await.is_err() {
            return;
        }
    }
}

fn has_channel(registry: &Registry, peer: &PublicKey) -> bool {
    registry.snapshots_with(peer).iter().any(|snapshot| snapshot.state != ChannelState::Closed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_entry_tells_what_happened() {
        let peer = PublicKey::from_slice(&[2; 33]).unwrap();
        let connected = LinkEntry::Connected { peer, address: "127.0.0.1:9".to_owned(), is_inbound: true };
        let told = Happened::PeerConnected { peer, address: "127.0.0.1:9".to_owned(), is_inbound: true };
        assert_eq!(happened(&connected.entry().bytes), Ok(told));
        let gone = LinkEntry::Disconnected { peer, reason: "gone".to_owned() };
        assert_eq!(happened(&gone.entry().bytes), Ok(Happened::PeerDisconnected { peer, reason: "gone".to_owned() }));
        for bytes in [&[][..], &[0], &[VERSION], &[VERSION, 7]] {
            assert!(happened(bytes).is_err(), "{bytes:?}");
        }
    }
}
