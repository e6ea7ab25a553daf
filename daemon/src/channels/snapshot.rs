//! What others see of a channel: published by its actor through the outbox, so that it shows nothing that is not durable.

use std::fmt;
use std::sync::Arc;

use bitcoin::ScriptBuf;
use millrace_channel::ledger::Which;
use millrace_channel::ledger::htlc::{Htlc, Status};
use millrace_channel::phase::Phase;
use millrace_channel::phase::on_chain::Ending;
use millrace_channel::{Both, Channel, Side, Terms};
use millrace_wire::{
    BlockHeight, ChannelId, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, PaymentHash, PublicKey,
    ShortChannelId,
};

/// Where a channel is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ChannelState {
    /// Waiting for the funding, or for the peer's `channel_ready`.
    Opening,
    /// HTLCs flow.
    Normal,
    /// No new HTLC; those in flight end.
    ShuttingDown,
    /// A mutual close is signed, and waits for its block.
    Closing,
    /// It ends by a commitment transaction.
    OnChain,
    /// Over.
    Closed,
}

/// In words, as errors say it.
impl fmt::Display for ChannelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Normal => "open",
            Self::ShuttingDown => "shutting down",
            Self::Closing => "closing",
            Self::OnChain => "closing on chain",
            Self::Closed => "closed",
        })
    }
}

impl From<&Phase> for ChannelState {
    fn from(phase: &Phase) -> Self {
        match phase {
            Phase::Opening => Self::Opening,
            Phase::Normal => Self::Normal,
            Phase::ShuttingDown => Self::ShuttingDown,
            Phase::Closing(_) => Self::Closing,
            Phase::OnChain(_) => Self::OnChain,
            Phase::Closed => Self::Closed,
        }
    }
}

/// An HTLC in flight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HtlcView {
    /// Who offered it.
    pub offered_by: Side,
    /// Its number, by that side's count.
    pub id: HtlcId,
    /// Its amount.
    pub amount: Msat,
    /// What it is locked to.
    pub payment_hash: PaymentHash,
    /// When the offerer may take it back.
    pub cltv_expiry: CltvExpiry,
    /// Where it stands in BOLT 2's dance, in words: `adding: committed`.
    pub stage: String,
}

/// A complete `channel_announcement`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// The height of the chain when it became complete.
    pub height: BlockHeight,
    /// The message, without its type.
    pub bytes: Vec<u8>,
}

/// Everything that a person may want to know of a channel, as of one moment at which all of it was durable.
#[derive(Clone, PartialEq, Debug)]
pub struct ChannelSnapshot {
    /// Its id.
    pub channel_id: ChannelId,
    /// The peer.
    pub peer: PublicKey,
    /// What was agreed at opening.
    pub terms: Arc<Terms>,
    /// Where it is in its life.
    pub state: ChannelState,
    /// The peer is connected and the channel is reestablished.
    pub is_online: bool,
    /// When it was opened, as Unix time in milliseconds.
    pub opened_ms: u64,
    /// The real short channel id, once the funding is in a block.
    pub short_channel_id: Option<ShortChannelId>,
    /// The alias that we gave the peer.
    pub local_alias: ShortChannelId,
    /// The alias that the peer gave us.
    pub remote_alias: Option<ShortChannelId>,
    /// Confirmations of the funding.
    pub funding_depth: u32,
    /// Confirmations after which it can be used.
    pub required_depth: u32,
    /// The balances. HTLCs in flight are in neither.
    pub balances: Both<Msat>,
    /// What each side has in flight.
    pub in_flight: Both<Msat>,
    /// How many HTLCs each side has in flight.
    pub htlc_counts: Both<usize>,
    /// The most that one HTLC of ours can carry now.
    pub available_to_send: Msat,
    /// What the commitments pay.
    pub feerate: FeeratePerKw,
    /// Numbers of our newest commitment, and of the newest that we signed for the peer.
    pub commitment_numbers: Both<CommitmentNumber>,
    /// The HTLCs in flight: those we offered, then those of the peer, each by id.
    pub htlcs: Vec<HtlcView>,
    /// A `commitment_signed` of ours waits for the peer's `revoke_and_ack`.
    pub awaits_revocation: bool,
    /// How it ends, once it does.
    pub ending: Option<Ending>,
    /// What the network may be told of it, once both have signed that.
    pub announcement: Option<Announced>,
    /// The last error or warning, of ours or of the peer's, in words.
    pub last_error: Option<String>,
}

impl ChannelSnapshot {
    /// The peer has said that it funds the channel, and nothing of that is in a block. That costs nothing to say: it gives no
    /// rights, and nothing is kept back for it.
    #[must_use]
    pub fn is_only_promised(&self) -> bool {
        let is_theirs = self.terms.funder == Side::Remote;
        is_theirs && self.funding_depth == 0 && !matches!(self.state, ChannelState::Normal | ChannelState::Closed)
    }

    /// Of a channel as it is now: to be put in its outbox, not to be shown.
    pub(crate) fn of(channel: &Channel, terms: &Arc<Terms>, opened_ms: u64, last_error: Option<&String>) -> Self {
        let ledger = channel.ledger();
        let settled = ledger.settled();
        let in_flight = Both { local: sum(ledger.htlcs(Side::Local)), remote: sum(ledger.htlcs(Side::Remote)) };
        let balances = Both {
            local: Msat(settled.local.0.saturating_sub(in_flight.local.0)),
            remote: Msat(settled.remote.0.saturating_sub(in_flight.remote.0)),
        };
        let (local_alias, remote_alias) = channel.aliases();
        let htlcs = ledger.htlcs(Side::Local).iter().chain(ledger.htlcs(Side::Remote)).map(view).collect();
        Self {
            channel_id: channel.id(),
            peer: terms.remote_node,
            terms: Arc::clone(terms),
            state: channel.phase().into(),
            is_online: channel.is_link_up(),
            opened_ms,
            short_channel_id: channel.short_channel_id(),
            local_alias,
            remote_alias,
            funding_depth: channel.funding_depth(),
            required_depth: channel.required_depth(),
            balances,
            in_flight,
            htlc_counts: Both { local: ledger.htlcs(Side::Local).len(), remote: ledger.htlcs(Side::Remote).len() },
            available_to_send: channel.available_to_send(),
            feerate: ledger.feerate(Which::Current(Side::Local)),
            commitment_numbers: channel.commitment_numbers(),
            htlcs,
            awaits_revocation: channel.awaits_revocation(),
            ending: channel.ending(),
            announcement: channel.announced().map(|(height, bytes)| Announced { height, bytes: bytes.to_vec() }),
            last_error: last_error.cloned(),
        }
    }

    /// Whether an HTLC may be offered: it is open, and the peer is there.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.state == ChannelState::Normal && self.is_online
    }

    /// The script that a mutual close must pay us, if that was fixed at opening.
    #[must_use]
    pub fn upfront_shutdown_script(&self) -> Option<&ScriptBuf> {
        self.terms.party(Side::Local).upfront_shutdown_script.as_ref()
    }
}

fn sum(htlcs: &[Htlc]) -> Msat {
    Msat(htlcs.iter().fold(0, |sum: u64, htlc| sum.saturating_add(htlc.add.amount.0)))
}

fn view(htlc: &Htlc) -> HtlcView {
    let stage = match &htlc.status {
        Status::Adding(stage) => format!("adding: {}", format!("{stage:?}").to_lowercase()),
        Status::Decided(_) => "removing: decided".to_owned(),
        Status::Removing(stage, _) => format!("removing: {}", format!("{stage:?}").to_lowercase()),
    };
    HtlcView {
        offered_by: htlc.offered_by,
        id: htlc.add.id,
        amount: htlc.add.amount,
        payment_hash: htlc.add.payment_hash,
        cltv_expiry: htlc.add.cltv_expiry,
        stage,
    }
}
