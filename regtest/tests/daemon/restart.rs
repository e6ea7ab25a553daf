//! A stop in good order and a start: everything is as before, also when the view was deleted in between.

use millrace_regtest::client::Client;
use millrace_regtest::network::{random_key, whole_page};
use millrace_regtest::pay_stream::{Outcome, PayStream, make_invoices};
use millrace_rpc::v1::{
    BalanceRequest, BalanceResponse, Channel, GetInvoiceRequest, GetPaymentRequest, InvoiceStatus, ListChannelsRequest,
    ListInvoicesRequest, ListPaymentsRequest, ListTransactionsRequest, ListUtxosRequest, Page, PaymentStatus, Utxo,
    WalletTransaction,
};

use super::support::{ALICE, BOB, CAPACITY_SAT, Pair, events, invoices, pair, pair_with, payments};

/// Everything that is listed and looked up.
#[derive(PartialEq, Debug)]
struct Lists {
    balance: BalanceResponse,
    channels: Vec<Channel>,
    transactions: Vec<WalletTransaction>,
    utxos: Vec<Utxo>,
    invoices: Vec<millrace_rpc::v1::Invoice>,
    paid_invoices: usize,
    payments: Vec<millrace_rpc::v1::Payment>,
    succeeded_payments: usize,
    events: Vec<millrace_rpc::v1::Event>,
}

async fn lists(client: &Client) -> Lists {
    let mut client = client.clone();
    let page = Some(whole_page());
    let request = ListChannelsRequest { page: page.clone(), node_id: Vec::new(), include_closed: true };
    let channels = client.channels.list(request).await.unwrap().into_inner().channels;
    let request = ListTransactionsRequest { page: page.clone() };
    let transactions = client.wallet.list_transactions(request).await.unwrap().into_inner().transactions;
    let utxos = client.wallet.list_utxos(ListUtxosRequest { page: page.clone() }).await.unwrap().into_inner().utxos;
    let request = ListInvoicesRequest { page: page.clone(), status: InvoiceStatus::Paid.into() };
    let paid_invoices = client.invoices.list(request).await.unwrap().into_inner().invoices.len();
    let request = ListPaymentsRequest { page, status: PaymentStatus::Succeeded.into() };
    let succeeded_payments = client.payments.list(request).await.unwrap().into_inner().payments.len();
    Lists {
        balance: client.wallet.balance(BalanceRequest {}).await.unwrap().into_inner(),
        channels,
        transactions,
        utxos,
        invoices: looked_up_invoices(&mut client).await,
        paid_invoices,
        payments: looked_up_payments(&mut client).await,
        succeeded_payments,
        events: events(&client, Default::default()).await,
    }
}

/// All invoices, by pages of three, each as its own look-up tells it.
async fn looked_up_invoices(client: &mut Client) -> Vec<millrace_rpc::v1::Invoice> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let request = ListInvoicesRequest { page: Some(Page { size: 3, cursor }), status: 0 };
        let answer = client.invoices.list(request).await.unwrap().into_inner();
        for invoice in answer.invoices {
            let request = GetInvoiceRequest { payment_hash: invoice.payment_hash.clone() };
            assert_eq!(client.invoices.get(request).await.unwrap().into_inner().invoice.unwrap(), invoice);
            found.push(invoice);
        }
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            assert_eq!(found, invoices(client).await, "pages of three are the one large page");
            return found;
        }
    }
}

async fn looked_up_payments(client: &mut Client) -> Vec<millrace_rpc::v1::Payment> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    let mut listed = Vec::new();
    loop {
        let request = ListPaymentsRequest { page: Some(Page { size: 3, cursor }), status: 0 };
        let answer = client.payments.list(request).await.unwrap().into_inner();
        for payment in answer.payments {
            let request = GetPaymentRequest { payment_hash: payment.payment_hash.clone() };
            found.push(client.payments.get(request).await.unwrap().into_inner().payment.unwrap());
            listed.push(payment);
        }
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            assert_eq!(listed, payments(client).await, "pages of three are the one large page");
            return found;
        }
    }
}

async fn both(pair: &Pair) -> [Lists; 2] {
    pair.wait_until_usable().await;
    pair.wait_until_at_rest().await;
    [lists(&pair.client(ALICE)).await, lists(&pair.client(BOB)).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_answer_the_same_after_a_restart_and_without_the_view() {
    let mut pair = pair().await;
    for (from, to) in [(ALICE, BOB), (BOB, ALICE), (ALICE, BOB), (ALICE, BOB)] {
        let bolt11 = pair.invoice(to, 30_000).await;
        pair.pay(from, &bolt11).await.unwrap();
    }
    for _ in 0..4 {
        pair.invoice(BOB, 40_000).await;
    }
    let before = both(&pair).await;
    assert_eq!((before[ALICE].payments.len(), before[ALICE].succeeded_payments), (3, 3));
    assert_eq!((before[BOB].invoices.len(), before[BOB].paid_invoices), (7, 3));
    assert!(!before[ALICE].transactions.is_empty() && !before[ALICE].utxos.is_empty());

    for delete_the_view in [false, true] {
        for node in &mut pair.network.nodes {
            node.stop().await.unwrap();
            assert!(!node.data_dir().join("rpc.json").exists(), "it names a daemon that is gone");
            if delete_the_view {
                std::fs::remove_dir_all(node.data_dir().join("view")).unwrap();
            }
            node.start().await.unwrap();
        }
        check_same(&before, &both(&pair).await, delete_the_view);
    }
    // And killed, which leaves a view that is behind the journal.
    for node in &mut pair.network.nodes {
        node.kill9().unwrap();
        node.start().await.unwrap();
    }
    check_same(&before, &both(&pair).await, false);
    let bolt11 = pair.invoice(ALICE, 50_000).await;
    pair.pay(BOB, &bolt11).await.unwrap();
    pair.stop().await;
}

/// How much each start of a daemon has read of its journal, in bytes.
fn read_at_starts(pair: &Pair, node: usize) -> Vec<u64> {
    let log = std::fs::read_to_string(pair.network.nodes[node].log_path()).unwrap();
    let starts = log.lines().filter(|line| line.contains("journal open"));
    let bytes = starts.map(|line| line.split(" bytes=").nth(1).unwrap().split(' ').next().unwrap());
    bytes.map(|bytes| bytes.parse().unwrap()).collect()
}

/// No life of the daemon is long enough for a segment of journal, and none ends in good order: checkpoints are written all
/// the same, and starts do not take ever longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_again_and_again_does_not_read_ever_more() {
    const LIVES: usize = 7;
    const PAYMENTS: u64 = 240;
    const SEGMENT: u64 = 1 << 20;
    let small_segments = |node: &mut millrace_regtest::node::Node| {
        std::fs::create_dir_all(node.data_dir()).unwrap();
        std::fs::write(node.data_dir().join("millrace.toml"), "[journal]\nsegment_mib = 1\n").unwrap();
    };
    let mut pair = pair_with(small_segments, |_| {}).await;
    for _ in 0..LIVES {
        let bolt11s = make_invoices(&pair.client(BOB), &[10_000; PAYMENTS as usize], "again").await.unwrap();
        let mut stream = PayStream::open(&pair.network.nodes[ALICE]).await.unwrap();
        for (id, bolt11) in (0..).zip(bolt11s) {
            stream.pay(id, bolt11, random_key()).await.unwrap();
        }
        for _ in 0..PAYMENTS {
            assert_eq!(stream.next().await.unwrap().unwrap().1, Outcome::Paid);
        }
        // Time for a look at whether a checkpoint is due.
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
        pair.network.nodes[ALICE].kill9().unwrap();
        pair.network.nodes[ALICE].start().await.unwrap();
        pair.wait_until_usable().await;
    }
    pair.wait_until_at_rest().await;
    let read = read_at_starts(&pair, ALICE);
    let a_life = read[1];
    assert!(a_life < SEGMENT && a_life * LIVES as u64 > 4 * SEGMENT, "a life writes a part of a segment: {read:?}");
    assert!(read.iter().all(|bytes| *bytes < 3 * SEGMENT), "{read:?}");
    let channel = pair.network.channel(BOB, &pair.channel_id).await.unwrap();
    assert_eq!(channel.local_msat, CAPACITY_SAT / 2 * 1000 + 10_000 * PAYMENTS * LIVES as u64);
    pair.stop().await;
}

/// The same, but for the connections that came and went.
fn check_same(before: &[Lists; 2], after: &[Lists; 2], without_view: bool) {
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before.balance, after.balance, "{without_view}");
        assert_eq!(before.channels, after.channels, "{without_view}");
        assert_eq!(before.transactions, after.transactions, "{without_view}");
        assert_eq!(before.utxos, after.utxos, "{without_view}");
        assert_eq!(before.invoices, after.invoices, "{without_view}");
        assert_eq!(before.paid_invoices, after.paid_invoices, "{without_view}");
        assert_eq!(before.payments, after.payments, "{without_view}");
        assert_eq!(before.succeeded_payments, after.succeeded_payments, "{without_view}");
        assert_eq!(before.events, after.events[..before.events.len()], "{without_view}");
    }
}
