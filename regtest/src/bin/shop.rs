//! A small shop, as an example of a merchant's integration. It sells for millisatoshi, and counts each payment exactly once,
//! though it and the daemon may be killed at any moment; `docs/merchant.md` explains why.
//!
//! Customers speak lines with it: `ORDER <id> <msat>` is answered with an invoice, `STATUS <id>` with `open` or `paid`. The
//! book, one file, holds the orders together with the position in the events up to which they were counted. It is written
//! whole, under another name, synced and renamed: it is always of one moment.
//!
//! It uses nothing of Millrace but the gRPC contract.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use millrace_rpc::v1::events_client::EventsClient;
use millrace_rpc::v1::invoices_client::InvoicesClient;
use millrace_rpc::v1::{CreateInvoiceRequest, Cursor, SubscribeRequest, create_invoice_request, event};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

/// Between two tries to reach the daemon.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// The longest line that is read of a customer.
const LINE_BYTES_MAX: usize = 200;

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// A small shop on a Millrace daemon
#[derive(Parser)]
struct Arguments {
    /// The daemon's data folder: its `rpc.json` says where it is and what to show it
    #[arg(long, value_name = "DIR")]
    node: PathBuf,
    /// The shop's own folder
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// Where customers connect to
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8010")]
    listen: String,
}

// --- the book ---

/// All that the shop must not forget.
#[derive(Serialize, Deserialize, Default)]
struct Book {
    /// By the customer's own id.
    orders: BTreeMap<String, Order>,
    /// The first event that is not counted yet.
    next_frame: u64,
    next_index: u32,
}

#[derive(Serialize, Deserialize, Default)]
struct Order {
    amount_msat: u64,
    /// In hex; absent until the daemon has made the invoice.
    payment_hash: Option<String>,
    bolt11: Option<String>,
    /// How often a payment was counted: once, if all is well.
    payments: u32,
    received_msat: u64,
}

/// The book and its file.
struct Shelf {
    book: Mutex<Book>,
    path: PathBuf,
}

impl Shelf {
    fn open(folder: &Path) -> Result<Self, Fault> {
        fs::create_dir_all(folder)?;
        let path = folder.join("book.json");
        let book = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Book::default(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { book: Mutex::new(book), path })
    }

    /// Changes the book, and returns once that cannot be lost.
    fn change<T>(&self, act: impl FnOnce(&mut Book) -> T) -> std::io::Result<T> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut book);
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&*book)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        // The name, too, must be on the disk.
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(result)
    }

    fn look<T>(&self, act: impl FnOnce(&Book) -> T) -> T {
        act(&self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Book {
    /// Counts what an event says, and moves on behind it, in one.
    fn count(&mut self, cursor: Cursor, what: Option<event::Event>) {
        match what {
            // The daemon may have made an invoice and the shop have died before it knew.
            Some(event::Event::InvoiceCreated(created)) => {
                let order = created.idempotency_key.strip_prefix(KEY_PREFIX).and_then(|id| self.orders.get_mut(id));
                if let Some(order) = order {
                    order.payment_hash = Some(hex::encode(created.payment_hash));
                }
            }
            Some(event::Event::InvoicePaid(paid)) => {
                let hash = Some(hex::encode(paid.payment_hash));
                if let Some(order) = self.orders.values_mut().find(|order| order.payment_hash == hash) {
                    order.payments += 1;
                    order.received_msat += paid.received_msat;
                }
            }
            _ => {}
        }
        (self.next_frame, self.next_index) = (cursor.frame, cursor.index + 1);
    }
}

/// An order's id makes its idempotency key: whoever asks again for the same order gets the same invoice.
const KEY_PREFIX: &str = "order-";

// --- the daemon ---

#[derive(Deserialize)]
struct RpcInfo {
    rpc: String,
    cert: PathBuf,
    token: PathBuf,
}

#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Link = InterceptedService<Channel, Bearer>;

/// Read anew each time: another port after a restart is not noticed otherwise.
async fn connect(node: &Path) -> Result<Link, Fault> {
    let info: RpcInfo = serde_json::from_slice(&fs::read(node.join("rpc.json"))?)?;
    let certificate = Certificate::from_pem(fs::read_to_string(info.cert)?);
    let bearer = format!("Bearer {}", fs::read_to_string(info.token)?.trim()).parse()?;
    let tls = ClientTlsConfig::new().ca_certificate(certificate).domain_name("localhost");
    let endpoint = Endpoint::from_shared(info.rpc)?.tls_config(tls)?.connect_timeout(Duration::from_secs(5));
    Ok(InterceptedService::new(endpoint.connect().await?, Bearer(bearer)))
}

/// Follows the events for ever, from where the book has them.
async fn follow(shelf: &Shelf, node: &Path) -> std::io::Result<()> {
    loop {
        if let Ok(link) = connect(node).await {
            let from = shelf.look(|book| Cursor { frame: book.next_frame, index: book.next_index });
            let request = SubscribeRequest { from_cursor: Some(from), stop_at_tip: false };
            if let Ok(events) = EventsClient::new(link).subscribe(request).await {
                let mut events = events.into_inner();
                while let Ok(Some(event)) = events.message().await {
                    let Some(cursor) = event.cursor else { break };
                    shelf.change(|book| book.count(cursor, event.event))?;
                }
            }
        }
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

/// The invoice of an order, made if there is none. Asks until the daemon answers: the key makes sure that there is one.
async fn invoice(shelf: &Shelf, node: &Path, id: &str, amount_msat: u64) -> Result<String, Fault> {
    let known = shelf.change(|book| {
        let order = book.orders.entry(id.to_owned()).or_default();
        if order.amount_msat == 0 {
            order.amount_msat = amount_msat;
        }
        (order.amount_msat, order.bolt11.clone())
    })?;
    let (amount_msat, known) = known;
    if let Some(bolt11) = known {
        return Ok(bolt11);
    }
    let request = CreateInvoiceRequest {
        idempotency_key: format!("{KEY_PREFIX}{id}"),
        amount_msat: Some(amount_msat),
        purpose: Some(create_invoice_request::Purpose::Description(format!("order {id}"))),
        ..CreateInvoiceRequest::default()
    };
    let invoice = loop {
        if let Ok(link) = connect(node).await {
            match InvoicesClient::new(link).create(request.clone()).await {
                Ok(answer) => break answer.into_inner().invoice.unwrap_or_default(),
                // What will never be answered otherwise is the customer's to know; the rest passes.
                Err(status) if matches!(status.code(), Code::InvalidArgument | Code::AlreadyExists) => {
                    return Err(status.into());
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(RETRY_WAIT).await;
    };
    let bolt11 = invoice.bolt11.clone();
    shelf.change(|book| {
        if let Some(order) = book.orders.get_mut(id) {
            order.payment_hash = Some(hex::encode(invoice.payment_hash));
            order.bolt11 = Some(invoice.bolt11);
        }
    })?;
    Ok(bolt11)
}

// --- customers ---

async fn serve(shelf: &Shelf, node: &Path, customer: TcpStream) -> Result<(), Fault> {
    let (read, mut write) = customer.into_split();
    let mut lines = BufReader::new(tokio::io::AsyncReadExt::take(read, LINE_BYTES_MAX as u64)).lines();
    let Some(line) = lines.next_line().await? else { return Ok(()) };
    let words: Vec<&str> = line.split_whitespace().collect();
    let answer = match words[..] {
        ["ORDER", id, amount] if is_id(id) => match amount.parse() {
            Ok(amount) if amount > 0 => invoice(shelf, node, id, amount).await?,
            _ => "no amount".to_owned(),
        },
        ["STATUS", id] => match shelf.look(|book| book.orders.get(id).map(|order| order.payments)) {
            None => "unknown".to_owned(),
            Some(0) => "open".to_owned(),
            Some(_) => "paid".to_owned(),
        },
        _ => "ORDER <id> <msat>, or STATUS <id>".to_owned(),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await?;
    Ok(())
}

/// Short enough for a key.
fn is_id(id: &str) -> bool {
    id.len() <= 40 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("the shop closes: {fault}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Fault> {
    let shelf = Arc::new(Shelf::open(&arguments.folder)?);
    let listener = TcpListener::bind(&arguments.listen).await?;
    let node: Arc<Path> = arguments.node.into();
    let (counted, of) = (Arc::clone(&shelf), Arc::clone(&node));
    let follower = tokio::spawn(async move { follow(&counted, &of).await });
    tokio::spawn(async move {
        while let Ok((customer, _)) = listener.accept().await {
            let (shelf, node) = (Arc::clone(&shelf), Arc::clone(&node));
            tokio::spawn(async move {
                if let Err(fault) = serve(&shelf, &node, customer).await {
                    eprintln!("a customer is not served: {fault}");
                }
            });
        }
    });
    // It ends only when the book cannot be written: then nothing may be sold.
    Ok(follower.await??)
}
