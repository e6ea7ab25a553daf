//! Channels of nodes that do not exist, with outputs in the chain and announcements that hold.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bitcoin::absolute::LockTime;
use bitcoin::hashes::{Hash, sha256};
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use lightning::ln::chan_utils::make_funding_redeemscript;
use lightning::ln::msgs::{self, UnsignedChannelAnnouncement, UnsignedChannelUpdate, UnsignedNodeAnnouncement};
use lightning::routing::gossip::{NodeAlias, NodeId};
use lightning::types::features::{ChannelFeatures, NodeFeatures};
use millrace_wire::message::{Signed, Verbatim};
use millrace_wire::{BlockHeight, ChainHash, Message, PublicKey, Sat, ShortChannelId, Signature};
use millraced::gossip::{Funding, FundingSource, Later, Looking};
use secp256k1::{SECP256K1, SecretKey};

use super::FakeChain;

/// What each of these channels holds.
pub const CAPACITY: Sat = Sat(1_000_000);

/// A chain that is asked about outputs, and may be away.
pub struct FakeFunding {
    chain: FakeChain,
    pub is_away: AtomicBool,
    pub asked: AtomicUsize,
    /// Which channels' outputs were asked for.
    pub asked_ids: Mutex<BTreeSet<ShortChannelId>>,
}

impl FakeFunding {
    pub fn new(chain: &FakeChain) -> Self {
        Self {
            chain: chain.clone(),
            is_away: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            asked_ids: Mutex::default(),
        }
    }

    fn check(&self, outputs: usize) -> Result<(), Later> {
        self.asked.fetch_add(outputs, Ordering::Relaxed);
        if self.is_away.load(Ordering::Relaxed) { Err(Later("it is away".to_owned())) } else { Ok(()) }
    }
}

impl FundingSource for FakeFunding {
    fn look_up(&self, ids: Vec<ShortChannelId>) -> Looking<'_, Vec<Option<Funding>>> {
        Box::pin(async move {
            self.check(ids.len())?;
            self.asked_ids.lock().unwrap().extend(ids.iter().copied());
            let find = |id: &ShortChannelId| {
                let (height, index, output) = id.parts();
                let txid = self.chain.txid_at(height, index)?;
                let output = self.chain.unspent(&OutPoint { txid, vout: u32::from(output) })?;
                Some(Funding { txid, script: output.script_pubkey, amount: Sat(output.value.to_sat()) })
            };
            Ok(ids.iter().map(find).collect())
        })
    }

    fn are_unspent(&self, outpoints: Vec<OutPoint>) -> Looking<'_, Vec<bool>> {
        Box::pin(async move {
            self.check(outpoints.len())?;
            Ok(outpoints.iter().map(|outpoint| self.chain.unspent(outpoint).is_some()).collect())
        })
    }

    fn height(&self) -> Looking<'_, BlockHeight> {
        Box::pin(async move {
            self.check(0)?;
            Ok(BlockHeight(self.chain.height()))
        })
    }

    fn on_disconnected(&self, _height: u32) {}
}

/// The key of a node by its number; that of its funding output has another salt.
pub fn secret(salt: u8, number: u32) -> SecretKey {
    SecretKey::from_slice(&sha256::Hash::hash(&[&[salt][..], &number.to_be_bytes()].concat()).to_byte_array()).unwrap()
}

pub fn node_secret(number: u32) -> SecretKey {
    secret(1, number)
}

fn funding_secret(number: u32) -> SecretKey {
    secret(2, number)
}

pub fn node_key(number: u32) -> PublicKey {
    node_secret(number).public_key(SECP256K1)
}

fn id(secret: &SecretKey) -> NodeId {
    NodeId::from_pubkey(&secret.public_key(SECP256K1))
}

/// A channel of two nodes, by their numbers, the one with the lesser key first.
#[derive(Clone, Copy, Debug)]
pub struct Announced {
    pub id: ShortChannelId,
    pub outpoint: OutPoint,
    pub nodes: [u32; 2],
}

/// Funds channels between these nodes: one transaction in one block.
pub fn fund(chain: &FakeChain, pairs: &[(u32, u32)]) -> Vec<Announced> {
    let output = |(one, other): &(u32, u32)| {
        let keys = [one, other].map(|number| funding_secret(*number).public_key(SECP256K1));
        let script_pubkey = make_funding_redeemscript(&keys[0], &keys[1]).to_p2wsh();
        TxOut { value: Amount::from_sat(CAPACITY.0), script_pubkey }
    };
    let seed = format!("{pairs:?} at {}", chain.height());
    let tx = spending(
        OutPoint { txid: Txid::from_byte_array(sha256::Hash::hash(seed.as_bytes()).to_byte_array()), vout: 0 },
        pairs.iter().map(output).collect(),
    );
    let txid = tx.compute_txid();
    chain.submit(tx);
    chain.mine(1);
    let height = chain.height();
    let index = (0..).find(|index| chain.txid_at(height, *index) == Some(txid)).unwrap();
    let channel = |(place, (one, other)): (usize, &(u32, u32))| {
        let vout = u16::try_from(place).unwrap();
        let nodes =
            if node_key(*one).serialize() < node_key(*other).serialize() { [*one, *other] } else { [*other, *one] };
        let id = ShortChannelId::new(height, index, vout).unwrap();
        Announced { id, outpoint: OutPoint { txid, vout: u32::from(vout) }, nodes }
    };
    pairs.iter().enumerate().map(channel).collect()
}

/// A transaction that spends something.
pub fn spending(outpoint: OutPoint, output: Vec<TxOut>) -> Transaction {
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[[1; 64]]),
        }],
        output,
    }
}

/// Seconds of Unix time.
pub fn now() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u32::try_from(since.as_secs()).unwrap()
}

fn sign<T>(verbatim: &Verbatim<T>, secret: &SecretKey) -> Signature
where
    Verbatim<T>: Signed,
{
    SECP256K1.sign_ecdsa(&secp256k1::Message::from_digest(verbatim.signed_hash()), secret)
}

fn no_signature() -> Signature {
    Signature::from_compact(&[1; 64]).unwrap()
}

impl Announced {
    /// Its announcement, with something behind that nobody understands.
    pub fn announcement(&self) -> Message {
        self.announcement_on(ChainHash::REGTEST)
    }

    /// The same, as if it were in another chain.
    pub fn announcement_on(&self, chain_hash: ChainHash) -> Message {
        let [one, other] = self.nodes;
        let contents = UnsignedChannelAnnouncement {
            features: ChannelFeatures::empty(),
            chain_hash,
            short_channel_id: self.id.0,
            node_id_1: id(&node_secret(one)),
            node_id_2: id(&node_secret(other)),
            bitcoin_key_1: id(&funding_secret(one)),
            bitcoin_key_2: id(&funding_secret(other)),
            excess_data: vec![7, 7, 7],
        };
        let no = no_signature();
        let mut message = msgs::ChannelAnnouncement {
            node_signature_1: no,
            node_signature_2: no,
            bitcoin_signature_1: no,
            bitcoin_signature_2: no,
            contents,
        };
        let unsigned = Verbatim::new(message.clone());
        message.node_signature_1 = sign(&unsigned, &node_secret(one));
        message.node_signature_2 = sign(&unsigned, &node_secret(other));
        message.bitcoin_signature_1 = sign(&unsigned, &funding_secret(one));
        message.bitcoin_signature_2 = sign(&unsigned, &funding_secret(other));
        Message::ChannelAnnouncement(Box::new(Verbatim::new(message)))
    }

    /// A side's terms (0: of the lesser key), with flags that nobody knows.
    pub fn update(&self, side: u8, timestamp: u32) -> Message {
        self.update_by(&node_secret(self.nodes[usize::from(side)]), side, timestamp)
    }

    /// The same, signed by whoever has this key.
    pub fn update_by(&self, secret: &SecretKey, side: u8, timestamp: u32) -> Message {
        self.update_on(ChainHash::REGTEST, secret, side, timestamp)
    }

    /// The same, as if it were in another chain.
    pub fn update_on(&self, chain_hash: ChainHash, secret: &SecretKey, side: u8, timestamp: u32) -> Message {
        let contents = UnsignedChannelUpdate {
            chain_hash,
            short_channel_id: self.id.0,
            timestamp,
            message_flags: 1 | 0x80,
            channel_flags: side | 0x40,
            cltv_expiry_delta: 40,
            htlc_minimum_msat: 1,
            htlc_maximum_msat: 500_000_000,
            fee_base_msat: 1_000,
            fee_proportional_millionths: 100,
            excess_data: vec![9, 8],
        };
        let mut message = msgs::ChannelUpdate { signature: no_signature(), contents };
        message.signature = sign(&Verbatim::new(message.clone()), secret);
        Message::ChannelUpdate(Box::new(Verbatim::new(message)))
    }

    /// The announcement, both sides' terms, and both nodes.
    pub fn all(&self, timestamp: u32) -> Vec<Message> {
        let [one, other] = self.nodes;
        vec![
            self.announcement(),
            self.update(0, timestamp),
            self.update(1, timestamp),
            node(one, timestamp),
            node(other, timestamp),
        ]
    }
}

/// What a node says of itself.
pub fn node(number: u32, timestamp: u32) -> Message {
    let mut alias = [0; 32];
    alias[..5].copy_from_slice(b"alice");
    let contents = UnsignedNodeAnnouncement {
        features: NodeFeatures::empty(),
        timestamp,
        node_id: id(&node_secret(number)),
        rgb: [1, 2, 3],
        alias: NodeAlias(alias),
        addresses: Vec::new(),
        excess_address_data: Vec::new(),
        excess_data: vec![4],
    };
    let mut message = msgs::NodeAnnouncement { signature: no_signature(), contents };
    message.signature = sign(&Verbatim::new(message.clone()), &node_secret(number));
    Message::NodeAnnouncement(Box::new(Verbatim::new(message)))
}

pub fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}
