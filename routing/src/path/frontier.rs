//! The last resort, when one best way for each node is not enough: of each node all ways to the payee are kept that are not
//! at once dearer, later and longer than another. A way within all limits is found, if there is one. It takes some times what
//! a search takes, and is needed only where a fee limit and a limit of blocks or hops pull in opposite directions.
//!
//! Not found is what can be sent only because it costs more: where an `htlc_minimum_msat` on the way is above the amount.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use millrace_wire::ShortChannelId;

use super::field::{Field, Need};
use super::{FirstHop, Hop, Path};

/// Ways that are kept of one node...
const WAYS_PER_NODE: usize = 16;
/// ...and of all: some times as many as the public network has nodes, so that a failure costs no more than a few searches.
const WAYS_MAX: usize = 30_000;

/// A way from a node to the payee.
#[derive(Clone, Copy)]
struct Way {
    node: u32,
    need: Need,
    /// The way from the next node, and the channel to it; the payee's has none.
    next: Option<(usize, ShortChannelId)>,
}

/// The way that costs the least in fees among those that keep the limits of blocks and of hops; whether it keeps the fee
/// limit is for the caller to see.
pub(super) fn cheapest(field: &Field<'_>) -> Option<Path> {
    let rank = |need: &Need, place: usize| Reverse((need.amount, need.delta, need.hops, place));
    let mut ways = vec![Way { node: field.payee, need: field.end(), next: None }];
    let mut heap = BinaryHeap::from([rank(&field.end(), 0)]);
    let mut kept: BTreeMap<u32, Vec<Need>> = BTreeMap::new();
    let mut left = WAYS_MAX;
    while let Some(Reverse((.., place))) = heap.pop() {
        let Way { node, need, .. } = ways[place];
        let of_node = kept.entry(node).or_default();
        if of_node.len() >= WAYS_PER_NODE || is_beaten(of_node, &need) {
            continue;
        }
        left = left.checked_sub(1)?;
        of_node.push(need);
        if let Some(first_hop) = field.door(node, need.amount) {
            return Some(path(field, &ways, place, first_hop));
        }
        field.each_step(node, &need, |step| {
            if !step.is_long && !kept.get(&step.from).is_some_and(|of_from| is_beaten(of_from, &step.need)) {
                heap.push(rank(&step.need, ways.len()));
                ways.push(Way { node: step.from, need: step.need, next: Some((place, step.short_channel_id)) });
            }
        });
    }
    None
}

/// What was kept before is not dearer.
fn is_beaten(kept: &[Need], need: &Need) -> bool {
    kept.iter().any(|other| other.delta <= need.delta && other.hops <= need.hops)
}

fn path(field: &Field<'_>, ways: &[Way], place: usize, first_hop: &FirstHop) -> Path {
    let mut hops = Vec::new();
    let mut at = Some((place, first_hop.short_channel_id));
    while let Some((place, short_channel_id)) = at {
        let Way { node, need, next } = ways[place];
        hops.push(Hop { node: field.node(node), short_channel_id, amount: need.amount, delta: need.delta });
        at = next;
    }
    Path { hops }
}
