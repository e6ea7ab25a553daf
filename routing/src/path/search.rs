//! One way: Dijkstra's search from the payee back to this node, so that each hop's fee is known when it is weighed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use millrace_wire::{Msat, ShortChannelId};

use super::weight::Weights;
use super::{FirstHop, Hint, Hop, NoPath, Path, Request};
use crate::graph::{NodeId, Policy};
use crate::map::{Map, NodeIndex};

/// The best way known from a node to the payee.
#[derive(Clone, Copy)]
struct Label {
    /// In which search this was written.
    search: u64,
    cost: u64,
    /// What the node must get.
    amount: Msat,
    /// Blocks from the next one to the expiry of the HTLC that it gets.
    delta: u32,
    hops: u32,
    is_settled: bool,
    /// The next node, and the channel to it; the payee has none.
    next: Option<(u32, ShortChannelId)>,
}

const NEVER: Label =
    Label { search: 0, cost: u64::MAX, amount: Msat::ZERO, delta: 0, hops: 0, is_settled: false, next: None };

/// What searches need room for, to be used again by the next one.
#[derive(Default)]
pub struct Search {
    number: u64,
    labels: Vec<Label>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
}

/// The nodes of one search: those of the map, and behind them others that only the request knows.
struct Places<'a> {
    map: &'a Map,
    others: Vec<NodeId>,
}

impl Places<'_> {
    fn of(&mut self, node: &NodeId) -> u32 {
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

    fn node(&self, place: u32) -> NodeId {
        match (place as usize).checked_sub(self.map.node_count()) {
            Some(other) => self.others[other],
            None => *self.map.node(NodeIndex(place)),
        }
    }

    fn count(&self) -> usize {
        self.map.node_count() + self.others.len()
    }
}

/// A hop that may be put before what is known.
struct Step<'a> {
    from: u32,
    to: u32,
    short_channel_id: ShortChannelId,
    policy: &'a Policy,
}

impl Search {
    /// Room for searches.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds the way that costs the least, by fees and by [`Weights`]. Keeps the limits of the request.
    ///
    /// # Errors
    /// [`NoPath`].
    pub fn find(&mut self, map: &Map, request: &Request<'_>, weights: &Weights<'_>) -> Result<Path, NoPath> {
        let most = check(request)?;
        if request.amount > most {
            return Err(NoPath::Balance { most });
        }
        let mut places = Places { map, others: Vec::new() };
        let (source, payee) = (places.of(&request.source), places.of(&request.payee));
        let mut doors: BTreeMap<u32, Vec<&FirstHop>> = BTreeMap::new();
        for first_hop in request.first_hops {
            doors.entry(places.of(&first_hop.peer)).or_default().push(first_hop);
        }
        let mut hints: BTreeMap<u32, Vec<(u32, &Hint)>> = BTreeMap::new();
        for hint in request.hints {
            let (from, to) = (places.of(&hint.from), places.of(&hint.to));
            hints.entry(to).or_default().push((from, hint));
        }
        self.begin(places.count());
        self.reach(payee, Label { cost: 0, amount: request.amount, delta: request.final_delta, ..NEVER });
        let mut is_too_dear = false;
        while let Some(Reverse((cost, node))) = self.heap.pop() {
            let label = &mut self.labels[node as usize];
            if label.is_settled || label.cost != cost {
                continue;
            }
            label.is_settled = true;
            let label = *label;
            if let Some(first_hop) = best_door(doors.get(&node), label.amount) {
                return Ok(self.path(first_hop, node, &places));
            }
            for (from, hint) in hints.get(&node).into_iter().flatten() {
                let Hint { short_channel_id, policy, .. } = hint;
                let step = Step { from: *from, to: node, short_channel_id: *short_channel_id, policy };
                let weight = Weights::of_hint(label.amount, policy.cltv_expiry_delta.into());
                is_too_dear |= self.relax(&step, &label, Some(weight), source, request);
            }
            if node as usize >= map.node_count() {
                continue;
            }
            for edge in map.edges_to(NodeIndex(node)) {
                let step =
                    Step { from: edge.from.0, to: node, short_channel_id: edge.short_channel_id, policy: &edge.policy };
                if label.amount > edge.capacity {
                    continue;
                }
                let delta = edge.policy.cltv_expiry_delta.into();
                let weight = weights.of_hop(edge.short_channel_id, edge.direction, edge.capacity, label.amount, delta);
                is_too_dear |= self.relax(&step, &label, weight, source, request);
            }
        }
        let fee_limit = request.fee_limit;
        Err(if is_too_dear { NoPath::FeeLimit { fee_limit } } else { NoPath::NoWay })
    }

    fn begin(&mut self, nodes: usize) {
        self.number += 1;
        self.heap.clear();
        if self.labels.len() < nodes {
            self.labels.resize(nodes, NEVER);
        }
    }

    fn reach(&mut self, node: u32, label: Label) {
        self.heap.push(Reverse((label.cost, node)));
        self.labels[node as usize] = Label { search: self.number, ..label };
    }

    /// Puts a hop before the best way from its end. Whether nothing but the fee limit speaks against it.
    fn relax(
        &mut self,
        step: &Step<'_>,
        ahead: &Label,
        weight: Option<u64>,
        source: u32,
        request: &Request<'_>,
    ) -> bool {
        let Step { from, to, short_channel_id, policy } = *step;
        if from == source || ahead.amount < policy.htlc_minimum || ahead.amount > policy.htlc_maximum {
            return false;
        }
        let (Some(weight), Some(fee)) = (weight, policy.fee(ahead.amount)) else { return false };
        let delta = ahead.delta.saturating_add(policy.cltv_expiry_delta.into());
        let hops = ahead.hops + 1;
        // This hop and the one over a channel of ours.
        if delta > request.delta_limit || hops as usize >= request.hops_limit {
            return false;
        }
        let Some(amount) = ahead.amount.0.checked_add(fee.0) else { return false };
        if amount - request.amount.0 > request.fee_limit.0 {
            return true;
        }
        let cost = ahead.cost.saturating_add(fee.0).saturating_add(weight);
        let known = &self.labels[from as usize];
        if known.search == self.number && known.cost <= cost {
            return false;
        }
        let next = Some((to, short_channel_id));
        self.reach(from, Label { cost, amount: Msat(amount), delta, hops, next, ..NEVER });
        false
    }

    fn path(&self, first_hop: &FirstHop, peer: u32, places: &Places<'_>) -> Path {
        let mut hops = Vec::new();
        let (mut node, mut short_channel_id) = (peer, first_hop.short_channel_id);
        loop {
            let Label { amount, delta, next, .. } = self.labels[node as usize];
            hops.push(Hop { node: places.node(node), short_channel_id, amount, delta });
            match next {
                Some(next) => (node, short_channel_id) = next,
                None => return Path { hops },
            }
        }
    }
}

/// What can be seen without a search: the most that one channel of ours carries.
fn check(request: &Request<'_>) -> Result<Msat, NoPath> {
    if request.source == request.payee {
        return Err(NoPath::Ourselves);
    }
    request.first_hops.iter().map(|first_hop| first_hop.most).max().ok_or(NoPath::NoChannel)
}

/// Of several channels with a peer, the one that the amount fits best, so that the others stay good for more.
fn best_door<'a>(doors: Option<&Vec<&'a FirstHop>>, amount: Msat) -> Option<&'a FirstHop> {
    let fits = |first_hop: &&&FirstHop| first_hop.least <= amount && amount <= first_hop.most;
    let fitting = doors?.iter().filter(fits);
    fitting.min_by_key(|first_hop| (first_hop.most, first_hop.short_channel_id)).copied()
}
