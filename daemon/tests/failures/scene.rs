//! How a row of the table is brought about, and taken back.

use lightning::blinded_path::BlindedHop;
use lightning::ln::channelmanager::RecipientOnionFields;
use lightning::ln::create_payment_onion;
use lightning::routing::router::{BlindedTail, Path, RouteHop};
use lightning::types::features::{ChannelFeatures, NodeFeatures};
use lightning::util::ser::Writeable;
use millrace_chain::SyncState;
use millrace_channel::Offer;
use millrace_channel::ledger::htlc::Origin;
use millrace_routing::failure::{Failure, FailureMessage, HoldTime, code, fail};
use millrace_routing::graph::NodeId;
use millrace_routing::invoice::Invoice;
use millrace_routing::onion::{FinalPayload, ForwardPayload, Hop, Payload, build};
use millrace_rpc::v1;
use millrace_wire::message::UpdateAddHtlc;
use millrace_wire::{CltvDelta, CltvExpiry, Message, Msat, OnionPacket, PaymentHash, PaymentSecret, ShortChannelId};
use millraced::channels::ChannelSnapshot;
use millraced::policy::ForwardPolicy;
use secp256k1::{SECP256K1, SecretKey};

use crate::four::{A, B, C, D, FINAL, Four, secret_of, spoil};
use crate::support::eventually;
use crate::support::tap::To;
use crate::table::Cause;
use crate::world::rand_bytes;

/// A custom record that nobody knows, of an even type: it must be understood.
pub(crate) const UNKNOWN_RECORD: u64 = 65_536;
/// A channel that there is not.
const NOWHERE: ShortChannelId = ShortChannelId(77);

/// What Alice is to send.
pub(crate) enum Sent {
    /// As anybody would.
    Invoice(String),
    /// With an onion made by hand.
    Offer(Box<Offer>),
}

/// What other makes say.
pub(crate) fn foreign(failure_code: u16) -> FailureMessage {
    match failure_code {
        code::PERMANENT_NODE_FAILURE => FailureMessage::PermanentNodeFailure,
        code::REQUIRED_NODE_FEATURE_MISSING => FailureMessage::RequiredNodeFeatureMissing,
        code::REQUIRED_CHANNEL_FEATURE_MISSING => FailureMessage::RequiredChannelFeatureMissing,
        code::INVALID_ONION_PAYLOAD => FailureMessage::InvalidOnionPayload { kind: 4, offset: 77 },
        code::FINAL_INCORRECT_HTLC_AMOUNT => FailureMessage::FinalIncorrectHtlcAmount { incoming: Msat(5_000) },
        code::FINAL_INCORRECT_CLTV_EXPIRY => FailureMessage::FinalIncorrectCltvExpiry { expiry: CltvExpiry(500) },
        code::MPP_TIMEOUT => FailureMessage::MppTimeout,
        other => FailureMessage::Unknown { code: other, data: Vec::new() },
    }
}

/// What a row wants to carry, if it is not what it is given.
pub(crate) fn amount(at: usize, cause: Cause, usual: u64) -> u64 {
    match (cause, at) {
        // More than the half of the channel that one peer may have, and less than the half of the one before.
        (Cause::TooMuch, B) => 2_100_000_000,
        (Cause::TooMuch, _) => 1_600_000_000,
        _ => usual,
    }
}

/// Brings about what makes `at` fail an HTLC.
pub(crate) async fn set(four: &Four, failure_code: u16, at: usize, cause: Cause, amount: u64) -> Sent {
    match cause {
        Cause::UnknownChannel => four.draw(|drawn| drawn[at - B].short_channel_id = NOWHERE),
        Cause::LowFee => four.draw(|drawn| drawn[at - B].policy.fee_base_msat -= 1),
        Cause::ShortDelta => four.draw(|drawn| drawn[at - B].policy.cltv_expiry_delta -= 1),
        Cause::WrongNode => four.draw(|drawn| {
            let other = NodeId::from(SecretKey::from_slice(&[99; 32]).unwrap().public_key(SECP256K1));
            (drawn[0].to, drawn[1].from) = (other, other);
        }),
        Cause::NoChain => {
            four.nodes[at].sync.send_replace(SyncState::Away { reason: "gone".to_owned() });
        }
        Cause::ChainAhead(blocks) => {
            four.nodes[at].sync.send_replace(SyncState::Synced { height: four.height() + blocks });
        }
        Cause::ChainBehind => {
            four.draw(|drawn| drawn[1].policy.cltv_expiry_delta = 1_880);
            four.nodes[at].sync.send_replace(SyncState::Synced { height: 5 });
        }
        Cause::BelowMinimum => {
            four.set_policy(at, ForwardPolicy { htlc_minimum: Msat(4 * amount), ..ForwardPolicy::default() }).await;
        }
        Cause::AboveMaximum => {
            four.set_policy(at, ForwardPolicy { htlc_maximum: Some(Msat(amount - 1)), ..ForwardPolicy::default() })
                .await;
        }
        Cause::PeerAway => {
            four.taps[at].close();
            wait(four, at, "the peer is gone", |snapshot| !snapshot.is_online).await;
        }
        Cause::Spoiled(byte) => rewrite_adds(four, at, move |add| spoil(&mut add.onion, byte)),
        Cause::PathKey => {
            let key = four.nodes[D].node_id;
            rewrite_adds(four, at, move |add| add.path_key = Some(key));
        }
        Cause::Foreign => {
            if at < D {
                four.draw(|drawn| drawn[at - B].short_channel_id = NOWHERE);
            }
            rewrite_failures(four, at, foreign(failure_code));
        }
        _ => {}
    }
    send(four, at, cause, amount).await
}

async fn send(four: &Four, at: usize, cause: Cause, amount: u64) -> Sent {
    let asked = match cause {
        Cause::TooLittle => amount + 1,
        Cause::MoreThanTwice => amount / 2 - 1,
        Cause::LonePart => 2 * amount,
        _ => amount,
    };
    let invoice = four
        .invoice(|wanted| {
            wanted.amount_msat = Some(asked);
            wanted.expiry_s = if cause == Cause::Expired { 1 } else { 0 };
        })
        .await;
    let of_dave = || four.forge(amount, &invoice, |_| {});
    match cause {
        Cause::UnknownHash => Sent::Invoice(four.forge(amount, &invoice, |forged| forged.payment_hash = unknown())),
        Cause::Foreign if at == D => {
            Sent::Invoice(four.forge(amount, &invoice, |forged| forged.payment_hash = unknown()))
        }
        Cause::WrongSecret => {
            let other = PaymentSecret::new([1; 32]);
            Sent::Invoice(four.forge(amount, &invoice, |forged| forged.payment_secret = other))
        }
        Cause::TooLate => Sent::Invoice(four.forge(amount, &invoice, |forged| forged.min_final_cltv = CltvDelta(30))),
        Cause::Cancelled => {
            let request = v1::CancelInvoiceRequest {
                idempotency_key: hex::encode(rand_bytes()),
                payment_hash: invoice.payment_hash.0.to_vec(),
            };
            four.nodes[D].invoices().await.cancel(request).await.unwrap();
            Sent::Invoice(of_dave())
        }
        Cause::Expired => {
            let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let over = now() + std::time::Duration::from_secs(2);
            eventually("Dave's invoice is over", || (now() > over).then_some(())).await;
            Sent::Invoice(of_dave())
        }
        Cause::AlreadyPaid => {
            assert_eq!(four.pay(&of_dave()).await.status(), v1::PaymentStatus::Succeeded);
            by_hand(four, &invoice, amount, |_| {})
        }
        Cause::UnknownRecord => by_hand(four, &invoice, amount, |last| last.custom = vec![(UNKNOWN_RECORD, vec![1])]),
        Cause::FinalAmount => by_hand(four, &invoice, amount, |last| last.amount = Msat(amount + 1)),
        Cause::FinalExpiry => by_hand(four, &invoice, amount, |last| last.expiry.0 += 1),
        Cause::LonePart => by_hand(four, &invoice, amount, |last| last.total = Msat(asked)),
        Cause::BlindedPayload => into_blinded_path(four, at, amount),
        _ => Sent::Invoice(of_dave()),
    }
}

/// Takes it back.
pub(crate) async fn reset(four: &Four, at: usize, cause: Cause) {
    four.tell_height();
    four.draw(|_| {});
    four.taps[at - 1].pass();
    match cause {
        Cause::BelowMinimum | Cause::AboveMaximum => four.reset_policy(at).await,
        Cause::PeerAway => {
            four.taps[at].open();
            wait(four, at, "the peer is back", ChannelSnapshot::is_usable).await;
        }
        _ => {}
    }
}

pub(crate) async fn wait(four: &Four, left: usize, what: &str, is_so: impl Fn(&ChannelSnapshot) -> bool) {
    four.nodes[left].wait_until(four.channels[left], what, is_so).await;
}

fn unknown() -> PaymentHash {
    PaymentHash([rand_bytes(), rand_bytes()].concat().try_into().unwrap())
}

// --- on the wire ---

/// Changes what is offered to a node on its way.
fn rewrite_adds(four: &Four, at: usize, mut change: impl FnMut(&mut UpdateAddHtlc) + Send + 'static) {
    four.taps[at - 1].rewrite(move |to, mut message| {
        if let (To::Right, Message::UpdateAddHtlc(add)) = (to, &mut message) {
            change(add);
        }
        vec![(to, message)]
    });
}

/// Has a node fail every HTLC with this, whatever it says itself.
fn rewrite_failures(four: &Four, at: usize, failure: FailureMessage) {
    let key = four.nodes[at].node_key;
    let mut adds: Vec<UpdateAddHtlc> = Vec::new();
    four.taps[at - 1].rewrite(move |to, mut message| {
        match (to, &mut message) {
            (To::Right, Message::UpdateAddHtlc(add)) => adds.push(add.clone()),
            (To::Left, Message::UpdateFailHtlc(failed)) => {
                let add = adds.iter().find(|add| add.id == failed.id).expect("it was offered");
                let Failure { reason, attribution } = fail(&secret_of(&key, add), &failure, HoldTime(0));
                (failed.reason, failed.attribution) = (reason, Some(attribution));
            }
            _ => {}
        }
        vec![(to, message)]
    });
}

// --- by hand ---

/// On everybody's usual terms, with the last payload as the test wants it.
fn by_hand(four: &Four, invoice: &Invoice, amount: u64, change: impl FnOnce(&mut FinalPayload)) -> Sent {
    let usual = ForwardPolicy::default();
    let delta = u32::from(usual.cltv_delta.0);
    let with_fee = |amount: Msat| Msat(amount.0 + usual.fee(amount).unwrap().0);
    let expiry = CltvExpiry(four.height() + FINAL);
    let mut last = FinalPayload::new(Msat(amount), expiry, invoice.payment_secret.clone(), None);
    change(&mut last);
    let to_carol = (with_fee(Msat(amount)), CltvExpiry(expiry.0 + delta));
    let to_bob = (with_fee(to_carol.0), CltvExpiry(to_carol.1.0 + delta));
    let forward = |left: usize, (amount, expiry): (Msat, CltvExpiry)| Hop {
        node_id: four.nodes[left].node_id,
        payload: Payload::Forward(ForwardPayload { next: four.alias(left), amount, expiry }),
    };
    let hops = [
        forward(B, to_carol),
        forward(C, (Msat(amount), expiry)),
        Hop { node_id: four.nodes[D].node_id, payload: Payload::Final(last) },
    ];
    let built = build(&session_key(), &hops, &invoice.payment_hash).unwrap();
    offer(invoice.payment_hash, to_bob, built.packet)
}

/// By LDK's hand: `at` is where a blinded path begins.
fn into_blinded_path(four: &Four, at: usize, amount: u64) -> Sent {
    let delta = u32::from(ForwardPolicy::default().cltv_delta.0);
    let hop = |node: usize| RouteHop {
        pubkey: four.nodes[node].node_id,
        node_features: NodeFeatures::empty(),
        short_channel_id: four.alias(node - 1).0,
        channel_features: ChannelFeatures::empty(),
        fee_msat: 1_000_000,
        cltv_expiry_delta: delta,
        maybe_announced_channel: true,
    };
    let blinded = |node: usize| BlindedHop {
        blinded_node_id: four.nodes[node].node_id,
        encrypted_payload: rand_bytes().repeat(3),
    };
    let tail = BlindedTail {
        trampoline_hops: Vec::new(),
        hops: vec![blinded(at), blinded(D)],
        blinding_point: four.nodes[A].node_id,
        excess_final_cltv_expiry_delta: delta,
        final_value_msat: amount,
    };
    let path = Path { hops: (B..=at).map(hop).collect(), blinded_tail: Some(tail) };
    let payment_hash = unknown();
    let (packet, amount, expiry) = create_payment_onion(
        SECP256K1,
        &path,
        &session_key(),
        amount,
        &RecipientOnionFields::spontaneous_empty(),
        four.height(),
        &payment_hash.into(),
        &None,
        None,
        [7; 32],
    )
    .unwrap();
    let onion = Box::new(OnionPacket(packet.encode().try_into().unwrap()));
    offer(payment_hash, (Msat(amount), CltvExpiry(expiry)), onion)
}

fn session_key() -> SecretKey {
    SecretKey::from_slice(&[rand_bytes(), rand_bytes()].concat()).unwrap()
}

fn offer(payment_hash: PaymentHash, (amount, cltv_expiry): (Msat, CltvExpiry), onion: Box<OnionPacket>) -> Sent {
    let id = unknown().0;
    let origin = Origin::Payment { id, attempt: 0 };
    Sent::Offer(Box::new(Offer { amount, payment_hash, cltv_expiry, onion, path_key: None, origin }))
}
