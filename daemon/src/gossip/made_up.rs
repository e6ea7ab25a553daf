//! For tests: channels of nodes that do not exist, and a chain that holds what the test puts there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bitcoin::hashes::{Hash, sha256};
use bitcoin::{OutPoint, Txid};
use lightning::ln::msgs::{self, UnsignedChannelAnnouncement};
use lightning::routing::gossip::NodeId;
use lightning::types::features::ChannelFeatures;
use millrace_routing::graph::VerifiedChannel;
use millrace_wire::message::Verbatim;
use millrace_wire::{BlockHeight, ChainHash, ChannelAnnouncement, Features, PublicKey, Sat, ShortChannelId, Signature};
use secp256k1::{SECP256K1, SecretKey};
use tokio::sync::{mpsc, oneshot};

use super::book::outpoint_of;
use super::{Funding, FundingSource, Gossip, GossipRules, LOCK, Looking, Seat};
use crate::network::Network;
use crate::peer::link::{Link, Outgoing};

/// The outputs of a chain.
pub(super) struct Outputs {
    unspent: Mutex<BTreeMap<ShortChannelId, Funding>>,
    asked: AtomicUsize,
    looks: mpsc::UnboundedSender<Look>,
}

/// Outputs were looked up. The answer waits until this is dropped.
pub(super) type Look = oneshot::Sender<()>;

impl Outputs {
    /// No output; and the looks at what is there. When nobody wants those any more, answers wait for nothing.
    pub(super) fn none() -> (Arc<Self>, mpsc::UnboundedReceiver<Look>) {
        let (looks, looked) = mpsc::unbounded_channel();
        (Arc::new(Self { unspent: Mutex::default(), asked: AtomicUsize::new(0), looks }), looked)
    }

    pub(super) fn put(&self, id: ShortChannelId, funding: Funding) {
        self.unspent.lock().expect(LOCK).insert(id, funding);
    }

    pub(super) fn remove(&self, id: ShortChannelId) {
        self.unspent.lock().expect(LOCK).remove(&id);
    }

    /// How many were looked up.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl FundingSource for Outputs {
    fn look_up(&self, ids: Vec<ShortChannelId>) -> Looking<'_, Vec<Option<Funding>>> {
        self.asked.fetch_add(ids.len(), Ordering::Relaxed);
        let unspent = self.unspent.lock().expect(LOCK);
        let found = ids.iter().map(|id| unspent.get(id).cloned()).collect();
        Box::pin(async move {
            let (look, is_over) = oneshot::channel();
            if self.looks.send(look).is_ok() {
                // It is dropped, not sent.
                let _over = is_over.await;
            }
            Ok(found)
        })
    }

    fn are_unspent(&self, outpoints: Vec<OutPoint>) -> Looking<'_, Vec<bool>> {
        let unspent = self.unspent.lock().expect(LOCK);
        let is_there = |outpoint: &OutPoint| unspent.iter().any(|(id, it)| outpoint_of(*id, it.txid) == *outpoint);
        let found = outpoints.iter().map(is_there).collect();
        Box::pin(async move { Ok(found) })
    }

    fn height(&self) -> Looking<'_, BlockHeight> {
        Box::pin(async { Ok(BlockHeight(0)) })
    }

    fn on_disconnected(&self, _height: u32) {}
}

/// Gossip with this chain. To be called on a tokio runtime.
pub(super) fn start(outputs: Arc<Outputs>) -> Gossip {
    Gossip::start(ChainHash::REGTEST, GossipRules::default(), outputs, Network::default())
}

pub(super) fn peer(number: u8) -> PublicKey {
    SecretKey::from_slice(&[number; 32]).expect("a key").public_key(SECP256K1)
}

/// A connection with a peer, and what is said to it.
pub(super) fn connect(gossip: &Gossip, number: u8) -> (Seat, mpsc::UnboundedReceiver<Outgoing>) {
    let (link, outgoing, _queued) = Link::new();
    (gossip.connected(peer(number), &Features::ours(false), link), outgoing)
}

/// A channel of two nodes, each of which has one key for everything; and the output that it is to have.
pub(super) fn channel(id: ShortChannelId) -> (ChannelAnnouncement, Funding) {
    let mut secrets = [1, 2].map(|n| SecretKey::from_slice(&[n; 32]).expect("a key"));
    secrets.sort_by_key(|secret| secret.public_key(SECP256K1).serialize());
    let [one, other] = secrets.map(|secret| NodeId::from_pubkey(&secret.public_key(SECP256K1)));
    let contents = UnsignedChannelAnnouncement {
        features: ChannelFeatures::empty(),
        chain_hash: ChainHash::REGTEST,
        short_channel_id: id.0,
        node_id_1: one,
        node_id_2: other,
        bitcoin_key_1: one,
        bitcoin_key_2: other,
        excess_data: Vec::new(),
    };
    let signed = |[one, other]: [Signature; 2]| msgs::ChannelAnnouncement {
        node_signature_1: one,
        node_signature_2: other,
        bitcoin_signature_1: one,
        bitcoin_signature_2: other,
        contents: contents.clone(),
    };
    let unsigned = Verbatim::new(signed([Signature::from_compact(&[1; 64]).expect("a signature"); 2]));
    let hash = secp256k1::Message::from_digest(unsigned.signed_hash());
    let signatures = secrets.map(|secret| SECP256K1.sign_ecdsa(&hash, &secret));
    let announcement = Verbatim::new(signed(signatures));
    let verified = VerifiedChannel::verify(announcement.clone()).expect("it is signed");
    let txid = Txid::from_byte_array(sha256::Hash::hash(&id.0.to_be_bytes()).to_byte_array());
    (announcement, Funding { txid, script: verified.funding_script().clone(), amount: Sat(1_000_000) })
}
