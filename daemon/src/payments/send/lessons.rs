//! What the attempts of one payment have taught it: which channels and nodes its next ones leave out, and on what terms
//! others forward.
//!
//! What a failure says of a channel's terms counts for this payment alone (BOLT 4, "Returning Errors": it must not reach
//! the graph, where whoever forwards could tell payments apart by it). Only how much a channel could carry is remembered
//! for others, see [`Memory`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use millrace_routing::failure::{FailureMessage, code};
use millrace_routing::graph::{NodeId, Policy, VerifiedUpdate};
use millrace_routing::liquidity::{Liquidity, Way};
use millrace_routing::map::Map;
use millrace_routing::path::{FirstHop, Hint};
use millrace_wire::{ChannelId, Decoded, Message, Msat};

use super::memory::{Memory, way, way_of};
use super::search::Door;
use crate::payments::failure::Read;
use crate::route::Route;

/// The type number of a `channel_update`, which some nodes leave out.
const CHANNEL_UPDATE: [u8; 2] = [1, 2];

/// What one payment has learned.
#[derive(Clone, Debug)]
pub(crate) struct Lessons {
    /// The most that a channel of ours takes.
    caps: BTreeMap<ChannelId, Msat>,
    /// The most that channels of others take, where no map says it.
    most: BTreeMap<Way, Msat>,
    /// Channels that do not forward this.
    shut: BTreeSet<Way>,
    /// Nodes that do not.
    nodes: BTreeSet<NodeId>,
    /// Terms as failures told them.
    terms: BTreeMap<Way, Hint>,
}

/// Where and when something was learned.
pub(crate) struct Lesson<'a> {
    /// The way of the attempt.
    pub(crate) route: &'a Route,
    /// The channel of ours.
    pub(crate) channel_id: ChannelId,
    /// What all parts of the payment are to bring.
    pub(crate) all: Msat,
    pub(crate) map: &'a Map,
    pub(crate) now_s: u32,
}

impl Lessons {
    pub(crate) const fn none() -> Self {
        Self {
            caps: BTreeMap::new(),
            most: BTreeMap::new(),
            shut: BTreeSet::new(),
            nodes: BTreeSet::new(),
            terms: BTreeMap::new(),
        }
    }

    /// A channel of ours takes less than was thought.
    pub(crate) fn cap(&mut self, channel_id: ChannelId, most: Msat) {
        let cap = self.caps.entry(channel_id).or_insert(most);
        *cap = most.min(*cap);
    }

    /// Takes in why an attempt failed. Whether another one may succeed.
    pub(crate) fn learn(&mut self, read: &Read, at: &Lesson<'_>, memory: &mut Memory) -> bool {
        let Lesson { route, map, now_s, .. } = *at;
        let last = route.hops.len().saturating_sub(1);
        let (Some(hop), Some(message)) = (read.hop, &read.message) else {
            return self.learn_of_nobody(route);
        };
        for passed in 1..=hop {
            memory.passed(route, passed, map, now_s);
        }
        if hop >= last {
            return self.learn_of_payee(message, at);
        }
        let next = way_of(route, hop + 1);
        match message {
            FailureMessage::TemporaryChannelFailure { .. } => {
                memory.refused(route, hop + 1, map, now_s);
                self.most.insert(next, less(route.hops[hop + 1].amount));
            }
            FailureMessage::AmountBelowMinimum { channel_update, .. }
            | FailureMessage::FeeInsufficient { channel_update, .. }
            | FailureMessage::IncorrectCltvExpiry { channel_update, .. }
            | FailureMessage::ExpiryTooSoon { channel_update } => match told_terms(channel_update, route, hop) {
                // Whoever tells them twice does not keep to them.
                Some(terms) if !self.terms.contains_key(&next) => drop(self.terms.insert(next, terms)),
                Some(_) | None => drop(self.shut.insert(next)),
            },
            FailureMessage::ChannelDisabled { .. }
            | FailureMessage::PermanentChannelFailure
            | FailureMessage::RequiredChannelFeatureMissing
            | FailureMessage::UnknownNextPeer
            | FailureMessage::InvalidOnionVersion { .. }
            | FailureMessage::InvalidOnionHmac { .. }
            | FailureMessage::InvalidOnionKey { .. }
            | FailureMessage::InvalidOnionBlinding { .. } => drop(self.shut.insert(next)),
            // The node itself; or what no hop on the way may say.
            FailureMessage::TemporaryNodeFailure
            | FailureMessage::PermanentNodeFailure
            | FailureMessage::RequiredNodeFeatureMissing
            | FailureMessage::IncorrectOrUnknownPaymentDetails { .. }
            | FailureMessage::FinalIncorrectCltvExpiry { .. }
            | FailureMessage::FinalIncorrectHtlcAmount { .. }
            | FailureMessage::ExpiryTooFar
            | FailureMessage::InvalidOnionPayload { .. }
            | FailureMessage::MppTimeout
            | FailureMessage::Unknown { .. } => drop(self.nodes.insert(route.hops[hop].node.into())),
        }
        true
    }

    /// Nobody vouches for the answer: any hop may have garbled it, so none of the way is used again.
    fn learn_of_nobody(&mut self, route: &Route) -> bool {
        self.shut.extend((1..route.hops.len()).map(|hop| way_of(route, hop)));
        route.hops.len() > 1
    }

    fn learn_of_payee(&mut self, message: &FailureMessage, at: &Lesson<'_>) -> bool {
        let Lesson { route, channel_id, all, .. } = *at;
        let code = message.code();
        let is_last_hops_fault = matches!(
            message,
            FailureMessage::FinalIncorrectCltvExpiry { .. } | FailureMessage::FinalIncorrectHtlcAmount { .. }
        );
        if code == code::MPP_TIMEOUT && route.received() < all {
            // The other parts did not come in time: it takes all of them at another try. What brought all of it waited for
            // none, and would be sent in vain for as long as the payment may take.
            return true;
        }
        match route.hops.len() {
            0 | 1 if is_last_hops_fault => false,
            0 | 1 => {
                // A payee that takes nothing for now takes no smaller part either.
                let is_shut = code == code::TEMPORARY_NODE_FAILURE;
                self.cap(channel_id, if is_shut { Msat::ZERO } else { less(route.sent()) });
                matches!(code, code::TEMPORARY_CHANNEL_FAILURE | code::TEMPORARY_NODE_FAILURE)
            }
            hops => {
                self.shut.insert(way_of(route, hops - 1));
                is_last_hops_fault || code & code::PERM == 0
            }
        }
    }

    // --- for the next search ---

    /// Our channels, as far as they may be used.
    pub(crate) fn doors(&self, doors: &[Door], payee: NodeId) -> Vec<FirstHop> {
        let may_be_used = |door: &&Door| door.hop.peer == payee || !self.nodes.contains(&door.hop.peer);
        let capped = |door: &Door| {
            let cap = self.caps.get(&door.channel_id).copied().unwrap_or(door.hop.most);
            FirstHop { most: door.hop.most.min(cap), ..door.hop }
        };
        doors.iter().filter(may_be_used).map(capped).filter(|hop| hop.most >= hop.least.max(Msat(1))).collect()
    }

    /// The invoice's channels and those whose terms were told, as far as they may be used.
    pub(crate) fn hints(&self, hints: &[Hint], payee: NodeId) -> Vec<Hint> {
        let way = |hint: &Hint| way(hint.short_channel_id, hint.from, hint.to);
        let is_left_out = |node: &NodeId| *node != payee && self.nodes.contains(node);
        let own = hints.iter().filter(|hint| !self.terms.contains_key(&way(hint)));
        let usable = own
            .chain(self.terms.values())
            .filter(|hint| !self.shut.contains(&way(hint)) && !is_left_out(&hint.from) && !is_left_out(&hint.to));
        let capped = |hint: &Hint| {
            let most = self.most.get(&way(hint)).copied().unwrap_or(hint.policy.htlc_maximum);
            let policy = Policy { htlc_maximum: hint.policy.htlc_maximum.min(most), ..hint.policy };
            Hint { policy, ..*hint }
        };
        usable.map(capped).collect()
    }

    /// What is known of channels, and nothing of those that are left out.
    pub(crate) fn apply<'a>(
        &self,
        liquidity: &'a Liquidity,
        map: &Map,
        payee: NodeId,
        now_s: u32,
    ) -> Cow<'a, Liquidity> {
        if self.shut.is_empty() && self.terms.is_empty() && self.nodes.is_empty() {
            return Cow::Borrowed(liquidity);
        }
        let mut liquidity = liquidity.clone();
        let mut leave_out = |way: Way| liquidity.refused(way, Msat(1), Msat::MAX_MONEY, now_s);
        self.shut.iter().chain(self.terms.keys()).for_each(|way| leave_out(*way));
        for node in self.nodes.iter().filter(|node| **node != payee) {
            let edges = map.index(node).map(|index| map.edges_to(index)).unwrap_or_default();
            edges.iter().for_each(|edge| leave_out((edge.short_channel_id, edge.direction)));
        }
        Cow::Owned(liquidity)
    }
}

fn less(amount: Msat) -> Msat {
    Msat(amount.0.saturating_sub(1))
}

/// The terms of the channel behind a hop, if the failure holds them, signed by that hop, and they differ from those that
/// were kept.
fn told_terms(update: &[u8], route: &Route, hop: usize) -> Option<Hint> {
    let whole = if update.starts_with(&CHANNEL_UPDATE) { update.to_vec() } else { [&CHANNEL_UPDATE, update].concat() };
    let Ok(Decoded::Message(Message::ChannelUpdate(update))) = Message::decode(&whole) else { return None };
    let (here, next) = (&route.hops[hop], &route.hops[hop + 1]);
    let (from, to) = (NodeId::from(here.node), NodeId::from(next.node));
    let verified = VerifiedUpdate::verify(*update, from).ok()?;
    let contents = &verified.update().parsed().contents;
    let policy = Policy::of_update(contents);
    let is_it = contents.short_channel_id == next.scid.0
        && millrace_routing::graph::Direction::of_update(contents) == way(next.scid, from, to).1;
    let fee = Msat(here.amount.0.saturating_sub(next.amount.0));
    let delta = here.cltv_expiry.0.saturating_sub(next.cltv_expiry.0);
    let was_kept = policy.fee(next.amount).is_some_and(|asked| asked <= fee)
        && u32::from(policy.cltv_expiry_delta) <= delta
        && policy.htlc_minimum <= next.amount;
    (is_it && !was_kept && !policy.is_disabled).then_some(Hint { from, to, short_channel_id: next.scid, policy })
}

#[cfg(test)]
mod tests;
