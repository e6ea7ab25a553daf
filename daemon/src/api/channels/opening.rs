//! Opening a channel, and telling how that goes on.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, ScriptBuf};
use millrace_rpc::v1::{self, ErrorDetail, ErrorReason, OpenChannelProgress, open_channel_progress};
use millrace_wire::{ChannelId, Msat, Sat};
use tonic::Status;

use super::{ChannelsService, Progress, past_row};
use crate::api::channel_text::{Extent, Swept, closed_message, message};
use crate::api::once::{Once, Stored, reference_entry};
use crate::api::{Shared, fault, parse};
use crate::channels::{ChannelSnapshot, ChannelState, OpenOrder, OpenProgress};

impl ChannelsService {
    pub(super) fn open_order(&self, request: &v1::OpenChannelRequest) -> Result<OpenOrder, Status> {
        let peer = parse::node_id(&request.node_id)?;
        let capacity = Sat(request.capacity_sat);
        let limits = &self.0.api.config.channel;
        if capacity < limits.min_funding || capacity > limits.max_funding {
            let (reason, name, limit) = match capacity < limits.min_funding {
                true => (ErrorReason::AmountBelowMinimum, "min_funding_sat", limits.min_funding),
                false => (ErrorReason::AmountAboveMaximum, "max_funding_sat", limits.max_funding),
            };
            return Err(ErrorDetail::new(reason)
                .fact("capacity_sat", capacity.0)
                .fact(name, limit.0)
                .hint("Choose a capacity within the limits, or change them in the settings.")
                .into_status(format!("a channel of {capacity} is outside of {name} {limit}")));
        }
        let push = Msat(request.push_msat);
        if push > capacity.to_msat() {
            return Err(ErrorDetail::new(ErrorReason::AmountAboveMaximum)
                .fact("push_msat", push.0)
                .fact("capacity_msat", capacity.to_msat().0)
                .hint("Give the peer no more than the channel holds.")
                .into_status(format!("push_msat: {push} is more than the channel's {capacity}")));
        }
        let delay = request.to_self_delay_blocks.map(u16::try_from).transpose();
        let to_self_delay = delay.map_err(|_| fault::field("to_self_delay_blocks", "65,535 blocks are the most"))?;
        let upfront_shutdown_script = match request.close_address.as_str() {
            "" => None,
            address => Some(self.script("close_address", address)?),
        };
        Ok(OpenOrder {
            peer,
            capacity,
            push,
            funding_feerate: parse::feerate(request.fee.as_ref(), &self.0.api.fees.borrow())?,
            zero_conf: request.zero_conf,
            announce: request.public.unwrap_or(limits.announce),
            to_self_delay,
            htlc_minimum: request.htlc_minimum_msat.map(Msat),
            max_in_flight: request.max_in_flight_msat.map(Msat),
            upfront_shutdown_script,
            when_opened: None,
        })
    }

    pub(super) fn script(&self, name: &'static str, address: &str) -> Result<ScriptBuf, Status> {
        let network = self.0.api.config.network;
        let invalid = |what: String| {
            ErrorDetail::new(ErrorReason::AddressInvalid)
                .fact("field", name)
                .hint("Check that the address was copied whole.")
                .into_status(format!("{name}: {what}"))
        };
        if address.len() > 200 {
            return Err(invalid(format!("{} bytes are too long for an address", address.len())));
        }
        let parsed: Address<NetworkUnchecked> =
            address.parse().map_err(|error: bitcoin::address::ParseError| invalid(error.to_string()))?;
        match parsed.require_network(network) {
            Ok(address) => Ok(address.script_pubkey()),
            Err(_) => Err(ErrorDetail::new(ErrorReason::WrongNetwork)
                .fact("field", name)
                .fact("expected", crate::config::network_name(network))
                .fact("found", "another")
                .hint("Use an address of this node's network.")
                .into_status(format!("{name}: an address of another network"))),
        }
    }
}

pub(super) async fn open(inner: Shared, mut once: Once, mut order: OpenOrder, to: Progress<OpenChannelProgress>) {
    let result = async {
        if once.was_interrupted() {
            return Err(interrupted());
        }
        once.begin().await?;
        let names = once.names();
        order.when_opened = Some(Box::new(move |channel_id| vec![reference_entry(names, &channel_id.0)]));
        let mut progress = inner.api.registry.open_channel(order).map_err(|failure| fault::open(&failure))?;
        while let Some(step) = progress.recv().await {
            match step {
                OpenProgress::Negotiated { temporary_channel_id, minimum_depth, remote_reserve, local_reserve } => {
                    let negotiated = open_channel_progress::Stage::Negotiated(v1::OpenNegotiated {
                        minimum_depth,
                        remote_reserve_sat: remote_reserve.0,
                        local_reserve_sat: local_reserve.0,
                    });
                    // Whoever has gone away does not end the opening.
                    let _gone = to.send(Ok(open_step(temporary_channel_id, true, negotiated))).await;
                }
                OpenProgress::Opened { channel_id, .. } => return Ok(channel_id),
                OpenProgress::Failed(failure) => return Err(fault::open(&failure)),
            }
        }
        Err(fault::stopping())
    };
    match result.await {
        Ok(channel_id) => {
            // Written in the step that made the channel.
            once.finish(&Stored::Reference(channel_id.0.to_vec()));
            follow_opening(inner, channel_id, to).await;
        }
        Err(status) => {
            if let Err(error) = once.fail(&status).await {
                tracing::warn!(%error, "the result of an opening was not written down");
            }
            let _gone = to.send(Err(status)).await;
        }
    }
}

pub(super) fn interrupted() -> Status {
    ErrorDetail::new(ErrorReason::OpenFailed)
        .hint("Open again with a new idempotency key; nothing was spent.")
        .into_status("the node was restarted before the channel existed")
}

pub(super) fn open_step(
    channel_id: ChannelId,
    temporary: bool,
    stage: open_channel_progress::Stage,
) -> OpenChannelProgress {
    OpenChannelProgress { channel_id: channel_id.0.to_vec(), temporary, stage: Some(stage) }
}

/// Tells how a channel that exists comes into use.
pub(super) async fn follow_opening(inner: Shared, channel_id: ChannelId, to: Progress<OpenChannelProgress>) {
    use open_channel_progress::Stage;
    let Some(mut watch) = inner.api.registry.watch(channel_id) else {
        let _gone = to.send(over(&inner, channel_id).await).await;
        return;
    };
    let (mut told_funding, mut told_depth) = (false, None);
    loop {
        let snapshot = Arc::clone(&watch.borrow_and_update());
        let stage = match snapshot.state {
            ChannelState::Opening if !told_funding => {
                told_funding = true;
                Some(Stage::FundingBroadcast(v1::FundingBroadcast {
                    funding_outpoint: Some(parse::outpoint_message(&snapshot.terms.funding_outpoint)),
                    fee_sat: fee_of(&inner, snapshot.terms.funding_outpoint.txid).await,
                }))
            }
            ChannelState::Opening => {
                let depth = Some(snapshot.funding_depth);
                let is_new = told_depth != depth;
                told_depth = depth;
                is_new.then(|| Stage::Confirmations(confirmations_of(&snapshot)))
            }
            ChannelState::ShuttingDown | ChannelState::Closing | ChannelState::OnChain | ChannelState::Closed => {
                let _gone = to.send(over(&inner, channel_id).await).await;
                return;
            }
            ChannelState::Normal => {
                let ready = Stage::Ready(message(&inner, &snapshot, Extent::Short, &Swept::new()));
                let _gone = to.send(Ok(open_step(channel_id, false, ready))).await;
                return;
            }
        };
        if let Some(stage) = stage {
            if to.send(Ok(open_step(channel_id, false, stage))).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            changed = watch.changed() => if changed.is_err() {
                return;
            },
            () = to.closed() => return,
            () = inner.stopped() => {
                let _gone = to.send(Err(fault::stopping())).await;
                return;
            }
        }
    }
}

pub(super) fn confirmations_of(snapshot: &ChannelSnapshot) -> v1::Confirmations {
    v1::Confirmations {
        txid: parse::txid_bytes(&snapshot.terms.funding_outpoint.txid),
        have: snapshot.funding_depth.min(snapshot.required_depth),
        need: snapshot.required_depth,
    }
}

/// The last word on an opening whose channel closes or is closed. If it could be used once, the opening has succeeded, however
/// long ago: the channel is told as it is now.
async fn over(inner: &Shared, channel_id: ChannelId) -> Result<OpenChannelProgress, Status> {
    let row = past_row(inner, channel_id).await?;
    let row = row.ok_or_else(|| fault::not_found("channel", channel_id))?;
    let snapshot = inner.api.registry.snapshot(channel_id).filter(|snapshot| snapshot.state != ChannelState::Closed);
    if row.was_ready {
        let channel = match &snapshot {
            Some(snapshot) => message(inner, snapshot, Extent::Short, &Swept::new()),
            None => closed_message(&row, Extent::Short, &Swept::new()),
        };
        return Ok(open_step(channel_id, false, open_channel_progress::Stage::Ready(channel)));
    }
    let state = snapshot.map_or(ChannelState::Closed, |snapshot| snapshot.state);
    let reason = if row.reason.is_empty() { "it was closed" } else { &row.reason };
    Err(ErrorDetail::new(ErrorReason::ChannelNotUsable)
        .fact("state", format!("{state:?}"))
        .fact("channel_id", channel_id)
        .hint("Look at the channel for what becomes of its coins.")
        .into_status(format!("channel {channel_id} closes before it could be used: {reason}")))
}

/// Looks at the wallet for a transaction that it is about to be told of.
const FEE_LOOKS: u32 = 40;
const FEE_LOOK: Duration = Duration::from_millis(25);

/// What a transaction of ours pays the miners; 0 if the wallet does not know.
async fn fee_of(inner: &Shared, txid: bitcoin::Txid) -> u64 {
    for _ in 0..FEE_LOOKS {
        let known = inner.api.wallet.ask(move |wallet| wallet.transaction(&txid)).await;
        if let Some(fee) = known.ok().flatten().and_then(|tx| tx.fee) {
            return fee.0;
        }
        tokio::time::sleep(FEE_LOOK).await;
    }
    0
}
