//! What breaks a rule of BOLT 2, said of a channel in which an HTLC is pending.

use millrace_routing::failure::code;
use millrace_wire::message::{
    AttributionData, CommitmentSigned, Error, OnionPacket, RevokeAndAck, UpdateAddHtlc, UpdateFailHtlc,
    UpdateFailMalformedHtlc, UpdateFulfillHtlc, Warning,
};
use millrace_wire::{CltvExpiry, HtlcId, Message, Msat, Preimage, PublicKey, Signature};
use millraced::channels::ChannelState;

use super::{Held, Stage, attribution, secret};
use crate::line::{Outcome, at_rest, usable};
use crate::support::eventually;
use crate::support::tap::To;

/// What becomes of the channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// It is failed.
    Fails,
    /// Bob hangs up, and takes nothing of it.
    HangsUp,
}

/// What Mallory says of an HTLC that he holds.
struct Attack {
    name: &'static str,
    says: fn(&Held) -> Vec<Vec<u8>>,
    then: Then,
    /// Whether Alice is paid by it nevertheless.
    pays: bool,
}

const fn attack(name: &'static str, then: Then, says: fn(&Held) -> Vec<Vec<u8>>) -> Attack {
    Attack { name, says, then, pays: false }
}

fn bytes(message: impl Into<Message>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.into().encode(&mut bytes).unwrap();
    bytes
}

fn fulfill(held: &Held, id: HtlcId, preimage: Preimage) -> Vec<u8> {
    bytes(UpdateFulfillHtlc { channel_id: held.channel_id, id, preimage, attribution: None })
}

fn fail(held: &Held, id: HtlcId, attribution: Option<Box<AttributionData>>) -> Vec<u8> {
    bytes(UpdateFailHtlc { channel_id: held.channel_id, id, reason: vec![1; 292], attribution })
}

fn malformed(held: &Held, failure_code: u16) -> Vec<u8> {
    let (channel_id, id) = (held.channel_id, held.id);
    bytes(UpdateFailMalformedHtlc { channel_id, id, sha256_of_onion: [0; 32], failure_code })
}

fn add(held: &Held, change: impl FnOnce(&mut UpdateAddHtlc)) -> Vec<Vec<u8>> {
    let mut add = UpdateAddHtlc {
        channel_id: held.channel_id,
        id: HtlcId(0),
        amount: Msat(1),
        payment_hash: held.proof.hash(),
        cltv_expiry: CltvExpiry(500),
        onion: Box::new(OnionPacket([2; 1366])),
        path_key: None,
    };
    change(&mut add);
    vec![bytes(add)]
}

/// Takes bytes off the TLV of a message that ends with attribution data, and says so in its length, which has three bytes.
fn with_attribution_of(mut message: Vec<u8>, length: usize) -> Vec<u8> {
    let begins = message.len() - 920;
    message.truncate(begins + length);
    message.splice(begins - 3..begins, [vec![0xfd], u16::try_from(length).unwrap().to_be_bytes().to_vec()].concat());
    message
}

const UNKNOWN: HtlcId = HtlcId(7_000);

const ATTACKS: [Attack; 16] = [
    attack("fulfils with another preimage", Then::Fails, |held| vec![fulfill(held, held.id, secret())]),
    attack("fulfils what was never added", Then::Fails, |held| vec![fulfill(held, UNKNOWN, held.proof.clone())]),
    attack("fails what was never added", Then::Fails, |held| vec![fail(held, UNKNOWN, None)]),
    attack("fails as malformed with a code of another kind", Then::Fails, |held| {
        vec![malformed(held, code::TEMPORARY_NODE_FAILURE)]
    }),
    attack("fails as malformed with no code", Then::Fails, |held| vec![malformed(held, 0)]),
    attack("fails it twice", Then::HangsUp, |held| vec![fail(held, held.id, None), fail(held, held.id, None)]),
    attack("fails it, and then with the preimage fulfils it", Then::HangsUp, |held| {
        vec![fail(held, held.id, None), fulfill(held, held.id, held.proof.clone())]
    }),
    Attack {
        pays: true,
        ..attack("fulfils it, and then fails it", Then::HangsUp, |held| {
            vec![fulfill(held, held.id, held.proof.clone()), fail(held, held.id, None)]
        })
    },
    attack("adds one with an id that is not next", Then::Fails, |held| add(held, |add| add.id = HtlcId(5))),
    attack("adds nothing", Then::Fails, |held| add(held, |add| add.amount = Msat(0))),
    attack("adds more than he has", Then::Fails, |held| add(held, |add| add.amount = Msat(900_000_000))),
    attack("adds one that expires in seconds", Then::Fails, |held| {
        add(held, |add| add.cltv_expiry = CltvExpiry(500_000_000))
    }),
    attack("reveals a secret that is none", Then::Fails, |held| {
        let next_per_commitment_point = point();
        let channel_id = held.channel_id;
        vec![bytes(RevokeAndAck { channel_id, per_commitment_secret: [5; 32], next_per_commitment_point })]
    }),
    attack("signs anything", Then::Fails, |held| {
        let signature = Signature::from_compact(&[1; 64]).unwrap();
        let signed = CommitmentSigned { channel_id: held.channel_id, signature, htlc_signatures: Vec::new() };
        vec![fail(held, held.id, None), bytes(signed)]
    }),
    attack("cuts a removal short", Then::HangsUp, |held| {
        let whole = fulfill(held, held.id, held.proof.clone());
        vec![whole[..whole.len() - 1].to_vec()]
    }),
    attack("tells hold times of another length", Then::HangsUp, |held| {
        vec![with_attribution_of(fail(held, held.id, attribution()), 919)]
    }),
];

fn point() -> PublicKey {
    crate::support::wild::key(5).public_key(secp256k1::SECP256K1)
}

/// BOLT 2, "Removing an HTLC" and "Adding an HTLC".
#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_rules_costs_one_channel_or_one_connection() {
    let stage = Stage::new().await;
    for Attack { name, says, then, pays } in &ATTACKS {
        println!("Mallory {name}");
        let prey = stage.open(true).await;
        let held = stage.hold(prey).await;
        let (_, since) = stage.tap.mark();
        for message in says(&held) {
            stage.tap.say_bytes(To::Left, &message).await;
        }
        match then {
            Then::Fails => {
                let told = eventually(name, || stage.complaints(since).first().cloned()).await;
                let Message::Error(error) = &told else { panic!("{name}: {told:?}") };
                assert_eq!(error.channel_id, prey, "{name}: of this channel alone");
                stage.bobs(prey, name, |snapshot| snapshot.state == ChannelState::OnChain).await;
                eventually("its commitment is broadcast", || (!stage.line.chain.mempool().is_empty()).then_some(()))
                    .await;
                stage.mine(1);
            }
            Then::HangsUp => {
                let told = eventually(name, || stage.complaints(since).first().cloned()).await;
                assert!(matches!(told, Message::Warning(_)), "{name}: {told:?}");
                stage.reconnected(since, [prey, stage.steady]).await;
            }
        }
        if *pays {
            let paid = stage.line.outcome(&held.sent).await;
            assert!(matches!(paid, Outcome::Paid(ref proof, _) if *proof == held.proof), "{name}: {paid:?}");
        } else {
            assert!(stage.line.removal(&held.sent).is_none(), "{name}: Alice is told nothing of it");
        }
        stage.others_go_on().await;
        if *then == Then::HangsUp {
            // As it should have been said at once; and the channel goes on as well.
            stage.fulfill(&held).await;
            assert!(matches!(stage.line.outcome(&held.sent).await, Outcome::Paid(..)), "{name}");
            stage.pay_over(prey).await;
            at_rest(&stage.bob.node, prey).await;
        }
        usable(&stage.bob.node, stage.line.first).await;
    }
    stage.stop().await;
}

/// LDK #3747: what a peer says to people is cut wherever it is too long, and may be no text at all.
#[tokio::test(flavor = "multi_thread")]
async fn words_in_any_bytes_are_only_words() {
    let stage = Stage::new().await;
    let prey = stage.open(true).await;
    let text = "⚡é".repeat(200).into_bytes();
    let noise: Vec<u8> = (0..=255).cycle().take(60_000).collect();
    let cuts = (0..text.len()).step_by(7).chain([text.len() - 1]).map(|length| text[..length].to_vec());
    for data in cuts.chain([noise.clone()]) {
        let channel_id = prey;
        stage.tap.say(To::Left, &Message::Warning(Warning { channel_id, data })).await;
    }
    stage.pay_over(prey).await;
    stage.tap.say(To::Left, &Message::Error(Error { channel_id: prey, data: noise })).await;
    stage.bobs(prey, "the peer has failed it", |snapshot| snapshot.state == ChannelState::OnChain).await;
    stage.others_go_on().await;
    let request = millrace_rpc::v1::ListChannelsRequest::default();
    let shown = stage.bob.channels().await.list(request).await.unwrap().into_inner();
    assert!(shown.channels.iter().any(|channel| channel.channel_id == prey.0), "it is shown, whatever was said of it");
    stage.stop().await;
}
