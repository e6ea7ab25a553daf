//! Channels of one node whose peers are played by hand: with HTLCs in flight, and every commitment that may end them.

use std::collections::VecDeque;

use bitcoin::{OutPoint, Transaction};
use millrace_channel::curve::Serial;
use millrace_channel::keys::{ChannelKeys, CommitmentKeys};
use millrace_channel::ledger::htlc::Origin;
use millrace_channel::record::{Opened, Signature64};
use millrace_channel::tx::{Commitment, CommitmentSpec};
use millrace_channel::{
    Both, ChainEvent, Channel, ChannelType, Command, CommitmentFormat, Effect, Effects, LinkEvent, LinkFeatures,
    Millis, Offer, PartyTerms, Policy, Side, Terms,
};
use millrace_wire::{
    BlockHeight, ChannelId, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Message, Msat, OnionPacket, Preimage,
    Sat, ShortChannelId,
};
use secp256k1::rand::Rng;
use secp256k1::rand::rngs::StdRng;

use crate::keys::Keys;

pub(super) const CAPACITY: Sat = Sat(10_000_000);
const HALF: Sat = Sat(5_000_000);
const DELAY: u16 = 10;
/// Buried soon, so that stories are short.
const POLICY: Policy = Policy {
    max_dust_exposure: Msat(50_000_000),
    offered_grace: 2,
    received_margin: 18,
    revoke_timeout_ms: 30_000,
    burial_depth: 6,
};
const FEATURES: LinkFeatures = LinkFeatures { simple_close: true, shutdown_anysegwit: true };

/// One end.
pub(super) struct End {
    pub(super) channel: Channel,
    pub(super) fx: Effects,
    keys: ChannelKeys,
    outbox: VecDeque<Message>,
}

/// Whose commitment ends the channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    Ours,
    Current,
    Next,
    Revoked,
}

/// A channel, ready to be closed.
pub(super) struct Scene {
    pub(super) ours: End,
    pub(super) closing: Closing,
    /// The peer's commitment that it may broadcast.
    pub(super) theirs: Transaction,
    /// The preimages of the HTLCs that we offered, which the peer may know.
    pub(super) preimages: Vec<[u8; 32]>,
}

fn terms(ours: &ChannelKeys, theirs: &ChannelKeys, index: u8, format: CommitmentFormat, funding: OutPoint) -> Terms {
    let party = |keys: &ChannelKeys| PartyTerms {
        dust_limit: Sat(354),
        max_htlc_value_in_flight: Msat(u64::MAX),
        channel_reserve: Sat(10_000),
        htlc_minimum: Msat(1),
        to_self_delay: DELAY,
        max_accepted_htlcs: 483,
        basepoints: keys.basepoints().clone(),
        upfront_shutdown_script: None,
    };
    Terms {
        channel_id: ChannelId([index; 32]),
        remote_node: theirs.basepoints().funding,
        funder: if index.is_multiple_of(2) { Side::Local } else { Side::Remote },
        channel_type: ChannelType { format, scid_alias: false, zero_conf: false },
        funding_outpoint: funding,
        capacity: CAPACITY,
        push: HALF.to_msat(),
        minimum_depth: 0,
        announce: false,
        parties: Both { local: party(ours), remote: party(theirs) },
    }
}

fn mirrored(terms: &Terms, other: &ChannelKeys) -> Terms {
    let Both { local, remote } = terms.parties.clone();
    Terms {
        funder: terms.funder.other(),
        parties: Both { local: remote, remote: local },
        remote_node: other.basepoints().funding,
        ..terms.clone()
    }
}

/// What a funding output must be; its outpoint follows from the transaction.
pub(super) fn funding_output(keys: &Keys, index: u8, format: CommitmentFormat) -> bitcoin::TxOut {
    let ours = keys.channel_keys(u64::from(index));
    millrace_channel::tx::funding::output_of(&terms(&ours, &peer_keys(index), index, format, OutPoint::null()))
}

fn peer_keys(index: u8) -> ChannelKeys {
    ChannelKeys::from_seed(&[0x80 | index; 32])
}

impl End {
    /// With commitment 0, signed by the other side.
    fn new(
        index: u8,
        own: (&Terms, &ChannelKeys),
        other: (&Terms, &ChannelKeys),
        feerate: FeeratePerKw,
        height: BlockHeight,
    ) -> Self {
        let ((terms, keys), (theirs, peer)) = (own, other);
        let number = CommitmentNumber(0);
        let point = keys.commitment_point(number);
        let balances = theirs.first_balances();
        let spec = CommitmentSpec { side: Side::Remote, number, feerate, balances, htlcs: &[] };
        let commitment = Commitment::build(theirs, &CommitmentKeys::of(theirs, Side::Remote, &point), &spec);
        let opened = Opened {
            terms: terms.clone(),
            keys_index: u64::from(index),
            feerate,
            signature: Signature64(commitment.sign(theirs, peer)),
            remote_first_point: peer.commitment_point(number),
            funding_tx: None,
            opened_at: height,
            local_alias: ShortChannelId(if terms.funder == Side::Local { 11 } else { 22 }),
        };
        let channel = Channel::from_opened(opened, keys.clone(), POLICY).unwrap();
        let mut end = Self { channel, fx: Effects::default(), keys: keys.clone(), outbox: VecDeque::new() };
        end.channel.on_link(LinkEvent::Up { features: FEATURES }, &mut end.fx);
        let tip = ChainEvent::Tip { height, block: bitcoin::hashes::Hash::all_zeros() };
        end.channel.on_chain(tip, &mut end.fx);
        end
    }

    fn drain(&mut self) {
        for effect in std::mem::take(&mut self.fx).list {
            if let Effect::Send(message) = effect {
                self.outbox.push_back(*message);
            }
        }
    }

    fn offer(&mut self, amount: Msat, preimage: [u8; 32], cltv_expiry: u32) -> HtlcId {
        let offer = Offer {
            amount,
            payment_hash: Preimage::new(preimage).hash(),
            cltv_expiry: CltvExpiry(cltv_expiry),
            onion: Box::new(OnionPacket([7; 1366])),
            path_key: None,
            origin: Origin::Payment { id: preimage, attempt: 0 },
        };
        self.channel.offer(offer, &mut self.fx).unwrap()
    }

    fn commit(&mut self) {
        self.channel.commit(Millis(0), &Serial, &mut self.fx);
        self.drain();
    }

    fn receive(&mut self, message: Message) {
        self.channel.on_message(message, &Serial, &mut self.fx).unwrap();
    }

    /// The commitment that it would broadcast now.
    fn commitment(&self) -> Transaction {
        let mut bytes = Vec::new();
        self.channel.snapshot(&mut bytes);
        let mut copy = Channel::restore(&bytes, POLICY, |_| self.keys.clone()).unwrap();
        let mut fx = Effects::default();
        copy.on_command(Command::ForceClose { reason: "a copy".to_owned() }, &mut fx).unwrap();
        let tx = |effect: Effect| if let Effect::Broadcast(found) = effect { Some(found.tx) } else { None };
        fx.list.into_iter().find_map(tx).unwrap()
    }

    /// As after a restart: nothing but what is written down.
    pub(super) fn restarted(&self, height: BlockHeight) -> Self {
        let mut bytes = Vec::new();
        self.channel.snapshot(&mut bytes);
        let channel = Channel::restore(&bytes, POLICY, |_| self.keys.clone()).unwrap();
        let mut end = Self { channel, fx: Effects::default(), keys: self.keys.clone(), outbox: VecDeque::new() };
        let tip = ChainEvent::Tip { height, block: bitcoin::hashes::Hash::all_zeros() };
        end.channel.on_chain(tip, &mut end.fx);
        end.channel.resume(&mut end.fx);
        end
    }
}

fn exchange(one: &mut End, other: &mut End) {
    loop {
        one.commit();
        other.commit();
        if one.outbox.is_empty() && other.outbox.is_empty() {
            return;
        }
        while let Some(message) = one.outbox.pop_front() {
            other.receive(message);
        }
        other.drain();
        while let Some(message) = other.outbox.pop_front() {
            one.receive(message);
        }
        one.drain();
    }
}

impl Scene {
    /// A channel with HTLCs both ways. We know the preimages of some of those that we received.
    pub(super) fn new(
        rng: &mut StdRng,
        keys: &Keys,
        index: u8,
        format: CommitmentFormat,
        funding: OutPoint,
        height: BlockHeight,
    ) -> Self {
        let (our_keys, peer_keys) = (keys.channel_keys(u64::from(index)), peer_keys(index));
        let terms = terms(&our_keys, &peer_keys, index, format, funding);
        let theirs = mirrored(&terms, &our_keys);
        let feerate = FeeratePerKw(rng.gen_range(253..1_500));
        let (one, other) = ((&terms, &our_keys), (&theirs, &peer_keys));
        let mut ours = End::new(index, one, other, feerate, height);
        let mut peer = End::new(index, other, one, feerate, height);
        exchange(&mut ours, &mut peer);
        let revoked = peer.commitment();
        let mut serial = 0;
        let mut htlc = |rng: &mut StdRng| {
            serial += 1;
            let amount = Msat(1_000_000 * 10_u64.pow(rng.gen_range(0..3)) * rng.gen_range(1..10));
            let mut preimage = [index; 32];
            preimage[0] = serial;
            (amount, preimage, height.0 + rng.gen_range(20..50))
        };
        let (mut preimages, mut received) = (Vec::new(), Vec::new());
        for _ in 0..rng.gen_range(0..6) {
            let (amount, preimage, expiry) = htlc(rng);
            ours.offer(amount, preimage, expiry);
            preimages.push(preimage);
        }
        for _ in 0..rng.gen_range(0..6) {
            let (amount, preimage, expiry) = htlc(rng);
            received.push((peer.offer(amount, preimage, expiry), preimage));
        }
        exchange(&mut ours, &mut peer);
        let closing = [Closing::Ours, Closing::Current, Closing::Next, Closing::Revoked][rng.gen_range(0..4)];
        let mut theirs = if closing == Closing::Revoked { revoked } else { peer.commitment() };
        if closing == Closing::Next {
            let (amount, preimage, expiry) = htlc(rng);
            ours.offer(amount, preimage, expiry);
            preimages.push(preimage);
            ours.commit();
            for message in std::mem::take(&mut ours.outbox) {
                peer.receive(message);
            }
            theirs = peer.commitment();
        }
        ours.channel.on_link(LinkEvent::Down, &mut ours.fx);
        ours.drain();
        for (id, preimage) in received {
            if rng.gen_bool(0.7) {
                let preimage = Preimage::new(preimage);
                let fulfill = Command::Fulfill { id, preimage, attribution: None, is_durable: false };
                ours.channel.on_command(fulfill, &mut ours.fx).unwrap();
            }
        }
        ours.drain();
        Self { ours, closing, theirs, preimages }
    }
}
