//! The connections with other Lightning nodes: the only Lightning sockets of the daemon (BOLT 1 and 8).
//!
//! Connections come and go; what a channel makes of that is its own business. Everything that a connection hands on
//! carries the connection's epoch, so that nothing of an old one is ever taken for the new one's.

mod address;
mod connection;
mod handshake;
mod inbox;
pub(crate) mod link;
mod listener;
mod reconnect;
mod table;
mod wire;

pub use address::PeerAddress;
pub use connection::Closed;
pub use handshake::HandshakeFailure;
pub use table::{ConnectError, DisconnectError, PeerEvent, PeerInfo, PeerRules, Peers};
