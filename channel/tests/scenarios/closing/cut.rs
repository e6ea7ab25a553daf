//! The connection goes after every single message of a close, with and without a restart of both: it ends all the same.

use super::*;

/// Lets messages through one by one, as many as `left` says, each side's shell answering what it is asked. False if
/// the two fell silent first.
fn deliver(alice: &mut Node, bob: &mut Node, left: &mut usize) -> bool {
    loop {
        alice.commit();
        bob.commit();
        answer(bob);
        bob.commit();
        if *left == 0 {
            return true;
        }
        if let Some(message) = alice.outbox.pop_front() {
            bob.receive(message).unwrap();
        } else if let Some(message) = bob.outbox.pop_front() {
            alice.receive(message).unwrap();
        } else {
            return false;
        }
        *left -= 1;
    }
}

/// Bob's shell: orders a close when it is asked to, and only then.
fn answer(bob: &mut Node) {
    if bob.facts.contains(&Fact::CloseAsked) && bob.channel.is_link_up() {
        bob.facts.retain(|fact| *fact != Fact::CloseAsked);
        try_close(bob, to_bob(), 800).unwrap();
    }
}

fn cut_everywhere(features: LinkFeatures, funder: Side, is_restarted: bool, with_htlc: bool) -> usize {
    for count in 0.. {
        let (mut alice, mut bob) = pair(Options { funder, ..Options::default() }, features);
        if with_htlc {
            let id = alice.offer(Msat(1_000_000_000), 1);
            exchange(&mut alice, &mut bob);
            bob.fulfill(id, 1);
        }
        try_close(&mut alice, to_alice(), 1000).unwrap();
        let mut left = count;
        let was_cut = deliver(&mut alice, &mut bob, &mut left);
        disconnect(&mut alice, &mut bob);
        if is_restarted {
            alice.restart();
            bob.restart();
        }
        reconnect(&mut alice, &mut bob, features);
        let mut all = 1000;
        assert!(!deliver(&mut alice, &mut bob, &mut all));
        let of_alice = if with_htlc { 4_000_000 } else { 5_000_000 };
        for node in [&alice, &bob] {
            assert!(!complete(node).is_empty(), "cut after {count} messages: {:?}", node.channel.phase());
            assert!(node.disconnects.is_empty());
            for tx in complete(node) {
                let (to_alice, to_bob) = (paid(&tx, &to_alice()).unwrap(), paid(&tx, &to_bob()).unwrap());
                assert!((of_alice - 2000..=of_alice).contains(&to_alice), "{to_alice}");
                assert!((10_000_000 - of_alice - 2000..=10_000_000 - of_alice).contains(&to_bob), "{to_bob}");
            }
        }
        alice.restart();
        bob.restart();
        if !was_cut {
            return count;
        }
    }
    unreachable!("a close has an end")
}

#[test]
fn after_each_message() {
    for (features, at_least) in [(LEGACY, 4), (SIMPLE, 6)] {
        for funder in [Side::Local, Side::Remote] {
            for is_restarted in [false, true] {
                let messages = cut_everywhere(features, funder, is_restarted, false);
                assert!(messages >= at_least, "{messages}");
                let messages = cut_everywhere(features, funder, is_restarted, true);
                assert!(messages >= at_least + 4, "{messages}");
            }
        }
    }
}

/// Bob signs an add; the signature is lost. On the next connection he says `shutdown` before he sends both again, as
/// LDK does.
#[test]
fn an_add_signed_before_shutdown_is_sent_again_after_it() {
    let (mut alice, mut bob) = pair(Options::default(), LEGACY);
    let id = bob.offer(Msat(50_000_000), 1);
    bob.commit();
    disconnect(&mut alice, &mut bob);
    alice.link(LinkEvent::Up { features: LEGACY });
    bob.link(LinkEvent::Up { features: LEGACY });
    bob.receive(alice.outbox.pop_front().unwrap()).unwrap();
    try_close(&mut bob, to_bob(), 1000).unwrap();
    bob.commit();
    let place = bob.outbox.iter().position(|message| matches!(message, Message::Shutdown(_))).unwrap();
    let shutdown = bob.outbox.remove(place).unwrap();
    bob.outbox.insert(1, shutdown);
    let names: Vec<&str> = bob.outbox.iter().map(Message::name).collect();
    let repeated = ["channel_reestablish", "shutdown", "channel_ready", "update_add_htlc", "commitment_signed"];
    assert_eq!(names, repeated);
    for message in std::mem::take(&mut bob.outbox) {
        alice.receive(message).unwrap();
    }
    try_close(&mut alice, to_alice(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    alice.fulfill(id, 1);
    exchange(&mut alice, &mut bob);
    assert!(!complete(&alice).is_empty() && !complete(&bob).is_empty());
}
