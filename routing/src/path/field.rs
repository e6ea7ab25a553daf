//! What a search goes over: the map, and what the request adds to it. Always away from the payee, so that each hop's fee is
//! known when it is weighed.

use std::collections::BTreeMap;

use millrace_wire::{Msat, ShortChannelId};

use super::weight::Weights;
use super::{FirstHop, Hint, Request};
use crate::graph::{NodeId, Policy};
use crate::map::{Map, NodeIndex};

/// What a node must be given, so that the payee gets its own.
#[derive(Clone, Copy)]
pub(super) struct Need {
    pub(super) amount: Msat,
    /// Blocks from the next one to the expiry of the HTLC that the node gets.
    pub(super) delta: u32,
    /// Hops from there to the payee.
    pub(super) hops: u32,
}

/// A hop that can carry what is needed at its end.
pub(super) struct Step {
    /// Who forwards.
    pub(super) from: u32,
    pub(super) short_channel_id: ShortChannelId,
    pub(super) fee: Msat,
    /// What it costs besides.
    pub(super) weight: u64,
    /// What whoever forwards must be given.
    pub(super) need: Need,
    /// That breaks the fee limit.
    pub(super) is_dear: bool,
    /// That breaks the limit of blocks or of hops; then it is not weighed.
    pub(super) is_long: bool,
}

/// A map and a request. Nodes go by their place: first those of the map, then those that only the request knows.
pub(super) struct Field<'a> {
    map: &'a Map,
    pub(super) request: &'a Request<'a>,
    weights: &'a Weights<'a>,
    others: Vec<NodeId>,
    source: u32,
    pub(super) payee: u32,
    doors: BTreeMap<u32, Vec<&'a FirstHop>>,
    hints: BTreeMap<u32, Vec<(u32, &'a Hint)>>,
}

impl<'a> Field<'a> {
    pub(super) fn new(map: &'a Map, request: &'a Request<'a>, weights: &'a Weights<'a>) -> Self {
        let (doors, hints) = (BTreeMap::new(), BTreeMap::new());
        let mut field = Self { map, request, weights, others: Vec::new(), source: 0, payee: 0, doors, hints };
        (field.source, field.payee) = (field.place(&request.source), field.place(&request.payee));
        for first_hop in request.first_hops {
            let peer = field.place(&first_hop.peer);
            field.doors.entry(peer).or_default().push(first_hop);
        }
        for hint in request.hints.iter().filter(|hint| map.is_understood(&hint.from)) {
            let (from, to) = (field.place(&hint.from), field.place(&hint.to));
            field.hints.entry(to).or_default().push((from, hint));
        }
        field
    }

    fn place(&mut self, node: &NodeId) -> u32 {
        if let Some(index) = self.map.index(node) {
            return index.0;
        }
        let known = self.others.iter().position(|other| other == node);
        let place = known.unwrap_or_else(|| {
            self.others.push(*node);
            self.others.len() - 1
        });
        (self.map.node_count() + place) as u32
    }

    /// Which node stands at a place.
    pub(super) fn node(&self, place: u32) -> NodeId {
        match (place as usize).checked_sub(self.map.node_count()) {
            Some(other) => self.others[other],
            None => *self.map.node(NodeIndex(place)),
        }
    }

    /// How many places there are.
    pub(super) fn count(&self) -> usize {
        self.map.node_count() + self.others.len()
    }

    /// What the payee must be given.
    pub(super) const fn end(&self) -> Need {
        Need { amount: self.request.amount, delta: self.request.final_delta, hops: 0 }
    }

    /// Of several channels of ours with a node, the one that the amount fits best, so that the others stay good for more.
    pub(super) fn door(&self, node: u32, amount: Msat) -> Option<&'a FirstHop> {
        let fits = |first_hop: &&&FirstHop| first_hop.least <= amount && amount <= first_hop.most;
        let fitting = self.doors.get(&node)?.iter().filter(fits);
        fitting.min_by_key(|first_hop| (first_hop.most, first_hop.short_channel_id)).copied()
    }

    /// Tells of every hop that may be put before a node.
    pub(super) fn each_step(&self, node: u32, ahead: &Need, mut tell: impl FnMut(&Step)) {
        for (from, hint) in self.hints.get(&node).into_iter().flatten() {
            let weight = |delta| Some(Weights::of_hint(ahead.amount, delta));
            if let Some(step) = self.step(*from, hint.short_channel_id, &hint.policy, ahead, weight) {
                tell(&step);
            }
        }
        if node as usize >= self.map.node_count() {
            return;
        }
        for edge in self.map.edges_to(NodeIndex(node)).iter().filter(|edge| ahead.amount <= edge.capacity) {
            let (id, amount) = (edge.short_channel_id, ahead.amount);
            let weight = |delta| self.weights.of_hop(id, edge.direction, edge.capacity, amount, delta);
            if let Some(step) = self.step(edge.from.0, id, &edge.policy, ahead, weight) {
                tell(&step);
            }
        }
    }

    fn step(
        &self,
        from: u32,
        short_channel_id: ShortChannelId,
        policy: &Policy,
        ahead: &Need,
        weight: impl FnOnce(u32) -> Option<u64>,
    ) -> Option<Step> {
        if from == self.source || ahead.amount < policy.htlc_minimum || ahead.amount > policy.htlc_maximum {
            return None;
        }
        let request = self.request;
        let (blocks, fee) = (u32::from(policy.cltv_expiry_delta), policy.fee(ahead.amount)?);
        let amount = Msat(ahead.amount.0.checked_add(fee.0)?);
        let need = Need { amount, delta: ahead.delta.saturating_add(blocks), hops: ahead.hops + 1 };
        // This hop and the one over a channel of ours.
        let is_long = need.delta > request.delta_limit || need.hops as usize >= request.hops_limit;
        let is_dear = amount.0 - request.amount.0 > request.fee_limit.0;
        let weight = if is_long { 0 } else { weight(blocks)? };
        Some(Step { from, short_channel_id, fee, weight, need, is_dear, is_long })
    }
}
