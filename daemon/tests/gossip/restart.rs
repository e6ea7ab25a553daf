//! The graph over restarts and kills.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_is_there_after_a_restart_without_any_peer() {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let channels = fund(&chain, &[(1, 2), (3, 4)]);
    let node = start_in(1, &chain, &dir).await;
    let mut wild = Wild::connect(&node, key(5)).await;
    for channel in &channels {
        say_all(&mut wild, &channel.all(now())).await;
    }
    node.wait_for_graph("both", 2, 4).await;
    node.wait_for_nodes(&[1, 2, 3, 4]).await;
    let stop = |node: TestNode| async move { node.node.stop().await };
    stop(node).await;
    let saved = std::fs::read(dir.path().join("graph")).unwrap();
    let again = start_in(1, &chain, &dir).await;
    assert_eq!(again.network.map().edge_count(), 4, "from the first moment on");
    again.wait_for_graph("both", 2, 4).await;
    let mut wild = Wild::connect(&again, key(6)).await;
    wild.say(&filter(0)).await;
    hear_announcements(&mut wild, 10).await;
    stop(again).await;
    // Spent while nobody looked: not even the blocks are seen, since the file is older than the journal's cursor.
    chain.submit(spending(
        channels[0].outpoint,
        vec![TxOut { value: Amount::ONE_SAT, script_pubkey: ScriptBuf::new() }],
    ));
    chain.mine(1);
    let node = start_in(1, &chain, &dir).await;
    eventually("it is noticed", || (node.network.map().edge_count() == 2).then_some(())).await;
    stop(node).await;
    std::fs::write(dir.path().join("graph"), &saved).unwrap();
    let node = start_in(1, &chain, &dir).await;
    eventually("it is noticed anew", || (node.network.map().edge_count() == 2).then_some(())).await;
    stop(node).await;
    // A damaged file is no reason not to start.
    let mut damaged = saved.clone();
    for place in [0, 12, 20, saved.len() / 2, saved.len() - 40, saved.len() - 1] {
        damaged[place] ^= 1;
        std::fs::write(dir.path().join("graph"), &damaged).unwrap();
        let node = start_in(1, &chain, &dir).await;
        node.wait_for_graph("begun anew", 0, 0).await;
        stop(node).await;
        damaged[place] ^= 1;
    }
}

/// Spent while the journal had seen the blocks and the graph's file had not: as after a crash before it was saved.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_was_spent_unseen_leaves_72_blocks_after_that_is_noticed() {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let channels = fund(&chain, &[(1, 2), (3, 4)]);
    let node = start_in(1, &chain, &dir).await;
    let mut wild = Wild::connect(&node, key(5)).await;
    for channel in &channels {
        say_all(&mut wild, &channel.all(now())).await;
    }
    node.wait_for_graph("both", 2, 4).await;
    node.node.stop().await;
    let file = dir.path().join("graph");
    let saved = std::fs::read(&file).unwrap();
    let spend = |channel: &Announced| {
        let output = TxOut { value: Amount::ONE_SAT, script_pubkey: ScriptBuf::new() };
        chain.submit(spending(channel.outpoint, vec![output]));
    };
    spend(&channels[0]);
    chain.mine(100);
    let node = start_in(1, &chain, &dir).await;
    node.wait_for_graph("it was seen, and has left", 1, 2).await;
    node.node.stop().await;
    std::fs::write(&file, &saved).unwrap();
    let node = start_in(1, &chain, &dir).await;
    eventually("it is noticed", || (node.network.map().edge_count() == 2).then_some(())).await;
    let spent_at = node.graph().channel(channels[0].id).await.unwrap().spent_at;
    assert_eq!(spent_at, Some(BlockHeight(chain.height())));
    chain.mine(70);
    spend(&channels[1]);
    chain.mine(1);
    eventually("71 blocks are seen", || (node.network.map().edge_count() == 0).then_some(())).await;
    assert!(node.has(channels[0].id).await);
    chain.mine(1);
    node.wait_for_graph("72 blocks", 1, 2).await;
    assert!(node.has(channels[1].id).await);
}

/// Starts anew, and again, on copies of the file that a running node has in its folder, until one shows the channel: as if the
/// node had been killed then.
async fn wait_for_file(dir: &tempfile::TempDir, chain: &FakeChain) {
    let started = Instant::now();
    loop {
        let copied = tempfile::tempdir().unwrap();
        let is_there = std::fs::copy(dir.path().join("graph"), copied.path().join("graph")).is_ok();
        if is_there {
            let again = start_in(1, chain, &copied).await;
            let edges = again.network.map().edge_count();
            again.node.stop().await;
            if edges == 2 {
                return;
            }
        }
        assert!(started.elapsed() < PATIENCE, "the file has not come: {is_there}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_has_what_was_saved_a_while_ago() {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let channel = fund(&chain, &[(1, 2)])[0];
    let mut setup = setup(1, &dir);
    setup.gossip.as_mut().unwrap().save_every = Duration::from_millis(20);
    let node = start(&setup, &chain, &dir.path().join("journal")).await;
    let mut wild = Wild::connect(&node, key(5)).await;
    say_all(&mut wild, &channel.all(now())).await;
    wait_for_file(&dir, &chain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_has_what_a_sync_has_brought() {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let channel = fund(&chain, &[(1, 2)])[0];
    let mut setup = setup(1, &dir);
    setup.gossip.as_mut().unwrap().save_every = Duration::from_secs(3600);
    let node = start(&setup, &chain, &dir.path().join("journal")).await;
    let mut wild = Wild::connect(&node, key(5)).await;
    asked_range(&mut wild).await;
    tell_graph(&mut wild, &channel).await;
    wait_for_file(&dir, &chain).await;
}
