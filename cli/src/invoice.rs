//! `millrace invoice`: making invoices, reading anybody's, looking up our own.
//!
//! Reading is done by the daemon, so that there is one judge of what an invoice says.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use millrace_rpc::v1::invoices_client::InvoicesClient;
use millrace_rpc::v1::{
    CreateInvoiceRequest, DecodeInvoiceRequest, DecodeInvoiceResponse, GetInvoiceRequest, Invoice, InvoiceStatus,
    ListInvoicesRequest, RouteHint, create_invoice_request,
};
use serde_json::{Value, json};

use crate::amount::Amount;
use crate::args::{KeyArg, PageArgs};
use crate::fault::Fault;
use crate::node::{features_json, features_text};
use crate::output::{Column, Output, facts, list, page, qr};
use crate::session::{Order, Session};
use crate::wallet::msat;
use crate::words;

/// Commands about invoices.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make an invoice
    ///
    /// Examples:
    ///   millrace invoice create 21sat --description "coffee"
    ///   millrace invoice create 0.001btc --expiry 7d
    ///   millrace invoice create --description "tip jar"
    #[command(verbatim_doc_comment)]
    Create(Create),
    /// Read an invoice, of this node or of any other
    ///
    /// Examples:
    ///   millrace invoice decode lnbcrt210n1…
    #[command(verbatim_doc_comment)]
    Decode {
        /// The invoice
        #[arg(value_name = "INVOICE")]
        bolt11: String,
    },
    /// List the node's invoices, the newest first
    List {
        /// Only those with this status
        #[arg(long, value_enum)]
        status: Option<Status>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show one of the node's invoices
    Show {
        /// Its payment hash
        #[arg(value_parser = words::id32)]
        payment_hash: [u8; 32],
        /// Print no QR code
        #[arg(long)]
        no_qr: bool,
    },
}

/// Arguments of `invoice create`.
#[derive(Args)]
pub(crate) struct Create {
    /// How much; without it, the payer chooses
    amount: Option<Amount>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// SHA-256 of what it is for, if that is too long for an invoice
    #[arg(long, value_name = "HEX", value_parser = words::id32, conflicts_with = "description")]
    description_hash: Option<[u8; 32]>,
    /// How long it can be paid: 90s, 15m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = words::parse_seconds)]
    expiry: u32,
    /// Blocks that the last HTLC must leave the node [default: the node's own]
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u32).range(1..))]
    min_final_cltv: Option<u32>,
    /// File with the preimage to use, 64 hex digits; `-` reads standard input [default: a random one]
    #[arg(long, value_name = "FILE")]
    preimage_file: Option<PathBuf>,
    /// Print no QR code
    #[arg(long)]
    no_qr: bool,
    #[command(flatten)]
    key: KeyArg,
}

/// Where an invoice can stand.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Status {
    /// Can be paid
    Open,
    /// Paid
    Paid,
    /// Its time is over, unpaid
    Expired,
}

impl From<Status> for InvoiceStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Open => Self::Open,
            Status::Paid => Self::Paid,
            Status::Expired => Self::Expired,
        }
    }
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::Create(create) => create.run(session, output).await,
            Self::Decode { bolt11 } => {
                let request = DecodeInvoiceRequest { bolt11 };
                let decoded =
                    session.read(|link| async move { InvoicesClient::new(link).decode(request).await }).await?;
                output.answer(&decoded_json(&decoded), || decoded_text(&decoded))
            }
            Self::List { status, page } => list_invoices(session, output, status, &page).await,
            Self::Show { payment_hash, no_qr } => {
                let request = GetInvoiceRequest { payment_hash: payment_hash.to_vec() };
                let invoice = session
                    .read(|link| async move { InvoicesClient::new(link).get(request).await })
                    .await?
                    .invoice
                    .unwrap_or_default();
                let open = invoice.status() == InvoiceStatus::Open;
                output.answer(&invoice_json(&invoice), || invoice_text(&invoice, open && !no_qr))
            }
        }
    }
}

impl Create {
    async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        let order = Order::new("invoice create", self.key.key.as_deref())?;
        let preimage = match &self.preimage_file {
            Some(path) => read_preimage(path)?,
            None => Vec::new(),
        };
        let description = self.description.map(create_invoice_request::Purpose::Description);
        let hash = self.description_hash.map(Vec::from);
        let request = CreateInvoiceRequest {
            idempotency_key: order.key.clone(),
            amount_msat: self.amount.map(Amount::msat),
            purpose: description.or(hash.map(create_invoice_request::Purpose::DescriptionHash)),
            expiry_s: self.expiry,
            min_final_cltv_expiry_delta: self.min_final_cltv.unwrap_or(0),
            preimage,
        };
        let invoice = session
            .change(&order, |link| {
                let request = request.clone();
                async move { InvoicesClient::new(link).create(request).await }
            })
            .await?
            .invoice
            .unwrap_or_default();
        output.answer(&invoice_json(&invoice), || invoice_text(&invoice, !self.no_qr))
    }
}

/// The preimage is a secret, so it never stands on a command line.
fn read_preimage(path: &Path) -> Result<Vec<u8>, Fault> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        fs::read_to_string(path).map(|read| text = read)
    };
    let what = format!("preimage file {}", path.display());
    match read {
        Err(source) => Err(Fault::Io { what, source }),
        Ok(()) => match words::id32(&text) {
            Ok(preimage) => Ok(preimage.to_vec()),
            Err(error) => Err(Fault::Usage(format!("{what}: {error}"))),
        },
    }
}

async fn list_invoices(
    session: &Session,
    output: &mut Output,
    status: Option<Status>,
    args: &PageArgs,
) -> Result<(), Fault> {
    let request = ListInvoicesRequest {
        page: args.page(),
        status: status.map_or(InvoiceStatus::Unspecified, InvoiceStatus::from).into(),
    };
    let answer = session.read(|link| async move { InvoicesClient::new(link).list(request).await }).await?;
    let invoices: Vec<Value> = answer.invoices.iter().map(invoice_json).collect();
    let json = json!({ "invoices": invoices, "next_cursor": answer.next_cursor });
    output.answer(&json, || {
        let columns = [
            Column::Text("MADE"),
            Column::Text("STATUS"),
            Column::Number("AMOUNT"),
            Column::Number("RECEIVED"),
            Column::Text("PAYMENT HASH"),
            Column::Text("FOR"),
        ];
        let rows = answer.invoices.iter().map(invoice_row).collect();
        page(list(&columns, rows, "No invoices yet."), &answer.next_cursor)
    })
}

fn status(invoice: &Invoice) -> String {
    words::value(invoice.status().as_str_name(), "INVOICE_STATUS_")
}

/// An amount that may be open.
fn amount_text(amount_msat: Option<u64>) -> String {
    amount_msat.map_or("any".to_owned(), msat)
}

fn invoice_json(invoice: &Invoice) -> Value {
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
    })
}

fn invoice_row(invoice: &Invoice) -> Vec<String> {
    vec![
        words::time(invoice.created_ms),
        status(invoice),
        amount_text(invoice.amount_msat),
        invoice.received_msat.map(msat).unwrap_or_default(),
        hex::encode(&invoice.payment_hash),
        purpose(&invoice.description, &invoice.description_hash),
    ]
}

fn purpose(description: &str, hash: &[u8]) -> String {
    match words::hex_or_none(hash) {
        Some(hash) => format!("hash {hash}"),
        None => description.to_owned(),
    }
}

fn invoice_text(invoice: &Invoice, with_qr: bool) -> String {
    let facts = facts([
        ("Payment hash", hex::encode(&invoice.payment_hash)),
        ("Amount", amount_text(invoice.amount_msat)),
        ("For", purpose(&invoice.description, &invoice.description_hash)),
        ("Status", status(invoice)),
        ("Made", words::time(invoice.created_ms)),
        ("Expires", words::time(invoice.expires_ms)),
        ("Received", invoice.received_msat.map(msat).unwrap_or_default()),
        ("Paid", invoice.paid_ms.map(words::time).unwrap_or_default()),
        ("Preimage", words::hex_or_none(&invoice.preimage).unwrap_or_default()),
    ]);
    let code = if with_qr {
        // Upper case makes a smaller code, and means the same in an invoice.
        format!("{}\n", qr(&format!("lightning:{}", invoice.bolt11).to_uppercase()))
    } else {
        String::new()
    };
    format!("{code}{}\n\n{facts}", invoice.bolt11)
}

fn decoded_json(decoded: &DecodeInvoiceResponse) -> Value {
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

fn decoded_text(decoded: &DecodeInvoiceResponse) -> String {
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
