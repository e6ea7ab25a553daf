#![allow(clippy::unwrap_used)]
//! The wallet on a chain made up in memory. Every transaction that it makes is checked as a network would: signatures,
//! fee, dust, and that all inputs are segwit ones.

mod chain_news;
mod feeding_fees;
mod property;
mod records;
mod spending;

use std::collections::BTreeMap;

use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::Message;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::transaction::Version;
use bitcoin::{
    Block, BlockHash, CompactTarget, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxMerkleNode, TxOut,
    Txid, Weight, Witness, absolute,
};
use millrace_wire::{FeeratePerKw, Sat};
use secp256k1::{SECP256K1, XOnlyPublicKey};

use super::*;
use crate::keys::Keys;
use crate::seed::Seed;

const FEERATE: FeeratePerKw = FeeratePerKw(1000);
const RESERVE: ReservePolicy = ReservePolicy { per_channel: Sat(25_000), max: Sat(100_000) };
const WITHDRAWAL: Label = Label { kind: TxKind::Withdrawal, channel: None };
const FUNDING: Label = Label { kind: TxKind::Funding, channel: None };
/// An address of somebody else on regtest, P2WPKH.
const STRANGER: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

/// The wallet, the chain that it is shown, and every output that exists there.
struct World {
    wallet: Wallet,
    blocks: Vec<Block>,
    outputs: BTreeMap<OutPoint, TxOut>,
    now: u64,
    serial: u32,
}

fn keys() -> Keys {
    Keys::derive(&Seed::from_entropy(&[9; 32]), Network::Regtest)
}

fn empty_wallet() -> Wallet {
    Wallet::load([], keys().wallet().clone(), RESERVE).unwrap()
}

/// A wallet at height 100 without coins.
fn world() -> World {
    let mut world =
        World { wallet: empty_wallet(), blocks: Vec::new(), outputs: BTreeMap::new(), now: 1_700_000_000, serial: 0 };
    world.mine(&[]);
    world
}

/// A wallet with these confirmed coins, in satoshi, by turns taproot and segwit.
fn world_with(coins: &[u64]) -> World {
    let mut world = world();
    let paying: Vec<_> = coins
        .iter()
        .enumerate()
        .map(|(index, amount)| {
            let kind = if index % 2 == 0 { AddressType::Taproot } else { AddressType::Segwit };
            world.pays_us(*amount, kind)
        })
        .collect();
    world.mine(&paying);
    world
}

impl World {
    fn height(&self) -> u32 {
        99 + u32::try_from(self.blocks.len()).unwrap()
    }

    /// A block with these transactions on top of the last one, not shown to the wallet.
    fn next_block(&mut self, txs: &[Transaction]) -> Block {
        self.serial += 1;
        let previous = self.blocks.last().map_or(BlockHash::all_zeros(), Block::block_hash);
        let coinbase = TxIn { previous_output: OutPoint::null(), ..TxIn::default() };
        let coinbase = Transaction {
            version: Version::TWO,
            lock_time: absolute::LockTime::from_consensus(self.serial),
            input: vec![coinbase],
            output: vec![],
        };
        for tx in txs {
            self.know(tx);
        }
        Block {
            header: Header {
                version: BlockVersion::TWO,
                prev_blockhash: previous,
                merkle_root: TxMerkleNode::all_zeros(),
                time: u32::try_from(self.now).unwrap(),
                bits: CompactTarget::from_consensus(0x207f_ffff),
                nonce: self.serial,
            },
            txdata: std::iter::once(coinbase).chain(txs.iter().cloned()).collect(),
        }
    }

    fn mine(&mut self, txs: &[Transaction]) {
        self.now += 600;
        let block = self.next_block(txs);
        self.blocks.push(block.clone());
        self.wallet.apply_block(self.height(), &block).unwrap();
    }

    fn mine_empty(&mut self, count: u32) {
        (0..count).for_each(|_| self.mine(&[]));
    }

    fn unmine(&mut self) {
        let height = self.height();
        let block = self.blocks.pop().unwrap();
        self.wallet.disconnect_block(height, block.block_hash()).unwrap();
    }

    fn know(&mut self, tx: &Transaction) {
        let txid = tx.compute_txid();
        for (vout, output) in (0..).zip(&tx.output) {
            self.outputs.insert(OutPoint { txid, vout }, output.clone());
        }
    }

    /// A transaction of somebody else's coins to this script.
    fn pays(&mut self, script: ScriptBuf, amount: u64) -> Transaction {
        self.serial += 1;
        let txid = Txid::from_byte_array([u8::try_from(self.serial % 251).unwrap(); 32]);
        let input = TxIn { previous_output: OutPoint { txid, vout: self.serial }, ..TxIn::default() };
        let output = TxOut { value: bitcoin::Amount::from_sat(amount), script_pubkey: script };
        let tx = Transaction {
            version: Version::TWO,
            lock_time: absolute::LockTime::ZERO,
            input: vec![input],
            output: vec![output],
        };
        self.know(&tx);
        tx
    }

    fn pays_us(&mut self, amount: u64, kind: AddressType) -> Transaction {
        let script = self.wallet.new_address(kind).script_pubkey();
        self.pays(script, amount)
    }

    fn broadcast(&mut self, made: &Made, label: Label) {
        self.know(&made.tx);
        self.wallet.mark_broadcast(&made.tx, label, self.now);
    }

    /// The transaction as a network sees it; `foreign` inputs at its beginning are somebody else's to sign.
    fn check(&self, made: &Made, feerate: FeeratePerKw, foreign: usize) {
        let tx = &made.tx;
        let prevouts: Vec<TxOut> = tx.input.iter().map(|input| self.outputs[&input.previous_output].clone()).collect();
        assert!(prevouts.iter().all(|output| output.script_pubkey.is_witness_program()), "a malleable input");
        for (index, prevout) in prevouts.iter().enumerate().skip(foreign) {
            check_signature(tx, index, prevout, &prevouts);
        }
        for output in &tx.output {
            assert!(output.value >= output.script_pubkey.minimal_non_dust(), "dust: {output:?}");
        }
        let value_in: u64 = prevouts.iter().map(|output| output.value.to_sat()).sum();
        let value_out: u64 = tx.output.iter().map(|output| output.value.to_sat()).sum();
        assert_eq!(Sat(value_in - value_out), made.fee);
        if foreign == 0 {
            check_fee(tx.weight(), tx.input.len() as u64, made.fee, feerate);
        }
        assert!(tx.input.iter().skip(foreign).all(|input| input.sequence.is_rbf()));
        assert_eq!(Sat::from(tx.output[made.vout as usize].value), made.amount);
    }
}

/// Never below the feerate; above it by no more than a change output and its cost, and what signatures turned out
/// shorter.
fn check_fee(weight: Weight, inputs: u64, fee: Sat, feerate: FeeratePerKw) {
    let least = feerate.fee_ceil(weight);
    let no_change = 330 + feerate.fee_ceil(Weight::from_wu(2 * 4 * 43)).0;
    let short_signatures = feerate.fee_ceil(Weight::from_wu(4 + 3 * inputs)).0;
    assert!(fee >= least, "{fee} is less than {least} for {weight}");
    assert!(fee.0 <= least.0 + no_change + short_signatures, "{fee} is much more than {least} for {weight}");
}

fn check_signature(tx: &Transaction, index: usize, prevout: &TxOut, prevouts: &[TxOut]) {
    let script = &prevout.script_pubkey;
    if script.is_p2wpkh() {
        let bytes = bitcoin::consensus::serialize(tx);
        bitcoinconsensus::verify(script.as_bytes(), prevout.value.to_sat(), &bytes, index).unwrap();
        return;
    }
    assert!(script.is_p2tr(), "{script}");
    let key = XOnlyPublicKey::from_slice(&script.as_bytes()[2..]).unwrap();
    let hash = SighashCache::new(tx)
        .taproot_key_spend_signature_hash(index, &Prevouts::All(prevouts), TapSighashType::Default)
        .unwrap();
    let witness = &tx.input[index].witness;
    assert_eq!(witness.len(), 1);
    let signature = secp256k1::schnorr::Signature::from_slice(&witness[0]).unwrap();
    SECP256K1.verify_schnorr(&signature, &Message::from(hash), &key).unwrap();
}

fn p2wsh(byte: u8) -> ScriptBuf {
    ScriptBuf::from_bytes(vec![byte; 40]).to_p2wsh()
}

/// An output of `tx` that somebody else signs for.
fn foreign(tx: &Transaction, vout: u32, sequence: Sequence, weight: u64) -> InputToAdd {
    let outpoint = OutPoint { txid: tx.compute_txid(), vout };
    InputToAdd { outpoint, output: tx.output[vout as usize].clone(), sequence, weight: Weight::from_wu(weight) }
}

/// A signature as long as they get, so that weights can be measured.
fn dummy_witness(bytes: usize) -> Witness {
    Witness::from_slice(&[vec![1; bytes]])
}
