//! What a channel says of its own end: which transaction, what it pays whom, and what becomes of each output.

use millrace_channel::Command;
use millrace_channel::phase::on_chain::ending::{Ending, Output, OutputKind};
use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_wire::{BlockHeight, Msat, Sat};

use crate::support::chain::Chain;
use crate::support::node::{Node, Options, disconnect, exchange, pair_with};

fn wallet() -> bitcoin::ScriptBuf {
    bitcoin::ScriptBuf::new_p2wpkh(&bitcoin::hashes::Hash::from_byte_array([7; 20]))
}

fn ending(node: &Node) -> Ending {
    node.channel.ending().expect("it ends")
}

fn htlc(ending: &Ending, offered_by: Side) -> &Output {
    let is_it = |output: &&Output| matches!(output.kind, OutputKind::Htlc { offered_by: by, .. } if by == offered_by);
    ending.outputs.iter().find(is_it).expect("the HTLC has an output")
}

fn main_output(ending: &Ending, side: Side) -> &Output {
    ending.outputs.iter().find(|output| output.kind == OutputKind::Balance(side)).expect("a main output")
}

/// Everything of the funding is in an output or a fee.
fn assert_whole(node: &Node, ending: &Ending) {
    let outputs: Sat = ending.outputs.iter().map(|output| output.amount).sum();
    assert_eq!(outputs.checked_add(ending.fee), Some(node.channel.terms().capacity));
    assert_eq!(ending.direct, main_output(ending, Side::Local).amount);
}

/// Alice offers 50,000 sat, Bob 60,000 sat and knows her preimage; then Alice closes alone.
fn closed_alone(format: CommitmentFormat) -> (Node, Node, Chain) {
    let (mut alice, mut bob) = pair_with(Options { format, ..Options::default() }, |_| {});
    let offered = alice.offer(Msat(50_000_000), 1);
    bob.offer(Msat(60_000_000), 11);
    exchange(&mut alice, &mut bob);
    let chain = Chain::with_funding(&alice);
    disconnect(&mut alice, &mut bob);
    bob.fulfill(offered, 1);
    alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
    (alice, bob, chain)
}

#[test]
fn none_while_the_channel_is_open() {
    let (alice, _bob) = pair_with(Options::default(), |_| {});
    assert_eq!(alice.channel.ending(), None);
}

#[test]
fn before_and_after_the_commitment_is_in_a_block() {
    for format in [CommitmentFormat::Anchors, CommitmentFormat::StaticRemotekey] {
        let (mut alice, mut bob, mut chain) = closed_alone(format);
        let before = ending(&alice);
        assert_eq!(before.height, None);
        assert_whole(&alice, &before);
        let commitment = alice.broadcasts.last().expect("the commitment").tx.clone();
        assert_eq!(before.txid, commitment.compute_txid());
        chain.mine(&[commitment], &mut [&mut alice, &mut bob]);

        let delay = u32::from(alice.channel.terms().delay_of(Side::Local));
        let (ours, theirs) = (ending(&alice), ending(&bob));
        for (node, ending) in [(&alice, &ours), (&bob, &theirs)] {
            assert_eq!((ending.txid, ending.height), (before.txid, Some(chain.height)));
            assert_eq!(ending.fee, before.fee);
            assert_whole(node, ending);
        }
        // The same outputs, each seen from its side.
        assert_eq!(main_output(&ours, Side::Local).outpoint, main_output(&theirs, Side::Remote).outpoint);
        assert_eq!(main_output(&ours, Side::Local).claimable, Some(BlockHeight(chain.height.0 + delay)));
        assert_eq!(main_output(&ours, Side::Remote).claimable, None);
        assert_eq!(main_output(&theirs, Side::Local).claimable, Some(BlockHeight(chain.height.0 + 1)));
        // Hers comes back after its expiry, unless Bob shows the preimage, which he may until then; his she cannot take.
        let expiry = alice.channel.ledger().htlcs(Side::Local)[0].add.cltv_expiry.0;
        assert_eq!(htlc(&ours, Side::Local).claimable, Some(BlockHeight(expiry + 1)));
        assert_eq!(htlc(&ours, Side::Remote).claimable, None);
        assert_eq!(htlc(&theirs, Side::Remote).deadline, Some(BlockHeight(expiry)));
        assert_eq!(ours.outputs.len(), if format == CommitmentFormat::Anchors { 6 } else { 4 });
    }
}

#[test]
fn who_spent_what_is_told_by_both_sides_alike() {
    for format in [CommitmentFormat::Anchors, CommitmentFormat::StaticRemotekey] {
        let (mut alice, mut bob, mut chain) = closed_alone(format);
        let commitment = alice.broadcasts.last().expect("the commitment").tx.clone();
        chain.mine(&[commitment], &mut [&mut alice, &mut bob]);
        let claims = bob.claims.clone().expect("bob has claims");
        let txs = chain.claim(&claims, &bob.keys, &wallet());
        assert!(!txs.is_empty());
        chain.mine(&txs, &mut [&mut alice, &mut bob]);

        let (ours, theirs) = (ending(&alice), ending(&bob));
        let by = |output: &Output| output.spent.map(|(by, _, height)| (by, height));
        let at = chain.height;
        assert_eq!(by(htlc(&ours, Side::Local)), Some((Side::Remote, at)), "Bob took hers with its preimage");
        assert_eq!(by(htlc(&theirs, Side::Remote)), Some((Side::Local, at)));
        assert_eq!(by(main_output(&ours, Side::Remote)), Some((Side::Remote, at)));
        assert_eq!(by(main_output(&theirs, Side::Local)), Some((Side::Local, at)));
        assert_eq!(by(main_output(&ours, Side::Local)), None);
        alice.restart();
        assert_eq!(ending(&alice).outputs, ours.outputs);
    }
}

#[test]
fn an_htlc_taken_back_goes_through_a_second_stage_that_is_told_too() {
    let (mut alice, mut bob, mut chain) = closed_alone(CommitmentFormat::Anchors);
    let commitment = alice.broadcasts.last().expect("the commitment").tx.clone();
    chain.mine(&[commitment], &mut [&mut alice, &mut bob]);
    let expiry = alice.channel.ledger().htlcs(Side::Local)[0].add.cltv_expiry.0;
    while chain.height.0 < expiry {
        chain.mine(&[], &mut [&mut alice, &mut bob]);
    }
    let claims = alice.claims.clone().expect("alice has claims");
    let txs = chain.claim(&claims, &alice.keys, &wallet());
    chain.mine(&txs, &mut [&mut alice, &mut bob]);

    let ours = ending(&alice);
    let (by, txid, height) = htlc(&ours, Side::Local).spent.expect("she has taken it back");
    assert_eq!((by, height), (Side::Local, chain.height));
    let second = ours.outputs.iter().find(|output| output.kind == OutputKind::SecondLevel).expect("its output");
    let delay = u32::from(alice.channel.terms().delay_of(Side::Local));
    assert_eq!((second.outpoint.txid, second.spent), (txid, None));
    assert_eq!(second.claimable, Some(BlockHeight(height.0 + delay)));
    assert_eq!(htlc(&ending(&bob), Side::Remote).spent.map(|(by, ..)| by), Some(Side::Remote));
}

#[test]
fn our_anchor_is_spent_by_us_and_by_nobody_else() {
    let (mut alice, mut bob, mut chain) = closed_alone(CommitmentFormat::Anchors);
    let commitment = alice.broadcasts.last().expect("the commitment").tx.clone();
    let claims = alice.claims.clone().expect("alice has claims");
    let child = chain.child(&claims, &alice.keys, &wallet()).expect("an anchor to spend");
    chain.mine(&[commitment, child], &mut [&mut alice, &mut bob]);
    let anchor = |node: &Node, side: Side| {
        let ending = ending(node);
        let output = ending.outputs.iter().find(|output| output.kind == OutputKind::Anchor(side)).expect("an anchor");
        output.spent.map(|(by, ..)| by)
    };
    assert_eq!((anchor(&alice, Side::Local), anchor(&alice, Side::Remote)), (Some(Side::Local), None));
    assert_eq!((anchor(&bob, Side::Remote), anchor(&bob, Side::Local)), (Some(Side::Remote), None));
}
