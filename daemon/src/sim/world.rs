//! Nodes, and what is between them. A world goes on act by act: a shard has a turn, the payments' task hears something,
//! steps are written, a node is told of that, a message arrives. Which act is next, chance decides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bitcoin::hashes::{Hash, HashEngine, sha256};
use futures::FutureExt;
use millrace_channel::ChainEvent;
use millrace_routing::graph::{Direction, NodeId, Policy};
use millrace_routing::map::{Map, Usable};
use millrace_wire::{ChannelId, Features, FeeratePerKw, Message, Msat, PublicKey, Sat, ShortChannelId};
use secp256k1::rand::rngs::StdRng;
use secp256k1::rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use super::node::{INPUTS_MAX, Node, tip};
use super::{disk::Disk, draw_from};
use crate::channels::input::{ChainNews, Done, Epoch, Input, LinkUp, PeerMessage};
use crate::channels::shared::ChainOrder;
use crate::channels::{OpenOrder, OpenProgress};
use crate::clock::simulated;
use crate::payments::ForwardRules;
use crate::peer::link::Link;
use crate::policy::ForwardPolicy;

/// Where the chain is when a world begins.
const HEIGHT: u32 = 100;
/// Nothing needs so long: whatever is not over by then is stuck.
const DRAINED_MS: u64 = 600_000;
/// When nothing happens, time goes on by this, and then by more and more...
const PAUSE_MS: u64 = 10;
/// ...up to this.
const PAUSE_MS_MAX: u64 = 1_000;

/// A connection between two nodes, or none.
#[derive(Default)]
struct Wire {
    is_up: bool,
    epoch: u64,
    /// To the first, and to the second.
    queues: [VecDeque<Box<Message>>; 2],
}

/// A channel between two nodes.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) id: ChannelId,
    pub(super) ends: [usize; 2],
    pub(super) capacity: Sat,
    pub(super) scid: ShortChannelId,
}

/// What may happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// A shard of a node has a turn.
    Shard(usize, usize),
    /// The payments of a node hear something.
    Task(usize),
    /// A node's disk writes.
    Write(usize),
    /// A node is told of that.
    Tell(usize),
    /// A message arrives.
    Arrive((usize, usize), usize),
}

/// What a shard's turn, a write or a message may be cut into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Grain {
    /// One step, one input at a time.
    Fine,
    /// As chance wants it.
    Any,
}

pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    pub(super) channels: Vec<Opened>,
    wires: BTreeMap<(usize, usize), Wire>,
    pub(super) chance: StdRng,
    pub(super) grain: Grain,
    epochs: u64,
    pub(super) now_ms: u64,
    height: u32,
    /// Of everything that has happened: two runs of a seed are the same if these are.
    trace: sha256::HashEngine,
    /// The shard that had the last turn.
    pub(super) last: Option<(usize, usize)>,
    /// Nodes whose disks write nothing.
    pub(super) slow_disks: Vec<usize>,
    /// Every node makes a checkpoint whenever it can.
    pub(super) makes_checkpoints: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        simulated::set(None);
        draw_from(None);
    }
}

impl World {
    /// Nodes that live, and know nobody.
    pub(super) fn new(seed: u64, nodes: usize, shards: usize, rules: impl Fn(usize) -> ForwardRules) -> Self {
        draw_from(Some(seed));
        simulated::set(Some(0));
        let mut world = Self {
            nodes: (0..nodes).map(|n| Node::new(n as u8 + 1, shards, rules(n))).collect(),
            channels: Vec::new(),
            wires: BTreeMap::new(),
            chance: StdRng::seed_from_u64(seed),
            grain: Grain::Any,
            epochs: 0,
            now_ms: 0,
            height: HEIGHT,
            trace: sha256::HashEngine::default(),
            last: None,
            slow_disks: Vec::new(),
            makes_checkpoints: false,
        };
        world.nodes.iter_mut().for_each(|node| node.start(HEIGHT, true));
        world
    }

    /// The same nodes with copies of their disks, all of them just started and connected.
    pub(super) fn again(&self, seed: u64, grain: Grain) -> Self {
        draw_from(Some(seed));
        simulated::set(Some(self.now_ms));
        let mut world = Self {
            nodes: self.nodes.iter().map(|node| node.with_disk(node.disk.copy())).collect(),
            channels: self.channels.clone(),
            wires: BTreeMap::new(),
            chance: StdRng::seed_from_u64(seed),
            grain,
            epochs: self.epochs,
            now_ms: self.now_ms,
            height: self.height,
            trace: sha256::HashEngine::default(),
            last: None,
            slow_disks: Vec::new(),
            makes_checkpoints: false,
        };
        let height = world.height;
        world.nodes.iter_mut().for_each(|node| node.start(height, false));
        world.connect_all();
        world.settle();
        world
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        sha256::Hash::from_engine(self.trace.clone()).to_byte_array()
    }

    pub(super) fn trace(&mut self, what: &[u8]) {
        self.trace.input(what);
    }

    // --- what may happen ---

    fn possible(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(life) = &node.life else { continue };
            for (shard, actor) in life.shards.iter().enumerate() {
                if actor.has_work() && life.stalled != Some(shard) {
                    acts.push(Act::Shard(n, shard));
                }
            }
            if life.is_task_due {
                acts.push(Act::Task(n));
            }
            if node.disk.pending() > 0 && !self.slow_disks.contains(&n) {
                acts.push(Act::Write(n));
            }
            if node.disk.has_untold() {
                acts.push(Act::Tell(n));
            }
        }
        for (ends, wire) in &self.wires {
            let full = (0..2).filter(|to| !wire.queues[*to].is_empty());
            acts.extend(full.map(|to| Act::Arrive(*ends, to)));
        }
        acts
    }

    /// One act; false if nothing can happen before time goes on.
    pub(super) fn step(&mut self) -> bool {
        let acts = self.possible();
        if acts.is_empty() {
            return false;
        }
        let act = acts[self.chance.gen_range(0..acts.len())];
        self.act(act);
        if self.makes_checkpoints {
            self.make_checkpoints();
        }
        true
    }

    fn make_checkpoints(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_alive()) {
            node.end_checkpoint();
            if node.disk.is_beyond_checkpoint() {
                node.begin_checkpoint();
            }
        }
    }

    fn some_of(&mut self, all: usize) -> usize {
        match self.grain {
            Grain::Fine => 1,
            Grain::Any if self.chance.gen_bool(0.5) => all,
            Grain::Any => self.chance.gen_range(1..=all),
        }
    }

    fn act(&mut self, act: Act) {
        self.last = None;
        let name = format!("{act:?}");
        self.trace(name.as_bytes());
        match act {
            Act::Shard(n, shard) => {
                let inputs = self.some_of(INPUTS_MAX);
                self.nodes[n].life().shards[shard].turn_by_hand(inputs);
                self.last = Some((n, shard));
                self.after(n);
            }
            Act::Task(n) => {
                let first = self.chance.gen_range(0..5);
                let inputs = self.some_of(INPUTS_MAX);
                self.nodes[n].life().hear(first, inputs);
            }
            Act::Write(n) => {
                let steps = self.nodes[n].disk.pending();
                let steps = self.some_of(steps);
                self.nodes[n].disk.write(steps);
            }
            Act::Tell(n) => self.nodes[n].disk.tell(),
            Act::Arrive(ends, to) => self.arrive(ends, to),
        }
    }

    /// What has left a node is on its way.
    fn after(&mut self, n: usize) {
        let Some(life) = &mut self.nodes[n].life else { return };
        life.is_task_due = true;
        for (peer, message) in life.gate.take() {
            let to = self.number(&peer);
            let mut bytes = Vec::new();
            message.encode(&mut bytes).unwrap();
            self.trace(&bytes);
            assert!(!matches!(*message, Message::Error(_) | Message::Warning(_)), "node {n} says {message:?}");
            let wire = self.wires.get_mut(&(n.min(to), n.max(to))).expect("it was connected");
            wire.queues[usize::from(to > n)].push_back(message);
        }
    }

    fn number(&self, id: &PublicKey) -> usize {
        self.nodes.iter().position(|node| node.id == *id).expect("all nodes are known")
    }

    fn arrive(&mut self, ends: (usize, usize), to: usize) {
        let wire = self.wires.get_mut(&ends).expect("it is one of them");
        let Some(message) = wire.queues[to].pop_front() else { return };
        let epoch = Epoch(wire.epoch);
        let (from, to) = if to == 0 { (ends.1, ends.0) } else { ends };
        let peer = self.nodes[from].id;
        let Some(channel_id) = message.channel_id() else { return };
        let Some(life) = &self.nodes[to].life else { return };
        let directory = life.registry.directory();
        if let Message::OpenChannel(_) = *message {
            directory.begin_opening(peer, channel_id, life.registry.shard_of(channel_id)).unwrap();
        }
        let shard = directory.shard_for(&peer, channel_id);
        let shard = shard.unwrap_or_else(|| panic!("node {to} does not know the channel of {message:?}"));
        let message = PeerMessage { peer, epoch, channel_id, message: *message, credit: None };
        life.put(shard, Input::Message(message));
    }

    // --- time ---

    /// Nothing has happened for a while: whoever waits for that sees it.
    pub(super) fn pause(&mut self, ms: u64) {
        self.now_ms += ms;
        simulated::set(Some(self.now_ms));
        for n in 0..self.nodes.len() {
            if let Some(life) = &mut self.nodes[n].life {
                life.tick();
            }
        }
    }

    /// Until nothing happens any more by itself, and for a while after that; without an end if two nodes never fall silent.
    pub(super) fn settle(&mut self) {
        for _ in 0..4 {
            while self.step() {}
            self.pause(PAUSE_MS);
        }
        while self.step() {}
    }

    /// Until this is so; panics if it never is.
    pub(super) fn drain(&mut self, what: &str, is_so: impl Fn(&mut Self) -> bool) {
        let begun = self.now_ms;
        let mut pause = PAUSE_MS;
        loop {
            let mut is_still = true;
            while self.step() {
                is_still = false;
            }
            if is_so(self) {
                return;
            }
            assert!(self.now_ms < begun + DRAINED_MS, "{what}: it is stuck");
            pause = if is_still { (pause * 2).min(PAUSE_MS_MAX) } else { PAUSE_MS };
            self.pause(pause);
        }
    }

    // --- connections ---

    pub(super) fn is_connected(&self, ends: (usize, usize)) -> bool {
        self.wires.get(&ends).is_some_and(|wire| wire.is_up)
    }

    /// Both live, and see the new connection; an old one is cut first.
    pub(super) fn connect(&mut self, a: usize, b: usize) {
        let ends = (a.min(b), a.max(b));
        self.cut(ends);
        self.epochs += 1;
        let epoch = self.epochs;
        self.wires.insert(ends, Wire { is_up: true, epoch, queues: Default::default() });
        for (n, peer) in [(ends.0, ends.1), (ends.1, ends.0)] {
            let features = Arc::new(Features::ours(false));
            let (link, outgoing, _queued) = Link::new();
            let peer = self.nodes[peer].id;
            let life = self.nodes[n].life();
            life.gate.link(peer, outgoing);
            let link = LinkUp { peer, epoch: Epoch(epoch), ours: Arc::clone(&features), theirs: features, link };
            life.registry.put_all(|| Input::LinkUp(link.clone()));
        }
    }

    /// Of what is on its way some may still arrive.
    pub(super) fn cut(&mut self, ends: (usize, usize)) {
        if !self.is_connected(ends) {
            return;
        }
        for to in 0..2 {
            let on_its_way = self.wires[&ends].queues[to].len();
            let arriving = match self.grain {
                Grain::Fine => on_its_way,
                Grain::Any => self.chance.gen_range(0..=on_its_way),
            };
            (0..arriving).for_each(|_| self.arrive(ends, to));
        }
        let wire = self.wires.get_mut(&ends).expect("it is connected");
        wire.is_up = false;
        wire.queues = Default::default();
        let epoch = Epoch(wire.epoch);
        for (n, peer) in [(ends.0, ends.1), (ends.1, ends.0)] {
            let peer = self.nodes[peer].id;
            if let Some(life) = &self.nodes[n].life {
                life.gate.unlink(&peer);
                life.registry.put_all(|| Input::LinkDown { peer, epoch });
            }
        }
    }

    /// Connects whoever lives and has a channel with another, and is not connected.
    pub(super) fn connect_all(&mut self) {
        let pairs: Vec<[usize; 2]> = self.channels.iter().map(|channel| channel.ends).collect();
        for [a, b] in pairs {
            if self.nodes[a].is_alive() && self.nodes[b].is_alive() && !self.is_connected((a.min(b), a.max(b))) {
                self.connect(a, b);
            }
        }
    }

    // --- death, and what follows ---

    /// A node dies. What it has said is on its way all the same.
    pub(super) fn kill(&mut self, n: usize) {
        self.trace(b"kill");
        self.after(n);
        self.nodes[n].kill();
        let ends: Vec<(usize, usize)> = self.wires.keys().copied().filter(|ends| ends.0 == n || ends.1 == n).collect();
        ends.into_iter().for_each(|ends| self.cut(ends));
    }

    /// It comes back, and is connected with nobody.
    pub(super) fn revive(&mut self, n: usize) {
        self.trace(b"revive");
        let height = self.height;
        self.nodes[n].start(height, false);
        self.after(n);
    }

    // --- channels ---

    /// Opens a channel, up to its funding; `confirm` ends it.
    pub(super) fn open(
        &mut self,
        a: usize,
        b: usize,
        capacity: Sat,
        push: Msat,
    ) -> mpsc::UnboundedReceiver<OpenProgress> {
        if !self.is_connected((a.min(b), a.max(b))) {
            self.connect(a, b);
        }
        self.settle();
        let order = OpenOrder {
            peer: self.nodes[b].id,
            capacity,
            push,
            funding_feerate: FeeratePerKw(1_000),
            zero_conf: false,
            announce: true,
            to_self_delay: None,
            htlc_minimum: None,
            max_in_flight: None,
            upfront_shutdown_script: None,
            when_opened: None,
        };
        let progress = self.nodes[a].life().registry.open_channel(order).unwrap();
        self.settle();
        progress
    }

    /// Puts the funding of every channel that waits for it into one block, and three more on top.
    pub(super) fn confirm(&mut self) {
        let mut broadcast = Vec::new();
        for (n, node) in self.nodes.iter_mut().enumerate() {
            while let Ok(order) = node.life().chain.try_recv() {
                if let ChainOrder::Broadcast(id, broadcasting) = order {
                    broadcast.push((n, id, broadcasting.tx));
                }
            }
        }
        self.height += 1;
        let height = self.height;
        for node in &mut self.nodes {
            node.life().chain_news(height, &[ChainNews::All(tip(height))]);
        }
        for (index, (n, id, tx)) in (1..).zip(broadcast) {
            let event = ChainEvent::Confirmed { tx: Arc::new(tx), index };
            let snapshot = self.nodes[n].life().registry.snapshot(id).unwrap();
            let peer = self.number(&snapshot.peer);
            for n in [n, peer] {
                let life = self.nodes[n].life();
                let shard = life.registry.directory().place(id).unwrap().shard;
                let (done, _) = Done::new();
                life.put(shard, Input::Chain { news: vec![ChainNews::One(id, event.clone())], done });
            }
            let capacity = snapshot.terms.capacity;
            self.channels.push(Opened { id, ends: [n, peer], capacity, scid: ShortChannelId(0) });
        }
        for _ in 0..3 {
            self.height += 1;
            let height = self.height;
            for node in &mut self.nodes {
                node.life().chain_news(height, &[ChainNews::All(tip(height))]);
            }
        }
        self.settle();
        for channel in &mut self.channels {
            let life = self.nodes[channel.ends[0]].life();
            let snapshot = life.registry.snapshot(channel.id).unwrap();
            assert!(snapshot.is_usable(), "{snapshot:?}");
            channel.scid = snapshot.short_channel_id.unwrap();
        }
    }

    /// Tells all nodes of all channels, with what each end asks for forwarding.
    pub(super) fn publish(&mut self, asked: impl Fn(usize, usize) -> ForwardPolicy) {
        let mut usable = Vec::new();
        for (index, channel) in self.channels.iter().enumerate() {
            for [from, to] in [channel.ends, [channel.ends[1], channel.ends[0]]] {
                let [from_id, to_id] = [from, to].map(|n| NodeId::from(self.nodes[n].id));
                let terms = asked(index, from);
                usable.push(Usable {
                    short_channel_id: channel.scid,
                    direction: if from_id < to_id { Direction::FromLesser } else { Direction::FromGreater },
                    from: from_id,
                    to: to_id,
                    policy: Policy {
                        is_disabled: false,
                        cltv_expiry_delta: terms.cltv_delta.0,
                        htlc_minimum: terms.htlc_minimum,
                        htlc_maximum: channel.capacity.to_msat(),
                        fee_base_msat: u32::try_from(terms.fee_base.0).unwrap(),
                        fee_proportional_millionths: terms.fee_ppm,
                    },
                    capacity: channel.capacity.to_msat(),
                });
            }
        }
        let map = Arc::new(Map::of_channels(usable));
        self.nodes.iter().for_each(|node| node.network.publish(Arc::clone(&map)));
    }

    // --- what a node is asked ---

    /// What a node answers, once it does; the world goes on meanwhile.
    pub(super) fn ask<T>(&mut self, n: usize, question: impl Future<Output = T>) -> T {
        let mut question = Box::pin(question);
        loop {
            if let Some(answer) = question.as_mut().now_or_never() {
                return answer;
            }
            self.nodes[n].life().is_task_due = true;
            if !self.step() {
                self.pause(PAUSE_MS);
            }
        }
    }

    pub(super) fn disk(&self, n: usize) -> &Disk {
        &self.nodes[n].disk
    }
}
