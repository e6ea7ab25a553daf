//! `millrace payment`: payments made, and how a payment is shown.

use clap::{Subcommand, ValueEnum};
use millrace_rpc::v1::payments_client::PaymentsClient;
use millrace_rpc::v1::{Attempt, GetPaymentRequest, Hop, ListPaymentsRequest, Payment, PaymentFailure, PaymentStatus};
use serde_json::{Value, json};

use crate::args::PageArgs;
use crate::fault::Fault;
use crate::output::{Column, Output, facts, list, page};
use crate::session::Session;
use crate::wallet::msat;
use crate::words;

/// Commands about payments made.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List payments, the newest first
    ///
    /// Examples:
    ///   millrace payment list --status failed --limit 10
    #[command(verbatim_doc_comment)]
    List {
        /// Only those with this status
        #[arg(long, value_enum)]
        status: Option<Status>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show a payment with everything that was tried
    Show {
        /// Its payment hash
        #[arg(value_parser = words::id32)]
        payment_hash: [u8; 32],
    },
}

/// Where a payment can stand.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Status {
    /// Under way
    InFlight,
    /// Paid
    Succeeded,
    /// Failed; no money has left
    Failed,
}

impl From<Status> for PaymentStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::InFlight => Self::InFlight,
            Status::Succeeded => Self::Succeeded,
            Status::Failed => Self::Failed,
        }
    }
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::List { status, page } => list_payments(session, output, status, &page).await,
            Self::Show { payment_hash } => {
                let request = GetPaymentRequest { payment_hash: payment_hash.to_vec() };
                let payment = session
                    .read(|link| async move { PaymentsClient::new(link).get(request).await })
                    .await?
                    .payment
                    .unwrap_or_default();
                output.answer(&json(&payment), || text(&payment))
            }
        }
    }
}

async fn list_payments(
    session: &Session,
    output: &mut Output,
    wanted: Option<Status>,
    args: &PageArgs,
) -> Result<(), Fault> {
    let request = ListPaymentsRequest {
        page: args.page(),
        status: wanted.map_or(PaymentStatus::Unspecified, PaymentStatus::from).into(),
    };
    let answer = session.read(|link| async move { PaymentsClient::new(link).list(request).await }).await?;
    let payments: Vec<Value> = answer.payments.iter().map(json).collect();
    let json = json!({ "payments": payments, "next_cursor": answer.next_cursor });
    output.answer(&json, || {
        let columns = [
            Column::Text("TIME"),
            Column::Text("STATUS"),
            Column::Number("AMOUNT"),
            Column::Number("FEE"),
            Column::Text("PAYEE"),
            Column::Text("PAYMENT HASH"),
        ];
        let row = |payment: &Payment| {
            vec![
                words::time(payment.created_ms),
                status(payment.status()),
                msat(payment.amount_msat),
                msat(payment.fee_msat),
                words::short(&payment.payee_node_id),
                hex::encode(&payment.payment_hash),
            ]
        };
        let rows = answer.payments.iter().map(row).collect();
        page(list(&columns, rows, "No payments yet."), &answer.next_cursor)
    })
}

/// A status in words.
pub(crate) fn status(status: PaymentStatus) -> String {
    words::value(status.as_str_name(), "PAYMENT_STATUS_").replace('_', " ")
}

/// A payment for a program.
pub(crate) fn json(payment: &Payment) -> Value {
    json!({
        "payment_hash": hex::encode(&payment.payment_hash),
        "status": words::value(payment.status().as_str_name(), "PAYMENT_STATUS_"),
        "amount_msat": payment.amount_msat,
        "fee_msat": payment.fee_msat,
        "payee_node_id": hex::encode(&payment.payee_node_id),
        "bolt11": payment.bolt11,
        "description": payment.description,
        "preimage": words::hex_or_none(&payment.preimage),
        "failure": payment.failure.as_ref().map(failure_json),
        "created_ms": payment.created_ms,
        "decided_ms": payment.decided_ms,
        "attempts": payment.attempts.iter().map(attempt_json).collect::<Vec<_>>(),
    })
}

/// An attempt for a program.
pub(crate) fn attempt_json(attempt: &Attempt) -> Value {
    json!({
        "attempt": attempt.attempt,
        "status": words::value(attempt.status().as_str_name(), "PAYMENT_STATUS_"),
        "amount_msat": attempt.amount_msat,
        "fee_msat": attempt.fee_msat,
        "hops": attempt.hops.iter().map(hop_json).collect::<Vec<_>>(),
        "failure": attempt.failure.as_ref().map(failure_json),
        "started_ms": attempt.started_ms,
        "ended_ms": attempt.ended_ms,
    })
}

/// A hop for a program.
pub(crate) fn hop_json(hop: &Hop) -> Value {
    let mut json = json!({
        "node_id": hex::encode(&hop.node_id),
        "short_channel_id": words::scid(hop.short_channel_id),
        "amount_msat": hop.amount_msat,
        "fee_msat": hop.fee_msat,
        "cltv_expiry": hop.cltv_expiry,
    });
    if let Some(held_ms) = hop.held_ms {
        json["held_ms"] = json!(held_ms);
    }
    json
}

/// A failure for a program.
pub(crate) fn failure_json(failure: &PaymentFailure) -> Value {
    json!({
        "reason": failure_reason(failure),
        "message": failure.message,
        "failure_code": failure.failure_code,
        "failure_name": failure.failure_name,
        "hop_index": failure.hop_index,
        "node_id": words::hex_or_none(&failure.node_id),
        "hint": failure.hint,
    })
}

fn failure_reason(failure: &PaymentFailure) -> String {
    words::value(failure.reason().as_str_name(), "PAYMENT_FAILURE_REASON_")
}

/// A failure for a person.
pub(crate) fn failure_text(failure: &PaymentFailure) -> String {
    let reason = failure_reason(failure).replace('_', " ");
    match failure.message.as_str() {
        "" => reason,
        message => format!("{reason}: {message}"),
    }
}

/// A payment for a person.
pub(crate) fn text(payment: &Payment) -> String {
    let failure = payment.failure.as_ref().map(failure_text);
    let took = payment.decided_ms.map(|decided| format!("{} ms", decided.saturating_sub(payment.created_ms)));
    let mut sections = vec![facts([
        ("Payment", status(payment.status())),
        ("Amount", msat(payment.amount_msat)),
        ("Fee", msat(payment.fee_msat)),
        ("To", hex::encode(&payment.payee_node_id)),
        ("For", payment.description.clone()),
        ("Payment hash", hex::encode(&payment.payment_hash)),
        ("Preimage", words::hex_or_none(&payment.preimage).unwrap_or_default()),
        ("Failed because", failure.unwrap_or_default()),
        ("Begun", words::time(payment.created_ms)),
        ("Took", took.unwrap_or_default()),
    ])];
    sections.extend(payment.attempts.iter().map(attempt_section));
    sections.join("\n\n")
}

/// An attempt in one line.
pub(crate) fn attempt_text(attempt: &Attempt) -> String {
    let number = attempt.attempt;
    let failure = attempt.failure.as_ref().map(failure_text);
    match (attempt.status(), failure) {
        (PaymentStatus::Failed, Some(failure)) => format!("Attempt {number} failed: {failure}"),
        (other, _) => format!(
            "Attempt {number}, {} over {}{} for {}: {}",
            msat(attempt.amount_msat),
            words::count(attempt.hops.len(), "hop"),
            between(&attempt.hops),
            msat(attempt.fee_msat),
            status(other)
        ),
    }
}

/// The nodes on the way, the payee left out.
fn between(hops: &[Hop]) -> String {
    match hops.split_last() {
        Some((_, way)) if !way.is_empty() => {
            let nodes: Vec<String> = way.iter().map(|hop| words::short(&hop.node_id)).collect();
            format!(" ({})", nodes.join(", "))
        }
        Some(_) | None => String::new(),
    }
}

fn attempt_section(attempt: &Attempt) -> String {
    format!("{}\n{}", attempt_text(attempt), hops_table(&attempt.hops))
}

/// A way, hop by hop. How long each held the HTLC is only shown if one has said so.
pub(crate) fn hops_table(hops: &[Hop]) -> String {
    let mut columns = vec![
        Column::Text("HOP"),
        Column::Number("RECEIVES"),
        Column::Number("KEEPS"),
        Column::Number("EXPIRES AT"),
        Column::Text("CHANNEL"),
    ];
    let is_held = hops.iter().any(|hop| hop.held_ms.is_some());
    if is_held {
        columns.push(Column::Number("HELD"));
    }
    let row = |hop: &Hop| {
        let mut row = vec![
            words::short(&hop.node_id),
            msat(hop.amount_msat),
            msat(hop.fee_msat),
            hop.cltv_expiry.to_string(),
            words::scid(hop.short_channel_id),
        ];
        if is_held {
            row.push(hop.held_ms.map(|held| format!("{held} ms")).unwrap_or_default());
        }
        row
    };
    list(&columns, hops.iter().map(row).collect(), "No route.")
}
