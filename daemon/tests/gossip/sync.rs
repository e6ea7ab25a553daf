//! The node's own questions, and how peers may answer.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn endless_replies_end_the_question_and_nothing_else() {
    let (node, chain, _dir) = node().await;
    let channel = fund(&chain, &[(1, 2)])[0];
    let mut wild = Wild::connect(&node, key(5)).await;
    asked_range(&mut wild).await;
    wild.say(&reply(0, 100, vec![])).await;
    for _ in 0..2_000 {
        wild.say(&reply(0, 100, vec![ShortChannelId::new(5, 0, 0).unwrap()])).await;
    }
    let started = Instant::now();
    let mut heard = wild.hear_until_pong().await;
    while !heard.iter().any(|message| matches!(message, Message::Warning(_))) {
        assert!(started.elapsed() < PATIENCE, "{heard:?}");
        heard.extend(wild.hear_until_pong().await);
    }
    assert!(node.graph().info().await.syncing.is_empty());
    // The next peer is asked, and from it the graph comes.
    let mut honest = Wild::connect(&node, key(6)).await;
    asked_range(&mut honest).await;
    assert_eq!(node.graph().info().await.syncing, [key(6).public_key(SECP256K1)]);
    tell_graph(&mut honest, &channel).await;
    node.wait_for_graph("from the honest one", 1, 2).await;
    let started = Instant::now();
    while node.graph().info().await.synced_ms.is_none() {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What it is asked for as news: from when on. It is asked for nothing else before but what the test has taken.
async fn asked_since(wild: &mut Wild) -> u32 {
    match wild.hear().await.expect("connected") {
        Message::GossipTimestampFilter(filter) => filter.first_timestamp,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_tells_no_times_is_asked_for_all_of_two_weeks_at_once() {
    let (node, chain, _dir) = node().await;
    let channel = fund(&chain, &[(1, 2)])[0];
    // LDK heeds the first filter alone: it must not come before it is known what to ask for.
    let mut ldk = Wild::connect(&node, key(5)).await;
    assert!(matches!(ldk.hear().await, Some(Message::QueryChannelRange(_))));
    ldk.say(&reply(0, u32::MAX, vec![channel.id])).await;
    let since = asked_since(&mut ldk).await;
    assert!(since <= now() - 13 * 24 * 3_600, "{since} at {}", now());
    // It answers no question for single channels, and says everything now.
    for message in channel.all(now()) {
        ldk.say(&message).await;
    }
    node.wait_for_graph("by the filter", 1, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_tells_times_or_nothing_is_asked_for_the_last_hour() {
    let (node, _chain, _dir) = node().await;
    let mut wild = Wild::connect(&node, key(5)).await;
    assert!(matches!(wild.hear().await, Some(Message::QueryChannelRange(_))));
    wild.say(&reply(0, u32::MAX, vec![])).await;
    let since = asked_since(&mut wild).await;
    // What LDK says is dated by the last block.
    assert!(since <= now() - 3_000 && since >= now() - 2 * 3_600, "{since} at {}", now());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_keeps_no_other_from_telling_what_is_new() {
    let (node, _chain, _dir) = node().await;
    let mut silent = Wild::connect(&node, key(5)).await;
    asked_range(&mut silent).await;
    let mut next = Wild::connect(&node, key(6)).await;
    asked_since(&mut next).await;
}
