//! Somebody else's commitment is in the mempool: a child of our anchor can pay for it, whichever it is.

use bitcoin::{Amount, Transaction};
use millrace_channel::effect::Effect;
use millrace_channel::phase::on_chain::{Claims, Cpfp, OtherCommitments, Stake};
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::{Command, Effects};
use millrace_wire::{BlockHeight, Msat, Sat};

use super::on_chain::{commitment_of, wallet};
use crate::support::chain::Chain;
use crate::support::node::{HEIGHT, Node, Options, disconnect, exchange, pair_with};

fn close(node: &mut Node) -> Transaction {
    node.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
    commitment_of(node)
}

/// Both have an HTLC in flight, Bob a revoked commitment of before; Alice has closed.
fn closed() -> (Node, Node, Transaction) {
    let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
    exchange(&mut alice, &mut bob);
    let mut fx = Effects::default();
    let mut old = bob.replayed(bob.journal.len());
    old.on_command(Command::ForceClose { reason: "with an old state".to_owned() }, &mut fx).unwrap();
    let broadcast = |effect: &Effect| if let Effect::Broadcast(found) = effect { Some(found.tx.clone()) } else { None };
    let revoked = fx.list.iter().find_map(broadcast).unwrap();
    alice.offer(Msat(50_000_000), 1);
    bob.offer(Msat(60_000_000), 2);
    exchange(&mut alice, &mut bob);
    (alice, bob, revoked)
}

fn others(node: &Node) -> &OtherCommitments {
    node.claims.as_ref().and_then(|claims| claims.others.as_ref()).expect("nothing is in a block yet")
}

/// A child of Alice's for this commitment; both go into a block whose scripts are run.
fn assert_helped(alice: &mut Node, parent: &Transaction) -> Cpfp {
    let mut chain = Chain::with_funding(alice);
    let cpfp = others(alice).cpfp(parent).expect("her anchor is in it");
    let paid: Amount = parent.output.iter().map(|output| output.value).sum();
    assert_eq!(cpfp.parent_fee, Sat(alice.channel.terms().capacity.0 - paid.to_sat()));
    let claims = Claims { parent: Some(cpfp.clone()), ..alice.claims.clone().unwrap() };
    let child = chain.child(&claims, &alice.keys, &wallet(1)).unwrap();
    chain.mine(&[parent.clone(), child], &mut [alice]);
    assert!(alice.claims.as_ref().is_some_and(|claims| claims.others.is_none() && claims.parent.is_none()));
    cpfp
}

#[test]
fn the_peers_current_one() {
    let (mut alice, mut bob, _) = closed();
    disconnect(&mut alice, &mut bob);
    close(&mut alice);
    let theirs = close(&mut bob);
    let cpfp = assert_helped(&mut alice, &theirs);
    // What she offered; the preimage of what he did is not hers.
    assert_eq!((cpfp.deadline, cpfp.at_stake), (Some(BlockHeight(HEIGHT.0 + 40)), Sat(50_000)));
}

#[test]
fn the_peers_next_one() {
    let (mut alice, mut bob, _) = closed();
    alice.offer(Msat(70_000_000), 3);
    alice.commit();
    for message in alice.outbox.drain(..).collect::<Vec<_>>() {
        bob.receive(message).unwrap();
    }
    // His revocation does not arrive.
    disconnect(&mut alice, &mut bob);
    close(&mut alice);
    let stakes: Vec<Stake> = others(&alice).known.iter().map(|(_, stake)| *stake).collect();
    assert_eq!(stakes.iter().map(|stake| stake.at_stake).collect::<Vec<_>>(), [Sat(50_000), Sat(120_000)]);
    // The funder, who is Alice, pays for the new output too.
    assert!((70_001..71_000).contains(&(stakes[0].balance.0 - stakes[1].balance.0)), "{stakes:?}");
    let theirs = close(&mut bob);
    assert_eq!(assert_helped(&mut alice, &theirs).at_stake, Sat(120_000));
}

#[test]
fn a_revoked_one() {
    let (mut alice, mut bob, revoked) = closed();
    disconnect(&mut alice, &mut bob);
    close(&mut alice);
    let cpfp = assert_helped(&mut alice, &revoked);
    assert_eq!(cpfp.at_stake, Sat(50_000), "as much as hangs on hers");
}

#[test]
fn a_transaction_that_is_none_of_them() {
    let (mut alice, mut bob, _) = closed();
    disconnect(&mut alice, &mut bob);
    let ours = close(&mut alice);
    let theirs = close(&mut bob);
    let without_anchors = |tx: &Transaction| {
        let mut tx = tx.clone();
        tx.output.retain(|output| output.value != Amount::from_sat(330));
        tx
    };
    assert_eq!(others(&alice).cpfp(&without_anchors(&theirs)), None);
    let mut elsewhere = theirs.clone();
    elsewhere.input[0].previous_output.vout += 1;
    assert_eq!(others(&alice).cpfp(&elsewhere), None);
    let mut money = theirs;
    money.output[0].value = Amount::from_sat(alice.channel.terms().capacity.0 + 1);
    assert_eq!(others(&alice).cpfp(&money), None, "more than there is");
    assert_eq!(
        others(&alice).cpfp(&ours).unwrap().anchor,
        alice.claims.as_ref().unwrap().parent.as_ref().unwrap().anchor
    );
}

#[test]
fn without_anchors_there_is_nothing_to_help_with() {
    let options = Options { format: CommitmentFormat::StaticRemotekey, ..Options::default() };
    let (mut alice, mut bob) = pair_with(options, |_| {});
    exchange(&mut alice, &mut bob);
    close(&mut alice);
    assert!(alice.claims.as_ref().is_none_or(|claims| claims.others.is_none()));
}
