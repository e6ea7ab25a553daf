//! How the network stands, for a person and for a program.

use std::fmt::Write;

use comfy_table::{Table, presets};
use millrace_rpc::v1::{GetInfoRequest, ListPeersRequest};
use serde::Serialize;

use super::Stay;
use crate::mesh::{Member, Mesh, Side};
use crate::network::Error;

/// Letters of a channel's bar.
const BAR_WIDTH: usize = 30;

/// How the network stands.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its folder.
    pub folder: String,
    /// bitcoind runs.
    pub bitcoind: bool,
    /// Of the chain; absent if bitcoind does not run.
    pub height: Option<u32>,
    /// Transactions that wait for a block; absent if bitcoind does not run.
    pub mempool: Option<usize>,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// The channels of the plan, and others that were opened since.
    pub channels: Vec<ChannelStatus>,
}

/// How a node stands.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// What commands call it.
    pub name: String,
    /// `millrace` or `ldk`.
    pub kind: &'static str,
    /// `running`, `starting` or `away`.
    pub state: &'static str,
    /// What it calls itself.
    pub alias: String,
    /// Its public key; empty unless it runs.
    pub node_id: String,
    /// Its process.
    pub pid: Option<u32>,
    /// Peers that are connected.
    pub peers: usize,
    /// In its wallet.
    pub wallet_sat: u64,
    /// In its channels.
    pub channels_msat: u64,
}

/// How a channel stands, by the word of whoever opened it, or else of the other.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelStatus {
    /// Its id; empty if it is not opened yet.
    pub channel_id: String,
    /// Who opened it.
    pub from: String,
    /// The other.
    pub to: String,
    /// Its whole size.
    pub capacity_sat: u64,
    /// Of it, the part of `from`.
    pub from_msat: u64,
    /// The part of `to`.
    pub to_msat: u64,
    /// In HTLCs on their way.
    pub in_flight_msat: u64,
    /// `usable`, `peer away`, `opening`, `closing`, `on chain`, `closed`, or `unknown` if neither node runs.
    pub state: String,
    /// Whether the plan wants it announced; absent if it is none of the plan's.
    pub public: Option<bool>,
}

impl Stay {
    /// Asks everybody.
    ///
    /// # Errors
    /// If a node that runs does not answer.
    pub async fn status(&self) -> Result<Status, Error> {
        let mut status = Status {
            folder: self.folder.display().to_string(),
            bitcoind: self.running(super::BITCOIND).is_some(),
            height: None,
            mempool: None,
            nodes: Vec::new(),
            channels: Vec::new(),
        };
        let mesh = match status.bitcoind {
            true => Some(self.mesh().await?),
            false => None,
        };
        if let Some(mesh) = &mesh {
            let bitcoind = &mesh.network.bitcoind;
            status.height = Some(tokio::task::block_in_place(|| bitcoind.height())?);
            status.mempool = Some(tokio::task::block_in_place(|| bitcoind.mempool())?.len());
        }
        let mut sides = Vec::new();
        for node in 0..self.state.plan.nodes.len() {
            let (told, of_it) = self.node_status(mesh.as_ref(), node).await?;
            status.nodes.push(told);
            sides.push(of_it);
        }
        status.channels = self.channels(&status.nodes, &sides);
        Ok(status)
    }

    async fn node_status(&self, mesh: Option<&Mesh>, node: usize) -> Result<(NodeStatus, Vec<Side>), Error> {
        let planned = &self.state.plan.nodes[node];
        let process = self.running(&planned.name);
        let mut status = NodeStatus {
            name: planned.name.clone(),
            kind: planned.kind.name(),
            state: if process.is_some() { "starting" } else { "away" },
            alias: planned.alias.clone(),
            node_id: String::new(),
            pid: process.map(|process| process.pid),
            peers: 0,
            wallet_sat: 0,
            channels_msat: 0,
        };
        let Some(mesh) = mesh else { return Ok((status, Vec::new())) };
        match mesh.member(node) {
            Member::Ours(daemon) => {
                // Without a connection it is away, or not ready yet.
                let Ok(mut client) = daemon.client() else { return Ok((status, Vec::new())) };
                let info = client.node.get_info(GetInfoRequest {}).await;
                let info = info.map_err(|status| daemon.call_failed(&status))?.into_inner();
                let peers = client.peers.list(ListPeersRequest {}).await;
                let peers = peers.map_err(|status| daemon.call_failed(&status))?.into_inner().peers;
                status.peers = peers.iter().filter(|peer| peer.connected).count();
                status.alias = info.alias;
            }
            Member::Ldk(ldk) if ldk.is_attached() => status.peers = ldk.peers().await?.len(),
            Member::Ldk(_) => return Ok((status, Vec::new())),
        }
        let sides = mesh.sides(node).await?;
        status.state = "running";
        status.node_id = hex::encode(mesh.node_id(node)?);
        status.wallet_sat = mesh.onchain_sat(node).await?;
        status.channels_msat = sides.iter().map(|side| side.local_msat).sum();
        Ok((status, sides))
    }

    /// The plan's channels in its order, then others.
    fn channels(&self, nodes: &[NodeStatus], sides: &[Vec<Side>]) -> Vec<ChannelStatus> {
        let mut channels = Vec::new();
        for (planned, state) in self.state.plan.channels.iter().zip(&self.state.channels) {
            let id = state.channel_id.clone().unwrap_or_default();
            let side_of = |node: usize| sides[node].iter().find(|side| hex::encode(&side.channel_id) == id);
            let is_known = [planned.from, planned.to].iter().any(|node| nodes[*node].state == "running");
            let (side, is_opener) = match (side_of(planned.from), side_of(planned.to)) {
                (Some(side), _) => (Some(side), true),
                (None, other) => (other, false),
            };
            let missing = match (is_known, id.is_empty()) {
                (_, true) => "opening",
                (true, false) => "closed",
                (false, false) => "unknown",
            };
            let names = [planned.from, planned.to].map(|node| nodes[node].name.clone());
            let mut told = channel_status(side, is_opener, names, missing);
            told.channel_id = id;
            told.capacity_sat = planned.capacity_sat;
            told.public = Some(planned.public);
            channels.push(told);
        }
        let mut seen: Vec<String> = channels.iter().map(|channel| channel.channel_id.clone()).collect();
        for (node, side) in nodes.iter().zip(sides).flat_map(|(node, sides)| sides.iter().map(move |side| (node, side)))
        {
            let id = hex::encode(&side.channel_id);
            if seen.contains(&id) {
                continue;
            }
            let peer = hex::encode(&side.peer);
            let other = nodes.iter().find(|other| other.node_id == peer).map_or(peer, |other| other.name.clone());
            let names = match side.is_funder {
                true => [node.name.clone(), other],
                false => [other, node.name.clone()],
            };
            channels.push(channel_status(Some(side), side.is_funder, names, "closed"));
            seen.push(id);
        }
        channels
    }
}

fn channel_status(side: Option<&Side>, is_opener: bool, [from, to]: [String; 2], missing: &str) -> ChannelStatus {
    let (mut from_msat, mut to_msat) = side.map_or((0, 0), |side| (side.local_msat, side.remote_msat));
    if !is_opener {
        std::mem::swap(&mut from_msat, &mut to_msat);
    }
    ChannelStatus {
        channel_id: side.map(|side| hex::encode(&side.channel_id)).unwrap_or_default(),
        from,
        to,
        capacity_sat: side.map_or(0, |side| side.capacity_sat),
        from_msat,
        to_msat,
        in_flight_msat: side.map_or(0, |side| side.in_flight_msat),
        state: side.map_or_else(|| missing.to_owned(), |side| side.state.clone()),
        public: None,
    }
}

impl Status {
    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let chain = match (self.height, self.mempool) {
            (Some(height), Some(mempool)) => format!("height {height}, {mempool} transactions wait for a block"),
            _ => "bitcoind is away".to_owned(),
        };
        let _ = writeln!(text, "{}: {chain}\n", self.folder);
        let mut table = plain_table();
        table.set_header(["NODE", "KIND", "STATE", "ALIAS", "PEERS", "WALLET", "CHANNELS", "NODE ID"]);
        for node in &self.nodes {
            let is_running = node.state == "running";
            let or_nothing = |text: String| if is_running { text } else { String::new() };
            table.add_row([
                node.name.clone(),
                node.kind.to_owned(),
                node.state.to_owned(),
                node.alias.clone(),
                or_nothing(node.peers.to_string()),
                or_nothing(format!("{} sat", grouped(node.wallet_sat))),
                or_nothing(format!("{} sat", grouped(node.channels_msat / 1000))),
                or_nothing(format!("{}…", node.node_id.get(..16).unwrap_or_default())),
            ]);
        }
        let _ = writeln!(text, "{table}\n");
        let mut table = plain_table();
        for channel in &self.channels {
            let is_known = channel.from_msat + channel.to_msat + channel.in_flight_msat > 0;
            let or_nothing = |text: String| if is_known { text } else { String::new() };
            let kept_between = if channel.public == Some(false) { ", private" } else { "" };
            table.add_row([
                channel.from.clone(),
                or_nothing(grouped(channel.from_msat / 1000)),
                bar(channel),
                or_nothing(grouped(channel.to_msat / 1000)),
                channel.to.clone(),
                format!("{}{kept_between}", channel.state),
            ]);
        }
        for column in [1, 3] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        let _ = write!(text, "{table}");
        text
    }
}

/// Whose is how much: the opener's part dark, on its way grey, the other's light.
fn bar(channel: &ChannelStatus) -> String {
    let whole_msat = channel.from_msat + channel.to_msat + channel.in_flight_msat;
    if whole_msat == 0 {
        return " ".repeat(BAR_WIDTH);
    }
    let letters = |msat: u64| usize::try_from(msat * BAR_WIDTH as u64 / whole_msat).unwrap_or(BAR_WIDTH);
    let (from, to) = (letters(channel.from_msat), letters(channel.to_msat));
    // What rounding leaves is on its way, or the larger part's.
    let (from, to) = match (BAR_WIDTH - from - to, channel.in_flight_msat) {
        (rest, 0) if channel.from_msat >= channel.to_msat => (from + rest, to),
        (rest, 0) => (from, to + rest),
        _ => (from, to),
    };
    ["█".repeat(from), "▒".repeat(BAR_WIDTH - from - to), "░".repeat(to)].concat()
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

/// Digits in threes.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(from_msat: u64, in_flight_msat: u64, to_msat: u64) -> ChannelStatus {
        ChannelStatus {
            channel_id: "00".to_owned(),
            from: "alice".to_owned(),
            to: "bob".to_owned(),
            capacity_sat: (from_msat + in_flight_msat + to_msat) / 1000,
            from_msat,
            to_msat,
            in_flight_msat,
            state: "usable".to_owned(),
            public: Some(true),
        }
    }

    #[test]
    fn bars_are_as_long_as_the_parts() {
        let counts = |bar: &str| ['█', '▒', '░'].map(|letter| bar.chars().filter(|found| *found == letter).count());
        assert_eq!(counts(&bar(&channel(500, 0, 500))), [15, 0, 15]);
        assert_eq!(counts(&bar(&channel(1000, 0, 0))), [30, 0, 0]);
        assert_eq!(counts(&bar(&channel(1, 0, 999))), [0, 0, 30]);
        assert_eq!(counts(&bar(&channel(300, 400, 300))), [9, 12, 9]);
        assert_eq!(bar(&channel(0, 0, 0)), " ".repeat(BAR_WIDTH));
        assert_eq!(counts(&bar(&channel(7_000_000_001, 0, 2_999_999_999))), [22, 0, 8]);
    }

    #[test]
    fn numbers_in_threes() {
        let all = [0, 999, 1_000, 12_345_678].map(grouped);
        assert_eq!(all, ["0", "999", "1,000", "12,345,678"]);
    }

    #[test]
    fn what_is_away_shows_no_sums() {
        let away = NodeStatus {
            name: "carol".to_owned(),
            kind: "millrace",
            state: "away",
            alias: "Carol".to_owned(),
            node_id: String::new(),
            pid: None,
            peers: 0,
            wallet_sat: 0,
            channels_msat: 0,
        };
        let mut private = channel(7_000_000, 0, 3_000_000);
        private.public = Some(false);
        let status = Status {
            folder: "/x".to_owned(),
            bitcoind: true,
            height: Some(131),
            mempool: Some(2),
            nodes: vec![away],
            channels: vec![private],
        };
        let text = status.text();
        assert!(text.starts_with("/x: height 131, 2 transactions wait for a block\n"), "{text}");
        assert!(text.contains("carol") && text.contains("away") && !text.contains("0 sat"), "{text}");
        assert!(text.contains("7,000  ██") && text.contains("usable, private"), "{text}");
    }
}
