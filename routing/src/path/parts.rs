//! Several ways at once: an amount that no single way carries is split into parts (BOLT 4, "Basic Multi-Part Payments").

use millrace_wire::Msat;

use super::search::Search;
use super::weight::{InFlight, Weights};
use super::{FirstHop, NoPath, Path, Request};
use crate::map::Map;

/// No part is smaller: each costs an HTLC at every hop.
const PART_MIN: Msat = Msat(10_000);

/// What may be split, and how far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    /// So many HTLCs at most.
    pub most: usize,
}

/// Finds ways that together carry the amount, as few as will do; one, if there is one. Each keeps the limits of the request,
/// and all of them together its fee limit.
///
/// # Errors
/// [`NoPath`]: not even in parts.
pub fn find_parts(
    search: &mut Search,
    map: &Map,
    request: &Request<'_>,
    weights: &Weights<'_>,
    parts: Parts,
) -> Result<Vec<Path>, NoPath> {
    let mut first_hops: Vec<FirstHop> = request.first_hops.to_vec();
    let mut in_flight: InFlight = weights.in_flight.clone();
    let (mut paths, mut left, mut fees_left) = (Vec::new(), request.amount, request.fee_limit);
    let mut size = request.amount;
    // The largest that had no way since the last one that had.
    let mut refused: Option<Msat> = None;
    while left > Msat::ZERO {
        size = size.min(left);
        let fee_limit = if size == left { fees_left } else { share(fees_left, size, left) };
        let part = Request { amount: size, fee_limit, first_hops: &first_hops, ..*request };
        let weights = Weights { in_flight: &in_flight, ..*weights };
        match search.look(map, &part, &weights) {
            Ok(path) => {
                left = Msat(left.0 - size.0);
                fees_left = Msat(fees_left.0 - path.fee().0);
                hold(&path, &mut first_hops, &mut in_flight);
                paths.push(path);
                refused = None;
            }
            Err(no_path @ (NoPath::Ourselves | NoPath::NoChannel)) => return Err(no_path),
            Err(no_path) => {
                // Smaller; what is left must still fit into the parts that are left.
                let parts_left = parts.most.saturating_sub(paths.len());
                let smaller = Msat(size.0.div_ceil(2));
                let is_enough = u128::from(smaller.0) * parts_left as u128 >= u128::from(left.0);
                if smaller < PART_MIN || smaller == size || !is_enough {
                    let why = together(no_path, request);
                    // A share of the fees is of no use if the way costs the same for any amount.
                    let sizes = [refused.unwrap_or(size), size];
                    let told = sizes.map(|amount| {
                        let part = Request { amount, fee_limit: fees_left, ..part };
                        search.explain(why, map, &part, &weights)
                    });
                    return Err(told.into_iter().find(|told| *told != NoPath::NoWay).unwrap_or(why));
                }
                if no_path == NoPath::NoWay {
                    refused.get_or_insert(size);
                }
                size = smaller;
            }
        }
        if left > Msat::ZERO && paths.len() >= parts.most {
            return Err(NoPath::NoWay);
        }
    }
    Ok(paths)
}

/// Of what may still be paid, as much as the part is of what is left.
fn share(fees: Msat, part: Msat, left: Msat) -> Msat {
    let share = u128::from(fees.0) * u128::from(part.0) / u128::from(left.0.max(1));
    Msat(u64::try_from(share).unwrap_or(fees.0))
}

/// How likely each of several ways of one payment is to carry its part beside those before it, from 0 to 1. Our own channels
/// and those that only an invoice tells of are taken to carry theirs.
#[must_use]
pub fn chances(map: &Map, paths: &[Path], weights: &Weights<'_>) -> Vec<f64> {
    let mut in_flight: InFlight = weights.in_flight.clone();
    let of_path = |path: &Path| {
        let weights = Weights { in_flight: &in_flight, ..*weights };
        let chance = path.ways().map(|(way, hop)| {
            let edges = map.index(&hop.node).map(|node| map.edges_to(node)).unwrap_or_default();
            let edge = edges.iter().find(|edge| (edge.short_channel_id, edge.direction) == way);
            edge.map_or(1.0, |edge| weights.chance(way, edge.capacity, hop.amount))
        });
        let chance = chance.product();
        hold(path, &mut [], &mut in_flight);
        chance
    };
    paths.iter().map(of_path).collect()
}

/// The channels that a part uses hold it from now on.
fn hold(path: &Path, first_hops: &mut [FirstHop], in_flight: &mut InFlight) {
    let first = path.hops.first().map(|hop| hop.short_channel_id);
    for first_hop in first_hops.iter_mut().filter(|first_hop| Some(first_hop.short_channel_id) == first) {
        first_hop.most = Msat(first_hop.most.0.saturating_sub(path.sent().0));
    }
    for (way, hop) in path.ways() {
        let held = in_flight.entry(way).or_insert(Msat::ZERO);
        held.0 = held.0.saturating_add(hop.amount.0);
    }
}

/// With parts, it is all our channels together that count.
fn together(no_path: NoPath, request: &Request<'_>) -> NoPath {
    let NoPath::Balance { .. } = no_path else { return no_path };
    let most = request.first_hops.iter().map(|first_hop| first_hop.most.0).fold(0, u64::saturating_add);
    if most < request.amount.0 { NoPath::Balance { most: Msat(most) } } else { NoPath::NoWay }
}
