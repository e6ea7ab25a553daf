//! The two ends of a load's payments: who makes invoices, and who pays them, found again when they have been away.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_rpc::v1::{ErrorDetail, PaymentFailure, StreamPayResponse, stream_pay_response};
use tokio::sync::{Mutex, mpsc};

use super::Stay;
use crate::client::Client;
use crate::ldk::LdkNode;
use crate::ldk::protocol::{Event, PaymentStatus};
use crate::network::{Error, random_key};
use crate::pay_stream::{PayStream, make_invoices};
use crate::plan::Kind;

/// How often a node that is away is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often LDK is asked what became of a payment.
const ASK_LDK_AGAIN: Duration = Duration::from_millis(30);
/// What became of one payment.
pub(super) type Answer = Result<Paid, String>;

#[derive(Clone, Copy)]
pub(super) struct Paid {
    pub(super) amount_msat: u64,
    pub(super) fee_msat: u64,
    pub(super) took: Duration,
}

/// A payment for a payer to make.
pub(super) struct Ask {
    pub(super) bolt11: String,
    pub(super) amount_msat: u64,
}

/// A node that answers.
#[derive(Clone)]
enum Reached {
    Ours(Box<Client>),
    Ldk(Arc<LdkNode>),
}

/// The way to each node, found again when it comes back.
pub(super) struct Reach {
    stay: Stay,
    nodes: Vec<Way>,
}

/// The way to one node.
#[derive(Default)]
struct Way {
    /// And when it was last looked for.
    reached: Mutex<(Option<Reached>, Option<Instant>)>,
    /// Whether it ran and answered when it was last looked at.
    does_answer: AtomicBool,
}

impl Reach {
    /// To all nodes of the network. These answer now.
    pub(super) fn new(stay: Stay, answering: &[usize]) -> Self {
        let way = |node| Way { does_answer: AtomicBool::new(answering.contains(&node)), ..Way::default() };
        let nodes = (0..stay.state.plan.nodes.len()).map(way).collect();
        Self { stay, nodes }
    }

    /// How many nodes the network has, whether they run or not.
    pub(super) const fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes that run and answer, as of the last look.
    pub(super) fn answering(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].does_answer.load(Ordering::Relaxed)).collect()
    }

    /// Looks at a node again and again: it may be killed, stopped and started by others.
    pub(super) async fn look_after(self: Arc<Self>, node: usize) {
        loop {
            let is_running = self.stay.running(&self.stay.state.plan.nodes[node].name).is_some();
            if !is_running {
                self.lose(node).await;
            }
            let does_answer = is_running && self.get(node).await.is_some();
            self.nodes[node].does_answer.store(does_answer, Ordering::Relaxed);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn get(&self, node: usize) -> Option<Reached> {
        let mut slot = self.nodes[node].reached.lock().await;
        let (reached, looked) = &mut *slot;
        let is_early = looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN);
        if reached.is_none() && !is_early {
            *looked = Some(Instant::now());
            *reached = self.stay.reach(node).await;
        }
        reached.clone()
    }

    /// It did not answer: it is looked for again.
    async fn lose(&self, node: usize) {
        self.nodes[node].reached.lock().await.0 = None;
    }
}

impl Stay {
    async fn reach(&self, node: usize) -> Option<Reached> {
        let planned = &self.state.plan.nodes[node];
        let process = self.running(&planned.name)?;
        let bitcoind = self.running_bitcoind().ok()?;
        match planned.kind {
            Kind::Millrace => {
                let mut daemon = self.daemon(&planned.name, &planned.alias, &bitcoind);
                let is_ready = daemon.attach(process.pid).await.ok()?;
                if !is_ready {
                    return None;
                }
                daemon.client().ok().map(|client| Reached::Ours(Box::new(client)))
            }
            Kind::Ldk => {
                let mut ldk = self.ldk_node(&planned.name, &planned.alias, &bitcoind);
                ldk.attach(&self.socket(&planned.name)).await.ok()?;
                Some(Reached::Ldk(Arc::new(ldk)))
            }
        }
    }
}

/// An invoice of a node's, or why there is none.
pub(super) async fn invoice(reach: &Reach, node: usize, amount_msat: u64) -> Result<String, String> {
    let made = match reach.get(node).await {
        Some(Reached::Ours(client)) => {
            make_invoices(&client, &[amount_msat], "load").await.map(|mut made| made.remove(0))
        }
        Some(Reached::Ldk(ldk)) => ldk.receive(Some(amount_msat), "load").await,
        None => return Err("the payee is away".to_owned()),
    };
    match made {
        Ok(bolt11) => Ok(bolt11),
        Err(_) => {
            reach.lose(node).await;
            Err("the payee makes no invoice".to_owned())
        }
    }
}

/// Makes one node's payments, until nobody asks for more.
pub(super) async fn payer(
    reach: Arc<Reach>,
    node: usize,
    mut asks: mpsc::Receiver<Ask>,
    to: mpsc::UnboundedSender<Answer>,
) {
    while let Some(ask) = asks.recv().await {
        match reach.get(node).await {
            Some(Reached::Ours(client)) => {
                if let Ok(stream) = PayStream::over(&client).await {
                    pay_by_stream(stream, ask, &mut asks, &to).await;
                } else {
                    let _ = to.send(Err(AWAY.to_owned()));
                }
                reach.lose(node).await;
            }
            Some(Reached::Ldk(ldk)) => {
                let (reach, to) = (reach.clone(), to.clone());
                tokio::spawn(async move {
                    let answer = pay_by_ldk(&ldk, ask).await;
                    if answer.as_ref().is_err_and(|why| why == AWAY) {
                        reach.lose(node).await;
                    }
                    let _ = to.send(answer);
                });
            }
            None => {
                let _ = to.send(Err(AWAY.to_owned()));
            }
        }
    }
}

const AWAY: &str = "the payer is away";

/// Pays over one stream until it breaks, or nobody asks for more. Answers that nobody takes any more are dropped.
async fn pay_by_stream(
    mut stream: PayStream,
    first: Ask,
    asks: &mut mpsc::Receiver<Ask>,
    to: &mpsc::UnboundedSender<Answer>,
) {
    let mut amounts = HashMap::new();
    let (mut next_id, mut next, mut is_open) = (0_u64, Some(first), true);
    loop {
        if let Some(ask) = next.take() {
            amounts.insert(next_id, ask.amount_msat);
            if stream.pay(next_id, ask.bolt11, random_key()).await.is_err() {
                break;
            }
            next_id += 1;
        }
        tokio::select! {
            ask = asks.recv(), if is_open => {
                is_open = ask.is_some();
                next = ask;
            }
            answer = stream.next_answer(), if !amounts.is_empty() => {
                let Ok(Some((answer, took))) = answer else { break };
                let amount_msat = amounts.remove(&answer.request_id).unwrap_or_default();
                let _ = to.send(read(answer, amount_msat, took));
            }
            else => break,
        }
    }
    for _ in amounts {
        let _ = to.send(Err("the payer went away".to_owned()));
    }
}

fn read(answer: StreamPayResponse, amount_msat: u64, took: Duration) -> Answer {
    match answer.result {
        Some(stream_pay_response::Result::Paid(paid)) => Ok(Paid { amount_msat, fee_msat: paid.fee_msat, took }),
        Some(stream_pay_response::Result::Failed(failure)) => Err(failure_reason(&failure)),
        Some(stream_pay_response::Result::Refused(refused)) => Err(refusal_reason(refused.detail, &refused.message)),
        None => Err("an answer without a result".to_owned()),
    }
}

fn failure_reason(failure: &PaymentFailure) -> String {
    let name = failure.reason().as_str_name();
    name.strip_prefix("PAYMENT_FAILURE_REASON_").unwrap_or(name).to_owned()
}

fn refusal_reason(detail: Option<ErrorDetail>, message: &str) -> String {
    let Some(detail) = detail else { return message.to_owned() };
    let name = detail.reason().as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name).to_owned()
}

async fn pay_by_ldk(ldk: &LdkNode, Ask { bolt11, amount_msat }: Ask) -> Answer {
    let begun = Instant::now();
    let id = match ldk.pay(&bolt11, None).await {
        Ok(id) => id,
        // The kind in parentheses at its end: RouteNotFound and the like.
        Err(Error::Node { what, .. }) if what.ends_with(')') => {
            let kind = what.rsplit_once('(').map_or(what.as_str(), |(_, kind)| kind.trim_end_matches(')'));
            return Err(format!("LDK: {kind}"));
        }
        Err(_) => return Err(AWAY.to_owned()),
    };
    loop {
        let Ok(payment) = ldk.payment(&id).await else { return Err("the payer went away".to_owned()) };
        match payment.status {
            PaymentStatus::Succeeded => {
                let fee_msat = payment.fee_msat.unwrap_or_default();
                return Ok(Paid { amount_msat, fee_msat, took: begun.elapsed() });
            }
            PaymentStatus::Failed => {
                let events = ldk.events();
                let why = events.iter().rev().find_map(|event| match event {
                    Event::PaymentFailed { payment_id, reason } if *payment_id == id => Some(reason.as_str()),
                    _ => None,
                });
                return Err(format!("LDK: {}", why.unwrap_or("it does not say why")));
            }
            PaymentStatus::Pending => tokio::time::sleep(ASK_LDK_AGAIN).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_rpc::v1::{ErrorReason, PaymentFailureReason};

    #[test]
    fn reasons_are_told_by_their_names() {
        let failure = PaymentFailure { reason: PaymentFailureReason::NoRoute.into(), ..PaymentFailure::default() };
        assert_eq!(failure_reason(&failure), "NO_ROUTE");
        let detail = ErrorDetail::new(ErrorReason::InsufficientBalance);
        assert_eq!(refusal_reason(Some(detail), "no"), "INSUFFICIENT_BALANCE");
        assert_eq!(refusal_reason(None, "no"), "no");
    }
}
