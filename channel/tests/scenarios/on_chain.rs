//! One side closes alone, on a chain whose scripts are run: everyone gets what is his.

use std::sync::Arc;

use bitcoin::{OutPoint, ScriptBuf, Transaction};
use millrace_channel::effect::Purpose;
use millrace_channel::phase::Phase;
use millrace_channel::phase::on_chain::{OutputSpend, SpendKind};
use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::{ChainEvent, Command, Fact, Offer};
use millrace_wire::{BlockHeight, CltvExpiry, HtlcId, Message, Msat, Sat};

use crate::support::chain::Chain;
use crate::support::node::{HEIGHT, Node, Options, disconnect, exchange, offer, pair_with, preimage_of};

pub(crate) const FORMATS: [CommitmentFormat; 2] = [CommitmentFormat::Anchors, CommitmentFormat::StaticRemotekey];

pub(crate) fn wallet(seed: u8) -> ScriptBuf {
    let hash = bitcoin::hashes::Hash::from_byte_array([seed; 20]);
    ScriptBuf::new_p2wpkh(&hash)
}

/// Both have HTLCs in flight: two that Bob can claim (one known to him), one too small for an output, and the same
/// from Bob. Returns (alice, bob, ids offered by alice, ids offered by bob).
fn with_htlcs(format: CommitmentFormat, funder: Side) -> (Node, Node, Vec<HtlcId>, Vec<HtlcId>) {
    let (mut alice, mut bob) = pair_with(Options { format, funder, ..Options::default() }, |_| {});
    let amounts = [50_000_000, 60_000_000, 200_000];
    let offered: Vec<HtlcId> = (0..3).map(|i| alice.offer(Msat(amounts[i]), 1 + i as u8)).collect();
    let received: Vec<HtlcId> = (0..3).map(|i| bob.offer(Msat(amounts[i]), 11 + i as u8)).collect();
    exchange(&mut alice, &mut bob);
    (alice, bob, offered, received)
}

/// The outputs that a node knows to be spent in a block.
fn spent_of(node: &Node) -> &[OutputSpend] {
    let Phase::OnChain(on_chain) = node.channel.phase() else { panic!("it is not on chain") };
    &on_chain.spent
}

pub(crate) fn commitment_of(node: &Node) -> Transaction {
    let found = node.broadcasts.iter().rfind(|broadcast| broadcast.purpose == Purpose::Commitment);
    found.expect("the commitment was broadcast").tx.clone()
}

/// Lets both wallets claim until neither channel wants anything, and buries it all.
fn play_out(chain: &mut Chain, alice: &mut Node, bob: &mut Node) {
    play(chain, alice, bob, 400);
}

fn play(chain: &mut Chain, alice: &mut Node, bob: &mut Node, blocks: u32) {
    for _ in 0..blocks {
        let mut txs = Vec::new();
        for (node, seed) in [(&mut *alice, 1), (&mut *bob, 2)] {
            if let Some(claims) = node.claims.clone() {
                txs.extend(chain.claim(&claims, &node.keys, &wallet(seed)));
            }
            let complete = node.broadcasts.iter().filter(|broadcast| broadcast.purpose == Purpose::Htlc);
            txs.extend(complete.map(|broadcast| broadcast.tx.clone()));
        }
        // A rival may have confirmed, or two of these may spend the same output: first come, first served.
        let mut taken: Vec<OutPoint> = Vec::new();
        txs.retain(|tx| {
            let spends: Vec<OutPoint> = tx.input.iter().map(|input| input.previous_output).collect();
            let is_free = spends.iter().all(|outpoint| chain.is_unspent(*outpoint) && !taken.contains(outpoint));
            taken.extend(spends);
            is_free
        });
        chain.mine(&txs, &mut [alice, bob]);
    }
}

/// What a wallet got, in sat.
fn earned(chain: &Chain, seed: u8, funding: OutPoint) -> u64 {
    let in_channel = |tx: &&Transaction| {
        tx.input.iter().any(|input| input.previous_output.txid != funding.txid || input.previous_output == funding)
    };
    let outputs = chain.confirmed.iter().filter(in_channel).flat_map(|tx| &tx.output);
    outputs
        .filter(|output| output.script_pubkey == wallet(seed) && output.value.to_sat() != 9_000)
        .map(|output| output.value.to_sat())
        .sum()
}

#[test]
fn our_commitment_every_output_goes_where_it_belongs() {
    for format in FORMATS {
        for funder in [Side::Local, Side::Remote] {
            let (mut alice, mut bob, offered, received) = with_htlcs(format, funder);
            let mut chain = Chain::with_funding(&alice);
            // Alice knows the preimage of the first HTLC of Bob's, Bob of the first of hers.
            disconnect(&mut alice, &mut bob);
            alice.fulfill(received[0], 11);
            bob.fulfill(offered[0], 1);
            alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
            alice.restart();
            let commitment = commitment_of(&alice);
            let anchor_child = chain_child(&mut chain, &alice);
            chain.mine(&[commitment], &mut [&mut alice, &mut bob]);
            if let Some(child) = anchor_child {
                chain.mine(&[child], &mut [&mut alice, &mut bob]);
            }
            assert!(bob.facts.iter().any(|fact| matches!(fact, Fact::FundingSpent { .. })));
            bob.restart();
            play_out(&mut chain, &mut alice, &mut bob);
            assert_settled(&chain, &mut alice, &mut bob, format);
        }
    }
}

fn chain_child(chain: &mut Chain, node: &Node) -> Option<Transaction> {
    chain.child(node.claims.as_ref()?, &node.keys, &wallet(9))
}

/// Alice: 5,000,000 sat and Bob's first HTLC, less hers that Bob claimed. The rest went back.
fn assert_settled(chain: &Chain, alice: &mut Node, bob: &mut Node, format: CommitmentFormat) {
    for node in [&*alice, &*bob] {
        assert_eq!(*node.channel.phase(), Phase::Closed, "{format:?}: {:?}", node.channel.unclaimed_outputs());
        let learned = node.facts.iter().filter(|fact| matches!(fact, Fact::OfferFulfilled { .. })).count();
        assert!(learned >= 1, "the preimage was learned from the chain");
        let timed_out = node.facts.iter().filter(|fact| matches!(fact, Fact::OfferTimedOut { .. })).count();
        assert_eq!(timed_out, 2, "one taken back, one that was dust");
    }
    assert!(
        alice
            .facts
            .iter()
            .any(|fact| matches!(fact, Fact::OfferFulfilled { preimage, .. } if *preimage == preimage_of(1)))
    );
    let funding = alice.channel.terms().funding_outpoint;
    let (alice_got, bob_got) = (earned(chain, 1, funding), earned(chain, 2, funding));
    // Commitment fee, anchors, the two dust HTLCs and the fees of claims are what is missing.
    for (who, got) in [("alice", alice_got), ("bob", bob_got)] {
        assert!((4_985_000..=5_000_000).contains(&got), "{format:?}: {who} got {got}");
    }
    assert!(alice_got + bob_got <= 10_000_000);
    alice.restart();
    bob.restart();
}

#[test]
fn the_peers_next_commitment_is_known_as_such() {
    for format in FORMATS {
        let (mut alice, mut bob, ..) = with_htlcs(format, Side::Local);
        let mut chain = Chain::with_funding(&alice);
        // Alice signs Bob's next commitment; his revocation never comes.
        alice.offer(Msat(70_000_000), 21);
        alice.commit();
        for message in alice.outbox.drain(..).collect::<Vec<_>>() {
            bob.receive(message).unwrap();
        }
        disconnect(&mut alice, &mut bob);
        bob.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        let commitment = commitment_of(&bob);
        chain.mine(&[commitment], &mut [&mut alice, &mut bob]);
        let Phase::OnChain(on_chain) = alice.channel.phase() else { panic!("alice has not seen it") };
        assert_eq!(on_chain.spend.as_ref().unwrap().what, millrace_channel::phase::on_chain::SpendKind::RemoteNext);
        play_out(&mut chain, &mut alice, &mut bob);
        assert_eq!(*alice.channel.phase(), Phase::Closed);
        let timed_out = alice.facts.iter().filter(|fact| matches!(fact, Fact::OfferTimedOut { .. })).count();
        assert_eq!(timed_out, 4);
    }
}

#[test]
fn the_peers_unrevoked_commitment_while_the_next_is_signed() {
    for format in FORMATS {
        let (mut alice, mut bob, ..) = with_htlcs(format, Side::Local);
        let mut chain = Chain::with_funding(&alice);
        alice.offer(Msat(70_000_000), 21);
        alice.commit();
        disconnect(&mut alice, &mut bob);
        bob.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        chain.mine(&[commitment_of(&bob)], &mut [&mut alice, &mut bob]);
        let Phase::OnChain(on_chain) = alice.channel.phase() else { panic!("alice has not seen it") };
        assert_eq!(
            on_chain.spend.as_ref().unwrap().what,
            millrace_channel::phase::on_chain::SpendKind::RemoteUnrevoked
        );
        play_out(&mut chain, &mut alice, &mut bob);
        assert_eq!(*alice.channel.phase(), Phase::Closed);
    }
}

#[test]
fn several_outputs_spent_in_one_transaction_are_all_seen() {
    let (mut alice, mut bob, offered, _) = with_htlcs(CommitmentFormat::Anchors, Side::Local);
    let mut chain = Chain::with_funding(&alice);
    disconnect(&mut alice, &mut bob);
    bob.fulfill(offered[0], 1);
    bob.fulfill(offered[1], 2);
    alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
    chain.mine(&[commitment_of(&alice)], &mut [&mut alice, &mut bob]);
    let claims: Vec<_> = bob.claims.clone().unwrap().sweeps.into_iter().map(|sweep| sweep.claim).collect();
    assert_eq!(claims.len(), 3, "two HTLCs and to_remote");
    let tx =
        millrace_channel::tx::claim::sweep_tx(&claims, wallet(2), millrace_wire::FeeratePerKw(253), &bob.keys).unwrap();
    chain.mine(&[tx], &mut [&mut alice, &mut bob]);
    let learned = alice.facts.iter().filter(|fact| matches!(fact, Fact::OfferFulfilled { .. })).count();
    assert_eq!(learned, 2);
}

mod a_preimage {
    use super::*;

    /// The peer's claim pays the downstream HTLC: upstream is not to wait for its block.
    #[test]
    fn in_the_mempool_is_learned_and_spends_nothing_yet() {
        for format in FORMATS {
            let (mut alice, mut bob, offered, _) = with_htlcs(format, Side::Local);
            let mut chain = Chain::with_funding(&alice);
            disconnect(&mut alice, &mut bob);
            bob.fulfill(offered[0], 1);
            alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
            chain.mine(&[commitment_of(&alice)], &mut [&mut alice, &mut bob]);
            let records = alice.journal.len();
            for tx in chain.claim(&bob.claims.clone().unwrap(), &bob.keys, &wallet(2)) {
                alice.chain(ChainEvent::Unconfirmed { tx: Arc::new(tx) });
            }
            let told: Vec<_> = alice.facts.iter().filter(|fact| matches!(fact, Fact::OfferFulfilled { .. })).collect();
            let [Fact::OfferFulfilled { id, preimage, .. }] = told[..] else { panic!("{format:?}: {told:?}") };
            assert_eq!((*id, preimage), (offered[0], &preimage_of(1)));
            assert_eq!(alice.journal.len(), records + 1);
            assert!(spent_of(&alice).is_empty());
            alice.restart();
        }
    }
}

mod a_failed_htlc {
    use super::*;

    #[test]
    fn without_an_output_is_told_once_the_commitment_is_six_blocks_deep() {
        let (mut alice, mut bob, offered, _) = with_htlcs(CommitmentFormat::Anchors, Side::Local);
        let mut chain = Chain::with_funding(&alice);
        disconnect(&mut alice, &mut bob);
        bob.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        chain.mine(&[commitment_of(&bob)], &mut [&mut alice]);
        let told = |alice: &Node| {
            let id = |fact: &Fact| if let Fact::OfferTimedOut { id, .. } = fact { Some(*id) } else { None };
            alice.facts.iter().filter_map(id).collect::<Vec<_>>()
        };
        let confirmed = chain.height.0;
        chain.mine_to(confirmed + 4, &mut [&mut alice]);
        assert_eq!(told(&alice), []);
        chain.mine_to(confirmed + 5, &mut [&mut alice]);
        assert_eq!(told(&alice), [offered[2]]);
    }

    /// A block may still bring the peer's claim in place of ours: upstream waits until that is out of the question.
    #[test]
    fn is_told_once_what_took_it_back_is_six_blocks_deep() {
        for format in FORMATS {
            let (mut alice, mut bob, offered, _) = with_htlcs(format, Side::Local);
            let mut chain = Chain::with_funding(&alice);
            disconnect(&mut alice, &mut bob);
            alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
            chain.mine(&[commitment_of(&alice)], &mut [&mut alice]);
            chain.mine_to(HEIGHT.0 + 40, &mut [&mut alice]);
            let mut txs = chain.claim(&alice.claims.clone().unwrap(), &alice.keys, &wallet(1));
            let complete = alice.broadcasts.iter().filter(|broadcast| broadcast.purpose == Purpose::Htlc);
            txs.extend(complete.map(|broadcast| broadcast.tx.clone()));
            txs.sort_by_key(Transaction::compute_txid);
            txs.dedup();
            assert_eq!(txs.len(), 2, "two HTLCs have an output, and each is taken back");
            chain.mine(&txs, &mut [&mut alice]);
            let taken_back = chain.height.0;
            let told = |alice: &Node| {
                let of_an_output = |fact: &&Fact| matches!(fact, Fact::OfferTimedOut { id, .. } if *id != offered[2]);
                alice.facts.iter().filter(of_an_output).count()
            };
            chain.mine_to(taken_back + 4, &mut [&mut alice]);
            assert_eq!(told(&alice), 0, "{format:?}: five blocks deep");
            chain.mine_to(taken_back + 5, &mut [&mut alice]);
            assert_eq!(told(&alice), 2, "{format:?}: six blocks deep");
        }
    }
}

/// Alice offers one HTLC that expires at `HEIGHT + 40` and one at 60, Bob one at 30, and one at 50 whose preimage
/// Alice knows. They hold 50,000, 60,000, 70,000 and 80,000 sat. Then Alice closes alone.
fn closed_with_expiries() -> (Node, Node) {
    let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
    let with_expiry = |node: &mut Node, amount: u64, seed: u8, blocks: u32| {
        let offer = Offer { cltv_expiry: CltvExpiry(HEIGHT.0 + blocks), ..offer(Msat(amount), seed) };
        node.channel.offer(offer, &mut node.fx).unwrap();
        node.drain();
    };
    with_expiry(&mut alice, 50_000_000, 1, 40);
    with_expiry(&mut alice, 60_000_000, 2, 60);
    with_expiry(&mut bob, 70_000_000, 11, 30);
    with_expiry(&mut bob, 80_000_000, 12, 50);
    exchange(&mut alice, &mut bob);
    disconnect(&mut alice, &mut bob);
    alice.fulfill(HtlcId(1), 12);
    alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
    (alice, bob)
}

mod deadlines {
    use super::*;

    /// The peer revealed the preimage and was gone before it signed: the HTLC can only come to us.
    #[test]
    fn an_offered_htlc_whose_preimage_is_known_closes_nothing() {
        let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
        let id = alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        bob.fulfill(id, 1);
        alice.receive(bob.outbox.pop_front().unwrap()).unwrap();
        let mut chain = Chain::with_funding(&alice);
        disconnect(&mut alice, &mut bob);
        chain.mine_to(HEIGHT.0 + 40 + 10, &mut [&mut alice]);
        assert_eq!(*alice.channel.phase(), Phase::Normal);
    }

    #[test]
    fn of_our_commitment_are_those_of_the_htlc_that_is_lost_first() {
        let (alice, _bob) = closed_with_expiries();
        let parent = alice.claims.as_ref().unwrap().parent.as_ref().expect("it is not in a block");
        assert_eq!(parent.deadline, Some(BlockHeight(HEIGHT.0 + 40)), "nobody at this end waits for the one at 30");
        assert_eq!(parent.at_stake, Sat(50_000 + 60_000 + 80_000));
    }

    #[test]
    fn of_htlc_transactions_are_when_the_peer_may_take_it_back() {
        let (mut alice, _bob) = closed_with_expiries();
        let mut chain = Chain::with_funding(&alice);
        chain.mine(&[commitment_of(&alice)], &mut [&mut alice]);
        chain.mine_to(HEIGHT.0 + 40, &mut [&mut alice]);
        let claims = &alice.claims.as_ref().unwrap().htlc_txs;
        let deadlines: Vec<_> = claims.iter().map(|claim| (claim.preimage.clone(), claim.deadline)).collect();
        // What we take back, the peer could have had by its preimage all the time.
        let expected = [(None, None), (Some(preimage_of(12)), Some(BlockHeight(HEIGHT.0 + 50)))];
        assert_eq!(deadlines, expected);
    }

    #[test]
    fn an_offered_htlc_past_its_expiry_closes_the_channel() {
        let (mut alice, mut bob, ..) = with_htlcs(CommitmentFormat::Anchors, Side::Local);
        let mut chain = Chain::with_funding(&alice);
        disconnect(&mut alice, &mut bob);
        chain.mine_to(HEIGHT.0 + 40 + 1, &mut [&mut alice]);
        assert_eq!(*alice.channel.phase(), Phase::Normal);
        chain.mine_to(HEIGHT.0 + 40 + 2, &mut [&mut alice]);
        assert!(matches!(alice.channel.phase(), Phase::OnChain(_)));
        commitment_of(&alice);
    }

    #[test]
    fn a_received_htlc_with_a_preimage_closes_the_channel_in_time() {
        let (mut alice, mut bob, offered, _) = with_htlcs(CommitmentFormat::Anchors, Side::Local);
        let mut chain = Chain::with_funding(&alice);
        disconnect(&mut alice, &mut bob);
        bob.fulfill(offered[0], 1);
        chain.mine_to(HEIGHT.0 + 40 - 19, &mut [&mut bob]);
        assert_eq!(*bob.channel.phase(), Phase::Normal);
        chain.mine_to(HEIGHT.0 + 40 - 18, &mut [&mut bob]);
        assert!(matches!(bob.channel.phase(), Phase::OnChain(_)));
    }
}

mod errors {
    use super::*;

    #[test]
    fn of_the_peer_fail_the_channel_without_an_error_in_return() {
        let (mut alice, mut bob) = crate::support::node::normal_pair();
        bob.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        let error = bob.outbox.pop_front().unwrap();
        assert!(matches!(error, Message::Error(_)));
        alice.receive(error).unwrap();
        assert!(matches!(alice.channel.phase(), Phase::OnChain(_)));
        assert!(alice.outbox.is_empty());
        commitment_of(&alice);
    }

    #[test]
    fn a_failed_channel_says_so_to_whoever_reestablishes_it() {
        let (mut alice, mut bob) = crate::support::node::normal_pair();
        disconnect(&mut alice, &mut bob);
        bob.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        alice.link(millrace_channel::LinkEvent::Up { features: crate::support::node::FEATURES });
        bob.link(millrace_channel::LinkEvent::Up { features: crate::support::node::FEATURES });
        bob.receive(alice.outbox.pop_front().unwrap()).unwrap();
        assert!(matches!(bob.outbox.back(), Some(Message::Error(_))));
    }
}

mod a_failed_channel {
    use super::*;

    #[test]
    fn takes_what_an_honest_peer_sent_before_it_heard() {
        let (mut alice, mut bob, offered, _) = with_htlcs(CommitmentFormat::Anchors, Side::Local);
        bob.offer(Msat(1_000_000), 31);
        bob.fulfill(offered[0], 1);
        bob.commit();
        alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        for message in bob.outbox.drain(..).collect::<Vec<_>>() {
            alice.receive(message).unwrap();
        }
        assert!(alice.disconnects.is_empty());
        let learned =
            |fact: &Fact| matches!(fact, Fact::OfferFulfilled { preimage, .. } if *preimage == preimage_of(1));
        assert!(alice.facts.iter().any(learned), "a preimage is welcome at any time");
        alice.restart();
    }

    #[test]
    fn drops_what_no_signature_covered() {
        let (mut alice, _bob, ..) = with_htlcs(CommitmentFormat::Anchors, Side::Local);
        alice.offer(Msat(1_000_000), 31);
        alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        assert!(alice.facts.iter().any(|fact| matches!(fact, Fact::OfferDropped { .. })));
    }

    #[test]
    fn tells_offered_and_received_htlcs_of_one_id_apart() {
        // Both sides have an HTLC 0, and Alice knows the preimage of Bob's: hers still goes by its timeout.
        let (mut alice, mut bob, _, received) = with_htlcs(CommitmentFormat::StaticRemotekey, Side::Local);
        let mut chain = Chain::with_funding(&alice);
        disconnect(&mut alice, &mut bob);
        alice.fulfill(received[0], 11);
        alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        chain.mine(&[commitment_of(&alice)], &mut [&mut alice]);
        let is_htlc = |broadcast: &&millrace_channel::effect::Broadcast| broadcast.purpose == Purpose::Htlc;
        assert!(alice.broadcasts.iter().filter(is_htlc).all(|broadcast| chain.refusal(&broadcast.tx).is_none()));
        chain.mine_to(HEIGHT.0 + 41, &mut [&mut alice]);
        let ids: std::collections::BTreeSet<_> =
            alice.broadcasts.iter().filter(is_htlc).map(|b| b.tx.compute_txid()).collect();
        assert_eq!(ids.len(), 3, "one claimed, two taken back");
    }
}

#[test]
fn a_reorg_takes_the_close_back_and_our_own_commitment_goes_out() {
    let (mut alice, mut bob, ..) = with_htlcs(CommitmentFormat::Anchors, Side::Local);
    let mut chain = Chain::with_funding(&alice);
    disconnect(&mut alice, &mut bob);
    bob.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
    chain.mine(&[commitment_of(&bob)], &mut [&mut alice]);
    let height = chain.height;
    alice.chain(millrace_channel::ChainEvent::Disconnected { height });
    let Phase::OnChain(on_chain) = alice.channel.phase() else { panic!("a failed channel stays failed") };
    assert!(on_chain.spend.is_none());
    commitment_of(&alice);
    alice.restart();
}

/// D9 and D11: the peer has proved that this node runs on an old copy, and closes for it. What a reorg then takes back
/// is the peer's to broadcast again.
mod a_reorg_after_data_was_lost {
    use super::*;
    use crate::support::node::FEATURES;
    use millrace_channel::phase::on_chain::OnChain;
    use millrace_channel::{LinkEvent, Refusal};

    /// Alice starts from her first `kept` records, and hears of what is gone.
    fn roll_back(alice: &mut Node, bob: &mut Node, kept: usize) {
        disconnect(alice, bob);
        alice.journal.truncate(kept);
        alice.channel = alice.replayed(kept);
        bob.link(LinkEvent::Up { features: FEATURES });
        alice.link(LinkEvent::Up { features: FEATURES });
        alice.receive(bob.outbox.pop_front().expect("channel_reestablish")).unwrap();
        let is_refused = alice.command(Command::ForceClose { reason: "by hand".to_owned() });
        assert_eq!(is_refused, Err(Refusal::DataLost));
    }

    /// Bob's commitment is one that Alice has no record of.
    fn unknown() -> (Node, Node) {
        let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
        alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        let kept = alice.journal.len();
        for seed in 2..5 {
            alice.offer(Msat(1_000_000), seed);
            exchange(&mut alice, &mut bob);
        }
        roll_back(&mut alice, &mut bob, kept);
        (alice, bob)
    }

    /// Alice has revoked her commitment and forgotten that; Bob's is the one that she knows.
    fn known() -> (Node, Node) {
        let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
        alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        let kept = alice.journal.len();
        bob.offer(Msat(60_000_000), 2);
        bob.commit();
        for message in bob.outbox.drain(..).collect::<Vec<_>>() {
            alice.receive(message).unwrap();
        }
        let revocation = alice.outbox.pop_front().expect("she revokes at once");
        assert_eq!(revocation.name(), "revoke_and_ack");
        bob.receive(revocation).unwrap();
        roll_back(&mut alice, &mut bob, kept);
        (alice, bob)
    }

    fn on_chain(node: &Node) -> &OnChain {
        let Phase::OnChain(on_chain) = node.channel.phase() else { panic!("it is not on chain") };
        on_chain
    }

    fn assert_nothing_signed(alice: &Node) {
        assert!(alice.broadcasts.is_empty(), "{:?}", alice.broadcasts);
        assert!(alice.claims.as_ref().is_none_or(|claims| claims.parent.is_none() && claims.htlc_txs.is_empty()));
    }

    #[test]
    fn brings_no_commitment_of_ours() {
        for ((mut alice, mut bob), is_known) in [(unknown(), false), (known(), true)] {
            let mut chain = Chain::with_funding(&alice);
            bob.command(Command::ForceClose { reason: "the peer has lost data".to_owned() }).unwrap();
            let theirs = commitment_of(&bob);
            chain.mine(std::slice::from_ref(&theirs), &mut [&mut alice]);
            let what = on_chain(&alice).spend.as_ref().unwrap().what.clone();
            assert_eq!(matches!(what, SpendKind::Future { .. }), !is_known, "{what:?}");
            let asked = alice.claims.clone().unwrap();
            assert!(!asked.sweeps.is_empty(), "what is ours in it");

            alice.chain(ChainEvent::Disconnected { height: chain.height });
            let after = on_chain(&alice);
            assert_eq!((&after.spend, after.broadcast), (&None, false));
            assert_nothing_signed(&alice);
            // Nor later: after a restart, with every deadline past, at the word of the user or of the peer.
            alice.restart();
            alice.tip(BlockHeight(HEIGHT.0 + 1_000));
            let refused = alice.command(Command::ForceClose { reason: "by hand".to_owned() });
            assert_eq!(refused, Err(Refusal::DataLost));
            alice.link(LinkEvent::Up { features: FEATURES });
            let error = millrace_wire::message::Error::new(alice.channel.id(), "your data is old");
            alice.receive(Message::Error(error)).unwrap();
            assert_nothing_signed(&alice);
            assert!(!on_chain(&alice).broadcast);

            // Another block has it, and what is ours in it is claimed as before.
            alice.tip(chain.height);
            alice.chain(ChainEvent::Confirmed { tx: Arc::new(theirs), index: 1 });
            assert_eq!(on_chain(&alice).spend.as_ref().map(|spend| &spend.what), Some(&what));
            assert_eq!(alice.claims.as_ref(), Some(&asked));
            assert!(alice.broadcasts.is_empty());
            alice.restart();
            assert!(alice.broadcasts.is_empty());
        }
    }
}

/// The close stays where it is, and what had been claimed of it is to be claimed again.
#[test]
fn a_reorg_takes_claims_back_and_they_are_due_again() {
    for format in FORMATS {
        let (mut alice, mut bob, offered, _) = with_htlcs(format, Side::Local);
        let mut chain = Chain::with_funding(&alice);
        disconnect(&mut alice, &mut bob);
        bob.fulfill(offered[0], 1);
        alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        chain.mine(&[commitment_of(&alice)], &mut [&mut alice, &mut bob]);
        let asked = bob.claims.clone().unwrap();
        assert_eq!(asked.sweeps.len(), 2, "his balance, and her HTLC");
        for tx in chain.claim(&asked, &bob.keys, &wallet(2)) {
            chain.mine(&[tx], &mut [&mut alice, &mut bob]);
        }
        assert!(bob.claims.as_ref().unwrap().sweeps.is_empty());

        // The commitment and two claims have a block each; one above them would hold nothing of ours.
        let height = chain.height.0;
        for node in [&mut alice, &mut bob] {
            let records = node.journal.len();
            for (gone, written, spent) in [(height + 1, 0, 2), (height, 1, 1), (height - 1, 2, 0)] {
                node.chain(ChainEvent::Disconnected { height: BlockHeight(gone) });
                assert_eq!((node.journal.len() - records, spent_of(node).len()), (written, spent));
            }
            let Phase::OnChain(on_chain) = node.channel.phase() else { panic!("it is on chain") };
            assert_eq!(on_chain.spend.as_ref().map(|spend| spend.height.0), Some(height - 2));
        }
        assert_eq!(bob.claims.as_ref(), Some(&asked));
        alice.restart();
        bob.restart();
    }
}

/// Everything that was claimed from one commitment is gone, just before it was buried; the other side's stands in its place.
#[test]
fn a_reorg_of_a_hundred_blocks_swaps_one_close_for_another() {
    for format in FORMATS {
        let (mut alice, mut bob, offered, received) = with_htlcs(format, Side::Local);
        disconnect(&mut alice, &mut bob);
        alice.fulfill(received[0], 11);
        bob.fulfill(offered[0], 1);
        alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
        let other = bob.channel.complete_commitment().expect("he has one").transaction;
        let mut chain = Chain::with_funding(&alice);
        chain.mine(&[commitment_of(&alice)], &mut [&mut alice, &mut bob]);
        play(&mut chain, &mut alice, &mut bob, 99);
        for node in [&alice, &bob] {
            assert!(spent_of(node).len() >= 2, "it has claimed what it could");
        }
        for gone in (HEIGHT.0 + 1..=chain.height.0).rev() {
            alice.chain(ChainEvent::Disconnected { height: BlockHeight(gone) });
            bob.chain(ChainEvent::Disconnected { height: BlockHeight(gone) });
        }
        assert_eq!(chain.height.0 - HEIGHT.0, 100);
        alice.restart();
        bob.restart();
        let mut chain = Chain::with_funding(&alice);
        chain.mine(&[other], &mut [&mut alice, &mut bob]);
        for (node, what) in [(&alice, SpendKind::RemoteUnrevoked), (&bob, SpendKind::Local)] {
            let Phase::OnChain(on_chain) = node.channel.phase() else { panic!("it is on chain") };
            assert_eq!(on_chain.spend.as_ref().map(|spend| &spend.what), Some(&what));
        }
        let delay = bob.channel.terms().delay_of(Side::Local);
        play(&mut chain, &mut alice, &mut bob, 300 + u32::from(delay));
        let funding = alice.channel.terms().funding_outpoint;
        for (node, seed) in [(&mut alice, 1), (&mut bob, 2)] {
            assert_eq!(*node.channel.phase(), Phase::Closed, "{:?}", node.channel.unclaimed_outputs());
            let got = earned(&chain, seed, funding);
            assert!((4_985_000..=5_000_000).contains(&got), "{format:?}: {seed} got {got}");
            node.restart();
        }
    }
}
