//! `millrace peer`: connections to other Lightning nodes.

use std::str::FromStr;

use clap::Subcommand;
use millrace_rpc::v1::peers_client::PeersClient;
use millrace_rpc::v1::{ConnectRequest, DisconnectRequest, ListPeersRequest, Peer};
use serde_json::{Value, json};

use crate::args::KeyArg;
use crate::fault::Fault;
use crate::node::{features_json, features_text};
use crate::output::{Column, Output, facts, list};
use crate::session::{Order, Session};
use crate::words;

/// Where Lightning nodes listen unless they say otherwise.
const DEFAULT_PORT: u16 = 9735;

/// Commands about peers.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Connect to a node
    ///
    /// Examples:
    ///   millrace peer connect 02ab…@203.0.113.7:9735
    ///   millrace peer connect 02ab…@[2001:db8::7]
    #[command(verbatim_doc_comment)]
    Connect {
        /// Who and where; without a port, 9735
        #[arg(value_name = "NODE_ID@HOST[:PORT]")]
        target: Target,
        #[command(flatten)]
        key: KeyArg,
    },
    /// End the connection to a node
    Disconnect {
        /// Who
        #[arg(value_parser = words::node_id)]
        node_id: [u8; 33],
        /// Also if there are channels with it; they cannot be used until it is connected again
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        key: KeyArg,
    },
    /// List peers that are connected, or that the node has channels with
    List,
}

/// A node and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its public key.
    pub(crate) node_id: [u8; 33],
    /// `HOST:PORT`.
    pub(crate) address: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, DEFAULT_PORT, "NODE_ID")
    }
}

impl Target {
    /// A key, named as here, and a host, with this port unless it names one.
    pub(crate) fn parse(text: &str, port: u16, name: &str) -> Result<Self, String> {
        let (node_id, host) = text.split_once('@').ok_or_else(|| format!("write it as {name}@HOST:PORT"))?;
        Ok(Self { node_id: words::node_id(node_id)?, address: with_port(host, port)? })
    }
}

/// `HOST:PORT` with the default port filled in. An IPv6 address stands in brackets.
fn with_port(host: &str, default: u16) -> Result<String, String> {
    let name_end = if host.starts_with('[') {
        host.find(']').map(|end| end + 1).ok_or("the bracket is not closed")?
    } else {
        host.find(':').unwrap_or(host.len())
    };
    let (name, port) = host.split_at(name_end);
    if name.is_empty() || name == "[]" {
        return Err("the host is missing".to_owned());
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default,
        Some(digits) if !digits.starts_with('+') => match digits.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(format!("`{digits}` is no port; an IPv6 address needs brackets")),
        },
        _ => return Err(format!("`{host}` is no HOST:PORT")),
    };
    Ok(format!("{name}:{port}"))
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::Connect { target, key } => {
                let peer = connect(session, target, key.key.as_deref()).await?;
                output.answer(&peer_json(&peer), || peer_text(&peer))
            }
            Self::Disconnect { node_id, force, key } => {
                disconnect(session, node_id, force, &key).await?;
                let json = json!({ "node_id": hex::encode(node_id), "connected": false });
                output.answer(&json, || "Disconnected.".to_owned())
            }
            Self::List => {
                let peers = session
                    .read(|link| async move { PeersClient::new(link).list(ListPeersRequest {}).await })
                    .await?
                    .peers;
                let json = json!({ "peers": peers.iter().map(peer_json).collect::<Vec<_>>() });
                output.answer(&json, || peers_text(&peers))
            }
        }
    }
}

/// Connects to a node.
pub(crate) async fn connect(session: &Session, target: Target, key: Option<&str>) -> Result<Peer, Fault> {
    let order = Order::new("peer connect", key)?;
    let request = ConnectRequest {
        idempotency_key: order.key.clone(),
        node_id: target.node_id.to_vec(),
        address: target.address,
    };
    let answer = session
        .change(&order, |link| {
            let request = request.clone();
            async move { PeersClient::new(link).connect(request).await }
        })
        .await?;
    Ok(answer.peer.unwrap_or_default())
}

async fn disconnect(session: &Session, node_id: [u8; 33], force: bool, key: &KeyArg) -> Result<(), Fault> {
    let order = Order::new("peer disconnect", key.key.as_deref())?;
    let request = DisconnectRequest { idempotency_key: order.key.clone(), node_id: node_id.to_vec(), force };
    session
        .change(&order, |link| {
            let request = request.clone();
            async move { PeersClient::new(link).disconnect(request).await }
        })
        .await?;
    Ok(())
}

fn peer_json(peer: &Peer) -> Value {
    json!({
        "node_id": hex::encode(&peer.node_id),
        "address": peer.address,
        "connected": peer.connected,
        "inbound": peer.inbound,
        "channels": peer.channels,
        "since_ms": peer.since_ms,
        "ping_us": peer.ping_us,
        "features": features_json(&peer.features),
        "last_error": peer.last_error,
    })
}

fn peer_text(peer: &Peer) -> String {
    facts([
        ("Node id", hex::encode(&peer.node_id)),
        ("Address", peer.address.clone()),
        ("State", state_text(peer)),
        ("Channels", peer.channels.to_string()),
        ("Features", features_text(&peer.features)),
        ("Last error", peer.last_error.clone()),
    ])
}

fn state_text(peer: &Peer) -> String {
    match (peer.connected, peer.inbound) {
        (true, true) => "connected, it called us".to_owned(),
        (true, false) => "connected, we called it".to_owned(),
        (false, _) if peer.since_ms == 0 => "never connected".to_owned(),
        (false, _) => format!("away since {}", words::time(peer.since_ms)),
    }
}

fn peers_text(peers: &[Peer]) -> String {
    let columns = [
        Column::Text("NODE ID"),
        Column::Text("STATE"),
        Column::Number("CHANNELS"),
        Column::Number("PING"),
        Column::Text("ADDRESS"),
    ];
    let rows = peers
        .iter()
        .map(|peer| {
            let ping = |us: u64| format!("{}.{:01} ms", us / 1000, us % 1000 / 100);
            vec![
                hex::encode(&peer.node_id),
                state_text(peer),
                peer.channels.to_string(),
                peer.ping_us.map(ping).unwrap_or_default(),
                peer.address.clone(),
            ]
        })
        .collect();
    list(&columns, rows, "No peers.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses() {
        let good = [
            ("host", "host:9735"),
            ("host:1", "host:1"),
            ("127.0.0.1:19735", "127.0.0.1:19735"),
            ("[::1]", "[::1]:9735"),
            ("[::1]:7", "[::1]:7"),
        ];
        for (text, address) in good {
            assert_eq!(with_port(text, 9735), Ok(address.to_owned()), "{text}");
        }
        for text in ["", ":1", "[]:1", "[::1", "[::1]x", "::1", "host:", "host:0", "host:65536", "host:+1"] {
            assert!(with_port(text, 9735).is_err(), "{text}");
        }
    }

    #[test]
    fn targets() {
        let text = format!("{}@host:1", "03".repeat(33));
        let target: Target = text.parse().unwrap();
        assert_eq!(target.node_id, [3; 33]);
        assert_eq!(target.address, "host:1");
        assert!("03".repeat(33).parse::<Target>().is_err());
        assert!("0303@host:1".parse::<Target>().is_err());
    }
}
