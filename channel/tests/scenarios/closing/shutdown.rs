//! `shutdown`: when it is sent, to where, and what it forbids.

use millrace_channel::ChainEvent;
use millrace_channel::effect::{Broadcast, Purpose};
use millrace_wire::{HtlcId, Shutdown};

use super::*;

fn shutdown(node: &Node, script: ScriptBuf) -> Message {
    Message::Shutdown(Shutdown { channel_id: node.channel.id(), script })
}

#[test]
fn nothing_is_offered_after_it_and_htlcs_in_flight_end_first() {
    for features in [SIMPLE, LEGACY] {
        let (mut alice, mut bob) = pair(Options::default(), features);
        let (of_alice, of_bob) = (alice.offer(Msat(1_000_000_000), 1), bob.offer(Msat(2_000_000_000), 2));
        exchange(&mut alice, &mut bob);
        close(&mut alice, &mut bob, 1000, 1000);
        for node in [&mut alice, &mut bob] {
            assert_eq!(*node.channel.phase(), Phase::ShuttingDown);
            assert_eq!(node.try_offer(Msat(1_000), 3), Err(Refusal::NotUsable("it is closing")));
        }
        bob.fulfill(of_alice, 1);
        exchange(&mut alice, &mut bob);
        assert!(closes(&alice).is_empty(), "one HTLC is left");
        alice.fail(of_bob);
        exchange(&mut alice, &mut bob);
        for node in [&alice, &bob] {
            assert!(!complete(node).is_empty(), "{features:?}");
            for tx in complete(node) {
                let sum = paid(&tx, &to_alice()).unwrap() + paid(&tx, &to_bob()).unwrap();
                assert_eq!(sum, 10_000_000 - fee(1000));
                assert!((5_999_000..=6_000_000).contains(&paid(&tx, &to_bob()).unwrap()));
            }
        }
    }
}

#[test]
fn the_answer_waits_for_a_signature_over_what_is_proposed() {
    let (mut alice, mut bob) = pair(Options::default(), LEGACY);
    bob.offer(Msat(1_000_000_000), 1);
    bob.commit();
    bob.offer(Msat(1_000_000_000), 2);
    assert_eq!(names(&bob), ["update_add_htlc", "commitment_signed", "update_add_htlc"]);
    let asked = shutdown(&alice, to_alice());
    try_close(&mut alice, to_alice(), 1000).unwrap();
    alice.commit();
    assert_eq!(alice.outbox.front(), Some(&asked));
    bob.receive(asked).unwrap();
    try_close(&mut bob, to_bob(), 1000).unwrap();
    bob.commit();
    assert_eq!(names(&bob), ["update_add_htlc", "commitment_signed", "update_add_htlc"], "one signature is out");
    alice.outbox.clear();
    for message in bob.outbox.drain(..).collect::<Vec<_>>() {
        alice.receive(message).unwrap();
    }
    alice.commit();
    for message in alice.outbox.drain(..).collect::<Vec<_>>() {
        bob.receive(message).unwrap();
    }
    bob.commit();
    assert_eq!(names(&bob), ["revoke_and_ack", "commitment_signed", "shutdown"]);
    exchange(&mut alice, &mut bob);
    alice.fulfill(HtlcId(0), 1);
    alice.fulfill(HtlcId(1), 2);
    exchange(&mut alice, &mut bob);
    assert_eq!(paid(&complete(&bob)[0], &to_bob()), Some(3_000_000));
}

/// Decided before the cut, and never sent: the new connection does not send it earlier than the old one would have.
#[test]
fn not_on_a_new_connection_before_what_is_owed_is_signed() {
    let (mut alice, mut bob) = pair(Options { funder: Side::Remote, ..Options::default() }, LEGACY);
    bob.command(Command::UpdateFee(FeeratePerKw(2_000))).unwrap();
    bob.commit();
    for message in std::mem::take(&mut bob.outbox) {
        alice.receive(message).unwrap();
    }
    try_close(&mut alice, to_alice(), 500).unwrap();
    disconnect(&mut alice, &mut bob);
    alice.link(LinkEvent::Up { features: LEGACY });
    bob.link(LinkEvent::Up { features: LEGACY });
    let reestablish = bob.outbox.pop_front().unwrap();
    alice.receive(reestablish).unwrap();
    assert_eq!(names(&alice), ["channel_reestablish", "revoke_and_ack"]);
    alice.commit();
    assert_eq!(names(&alice), ["channel_reestablish", "revoke_and_ack", "commitment_signed", "shutdown"]);
}

#[test]
fn both_at_once() {
    for features in [SIMPLE, LEGACY] {
        let (mut alice, mut bob) = pair(Options::default(), features);
        try_close(&mut alice, to_alice(), 1000).unwrap();
        try_close(&mut bob, to_bob(), 1000).unwrap();
        exchange(&mut alice, &mut bob);
        for node in [&alice, &bob] {
            assert!(!complete(node).is_empty());
            let told = node.facts.iter().filter(|fact| matches!(fact, Fact::ShuttingDown)).count();
            assert_eq!(told, 1);
        }
    }
}

mod scripts {
    use super::*;

    #[test]
    fn ours_that_the_connection_does_not_allow() {
        let plain = LinkFeatures { shutdown_anysegwit: false, simple_close: false };
        for (features, script) in
            [(SIMPLE, p2pkh()), (SIMPLE, ScriptBuf::new()), (LEGACY, op_return()), (plain, taproot(1))]
        {
            let (mut alice, _) = pair(Options::default(), features);
            let records = alice.journal.len();
            assert!(matches!(try_close(&mut alice, script, 1000), Err(Refusal::BadShutdownScript(_))));
            assert_eq!((alice.journal.len(), alice.channel.phase()), (records, &Phase::Normal));
        }
        for (features, script) in [(SIMPLE, op_return()), (LEGACY, taproot(1)), (plain, p2wpkh(1))] {
            let (mut alice, _) = pair(Options::default(), features);
            assert_eq!(try_close(&mut alice, script, 1000), Ok(()));
        }
    }

    #[test]
    fn the_peers_that_the_connection_does_not_allow() {
        let plain = LinkFeatures { shutdown_anysegwit: false, simple_close: false };
        for (features, script) in
            [(SIMPLE, p2pkh()), (SIMPLE, ScriptBuf::new()), (LEGACY, op_return()), (plain, taproot(1))]
        {
            let (mut alice, _) = pair(Options::default(), features);
            let message = shutdown(&alice, script);
            let result = alice.receive(message);
            assert_disconnects(result, &alice);
            assert_eq!(*alice.channel.phase(), Phase::Normal);
        }
        for (features, script) in [(SIMPLE, op_return()), (LEGACY, taproot(1)), (plain, p2wpkh(1))] {
            let (mut alice, _) = pair(Options::default(), features);
            let message = shutdown(&alice, script);
            alice.receive(message).unwrap();
            assert_eq!(*alice.channel.phase(), Phase::ShuttingDown);
        }
    }

    #[test]
    fn what_was_committed_to_upfront_binds_both() {
        let (mut alice, mut bob) = pair_with(Options::default(), |terms| {
            terms.parties.local.upfront_shutdown_script = Some(to_alice());
        });
        assert!(matches!(try_close(&mut alice, p2wpkh(7), 1000), Err(Refusal::BadShutdownScript(_))));
        let message = shutdown(&bob, p2wpkh(7));
        let result = bob.receive(message);
        assert_disconnects(result, &bob);
        reconnect(&mut alice, &mut bob, SIMPLE);
        close(&mut alice, &mut bob, 1000, 1000);
        assert!(!complete(&alice).is_empty());
    }

    #[test]
    fn a_second_one_with_another_script() {
        let (mut alice, mut bob) = pair(Options::default(), LEGACY);
        let [first, again, other] = [to_bob(), to_bob(), p2wpkh(7)].map(|script| shutdown(&alice, script));
        alice.receive(first).unwrap();
        let records = alice.journal.len();
        alice.receive(again).unwrap();
        assert_eq!(alice.journal.len(), records);
        let result = alice.receive(other);
        assert_disconnects(result, &alice);
        try_close(&mut alice, to_alice(), 1000).unwrap();
        assert!(matches!(try_close(&mut alice, p2wpkh(7), 1000), Err(Refusal::BadShutdownScript(_))));
        reconnect(&mut alice, &mut bob, LEGACY);
        assert_eq!(*alice.channel.phase(), Phase::ShuttingDown);
    }
}

#[test]
fn no_order_while_the_peer_is_away_or_the_channel_has_ended() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    disconnect(&mut alice, &mut bob);
    assert_eq!(try_close(&mut alice, to_alice(), 1000), Err(Refusal::NotUsable("the peer is not connected")));
    alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
    assert_eq!(try_close(&mut alice, to_alice(), 1000), Err(Refusal::NotUsable("it is closed")));
}

#[test]
fn no_update_fee_once_the_channel_is_empty() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    let id = bob.offer(Msat(1_000_000_000), 1);
    exchange(&mut alice, &mut bob);
    try_close(&mut alice, to_alice(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    alice.command(Command::UpdateFee(FeeratePerKw(1500))).unwrap();
    exchange(&mut alice, &mut bob);
    alice.fulfill(id, 1);
    exchange(&mut alice, &mut bob);
    let refused = alice.command(Command::UpdateFee(FeeratePerKw(2000)));
    assert_eq!(refused, Err(Refusal::NotUsable("it is closing")));
}

#[test]
fn a_restart_asks_again_and_broadcasts_again() {
    let (mut alice, mut bob) = pair(Options::default(), LEGACY);
    try_close(&mut alice, to_alice(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    bob.facts.clear();
    bob.restart();
    assert_eq!(bob.facts, [Fact::CloseAsked]);
    alice.restart();
    reconnect(&mut alice, &mut bob, LEGACY);
    try_close(&mut bob, to_bob(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    let signed = complete(&alice);
    alice.broadcasts.clear();
    alice.restart();
    assert_eq!(alice.broadcasts.iter().map(|b| b.tx.clone()).collect::<Vec<_>>(), signed);
    assert_eq!(complete(&alice), signed);
}

/// BOLT 1: an `error` fails the channel. But where a close is signed by both, it pays sooner and costs less than a
/// commitment, which would only compete with it.
#[test]
fn an_error_broadcasts_the_commitment_unless_a_close_is_complete() {
    let error = |node: &Node| Message::Error(millrace_wire::Error::new(node.channel.id(), "so long"));
    let is_commitment = |broadcast: &Broadcast| broadcast.purpose == Purpose::Commitment;
    for features in [SIMPLE, LEGACY] {
        let (mut alice, mut bob) = pair(Options::default(), features);
        close(&mut alice, &mut bob, 1000, 600);
        for node in [&mut alice, &mut bob] {
            let before = (node.channel.phase().clone(), node.journal.len());
            assert!(!complete(node).is_empty());
            node.receive(error(node)).unwrap();
            assert_eq!((node.channel.phase().clone(), node.journal.len()), before, "{features:?}");
            assert!(!node.broadcasts.iter().any(is_commitment));
        }

        // Alice has signed, and Bob alone could complete it: nothing says that he does.
        let (mut alice, mut bob) = pair(Options::default(), features);
        try_close(&mut alice, to_alice(), 1000).unwrap();
        exchange(&mut alice, &mut bob);
        try_close(&mut bob, to_bob(), 600).unwrap();
        bob.commit();
        alice.receive(bob.outbox.pop_front().unwrap()).unwrap();
        alice.commit();
        assert!(!closes(&alice).is_empty() && complete(&alice).is_empty());
        alice.receive(error(&alice)).unwrap();
        assert!(matches!(alice.channel.phase(), Phase::OnChain(_)), "{features:?}");
        assert!(alice.broadcasts.iter().any(is_commitment));
    }
}

fn commitments(node: &Node) -> usize {
    node.broadcasts.iter().filter(|broadcast| broadcast.purpose == Purpose::Commitment).count()
}

/// Nor may a fault of the peer let the close be forgotten: it is what pays us.
#[test]
fn a_fault_of_the_peer_leaves_a_complete_close_as_it_is() {
    for features in [SIMPLE, LEGACY] {
        let (mut alice, mut bob) = pair(Options::default(), features);
        close(&mut alice, &mut bob, 1000, 600);
        let signed = complete(&alice);
        disconnect(&mut alice, &mut bob);
        bob.link(LinkEvent::Up { features });
        let Some(Message::ChannelReestablish(mut said)) = bob.outbox.pop_front() else { panic!("it is said first") };
        said.next_commitment_number = 0;
        alice.link(LinkEvent::Up { features });
        assert_eq!(alice.receive(Message::ChannelReestablish(said)).unwrap_err().reaction, Reaction::FailChannel);
        assert_eq!(names(&alice), ["channel_reestablish", "error"]);
        alice.broadcasts.clear();
        alice.restart();
        assert_eq!(alice.broadcasts.iter().map(|b| b.tx.clone()).collect::<Vec<_>>(), signed, "{features:?}");
        alice.command(Command::ForceClose { reason: "it never confirms".to_owned() }).unwrap();
        assert_eq!(commitments(&alice), 1);
        alice.restart();
    }
}

/// The close was in a block, and may never be in another: the commitment is the way out that is left.
#[test]
fn a_force_close_after_a_reorg_took_the_close_back() {
    use crate::support::chain::Chain;
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    close(&mut alice, &mut bob, 1000, 600);
    let mut chain = Chain::with_funding(&alice);
    chain.mine(&complete(&alice)[..1], &mut [&mut alice]);
    let order = Command::ForceClose { reason: "it never confirms".to_owned() };
    alice.command(order.clone()).unwrap();
    assert_eq!(commitments(&alice), 0, "the close is in a block");
    alice.chain(ChainEvent::Disconnected { height: chain.height });
    assert_eq!(commitments(&alice), 0, "it will be in the next, as a rule");
    alice.command(order.clone()).unwrap();
    assert_eq!(commitments(&alice), 1);
    let records = alice.journal.len();
    alice.restart();
    alice.command(order).unwrap();
    assert_eq!((commitments(&alice), alice.journal.len()), (3, records), "said again, not recorded again");
}

/// Out of a block again, it goes out again, also after a restart: bitcoind may have forgotten it.
#[test]
fn a_close_that_a_reorg_took_back_goes_out_again() {
    use crate::support::chain::Chain;
    for features in [SIMPLE, LEGACY] {
        let (mut alice, mut bob) = pair(Options::default(), features);
        close(&mut alice, &mut bob, 1000, 600);
        let signed = complete(&alice);
        let mut chain = Chain::with_funding(&alice);
        chain.mine(&signed[..1], &mut [&mut alice]);
        alice.broadcasts.clear();
        alice.restart();
        assert!(alice.broadcasts.is_empty(), "it is in a block");
        alice.chain(ChainEvent::Disconnected { height: chain.height });
        let sent = |node: &Node| node.broadcasts.iter().map(|b| b.tx.clone()).collect::<Vec<_>>();
        assert_eq!(sent(&alice), signed, "{features:?}");
        alice.broadcasts.clear();
        alice.restart();
        assert_eq!(sent(&alice), signed, "{features:?}");
    }
}

/// Alice has only her own signature of it; the block has both.
#[test]
fn a_close_that_only_the_peer_had_completed_goes_out_again_after_a_reorg() {
    use crate::support::chain::Chain;
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    try_close(&mut alice, to_alice(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    try_close(&mut bob, to_bob(), 600).unwrap();
    bob.commit();
    alice.receive(bob.outbox.pop_front().unwrap()).unwrap();
    alice.commit();
    let offers: Vec<Message> = alice.outbox.drain(..).collect();
    assert!(!offers.is_empty() && complete(&alice).is_empty());
    for offer in offers {
        bob.receive(offer).unwrap();
    }
    let theirs = complete(&bob)[0].clone();
    let mut chain = Chain::with_funding(&alice);
    chain.mine(std::slice::from_ref(&theirs), &mut [&mut alice]);
    alice.restart();
    alice.broadcasts.clear();
    alice.chain(ChainEvent::Disconnected { height: chain.height });
    assert_eq!(alice.broadcasts.iter().map(|b| b.tx.clone()).collect::<Vec<_>>(), [theirs]);
}

#[test]
fn a_close_that_confirms_ends_the_channel_whichever_it_is() {
    use crate::support::chain::Chain;
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    close(&mut alice, &mut bob, 1000, 500);
    assert_eq!(complete(&alice).len(), 2);
    for tx in complete(&alice) {
        let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
        close(&mut alice, &mut bob, 1000, 500);
        alice.restart();
        let mut chain = Chain::with_funding(&alice);
        chain.mine(std::slice::from_ref(&tx), &mut [&mut alice, &mut bob]);
        let until = chain.height.0 + 200;
        chain.mine_to(until, &mut [&mut alice, &mut bob]);
        for node in [&alice, &bob] {
            assert_eq!(*node.channel.phase(), Phase::Closed);
            assert!(node.broadcasts.iter().all(|b| b.purpose == millrace_channel::effect::Purpose::MutualClose));
        }
    }
}

#[test]
fn messages_of_the_negotiation_that_come_too_early() {
    for features in [SIMPLE, LEGACY] {
        let (mut alice, mut bob) = pair(Options::default(), features);
        close(&mut alice, &mut bob, 1000, 1000);
        // What Bob said last time, said to an Alice who is not there yet.
        let (mut alice, mut bob) = pair(Options::default(), features);
        try_close(&mut bob, to_bob(), 1000).unwrap();
        try_close(&mut alice, to_alice(), 1000).unwrap();
        let mut said = Vec::new();
        for _ in 0..3 {
            alice.commit();
            bob.commit();
            said.extend(alice.outbox.iter().chain(&bob.outbox).filter(|m| m.name().starts_with("closing")).cloned());
            for message in alice.outbox.drain(..).collect::<Vec<_>>() {
                bob.receive(message).unwrap();
            }
            for message in bob.outbox.drain(..).collect::<Vec<_>>() {
                alice.receive(message).unwrap();
            }
        }
        assert!(!said.is_empty());
        for message in said {
            let (mut alice, _) = pair(Options::default(), features);
            let records = alice.journal.len();
            let result = alice.receive(message.clone());
            assert_disconnects(result, &alice);
            try_close(&mut alice, to_alice(), 1000).unwrap();
            alice.commit();
            assert!(alice.receive(message).is_err(), "the peer has not said shutdown");
            assert_eq!(alice.journal.len(), records + 1);
        }
    }
}
