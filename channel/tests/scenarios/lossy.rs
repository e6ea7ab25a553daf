//! Two ends on a link that loses messages, with crashes at random moments: after every step, replaying the records
//! arrives at the live channel; at rest both sides agree, and no money has appeared or gone. (The simulator and LDK in
//! memory do more, by seed; here what fails is made small.)

use millrace_channel::{Channel, Command, LinkEvent, Side};
use millrace_wire::{FeeratePerKw, HtlcId, Msat};
use proptest::prelude::*;

use crate::support::node::{FEATURES, Node, disconnect, exchange, normal_pair, preimage_of};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// `from` offers so much.
    Offer { from: usize, amount_sat: u64 },
    /// `by` fulfils or fails one of the HTLCs that it may decide.
    Decide { by: usize, index: usize, fulfills: bool },
    /// The funder asks for another feerate.
    Fee { feerate: u32 },
    /// The end of a batch.
    Commit { by: usize },
    /// So many messages arrive.
    Deliver { from: usize, count: usize },
    /// The link goes, with everything on it, and comes back.
    Cut,
    /// One end dies, and starts again from its records.
    Crash { who: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0_usize..2;
    prop_oneof![
        4 => (who.clone(), 1_u64..400_000).prop_map(|(from, amount_sat)| Step::Offer { from, amount_sat }),
        4 => (who.clone(), 0_usize..8, any::<bool>())
            .prop_map(|(by, index, fulfills)| Step::Decide { by, index, fulfills }),
        1 => (253_u32..3_000).prop_map(|feerate| Step::Fee { feerate }),
        5 => who.clone().prop_map(|by| Step::Commit { by }),
        9 => (who.clone(), 1_usize..5).prop_map(|(from, count)| Step::Deliver { from, count }),
        1 => Just(Step::Cut),
        1 => who.prop_map(|who| Step::Crash { who }),
    ]
}

struct World {
    /// Alice, who funded, and Bob.
    nodes: [Node; 2],
    /// Of each HTLC that was offered, by its seed: who offered it.
    offered: Vec<usize>,
    /// What Alice should have at the end, in msat.
    expected: u64,
}

impl World {
    fn new() -> Self {
        let (alice, bob) = normal_pair();
        let expected = alice.balances().local.0;
        Self { nodes: [alice, bob], offered: Vec::new(), expected }
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Offer { from, amount_sat } => {
                let seed = u8::try_from(self.offered.len()).unwrap();
                // A refusal changes nothing: there may be no room.
                if self.nodes[from].try_offer(Msat(amount_sat * 1_000 + u64::from(seed)), seed).is_ok() {
                    self.offered.push(from);
                }
            }
            Step::Decide { by, index, fulfills } => self.decide(by, index, fulfills),
            Step::Fee { feerate } => drop(self.nodes[0].command(Command::UpdateFee(FeeratePerKw(feerate)))),
            Step::Commit { by } => self.nodes[by].commit(),
            Step::Deliver { from, count } => {
                for _ in 0..count {
                    let Some(message) = self.nodes[from].outbox.pop_front() else { break };
                    self.nodes[1 - from].receive(message).unwrap();
                }
            }
            Step::Cut => self.cut(),
            Step::Crash { who } => {
                self.nodes[who].restart();
                self.cut();
            }
        }
        // Proposals that cannot be signed any more are withdrawn by a new connection.
        if self.nodes.iter_mut().any(|node| !std::mem::take(&mut node.disconnects).is_empty()) {
            self.cut();
        }
        self.nodes.iter().for_each(assert_replay_is_live);
    }

    fn cut(&mut self) {
        let [alice, bob] = &mut self.nodes;
        disconnect(alice, bob);
        for node in [alice, bob] {
            node.link(LinkEvent::Up { features: FEATURES });
        }
    }

    fn decide(&mut self, by: usize, index: usize, fulfills: bool) {
        let node = &mut self.nodes[by];
        let live = node.channel.ledger().htlcs(Side::Remote).iter().filter(|htlc| htlc.is_live());
        let live: Vec<_> = live.map(|htlc| (htlc.add.id, htlc.add.amount, htlc.add.payment_hash)).collect();
        let Some(&(id, amount, hash)) = live.get(index % live.len().max(1)) else { return };
        let seed = (0..=u8::MAX).find(|seed| preimage_of(*seed).hash() == hash).unwrap();
        if !fulfills {
            return node.fail(id);
        }
        node.fulfill(id, seed);
        self.expected = if by == 0 { self.expected + amount.0 } else { self.expected - amount.0 };
    }

    /// Everything comes to its end.
    fn settle(&mut self) {
        self.cut();
        for round in 0..100 {
            let [alice, bob] = &mut self.nodes;
            exchange(alice, bob);
            if self.nodes.iter_mut().any(|node| !std::mem::take(&mut node.disconnects).is_empty()) {
                self.cut();
            } else if self.nodes.iter().all(|node| node.channel.is_at_rest()) {
                return;
            }
            for by in 0..2 {
                while self.nodes[by].channel.ledger().htlcs(Side::Remote).iter().any(|htlc| htlc.is_live()) {
                    self.decide(by, 0, round % 2 == 0);
                }
            }
        }
        panic!("they never come to rest");
    }
}

fn assert_replay_is_live(node: &Node) {
    let mut bytes = Vec::new();
    node.channel.snapshot(&mut bytes);
    let live = Channel::restore(&bytes, node.policy, |_| node.keys.clone()).unwrap();
    let replayed = node.replayed(node.journal.len());
    assert!(replayed.is_same_state(&live), "replay differs from live\n{replayed:#?}\n{live:#?}");
}

fn next_ids(node: &Node) -> (HtlcId, HtlcId) {
    (node.channel.ledger().next_id(Side::Local), node.channel.ledger().next_id(Side::Remote))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn replay_is_live_and_both_agree_at_rest(steps in proptest::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in steps {
            world.play(step);
        }
        world.settle();
        let [alice, bob] = &world.nodes;
        let (ours, theirs) = (alice.balances(), bob.balances());
        prop_assert_eq!((ours.local, ours.remote), (theirs.remote, theirs.local));
        prop_assert_eq!(ours.local.0, world.expected);
        prop_assert_eq!(ours.local.0 + ours.remote.0, alice.channel.terms().capacity.to_msat().0);
        let (of_alice, of_bob) = (next_ids(alice), next_ids(bob));
        prop_assert_eq!(of_alice, (of_bob.1, of_bob.0));
        for node in [alice, bob] {
            assert_replay_is_live(node);
        }
    }
}
