//! Which channel carries a payment to a direct peer.
//!
//! What snapshots say is some milliseconds old, so it only orders the candidates; the channel itself has the last word.
//! The one with the fewest HTLCs of ours goes first: that spreads a load over all channels with the peer.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_channel::Side;
use millrace_wire::{ChannelId, Msat, PublicKey};

use super::refusal::PayRefusal;
use crate::channels::{ChannelSnapshot, ChannelState};

/// BOLT 2's bound on a side's HTLCs.
const HTLCS_MAX: usize = 483;

/// How many HTLCs of payments each channel carries, as far as we know. It only saves questions: a channel that is asked
/// in vain refuses.
#[derive(Debug, Default)]
pub(crate) struct Load {
    used: HashMap<ChannelId, usize>,
    freed: usize,
    is_probing: bool,
}

/// What follows for a payment.
#[derive(Debug)]
pub(crate) enum Pick {
    /// This channel is asked next.
    Channel(Arc<ChannelSnapshot>),
    /// Every channel's slots are taken.
    AllFull {
        /// How many slots they have.
        limit: u32,
    },
    /// Every channel has refused.
    AllTried,
}

impl Load {
    pub(crate) fn set(&mut self, channel_id: ChannelId, used: usize) {
        self.used.insert(channel_id, used);
    }

    pub(crate) fn add(&mut self, channel_id: ChannelId) {
        *self.used.entry(channel_id).or_default() += 1;
        self.is_probing = false;
    }

    pub(crate) fn remove(&mut self, channel_id: ChannelId) {
        let used = self.used.entry(channel_id).or_default();
        *used = used.saturating_sub(1);
        self.freed += 1;
    }

    /// Slots that have become free since the last call.
    pub(crate) fn take_freed(&mut self) -> usize {
        std::mem::take(&mut self.freed)
    }

    /// The next question is put whatever the counts say: they may be wrong.
    pub(crate) fn forget_fullness(&mut self) {
        self.is_probing = true;
    }

    fn used(&self, channel: &ChannelSnapshot) -> usize {
        self.used.get(&channel.channel_id).copied().unwrap_or(*channel.htlc_counts.of(Side::Local))
    }

    pub(crate) fn is_full(&self, channel: &ChannelSnapshot) -> bool {
        !self.is_probing && self.used(channel) >= slots(channel)
    }
}

fn slots(channel: &ChannelSnapshot) -> usize {
    usize::from(channel.terms.party(Side::Remote).max_accepted_htlcs).min(HTLCS_MAX)
}

/// Chooses among the channels with the payee. Those in `tried` have refused.
///
/// # Errors
/// [`PayRefusal`] if none of them could ever carry it, as they are now.
pub(crate) fn pick(
    candidates: &[Arc<ChannelSnapshot>],
    amount: Msat,
    payee: PublicKey,
    tried: &[ChannelId],
    load: &Load,
) -> Result<Pick, PayRefusal> {
    let open: Vec<_> = candidates.iter().filter(|channel| channel.state != ChannelState::Closed).collect();
    let Some(first) = open.first() else { return Err(PayRefusal::NoChannel { payee }) };
    let usable: Vec<_> = open.iter().copied().filter(|channel| channel.is_usable()).collect();
    if usable.is_empty() {
        let is_away = open.iter().any(|channel| channel.state == ChannelState::Normal);
        let state = format!("it is {}", first.state);
        return Err(if is_away { PayRefusal::PeerAway { payee } } else { PayRefusal::NotUsable { state } });
    }
    let wide_enough = within_limits(&usable, amount)?;
    let left: Vec<_> = wide_enough.into_iter().filter(|channel| !tried.contains(&channel.channel_id)).collect();
    if left.is_empty() {
        return Ok(Pick::AllTried);
    }
    let limit = left.iter().map(|channel| slots(channel)).sum::<usize>();
    let best = left.into_iter().filter(|channel| !load.is_full(channel)).min_by_key(|channel| {
        (channel.available_to_send < amount, load.used(channel), u64::MAX - channel.available_to_send.0)
    });
    Ok(match best {
        Some(channel) => Pick::Channel(Arc::clone(channel)),
        None => Pick::AllFull { limit: u32::try_from(limit).unwrap_or(u32::MAX) },
    })
}

/// The limits that the peer set when the channels were opened.
fn within_limits<'a>(
    channels: &[&'a Arc<ChannelSnapshot>],
    amount: Msat,
) -> Result<Vec<&'a Arc<ChannelSnapshot>>, PayRefusal> {
    let remote = |channel: &&'a Arc<ChannelSnapshot>| channel.terms.party(Side::Remote).clone();
    let minimum = channels.iter().map(|channel| remote(channel).htlc_minimum).min().unwrap_or(Msat::ZERO);
    if amount < minimum {
        return Err(PayRefusal::BelowMinimum { amount, minimum });
    }
    let maximum = channels.iter().map(|channel| remote(channel).max_htlc_value_in_flight).max().unwrap_or(Msat::ZERO);
    if amount > maximum {
        return Err(PayRefusal::AboveMaximum { amount, maximum });
    }
    let fits = |channel: &&&'a Arc<ChannelSnapshot>| {
        let party = remote(channel);
        party.htlc_minimum <= amount && amount <= party.max_htlc_value_in_flight
    };
    Ok(channels.iter().filter(fits).copied().collect())
}
