//! The service `Channels`: opening, closing, and looking at them.

mod closing;
mod opening;
mod policy;

use std::cmp::Reverse;
use std::sync::Arc;

use futures::stream::BoxStream;
use millrace_channel::phase::on_chain::complete::CompleteHtlc;
use millrace_rpc::v1::channels_server::Channels;
use millrace_rpc::v1::{
    self, CloseChannelProgress, GetChannelResponse, ListChannelsResponse, OpenChannelProgress, SetPolicyResponse,
    TakeCommitmentResponse,
};
use millrace_wire::ChannelId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use self::closing::{close, follow_closing};
use self::opening::{follow_opening, open};
use super::channel_text::{Extent, closed_message, has_scid, message, swept};
use super::once::{Once, Start, answer, once, reference, start};
use super::{Shared, fault, parse};
use crate::channels::ChannelState;
use crate::view::ChannelRow;

/// Steps of progress that may wait for a slow reader.
const STEPS_MAX: usize = 16;
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
            let is_wanted = |row: &ChannelRow| {
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
        let row = past_row(inner, channel_id).await?.ok_or_else(|| fault::not_found("channel", channel_id))?;
        Ok(Response::new(GetChannelResponse {
            channel: Some(closed_message(&row, Extent::Whole, &swept(inner).await)),
        }))
    }

    async fn set_policy(&self, request: Request<v1::SetPolicyRequest>) -> Result<Response<SetPolicyResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        let inner = &self.0;
        inner.ready()?;
        let channel_id = match request.channel_id.as_slice() {
            [] => None,
            bytes => Some(parse::channel_id(bytes)?),
        };
        let wanted = request.clone();
        let work = move |inner: Shared, once: Once| async move {
            let result = policy::set(&inner, &once, channel_id, &wanted).await;
            (once, result)
        };
        let stored = once(inner, "Channels.SetPolicy", &key, &request, work).await?;
        Ok(Response::new(answer(&stored)?))
    }

    async fn take_commitment(
        &self,
        request: Request<v1::TakeCommitmentRequest>,
    ) -> Result<Response<TakeCommitmentResponse>, Status> {
        let inner = &self.0;
        inner.ready()?;
        let network = inner.api.config.network;
        if network != bitcoin::Network::Regtest {
            return Err(fault::only_on_regtest(network));
        }
        let channel_id = parse::channel_id(&request.into_inner().channel_id)?;
        let taken = inner.api.registry.complete_commitment(channel_id).await;
        let taken = taken.ok_or_else(|| fault::not_found("open channel", channel_id))?;
        tracing::warn!(%channel_id, number = %taken.number, "the present commitment was handed out: published later, it costs the channel");
        Ok(Response::new(TakeCommitmentResponse {
            transaction: bitcoin::consensus::serialize(&taken.transaction),
            commitment_number: taken.number.0,
            htlcs: taken.htlcs.iter().map(taken_htlc).collect(),
        }))
    }
}

fn taken_htlc(htlc: &CompleteHtlc) -> v1::TakenHtlc {
    v1::TakenHtlc {
        transaction: bitcoin::consensus::serialize(&htlc.transaction),
        payment_hash: htlc.payment_hash.0.to_vec(),
        is_success: htlc.is_success,
    }
}

/// What the view knows of a channel.
async fn past_row(inner: &Shared, channel_id: ChannelId) -> Result<Option<ChannelRow>, Status> {
    inner.past.view.catch_up(&inner.past.log).await;
    inner.past.view.channel(&channel_id).map_err(|error| fault::view(&error))
}

/// A closed channel that is asked for by something else than its id.
async fn closed_channel(inner: &Shared, is_wanted: impl Fn(&ChannelRow) -> bool) -> Result<Option<ChannelId>, Status> {
    let past = &inner.past;
    past.view.catch_up(&past.log).await;
    let is_closed = |row: &ChannelRow| row.closed_ms.is_some() && is_wanted(row);
    let page = tokio::task::block_in_place(|| past.view.channels(None, 1, is_closed));
    Ok(page.map_err(|error| fault::view(&error))?.rows.first().map(|row| row.opening.channel_id))
}
