//! `millrace invoice`: making invoices, taking or giving back what is held for them, reading anybody's, looking up our own.
//!
//! Reading is done by the daemon, so that there is one judge of what an invoice says.

mod show;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use millrace_rpc::v1::invoices_client::InvoicesClient;
use millrace_rpc::v1::{
    CancelInvoiceRequest, CreateInvoiceRequest, DecodeInvoiceRequest, GetInvoiceRequest, InvoiceStatus,
    ListInvoicesRequest, SettleInvoiceRequest, create_invoice_request, settle_invoice_request,
};
use serde_json::{Value, json};

pub(crate) use show::{cancel_reason, part_json};

use self::show::{decoded_json, decoded_text, invoice_json, invoice_row, invoice_text};
use crate::amount::Amount;
use crate::args::{KeyArg, PageArgs};
use crate::fault::Fault;
use crate::output::{Column, Output, list, page};
use crate::session::{Order, Session};
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
    ///   millrace invoice create 500sat --hold --hash 5f1c…
    #[command(verbatim_doc_comment)]
    Create(Create),
    /// Take the payment that is held for a hold invoice
    ///
    /// The payment can be taken until the block that `invoice show` names; after it, it goes back by itself.
    ///
    /// Examples:
    ///   millrace invoice settle 9b7e…
    ///   millrace invoice settle --hash 5f1c…
    #[command(verbatim_doc_comment)]
    Settle(Settle),
    /// Take an unpaid invoice back; what is held for it goes back to the payer
    Cancel {
        /// Its payment hash
        #[arg(value_name = "HASH", value_parser = words::id32)]
        payment_hash: [u8; 32],
        #[command(flatten)]
        key: KeyArg,
    },
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
    /// Hold its payment until `invoice settle` or `invoice cancel`
    #[arg(long)]
    hold: bool,
    /// Payment hash of a hold invoice whose preimage only you know [default: the node draws the preimage]
    #[arg(long, value_name = "HASH", value_parser = words::id32, requires = "hold", conflicts_with = "preimage_file")]
    hash: Option<[u8; 32]>,
    /// Tell payers no ways over channels that are not announced
    #[arg(long)]
    no_hints: bool,
    /// Print no QR code
    #[arg(long)]
    no_qr: bool,
    #[command(flatten)]
    key: KeyArg,
}

/// Arguments of `invoice settle`.
#[derive(Args)]
pub(crate) struct Settle {
    /// The preimage, which the payer then gets as proof
    #[arg(value_parser = words::id32, required_unless_present = "hash")]
    preimage: Option<[u8; 32]>,
    /// Payment hash of an invoice whose preimage the node drew
    #[arg(long, value_name = "HASH", value_parser = words::id32, conflicts_with = "preimage")]
    hash: Option<[u8; 32]>,
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
    /// All of its payment is there, and held
    Held,
    /// It was cancelled
    Cancelled,
}

impl From<Status> for InvoiceStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Open => Self::Open,
            Status::Paid => Self::Paid,
            Status::Expired => Self::Expired,
            Status::Held => Self::Held,
            Status::Cancelled => Self::Cancelled,
        }
    }
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::Create(create) => create.run(session, output).await,
            Self::Settle(settle) => settle.run(session, output).await,
            Self::Cancel { payment_hash, key } => cancel(session, output, payment_hash, key.key.as_deref()).await,
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
            hold: self.hold,
            payment_hash: self.hash.map(Vec::from).unwrap_or_default(),
            no_hints: self.no_hints,
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

impl Settle {
    async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        use settle_invoice_request::Which;
        let order = Order::new("invoice settle", self.key.key.as_deref())?;
        let preimage = self.preimage.map(|preimage| Which::Preimage(preimage.to_vec()));
        let which = preimage.or(self.hash.map(|hash| Which::PaymentHash(hash.to_vec())));
        let request = SettleInvoiceRequest { idempotency_key: order.key.clone(), which };
        let settled = session.change(&order, |link| {
            let request = request.clone();
            async move { InvoicesClient::new(link).settle(request).await }
        });
        let invoice = settled.await?.invoice.unwrap_or_default();
        output.answer(&invoice_json(&invoice), || invoice_text(&invoice, false))
    }
}

async fn cancel(
    session: &Session,
    output: &mut Output,
    payment_hash: [u8; 32],
    key: Option<&str>,
) -> Result<(), Fault> {
    let order = Order::new("invoice cancel", key)?;
    let request = CancelInvoiceRequest { idempotency_key: order.key.clone(), payment_hash: payment_hash.to_vec() };
    let cancelled = session.change(&order, |link| {
        let request = request.clone();
        async move { InvoicesClient::new(link).cancel(request).await }
    });
    let invoice = cancelled.await?.invoice.unwrap_or_default();
    output.answer(&invoice_json(&invoice), || invoice_text(&invoice, false))
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
