//! What is made of announcements: whether they are wanted, whether their signatures hold, whether the chain knows their
//! outputs, and only then how often they come. Signatures before limits: nobody can use up what is another's.

use std::sync::Arc;
use std::time::Duration;

use millrace_routing::graph::{GossipFault, Unwanted, VerifiedChannel, VerifiedNode, VerifiedUpdate};
use millrace_wire::{ChannelAnnouncement, ChannelUpdate, NodeAnnouncement, ShortChannelId};

use super::Inner;
use super::book::From;
use super::funding::{Funding, Later};
use super::intake::count;

/// Pauses before a bitcoind that cannot be asked is asked again: the first, doubled up to the last.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A message that is verified and passed on.
pub(super) enum Announcement {
    Channel(Box<ChannelAnnouncement>),
    Node(Box<NodeAnnouncement>),
    Update(Box<ChannelUpdate>),
}

/// What was refused of some announcements.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// What no honest node says.
    pub(super) faults: Vec<GossipFault>,
    /// What is not taken for other reasons.
    pub(super) unwanted: Vec<Unwanted>,
    /// Channels without a funding output.
    pub(super) unfunded: Vec<ShortChannelId>,
}

impl Refused {
    fn fault(&mut self, fault: GossipFault) {
        count("invalid");
        self.faults.push(fault);
    }

    fn unwanted(&mut self, why: Unwanted) {
        count(if why == Unwanted::Known { "known" } else { "unwanted" });
        self.unwanted.push(why);
    }

    fn taken<T>(&mut self, result: Result<T, Unwanted>) {
        match result {
            Ok(_) => count("taken"),
            Err(why) => self.unwanted(why),
        }
    }

    fn and(mut self, other: Self) -> Self {
        self.faults.extend(other.faults);
        self.unwanted.extend(other.unwanted);
        self.unfunded.extend(other.unfunded);
        self
    }
}

/// Takes some announcements: channels first, since what else there is may be about them. Waits for as long as the chain
/// cannot be asked.
pub(super) async fn take(inner: &Arc<Inner>, batch: Vec<Announcement>, from: From) -> Refused {
    let (mut channels, mut updates, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    for announcement in batch {
        match announcement {
            Announcement::Channel(channel) => channels.push(*channel),
            Announcement::Update(update) => updates.push(*update),
            Announcement::Node(node) => nodes.push(*node),
        }
    }
    let mut refused = Refused::default();
    if !channels.is_empty() {
        let (verified, more) = inner.work(move |inner| verify_channels(inner, channels)).await;
        refused = refused.and(more).and(take_channels(inner, verified).await);
    }
    if !updates.is_empty() || !nodes.is_empty() {
        refused = refused.and(inner.work(move |inner| take_rest(inner, updates, nodes, from)).await);
    }
    inner.changed.notify_one();
    refused
}

fn verify_channels(inner: &Inner, mut channels: Vec<ChannelAnnouncement>) -> (Vec<VerifiedChannel>, Refused) {
    let mut refused = Refused::default();
    {
        let book = inner.read();
        channels.retain(|channel| match book.graph.check_channel(channel) {
            Ok(()) => true,
            Err(why) => {
                refused.unwanted(why);
                false
            }
        });
    }
    let mut verified = Vec::new();
    for channel in channels {
        match VerifiedChannel::verify(channel) {
            Ok(channel) => verified.push(channel),
            Err(fault) => refused.fault(fault),
        }
    }
    (verified, refused)
}

fn id_of(channel: &VerifiedChannel) -> ShortChannelId {
    ShortChannelId(channel.announcement().parsed().contents.short_channel_id)
}

/// Looks the funding outputs up, and takes those that are there. If the chain has changed meanwhile, again: the output may
/// have been spent in a block that came before anybody knew that it was to be watched.
async fn take_channels(inner: &Arc<Inner>, mut left: Vec<VerifiedChannel>) -> Refused {
    let mut refused = Refused::default();
    let mut pause = PAUSE_MIN;
    while !left.is_empty() {
        let (changes, there, absent) = inner.work(move |inner| split_by_height(inner, left)).await;
        refused = refused.and(without_funding(&absent));
        left = there;
        match inner.funding.look_up(left.iter().map(id_of).collect()).await {
            Ok(found) => {
                let (again, more) = inner.work(move |inner| add_channels(inner, left, found, changes)).await;
                refused = refused.and(more);
                left = again;
            }
            Err(Later(reason)) => {
                tracing::debug!(reason, channels = left.len(), "funding outputs cannot be looked up now");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
    refused
}

/// Those of blocks that are there, and those of blocks to come, of which bitcoind need not be asked.
fn split_by_height(inner: &Inner, channels: Vec<VerifiedChannel>) -> (u64, Vec<VerifiedChannel>, Vec<ShortChannelId>) {
    let (changes, height) = {
        let book = inner.read();
        (book.chain_changes, book.height)
    };
    let is_there = |channel: &VerifiedChannel| height.is_none_or(|height| id_of(channel).parts().0 <= height.0);
    let (there, absent): (Vec<_>, Vec<_>) = channels.into_iter().partition(is_there);
    (changes, there, absent.iter().map(id_of).collect())
}

fn without_funding(ids: &[ShortChannelId]) -> Refused {
    ids.iter().for_each(|_| count("unfunded"));
    Refused { unfunded: ids.to_vec(), ..Refused::default() }
}

fn add_channels(
    inner: &Inner,
    channels: Vec<VerifiedChannel>,
    found: Vec<Option<Funding>>,
    changes: u64,
) -> (Vec<VerifiedChannel>, Refused) {
    let mut refused = Refused::default();
    let now = Inner::now();
    let mut book = inner.write();
    if book.chain_changes != changes {
        return (channels, refused);
    }
    for (channel, funding) in channels.iter().zip(found) {
        match funding.filter(|funding| funding.script == *channel.funding_script()) {
            Some(Funding { txid, amount, .. }) => refused.taken(book.add_channel(channel, txid, amount, now)),
            None => refused = refused.and(without_funding(&[id_of(channel)])),
        }
    }
    (Vec::new(), refused)
}

fn take_rest(inner: &Inner, updates: Vec<ChannelUpdate>, nodes: Vec<NodeAnnouncement>, from: From) -> Refused {
    let mut refused = Refused::default();
    let now = Inner::now();
    let (mut wanted_updates, mut wanted_nodes) = (Vec::new(), Vec::new());
    {
        let book = inner.read();
        for update in updates {
            match book.graph.sender_of(&update, now) {
                Ok(by) => wanted_updates.push((update, by)),
                Err(why) => refused.unwanted(why),
            }
        }
        for node in nodes {
            match book.graph.check_node(&node, now) {
                Ok(()) => wanted_nodes.push(node),
                Err(why) => refused.unwanted(why),
            }
        }
    }
    let (mut good_updates, mut good_nodes) = (Vec::new(), Vec::new());
    for (update, by) in wanted_updates {
        match VerifiedUpdate::verify(update, by) {
            Ok(update) => good_updates.push(update),
            Err(fault) => refused.fault(fault),
        }
    }
    for node in wanted_nodes {
        match VerifiedNode::verify(node) {
            Ok(node) => good_nodes.push(node),
            Err(fault) => refused.fault(fault),
        }
    }
    let mut news = Vec::new();
    {
        let mut book = inner.write();
        for update in &good_updates {
            refused.taken(book.apply_update(update, from, now, &mut news));
        }
        for node in &good_nodes {
            refused.taken(book.apply_node(node, from, now, &mut news));
        }
    }
    inner.pass_on(news);
    refused
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::{Block, BlockHash, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, Witness};

    use super::super::Gossip;
    use super::super::book::outpoint_of;
    use super::super::made_up::{Outputs, channel, start};
    use super::*;
    use crate::chain_feed::BlockFollower;

    const HEIGHT: u32 = 100;

    fn id() -> ShortChannelId {
        ShortChannelId::new(HEIGHT, 1, 0).unwrap()
    }

    fn block(spent: OutPoint) -> Arc<Block> {
        let input = TxIn {
            previous_output: spent,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        };
        let tx =
            Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output: Vec::new() };
        let genesis = bitcoin::constants::genesis_block(Network::Regtest);
        Arc::new(Block { txdata: vec![tx], ..genesis })
    }

    /// What becomes of a channel if something happens after its output was looked up, and before that is answered: whether
    /// it is taken, and how often its output is looked up.
    async fn taken_across(happens: impl AsyncFnOnce(&Gossip, &Outputs, OutPoint)) -> (bool, usize) {
        let (outputs, mut looks) = Outputs::none();
        let (announcement, funding) = channel(id());
        outputs.put(id(), funding.clone());
        let gossip = start(Arc::clone(&outputs));
        let inner = Arc::clone(&gossip.inner);
        let batch = vec![Announcement::Channel(Box::new(announcement))];
        let taking = tokio::spawn(async move { take(&inner, batch, From::Own).await });
        let look = looks.recv().await.unwrap();
        // The next one waits for nothing.
        drop(looks);
        happens(&gossip, &outputs, outpoint_of(id(), funding.txid)).await;
        drop(look);
        let refused = taking.await.unwrap();
        let channel = gossip.channel(id()).await;
        assert!(channel.as_ref().is_none_or(|channel| channel.spent_at.is_none()));
        assert_eq!(refused.unfunded, if channel.is_some() { Vec::new() } else { vec![id()] });
        gossip.stop().await;
        (channel.is_some(), outputs.asked())
    }

    #[tokio::test]
    async fn a_channel_that_is_spent_before_it_is_known_does_not_stay() {
        let spent = taken_across(async |gossip, outputs, outpoint| {
            outputs.remove(id());
            gossip.on_connected(HEIGHT + 6, block(outpoint)).await;
        });
        assert_eq!(spent.await, (false, 2));
    }

    #[tokio::test]
    async fn nor_does_one_whose_block_is_taken_off_before_it_is_known() {
        let taken_off = taken_across(async |gossip, outputs, _| {
            outputs.remove(id());
            gossip.on_disconnected(HEIGHT, BlockHash::from_raw_hash(bitcoin::hashes::Hash::all_zeros())).await;
        });
        assert_eq!(taken_off.await, (false, 1), "bitcoind is not asked for a block that is to come");
    }

    #[tokio::test]
    async fn one_that_another_block_leaves_alone_is_taken_after_a_second_look() {
        let other = OutPoint::null();
        let left_alone = taken_across(async |gossip, _, _| gossip.on_connected(HEIGHT + 6, block(other)).await);
        assert_eq!(left_alone.await, (true, 2));
        assert_eq!(taken_across(async |_, _, _| {}).await, (true, 1), "and without a block, after one");
    }
}
