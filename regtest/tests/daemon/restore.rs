//! The 24 words bring the coins back, also those that were there before the new folder.

use bitcoin::Amount;
use millrace_regtest::programs::Programs;
use millrace_rpc::v1::{BalanceRequest, GetInfoRequest};
use tokio::task::block_in_place;

use super::process::run;
use super::support::{ALICE, network};

const FUNDED_SAT: u64 = 1_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn words_in_an_empty_folder_find_the_coins_of_before() {
    let mut network = network(&["alice", "again"]);
    network.nodes[ALICE].start().await.unwrap();
    for _ in 0..3 {
        network.fund(ALICE, Amount::from_sat(FUNDED_SAT)).await.unwrap();
    }
    network.mine(7).await.unwrap();
    let before = network.balance(ALICE).await.unwrap();
    assert_eq!(before.confirmed_sat, 3 * FUNDED_SAT);
    let node_id = network.nodes[ALICE].node_id().to_vec();
    network.nodes[ALICE].stop().await.unwrap();

    let folder = network.nodes[1].data_dir().to_str().unwrap().to_owned();
    let words = network.nodes[ALICE].data_dir().join("seed");
    let arguments = ["--network", "regtest", "--data-dir", &folder, "--restore-seed-file", words.to_str().unwrap()];
    let restored = run(&Programs::find().unwrap().millraced, &arguments).await;
    assert_eq!(restored.code, Some(0), "{}", restored.err);
    assert!(restored.out.contains("in every block from 1 on"), "{}", restored.out);
    network.nodes[1].start().await.unwrap();
    let info = network.nodes[1].client().unwrap().node.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, node_id);
    assert_eq!(u64::from(info.tip_height), u64::from(block_in_place(|| network.bitcoind.height()).unwrap()));
    let after = network.nodes[1].client().unwrap().wallet.balance(BalanceRequest {}).await.unwrap().into_inner();
    assert_eq!(after, before);
    // It goes on from there after another start, and follows the chain.
    network.nodes[1].stop().await.unwrap();
    network.nodes[1].start().await.unwrap();
    network.fund(1, Amount::from_sat(FUNDED_SAT)).await.unwrap();
    assert_eq!(network.balance(1).await.unwrap().confirmed_sat, 4 * FUNDED_SAT);
    network.nodes[1].stop().await.unwrap();
}
