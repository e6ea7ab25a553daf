//! One end of a channel with everything around it that a test needs: a journal in memory, an outbox, the facts it
//! told. Two of them make a channel; `exchange` lets them talk until both are silent.

use std::collections::VecDeque;

use millrace_channel::channel::{Channel, Policy};
use millrace_channel::curve::Serial;
use millrace_channel::effect::{Broadcast, Effect, Effects, Fact, Watch};
use millrace_channel::input::{Command, LinkEvent, LinkFeatures, Millis, Offer};
use millrace_channel::keys::{ChannelKeys, Identity};
use millrace_channel::ledger::htlc::Origin;
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::record::{Opened, Record, Signature64};
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::{CommitmentFormat, Terms};
use millrace_channel::{ChainEvent, PeerFault, Refusal};
use millrace_wire::message::ChannelReady;
use millrace_wire::{
    BlockHeight, ChainHash, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Message, Msat, OnionPacket, Preimage,
    ShortChannelId,
};

use super::pair::{Pair, State, node_key};

/// The features of both test nodes.
pub const FEATURES: LinkFeatures = LinkFeatures { simple_close: true, shutdown_anysegwit: true };

/// The height at which test channels are opened.
pub const HEIGHT: BlockHeight = BlockHeight(100);

/// One end.
pub(crate) struct Node {
    pub(crate) channel: Channel,
    pub(crate) fx: Effects,
    /// Every record so far, encoded.
    pub(crate) journal: Vec<Vec<u8>>,
    pub(crate) outbox: VecDeque<Message>,
    pub(crate) facts: Vec<Fact>,
    pub(crate) broadcasts: Vec<Broadcast>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) disconnects: Vec<String>,
    /// What the wallet was asked for last.
    pub(crate) claims: Option<Claims>,
    pub(crate) keys: ChannelKeys,
    pub(crate) policy: Policy,
    pub(crate) now: Millis,
}

/// What a pair of nodes is made of.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) format: CommitmentFormat,
    pub(crate) funder: Side,
    pub(crate) feerate: FeeratePerKw,
    pub(crate) push: Msat,
    pub(crate) policy: Policy,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: CommitmentFormat::Anchors,
            funder: Side::Local,
            feerate: FeeratePerKw(1_000),
            push: Msat(5_000_000_000),
            policy: Policy::default(),
        }
    }
}

/// Two ends of a channel that is ready: `channel_ready` exchanged, both at commitment 0. The second one is given so
/// that `change` may alter the terms first, as the first sees them.
pub(crate) fn pair_with(options: Options, change: impl FnOnce(&mut Terms)) -> (Node, Node) {
    let (mut alice, mut bob) = opened_pair(options, |terms| {
        terms.minimum_depth = 0;
        change(terms);
    });
    let (ready_alice, ready_bob) = (ready_of(&alice), ready_of(&bob));
    for (node, ready) in [(&mut alice, ready_bob), (&mut bob, ready_alice)] {
        // Said again: changes nothing.
        node.receive(ready).unwrap();
        assert!(node.facts.contains(&Fact::Ready), "the pair is not ready");
    }
    (alice, bob)
}

/// Two ends of a channel that is in no block yet, connected at the height it was opened at.
pub(crate) fn opened_pair(options: Options, change: impl FnOnce(&mut Terms)) -> (Node, Node) {
    let (alice_keys, bob_keys) = (ChannelKeys::from_seed(&[1; 32]), ChannelKeys::from_seed(&[2; 32]));
    let mut pair = Pair::new(alice_keys, bob_keys, options.format, options.funder);
    pair.terms.push = options.push;
    change(&mut pair.terms);
    let mirrored = pair.mirrored();
    let mut alice = Node::open(&pair, &mirrored, options);
    let mut bob = Node::open(&mirrored, &pair, options);
    connect(&mut alice, &mut bob);
    alice.tip(HEIGHT);
    bob.tip(HEIGHT);
    exchange(&mut alice, &mut bob);
    (alice, bob)
}

/// Two ends of an ordinary channel that is ready.
pub(crate) fn normal_pair() -> (Node, Node) {
    pair_with(Options::default(), |_| {})
}

fn ready_of(node: &Node) -> Message {
    Message::ChannelReady(ChannelReady {
        channel_id: node.channel.id(),
        next_per_commitment_point: node.keys.commitment_point(CommitmentNumber(1)),
        alias: Some(node.channel.aliases().0),
    })
}

/// A new connection, and `channel_reestablish` both ways.
pub(crate) fn connect(alice: &mut Node, bob: &mut Node) {
    alice.link(LinkEvent::Up { features: FEATURES });
    bob.link(LinkEvent::Up { features: FEATURES });
    exchange(alice, bob);
}

/// The connection goes, with all that was under way on it.
pub(crate) fn disconnect(alice: &mut Node, bob: &mut Node) {
    alice.link(LinkEvent::Down);
    bob.link(LinkEvent::Down);
    alice.outbox.clear();
    bob.outbox.clear();
}

/// Lets both talk until they are silent, one message each in turn; a fault of either fails the test.
pub(crate) fn exchange(alice: &mut Node, bob: &mut Node) {
    for _ in 0..10_000 {
        alice.commit();
        bob.commit();
        let from_alice: Vec<Message> = alice.outbox.drain(..).collect();
        let from_bob: Vec<Message> = bob.outbox.drain(..).collect();
        if from_alice.is_empty() && from_bob.is_empty() {
            return;
        }
        for message in from_alice {
            bob.receive(message).unwrap();
        }
        for message in from_bob {
            alice.receive(message).unwrap();
        }
    }
    panic!("the two never fell silent");
}

impl Node {
    fn open(own: &Pair, theirs: &Pair, options: Options) -> Self {
        let number = CommitmentNumber(0);
        let capacity = own.terms.capacity.to_msat();
        let funder = capacity.checked_sub(own.terms.push).unwrap();
        let mut balances = Both { local: own.terms.push, remote: own.terms.push };
        *balances.of_mut(own.terms.funder) = funder;
        // Our commitment 0, signed by the peer.
        let ours = State { side: Side::Local, number, feerate: options.feerate, balances, htlcs: Vec::new() };
        let (commitment, _) = theirs.build(&ours.mirrored());
        let signature = Signature64(commitment.sign(&theirs.terms, &theirs.local));
        let opened = Opened {
            terms: own.terms.clone(),
            keys_index: 7,
            feerate: options.feerate,
            signature,
            remote_first_point: own.remote.commitment_point(number),
            funding_tx: None,
            opened_at: HEIGHT,
            local_alias: ShortChannelId(if own.terms.funder == Side::Local { 11 } else { 22 }),
        };
        let mut journal = Vec::new();
        let mut bytes = Vec::new();
        Record::Opened(Box::new(opened.clone())).encode(&mut bytes);
        journal.push(bytes);
        let identity = Identity::new(node_key(&own.local), ChainHash::BITCOIN);
        let keys = own.local.clone().of_node(identity);
        let channel = Channel::from_opened(opened, keys.clone(), options.policy).unwrap();
        Self {
            channel,
            fx: Effects::default(),
            journal,
            outbox: VecDeque::new(),
            facts: Vec::new(),
            broadcasts: Vec::new(),
            watches: Vec::new(),
            disconnects: Vec::new(),
            claims: None,
            keys,
            policy: options.policy,
            now: Millis(0),
        }
    }

    /// Takes the effects of the last inputs.
    pub(crate) fn drain(&mut self) {
        let fx = std::mem::take(&mut self.fx);
        for effect in fx.list {
            match effect {
                Effect::Journal(range) => self.journal.push(fx.journal[range].to_vec()),
                Effect::Send(message) => self.outbox.push_back(through_the_wire(&message)),
                Effect::Disconnect(why) => self.disconnects.push(why),
                Effect::Broadcast(broadcast) => self.broadcasts.push(broadcast),
                Effect::Watch(watch) => self.watches.push(watch),
                Effect::Claim(claims) => self.claims = Some(*claims),
                Effect::Fact(fact) => self.facts.push(fact),
            }
        }
    }

    pub(crate) fn receive(&mut self, message: Message) -> Result<(), PeerFault> {
        let result = self.channel.on_message(message, &Serial, &mut self.fx);
        self.drain();
        result
    }

    pub(crate) fn command(&mut self, command: Command) -> Result<(), Refusal> {
        let result = self.channel.on_command(command, &mut self.fx);
        self.drain();
        result
    }

    pub(crate) fn commit(&mut self) {
        self.channel.commit(self.now, &Serial, &mut self.fx);
        self.drain();
    }

    pub(crate) fn link(&mut self, event: LinkEvent) {
        self.channel.on_link(event, &mut self.fx);
        self.drain();
    }

    pub(crate) fn chain(&mut self, event: ChainEvent) {
        self.channel.on_chain(event, &mut self.fx);
        self.drain();
    }

    pub(crate) fn tip(&mut self, height: BlockHeight) {
        self.chain(ChainEvent::Tip { height, block: bitcoin::hashes::Hash::all_zeros() });
    }

    pub(crate) fn available(&self) -> Msat {
        self.channel.available_to_send()
    }

    /// Offers an HTLC to the hash of `preimage_of(seed)`.
    pub(crate) fn try_offer(&mut self, amount: Msat, seed: u8) -> Result<HtlcId, Refusal> {
        let id = self.channel.offer(offer(amount, seed), &mut self.fx);
        self.drain();
        id
    }

    pub(crate) fn offer(&mut self, amount: Msat, seed: u8) -> HtlcId {
        self.try_offer(amount, seed).unwrap()
    }

    pub(crate) fn fulfill(&mut self, id: HtlcId, seed: u8) {
        self.command(Command::Fulfill { id, preimage: preimage_of(seed), attribution: None, is_durable: false })
            .unwrap();
    }

    pub(crate) fn fail(&mut self, id: HtlcId) {
        self.command(Command::Fail { id, reason: vec![7; 292], attribution: None }).unwrap();
    }

    pub(crate) fn balances(&self) -> Both<Msat> {
        self.channel.ledger().settled()
    }

    /// The node again, from nothing but the records that `keep` lets through.
    pub(crate) fn replayed(&self, keep: usize) -> Channel {
        let mut records = self.journal[..keep].iter().map(|bytes| Record::decode(bytes).unwrap());
        let Some(Record::Opened(opened)) = records.next() else { panic!("the first record is not Opened") };
        let mut channel = Channel::from_opened(*opened, self.keys.clone(), self.policy).unwrap();
        let mut fx = Effects::default();
        for record in records {
            channel.replay(record, &mut fx).unwrap();
        }
        channel
    }

    /// Crash and restart: what replaying arrives at must be the live channel, less what only the link knew.
    pub(crate) fn restart(&mut self) {
        self.link(LinkEvent::Down);
        let replayed = self.replayed(self.journal.len());
        assert!(replayed.is_same_state(&self.channel), "replay differs from live\n{replayed:#?}\n{:#?}", self.channel);
        let mut bytes = Vec::new();
        replayed.snapshot(&mut bytes);
        let restored = Channel::restore(&bytes, self.policy, |_| self.keys.clone()).unwrap();
        assert!(restored.is_same_state(&replayed), "a snapshot differs from what it was taken of");
        self.channel = restored;
        self.outbox.clear();
        self.channel.resume(&mut self.fx);
        self.drain();
        self.tip(HEIGHT);
    }
}

/// What a peer would read.
fn through_the_wire(message: &Message) -> Message {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    match Message::decode(&bytes).unwrap() {
        millrace_wire::Decoded::Message(message) => message,
        other => panic!("sent what decodes as {other:?}"),
    }
}

pub(crate) fn preimage_of(seed: u8) -> Preimage {
    Preimage::new([seed; 32])
}

pub(crate) fn offer(amount: Msat, seed: u8) -> Offer {
    Offer {
        amount,
        payment_hash: preimage_of(seed).hash(),
        cltv_expiry: CltvExpiry(HEIGHT.0 + 40),
        onion: Box::new(OnionPacket([seed; 1366])),
        path_key: None,
        origin: Origin::Payment { id: [seed; 32], attempt: 0 },
    }
}
