//! The service `Payments`: paying invoices, one by one or any number over one stream.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use millrace_routing::failure::code;
use millrace_routing::invoice::{Description, Invoice};
use millrace_rpc::v1::payments_server::Payments;
use millrace_rpc::v1::{
    self, EstimateRouteResponse, GetPaymentResponse, ListPaymentsResponse, PayProgress, StreamPayRequest,
    StreamPayResponse, pay_progress, stream_pay_response,
};
use millrace_wire::{Msat, PublicKey};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, fault, parse};
use crate::happened::{AttemptBegun, Failure, FailureReason};
use crate::idempotency::{KeyHash, RequestHash};
use crate::payments::{
    AttemptRow, Limits, Listener, PARTS_MAX, PayKey, PayRefusal, PayRequest, PaymentRow, PaymentStatus,
    TIMEOUT_DEFAULT, Target, Told,
};
use crate::route::{Estimate, Route, RouteHop};

/// Payments that one stream may have under way.
const OUTSTANDING_MAX: usize = 8_192;
/// Requests that are read and prepared together; several such batches are prepared at the same time.
const BATCH: usize = 32;
/// Batches that are prepared at the same time: one for each core of a small machine, and one to come.
const BATCHES_AT_ONCE: usize = 4;
/// Answers that may wait for a slow reader: then nothing more is answered, nor read.
const ANSWERS_MAX: usize = 1_024;
/// The longest time after which no attempt is begun.
const TIMEOUT_MAX_S: u32 = 86_400;
/// Both ways of paying are the same call to a key.
const CALL: &str = "Payments.Pay";

pub(super) struct PaymentsService(pub(super) Shared);

#[tonic::async_trait]
impl Payments for PaymentsService {
    type PayStream = BoxStream<'static, Result<PayProgress, Status>>;
    type StreamStream = BoxStream<'static, Result<StreamPayResponse, Status>>;

    async fn pay(&self, request: Request<v1::PayRequest>) -> Result<Response<Self::PayStream>, Status> {
        self.0.ready()?;
        let request = order(request.into_inner()).map_err(|refusal| fault::pay(&refusal))?;
        let (listener, told) = Listener::pair(0, true);
        let inner = Arc::clone(&self.0);
        // The curve work of one payment: too short to be worth another thread.
        self.0.api.payments.pay([(request, listener)]);
        let first = Followed { inner, told, accepted: None, is_over: false };
        first.start().await
    }

    async fn stream(
        &self,
        request: Request<Streaming<StreamPayRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        self.0.ready()?;
        let (to, answers) = mpsc::channel(ANSWERS_MAX);
        tokio::spawn(serve(Arc::clone(&self.0), request.into_inner(), to));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn get(&self, request: Request<v1::GetPaymentRequest>) -> Result<Response<GetPaymentResponse>, Status> {
        self.0.ready()?;
        let payment_hash = parse::payment_hash(&request.into_inner().payment_hash)?;
        let past = &self.0.past;
        past.view.catch_up(&past.log).await;
        let row = past.view.payment_by_hash(&payment_hash).map_err(|error| fault::view(&error))?;
        let row = row.ok_or_else(|| fault::not_found("payment", payment_hash))?;
        Ok(Response::new(GetPaymentResponse { payment: Some(message(&row, true)) }))
    }

    async fn estimate_route(
        &self,
        request: Request<v1::EstimateRouteRequest>,
    ) -> Result<Response<EstimateRouteResponse>, Status> {
        self.0.ready()?;
        let payment = request.into_inner().payment.unwrap_or_default();
        let request = order(v1::PayRequest { idempotency_key: String::new(), ..payment });
        let request = request.map_err(|refusal| fault::pay(&refusal))?;
        let estimates = self.0.api.payments.estimate(request).await.map_err(|refusal| fault::pay(&refusal))?;
        let sum = |of: fn(&Route) -> Msat| estimates.iter().map(|one| of(&one.route).0).fold(0, u64::saturating_add);
        let (amount_msat, fee_msat) = (sum(Route::received), sum(Route::fee));
        let routes = estimates.iter().map(|Estimate { route, chance_ppm }| v1::Route {
            amount_msat: route.received().0,
            fee_msat: route.fee().0,
            hops: hops(route, &[]),
            chance_ppm: *chance_ppm,
        });
        Ok(Response::new(EstimateRouteResponse { routes: routes.collect(), amount_msat, fee_msat }))
    }

    async fn list(&self, request: Request<v1::ListPaymentsRequest>) -> Result<Response<ListPaymentsResponse>, Status> {
        self.0.ready()?;
        let v1::ListPaymentsRequest { page, status } = request.into_inner();
        let wanted = v1::PaymentStatus::try_from(status).map_err(|_| fault::field("status", "no such status"))?;
        let (from, size) = parse::page(page.as_ref())?;
        let past = self.0.past.clone();
        past.view.catch_up(&past.log).await;
        let passes = |row: &PaymentRow| wanted == v1::PaymentStatus::Unspecified || status_of(&row.status) == wanted;
        let page = tokio::task::block_in_place(|| past.view.payments(from, size, passes));
        let page = page.map_err(|error| fault::view(&error))?;
        let payments = page.rows.iter().map(|row| message(row, false)).collect();
        Ok(Response::new(ListPaymentsResponse { payments, next_cursor: parse::cursor(page.next) }))
    }
}

// --- one payment ---

struct Followed {
    inner: Shared,
    told: mpsc::UnboundedReceiver<(u64, Told)>,
    /// Of the payment, once it is accepted.
    accepted: Option<(Vec<u8>, Msat, PublicKey)>,
    is_over: bool,
}

impl Followed {
    /// A refusal is the call's own error; anything else begins the stream.
    async fn start(mut self) -> Result<Response<BoxStream<'static, Result<PayProgress, Status>>>, Status> {
        let first = match self.told.recv().await {
            Some((_, Told::Refused(refusal))) => return Err(fault::pay(&refusal)),
            Some((_, told)) => told,
            None => return Err(fault::stopping()),
        };
        let begun = self.begin(first);
        let rest = futures::stream::unfold(self, |mut followed| async move {
            let item = followed.next().await?;
            Some((item, followed))
        });
        Ok(Response::new(Box::pin(futures::stream::iter(begun).chain(rest))))
    }

    /// Whoever asks again for a payment that is decided gets `accepted` first all the same.
    fn begin(&mut self, first: Told) -> Vec<Result<PayProgress, Status>> {
        let mut messages = Vec::new();
        if let Told::Paid { row: Some(row), .. } | Told::Failed { row: Some(row), .. } = &first {
            self.accepted = Some((row.payment_hash.0.to_vec(), row.amount, row.payee));
            messages.push(Ok(self.progress(accepted(row.amount, &row.payee))));
        }
        messages.extend(self.on_told(first));
        messages
    }

    async fn next(&mut self) -> Option<Result<PayProgress, Status>> {
        if self.is_over {
            return None;
        }
        loop {
            let told = tokio::select! {
                told = self.told.recv() => told,
                () = self.inner.stopped() => None,
            };
            let Some((_, told)) = told else {
                self.is_over = true;
                return Some(Err(fault::stopping()));
            };
            if let Some(message) = self.on_told(told) {
                return Some(message);
            }
        }
    }

    fn on_told(&mut self, told: Told) -> Option<Result<PayProgress, Status>> {
        Some(Ok(match told {
            Told::Accepted { payment_hash, amount, payee } => {
                self.accepted = Some((payment_hash.0.to_vec(), amount, payee));
                self.progress(accepted(amount, &payee))
            }
            Told::Attempt(row) => {
                let (_, amount, payee) = self.accepted.as_ref()?;
                self.progress(pay_progress::Step::Attempt(attempt(&row, *payee, *amount)))
            }
            Told::Paid { row, .. } | Told::Failed { row, .. } => {
                self.is_over = true;
                self.progress(pay_progress::Step::Outcome(message(&*row?, true)))
            }
            Told::Refused(refusal) => {
                self.is_over = true;
                return Some(Err(fault::pay(&refusal)));
            }
        }))
    }

    fn progress(&self, step: pay_progress::Step) -> PayProgress {
        let payment_hash = self.accepted.as_ref().map(|(hash, ..)| hash.clone()).unwrap_or_default();
        PayProgress { payment_hash, step: Some(step) }
    }
}

fn accepted(amount: Msat, payee: &PublicKey) -> pay_progress::Step {
    pay_progress::Step::Accepted(v1::PaymentAccepted {
        amount_msat: amount.0,
        payee_node_id: payee.serialize().to_vec(),
    })
}

/// A request in types.
fn order(mut request: v1::PayRequest) -> Result<PayRequest, PayRefusal> {
    let text = std::mem::take(&mut request.idempotency_key);
    let timeout = match request.timeout_s {
        0 => TIMEOUT_DEFAULT,
        seconds @ 1..=TIMEOUT_MAX_S => Duration::from_secs(seconds.into()),
        seconds => {
            let what = format!("{seconds} seconds are too long, {TIMEOUT_MAX_S} are the most");
            return Err(PayRefusal::Field { field: "timeout_s", what });
        }
    };
    let limits = Limits { timeout, fee: fee_limit(&request)?, parts: parts(&request)?, blocks: blocks(&request)? };
    let key = if text.is_empty() {
        None
    } else {
        let hash = KeyHash::of(&text)?;
        Some(PayKey { text, hash, request: RequestHash::of(CALL, &request.encode_to_vec()) })
    };
    let amount = request.amount_msat.map(Msat);
    let target = match (request.bolt11.is_empty(), request.node_id.is_empty()) {
        (_, true) => Target::Invoice(request.bolt11),
        (true, false) => Target::Node(node(&request.node_id)?),
        (false, false) => {
            let what = "an invoice says whom it pays: leave one of the two out".to_owned();
            return Err(PayRefusal::Field { field: "node_id", what });
        }
    };
    Ok(PayRequest { target, amount, key, limits })
}

fn node(bytes: &[u8]) -> Result<PublicKey, PayRefusal> {
    PublicKey::from_slice(bytes).map_err(|error| PayRefusal::Field { field: "node_id", what: error.to_string() })
}

/// The smaller of what is said. A share needs an amount to be a share of: the invoice's, if the request names none.
fn fee_limit(request: &v1::PayRequest) -> Result<Option<Msat>, PayRefusal> {
    let fixed = request.fee_limit_msat.map(Msat);
    let Some(ppm) = request.fee_limit_ppm else { return Ok(fixed) };
    let of_invoice = || Invoice::parse(&request.bolt11).map(|invoice| invoice.amount);
    let amount = match request.amount_msat.map(Msat) {
        Some(amount) => amount,
        None => of_invoice()?.ok_or(PayRefusal::AmountMissing)?,
    };
    let share = u128::from(amount.0) * u128::from(ppm) / 1_000_000;
    let share = Msat(u64::try_from(share).unwrap_or(u64::MAX));
    Ok(Some(fixed.map_or(share, |fixed| fixed.min(share))))
}

fn parts(request: &v1::PayRequest) -> Result<u16, PayRefusal> {
    match u16::try_from(request.max_parts) {
        Ok(0) => Ok(Limits::default().parts),
        Ok(parts @ 1..=PARTS_MAX) => Ok(parts),
        Ok(_) | Err(_) => {
            let what = format!("{} parts are too many, {PARTS_MAX} are the most", request.max_parts);
            Err(PayRefusal::Field { field: "max_parts", what })
        }
    }
}

fn blocks(request: &v1::PayRequest) -> Result<Option<u16>, PayRefusal> {
    let blocks = request.max_cltv_expiry_blocks;
    match u16::try_from(blocks) {
        Ok(0) => Ok(None),
        Ok(blocks) => Ok(Some(blocks)),
        Err(_) => {
            let what = format!("{blocks} blocks are too many");
            Err(PayRefusal::Field { field: "max_cltv_expiry_blocks", what })
        }
    }
}

// --- any number of payments ---

/// The numbers that are in use on one stream, each with its place among those that may be outstanding.
type InUse = Arc<Mutex<HashMap<u64, OwnedSemaphorePermit>>>;

const LOCK: &str = "nothing panics while a stream's numbers are locked";

async fn serve(
    inner: Shared,
    requests: Streaming<StreamPayRequest>,
    to: mpsc::Sender<Result<StreamPayResponse, Status>>,
) {
    let (told, answers) = mpsc::unbounded_channel();
    let in_use: InUse = Arc::default();
    let places = Arc::new(Semaphore::new(OUTSTANDING_MAX));
    let answering = answer(answers, Arc::clone(&in_use), to.clone());
    let reading = read(&inner, requests, &told, &in_use, &places);
    let all = async {
        let read = async {
            let result = reading.await;
            // Every answer is given before the stream ends.
            let _all = places.acquire_many(u32::try_from(OUTSTANDING_MAX).unwrap_or(u32::MAX)).await;
            result
        };
        tokio::select! {
            result = read => if let Err(status) = result {
                let _gone = to.send(Err(status)).await;
            },
            // The reader is gone; what was accepted goes on without it.
            () = answering => {}
        }
    };
    tokio::select! {
        () = all => {}
        () = inner.stopped() => drop(to.send(Err(fault::stopping())).await),
    }
}

/// Reads while there are places, and prepares in batches, several at a time.
async fn read(
    inner: &Shared,
    requests: Streaming<StreamPayRequest>,
    told: &mpsc::UnboundedSender<(u64, Told)>,
    in_use: &InUse,
    places: &Arc<Semaphore>,
) -> Result<(), Status> {
    let mut batches = requests.ready_chunks(BATCH);
    let preparing = Arc::new(Semaphore::new(BATCHES_AT_ONCE));
    while let Some(batch) = batches.next().await {
        let mut orders = Vec::with_capacity(batch.len());
        let mut end = Ok(());
        for request in batch {
            match admit(request, in_use, places).await {
                Ok(request) => orders.push(request),
                // What came before it is answered all the same.
                Err(status) => {
                    end = Err(status);
                    break;
                }
            }
        }
        let turn = Arc::clone(&preparing).acquire_owned().await.map_err(|_| fault::stopping())?;
        let (inner, told) = (Arc::clone(inner), told.clone());
        tokio::spawn(async move {
            let _turn = turn;
            prepare(&inner, orders, &told);
        });
        end?;
    }
    Ok(())
}

/// Gives a request its place among those that are outstanding; waits while there is none.
async fn admit(
    request: Result<StreamPayRequest, Status>,
    in_use: &InUse,
    places: &Arc<Semaphore>,
) -> Result<StreamPayRequest, Status> {
    let request = request?;
    let place = Arc::clone(places).acquire_owned().await.map_err(|_| fault::stopping())?;
    let id = request.request_id;
    match in_use.lock().expect(LOCK).entry(id) {
        Entry::Occupied(_) => Err(fault::field("request_id", format!("{id} is in use on this stream"))),
        Entry::Vacant(vacant) => {
            vacant.insert(place);
            Ok(request)
        }
    }
}

fn prepare(inner: &Shared, requests: Vec<StreamPayRequest>, told: &mpsc::UnboundedSender<(u64, Told)>) {
    let mut payments = Vec::with_capacity(requests.len());
    for request in requests {
        let StreamPayRequest { request_id, bolt11, idempotency_key, amount_msat, fee_limit_msat, timeout_s } = request;
        let listener = Listener::new(request_id, false, told.clone());
        let request = v1::PayRequest {
            idempotency_key,
            bolt11,
            amount_msat,
            fee_limit_msat,
            timeout_s,
            ..v1::PayRequest::default()
        };
        match order(request) {
            Ok(request) => payments.push((request, listener)),
            Err(refusal) => listener.refuse(refusal),
        }
    }
    inner.api.payments.pay(payments);
}

/// Writes the answers in the order of the outcomes, and gives the places free.
async fn answer(
    mut told: mpsc::UnboundedReceiver<(u64, Told)>,
    in_use: InUse,
    to: mpsc::Sender<Result<StreamPayResponse, Status>>,
) {
    use stream_pay_response::Result::{Failed, Paid, Refused};
    while let Some((request_id, told)) = told.recv().await {
        let result = match told {
            Told::Paid { preimage, fee, .. } => {
                Paid(v1::StreamPaid { preimage: preimage.as_bytes().to_vec(), fee_msat: fee.0 })
            }
            Told::Failed { failure, .. } => Failed(failure_message(&failure)),
            Told::Refused(refusal) => Refused(fault::pay(&refusal).into()),
            Told::Accepted { .. } | Told::Attempt(_) => continue,
        };
        let place = in_use.lock().expect(LOCK).remove(&request_id);
        if to.send(Ok(StreamPayResponse { request_id, result: Some(result) })).await.is_err() {
            return;
        }
        drop(place);
    }
}

// --- what is shown ---

fn status_of(status: &PaymentStatus) -> v1::PaymentStatus {
    match status {
        PaymentStatus::InFlight => v1::PaymentStatus::InFlight,
        PaymentStatus::Succeeded { .. } => v1::PaymentStatus::Succeeded,
        PaymentStatus::Failed(_) => v1::PaymentStatus::Failed,
    }
}

fn message(row: &PaymentRow, with_attempts: bool) -> v1::Payment {
    let description = match Invoice::parse(&row.bolt11).map(|invoice| invoice.description) {
        Ok(Description::Text(text)) => text,
        Ok(Description::Hash(_)) | Err(_) => String::new(),
    };
    let (preimage, fee_msat, failure) = match &row.status {
        PaymentStatus::InFlight => (Vec::new(), 0, None),
        PaymentStatus::Succeeded { preimage, fee } => (preimage.as_bytes().to_vec(), fee.0, None),
        PaymentStatus::Failed(failure) => (Vec::new(), 0, Some(failure_message(failure))),
    };
    let attempts = row.attempts.iter().filter(|_| with_attempts);
    v1::Payment {
        payment_hash: row.payment_hash.0.to_vec(),
        status: status_of(&row.status).into(),
        amount_msat: row.amount.0,
        fee_msat,
        payee_node_id: row.payee.serialize().to_vec(),
        bolt11: row.bolt11.clone(),
        description,
        preimage,
        failure,
        created_ms: row.created_ms,
        decided_ms: row.decided_ms,
        attempts: attempts.map(|one| attempt(one, row.payee, row.amount)).collect(),
    }
}

fn attempt(row: &AttemptRow, payee: PublicKey, amount: Msat) -> v1::Attempt {
    let AttemptBegun { attempt, scid, cltv_expiry, .. } = row.begun;
    let direct = || Route { hops: vec![RouteHop { node: payee, scid, amount, cltv_expiry }] };
    let route = row.route.clone().unwrap_or_else(direct);
    let failure = match &row.status {
        PaymentStatus::Failed(failure) => {
            let hop = failure.hop.and_then(|hop| usize::try_from(hop).ok()?.checked_sub(1));
            let node = hop.and_then(|hop| route.hops.get(hop)).map(|hop| hop.node.serialize().to_vec());
            Some(v1::PaymentFailure { node_id: node.unwrap_or_default(), ..failure_message(failure) })
        }
        PaymentStatus::InFlight | PaymentStatus::Succeeded { .. } => None,
    };
    v1::Attempt {
        attempt: attempt.saturating_add(1),
        status: status_of(&row.status).into(),
        amount_msat: route.received().0,
        fee_msat: route.fee().0,
        hops: hops(&route, &row.held_ms),
        failure,
        started_ms: row.started_ms,
        ended_ms: row.ended_ms,
    }
}

fn hops(route: &Route, held_ms: &[u32]) -> Vec<v1::Hop> {
    let hop = |(index, hop): (usize, &RouteHop)| v1::Hop {
        node_id: hop.node.serialize().to_vec(),
        short_channel_id: parse::scid(hop.scid),
        amount_msat: hop.amount.0,
        fee_msat: route.fee_of(index).0,
        cltv_expiry: hop.cltv_expiry.0,
        held_ms: held_ms.get(index).copied(),
    };
    route.hops.iter().enumerate().map(hop).collect()
}

/// Why a payment failed, as the contract names it.
pub(super) fn failure_message(failure: &Failure) -> v1::PaymentFailure {
    use v1::PaymentFailureReason as Reason;
    let (reason, hint) = match failure.reason {
        FailureReason::NoRoute => {
            (Reason::NoRoute, "Open a channel with the payee, or with a node that has a way to it.")
        }
        FailureReason::InsufficientBalance => (Reason::InsufficientBalance, "Pay less, or receive first."),
        FailureReason::PayeeRefused => {
            (Reason::PayeeRefused, "Ask the payee for a new invoice: this one is unknown there, paid, or expired.")
        }
        FailureReason::Timeout => (Reason::Timeout, "Pay again."),
        FailureReason::FeeLimit => (Reason::FeeLimit, "Raise the fee limit."),
        FailureReason::InvoiceExpired => (Reason::InvoiceExpired, "Ask the payee for a new invoice."),
        FailureReason::ChannelClosed => (Reason::ChannelClosed, "Open a channel again, and pay again."),
        FailureReason::Temporary => (Reason::Temporary, "Pay again in a moment."),
        FailureReason::Permanent => (Reason::Permanent, "Ask the payee's operator: it cannot take this payment."),
        FailureReason::Unreadable => (Reason::Unreadable, "Pay again; the answer that came back was garbled."),
        FailureReason::PeerDisconnected => {
            (Reason::PeerDisconnected, "See that the payee is connected, and pay again.")
        }
    };
    v1::PaymentFailure {
        reason: reason.into(),
        message: failure.message.clone(),
        failure_code: failure.code.into(),
        hop_index: failure.hop,
        hint: hint.to_owned(),
        node_id: Vec::new(),
        failure_name: if failure.code == 0 { String::new() } else { code::name(failure.code).to_owned() },
    }
}
