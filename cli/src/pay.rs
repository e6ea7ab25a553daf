//! `millrace pay`: paying an invoice, with progress.
//!
//! The outcome decides the exit code: 0 paid, 4 tried and failed, 1 not even tried, 5 not known.

use clap::Args;
use millrace_rpc::v1::payments_client::PaymentsClient;
use millrace_rpc::v1::{PayProgress, PayRequest, Payment, PaymentStatus, pay_progress};
use serde_json::{Value, json};

use crate::amount::Amount;
use crate::args::KeyArg;
use crate::fault::Fault;
use crate::output::Output;
use crate::payment;
use crate::progress::Progress;
use crate::session::{Order, Session, Step};
use crate::wallet::msat;
use crate::words;

/// Pay an invoice
///
/// Waits for the outcome. An invoice is paid at most once, however often the command is given.
///
/// Examples:
///   millrace pay lnbcrt210n1…
///   millrace pay lnbcrt1… 21sat --fee-limit 1sat
///   millrace pay lnbcrt210n1… --idempotency-key order-4711 --json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Pay {
    /// The invoice
    #[arg(value_name = "INVOICE")]
    bolt11: String,
    /// How much, if the invoice leaves it open
    amount: Option<Amount>,
    /// The most to pay for routing [default: the larger of 5sat and 1 % of the amount]
    #[arg(long, value_name = "AMOUNT")]
    fee_limit: Option<Amount>,
    /// After this time no further attempt is begun
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = words::parse_seconds)]
    timeout: u32,
    #[command(flatten)]
    key: KeyArg,
}

impl Pay {
    /// Pays and shows the outcome.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        let order = Order::new("pay", self.key.key.as_deref())?.decided_by_outcome();
        let request = PayRequest {
            idempotency_key: order.key.clone(),
            bolt11: self.bolt11,
            amount_msat: self.amount.map(Amount::msat),
            fee_limit_msat: self.fee_limit.map(Amount::msat),
            timeout_s: self.timeout,
        };
        let mut progress = Progress::begin(output, "Paying");
        let payment = session
            .follow(
                &order,
                |link| {
                    let request = request.clone();
                    async move { PaymentsClient::new(link).pay(request).await }
                },
                |message| {
                    let Some(step) = step(&message) else {
                        return Ok(Step::Known);
                    };
                    let last = match message.step {
                        Some(pay_progress::Step::Outcome(payment)) => Some(payment),
                        _ => None,
                    };
                    progress.tell(output, step, last)
                },
            )
            .await?;
        progress.end();
        conclude(output, &order, payment)
    }
}

/// The answer, and the exit code, after the outcome.
fn conclude(output: &mut Output, order: &Order, payment: Payment) -> Result<(), Fault> {
    match payment.status() {
        PaymentStatus::Succeeded if output.is_json() => Ok(()),
        PaymentStatus::Succeeded => output.line(&payment::text(&payment)),
        PaymentStatus::Failed => Err(Fault::PaymentFailed(Box::new(payment.failure.unwrap_or_default()))),
        PaymentStatus::Unspecified | PaymentStatus::InFlight => Err(Fault::OutcomeUnknown {
            what: order.what,
            cause: "the daemon told no outcome".to_owned(),
            key: order.key.clone(),
        }),
    }
}

/// A step for a program and for a person. None: a step that this version does not know.
fn step(message: &PayProgress) -> Option<(Value, String)> {
    use pay_progress::Step as S;
    let (name, mut json, text) = match message.step.as_ref()? {
        S::Accepted(accepted) => (
            "accepted",
            json!({
                "amount_msat": accepted.amount_msat,
                "payee_node_id": hex::encode(&accepted.payee_node_id),
            }),
            format!("Paying {} to {}…", msat(accepted.amount_msat), words::short(&accepted.payee_node_id)),
        ),
        S::Attempt(attempt) => {
            ("attempt", json!({ "attempt": payment::attempt_json(attempt) }), payment::attempt_text(attempt))
        }
        S::Outcome(payment) => {
            ("outcome", json!({ "payment": payment::json(payment) }), payment::status(payment.status()))
        }
    };
    json["step"] = json!(name);
    json["payment_hash"] = json!(hex::encode(&message.payment_hash));
    Some((json, text))
}
