//! What the rest of the node asks of the channels, and what it is answered.

use bitcoin::{OutPoint, ScriptBuf, Weight};
use millrace_channel::ledger::limits::HTLCS_MAX;
use millrace_channel::phase::opening::LocalParams;
use millrace_channel::tx::weight::commit_weight;
use millrace_channel::{CommitmentFormat, Policy, Refusal};
use millrace_wire::{ChannelId, FeeratePerKw, HtlcId, Msat, PublicKey, Sat};
use tokio::sync::{mpsc, oneshot};

use super::guard_seam::TowerBehind;
use super::wallet_seam::NoFunding;
use crate::entry::Entry;

/// Makes the entries that name a channel which exists only now.
pub type WhenOpened = Box<dyn FnOnce(ChannelId) -> Vec<Entry> + Send>;

/// A channel to be opened, funded by this node.
pub struct OpenOrder {
    /// With whom; must be connected.
    pub peer: PublicKey,
    /// Its size.
    pub capacity: Sat,
    /// What the peer is given.
    pub push: Msat,
    /// What the funding transaction pays.
    pub funding_feerate: FeeratePerKw,
    /// Use it before its funding confirms, if the peer consents.
    pub zero_conf: bool,
    /// Tell the network of it.
    pub announce: bool,
    /// How long the peer's own money is delayed, in blocks; absent: what is usual.
    pub to_self_delay: Option<u16>,
    /// The smallest HTLC that we take; absent: what is usual.
    pub htlc_minimum: Option<Msat>,
    /// The most that we let be in flight towards us; absent: what is usual.
    pub max_in_flight: Option<Msat>,
    /// Where a mutual close must pay us, if that is to be fixed now.
    pub upfront_shutdown_script: Option<ScriptBuf>,
    /// Entries for the journal step that holds the channel's first record: what stood for the order before stands for
    /// this channel from then on.
    pub when_opened: Option<WhenOpened>,
}

impl std::fmt::Debug for OpenOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { peer, capacity, push, zero_conf, .. } = self;
        f.debug_struct("OpenOrder")
            .field("peer", peer)
            .field("capacity", capacity)
            .field("push", push)
            .field("zero_conf", zero_conf)
            .finish_non_exhaustive()
    }
}

/// How an opening goes on. The stream ends after [`OpenProgress::Opened`] or [`OpenProgress::Failed`]; from `Opened` on
/// the channel's snapshots tell more (`Registry::watch`).
#[derive(Clone, PartialEq, Debug)]
pub enum OpenProgress {
    /// The peer agreed to the terms.
    Negotiated {
        /// The id until the funding is known.
        temporary_channel_id: ChannelId,
        /// Confirmations that the peer waits for.
        minimum_depth: u32,
        /// What the peer must keep.
        remote_reserve: Sat,
        /// What we must keep.
        local_reserve: Sat,
    },
    /// The channel exists, durably, and its funding transaction was handed on to be broadcast.
    Opened {
        /// Its id from now on.
        channel_id: ChannelId,
        /// Its output.
        funding_outpoint: OutPoint,
    },
    /// It will not be opened.
    Failed(OpenFailure),
}

/// Why a channel is not opened. Nothing was spent.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum OpenFailure {
    /// There is no connection.
    #[error("peer {0} is not connected")]
    NotConnected(PublicKey),
    /// The node takes no new work now.
    #[error(transparent)]
    NoNewWork(#[from] NoNewWork),
    /// Too many openings with this peer are under way.
    #[error("{under_way} openings with this peer are under way already, and no more than {max} may be")]
    TooMany {
        /// How many.
        under_way: usize,
        /// How many may be.
        max: usize,
    },
    /// Our own limits, or what the peer announced, do not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The peer said no.
    #[error("the peer refused: {0}")]
    PeerRefused(String),
    /// The peer broke a rule.
    #[error("the peer broke a rule: {0}")]
    PeerFault(String),
    /// The wallet cannot pay.
    #[error("the wallet cannot fund it: {0}")]
    Wallet(NoFunding),
    /// The connection ended before the channel existed.
    #[error("the connection ended before the channel existed")]
    Disconnected,
    /// The peer did not answer.
    #[error("the peer did not go on within {0} s")]
    TimedOut(u64),
}

/// Why nothing new is taken on. Closing, failing and fulfilling go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoNewWork {
    /// The disk is nearly full.
    #[error("the disk is nearly full: {0}")]
    DiskLow(String),
    /// The disk does not keep up.
    #[error("{0} bytes wait for the disk")]
    DiskBehind(u64),
    /// bitcoind is away or catching up.
    #[error("the chain is not known well enough: {reason}")]
    Chain {
        /// In words.
        reason: String,
        /// Whether bitcoind cannot be reached.
        is_away: bool,
        /// Blocks that are there, and that there are, as far as is known.
        heights: Option<(u32, u32)>,
    },
    /// The node is stopping.
    #[error("the node is shutting down")]
    Stopping,
}

/// Why an order for a channel is not carried out. Nothing has changed.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum CommandError {
    /// No such channel, or it is closed.
    #[error("there is no open channel {0}")]
    UnknownChannel(ChannelId),
    /// The channel has enough to do.
    #[error("{waiting} orders wait for the channel already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The node takes no new work now.
    #[error(transparent)]
    NoNewWork(#[from] NoNewWork),
    /// Whoever keeps watch is too far behind.
    #[error(transparent)]
    TowerBehind(#[from] TowerBehind),
    /// The channel refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// An order was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// An HTLC was offered, with this id. Volatile: only `Fact::OfferCommitted` says that it is out there, and
    /// `Fact::OfferDropped` that it never was.
    Offered(HtlcId),
    /// Done, and durable.
    Done,
}

/// The answer to an order.
pub type CommandResult = Result<Accepted, CommandError>;

/// Where the answer to an order goes.
pub(crate) type Reply = oneshot::Sender<CommandResult>;

/// Where the progress of an opening goes. It is short: four messages at most.
pub(crate) type ProgressSender = mpsc::UnboundedSender<OpenProgress>;

/// What the channels need to know of the owner's wishes.
#[derive(Clone, Debug)]
pub struct ChannelRules {
    /// The chain this node is on.
    pub chain_hash: millrace_wire::ChainHash,
    /// For every channel.
    pub policy: Policy,
    /// What is taken of a peer that opens a channel.
    pub limits: millrace_channel::phase::opening::OpeningLimits,
    /// Peers that may open channels which are used before they confirm.
    pub zero_conf_peers: Vec<PublicKey>,
    /// Openings that one peer may have under way, its channels without a confirmed funding included.
    pub openings_per_peer_max: usize,
    /// Openings that all peers together may have under way.
    pub openings_max: usize,
    /// What a channel of ours asks the peer to be delayed, in blocks.
    pub to_self_delay: u16,
    /// The smallest HTLC that is taken.
    pub htlc_minimum: Msat,
    /// The part of a channel that the peer must keep as its own, in millionths.
    pub reserve_ppm: u32,
    /// The most HTLCs that are taken at once.
    pub max_accepted_htlcs: u16,
    /// The part of a channel that it may cost to close it at a high feerate when it is full of HTLCs, in percent.
    pub closing_cost_percent: u8,
    /// The part of a channel that may be in flight towards us, in percent.
    pub max_in_flight_percent: u8,
    /// Confirmations for channels that peers fund.
    pub minimum_depth: u32,
    /// The same from `large_channel` on.
    pub minimum_depth_large: u32,
    /// What is large.
    pub large_channel: Sat,
    /// Shard threads.
    pub shards: usize,
}

impl ChannelRules {
    /// What is usual, on this chain.
    #[must_use]
    pub fn usual(chain_hash: millrace_wire::ChainHash) -> Self {
        Self {
            chain_hash,
            policy: Policy::default(),
            limits: millrace_channel::phase::opening::OpeningLimits::default(),
            zero_conf_peers: Vec::new(),
            openings_per_peer_max: 5,
            openings_max: 200,
            to_self_delay: 720,
            htlc_minimum: Msat(1),
            reserve_ppm: 10_000,
            max_accepted_htlcs: 483,
            closing_cost_percent: 50,
            max_in_flight_percent: 100,
            minimum_depth: 3,
            minimum_depth_large: 6,
            large_channel: Sat(16_777_216),
            shards: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        }
    }

    /// What this node asks of a channel of this size.
    #[must_use]
    pub fn local_params(&self, capacity: Sat) -> LocalParams {
        let usual = LocalParams::usual_for(capacity);
        let usual_minimum = LocalParams::usual_for(Sat::ZERO).channel_reserve;
        let part = |of: u64, parts: u64, whole: u64| {
            u64::try_from(u128::from(of) * u128::from(parts) / u128::from(whole)).unwrap_or(of)
        };
        let reserve = Sat(part(capacity.0, self.reserve_ppm.into(), 1_000_000));
        let in_flight = Msat(part(capacity.to_msat().0, self.max_in_flight_percent.into(), 100));
        LocalParams {
            // BOLT 2: never below the other side's dust limit.
            channel_reserve: reserve.max(usual_minimum),
            max_accepted_htlcs: self.max_accepted_htlcs.min(self.htlcs_max(capacity)),
            max_htlc_value_in_flight: in_flight,
            to_self_delay: self.to_self_delay,
            htlc_minimum: self.htlc_minimum,
            ..usual
        }
    }

    /// So many HTLCs each way that closing the channel costs no more of it than it may; but ten, or it would be of no use.
    fn htlcs_max(&self, capacity: Sat) -> u16 {
        let may_cost = u128::from(capacity.0) * u128::from(self.closing_cost_percent) / 100;
        let is_cheap = |htlcs: &u16| u128::from(closing_cost(*htlcs).0) <= may_cost;
        (HTLCS_MIN..=HTLCS_MAX).rev().find(is_cheap).unwrap_or(HTLCS_MIN)
    }

    /// The confirmations that a channel of this size needs, if a peer funds it.
    #[must_use]
    pub fn depth_of(&self, capacity: Sat) -> u32 {
        if capacity < self.large_channel { self.minimum_depth } else { self.minimum_depth_large }
    }
}

/// What a channel is always given, however small it is.
const HTLCS_MIN: u16 = 10;
/// At which closing costs are worked out: 100 sat/vB.
const CLOSING_FEERATE: FeeratePerKw = FeeratePerKw(25_000);
/// A child of the anchor with one coin of the wallet's and change.
const CHILD_WEIGHT: Weight = Weight::from_wu(700);

/// What a commitment with so many HTLCs each way costs at a high feerate, with the child that pays for it.
fn closing_cost(htlcs: u16) -> Sat {
    let commitment = commit_weight(CommitmentFormat::Anchors, 2 * usize::from(htlcs));
    CLOSING_FEERATE.fee_ceil(commitment + CHILD_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BOLT 3, "Expected Weights": 1,124, and 172 for each HTLC.
    #[test]
    fn a_channel_takes_so_many_htlcs_that_closing_it_costs_no_more_than_half_of_it() {
        assert_eq!(closing_cost(10), Sat(25 * (1_124 + 20 * 172 + 700)));
        let taken = |sat| rules().local_params(Sat(sat)).max_accepted_htlcs;
        assert_eq!([20_000, 263_199, 1_000_000, 10_000_000].map(taken), [10, 10, 52, 483]);
        for capacity in (264_000..9_000_000).step_by(77_777) {
            let (htlcs, half) = (taken(capacity), Sat(capacity / 2));
            assert!(closing_cost(htlcs) <= half && (htlcs == 483 || closing_cost(htlcs + 1) > half), "{capacity}");
        }
        let strict = ChannelRules { closing_cost_percent: 5, ..rules() };
        assert_eq!(strict.local_params(Sat(10_000_000)).max_accepted_htlcs, 52);
        let few = ChannelRules { max_accepted_htlcs: 7, ..rules() };
        assert_eq!(few.local_params(Sat(10_000_000)).max_accepted_htlcs, 7, "the owner may want fewer still");
    }

    fn rules() -> ChannelRules {
        ChannelRules::usual(millrace_wire::ChainHash::REGTEST)
    }

    #[test]
    fn a_large_channel_needs_more_confirmations() {
        let rules = ChannelRules { minimum_depth: 2, minimum_depth_large: 9, large_channel: Sat(5_000_000), ..rules() };
        assert_eq!([4_999_999, 5_000_000].map(|capacity| rules.depth_of(Sat(capacity))), [2, 9]);
    }

    #[test]
    fn what_the_owner_asks_for_is_asked_of_the_peer() {
        let rules = ChannelRules { reserve_ppm: 20_000, max_accepted_htlcs: 30, max_in_flight_percent: 45, ..rules() };
        let asked = rules.local_params(Sat(1_000_000));
        assert_eq!((asked.channel_reserve, asked.max_accepted_htlcs), (Sat(20_000), 30));
        assert_eq!(asked.max_htlc_value_in_flight, Msat(450_000_000));
        // No reserve is below the highest dust limit that a peer may have.
        assert_eq!(rules.local_params(Sat(20_000)).channel_reserve, Sat(546));
    }
}
