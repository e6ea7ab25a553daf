//! Lines of four nodes, ours and LDK's mixed: at each place one forwards for the other.

use millrace_regtest::mesh::Mesh;
use millrace_regtest::plan::{Kind, Plan};

use crate::routes::{check_paid, started};
use crate::tried::ldk;

const AMOUNT_MSAT: u64 = 100_000_000;

async fn check_both_ways(mesh: &Mesh) {
    check_paid(mesh, 0, 3, AMOUNT_MSAT).await;
    check_paid(mesh, 3, 0, AMOUNT_MSAT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_us_over_ldk_and_us_to_ldk() {
    check_both_ways(&started(Plan::line(4).with_kind(&[1, 3], Kind::Ldk)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_ldk_over_us_and_ldk_to_us() {
    check_both_ways(&started(Plan::line(4).with_kind(&[0, 2], Kind::Ldk)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_two_of_ldk() {
    let mesh = Mesh::start(Plan::line(4).with_kind(&[1, 2], Kind::Ldk)).await.unwrap();
    // Of two ldk-nodes with a channel, the one that is ready to announce it first says its `channel_update` at once, and
    // the other one drops that, for it does not know the channel yet ("Couldn't find channel for update" in its log). It is
    // not said again until the terms change: so nobody behind the other one ever hears of them. Hence other terms.
    for node in [1, 2] {
        let known = mesh.network.wait("an ldk-node that knows all three channels", async || {
            let graph = ldk(&mesh, node).graph().await?;
            Ok(if graph.channels == 3 { Ok(()) } else { Err(format!("{graph:?}")) })
        });
        known.await.unwrap();
    }
    for node in [1, 2] {
        let channel_id = hex::encode(mesh.channel_id(1));
        ldk(&mesh, node).set_policy(&channel_id, Some(1_001), None, None).await.unwrap();
    }
    mesh.wait_for_graphs().await.unwrap();
    check_both_ways(&mesh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_learns_the_whole_graph_from_ldk_alone() {
    let plan = Plan::nodes(4).with_channels(&[(0, 1), (1, 2)]).with_kind(&[1], Kind::Ldk);
    let mesh = Mesh::start(plan).await.unwrap();
    for node in 0..3 {
        mesh.wait_for_graph(node).await.unwrap();
    }
    mesh.connect(3, 1).await.unwrap();
    mesh.wait_for_graph(3).await.unwrap();
}
