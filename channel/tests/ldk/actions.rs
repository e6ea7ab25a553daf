//! What may happen while the channel is open, one thing at a time, by seed.

use bitcoin::hashes::{Hash, sha256};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::{PaymentId, RecipientOnionFields};
use lightning::ln::create_payment_onion;

use lightning::routing::router::{Path, Route, RouteHop};
use lightning::types::features::{ChannelFeatures, NodeFeatures};
use lightning::types::payment::{PaymentHash, PaymentPreimage, PaymentSecret};
use lightning::util::ser::Writeable;
use millrace_channel::input::{Command, Offer};
use millrace_channel::ledger::htlc::{Htlc, Origin};
use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_wire::{CltvExpiry, FeeratePerKw, HtlcId, Msat, OnionPacket, Preimage};
use secp256k1::{Secp256k1, SecretKey};

use crate::peer::Claimable;
use crate::world::World;

/// The highest feerate that either side takes.
const FEERATE_MOST: u32 = 250_000;

/// What is wrong with an onion of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Onion {
    Good,
    /// LDK knows no such payment: `update_fail_htlc`.
    OtherSecret,
    /// LDK cannot read it: `update_fail_malformed_htlc`.
    Garbled,
}

impl World {
    /// One thing.
    pub(crate) fn act(&mut self) -> Result<(), String> {
        match self.dice.below(100) {
            0..=19 => self.offer_some(),
            20..=36 => self.ldk_offer_some(),
            37..=54 => {
                self.decide_some();
                Ok(())
            }
            55..=70 => {
                self.ldk_decide_some();
                Ok(())
            }
            71..=74 => {
                self.change_fee();
                Ok(())
            }
            75..=78 => self.change_ldk_fee(),
            79..=84 => {
                self.cut();
                Ok(())
            }
            85..=87 => {
                self.restart_us();
                Ok(())
            }
            88..=91 => {
                self.restart_ldk();
                Ok(())
            }
            92 => {
                self.say("a block");
                self.tally.count("block");
                self.mine(&[]);
                self.check()
            }
            _ => {
                self.connect();
                Ok(())
            }
        }
    }

    // --- we offer ---

    fn offer_some(&mut self) -> Result<(), String> {
        let many = self.dice.chance(15);
        let count = if many { self.dice.between(3, 15) } else { 1 };
        if many {
            self.tally.count("offer of many");
        }
        for _ in 0..count {
            self.offer_one()?;
        }
        Ok(())
    }

    fn offer_one(&mut self) -> Result<(), String> {
        let available = self.node.available();
        if available == Msat::ZERO || self.ldk.channel().is_none() {
            return Ok(());
        }
        let all = available.0;
        let (amount, kind) = match self.dice.below(8) {
            0 => (1, "offer of 1 msat"),
            1 | 2 => (self.around_dust(), "offer around the dust limit"),
            3 => (all, "offer of all available"),
            4 => (all / 2 + 1, "offer"),
            5 => (self.dice.between(1, all.min(3_000_000)), "offer"),
            _ => (self.dice.between(1, all), "offer"),
        };
        let minimum = self.node.channel.terms().party(Side::Remote).htlc_minimum.0;
        let amount = Msat(amount.clamp(minimum.max(1).min(all), all));
        if amount.0 == all {
            self.refuse_more(all)?;
        }
        let kind = if amount == Msat(1) { "offer of 1 msat" } else { kind };
        if self.offer(amount).is_ok() {
            self.tally.count(kind);
        }
        Ok(())
    }

    /// One millisatoshi above what is available is refused, and nothing changes.
    fn refuse_more(&mut self, all: u64) -> Result<(), String> {
        if self.node.channel.is_link_up() && self.offer(Msat(all + 1)).is_ok() {
            return Err(format!("{all} msat are available, and one more is accepted"));
        }
        self.tally.count("offer refused above available");
        Ok(())
    }

    /// Offers an HTLC with an onion that LDK can read, or not.
    pub(crate) fn offer(&mut self, amount: Msat) -> Result<HtlcId, String> {
        let onion = match self.dice.below(12) {
            0 => Onion::OtherSecret,
            1 => Onion::Garbled,
            _ => Onion::Good,
        };
        self.offer_with(amount, onion)
    }

    pub(crate) fn offer_good(&mut self, amount: Msat) -> Result<HtlcId, String> {
        self.offer_with(amount, Onion::Good)
    }

    fn offer_with(&mut self, amount: Msat, onion: Onion) -> Result<HtlcId, String> {
        let offer = self.make_offer(amount, onion);
        let id = self.node.channel.offer(offer, &mut self.node.fx);
        self.node.drain();
        match &id {
            Ok(id) => {
                self.say(format!("we offer htlc {} of {amount}, onion {onion:?}", id.0));
                if onion != Onion::Good {
                    self.tally.count("ldk fail of a bad onion");
                }
            }
            Err(refusal) => self.say(format!("we refuse to offer {amount}: {refusal}")),
        }
        id.map_err(|refusal| refusal.to_string())
    }

    fn make_offer(&mut self, amount: Msat, onion: Onion) -> Offer {
        let hash = self.new_hash();
        let secret = match onion {
            Onion::OtherSecret => PaymentSecret(self.dice.bytes()),
            Onion::Good | Onion::Garbled => {
                self.ldk.manager.create_inbound_payment_for_hash(hash, None, 7200, None).unwrap()
            }
        };
        let delta = self.dice.between(50, 90) as u32;
        let path = Path { hops: vec![hop(self.ldk.id, 1, amount.0, delta)], blinded_tail: None };
        let (packet, htlc_msat, htlc_cltv) = create_payment_onion(
            &Secp256k1::new(),
            &path,
            &SecretKey::from_slice(&self.dice.bytes()).unwrap(),
            amount.0,
            &RecipientOnionFields::secret_only(secret),
            self.chain.height.0 + 1,
            &hash,
            &None,
            None,
            self.dice.bytes(),
        )
        .unwrap();
        let mut bytes: [u8; 1366] = packet.encode().try_into().unwrap();
        if onion == Onion::Garbled {
            bytes[700] ^= 1;
        }
        Offer {
            amount: Msat(htlc_msat),
            payment_hash: millrace_wire::PaymentHash(hash.0),
            cltv_expiry: CltvExpiry(htlc_cltv),
            onion: Box::new(OnionPacket(bytes)),
            path_key: None,
            origin: Origin::Payment { id: hash.0, attempt: 0 },
        }
    }

    /// Around the first amount that is an output of a commitment, at today's feerate.
    fn around_dust(&mut self) -> u64 {
        let terms = self.node.channel.terms();
        let side = self.dice.one_of(&[Side::Local, Side::Remote]);
        let weight = self.dice.one_of(&[663, 703]);
        let feerate = u64::from(self.node.channel.ledger().feerate_max().0);
        let fee = match terms.format() {
            CommitmentFormat::Anchors => 0,
            CommitmentFormat::StaticRemotekey => feerate * weight / 1000,
        };
        let threshold = (terms.party(side).dust_limit.0 + fee) * 1000;
        let change = self.dice.below(5);
        (threshold + change).saturating_sub(2)
    }

    fn new_hash(&mut self) -> PaymentHash {
        let preimage = Preimage::new(self.dice.bytes());
        let hash = PaymentHash(sha256::Hash::hash(preimage.as_bytes()).to_byte_array());
        self.preimages.insert(hash, preimage);
        hash
    }

    // --- LDK offers ---

    fn ldk_offer_some(&mut self) -> Result<(), String> {
        let many = self.dice.chance(15);
        let count = if many { self.dice.between(3, 15) } else { 1 };
        if many {
            self.tally.count("ldk offer of many");
        }
        for _ in 0..count {
            let Some(channel) = self.ldk.channel().filter(|channel| channel.is_usable) else { return Ok(()) };
            let all = channel.next_outbound_htlc_limit_msat;
            let minimum = channel.next_outbound_htlc_minimum_msat.max(1);
            if all < minimum {
                return Ok(());
            }
            let (amount, kind) = match self.dice.below(8) {
                0 => (1, "ldk offer of 1 msat"),
                1 | 2 => (self.around_dust(), "ldk offer around the dust limit"),
                3 => (all, "ldk offer of all available"),
                4 => (all / 2 + 1, "ldk offer"),
                5 => (self.dice.between(1, all.min(3_000_000)), "ldk offer"),
                _ => (self.dice.between(1, all), "ldk offer"),
            };
            let amount = amount.clamp(minimum, all);
            self.tally.count(if amount == 1 { "ldk offer of 1 msat" } else { kind });
            self.ldk_offer(&channel, amount);
        }
        self.check()
    }

    pub(crate) fn ldk_offer(&mut self, channel: &ChannelDetails, amount_msat: u64) {
        let hash = self.new_hash();
        let scid = channel.get_outbound_payment_scid().expect("a usable channel has one");
        let delta = self.dice.between(50, 90) as u32;
        let path = Path { hops: vec![hop(self.ldk.us, scid, amount_msat, delta)], blinded_tail: None };
        let route = Route { paths: vec![path], route_params: None };
        let recipient = RecipientOnionFields::secret_only(PaymentSecret(self.dice.bytes()));
        let sent = self.ldk.manager.send_payment_with_route(route, hash, recipient, PaymentId(hash.0));
        self.say(format!("LDK offers {amount_msat} msat: {sent:?}"));
        self.is_ldk_ahead = true;
    }

    // --- HTLCs end ---

    fn live(&self) -> Vec<(HtlcId, millrace_wire::PaymentHash, bool)> {
        let received = self.node.channel.ledger().htlcs(Side::Remote).iter();
        let seen = |htlc: &Htlc| (htlc.add.id, htlc.add.payment_hash, htlc.over_dust_exposure);
        received.filter(|htlc| htlc.is_live()).map(seen).collect()
    }

    fn decide_some(&mut self) {
        let live = self.live();
        let count = if self.dice.chance(25) { live.len() as u64 } else { 1.min(live.len() as u64) };
        for _ in 0..count {
            let live = self.live();
            let index = self.dice.below(live.len() as u64) as usize;
            self.decide(live[index]);
        }
    }

    /// We decide everything that waits for us.
    pub(crate) fn decide_all(&mut self) {
        for htlc in self.live() {
            self.decide(htlc);
        }
    }

    fn decide(&mut self, (id, hash, over_dust_exposure): (HtlcId, millrace_wire::PaymentHash, bool)) {
        let preimage = self.preimages[&PaymentHash(hash.0)].clone();
        let choice = if over_dust_exposure { 9 } else { self.dice.below(10) };
        let (command, kind) = match choice {
            0..=5 => (Command::Fulfill { id, preimage, attribution: None, is_durable: false }, "fulfil"),
            6 => {
                let failure_code = self.dice.one_of(&[0xc004, 0xc005, 0xc006]);
                let sha256_of_onion = self.dice.bytes();
                (Command::FailMalformed { id, sha256_of_onion, failure_code }, "malformed")
            }
            _ => {
                let length = self.dice.one_of(&[292, 292, 256, 32, 1]);
                (Command::Fail { id, reason: vec![7; length], attribution: None }, "fail")
            }
        };
        self.say(format!("we {kind} htlc {}", id.0));
        self.node.command(command).expect("a live HTLC may be decided");
        self.tally.count(kind);
    }

    fn ldk_decide_some(&mut self) {
        self.ldk.think();
        let count = self.ldk.told.claimable.len() as u64;
        let times = if self.dice.chance(25) { count } else { 1.min(count) };
        for _ in 0..times {
            let index = self.dice.below(self.ldk.told.claimable.len() as u64) as usize;
            let claimable = self.ldk.told.claimable.remove(index);
            self.ldk_decide(claimable);
        }
    }

    /// LDK decides everything that waits for it.
    pub(crate) fn ldk_decide_all(&mut self) {
        self.ldk.think();
        for claimable in std::mem::take(&mut self.ldk.told.claimable) {
            self.ldk_decide(claimable);
        }
    }

    fn ldk_decide(&mut self, claimable: Claimable) {
        let preimage = PaymentPreimage(*self.preimages[&claimable.hash].as_bytes());
        self.is_ldk_ahead = true;
        if self.dice.chance(65) {
            self.say(format!("LDK claims {} msat", claimable.amount_msat));
            self.tally.count("ldk claim");
            self.ldk.manager.claim_funds(preimage);
        } else {
            self.say(format!("LDK fails {} msat", claimable.amount_msat));
            self.tally.count("ldk fail");
            self.ldk.manager.fail_htlc_backwards(&claimable.hash);
        }
    }

    // --- fees ---

    fn any_feerate(&mut self) -> u32 {
        let now = self.node.channel.ledger().feerate_max().0;
        let feerate = match self.dice.below(9) {
            0 | 1 => 253,
            2 | 3 => now + 1,
            4 | 5 => now.saturating_mul(2),
            6 => self.dice.between(6_000, u64::from(FEERATE_MOST)) as u32,
            _ => self.dice.between(253, 6_000) as u32,
        };
        feerate.min(FEERATE_MOST)
    }

    fn change_fee(&mut self) {
        let feerate = self.any_feerate();
        if self.node.command(Command::UpdateFee(FeeratePerKw(feerate))).is_ok() {
            self.say(format!("our feerate becomes {feerate}"));
            self.tally.count("update_fee");
        }
    }

    fn change_ldk_fee(&mut self) -> Result<(), String> {
        let feerate = self.any_feerate();
        self.say(format!("LDK's estimator says {feerate}"));
        self.ldk.set_feerate(feerate);
        self.ldk.manager.timer_tick_occurred();
        self.is_ldk_ahead = true;
        if self.plan.opener == Side::Remote {
            self.tally.count("ldk update_fee");
        }
        self.check()
    }

    // --- every slot ---

    /// Both fill every slot of the other, small and large, dust and not.
    pub(crate) fn fill(&mut self) -> Result<(), String> {
        for n in 0..483 {
            self.offer_with(Msat(if n % 5 == 0 { 300_000 + n } else { 20_000_000 + n }), Onion::Good)?;
        }
        self.commit();
        let Some(channel) = self.ldk.channel() else { return Err("LDK has no channel".to_owned()) };
        for n in 0..483 {
            self.ldk_offer(&channel, if n % 7 == 0 { 200_000 + n } else { 21_000_000 + n });
        }
        self.exchange()?;
        let ledger = self.node.channel.ledger();
        let (ours, theirs) = (ledger.htlcs(Side::Local).len(), ledger.htlcs(Side::Remote).len());
        self.say(format!("{ours} and {theirs} in flight"));
        if ours == 483 {
            self.tally.count("483 offered by us at once");
        }
        if theirs == 483 {
            self.tally.count("483 offered by ldk at once");
        }
        Ok(())
    }
}

fn hop(pubkey: secp256k1::PublicKey, scid: u64, amount_msat: u64, delta: u32) -> RouteHop {
    RouteHop {
        pubkey,
        node_features: NodeFeatures::empty(),
        short_channel_id: scid,
        channel_features: ChannelFeatures::empty(),
        fee_msat: amount_msat,
        cltv_expiry_delta: delta,
        maybe_announced_channel: false,
    }
}
