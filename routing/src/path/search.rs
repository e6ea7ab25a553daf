//! One way: Dijkstra's search from the payee back to this node.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use millrace_wire::{Msat, ShortChannelId};

use super::field::{Field, Need};
use super::frontier;
use super::weight::Weights;
use super::{FirstHop, Hop, NoPath, Path, Request};
use crate::map::Map;

/// The best way known from a node to the payee.
#[derive(Clone, Copy)]
struct Label {
    /// In which search this was written.
    search: u64,
    cost: u64,
    need: Need,
    is_settled: bool,
    /// The next node, and the channel to it; the payee has none.
    next: Option<(u32, ShortChannelId)>,
}

const NOTHING: Need = Need { amount: Msat::ZERO, delta: 0, hops: 0 };
const NEVER: Label = Label { search: 0, cost: u64::MAX, need: NOTHING, is_settled: false, next: None };

/// What searches need room for, to be used again by the next one.
#[derive(Default)]
pub struct Search {
    number: u64,
    labels: Vec<Label>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
}

/// Which way is the best.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The one of the least fees and weights, within all limits.
    Cost,
    /// The one of the least fees, whether they are within their limit or not.
    Fee,
}

/// What a search has come to.
struct Ran {
    path: Option<Path>,
    /// Ways within the fee limit were cut off for their blocks or hops.
    has_cut_within: bool,
    /// Ways that are dearer, too.
    has_cut_beyond: bool,
}

impl Search {
    /// Room for searches.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds the way that costs the least, by fees and by [`Weights`]; and if the limits of the request cut that one off, the
    /// way that costs the least in fees within them.
    ///
    /// # Errors
    /// [`NoPath`].
    pub fn find(&mut self, map: &Map, request: &Request<'_>, weights: &Weights<'_>) -> Result<Path, NoPath> {
        self.look(map, request, weights).map_err(|why| self.explain(why, map, request, weights))
    }

    /// The same, without asking whether it is the limit of blocks that leaves no way.
    pub(super) fn look(&mut self, map: &Map, request: &Request<'_>, weights: &Weights<'_>) -> Result<Path, NoPath> {
        let most = check(request)?;
        if request.amount > most {
            return Err(NoPath::Balance { most });
        }
        let field = Field::new(map, request, weights);
        let Some(path) = self.run(&field, By::Cost).path else { return self.find_within(&field) };
        Ok(path)
    }

    /// Where there is no way: whether there would be one if it could take as many blocks as it likes. It takes a further
    /// search, so it is asked once, at the end.
    pub(super) fn explain(&mut self, why: NoPath, map: &Map, request: &Request<'_>, weights: &Weights<'_>) -> NoPath {
        if why != NoPath::NoWay {
            return why;
        }
        let delta_limit = request.delta_limit;
        let unlimited = Request { delta_limit: u32::MAX, ..*request };
        match self.find_within(&Field::new(map, &unlimited, weights)).map(|path| path.delta()) {
            Ok(needed) if needed > delta_limit => NoPath::DeltaLimit { delta_limit, needed },
            // The search that keeps to the limit is bounded, and may miss a way: see `frontier`.
            Ok(_) => why,
            Err(why) => why,
        }
    }

    /// A node's best way may be the one that breaks a limit further on, and hide another that does not: so by fees alone, and
    /// by everything that has a limit if that is not enough.
    fn find_within(&mut self, field: &Field<'_>) -> Result<Path, NoPath> {
        let fee_limit = field.request.fee_limit;
        let Ran { path: cheapest, has_cut_within, has_cut_beyond } = self.run(field, By::Fee);
        let may_hide = match &cheapest {
            Some(path) => path.fee() > fee_limit && has_cut_within,
            None => has_cut_within || has_cut_beyond,
        };
        let found = if may_hide { frontier::cheapest(field).or(cheapest) } else { cheapest };
        match found {
            Some(path) if path.fee() <= fee_limit => Ok(path),
            Some(_) => Err(NoPath::FeeLimit { fee_limit }),
            None => Err(NoPath::NoWay),
        }
    }

    fn run(&mut self, field: &Field<'_>, by: By) -> Ran {
        let mut ran = Ran { path: None, has_cut_within: false, has_cut_beyond: false };
        self.begin(field.count());
        self.reach(field.payee, Label { cost: 0, need: field.end(), ..NEVER });
        while let Some(Reverse((cost, node))) = self.heap.pop() {
            let label = &mut self.labels[node as usize];
            if label.is_settled || label.cost != cost {
                continue;
            }
            label.is_settled = true;
            let need = label.need;
            if let Some(first_hop) = field.door(node, need.amount) {
                ran.path = Some(self.path(first_hop, node, field));
                return ran;
            }
            field.each_step(node, &need, |step| {
                if step.is_long {
                    *(if step.is_dear { &mut ran.has_cut_beyond } else { &mut ran.has_cut_within }) = true;
                    return;
                }
                let cost = match by {
                    By::Cost if step.is_dear => return,
                    By::Cost => cost.saturating_add(step.fee.0).saturating_add(step.weight),
                    By::Fee => step.need.amount.0,
                };
                let known = &self.labels[step.from as usize];
                if known.search != self.number || known.cost > cost {
                    let next = Some((node, step.short_channel_id));
                    self.reach(step.from, Label { cost, need: step.need, next, ..NEVER });
                }
            });
        }
        ran
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

    fn path(&self, first_hop: &FirstHop, peer: u32, field: &Field<'_>) -> Path {
        let mut hops = Vec::new();
        let mut at = Some((peer, first_hop.short_channel_id));
        while let Some((node, short_channel_id)) = at {
            let Label { need: Need { amount, delta, .. }, next, .. } = self.labels[node as usize];
            hops.push(Hop { node: field.node(node), short_channel_id, amount, delta });
            at = next;
        }
        Path { hops }
    }
}

/// What can be seen without a search: the most that one channel of ours carries.
fn check(request: &Request<'_>) -> Result<Msat, NoPath> {
    if request.source == request.payee {
        return Err(NoPath::Ourselves);
    }
    request.first_hops.iter().map(|first_hop| first_hop.most).max().ok_or(NoPath::NoChannel)
}
