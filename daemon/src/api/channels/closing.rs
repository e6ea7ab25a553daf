//! Closing a channel, and telling how that goes on.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::ScriptBuf;
use millrace_channel::Policy;
use millrace_channel::input::CloseOrder;
use millrace_channel::phase::on_chain::Ending;
use millrace_rpc::v1::{self, CloseChannelProgress, close_channel_progress};
use millrace_wire::{ChannelId, FeeratePerKw};
use tonic::Status;

use super::{ChannelsService, Progress, past_row};
use crate::api::channel_text::{Extent, closed_message, message, present_kind, resolution, swept};
use crate::api::events::close_kind;
use crate::api::once::{Finished, Once, Stored};
use crate::api::{Shared, fault, parse};
use crate::channels::{ChannelSnapshot, ChannelState};
use crate::happened::{CloseKind, ClosingTx};

/// How often is looked at what no channel tells: confirmations of others' transactions, claims.
const LOOK: Duration = Duration::from_millis(500);
/// When the peer proposes the fee of a mutual close, we pay up to so many times our own choice.
const CLOSE_FEE_MULTIPLE: u32 = 3;

/// What is wanted of a closing.
#[derive(Debug)]
pub(super) enum Closing {
    /// Alone.
    Forced,
    /// Together, at this feerate, paying this script or a fresh one.
    Agreed(FeeratePerKw, Option<ScriptBuf>),
}

impl ChannelsService {
    pub(super) fn close_order(&self, request: &v1::CloseChannelRequest) -> Result<Closing, Status> {
        if request.force {
            if request.fee.is_some() {
                return Err(fault::field("fee", "not with `force`: the commitment's fee is fixed"));
            }
            if !request.address.is_empty() {
                return Err(fault::field("address", "not with `force`: the coins go to the wallet"));
            }
            return Ok(Closing::Forced);
        }
        let fees = self.0.api.fees.borrow();
        let feerate = match &request.fee {
            Some(choice) => parse::feerate(Some(choice), &fees)?,
            None => FeeratePerKw(fees.mutual_close().0),
        };
        let script = match request.address.as_str() {
            "" => None,
            address => Some(self.script("address", address)?),
        };
        Ok(Closing::Agreed(feerate, script))
    }
}

pub(super) async fn close(
    inner: &Shared,
    once: &mut Once,
    channel_id: ChannelId,
    wanted: Closing,
) -> Result<Finished, Status> {
    let registry = &inner.api.registry;
    let Some(snapshot) = registry.snapshot(channel_id) else {
        return Err(match past_row(inner, channel_id).await? {
            Some(_) => fault::channel_state(ChannelState::Closed, "be closed again"),
            None => fault::not_found("channel", channel_id),
        });
    };
    if snapshot.state == ChannelState::Closed {
        return Err(fault::channel_state(snapshot.state, "be closed again"));
    }
    once.begin().await?;
    let result = match wanted {
        Closing::Forced => registry.force_close(channel_id, "the owner of this node closed it".to_owned()).await,
        Closing::Agreed(feerate, script) => {
            let script = match script.or_else(|| snapshot.upfront_shutdown_script().cloned()) {
                Some(script) => script,
                None => inner.api.wallet.new_destination().await.map_err(|_| fault::stopping())?,
            };
            let feerate_max = FeeratePerKw(feerate.0.saturating_mul(CLOSE_FEE_MULTIPLE));
            registry.close(channel_id, CloseOrder { script, feerate, feerate_max }).await
        }
    };
    match result {
        Ok(_) => Ok(Finished { stored: Stored::Reference(channel_id.0.to_vec()), is_durable: false }),
        Err(error) => Err(fault::command(&error)),
    }
}

/// What was told of a closing.
#[derive(Default)]
struct Told {
    pending: Option<u32>,
    broadcast: Option<Vec<u8>>,
    depth: Option<u32>,
    resolution: Option<v1::OnChainResolution>,
}

/// Tells how a channel closes: by agreement until the transaction is in a block, otherwise until all is resolved.
pub(super) async fn follow_closing(inner: Shared, channel_id: ChannelId, to: Progress<CloseChannelProgress>) {
    let Some(mut watch) = inner.api.registry.watch(channel_id) else {
        return tell_past_closing(&inner, channel_id, &to).await;
    };
    let mut told = Told::default();
    loop {
        let snapshot = Arc::clone(&watch.borrow_and_update());
        for stage in told.stages(&inner, &snapshot).await {
            let is_last = matches!(stage, close_channel_progress::Stage::Closed(_));
            let step = CloseChannelProgress { channel_id: channel_id.0.to_vec(), stage: Some(stage) };
            if to.send(Ok(step)).await.is_err() || is_last {
                return;
            }
        }
        tokio::select! {
            changed = watch.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(LOOK) => {}
            () = to.closed() => return,
            () = inner.stopped() => {
                let _gone = to.send(Err(fault::stopping())).await;
                return;
            }
        }
    }
}

/// The channel was closed before the node's last start: what is left to tell is how it ended.
async fn tell_past_closing(inner: &Shared, channel_id: ChannelId, to: &Progress<CloseChannelProgress>) {
    let row = past_row(inner, channel_id).await;
    let row = match row.and_then(|row| row.ok_or_else(|| fault::not_found("channel", channel_id))) {
        Ok(row) => row,
        Err(status) => {
            let _gone = to.send(Err(status)).await;
            return;
        }
    };
    let mut stages = Vec::new();
    Told::default().tell_broadcast(row.close, row.kind.unwrap_or(CloseKind::Unknown), &mut stages);
    let closed = closed_message(&row, Extent::Whole, &swept(inner).await);
    stages.push(close_channel_progress::Stage::Closed(closed));
    for stage in stages {
        let step = CloseChannelProgress { channel_id: channel_id.0.to_vec(), stage: Some(stage) };
        if to.send(Ok(step)).await.is_err() {
            return;
        }
    }
}

impl Told {
    /// What is new.
    async fn stages(&mut self, inner: &Shared, snapshot: &ChannelSnapshot) -> Vec<close_channel_progress::Stage> {
        use close_channel_progress::Stage;
        let mut stages = Vec::new();
        match snapshot.state {
            ChannelState::Opening | ChannelState::Normal => {}
            ChannelState::ShuttingDown => self.tell_pending(snapshot, &mut stages),
            ChannelState::Closing => {
                self.tell_pending(snapshot, &mut stages);
                self.tell_broadcast(snapshot.ending.as_ref().map(closing_tx), CloseKind::Cooperative, &mut stages);
            }
            ChannelState::OnChain | ChannelState::Closed => {
                inner.past.view.catch_up(&inner.past.log).await;
                let row = inner.past.view.channel(&snapshot.channel_id).ok().flatten();
                let told = row.as_ref().and_then(|row| row.kind).unwrap_or(CloseKind::Unknown);
                let kind = present_kind(snapshot).unwrap_or(told);
                let close = snapshot.ending.as_ref().map(closing_tx).or(row.and_then(|row| row.close));
                self.tell_broadcast(close, kind, &mut stages);
                // One confirmation is enough to go home with after a close by agreement; the node itself waits longer.
                let is_agreed = kind == CloseKind::Cooperative;
                let need = if is_agreed { 1 } else { Policy::default().burial_depth };
                self.tell_depth(close, need, inner, &mut stages).await;
                if is_agreed || snapshot.state == ChannelState::Closed {
                    stages.push(Stage::Closed(message(inner, snapshot, Extent::Whole, &swept(inner).await)));
                } else if let Some(ending) = &snapshot.ending {
                    let resolution = resolution(ending, &inner.api.claimer.status().borrow(), Extent::Whole);
                    if self.resolution.as_ref() != Some(&resolution) {
                        self.resolution = Some(resolution.clone());
                        stages.push(Stage::Resolving(resolution));
                    }
                }
            }
        }
        stages
    }

    fn tell_pending(&mut self, snapshot: &ChannelSnapshot, stages: &mut Vec<close_channel_progress::Stage>) {
        let pending = u32::try_from(snapshot.htlcs.len()).unwrap_or(u32::MAX);
        if self.pending != Some(pending) {
            self.pending = Some(pending);
            let started = v1::ShutdownStarted { htlcs_pending: pending };
            stages.push(close_channel_progress::Stage::ShutdownStarted(started));
        }
    }

    async fn tell_depth(
        &mut self,
        close: Option<ClosingTx>,
        need: u32,
        inner: &Shared,
        stages: &mut Vec<close_channel_progress::Stage>,
    ) {
        let Some(ClosingTx { txid, height: Some(height), .. }) = close else { return };
        let Ok((tip, _)) = inner.api.wallet.tip().await else { return };
        // The wallet may be a block behind the channel.
        let have = (tip + 1).saturating_sub(height.0).clamp(1, need);
        if self.depth.replace(have) != Some(have) {
            let confirmations = v1::Confirmations { txid: parse::txid_bytes(&txid), have, need };
            stages.push(close_channel_progress::Stage::Confirmations(confirmations));
        }
    }

    fn tell_broadcast(
        &mut self,
        close: Option<ClosingTx>,
        kind: CloseKind,
        stages: &mut Vec<close_channel_progress::Stage>,
    ) {
        let Some(ClosingTx { txid, fee, direct, .. }) = close else { return };
        let txid = parse::txid_bytes(&txid);
        if self.broadcast.as_ref() == Some(&txid) {
            return;
        }
        self.broadcast = Some(txid.clone());
        stages.push(close_channel_progress::Stage::Broadcast(v1::ClosingBroadcast {
            txid,
            kind: close_kind(kind).into(),
            fee_sat: fee.0,
            local_sat: direct.0,
        }));
    }
}

const fn closing_tx(ending: &Ending) -> ClosingTx {
    ClosingTx { txid: ending.txid, fee: ending.fee, direct: ending.direct, height: ending.height }
}
