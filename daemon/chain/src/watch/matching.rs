//! What a block holds of what we watch: a pure function.
//!
//! It does not follow chains of spends: after a match has given a channel something new to watch, the
//! channel's owner looks through the same block again (a commitment and what spends it may be mined
//! together).

use std::collections::HashSet;

use bitcoin::{Amount, Block, OutPoint, ScriptBuf, Txid};

/// What is watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched {
    /// Outputs whose spending matters.
    pub outpoints: HashSet<OutPoint>,
    /// Transactions whose confirmation matters.
    pub txids: HashSet<Txid>,
    /// Scripts whose new outputs matter.
    pub scripts: HashSet<ScriptBuf>,
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// A watched transaction is in the block.
    Confirmed {
        /// Which.
        txid: Txid,
        /// Its place in the block.
        tx_index: usize,
    },
    /// A watched output is spent.
    Spent {
        /// Which.
        outpoint: OutPoint,
        /// By which transaction.
        by: Txid,
        /// That transaction's place in the block.
        tx_index: usize,
        /// Which of its inputs.
        input_index: usize,
    },
    /// A watched script has a new output.
    Created {
        /// Which output.
        outpoint: OutPoint,
        /// What it holds.
        value: Amount,
        /// Its transaction's place in the block.
        tx_index: usize,
    },
}

/// All matches in the order of the block: by transaction, and within one `Confirmed`, then `Spent` by
/// input, then `Created` by output.
#[must_use]
pub fn find_matches(block: &Block, watched: &Watched) -> Vec<Match> {
    let mut found = Vec::new();
    for (tx_index, transaction) in block.txdata.iter().enumerate() {
        // Hashing each transaction is nearly all of the cost: only if it is needed.
        let mut txid = None;
        let mut hashed = || *txid.get_or_insert_with(|| transaction.compute_txid());
        if !watched.txids.is_empty() && watched.txids.contains(&hashed()) {
            found.push(Match::Confirmed { txid: hashed(), tx_index });
        }
        for (input_index, input) in transaction.input.iter().enumerate() {
            let outpoint = input.previous_output;
            if watched.outpoints.contains(&outpoint) {
                found.push(Match::Spent { outpoint, by: hashed(), tx_index, input_index });
            }
        }
        if watched.scripts.is_empty() {
            continue;
        }
        for (vout, output) in (0u32..).zip(&transaction.output) {
            if watched.scripts.contains(&output.script_pubkey) {
                let outpoint = OutPoint { txid: hashed(), vout };
                found.push(Match::Created { outpoint, value: output.value, tx_index });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::constants::genesis_block;
    use bitcoin::transaction::Version;
    use bitcoin::{Network, Transaction, TxIn, TxOut};

    fn script(n: u8) -> ScriptBuf {
        ScriptBuf::from_bytes(vec![n])
    }

    fn transaction(spends: &[OutPoint], pays: &[(u64, u8)]) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: spends.iter().map(|&previous_output| TxIn { previous_output, ..TxIn::default() }).collect(),
            output: pays
                .iter()
                .map(|&(value, n)| TxOut { value: Amount::from_sat(value), script_pubkey: script(n) })
                .collect(),
        }
    }

    /// A block in which the third transaction spends both outputs of the second.
    fn block() -> (Block, Txid, Txid) {
        let mut block = genesis_block(Network::Regtest);
        let old = OutPoint { txid: block.txdata[0].compute_txid(), vout: 0 };
        let first = transaction(&[old], &[(10, 1), (20, 2)]);
        let txid = first.compute_txid();
        let second = transaction(&[OutPoint { txid, vout: 1 }, OutPoint { txid, vout: 0 }], &[(30, 1), (0, 1)]);
        let by = second.compute_txid();
        block.txdata.extend([first, second]);
        (block, txid, by)
    }

    #[test]
    fn nothing_watched() {
        assert_eq!(find_matches(&block().0, &Watched::default()), []);
    }

    #[test]
    fn all_kinds_in_order() {
        let (block, txid, by) = block();
        let outpoint = OutPoint { txid, vout: 0 };
        let watched = Watched {
            outpoints: HashSet::from([outpoint, OutPoint { txid, vout: 9 }]),
            txids: HashSet::from([by]),
            scripts: HashSet::from([script(1)]),
        };
        let expected = [
            Match::Created { outpoint, value: Amount::from_sat(10), tx_index: 1 },
            Match::Confirmed { txid: by, tx_index: 2 },
            Match::Spent { outpoint, by, tx_index: 2, input_index: 1 },
            Match::Created { outpoint: OutPoint { txid: by, vout: 0 }, value: Amount::from_sat(30), tx_index: 2 },
            Match::Created { outpoint: OutPoint { txid: by, vout: 1 }, value: Amount::ZERO, tx_index: 2 },
        ];
        assert_eq!(find_matches(&block, &watched), expected);
    }

    #[test]
    fn spends_by_input() {
        let (block, txid, by) = block();
        let [a, b] = [0, 1].map(|vout| OutPoint { txid, vout });
        let watched = Watched { outpoints: HashSet::from([a, b]), ..Watched::default() };
        let expected = [
            Match::Spent { outpoint: b, by, tx_index: 2, input_index: 0 },
            Match::Spent { outpoint: a, by, tx_index: 2, input_index: 1 },
        ];
        assert_eq!(find_matches(&block, &watched), expected);
    }
}
