//! One payment over a few nodes, of which some die while it is under way; and what must hold whatever they lose.

use millrace_channel::Record;
use millrace_wire::{Msat, Sat};

use super::books::{Books, Outcome};
use super::payment::Asked;
use super::world::{Grain, World};
use crate::happened::ForwardEnd;
use crate::payments::{ForwardRules, Told};

/// The payer.
pub(super) const A: usize = 0;
/// The node on the way; in the diamond, on one of the two.
pub(super) const B: usize = 1;

/// What the payment meets at its payee.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Story {
    Taken,
    Refused,
}

/// When a node dies, counted from when the payment is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Death {
    /// A step is on its way to the disk, and so many before it are there.
    Before(usize),
    /// It is there, and nothing that waits for it has left.
    Written(usize),
    /// So many messages and news have left, and not the next one.
    Cut(usize),
    /// The same, but only this shard stops at first: the rest of the node goes on as far as it can.
    Stalled(usize),
}

/// Who dies, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// Nobody.
    Nobody,
    /// One node.
    One(usize, Death),
    /// Two at once, in the midst of a flush of both: `kept` still gets its steps to its disk, the other one does not. It
    /// begins when the first of them has written so many steps.
    Two { pair: [usize; 2], steps: usize, kept: usize },
    /// One node, and its disk takes nothing after the first preimage.
    WithPreimage(usize),
}

/// What a node reads back that has died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reads {
    /// All of its steps.
    Steps,
    /// A checkpoint, which it makes whenever it has written something and is quiet.
    Checkpoints,
}

impl Fate {
    fn dying(self) -> Vec<usize> {
        match self {
            Self::Nobody => Vec::new(),
            Self::One(node, _) | Self::WithPreimage(node) => vec![node],
            Self::Two { pair, .. } => pair.to_vec(),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Played {
    /// Steps and pieces of each node, if nobody died.
    pub(super) done: Vec<Done>,
    pub(super) is_paid: bool,
    /// Both of two nodes that died had something on its way to the disk.
    pub(super) lost_one_of_two: bool,
    pub(super) digest: [u8; 32],
}

/// What a node has done.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Done {
    pub(super) steps: usize,
    /// Messages that were sent, and news that was told.
    pub(super) pieces: usize,
}

/// Nodes with their channels, where nothing has been paid.
pub(super) struct Scene {
    base: World,
    before: Books,
    pub(super) payee: usize,
    amount: Msat,
    /// The channels that the payment must take, or the parts of it.
    ways: usize,
    pub(super) reads: Reads,
}

impl Scene {
    /// Three nodes in a line.
    pub(super) fn line() -> Self {
        Self::new(3, &[(0, 1), (1, 2)], 2, Msat(10_000_000), 1)
    }

    /// Two ways over one node each, of which none can carry it all.
    pub(super) fn diamond() -> Self {
        Self::new(4, &[(0, 1), (0, 2), (1, 3), (2, 3)], 3, Msat(800_000_000), 2)
    }

    fn new(nodes: usize, channels: &[(usize, usize)], payee: usize, amount: Msat, ways: usize) -> Self {
        let rules = ForwardRules { peer_share_percent: 100, ..ForwardRules::default() };
        let mut base = World::new(1, nodes, 8, |_| rules);
        for (a, b) in channels {
            let _progress = base.open(*a, *b, Sat(1_000_000), Msat(400_000_000));
        }
        base.confirm();
        base.publish(|_, _| rules.usual);
        let before = Books::of(&base);
        Self { base, before, payee, amount, ways, reads: Reads::Steps }
    }

    /// Plays it. Panics if something is not as it must be.
    pub(super) fn play(&self, order: u64, story: Story, fate: Fate) -> Played {
        let mut world = self.base.again(order, Grain::Fine);
        let invoice = match story {
            Story::Taken => world.invoice(self.payee, self.amount, false),
            Story::Refused => world.forged_invoice(self.payee, self.amount),
        };
        world.settle();
        world.makes_checkpoints = self.reads == Reads::Checkpoints;
        let begun: Vec<Done> = (0..world.nodes.len()).map(|n| done(&mut world, n)).collect();
        let mut asked = [world.pay(A, &invoice, 16)];
        let lost_one_of_two = suffer(&mut world, &begun, fate);
        let dying = fate.dying();
        let had_gone_on = dying.contains(&B) && Books::of(&world).accounts[B].has_gone_on();
        if !dying.is_empty() {
            while world.step() {}
            asked[0].listen();
            let is_told = asked[0].ends.iter().any(|told| matches!(told, Told::Paid { .. }));
            assert!(is_told || !matches!(fate, Fate::WithPreimage(_)), "a preimage waited for more than its own flush");
            dying.iter().for_each(|n| world.revive(*n));
            world.connect_all();
        }
        while world.step() {}
        world.drain("a payment", World::is_idle);
        let done = match fate {
            Fate::Nobody => (0..begun.len()).map(|n| done(&mut world, n).since(begun[n])).collect(),
            Fate::One(..) | Fate::Two { .. } | Fate::WithPreimage(_) => Vec::new(),
        };
        let books = Books::of(&world);
        books.check(&self.before, &world, &asked);
        if !dying.contains(&A) {
            books.check_told(&mut asked[0]);
        }
        let outcome = books.accounts[A].outcome(&asked[0].payment_hash);
        self.check_outcome(story, fate, had_gone_on, outcome, &asked[0]);
        let settled = books.accounts[B].forwards(ForwardEnd::Settled);
        let is_paid = matches!(outcome, Outcome::Paid { .. });
        assert!(settled == 0 || is_paid, "{settled} forwards were settled of a payment that has failed");
        Played { done, is_paid, lost_one_of_two, digest: world.digest() }
    }

    fn check_outcome(&self, story: Story, fate: Fate, had_gone_on: bool, outcome: Outcome, asked: &Asked) {
        let is_only_way = self.ways == 1;
        match (story, outcome) {
            (Story::Taken, Outcome::Paid { fee }) => {
                // Whoever tries again may make more parts of it.
                let least = self.ways as u64 * 1_000 + self.amount.0 / 10_000;
                assert!(fee.0 == least || (!is_only_way && fee.0 + 1 >= least), "a fee of {fee}");
            }
            (Story::Taken, Outcome::Failed) => {
                assert!(fate != Fate::Nobody, "{:?}", asked.ends);
                // What had gone on on the only way there is has come to its payee, and was taken.
                assert!(!(is_only_way && had_gone_on), "it has failed, though it had gone on: {:?}", asked.ends);
            }
            (Story::Refused, Outcome::Failed) => {}
            (Story::Taken | Story::Refused, Outcome::Never) => {
                assert!(fate.dying().contains(&A), "{:?}", asked.ends);
            }
            (Story::Refused, Outcome::Paid { .. }) => panic!("it was paid, and nobody could take it"),
        }
    }

    /// Every moment at which a node may die that does so much.
    pub(super) fn deaths(done: Done) -> Vec<Death> {
        let steps = (0..done.steps).flat_map(|n| [Death::Before(n), Death::Written(n)]);
        steps.chain((0..done.pieces).flat_map(|n| [Death::Cut(n), Death::Stalled(n)])).collect()
    }
}

impl Done {
    fn since(self, before: Self) -> Self {
        Self { steps: self.steps - before.steps, pieces: self.pieces - before.pieces }
    }
}

fn done(world: &mut World, n: usize) -> Done {
    Done { steps: world.disk(n).written(), pieces: world.nodes[n].life().gate.passed() }
}

/// Goes on until those are dead that are to die; says whether both of two lost or kept something.
fn suffer(world: &mut World, begun: &[Done], fate: Fate) -> bool {
    match fate {
        Fate::Nobody => false,
        Fate::One(node, death) => {
            if let Death::Cut(pieces) | Death::Stalled(pieces) = death {
                world.nodes[node].life().gate.shut_after(pieces);
            }
            while !is_time(world, node, begun[node].steps, death) {
                assert!(world.step(), "{fate:?} never comes");
            }
            if let Death::Stalled(_) = death {
                let (_, shard) = world.last.expect("a shard has let something go");
                let life = world.nodes[node].life();
                life.stalled = Some(shard);
                life.gate.open();
                while world.step() {}
            }
            world.kill(node);
            false
        }
        Fate::WithPreimage(node) => {
            let is_preimage = |record: &Record| matches!(record, Record::PreimageReceived { .. });
            while !world.disk(node).holds(begun[node].steps, is_preimage) {
                assert!(world.step(), "{fate:?} never comes");
            }
            world.slow_disks = vec![node];
            while world.step() {}
            world.slow_disks.clear();
            assert!(world.disk(node).pending() > 0, "nothing of it was still to be written");
            world.kill(node);
            false
        }
        Fate::Two { pair, steps, kept } => {
            while !is_time(world, pair[0], begun[pair[0]].steps, Death::Before(steps)) {
                assert!(world.step(), "{fate:?} never comes");
            }
            // Both disks are slow, and everything else goes on as far as it can.
            world.slow_disks = pair.to_vec();
            while world.step() {}
            world.slow_disks.clear();
            let both = pair.iter().all(|n| world.disk(*n).pending() > 0);
            world.disk(kept).write(usize::MAX);
            pair.iter().for_each(|n| world.kill(*n));
            both
        }
    }
}

fn is_time(world: &mut World, node: usize, begun: usize, death: Death) -> bool {
    let steps = world.disk(node).written() - begun;
    match death {
        Death::Before(before) => steps == before && world.disk(node).pending() > 0,
        Death::Written(before) => steps == before + 1,
        Death::Cut(_) | Death::Stalled(_) => world.nodes[node].life().gate.is_shut(),
    }
}
