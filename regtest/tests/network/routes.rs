//! Payments over other nodes, ours and LDK's, on a real chain: that they arrive, what each hop earns, and that nothing is lost
//! when the node in the middle dies.

use millrace_regtest::mesh::Mesh;
use millrace_regtest::network::random_key;
use millrace_regtest::pay_stream::{Outcome, PayStream};
use millrace_regtest::plan::{Kind, Plan};
use millrace_rpc::v1::ListForwardsRequest;

const AMOUNT_MSAT: u64 = 100_000_000;
/// More than one way can carry: each node in the middle lets one peer hold half of what it has in the next channel.
const LARGE_MSAT: u64 = 4_000_000_000;
/// Payments under way when the node in the middle is killed.
const AT_ONCE: u64 = 40;

/// What a `millraced` asks by default: 1,000 msat and 100 millionths.
fn fee(forwarded_msat: u64) -> u64 {
    1_000 + forwarded_msat / 10_000
}

fn signed(msat: u64) -> i64 {
    i64::try_from(msat).unwrap()
}

pub(crate) async fn started(plan: Plan) -> Mesh {
    let mesh = Mesh::start(plan).await.unwrap();
    mesh.wait_for_graphs().await.unwrap();
    mesh
}

/// Pays and shows that the payee has it, that every other node has at least what it had, and that the payer has paid no more
/// than one per cent above it.
pub(crate) async fn check_paid(mesh: &Mesh, from: usize, to: usize, amount_msat: u64) {
    let invoice = mesh.invoice(to, amount_msat).await.unwrap();
    check_paid_by(mesh, from, to, amount_msat, &invoice).await;
}

/// The same with an invoice that is there.
pub(crate) async fn check_paid_by(mesh: &Mesh, from: usize, to: usize, amount_msat: u64, invoice: &str) {
    let before = mesh.sums_msat().await.unwrap();
    assert_eq!(mesh.pay(from, invoice).await.unwrap(), Outcome::Paid, "{from} to {to}");
    mesh.check_conserved().await.unwrap();
    // LDK counts what it has paid away as its own until the HTLC is gone.
    let whole: u64 = before.iter().sum();
    let is_conserved = mesh.network.wait("that nothing appears or disappears", async || {
        let now = mesh.sums_msat().await?;
        Ok(if now.iter().sum::<u64>() == whole { Ok(()) } else { Err(format!("of {whole} msat they have {now:?}")) })
    });
    is_conserved.await.unwrap();
    let after = mesh.sums_msat().await.unwrap();
    for (node, (before, after)) in before.iter().zip(&after).enumerate() {
        if node == to {
            assert_eq!(*after, before + amount_msat, "the payee");
        } else if node == from {
            let paid = before - after;
            assert!(paid >= amount_msat && paid <= amount_msat + amount_msat / 100, "the payer paid {paid} msat");
        } else {
            assert!(after >= before, "node {node} had {before} msat and has {after}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_three_hops_each_earns_its_fee() {
    let mut mesh = started(Plan::line(4)).await;
    let before = mesh.sums_msat().await.unwrap();
    let invoice = mesh.invoice(3, AMOUNT_MSAT).await.unwrap();
    assert_eq!(mesh.pay(0, &invoice).await.unwrap(), Outcome::Paid);
    let (second, first) = (fee(AMOUNT_MSAT), fee(AMOUNT_MSAT + fee(AMOUNT_MSAT)));
    let moved =
        [(0, -signed(AMOUNT_MSAT + first + second)), (1, signed(first)), (2, signed(second)), (3, signed(AMOUNT_MSAT))];
    mesh.check_moved(&before, &moved).await.unwrap();
    for (node, earned) in [(1, first), (2, second)] {
        let mut client = mesh.network.nodes[node].client().unwrap();
        let list = client.forwards.list(ListForwardsRequest::default()).await.unwrap().into_inner();
        let [forward] = &list.forwards[..] else { panic!("{list:?}") };
        assert_eq!(forward.amount_in_msat - forward.amount_out_msat, earned);
    }
    // And back.
    check_paid(&mesh, 3, 0, AMOUNT_MSAT).await;
    // What that has taught is kept over a stop.
    let payer = &mut mesh.network.nodes[0];
    let taught = payer.data_dir().join("liquidity");
    assert!(!taught.exists(), "it is written now and then, and in the end");
    payer.stop().await.unwrap();
    assert!(taught.metadata().unwrap().len() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_one_way_can_carry_goes_in_parts() {
    let mesh = started(Plan::diamond()).await;
    check_paid(&mesh, 0, 3, LARGE_MSAT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ldk_forwards_for_us() {
    let mesh = started(Plan::line(3).with_kind(&[1], Kind::Ldk)).await;
    check_paid(&mesh, 0, 2, AMOUNT_MSAT).await;
    check_paid(&mesh, 2, 0, AMOUNT_MSAT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_forward_for_ldk() {
    let mesh = started(Plan::line(3).with_kind(&[0, 2], Kind::Ldk)).await;
    check_paid(&mesh, 0, 2, AMOUNT_MSAT).await;
    check_paid(&mesh, 2, 0, AMOUNT_MSAT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_in_the_middle_dies_in_the_middle_of_forwards() {
    let mut mesh = started(Plan::line(3)).await;
    let before = mesh.sums_msat().await.unwrap();
    let mut invoices = Vec::new();
    for _ in 0..AT_ONCE {
        invoices.push(mesh.invoice(2, AMOUNT_MSAT / 10).await.unwrap());
    }
    let mut stream = PayStream::open(&mesh.network.nodes[0]).await.unwrap();
    for (number, invoice) in (0..).zip(invoices) {
        stream.pay(number, invoice, random_key()).await.unwrap();
    }
    // Some have been through, others are on their way.
    let (_, first, _) = stream.next().await.unwrap().unwrap();
    assert_eq!(first, Outcome::Paid);
    mesh.network.nodes[1].kill9().unwrap();
    mesh.network.nodes[1].start().await.unwrap();
    let mut paid = 1;
    for _ in 1..AT_ONCE {
        let (_, outcome, _) = stream.next().await.unwrap().expect("every payment has an outcome");
        paid += u64::from(outcome == Outcome::Paid);
    }
    mesh.wait_until_usable().await.unwrap();
    mesh.check_conserved().await.unwrap();
    let each = AMOUNT_MSAT / 10;
    let moved = [(0, -signed(paid * (each + fee(each)))), (1, signed(paid * fee(each))), (2, signed(paid * each))];
    mesh.check_moved(&before, &moved).await.unwrap();
}
