//! What bitcoind says about the claimed outputs: what spends them in the mempool, and which are spent in a block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_chain::ChainError;
use millrace_wire::Sat;

use super::held::Held;
use super::{Interrupted, Task, now_s};
use crate::claims::plan::Spending;
use crate::wallet::TxKind;

impl Task {
    /// What spends the outputs: in the mempool, or made here and on its way there.
    pub(super) async fn spends(
        &mut self,
        outpoints: &BTreeSet<OutPoint>,
    ) -> Result<BTreeMap<OutPoint, Arc<Spending>>, Interrupted> {
        self.examine_coins().await?;
        let asked: Vec<OutPoint> = outpoints.iter().copied().collect();
        let spenders = self.parts.bitcoind.mempool_spenders(&asked).await?;
        let mut spends = BTreeMap::new();
        // Of several for one output, the highest bid is the one to be remembered.
        let mut held: Vec<&Held> = self.held.values().collect();
        held.sort_by_key(|held| held.fee);
        for held in held {
            let spending = Arc::new(held.spending(None));
            spends.extend(held.claims.iter().map(|outpoint| (*outpoint, Arc::clone(&spending))));
        }
        let mut by_spender: BTreeMap<Txid, Vec<OutPoint>> = BTreeMap::new();
        for (outpoint, spender) in asked.into_iter().zip(spenders) {
            if let Some(spender) = spender {
                by_spender.entry(spender).or_default().push(outpoint);
            }
        }
        let mut back = Vec::new();
        for (txid, held) in &mut self.held {
            let was_seen = std::mem::replace(&mut held.is_seen, by_spender.contains_key(txid));
            back.extend((held.is_seen && !(was_seen && held.is_marked)).then_some(*txid));
        }
        for txid in back {
            self.mark(txid).await?;
        }
        for (txid, claimed) in by_spender {
            if let Some(spending) = self.spending(txid, &claimed).await? {
                let spending = Arc::new(spending);
                spends.extend(claimed.into_iter().map(|outpoint| (outpoint, Arc::clone(&spending))));
            }
        }
        Ok(spends)
    }

    /// Of what was refused: whether a coin of the wallet's in it is gone. bitcoind says it in the words of a fee that is too
    /// low if something else in the mempool spends the coin; and of a coin that never confirmed, nobody else tells the
    /// wallet that it is not there any more.
    async fn examine_coins(&mut self) -> Result<(), Interrupted> {
        let is_refused = |held: &Held| held.is_refused() && !held.is_seen;
        let refused: Vec<(Txid, Vec<OutPoint>)> =
            self.held.iter().filter(|(_, held)| is_refused(held)).map(|(txid, held)| (*txid, held.coins())).collect();
        for (txid, coins) in refused {
            let spenders = self.parts.bitcoind.mempool_spenders(&coins).await?;
            let (mut arrived, mut gone, mut is_gone) = (Vec::new(), Vec::new(), false);
            for (coin, spender) in coins.iter().zip(spenders) {
                match spender {
                    Some(spender) if spender == txid => {}
                    Some(spender) => {
                        is_gone = true;
                        arrived.extend(self.parts.bitcoind.transaction(&spender, None).await?);
                    }
                    None if self.parts.bitcoind.utxo(coin, true).await?.is_none() => {
                        is_gone = true;
                        gone.push(coin.txid);
                    }
                    None => {}
                }
            }
            if is_gone {
                // Or it would be chosen again.
                self.parts.wallet.mempool(arrived, gone, now_s()).await?;
                self.held.entry(txid).and_modify(Held::set_stuck);
            }
        }
        Ok(())
    }

    /// A transaction of the mempool that spends these outputs; none if it has just gone.
    async fn spending(&mut self, txid: Txid, claimed: &[OutPoint]) -> Result<Option<Spending>, Interrupted> {
        let Some(entry) = self.parts.bitcoind.mempool_entry(&txid).await? else { return Ok(None) };
        let fees = (Sat::from(entry.fee), Sat::from(entry.fee_with_descendants));
        if let Some(held) = self.held.get(&txid) {
            return Ok(Some(held.spending(Some(fees))));
        }
        let Some(tx) = self.parts.bitcoind.transaction(&txid, None).await? else { return Ok(None) };
        if let Some(held) = self.recognise(&tx, claimed, fees.0).await? {
            let spending = held.spending(Some(fees));
            self.parts.broadcaster.submit(held.submission()).await.ok();
            self.held.insert(txid, held);
            return Ok(Some(spending));
        }
        Ok(Some(Spending {
            txid,
            claims: claimed.to_vec(),
            fee: fees.0,
            to_replace: fees.1,
            weight: tx.weight(),
            is_ours: false,
            is_in_mempool: true,
            is_stuck: false,
            destination: None,
        }))
    }

    /// A transaction that this node made before it was restarted: the wallet wrote its id down before it went out.
    async fn recognise(&self, tx: &Transaction, claimed: &[OutPoint], fee: Sat) -> Result<Option<Held>, Interrupted> {
        let (known, txid, now) = (tx.clone(), tx.compute_txid(), now_s());
        let label = self.parts.wallet.ask(move |wallet| {
            wallet.see_transaction(&known, now);
            wallet.transaction(&txid).map(|known| known.label)
        });
        let Some(label) = label.await?.filter(|label| matches!(label.kind, TxKind::Sweep | TxKind::FeeBump)) else {
            return Ok(None);
        };
        let parent = self.helped.values().find(|cpfp| claimed.contains(&cpfp.anchor.outpoint));
        tracing::info!(%txid, "a claim of before the restart is in the mempool");
        let held = Held::new(tx.clone(), parent.map(|cpfp| cpfp.parent.clone()), claimed.to_vec(), label, fee);
        Ok(Some(Held { is_marked: true, is_seen: true, ..held }))
    }

    /// Outputs that are spent in a block, of those that nothing in the mempool spends; and what commitments spend.
    pub(super) async fn spent(
        &self,
        outpoints: &BTreeSet<OutPoint>,
        spends: &BTreeMap<OutPoint, Arc<Spending>>,
    ) -> Result<BTreeSet<OutPoint>, ChainError> {
        let parents = || self.helped.values();
        let anchors: BTreeSet<OutPoint> = parents().map(|cpfp| cpfp.anchor.outpoint).collect();
        let is_unclear = |outpoint: &&OutPoint| {
            !anchors.contains(outpoint) && spends.get(outpoint).is_none_or(|spending| !spending.is_in_mempool)
        };
        let funding = parents().flat_map(|cpfp| &cpfp.parent.input).map(|input| input.previous_output);
        let asked: BTreeSet<OutPoint> = outpoints.iter().filter(is_unclear).copied().chain(funding).collect();
        let mut spent = BTreeSet::new();
        for outpoint in asked {
            if self.parts.bitcoind.utxo(&outpoint, false).await?.is_none() {
                spent.insert(outpoint);
            }
        }
        Ok(spent)
    }
}
