//! The two ends sign an announcement of their channel (BOLT 7), whenever and in whatever order they see the blocks.

use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, Transaction, TxIn, Txid};
use millrace_channel::input::CloseOrder;
use millrace_channel::tx::funding::output_of;
use millrace_channel::{ANNOUNCE_DEPTH, ChainEvent, Command, Fact, Reaction};
use millrace_wire::{
    AnnouncementSignatures, BlockHeight, ChainHash, Decoded, FeeratePerKw, Message, Msat, ShortChannelId,
};
use secp256k1::SECP256K1;

use crate::support::node::{HEIGHT, Node, Options, connect, disconnect, exchange, opened_pair};
use crate::support::pair::node_key;

/// The block of the funding transaction.
const CONFIRMED: u32 = HEIGHT.0 + 1;
/// The block in which it is deep enough.
const DEEP: u32 = CONFIRMED + ANNOUNCE_DEPTH - 1;

struct World {
    alice: Node,
    bob: Node,
    tx: Transaction,
}

/// A channel that is to be announced; its funding transaction has one confirmation, and both are ready.
fn public() -> World {
    world(true)
}

fn world(announce: bool) -> World {
    let previous_output = OutPoint { txid: Txid::from_byte_array([0xcc; 32]), vout: 0 };
    let input = vec![TxIn { previous_output, ..TxIn::default() }];
    let mut tx = Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input, output: Vec::new() };
    let (alice, bob) = opened_pair(Options { push: Msat(1_000_000_000), ..Options::default() }, |terms| {
        (terms.minimum_depth, terms.announce) = (1, announce);
        tx.output.push(output_of(terms));
        terms.funding_outpoint = OutPoint { txid: tx.compute_txid(), vout: 0 };
    });
    let mut world = World { alice, bob, tx };
    world.confirm(CONFIRMED, 1);
    exchange(&mut world.alice, &mut world.bob);
    world
}

impl World {
    fn confirm(&mut self, height: u32, index: u32) {
        for node in [&mut self.alice, &mut self.bob] {
            confirm(node, &self.tx, height, index);
        }
    }

    fn deepen(&mut self) {
        deepen(&mut self.alice);
        deepen(&mut self.bob);
    }

    fn exchange(&mut self) {
        exchange(&mut self.alice, &mut self.bob);
    }

    fn reconnect(&mut self) {
        disconnect(&mut self.alice, &mut self.bob);
        connect(&mut self.alice, &mut self.bob);
    }

    /// Both have the same announcement, and it is what BOLT 7 wants of it.
    fn check_announced(&self, scid: &str) {
        let [alice, bob] = [&self.alice, &self.bob].map(|node| announcement(node).expect("it is not announced"));
        assert_eq!(alice, bob);
        let message = [&256_u16.to_be_bytes()[..], &alice].concat();
        let Ok(Decoded::Message(Message::ChannelAnnouncement(read))) = Message::decode(&message) else {
            panic!("no channel_announcement: {}", hex::encode(alice));
        };
        let digest = secp256k1::Message::from_digest(read.signed_hash());
        let message = read.parsed();
        let contents = &message.contents;
        assert_eq!(contents.chain_hash.to_bytes(), ChainHash::BITCOIN.to_bytes());
        assert_eq!(ShortChannelId(contents.short_channel_id).to_string(), scid);
        assert_eq!(contents.features, lightning::types::features::ChannelFeatures::empty());
        assert!(contents.node_id_1.as_slice() < contents.node_id_2.as_slice());
        let mut ends = [&self.alice, &self.bob].map(|node| {
            let node_id = node_key(&node.keys).public_key(SECP256K1);
            (node_id.serialize(), node.keys.basepoints().funding.serialize())
        });
        ends.sort_unstable();
        let said = [
            (contents.node_id_1, contents.bitcoin_key_1, message.node_signature_1, message.bitcoin_signature_1),
            (contents.node_id_2, contents.bitcoin_key_2, message.node_signature_2, message.bitcoin_signature_2),
        ];
        for ((node, funding), (node_id, bitcoin_key, node_signature, bitcoin_signature)) in ends.into_iter().zip(said) {
            assert_eq!((node_id.as_slice(), bitcoin_key.as_slice()), (&node[..], &funding[..]));
            let [node, funding] = [node, funding].map(|key| secp256k1::PublicKey::from_slice(&key).unwrap());
            SECP256K1.verify_ecdsa(&digest, &node_signature, &node).unwrap();
            SECP256K1.verify_ecdsa(&digest, &bitcoin_signature, &funding).unwrap();
        }
    }
}

fn confirm(node: &mut Node, tx: &Transaction, height: u32, index: u32) {
    node.tip(BlockHeight(height));
    node.chain(ChainEvent::Confirmed { tx: Arc::new(tx.clone()), index });
}

fn deepen(node: &mut Node) {
    (CONFIRMED + 1..=DEEP).for_each(|height| node.tip(BlockHeight(height)));
}

/// What `announced` shows; the facts have told the same.
fn announcement(node: &Node) -> Option<Vec<u8>> {
    let shown = node.channel.announced().map(|(_, bytes)| bytes.to_vec());
    if let Some(shown) = &shown {
        assert!(node.facts.contains(&Fact::Announced { announcement: shown.clone() }), "nobody was told");
    }
    shown
}

/// The `announcement_signatures` that wait to be sent, taken out of the others.
fn said(node: &mut Node) -> Vec<AnnouncementSignatures> {
    let signatures = |message: &Message| match message {
        Message::AnnouncementSignatures(signatures) => Some(*signatures),
        _ => None,
    };
    let found = node.outbox.iter().filter_map(signatures).collect();
    node.outbox.retain(|message| signatures(message).is_none());
    found
}

mod a_public_channel {
    use super::*;

    #[test]
    fn is_announced_once_it_has_six_confirmations() {
        let mut world = public();
        for height in CONFIRMED + 1..DEEP {
            world.alice.tip(BlockHeight(height));
            world.bob.tip(BlockHeight(height));
            assert_eq!((said(&mut world.alice), said(&mut world.bob)), (vec![], vec![]), "in block {height}");
        }
        world.alice.tip(BlockHeight(DEEP));
        world.bob.tip(BlockHeight(DEEP));
        world.exchange();
        world.check_announced("101x1x0");
        assert_eq!(world.alice.channel.announced().map(|(height, _)| height), Some(BlockHeight(DEEP)));
    }

    #[test]
    fn says_nothing_more_once_both_have_signed() {
        let mut world = public();
        world.deepen();
        world.exchange();
        world.alice.tip(BlockHeight(DEEP + 1));
        world.alice.facts.clear();
        world.reconnect();
        assert_eq!(said(&mut world.alice), []);
        assert!(!world.alice.facts.iter().any(|fact| matches!(fact, Fact::Announced { .. })), "told twice");
    }

    /// One sees the block before the other, whose view is then too shallow, or has not the funding at all.
    #[test]
    fn takes_signatures_that_come_before_the_block_does() {
        let mut world = public();
        deepen(&mut world.alice);
        world.exchange();
        assert_eq!((announcement(&world.alice), announcement(&world.bob)), (None, None));
        deepen(&mut world.bob);
        world.exchange();
        world.check_announced("101x1x0");
    }

    #[test]
    fn takes_signatures_that_come_before_the_funding_transaction_does() {
        let mut world = public();
        // Bob has lost the block for a moment.
        world.bob.chain(ChainEvent::Disconnected { height: BlockHeight(CONFIRMED) });
        deepen(&mut world.alice);
        world.exchange();
        confirm(&mut world.bob, &world.tx, CONFIRMED, 1);
        deepen(&mut world.bob);
        world.exchange();
        world.check_announced("101x1x0");
        assert!(world.bob.disconnects.is_empty());
    }

    /// Only the second confirmation of `channel_ready` was late: nothing but it was missing.
    #[test]
    fn is_announced_as_soon_as_the_peer_is_ready() {
        let mut world = public();
        disconnect(&mut world.alice, &mut world.bob);
        world.deepen();
        world.exchange();
        assert_eq!(announcement(&world.alice), None);
        connect(&mut world.alice, &mut world.bob);
        world.check_announced("101x1x0");
    }

    #[test]
    fn is_not_announced_any_more_once_it_closes() {
        let mut world = public();
        let script = bitcoin::ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::all_zeros());
        let (feerate, feerate_max) = (FeeratePerKw(500), FeeratePerKw(2_000));
        world.alice.command(Command::Close(CloseOrder { script, feerate, feerate_max })).unwrap();
        world.deepen();
        assert_eq!(said(&mut world.alice), []);
        let [theirs] = said(&mut world.bob)[..] else { panic!("Bob does not know yet") };
        world.alice.receive(Message::AnnouncementSignatures(theirs)).unwrap();
        assert_eq!(announcement(&world.alice), None);
    }
}

#[test]
fn a_private_channel_is_not_announced_whoever_asks() {
    let mut world = world(false);
    world.deepen();
    assert_eq!((said(&mut world.alice), said(&mut world.bob)), (vec![], vec![]));
    let mut other = public();
    other.deepen();
    let [theirs] = said(&mut other.bob)[..] else { panic!("Bob has not signed") };
    world.alice.receive(Message::AnnouncementSignatures(theirs)).unwrap();
    assert_eq!((announcement(&world.alice), world.alice.disconnects.len()), (None, 0));
}

mod a_cut {
    use super::*;

    /// Ours are lost on their way, or theirs, or both.
    #[test]
    fn anywhere_between_the_two_signatures_only_delays_it() {
        for (alice_arrives, bob_arrives) in [(false, false), (true, false), (false, true)] {
            let mut world = public();
            world.deepen();
            let ([from_alice], [from_bob]) = (&said(&mut world.alice)[..], &said(&mut world.bob)[..]) else {
                panic!("both have signed once")
            };
            if alice_arrives {
                world.bob.receive(Message::AnnouncementSignatures(*from_alice)).unwrap();
            }
            if bob_arrives {
                world.alice.receive(Message::AnnouncementSignatures(*from_bob)).unwrap();
            }
            assert_eq!(announcement(&world.bob).is_some(), alice_arrives);
            world.reconnect();
            world.check_announced("101x1x0");
        }
    }

    #[test]
    fn and_a_restart_at_every_point_keep_what_was_signed() {
        for restarts in 0..3 {
            let mut world = public();
            world.deepen();
            if restarts > 0 {
                let [from_bob] = said(&mut world.bob)[..] else { panic!("Bob has not signed") };
                world.alice.receive(Message::AnnouncementSignatures(from_bob)).unwrap();
                assert!(announcement(&world.alice).is_some());
            }
            if restarts > 1 {
                world.exchange();
            }
            disconnect(&mut world.alice, &mut world.bob);
            for node in [&mut world.alice, &mut world.bob] {
                node.facts.clear();
                let had = node.channel.announced().map(|(_, bytes)| bytes.to_vec());
                node.restart();
                let told = node.facts.iter().find_map(|fact| match fact {
                    Fact::Announced { announcement } => Some(announcement.clone()),
                    _ => None,
                });
                assert_eq!(told, had, "`resume` tells it again");
                node.tip(BlockHeight(DEEP));
            }
            connect(&mut world.alice, &mut world.bob);
            world.check_announced("101x1x0");
        }
    }

    /// Snapshots as they were before it was known since when HTLCs stand in the peer's commitments, and before there were
    /// announcements: neither is in them.
    #[test]
    fn of_the_snapshot_by_an_older_build_is_no_obstacle() {
        let world = public();
        let mut bytes = Vec::new();
        world.alice.channel.snapshot(&mut bytes);
        let (no_announcement, no_htlcs) = ([0, 0], [0]);
        assert!(bytes[0] == 3 && bytes.ends_with(&[&no_announcement[..], &no_htlcs].concat()));
        let before_htlcs = &bytes[1..bytes.len() - no_htlcs.len()];
        let before_announcements = &before_htlcs[..before_htlcs.len() - no_announcement.len()];
        let policy = world.alice.policy;
        for older in [[&[2], before_htlcs].concat(), [&[1], before_announcements].concat()] {
            let restored = millrace_channel::Channel::restore(&older, policy, |_| world.alice.keys.clone()).unwrap();
            assert!(restored.is_same_state(&world.alice.channel));
        }
    }
}

mod announcement_signatures {
    use super::*;

    #[test]
    fn are_answered_once_per_connection() {
        let mut world = public();
        world.deepen();
        let [from_bob] = said(&mut world.bob)[..] else { panic!("Bob has not signed") };
        world.bob.outbox.clear();
        world.exchange();
        world.alice.receive(Message::AnnouncementSignatures(from_bob)).unwrap();
        said(&mut world.alice);
        world.reconnect();
        for expected in [1, 0, 0] {
            world.alice.receive(Message::AnnouncementSignatures(from_bob)).unwrap();
            assert_eq!(said(&mut world.alice).len(), expected);
        }
        assert!(world.alice.disconnects.is_empty());
    }

    #[test]
    fn that_do_not_hold_end_the_connection_and_no_more() {
        let change: [fn(&mut AnnouncementSignatures); 3] = [
            |m| m.node_signature = m.bitcoin_signature,
            |m| m.bitcoin_signature = m.node_signature,
            |m| m.short_channel_id = ShortChannelId(m.short_channel_id.0 + 1),
        ];
        for change in change {
            let mut world = public();
            world.deepen();
            let [good] = said(&mut world.bob)[..] else { panic!("Bob has not signed") };
            let mut bad = good;
            change(&mut bad);
            let records = world.alice.journal.len();
            let fault = world.alice.receive(Message::AnnouncementSignatures(bad)).unwrap_err();
            assert_eq!(fault.reaction, Reaction::Disconnect, "{fault}");
            assert_eq!((world.alice.disconnects.len(), world.alice.journal.len()), (1, records));
            world.reconnect();
            world.check_announced("101x1x0");
        }
    }

    /// Also those that came too early to be judged.
    #[test]
    fn that_came_early_and_do_not_hold_end_the_connection() {
        let mut world = public();
        deepen(&mut world.bob);
        let [mut bad] = said(&mut world.bob)[..] else { panic!("Bob has not signed") };
        bad.short_channel_id = ShortChannelId(7);
        world.alice.chain(ChainEvent::Disconnected { height: BlockHeight(CONFIRMED) });
        world.alice.receive(Message::AnnouncementSignatures(bad)).unwrap();
        assert!(world.alice.disconnects.is_empty());
        confirm(&mut world.alice, &world.tx, CONFIRMED, 1);
        assert_eq!(world.alice.disconnects.len(), 1);
    }

    #[test]
    fn before_channel_reestablish_end_the_connection() {
        let mut world = public();
        world.deepen();
        let [from_bob] = said(&mut world.bob)[..] else { panic!("Bob has not signed") };
        disconnect(&mut world.alice, &mut world.bob);
        world.alice.link(millrace_channel::LinkEvent::Up { features: crate::support::node::FEATURES });
        let fault = world.alice.receive(Message::AnnouncementSignatures(from_bob)).unwrap_err();
        assert_eq!(fault.reaction, Reaction::Disconnect);
    }
}

mod a_reorganisation {
    use super::*;

    #[test]
    fn that_moves_the_funding_forgets_the_signatures_and_makes_new_ones() {
        let mut world = public();
        world.deepen();
        world.exchange();
        world.check_announced("101x1x0");
        for node in [&mut world.alice, &mut world.bob] {
            (CONFIRMED..=DEEP).rev().for_each(|height| {
                node.chain(ChainEvent::Disconnected { height: BlockHeight(height) });
            });
            assert_eq!(node.channel.announced(), None);
            node.facts.clear();
        }
        world.confirm(CONFIRMED, 5);
        world.deepen();
        world.exchange();
        world.check_announced("101x5x0");
        for node in [&mut world.alice, &mut world.bob] {
            node.restart();
        }
    }

    /// What one end signed for the old block is refused by the other, which knows the new one.
    #[test]
    fn that_only_one_has_seen_is_settled_by_a_new_connection() {
        let mut world = public();
        deepen(&mut world.alice);
        world.bob.chain(ChainEvent::Disconnected { height: BlockHeight(CONFIRMED) });
        confirm(&mut world.bob, &world.tx, CONFIRMED, 5);
        let [stale] = said(&mut world.alice)[..] else { panic!("Alice has not signed") };
        world.bob.receive(Message::AnnouncementSignatures(stale)).unwrap_err();
        disconnect(&mut world.alice, &mut world.bob);
        (CONFIRMED..=DEEP).rev().for_each(|height| {
            world.alice.chain(ChainEvent::Disconnected { height: BlockHeight(height) });
        });
        confirm(&mut world.alice, &world.tx, CONFIRMED, 5);
        world.deepen();
        connect(&mut world.alice, &mut world.bob);
        world.check_announced("101x5x0");
    }
}
