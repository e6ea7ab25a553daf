//! What the attempts of one payment have taught it: which channels and nodes its next ones leave out, and on what terms
//! others forward.
//!
//! What a failure says of a channel's terms counts for this payment alone (BOLT 4, "Returning Errors": it must not reach
//! the graph, where whoever forwards could tell payments apart by it). Only how much a channel could carry is remembered
//! for others, see [`Memory`].

use std::collections::{BTreeMap, BTreeSet};

use millrace_routing::failure::{FailureMessage, code};
use millrace_routing::graph::{NodeId, Policy, VerifiedUpdate};
use millrace_routing::liquidity::Way;
use millrace_routing::map::Map;
use millrace_routing::path::{Caps, FirstHop, Hint};
use millrace_wire::{ChannelId, Decoded, Message, Msat};

use super::memory::{Memory, way, way_of};
use super::search::Door;
use crate::payments::failure::Read;
use crate::route::Route;

/// The type number of a `channel_update`, which some nodes leave out.
const CHANNEL_UPDATE: [u8; 2] = [1, 2];
/// So often all that is paid may come back with `mpp_timeout`: a part may have been late once, and once more; a payee that
/// says so of everything, at once perhaps, does not put the parts together.
pub(super) const ROUNDS_MAX: u64 = 3;

/// What one payment has learned.
#[derive(Clone, Debug)]
pub(crate) struct Lessons {
    /// The most that a channel of ours takes.
    caps: BTreeMap<ChannelId, Msat>,
    /// The most that channels of others take for now: they have refused more.
    most: Caps,
    /// Nodes that forward nothing for now.
    busy: BTreeSet<NodeId>,
    /// Channels that do not forward this.
    shut: BTreeSet<Way>,
    /// Nodes that do not.
    nodes: BTreeSet<NodeId>,
    /// Terms as failures told them.
    terms: BTreeMap<Way, Hint>,
    /// What parts have brought in vain, each time that they did: the payee says that the others were late.
    unjoined: Msat,
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
            most: Caps::new(),
            busy: BTreeSet::new(),
            shut: BTreeSet::new(),
            nodes: BTreeSet::new(),
            terms: BTreeMap::new(),
            unjoined: Msat::ZERO,
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
        if read.is_malformed {
            self.nodes.insert(route.hops[hop].node.into());
            return true;
        }
        let next = way_of(route, hop + 1);
        match message {
            FailureMessage::TemporaryChannelFailure { .. } => {
                memory.refused(route, hop + 1, map, now_s);
                let refused = less(route.hops[hop + 1].amount);
                let most = self.most.entry(next).or_insert(refused);
                *most = refused.min(*most);
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
            FailureMessage::TemporaryNodeFailure => drop(self.busy.insert(route.hops[hop].node.into())),
            // The node itself; or what no hop on the way may say.
            FailureMessage::PermanentNodeFailure
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
            self.unjoined = Msat(self.unjoined.0.saturating_add(route.received().0));
            return !self.is_in_vain(all);
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

    /// The payee has sent back all that is paid with `mpp_timeout`, as often as is borne; `all` is what is paid.
    pub(crate) const fn is_in_vain(&self, all: Msat) -> bool {
        self.unjoined.0 >= all.0.saturating_mul(ROUNDS_MAX)
    }

    // --- what was refused for the moment ---

    /// Whether somebody could not do it for the moment, and may be asked again after a pause.
    pub(crate) fn has_refusals(&self) -> bool {
        !self.most.is_empty() || self.has_busy_nodes()
    }

    /// Whether a node forwards nothing for now.
    pub(crate) fn has_busy_nodes(&self) -> bool {
        !self.busy.is_empty()
    }

    /// A pause is over.
    pub(crate) fn forget_refusals(&mut self) {
        self.most.clear();
        self.busy.clear();
    }

    // --- for the next search ---

    /// Our channels, as far as they may be used.
    pub(crate) fn doors(&self, doors: &[Door], payee: NodeId) -> Vec<FirstHop> {
        let may_be_used = |door: &&Door| !self.is_left_out(&door.hop.peer, payee);
        let capped = |door: &Door| {
            let cap = self.caps.get(&door.channel_id).copied().unwrap_or(door.hop.most);
            FirstHop { most: door.hop.most.min(cap), ..door.hop }
        };
        doors.iter().filter(may_be_used).map(capped).filter(|hop| hop.most >= hop.least.max(Msat(1))).collect()
    }

    /// The invoice's channels and those whose terms were told, as far as they may be used.
    pub(crate) fn hints(&self, hints: &[Hint], payee: NodeId) -> Vec<Hint> {
        let way = |hint: &Hint| way(hint.short_channel_id, hint.from, hint.to);
        let is_left_out = |node: &NodeId| self.is_left_out(node, payee);
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

    /// What channels on the map may be given; nothing, if they are left out.
    pub(crate) fn limits(&self, map: &Map, payee: NodeId) -> Caps {
        let mut caps = self.most.clone();
        caps.extend(self.shut.iter().chain(self.terms.keys()).map(|way| (*way, Msat::ZERO)));
        for node in self.nodes.iter().chain(&self.busy).filter(|node| **node != payee) {
            let edges = map.index(node).map(|index| map.edges_to(index)).unwrap_or_default();
            caps.extend(edges.iter().map(|edge| ((edge.short_channel_id, edge.direction), Msat::ZERO)));
        }
        caps
    }

    fn is_left_out(&self, node: &NodeId, payee: NodeId) -> bool {
        *node != payee && (self.nodes.contains(node) || self.busy.contains(node))
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
