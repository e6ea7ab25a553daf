//! A channel that closes before anybody has said `channel_ready`: BOLT 2 allows it.

use millrace_wire::{CommitmentSigned, Shutdown, UpdateFee};

use super::script::verify_tx;
use super::story::open;
use super::*;
use crate::fault::Reaction;
use crate::input::{CloseOrder, Command, Millis};
use crate::phase::Phase;
use crate::side::Side;

fn order(script: ScriptBuf) -> Command {
    Command::Close(CloseOrder { script, feerate: FeeratePerKw(1000), feerate_max: FeeratePerKw(2000) })
}

/// One batch of `from`, and the answers to it, until the other has nothing more to say.
fn talk(from: &mut Channel, to: &mut Channel, all: &mut Effects) {
    let mut fx = Effects::default();
    from.commit(Millis(0), &Serial, &mut fx);
    let mut answers = Effects::default();
    for message in sent(&fx) {
        to.on_message(message, &Serial, &mut answers).unwrap();
    }
    let mut last = Effects::default();
    for message in sent(&answers) {
        from.on_message(message, &Serial, &mut last).unwrap();
    }
    for message in sent(&last) {
        to.on_message(message, &Serial, all).unwrap();
    }
    for fx in [fx, answers, last] {
        all.list.extend(fx.list);
    }
}

fn exchange(alice: &mut Channel, bob: &mut Channel) -> Effects {
    let mut all = Effects::default();
    for _ in 0..5 {
        talk(alice, bob, &mut all);
        talk(bob, alice, &mut all);
    }
    all
}

#[test]
fn both_agree_on_a_close_before_channel_ready() {
    for simple_close in [true, false] {
        let (mut request, mut params) = (OpenRequest { push: Msat(300_000_000), ..request() }, params());
        request.features.link.simple_close = simple_close;
        params.features.link.simple_close = simple_close;
        let [(mut alice, _), (mut bob, _)] = open(request, params);
        alice.on_command(order(p2wpkh(1)), &mut Effects::default()).unwrap();
        bob.on_command(order(taproot()), &mut Effects::default()).unwrap();
        let all = exchange(&mut alice, &mut bob);
        let broadcasts: Vec<_> = all.list.iter().filter(|effect| matches!(effect, Effect::Broadcast(_))).collect();
        assert!(broadcasts.len() >= 2);
        for effect in broadcasts {
            let Effect::Broadcast(Broadcast { tx, purpose: Purpose::MutualClose }) = effect else {
                panic!("{effect:?}")
            };
            verify_tx(tx, &[alice.funding_txout()]).unwrap();
            assert_eq!(tx.output.len(), 2);
            assert!(alice.is_mutual_close(tx) && bob.is_mutual_close(tx));
        }
        for channel in [&alice, &bob] {
            assert!(matches!(channel.phase(), Phase::Closing(_)) && channel.is_close_complete());
        }
    }
}

#[test]
fn shutting_down_lets_no_update_in_before_channel_ready() {
    let [(_, _), (mut bob, _)] = open(request(), params());
    let channel_id = bob.id();
    let mut fx = Effects::default();
    bob.on_message(Message::Shutdown(Shutdown { channel_id, script: p2wpkh(1) }), &Serial, &mut fx).unwrap();
    assert_eq!(*bob.phase(), Phase::ShuttingDown);
    let signature = crate::curve::sign(&[1; 32], request().keys.funding_key());
    let updates = [
        Message::UpdateFee(UpdateFee { channel_id, feerate: FeeratePerKw(1500) }),
        Message::CommitmentSigned(CommitmentSigned { channel_id, signature, htlc_signatures: Vec::new() }),
    ];
    for update in updates {
        let fault = bob.on_message(update, &Serial, &mut fx).unwrap_err();
        assert_eq!(fault.reaction, Reaction::Disconnect);
        bob.commit(Millis(0), &Serial, &mut fx);
    }
    assert_eq!(bob.commitment_numbers().local.0 + bob.commitment_numbers().remote.0, 0);
}

#[test]
fn a_commitment_is_no_mutual_close() {
    use crate::ledger::Which;
    let [(alice, _), _] = open(request(), params());
    let commitment = alice.build_remote(Which::Current(Side::Remote));
    assert!(!alice.is_mutual_close(&commitment.tx));
    let mut close = commitment.tx;
    close.input[0].sequence = Sequence::MAX;
    assert!(alice.is_mutual_close(&close));
    close.input[0].previous_output.vout += 1;
    assert!(!alice.is_mutual_close(&close), "it spends something else");
}
