//! The link is cut at every message, a node restarts from its records, and both still agree.

use millrace_channel::{Command, Fact, LinkEvent, Reaction};
use millrace_wire::{FeeratePerKw, HtlcId, Message, Msat};

use crate::support::node::{FEATURES, Node, connect, disconnect, exchange, normal_pair};

/// Delivers at most `budget` messages, one from each in turn, then stops.
fn exchange_some(alice: &mut Node, bob: &mut Node, budget: &mut usize) {
    loop {
        alice.commit();
        bob.commit();
        let mut moved = false;
        for from_alice in [true, false] {
            let (from, to) = if from_alice { (&mut *alice, &mut *bob) } else { (&mut *bob, &mut *alice) };
            if *budget == 0 {
                return;
            }
            if let Some(message) = from.outbox.pop_front() {
                to.receive(message).unwrap();
                *budget -= 1;
                moved = true;
            }
        }
        if !moved {
            return;
        }
    }
}

/// A story of adds and removals both ways and a fee, cut after `cut` messages; then everything is settled.
fn story(cut: usize, restart: bool) -> bool {
    let (mut alice, mut bob) = normal_pair();
    let first = alice.offer(Msat(50_000_000), 1);
    let second = bob.offer(Msat(20_000_000), 2);
    exchange(&mut alice, &mut bob);
    bob.fulfill(first, 1);
    alice.fail(second);
    alice.command(Command::UpdateFee(FeeratePerKw(2_000))).unwrap();
    alice.offer(Msat(7_000_000), 3);
    bob.offer(Msat(3_000_000), 4);
    let mut budget = cut;
    exchange_some(&mut alice, &mut bob, &mut budget);
    let is_cut = budget == 0;
    if restart {
        alice.outbox.clear();
        bob.outbox.clear();
        alice.restart();
        bob.restart();
    } else {
        disconnect(&mut alice, &mut bob);
    }
    connect(&mut alice, &mut bob);
    fulfill_all(&mut alice, &mut bob, 4);
    fulfill_all(&mut bob, &mut alice, 3);
    assert!(alice.channel.is_at_rest() && bob.channel.is_at_rest(), "cut {cut}: not at rest");
    assert_eq!(alice.balances().local, bob.balances().remote, "cut {cut}");
    assert_eq!(alice.balances().remote, bob.balances().local, "cut {cut}");
    assert!(alice.balances().local.0 <= 4_953_000_000 && alice.balances().local.0 >= 4_943_000_000);
    alice.restart();
    bob.restart();
    is_cut
}

fn fulfill_all(node: &mut Node, other: &mut Node, seed: u8) {
    for id in live(node) {
        node.fulfill(id, seed);
    }
    exchange(node, other);
}

fn live(node: &Node) -> Vec<HtlcId> {
    let received = node.channel.ledger().htlcs(millrace_channel::Side::Remote);
    received.iter().filter(|htlc| htlc.is_live()).map(|htlc| htlc.add.id).collect()
}

#[test]
fn cut_after_every_message() {
    for restart in [false, true] {
        let mut cut = 0;
        while story(cut, restart) {
            cut += 1;
        }
        assert!(cut > 10, "the story has more than {cut} messages");
    }
}

#[test]
fn an_add_without_a_signature_is_dropped_and_its_id_used_again() {
    let (mut alice, mut bob) = normal_pair();
    alice.offer(Msat(50_000_000), 1);
    disconnect(&mut alice, &mut bob);
    assert!(alice.facts.iter().any(|fact| matches!(fact, Fact::OfferDropped { .. })));
    connect(&mut alice, &mut bob);
    assert_eq!(alice.offer(Msat(60_000_000), 2), HtlcId(0));
    exchange(&mut alice, &mut bob);
}

#[test]
fn a_removal_is_proposed_again_and_after_the_retransmitted_signature() {
    let (mut alice, mut bob) = normal_pair();
    let id = alice.offer(Msat(50_000_000), 1);
    exchange(&mut alice, &mut bob);
    // Bob signs an add of his; the signature is lost; then he decides the removal while the peer is away.
    bob.offer(Msat(9_000_000), 2);
    bob.commit();
    disconnect(&mut alice, &mut bob);
    bob.fulfill(id, 1);
    assert!(bob.outbox.is_empty(), "nothing is sent to a peer that is away");
    alice.link(LinkEvent::Up { features: FEATURES });
    bob.link(LinkEvent::Up { features: FEATURES });
    bob.receive(alice.outbox.pop_front().unwrap()).unwrap();
    let names: Vec<&str> = bob.outbox.iter().map(Message::name).collect();
    assert_eq!(names, ["channel_reestablish", "update_add_htlc", "commitment_signed", "update_fulfill_htlc"]);
    exchange(&mut alice, &mut bob);
    assert_eq!(alice.balances().local, Msat(4_950_000_000));
}

/// The funder may have just enough for the fee of the add because the removal makes room.
#[test]
fn removals_are_sent_again_before_adds() {
    let (mut alice, mut bob) = normal_pair();
    let id = alice.offer(Msat(50_000_000), 1);
    exchange(&mut alice, &mut bob);
    bob.fulfill(id, 1);
    bob.offer(Msat(9_000_000), 2);
    bob.commit();
    disconnect(&mut alice, &mut bob);
    alice.link(LinkEvent::Up { features: FEATURES });
    bob.link(LinkEvent::Up { features: FEATURES });
    bob.receive(alice.outbox.pop_front().unwrap()).unwrap();
    let names: Vec<&str> = bob.outbox.iter().map(Message::name).collect();
    assert_eq!(names, ["channel_reestablish", "update_fulfill_htlc", "update_add_htlc", "commitment_signed"]);
    exchange(&mut alice, &mut bob);
    assert_eq!(alice.balances().local, Msat(4_950_000_000));
}

/// Adds that left on both sides of a `revoke_and_ack`, all of it lost.
#[test]
fn what_left_before_a_revocation_leaves_before_it_again() {
    let (mut alice, mut bob) = normal_pair();
    alice.offer(Msat(50_000_000), 1);
    alice.commit();
    let early = bob.offer(Msat(9_000_000), 2);
    for message in std::mem::take(&mut alice.outbox) {
        bob.receive(message).unwrap();
    }
    let late = bob.offer(Msat(8_000_000), 3);
    bob.commit();
    let said = |node: &Node| -> Vec<(&str, Option<HtlcId>)> {
        let id = |message: &Message| if let Message::UpdateAddHtlc(add) = message { Some(add.id) } else { None };
        node.outbox.iter().map(|message| (message.name(), id(message))).collect()
    };
    let add = |id| ("update_add_htlc", Some(id));
    let original = [add(early), ("revoke_and_ack", None), add(late), ("commitment_signed", None)];
    assert_eq!(said(&bob), original);
    for is_restarted in [false, true] {
        disconnect(&mut alice, &mut bob);
        if is_restarted {
            bob.restart();
        }
        alice.link(LinkEvent::Up { features: FEATURES });
        bob.link(LinkEvent::Up { features: FEATURES });
        bob.receive(alice.outbox.pop_front().unwrap()).unwrap();
        assert_eq!(said(&bob)[1..], original);
    }
    alice.receive(bob.outbox.pop_front().unwrap()).unwrap();
    exchange(&mut alice, &mut bob);
    assert_eq!(alice.channel.ledger().htlcs(millrace_channel::Side::Remote).len(), 2);
}

mod lies {
    use super::*;

    fn reestablish_of(node: &mut Node) -> millrace_wire::message::ChannelReestablish {
        node.link(LinkEvent::Up { features: FEATURES });
        let Some(Message::ChannelReestablish(message)) = node.outbox.pop_front() else {
            panic!("no channel_reestablish")
        };
        message
    }

    fn after_one_payment() -> (Node, Node) {
        let (mut alice, mut bob) = normal_pair();
        let id = alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        bob.fulfill(id, 1);
        exchange(&mut alice, &mut bob);
        disconnect(&mut alice, &mut bob);
        (alice, bob)
    }

    #[test]
    fn that_we_are_late_without_proof_fail_the_channel() {
        let (mut alice, mut bob) = after_one_payment();
        let mut message = reestablish_of(&mut bob);
        message.next_revocation_number += 1;
        alice.link(LinkEvent::Up { features: FEATURES });
        let fault = alice.receive(Message::ChannelReestablish(message)).unwrap_err();
        assert_eq!(fault.reaction, Reaction::FailChannel);
        let (mut alice, mut bob) = after_one_payment();
        let mut message = reestablish_of(&mut bob);
        message.next_commitment_number += 1;
        alice.link(LinkEvent::Up { features: FEATURES });
        assert_eq!(alice.receive(Message::ChannelReestablish(message)).unwrap_err().reaction, Reaction::FailChannel);
    }

    #[test]
    fn about_our_secret_fail_the_channel() {
        let (mut alice, mut bob) = after_one_payment();
        let mut message = reestablish_of(&mut bob);
        message.your_last_per_commitment_secret[0] ^= 1;
        alice.link(LinkEvent::Up { features: FEATURES });
        assert_eq!(alice.receive(Message::ChannelReestablish(message)).unwrap_err().reaction, Reaction::FailChannel);
    }

    #[test]
    fn of_a_peer_that_fell_behind_are_waited_out() {
        let (mut alice, bob) = after_one_payment();
        let mut old = bob.replayed(5);
        alice.link(LinkEvent::Up { features: FEATURES });
        let mut fx = millrace_channel::Effects::default();
        old.on_link(LinkEvent::Up { features: FEATURES }, &mut fx);
        let millrace_channel::Effect::Send(message) = &fx.list[0] else { panic!("no channel_reestablish") };
        let fault = alice.receive((**message).clone()).unwrap_err();
        assert_eq!(fault.reaction, Reaction::Warn, "{fault}");
        assert!(alice.broadcasts.is_empty());
        assert!(!alice.channel.is_link_up());
    }

    #[test]
    fn proved_true_stop_us_from_ever_broadcasting() {
        let (alice, mut bob) = after_one_payment();
        let mut old = alice.replayed(4);
        let mut fx = millrace_channel::Effects::default();
        old.on_link(LinkEvent::Up { features: FEATURES }, &mut fx);
        let message = reestablish_of(&mut bob);
        fx.clear();
        old.on_message(Message::ChannelReestablish(message), &millrace_channel::curve::Serial, &mut fx).unwrap();
        assert!(!fx.list.iter().any(|effect| matches!(effect, millrace_channel::Effect::Broadcast(_))));
        let refused = old.on_command(Command::ForceClose { reason: "by hand".to_owned() }, &mut fx);
        assert!(refused.is_err(), "a node with old data must not broadcast");
    }
}
