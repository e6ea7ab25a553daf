//! The real script interpreter, Bitcoin Core's, over every input of a transaction.
//!
//! All consensus rules but taproot's: P2SH, strict DER, null dummy, lock times absolute and relative, segwit.
//! Whether a lock time has been *reached* is the chain's matter: the interpreter only sees that the transaction
//! commits to at least what the script asks for.

use bitcoin::{Transaction, TxOut, consensus};
use bitcoinconsensus::{
    VERIFY_CHECKLOCKTIMEVERIFY, VERIFY_CHECKSEQUENCEVERIFY, VERIFY_DERSIG, VERIFY_NULLDUMMY, VERIFY_P2SH,
    VERIFY_WITNESS,
};

const FLAGS: u32 = VERIFY_P2SH
    | VERIFY_DERSIG
    | VERIFY_NULLDUMMY
    | VERIFY_CHECKLOCKTIMEVERIFY
    | VERIFY_CHECKSEQUENCEVERIFY
    | VERIFY_WITNESS;

/// Whether `tx` is valid where its inputs spend `prevouts`, given in the order of the inputs.
pub(crate) fn verify_tx(tx: &Transaction, prevouts: &[TxOut]) -> Result<(), String> {
    if tx.input.len() != prevouts.len() {
        return Err(format!("{} inputs but {} outputs to spend", tx.input.len(), prevouts.len()));
    }
    let (spent, paid): (u64, u64) = (sum(prevouts), sum(&tx.output));
    if tx.output.is_empty() || paid > spent {
        return Err(format!("spends {spent} sat for {} outputs with {paid} sat", tx.output.len()));
    }
    let bytes = consensus::serialize(tx);
    for (input, prevout) in prevouts.iter().enumerate() {
        let (script, value) = (prevout.script_pubkey.as_bytes(), prevout.value.to_sat());
        bitcoinconsensus::verify_with_flags(script, value, &bytes, input, FLAGS)
            .map_err(|error| format!("input {input}: {error:?}"))?;
    }
    Ok(())
}

fn sum(outputs: &[TxOut]) -> u64 {
    outputs.iter().map(|output| output.value.to_sat()).sum()
}
