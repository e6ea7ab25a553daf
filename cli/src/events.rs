//! `millrace events`: what happens, as it happens, from any position in the past on.
//!
//! A connection that breaks is made again and the reading goes on after the last event, so that none is missed
//! and none comes twice. If there is no last event to go on from, it ends instead of leaving a gap.

use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use millrace_rpc::v1::events_client::EventsClient;
use millrace_rpc::v1::{self, Cursor, Event, SubscribeRequest, event};
use serde_json::{Value, json};
use tonic::Status;

use crate::channel::close_kind;
use crate::fault::Fault;
use crate::forward;
use crate::invoice::{cancel_reason, part_json};
use crate::output::Output;
use crate::payment::{failure_json, failure_text};
use crate::session::Session;
use crate::wallet::{change_text, msat, outpoint, sat, transaction_json};
use crate::words::{self, printable};

/// Between two tries to connect again.
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// Follow what happens, from any moment in the past on
///
/// Every event has a position, FRAME:INDEX, that never changes. A program stores the position of the last
/// event that it has dealt with and goes on with --after. If that is no longer kept, the command is refused and
/// names the oldest position that is.
///
/// Examples:
///   millrace events
///   millrace events --from-start --until-now --json
///   millrace events --after 1871:2 --json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Events {
    /// Begin with the event at this position, or the next one there is
    #[arg(long, value_name = "FRAME:INDEX", conflicts_with_all = ["after", "from_start"])]
    from: Option<Position>,
    /// Begin after the event at this position
    #[arg(long, value_name = "FRAME:INDEX", conflicts_with = "from_start")]
    after: Option<Position>,
    /// Begin with the very first event
    #[arg(long)]
    from_start: bool,
    /// End once everything that has happened so far is told
    #[arg(long)]
    until_now: bool,
}

/// A position in the sequence of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position(Cursor);

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no position: write it like 1871:2");
        let (frame, index) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self(Cursor { frame: frame.parse().map_err(|_| wrong())?, index: index.parse().map_err(|_| wrong())? }))
    }
}

/// The first position after this one.
fn next(cursor: Cursor) -> Cursor {
    match cursor.index.checked_add(1) {
        Some(index) => Cursor { frame: cursor.frame, index },
        None => Cursor { frame: cursor.frame.saturating_add(1), index: 0 },
    }
}

/// How far the reading is.
struct Place {
    /// The first position wanted; none: only what happens from now on.
    from: Option<Cursor>,
    /// True once a connection came about.
    connected: bool,
    /// Since when there is none.
    broken_since: Option<Instant>,
}

impl Place {
    /// True if reading can go on after this fault without leaving a gap.
    fn may_go_on(&mut self, fault: &Fault, patience: Duration) -> bool {
        let since = *self.broken_since.get_or_insert_with(Instant::now);
        let patient = since.elapsed() + RETRY_WAIT <= patience;
        self.connected && self.from.is_some() && fault.may_pass() && patient
    }
}

impl Events {
    /// Follows and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        let mut place = Place { from: self.start(), connected: false, broken_since: None };
        loop {
            let fault = match self.follow(session, output, &mut place).await {
                Ok(()) if self.until_now || output.is_closed() => return Ok(()),
                Ok(()) => session.unreachable("the daemon ended the stream".to_owned()),
                Err(fault) => fault,
            };
            if !place.may_go_on(&fault, session.retry_for()) {
                return Err(fault);
            }
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    /// The first position wanted.
    fn start(&self) -> Option<Cursor> {
        let from = self.from.map(|position| position.0);
        let after = self.after.map(|position| next(position.0));
        from.or(after).or(self.from_start.then(Cursor::default))
    }

    /// One connection's events; the place goes along with them.
    async fn follow(&self, session: &Session, output: &mut Output, place: &mut Place) -> Result<(), Fault> {
        let request = SubscribeRequest { from_cursor: place.from, stop_at_tip: self.until_now };
        let mut stream = session.read(|link| async move { EventsClient::new(link).subscribe(request).await }).await?;
        place.connected = true;
        loop {
            let message = stream.message().await;
            let Some(event) = message.map_err(|status| session.read_failed(&status))? else {
                return Ok(());
            };
            place.broken_since = None;
            let Some(cursor) = event.cursor else {
                return Err(Fault::answered(&Status::internal("an event without its position")));
            };
            let (json, text) = told(&event, cursor);
            output.item(&json, || text)?;
            place.from = Some(next(cursor));
            if output.is_closed() {
                return Ok(());
            }
        }
    }
}

/// An event for a program and for a person.
fn told(event: &Event, cursor: Cursor) -> (Value, String) {
    let (name, mut json, text) = match &event.event {
        Some(what) => told_what(what),
        // A kind that this version does not know: its position still counts.
        None => ("unknown", json!({}), "something that this version does not know".to_owned()),
    };
    json["event"] = json!(name);
    json["cursor"] = json!({ "frame": cursor.frame, "index": cursor.index });
    json["time_ms"] = json!(event.time_ms);
    let position = format!("{}:{}", cursor.frame, cursor.index);
    (json, format!("{}  {position:<10}  {text}", words::time(event.time_ms)))
}

/// The event's name, its facts, and the same in words.
type Told = (&'static str, Value, String);

fn told_what(what: &event::Event) -> Told {
    use event::Event as E;
    match what {
        E::ChannelOpening(opening) => channel_opening(opening),
        E::ChannelReady(ready) => channel_ready(ready),
        E::ChannelClosing(closing) => channel_closing(closing),
        E::ChannelClosed(closed) => channel_closed(closed),
        E::PaymentStarted(started) => payment_started(started),
        E::PaymentSucceeded(succeeded) => payment_succeeded(succeeded),
        E::PaymentFailed(failed) => payment_failed(failed),
        E::InvoiceCreated(created) => invoice_created(created),
        E::InvoicePaid(paid) => invoice_paid(paid),
        E::InvoiceHeld(held) => invoice_held(held),
        E::InvoiceCancelled(cancelled) => invoice_cancelled(cancelled),
        E::WalletTransaction(seen) => wallet_transaction(seen),
        E::PeerConnected(peer) => peer_connected(peer),
        E::PeerDisconnected(peer) => peer_disconnected(peer),
        E::ForwardEnded(ended) => ("forward_ended", forward::json(ended), forward::text(ended)),
    }
}

fn channel_opening(opening: &v1::ChannelOpening) -> Told {
    let json = json!({
        "channel_id": hex::encode(&opening.channel_id),
        "node_id": hex::encode(&opening.node_id),
        "capacity_sat": opening.capacity_sat,
        "funder": opening.funder,
        "funding_outpoint": outpoint(opening.funding_outpoint.as_ref()),
    });
    let text = format!(
        "channel {} with {} opening: {}",
        words::short(&opening.channel_id),
        words::short(&opening.node_id),
        sat(opening.capacity_sat)
    );
    ("channel_opening", json, text)
}

fn channel_ready(ready: &v1::ChannelReady) -> Told {
    let json = json!({
        "channel_id": hex::encode(&ready.channel_id),
        "node_id": hex::encode(&ready.node_id),
        "local_msat": ready.local_msat,
        "remote_msat": ready.remote_msat,
    });
    let text = format!(
        "channel {} ready: {} ours, {} theirs",
        words::short(&ready.channel_id),
        msat(ready.local_msat),
        msat(ready.remote_msat)
    );
    ("channel_ready", json, text)
}

fn channel_closing(closing: &v1::ChannelClosing) -> Told {
    let json = json!({
        "channel_id": hex::encode(&closing.channel_id),
        "node_id": hex::encode(&closing.node_id),
        "kind": close_kind(closing.kind()),
        "reason": closing.reason,
        "txid": words::hex_or_none(&closing.txid),
    });
    let text = format!(
        "channel {} closing ({}): {}",
        words::short(&closing.channel_id),
        close_kind(closing.kind()).replace('_', " "),
        printable(&closing.reason)
    );
    ("channel_closing", json, text)
}

fn channel_closed(closed: &v1::ChannelClosed) -> Told {
    let json = json!({
        "channel_id": hex::encode(&closed.channel_id),
        "node_id": hex::encode(&closed.node_id),
        "kind": close_kind(closed.kind()),
        "txid": words::hex_or_none(&closed.txid),
        "fee_sat": closed.fee_sat,
    });
    let text = format!(
        "channel {} closed, {}, for a fee of {}",
        words::short(&closed.channel_id),
        close_kind(closed.kind()).replace('_', " "),
        sat(closed.fee_sat)
    );
    ("channel_closed", json, text)
}

fn payment_started(started: &v1::PaymentStarted) -> Told {
    let json = json!({
        "payment_hash": hex::encode(&started.payment_hash),
        "amount_msat": started.amount_msat,
        "payee_node_id": hex::encode(&started.payee_node_id),
        "idempotency_key": started.idempotency_key,
    });
    let text = format!(
        "payment {} of {} to {} begun",
        words::short(&started.payment_hash),
        msat(started.amount_msat),
        words::short(&started.payee_node_id)
    );
    ("payment_started", json, text)
}

fn payment_succeeded(succeeded: &v1::PaymentSucceeded) -> Told {
    let json = json!({
        "payment_hash": hex::encode(&succeeded.payment_hash),
        "preimage": hex::encode(&succeeded.preimage),
        "amount_msat": succeeded.amount_msat,
        "fee_msat": succeeded.fee_msat,
    });
    let text = format!(
        "payment {} succeeded: {} for {}",
        words::short(&succeeded.payment_hash),
        msat(succeeded.amount_msat),
        msat(succeeded.fee_msat)
    );
    ("payment_succeeded", json, text)
}

fn payment_failed(failed: &v1::PaymentFailed) -> Told {
    let json = json!({
        "payment_hash": hex::encode(&failed.payment_hash),
        "failure": failed.failure.as_ref().map(failure_json),
    });
    let why = failed.failure.as_ref().map(failure_text).unwrap_or_default();
    let text = format!("payment {} failed: {why}", words::short(&failed.payment_hash));
    ("payment_failed", json, text)
}

fn invoice_created(created: &v1::InvoiceCreated) -> Told {
    let json = json!({
        "payment_hash": hex::encode(&created.payment_hash),
        "amount_msat": created.amount_msat,
        "expires_ms": created.expires_ms,
        "idempotency_key": created.idempotency_key,
        "hold": created.hold,
    });
    let text = format!(
        "{}invoice {} made for {}",
        if created.hold { "hold " } else { "" },
        words::short(&created.payment_hash),
        created.amount_msat.map_or("any amount".to_owned(), msat)
    );
    ("invoice_created", json, text)
}

fn invoice_paid(paid: &v1::InvoicePaid) -> Told {
    let json = json!({
        "payment_hash": hex::encode(&paid.payment_hash),
        "received_msat": paid.received_msat,
        "preimage": hex::encode(&paid.preimage),
        "parts": paid.parts.iter().map(part_json).collect::<Value>(),
        "keysend": paid.keysend,
    });
    let hash = words::short(&paid.payment_hash);
    let parts =
        if paid.parts.len() > 1 { format!(" in {}", words::count(paid.parts.len(), "part")) } else { String::new() };
    let text = match paid.keysend {
        false => format!("invoice {hash} paid: {}{parts}", msat(paid.received_msat)),
        true => format!("keysend {hash} received: {}", msat(paid.received_msat)),
    };
    ("invoice_paid", json, text)
}

fn invoice_held(held: &v1::InvoiceHeld) -> Told {
    let json = json!({
        "payment_hash": hex::encode(&held.payment_hash),
        "held_msat": held.held_msat,
        "parts": held.parts.iter().map(part_json).collect::<Value>(),
        "settle_by_height": held.settle_by_height,
    });
    let text = format!(
        "invoice {} held: {}, to be settled by block {}",
        words::short(&held.payment_hash),
        msat(held.held_msat),
        held.settle_by_height
    );
    ("invoice_held", json, text)
}

fn invoice_cancelled(cancelled: &v1::InvoiceCancelled) -> Told {
    let reason = cancel_reason(cancelled.reason());
    let json = json!({ "payment_hash": hex::encode(&cancelled.payment_hash), "reason": reason });
    let text = format!("invoice {} cancelled ({})", words::short(&cancelled.payment_hash), reason.replace('_', " "));
    ("invoice_cancelled", json, text)
}

fn wallet_transaction(seen: &v1::WalletTransactionSeen) -> Told {
    let transaction = seen.transaction.clone().unwrap_or_default();
    let json = json!({
        "transaction": transaction_json(&transaction),
        "replaced": seen.replaced,
    });
    let replaced = if seen.replaced { ", replaced" } else { "" };
    let text = format!(
        "transaction {} with {} confirmations: {}{replaced}",
        words::short(&transaction.txid),
        transaction.confirmations,
        change_text(transaction.received_sat, transaction.sent_sat)
    );
    ("wallet_transaction", json, text)
}

fn peer_connected(peer: &v1::PeerConnected) -> Told {
    let json = json!({
        "node_id": hex::encode(&peer.node_id),
        "address": peer.address,
        "inbound": peer.inbound,
    });
    let text = format!("peer {} connected at {}", words::short(&peer.node_id), peer.address);
    ("peer_connected", json, text)
}

fn peer_disconnected(peer: &v1::PeerDisconnected) -> Told {
    let json = json!({ "node_id": hex::encode(&peer.node_id), "reason": peer.reason });
    let text = format!("peer {} disconnected: {}", words::short(&peer.node_id), printable(&peer.reason));
    ("peer_disconnected", json, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        let cursor = Cursor { frame: 1871, index: 2 };
        assert_eq!("1871:2".parse(), Ok(Position(cursor)));
        for text in ["", "1871", "1871:", ":2", "1871:-2", "a:b", "1:2:3"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_position_after_the_last_of_a_frame() {
        assert_eq!(next(Cursor { frame: 1, index: 0 }), Cursor { frame: 1, index: 1 });
        let last = Cursor { frame: 1, index: u32::MAX };
        assert_eq!(next(last), Cursor { frame: 2, index: 0 });
    }
}
