//! Over which channel an HTLC goes on: the one that its onion names, or another one with the same peer that asks for no
//! more (BOLT 4, "Non-strict Forwarding").

use std::sync::Arc;

use millrace_channel::Side;
use millrace_routing::failure::FailureMessage;
use millrace_wire::{BlockHeight, ChannelId, Msat, PublicKey, ShortChannelId};

use super::check::{Asked, Unfit, check};
use super::switch::Sight;
use super::{Circuits, Load};
use crate::channels::{ChannelSnapshot, ChannelState, Registry};

/// Where channels are looked up.
pub(crate) trait Channels {
    /// By a short channel id, real or an alias of ours.
    fn by_scid(&self, scid: ShortChannelId) -> Option<Arc<ChannelSnapshot>>;
    /// By its id.
    fn channel(&self, id: ChannelId) -> Option<Arc<ChannelSnapshot>>;
    /// All with a peer.
    fn with(&self, peer: &PublicKey) -> Vec<Arc<ChannelSnapshot>>;
}

impl Channels for Registry {
    fn by_scid(&self, scid: ShortChannelId) -> Option<Arc<ChannelSnapshot>> {
        self.channel_by_scid(scid).and_then(|id| self.snapshot(id))
    }

    fn channel(&self, id: ChannelId) -> Option<Arc<ChannelSnapshot>> {
        self.snapshot(id)
    }

    fn with(&self, peer: &PublicKey) -> Vec<Arc<ChannelSnapshot>> {
        self.snapshots_with(peer)
    }
}

/// Why there is no way on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum NoWay {
    #[error("the onion names no channel of ours")]
    Unknown,
    #[error("the channel is closed, or ends on chain")]
    Gone,
    #[error("the channel is closing")]
    Disabled,
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("no channel with the peer can carry it now")]
    ForNow,
}

impl NoWay {
    /// As the sender is told.
    pub(super) fn message(self, channel_update: Vec<u8>) -> FailureMessage {
        match self {
            Self::Unknown => FailureMessage::UnknownNextPeer,
            Self::Gone => FailureMessage::PermanentChannelFailure,
            Self::Disabled => FailureMessage::ChannelDisabled { flags: 0, channel_update },
            Self::Unfit(unfit) => unfit.message(channel_update),
            // What is announced as disabled is said to be so, too.
            Self::ForNow if is_disabled(&channel_update) => {
                FailureMessage::ChannelDisabled { flags: 0, channel_update }
            }
            Self::ForNow => FailureMessage::TemporaryChannelFailure { channel_update },
        }
    }
}

/// BOLT 7: the second bit of `channel_flags`, which stand behind the type, the signature, the chain, the channel, the time and
/// one byte more.
fn is_disabled(channel_update: &[u8]) -> bool {
    channel_update.get(2 + 64 + 32 + 8 + 4 + 1).is_some_and(|flags| flags & 2 != 0)
}

/// Chooses. Channels in `tried` have refused.
pub(super) fn choose(
    circuits: &Circuits,
    incoming: ChannelId,
    next: ShortChannelId,
    asked: Asked,
    tried: &[ChannelId],
    height: BlockHeight,
    sight: &Sight<'_>,
) -> Result<ChannelId, NoWay> {
    if sight.channels.channel(incoming).is_some_and(|channel| is_on_chain(&channel)) {
        // It can be claimed, but nobody would be failed: no new risk for a peer that is going.
        return Err(NoWay::ForNow);
    }
    let named = sight.channels.by_scid(next).filter(|channel| may_be_named(channel, next)).ok_or(NoWay::Unknown)?;
    let all = sight.channels.with(&named.peer);
    if !all.iter().any(|channel| channel.state == ChannelState::Normal) {
        return Err(match named.state {
            ChannelState::Opening => NoWay::Unknown,
            ChannelState::ShuttingDown | ChannelState::Closing => NoWay::Disabled,
            ChannelState::OnChain | ChannelState::Closed => NoWay::Gone,
            ChannelState::Normal => NoWay::ForNow,
        });
    }
    let fits = |channel: &ChannelSnapshot| {
        let least = channel.terms.party(Side::Remote).htlc_minimum;
        check(asked, &sight.policies.accepted(&channel.channel_id, sight.unix_ms), least, height)
    };
    fits(&named)?;
    let carries = |channel: &&Arc<ChannelSnapshot>| {
        channel.is_usable()
            && !tried.contains(&channel.channel_id)
            && asked.amount_out <= channel.available_to_send
            && (channel.channel_id == named.channel_id || fits(channel).is_ok())
            && has_share(circuits, incoming, channel, asked.amount_out, sight)
    };
    // The named one if it can; else the one that it fills best, so that the wider ones stay free for larger HTLCs.
    let best = all
        .iter()
        .filter(carries)
        .min_by_key(|channel| (channel.channel_id != named.channel_id, channel.available_to_send, channel.channel_id));
    best.map(|channel| channel.channel_id).ok_or(NoWay::ForNow)
}

fn is_on_chain(channel: &ChannelSnapshot) -> bool {
    matches!(channel.state, ChannelState::OnChain | ChannelState::Closed)
}

/// BOLT 2, "`option_scid_alias`": the real id of such a channel is nobody's business.
fn may_be_named(channel: &ChannelSnapshot, scid: ShortChannelId) -> bool {
    !channel.terms.channel_type.scid_alias || channel.short_channel_id != Some(scid)
}

/// Whether the incoming peer still has less than its share of the channel: no single one may jam it.
fn has_share(
    circuits: &Circuits,
    incoming: ChannelId,
    channel: &ChannelSnapshot,
    amount: Msat,
    sight: &Sight<'_>,
) -> bool {
    let channels_in = match sight.channels.channel(incoming) {
        Some(incoming) => sight.channels.with(&incoming.peer).iter().map(|channel| channel.channel_id).collect(),
        None => vec![incoming],
    };
    let mut held = Load::default();
    for incoming in channels_in {
        let load = circuits.load_of(channel.channel_id, incoming);
        held.htlcs += load.htlcs;
        held.amount = Msat(held.amount.0.saturating_add(load.amount.0));
    }
    let remote = channel.terms.party(Side::Remote);
    let percent = u64::from(sight.peer_share_percent);
    let slots = (u64::from(remote.max_accepted_htlcs) * percent / 100).max(1);
    let whole = Msat(channel.balances.local.0.saturating_add(channel.in_flight.local.0));
    let whole = whole.min(remote.max_htlc_value_in_flight);
    let liquidity = u128::from(whole.0) * u128::from(percent) / 100;
    (held.htlcs as u64) < slots && u128::from(held.amount.0) + u128::from(amount.0) <= liquidity
}
