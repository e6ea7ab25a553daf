//! Blob mode: the penalty for one revoked commitment, sealed for a tower that is somebody else's.
//!
//! The tower learns nothing before the commitment is published: the penalty is encrypted under one half of the
//! commitment's txid, and found by the other. Nor can it steal anything afterwards, not even together with the peer: it
//! gets signatures, for a few fees, and no key. (The key would do: from the revocation key of one commitment and its
//! secret, which the peer knows, follows the revocation basepoint's secret.)
//!
//! It covers `to_local` alone. Second-level outputs do not exist when it is made; they are what one's own tower is for.
//!
//! Here are the format, the making and the opening; [`crate::vault`] keeps them.

use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::{EcdsaSighashType, OutPoint, Script, ScriptBuf, Transaction, TxOut, Txid};
use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _, Nonce, Tag};
use millrace_channel::curve::{VerifyJob, is_valid};
use millrace_channel::tx::script;
use millrace_channel::tx::sighash::p2wsh_digest;
use millrace_channel::tx::weight::spend_weight;
use millrace_wire::{FeeratePerKw, Sat};
use secp256k1::PublicKey;
use secp256k1::ecdsa::Signature;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::registration::Registration;
use crate::revoked::{Revoked, revocation_witness, unsigned_penalty, weight_of_input};

/// What a penalty is signed for: 4, 16, 64 and 256 sat/vB. The tower takes the lowest that confirms in time.
pub const LADDER: [FeeratePerKw; 4] =
    [FeeratePerKw(1_000), FeeratePerKw(4_000), FeeratePerKw(16_000), FeeratePerKw(64_000)];
/// The room of a witness script: `to_local`'s has at most 83 bytes.
const SCRIPT_BYTES_MAX: usize = 84;
/// The room of the sweep script.
const SWEEP_BYTES_MAX: usize = 42;
/// Version, both scripts with their lengths, a signature for each step of the ladder, and zeros up to here.
const CONTENT_BYTES: usize = 400;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// What every sealed penalty takes, whatever is in it.
pub const SEALED_BYTES: usize = NONCE_BYTES + CONTENT_BYTES + TAG_BYTES;
/// The encoding that is written.
const VERSION: u8 = 1;
/// Prefixed to whatever is hashed.
const DOMAIN: &[u8] = b"millrace/tower/blob/1";

/// The first half of a commitment's txid, by which its penalty is found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hint(pub [u8; 16]);

/// A sealed penalty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// By what it is found.
    pub hint: Hint,
    /// What the tower keeps.
    pub bytes: Vec<u8>,
}

/// Why a penalty cannot be opened. With another transaction than its own, no penalty can.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
pub enum BadSealed {
    /// Not as long as every one is.
    #[error("{0} bytes are not the {SEALED_BYTES} of a sealed penalty")]
    Length(usize),
    /// Encrypted for another transaction, or damaged.
    #[error("it is for another transaction, or damaged")]
    Cipher,
    /// From a newer build, or nonsense that somebody has sealed.
    #[error("it holds no penalty that this build knows")]
    Content,
    /// It takes no output of the transaction.
    #[error("the transaction has no output that it takes")]
    NoOutput,
    /// A signature that is none.
    #[error("the signature for step {0} of the ladder is none")]
    Signature(usize),
}

/// The hint for a transaction.
#[must_use]
pub fn hint_of(txid: &Txid) -> Hint {
    Hint(*txid.as_byte_array().first_chunk().expect("a txid has 32 bytes"))
}

/// Seals the penalty for the peer's commitment `txid`, whose `to_local` is output `vout` of `value`, and which this secret
/// revoked. `None` if there is nothing to take: less than the lowest fee and dust, or a secret that is no key.
#[must_use]
pub fn seal(
    registration: &Registration,
    commitment_secret: &[u8; 32],
    txid: &Txid,
    vout: u32,
    value: Sat,
) -> Option<Sealed> {
    let revoked = Revoked::of(registration, commitment_secret)?;
    let outpoint = OutPoint { txid: *txid, vout };
    let (script, sweep) = (revoked.script(), &registration.sweep_script);
    let mut content = Zeroizing::new(Vec::with_capacity(CONTENT_BYTES));
    content.push(VERSION);
    put_script(&mut content, script, SCRIPT_BYTES_MAX);
    put_script(&mut content, sweep, SWEEP_BYTES_MAX);
    for feerate in LADDER {
        let tx = unsigned(outpoint, value, script, sweep, feerate)?;
        content.extend_from_slice(&revoked.sign(&tx, 0, value).serialize_compact());
    }
    content.resize(CONTENT_BYTES, 0);
    let hint = hint_of(txid);
    Some(Sealed { hint, bytes: encrypt(txid, hint, &content) })
}

fn put_script(content: &mut Vec<u8>, script: &Script, room: usize) {
    content.push(u8::try_from(script.len()).expect("these scripts are below 256 bytes"));
    let end = content.len() + room;
    content.extend_from_slice(script.as_bytes());
    content.resize(end, 0);
}

/// A penalty with the fee of one step of the ladder, or as much as there is above dust.
fn unsigned(
    outpoint: OutPoint,
    value: Sat,
    script: &Script,
    sweep: &ScriptBuf,
    feerate: FeeratePerKw,
) -> Option<Transaction> {
    let weight = spend_weight([weight_of_input(script)].into_iter(), [sweep.as_script()].into_iter());
    let most = value.checked_sub(Sat::from(sweep.minimal_non_dust()))?;
    if most < LADDER[0].fee_ceil(weight) {
        return None;
    }
    let rest = value.checked_sub(feerate.fee_ceil(weight).min(most))?;
    Some(unsigned_penalty([outpoint], vec![TxOut { value: rest.to_amount(), script_pubkey: sweep.clone() }]))
}

fn hash(name: &[u8], data: &[u8]) -> [u8; 32] {
    let mut engine = sha256::Hash::engine();
    engine.input(DOMAIN);
    engine.input(name);
    engine.input(data);
    sha256::Hash::from_engine(engine).to_byte_array()
}

fn cipher(txid: &Txid) -> ChaCha20Poly1305 {
    let key = Zeroizing::new(hash(b"/key/", &txid.as_byte_array()[16..]));
    ChaCha20Poly1305::new((&*key).into())
}

/// The nonce is made from the content: sealing something else for the same transaction uses another one.
fn encrypt(txid: &Txid, hint: Hint, content: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_BYTES] = *hash(b"/nonce/", content).first_chunk().expect("a hash has 32 bytes");
    let mut bytes = Vec::with_capacity(SEALED_BYTES);
    bytes.extend_from_slice(&nonce);
    bytes.extend_from_slice(content);
    let tag = cipher(txid).encrypt_in_place_detached(&Nonce::from(nonce), &hint.0, &mut bytes[NONCE_BYTES..]);
    bytes.extend_from_slice(&tag.expect("it is far below ChaCha20's limit"));
    bytes
}

/// A penalty that was opened: it takes one output of the commitment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// The output.
    pub outpoint: OutPoint,
    /// Its value.
    pub value: Sat,
    script: ScriptBuf,
    sweep: ScriptBuf,
    signatures: [Signature; LADDER.len()],
}

/// Opens what was sealed for this transaction, and checks that it takes an output of it at each step of the ladder.
///
/// # Errors
/// [`BadSealed`].
pub fn open(tx: &Transaction, sealed: &[u8]) -> Result<Opened, BadSealed> {
    let txid = tx.compute_txid();
    let content = decrypt(&txid, sealed)?;
    let mut rest = content.as_slice();
    if take::<1>(&mut rest)? != [VERSION] {
        return Err(BadSealed::Content);
    }
    let script = take_script::<SCRIPT_BYTES_MAX>(&mut rest)?;
    let sweep = take_script::<SWEEP_BYTES_MAX>(&mut rest)?;
    let mut signatures = Vec::with_capacity(LADDER.len());
    for _ in LADDER {
        let signature = Signature::from_compact(&take::<64>(&mut rest)?);
        signatures.push(signature.map_err(|_| BadSealed::Content)?);
    }
    let script_pubkey = script.to_p2wsh();
    let found = (0..).zip(&tx.output).find(|(_, output)| output.script_pubkey == script_pubkey);
    let (vout, output) = found.ok_or(BadSealed::NoOutput)?;
    let opened = Opened {
        outpoint: OutPoint { txid, vout },
        value: Sat::from(output.value),
        script,
        sweep,
        signatures: signatures.try_into().map_err(|_| BadSealed::Content)?,
    };
    opened.check()?;
    Ok(opened)
}

fn decrypt(txid: &Txid, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, BadSealed> {
    let whole: &[u8; SEALED_BYTES] = sealed.try_into().map_err(|_| BadSealed::Length(sealed.len()))?;
    let (nonce, rest) = whole.split_at(NONCE_BYTES);
    let (content, tag) = rest.split_at(CONTENT_BYTES);
    let mut content = Zeroizing::new(content.to_vec());
    let (nonce, tag, hint) = (Nonce::from_slice(nonce), Tag::from_slice(tag), hint_of(txid));
    let opened = cipher(txid).decrypt_in_place_detached(nonce, &hint.0, &mut content, tag);
    opened.map_err(|_| BadSealed::Cipher)?;
    Ok(content)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadSealed> {
    let (first, others) = rest.split_first_chunk().ok_or(BadSealed::Content)?;
    *rest = others;
    Ok(*first)
}

fn take_script<const ROOM: usize>(rest: &mut &[u8]) -> Result<ScriptBuf, BadSealed> {
    let [length] = take::<1>(rest)?;
    let room = take::<ROOM>(rest)?;
    let script = room.get(..usize::from(length)).ok_or(BadSealed::Content)?;
    Ok(ScriptBuf::from_bytes(script.to_vec()))
}

/// BOLT 3, "`to_local` Output": the revocation key and the delay, if this is such a script to the byte.
fn to_local_of(found: &Script) -> Option<(PublicKey, u16)> {
    let (before_delay, key_bytes) = (36, 33);
    let bytes = found.as_bytes();
    let revocation = PublicKey::from_slice(bytes.get(2..2 + key_bytes)?).ok()?;
    // OP_ENDIF and OP_CHECKSIG end it.
    let delayed = bytes.len().checked_sub(2 + key_bytes)?;
    let delayed = PublicKey::from_slice(bytes.get(delayed..delayed + key_bytes)?).ok()?;
    let delay = match *bytes.get(before_delay)? {
        0 => 0,
        small @ 0x51..=0x60 => u64::from(small - 0x50),
        length @ 1..=3 => {
            let little_endian = bytes.get(before_delay + 1..before_delay + 1 + usize::from(length))?;
            little_endian.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
        }
        _ => return None,
    };
    let delay = u16::try_from(delay).ok()?;
    (*found == script::to_local(&revocation, delay, &delayed)).then_some((revocation, delay))
}

impl Opened {
    /// For how many blocks nobody but the holder of the revocation key can spend the output.
    #[must_use]
    pub fn delay(&self) -> u16 {
        to_local_of(&self.script).map_or(0, |(_, delay)| delay)
    }

    /// Where everything goes.
    #[must_use]
    pub const fn sweep_script(&self) -> &ScriptBuf {
        &self.sweep
    }

    fn check(&self) -> Result<(), BadSealed> {
        let (key, _) = to_local_of(&self.script).ok_or(BadSealed::Content)?;
        if !self.sweep.is_witness_program() {
            return Err(BadSealed::Content);
        }
        for (step, signature) in self.signatures.into_iter().enumerate() {
            let tx = self.unsigned(step).ok_or(BadSealed::Content)?;
            let digest = p2wsh_digest(&tx, 0, &self.script, self.value, EcdsaSighashType::All);
            if !is_valid(&VerifyJob { digest, key, signature }) {
                return Err(BadSealed::Signature(step));
            }
        }
        Ok(())
    }

    fn unsigned(&self, step: usize) -> Option<Transaction> {
        unsigned(self.outpoint, self.value, &self.script, &self.sweep, *LADDER.get(step)?)
    }

    /// The penalty with the fee of this step of the [`LADDER`]; `None` beyond it.
    #[must_use]
    pub fn penalty(&self, step: usize) -> Option<Transaction> {
        let mut tx = self.unsigned(step)?;
        tx.input[0].witness = revocation_witness(&self.script, *self.signatures.get(step)?);
        Some(tx)
    }
}

#[cfg(test)]
mod tests;
