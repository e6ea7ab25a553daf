//! The tools for tests of several nodes.

use millrace_regtest::mesh::Mesh;
use millrace_regtest::network::Error;
use millrace_regtest::pay_stream::Outcome;
use millrace_regtest::plan::{Kind, Plan};

const AMOUNT_MSAT: u64 = 123_456_000;
const MOVED_MSAT: i64 = 123_456_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_line_of_three_pays_is_moved_and_nothing_is_lost() {
    let mesh = Mesh::start(Plan::line(3)).await.unwrap();
    let before = mesh.sums_msat().await.unwrap();
    assert_eq!(before, [5_000_000_000, 10_000_000_000, 5_000_000_000]);
    mesh.check_conserved().await.unwrap();

    let invoice = mesh.invoice(1, AMOUNT_MSAT).await.unwrap();
    assert_eq!(mesh.pay(0, &invoice).await.unwrap(), Outcome::Paid);
    mesh.check_moved(&before, &[(0, -MOVED_MSAT), (1, MOVED_MSAT)]).await.unwrap();

    // What does not come to nothing is refused: it could never be.
    let error = mesh.check_moved(&before, &[(0, -MOVED_MSAT)]).await.unwrap_err();
    assert!(matches!(error, Error::Wrong(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_with_an_ldk_node_in_the_middle_counts_the_same() {
    let mesh = Mesh::start(Plan::line(3).with_kind(&[1], Kind::Ldk)).await.unwrap();
    let mut before = mesh.sums_msat().await.unwrap();
    assert_eq!(before, [5_000_000_000, 10_000_000_000, 5_000_000_000]);
    for (from, to) in [(0, 1), (1, 2), (2, 1)] {
        let invoice = mesh.invoice(to, AMOUNT_MSAT).await.unwrap();
        assert_eq!(mesh.pay(from, &invoice).await.unwrap(), Outcome::Paid, "{from} to {to}");
        mesh.check_moved(&before, &[(from, -MOVED_MSAT), (to, MOVED_MSAT)]).await.unwrap();
        before = mesh.sums_msat().await.unwrap();
    }
}
