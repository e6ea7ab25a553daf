//! The service `Channels`: opening, closing, and looking at them.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, ScriptBuf};
use futures::stream::BoxStream;
use millrace_channel::Policy;
use millrace_channel::input::CloseOrder;
use millrace_channel::phase::on_chain::Ending;
use millrace_rpc::v1::channels_server::Channels;
use millrace_rpc::v1::{
    self, CloseChannelProgress, ErrorDetail, ErrorReason, GetChannelResponse, ListChannelsResponse,
    OpenChannelProgress, close_channel_progress, open_channel_progress,
};
use millrace_wire::{ChannelId, FeeratePerKw, Msat, Sat};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::channel_text::{Extent, Swept, closed_message, has_scid, message, present_kind, resolution, swept};
use super::events::close_kind;
use super::once::{Finished, Once, Start, Stored, once, reference, reference_entry, start};
use super::{Shared, fault, parse};
use crate::channels::{ChannelSnapshot, ChannelState, OpenOrder, OpenProgress};
use crate::happened::{CloseKind, ClosingTx};

/// Steps of progress that may wait for a slow reader.
const STEPS_MAX: usize = 16;
/// How often is looked at what no channel tells: confirmations of others' transactions, claims.
const LOOK: Duration = Duration::from_millis(500);
/// When the peer proposes the fee of a mutual close, we pay up to so many times our own choice.
const CLOSE_FEE_MULTIPLE: u32 = 3;
/// Closed channels that one list looks at.
const CLOSED_MAX: usize = 10_000;

pub(super) struct ChannelsService(pub(super) Shared);

type Progress<T> = mpsc::Sender<Result<T, Status>>;

#[tonic::async_trait]
impl Channels for ChannelsService {
    type OpenStream = BoxStream<'static, Result<OpenChannelProgress, Status>>;
    type CloseStream = BoxStream<'static, Result<CloseChannelProgress, Status>>;

    async fn open(&self, request: Request<v1::OpenChannelRequest>) -> Result<Response<Self::OpenStream>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        let inner = &self.0;
        inner.ready()?;
        let order = self.open_order(&request)?;
        let begun = start(inner, "Channels.Open", &key, &request).await?;
        let (to, progress) = mpsc::channel(STEPS_MAX);
        match begun {
            Start::Done(stored) => {
                if let Some(status) = stored.status() {
                    return Err(status);
                }
                let channel_id = parse::channel_id(reference(&stored)?)?;
                tokio::spawn(follow_opening(Arc::clone(inner), channel_id, to));
            }
            Start::Work(once) => {
                if !inner.api.peers.is_connected(&order.peer) && !once.was_interrupted() {
                    return Err(fault::open(&crate::channels::OpenFailure::NotConnected(order.peer)));
                }
                inner.api.registry.check_new_work().map_err(|why| fault::no_new_work(&why))?;
                tokio::spawn(open(Arc::clone(inner), once, order, to));
            }
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(progress))))
    }

    async fn close(&self, request: Request<v1::CloseChannelRequest>) -> Result<Response<Self::CloseStream>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        let inner = &self.0;
        inner.ready()?;
        let channel_id = parse::channel_id(&request.channel_id)?;
        let wanted = self.close_order(&request)?;
        let work = move |inner: Shared, mut once: Once| async move {
            let result = close(&inner, &mut once, channel_id, wanted).await;
            (once, result)
        };
        once(inner, "Channels.Close", &key, &request, work).await?;
        let (to, progress) = mpsc::channel(STEPS_MAX);
        tokio::spawn(follow_closing(Arc::clone(inner), channel_id, to));
        Ok(Response::new(Box::pin(ReceiverStream::new(progress))))
    }

    async fn list(&self, request: Request<v1::ListChannelsRequest>) -> Result<Response<ListChannelsResponse>, Status> {
        self.0.ready()?;
        let inner = &self.0;
        let v1::ListChannelsRequest { page, node_id, include_closed } = request.into_inner();
        let mut snapshots = match node_id.is_empty() {
            true => inner.api.registry.snapshots(),
            false => inner.api.registry.snapshots_with(&parse::node_id(&node_id)?),
        };
        let known: std::collections::HashSet<ChannelId> = snapshots.iter().map(|one| one.channel_id).collect();
        snapshots.retain(|snapshot| include_closed || snapshot.state != ChannelState::Closed);
        snapshots.sort_by_key(|snapshot| Reverse((snapshot.opened_ms, snapshot.channel_id)));
        let swept = swept(inner).await;
        let mut channels: Vec<v1::Channel> =
            snapshots.iter().map(|snapshot| message(inner, snapshot, Extent::Short, &swept)).collect();
        if include_closed {
            let past = inner.past.clone();
            past.view.catch_up(&past.log).await;
            let is_wanted = |row: &crate::view::ChannelRow| {
                row.closed_ms.is_some()
                    && !known.contains(&row.opening.channel_id)
                    && (node_id.is_empty() || row.opening.peer.serialize()[..] == node_id[..])
            };
            let rows = tokio::task::block_in_place(|| past.view.channels(None, CLOSED_MAX, is_wanted));
            let rows = rows.map_err(|error| fault::view(&error))?.rows;
            channels.extend(rows.iter().map(|row| closed_message(row, Extent::Short, &swept)));
            channels.sort_by_key(|channel| Reverse(channel.opened_ms));
        }
        let (channels, next_cursor) = parse::slice(channels, page.as_ref())?;
        Ok(Response::new(ListChannelsResponse { channels, next_cursor }))
    }

    async fn get(&self, request: Request<v1::GetChannelRequest>) -> Result<Response<GetChannelResponse>, Status> {
        use v1::get_channel_request::Channel::{ChannelId as ById, FundingOutpoint, ShortChannelId};
        self.0.ready()?;
        let inner = &self.0;
        let registry = &inner.api.registry;
        let wanted = request.into_inner().channel;
        let channel_id = match &wanted {
            None => return Err(fault::field("channel", "say which")),
            Some(ById(bytes)) => Some(parse::channel_id(bytes)?),
            Some(ShortChannelId(scid)) => {
                let scid = millrace_wire::ShortChannelId(*scid);
                match registry.channel_by_scid(scid) {
                    Some(channel_id) => Some(channel_id),
                    None => closed_channel(inner, |row| has_scid(row, scid)).await?,
                }
            }
            Some(FundingOutpoint(outpoint)) => {
                let outpoint = parse::outpoint(outpoint)?;
                let mut all = registry.snapshots().into_iter();
                match all.find(|snapshot| snapshot.terms.funding_outpoint == outpoint) {
                    Some(snapshot) => Some(snapshot.channel_id),
                    None => closed_channel(inner, |row| row.opening.funding_outpoint == outpoint).await?,
                }
            }
        };
        let channel_id = channel_id.ok_or_else(|| fault::not_found("channel", "by that name"))?;
        let snapshot = registry.fresh_snapshot(channel_id).await;
        if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.state != ChannelState::Closed) {
            let channel = Some(message(inner, &snapshot, Extent::Whole, &swept(inner).await));
            return Ok(Response::new(GetChannelResponse { channel }));
        }
        inner.past.view.catch_up(&inner.past.log).await;
        let row = inner.past.view.channel(&channel_id).map_err(|error| fault::view(&error))?;
        let row = row.ok_or_else(|| fault::not_found("channel", channel_id))?;
        Ok(Response::new(GetChannelResponse {
            channel: Some(closed_message(&row, Extent::Whole, &swept(inner).await)),
        }))
    }
}

/// A closed channel that is asked for by something else than its id.
async fn closed_channel(
    inner: &Shared,
    is_wanted: impl Fn(&crate::view::ChannelRow) -> bool,
) -> Result<Option<ChannelId>, Status> {
    let past = &inner.past;
    past.view.catch_up(&past.log).await;
    let is_closed = |row: &crate::view::ChannelRow| row.closed_ms.is_some() && is_wanted(row);
    let page = tokio::task::block_in_place(|| past.view.channels(None, 1, is_closed));
    Ok(page.map_err(|error| fault::view(&error))?.rows.first().map(|row| row.opening.channel_id))
}

// --- opening ---

impl ChannelsService {
    fn open_order(&self, request: &v1::OpenChannelRequest) -> Result<OpenOrder, Status> {
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
            to_self_delay,
            htlc_minimum: request.htlc_minimum_msat.map(Msat),
            max_in_flight: request.max_in_flight_msat.map(Msat),
            upfront_shutdown_script,
            when_opened: None,
        })
    }

    fn script(&self, name: &'static str, address: &str) -> Result<ScriptBuf, Status> {
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

async fn open(inner: Shared, mut once: Once, mut order: OpenOrder, to: Progress<OpenChannelProgress>) {
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

fn interrupted() -> Status {
    ErrorDetail::new(ErrorReason::OpenFailed)
        .hint("Open again with a new idempotency key; nothing was spent.")
        .into_status("the node was restarted before the channel existed")
}

fn open_step(channel_id: ChannelId, temporary: bool, stage: open_channel_progress::Stage) -> OpenChannelProgress {
    OpenChannelProgress { channel_id: channel_id.0.to_vec(), temporary, stage: Some(stage) }
}

/// Tells how a channel that exists comes into use.
async fn follow_opening(inner: Shared, channel_id: ChannelId, to: Progress<OpenChannelProgress>) {
    use open_channel_progress::Stage;
    let Some(mut watch) = inner.api.registry.watch(channel_id) else {
        let _gone = to.send(Err(gone(channel_id))).await;
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
            ChannelState::Closed => {
                let _gone = to.send(Err(gone(channel_id))).await;
                return;
            }
            ChannelState::Normal | ChannelState::ShuttingDown | ChannelState::Closing | ChannelState::OnChain => {
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

fn confirmations_of(snapshot: &ChannelSnapshot) -> v1::Confirmations {
    v1::Confirmations {
        txid: parse::txid_bytes(&snapshot.terms.funding_outpoint.txid),
        have: snapshot.funding_depth.min(snapshot.required_depth),
        need: snapshot.required_depth,
    }
}

fn gone(channel_id: ChannelId) -> Status {
    ErrorDetail::new(ErrorReason::OpenFailed)
        .fact("channel_id", channel_id)
        .hint("Look at the channel for what became of it.")
        .into_status(format!("channel {channel_id} is closed"))
}

/// What a transaction of ours pays the miners; 0 if the wallet does not know.
async fn fee_of(inner: &Shared, txid: bitcoin::Txid) -> u64 {
    let known = inner.api.wallet.ask(move |wallet| wallet.transaction(&txid)).await;
    known.ok().flatten().and_then(|tx| tx.fee).unwrap_or(Sat::ZERO).0
}

// --- closing ---

/// What is wanted of a closing.
#[derive(Debug)]
enum Closing {
    /// Alone.
    Forced,
    /// Together, at this feerate, paying this script or a fresh one.
    Agreed(FeeratePerKw, Option<ScriptBuf>),
}

impl ChannelsService {
    fn close_order(&self, request: &v1::CloseChannelRequest) -> Result<Closing, Status> {
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

async fn close(inner: &Shared, once: &mut Once, channel_id: ChannelId, wanted: Closing) -> Result<Finished, Status> {
    let registry = &inner.api.registry;
    let Some(snapshot) = registry.snapshot(channel_id) else {
        return Err(fault::not_found("channel", channel_id));
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
async fn follow_closing(inner: Shared, channel_id: ChannelId, to: Progress<CloseChannelProgress>) {
    let Some(mut watch) = inner.api.registry.watch(channel_id) else {
        let _gone = to.send(Err(fault::not_found("channel", channel_id))).await;
        return;
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
