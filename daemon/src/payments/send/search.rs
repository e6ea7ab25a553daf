//! Looking for ways: what a search needs, taken as of one moment, so that it holds up nothing; and what it finds, as HTLCs
//! that are ready to be offered.

use std::cell::RefCell;
use std::sync::Arc;

use millrace_channel::Side;
use millrace_routing::graph::NodeId;
use millrace_routing::liquidity::Liquidity;
use millrace_routing::map::Map;
use millrace_routing::path::{
    FirstHop, HOPS_MAX, InFlight, NoPath, Parts, Path, Request, Search, Weights, chances, find_parts,
};
use millrace_wire::{BlockHeight, ChannelId, Msat, OnionPacket, PublicKey, ShortChannelId};
use secp256k1::SecretKey;

use super::lessons::Lessons;
use super::ways::seconds;
use super::{Sending, World};
use crate::channels::ChannelSnapshot;
use crate::happened::PaymentId;
use crate::payments::prepare::{Goal, Plan, Prepared, build_over, expiry, height_unknown};
use crate::payments::refusal::PayRefusal;
use crate::route::{Route, RouteHop};

thread_local! {
    /// The room that a search needs is used again by the next one of the thread.
    static SEARCH: RefCell<Search> = RefCell::new(Search::new());
}

/// A channel of ours that can take an HTLC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Door {
    /// It.
    pub(crate) channel_id: ChannelId,
    /// As searches know it.
    pub(crate) hop: FirstHop,
}

impl Door {
    pub(crate) fn of(channel: &ChannelSnapshot) -> Self {
        let remote = channel.terms.party(Side::Remote);
        let hop = FirstHop {
            peer: channel.peer.into(),
            short_channel_id: scid_of(channel),
            least: remote.htlc_minimum,
            most: channel.available_to_send,
        };
        Self { channel_id: channel.channel_id, hop }
    }
}

/// A channel as people write it: its alias, if it has no other name, or must not use it.
pub(crate) fn scid_of(channel: &ChannelSnapshot) -> ShortChannelId {
    channel.short_channel_id.filter(|_| !channel.terms.channel_type.scid_alias).unwrap_or(channel.local_alias)
}

/// An HTLC that is ready to be offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) attempt: u32,
    pub(crate) channel_id: ChannelId,
    pub(crate) route: Route,
    pub(crate) onion: Box<OnionPacket>,
    /// How likely it is to arrive, by what is known of the channels, in millionths.
    pub(crate) chance_ppm: u32,
}

/// What a search has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) parts: Vec<Part>,
    /// What payments have taught says that they do not arrive, and there is nothing better.
    pub(crate) is_last_resort: bool,
}

/// A search that is to be done.
pub(crate) struct Job {
    pub(crate) id: PaymentId,
    pub(crate) goal: Arc<Goal>,
    /// What is still to be brought there...
    pub(crate) amount: Msat,
    /// ...and what may still be paid for that.
    pub(crate) fee_limit: Msat,
    pub(crate) parts_max: usize,
    pub(crate) blocks_max: u16,
    /// What is known may be set aside where it leaves no way.
    pub(crate) may_resort: bool,
    /// The numbers of the attempts begin here.
    pub(crate) first_attempt: u32,
    pub(crate) doors: Vec<Door>,
    pub(crate) lessons: Lessons,
    pub(crate) map: Arc<Map>,
    pub(crate) liquidity: Arc<Liquidity>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) now_s: u32,
    pub(crate) height: Option<BlockHeight>,
    pub(crate) node_id: PublicKey,
    pub(crate) node_key: SecretKey,
}

impl Sending {
    /// What a search needs; none if there is no channel to begin with.
    pub(super) fn job(&mut self, id: PaymentId, plan: &Plan, world: &World<'_>) -> Option<Job> {
        let payment = self.payments.get_mut(&id)?;
        let mut doors = Vec::new();
        for channel in (world.channels)().iter().filter(|channel| channel.is_usable()) {
            if self.load.is_full(channel) && !payment.full.contains(&channel.channel_id) {
                payment.full.push(channel.channel_id);
            }
            if !payment.full.contains(&channel.channel_id) {
                doors.push(Door::of(channel));
            }
        }
        if doors.is_empty() {
            return None;
        }
        let live = payment.live().count() + payment.ready.len();
        Some(Job {
            amount: payment.missing(),
            fee_limit: payment.fee_left(plan),
            parts_max: plan.parts_max.saturating_sub(live).max(1),
            may_resort: payment.patience.may_resort(),
            first_attempt: payment.next_attempt,
            lessons: payment.lessons.clone(),
            ..self.whole(id, plan, doors, world)
        })
    }

    /// What ways a payment would take now, if it were begun: nothing is kept of the question.
    pub(crate) fn estimate(&self, prepared: &Prepared, world: &World<'_>) -> Job {
        let usable = (world.channels)();
        let doors = usable.iter().filter(|channel| channel.is_usable()).map(|channel| Door::of(channel)).collect();
        self.whole(prepared.id, &prepared.plan, doors, world)
    }

    /// For the whole amount, of which nothing has been tried.
    fn whole(&self, id: PaymentId, plan: &Plan, doors: Vec<Door>, world: &World<'_>) -> Job {
        Job {
            id,
            goal: Arc::clone(&plan.goal),
            amount: plan.goal.amount,
            fee_limit: plan.fee_limit,
            parts_max: plan.parts_max,
            blocks_max: plan.blocks_max,
            may_resort: true,
            first_attempt: 0,
            doors,
            lessons: Lessons::none(),
            map: Arc::clone(&world.map),
            liquidity: self.memory.liquidity(),
            in_flight: self.memory.in_flight(),
            now_s: seconds(world.unix_ms),
            height: world.height,
            node_id: world.rules.node_id,
            node_key: world.rules.node_key,
        }
    }
}

impl Job {
    /// Finds ways that together carry the amount. Takes its time.
    ///
    /// # Errors
    /// [`PayRefusal::NoRoute`] if there are none; what [`check_payee`] refuses.
    pub(crate) fn run(&self) -> Result<Found, PayRefusal> {
        check_payee(&self.goal, &self.map)?;
        let height = self.height.ok_or_else(height_unknown)?;
        let payee = NodeId::from(self.goal.payee);
        let caps = self.lessons.limits(&self.map, payee);
        let known = Weights {
            liquidity: &self.liquidity,
            in_flight: &self.in_flight,
            caps: &caps,
            now: self.now_s,
            is_last_resort: false,
        };
        let (paths, weights) = self.paths(&known)?;
        let numbered = paths.iter().zip(chances(&self.map, &paths, &weights)).zip(self.first_attempt..);
        let parts = numbered.map(|((path, chance), attempt)| self.part(path, chance, attempt, height));
        Ok(Found { parts: parts.collect::<Result<_, _>>()?, is_last_resort: weights.is_last_resort })
    }

    /// Ways by what is known; and where that leaves none, by what can be at all. Channels fill up again, and some have refused
    /// for a moment alone: to ask once more costs little, and to give up costs the payment.
    fn paths<'a>(&self, known: &Weights<'a>) -> Result<(Vec<Path>, Weights<'a>), PayRefusal> {
        let last_resort = Weights { is_last_resort: true, ..*known };
        let found = match self.look(known) {
            Err(NoPath::NoWay | NoPath::FeeLimit { .. } | NoPath::DeltaLimit { .. }) if self.may_resort => {
                self.look(&last_resort).map(|paths| (paths, last_resort))
            }
            found => found.map(|paths| (paths, *known)),
        };
        found.map_err(|why| {
            let why = match why {
                // The last part that was tried had but a share of it.
                NoPath::FeeLimit { .. } => NoPath::FeeLimit { fee_limit: self.fee_limit },
                NoPath::Ourselves
                | NoPath::NoChannel
                | NoPath::Balance { .. }
                | NoPath::NoWay
                | NoPath::DeltaLimit { .. } => why,
            };
            PayRefusal::NoRoute { payee: self.goal.payee, why }
        })
    }

    fn look(&self, weights: &Weights<'_>) -> Result<Vec<Path>, NoPath> {
        let payee = NodeId::from(self.goal.payee);
        let request = Request {
            source: self.node_id.into(),
            payee,
            amount: self.amount,
            final_delta: u32::from(self.goal.final_delta.0),
            fee_limit: self.fee_limit,
            delta_limit: u32::from(self.blocks_max),
            hops_limit: HOPS_MAX,
            first_hops: &self.lessons.doors(&self.doors, payee),
            hints: &self.lessons.hints(&self.goal.hints, payee),
        };
        SEARCH.with_borrow_mut(|search| match self.parts_max {
            0 | 1 => search.find(&self.map, &request, weights).map(|path| vec![path]),
            most => find_parts(search, &self.map, &request, weights, Parts { most }),
        })
    }

    fn part(&self, path: &Path, chance: f64, attempt: u32, height: BlockHeight) -> Result<Part, PayRefusal> {
        let hops: Result<Vec<RouteHop>, PayRefusal> = path
            .hops
            .iter()
            .map(|hop| {
                let no_key = || PayRefusal::Internal(format!("the graph's node {} has no key", hop.node));
                Ok(RouteHop {
                    node: hop.node.public_key().ok_or_else(no_key)?,
                    scid: hop.short_channel_id,
                    amount: hop.amount,
                    cltv_expiry: expiry(height, hop.delta)?,
                })
            })
            .collect();
        let route = Route { hops: hops? };
        let first = path.hops.first().map(|hop| hop.short_channel_id);
        let door = self.doors.iter().find(|door| Some(door.hop.short_channel_id) == first);
        let no_door = || PayRefusal::Internal("a way begins with no channel of ours".to_owned());
        let channel_id = door.ok_or_else(no_door)?.channel_id;
        let onion = build_over(&self.goal, self.id, attempt, &self.node_key, &route.hops)?;
        Ok(Part { attempt, channel_id, route, onion, chance_ppm: (chance * 1e6) as u32 })
    }
}

/// BOLT 7, "The `node_announcement` Message": a node that demands what is unknown here is paid by its invoices alone, which say
/// themselves what they demand.
pub(super) fn check_payee(goal: &Goal, map: &Map) -> Result<(), PayRefusal> {
    let is_asked_for = goal.keysend_preimage.is_none();
    if is_asked_for || map.is_understood(&goal.payee.into()) {
        Ok(())
    } else {
        Err(PayRefusal::PayeeDemands { payee: goal.payee })
    }
}

/// Without the key.
impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, amount, fee_limit, .. } = self;
        f.debug_struct("Job")
            .field("id", id)
            .field("amount", amount)
            .field("fee_limit", fee_limit)
            .finish_non_exhaustive()
    }
}
