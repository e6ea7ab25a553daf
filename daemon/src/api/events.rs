//! The service `Events`: everything that happened, from any position on, and what happens next.

use std::sync::Arc;

use futures::Stream;
use futures::stream::BoxStream;
use millrace_journal::Position;
use millrace_rpc::v1::events_server::Events;
use millrace_rpc::v1::{self, event::Event as Body};
use millrace_wire::{PaymentHash, Preimage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::invoices::{cancel_reason, part_messages};
use super::payments::failure_message;
use super::{Shared, fault, parse};
use crate::events::Subscription;
use crate::happened::{CloseKind, Happened, Happening, InvoiceCreated, ReceivedPart, sum_of};
use crate::wallet::WalletTx;

/// Events that are read at a time.
const BATCH: usize = 512;
/// Events that may wait for a slow reader; the rest waits in the log.
const QUEUE: usize = 64;

pub(super) struct EventsService(pub(super) Shared);

#[tonic::async_trait]
impl Events for EventsService {
    type SubscribeStream = BoxStream<'static, Result<v1::Event, Status>>;

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.0.ready()?;
        let v1::SubscribeRequest { from_cursor, stop_at_tip } = request.into_inner();
        let log = &self.0.past.log;
        let end = log.end();
        let from = from_cursor.map(|v1::Cursor { frame, index }| Position { frame, index });
        // "From now on" begins at the end, which may not be settled yet.
        let from = from.or(Some(end));
        let subscription = log.subscribe(from).map_err(|error| fault::events(&error))?;
        let until = stop_at_tip.then_some(end);
        Ok(Response::new(Box::pin(stream(Arc::clone(&self.0), subscription, until))))
    }
}

fn stream(
    inner: Shared,
    mut subscription: Subscription,
    until: Option<Position>,
) -> impl Stream<Item = Result<v1::Event, Status>> {
    let (to, events) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let told = tell(&inner, &mut subscription, until, &to);
        tokio::select! {
            told = told => if let Err(status) = told {
                // A reader that has gone needs no reason.
                let _gone = to.send(Err(status)).await;
            },
            () = inner.stopped() => drop(to.send(Err(fault::stopping())).await),
        }
    });
    ReceiverStream::new(events)
}

/// Ends without an error when the reader is gone, or has all that it wanted.
async fn tell(
    inner: &Shared,
    subscription: &mut Subscription,
    until: Option<Position>,
    to: &mpsc::Sender<Result<v1::Event, Status>>,
) -> Result<(), Status> {
    if until.is_some() {
        inner.past.log.nudge();
    }
    loop {
        // Reads files, a batch at a time.
        let batch = tokio::task::block_in_place(|| subscription.next_batch(BATCH));
        let batch = batch.map_err(|error| fault::events(&error))?;
        for (at, happening) in &batch {
            if until.is_some_and(|until| *at >= until) {
                return Ok(());
            }
            if let Some(event) = message(*at, happening)
                && to.send(Ok(event)).await.is_err()
            {
                return Ok(());
            }
        }
        if until.is_some_and(|until| subscription.next() >= until) {
            return Ok(());
        }
        if batch.is_empty() {
            tokio::select! {
                goes_on = subscription.changed() => if !goes_on {
                    return Err(fault::stopping());
                },
                () = to.closed() => return Ok(()),
            }
        }
    }
}

/// The public form; none for what is told elsewhere (attempts are part of their payment).
fn message(at: Position, happening: &Happening) -> Option<v1::Event> {
    let event = body(&happening.what, happening.time_ms)?;
    let cursor = Some(v1::Cursor { frame: at.frame, index: at.index });
    Some(v1::Event { cursor, time_ms: happening.time_ms, event: Some(event) })
}

fn body(what: &Happened, time_ms: u64) -> Option<Body> {
    Some(match what {
        Happened::ChannelOpening(opening) => Body::ChannelOpening(v1::ChannelOpening {
            channel_id: opening.channel_id.0.to_vec(),
            node_id: opening.peer.serialize().to_vec(),
            capacity_sat: opening.capacity.0,
            funder: opening.is_funder,
            funding_outpoint: Some(parse::outpoint_message(&opening.funding_outpoint)),
        }),
        Happened::ChannelReady { channel_id, peer, local, remote } => Body::ChannelReady(v1::ChannelReady {
            channel_id: channel_id.0.to_vec(),
            node_id: peer.serialize().to_vec(),
            local_msat: local.0,
            remote_msat: remote.0,
        }),
        Happened::ChannelClosing { channel_id, peer, kind, reason, close } => {
            Body::ChannelClosing(v1::ChannelClosing {
                channel_id: channel_id.0.to_vec(),
                node_id: peer.serialize().to_vec(),
                kind: close_kind(*kind).into(),
                reason: reason.clone(),
                txid: close.as_ref().map(|close| parse::txid_bytes(&close.txid)).unwrap_or_default(),
            })
        }
        Happened::ChannelClosed { channel_id, peer, kind, close, .. } => Body::ChannelClosed(v1::ChannelClosed {
            channel_id: channel_id.0.to_vec(),
            node_id: peer.serialize().to_vec(),
            kind: close_kind(*kind).into(),
            txid: close.as_ref().map(|close| parse::txid_bytes(&close.txid)).unwrap_or_default(),
            fee_sat: close.map_or(0, |close| close.fee.0),
        }),
        Happened::PaymentStarted(started) => Body::PaymentStarted(v1::PaymentStarted {
            payment_hash: started.payment_hash.0.to_vec(),
            amount_msat: started.amount.0,
            payee_node_id: started.payee.serialize().to_vec(),
            idempotency_key: started.idempotency_key.clone(),
        }),
        Happened::AttemptBegun { .. }
        | Happened::AttemptFailed { .. }
        | Happened::AttemptRouted { .. }
        | Happened::AttemptHeld { .. } => return None,
        Happened::PaymentSucceeded { payment_hash, preimage, amount, fee, .. } => {
            Body::PaymentSucceeded(v1::PaymentSucceeded {
                payment_hash: payment_hash.0.to_vec(),
                preimage: preimage.as_bytes().to_vec(),
                amount_msat: amount.0,
                fee_msat: fee.0,
            })
        }
        Happened::PaymentFailed { payment_hash, failure, .. } => Body::PaymentFailed(v1::PaymentFailed {
            payment_hash: payment_hash.0.to_vec(),
            failure: Some(failure_message(failure)),
        }),
        Happened::InvoiceCreated(created) => Body::InvoiceCreated(invoice_created(created, false)),
        Happened::HoldInvoiceCreated(created) => Body::InvoiceCreated(invoice_created(created, true)),
        Happened::InvoicePaid { payment_hash, received, preimage, channel_id, htlc_id } => {
            let part = ReceivedPart { channel_id: *channel_id, htlc_id: *htlc_id, amount: *received };
            Body::InvoicePaid(invoice_paid(payment_hash, preimage, &[part], false))
        }
        Happened::InvoicePaidInParts { payment_hash, preimage, parts } => {
            Body::InvoicePaid(invoice_paid(payment_hash, preimage, parts, false))
        }
        Happened::KeysendReceived { payment_hash, preimage, part } => {
            Body::InvoicePaid(invoice_paid(payment_hash, preimage, &[*part], true))
        }
        Happened::InvoiceHeld { payment_hash, parts, deadline } => Body::InvoiceHeld(v1::InvoiceHeld {
            payment_hash: payment_hash.0.to_vec(),
            held_msat: sum_of(parts).0,
            parts: part_messages(parts),
            settle_by_height: deadline.0,
        }),
        Happened::InvoiceCancelled { payment_hash, why } => Body::InvoiceCancelled(v1::InvoiceCancelled {
            payment_hash: payment_hash.0.to_vec(),
            reason: cancel_reason(*why).into(),
        }),
        Happened::WalletTransaction(seen) => Body::WalletTransaction(v1::WalletTransactionSeen {
            transaction: Some(super::wallet::transaction(&WalletTx {
                txid: seen.txid,
                received: seen.received,
                sent: seen.sent,
                fee: seen.fee,
                height: seen.height,
                confirmations: u32::from(seen.height.is_some()),
                time_s: seen.time_s,
                label: seen.label,
            })),
            replaced: seen.is_replaced,
        }),
        Happened::PeerConnected { peer, address, is_inbound } => Body::PeerConnected(v1::PeerConnected {
            node_id: peer.serialize().to_vec(),
            address: address.clone(),
            inbound: *is_inbound,
        }),
        Happened::PeerDisconnected { peer, reason } => {
            Body::PeerDisconnected(v1::PeerDisconnected { node_id: peer.serialize().to_vec(), reason: reason.clone() })
        }
        Happened::Forwarded(forwarded) => Body::ForwardEnded(super::forwards::message(forwarded, time_ms)),
    })
}

fn invoice_created(created: &InvoiceCreated, hold: bool) -> v1::InvoiceCreated {
    v1::InvoiceCreated {
        payment_hash: created.payment_hash.0.to_vec(),
        amount_msat: created.amount.map(|amount| amount.0),
        expires_ms: created.expires_ms,
        idempotency_key: created.idempotency_key.clone(),
        hold,
    }
}

fn invoice_paid(hash: &PaymentHash, preimage: &Preimage, parts: &[ReceivedPart], keysend: bool) -> v1::InvoicePaid {
    v1::InvoicePaid {
        payment_hash: hash.0.to_vec(),
        received_msat: sum_of(parts).0,
        preimage: preimage.as_bytes().to_vec(),
        parts: part_messages(parts),
        keysend,
    }
}

/// As the contract names it.
pub(super) fn close_kind(kind: CloseKind) -> v1::CloseKind {
    match kind {
        CloseKind::Unknown => v1::CloseKind::Unspecified,
        CloseKind::Cooperative => v1::CloseKind::Cooperative,
        CloseKind::LocalCommitment => v1::CloseKind::LocalCommitment,
        CloseKind::RemoteCommitment => v1::CloseKind::RemoteCommitment,
        CloseKind::RemoteNextCommitment => v1::CloseKind::RemoteNextCommitment,
        CloseKind::RevokedCommitment => v1::CloseKind::RevokedCommitment,
        CloseKind::FutureCommitment => v1::CloseKind::FutureCommitment,
        CloseKind::NeverFunded => v1::CloseKind::NeverFunded,
    }
}
