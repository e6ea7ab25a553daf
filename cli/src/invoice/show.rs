//! An invoice, and what anybody's invoice says, for programs and for people.

use millrace_rpc::v1::{DecodeInvoiceResponse, Invoice, InvoiceCancelReason, InvoiceKind, InvoicePart, RouteHint};
use serde_json::{Value, json};

use crate::node::{features_json, features_text};
use crate::output::{facts, qr};
use crate::wallet::msat;
use crate::words;

fn status(invoice: &Invoice) -> String {
    words::value(invoice.status().as_str_name(), "INVOICE_STATUS_")
}

/// An amount that may be open.
fn amount_text(amount_msat: Option<u64>) -> String {
    amount_msat.map_or("any".to_owned(), msat)
}

pub(super) fn invoice_json(invoice: &Invoice) -> Value {
    json!({
        "payment_hash": hex::encode(&invoice.payment_hash),
        "bolt11": invoice.bolt11,
        "amount_msat": invoice.amount_msat,
        "description": invoice.description,
        "description_hash": words::hex_or_none(&invoice.description_hash),
        "status": status(invoice),
        "created_ms": invoice.created_ms,
        "expires_ms": invoice.expires_ms,
        "received_msat": invoice.received_msat,
        "paid_ms": invoice.paid_ms,
        "preimage": words::hex_or_none(&invoice.preimage),
        "min_final_cltv_expiry_delta": invoice.min_final_cltv_expiry_delta,
        "kind": words::value(invoice.kind().as_str_name(), "INVOICE_KIND_"),
        "parts": invoice.parts.iter().map(part_json).collect::<Value>(),
        "held_msat": invoice.held_msat,
        "held_ms": invoice.held_ms,
        "settle_by_height": invoice.settle_by_height,
        "cancelled_ms": invoice.cancelled_ms,
        "cancel_reason": invoice.cancelled_ms.map(|_| cancel_reason(invoice.cancel_reason())),
    })
}

/// An HTLC of a payment.
pub(crate) fn part_json(part: &InvoicePart) -> Value {
    json!({
        "channel_id": hex::encode(&part.channel_id),
        "htlc_id": part.htlc_id,
        "amount_msat": part.amount_msat,
    })
}

/// Why an invoice was cancelled.
pub(crate) fn cancel_reason(reason: InvoiceCancelReason) -> String {
    words::value(reason.as_str_name(), "INVOICE_CANCEL_REASON_")
}

/// What was received, or is held.
fn came(invoice: &Invoice) -> String {
    let held = invoice.held_msat.map(|held| format!("{} held", msat(held)));
    invoice.received_msat.map(msat).or(held).unwrap_or_default()
}

pub(super) fn invoice_row(invoice: &Invoice) -> Vec<String> {
    vec![
        words::time(invoice.created_ms),
        status(invoice),
        amount_text(invoice.amount_msat),
        came(invoice),
        hex::encode(&invoice.payment_hash),
        match invoice.kind() {
            InvoiceKind::Keysend => "keysend".to_owned(),
            _ => purpose(&invoice.description, &invoice.description_hash),
        },
    ]
}

fn purpose(description: &str, hash: &[u8]) -> String {
    match words::hex_or_none(hash) {
        Some(hash) => format!("hash {hash}"),
        None => description.to_owned(),
    }
}

pub(super) fn invoice_text(invoice: &Invoice, with_qr: bool) -> String {
    let facts = facts([
        ("Payment hash", hex::encode(&invoice.payment_hash)),
        ("Amount", amount_text(invoice.amount_msat)),
        ("For", purpose(&invoice.description, &invoice.description_hash)),
        ("Kind", kind_text(invoice)),
        ("Status", status(invoice)),
        ("Made", words::time(invoice.created_ms)),
        ("Expires", words::time(invoice.expires_ms)),
        ("Held", held_text(invoice)),
        ("Cancelled", cancelled_text(invoice)),
        ("Received", invoice.received_msat.map(msat).unwrap_or_default()),
        ("Parts", parts_text(&invoice.parts)),
        ("Paid", invoice.paid_ms.map(words::time).unwrap_or_default()),
        ("Preimage", words::hex_or_none(&invoice.preimage).unwrap_or_default()),
    ]);
    let code = if with_qr {
        // Upper case makes a smaller code, and means the same in an invoice.
        format!("{}\n", qr(&format!("lightning:{}", invoice.bolt11).to_uppercase()))
    } else {
        String::new()
    };
    if invoice.bolt11.is_empty() { facts } else { format!("{code}{}\n\n{facts}", invoice.bolt11) }
}

/// Only what is not usual.
fn kind_text(invoice: &Invoice) -> String {
    match invoice.kind() {
        InvoiceKind::Hold => "hold: its payment waits for `invoice settle` or `invoice cancel`".to_owned(),
        InvoiceKind::Keysend => "keysend: no invoice asked for it".to_owned(),
        InvoiceKind::Plain | InvoiceKind::Unspecified => String::new(),
    }
}

fn held_text(invoice: &Invoice) -> String {
    match (invoice.held_msat, invoice.settle_by_height) {
        (Some(held), Some(height)) => format!("{}, to be settled by block {height}", msat(held)),
        _ => String::new(),
    }
}

fn cancelled_text(invoice: &Invoice) -> String {
    let reason = match invoice.cancel_reason() {
        InvoiceCancelReason::Deadline => ", its payment came too near to its expiry",
        InvoiceCancelReason::PartGone => ", the channel of a part was closed",
        InvoiceCancelReason::Asked | InvoiceCancelReason::Unspecified => "",
    };
    invoice.cancelled_ms.map(|time| format!("{}{reason}", words::time(time))).unwrap_or_default()
}

/// One part is the usual case, and says nothing.
fn parts_text(parts: &[InvoicePart]) -> String {
    if parts.len() < 2 {
        return String::new();
    }
    let part = |part: &InvoicePart| format!("{} by channel {}", msat(part.amount_msat), words::short(&part.channel_id));
    parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

pub(super) fn decoded_json(decoded: &DecodeInvoiceResponse) -> Value {
    let hop = |hop: &millrace_rpc::v1::RouteHintHop| {
        json!({
            "node_id": hex::encode(&hop.node_id),
            "short_channel_id": words::scid(hop.short_channel_id),
            "fee_base_msat": hop.fee_base_msat,
            "fee_proportional_millionths": hop.fee_proportional_millionths,
            "cltv_expiry_delta": hop.cltv_expiry_delta,
        })
    };
    let hint = |hint: &RouteHint| hint.hops.iter().map(hop).collect::<Value>();
    json!({
        "network": decoded.network,
        "for_this_network": decoded.for_this_network,
        "payment_hash": hex::encode(&decoded.payment_hash),
        "payee_node_id": hex::encode(&decoded.payee_node_id),
        "amount_msat": decoded.amount_msat,
        "description": decoded.description,
        "description_hash": words::hex_or_none(&decoded.description_hash),
        "created_ms": decoded.created_ms,
        "expires_ms": decoded.expires_ms,
        "expired": decoded.expired,
        "min_final_cltv_expiry_delta": decoded.min_final_cltv_expiry_delta,
        "features": features_json(&decoded.features),
        "route_hints": decoded.route_hints.iter().map(hint).collect::<Value>(),
        "fallback_addresses": decoded.fallback_addresses,
    })
}

pub(super) fn decoded_text(decoded: &DecodeInvoiceResponse) -> String {
    let network = match decoded.for_this_network {
        true => decoded.network.clone(),
        false => format!("{}, which this node is not on", decoded.network),
    };
    let expires = words::time(decoded.expires_ms);
    let hints = match decoded.route_hints.len() {
        0 => String::new(),
        count => count.to_string(),
    };
    facts([
        ("Network", network),
        ("Amount", amount_text(decoded.amount_msat)),
        ("For", purpose(&decoded.description, &decoded.description_hash)),
        ("Payee", hex::encode(&decoded.payee_node_id)),
        ("Payment hash", hex::encode(&decoded.payment_hash)),
        ("Made", words::time(decoded.created_ms)),
        ("Expires", if decoded.expired { format!("{expires}, over") } else { expires }),
        ("Last HTLC leaves", format!("{} blocks", decoded.min_final_cltv_expiry_delta)),
        ("Features", features_text(&decoded.features)),
        ("Route hints", hints),
        ("On chain to", decoded.fallback_addresses.join(", ")),
    ])
}
