//! What LDK wants of the world around it, in memory: fees, broadcasts, a log, a wallet; and routes that nobody asks for.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use bitcoin::{OutPoint, Psbt, ScriptBuf, Transaction, TxOut, Witness};
use lightning::blinded_path::message::{BlindedMessagePath, MessageContext, MessageForwardNode};
use lightning::blinded_path::payment::{BlindedPaymentPath, ReceiveTlvs};
use lightning::chain::chaininterface::{BroadcasterInterface, ConfirmationTarget, FeeEstimator};
use lightning::chain::chainmonitor::Persist;
use lightning::chain::channelmonitor::{ChannelMonitor, ChannelMonitorUpdate};
use lightning::chain::{ChannelMonitorUpdateStatus, Filter, WatchedOutput};
use lightning::events::bump_transaction::Utxo;
use lightning::events::bump_transaction::sync::WalletSourceSync;
use lightning::ln::channel_state::ChannelDetails;
use lightning::onion_message::messenger::{Destination, MessageRouter, OnionMessagePath};
use lightning::routing::router::{InFlightHtlcs, Route, RouteParameters, Router};
use lightning::sign::{InMemorySigner, ReceiveAuthKey};
use lightning::util::logger::{Level, Logger, Record};
use lightning::util::persist::MonitorName;
use secp256k1::{PublicKey, Secp256k1, Signing, Verification};

/// The lines of LDK's log that are kept for a failing seed.
const LOG_LINES: usize = 60;

/// An estimator that admits our whole range, and says what the seed wants for LDK's own commitments.
pub(crate) struct Fees(pub(crate) AtomicU32);

impl FeeEstimator for Fees {
    fn get_est_sat_per_1000_weight(&self, target: ConfirmationTarget) -> u32 {
        match target {
            ConfirmationTarget::MaximumFeeEstimate => 250_000,
            ConfirmationTarget::AnchorChannelFee | ConfirmationTarget::NonAnchorChannelFee => {
                self.0.load(Ordering::Relaxed)
            }
            ConfirmationTarget::UrgentOnChainSweep => 1_000,
            ConfirmationTarget::MinAllowedAnchorChannelRemoteFee
            | ConfirmationTarget::MinAllowedNonAnchorChannelRemoteFee
            | ConfirmationTarget::ChannelCloseMinimum
            | ConfirmationTarget::OutputSpendingFee => 253,
        }
    }
}

/// What LDK broadcast.
#[derive(Default)]
pub(crate) struct Broadcasts(Mutex<Vec<Transaction>>);

impl Broadcasts {
    pub(crate) fn take(&self) -> Vec<Transaction> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl BroadcasterInterface for Broadcasts {
    fn broadcast_transactions(&self, txs: &[&Transaction]) {
        self.0.lock().unwrap().extend(txs.iter().map(|tx| (*tx).clone()));
    }
}

/// The end of LDK's log.
#[derive(Default)]
pub(crate) struct Log(Mutex<VecDeque<String>>);

impl Log {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().cloned().collect()
    }
}

impl Logger for Log {
    fn log(&self, record: Record<'_>) {
        if record.level < Level::Debug {
            return;
        }
        let mut lines = self.0.lock().unwrap();
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(format!("{} {}", record.level, record.args));
    }
}

/// LDK hands its monitors to this at each update. They are saved elsewhere: together with the manager.
pub(crate) struct NoDisk;

impl Persist<InMemorySigner> for NoDisk {
    fn persist_new_channel(&self, _: MonitorName, _: &ChannelMonitor<InMemorySigner>) -> ChannelMonitorUpdateStatus {
        ChannelMonitorUpdateStatus::Completed
    }

    fn update_persisted_channel(
        &self,
        _: MonitorName,
        _: Option<&ChannelMonitorUpdate>,
        _: &ChannelMonitor<InMemorySigner>,
    ) -> ChannelMonitorUpdateStatus {
        ChannelMonitorUpdateStatus::Completed
    }

    fn archive_persisted_channel(&self, _: MonitorName) {}
}

/// LDK is given every block whole.
pub(crate) struct NoFilter;

impl Filter for NoFilter {
    fn register_tx(&self, _: &bitcoin::Txid, _: &bitcoin::Script) {}
    fn register_output(&self, _: WatchedOutput) {}
}

/// There is one channel, and the route along it is given.
pub(crate) struct NoRoutes;

impl Router for NoRoutes {
    fn find_route(
        &self,
        _: &PublicKey,
        _: &RouteParameters,
        _: Option<&[&ChannelDetails]>,
        _: InFlightHtlcs,
    ) -> Result<Route, &'static str> {
        Err("routes are given")
    }

    fn create_blinded_payment_paths<T: Signing + Verification>(
        &self,
        _: PublicKey,
        _: Vec<ChannelDetails>,
        _: ReceiveTlvs,
        _: Option<u64>,
        _: &Secp256k1<T>,
    ) -> Result<Vec<BlindedPaymentPath>, ()> {
        Err(())
    }
}

impl MessageRouter for NoRoutes {
    fn find_path(&self, _: PublicKey, _: Vec<PublicKey>, _: Destination) -> Result<OnionMessagePath, ()> {
        Err(())
    }

    fn create_blinded_paths<T: Signing + Verification>(
        &self,
        _: PublicKey,
        _: ReceiveAuthKey,
        _: MessageContext,
        _: Vec<MessageForwardNode>,
        _: &Secp256k1<T>,
    ) -> Result<Vec<BlindedMessagePath>, ()> {
        Err(())
    }
}

/// Coins of LDK's wallet that anyone can spend.
#[derive(Default)]
pub(crate) struct Coins(pub(crate) Mutex<Vec<(OutPoint, TxOut)>>);

/// The script that anyone can satisfy.
pub(crate) fn anyones() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51])
}

impl WalletSourceSync for Coins {
    fn list_confirmed_utxos(&self) -> Result<Vec<Utxo>, ()> {
        let coins = self.0.lock().unwrap();
        // An empty script_sig, and a witness of one item with one byte.
        let utxo = |(outpoint, output): &(OutPoint, TxOut)| Utxo {
            outpoint: *outpoint,
            output: output.clone(),
            satisfaction_weight: 4 + 3,
        };
        Ok(coins.iter().map(utxo).collect())
    }

    fn get_change_script(&self) -> Result<ScriptBuf, ()> {
        Ok(anyones().to_p2wsh())
    }

    fn sign_psbt(&self, psbt: Psbt) -> Result<Transaction, ()> {
        let coins = self.0.lock().unwrap();
        let mut tx = psbt.unsigned_tx;
        for input in &mut tx.input {
            if coins.iter().any(|(outpoint, _)| *outpoint == input.previous_output) {
                input.witness = Witness::from_slice(&[anyones().as_bytes()]);
            }
        }
        Ok(tx)
    }
}
