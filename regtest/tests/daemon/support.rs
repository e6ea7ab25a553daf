//! What the tests of this folder share: two daemons with a channel, how things stand with them, payments and refusals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitcoin::Amount;
use millrace_regtest::client::Client;
use millrace_regtest::network::{Network, random_key, whole_page};
use millrace_regtest::node::Node;
use millrace_regtest::pay_stream::{Outcome, PayStream, make_invoices};
use millrace_rpc::v1::{
    BalanceRequest, BalanceResponse, Channel, Cursor, ErrorDetail, ErrorReason, Event, Invoice, ListInvoicesRequest,
    ListPaymentsRequest, OpenChannelRequest, PayRequest, Payment, SubscribeRequest, open_channel_progress,
    pay_progress,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::timeout;
use tonic::Status;

pub(crate) const ALICE: usize = 0;
pub(crate) const BOB: usize = 1;
/// The channel, half of it on each side.
pub(crate) const CAPACITY_SAT: u64 = 2_000_000;
/// Anything that should happen soon.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Lines of each log that are shown when a test fails.
const LOG_TAIL_LINES: usize = 60;

/// Alice and Bob. When the test fails, the ends of their logs are shown.
pub(crate) struct Pair {
    pub(crate) network: Network,
    pub(crate) channel_id: Vec<u8>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.network.nodes.iter().for_each(show_log);
        }
    }
}

pub(crate) fn show_log(node: &Node) {
    let log = std::fs::read_to_string(node.log_path()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    eprintln!("--- {}\n{}", node.name, lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"));
}

/// A chain and daemons with these names, not started.
pub(crate) fn network(names: &[&str]) -> Network {
    let mut network = block_in_place(Network::start).unwrap();
    for name in names {
        network.add(name);
    }
    network
}

/// Alice and Bob, connected, with coins and with a channel that each has half of.
pub(crate) async fn pair() -> Pair {
    pair_with(|_| {}, |_| {}).await
}

/// The same after some changes to the daemons, and to the opening, which is Alice's.
pub(crate) async fn pair_with(prepare: impl Fn(&mut Node), change: impl FnOnce(&mut OpenChannelRequest)) -> Pair {
    let mut pair = Pair { network: network(&["alice", "bob"]), channel_id: Vec::new() };
    for node in &mut pair.network.nodes {
        prepare(node);
        node.start().await.unwrap();
    }
    pair.network.fund(ALICE, Amount::from_sat(2 * CAPACITY_SAT)).await.unwrap();
    pair.network.fund(ALICE, Amount::from_sat(1_000_000)).await.unwrap();
    pair.network.fund(BOB, Amount::from_sat(1_000_000)).await.unwrap();
    pair.network.connect(ALICE, BOB).await.unwrap();
    pair.open(change).await;
    pair
}

impl Pair {
    async fn open(&mut self, change: impl FnOnce(&mut OpenChannelRequest)) {
        let mut request = OpenChannelRequest {
            idempotency_key: random_key(),
            node_id: self.network.nodes[BOB].node_id().to_vec(),
            capacity_sat: CAPACITY_SAT,
            push_msat: CAPACITY_SAT / 2 * 1000,
            ..OpenChannelRequest::default()
        };
        change(&mut request);
        let mut progress = self.client(ALICE).channels.open(request).await.unwrap().into_inner();
        let funding;
        (self.channel_id, funding) = loop {
            let step = timeout(LIMIT, progress.message()).await.unwrap().unwrap().unwrap();
            if let Some(open_channel_progress::Stage::FundingBroadcast(broadcast)) = step.stage {
                break (step.channel_id, broadcast.funding_outpoint.unwrap().txid);
            }
        };
        self.network.wait_for_transaction(&hex::encode(funding)).await.unwrap();
        // Of the one who funds, coins are kept for the channel before any block counts it; of the other, once it is there.
        let reserve = async |node: usize| {
            let balance = self.client(node).wallet.balance(BalanceRequest {}).await.unwrap().into_inner();
            balance.anchor_reserve_sat
        };
        assert!(reserve(ALICE).await > 0 && reserve(BOB).await == 0);
        self.network.mine(6).await.unwrap();
        self.wait_until_usable().await;
        let client = self.client(BOB);
        let kept = self.network.wait("coins kept for the channel", async || {
            let balance = client.clone().wallet.balance(BalanceRequest {}).await.unwrap().into_inner();
            Ok(if balance.anchor_reserve_sat > 0 { Ok(()) } else { Err("none are".to_owned()) })
        });
        kept.await.unwrap();
    }

    pub(crate) fn client(&self, node: usize) -> Client {
        self.network.nodes[node].client().unwrap()
    }

    pub(crate) async fn wait_until_usable(&self) {
        for node in [ALICE, BOB] {
            self.network.wait_until_usable(node, &self.channel_id).await.unwrap();
        }
    }

    /// Waits until no HTLC is in flight, by both daemons' word.
    pub(crate) async fn wait_until_at_rest(&self) {
        let at_rest = self.network.wait("no HTLC in flight", async || {
            let mut htlcs = 0;
            for node in [ALICE, BOB] {
                let channels = self.network.channels(node).await?;
                htlcs += channels.iter().map(|channel| channel.offered_htlcs + channel.received_htlcs).sum::<u32>();
            }
            Ok(if htlcs == 0 { Ok(()) } else { Err(format!("{htlcs} are")) })
        });
        at_rest.await.unwrap();
    }

    /// How things stand, at rest.
    pub(crate) async fn standing(&self) -> Standing {
        self.wait_until_at_rest().await;
        let sides = [self.side(ALICE).await, self.side(BOB).await];
        Standing { sides, mempool: block_in_place(|| self.network.bitcoind.mempool()).unwrap().len() }
    }

    /// The same while there is no chain to ask.
    pub(crate) async fn standing_without_chain(&self) -> Standing {
        self.wait_until_at_rest().await;
        Standing { sides: [self.side(ALICE).await, self.side(BOB).await], mempool: 0 }
    }

    async fn side(&self, node: usize) -> Side {
        let client = self.client(node);
        Side {
            wallet: client.clone().wallet.balance(BalanceRequest {}).await.unwrap().into_inner(),
            channels: self.network.channels(node).await.unwrap(),
            invoices: invoices(&client).await.len(),
            payments: payments(&client).await.len(),
            events: events(&client, Cursor::default()).await,
        }
    }

    /// An invoice of a daemon.
    pub(crate) async fn invoice(&self, node: usize, amount_msat: u64) -> String {
        make_invoices(&self.client(node), &[amount_msat], "a test").await.unwrap().remove(0)
    }

    /// Pays, by a key of its own.
    pub(crate) async fn pay(&self, from: usize, bolt11: &str) -> Result<Payment, Status> {
        pay(&self.client(from), order(bolt11)).await
    }

    /// Stops both daemons as their user would.
    pub(crate) async fn stop(mut self) {
        for node in &mut self.network.nodes {
            node.stop().await.unwrap();
        }
    }
}

/// Everything that a refusal must leave as it is.
#[derive(PartialEq, Debug)]
pub(crate) struct Standing {
    pub(crate) sides: [Side; 2],
    pub(crate) mempool: usize,
}

#[derive(PartialEq, Debug)]
pub(crate) struct Side {
    pub(crate) wallet: BalanceResponse,
    pub(crate) channels: Vec<Channel>,
    pub(crate) invoices: usize,
    pub(crate) payments: usize,
    pub(crate) events: Vec<Event>,
}

/// A whole list, the newest first.
pub(crate) async fn invoices(client: &Client) -> Vec<Invoice> {
    let request = ListInvoicesRequest { page: Some(whole_page()), status: 0 };
    let answer = client.clone().invoices.list(request).await.unwrap().into_inner();
    assert_eq!(answer.next_cursor, "", "more invoices than a page holds");
    answer.invoices
}

/// A whole list, the newest first.
pub(crate) async fn payments(client: &Client) -> Vec<Payment> {
    let request = ListPaymentsRequest { page: Some(whole_page()), status: 0 };
    let answer = client.clone().payments.list(request).await.unwrap().into_inner();
    assert_eq!(answer.next_cursor, "", "more payments than a page holds");
    answer.payments
}

/// Everything that has happened from a position on.
pub(crate) async fn events(client: &Client, from: Cursor) -> Vec<Event> {
    let request = SubscribeRequest { from_cursor: Some(from), stop_at_tip: true };
    let mut stream = client.clone().events.subscribe(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(event) = timeout(LIMIT, stream.message()).await.unwrap().unwrap() {
        events.push(event);
    }
    events
}

/// Turns a daemon's metrics on, from its next start on.
pub(crate) fn turn_metrics_on(node: &mut Node) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.argument("--metrics-listen");
    node.argument(&free.to_string());
}

/// What Prometheus gets from a daemon.
pub(crate) async fn metrics_page(node: &Node) -> String {
    let url = node.rpc_info().unwrap().metrics.clone().expect("its metrics are on");
    let address = url.strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A payment with a key of its own and the usual limits.
pub(crate) fn order(bolt11: &str) -> PayRequest {
    PayRequest { idempotency_key: random_key(), bolt11: bolt11.to_owned(), ..PayRequest::default() }
}

/// Pays, and waits for the outcome. What cannot be tried is an error.
pub(crate) async fn pay(client: &Client, request: PayRequest) -> Result<Payment, Status> {
    let mut progress = client.clone().payments.pay(request).await?.into_inner();
    loop {
        let step = timeout(LIMIT, progress.message()).await.expect("a payment without outcome")?;
        if let pay_progress::Step::Outcome(payment) = step.unwrap().step.unwrap() {
            return Ok(payment);
        }
    }
}

/// That the answer is this refusal: with its code, with words, and with a hint at what to do.
#[track_caller]
pub(crate) fn refused<T>(answer: Result<T, Status>, reason: ErrorReason) -> ErrorDetail {
    let Err(status) = answer else { panic!("{reason:?} was expected, and it was done") };
    check_refusal(&status, reason)
}

#[track_caller]
pub(crate) fn check_refusal(status: &Status, reason: ErrorReason) -> ErrorDetail {
    let Some(detail) = ErrorDetail::from_status(status) else {
        panic!("{reason:?} was expected, not {:?} without details: {}", status.code(), status.message());
    };
    assert_eq!(detail.reason(), reason, "{:?}: {}", status.code(), status.message());
    assert_eq!(status.code(), reason.code(), "{}", status.message());
    assert!(!status.message().is_empty(), "{reason:?} without words");
    assert!(!detail.hint.is_empty(), "{reason:?} without a hint: {}", status.message());
    detail
}

/// Payments one after the other, a few at a time, until told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Outcome>>,
}

impl Load {
    const AT_ONCE: usize = 8;
    const INVOICES: usize = 64;

    /// Begins to pay invoices of `to`, of 1 sat each.
    pub(crate) async fn start(pair: &Pair, from: usize, to: usize) -> Self {
        let mut stream = PayStream::open(&pair.network.nodes[from]).await.unwrap();
        let payee = pair.client(to);
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut outcomes, mut spare, mut id) = (Vec::new(), Vec::new(), 0);
            while !told.load(Ordering::Relaxed) || stream.outstanding() > 0 {
                while stream.outstanding() < Self::AT_ONCE && !told.load(Ordering::Relaxed) {
                    if spare.is_empty() {
                        spare = make_invoices(&payee, &[1_000; Self::INVOICES], "load").await.unwrap();
                    }
                    id += 1;
                    stream.pay(id, spare.pop().unwrap(), random_key()).await.unwrap();
                }
                if stream.outstanding() > 0 {
                    let answer = timeout(LIMIT, stream.next()).await.expect("a payment without outcome");
                    outcomes.push(answer.unwrap().expect("the payment stream ended early").1);
                }
            }
            outcomes
        });
        Self { stop, task }
    }

    /// Stops it. What came of each payment.
    pub(crate) async fn finish(self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}
