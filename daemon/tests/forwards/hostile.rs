//! Peers that break the rules of forwarding, or use them. Mallory has two channels with Bob, and between them is a tap, so
//! that he says what the test wants. What he does costs him one channel at most: by the other one, and over Bob's other
//! peers, payments go on.

mod rules;
mod uses;

use millrace_channel::Fact;
use millrace_channel::ledger::htlc::Removal;
use millrace_wire::message::AttributionData;
use millrace_wire::{ChannelId, HtlcId, Message, PaymentHash, Preimage};
use millraced::channels::ChannelSnapshot;

use crate::line::{Line, Outcome, Plan, Sent, alias, find, open, plain, usable};
use crate::support::tap::{Tap, To};
use crate::support::{FakeChain, Homes, TestNode, eventually};
use crate::world::{World, rand_bytes, start};
use crate::{homes, tell_height};

const AMOUNT: u64 = 5_000_000;

/// Alice, Bob and Mallory. Bob has opened one channel with Mallory that is to stay.
struct Stage {
    line: Line,
    bob: World,
    mallory: TestNode,
    tap: Tap,
    steady: ChannelId,
    homes: Homes<3>,
}

/// An HTLC that has come to Mallory over a channel that he may lose.
struct Held {
    channel_id: ChannelId,
    id: HtlcId,
    proof: Preimage,
    sent: Sent,
}

fn secret() -> Preimage {
    Preimage::new([rand_bytes(), rand_bytes()].concat().try_into().unwrap())
}

impl Stage {
    async fn new() -> Self {
        let (chain, homes) = (FakeChain::new(), homes());
        let (alice, mallory) = (plain(1, &chain, homes[0].path()).await, plain(66, &chain, homes[2].path()).await);
        let bob = start(homes[1].path(), &chain).await;
        let line = Line::new(alice, &bob, chain).await;
        let tap = Tap::between(bob.node_key, mallory.key, mallory.address).await;
        bob.node.peers().connect(mallory.id(), &tap.address.to_string()).await.unwrap();
        let steady = open(&bob.node, &mallory.node, mallory.id(), &line.chain, 2_000_000).await;
        let stage = Self { line, bob, mallory, tap, steady, homes };
        stage.tell_height();
        stage
    }

    fn tell_height(&self) {
        tell_height(&self.line, &[&self.bob]);
    }

    fn mine(&self, blocks: u32) {
        self.line.chain.mine(blocks);
        self.tell_height();
    }

    /// Mallory says nothing of channels any more. He still listens, and answers pings.
    fn silence_mallory(&self) {
        self.tap.rewrite(|to, message| {
            let is_dumb = to == To::Left && message.channel_id().is_some();
            if is_dumb { Vec::new() } else { vec![(to, message)] }
        });
    }

    /// Blocks into which nothing comes that was broadcast.
    fn mine_empty(&self, blocks: u32) {
        self.line.chain.mine_empty(blocks);
        self.tell_height();
    }

    /// One more channel, from Bob or from Mallory.
    async fn open(&self, is_bobs: bool) -> ChannelId {
        let (bob, mallory) = (&self.bob, &self.mallory);
        let chain = &self.line.chain;
        let channel_id = match is_bobs {
            true => open(&bob.node, &mallory.node, mallory.id(), chain, 1_000_000).await,
            false => open(&mallory.node, &bob.node, bob.node_id, chain, 1_000_000).await,
        };
        self.tell_height();
        channel_id
    }

    /// From Alice over Bob to Mallory.
    fn plan(&self, over: ChannelId) -> Plan {
        let height = self.line.chain.height();
        Plan::new(self.bob.node_id, self.mallory.id(), alias(&self.bob, over), AMOUNT, height)
    }

    async fn hold(&self, over: ChannelId) -> Held {
        let proof = secret();
        let sent = self.plan(over).to(&proof).build();
        self.line.offer(&sent).await;
        let (channel_id, id) = self.came(&proof.hash()).await;
        assert_eq!(channel_id, over);
        Held { channel_id, id, proof, sent }
    }

    /// An HTLC that is irrevocably with Mallory.
    async fn came(&self, hash: &PaymentHash) -> (ChannelId, HtlcId) {
        eventually("it comes to Mallory", || came(&self.mallory, hash)).await
    }

    /// Nobody but the channel in question has lost anything.
    async fn others_go_on(&self) {
        for node in [&self.bob.node, &self.mallory.node] {
            usable(node, self.steady).await;
        }
        self.pay_over(self.steady).await;
    }

    async fn pay_over(&self, over: ChannelId) {
        let held = self.hold(over).await;
        self.fulfill(&held).await;
        assert!(matches!(self.line.outcome(&held.sent).await, Outcome::Paid(paid, _) if paid == held.proof));
    }

    async fn fulfill(&self, held: &Held) {
        let registry = self.mallory.node.registry();
        registry.fulfill(held.channel_id, held.id, held.proof.clone(), None, Vec::new()).await.unwrap().unwrap();
    }

    async fn bobs(&self, channel_id: ChannelId, what: &str, is_so: impl Fn(&ChannelSnapshot) -> bool) {
        self.bob.wait_until(channel_id, what, is_so).await;
    }

    /// What Bob has told Mallory of what is wrong.
    fn complaints(&self, since: usize) -> Vec<Message> {
        let told = self.tap.said(since).into_iter().filter(|(to, _)| *to == To::Right).map(|(_, message)| message);
        told.filter(|message| matches!(message, Message::Error(_) | Message::Warning(_))).collect()
    }

    /// Both have found each other again.
    async fn reconnected(&self, since: usize, channels: [ChannelId; 2]) {
        eventually("both say where they stand", || {
            let said = self.tap.said(since);
            let has_said = |to: To, id: ChannelId| {
                said.iter().any(|(whom, message)| {
                    *whom == to && matches!(message, Message::ChannelReestablish(one) if one.channel_id == id)
                })
            };
            channels.iter().all(|id| has_said(To::Left, *id) && has_said(To::Right, *id)).then_some(())
        })
        .await;
        for id in channels {
            usable(&self.bob.node, id).await;
            usable(&self.mallory.node, id).await;
        }
    }

    async fn stop(self) {
        let Self { line, bob, mallory, tap, homes, .. } = self;
        drop(tap);
        bob.stop().await;
        line.alice.node.stop().await;
        mallory.node.stop().await;
        drop(homes);
    }
}

fn came(node: &TestNode, hash: &PaymentHash) -> Option<(ChannelId, HtlcId)> {
    node.fold.news().iter().find_map(|news| {
        let millraced::facts::Source::Channel(channel_id) = news.source else { return None };
        news.items.iter().find_map(|item| match item {
            millraced::facts::Item::Fact { fact: Fact::HtlcReceived { id, payment_hash, .. }, .. }
                if payment_hash == hash =>
            {
                Some((channel_id, *id))
            }
            _ => None,
        })
    })
}

fn resolved(node: &TestNode, sent: &Sent) -> Option<Removal> {
    find(&node.fold, |fact| match fact {
        Fact::OfferResolved { origin, removal, .. } if *origin == sent.offer.origin => Some(removal.clone()),
        _ => None,
    })
}

/// Of nobody.
fn attribution() -> Option<Box<AttributionData>> {
    Some(Box::new(AttributionData { hold_times: [0xff; 80], hmacs: [0xff; 840] }))
}
