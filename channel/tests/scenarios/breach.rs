//! A revoked commitment is published, on a chain whose scripts are run: whoever did it loses all of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::{Amount, OutPoint, Transaction, TxOut};
use millrace_channel::effect::Purpose;
use millrace_channel::ledger::past::PastHtlc;
use millrace_channel::phase::Phase;
use millrace_channel::phase::on_chain::ending::OutputKind;
use millrace_channel::phase::on_chain::{Breach, HtlcTxClaim, OnChain};
use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::ClaimKind;
use millrace_channel::{ChainEvent, Channel, Command, Fact, Refusal};
use millrace_wire::{BlockHeight, CommitmentNumber, HtlcId, Msat};

use super::on_chain::{FORMATS, commitment_of, wallet};
use crate::support::chain::{Chain, anyones_input};
use crate::support::node::{HEIGHT, Node, Options, disconnect, exchange, pair_with, preimage_of};

/// The preimages of what Alice offers have these seeds, and those of what Bob offers ten more.
const SEEDS: [u8; 3] = [1, 2, 3];

/// Alice, who is cheated; Bob as he was when his commitment held two HTLCs of each; and what is left of Alice's funds.
struct Story {
    alice: Node,
    cheat: Node,
    chain: Chain,
    offered: [HtlcId; 3],
}

/// Both offer two HTLCs, and one too small for an output; that is the state to be published. Then one of each is removed,
/// and Alice offers one more.
fn story(format: CommitmentFormat, funder: Side) -> Story {
    let (mut alice, mut bob) = pair_with(Options { format, funder, ..Options::default() }, |_| {});
    let first: Vec<HtlcId> = [0, 1].map(|i| alice.offer(Msat(50_000_000 + 10_000_000 * i), SEEDS[i as usize])).to_vec();
    let received: Vec<HtlcId> = [0, 1].map(|i| bob.offer(Msat(70_000_000), 10 + SEEDS[i])).to_vec();
    alice.offer(Msat(200_000), 7);
    exchange(&mut alice, &mut bob);
    let kept = bob.journal.len();
    alice.fulfill(received[0], 11);
    bob.fail(first[0]);
    exchange(&mut alice, &mut bob);
    let third = alice.offer(Msat(80_000_000), SEEDS[2]);
    exchange(&mut alice, &mut bob);
    disconnect(&mut alice, &mut bob);
    let chain = Chain::with_funding(&alice);
    let cheat = as_of(&bob, kept);
    Story { alice, cheat, chain, offered: [first[0], first[1], third] }
}

/// A node that has forgotten everything after its first records.
fn as_of(node: &Node, kept: usize) -> Node {
    Node {
        channel: node.replayed(kept),
        fx: millrace_channel::Effects::default(),
        journal: node.journal[..kept].to_vec(),
        outbox: std::collections::VecDeque::new(),
        facts: Vec::new(),
        broadcasts: Vec::new(),
        watches: Vec::new(),
        disconnects: Vec::new(),
        claims: None,
        keys: node.keys.clone(),
        policy: node.policy,
        now: node.now,
    }
}

/// What Alice's node has kept of her HTLCs.
fn log_of(node: &Node) -> Vec<PastHtlc> {
    node.facts.iter().filter_map(|fact| if let Fact::HtlcPast(past) = fact { Some(*past) } else { None }).collect()
}

/// Answers the channel's question, if it has asked since the last time.
fn answer(node: &mut Node, log: &[PastHtlc]) -> bool {
    let asked = |fact: &Fact| matches!(fact, Fact::Breached { .. });
    let has_asked = node.facts.iter().any(asked);
    node.facts.retain(|fact| !asked(fact));
    if has_asked {
        node.command(Command::BreachHtlcs(log.to_vec())).unwrap();
    }
    has_asked
}

fn on_chain(node: &Node) -> &OnChain {
    let Phase::OnChain(on_chain) = node.channel.phase() else { panic!("it is {}", node.channel.phase().name()) };
    on_chain
}

fn breach(node: &Node) -> &Breach {
    on_chain(node).breach().expect("a revoked commitment is in a block")
}

fn has_timed_out(node: &Node, id: HtlcId) -> bool {
    node.facts.iter().any(|fact| matches!(fact, Fact::OfferTimedOut { id: told, .. } if *told == id))
}

impl Story {
    /// The cheater publishes; Alice's node answers from its log, if it has one.
    fn publish(&mut self, log: &[PastHtlc]) -> Transaction {
        self.cheat.command(Command::ForceClose { reason: "it was a better one".to_owned() }).unwrap();
        let commitment = commitment_of(&self.cheat);
        self.chain.mine(std::slice::from_ref(&commitment), &mut [&mut self.alice, &mut self.cheat]);
        assert!(answer(&mut self.alice, log), "it does not ask for its log");
        commitment
    }

    /// What Alice may claim now, in one transaction each.
    fn alices(&mut self) -> Vec<Transaction> {
        let claims = self.alice.claims.clone().expect("claims");
        assert!(claims.parent.is_none() && claims.htlc_txs.is_empty());
        self.chain.claim(&claims, &self.alice.keys, &wallet(1))
    }

    /// The HTLC transactions that the cheater may send now.
    fn cheats(&mut self) -> Vec<Transaction> {
        let claims = self.cheat.claims.clone().expect("claims");
        let mut txs = self.chain.claim(&claims, &self.cheat.keys, &wallet(2));
        txs.retain(|tx| {
            claims.htlc_txs.iter().any(|claim| claim.htlc_tx.tx.input[0].previous_output == tx.input[0].previous_output)
        });
        let complete = self.cheat.broadcasts.iter().filter(|broadcast| broadcast.purpose == Purpose::Htlc);
        txs.extend(complete.map(|broadcast| broadcast.tx.clone()));
        // They are broadcast again with every block.
        txs.sort_by_key(Transaction::compute_txid);
        txs.dedup();
        txs
    }

    fn mine(&mut self, txs: &[Transaction]) {
        self.chain.mine(txs, &mut [&mut self.alice, &mut self.cheat]);
    }

    /// Everything is buried: the channel is closed and told how its HTLCs ended.
    fn assert_over(&mut self) {
        for _ in 0..200 {
            self.mine(&[]);
        }
        assert_eq!(*self.alice.channel.phase(), Phase::Closed, "{:?}", self.alice.channel.unclaimed_outputs());
    }

    /// What Alice's wallet got.
    fn earned(&self) -> u64 {
        let outputs = self.chain.confirmed.iter().flat_map(|tx| &tx.output);
        outputs.filter(|output| output.script_pubkey == wallet(1)).map(|output| output.value.to_sat()).sum()
    }
}

/// All outputs but the anchors.
fn worth(commitment: &Transaction, format: CommitmentFormat) -> Vec<&TxOut> {
    let is_anchor = |output: &&TxOut| format == CommitmentFormat::Anchors && output.value == Amount::from_sat(330);
    commitment.output.iter().filter(|output| !is_anchor(output)).collect()
}

/// At 253 sat/kw no input costs more than this.
const FEE_MAX: u64 = 200;

#[test]
fn every_output_is_taken_at_once() {
    for format in FORMATS {
        for funder in [Side::Local, Side::Remote] {
            let mut story = story(format, funder);
            let log = log_of(&story.alice);
            let commitment = story.publish(&log);
            let worth = worth(&commitment, format);
            assert_eq!(worth.len(), 6, "two main outputs, four HTLCs");
            let claims = story.alices();
            assert_eq!(claims.len(), 6, "{format:?}");
            let value: u64 = worth.iter().map(|output| output.value.to_sat()).sum();
            story.mine(&claims);
            assert!(story.alice.channel.unclaimed_outputs().is_empty());
            story.assert_over();
            assert!(value - story.earned() <= 6 * FEE_MAX, "{} of {value} sat", story.earned());
            // What was in flight has come to an end; what had ended before is not told again.
            assert!(!has_timed_out(&story.alice, story.offered[0]));
            assert!(has_timed_out(&story.alice, story.offered[1]) && has_timed_out(&story.alice, story.offered[2]));
        }
    }
}

#[test]
fn who_did_what_is_told() {
    let mut story = story(CommitmentFormat::Anchors, Side::Local);
    let log = log_of(&story.alice);
    story.publish(&log);
    let reason = on_chain(&story.alice).reason.clone();
    assert_eq!(
        reason,
        format!("the peer published its commitment {}, which it had revoked", breach(&story.alice).number)
    );
    let kinds = |story: &Story| {
        let ending = story.alice.channel.ending().unwrap();
        let mut kinds: Vec<(OutputKind, Option<Side>, bool)> =
            ending.outputs.iter().map(|o| (o.kind, o.spent.map(|(by, ..)| by), o.is_ours())).collect();
        kinds.sort_by_key(|(kind, ..)| format!("{kind:?}"));
        kinds
    };
    let htlc = |offered_by| OutputKind::RevokedHtlc { offered_by };
    let all = |by: Option<Side>| {
        let is_ours = by.is_none();
        vec![
            (OutputKind::Anchor(Side::Local), None, false),
            (OutputKind::Anchor(Side::Remote), None, false),
            (OutputKind::Balance(Side::Local), by, is_ours),
            (OutputKind::Balance(Side::Remote), by, is_ours),
            (htlc(Side::Local), by, is_ours),
            (htlc(Side::Local), by, is_ours),
            (htlc(Side::Remote), by, is_ours),
            (htlc(Side::Remote), by, is_ours),
        ]
    };
    assert_eq!(kinds(&story), all(None));
    let claims = story.alices();
    story.mine(&claims);
    assert_eq!(kinds(&story), all(Some(Side::Local)));
}

/// The deadline is where the cheater's delay ends, for everything but our own balance.
#[test]
fn the_deadline_is_the_end_of_the_cheaters_delay() {
    let mut story = story(CommitmentFormat::Anchors, Side::Local);
    let log = log_of(&story.alice);
    story.publish(&log);
    let delay = u32::from(story.alice.channel.terms().delay_of(Side::Remote));
    let confirmed = story.chain.height;
    let claims = story.alice.claims.clone().unwrap();
    for sweep in &claims.sweeps {
        let deadline = match &sweep.claim.kind {
            ClaimKind::ToRemote => None,
            ClaimKind::Penalty { .. } => Some(BlockHeight(confirmed.0 + delay)),
            other => panic!("{other:?}"),
        };
        assert_eq!(sweep.deadline, deadline);
        let shown = format!("{:?}", sweep.claim.kind);
        assert!(!shown.contains("secret: Secret([") && !shown.contains("Secret(["), "{shown}");
    }
    // One block less, and the cheater cannot take his balance; then he can.
    let to_local = story.cheat.channel.ending().unwrap().outputs.into_iter();
    let to_local = to_local.filter(|output| output.kind == OutputKind::Balance(Side::Local)).next().unwrap();
    assert_eq!(to_local.claimable, Some(BlockHeight(confirmed.0 + delay)));
}

/// The cheater gets HTLC transactions into blocks first, one each or all in one, in another order: their outputs are taken.
#[test]
fn htlc_transactions_of_the_cheater_gain_him_nothing() {
    for format in FORMATS {
        for is_aggregated in [false, true] {
            if is_aggregated && format == CommitmentFormat::StaticRemotekey {
                continue; // The signatures of these cover the whole transaction.
            }
            let mut story = story(format, Side::Local);
            let log = log_of(&story.alice);
            // He knows the preimages of both that Alice offered.
            story.cheat.fulfill(story.offered[0], 1);
            story.cheat.fulfill(story.offered[1], 2);
            let commitment = story.publish(&log);
            let value: u64 = worth(&commitment, format).iter().map(|output| output.value.to_sat()).sum();
            // Alice's node is slow: the HTLCs that the cheater offered have expired.
            story.chain.mine_to(HEIGHT.0 + 41, &mut [&mut story.alice, &mut story.cheat]);
            let mut txs = story.cheats();
            assert_eq!(txs.len(), 4, "{format:?}");
            if is_aggregated {
                txs = story.aggregated();
                assert_eq!(txs.len(), 2, "the lock time is signed, too");
            }
            let fees: u64 = if format == CommitmentFormat::StaticRemotekey { story.fees_of(&txs) } else { 0 };
            story.mine(&txs);
            let second_level: Vec<OutPoint> = on_chain(&story.alice)
                .spent
                .iter()
                .map(|spent| {
                    assert_eq!(spent.by, Side::Remote);
                    OutPoint { txid: spent.txid, vout: spent.second_level.as_ref().expect("a second level").0 }
                })
                .collect();
            assert_eq!(second_level.len(), 4);
            assert!(story.alice.facts.iter().any(
                |fact| matches!(fact, Fact::OfferFulfilled { id, preimage, .. } if *id == story.offered[1] && *preimage == preimage_of(2))
            ));
            story.alice.restart();
            story.alice.tip(story.chain.height);
            assert!(answer(&mut story.alice, &log));
            let claims = story.alices();
            assert_eq!(claims.len(), 6, "{format:?}, {is_aggregated}");
            story.mine(&claims);
            assert!(second_level.iter().all(|outpoint| !story.chain.is_unspent(*outpoint)));
            story.assert_over();
            assert!(value - fees - story.earned() <= 6 * FEE_MAX, "{} of {value} sat", story.earned());
            // The one whose preimage came to light has succeeded; the one that was never in this commitment has not.
            assert!(!has_timed_out(&story.alice, story.offered[1]));
            assert!(has_timed_out(&story.alice, story.offered[2]));
        }
    }
}

impl Story {
    /// Those with one lock time in one, the last first: each keeps its input and output at one index, as is signed.
    fn aggregated(&mut self) -> Vec<Transaction> {
        let claims = self.cheat.claims.clone().unwrap();
        let mut by_lock_time: BTreeMap<u32, Vec<&HtlcTxClaim>> = BTreeMap::new();
        for claim in claims.htlc_txs.iter().rev() {
            by_lock_time.entry(claim.htlc_tx.tx.lock_time.to_consensus_u32()).or_default().push(claim);
        }
        let aggregate = |htlcs: Vec<&HtlcTxClaim>| {
            let mut tx = htlcs[0].htlc_tx.tx.clone();
            tx.input = htlcs.iter().map(|claim| claim.htlc_tx.tx.input[0].clone()).collect();
            tx.output = htlcs.iter().map(|claim| claim.htlc_tx.tx.output[0].clone()).collect();
            tx.input.push(anyones_input(self.chain.coin(Amount::from_sat(10_000))));
            for (index, claim) in htlcs.iter().enumerate() {
                tx.input[index].witness = claim.witness(&tx, index, &self.cheat.keys);
            }
            tx
        };
        by_lock_time.into_values().map(aggregate).collect()
    }

    fn fees_of(&self, txs: &[Transaction]) -> u64 {
        let value = |outpoint| self.chain.value_of(outpoint).unwrap();
        let paid = |tx: &Transaction| -> u64 {
            let inputs: u64 = tx.input.iter().map(|input| value(input.previous_output)).sum();
            inputs - tx.output.iter().map(|output| output.value.to_sat()).sum::<u64>()
        };
        txs.iter().map(paid).sum()
    }
}

/// The cheater waits out his delay for one, and gets it: that is seen, and the others are taken all the same.
#[test]
fn what_the_cheater_gets_after_all_is_not_waited_for() {
    let mut story = story(CommitmentFormat::Anchors, Side::Local);
    let log = log_of(&story.alice);
    story.publish(&log);
    let delay = u32::from(story.alice.channel.terms().delay_of(Side::Remote));
    story.chain.mine_to(story.chain.height.0 + delay, &mut [&mut story.alice, &mut story.cheat]);
    let claims = story.cheat.claims.clone().unwrap();
    let to_local: Vec<_> =
        claims.sweeps.into_iter().filter(|s| matches!(s.claim.kind, ClaimKind::Delayed { .. })).collect();
    assert_eq!(to_local.len(), 1);
    let outpoint = to_local[0].claim.outpoint;
    let claims = millrace_channel::phase::on_chain::Claims {
        sweeps: to_local,
        htlc_txs: Vec::new(),
        ..story.cheat.claims.clone().unwrap()
    };
    let txs = story.chain.claim(&claims, &story.cheat.keys, &wallet(2));
    story.mine(&txs);
    assert_eq!(on_chain(&story.alice).spend_of(outpoint).unwrap().by, Side::Remote);
    let claims = story.alices();
    assert_eq!(claims.len(), 5);
    story.mine(&claims);
    story.assert_over();
}

/// Without the log: what is known without it is taken, the outputs of HTLC transactions too.
#[test]
fn without_the_log_second_level_outputs_are_taken_all_the_same() {
    let mut story = story(CommitmentFormat::Anchors, Side::Local);
    story.publish(&[]);
    let unknown = |story: &Story| {
        let ending = story.alice.channel.ending().unwrap();
        ending.outputs.iter().filter(|output| output.kind == OutputKind::Unknown).count()
    };
    assert_eq!(unknown(&story), 2, "the two that have left the ledger");
    story.cheat.fulfill(story.offered[0], 1);
    story.chain.mine_to(HEIGHT.0 + 41, &mut [&mut story.alice, &mut story.cheat]);
    let txs = story.cheats();
    story.mine(&txs);
    let claims = story.alices();
    assert_eq!(claims.len(), 6 - usize::from(txs.len() < 3), "{} HTLC transactions", txs.len());
    story.mine(&claims);
}

#[test]
fn the_log_is_recorded_once_and_only_as_far_as_it_fits() {
    let mut story = story(CommitmentFormat::Anchors, Side::Local);
    let log = log_of(&story.alice);
    assert_eq!(log.len(), 2, "the one that was failed, and the one that was fulfilled");
    let strangers = (0..5).map(|i| PastHtlc { hash160: [i; 20], ..log[0] });
    let later = PastHtlc { first: CommitmentNumber(900), last: CommitmentNumber(901), ..log[0] };
    let told: Vec<PastHtlc> = strangers.chain([later]).chain(log.iter().copied()).chain(log.iter().copied()).collect();
    story.publish(&told);
    let mut kept = breach(&story.alice).htlcs.clone();
    kept.sort();
    let mut fits = log.clone();
    fits.sort();
    assert_eq!(kept, fits);
    let records = story.alice.journal.len();
    story.alice.command(Command::BreachHtlcs(told.clone())).unwrap();
    story.alice.restart();
    assert!(answer(&mut story.alice, &told));
    assert_eq!(story.alice.journal.len(), records);
}

#[test]
fn a_log_that_nobody_asked_for_is_refused() {
    let (mut alice, _) = pair_with(Options::default(), |_| {});
    assert!(matches!(alice.command(Command::BreachHtlcs(Vec::new())), Err(Refusal::NotUsable(_))));
    alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
    assert!(matches!(alice.command(Command::BreachHtlcs(Vec::new())), Err(Refusal::NotUsable(_))));
}

/// A reorg takes the breach back, and puts another commitment, or the breach again, in its place.
#[test]
fn a_reorg_takes_a_breach_back() {
    for comes_back in [false, true] {
        let mut story = story(CommitmentFormat::Anchors, Side::Local);
        let log = log_of(&story.alice);
        let revoked = story.publish(&log);
        let confirmed = story.chain.height;
        story.alice.chain(ChainEvent::Disconnected { height: confirmed });
        assert!(on_chain(&story.alice).spend.is_none() && on_chain(&story.alice).broadcast);
        let own = commitment_of(&story.alice);
        assert!(story.alice.command(Command::BreachHtlcs(log.clone())).is_err());
        story.alice.restart();
        let next = if comes_back { &revoked } else { &own };
        story.alice.tip(confirmed);
        story.alice.chain(ChainEvent::Confirmed { tx: Arc::new(next.clone()), index: 0 });
        assert_eq!(answer(&mut story.alice, &log), comes_back);
        assert_eq!(on_chain(&story.alice).breach().is_some(), comes_back);
        if comes_back {
            assert_eq!(breach(&story.alice).htlcs.len(), 2);
        }
    }
}

/// Every state that Bob ever revokes, over a history of adds and removals in both directions: each output is known.
#[test]
fn every_revoked_state_is_known_whole() {
    for format in FORMATS {
        let (mut alice, mut bob) = pair_with(Options { format, ..Options::default() }, |_| {});
        let mut kept = vec![bob.journal.len()];
        let (mut offered, mut received) = (Vec::new(), Vec::new());
        for round in 0..6_u8 {
            offered.push(alice.offer(Msat(20_000_000 + u64::from(round)), 20 + round));
            received.push(bob.offer(Msat(30_000_000), 40 + round));
            // Messages cross: the commitments of both sides differ in between.
            step(&mut alice, &mut bob, &mut kept);
            if round >= 2 {
                let index = usize::from(round) - 2;
                if round % 2 == 0 {
                    bob.fail(offered[index])
                } else {
                    bob.fulfill(offered[index], 20 + round - 2)
                }
                if round % 2 == 0 {
                    alice.fulfill(received[index], 40 + round - 2)
                } else {
                    alice.fail(received[index])
                }
            }
            step(&mut alice, &mut bob, &mut kept);
        }
        disconnect(&mut alice, &mut bob);
        let log = log_of(&alice);
        let unrevoked = alice.channel.commitment_numbers().remote;
        let mut revoked = std::collections::BTreeSet::new();
        for kept in kept {
            let mut cheat = as_of(&bob, kept);
            let number = cheat.channel.commitment_numbers().local;
            if number >= unrevoked || !revoked.insert(number) {
                continue;
            }
            cheat.command(Command::ForceClose { reason: "an old one".to_owned() }).unwrap();
            let commitment = commitment_of(&cheat);
            let mut victim = as_of(&alice, alice.journal.len());
            victim.tip(BlockHeight(HEIGHT.0 + 1));
            victim.chain(ChainEvent::Confirmed { tx: Arc::new(commitment), index: 0 });
            answer(&mut victim, &log);
            let ending = victim.channel.ending().unwrap();
            let unknown = ending.outputs.iter().filter(|output| output.kind == OutputKind::Unknown).count();
            assert_eq!((unknown, breach(&victim).number), (0, number), "{format:?}");
        }
        assert_eq!(revoked.len() as u64, unrevoked.0, "some revoked state was not tried");
        assert!(revoked.len() >= 12, "{}", revoked.len());
    }
}

/// Lets both talk, one message at a time, and notes where Bob's journal stood after each.
fn step(alice: &mut Node, bob: &mut Node, kept: &mut Vec<usize>) {
    loop {
        alice.commit();
        bob.commit();
        kept.push(bob.journal.len());
        let (to_bob, to_alice) = (alice.outbox.pop_front(), bob.outbox.pop_front());
        if to_bob.is_none() && to_alice.is_none() {
            return;
        }
        if let Some(message) = to_bob {
            bob.receive(message).unwrap();
            kept.push(bob.journal.len());
        }
        if let Some(message) = to_alice {
            alice.receive(message).unwrap();
        }
    }
}

/// Each HTLC that could have an output is told once, when it leaves; and the same on replay.
#[test]
fn a_past_htlc_is_told_once_with_the_commitments_that_may_hold_it() {
    let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
    let (large, small) = (alice.offer(Msat(50_000_000), 1), alice.offer(Msat(545_999), 2));
    let least = alice.offer(Msat(546_000), 3);
    exchange(&mut alice, &mut bob);
    assert_eq!(log_of(&alice), []);
    let before = alice.channel.commitment_numbers().remote;
    for id in [large, small, least] {
        bob.fail(id);
    }
    exchange(&mut alice, &mut bob);
    let log = log_of(&alice);
    let after = alice.channel.commitment_numbers().remote;
    let told: Vec<_> = log.iter().map(|past| (past.offered_by, past.first, past.last, past.cltv_expiry.0)).collect();
    assert_eq!(told, [(Side::Local, CommitmentNumber(1), after, HEIGHT.0 + 40); 2]);
    assert!(before < after && log.iter().all(|past| past.may_stand_in(before)));
    assert!(!log[0].may_stand_in(CommitmentNumber(0)) && !log[0].may_stand_in(CommitmentNumber(after.0 + 1)));
    alice.facts.clear();
    alice.restart();
    assert_eq!(log_of(&alice), [], "it is told again by `resume`");
}

/// A snapshot by an older build does not say since when HTLCs stand in the peer's commitments: they may in all of them.
#[test]
fn an_htlc_of_an_older_snapshot_may_stand_in_every_earlier_commitment() {
    let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
    alice.offer(Msat(50_000_000), 1);
    exchange(&mut alice, &mut bob);
    let mut bytes = Vec::new();
    alice.channel.snapshot(&mut bytes);
    let since = [1, 1];
    assert!(bytes[0] == 3 && bytes.ends_with(&since), "one HTLC, since commitment 1");
    let restore = |bytes: &[u8]| Channel::restore(bytes, alice.policy, |_| alice.keys.clone());
    let older = [&[2], &bytes[1..bytes.len() - since.len()]].concat();
    let htlc = |channel: &Channel| channel.htlc(Side::Local, HtlcId(0)).unwrap().since;
    assert_eq!(htlc(&restore(&older).unwrap()), CommitmentNumber(0));
    assert_eq!(htlc(&restore(&bytes).unwrap()), CommitmentNumber(1));
    let one_too_many = [&bytes[..bytes.len() - since.len()], &[2, 1, 1]].concat();
    let refused = restore(&one_too_many).unwrap_err().to_string();
    assert!(refused.contains("since when of 2 HTLCs"), "{refused}");
}

/// What Alice herself had revoked is on chain, whoever put it there: she says so, signs nothing, and it ends.
#[test]
fn our_own_revoked_commitment_is_the_peers() {
    for format in FORMATS {
        for takes_htlcs in [false, true] {
            let (mut alice, mut bob) = pair_with(Options { format, ..Options::default() }, |_| {});
            let kept_id = alice.offer(Msat(50_000_000), 1);
            let id = bob.offer(Msat(60_000_000), 11);
            exchange(&mut alice, &mut bob);
            let kept = alice.journal.len();
            alice.fulfill(id, 11);
            let late = alice.offer(Msat(70_000_000), 3);
            exchange(&mut alice, &mut bob);
            disconnect(&mut alice, &mut bob);
            let log = log_of(&bob);
            let mut old = as_of(&alice, kept);
            old.command(Command::ForceClose { reason: "from an old copy".to_owned() }).unwrap();
            let commitment = commitment_of(&old);
            let mut chain = Chain::with_funding(&alice);
            alice.broadcasts.clear();
            chain.mine(std::slice::from_ref(&commitment), &mut [&mut alice, &mut bob]);
            assert!(answer(&mut bob, &log) && !answer(&mut alice, &[]));
            assert!(on_chain(&alice).reason.contains("which we had revoked"), "{}", on_chain(&alice).reason);
            alice.restart();
            alice.tip(chain.height);
            assert!(alice.broadcasts.is_empty(), "D9");
            assert!(alice.claims.as_ref().is_none_or(|claims| claims.sweeps.is_empty() && claims.htlc_txs.is_empty()));
            let mut claims = bob.claims.clone().unwrap();
            if !takes_htlcs {
                claims.sweeps.retain(|s| !matches!(s.claim.kind, ClaimKind::Penalty { is_htlc: true, .. }));
            }
            let txs = chain.claim(&claims, &bob.keys, &wallet(2));
            assert_eq!(txs.len(), if takes_htlcs { 4 } else { 2 });
            chain.mine(&txs, &mut [&mut alice, &mut bob]);
            for _ in 0..150 {
                chain.mine(&[], &mut [&mut alice, &mut bob]);
            }
            assert_eq!(*alice.channel.phase(), Phase::Closed);
            assert!(has_timed_out(&alice, kept_id) && has_timed_out(&alice, late), "{takes_htlcs}");
        }
    }
}
