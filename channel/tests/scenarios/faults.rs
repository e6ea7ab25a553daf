//! What a peer may not do, message by message, and what this node does about it.

use bitcoin::ScriptBuf;
use millrace_channel::effect::Purpose;
use millrace_channel::phase::Phase;
use millrace_channel::{Channel, Command, Effects, Fact, LinkEvent, Millis, Reaction, Side};
use millrace_wire::message::{
    ChannelReestablish, RevokeAndAck, Shutdown, UpdateAddHtlc, UpdateFailMalformedHtlc, UpdateFee,
};
use millrace_wire::{CommitmentNumber, FeeratePerKw, HtlcId, Message, Msat};
use secp256k1::{SECP256K1, SecretKey};

use crate::support::node::{FEATURES, Node, Options, disconnect, exchange, normal_pair, pair_with};

/// The reaction to a message, and that a failed channel's commitment is on its way.
fn reaction(node: &mut Node, message: Message) -> Reaction {
    let fault = node.receive(message).expect_err("this may not be");
    let is_failed = matches!(node.channel.phase(), Phase::OnChain(_));
    assert_eq!(is_failed, fault.reaction == Reaction::FailChannel, "{fault}");
    assert_eq!(node.broadcasts.iter().any(|broadcast| broadcast.purpose == Purpose::Commitment), is_failed);
    fault.reaction
}

/// The add that Bob would send next, taken off the line.
fn add_of(bob: &mut Node, amount: Msat, seed: u8) -> UpdateAddHtlc {
    bob.offer(amount, seed);
    let Some(Message::UpdateAddHtlc(add)) = bob.outbox.pop_back() else { panic!("no add") };
    add
}

mod adds {
    use super::*;

    #[test]
    fn one_more_than_max_accepted_htlcs() {
        let (mut alice, mut bob) = pair_with(Options::default(), |terms| terms.parties.local.max_accepted_htlcs = 2);
        for seed in 0..2 {
            bob.offer(Msat(1_000_000), seed);
        }
        exchange(&mut alice, &mut bob);
        let mut add = bob.channel.htlc(Side::Local, HtlcId(1)).expect("it is there").add.clone();
        add.id = HtlcId(2);
        let message = Message::UpdateAddHtlc(UpdateAddHtlc {
            channel_id: alice.channel.id(),
            id: add.id,
            amount: add.amount,
            payment_hash: add.payment_hash,
            cltv_expiry: add.cltv_expiry,
            onion: Box::new(millrace_wire::OnionPacket([2; 1366])),
            path_key: None,
        });
        assert_eq!(reaction(&mut alice, message), Reaction::FailChannel);
    }

    #[test]
    fn after_its_own_shutdown() {
        let (mut alice, mut bob) = normal_pair();
        // Once its signature has come, whatever it sends is new, and nothing that it sends again.
        bob.offer(Msat(1_000_000), 1);
        exchange(&mut alice, &mut bob);
        let add = add_of(&mut bob, Msat(1_000_000), 2);
        let script = ScriptBuf::new_p2wpkh(&bitcoin::hashes::Hash::from_byte_array([3; 20]));
        alice.receive(Message::Shutdown(Shutdown { channel_id: alice.channel.id(), script })).unwrap();
        assert_eq!(reaction(&mut alice, Message::UpdateAddHtlc(add)), Reaction::FailChannel);
    }
}

mod removals {
    use super::*;

    #[test]
    fn malformed_without_the_badonion_bit() {
        for (failure_code, is_allowed) in [(0xc005, true), (0x4005, false), (0, false)] {
            let (mut alice, mut bob) = normal_pair();
            let id = alice.offer(Msat(50_000_000), 1);
            exchange(&mut alice, &mut bob);
            let channel_id = alice.channel.id();
            let message = Message::UpdateFailMalformedHtlc(UpdateFailMalformedHtlc {
                channel_id,
                id,
                sha256_of_onion: [0; 32],
                failure_code,
            });
            if is_allowed {
                alice.receive(message).unwrap();
            } else {
                assert_eq!(reaction(&mut alice, message), Reaction::FailChannel);
            }
        }
    }
}

mod update_fee {
    use super::*;

    fn told(bob: &mut Node, feerate: u32) -> Reaction {
        let channel_id = bob.channel.id();
        reaction(bob, Message::UpdateFee(UpdateFee { channel_id, feerate: FeeratePerKw(feerate) }))
    }

    #[test]
    fn below_what_is_relayed_or_absurdly_high() {
        for feerate in [0, 252, 250_001, u32::MAX] {
            let (_alice, mut bob) = normal_pair();
            assert_eq!(told(&mut bob, feerate), Reaction::FailChannel);
        }
        for feerate in [253, 250_000] {
            let (alice, mut bob) = normal_pair();
            let channel_id = alice.channel.id();
            bob.receive(Message::UpdateFee(UpdateFee { channel_id, feerate: FeeratePerKw(feerate) })).unwrap();
        }
    }

    #[test]
    fn more_than_the_funder_has() {
        // Alice has 11,660 sat, 660 of them in anchors: 1,124 weight units at 9,786 sat/kw are 10,999 sat.
        let options = Options { push: Msat(9_988_340_000), ..Options::default() };
        let (alice, mut bob) = pair_with(options, |_| {});
        let channel_id = alice.channel.id();
        bob.receive(Message::UpdateFee(UpdateFee { channel_id, feerate: FeeratePerKw(9_786) })).unwrap();
        let (_alice, mut bob) = pair_with(options, |_| {});
        assert_eq!(told(&mut bob, 9_788), Reaction::FailChannel);
    }

    #[test]
    fn from_the_side_that_did_not_fund() {
        let (mut alice, _bob) = normal_pair();
        assert_eq!(told(&mut alice, 2_000), Reaction::FailChannel);
    }
}

mod secrets {
    use super::*;

    /// Alice signs the next commitment of Bob's, and Bob reveals the secret of the one before.
    fn revoke(alice: &mut Node, bob: &Node, revoked: u64, secret: Option<[u8; 32]>, next: Option<[u8; 32]>) -> Message {
        alice.offer(Msat(1_000_000), u8::try_from(revoked).unwrap());
        alice.commit();
        alice.outbox.clear();
        let point_of = |secret: [u8; 32]| SecretKey::from_slice(&secret).unwrap().public_key(SECP256K1);
        let next_point = bob.keys.commitment_point(CommitmentNumber(revoked + 2));
        Message::RevokeAndAck(RevokeAndAck {
            channel_id: alice.channel.id(),
            per_commitment_secret: secret.unwrap_or_else(|| bob.keys.commitment_secret(CommitmentNumber(revoked))),
            next_per_commitment_point: next.map_or(next_point, point_of),
        })
    }

    #[test]
    fn one_that_fits_its_point_and_does_not_derive_the_earlier_ones() {
        let (mut alice, bob) = normal_pair();
        let other = [7; 32];
        for (revoked, next) in [(0, None), (1, Some(other)), (2, None)] {
            let message = revoke(&mut alice, &bob, revoked, None, next);
            alice.receive(message).unwrap();
        }
        let message = revoke(&mut alice, &bob, 3, Some(other), None);
        assert_eq!(reaction(&mut alice, message), Reaction::FailChannel);
    }
}

mod silence {
    use super::*;

    #[test]
    fn no_revoke_and_ack_in_time_ends_the_connection_and_not_the_channel() {
        let (mut alice, mut bob) = normal_pair();
        assert_eq!(alice.channel.deadline(), None);
        alice.offer(Msat(1_000_000), 1);
        alice.commit();
        let due = Millis(alice.now.0 + alice.policy.revoke_timeout_ms);
        assert_eq!(alice.channel.deadline(), Some(due));
        let mut fx = Effects::default();
        alice.channel.on_time(Millis(due.0 - 1), &mut fx);
        assert!(fx.is_empty());
        alice.channel.on_time(due, &mut alice.fx);
        alice.drain();
        assert_eq!(alice.disconnects.len(), 1);
        assert_eq!(*alice.channel.phase(), Phase::Normal);
        exchange(&mut alice, &mut bob);
        assert_eq!(alice.channel.deadline(), None, "it has come after all");
    }
}

mod reestablish {
    use super::*;

    /// Both after one HTLC, not connected; what Bob would say on the next connection.
    fn apart() -> (Node, Node, ChannelReestablish) {
        let (mut alice, mut bob) = normal_pair();
        alice.offer(Msat(1_000_000), 1);
        exchange(&mut alice, &mut bob);
        disconnect(&mut alice, &mut bob);
        bob.link(LinkEvent::Up { features: FEATURES });
        let Some(Message::ChannelReestablish(said)) = bob.outbox.pop_front() else { panic!("nothing is said") };
        alice.link(LinkEvent::Up { features: FEATURES });
        alice.outbox.clear();
        (alice, bob, said)
    }

    #[test]
    fn commitment_0_is_before_every_channel() {
        let (mut alice, _bob, said) = apart();
        let said = ChannelReestablish { next_commitment_number: 0, ..said };
        assert_eq!(reaction(&mut alice, Message::ChannelReestablish(said)), Reaction::FailChannel);
    }

    #[test]
    fn a_commitment_that_was_revoked_cannot_be_asked_for_again() {
        let (mut alice, _bob, said) = apart();
        let said = ChannelReestablish { next_commitment_number: said.next_commitment_number - 1, ..said };
        assert_eq!(reaction(&mut alice, Message::ChannelReestablish(said)), Reaction::Warn);
        let names: Vec<&str> = alice.outbox.iter().map(Message::name).collect();
        assert_eq!(names, ["warning"], "the peer has lost data: nothing is signed again, and it closes");
    }

    /// D11: Alice runs on an old copy, and hears of it; then Bob says `error`, as he should.
    #[test]
    fn an_error_to_a_node_that_has_lost_data_broadcasts_nothing() {
        let (mut alice, mut bob) = normal_pair();
        alice.offer(Msat(1_000_000), 1);
        exchange(&mut alice, &mut bob);
        let kept = alice.journal.len();
        for seed in 2..5 {
            alice.offer(Msat(1_000_000), seed);
            exchange(&mut alice, &mut bob);
        }
        disconnect(&mut alice, &mut bob);
        let mut old: Channel = alice.replayed(kept);
        bob.link(LinkEvent::Up { features: FEATURES });
        let said = bob.outbox.pop_front().expect("channel_reestablish");
        let mut fx = Effects::default();
        old.on_link(LinkEvent::Up { features: FEATURES }, &mut fx);
        old.on_message(said, &millrace_channel::curve::Serial, &mut fx).unwrap();
        let error = millrace_wire::message::Error::new(old.id(), "your data is old");
        old.on_message(Message::Error(error), &millrace_channel::curve::Serial, &mut fx).unwrap();
        let is_broadcast = |effect: &millrace_channel::Effect| matches!(effect, millrace_channel::Effect::Broadcast(_));
        assert!(!fx.list.iter().any(is_broadcast), "its commitment is revoked");
        let is_refused = old.on_command(Command::ForceClose { reason: "by hand".to_owned() }, &mut fx).is_err();
        assert!(is_refused && !fx.list.iter().any(is_broadcast));
        assert!(fx.list.iter().any(|effect| matches!(effect, millrace_channel::Effect::Fact(Fact::PeerSaid { .. }))));
    }
}
