//! `millrace tower`: watchtowers that keep watch while the node is off.

use clap::{Subcommand, ValueEnum};
use millrace_rpc::v1::towers_client::TowersClient;
use millrace_rpc::v1::{
    AddTowerRequest, GetTowerStatusRequest, GetTowerStatusResponse, ListTowersRequest, RemoveTowerRequest, Tower,
    TowerChannel, TowerMode, TowerStatus,
};
use serde_json::{Value, json};

use crate::args::KeyArg;
use crate::fault::Fault;
use crate::output::{Column, Output, facts, list};
use crate::peer::Target;
use crate::session::{Order, Session};
use crate::words;

/// Commands about watchtowers.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Use a watchtower: it punishes a peer that cheats while the node is off
    ///
    /// Give it the address that `millrace-tower` prints. The answer says which key the tower's owner must allow. A tower that
    /// is in use already gets this address.
    ///
    /// Whoever has the data of a compact tower and is in league with a peer can take that peer's channel: it must be your own.
    /// For somebody else's, `--mode blob`: it learns nothing before a peer cheats, and then takes the peer's main output, not
    /// HTLCs.
    ///
    /// Examples:
    ///   millrace tower add 02ab…@203.0.113.7:9911
    ///   millrace tower add 02ab…@203.0.113.7:9911 --mode blob
    #[command(verbatim_doc_comment)]
    Add {
        /// Which and where
        #[arg(value_name = "TOWER@HOST:PORT", value_parser = target)]
        target: Target,
        /// How it is used
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
        #[command(flatten)]
        key: KeyArg,
    },
    /// Tell a watchtower nothing more; it goes on watching what it has
    Remove {
        /// Which, by its key
        #[arg(value_parser = words::node_id)]
        tower: [u8; 33],
        #[command(flatten)]
        key: KeyArg,
    },
    /// List the watchtowers in use
    List,
    /// Show how far the watchtowers are with each channel
    Status {
        /// One only, by its key
        #[arg(value_parser = words::node_id)]
        tower: Option<[u8; 33]>,
    },
}

/// How a tower is used.
#[derive(Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Mode {
    /// Your own: it gets the secrets of revoked commitments, in constant room, and takes HTLCs too
    #[default]
    Compact,
    /// Somebody else's: it gets a sealed penalty for each revoked commitment
    Blob,
}

/// Where towers listen unless they say otherwise.
const DEFAULT_PORT: u16 = 9911;

fn target(text: &str) -> Result<Target, String> {
    Target::parse(text, DEFAULT_PORT, "TOWER")
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::Add { target, mode, key } => {
                let tower = add(session, target, mode, &key).await?;
                output.answer(&tower_json(&tower), || added_text(&tower))
            }
            Self::Remove { tower, key } => {
                remove(session, tower, &key).await?;
                let json = json!({ "tower": hex::encode(tower), "removed": true });
                output.answer(&json, || "Removed. It goes on watching what it has.".to_owned())
            }
            Self::List => {
                let towers = session
                    .read(|link| async move { TowersClient::new(link).list(ListTowersRequest {}).await })
                    .await?
                    .towers;
                let json = json!({ "towers": towers.iter().map(tower_json).collect::<Vec<_>>() });
                output.answer(&json, || towers_text(&towers))
            }
            Self::Status { tower } => {
                let request = GetTowerStatusRequest { tower: tower.map(Vec::from).unwrap_or_default() };
                let status = session
                    .read(|link| {
                        let request = request.clone();
                        async move { TowersClient::new(link).get_status(request).await }
                    })
                    .await?;
                output.answer(&status_json(&status), || status_text(&status))
            }
        }
    }
}

async fn add(session: &Session, target: Target, mode: Mode, key: &KeyArg) -> Result<Tower, Fault> {
    let order = Order::new("tower add", key.key.as_deref())?;
    let mode = match mode {
        Mode::Compact => TowerMode::Compact,
        Mode::Blob => TowerMode::Blob,
    };
    let request = AddTowerRequest {
        idempotency_key: order.key.clone(),
        tower: target.node_id.to_vec(),
        address: target.address,
        mode: mode.into(),
    };
    let answer = session
        .change(&order, |link| {
            let request = request.clone();
            async move { TowersClient::new(link).add(request).await }
        })
        .await?;
    Ok(answer.tower.unwrap_or_default())
}

async fn remove(session: &Session, tower: [u8; 33], key: &KeyArg) -> Result<(), Fault> {
    let order = Order::new("tower remove", key.key.as_deref())?;
    let request = RemoveTowerRequest { idempotency_key: order.key.clone(), tower: tower.to_vec() };
    session
        .change(&order, |link| {
            let request = request.clone();
            async move { TowersClient::new(link).remove(request).await }
        })
        .await?;
    Ok(())
}

fn tower_json(tower: &Tower) -> Value {
    json!({
        "tower": hex::encode(&tower.tower),
        "address": tower.address,
        "mode": mode_text(tower),
        "client_key": hex::encode(&tower.client_key),
        "connected": tower.connected,
        "last_error": tower.last_error,
        "added_ms": tower.added_ms,
        "relied_on": tower.relied_on,
        "channels": tower.channels,
        "lag": tower.lag,
        "updates": tower.updates,
        "payload_bytes": tower.payload_bytes,
        "socket_bytes_sent": tower.socket_bytes_sent,
    })
}

fn status_json(status: &GetTowerStatusResponse) -> Value {
    let towers = status.towers.iter().map(|one| {
        let mut json = one.tower.as_ref().map(tower_json).unwrap_or_default();
        json["channel_states"] = one.channels.iter().map(channel_json).collect();
        json
    });
    json!({ "lag_max": status.lag_max, "towers": towers.collect::<Vec<_>>() })
}

fn channel_json(channel: &TowerChannel) -> Value {
    let receipt = channel.receipt.as_ref().map(|receipt| {
        json!({
            "next": receipt.next,
            "time_s": receipt.time_s,
            "signature": hex::encode(&receipt.signature),
            "group": words::hex_or_none(&receipt.group),
        })
    });
    json!({
        "channel_id": hex::encode(&channel.channel_id),
        "from": channel.from,
        "revoked": channel.revoked,
        "acknowledged": channel.acknowledged,
        "receipt": receipt,
        "refused": channel.refused,
        "tower_ahead": channel.tower_ahead,
        "resolved": channel.resolved,
    })
}

fn mode_text(tower: &Tower) -> &'static str {
    match tower.mode() {
        TowerMode::Unspecified | TowerMode::Compact => "compact",
        TowerMode::Blob => "blob",
    }
}

fn state_text(tower: &Tower) -> String {
    match (tower.connected, tower.relied_on) {
        (true, true) => "keeps watch".to_owned(),
        (true, false) => "connected, is being told".to_owned(),
        (false, true) => "away".to_owned(),
        (false, false) => "never reached".to_owned(),
    }
}

fn tower_text(tower: &Tower) -> String {
    facts([
        ("Tower", hex::encode(&tower.tower)),
        ("Address", tower.address.clone()),
        ("Mode", mode_text(tower).to_owned()),
        ("State", state_text(tower)),
        ("Channels", tower.channels.to_string()),
        ("Lag", lag_text(tower.lag)),
        ("Last error", words::printable(&tower.last_error)),
    ])
}

fn added_text(tower: &Tower) -> String {
    let what = if tower.mode() == TowerMode::Blob { "--blobs 100000" } else { "--channels 100" };
    let allow = format!("On the tower, once: millrace-tower allow {} {what}", hex::encode(&tower.client_key));
    match tower.connected {
        true => tower_text(tower),
        false => format!("{}\nThe node goes on trying.\n{allow}", tower_text(tower)),
    }
}

fn lag_text(lag: u64) -> String {
    match lag {
        0 => "none".to_owned(),
        1 => "1 commitment".to_owned(),
        more => format!("{more} commitments"),
    }
}

fn towers_text(towers: &[Tower]) -> String {
    let columns = [
        Column::Text("TOWER"),
        Column::Text("MODE"),
        Column::Text("STATE"),
        Column::Number("CHANNELS"),
        Column::Number("LAG"),
        Column::Text("ADDRESS"),
    ];
    let row = |tower: &Tower| {
        let lag = tower.lag.to_string();
        let mode = mode_text(tower).to_owned();
        vec![hex::encode(&tower.tower), mode, state_text(tower), tower.channels.to_string(), lag, tower.address.clone()]
    };
    list(&columns, towers.iter().map(row).collect(), "No watchtowers.")
}

fn status_text(status: &GetTowerStatusResponse) -> String {
    if status.towers.is_empty() {
        return "No watchtowers.".to_owned();
    }
    let bound = format!("No HTLC is added in a channel of which a tower lacks more than {}.", status.lag_max);
    let towers = status.towers.iter().map(one_text);
    towers.chain([bound]).collect::<Vec<_>>().join("\n\n")
}

fn one_text(status: &TowerStatus) -> String {
    let columns = [
        Column::Text("CHANNEL"),
        Column::Number("REVOKED"),
        Column::Number("ACKNOWLEDGED"),
        Column::Number("LAG"),
        Column::Text("RECEIPT"),
        Column::Text("NOTE"),
    ];
    let row = |channel: &TowerChannel| {
        let receipt = channel.receipt.as_ref();
        let receipt =
            receipt.map(|one| format!("up to {} at {}", one.next, words::time(one.time_s.saturating_mul(1_000))));
        vec![
            hex::encode(&channel.channel_id),
            channel.revoked.to_string(),
            channel.acknowledged.to_string(),
            channel.revoked.saturating_sub(channel.acknowledged).to_string(),
            receipt.unwrap_or_default(),
            note(channel),
        ]
    };
    let tower = status.tower.as_ref().map(tower_text).unwrap_or_default();
    let channels = list(&columns, status.channels.iter().map(row).collect(), "No channels.");
    format!("{tower}\n\n{channels}")
}

fn note(channel: &TowerChannel) -> String {
    if channel.tower_ahead {
        return "the tower knows more than this node: its data is old".to_owned();
    }
    if !channel.refused.is_empty() {
        return format!("refused: {}", words::printable(&channel.refused));
    }
    if channel.from > 0 {
        return format!("from commitment {} on", channel.from);
    }
    if channel.resolved { "over on chain".to_owned() } else { String::new() }
}
