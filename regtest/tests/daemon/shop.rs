//! The example of a merchant's integration (`src/bin/shop.rs`, `docs/merchant.md`), with its shop and its daemon killed at
//! random moments: each payment is counted once, none is missed, and the sums are those of the channel.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millrace_regtest::client::Client;
use millrace_rpc::v1::{Cursor, InvoiceStatus, PaymentStatus, event};
use serde_json::Value;
use tokio::task::block_in_place;

use super::support::{ALICE, BOB, LIMIT, Pair, events, invoices, order, pair, pay};

/// Orders that are paid; one more of three is placed and never paid.
const PAID: usize = 36;
/// Times that something is killed.
const KILLS: usize = 12;

/// A small generator of numbers: what a seed gives, it gives again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// The shop's process.
struct Shop {
    node: PathBuf,
    folder: PathBuf,
    listen: String,
    process: Option<Child>,
}

impl Shop {
    fn new(node: PathBuf, folder: PathBuf) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { node, folder, listen: free.to_string(), process: None }
    }

    fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
        command.arg("--node").arg(&self.node).arg("--folder").arg(&self.folder).args(["--listen", &self.listen]);
        self.process = Some(command.stdin(Stdio::null()).spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn book(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.folder.join("book.json")).unwrap()).unwrap()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One question of a customer, who asks until there is an answer.
fn ask(listen: &str, question: &str) -> String {
    let until = Instant::now() + LIMIT;
    loop {
        let answer = TcpStream::connect(listen).and_then(|mut socket| {
            socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            writeln!(socket, "{question}")?;
            let mut answer = String::new();
            BufReader::new(socket).read_line(&mut answer)?;
            Ok(answer.trim().to_owned())
        });
        match answer {
            Ok(answer) if !answer.is_empty() => return answer,
            Ok(_) | Err(_) => assert!(Instant::now() < until, "the shop does not answer {question}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A customer pays until it is paid: what fails because the payee is away is tried again.
async fn pay_until_paid(client: Client, bolt11: String) {
    let until = Instant::now() + 3 * LIMIT;
    loop {
        match pay(&client, order(&bolt11)).await {
            Ok(payment) if payment.status() == PaymentStatus::Succeeded => return,
            Ok(payment) => assert!(Instant::now() < until, "{payment:?}"),
            Err(status) => assert!(Instant::now() < until, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn amount_of(index: usize) -> u64 {
    10_000 + 7 * index as u64
}

async fn local_msat(pair: &Pair) -> u64 {
    pair.wait_until_at_rest().await;
    pair.network.channel(BOB, &pair.channel_id).await.unwrap().local_msat
}

#[tokio::test(flavor = "multi_thread")]
async fn each_payment_is_counted_once_though_shop_and_daemon_are_killed() {
    let seed = std::env::var("MILLRACE_SHOP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(4);
    println!("MILLRACE_SHOP_SEED={seed}");
    let mut numbers = Numbers(seed);
    let mut pair = pair().await;
    let before = local_msat(&pair).await;
    let folder = tempfile::tempdir().unwrap();
    let mut shop = Shop::new(pair.network.nodes[BOB].data_dir().to_owned(), folder.path().join("shop"));
    shop.start();

    // Customers, a few at a time: they order, and two of three pay.
    let (listen, payer) = (shop.listen.clone(), pair.client(ALICE));
    let customers = tokio::spawn(async move {
        let mut waiting = Vec::new();
        for index in 0..PAID * 3 / 2 {
            let (listen, payer) = (listen.clone(), payer.clone());
            waiting.push(tokio::spawn(async move {
                let question = format!("ORDER n{index} {}", amount_of(index));
                let bolt11 = block_in_place(|| ask(&listen, &question));
                assert!(bolt11.starts_with("lnbcrt"), "{bolt11}");
                if index % 3 != 2 {
                    pay_until_paid(payer, bolt11).await;
                }
            }));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        for customer in waiting {
            customer.await.unwrap();
        }
    });
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(numbers.below(900))).await;
        let what = numbers.below(3);
        if what != 1 {
            shop.kill();
        }
        if what != 0 {
            pair.network.nodes[BOB].kill9().unwrap();
            tokio::time::sleep(Duration::from_millis(numbers.below(200))).await;
            pair.network.nodes[BOB].start().await.unwrap();
        }
        if what != 1 {
            shop.start();
        }
    }
    customers.await.unwrap();
    pair.wait_until_usable().await;

    // Whatever the shop was told before it died, it is told in the end.
    let last = format!("STATUS n{}", PAID * 3 / 2 - 2);
    let until = Instant::now() + LIMIT;
    let all_counted = |book: &Value| {
        let orders = book["orders"].as_object().unwrap();
        orders.values().filter(|order| order["payments"].as_u64() > Some(0)).count() >= PAID
    };
    while !all_counted(&shop.book()) {
        assert!(Instant::now() < until, "paid, but not counted: {:#}", shop.book());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(block_in_place(|| ask(&shop.listen, &last)), "paid");

    let received = local_msat(&pair).await - before;
    let book = shop.book();
    let orders: BTreeMap<&String, &Value> = book["orders"].as_object().unwrap().iter().collect();
    assert_eq!(orders.len(), PAID * 3 / 2);
    let mut sum = 0;
    for index in 0..PAID * 3 / 2 {
        let order = orders[&format!("n{index}")];
        let is_paid = index % 3 != 2;
        assert_eq!(order["payments"], u64::from(is_paid), "order {index}: {order}");
        assert_eq!(order["received_msat"], if is_paid { amount_of(index) } else { 0 }, "order {index}: {order}");
        sum += order["received_msat"].as_u64().unwrap();
    }
    assert_eq!(sum, received, "what the shop has counted is what the channel has gained");
    let made = invoices(&pair.client(BOB)).await;
    assert_eq!(made.len(), PAID * 3 / 2, "one invoice for each order, however often it was asked for");
    assert_eq!(made.iter().filter(|invoice| invoice.status() == InvoiceStatus::Paid).count(), PAID);
    let told = events(&pair.client(BOB), Cursor::default()).await;
    let paid = told.iter().filter(|event| matches!(event.event, Some(event::Event::InvoicePaid(_))));
    assert_eq!(paid.count(), PAID);
    drop(shop);
    pair.stop().await;
}
