//! What is said to the ldk-node driver and what it says back: one JSON object a line.
//!
//! `regtest/ldk`, which is built apart from the workspace, compiles this same file, so that both ends agree. Keys, hashes
//! and ids are lower-case hexadecimal; amounts name their unit.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A command, with the number under which its answer comes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Any number that is not in use.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// What can be asked for. Everything but `Start` needs a started node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Builds the node and starts it. Once, and first.
    Start(Box<Start>),
    /// Its public key.
    NodeId,
    /// A fresh address of its wallet.
    NewAddress,
    /// Asks bitcoind for new blocks now, instead of within two seconds.
    Sync,
    /// The height of the last block that its channels know.
    Height,
    /// What it owns.
    Balances,
    /// Connects, and calls that peer again whenever it is away.
    Connect {
        /// Its public key.
        node_id: String,
        /// `HOST:PORT`.
        address: String,
    },
    /// Disconnects, and forgets the peer's address.
    Disconnect {
        /// Its public key.
        node_id: String,
    },
    /// The peers it is connected with.
    Peers,
    /// Opens a channel that is not announced. The answer comes before anything is negotiated.
    OpenChannel {
        /// The peer's public key.
        node_id: String,
        /// `HOST:PORT`, called if it is not connected.
        address: String,
        /// The channel's size.
        amount_sat: u64,
        /// A gift to the peer.
        push_msat: u64,
    },
    /// Channels that are not closed.
    Channels,
    /// Asks the peer to close together.
    CloseChannel {
        /// LDK's own number for it, see [`Channel::user_channel_id`].
        user_channel_id: String,
        /// The peer's public key.
        node_id: String,
    },
    /// Broadcasts the latest commitment.
    ForceClose {
        /// LDK's own number for it, see [`Channel::user_channel_id`].
        user_channel_id: String,
        /// The peer's public key.
        node_id: String,
    },
    /// Makes an invoice.
    Receive {
        /// Its amount; `None` leaves it to the payer.
        amount_msat: Option<u64>,
        /// What it is for.
        description: String,
        /// How long it can be paid, in seconds.
        expiry_s: u32,
    },
    /// Makes an invoice whose preimage the node does not know: a payment of it is held until it is claimed or failed.
    ReceiveHeld {
        /// Its payment hash.
        payment_hash: String,
        /// Its amount.
        amount_msat: u64,
        /// What it is for.
        description: String,
        /// How long it can be paid, in seconds.
        expiry_s: u32,
    },
    /// Claims a held payment, over the channel or on the chain.
    ClaimHeld {
        /// The payment hash's preimage.
        preimage: String,
        /// Its payment hash.
        payment_hash: String,
        /// What must have arrived.
        amount_msat: u64,
    },
    /// Fails a held payment.
    FailHeld {
        /// Its payment hash.
        payment_hash: String,
    },
    /// Pays an invoice. The answer comes before anything is paid: the outcome is an event, and in [`Payment::status`].
    Pay {
        /// The invoice.
        bolt11: String,
        /// The amount, if the invoice leaves it open.
        amount_msat: Option<u64>,
    },
    /// Every payment, made and received.
    Payments,
    /// One payment.
    Payment {
        /// Its id.
        payment_id: String,
    },
    /// Stops the node in good order; then the process ends.
    Stop,
    /// Opens a channel that is announced. The answer comes before anything is negotiated.
    OpenAnnouncedChannel {
        /// The peer's public key.
        node_id: String,
        /// `HOST:PORT`, called if it is not connected.
        address: String,
        /// The channel's size.
        amount_sat: u64,
        /// A gift to the peer.
        push_msat: u64,
    },
    /// Asks for other fees and another delay for forwarding over a channel; what is absent becomes ldk-node's default.
    SetPolicy {
        /// LDK's own number for it, see [`Channel::user_channel_id`].
        user_channel_id: String,
        /// The peer's public key.
        node_id: String,
        /// For each payment.
        fee_base_msat: Option<u32>,
        /// Of the amount, in millionths.
        fee_ppm: Option<u32>,
        /// Blocks between the two HTLCs' expiries.
        cltv_delta: Option<u16>,
    },
    /// How much of the public graph it knows.
    Graph,
}

/// Where the node keeps its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// One SQLite file: ldk-node's default.
    Sqlite,
    /// A file per datum: the faster of the two.
    Fs,
}

/// The least important line that the log holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Every message and step.
    Trace,
    /// And all gossip.
    Gossip,
    /// ldk-node's default.
    Debug,
    /// Facts.
    Info,
    /// Doubts.
    Warn,
    /// Failures.
    Error,
}

/// How to start a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Its folder; made if it is not there.
    pub data_dir: PathBuf,
    /// The host of bitcoind's RPC.
    pub rpc_host: String,
    /// The port of bitcoind's RPC.
    pub rpc_port: u16,
    /// The login.
    pub rpc_user: String,
    /// The login's password.
    pub rpc_password: String,
    /// `HOST:PORT` to listen on for peers.
    pub listen: String,
    /// Where it keeps its data. The same at every start.
    pub store: Store,
    /// What its log holds.
    pub log_level: LogLevel,
    /// What it calls itself. ldk-node takes no part in announced channels without one.
    #[serde(default)]
    pub alias: Option<String>,
    /// It passes HTLCs on into channels that are not announced. ldk-node does so only as an LSP.
    #[serde(default)]
    pub forwards_to_private: bool,
}

/// A line that the driver writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The answer to a command. Answers come in the order in which they are ready.
    Answer {
        /// The command's number.
        id: u64,
        /// What came of it.
        outcome: Outcome,
    },
    /// Something that happened.
    Event(Event),
}

/// What came of a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Done(Reply),
    /// Not done, and why, in words.
    Refused(String),
}

/// What a command answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing but that it was done.
    Nothing,
    /// Of `NodeId`.
    NodeId(String),
    /// Of `NewAddress`.
    Address(String),
    /// Of `Height`.
    Height(u32),
    /// Of `Balances`.
    Balances(Balances),
    /// Of `Peers`: public keys.
    Peers(Vec<String>),
    /// Of `OpenChannel` and `OpenAnnouncedChannel`: LDK's own number for it.
    UserChannelId(String),
    /// Of `Channels`.
    Channels(Vec<Channel>),
    /// Of `Receive` and `ReceiveHeld`.
    Invoice(String),
    /// Of `Pay`.
    PaymentId(String),
    /// Of `Payments`.
    Payments(Vec<Payment>),
    /// Of `Payment`; `None` if there is none with this id.
    Payment(Option<Payment>),
    /// Of `Graph`.
    Graph(Graph),
}

/// How much of the public graph a node knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Graph {
    /// Channels.
    pub channels: usize,
    /// Of these, those whose both directions have a `channel_update`.
    pub usable_channels: usize,
    /// Nodes.
    pub nodes: usize,
}

/// What a node owns.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Balances {
    /// Coins of the wallet, unconfirmed ones included.
    pub onchain_sat: u64,
    /// Of these, what it would spend now.
    pub spendable_sat: u64,
    /// Kept back for anchors.
    pub anchor_reserve_sat: u64,
    /// Claims on channels, open and closing, as LDK counts them.
    pub lightning_sat: u64,
    /// The claims one by one, as LDK prints them.
    pub claims: Vec<String>,
    /// Outputs of closed channels that are on their way to the wallet, as LDK prints them. LDK watches one for a month
    /// after its sweep is in a block; by then the wallet has it, and it is not told here.
    pub sweeps: Vec<String>,
}

/// A channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Channel {
    /// BOLT 2's id.
    pub channel_id: String,
    /// LDK's own number for it: what commands name it by.
    pub user_channel_id: String,
    /// The peer's public key.
    pub node_id: String,
    /// `TXID:VOUT` of the funding, once it is known.
    pub funding: Option<String>,
    /// Its size.
    pub value_sat: u64,
    /// What the node can send, its reserve (and its anchors if it is the funder) already taken off.
    pub outbound_capacity_msat: u64,
    /// What the peer can send, counted in the same way.
    pub inbound_capacity_msat: u64,
    /// The node's reserve.
    pub reserve_sat: u64,
    /// The peer's reserve.
    pub remote_reserve_sat: u64,
    /// The largest HTLC it would send now.
    pub next_outbound_htlc_limit_msat: u64,
    /// Feerate of the commitment.
    pub feerate_sat_per_kw: u32,
    /// Whether the node is the funder.
    pub is_funder: bool,
    /// Both `channel_ready` have been exchanged.
    pub is_ready: bool,
    /// And the peer is there.
    pub is_usable: bool,
    /// Blocks on the funding, once confirmed.
    pub confirmations: Option<u32>,
    /// Blocks that the node waits for its own output after closing by itself.
    pub to_self_delay_blocks: Option<u16>,
    /// The network is to be told of it.
    pub is_public: bool,
    /// What the peer's `channel_update` asks for each HTLC, and in millionths of it, once it has come.
    pub remote_fee: Option<(u32, u32)>,
}

/// Which way a payment goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To this node.
    Inbound,
    /// From this node.
    Outbound,
}

/// Where a payment stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentStatus {
    /// Under way, or an invoice that nobody has paid.
    Pending,
    /// Paid.
    Succeeded,
    /// Failed for good.
    Failed,
}

/// A payment over channels.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Payment {
    /// Its id: with BOLT 11, the payment hash.
    pub payment_id: String,
    /// Which way.
    pub direction: Direction,
    /// Where it stands.
    pub status: PaymentStatus,
    /// What arrives, if it is known.
    pub amount_msat: Option<u64>,
    /// What it cost beyond that, once known.
    pub fee_msat: Option<u64>,
}

/// Something that happened at a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A payment of its own is complete.
    PaymentSuccessful {
        /// Which.
        payment_id: String,
        /// What it cost beyond the amount.
        fee_msat: u64,
    },
    /// A payment of its own has failed.
    PaymentFailed {
        /// Which.
        payment_id: String,
        /// Why, as LDK prints it.
        reason: String,
    },
    /// An invoice of its own was paid.
    PaymentReceived {
        /// Which.
        payment_id: String,
        /// What arrived.
        amount_msat: u64,
    },
    /// A payment has arrived for an invoice whose preimage the node does not know.
    PaymentHeld {
        /// Which.
        payment_id: String,
        /// What arrived.
        amount_msat: u64,
    },
    /// A channel's funding is known.
    ChannelPending {
        /// BOLT 2's id.
        channel_id: String,
        /// `TXID:VOUT`.
        funding: String,
    },
    /// A channel can be used.
    ChannelReady {
        /// BOLT 2's id.
        channel_id: String,
    },
    /// A channel is no more.
    ChannelClosed {
        /// BOLT 2's id.
        channel_id: String,
        /// Why, as LDK says it.
        reason: String,
    },
    /// A thread of the node panicked: the process ends.
    Panicked {
        /// What it said.
        text: String,
    },
    /// Anything else, as LDK prints it.
    Other {
        /// LDK's words.
        text: String,
    },
}
