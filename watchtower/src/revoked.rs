//! One revoked commitment of the peer: the one script that all of its delayed outputs carry, and the key that takes them.
//!
//! BOLT 3: `to_local` and the output of every HTLC-success and HTLC-timeout transaction of a commitment have the same
//! script. So the tower needs neither HTLCs nor amounts: it takes whatever carries that script.

use std::fmt;

use bitcoin::transaction::Version;
use bitcoin::{
    EcdsaSighashType, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Weight, Witness, absolute, ecdsa,
};
use millrace_channel::curve::sign;
use millrace_channel::keys::{derive_public_key, derive_revocation_key, revocation_secret};
use millrace_channel::tx::script;
use millrace_channel::tx::sighash::p2wsh_digest;
use millrace_channel::tx::weight::{SIGNATURE_BYTES_MAX, input_weight};
use millrace_wire::Sat;
use secp256k1::ecdsa::Signature;
use secp256k1::{SECP256K1, SecretKey};

use crate::registration::Registration;

/// What chooses the revocation branch of the script.
const REVOCATION_BRANCH: &[u8] = &[1];

/// How a revoked commitment is punished. Its key is wiped with it; `Debug` shows none.
#[derive(Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The witness script of every delayed output.
    script: ScriptBuf,
    /// What those outputs pay to.
    script_pubkey: ScriptBuf,
    /// Opens the revocation branch.
    key: SecretKey,
}

impl Revoked {
    /// The commitment of the peer that this secret of the peer's revoked. `None` for a secret that is no key: no peer has
    /// revealed it, since its point would not exist.
    #[must_use]
    pub fn of(registration: &Registration, commitment_secret: &[u8; 32]) -> Option<Self> {
        let commitment_secret = SecretKey::from_slice(commitment_secret).ok()?;
        let point = commitment_secret.public_key(SECP256K1);
        let basepoint = registration.revocation_secret().public_key(SECP256K1);
        let revocation = derive_revocation_key(&basepoint, &point);
        let delayed = derive_public_key(&registration.remote_delayed_payment, &point);
        let script = script::to_local(&revocation, registration.to_self_delay, &delayed);
        let key = revocation_secret(registration.revocation_secret(), &commitment_secret);
        Some(Self { script_pubkey: script.to_p2wsh(), script, key })
    }

    /// What every delayed output pays to.
    #[must_use]
    pub const fn script_pubkey(&self) -> &ScriptBuf {
        &self.script_pubkey
    }

    /// The most that the input weighs which takes such an output.
    #[must_use]
    pub fn input_weight(&self) -> Weight {
        weight_of_input(&self.script)
    }

    /// The witness of input `input` of `tx`, which takes an output of `value` and is otherwise complete.
    ///
    /// # Panics
    /// When `tx` has no such input.
    #[must_use]
    pub fn witness(&self, tx: &Transaction, input: usize, value: Sat) -> Witness {
        revocation_witness(&self.script, self.sign(tx, input, value))
    }

    /// The signature in that witness.
    pub(crate) fn sign(&self, tx: &Transaction, input: usize, value: Sat) -> Signature {
        sign(&p2wsh_digest(tx, input, &self.script, value, EcdsaSighashType::All), &self.key)
    }

    /// The witness script of every delayed output.
    pub(crate) const fn script(&self) -> &ScriptBuf {
        &self.script
    }
}

/// The witness that takes the revocation branch of this script.
pub(crate) fn revocation_witness(script: &Script, signature: Signature) -> Witness {
    let mut witness = Witness::new();
    witness.push(ecdsa::Signature { signature, sighash_type: EcdsaSighashType::All }.to_vec());
    witness.push(REVOCATION_BRANCH);
    witness.push(script);
    witness
}

/// The most that an input weighs which takes an output with this witness script.
pub(crate) fn weight_of_input(script: &Script) -> Weight {
    input_weight(&[SIGNATURE_BYTES_MAX, REVOCATION_BRANCH.len() as u64, script.len() as u64])
}

impl fmt::Debug for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revoked").field("script_pubkey", &self.script_pubkey).finish_non_exhaustive()
    }
}

impl Drop for Revoked {
    fn drop(&mut self) {
        self.key.non_secure_erase();
    }
}

/// A penalty that is not signed yet: its inputs in this order, and these outputs.
#[must_use]
pub fn unsigned_penalty(inputs: impl IntoIterator<Item = OutPoint>, outputs: Vec<TxOut>) -> Transaction {
    let input = |previous_output| TxIn {
        previous_output,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    };
    Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: inputs.into_iter().map(input).collect(),
        output: outputs,
    }
}
