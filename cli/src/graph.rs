//! `millrace graph`: the public graph of nodes and channels.

use clap::{Args, Subcommand};
use millrace_rpc::v1::graph_client::GraphClient;
use millrace_rpc::v1::{
    GetGraphChannelRequest, GetGraphNodeRequest, GraphChannel, GraphInfoRequest, GraphInfoResponse, GraphNode,
    GraphPolicy, PayRequest,
};
use serde_json::{Value, json};

use crate::amount::Amount;
use crate::estimate;
use crate::fault::Fault;
use crate::node::{features_json, features_text};
use crate::output::{Column, Output, facts, list};
use crate::session::Session;
use crate::words;

/// Commands about the public graph.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show the graph in numbers
    Info,
    /// Show a node and its channels
    Node {
        /// Who
        #[arg(value_parser = words::node_id)]
        node_id: [u8; 33],
        /// How many of its channels at most, from 1 to 1000
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show a channel and on what terms both sides forward
    ///
    /// Examples:
    ///   millrace graph channel 539268x845x1
    #[command(verbatim_doc_comment)]
    Channel {
        /// Which, as BLOCKxTRANSACTIONxOUTPUT
        #[arg(value_name = "SCID", value_parser = scid)]
        scid: u64,
    },
    /// Show the way that a payment to a node would take now, and what it costs
    ///
    /// Nothing is sent. What this node's own channels can bring is known exactly, what those of others can
    /// bring is guessed from what payments have taught: a payment may have to take another way. It goes in
    /// one part, as payments without an invoice do; `pay --dry-run` shows the parts that an invoice allows.
    ///
    /// Examples:
    ///   millrace graph route 02ab… 50000sat
    #[command(verbatim_doc_comment)]
    Route(RouteTo),
}

/// Where to, and within which limits.
#[derive(Args)]
pub(crate) struct RouteTo {
    /// To whom
    #[arg(value_parser = words::node_id)]
    node_id: [u8; 33],
    /// How much is to arrive
    amount: Amount,
    /// The most to pay for routing [default: the larger of 5sat and 1 % of the amount]
    #[arg(long, value_name = "AMOUNT")]
    fee_limit: Option<Amount>,
    /// Lock money for so many blocks at most [default: what the node's settings grant]
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u32).range(1..=2016))]
    max_blocks: Option<u32>,
}

impl RouteTo {
    fn request(&self) -> PayRequest {
        PayRequest {
            amount_msat: Some(self.amount.msat()),
            fee_limit_msat: self.fee_limit.map(Amount::msat),
            node_id: self.node_id.to_vec(),
            max_cltv_expiry_blocks: self.max_blocks.unwrap_or_default(),
            ..PayRequest::default()
        }
    }
}

fn scid(text: &str) -> Result<u64, String> {
    words::parse_scid(text).ok_or_else(|| "write it as BLOCKxTRANSACTIONxOUTPUT, like 539268x845x1".to_owned())
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::Info => {
                let info =
                    session.read(|link| async move { GraphClient::new(link).info(GraphInfoRequest {}).await }).await?;
                output.answer(&info_json(&info), || info_text(&info))
            }
            Self::Node { node_id, limit } => {
                let request = GetGraphNodeRequest { node_id: node_id.to_vec(), channels_max: limit };
                let answer = session
                    .read(|link| {
                        let request = request.clone();
                        async move { GraphClient::new(link).get_node(request).await }
                    })
                    .await?;
                let node = answer.node.unwrap_or_default();
                output.answer(&node_json(&node), || node_text(&node))
            }
            Self::Channel { scid } => {
                let answer = session
                    .read(
                        |link| async move { GraphClient::new(link).get_channel(GetGraphChannelRequest { scid }).await },
                    )
                    .await?;
                let channel = answer.channel.unwrap_or_default();
                output.answer(&channel_json(&channel), || channel_text(&channel))
            }
            Self::Route(to) => estimate::run(session, output, to.request()).await,
        }
    }
}

fn info_json(info: &GraphInfoResponse) -> Value {
    json!({
        "channels": info.channels,
        "policies": info.policies,
        "nodes": info.nodes,
        "capacity_sat": info.capacity_sat,
        "spent_channels": info.spent_channels,
        "last_sync_ms": info.last_sync_ms,
        "syncing_with": info.syncing_with.iter().map(hex::encode).collect::<Vec<_>>(),
        "listening_to": info.listening_to,
    })
}

fn info_text(info: &GraphInfoResponse) -> String {
    facts([
        ("Channels", info.channels.to_string()),
        ("Known policies", info.policies.to_string()),
        ("Nodes", info.nodes.to_string()),
        ("Capacity", sat(info.capacity_sat)),
        ("About to go", if info.spent_channels == 0 { String::new() } else { info.spent_channels.to_string() }),
        (
            "Last asked for",
            if info.last_sync_ms == 0 { "not since the start".to_owned() } else { words::time(info.last_sync_ms) },
        ),
        ("Asking", info.syncing_with.iter().map(hex::encode).collect::<Vec<_>>().join(", ")),
        ("Listening to", words::count(info.listening_to as usize, "peer")),
    ])
}

fn node_json(node: &GraphNode) -> Value {
    json!({
        "node_id": hex::encode(&node.node_id),
        "announced": node.announced,
        "alias": node.alias,
        "color": hex::encode(&node.color),
        "addresses": node.addresses,
        "features": features_json(&node.features),
        "announced_ms": node.announced_ms,
        "channel_count": node.channel_count,
        "channels": node.channels.iter().map(channel_json).collect::<Vec<_>>(),
    })
}

fn node_text(node: &GraphNode) -> String {
    let about = facts([
        ("Node id", hex::encode(&node.node_id)),
        ("Alias", node.alias.clone()),
        ("Colour", if node.color.is_empty() { String::new() } else { format!("#{}", hex::encode(&node.color)) }),
        ("Addresses", node.addresses.join(", ")),
        ("Announced", if node.announced { words::time(node.announced_ms) } else { "nothing but channels".to_owned() }),
        ("Features", features_text(&node.features)),
        ("Channels", node.channel_count.to_string()),
    ]);
    let columns = [Column::Text("CHANNEL"), Column::Text("WITH"), Column::Number("CAPACITY")];
    let other = |channel: &GraphChannel| {
        if channel.node_id_1 == node.node_id {
            hex::encode(&channel.node_id_2)
        } else {
            hex::encode(&channel.node_id_1)
        }
    };
    let row = |channel: &GraphChannel| vec![words::scid(channel.scid), other(channel), sat(channel.capacity_sat)];
    format!("{about}\n\n{}", list(&columns, node.channels.iter().map(row).collect(), "No channels."))
}

fn channel_json(channel: &GraphChannel) -> Value {
    json!({
        "scid": words::scid(channel.scid),
        "node_id_1": hex::encode(&channel.node_id_1),
        "node_id_2": hex::encode(&channel.node_id_2),
        "capacity_sat": channel.capacity_sat,
        "policy_1": channel.policy_1.as_ref().map(policy_json),
        "policy_2": channel.policy_2.as_ref().map(policy_json),
        "known_since_ms": channel.known_since_ms,
        "spent_height": channel.spent_height,
    })
}

fn policy_json(policy: &GraphPolicy) -> Value {
    json!({
        "disabled": policy.disabled,
        "fee_base_msat": policy.fee_base_msat,
        "fee_ppm": policy.fee_ppm,
        "cltv_delta": policy.cltv_delta,
        "htlc_minimum_msat": policy.htlc_minimum_msat,
        "htlc_maximum_msat": policy.htlc_maximum_msat,
        "updated_ms": policy.updated_ms,
    })
}

fn channel_text(channel: &GraphChannel) -> String {
    let spent = if channel.spent_height == 0 { String::new() } else { format!("at height {}", channel.spent_height) };
    let about = facts([
        ("Channel", words::scid(channel.scid)),
        ("Capacity", sat(channel.capacity_sat)),
        ("Known since", words::time(channel.known_since_ms)),
        ("Spent", spent),
    ]);
    let columns = [
        Column::Text("FORWARDED BY"),
        Column::Text("STATE"),
        Column::Number("BASE"),
        Column::Number("PPM"),
        Column::Number("CLTV"),
        Column::Number("MIN"),
        Column::Number("MAX"),
    ];
    let rows = [(&channel.node_id_1, &channel.policy_1), (&channel.node_id_2, &channel.policy_2)];
    let row = |(node, policy): (&Vec<u8>, &Option<GraphPolicy>)| match policy {
        None => {
            vec![hex::encode(node), "unknown".to_owned()].into_iter().chain((0..5).map(|_| String::new())).collect()
        }
        Some(policy) => vec![
            hex::encode(node),
            if policy.disabled { "disabled" } else { "enabled" }.to_owned(),
            msat(policy.fee_base_msat),
            policy.fee_ppm.to_string(),
            policy.cltv_delta.to_string(),
            msat(policy.htlc_minimum_msat),
            msat(policy.htlc_maximum_msat),
        ],
    };
    format!("{about}\n\n{}", list(&columns, rows.into_iter().map(row).collect(), ""))
}

fn sat(sat: u64) -> String {
    msat(sat.saturating_mul(1_000))
}

fn msat(msat: u64) -> String {
    Amount::from_msat(msat).to_string()
}
