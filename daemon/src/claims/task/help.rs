//! Which commitment of each channel is to be helped into a block: the one that the mempool has.
//!
//! It may be the peer's, current, next or revoked: then ours is refused there, and so is a child of ours. Our anchor is in
//! each of them.

use bitcoin::{OutPoint, Txid};
use millrace_channel::phase::on_chain::Claims;
use millrace_wire::ChannelId;

use super::{Interrupted, Task};

impl Task {
    /// Looks for what spends the funding outputs in the mempool, and chooses.
    pub(super) async fn help(&mut self) -> Result<(), Interrupted> {
        let funding = |claims: &Claims| claims.others.as_ref().map(|others| others.funding);
        let asked: Vec<(ChannelId, OutPoint)> =
            self.claims.iter().filter_map(|(id, claims)| funding(claims).map(|outpoint| (*id, outpoint))).collect();
        let outpoints: Vec<OutPoint> = asked.iter().map(|(_, outpoint)| *outpoint).collect();
        let spenders = self.parts.bitcoind.mempool_spenders(&outpoints).await?;
        self.seen.retain(|id, _| asked.iter().any(|(asked, _)| asked == id));
        let mut present = Vec::new();
        for ((id, _), spender) in asked.into_iter().zip(spenders) {
            if let Some(txid) = spender {
                self.see(id, txid).await?;
            }
            present.push((id, spender));
        }
        self.helped = present.into_iter().filter_map(|(id, spender)| Some((id, self.choose(id, spender)?))).collect();
        Ok(())
    }

    /// Keeps what spends a funding output, unless it is our own commitment.
    async fn see(&mut self, id: ChannelId, txid: Txid) -> Result<(), Interrupted> {
        let is_ours = self.claims[&id].parent.as_ref().is_some_and(|ours| ours.parent.compute_txid() == txid);
        if is_ours || self.seen.get(&id).is_some_and(|seen| seen.compute_txid() == txid) {
            return Ok(());
        }
        if let Some(tx) = self.parts.bitcoind.transaction(&txid, None).await? {
            tracing::info!(channel_id = %id, %txid, "what spends the funding output in the mempool is not our commitment");
            self.seen.insert(id, tx);
        }
        Ok(())
    }

    /// The one in the mempool; while that has none, ours; if ours is not to be broadcast, the last that was seen. One without
    /// our anchor cannot be helped: then ours is to take its place.
    fn choose(&self, id: ChannelId, spender: Option<Txid>) -> Option<millrace_channel::phase::on_chain::Cpfp> {
        let claims = self.claims.get(&id)?;
        let theirs = self.seen.get(&id).and_then(|tx| claims.others.as_ref()?.cpfp(tx));
        match (spender, &claims.parent) {
            (Some(txid), parent) => {
                let theirs = theirs.filter(|cpfp| cpfp.anchor.outpoint.txid == txid);
                theirs.or_else(|| parent.clone())
            }
            (None, Some(parent)) => Some(parent.clone()),
            (None, None) => theirs,
        }
    }
}
