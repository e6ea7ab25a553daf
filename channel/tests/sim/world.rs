//! Three nodes in a line, two channels, two links, one chain: what can happen, and its effects.
//!
//! The middle node forwards by a model switch whose only durable memory is the channels' own. Everything that leaves
//! a node passes [`World::leave`], where the checkers stand.

use std::collections::VecDeque;
use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, ScriptBuf, Transaction, TxOut};
use millrace_channel::curve::Serial;
use millrace_channel::input::Millis;
use millrace_channel::phase::Phase;
use millrace_channel::phase::on_chain::{ChainRecord, Claims};
use millrace_channel::phase::opening::{
    AcceptParams, LocalParams, OpenRequest, Opening, OpeningEvent, OpeningFeatures, OpeningLimits, Surroundings,
};
use millrace_channel::tx::claim::sweep_tx;
use millrace_channel::{
    ChainEvent, Channel, ChannelType, Command, CommitmentFormat, Effect, Effects, Fact, LinkEvent, LinkFeatures,
    Record, Refusal,
};
use millrace_wire::{ChainHash, ChannelId, FeeratePerKw, Message, Msat, Sat, ShortChannelId};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use crate::blocks::{Block, Blocks};
use crate::counters::Counters;
use crate::disk::{Disk, Entry};
use crate::end::{End, Parked, Slot, policy};
use crate::payments::Payment;
use crate::thief::Thief;

/// What is wrong on purpose, to see that it is caught.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// One kind of record never reaches the disk.
    SkipRecord(&'static str),
    /// Messages leave before their record is durable.
    SendBeforeFlush,
    /// The switch forwards an HTLC at `Acked`.
    ForwardAtAcked,
    /// A commitment that was revoked is broadcast.
    BroadcastRevoked,
    /// The switch forgets an outcome downstream before it has passed it on.
    ReleaseEarly,
    /// The payee says that its decision to fulfil is durable, and no disk knows of it.
    FulfillEarly,
    /// The switch passes a preimage on before the record downstream is durable.
    PassOnEarly,
    /// The node keeps nothing of HTLCs that have left a channel.
    LoseHtlcLog,
}

/// Which nodes a link joins: the funder's end first.
pub const LINKS: [[usize; 2]; 2] = [[0, 1], [1, 2]];

pub const FUNDING: Sat = Sat(10_000_000);
pub const PUSH: Msat = Msat(5_000_000_000);

/// One node.
pub struct Node {
    pub ends: [Option<End>; 2],
    pub disk: Disk,
    pub wallet: ScriptBuf,
    /// An old disk was put into it: it may lose money, and must not take any.
    pub is_rolled_back: bool,
}

/// One connection.
#[derive(Default)]
pub struct Wire {
    pub is_up: bool,
    pub epoch: u64,
    /// Messages towards the first and the second node of the link.
    pub queues: [VecDeque<Message>; 2],
}

/// Everything.
pub struct World {
    pub rng: ChaCha8Rng,
    pub nodes: [Node; 3],
    pub wires: [Wire; 2],
    pub blocks: Blocks,
    pub payments: Vec<Payment>,
    pub counters: Counters,
    pub log: Vec<String>,
    pub bug: Option<Bug>,
    pub format: CommitmentFormat,
    pub simple_close: bool,
    pub now: Millis,
    opened: u64,
    /// Who cheats, once somebody does.
    pub thief: Option<Thief>,
    /// The first broken rule.
    pub violation: Option<String>,
}

impl World {
    pub fn new(mut rng: ChaCha8Rng, bug: Option<Bug>) -> Self {
        let format = if rng.next_u32().is_multiple_of(4) {
            CommitmentFormat::StaticRemotekey
        } else {
            CommitmentFormat::Anchors
        };
        let simple_close = rng.next_u32().is_multiple_of(2);
        let node = |index: u8, ends: [bool; 2]| Node {
            ends: ends.map(|has| has.then(|| End::new(0, index))),
            disk: Disk::default(),
            wallet: ScriptBuf::new_p2wpkh(&bitcoin::hashes::Hash::from_byte_array([index + 1; 20])),
            is_rolled_back: false,
        };
        Self {
            rng,
            nodes: [node(0, [true, false]), node(1, [true, true]), node(2, [false, true])],
            wires: [Wire::default(), Wire::default()],
            blocks: Blocks::new(),
            payments: Vec::new(),
            counters: Counters::default(),
            log: Vec::new(),
            bug,
            format,
            simple_close,
            now: Millis(0),
            opened: 0,
            thief: None,
            violation: None,
        }
    }

    pub fn pick(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below.max(1)
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.pick(one_in) == 0
    }

    pub fn note(&mut self, line: String) {
        self.log.push(line);
    }

    pub fn violate(&mut self, what: String) {
        self.note(format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    pub fn end(&self, node: usize, link: usize) -> &End {
        self.nodes[node].ends[link].as_ref().expect("a node has ends on its links")
    }

    pub fn end_mut(&mut self, node: usize, link: usize) -> &mut End {
        self.nodes[node].ends[link].as_mut().expect("a node has ends on its links")
    }

    pub fn peer_of(node: usize, link: usize) -> usize {
        let [one, other] = LINKS[link];
        if node == one { other } else { one }
    }

    pub fn links_of(node: usize) -> impl Iterator<Item = usize> {
        (0..2).filter(move |link| LINKS[*link].contains(&node))
    }

    pub fn features(&self) -> LinkFeatures {
        LinkFeatures { simple_close: self.simple_close, shutdown_anysegwit: true }
    }

    // --- inputs ---

    /// Runs `input` on a channel and takes its effects.
    pub fn with<T>(
        &mut self,
        node: usize,
        link: usize,
        input: impl FnOnce(&mut Channel, &mut Effects) -> T,
    ) -> Option<T> {
        let mut fx = Effects::default();
        let out = self.end_mut(node, link).channel_mut().map(|channel| input(channel, &mut fx));
        self.absorb(node, link, fx);
        out
    }

    pub fn command(&mut self, node: usize, link: usize, command: Command) -> Result<(), Refusal> {
        self.with(node, link, |channel, fx| channel.on_command(command, fx))
            .unwrap_or(Err(Refusal::NotUsable("no channel")))
    }

    pub fn commit(&mut self, node: usize, link: usize) {
        let now = self.now;
        self.with(node, link, |channel, fx| channel.commit(now, &Serial, fx));
    }

    /// The effects of one step: records to the disk, the rest to the outbox.
    pub fn absorb(&mut self, node: usize, link: usize, fx: Effects) {
        let records: Vec<Vec<u8>> = fx
            .list
            .iter()
            .filter_map(|effect| match effect {
                Effect::Journal(range) => Some(fx.journal[range.clone()].to_vec()),
                _ => None,
            })
            .collect();
        let mut step = Vec::new();
        for bytes in records {
            let record = Record::decode(&bytes).expect("it was just encoded");
            if let Record::Chain(ChainRecord::BreachHtlcs(_)) = record {
                self.counters.count("a breach with HTLCs of the log");
            }
            let name = record.name();
            self.counters.count(&format!("record: {name}"));
            if self.bug != Some(Bug::SkipRecord(name)) {
                step.push(Entry::Record { link, bytes });
            }
        }
        let needs = if step.is_empty() { None } else { Some(self.nodes[node].disk.submit(step) + 1) };
        let epoch = self.wires[link].epoch;
        let early = if self.bug == Some(Bug::PassOnEarly) { preimages_in(&fx) } else { Vec::new() };
        let end = self.end_mut(node, link);
        for effect in fx.list {
            if let Effect::Journal(_) = effect {
                end.needs = needs.unwrap_or(end.needs);
            } else {
                end.outbox.push_back(Parked { needs: end.needs, effect, epoch });
            }
        }
        for fact in early {
            self.on_fact(node, link, fact);
        }
        self.release(node, link);
    }

    /// Lets go of what has become durable, in order.
    pub fn release(&mut self, node: usize, link: usize) {
        let mut go_on = true;
        while go_on {
            let durable = self.nodes[node].disk.durable_up_to();
            let early = self.bug == Some(Bug::SendBeforeFlush);
            let end = self.end_mut(node, link);
            let may_leave = end
                .outbox
                .front()
                .is_some_and(|parked| parked.needs <= durable || (early && matches!(parked.effect, Effect::Send(_))));
            if !may_leave {
                go_on = false;
            } else if let Some(parked) = end.outbox.pop_front() {
                self.leave(node, link, parked);
            }
        }
    }

    fn leave(&mut self, node: usize, link: usize, parked: Parked) {
        match parked.effect {
            Effect::Journal(_) => unreachable!("records go to the disk"),
            Effect::Send(message) => {
                let wire = &self.wires[link];
                if !wire.is_up || wire.epoch != parked.epoch {
                    return;
                }
                self.check_send(node, link, &message);
                let to = usize::from(LINKS[link][0] == node);
                self.wires[link].queues[to].push_back(through_the_codec(&message));
            }
            Effect::Disconnect(why) => {
                self.note(format!("node {node} disconnects link {link}: {why}"));
                self.cut(link);
            }
            Effect::Broadcast(broadcast) => {
                self.check_broadcast(node, link, &broadcast.tx, broadcast.purpose);
                self.blocks.broadcast(broadcast.tx);
            }
            Effect::Watch(_) => {}
            Effect::Claim(claims) => self.claim(node, link, &claims),
            Effect::Fact(fact) => self.on_fact(node, link, fact),
        }
    }

    /// The wallet makes a transaction of each claim.
    fn claim(&mut self, node: usize, link: usize, claims: &Claims) {
        let keys = self.end(node, link).keys.clone();
        let wallet = self.nodes[node].wallet.clone();
        let mut txs = Vec::new();
        for sweep in &claims.sweeps {
            txs.extend(sweep_tx(std::slice::from_ref(&sweep.claim), wallet.clone(), FeeratePerKw(253), &keys).ok());
        }
        for claim in &claims.htlc_txs {
            let mut tx = claim.htlc_tx.tx.clone();
            tx.input.push(self.blocks.coin(Amount::from_sat(5_000)));
            tx.input[0].witness = claim.witness(&tx, 0, &keys);
            txs.push(tx);
        }
        for tx in txs {
            if let Some(fault) = self.blocks.script_fault(&tx) {
                self.violate(format!("a claim of node {node} is not valid: {fault}"));
            }
            self.blocks.broadcast(tx);
        }
    }

    // --- links ---

    pub fn cut(&mut self, link: usize) {
        if !self.wires[link].is_up {
            return;
        }
        self.wires[link].is_up = false;
        self.wires[link].queues.iter_mut().for_each(VecDeque::clear);
        for node in LINKS[link] {
            if let Slot::Opening(_) = self.end(node, link).slot {
                self.end_mut(node, link).slot = Slot::Empty;
            }
            self.end_mut(node, link).arrived_removals.retain(|removal| removal.is_covered);
            self.with(node, link, |channel, fx| channel.on_link(LinkEvent::Down, fx));
            self.check_replay(node, link);
        }
    }

    pub fn connect(&mut self, link: usize) {
        if self.wires[link].is_up {
            return;
        }
        self.wires[link].is_up = true;
        self.wires[link].epoch += 1;
        let [funder, fundee] = LINKS[link];
        // A side that does not know the channel says so, and the other gives it up: it never held anything.
        let known = [funder, fundee].map(|node| self.end(node, link).channel().is_some());
        if known[0] != known[1] && !self.nodes[funder].is_rolled_back && !self.nodes[fundee].is_rolled_back {
            for node in LINKS[link] {
                *self.end_mut(node, link) = End::new(self.opened + 1, node as u8);
            }
            self.opened += 1;
        }
        let features = self.features();
        for node in LINKS[link] {
            self.with(node, link, |channel, fx| channel.on_link(LinkEvent::Up { features }, fx));
        }
    }

    /// The next message of a link reaches the node at `to` (0 or 1).
    pub fn deliver(&mut self, link: usize, to: usize) -> bool {
        let Some(message) = self.wires[link].queues[to].pop_front() else { return false };
        let node = LINKS[link][to];
        match self.end(node, link).slot {
            Slot::Channel(_) => self.deliver_to_channel(node, link, message),
            Slot::Opening(_) | Slot::Empty => self.deliver_to_opening(node, link, message),
        }
        true
    }

    fn deliver_to_channel(&mut self, node: usize, link: usize, message: Message) {
        self.note_removal(node, link, &message);
        let name = message.name();
        let peer = Self::peer_of(node, link);
        let result = self.with(node, link, |channel, fx| channel.on_message(message, &Serial, fx));
        if let Some(Err(fault)) = result {
            // Two nodes may see the funding transaction in different blocks for a while.
            let is_elsewhere = name == "announcement_signatures" && fault.what.contains("short_channel_id");
            if is_elsewhere {
                self.counters.count("announcement of another block");
            }
            let is_excused = self.nodes[peer].is_rolled_back || self.nodes[node].is_rolled_back || is_elsewhere;
            self.note(format!("node {node}: {name}: {fault}"));
            if !is_excused {
                self.violate(format!("node {node} faults an honest peer over {name}: {fault}"));
            }
        }
    }

    // --- opening ---

    /// The funder of a link opens the channel.
    pub fn open(&mut self, link: usize) {
        let [funder, _] = LINKS[link];
        if !self.wires[link].is_up || !matches!(self.end(funder, link).slot, Slot::Empty) {
            return;
        }
        self.opened += 1;
        let number = self.opened;
        for node in LINKS[link] {
            *self.end_mut(node, link) = End::new(number, node as u8);
        }
        let request = OpenRequest {
            remote_node: node_id(Self::peer_of(funder, link)),
            chain_hash: ChainHash::REGTEST,
            temporary_channel_id: ChannelId([number as u8 + 1; 32]),
            funding: FUNDING,
            push: PUSH,
            feerate: FeeratePerKw(1_000),
            channel_type: ChannelType { format: self.format, scid_alias: false, zero_conf: false },
            announce: true,
            local: local_params(),
            limits: OpeningLimits::default(),
            features: self.opening_features(),
            keys: self.end(funder, link).keys.clone(),
            keys_index: number,
            local_alias: ShortChannelId(number * 2),
        };
        let (opening, message) = Opening::propose(request).expect("the simulator asks for a usual channel");
        self.end_mut(funder, link).slot = Slot::Opening(Box::new(opening));
        let mut fx = Effects::default();
        fx.send(message);
        self.absorb(funder, link, fx);
    }

    fn opening_features(&self) -> OpeningFeatures {
        OpeningFeatures { link: self.features(), anchors: true, ..OpeningFeatures::default() }
    }

    fn deliver_to_opening(&mut self, node: usize, link: usize, message: Message) {
        let height = self.blocks.tip().height;
        let around = Surroundings { height, policy: policy(), is_taken: &|_| false };
        let mut fx = Effects::default();
        if let Message::OpenChannel(open) = message {
            let end = self.end(node, link);
            let params = AcceptParams {
                remote_node: node_id(Self::peer_of(node, link)),
                chain_hash: ChainHash::REGTEST,
                local: local_params(),
                limits: OpeningLimits::default(),
                features: self.opening_features(),
                minimum_depth: 3,
                is_zero_conf_allowed: false,
                keys: end.keys.clone(),
                keys_index: end.keys_index,
                local_alias: ShortChannelId(end.keys_index * 2 + 1),
            };
            let (opening, reply) = Opening::accept(*open, params, &around).expect("both have the same limits");
            self.end_mut(node, link).slot = Slot::Opening(Box::new(opening));
            fx.send(reply);
            return self.absorb(node, link, fx);
        }
        let Slot::Opening(opening) = &mut self.end_mut(node, link).slot else { return };
        match opening.on_message(message, &around, &Serial, &mut fx) {
            Ok(None) => {}
            Ok(Some(OpeningEvent::FundingNeeded { script_pubkey, amount })) => {
                let tx = self.funding_tx(script_pubkey, amount);
                let Slot::Opening(opening) = &mut self.end_mut(node, link).slot else { return };
                opening.fund(tx, 0, &around, &mut fx).expect("the funding transaction is what was asked for");
            }
            Ok(Some(OpeningEvent::Opened(channel))) => self.end_mut(node, link).slot = Slot::Channel(channel),
            Ok(Some(OpeningEvent::Refused { text })) => self.violate(format!("an honest opening was refused: {text}")),
            Err(fault) => self.violate(format!("an honest opening was faulted: {fault}")),
        }
        self.absorb(node, link, fx);
    }

    fn funding_tx(&mut self, script_pubkey: ScriptBuf, amount: Sat) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![self.blocks.coin(Amount::from_sat(amount.0 + 1_000))],
            output: vec![TxOut { value: amount.to_amount(), script_pubkey }],
        }
    }

    // --- the chain ---

    pub fn mine(&mut self) {
        let block = self.blocks.mine();
        for node in 0..3 {
            self.tell_block(node, &block);
        }
        self.tell_thief(&block);
    }

    pub fn tell_block(&mut self, node: usize, block: &Block) {
        let Block { height, id, ref txs } = *block;
        for link in Self::links_of(node) {
            let hash = bitcoin::hashes::Hash::all_zeros();
            self.with(node, link, |channel, fx| channel.on_chain(ChainEvent::Tip { height, block: hash }, fx));
            for (index, tx) in (0..).zip(txs) {
                let tx = Arc::new(tx.clone());
                self.with(node, link, |channel, fx| channel.on_chain(ChainEvent::Confirmed { tx, index }, fx));
            }
        }
        self.nodes[node].disk.submit(vec![Entry::Cursor { height, block: id }]);
    }

    /// The newest `depth` blocks make way for others.
    pub fn reorg(&mut self, depth: usize) {
        let gone = self.blocks.take_back(depth);
        for node in 0..3 {
            for block in gone.iter().rev() {
                self.tell_disconnected(node, block.height);
            }
            self.pause(node);
        }
        for block in gone.iter().rev() {
            self.tell_thief_disconnected(block.height);
        }
        for _ in 0..=gone.len() {
            self.mine();
        }
    }

    /// Between blocks that are gone and those that take their place, a node may flush, or crash.
    fn pause(&mut self, node: usize) {
        let waiting = self.nodes[node].disk.waiting();
        match self.pick(4) {
            0 | 1 => self.flush(node, waiting),
            2 => {
                let kept = self.pick(waiting as u64 + 1) as usize;
                self.note(format!("node {node} crashes amid a reorg: {kept} of {waiting} unflushed steps kept"));
                self.counters.count("fault: crash amid a reorg");
                self.crash(node, kept);
            }
            _ => {}
        }
    }

    pub fn tell_disconnected(&mut self, node: usize, height: millrace_wire::BlockHeight) {
        for link in Self::links_of(node) {
            self.with(node, link, |channel, fx| channel.on_chain(ChainEvent::Disconnected { height }, fx));
        }
    }

    // --- disks ---

    pub fn flush(&mut self, node: usize, count: usize) {
        let flushed = self.nodes[node].disk.flush(count);
        self.mirror(node, flushed);
        for link in Self::links_of(node) {
            self.release(node, link);
        }
        for link in Self::links_of(node) {
            self.check_replay(node, link);
        }
    }

    fn mirror(&mut self, node: usize, steps: Vec<crate::disk::Step>) {
        for entry in steps.into_iter().flatten() {
            if let Entry::Record { link, bytes } = entry {
                let record = Record::decode(&bytes).expect("it was encoded by this run");
                self.check_record(node, link, &record);
                self.end_mut(node, link).mirror_record(record);
            }
        }
    }

    /// The power goes, with `kept` of the steps under way on the disk; then the node starts again.
    pub fn crash(&mut self, node: usize, kept: usize) {
        for link in Self::links_of(node) {
            self.cut(link);
        }
        let kept = kept.min(self.nodes[node].disk.waiting());
        let flushed = self.nodes[node].disk.cut(kept);
        self.mirror(node, flushed);
        self.start(node);
    }

    /// A node starts from its disk.
    pub fn start(&mut self, node: usize) {
        self.forget_payments(node);
        for link in Self::links_of(node) {
            let records = self.nodes[node].disk.records(link);
            let durable = self.nodes[node].disk.durable_up_to();
            let end = self.end_mut(node, link);
            end.outbox.clear();
            end.held.clear();
            end.arrived_removals.clear();
            end.needs = durable;
            end.slot = Slot::Empty;
            end.mirror = None;
            end.past.clear();
            let (channel, facts) = end.restart(records);
            end.slot = channel.map_or(Slot::Empty, |channel| Slot::Channel(Box::new(channel)));
            let told: Vec<Fact> = facts
                .list
                .into_iter()
                .filter_map(|effect| match effect {
                    Effect::Fact(fact) => Some(fact),
                    _ => None,
                })
                .collect();
            let past = told.iter().filter_map(|fact| if let Fact::HtlcPast(past) = fact { Some(*past) } else { None });
            if self.bug != Some(Bug::LoseHtlcLog) {
                self.end_mut(node, link).past.extend(past);
            }
            self.fold_payments(node, &told);
        }
        let (gone, blocks) = match self.nodes[node].disk.cursor() {
            Some((height, id)) => self.blocks.since(height, id),
            None => (Vec::new(), self.blocks.chain[1..].to_vec()),
        };
        for height in gone {
            self.tell_disconnected(node, height);
        }
        let tip = self.nodes[node].disk.cursor().map(|(height, _)| height);
        if let Some(height) = tip {
            for link in Self::links_of(node) {
                let hash = bitcoin::hashes::Hash::all_zeros();
                self.with(node, link, |channel, fx| channel.on_chain(ChainEvent::Tip { height, block: hash }, fx));
            }
        }
        for block in &blocks {
            self.tell_block(node, block);
        }
        for link in Self::links_of(node) {
            self.with(node, link, |channel, fx| channel.resume(fx));
        }
        self.settle_payments(node);
    }

    /// Once everything is on the disk, replaying it must give what is there, less what is not durable.
    pub fn check_replay(&mut self, node: usize, link: usize) {
        if self.nodes[node].disk.waiting() > 0 {
            return;
        }
        let end = self.end(node, link);
        let Some(channel) = end.channel() else { return };
        let is_same = end.mirror.as_ref().is_some_and(|mirror| durable_of(mirror) == durable_of(channel));
        self.counters.count("checked: replay equals live");
        if !is_same {
            self.violate(format!("node {node}, link {link}: replaying the records differs from the live channel"));
        }
    }

    pub fn phase_name(&self, node: usize, link: usize) -> &'static str {
        self.end(node, link).channel().map_or("none", |channel| channel.phase().name())
    }

    /// Whether some channel waits for its funding transaction, or for `channel_ready`.
    pub fn is_opening(&self) -> bool {
        (0..2).any(|link| LINKS[link].iter().any(|node| self.phase_name(*node, link) == "opening"))
    }

    /// Whether no channel is on its way through the chain.
    pub fn is_chain_settled(&self) -> bool {
        (0..3).all(|node| {
            Self::links_of(node).all(|link| {
                let phase = self.end(node, link).channel().map(Channel::phase);
                !matches!(phase, Some(Phase::OnChain(_) | Phase::Closing(_)))
            })
        })
    }
}

fn preimages_in(fx: &Effects) -> Vec<Fact> {
    let facts = fx.list.iter().filter_map(|effect| match effect {
        Effect::Fact(fact @ Fact::OfferFulfilled { .. }) => Some(fact.clone()),
        _ => None,
    });
    facts.collect()
}

/// As usual, but for a delay that does not need a thousand blocks to pass.
fn local_params() -> LocalParams {
    LocalParams { to_self_delay: 30, ..LocalParams::usual_for(FUNDING) }
}

pub fn node_id(node: usize) -> secp256k1::PublicKey {
    node_key(node).public_key(secp256k1::SECP256K1)
}

pub fn node_key(node: usize) -> secp256k1::SecretKey {
    secp256k1::SecretKey::from_slice(&[node as u8 + 40; 32]).expect("not zero")
}

/// Everything durable of a channel.
fn durable_of(channel: &Channel) -> Vec<u8> {
    let mut bytes = Vec::new();
    channel.snapshot(&mut bytes);
    bytes
}

/// What a peer would read.
fn through_the_codec(message: &Message) -> Message {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).expect("messages fit");
    match Message::decode(&bytes) {
        Ok(millrace_wire::Decoded::Message(message)) => message,
        other => panic!("sent what decodes as {other:?}"),
    }
}
