//! Preimages that a transaction shows when it takes an HTLC (BOLT 3, "HTLC-Success", and BOLT 5).
//!
//! The tower knows no payment hash. The witness script tells it: both HTLC scripts hold the RIPEMD160 of the payment
//! hash behind `OP_HASH160`, so only an item that hashes to it is taken for a preimage.

use bitcoin::Witness;
use bitcoin::hashes::{Hash, ripemd160};
use bitcoin::opcodes::all::{OP_EQUALVERIFY, OP_HASH160};
use bitcoin::script::Instruction;
use bitcoin::{Opcode, Script};
use millrace_wire::Preimage;

/// The longest HTLC script of BOLT 3. What is longer is none, and is not read.
const HTLC_SCRIPT_BYTES_MAX: usize = 144;

/// The preimage in the witness that spends an HTLC output, if it shows one.
#[must_use]
pub fn revealed_by(witness: &Witness) -> Option<Preimage> {
    let script = witness.last().filter(|script| script.len() <= HTLC_SCRIPT_BYTES_MAX)?;
    let items = witness.iter().take(witness.len() - 1);
    let candidates: Vec<Preimage> =
        items.filter_map(|item| Some(Preimage::new(<[u8; 32]>::try_from(item).ok()?))).collect();
    let hash = payment_hash160(Script::from_bytes(script))?;
    candidates.into_iter().find(|preimage| ripemd160::Hash::hash(&preimage.hash().0).to_byte_array() == hash)
}

/// The 20 bytes between `OP_HASH160` and `OP_EQUALVERIFY`: the revocation key's stand before `OP_EQUAL`.
fn payment_hash160(script: &Script) -> Option<[u8; 20]> {
    let instructions: Vec<Instruction<'_>> = script.instructions().collect::<Result<_, _>>().ok()?;
    let is_op = |instruction: &Instruction<'_>, op: Opcode| *instruction == Instruction::Op(op);
    instructions.windows(3).find_map(|three| match three {
        [before, Instruction::PushBytes(bytes), after] if is_op(before, OP_HASH160) && is_op(after, OP_EQUALVERIFY) => {
            bytes.as_bytes().try_into().ok()
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::samples::{Sample, preimage};
    use millrace_channel::terms::CommitmentFormat;

    #[test]
    fn htlc_success_of_either_format() {
        for format in [CommitmentFormat::Anchors, CommitmentFormat::StaticRemotekey] {
            let sample = Sample::new(1, format);
            let commitment = sample.commitment(0, 1_000_000, 0, 2);
            let found: Vec<_> =
                sample.htlc_txs(&commitment).iter().map(|tx| revealed_by(&tx.input[0].witness)).collect();
            assert_eq!(found, [Some(preimage(0)), Some(preimage(1))]);
        }
    }

    #[test]
    fn thirty_two_bytes_that_are_no_preimage_of_the_script() {
        let sample = Sample::new(1, CommitmentFormat::Anchors);
        let commitment = sample.commitment(0, 1_000_000, 0, 1);
        let mut items = sample.htlc_txs(&commitment)[0].input[0].witness.to_vec();
        items[3][0] ^= 1;
        assert_eq!(revealed_by(&Witness::from_slice(&items)), None);
    }

    #[test]
    fn witnesses_that_take_no_htlc() {
        for witness in
            [Witness::new(), Witness::from_slice(&[[7; 32]]), Witness::from_slice(&[vec![1; 32], vec![2; 9_000]])]
        {
            assert_eq!(revealed_by(&witness), None);
        }
    }
}
