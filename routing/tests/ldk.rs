//! Our onions against LDK's: what either builds the other peels, and both build the same bytes.
#![allow(clippy::unwrap_used)]

use bitcoin::hashes::{Hash as _, HashEngine as _, Hmac, HmacEngine, sha256};
use lightning::ln::channelmanager::{PendingHTLCRouting, RecipientOnionFields};
use lightning::ln::msgs;
use lightning::ln::onion_payment::{InboundHTLCErr, peel_payment_onion};
use lightning::ln::types::ChannelId;
use lightning::ln::{LocalHTLCFailureReason, create_payment_onion};
use lightning::routing::router::{Path, RouteHop};
use lightning::sign::KeysManager;
use lightning::types::features::{ChannelFeatures, NodeFeatures};
use lightning::util::logger::{Logger, Record};
use lightning::util::ser::{LengthReadable as _, Writeable as _};
use millrace_routing::failure::code;
use millrace_routing::onion::{
    BuiltOnion, FinalPayload, ForwardPayload, Hop, Incoming, Payload, PeelFault, PeeledHop, build, peel,
};
use millrace_wire::{
    BlockHeight, CltvExpiry, Msat, OnionPacket, PaymentHash, PaymentSecret, PublicKey, ShortChannelId,
};
use proptest::prelude::*;
use secp256k1::{SECP256K1, SecretKey};

const HEIGHT: BlockHeight = BlockHeight(800_000);

struct Silent;

impl Logger for Silent {
    fn log(&self, _record: Record<'_>) {}
}

/// A payment as both sides are told of it. LDK asks 48 blocks for a forward, more than 40 at
/// the end, and not above 2016 in all.
#[derive(Clone, Debug)]
struct Payment {
    session_key: SecretKey,
    payment_hash: PaymentHash,
    payment_secret: PaymentSecret,
    metadata: Option<Vec<u8>>,
    amount: Msat,
    final_blocks: u32,
    /// Of each hop before the last: fee, blocks, the channel it forwards over.
    forwards: Vec<(Msat, u32, ShortChannelId)>,
}

fn payments() -> impl Strategy<Value = Payment> {
    let forward = (0u64..1_000_000, 48u32..100, any::<u64>());
    (
        any::<[u8; 32]>().prop_filter_map("no key", |bytes| SecretKey::from_slice(&bytes).ok()),
        any::<[u8; 32]>(),
        any::<[u8; 32]>(),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..100)),
        1u64..1 << 50,
        41u32..400,
        prop::collection::vec(forward, 0..16),
    )
        .prop_map(|(session_key, hash, secret, metadata, amount, final_blocks, forwards)| Payment {
            session_key,
            payment_hash: PaymentHash(hash),
            payment_secret: PaymentSecret::new(secret),
            metadata,
            amount: Msat(amount),
            final_blocks,
            forwards: forwards.into_iter().map(|(fee, blocks, id)| (Msat(fee), blocks, ShortChannelId(id))).collect(),
        })
}

impl Payment {
    fn hops(&self) -> usize {
        self.forwards.len() + 1
    }

    /// What the HTLC to each hop carries and when it expires, first hop first.
    fn htlcs(&self) -> Vec<(Msat, CltvExpiry)> {
        let mut htlc = (self.amount, CltvExpiry(HEIGHT.0 + self.final_blocks));
        let mut htlcs = vec![htlc];
        for (fee, blocks, _) in self.forwards.iter().rev() {
            htlc = (htlc.0.checked_add(*fee).unwrap(), CltvExpiry(htlc.1.0 + blocks));
            htlcs.push(htlc);
        }
        htlcs.reverse();
        htlcs
    }

    fn build(&self) -> BuiltOnion {
        let htlcs = self.htlcs();
        let last = FinalPayload::new(
            self.amount,
            htlcs[self.hops() - 1].1,
            self.payment_secret.clone(),
            self.metadata.clone(),
        );
        let forwards = self.forwards.iter().zip(&htlcs[1..]).map(|((_, _, next), (amount, expiry))| {
            Payload::Forward(ForwardPayload { next: *next, amount: *amount, expiry: *expiry })
        });
        let payloads = forwards.chain([Payload::Final(last)]);
        let hops: Vec<Hop> =
            payloads.enumerate().map(|(index, payload)| Hop { node_id: node_id(index), payload }).collect();
        build(&self.session_key, &hops, &self.payment_hash).unwrap()
    }

    /// LDK's path names the channel towards each hop, and each hop's fee and blocks for the next channel.
    fn build_by_ldk(&self) -> OnionPacket {
        let ends =
            self.forwards.iter().map(|(fee, blocks, _)| (fee.0, *blocks)).chain([(self.amount.0, self.final_blocks)]);
        let channels = [ShortChannelId(0)].into_iter().chain(self.forwards.iter().map(|(_, _, id)| *id));
        let hop = |(index, ((fee_msat, cltv_expiry_delta), channel)): (usize, ((u64, u32), ShortChannelId))| RouteHop {
            pubkey: node_id(index),
            node_features: NodeFeatures::empty(),
            short_channel_id: channel.0,
            channel_features: ChannelFeatures::empty(),
            fee_msat,
            cltv_expiry_delta,
            maybe_announced_channel: true,
        };
        let path = Path { hops: ends.zip(channels).enumerate().map(hop).collect(), blinded_tail: None };
        let mut fields = RecipientOnionFields::secret_only((&self.payment_secret).into());
        fields.payment_metadata = self.metadata.clone();
        let (packet, amount, expiry) = create_payment_onion(
            SECP256K1,
            &path,
            &self.session_key,
            self.amount.0,
            &fields,
            HEIGHT.0,
            &self.payment_hash.into(),
            &None,
            None,
            pad_key(&self.session_key),
        )
        .unwrap();
        assert_eq!((Msat(amount), CltvExpiry(expiry)), self.htlcs()[0]);
        OnionPacket(packet.encode().try_into().unwrap())
    }
}

/// BOLT 4 fills the last hop's room from the session key; LDK leaves the choice to the caller.
fn pad_key(session_key: &SecretKey) -> [u8; 32] {
    let mut engine = HmacEngine::<sha256::Hash>::new(b"pad");
    engine.input(&session_key.secret_bytes());
    Hmac::from_engine(engine).to_byte_array()
}

fn keys(index: usize) -> KeysManager {
    let mut seed = [0x5a; 32];
    seed[0] = u8::try_from(index).unwrap();
    KeysManager::new(&seed, 0, 0, false)
}

fn node_id(index: usize) -> PublicKey {
    keys(index).get_node_secret_key().public_key(SECP256K1)
}

fn peel_by_ldk(
    index: usize,
    packet: &OnionPacket,
    payment_hash: PaymentHash,
    (amount, expiry): (Msat, CltvExpiry),
) -> Result<(PendingHTLCRouting, [u8; 32], u64, u32), InboundHTLCErr> {
    let add = msgs::UpdateAddHTLC {
        channel_id: ChannelId::new_zero(),
        htlc_id: 0,
        amount_msat: amount.0,
        payment_hash: payment_hash.into(),
        cltv_expiry: expiry.0,
        skimmed_fee_msat: None,
        onion_routing_packet: msgs::OnionPacket::read_from_fixed_length_buffer(&mut &packet.0[..]).unwrap(),
        blinding_point: None,
        hold_htlc: None,
    };
    peel_payment_onion(&add, &keys(index), &Silent, SECP256K1, HEIGHT.0, false)
        .map(|info| (info.routing, info.incoming_shared_secret, info.outgoing_amt_msat, info.outgoing_cltv_value))
}

fn incoming<'a>(
    packet: &'a OnionPacket,
    payment_hash: &'a PaymentHash,
    (amount, cltv_expiry): (Msat, CltvExpiry),
) -> Incoming<'a> {
    Incoming { packet, payment_hash, amount, cltv_expiry, height: HEIGHT, path_key: None }
}

fn one_payment() -> Payment {
    Payment {
        session_key: SecretKey::from_slice(&[0x41; 32]).unwrap(),
        payment_hash: PaymentHash([0x42; 32]),
        payment_secret: PaymentSecret::new([0x43; 32]),
        metadata: None,
        amount: Msat(50_000),
        final_blocks: 42,
        forwards: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_build_the_same_bytes(payment in payments()) {
        prop_assert!(payment.build().packet.0 == payment.build_by_ldk().0);
    }

    #[test]
    fn ldk_peels_what_we_build(payment in payments()) {
        let built = payment.build();
        let htlcs = payment.htlcs();
        let mut packet = built.packet;
        for index in 0..payment.hops() {
            let (routing, secret, amount, expiry) =
                peel_by_ldk(index, &packet, payment.payment_hash, htlcs[index]).map_err(|fault| fault.msg).unwrap();
            prop_assert_eq!(&secret, built.shared_secrets[index].as_bytes());
            let told = htlcs[(index + 1).min(payment.hops() - 1)];
            prop_assert_eq!((Msat(amount), CltvExpiry(expiry)), told);
            match routing {
                PendingHTLCRouting::Forward { onion_packet, short_channel_id, .. } => {
                    prop_assert_eq!(short_channel_id, payment.forwards[index].2.0);
                    *packet = OnionPacket(onion_packet.encode().try_into().unwrap());
                }
                PendingHTLCRouting::Receive { payment_data, payment_metadata, .. } => {
                    prop_assert_eq!(index + 1, payment.hops());
                    prop_assert_eq!(PaymentSecret::from(payment_data.payment_secret), payment.payment_secret.clone());
                    prop_assert_eq!(payment_data.total_msat, payment.amount.0);
                    prop_assert_eq!(payment_metadata, payment.metadata.clone());
                }
                _ => prop_assert!(false, "neither forwarded nor received"),
            }
        }
    }

    #[test]
    fn we_peel_what_ldk_builds(payment in payments()) {
        let htlcs = payment.htlcs();
        let mut packet = Box::new(payment.build_by_ldk());
        for index in 0..payment.hops() {
            let secret = keys(index).get_node_secret_key();
            let peeled = peel(&secret, &incoming(&packet, &payment.payment_hash, htlcs[index])).unwrap();
            match peeled.hop {
                PeeledHop::Forward(forward) => {
                    prop_assert_eq!(forward.next, payment.forwards[index].2);
                    prop_assert_eq!((forward.amount, forward.expiry), htlcs[index + 1]);
                    packet = forward.packet;
                }
                PeeledHop::Final(last) => {
                    prop_assert_eq!(index + 1, payment.hops());
                    prop_assert_eq!((last.amount_to_forward, last.outgoing_cltv), htlcs[index]);
                    prop_assert_eq!(last.total_msat, payment.amount);
                    prop_assert_eq!(last.payment_secret, Some(payment.payment_secret.clone()));
                    prop_assert_eq!(last.payment_metadata, payment.metadata.clone());
                }
            }
        }
    }
}

#[test]
fn both_see_the_same_fault_in_a_broken_packet() {
    let payment = one_payment();
    let htlc = payment.htlcs()[0];
    let faults = [
        (0, code::INVALID_ONION_VERSION, LocalHTLCFailureReason::InvalidOnionVersion),
        (1, code::INVALID_ONION_KEY, LocalHTLCFailureReason::InvalidOnionKey),
        (34, code::INVALID_ONION_HMAC, LocalHTLCFailureReason::InvalidOnionHMAC),
        (1365, code::INVALID_ONION_HMAC, LocalHTLCFailureReason::InvalidOnionHMAC),
    ];
    for (at, ours, theirs) in faults {
        let mut packet = payment.build().packet;
        packet.0[at] ^= 4;
        let fault = peel(&keys(0).get_node_secret_key(), &incoming(&packet, &payment.payment_hash, htlc)).unwrap_err();
        assert!(matches!(fault, PeelFault::Malformed { failure_code, .. } if failure_code == ours), "{fault}");
        let Err(fault) = peel_by_ldk(0, &packet, payment.payment_hash, htlc) else { panic!("peeled") };
        assert!(fault.reason == theirs, "byte {at}: {}", fault.msg);
    }
}

#[test]
fn both_refuse_an_htlc_that_is_less_than_its_onion_says() {
    let payment = one_payment();
    let packet = payment.build().packet;
    let (amount, expiry) = payment.htlcs()[0];
    let cases = [
        (
            (Msat(amount.0 - 1), expiry),
            LocalHTLCFailureReason::FinalIncorrectHTLCAmount,
            code::FINAL_INCORRECT_HTLC_AMOUNT,
        ),
        (
            (amount, CltvExpiry(expiry.0 - 1)),
            LocalHTLCFailureReason::FinalIncorrectCLTVExpiry,
            code::FINAL_INCORRECT_CLTV_EXPIRY,
        ),
    ];
    for (htlc, theirs, ours) in cases {
        let Err(fault) = peel_by_ldk(0, &packet, payment.payment_hash, htlc) else { panic!("peeled") };
        assert!(fault.reason == theirs, "{}", fault.msg);
        let fault = peel(&keys(0).get_node_secret_key(), &incoming(&packet, &payment.payment_hash, htlc)).unwrap_err();
        assert!(matches!(fault, PeelFault::Fail { ref failure, .. } if failure.code() == ours), "{fault}");
    }
}
