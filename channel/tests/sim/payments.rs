//! Payments through the line, and the model switch that forwards them. The switch keeps nothing: what it knows after
//! a crash are the facts that the channels tell again.

use bitcoin::hashes::{Hash, sha256};
use millrace_channel::input::CloseOrder;
use millrace_channel::ledger::htlc::{Origin, Removal, Status};
use millrace_channel::ledger::stage::Stage;
use millrace_channel::side::Side;
use millrace_channel::{Command, Fact, Offer, Refusal};
use millrace_wire::{AttributionData, ChannelId, CltvExpiry, FeeratePerKw, HtlcId, Msat, OnionPacket, Preimage};

use crate::world::{Bug, World};

/// How a payment stands, as its payer sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Pending,
    Succeeded,
    Failed,
}

/// One payment.
pub struct Payment {
    pub from: usize,
    pub to: usize,
    pub amount: Msat,
    pub state: State,
    /// What the payer was told, which no crash may turn.
    pub told: Option<State>,
    /// The payee gave the preimage away.
    pub is_fulfilled: bool,
}

pub fn preimage_of(payment: usize) -> Preimage {
    Preimage::new(sha256::Hash::hash(&(payment as u64).to_le_bytes()).to_byte_array())
}

/// What the simulator's onion says: the payment, and who it is for.
fn onion(payment: usize, to: usize) -> Box<OnionPacket> {
    let mut bytes = [0; 1366];
    bytes[..4].copy_from_slice(&(payment as u32).to_le_bytes());
    bytes[4] = to as u8;
    Box::new(OnionPacket(bytes))
}

pub fn read_onion(onion: &OnionPacket) -> (usize, usize) {
    let payment = u32::from_le_bytes([onion.0[0], onion.0[1], onion.0[2], onion.0[3]]);
    (payment as usize, usize::from(onion.0[4]))
}

fn payment_origin(payment: usize) -> Origin {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(payment as u64).to_le_bytes());
    Origin::Payment { id, attempt: 0 }
}

fn payment_of(id: &[u8; 32]) -> usize {
    u64::from_le_bytes(id[..8].try_into().expect("eight bytes")) as usize
}

impl World {
    /// `from` pays `to`.
    pub fn pay(&mut self, from: usize, to: usize, amount: Msat) {
        let payment = self.payments.len();
        let link = if to > from { from } else { from - 1 };
        let hops = from.abs_diff(to) as u32;
        let state = State::Pending;
        self.payments.push(Payment { from, to, amount, state, told: None, is_fulfilled: false });
        let offer = Offer {
            amount,
            payment_hash: preimage_of(payment).hash(),
            cltv_expiry: CltvExpiry(self.blocks.tip().height.0 + 60 + 40 * hops),
            onion: onion(payment, to),
            path_key: None,
            origin: payment_origin(payment),
        };
        match self.command(from, link, Command::Offer(offer)) {
            Ok(()) => {
                self.note(format!("payment {payment}: {from} pays {to} {amount}"));
                self.counters.count(if hops == 1 { "act: pay direct" } else { "act: pay by forward" });
                if amount.0 < 330_000 {
                    self.counters.count("act: dust");
                }
            }
            Err(_) => self.tell(payment, State::Failed),
        }
    }

    fn tell(&mut self, payment: usize, state: State) {
        let known = &mut self.payments[payment];
        if known.state == state {
            return;
        }
        let (from, before, told) = (known.from, known.state, known.told);
        self.log.push(format!("payment {payment} from {from}: {state:?}"));
        known.state = state;
        known.told = Some(state);
        let is_turned = before != State::Pending || told.is_some_and(|told| told != state);
        if is_turned && !self.nodes[from].is_rolled_back {
            self.violate(format!("payment {payment} was {told:?} and turned {state:?}"));
        }
    }

    // --- facts, once they are durable ---

    pub fn on_fact(&mut self, node: usize, link: usize, fact: Fact) {
        match fact {
            Fact::HtlcReceived { id, over_dust_exposure, .. } => self.on_received(node, link, id, over_dust_exposure),
            Fact::OfferFulfilled { origin, preimage, .. } => self.on_fulfilled(node, origin, &preimage),
            Fact::OfferResolved { id, origin, removal } => {
                match &removal {
                    Removal::Fulfill { preimage, .. } => self.on_fulfilled(node, origin, preimage),
                    Removal::Fail { .. } | Removal::Malformed { .. } => self.on_failed(node, link, id, origin),
                }
                self.release_if_passed_on(node, link, id, origin);
            }
            Fact::OfferDropped { origin } | Fact::OfferTimedOut { origin, .. } => {
                self.on_failed(node, link, HtlcId(u64::MAX), origin);
            }
            Fact::RemovalIrrevocable { id, .. } => self.on_removed(node, link, id),
            Fact::CloseAsked => {
                self.end_mut(node, link).is_close_asked = true;
                self.answer_close(node, link);
            }
            Fact::HtlcPast(_) if self.bug == Some(Bug::LoseHtlcLog) => {}
            Fact::HtlcPast(past) => self.end_mut(node, link).past.push(past),
            Fact::Breached { .. } => {
                let past = self.end(node, link).past.clone();
                let _ = self.command(node, link, Command::BreachHtlcs(past));
            }
            Fact::OfferCommitted { .. }
            | Fact::Opened { .. }
            | Fact::FundingConfirmed { .. }
            | Fact::Ready
            | Fact::ShuttingDown
            | Fact::MutualCloseSigned { .. }
            | Fact::Failed { .. }
            | Fact::FundingSpent { .. }
            | Fact::Closed(_)
            | Fact::PeerSaid { .. }
            | Fact::OfferAttributed { .. }
            | Fact::Announced { .. } => {}
        }
    }

    /// Answers the peer's wish to close, if it can be told now.
    pub fn answer_close(&mut self, node: usize, link: usize) {
        if self.end(node, link).is_close_asked {
            let order = self.close_order(node);
            let is_answered = self.command(node, link, Command::Close(order)).is_ok();
            self.end_mut(node, link).is_close_asked = !is_answered;
        }
    }

    /// How a node of the simulator closes together with another.
    pub fn close_order(&self, node: usize) -> CloseOrder {
        let script = self.nodes[node].wallet.clone();
        CloseOrder { script, feerate: FeeratePerKw(500), feerate_max: FeeratePerKw(2_000) }
    }

    fn on_received(&mut self, node: usize, link: usize, id: HtlcId, over_dust_exposure: bool) {
        let Some(channel) = self.end(node, link).channel() else { return };
        let Some(htlc) = channel.htlc(Side::Remote, id).filter(|htlc| htlc.is_live()) else { return };
        let Some(onion) = &htlc.add.onion else { return };
        let (payment, to) = read_onion(onion);
        if over_dust_exposure {
            let _ = self.command(node, link, fail(id));
        } else if to == node {
            self.end_mut(node, link).held.insert(id);
        } else {
            self.forward(node, link, id, payment, to);
        }
    }

    fn forward(&mut self, node: usize, link: usize, id: HtlcId, payment: usize, to: usize) {
        let out = 1 - link;
        let Some(channel) = self.end(node, link).channel() else { return };
        let Some(htlc) = channel.htlc(Side::Remote, id) else { return };
        let origin = Origin::Forward { channel_id: channel.id(), htlc_id: id };
        if self.end(node, out).channel().is_some_and(|channel| channel.has_origin(origin)) {
            return;
        }
        let offer = Offer {
            amount: htlc.add.amount,
            payment_hash: htlc.add.payment_hash,
            cltv_expiry: CltvExpiry(htlc.add.cltv_expiry.0 - 40),
            onion: onion(payment, to),
            path_key: None,
            origin,
        };
        if self.command(node, out, Command::Offer(offer)).is_err() {
            let _ = self.command(node, link, fail(id));
        }
    }

    /// The link of `node` whose channel has this id.
    fn link_of(&self, node: usize, channel_id: ChannelId) -> Option<usize> {
        Self::links_of(node)
            .find(|link| self.end(node, *link).channel().is_some_and(|channel| channel.id() == channel_id))
    }

    fn on_fulfilled(&mut self, node: usize, origin: Origin, preimage: &Preimage) {
        match origin {
            Origin::Payment { id, .. } => self.tell(payment_of(&id), State::Succeeded),
            Origin::Forward { channel_id, htlc_id } => {
                let Some(upstream) = self.link_of(node, channel_id) else { return };
                // A fact is told once it is durable, so this is.
                let command =
                    Command::Fulfill { id: htlc_id, preimage: preimage.clone(), attribution: None, is_durable: true };
                if let Err(Refusal::WrongPreimage { .. }) = self.command(node, upstream, command) {
                    self.violate("a preimage of another HTLC went upstream".to_owned());
                }
            }
        }
    }

    fn on_failed(&mut self, node: usize, link: usize, id: HtlcId, origin: Origin) {
        match origin {
            Origin::Payment { id, .. } => self.tell(payment_of(&id), State::Failed),
            Origin::Forward { channel_id, htlc_id } => {
                if self.bug == Some(Bug::ReleaseEarly) {
                    let _ = self.command(node, link, Command::ReleaseOutcome(id));
                }
                let Some(upstream) = self.link_of(node, channel_id) else { return };
                let _ = self.command(node, upstream, fail(htlc_id));
            }
        }
    }

    /// What has nobody upstream to wait for any more needs no keeping.
    fn release_if_passed_on(&mut self, node: usize, link: usize, id: HtlcId, origin: Origin) {
        let Origin::Forward { channel_id, htlc_id } = origin else { return };
        let Some(upstream) = self.link_of(node, channel_id) else { return };
        let is_gone =
            self.end(node, upstream).channel().is_some_and(|channel| channel.htlc(Side::Remote, htlc_id).is_none());
        if is_gone {
            let _ = self.command(node, link, Command::ReleaseOutcome(id));
        }
    }

    fn on_removed(&mut self, node: usize, link: usize, id: HtlcId) {
        let Some(channel_id) = self.end(node, link).channel().map(millrace_channel::Channel::id) else { return };
        let origin = Origin::Forward { channel_id, htlc_id: id };
        for other in Self::links_of(node).filter(|other| *other != link).collect::<Vec<_>>() {
            let Some(channel) = self.end(node, other).channel() else { continue };
            let kept = channel.kept_outcomes().find(|(_, of)| *of == origin).map(|(id, _)| id);
            if let Some(kept) = kept {
                let _ = self.command(node, other, Command::ReleaseOutcome(kept));
            }
        }
    }

    /// The payee of some HTLC that was held back decides.
    pub fn decide(&mut self, node: usize, link: usize) -> bool {
        let Some(id) = self.end_mut(node, link).held.pop_first() else { return false };
        let onion =
            self.end(node, link).channel().and_then(|channel| channel.htlc(Side::Remote, id)?.add.onion.clone());
        let Some(onion) = onion else { return true };
        let (payment, _) = read_onion(&onion);
        let (what, command) = match self.pick(5) {
            0 => ("act: fail", fail(id)),
            1 => {
                let failure_code = 0x8000 | 0x4000 | 5;
                ("act: malformed", Command::FailMalformed { id, sha256_of_onion: [9; 32], failure_code })
            }
            _ => {
                let attribution = Some(Box::new(AttributionData { hold_times: [1; 80], hmacs: [2; 840] }));
                // Nobody but the payee knows how it decides, and after a crash it decides anew.
                let is_durable = self.bug == Some(Bug::FulfillEarly);
                ("act: fulfil", Command::Fulfill { id, preimage: preimage_of(payment), attribution, is_durable })
            }
        };
        let is_fulfil = what == "act: fulfil";
        if self.command(node, link, command).is_ok() {
            self.note(format!("node {node}, link {link}, HTLC {}: {what}, payment {payment}", id.0));
            self.counters.count(what);
            // A decision that a crash took back is made anew.
            self.payments[payment].is_fulfilled = is_fulfil;
        }
        true
    }

    /// Planted: forwards what is not irrevocable.
    pub fn forward_early(&mut self) {
        for link in 0..2 {
            let Some(channel) = self.end(1, link).channel() else { continue };
            let is_early = |status: &Status| matches!(status, Status::Adding(Stage::Acked));
            let early = channel.ledger().htlcs(Side::Remote).iter().find(|htlc| is_early(&htlc.status));
            let Some((id, onion)) = early.and_then(|htlc| Some((htlc.add.id, htlc.add.onion.clone()?))) else {
                continue;
            };
            let (payment, to) = read_onion(&onion);
            if to != 1 {
                self.forward(1, link, id, payment, to);
            }
        }
    }

    // --- the payer, across a crash ---

    /// A node that starts knows of its payments only that it wrote them down.
    pub fn forget_payments(&mut self, node: usize) {
        for payment in self.payments.iter_mut().filter(|payment| payment.from == node) {
            payment.state = State::Pending;
        }
    }

    /// What the records of a channel tell on replay.
    pub fn fold_payments(&mut self, node: usize, facts: &[Fact]) {
        for fact in facts {
            let (origin, state) = match fact {
                Fact::OfferFulfilled { origin, .. } => (origin, State::Succeeded),
                Fact::OfferResolved { origin, removal, .. } if !removal.is_fulfill() => (origin, State::Failed),
                Fact::OfferTimedOut { origin, .. } => (origin, State::Failed),
                _ => continue,
            };
            if let Origin::Payment { id, .. } = origin
                && self.payments[payment_of(id)].from == node
            {
                self.tell(payment_of(id), state);
            }
        }
    }

    /// A payment that no channel knows of has never left: it has failed.
    pub fn settle_payments(&mut self, node: usize) {
        for payment in 0..self.payments.len() {
            if self.payments[payment].from != node || self.payments[payment].state != State::Pending {
                continue;
            }
            let origin = payment_origin(payment);
            let is_known = Self::links_of(node)
                .any(|link| self.end(node, link).channel().is_some_and(|channel| channel.has_origin(origin)));
            if !is_known {
                self.tell(payment, State::Failed);
            }
        }
    }
}

fn fail(id: HtlcId) -> Command {
    Command::Fail { id, reason: vec![0; 292], attribution: None }
}
