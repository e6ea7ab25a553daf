//! The service `Wallet`: coins on chain.

use std::collections::BTreeMap;

use bitcoin::Transaction;
use bitcoin::consensus::encode::{deserialize, serialize};
use millrace_chain::broadcast::{Status as BroadcastStatus, Submission, SubmitError};
use millrace_rpc::v1::wallet_server::Wallet;
use millrace_rpc::v1::{
    self, BalanceResponse, BumpFeeResponse, ChannelStateBalance, ListTransactionsResponse, ListUtxosResponse,
    NewAddressResponse, SendResponse,
};
use millrace_wire::Sat;
use prost::Message;
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use super::channel_text::state_message;
use super::once::{self, Finished, Once, Stored, once};
use super::{Shared, fault, parse};
use crate::clock;
use crate::coins::{keep_reserve, try_out};
use crate::wallet::{AddressType, Amount, Label, Made, TxKind, Utxo, WalletTx};

pub(super) struct WalletService(pub(super) Shared);

/// A transaction and the answer about it, as a key keeps them: written before anything leaves, so that the transaction
/// can be sent again, and no other one in its place.
#[derive(Serialize, Deserialize)]
struct Sent {
    tx: Vec<u8>,
    answer: Vec<u8>,
}

#[tonic::async_trait]
impl Wallet for WalletService {
    async fn new_address(
        &self,
        request: Request<v1::NewAddressRequest>,
    ) -> Result<Response<NewAddressResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let kind = match v1::AddressType::try_from(request.address_type) {
            Ok(v1::AddressType::Unspecified | v1::AddressType::Taproot) => AddressType::Taproot,
            Ok(v1::AddressType::Segwit) => AddressType::Segwit,
            Err(_) => return Err(fault::field("address_type", "no such kind of address")),
        };
        let stored = once(&self.0, "Wallet.NewAddress", &key, &request, move |inner, mut once| async move {
            let result = async {
                once.begin().await?;
                let address = inner.api.wallet.new_address(kind).await.map_err(|_| fault::stopping())?;
                Ok(Finished::answer(&NewAddressResponse { address: address.to_string() }))
            };
            let result = result.await;
            (once, result)
        });
        Ok(Response::new(once::answer(&stored.await?)?))
    }

    async fn balance(&self, _: Request<v1::BalanceRequest>) -> Result<Response<BalanceResponse>, Status> {
        self.0.ready()?;
        let inner = &self.0;
        keep_reserve(&inner.api.wallet, &inner.api.registry).await;
        let balance = inner.api.wallet.balance().await.map_err(|_| fault::stopping())?;
        let claimable = inner.api.claimer.status().borrow().claimable();
        Ok(Response::new(BalanceResponse {
            confirmed_sat: balance.confirmed.0,
            unconfirmed_sat: balance.unconfirmed.0,
            immature_sat: balance.immature.0,
            anchor_reserve_sat: balance.reserved.0,
            spendable_sat: balance.spendable.0,
            channels: channel_balances(inner),
            claimable_sat: claimable.0,
        }))
    }

    async fn send(&self, request: Request<v1::SendRequest>) -> Result<Response<SendResponse>, Status> {
        use v1::send_request::Amount as Wanted;
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let amount = match request.amount {
            Some(Wanted::AmountSat(sat)) if Sat(sat).is_money() => Amount::Exactly(Sat(sat)),
            Some(Wanted::AmountSat(_)) => return Err(fault::field("amount_sat", "there is not so much bitcoin")),
            Some(Wanted::All(true)) => Amount::All,
            Some(Wanted::All(false)) => return Err(fault::field("all", "must be true if it is set")),
            None => return Err(fault::field("amount_sat", "say how much, or `all`")),
        };
        let feerate = parse::feerate(request.fee.as_ref(), &self.0.api.fees.borrow())?;
        let address = request.address.clone();
        let stored = once(&self.0, "Wallet.Send", &key, &request, move |inner, once| async move {
            if let Err(why) = inner.api.registry.check_new_work() {
                return (once, Err(fault::no_new_work(&why)));
            }
            keep_reserve(&inner.api.wallet, &inner.api.registry).await;
            let made = inner.api.wallet.send(address, amount, feerate).await;
            let result = match made {
                Ok(Ok(made)) => {
                    let answer = SendResponse {
                        txid: parse::txid_bytes(&made.tx.compute_txid()),
                        amount_sat: made.amount.0,
                        fee_sat: made.fee.0,
                        feerate_sat_per_kw: paid_feerate(&made),
                        waiting: String::new(),
                    };
                    send(&inner, &once, &made, answer.encode_to_vec()).await
                }
                Ok(Err(error)) => Err(fault::wallet(&error)),
                Err(_) => Err(fault::stopping()),
            };
            (once, result)
        });
        let (answer, waiting) = self.sent(&stored.await?).await?;
        Ok(Response::new(SendResponse { waiting, ..decode(&answer)? }))
    }

    async fn bump_fee(&self, request: Request<v1::BumpFeeRequest>) -> Result<Response<BumpFeeResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let txid = parse::txid(&request.txid)?;
        let feerate = parse::feerate(request.fee.as_ref(), &self.0.api.fees.borrow())?;
        let stored = once(&self.0, "Wallet.BumpFee", &key, &request, move |inner, once| async move {
            if let Err(why) = inner.api.registry.check_new_work() {
                return (once, Err(fault::no_new_work(&why)));
            }
            keep_reserve(&inner.api.wallet, &inner.api.registry).await;
            let result = match inner.api.wallet.bump_fee(txid, feerate).await {
                Ok(Ok(made)) => {
                    let answer = BumpFeeResponse {
                        txid: parse::txid_bytes(&made.tx.compute_txid()),
                        fee_sat: made.fee.0,
                        feerate_sat_per_kw: paid_feerate(&made),
                        waiting: String::new(),
                    };
                    send(&inner, &once, &made, answer.encode_to_vec()).await
                }
                Ok(Err(error)) => Err(fault::wallet(&error)),
                Err(_) => Err(fault::stopping()),
            };
            (once, result)
        });
        let (answer, waiting) = self.sent(&stored.await?).await?;
        Ok(Response::new(BumpFeeResponse { waiting, ..decode(&answer)? }))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<ListTransactionsResponse>, Status> {
        self.0.ready()?;
        let mut all = self.0.api.wallet.transactions().await.map_err(|_| fault::stopping())?;
        all.sort_by_key(|tx| std::cmp::Reverse((tx.height.unwrap_or(u32::MAX), tx.time_s, tx.txid)));
        let (rows, next_cursor) = parse::slice(all, request.into_inner().page.as_ref())?;
        let transactions = rows.iter().map(transaction).collect();
        Ok(Response::new(ListTransactionsResponse { transactions, next_cursor }))
    }

    async fn list_utxos(&self, request: Request<v1::ListUtxosRequest>) -> Result<Response<ListUtxosResponse>, Status> {
        self.0.ready()?;
        let mut all = self.0.api.wallet.utxos().await.map_err(|_| fault::stopping())?;
        all.sort_by_key(|utxo| (utxo.confirmations, utxo.outpoint));
        let (rows, next_cursor) = parse::slice(all, request.into_inner().page.as_ref())?;
        Ok(Response::new(ListUtxosResponse { utxos: rows.iter().map(utxo).collect(), next_cursor }))
    }
}

/// Asks bitcoind whether it would take the transaction, writes it down as the key's result, and then lets it go.
async fn send(inner: &Shared, once: &Once, made: &Made, answer: Vec<u8>) -> Result<Finished, Status> {
    let tried = try_out(&inner.api.wallet, &inner.api.broadcaster, &made.tx).await;
    tried.map_err(|reason| fault::broadcast_refused(&reason))?;
    let sent = Sent { tx: serialize(&made.tx), answer };
    let encoded = postcard::to_stdvec(&sent).expect("plain data into memory: nothing can fail");
    let stored = Stored::Reference(encoded);
    if let Err(status) = once.write_result(&stored).await {
        // Nothing has left: the coins are free again.
        let _closed = inner.api.wallet.release(made.tx.compute_txid()).await;
        return Err(status);
    }
    Ok(Finished { stored, is_durable: true })
}

impl WalletService {
    /// Sees to it that what a key stands for is on its way, however often it is asked for. Also says why bitcoind does not
    /// have it yet, if it has not.
    async fn sent(&self, stored: &Stored) -> Result<(Vec<u8>, String), Status> {
        let api = &self.0.api;
        let malformed = |what: String| fault::internal(format!("a stored transaction does not decode: {what}"));
        let sent: Sent =
            postcard::from_bytes(once::reference(stored)?).map_err(|error| malformed(error.to_string()))?;
        let tx: Transaction = deserialize(&sent.tx).map_err(|error| malformed(error.to_string()))?;
        let txid = tx.compute_txid();
        let known = api.wallet.ask(move |wallet| wallet.transaction(&txid)).await.map_err(|_| fault::stopping())?;
        if known.is_some_and(|known| known.height.is_some()) {
            return Ok((sent.answer, String::new()));
        }
        // It was replaced, by `bump-fee` or by a rival that is in a block: to say it again would only hide what took its place.
        let is_replaced = api.wallet.ask(move |wallet| wallet.is_replaced(&txid)).await;
        if is_replaced.map_err(|_| fault::stopping())? {
            return Ok((sent.answer, "it was replaced by another transaction of this wallet".to_owned()));
        }
        let label = Label { kind: TxKind::Withdrawal, channel: None };
        let now = clock::unix_ms() / 1000;
        api.wallet.mark_broadcast(tx.clone(), label, now).await.map_err(|_| fault::stopping())?;
        let waiting = match api.broadcaster.submit(Submission::Single(tx)).await {
            Ok(BroadcastStatus::InMempool | BroadcastStatus::Confirmed) => String::new(),
            Ok(BroadcastStatus::Refused { reason, .. } | BroadcastStatus::Waiting { reason }) => reason,
            Err(error @ SubmitError::Full) => error.to_string(),
            Err(SubmitError::Ended) => return Err(fault::stopping()),
        };
        if !waiting.is_empty() {
            // It stays the wallet's: it is sent again, and the mempool may want it later.
            tracing::warn!(%txid, waiting, "a transaction waits to be broadcast");
        }
        Ok((sent.answer, waiting))
    }
}

fn decode<T: Message + Default>(answer: &[u8]) -> Result<T, Status> {
    T::decode(answer).map_err(|error| fault::internal(format!("a stored answer does not decode: {error}")))
}

/// What it really pays, rounded down.
fn paid_feerate(made: &Made) -> u32 {
    let weight = made.tx.weight().to_wu().max(1);
    u32::try_from(made.fee.0.saturating_mul(1000) / weight).unwrap_or(u32::MAX)
}

fn channel_balances(inner: &Shared) -> Vec<ChannelStateBalance> {
    let mut by_state: BTreeMap<i32, ChannelStateBalance> = BTreeMap::new();
    for snapshot in inner.api.registry.snapshots() {
        let state: i32 = state_message(&snapshot).into();
        let sum = by_state.entry(state).or_insert(ChannelStateBalance { state, ..ChannelStateBalance::default() });
        sum.count = sum.count.saturating_add(1);
        sum.local_msat = sum.local_msat.saturating_add(snapshot.balances.local.0);
        sum.remote_msat = sum.remote_msat.saturating_add(snapshot.balances.remote.0);
        sum.offered_msat = sum.offered_msat.saturating_add(snapshot.in_flight.local.0);
        sum.received_msat = sum.received_msat.saturating_add(snapshot.in_flight.remote.0);
    }
    by_state.into_values().collect()
}

pub(super) fn transaction(tx: &WalletTx) -> v1::WalletTransaction {
    let kind = match tx.label.kind {
        TxKind::Deposit => v1::TransactionKind::Deposit,
        TxKind::Withdrawal => v1::TransactionKind::Withdrawal,
        TxKind::Funding => v1::TransactionKind::Funding,
        TxKind::CooperativeClose => v1::TransactionKind::CooperativeClose,
        TxKind::Commitment => v1::TransactionKind::Commitment,
        TxKind::Sweep => v1::TransactionKind::Sweep,
        TxKind::FeeBump => v1::TransactionKind::FeeBump,
    };
    v1::WalletTransaction {
        txid: parse::txid_bytes(&tx.txid),
        received_sat: tx.received.0,
        sent_sat: tx.sent.0,
        fee_sat: tx.fee.map(|fee| fee.0),
        height: tx.height,
        confirmations: tx.confirmations,
        time_ms: tx.time_s.saturating_mul(1000),
        kind: kind.into(),
        channel_id: tx.label.channel.map(|id| id.0.to_vec()).unwrap_or_default(),
    }
}

fn utxo(utxo: &Utxo) -> v1::Utxo {
    v1::Utxo {
        outpoint: Some(parse::outpoint_message(&utxo.outpoint)),
        amount_sat: utxo.amount.0,
        address: utxo.address.to_string(),
        confirmations: utxo.confirmations,
        reserved: utxo.is_reserved,
        locked: utxo.is_locked,
    }
}
