//! From the first record to `channel_ready`, and what a channel may and may not forget of it.

use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, Transaction, TxIn, Txid};
use millrace_channel::phase::Phase;
use millrace_channel::tx::funding::output_of;
use millrace_channel::{ChainEvent, Fact, Offer};
use millrace_wire::{BlockHeight, CltvExpiry, HtlcId, Message, Msat};

use crate::support::node::{HEIGHT, Node, Options, connect, disconnect, exchange, offer, opened_pair, pair_with};

/// A channel with no money of Bob's in it, whose funding transaction waits for a block. A coinbase spends nothing.
fn unconfirmed(minimum_depth: u32, spends: OutPoint) -> (Node, Node, Transaction) {
    let input = vec![TxIn { previous_output: spends, ..TxIn::default() }];
    let mut tx = Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input, output: Vec::new() };
    let (alice, bob) = opened_pair(Options { push: Msat::ZERO, ..Options::default() }, |terms| {
        terms.minimum_depth = minimum_depth;
        tx.output.push(output_of(terms));
        terms.funding_outpoint = OutPoint { txid: tx.compute_txid(), vout: 0 };
    });
    (alice, bob, tx)
}

fn coin() -> OutPoint {
    OutPoint { txid: Txid::from_byte_array([0xcc; 32]), vout: 0 }
}

fn confirm(node: &mut Node, tx: &Transaction, height: u32) {
    node.tip(BlockHeight(height));
    node.chain(ChainEvent::Confirmed { tx: Arc::new(tx.clone()), index: 1 });
}

/// How often `channel_ready` was sent since this was last asked.
fn readies(node: &mut Node) -> usize {
    node.outbox.drain(..).filter(|message| matches!(message, Message::ChannelReady(_))).count()
}

/// One HTLC from one end to the other, with time enough in any block.
fn pay(from: &mut Node, to: &mut Node, id: u64, seed: u8) {
    let offer = Offer { cltv_expiry: CltvExpiry(HEIGHT.0 + 4_500), ..offer(Msat(50_000_000), seed) };
    assert_eq!(from.channel.offer(offer, &mut from.fx), Ok(HtlcId(id)));
    from.drain();
    exchange(from, to);
    to.fulfill(HtlcId(id), seed);
    exchange(from, to);
    assert!(from.channel.is_at_rest() && to.channel.is_at_rest());
}

/// BOLT 2: after 2,016 blocks the side that did not fund may forget.
mod a_funding_transaction_that_does_not_confirm {
    use super::*;

    const LAST: u32 = HEIGHT.0 + 2_016;

    #[test]
    fn is_waited_for_2016_blocks_by_the_side_that_did_not_pay_for_it() {
        let (_alice, mut bob, tx) = unconfirmed(3, coin());
        for height in HEIGHT.0 + 1..LAST {
            bob.tip(BlockHeight(height));
            assert_eq!(*bob.channel.phase(), Phase::Opening, "after {} blocks", height - HEIGHT.0);
        }
        bob.restart();
        assert_eq!(*bob.channel.phase(), Phase::Opening);
        bob.facts.clear();
        bob.tip(BlockHeight(LAST));
        assert_eq!(*bob.channel.phase(), Phase::Closed);
        let [Fact::Failed { .. }, Fact::Closed(last)] = &bob.facts[..] else { panic!("{:?}", bob.facts) };
        assert_eq!((last.balances.local, &last.ending), (Msat::ZERO, &None));
        assert!(bob.broadcasts.is_empty(), "there is nothing to spend");
        bob.restart();
        confirm(&mut bob, &tx, LAST + 1);
        assert_eq!(*bob.channel.phase(), Phase::Closed);
    }

    #[test]
    fn is_waited_for_without_end_by_the_side_that_paid_for_it() {
        let (mut alice, _bob, tx) = unconfirmed(1, coin());
        for height in [LAST - 1, LAST, LAST + 1, 2 * LAST, 10 * LAST] {
            alice.tip(BlockHeight(height));
            assert_eq!(*alice.channel.phase(), Phase::Opening, "in block {height}");
        }
        assert_eq!(readies(&mut alice), 0);
        confirm(&mut alice, &tx, 10 * LAST + 1);
        assert_eq!(readies(&mut alice), 1);
    }

    /// One block in time is enough, however deep it has to be buried.
    #[test]
    fn is_no_such_once_it_is_in_the_last_block_of_the_wait() {
        let (_alice, mut bob, tx) = unconfirmed(3, coin());
        confirm(&mut bob, &tx, LAST - 1);
        for height in [LAST, LAST + 1] {
            bob.tip(BlockHeight(height));
            assert_eq!(*bob.channel.phase(), Phase::Opening);
        }
        assert_eq!(readies(&mut bob), 1);
    }

    /// A channel in use has the money of both in it, and nothing but the node's records to get it back.
    #[test]
    fn does_not_end_a_channel_that_is_in_use() {
        let (mut alice, mut bob) = pair_with(Options { push: Msat::ZERO, ..Options::default() }, |_| {});
        pay(&mut alice, &mut bob, 0, 1);
        for height in [LAST - 1, LAST, LAST + 1, LAST + 2_016] {
            alice.tip(BlockHeight(height));
            bob.tip(BlockHeight(height));
            assert_eq!(*bob.channel.phase(), Phase::Normal, "in block {height}");
        }
        disconnect(&mut alice, &mut bob);
        bob.restart();
        bob.tip(BlockHeight(LAST + 2_017));
        connect(&mut alice, &mut bob);
        pay(&mut alice, &mut bob, 1, 2);
        assert_eq!(bob.balances().local, Msat(100_000_000));
    }

    /// It was deep enough once, and `channel_ready` cannot be taken back as the block was.
    #[test]
    fn after_a_reorg_does_not_end_a_channel_that_was_ready() {
        let (mut alice, mut bob, tx) = unconfirmed(1, coin());
        for node in [&mut alice, &mut bob] {
            confirm(node, &tx, HEIGHT.0 + 1);
        }
        exchange(&mut alice, &mut bob);
        pay(&mut alice, &mut bob, 0, 1);
        bob.chain(ChainEvent::Disconnected { height: BlockHeight(HEIGHT.0 + 1) });
        assert_eq!(bob.channel.short_channel_id(), None);
        for height in [LAST, LAST + 1] {
            bob.tip(BlockHeight(height));
            assert_eq!(*bob.channel.phase(), Phase::Normal);
        }
    }
}

mod another_channel_ready {
    use super::*;
    use millrace_channel::Reaction;
    use millrace_channel::record::Record;
    use millrace_wire::message::ChannelReady;
    use millrace_wire::{CommitmentNumber, ShortChannelId};

    const ALIAS: ShortChannelId = ShortChannelId(33);

    /// What Bob might say once more, with his point for this commitment: 1 is the one that he gave.
    fn said(bob: &Node, number: u64, alias: Option<ShortChannelId>) -> Message {
        let next_per_commitment_point = bob.keys.commitment_point(CommitmentNumber(number));
        Message::ChannelReady(ChannelReady { channel_id: bob.channel.id(), next_per_commitment_point, alias })
    }

    fn records_of_it(node: &Node) -> usize {
        let is_it = |bytes: &&Vec<u8>| matches!(Record::decode(bytes).unwrap(), Record::ReadyReceived { .. });
        node.journal.iter().filter(is_it).count()
    }

    /// Both ends, after as many payments.
    fn in_use(payments: u64) -> (Node, Node) {
        let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
        for id in 0..payments {
            pay(&mut alice, &mut bob, id, 1);
        }
        (alice, bob)
    }

    #[test]
    fn with_another_point_fails_a_channel_that_has_no_update_yet() {
        for alias in [None, Some(ShortChannelId(22)), Some(ALIAS)] {
            let (mut alice, bob) = in_use(0);
            let fault = alice.receive(said(&bob, 2, alias)).expect_err("the point was given");
            assert_eq!(fault.reaction, Reaction::FailChannel);
            assert!(matches!(alice.channel.phase(), Phase::OnChain(_)));
            assert_eq!(records_of_it(&alice), 1, "the first stands");
            assert_eq!(alice.channel.aliases().1, Some(ShortChannelId(22)));
        }
    }

    /// One that comes before we are ready ourselves binds the peer no less.
    #[test]
    fn with_another_point_fails_a_channel_that_waits_for_its_block() {
        let (mut alice, bob, _) = unconfirmed(3, coin());
        alice.receive(said(&bob, 1, None)).unwrap();
        let fault = alice.receive(said(&bob, 2, None)).expect_err("the point was given");
        assert_eq!(fault.reaction, Reaction::FailChannel);
        assert_eq!(records_of_it(&alice), 1);
    }

    /// The point of a later commitment has come by then in `revoke_and_ack`, and that is the one to sign for.
    #[test]
    fn after_an_update_brings_no_point() {
        for number in [1, 2, 9] {
            let (mut alice, mut bob) = in_use(1);
            alice.receive(said(&bob, number, Some(ALIAS))).unwrap();
            pay(&mut alice, &mut bob, 1, 2);
            pay(&mut bob, &mut alice, 0, 3);
            alice.restart();
        }
    }

    #[test]
    fn with_another_alias_changes_the_alias_and_nothing_else() {
        let (mut alice, mut bob) = in_use(0);
        let before = (alice.journal.len(), alice.channel.phase().clone(), alice.balances());
        alice.receive(said(&bob, 1, None)).unwrap();
        assert_eq!(alice.channel.aliases().1, Some(ShortChannelId(22)), "none is no other one");
        assert_eq!(alice.journal.len(), before.0);
        alice.receive(said(&bob, 1, Some(ALIAS))).unwrap();
        assert_eq!(alice.channel.aliases().1, Some(ALIAS));
        assert_eq!((alice.channel.phase(), alice.balances()), (&before.1, before.2));
        disconnect(&mut alice, &mut bob);
        alice.restart();
        assert_eq!(alice.channel.aliases().1, Some(ALIAS));
        // Bob says it again himself, with the alias that he knows of: the last word counts.
        connect(&mut alice, &mut bob);
        assert_eq!(alice.channel.aliases().1, Some(ShortChannelId(22)));
        pay(&mut alice, &mut bob, 0, 1);
        pay(&mut bob, &mut alice, 0, 2);
    }
}

/// A coinbase cannot be spent before 100 blocks are on it, and with it neither can the channel.
#[test]
fn a_coinbase_is_buried_a_hundred_deep_before_channel_ready() {
    for (is_coinbase, agreed, needed) in [(false, 3, 3), (true, 1, 100), (true, 3, 100), (true, 144, 144)] {
        let spends = if is_coinbase { OutPoint::null() } else { coin() };
        let (mut alice, mut bob, tx) = unconfirmed(agreed, spends);
        assert_eq!(tx.is_coinbase(), is_coinbase);
        let first = HEIGHT.0 + 1;
        for node in [&mut alice, &mut bob] {
            confirm(node, &tx, first);
            assert_eq!(node.channel.required_depth(), needed);
            for depth in 2..needed {
                node.tip(BlockHeight(first + depth - 1));
                assert_eq!((readies(node), node.channel.funding_depth()), (0, depth));
            }
            // What it is, the record of its block says.
            node.restart();
        }
        connect(&mut alice, &mut bob);
        for node in [&mut alice, &mut bob] {
            node.tip(BlockHeight(first + needed - 2));
            assert_eq!(readies(node), 0);
            node.tip(BlockHeight(first + needed - 1));
            assert_eq!(readies(node), 1, "coinbase: {is_coinbase}, {agreed} agreed");
        }
    }
}
