//! What a node is asked for or told beside its peer and the chain: its commitment complete, and preimages that somebody else
//! has seen on chain.

use millrace_channel::side::Side;
use millrace_channel::tx::funding;
use millrace_channel::{Command, Fact};
use millrace_wire::Msat;

use super::on_chain::FORMATS;
use crate::support::node::{Options, disconnect, exchange, pair_with, preimage_of};
use crate::support::script::verify_tx;

/// Item of the witness where the preimage stands.
const PREIMAGE: usize = 3;

#[test]
fn a_commitment_is_complete_with_its_htlcs() {
    for format in FORMATS {
        let (mut alice, mut bob) = pair_with(Options { format, ..Options::default() }, |_| {});
        let offered = alice.offer(Msat(50_000_000), 1);
        for seed in [2, 3] {
            bob.offer(Msat(60_000_000), seed);
        }
        // One that has no output.
        alice.offer(Msat(200_000), 4);
        exchange(&mut alice, &mut bob);
        disconnect(&mut alice, &mut bob);
        bob.fulfill(offered, 1);
        let funding = funding::output_of(bob.channel.terms());
        let complete = bob.channel.complete_commitment().expect("there is one");
        assert_eq!(complete.number, bob.channel.commitment_numbers().local);
        verify_tx(&complete.transaction, &[funding]).unwrap();
        assert_eq!(complete.htlcs.len(), 3);
        let mut preimages = 0;
        for htlc in &complete.htlcs {
            let outpoint = htlc.transaction.input[0].previous_output;
            assert_eq!(outpoint.txid, complete.transaction.compute_txid());
            let spent = complete.transaction.output[outpoint.vout as usize].clone();
            assert_eq!(htlc.is_success, htlc.payment_hash == preimage_of(1).hash());
            verify_tx(&htlc.transaction, std::slice::from_ref(&spent)).unwrap();
            preimages +=
                usize::from(htlc.transaction.input[0].witness.nth(PREIMAGE) == Some(preimage_of(1).as_bytes()));
        }
        assert_eq!(preimages, 1, "he knows that of one");

        // As long as he does not, it is to be put in.
        let (mut alice, mut bob) = pair_with(Options { format, ..Options::default() }, |_| {});
        alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        let complete = bob.channel.complete_commitment().expect("there is one");
        let mut tx = complete.htlcs[0].transaction.clone();
        let spent = complete.transaction.output[tx.input[0].previous_output.vout as usize].clone();
        assert!(verify_tx(&tx, std::slice::from_ref(&spent)).is_err());
        let mut items = tx.input[0].witness.to_vec();
        items[PREIMAGE] = preimage_of(1).as_bytes().to_vec();
        tx.input[0].witness = bitcoin::Witness::from_slice(&items);
        verify_tx(&tx, &[spent]).unwrap();
    }
}

#[test]
fn preimages_of_others_fulfil_the_htlcs_with_their_hashes_once() {
    let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
    let ids = [1, 2, 2, 3].map(|seed| alice.offer(Msat(50_000_000), seed));
    let theirs = bob.offer(Msat(50_000_000), 1);
    exchange(&mut alice, &mut bob);
    let fulfilled = |facts: &[Fact]| -> Vec<_> {
        let of = |fact: &Fact| match fact {
            Fact::OfferFulfilled { id, preimage, .. } => Some((*id, preimage.clone())),
            _ => None,
        };
        facts.iter().filter_map(of).collect()
    };
    alice.command(Command::Preimages(vec![preimage_of(9), preimage_of(1), preimage_of(2)])).unwrap();
    let expected = [(ids[0], preimage_of(1)), (ids[1], preimage_of(2)), (ids[2], preimage_of(2))];
    assert_eq!(fulfilled(&alice.facts), expected);
    // A start tells them again.
    alice.restart();
    alice.facts.clear();
    // Given again, and of those that the peer has offered: nothing.
    alice.command(Command::Preimages(vec![preimage_of(1), preimage_of(2)])).unwrap();
    assert_eq!(fulfilled(&alice.facts), []);
    assert!(alice.channel.htlc(Side::Remote, theirs).is_some());
    // What the peer then does with them changes nothing any more.
    disconnect(&mut alice, &mut bob);
    crate::support::node::connect(&mut alice, &mut bob);
    for (id, seed) in [(ids[0], 1), (ids[1], 2), (ids[2], 2), (ids[3], 3)] {
        bob.fulfill(id, seed);
    }
    exchange(&mut alice, &mut bob);
    assert_eq!(fulfilled(&alice.facts), [(ids[3], preimage_of(3))]);
    assert_eq!(alice.channel.ledger().htlcs(Side::Local).len(), 0);
}
