//! What a node owes the world when it starts again, and what the chain takes back of the beginning.

use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, Transaction, TxIn};
use millrace_channel::effect::Purpose;
use millrace_channel::ledger::htlc::{Origin, Removal};
use millrace_channel::record::Record;
use millrace_channel::tx::funding::output_of;
use millrace_channel::{ChainEvent, Command, Fact, Offer};
use millrace_wire::{AttributionData, BlockHeight, ChannelId, HtlcId, Msat, ShortChannelId};

use crate::support::node::{HEIGHT, Node, Options, exchange, normal_pair, offer, pair_with, preimage_of};

const FORWARD: Origin = Origin::Forward { channel_id: ChannelId([9; 32]), htlc_id: HtlcId(3) };

/// Alice passes on an HTLC of another channel, and Bob removes it by `order`.
fn forwarded(order: Command) -> Node {
    let (mut alice, mut bob) = normal_pair();
    let offer = Offer { origin: FORWARD, ..offer(Msat(50_000_000), 1) };
    alice.channel.offer(offer, &mut alice.fx).unwrap();
    alice.drain();
    exchange(&mut alice, &mut bob);
    bob.command(order).unwrap();
    exchange(&mut alice, &mut bob);
    alice
}

/// How the HTLC ended, as it is told by a start.
fn outcomes_at_start(node: &mut Node) -> Vec<(HtlcId, Origin, Removal)> {
    node.facts.clear();
    node.restart();
    let outcome = |fact: &Fact| match fact {
        Fact::OfferResolved { id, origin, removal } => Some((*id, *origin, removal.clone())),
        _ => None,
    };
    node.facts.iter().filter_map(outcome).collect()
}

/// The node may have stopped between the peer's last word and the record upstream.
#[test]
fn how_a_forward_ended_is_told_at_each_start_until_it_is_released() {
    let reason = vec![7; 292];
    let fail = Command::Fail { id: HtlcId(0), reason: reason.clone(), attribution: None };
    let fulfill = Command::Fulfill { id: HtlcId(0), preimage: preimage_of(1), attribution: None, is_durable: false };
    for (order, removal) in [
        (fail, Removal::Fail { reason, attribution: None }),
        (fulfill, Removal::Fulfill { preimage: preimage_of(1), attribution: None }),
    ] {
        let mut alice = forwarded(order);
        assert!(alice.channel.is_at_rest());
        for _ in 0..2 {
            assert_eq!(outcomes_at_start(&mut alice), [(HtlcId(0), FORWARD, removal.clone())]);
            assert!(alice.channel.has_origin(FORWARD));
        }
        alice.command(Command::ReleaseOutcome(HtlcId(0))).unwrap();
        assert_eq!(outcomes_at_start(&mut alice), []);
        assert!(!alice.channel.has_origin(FORWARD));
    }
}

#[test]
fn a_preimage_that_no_signature_followed_is_told_again() {
    let (mut alice, mut bob) = normal_pair();
    let id = alice.offer(Msat(50_000_000), 1);
    exchange(&mut alice, &mut bob);
    bob.fulfill(id, 1);
    alice.receive(bob.outbox.pop_front().unwrap()).unwrap();
    alice.facts.clear();
    alice.restart();
    let is_it = |fact: &&Fact| matches!(fact, Fact::OfferFulfilled { id: told, preimage, .. } if *told == id && *preimage == preimage_of(1));
    assert_eq!(alice.facts.iter().filter(is_it).count(), 1);
}

/// It goes upstream with the preimage, which does not wait for the removal.
#[test]
fn how_long_a_forward_was_held_is_told_before_its_preimage() {
    let attribution = Box::new(AttributionData { hold_times: [1; 80], hmacs: [2; 840] });
    let preimage = preimage_of(1);
    let fulfill = Command::Fulfill {
        id: HtlcId(0),
        preimage: preimage.clone(),
        attribution: Some(attribution.clone()),
        is_durable: false,
    };
    let alice = forwarded(fulfill);
    let is_it = |fact: &&Fact| matches!(fact, Fact::OfferAttributed { .. } | Fact::OfferFulfilled { .. });
    let told: Vec<Fact> = alice.facts.iter().filter(is_it).cloned().collect();
    let fulfilled = Fact::OfferFulfilled { id: HtlcId(0), origin: FORWARD, preimage };
    assert_eq!(told, [Fact::OfferAttributed { origin: FORWARD, attribution: attribution.clone() }, fulfilled]);
    let record = Record::AttributionReceived { id: HtlcId(0), attribution };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    // As it was written on its first day: the version, the kind, the id, and two arrays behind their lengths.
    let stored = [vec![1, 18, 0, 80], vec![1; 80], vec![0xc8, 0x06], vec![2; 840]].concat();
    assert_eq!(bytes, stored);
    assert_eq!(Record::decode(&bytes).unwrap(), record);
}

mod the_funding_transaction {
    use super::*;

    /// A channel whose funding transaction is there to be mined.
    fn funded() -> (Node, Transaction) {
        let input = vec![TxIn::default()];
        let mut tx = Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input, output: Vec::new() };
        let (mut alice, _bob) = pair_with(Options::default(), |terms| {
            tx.output.push(output_of(terms));
            terms.funding_outpoint = OutPoint { txid: tx.compute_txid(), vout: 0 };
        });
        keep_with_the_channel(&mut alice, &tx);
        (alice, tx)
    }

    /// Alice has funded it: her first record says so, and she starts from her records.
    fn keep_with_the_channel(alice: &mut Node, tx: &Transaction) {
        let Record::Opened(mut opened) = Record::decode(&alice.journal[0]).unwrap() else { panic!("it comes first") };
        opened.funding_tx = Some(tx.clone());
        alice.journal[0].clear();
        Record::Opened(opened).encode(&mut alice.journal[0]);
        alice.channel = alice.replayed(alice.journal.len());
    }

    fn confirm(node: &mut Node, tx: &Transaction, height: u32, index: u32) {
        node.tip(BlockHeight(height));
        node.chain(ChainEvent::Confirmed { tx: Arc::new(tx.clone()), index });
    }

    /// How often it was broadcast since this was last asked.
    fn broadcasts(node: &mut Node, tx: &Transaction) -> usize {
        let all = std::mem::take(&mut node.broadcasts);
        all.iter().filter(|broadcast| broadcast.purpose == Purpose::Funding && broadcast.tx == *tx).count()
    }

    #[test]
    fn goes_out_at_each_start_until_it_is_in_a_block() {
        let (mut alice, tx) = funded();
        for _ in 0..2 {
            alice.restart();
            assert_eq!(broadcasts(&mut alice, &tx), 1);
        }
        confirm(&mut alice, &tx, HEIGHT.0 + 1, 5);
        alice.restart();
        assert_eq!(broadcasts(&mut alice, &tx), 0);
    }

    /// Its block is gone: it goes out again, and where it then stands is another place.
    #[test]
    fn that_a_reorg_takes_back_is_nowhere_until_another_block_has_it() {
        let (mut alice, tx) = funded();
        let place = |height, index| ShortChannelId::new(height, index, 0);
        let height = HEIGHT.0 + 1;
        confirm(&mut alice, &tx, height, 5);
        alice.tip(BlockHeight(height + 1));
        assert_eq!((alice.channel.short_channel_id(), alice.channel.funding_depth()), (place(height, 5), 2));

        alice.chain(ChainEvent::Disconnected { height: BlockHeight(height + 1) });
        assert_eq!((alice.channel.short_channel_id(), alice.channel.funding_depth()), (place(height, 5), 1));
        assert_eq!(broadcasts(&mut alice, &tx), 0);

        alice.chain(ChainEvent::Disconnected { height: BlockHeight(height) });
        assert_eq!((alice.channel.short_channel_id(), alice.channel.funding_depth()), (None, 0));
        assert_eq!(broadcasts(&mut alice, &tx), 1);
        alice.restart();
        assert_eq!(broadcasts(&mut alice, &tx), 1);

        confirm(&mut alice, &tx, height, 7);
        assert_eq!((alice.channel.short_channel_id(), alice.channel.funding_depth()), (place(height, 7), 1));
        let told = Fact::FundingConfirmed { scid: place(height, 7).unwrap(), height: BlockHeight(height) };
        assert!(alice.facts.contains(&told));
        alice.restart();
    }
}
