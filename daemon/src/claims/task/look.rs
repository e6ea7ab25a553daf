//! What bitcoind says about the claimed outputs: what spends them in the mempool, and which are spent in a block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_chain::ChainError;
use millrace_wire::Sat;

use super::{Held, Interrupted, Task, now_s};
use crate::claims::plan::Spending;
use crate::wallet::TxKind;

impl Task {
    /// What spends the outputs: in the mempool, or made here and on its way there.
    pub(super) async fn spends(
        &mut self,
        outpoints: &BTreeSet<OutPoint>,
    ) -> Result<BTreeMap<OutPoint, Arc<Spending>>, Interrupted> {
        let asked: Vec<OutPoint> = outpoints.iter().copied().collect();
        let spenders = self.parts.bitcoind.mempool_spenders(&asked).await?;
        let mut spends = BTreeMap::new();
        for held in self.held.values() {
            let spending = Arc::new(held.spending(None));
            spends.extend(held.claims.iter().map(|outpoint| (*outpoint, Arc::clone(&spending))));
        }
        let mut by_spender: BTreeMap<Txid, Vec<OutPoint>> = BTreeMap::new();
        for (outpoint, spender) in asked.into_iter().zip(spenders) {
            if let Some(spender) = spender {
                by_spender.entry(spender).or_default().push(outpoint);
            }
        }
        for (txid, held) in &mut self.held {
            held.is_seen = by_spender.contains_key(txid);
        }
        for (txid, claimed) in by_spender {
            if let Some(spending) = self.spending(txid, &claimed).await? {
                let spending = Arc::new(spending);
                spends.extend(claimed.into_iter().map(|outpoint| (outpoint, Arc::clone(&spending))));
            }
        }
        Ok(spends)
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
        let parents = self.claims.values().filter_map(|claims| claims.parent.as_ref());
        let parent = parents.into_iter().find(|cpfp| claimed.contains(&cpfp.anchor.outpoint));
        tracing::info!(%txid, "a claim of before the restart is in the mempool");
        Ok(Some(Held {
            tx: tx.clone(),
            parent: parent.map(|cpfp| cpfp.parent.clone()),
            claims: claimed.to_vec(),
            label,
            fee,
            is_marked: true,
            is_seen: true,
            refusal: None,
        }))
    }

    /// Outputs that are spent in a block, of those that nothing in the mempool spends; and what commitments spend.
    pub(super) async fn spent(
        &self,
        outpoints: &BTreeSet<OutPoint>,
        spends: &BTreeMap<OutPoint, Arc<Spending>>,
    ) -> Result<BTreeSet<OutPoint>, ChainError> {
        let parents = || self.claims.values().filter_map(|claims| claims.parent.as_ref());
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
