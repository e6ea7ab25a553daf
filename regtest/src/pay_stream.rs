//! Many payments on one bidirectional stream, and what came of each.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use millrace_rpc::v1::{
    CreateInvoiceRequest, StreamPayRequest, StreamPayResponse, create_invoice_request, stream_pay_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::Client;
use crate::network::{Error, random_key};
use crate::node::Node;

/// Requests that may wait to be sent.
const QUEUE: usize = 1024;

/// What came of a payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Paid.
    Paid,
    /// Failed for good, in words.
    Failed(String),
    /// Never accepted, in words.
    Refused(String),
}

/// An open stream.
pub struct PayStream {
    requests: mpsc::Sender<StreamPayRequest>,
    answers: Streaming<StreamPayResponse>,
    begun: HashMap<u64, Instant>,
}

impl PayStream {
    /// Opens one.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn open(node: &Node) -> Result<Self, Error> {
        Self::over(&node.client()?).await.map_err(|status| node.call_failed(&status))
    }

    /// Opens one over a connection.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn over(client: &Client) -> Result<Self, tonic::Status> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let answers = client.clone().payments.stream(ReceiverStream::new(queue)).await?.into_inner();
        Ok(Self { requests, answers, begun: HashMap::new() })
    }

    /// Asks for a payment. Its answer comes by [`PayStream::next`] under the same id.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn pay(&mut self, request_id: u64, bolt11: String, idempotency_key: String) -> Result<(), Error> {
        self.begun.insert(request_id, Instant::now());
        let request = StreamPayRequest { request_id, bolt11, idempotency_key, ..StreamPayRequest::default() };
        self.requests.send(request).await.map_err(|_| Error::Wrong("the payment stream has ended".to_owned()))
    }

    /// Payments that no answer has come for.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.begun.len()
    }

    /// The next answer: which payment, what came of it, and after how long. `None` at the end of the stream.
    ///
    /// # Errors
    /// If the stream breaks.
    pub async fn next(&mut self) -> Result<Option<(u64, Outcome, Duration)>, Error> {
        let Some((answer, took)) = self.next_answer().await? else { return Ok(None) };
        let outcome = match answer.result {
            Some(stream_pay_response::Result::Paid(_)) => Outcome::Paid,
            Some(stream_pay_response::Result::Failed(failure)) => Outcome::Failed(failure.message),
            Some(stream_pay_response::Result::Refused(refused)) => Outcome::Refused(refused.message),
            None => return Err(Error::Wrong("an answer without a result".to_owned())),
        };
        Ok(Some((answer.request_id, outcome, took)))
    }

    /// The same with everything that the daemon says.
    ///
    /// # Errors
    /// If the stream breaks.
    pub async fn next_answer(&mut self) -> Result<Option<(StreamPayResponse, Duration)>, Error> {
        let answer = self.answers.message().await;
        let answer = answer.map_err(|status| Error::Wrong(format!("the payment stream broke: {status}")))?;
        let Some(answer) = answer else { return Ok(None) };
        let took = self.begun.remove(&answer.request_id).map(|begun| begun.elapsed()).unwrap_or_default();
        Ok(Some((answer, took)))
    }
}

/// Makes invoices, several calls at once. In the order asked for.
///
/// # Errors
/// If a call fails.
pub async fn make_invoices(client: &Client, amounts_msat: &[u64], description: &str) -> Result<Vec<String>, Error> {
    const AT_ONCE: usize = 64;
    let mut invoices = Vec::with_capacity(amounts_msat.len());
    for chunk in amounts_msat.chunks(AT_ONCE) {
        let calls: Vec<_> = chunk
            .iter()
            .map(|amount| {
                let mut invoices = client.invoices.clone();
                let request = CreateInvoiceRequest {
                    idempotency_key: random_key(),
                    amount_msat: Some(*amount),
                    purpose: Some(create_invoice_request::Purpose::Description(description.to_owned())),
                    ..CreateInvoiceRequest::default()
                };
                tokio::spawn(async move { invoices.create(request).await })
            })
            .collect();
        for call in calls {
            let answer = call.await.map_err(|error| Error::Wrong(error.to_string()))?;
            let answer = answer.map_err(|status| Error::Wrong(format!("no invoice: {status}")))?;
            invoices.push(answer.into_inner().invoice.unwrap_or_default().bolt11);
        }
    }
    Ok(invoices)
}
