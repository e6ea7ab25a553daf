//! Making what the plan wants, with the wallet, and sending it.

use bitcoin::{OutPoint, ScriptBuf, Txid};
use millrace_chain::broadcast::Status;
use millrace_wire::{FeeratePerKw, Sat};

use super::held::Held;
use super::{Interrupted, Task};
use crate::claims::build;
use crate::claims::plan::{ChildWanted, HtlcTxWanted, SweepWanted};
use crate::wallet::{Closed, Label, Made, TxKind, WalletError};

impl Task {
    /// The reason if nothing was made.
    pub(super) async fn sweep(&mut self, wanted: SweepWanted) -> Result<Option<String>, Interrupted> {
        let claims: Vec<OutPoint> = wanted.inputs.iter().map(|input| input.claim.outpoint).collect();
        let destination = match wanted.destination.clone().or_else(|| self.destination_of(&claims)) {
            Some(destination) => destination,
            None => self.parts.wallet.new_destination().await?,
        };
        let tx = build::sweep(&wanted, destination, |index| (self.parts.keys_of)(index));
        let first = wanted.inputs[0].channel_id;
        let is_of_one = wanted.inputs.iter().all(|input| input.channel_id == first);
        let label = Label { kind: TxKind::Sweep, channel: is_of_one.then_some(first) };
        self.put(Held::new(tx, None, claims, label, wanted.fee)).await
    }

    /// Where an earlier sweep of these outputs paid to, so that trying again uses up no more addresses.
    fn destination_of(&self, claims: &[OutPoint]) -> Option<ScriptBuf> {
        self.held.values().find(|held| held.spends(claims))?.destination()
    }

    pub(super) async fn htlc_tx(&mut self, wanted: HtlcTxWanted) -> Result<Option<String>, Interrupted> {
        let claims: Vec<OutPoint> =
            wanted.claims.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output).collect();
        self.release_unsent(&claims).await?;
        let mut answer = self.attach_fee(&wanted, wanted.feerate).await?;
        if let Some(made) = answer.as_ref().ok().filter(|made| made.fee > wanted.fee_max) {
            self.parts.wallet.release(made.tx.compute_txid()).await?;
            answer = self.attach_fee(&wanted, lowered(wanted.feerate, wanted.fee_max, made.fee)).await?;
        }
        let mut made = match self.affordable(answer, wanted.fee_max).await? {
            Ok(made) => made,
            Err(reason) => {
                // What cannot be had for all of them can perhaps be had for some.
                self.set_apart(&claims);
                return Ok(Some(reason));
            }
        };
        build::sign_htlc_txs(&mut made, &wanted.claims, &(self.parts.keys_of)(wanted.keys_index));
        let label = Label { kind: TxKind::Sweep, channel: Some(wanted.channel_id) };
        self.put(Held::new(made.tx, None, claims, label, made.fee)).await
    }

    pub(super) async fn child(&mut self, wanted: ChildWanted) -> Result<Option<String>, Interrupted> {
        let claims = vec![wanted.cpfp.anchor.outpoint];
        self.release_unsent(&claims).await?;
        let mut answer = self.cpfp(&wanted, wanted.feerate).await?;
        if let Some(made) = answer.as_ref().ok().filter(|made| made.fee > wanted.fee_max) {
            self.parts.wallet.release(made.tx.compute_txid()).await?;
            let with_parent = |fee: Sat| fee.checked_add(wanted.cpfp.parent_fee).unwrap_or(fee);
            let feerate = lowered(wanted.feerate, with_parent(wanted.fee_max), with_parent(made.fee));
            answer = self.cpfp(&wanted, feerate).await?;
        }
        let mut made = match self.affordable(answer, wanted.fee_max).await? {
            Ok(made) => made,
            Err(reason) => return Ok(Some(reason)),
        };
        build::sign_child(&mut made, &wanted.cpfp, &(self.parts.keys_of)(wanted.keys_index));
        let label = Label { kind: TxKind::FeeBump, channel: Some(wanted.channel_id) };
        self.put(Held::new(made.tx, Some(wanted.cpfp.parent), claims, label, made.fee)).await
    }

    /// Asks the wallet; if it does not know what is to be replaced, without that.
    async fn attach_fee(
        &self,
        wanted: &HtlcTxWanted,
        feerate: FeeratePerKw,
    ) -> Result<Result<Made, WalletError>, Closed> {
        let mut request = build::attach_fee(wanted, feerate);
        let answer = self.parts.wallet.attach_fee(request.clone()).await?;
        if !is_unknown(&answer) {
            return Ok(answer);
        }
        request.replaces = None;
        self.parts.wallet.attach_fee(request).await
    }

    /// As [`Task::attach_fee`].
    async fn cpfp(&self, wanted: &ChildWanted, feerate: FeeratePerKw) -> Result<Result<Made, WalletError>, Closed> {
        let mut request = build::cpfp(wanted, feerate);
        let answer = self.parts.wallet.cpfp(request.clone()).await?;
        if !is_unknown(&answer) {
            return Ok(answer);
        }
        request.replaces = None;
        self.parts.wallet.cpfp(request).await
    }

    /// What the wallet made, unless it made nothing, or something that costs too much.
    async fn affordable(
        &self,
        answer: Result<Made, WalletError>,
        fee_max: Sat,
    ) -> Result<Result<Made, String>, Closed> {
        match answer {
            Ok(made) if made.fee <= fee_max => Ok(Ok(made)),
            Ok(made) => {
                self.parts.wallet.release(made.tx.compute_txid()).await?;
                let fee = made.fee;
                Ok(Err(format!(
                    "with the wallet's coins it would cost {fee}, and no more than {fee_max} are spent on it"
                )))
            }
            Err(error) => {
                tracing::warn!(%error, "the wallet cannot pay for a claim, which is tried again");
                Ok(Err(format!("the wallet cannot pay for it: {error}")))
            }
        }
    }

    /// Frees the coins of transactions for these outputs that the mempool does not have: new ones take their place,
    /// and must not rest on their change.
    async fn release_unsent(&mut self, claims: &[OutPoint]) -> Result<(), Closed> {
        let is_in_the_way = |held: &Held| !held.is_seen && held.spends(claims);
        let unsent: Vec<Txid> =
            self.held.iter().filter(|(_, held)| is_in_the_way(held)).map(|(txid, _)| *txid).collect();
        for txid in unsent {
            self.give_up(txid).await?;
        }
        Ok(())
    }

    /// Sends a new transaction. If the mempool would rather keep the one that it was to replace, that one stays. The reason
    /// if it was not sent at all.
    async fn put(&mut self, held: Held) -> Result<Option<String>, Interrupted> {
        let txid = held.tx.compute_txid();
        if self.held.contains_key(&txid) {
            return Ok(None);
        }
        // Written down before it is out: so it is known as ours after a crash.
        self.parts.wallet.set_label(txid, held.label).await?;
        let before: Vec<Txid> =
            self.held.iter().filter(|(_, other)| other.spends(&held.claims)).map(|(txid, _)| *txid).collect();
        let status = match self.parts.broadcaster.submit(held.submission()).await {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(%txid, %error, "a claim cannot be sent now");
                self.parts.wallet.release(txid).await?;
                return Ok(Some(error.to_string()));
            }
        };
        tracing::info!(%txid, fee = held.fee.0, inputs = held.claims.len(), ?status, "claim sent");
        let is_kept_before = before.iter().any(|txid| self.held[txid].is_seen);
        self.held.insert(txid, held);
        self.note(txid, &status);
        if is_kept_before && matches!(status, Status::Waiting { .. }) {
            // Perhaps it was taken: both are remembered until the mempool says which it has.
            return Ok(None);
        }
        if !status.is_known() && is_kept_before {
            self.held.remove(&txid);
            self.parts.broadcaster.done(txid).await;
            self.parts.wallet.release(txid).await?;
            return Ok(None);
        }
        if status.is_known() {
            self.mark(txid).await?;
            self.held.entry(txid).and_modify(|held| held.is_seen = true);
        }
        for before in before {
            self.give_up(before).await?;
        }
        Ok(None)
    }
}

/// Whether the wallet does not know, or will not replace, the transaction that was named.
const fn is_unknown(answer: &Result<Made, WalletError>) -> bool {
    matches!(answer, Err(WalletError::UnknownTransaction(_) | WalletError::NotReplaceable { .. }))
}

/// The rate at which what cost `fee` costs `fee_max`: the wallet's coins weigh more than the plan thought.
fn lowered(feerate: FeeratePerKw, fee_max: Sat, fee: Sat) -> FeeratePerKw {
    let rate = u128::from(feerate.0) * u128::from(fee_max.0) / u128::from(fee.0.max(1));
    FeeratePerKw(u32::try_from(rate).unwrap_or(u32::MAX)).max(FeeratePerKw::FLOOR)
}
