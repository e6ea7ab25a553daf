#![allow(clippy::unwrap_used)]

#[path = "../../../tests/support/script.rs"]
#[allow(unreachable_pub)]
mod script;

mod early_close;
mod limits;
mod story;

use bitcoin::hashes::Hash as _;
use bitcoin::{Amount, Sequence, TxIn, TxOut, Txid, Witness, absolute, transaction};
use millrace_wire::{ChainHash, FeeratePerKw, Msat, ShortChannelId};
use secp256k1::SECP256K1;

use super::*;
use crate::curve::Serial;
use crate::input::LinkFeatures;
use crate::keys::ChannelKeys;
use crate::record::Record;
use crate::terms::ChannelType;

const FUNDING: Sat = Sat(1_000_000);
const TEMPORARY: ChannelId = ChannelId([7; 32]);
const NOBODY: &dyn Fn(ChannelId) -> bool = &|_| false;

fn features() -> OpeningFeatures {
    let link = LinkFeatures { simple_close: true, shutdown_anysegwit: true };
    OpeningFeatures {
        link,
        large_channel: true,
        upfront_shutdown_script: true,
        anchors: true,
        scid_alias: true,
        zero_conf: true,
    }
}

fn node_id(seed: u8) -> PublicKey {
    secp256k1::SecretKey::from_slice(&[seed; 32]).unwrap().public_key(SECP256K1)
}

/// Alice asks.
fn request() -> OpenRequest {
    OpenRequest {
        remote_node: node_id(22),
        chain_hash: ChainHash::REGTEST,
        temporary_channel_id: TEMPORARY,
        funding: FUNDING,
        push: Msat::ZERO,
        feerate: FeeratePerKw(1000),
        channel_type: ChannelType::ANCHORS,
        announce: false,
        local: LocalParams::usual_for(FUNDING),
        limits: OpeningLimits::default(),
        features: features(),
        keys: ChannelKeys::from_seed(&[1; 32]),
        keys_index: 11,
        local_alias: ShortChannelId(111),
    }
}

/// Bob answers.
fn params() -> AcceptParams {
    AcceptParams {
        remote_node: node_id(11),
        chain_hash: ChainHash::REGTEST,
        local: LocalParams::usual_for(FUNDING),
        limits: OpeningLimits::default(),
        features: features(),
        minimum_depth: 3,
        is_zero_conf_allowed: false,
        keys: ChannelKeys::from_seed(&[2; 32]),
        keys_index: 22,
        local_alias: ShortChannelId(222),
    }
}

fn around() -> Surroundings<'static> {
    Surroundings { height: BlockHeight(100), policy: Policy::default(), is_taken: NOBODY }
}

fn open_of(message: Message) -> OpenChannel {
    let Message::OpenChannel(open) = message else { panic!("{}", message.name()) };
    *open
}

fn accept_of(message: Message) -> AcceptChannel {
    let Message::AcceptChannel(accept) = message else { panic!("{}", message.name()) };
    *accept
}

/// The messages among the effects.
fn sent(fx: &Effects) -> Vec<Message> {
    fx.list.iter().filter_map(|effect| if let Effect::Send(m) = effect { Some((**m).clone()) } else { None }).collect()
}

/// The records among the effects.
fn recorded(fx: &Effects) -> Vec<Record> {
    let decode = |effect: &Effect| match effect {
        Effect::Journal(range) => Some(Record::decode(&fx.journal[range.clone()]).unwrap()),
        _ => None,
    };
    fx.list.iter().filter_map(decode).collect()
}

/// A transaction that the wallet could have made: one signed P2WPKH input, change first.
fn funding_tx(script_pubkey: &ScriptBuf, amount: Sat) -> Transaction {
    let input = TxIn {
        previous_output: OutPoint { txid: Txid::from_byte_array([9; 32]), vout: 3 },
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::from_slice(&[vec![1; 71], vec![2; 33]]),
    };
    let change = TxOut { value: Amount::from_sat(12_345), script_pubkey: p2wpkh(5) };
    let output = TxOut { value: amount.to_amount(), script_pubkey: script_pubkey.clone() };
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![input],
        output: vec![change, output],
    }
}

fn p2wpkh(byte: u8) -> ScriptBuf {
    ScriptBuf::from_bytes([&[0, 20], &[byte; 20][..]].concat())
}

fn taproot() -> ScriptBuf {
    ScriptBuf::from_bytes([&[0x51, 32], &[3; 32][..]].concat())
}

fn p2pkh() -> ScriptBuf {
    ScriptBuf::from_bytes([&[0x76, 0xa9, 20], &[1; 20][..], &[0x88, 0xac]].concat())
}
