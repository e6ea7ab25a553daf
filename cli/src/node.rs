//! `millrace node`: who the node is, how it stands, and stopping it.

use clap::{Args, Subcommand};
use millrace_rpc::v1::node_client::NodeClient;
use millrace_rpc::v1::{
    AnnounceRequest, AnnounceResponse, ChannelCounts, Feature, GetInfoRequest, GetInfoResponse, GetStatusRequest,
    GetStatusResponse, NodeAddresses, NodeFace, StopRequest,
};
use serde_json::{Value, json};

use crate::args::KeyArg;
use crate::fault::Fault;
use crate::output::{Output, facts};
use crate::session::{Order, Session};
use crate::words;

/// Commands about the node itself.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show who the node is and how it stands
    ///
    /// Examples:
    ///   millrace node info
    ///   millrace node info --json | jq -r .node_id
    #[command(verbatim_doc_comment)]
    Info,
    /// Show how far the node is with starting
    Status,
    /// Tell the network of the node: its name, colour and addresses
    ///
    /// What is not given stays as it is; what is given wins over the settings, also after a restart. The network listens
    /// to nodes that have an announced channel (millrace channel open --public).
    ///
    /// Examples:
    ///   millrace node announce --alias "Corner Shop" --color '#3399ff'
    ///   millrace node announce --address 203.0.113.7:9735 --address '[2001:db8::7]:9735'
    #[command(verbatim_doc_comment)]
    Announce(Announce),
    /// Shut the node down in good order
    ///
    /// What is under way is made durable first; nothing is lost.
    Stop {
        #[command(flatten)]
        key: KeyArg,
    },
}

/// Arguments of `node announce`.
#[derive(Args)]
pub(crate) struct Announce {
    /// The node's name, at most 32 bytes
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// Its colour on maps
    #[arg(long, value_name = "#RRGGBB")]
    color: Option<String>,
    /// Where it may be called; give it once for each address
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// Tell no address any more
    #[arg(long, conflicts_with = "addresses")]
    no_address: bool,
    #[command(flatten)]
    key: KeyArg,
}

impl Announce {
    async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        let order = Order::new("node announce", self.key.key.as_deref())?;
        let is_given = self.no_address || !self.addresses.is_empty();
        let request = AnnounceRequest {
            idempotency_key: order.key.clone(),
            alias: self.alias,
            color: self.color,
            addresses: is_given.then_some(NodeAddresses { addresses: self.addresses }),
        };
        let answer = session
            .change(&order, |link| {
                let request = request.clone();
                async move { NodeClient::new(link).announce(request).await }
            })
            .await?;
        output.answer(&announced_json(&answer), || announced_text(&answer))
    }
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::Info => {
                let info =
                    session.read(|link| async move { NodeClient::new(link).get_info(GetInfoRequest {}).await }).await?;
                output.answer(&info_json(&info), || info_text(&info))
            }
            Self::Status => {
                let status = session
                    .read(|link| async move { NodeClient::new(link).get_status(GetStatusRequest {}).await })
                    .await?;
                output.answer(&status_json(&status), || status_text(&status))
            }
            Self::Announce(announce) => announce.run(session, output).await,
            Self::Stop { key } => {
                let order = Order::new("node stop", key.key.as_deref())?;
                let request = StopRequest { idempotency_key: order.key.clone() };
                session
                    .change(&order, |link| {
                        let request = request.clone();
                        async move { NodeClient::new(link).stop(request).await }
                    })
                    .await?;
                output.answer(&json!({ "stopping": true }), || "The node is stopping.".to_owned())
            }
        }
    }
}

/// Feature bits for a program.
pub(crate) fn features_json(features: &[Feature]) -> Value {
    let one = |feature: &Feature| json!({ "bit": feature.bit, "name": feature.name, "required": feature.required });
    features.iter().map(one).collect()
}

/// Feature bits for a person.
pub(crate) fn features_text(features: &[Feature]) -> String {
    let one = |feature: &Feature| match feature.name.as_str() {
        "" => format!("bit {}", feature.bit),
        name => name.to_owned(),
    };
    features.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn sync_state(info: &GetInfoResponse) -> String {
    words::value(info.sync_state().as_str_name(), "SYNC_STATE_")
}

fn info_json(info: &GetInfoResponse) -> Value {
    let channels = info.channels.unwrap_or_default();
    json!({
        "node_id": hex::encode(&info.node_id),
        "alias": info.alias,
        "network": info.network,
        "version": info.version,
        "tip_height": info.tip_height,
        "tip_hash": hex::encode(&info.tip_hash),
        "sync_state": sync_state(info),
        "chain_height": info.chain_height,
        "channels": {
            "opening": channels.opening,
            "usable": channels.usable,
            "offline": channels.offline,
            "closing": channels.closing,
            "closed": channels.closed,
        },
        "peers_connected": info.peers_connected,
        "uptime_s": info.uptime_s,
        "features": features_json(&info.features),
        "listen_addresses": info.listen_addresses,
        "face": face_json(&info.face.clone().unwrap_or_default()),
        "announced_s": info.announced_s,
    })
}

fn face_json(face: &NodeFace) -> Value {
    json!({ "alias": face.alias, "color": face.color, "addresses": face.addresses })
}

fn announced_json(answer: &AnnounceResponse) -> Value {
    let face = face_json(&answer.face.clone().unwrap_or_default());
    json!({ "face": face, "has_announced_channel": answer.has_announced_channel })
}

fn announced_text(answer: &AnnounceResponse) -> String {
    let face = answer.face.clone().unwrap_or_default();
    let when = match answer.has_announced_channel {
        true => "now",
        false => "once the node has an announced channel",
    };
    facts([
        ("Alias", face.alias),
        ("Colour", face.color),
        ("Addresses", face.addresses.join(", ")),
        ("Announced", when.to_owned()),
    ])
}

fn info_text(info: &GetInfoResponse) -> String {
    let face = info.face.clone().unwrap_or_default();
    let announced = match info.announced_s {
        0 => String::new(),
        at => words::time(u64::from(at) * 1_000),
    };
    facts([
        ("Node id", hex::encode(&info.node_id)),
        ("Alias", info.alias.clone()),
        ("Network", info.network.clone()),
        ("Version", info.version.clone()),
        ("Chain", chain_text(info)),
        ("Channels", counts_text(&info.channels.unwrap_or_default())),
        ("Peers", format!("{} connected", info.peers_connected)),
        ("Up for", words::duration(info.uptime_s)),
        ("Listens on", info.listen_addresses.join(", ")),
        ("Colour", face.color),
        ("Announces", face.addresses.join(", ")),
        ("Announced", announced),
        ("Features", features_text(&info.features)),
    ])
}

fn chain_text(info: &GetInfoResponse) -> String {
    let state = sync_state(info).replace('_', " ");
    if info.chain_height > info.tip_height {
        format!("height {} of {}, {state}", info.tip_height, info.chain_height)
    } else {
        format!("height {}, {state}", info.tip_height)
    }
}

fn counts_text(counts: &ChannelCounts) -> String {
    format!(
        "{} usable, {} offline, {} opening, {} closing, {} closed",
        counts.usable, counts.offline, counts.opening, counts.closing, counts.closed
    )
}

fn stage(status: &GetStatusResponse) -> String {
    words::value(status.stage().as_str_name(), "START_STAGE_")
}

fn status_json(status: &GetStatusResponse) -> Value {
    json!({
        "stage": stage(status),
        "done": status.done,
        "total": status.total,
        "message": status.message,
        "network": status.network,
    })
}

fn status_text(status: &GetStatusResponse) -> String {
    let amount = match (status.done, status.total) {
        (0, 0) => String::new(),
        (done, 0) => done.to_string(),
        (done, total) => format!("{done} of {total}"),
    };
    facts([
        ("Stage", stage(status)),
        ("Done", amount),
        ("Says", status.message.clone()),
        ("Network", status.network.clone()),
    ])
}
