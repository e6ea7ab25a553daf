//! `millrace pay`: paying an invoice or a node, with progress; and what that would cost.
//!
//! The outcome decides the exit code: 0 paid, 4 tried and failed, 1 not even tried, 5 not known.

use clap::Args;
use millrace_rpc::v1::payments_client::PaymentsClient;
use millrace_rpc::v1::{PayProgress, PayRequest, Payment, PaymentStatus, pay_progress};
use serde_json::{Value, json};

use crate::amount::Amount;
use crate::args::KeyArg;
use crate::estimate;
use crate::fault::Fault;
use crate::output::Output;
use crate::payment;
use crate::progress::Progress;
use crate::session::{Order, Session, Step};
use crate::wallet::msat;
use crate::words;

/// Pay an invoice, or a node without one
///
/// Waits for the outcome. An invoice is paid at most once, however often the command is given; a node
/// without an invoice is paid anew each time, unless an idempotency key says that it is the same payment.
///
/// Examples:
///   millrace pay lnbcrt210n1…
///   millrace pay lnbcrt1… 21sat --fee-limit 1sat
///   millrace pay lnbcrt210n1… --dry-run
///   millrace pay --node 02ab… --amount 21sat
///   millrace pay lnbcrt210n1… --idempotency-key order-4711 --json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Pay {
    /// The invoice
    #[arg(value_name = "INVOICE", required_unless_present = "node", conflicts_with = "node")]
    bolt11: Option<String>,
    /// How much, if the invoice leaves it open
    amount: Option<Amount>,
    /// Pay this node, which has made no invoice (keysend)
    #[arg(long, value_name = "NODE_ID", value_parser = words::node_id, requires = "how_much")]
    node: Option<[u8; 33]>,
    /// How much, as an option
    #[arg(long = "amount", id = "how_much", value_name = "AMOUNT", conflicts_with = "amount")]
    how_much: Option<Amount>,
    /// Show the ways that the payment would take now, and what they cost; nothing is sent
    #[arg(long, conflicts_with = "key")]
    dry_run: bool,
    /// The most to pay for routing [default: the larger of 5sat and 1 % of the amount]
    #[arg(long, value_name = "AMOUNT")]
    fee_limit: Option<Amount>,
    /// Split it into so many parts at most, if the payee takes parts [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    max_parts: Option<u32>,
    /// Lock money for so many blocks at most [default: what the node's settings grant]
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u32).range(1..=2016))]
    max_blocks: Option<u32>,
    /// After this time no further attempt is begun
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = words::parse_seconds)]
    timeout: u32,
    #[command(flatten)]
    key: KeyArg,
}

impl Pay {
    /// Pays and shows the outcome.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        if self.dry_run {
            return estimate::run(session, output, self.request(String::new())).await;
        }
        let order = Order::new("pay", self.key.key.as_deref())?.decided_by_outcome();
        let request = self.request(order.key.clone());
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

    fn request(self, idempotency_key: String) -> PayRequest {
        PayRequest {
            idempotency_key,
            bolt11: self.bolt11.unwrap_or_default(),
            amount_msat: self.amount.or(self.how_much).map(Amount::msat),
            fee_limit_msat: self.fee_limit.map(Amount::msat),
            timeout_s: self.timeout,
            node_id: self.node.map(|node| node.to_vec()).unwrap_or_default(),
            fee_limit_ppm: None,
            max_parts: self.max_parts.unwrap_or_default(),
            max_cltv_expiry_blocks: self.max_blocks.unwrap_or_default(),
        }
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
