//! Peers' questions (BOLT 7, "Query Messages"), answered.

use super::*;

pub(super) fn range(first_block: u32, number_of_blocks: u32) -> Message {
    let first_block = BlockHeight(first_block);
    let chain_hash = ChainHash::REGTEST;
    Message::QueryChannelRange(QueryChannelRange { chain_hash, first_block, number_of_blocks, query_options: Some(3) })
}

/// What it is answered, up to the last reply.
async fn ask(wild: &mut Wild, question: &Message) -> Vec<Message> {
    wild.say(question).await;
    let mut heard = Vec::new();
    loop {
        let message = wild.hear().await.expect("connected");
        match &message {
            Message::ReplyChannelRange(reply) if reply.sync_complete || reply.chain_hash != ChainHash::REGTEST => {
                heard.push(message);
                return heard;
            }
            Message::ReplyShortChannelIdsEnd(_) => {
                heard.push(message);
                return heard;
            }
            Message::ReplyChannelRange(_) => heard.push(message),
            other if is_announcement(other) => heard.push(message),
            _ => {}
        }
    }
}

fn ids_of(replies: &[Message]) -> Vec<ShortChannelId> {
    let ids = replies.iter().filter_map(|reply| match reply {
        Message::ReplyChannelRange(reply) => Some(reply.short_channel_ids.clone()),
        _ => None,
    });
    ids.flatten().collect()
}

fn query(ids: Vec<ShortChannelId>) -> Message {
    let chain_hash = ChainHash::REGTEST;
    Message::QueryShortChannelIds(QueryShortChannelIds { chain_hash, short_channel_ids: ids, query_flags: None })
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_in_full_whatever_they_ask() {
    let (node, chain, _dir) = node().await;
    let channels = fund(&chain, &[(1, 2), (3, 4)]);
    let mut wild = Wild::connect(&node, key(5)).await;
    let when = now() - 5;
    for channel in &channels {
        say_all(&mut wild, &channel.all(when)).await;
    }
    node.wait_for_graph("both", 2, 4).await;
    node.wait_for_nodes(&[1, 2, 3, 4]).await;
    let both: Vec<_> = channels.iter().map(|channel| channel.id).collect();
    let height = both[0].parts().0;
    for (first, blocks, expected) in [
        (0, u32::MAX, 2),
        (height, 1, 2),
        (height + 1, 10, 0),
        (0, 0, 0),
        (u32::MAX, u32::MAX, 0),
        (height, u32::MAX, 2),
        (u32::MAX, 0, 0),
    ] {
        let replies = ask(&mut wild, &range(first, blocks)).await;
        assert_eq!(ids_of(&replies).len(), expected, "{first} {blocks}");
    }
    let answers = ask(&mut wild, &query(vec![both[1], ShortChannelId(7)])).await;
    let mut told: Vec<Vec<u8>> = answers.iter().filter(|message| is_announcement(message)).map(bytes).collect();
    let mut said: Vec<Vec<u8>> = channels[1].all(when).iter().map(bytes).collect();
    told.sort();
    said.sort();
    assert_eq!(told, said);
    // The encoding that BOLT 7 has given up could unpack to anything: refused in words, and nothing else happens.
    let mut compressed = bytes(&query(vec![both[0]]));
    let encoding_at = 2 + 32 + 2;
    assert_eq!(compressed[encoding_at], 0);
    compressed[encoding_at] = 1;
    wild.say_bytes(&compressed).await;
    let heard = wild.hear_until_pong().await;
    assert!(heard.iter().any(|message| matches!(message, Message::Warning(_))), "{heard:?}");
    let elsewhere = QueryChannelRange {
        chain_hash: ChainHash::BITCOIN,
        first_block: BlockHeight(0),
        number_of_blocks: 10,
        query_options: None,
    };
    let replies = ask(&mut wild, &Message::QueryChannelRange(elsewhere)).await;
    assert!(matches!(&replies[..], [Message::ReplyChannelRange(reply)] if !reply.sync_complete));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spam_of_questions_is_answered_in_turn_and_holds_up_nobody() {
    let (node, chain, _dir) = node().await;
    let channel = fund(&chain, &[(1, 2)])[0];
    let mut wild = Wild::connect(&node, key(5)).await;
    say_all(&mut wild, &channel.all(now())).await;
    node.wait_for_graph("it", 1, 2).await;
    // Each of 64 kB, and together some 1.5 GB of answers. Nothing is read meanwhile.
    let question = query(vec![channel.id; 8_000]);
    for _ in 0..200 {
        wild.say(&question).await;
    }
    // Another peer is answered at once.
    let mut other = Wild::connect(&node, key(6)).await;
    let asked = Instant::now();
    ask(&mut other, &range(0, u32::MAX)).await;
    other.hear_until_pong().await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    drop(wild);
    let gone = key(5).public_key(SECP256K1);
    eventually("it is gone", || (!node.node.peers().is_connected(&gone)).then_some(())).await;
}
