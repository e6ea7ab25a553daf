//! What spends the funding output is told by what it is: whose commitment, revoked or not, or later than all that this node
//! remembers; and what follows when a reorg takes it back.

use std::sync::Arc;

use bitcoin::{ScriptBuf, Sequence, Transaction, TxOut};
use millrace_channel::effect::Purpose;
use millrace_channel::input::CloseOrder;
use millrace_channel::phase::Phase;
use millrace_channel::phase::on_chain::{OnChain, SpendKind};
use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::{commitment, script};
use millrace_channel::{ChainEvent, Command, Fact, LinkEvent, Refusal};
use millrace_wire::{BlockHeight, FeeratePerKw, HtlcId, Message, Msat};

use super::on_chain::{FORMATS, commitment_of, wallet};
use crate::support::chain::Chain;
use crate::support::node::{FEATURES, HEIGHT, Node, Options, disconnect, exchange, normal_pair, pair_with};

fn on_chain(node: &Node) -> &OnChain {
    let Phase::OnChain(on_chain) = node.channel.phase() else { panic!("it is not on chain") };
    on_chain
}

/// A node's commitment as it stood after its first `kept` records.
fn old_commitment(node: &Node, kept: usize) -> Transaction {
    let mut old = node.replayed(kept);
    let mut fx = millrace_channel::Effects::default();
    old.on_command(Command::ForceClose { reason: "with an old state".to_owned() }, &mut fx).unwrap();
    let broadcast = fx.list.iter().find_map(|effect| match effect {
        millrace_channel::Effect::Broadcast(broadcast) => Some(broadcast.tx.clone()),
        _ => None,
    });
    broadcast.expect("its commitment")
}

/// By its number, held against the newest of the side whose it is, which its outputs tell. Where these say nothing, it counts
/// as later, and nothing of ours goes out.
mod what_is_not_known {
    use super::*;

    /// The peer's newest commitment has number 3, ours 1.
    fn uneven() -> (Node, Node) {
        let (mut alice, mut bob) = normal_pair();
        alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        for seed in [2, 3] {
            alice.offer(Msat(50_000_000), seed);
            alice.commit();
            for message in alice.outbox.drain(..).collect::<Vec<_>>() {
                bob.receive(message).unwrap();
            }
            alice.receive(bob.outbox.pop_front().expect("he revokes at once, and signs nothing yet")).unwrap();
        }
        (alice, bob)
    }

    fn to_remote(owner: &Node) -> ScriptBuf {
        let point = owner.channel.terms().party(Side::Local).basepoints.payment;
        script::to_remote_pubkey(CommitmentFormat::Anchors, &point)
    }

    /// A commitment with this number, as Alice sees it, and with one output.
    fn commitment_numbered(number: u32, alice: &Node, known: &Transaction, script_pubkey: ScriptBuf) -> Transaction {
        let known_number = commitment::number_in(alice.channel.terms(), known).expect("a commitment").0 as u32;
        let lock_time = known.lock_time.to_consensus_u32() ^ known_number ^ number;
        let tx = Transaction {
            lock_time: bitcoin::absolute::LockTime::from_consensus(lock_time),
            output: vec![TxOut { value: bitcoin::Amount::from_sat(9_000), script_pubkey }],
            ..known.clone()
        };
        assert_eq!(commitment::number_in(alice.channel.terms(), &tx).expect("a commitment").0, u64::from(number));
        tx
    }

    /// What Alice takes it for. What is later than her data fails no HTLC: what it holds is not known.
    fn taken_for(tx: Transaction) -> SpendKind {
        let (mut alice, _) = uneven();
        alice.chain(ChainEvent::Confirmed { tx: Arc::new(tx), index: 1 });
        let what = on_chain(&alice).spend.as_ref().expect("it is spent").what.clone();
        for blocks in 1..200 {
            alice.tip(BlockHeight(HEIGHT.0 + blocks));
        }
        let has_failed = alice.facts.iter().any(|fact| matches!(fact, Fact::OfferTimedOut { .. }));
        assert_eq!(has_failed, !matches!(what, SpendKind::Future { .. }), "{what:?}: {:?}", alice.facts);
        what
    }

    #[test]
    fn is_revoked_below_the_newest_number_of_its_side_or_else_later_than_our_data() {
        let (alice, mut bob) = uneven();
        bob.command(Command::ForceClose { reason: "for its transaction".to_owned() }).unwrap();
        let known = commitment_of(&bob);
        assert_eq!(commitment::number_in(alice.channel.terms(), &known).expect("a commitment").0, 3);
        let numbers = alice.channel.commitment_numbers();
        assert_eq!((numbers.local.0, numbers.remote.0), (1, 3));

        for (script, revoked_below) in [(to_remote(&alice), 3), (to_remote(&bob), 1), (wallet(7), 1)] {
            for number in 0..6 {
                let what = taken_for(commitment_numbered(number, &alice, &known, script.clone()));
                match &what {
                    SpendKind::Breach(breach) => {
                        assert!(number < revoked_below, "{number} {script}");
                        let holder = if script == to_remote(&bob) { Side::Local } else { Side::Remote };
                        assert_eq!((breach.holder, breach.number.0), (holder, u64::from(number)));
                    }
                    SpendKind::Future { .. } => assert!(number >= revoked_below, "{number} {script}"),
                    other => panic!("{number}: {other:?}"),
                }
                let is_future = matches!(what, SpendKind::Future { .. });
                let to_remote = is_future && script == to_remote(&alice);
                assert_eq!(what.unresolved_to_remote().is_some(), to_remote, "{what:?}");
            }
        }
        // Neither a commitment nor a close.
        let mut tx = commitment_numbered(0, &alice, &known, to_remote(&alice));
        tx.input[0].sequence = Sequence(5);
        assert!(matches!(taken_for(tx), SpendKind::Future { .. }));
    }
}

/// A reorg takes back what this node recognises by its number alone, without a word of the peer about it.
mod a_reorg_of_what_is_not_known {
    use super::*;

    /// Alice has forgotten the last three payments; nobody has told her. `push` is what Bob had at first.
    fn alice_is_old(format: CommitmentFormat, push: Msat) -> (Node, Node) {
        let (mut alice, mut bob) = pair_with(Options { format, push, ..Options::default() }, |_| {});
        alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        let kept = alice.journal.len();
        for seed in 2..5 {
            alice.offer(Msat(1_000_000), seed);
            exchange(&mut alice, &mut bob);
        }
        disconnect(&mut alice, &mut bob);
        alice.journal.truncate(kept);
        alice.channel = alice.replayed(kept);
        (alice, bob)
    }

    fn assert_nothing_of_ours_goes_out(alice: &mut Node, chain: &Chain, seen: &Transaction) {
        let what = on_chain(alice).spend.as_ref().unwrap().what.clone();
        assert!(matches!(what, SpendKind::Future { .. } | SpendKind::MutualClose), "{what:?}");
        alice.broadcasts.clear();
        alice.chain(ChainEvent::Disconnected { height: chain.height });
        assert_eq!((&on_chain(alice).spend, on_chain(alice).broadcast), (&None, false));
        alice.restart();
        alice.tip(BlockHeight(HEIGHT.0 + 1_000));
        let refused = alice.command(Command::ForceClose { reason: "by hand".to_owned() });
        assert_eq!(refused, Err(Refusal::DataLost));
        alice.link(LinkEvent::Up { features: FEATURES });
        let error = millrace_wire::message::Error::new(alice.channel.id(), "close");
        alice.receive(Message::Error(error)).unwrap();
        assert!(alice.broadcasts.is_empty(), "{:?}", alice.broadcasts);
        assert!(alice.claims.as_ref().is_none_or(|claims| claims.parent.is_none()));
        alice.tip(chain.height);
        alice.chain(ChainEvent::Confirmed { tx: Arc::new(seen.clone()), index: 1 });
        assert_eq!(on_chain(alice).spend.as_ref().map(|spend| &spend.what), Some(&what));
    }

    #[test]
    fn that_is_later_than_our_data_brings_nothing_of_ours() {
        for format in FORMATS {
            for push in [Msat(5_000_000_000), Msat(9_900_000_000)] {
                // Whether or not ours was out before, and whether the peer's or our own lost one is in the block.
                for (is_ours_out, is_theirs) in [(false, true), (true, true), (false, false)] {
                    let (mut alice, mut bob) = alice_is_old(format, push);
                    let mut chain = Chain::with_funding(&alice);
                    if is_ours_out {
                        alice.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
                    }
                    let seen = if is_theirs {
                        bob.command(Command::ForceClose { reason: "by hand".to_owned() }).unwrap();
                        commitment_of(&bob)
                    } else {
                        lost_commitment(format, push)
                    };
                    chain.mine(std::slice::from_ref(&seen), &mut [&mut alice]);
                    assert_nothing_of_ours_goes_out(&mut alice, &chain, &seen);
                }
            }
        }
    }

    /// What Alice would have broadcast had she forgotten nothing: the same keys and payments make the same commitment.
    fn lost_commitment(format: CommitmentFormat, push: Msat) -> Transaction {
        let (mut alice, mut bob) = pair_with(Options { format, push, ..Options::default() }, |_| {});
        alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        for seed in 2..5 {
            alice.offer(Msat(1_000_000), seed);
            exchange(&mut alice, &mut bob);
        }
        old_commitment(&alice, alice.journal.len())
    }

    /// A close that both agreed to, and that Alice has forgotten, is no commitment and has no number.
    #[test]
    fn that_is_no_commitment_brings_nothing_of_ours() {
        let (mut alice, mut bob) = pair_with(Options::default(), |_| {});
        alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        bob.fulfill(HtlcId(0), 1);
        exchange(&mut alice, &mut bob);
        let kept = alice.journal.len();
        for (node, seed) in [(&mut bob, 2), (&mut alice, 1)] {
            let (feerate, feerate_max) = (FeeratePerKw(1_000), FeeratePerKw(2_000));
            node.command(Command::Close(CloseOrder { script: wallet(seed), feerate, feerate_max })).unwrap();
        }
        exchange(&mut alice, &mut bob);
        let close = alice.broadcasts.iter().find(|broadcast| broadcast.purpose == Purpose::MutualClose);
        let close = close.expect("the close").tx.clone();
        alice.journal.truncate(kept);
        alice.channel = alice.replayed(kept);
        let mut chain = Chain::with_funding(&alice);
        chain.mine(std::slice::from_ref(&close), &mut [&mut alice]);
        assert_nothing_of_ours_goes_out(&mut alice, &chain, &close);
    }

    /// Alice's data is whole: her own is as good as it was.
    #[test]
    fn that_is_revoked_brings_ours() {
        for format in FORMATS {
            for push in [Msat(5_000_000_000), Msat(9_900_000_000)] {
                let (mut alice, mut bob) = pair_with(Options { format, push, ..Options::default() }, |_| {});
                alice.offer(Msat(50_000_000), 1);
                exchange(&mut alice, &mut bob);
                let revoked = old_commitment(&bob, bob.journal.len());
                alice.offer(Msat(1_000_000), 2);
                exchange(&mut alice, &mut bob);
                let mut chain = Chain::with_funding(&alice);
                chain.mine(&[revoked], &mut [&mut alice]);
                let what = &on_chain(&alice).spend.as_ref().unwrap().what;
                assert!(matches!(what, SpendKind::Breach(_)), "{what:?}");
                alice.chain(ChainEvent::Disconnected { height: chain.height });
                assert!(on_chain(&alice).broadcast);
                commitment_of(&alice);
                alice.restart();
            }
        }
    }
}
