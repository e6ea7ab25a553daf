//! `millrace channel`: opening, closing and looking at payment channels.
//!
//! How a channel is shown stands in `channel::show`.

mod policy;
mod show;

use std::str::FromStr;

use clap::{Args, Subcommand};
use millrace_rpc::v1::channels_client::ChannelsClient;
use millrace_rpc::v1::{
    Channel, CloseChannelProgress, CloseChannelRequest, GetChannelRequest, ListChannelsRequest, OpenChannelProgress,
    OpenChannelRequest, OutPoint, Page, TakeCommitmentRequest, TakenHtlc, close_channel_progress, get_channel_request,
    open_channel_progress,
};
use serde_json::{Value, json};

use crate::amount::Amount;
use crate::args::{FeeArgs, KeyArg, PageArgs};
use crate::fault::Fault;
use crate::output::Output;
use crate::peer::{self, Target};
use crate::progress::Progress;
use crate::session::{Order, Session, Step};
use crate::wallet::{outpoint, sat};
use crate::words;

pub(crate) use show::close_kind;

/// Commands about channels.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Open a channel with a peer
    ///
    /// Tells the progress until the channel can be used. Whoever stops the command does not stop the opening.
    ///
    /// Examples:
    ///   millrace channel open 02ab… 0.01btc
    ///   millrace channel open 02ab…@203.0.113.7:9735 1000000sat --push 50000sat
    ///   millrace channel open 02ab… 0.01btc --public
    ///   millrace channel open 02ab… 0.01btc --target 6 --json
    #[command(verbatim_doc_comment)]
    Open(Box<Open>),
    /// Close a channel
    ///
    /// By agreement with the peer, or with --force by our own commitment: that works without the peer, costs
    /// more, and our coins stay locked for a while.
    ///
    /// Examples:
    ///   millrace channel close 539268x845x1
    ///   millrace channel close 8f2c11 --address bcrt1q… --feerate 3
    ///   millrace channel close 8f2c11 --force
    #[command(verbatim_doc_comment)]
    Close(Close),
    /// List channels, the newest first
    List {
        /// Closed ones too
        #[arg(long)]
        all: bool,
        /// Only those with this peer
        #[arg(long, value_name = "NODE_ID", value_parser = words::node_id)]
        peer: Option<[u8; 33]>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show everything about a channel
    ///
    /// Examples:
    ///   millrace channel show 8f2c11
    ///   millrace channel show 539268x845x1 --json
    #[command(verbatim_doc_comment)]
    Show {
        /// Its id or the id's beginning, its short channel id, or its funding output
        #[arg(value_name = "CHANNEL")]
        channel: Reference,
    },
    /// On regtest only: print our present commitment, complete, in hex
    ///
    /// Nothing happens to the channel by it. Whoever publishes it after a later payment cheats, and loses everything in
    /// the channel: for demonstrations of exactly that.
    ///
    /// Examples:
    ///   millrace channel take-commitment 8f2c11
    ///   bitcoin-cli sendrawtransaction $(millrace channel take-commitment 8f2c11)
    #[command(verbatim_doc_comment)]
    TakeCommitment {
        /// Its id or the id's beginning, its short channel id, or its funding output
        #[arg(value_name = "CHANNEL")]
        channel: Reference,
    },
    /// On what terms payments of others are forwarded
    #[command(subcommand)]
    Policy(policy::Command),
}

/// Arguments of `channel open`.
#[derive(Args)]
pub(crate) struct Open {
    /// The peer; with an address, it is connected first
    #[arg(value_name = "NODE_ID[@HOST:PORT]")]
    peer: PeerArg,
    /// The channel's whole size, in whole satoshi
    #[arg(value_name = "AMOUNT", value_parser = parse_sat)]
    capacity: u64,
    /// Give the peer this much at the start
    #[arg(long, value_name = "AMOUNT")]
    push: Option<Amount>,
    /// Use it before it is confirmed; the peer must agree
    #[arg(long)]
    zero_conf: bool,
    /// Tell the network of it, so that others may route through it [default: as in the daemon's settings]
    #[arg(long)]
    public: bool,
    /// Do not tell the network of it, whatever the settings say
    #[arg(long, conflicts_with = "public")]
    private: bool,
    /// Blocks that the peer waits for its coins if it closes by itself
    #[arg(long, value_name = "BLOCKS")]
    to_self_delay: Option<u32>,
    /// Smallest payment part that we accept
    #[arg(long, value_name = "AMOUNT")]
    htlc_minimum: Option<Amount>,
    /// Most that we let be in flight towards us
    #[arg(long, value_name = "AMOUNT")]
    max_in_flight: Option<Amount>,
    /// Address that a close by agreement must pay
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    close_address: String,
    #[command(flatten)]
    fee: FeeArgs,
    #[command(flatten)]
    key: KeyArg,
}

/// Arguments of `channel close`.
#[derive(Args)]
pub(crate) struct Close {
    /// Its id or the id's beginning, its short channel id, or its funding output
    #[arg(value_name = "CHANNEL")]
    channel: Reference,
    /// Do not ask the peer: broadcast our commitment
    #[arg(long, conflicts_with_all = ["target", "feerate", "address"])]
    force: bool,
    /// Where our share goes [default: a fresh address of the wallet]
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    address: String,
    #[command(flatten)]
    fee: FeeArgs,
    #[command(flatten)]
    key: KeyArg,
}

fn parse_sat(text: &str) -> Result<u64, crate::amount::AmountError> {
    text.parse::<Amount>()?.whole_sat()
}

/// A peer, perhaps with its address.
#[derive(Clone)]
struct PeerArg {
    node_id: [u8; 33],
    target: Option<Target>,
}

impl FromStr for PeerArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            let target: Target = text.parse()?;
            return Ok(Self { node_id: target.node_id, target: Some(target) });
        }
        Ok(Self { node_id: words::node_id(text)?, target: None })
    }
}

/// How a person names a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// By its id.
    Id([u8; 32]),
    /// By how its id begins, in lower-case hex.
    Prefix(String),
    /// By its short channel id or alias.
    Scid(u64),
    /// By its funding output.
    Funding { txid: [u8; 32], vout: u32 },
}

/// Fewer digits of an id would soon be ambiguous.
const PREFIX_DIGITS_MIN: usize = 4;

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(number) = words::parse_scid(text) {
            return Ok(Self::Scid(number));
        }
        if let Some((txid, vout)) = text.split_once(':') {
            let txid = words::id32(txid)?;
            let vout = vout.parse().map_err(|_| format!("`{vout}` is no output index"))?;
            return Ok(Self::Funding { txid, vout });
        }
        let hex = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        match text.len() {
            64 => Ok(Self::Id(words::id32(text)?)),
            PREFIX_DIGITS_MIN..64 if hex => Ok(Self::Prefix(text.to_lowercase())),
            _ => Err(format!(
                "a channel is named by its id (or its first {PREFIX_DIGITS_MIN} digits or more), a short \
                 channel id like 539268x845x1, or its funding output TXID:INDEX"
            )),
        }
    }
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::Open(open) => open.run(session, output).await,
            Self::Close(close) => close.run(session, output).await,
            Self::List { all, peer, page } => list(session, output, all, peer, &page).await,
            Self::Show { channel } => {
                let channel = get(session, channel).await?;
                output.answer(&show::json(&channel), || show::text(&channel))
            }
            Self::TakeCommitment { channel } => take_commitment(session, output, channel).await,
            Self::Policy(command) => command.run(session, output).await,
        }
    }
}

impl Open {
    async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        let order = Order::new("channel open", self.key.key.as_deref())?;
        let mut progress = Progress::begin(output, "Opening a channel");
        if let Some(target) = self.peer.target.clone() {
            progress.say(&format!("Connecting to {}", target.address));
            peer::connect(session, target, None).await?;
        }
        let request = self.request(&order);
        let ready = session
            .follow(
                &order,
                |link| {
                    let request = request.clone();
                    async move { ChannelsClient::new(link).open(request).await }
                },
                |message| {
                    let Some(step) = open_step(&message) else {
                        return Ok(Step::Known);
                    };
                    let last = match message.stage {
                        Some(open_channel_progress::Stage::Ready(channel)) => Some(channel),
                        _ => None,
                    };
                    progress.tell(output, step, last)
                },
            )
            .await?;
        progress.end();
        if output.is_json() {
            return Ok(());
        }
        output.line(&format!("The channel is ready.\n\n{}", show::text(&ready)))
    }

    fn request(&self, order: &Order) -> OpenChannelRequest {
        OpenChannelRequest {
            idempotency_key: order.key.clone(),
            node_id: self.peer.node_id.to_vec(),
            capacity_sat: self.capacity,
            push_msat: self.push.map_or(0, Amount::msat),
            fee: self.fee.choice(),
            zero_conf: self.zero_conf,
            public: (self.public || self.private).then_some(self.public),
            to_self_delay_blocks: self.to_self_delay,
            htlc_minimum_msat: self.htlc_minimum.map(Amount::msat),
            max_in_flight_msat: self.max_in_flight.map(Amount::msat),
            close_address: self.close_address.clone(),
        }
    }
}

impl Close {
    async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        let order = Order::new("channel close", self.key.key.as_deref())?;
        let channel_id = match self.channel {
            Reference::Id(id) => id.to_vec(),
            other => get(session, other).await?.channel_id,
        };
        let mut progress = Progress::begin(output, "Closing the channel");
        let request = CloseChannelRequest {
            idempotency_key: order.key.clone(),
            channel_id,
            force: self.force,
            fee: self.fee.choice(),
            address: self.address,
        };
        let closed = session
            .follow(
                &order,
                |link| {
                    let request = request.clone();
                    async move { ChannelsClient::new(link).close(request).await }
                },
                |message| {
                    let Some(step) = close_step(&message) else {
                        return Ok(Step::Known);
                    };
                    let last = match message.stage {
                        Some(close_channel_progress::Stage::Closed(channel)) => Some(channel),
                        _ => None,
                    };
                    progress.tell(output, step, last)
                },
            )
            .await?;
        progress.end();
        if output.is_json() {
            return Ok(());
        }
        output.line(&format!("The channel is closed.\n\n{}", show::text(&closed)))
    }
}

/// A step of an opening for a program and for a person. None: a step that this version does not know.
fn open_step(message: &OpenChannelProgress) -> Option<(Value, String)> {
    use open_channel_progress::Stage;
    let (name, mut json, text) = match message.stage.as_ref()? {
        Stage::Negotiated(terms) => (
            "negotiated",
            json!({
                "minimum_depth": terms.minimum_depth,
                "local_reserve_sat": terms.local_reserve_sat,
                "remote_reserve_sat": terms.remote_reserve_sat,
            }),
            "Agreed on the terms".to_owned(),
        ),
        Stage::FundingBroadcast(funding) => {
            let point = outpoint(funding.funding_outpoint.as_ref()).unwrap_or_default();
            (
                "funding_broadcast",
                json!({ "funding_outpoint": point, "fee_sat": funding.fee_sat }),
                format!("Funding {point} is on its way, fee {}", sat(funding.fee_sat)),
            )
        }
        Stage::Confirmations(depth) => {
            ("confirmations", confirmations_json(depth), format!("Confirmed {} of {} times", depth.have, depth.need))
        }
        Stage::Ready(channel) => ("ready", json!({ "channel": show::json(channel) }), "Ready".to_owned()),
    };
    json["step"] = json!(name);
    json["channel_id"] = json!(hex::encode(&message.channel_id));
    json["temporary"] = json!(message.temporary);
    Some((json, text))
}

/// A step of a closing, likewise.
fn close_step(message: &CloseChannelProgress) -> Option<(Value, String)> {
    use close_channel_progress::Stage;
    let (name, mut json, text) = match message.stage.as_ref()? {
        Stage::ShutdownStarted(shutdown) => (
            "shutdown_started",
            json!({ "htlcs_pending": shutdown.htlcs_pending }),
            match shutdown.htlcs_pending {
                0 => "Agreeing on the closing fee".to_owned(),
                pending => format!("Waiting for {pending} payments in flight"),
            },
        ),
        Stage::Broadcast(broadcast) => {
            let txid = hex::encode(&broadcast.txid);
            (
                "broadcast",
                json!({
                    "txid": txid,
                    "kind": close_kind(broadcast.kind()),
                    "fee_sat": broadcast.fee_sat,
                    "local_sat": broadcast.local_sat,
                }),
                format!("Transaction {txid} is on its way, fee {}", sat(broadcast.fee_sat)),
            )
        }
        Stage::Confirmations(depth) => {
            ("confirmations", confirmations_json(depth), format!("Confirmed {} of {} times", depth.have, depth.need))
        }
        Stage::Resolving(on_chain) => (
            "resolving",
            show::on_chain_json(on_chain),
            format!("{} still to come back, by block {}", sat(on_chain.pending_sat), on_chain.resolved_height),
        ),
        Stage::Closed(channel) => ("closed", json!({ "channel": show::json(channel) }), "Closed".to_owned()),
    };
    json["step"] = json!(name);
    json["channel_id"] = json!(hex::encode(&message.channel_id));
    Some((json, text))
}

fn confirmations_json(depth: &millrace_rpc::v1::Confirmations) -> Value {
    json!({ "txid": hex::encode(&depth.txid), "have": depth.have, "need": depth.need })
}

async fn take_commitment(session: &Session, output: &mut Output, channel: Reference) -> Result<(), Fault> {
    let channel_id = get(session, channel).await?.channel_id;
    let request = TakeCommitmentRequest { channel_id };
    let answer = session.read(|link| async move { ChannelsClient::new(link).take_commitment(request).await }).await?;
    let transaction = words::hex_or_none(&answer.transaction).unwrap_or_default();
    let htlc = |htlc: &TakenHtlc| {
        json!({
            "transaction": hex::encode(&htlc.transaction),
            "payment_hash": hex::encode(&htlc.payment_hash),
            "is_success": htlc.is_success,
        })
    };
    let htlcs = answer.htlcs.iter().map(htlc).collect::<Vec<_>>();
    let number = answer.commitment_number;
    let shown = json!({ "transaction": transaction, "commitment_number": number, "htlcs": htlcs });
    output.answer(&shown, || transaction.clone())
}

async fn list(
    session: &Session,
    output: &mut Output,
    all: bool,
    peer: Option<[u8; 33]>,
    page: &PageArgs,
) -> Result<(), Fault> {
    let request = ListChannelsRequest {
        page: page.page(),
        node_id: peer.map(Vec::from).unwrap_or_default(),
        include_closed: all,
    };
    let answer = session.read(|link| async move { ChannelsClient::new(link).list(request).await }).await?;
    let channels: Vec<Value> = answer.channels.iter().map(show::json).collect();
    let json = json!({ "channels": channels, "next_cursor": answer.next_cursor });
    output.answer(&json, || crate::output::page(show::table(&answer.channels), &answer.next_cursor))
}

/// One channel, however it was named.
async fn get(session: &Session, reference: Reference) -> Result<Channel, Fault> {
    use get_channel_request::Channel as By;
    let by = match reference {
        Reference::Id(id) => By::ChannelId(id.to_vec()),
        Reference::Scid(number) => By::ShortChannelId(number),
        Reference::Funding { txid, vout } => By::FundingOutpoint(OutPoint { txid: txid.to_vec(), vout }),
        Reference::Prefix(prefix) => By::ChannelId(complete(session, &prefix).await?),
    };
    let request = GetChannelRequest { channel: Some(by) };
    let answer = session.read(|link| async move { ChannelsClient::new(link).get(request).await }).await?;
    Ok(answer.channel.unwrap_or_default())
}

/// The only channel id that begins like this.
async fn complete(session: &Session, prefix: &str) -> Result<Vec<u8>, Fault> {
    const PAGE_SIZE: u32 = 1000;
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut cursor = String::new();
    loop {
        let request = ListChannelsRequest {
            page: Some(Page { size: PAGE_SIZE, cursor }),
            node_id: Vec::new(),
            include_closed: true,
        };
        let answer = session.read(|link| async move { ChannelsClient::new(link).list(request).await }).await?;
        let ids = answer.channels.into_iter().map(|channel| channel.channel_id);
        found.extend(ids.filter(|id| hex::encode(id).starts_with(prefix)));
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Fault::Usage(format!("no channel id begins with {prefix}"))),
        several => Err(Fault::Usage(format!("{} channel ids begin with {prefix}: write more of it", several.len()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_of_channels() {
        let id = "ab".repeat(32);
        assert_eq!(id.parse(), Ok(Reference::Id([0xab; 32])));
        assert_eq!("AB12".parse(), Ok(Reference::Prefix("ab12".to_owned())));
        assert_eq!("1x2x3".parse(), Ok(Reference::Scid(1 << 40 | 2 << 16 | 3)));
        let funding = Reference::Funding { txid: [0xab; 32], vout: 7 };
        assert_eq!(format!("{id}:7").parse(), Ok(funding));
        for text in ["", "ab1", "xyz1", "1x2", "ab:1", &format!("{id}:-1"), &format!("{id}00")] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
