//! The service `Invoices`: making them, deciding about what is held for them, looking them up, reading anybody's.

use std::time::Duration;

use bitcoin::Network;
use millrace_routing::invoice::{Description, Invoice};
use millrace_rpc::v1::invoices_server::Invoices;
use millrace_rpc::v1::{
    self, CancelInvoiceResponse, CreateInvoiceResponse, DecodeInvoiceResponse, GetInvoiceResponse,
    ListInvoicesResponse, SettleInvoiceResponse,
};
use millrace_wire::{Msat, PaymentHash, Preimage};
use tonic::{Request, Response, Status};

use super::once::{self, Finished, Stored, once, reference_entry};
use super::{Shared, fault, parse};
use crate::clock;
use crate::config::network_name;
use crate::happened::{CancelReason, ReceivedPart, sum_of};
use crate::payments::{HoldError, HoldRefusal, InvoiceKind, InvoiceOrder, InvoiceRefusal, InvoiceRow, Purpose, Taking};

/// BOLT 11: the most that a description can have.
const DESCRIPTION_BYTES_MAX: usize = 639;
/// Invoices live ten years at most: beyond that, dates in the text run out.
const EXPIRY_S_MAX: u32 = 315_360_000;

pub(super) struct InvoicesService(pub(super) Shared);

#[tonic::async_trait]
impl Invoices for InvoicesService {
    async fn create(
        &self,
        request: Request<v1::CreateInvoiceRequest>,
    ) -> Result<Response<CreateInvoiceResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        let inner = &self.0;
        inner.ready()?;
        let order = order(&request, key.clone())?;
        let stored = once(inner, "Invoices.Create", &key, &request, move |inner, once| async move {
            if let Err(status) = check_hash(&inner, &order).await {
                return (once, Err(status));
            }
            let names = once.names();
            let made = inner.api.payments.make_invoice(order, move |hash| Some(reference_entry(names, hash))).await;
            let finished =
                made.map(|row| Finished { stored: Stored::Reference(row.payment_hash.0.to_vec()), is_durable: true });
            (once, finished.map_err(|error| fault::make_invoice(&error)))
        });
        let stored = stored.await?;
        let payment_hash = parse::payment_hash(once::reference(&stored)?)?;
        let row = self.find(&payment_hash).await?;
        Ok(Response::new(CreateInvoiceResponse { invoice: Some(message(&row)) }))
    }

    async fn get(&self, request: Request<v1::GetInvoiceRequest>) -> Result<Response<GetInvoiceResponse>, Status> {
        self.0.ready()?;
        let payment_hash = parse::payment_hash(&request.into_inner().payment_hash)?;
        let row = self.find(&payment_hash).await?;
        Ok(Response::new(GetInvoiceResponse { invoice: Some(message(&row)) }))
    }

    async fn list(&self, request: Request<v1::ListInvoicesRequest>) -> Result<Response<ListInvoicesResponse>, Status> {
        self.0.ready()?;
        let v1::ListInvoicesRequest { page, status } = request.into_inner();
        let wanted = v1::InvoiceStatus::try_from(status).map_err(|_| fault::field("status", "no such status"))?;
        let (from, size) = parse::page(page.as_ref())?;
        let past = self.0.past.clone();
        past.view.catch_up(&past.log).await;
        let now_ms = clock::unix_ms();
        let passes =
            move |row: &InvoiceRow| wanted == v1::InvoiceStatus::Unspecified || status_of(row, now_ms) == wanted;
        let page = tokio::task::block_in_place(|| past.view.invoices(from, size, passes));
        let page = page.map_err(|error| fault::view(&error))?;
        let invoices = page.rows.iter().map(message).collect();
        Ok(Response::new(ListInvoicesResponse { invoices, next_cursor: parse::cursor(page.next) }))
    }

    async fn decode(
        &self,
        request: Request<v1::DecodeInvoiceRequest>,
    ) -> Result<Response<DecodeInvoiceResponse>, Status> {
        let text = request.into_inner().bolt11;
        let invoice = Invoice::parse(&text).map_err(|error| fault::decode(&error))?;
        let network = self.0.api.config.network;
        Ok(Response::new(decoded(&invoice, &text, network)))
    }

    async fn settle(
        &self,
        request: Request<v1::SettleInvoiceRequest>,
    ) -> Result<Response<SettleInvoiceResponse>, Status> {
        use v1::settle_invoice_request::Which;
        self.0.ready()?;
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        // A preimage looks like a hash, and is taken for one.
        let (payment_hash, preimage, mistaken) = match &request.which {
            Some(Which::Preimage(bytes)) => {
                let bytes = parse::bytes_32("preimage", bytes)?;
                let preimage = Preimage::new(bytes);
                (preimage.hash(), Some(preimage), Some(PaymentHash(bytes)))
            }
            Some(Which::PaymentHash(bytes)) => (parse::payment_hash(bytes)?, None, None),
            None => return Err(fault::field("which", "a preimage or a payment hash is due")),
        };
        let stored = once(&self.0, "Invoices.Settle", &key, &request, move |inner, once| async move {
            let decided = inner.api.payments.settle_invoice(payment_hash, preimage).await;
            let wanted = |row: &InvoiceRow| row.paid.is_some() && row.kind == InvoiceKind::Hold;
            (once, finish_decision(&inner, payment_hash, decided, mistaken, wanted).await)
        });
        parse::payment_hash(once::reference(&stored.await?)?)?;
        let row = self.find(&payment_hash).await?;
        Ok(Response::new(SettleInvoiceResponse { invoice: Some(message(&row)) }))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelInvoiceRequest>,
    ) -> Result<Response<CancelInvoiceResponse>, Status> {
        self.0.ready()?;
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        let payment_hash = parse::payment_hash(&request.payment_hash)?;
        let stored = once(&self.0, "Invoices.Cancel", &key, &request, move |inner, once| async move {
            let decided = inner.api.payments.cancel_invoice(payment_hash).await;
            let wanted = |row: &InvoiceRow| row.cancelled.is_some();
            (once, finish_decision(&inner, payment_hash, decided, None, wanted).await)
        });
        parse::payment_hash(once::reference(&stored.await?)?)?;
        let row = self.find(&payment_hash).await?;
        Ok(Response::new(CancelInvoiceResponse { invoice: Some(message(&row)) }))
    }
}

/// What a decision about an invoice came to. One that is no longer in memory was decided long ago, or has expired: the view
/// knows. `mistaken` may be the hash that was meant, where the hash of something else was looked for.
async fn finish_decision(
    inner: &Shared,
    payment_hash: PaymentHash,
    decided: Result<(), HoldError>,
    mistaken: Option<PaymentHash>,
    wanted: impl Fn(&InvoiceRow) -> bool + Send,
) -> Result<Finished, Status> {
    match decided {
        Ok(()) => {}
        Err(HoldError::NoNewWork(why)) => return Err(fault::no_new_work(&why)),
        Err(HoldError::Refused(HoldRefusal::Unknown(_))) => {
            let past = &inner.past;
            past.view.catch_up(&past.log).await;
            let look = |hash: &PaymentHash| past.view.invoice(hash).map_err(|error| fault::view(&error));
            let Some(row) = look(&payment_hash)? else {
                let meant = mistaken.map(|hash| look(&hash)).transpose()?.flatten();
                let not_found = || fault::not_found("invoice", payment_hash);
                return Err(meant.map_or_else(not_found, |row| fault::hash_as_preimage(row.payment_hash)));
            };
            if !wanted(&row) {
                let refusal = match (&row.paid, row.cancelled) {
                    (Some(_), _) => HoldRefusal::Paid(payment_hash),
                    (None, Some((_, why))) => HoldRefusal::Cancelled { payment_hash, why },
                    (None, None) => HoldRefusal::NotHeld(payment_hash),
                };
                return Err(fault::decide_invoice(&refusal));
            }
        }
        Err(HoldError::Refused(refusal)) => return Err(fault::decide_invoice(&refusal)),
    }
    Ok(Finished { stored: Stored::Reference(payment_hash.0.to_vec()), is_durable: false })
}

impl InvoicesService {
    async fn find(&self, payment_hash: &millrace_wire::PaymentHash) -> Result<InvoiceRow, Status> {
        let past = &self.0.past;
        past.view.catch_up(&past.log).await;
        let row = past.view.invoice(payment_hash).map_err(|error| fault::view(&error))?;
        row.ok_or_else(|| fault::not_found("invoice", payment_hash))
    }
}

/// Invoices that are no longer in memory are in the view: a hash that was ever used is refused.
async fn check_hash(inner: &Shared, order: &InvoiceOrder) -> Result<(), Status> {
    let payment_hash = match &order.taking {
        Taking::AtOnce(None) | Taking::Hold(None) => return Ok(()),
        Taking::AtOnce(Some(preimage)) | Taking::Hold(Some(preimage)) => preimage.hash(),
        Taking::HoldHash(payment_hash) => *payment_hash,
    };
    let past = &inner.past;
    past.view.catch_up(&past.log).await;
    match past.view.invoice(&payment_hash).map_err(|error| fault::view(&error))? {
        None => Ok(()),
        Some(row) => Err(fault::make_invoice(&InvoiceRefusal::HashTaken(row.payment_hash).into())),
    }
}

fn order(request: &v1::CreateInvoiceRequest, idempotency_key: String) -> Result<InvoiceOrder, Status> {
    use v1::create_invoice_request::Purpose as Wanted;
    let amount = request.amount_msat.map(Msat);
    if amount == Some(Msat::ZERO) {
        return Err(fault::field("amount_msat", "at least 1 msat is due; leave it out to let the payer choose"));
    }
    if amount.is_some_and(|amount| !amount.is_money()) {
        return Err(fault::field("amount_msat", "there is not so much bitcoin"));
    }
    let purpose = match &request.purpose {
        None => Purpose::Text(String::new()),
        Some(Wanted::Description(text)) if text.len() > DESCRIPTION_BYTES_MAX => {
            let what = format!("{} bytes, {DESCRIPTION_BYTES_MAX} are the most; use description_hash", text.len());
            return Err(fault::field("description", what));
        }
        Some(Wanted::Description(text)) => Purpose::Text(text.clone()),
        Some(Wanted::DescriptionHash(hash)) => Purpose::Hash(parse::bytes_32("description_hash", hash)?),
    };
    if request.expiry_s > EXPIRY_S_MAX {
        return Err(fault::field("expiry_s", format!("{EXPIRY_S_MAX} seconds are the most")));
    }
    let min_final_cltv = match request.min_final_cltv_expiry_delta {
        0 => None,
        blocks => {
            let too_many = |_| fault::field("min_final_cltv_expiry_delta", format!("{blocks} blocks are too many"));
            Some(u16::try_from(blocks).map_err(too_many)?)
        }
    };
    let preimage = match request.preimage.len() {
        0 => None,
        _ => Some(Preimage::new(parse::bytes_32("preimage", &request.preimage)?)),
    };
    let expiry_s = (request.expiry_s > 0).then_some(request.expiry_s);
    let taking = taking(request, preimage)?;
    let no_hints = request.no_hints;
    Ok(InvoiceOrder { amount, purpose, expiry_s, min_final_cltv, taking, no_hints, idempotency_key })
}

fn taking(request: &v1::CreateInvoiceRequest, preimage: Option<Preimage>) -> Result<Taking, Status> {
    if request.payment_hash.is_empty() {
        return Ok(if request.hold { Taking::Hold(preimage) } else { Taking::AtOnce(preimage) });
    }
    if !request.hold {
        return Err(fault::field(
            "payment_hash",
            "only a hold invoice can have one whose preimage the node does not know",
        ));
    }
    if preimage.is_some() {
        return Err(fault::field("payment_hash", "it follows from the preimage; give one of the two"));
    }
    parse::payment_hash(&request.payment_hash).map(Taking::HoldHash)
}

/// The description in an invoice of ours: it is not kept a second time.
fn description(bolt11: &str) -> (String, Vec<u8>, u32) {
    match Invoice::parse(bolt11) {
        Ok(invoice) => {
            let blocks = u32::from(invoice.min_final_cltv.0);
            match invoice.description {
                Description::Text(text) => (text, Vec::new(), blocks),
                Description::Hash(hash) => (String::new(), hash.to_vec(), blocks),
            }
        }
        Err(_) => (String::new(), Vec::new(), 0),
    }
}

fn status_of(row: &InvoiceRow, now_ms: u64) -> v1::InvoiceStatus {
    match &row.paid {
        Some(_) => v1::InvoiceStatus::Paid,
        None if row.cancelled.is_some() => v1::InvoiceStatus::Cancelled,
        None if row.held.is_some() => v1::InvoiceStatus::Held,
        None if row.expires_ms <= now_ms => v1::InvoiceStatus::Expired,
        None => v1::InvoiceStatus::Open,
    }
}

fn message(row: &InvoiceRow) -> v1::Invoice {
    let (description, description_hash, min_final_cltv_expiry_delta) = description(&row.bolt11);
    let status = status_of(row, clock::unix_ms());
    let is_held = status == v1::InvoiceStatus::Held;
    let parts = row.paid.as_ref().map(|paid| &paid.parts).or(row.held.as_ref().map(|held| &held.parts));
    v1::Invoice {
        kind: match row.kind {
            InvoiceKind::Plain => v1::InvoiceKind::Plain,
            InvoiceKind::Hold => v1::InvoiceKind::Hold,
            InvoiceKind::Keysend => v1::InvoiceKind::Keysend,
        }
        .into(),
        parts: parts.map(|parts| part_messages(parts)).unwrap_or_default(),
        held_msat: row.held.as_ref().filter(|_| is_held).map(|held| sum_of(&held.parts).0),
        held_ms: row.held.as_ref().map(|held| held.held_ms),
        settle_by_height: row.held.as_ref().map(|held| held.deadline.0),
        cancelled_ms: row.cancelled.map(|(time_ms, _)| time_ms),
        cancel_reason: row.cancelled.map_or(v1::InvoiceCancelReason::Unspecified, |(_, why)| cancel_reason(why)).into(),
        payment_hash: row.payment_hash.0.to_vec(),
        bolt11: row.bolt11.clone(),
        amount_msat: row.amount.map(|amount| amount.0),
        description,
        description_hash,
        status: status.into(),
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
        received_msat: row.paid.as_ref().map(|paid| paid.received.0),
        paid_ms: row.paid.as_ref().map(|paid| paid.paid_ms),
        preimage: row.paid.as_ref().map(|paid| paid.preimage.as_bytes().to_vec()).unwrap_or_default(),
        min_final_cltv_expiry_delta,
    }
}

/// As the contract names them.
pub(super) fn part_messages(parts: &[ReceivedPart]) -> Vec<v1::InvoicePart> {
    let part = |part: &ReceivedPart| v1::InvoicePart {
        channel_id: part.channel_id.0.to_vec(),
        htlc_id: part.htlc_id.0,
        amount_msat: part.amount.0,
    };
    parts.iter().map(part).collect()
}

/// As the contract names it.
pub(super) const fn cancel_reason(why: CancelReason) -> v1::InvoiceCancelReason {
    match why {
        CancelReason::Asked => v1::InvoiceCancelReason::Asked,
        CancelReason::Deadline => v1::InvoiceCancelReason::Deadline,
        CancelReason::PartGone => v1::InvoiceCancelReason::PartGone,
    }
}

fn decoded(invoice: &Invoice, text: &str, network: Network) -> DecodeInvoiceResponse {
    let (description, description_hash) = match &invoice.description {
        Description::Text(text) => (text.clone(), Vec::new()),
        Description::Hash(hash) => (String::new(), hash.to_vec()),
    };
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let expires_ms = invoice.expires_at().map_or(u64::MAX, ms);
    DecodeInvoiceResponse {
        network: network_name(invoice.network).to_owned(),
        payment_hash: invoice.payment_hash.0.to_vec(),
        payee_node_id: invoice.payee.serialize().to_vec(),
        amount_msat: invoice.amount.map(|amount| amount.0),
        description,
        description_hash,
        created_ms: ms(invoice.timestamp),
        expires_ms,
        expired: expires_ms <= clock::unix_ms(),
        min_final_cltv_expiry_delta: invoice.min_final_cltv.0.into(),
        features: parse::features(&invoice.features),
        route_hints: invoice.route_hints.iter().map(|hops| route_hint(hops)).collect(),
        fallback_addresses: fallbacks(text),
        for_this_network: invoice.is_for(network),
    }
}

fn route_hint(hops: &[millrace_routing::invoice::HintHop]) -> v1::RouteHint {
    let hop = |hop: &millrace_routing::invoice::HintHop| v1::RouteHintHop {
        node_id: hop.node_id.serialize().to_vec(),
        short_channel_id: hop.short_channel_id.0,
        fee_base_msat: u32::try_from(hop.fee_base.0).unwrap_or(u32::MAX),
        fee_proportional_millionths: hop.fee_proportional_millionths,
        cltv_expiry_delta: hop.cltv_expiry_delta.0.into(),
    };
    v1::RouteHint { hops: hops.iter().map(hop).collect() }
}

/// Addresses in the invoice, which has been read once: what a library says of the same text.
fn fallbacks(text: &str) -> Vec<String> {
    let text = text.trim();
    let scheme = "lightning:".len();
    let text =
        text.get(..scheme).filter(|start| start.eq_ignore_ascii_case("lightning:")).map_or(text, |_| &text[scheme..]);
    let invoice: Result<lightning_invoice::Bolt11Invoice, _> = text.parse();
    invoice.map(|invoice| invoice.fallback_addresses().iter().map(ToString::to_string).collect()).unwrap_or_default()
}
