//! Payments whose failure is looked at: what came back, from which hop, and whether the payer could read it, whichever of the
//! two implementations it is.

use std::process::Command;
use std::time::Duration;

use millrace_regtest::ldk::protocol::{Event, PaymentStatus};
use millrace_regtest::ldk::{Decoded, LdkNode};
use millrace_regtest::mesh::{Member, Mesh};
use millrace_regtest::network::{Error, random_key, wait_for};
use millrace_regtest::node::Node;
use millrace_rpc::v1::{
    CreateInvoiceRequest, InvoiceStatus, PayRequest, Payment, PaymentFailure, PaymentStatus as Status, pay_progress,
};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::timeout;

/// How long a payment may take until it is decided.
const LIMIT: Duration = Duration::from_secs(90);

/// One of ours.
#[track_caller]
pub(crate) fn ours(mesh: &Mesh, node: usize) -> &Node {
    match mesh.member(node) {
        Member::Ours(node) => node,
        Member::Ldk(node) => panic!("{} is no millraced", node.name),
    }
}

/// One of LDK's.
#[track_caller]
pub(crate) fn ldk(mesh: &Mesh, node: usize) -> &LdkNode {
    match mesh.member(node) {
        Member::Ldk(node) => node,
        Member::Ours(node) => panic!("{} is no ldk-node", node.name),
    }
}

// --- with one of ours as the payer ---

/// Begins a payment in one part; its outcome with every attempt.
pub(crate) fn begin_from_us(node: &Node, bolt11: &str) -> JoinHandle<Payment> {
    let (mut client, bolt11) = (node.client().unwrap(), bolt11.to_owned());
    let request = PayRequest { idempotency_key: random_key(), bolt11, max_parts: 1, ..PayRequest::default() };
    tokio::spawn(async move {
        let mut progress = client.payments.pay(request).await.unwrap().into_inner();
        loop {
            let step = timeout(LIMIT, progress.message()).await.expect("the payment makes no progress").unwrap();
            if let Some(pay_progress::Step::Outcome(payment)) = step.expect("it ended without an outcome").step {
                return payment;
            }
        }
    })
}

pub(crate) async fn pay_from_us(node: &Node, bolt11: &str) -> Payment {
    begin_from_us(node, bolt11).await.unwrap()
}

/// What should have come back: from which hop, counted from 1, who that is, and BOLT 4's code and name of it.
pub(crate) struct Expected {
    pub(crate) hop: u32,
    pub(crate) node: usize,
    pub(crate) code: u32,
    pub(crate) name: &'static str,
}

/// The payment failed, and its first attempt for this reason, which is told by the call and, in words, by the command line.
pub(crate) async fn check_failed(mesh: &Mesh, payer: usize, payment: &Payment, expected: &Expected) {
    assert_eq!(payment.status(), Status::Failed, "{payment:?}");
    let attempt = &payment.attempts[0];
    let failure = attempt.failure.as_ref().unwrap_or_else(|| panic!("it did not fail: {attempt:?}"));
    let PaymentFailure { failure_code, failure_name, hop_index, node_id, .. } = failure;
    let node = mesh.node_id(expected.node).unwrap();
    let told = (*failure_code, failure_name.as_str(), *hop_index, hex::encode(node_id));
    assert_eq!(told, (expected.code, expected.name, Some(expected.hop), hex::encode(&node)), "{attempt:?}");
    let shown = shown(ours(mesh, payer), &payment.payment_hash).await;
    let words = match attempt.hops.len() {
        1 => expected_words(failure),
        hops => format!("hop {} of {hops}, {}, says {}", expected.hop, hex::encode(&node), expected.name),
    };
    assert!(shown.contains("Attempt 1 failed") && shown.contains(&words), "`{words}` is not in:\n{shown}");
}

/// To a neighbour: its own words, since there is only one who can have said them.
fn expected_words(failure: &PaymentFailure) -> String {
    assert!(!failure.message.is_empty());
    failure.message.clone()
}

/// `millrace payment show`, as a person sees it.
pub(crate) async fn shown(node: &Node, payment_hash: &[u8]) -> String {
    let mut command = Command::new(&node.programs().millrace);
    command.args(["--network", "regtest", "--table", "--data-dir"]).arg(node.data_dir());
    command.args(["payment", "show", &hex::encode(payment_hash)]);
    let output = block_in_place(|| command.output()).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

// --- with one of ours as the payee ---

/// An invoice whose payment is held, and its payment hash.
pub(crate) async fn held_invoice(node: &Node, amount_msat: u64) -> (String, Vec<u8>) {
    let request = CreateInvoiceRequest {
        idempotency_key: random_key(),
        amount_msat: Some(amount_msat),
        hold: true,
        ..CreateInvoiceRequest::default()
    };
    let answer = node.client().unwrap().invoices.create(request).await.unwrap();
    let invoice = answer.into_inner().invoice.unwrap();
    (invoice.bolt11, invoice.payment_hash)
}

/// Waits until the payment is there and held.
pub(crate) async fn wait_until_held(node: &Node, payment_hash: &[u8]) {
    let request = || millrace_rpc::v1::GetInvoiceRequest { payment_hash: payment_hash.to_vec() };
    wait_for(&format!("a payment held by {}", node.name), LIMIT, async || {
        let answer = node.client()?.invoices.get(request()).await.map_err(|status| node.call_failed(&status))?;
        let status = answer.into_inner().invoice.unwrap_or_default().status();
        Ok(if status == InvoiceStatus::Held { Ok(()) } else { Err(format!("it is {status:?}")) })
    })
    .await
    .unwrap();
}

pub(crate) async fn cancel(node: &Node, payment_hash: &[u8]) {
    let request =
        millrace_rpc::v1::CancelInvoiceRequest { idempotency_key: random_key(), payment_hash: payment_hash.to_vec() };
    node.client().unwrap().invoices.cancel(request).await.unwrap();
}

// --- with one of LDK's as the payer ---

/// Waits for the outcome of a payment; LDK's reason, if it failed.
pub(crate) async fn outcome_at_ldk(node: &LdkNode, payment_id: &str) -> Result<(), String> {
    wait_for(&format!("{}'s payment {payment_id}", node.name), LIMIT, async || {
        let status = node.payment(payment_id).await?.status;
        Ok(if status == PaymentStatus::Pending { Err("it is under way".to_owned()) } else { Ok(()) })
    })
    .await
    .unwrap();
    if node.payment(payment_id).await.unwrap().status == PaymentStatus::Succeeded {
        return Ok(());
    }
    let reason = std::cell::RefCell::new(String::new());
    wait_for(&format!("{}'s word of its payment {payment_id}", node.name), LIMIT, async || {
        let events = node.events();
        let found = events.iter().find_map(|event| match event {
            Event::PaymentFailed { payment_id: id, reason } if id == payment_id => Some(reason.clone()),
            _ => None,
        });
        Ok(found.map(|found| reason.replace(found)).map(drop).ok_or_else(|| format!("{events:?}")))
    })
    .await
    .unwrap();
    Err(reason.into_inner())
}

/// LDK pays, and it fails; how many failures it had read before this was called, and its reason.
pub(crate) async fn fails_at_ldk(node: &LdkNode, bolt11: &str) -> (usize, String) {
    let before = node.decoded_failures().len();
    let reason = match node.pay(bolt11, None).await {
        Ok(payment_id) => outcome_at_ldk(node, &payment_id).await.expect_err("it was paid"),
        Err(Error::Node { what, .. }) => what,
        Err(error) => panic!("{error}"),
    };
    (before, reason)
}

/// LDK has read this failure, by this node, first of all that have come back after so many; and none that it could not read.
/// It says so in its log, which may come after its word of the payment.
pub(crate) async fn check_decoded(mesh: &Mesh, payer: usize, before: usize, node: usize, code: u16) {
    let (payer, by) = (ldk(mesh, payer), hex::encode(mesh.node_id(node).unwrap()));
    wait_for(&format!("a failure in the log of {}", payer.name), LIMIT, async || {
        Ok(if payer.decoded_failures().len() > before { Ok(()) } else { Err("it has none".to_owned()) })
    })
    .await
    .unwrap();
    let decoded = payer.decoded_failures();
    assert_eq!(decoded[before], Decoded { node_id: by, code }, "{decoded:?}");
    assert_eq!(payer.unread_failures(), [] as [String; 0]);
}
