//! Payments by a call each, beside those by the stream: what it costs a client to ask for every payment by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_rpc::v1::{PayRequest, PaymentStatus, pay_progress};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::payments::{Latency, percentiles};
use crate::client::Client;
use crate::network::{Error, Network, random_key};

/// A call that takes longer has no answer.
const LIMIT: Duration = Duration::from_secs(60);

/// What it came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Unary {
    /// Payments in all.
    pub payments: usize,
    /// Complete per second.
    pub payments_per_s: f64,
    /// From the request to the answer.
    pub latency_ms: Latency,
}

/// Pays each invoice by a call of its own, so many at once.
pub(super) async fn measure(network: &Network, invoices: Vec<String>, outstanding: usize) -> Result<Unary, Error> {
    let client = network.nodes[0].client()?;
    let slots = Arc::new(Semaphore::new(outstanding));
    let mut calls = JoinSet::new();
    let payments = invoices.len();
    let begun = Instant::now();
    for bolt11 in invoices {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(|_| Error::Wrong("no slots".to_owned()))?;
        let client = client.clone();
        calls.spawn(async move {
            let took = pay(client, bolt11).await;
            drop(slot);
            took
        });
    }
    let mut latencies = Vec::with_capacity(payments);
    while let Some(took) = calls.join_next().await {
        latencies.push(took.map_err(|error| Error::Wrong(error.to_string()))??);
    }
    let payments_per_s = payments as f64 / begun.elapsed().as_secs_f64();
    Ok(Unary { payments, payments_per_s, latency_ms: percentiles(&mut latencies) })
}

async fn pay(mut client: Client, bolt11: String) -> Result<Duration, Error> {
    let begun = Instant::now();
    let request = PayRequest { idempotency_key: random_key(), bolt11, ..PayRequest::default() };
    let failed = |status: tonic::Status| Error::Wrong(format!("a payment is refused: {}", status.message()));
    let mut progress = client.payments.pay(request).await.map_err(failed)?.into_inner();
    loop {
        let step = tokio::time::timeout(LIMIT, progress.message()).await;
        let step = step.map_err(|_| Error::Wrong("no payment completes within 60 s".to_owned()))?.map_err(failed)?;
        let Some(step) = step else { return Err(Error::Wrong("a payment ends without outcome".to_owned())) };
        if let Some(pay_progress::Step::Outcome(payment)) = step.step {
            return match payment.status() {
                PaymentStatus::Succeeded => Ok(begun.elapsed()),
                status => Err(Error::Wrong(format!("a payment came to {status:?}"))),
            };
        }
    }
}
