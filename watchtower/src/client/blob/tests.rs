//! Blobs from a client to a tower, over a socket.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bitcoin::Txid;
use bitcoin::hashes::Hash;
use tokio::time::timeout;

use super::super::site::{LIMIT, Site, by_hand, key};
use super::*;
use crate::message::{About, Message, Reason};
use crate::sealed::{SEALED_BYTES, hint_of};

const GROUP: Group = Group([7; 16]);

fn blob(number: u64) -> Sealed {
    Sealed { hint: hint_of(&Txid::hash(&number.to_be_bytes())), bytes: vec![number as u8; SEALED_BYTES] }
}

fn config(site: &Site) -> BlobConfig {
    let Config { tower, address, key, chain_hash, .. } = site.config(key(9));
    BlobConfig::new(tower, address, key, chain_hash)
}

async fn until(
    progress: &mut watch::Receiver<BlobProgress>,
    what: &str,
    is_so: impl FnMut(&BlobProgress) -> bool,
) -> BlobProgress {
    let found = timeout(LIMIT, progress.wait_for(is_so)).await.map(|found| found.unwrap().clone());
    found.unwrap_or_else(|_| panic!("not in time: {what}; {:?}", progress.borrow()))
}

/// As a node does it; each group's blobs are others: from what is wanted on, until the client is full; and again when the progress changes.
async fn hand_over_all(client: &BlobClient, progress: &mut watch::Receiver<BlobProgress>, group: Group, count: u64) {
    loop {
        let wanted = progress.borrow_and_update().wanted;
        for sequence in wanted..count {
            match client.hand_over(group, sequence, blob(sequence + 1_000 * u64::from(group.0[0]))) {
                Ok(()) => {}
                Err(HandOverError::Full { .. } | HandOverError::OutOfOrder { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        if progress.borrow().acknowledged == count {
            return;
        }
        timeout(LIMIT, progress.changed()).await.expect("news in time").unwrap();
    }
}

async fn held(site: &Site, group: Group) -> u64 {
    let client = key(9).public_key(secp256k1::SECP256K1);
    let found = site.desk.ask(move |keeper| keeper.tower().vault().held(&client, group));
    found.await.unwrap().map_or(0, |held| held.next)
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_acknowledged_with_a_receipt_that_outlives_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    site.allow_blobs(&key(9), 10_000).await;
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(GROUP, 0, 0);
    hand_over_all(&client, &mut progress, GROUP, 5).await;
    let receipt = progress.borrow().receipt.unwrap();
    assert!(receipt.is_by(&client.tower()) && (receipt.group, receipt.next) == (GROUP, 5));
    // The tower is killed and comes back; it gets what it has missed, and nothing twice.
    let address = site.stop().await;
    for sequence in 5..300 {
        client.hand_over(GROUP, sequence, blob(sequence + 7_000)).unwrap();
    }
    assert_eq!(progress.borrow().lag(), 295);
    let site = Site::start(folder.path(), &address).await;
    until(&mut progress, "all", |progress| progress.acknowledged == 300).await;
    // Some may have been on their way when the tower went.
    let sent = client.sent();
    assert_eq!(held(&site, GROUP).await, 300);
    assert!(sent.updates <= 300 && sent.messages >= 300 && sent.payload_bytes == sent.messages * 468, "{sent:?}");
    // A new client that knows less than the tower, but that there are so many: nothing is told.
    drop(client);
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(GROUP, 4, 300);
    let told = until(&mut progress, "what it had", |progress| progress.acknowledged == 300).await;
    assert_eq!((told.wanted, told.is_tower_ahead, client.sent().messages), (300, false, 0));
    // The tower has said so, and signs for it, too.
    let told = until(&mut progress, "a receipt", |progress| progress.receipt.is_some()).await;
    assert_eq!(told.receipt.unwrap().next, 300);
    hand_over_all(&client, &mut progress, GROUP, 301).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_groups_go_through_a_small_window_without_waiting_for_each_other() {
    const GROUPS: u8 = 20;
    const EACH: u64 = 100;
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    site.allow_blobs(&key(9), 10_000).await;
    let client = BlobClient::start(BlobConfig { waiting_max: 64, ..config(&site) });
    let mut tasks = tokio::task::JoinSet::new();
    for group in 0..GROUPS {
        let client = client.clone();
        tasks.spawn(async move {
            let group = Group([group; 16]);
            let mut progress = client.register(group, 0, EACH);
            hand_over_all(&client, &mut progress, group, EACH).await;
        });
    }
    tasks.join_all().await;
    for group in 0..GROUPS {
        assert_eq!(held(&site, Group([group; 16])).await, EACH);
    }
    assert_eq!(client.sent().updates, u64::from(GROUPS) * EACH);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handing_over_never_waits_and_takes_a_bounded_room_while_the_tower_is_silent() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let tower = key(5).public_key(secp256k1::SECP256K1);
    let config = BlobConfig::new(tower, address, key(9), super::super::site::chain_hash());
    let client = BlobClient::start(BlobConfig { lag_max: 100, waiting_max: 80, ..config });
    let progress = client.register(GROUP, 0, 0);
    for sequence in 0..80 {
        client.hand_over(GROUP, sequence, blob(sequence)).unwrap();
    }
    assert_eq!(client.hand_over(GROUP, 80, blob(80)), Err(HandOverError::Full { max: 80 }));
    let other = Group([8; 16]);
    assert_eq!(client.hand_over(other, 0, blob(0)), Err(HandOverError::Unknown(other)));
    client.register(other, 0, 0);
    assert_eq!(client.hand_over(other, 0, blob(0)), Err(HandOverError::Full { max: 80 }));
    // What found no room counts all the same.
    assert!(client.may_add(GROUP));
    assert_eq!(client.hand_over(GROUP, 99, blob(99)), Err(HandOverError::OutOfOrder { wanted: 80 }));
    assert!(client.may_add(GROUP));
    client.register(GROUP, 0, 101);
    assert!(!client.may_add(GROUP));
    assert_eq!((progress.borrow().wanted, progress.borrow().lag()), (80, 101));
    assert!(client.may_add(Group([9; 16])), "a group that is not registered is no matter of the tower's");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_before_it_is_on_disk() {
    let (site, log) = Site::in_memory().await;
    site.allow_blobs(&key(9), 10).await;
    log.flush();
    let mut other = by_hand(&site, 9).await;
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(GROUP, 0, 0);
    client.hand_over(GROUP, 0, blob(0)).unwrap();
    let log_of = Arc::clone(&log);
    let pending = async {
        while log_of.pending() != 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, pending).await.expect("the group and its blob are submitted");
    // The tower has it, and its pong to another connection has overtaken the answer twice.
    for _ in 0..2 {
        other.writer.send(&Message::Ping).await.unwrap();
        assert_eq!(other.reader.next().await.unwrap(), Message::Pong);
    }
    assert_eq!((held(&site, GROUP).await, progress.borrow().acknowledged), (1, 0));
    log.flush();
    until(&mut progress, "one", |progress| progress.acknowledged == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_and_a_full_disk_are_shown_and_delay_nobody() {
    let (site, log) = Site::in_memory().await;
    site.allow_blobs(&key(9), 2).await;
    log.flush();
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(GROUP, 0, 0);
    for sequence in 0..10 {
        client.hand_over(GROUP, sequence, blob(sequence)).unwrap();
    }
    let flushing = Arc::clone(&log);
    let is_told = |progress: &BlobProgress| {
        flushing.flush();
        progress.refused.is_some()
    };
    let refused = loop {
        if let Ok(found) = timeout(Duration::from_millis(20), progress.wait_for(is_told)).await {
            break found.unwrap().clone();
        }
        log.flush();
    };
    assert!(refused.refused.as_ref().unwrap().contains("as many as it may"), "{refused:?}");
    assert_eq!((refused.acknowledged, refused.wanted), (2, 10));
    let other = Group([8; 16]);
    let mut progress = client.register(other, 0, 0);
    log.fill();
    client.hand_over(other, 0, blob(100)).unwrap();
    let refused = until(&mut progress, "a refusal", |progress| progress.refused.is_some()).await;
    assert!(refused.refused.unwrap().contains("full"));
    assert_eq!(client.link().borrow().clone(), Link::Up);
}

#[tokio::test(flavor = "multi_thread")]
async fn tower_that_has_lost_blobs_gets_them_again_and_is_found_out() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let site = Site::start(one.path(), "127.0.0.1:0").await;
    site.allow_blobs(&key(9), 100).await;
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(GROUP, 0, 0);
    hand_over_all(&client, &mut progress, GROUP, 5).await;
    let address = site.stop().await;
    // Another disk, with the same key.
    let site = Site::start(other.path(), &address).await;
    site.allow_blobs(&key(9), 100).await;
    let told = until(&mut progress, "the loss", |progress| progress.is_tower_behind).await;
    assert_eq!((told.wanted, told.acknowledged, told.lag()), (0, 0, 5));
    assert_eq!(told.receipt.unwrap().next, 5);
    // This caller has copies. What the tower had once signed for is not forgotten before it has all that again.
    hand_over_all(&client, &mut progress, GROUP, 3).await;
    let told = progress.borrow().clone();
    assert_eq!((told.acknowledged, told.is_tower_behind, told.receipt.unwrap().next), (3, true, 5));
    hand_over_all(&client, &mut progress, GROUP, 6).await;
    let told = progress.borrow().clone();
    assert_eq!((told.is_tower_behind, told.receipt.unwrap().next, held(&site, GROUP).await), (false, 6, 6));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tower_that_has_more_than_the_caller_knows_of_says_that_his_data_is_old() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    site.allow_blobs(&key(9), 100).await;
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(GROUP, 0, 0);
    hand_over_all(&client, &mut progress, GROUP, 5).await;
    drop(client);
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(GROUP, 2, 2);
    until(&mut progress, "old data", |progress| progress.is_tower_ahead).await;
    assert_eq!(client.hand_over(GROUP, 2, blob(77)), Err(HandOverError::TowerAhead { next: 5 }));
    assert_eq!(client.strangers(), []);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_channels_alone_is_told_how_its_blobs_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::fresh(folder.path()).await;
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(GROUP, 0, 0);
    client.hand_over(GROUP, 0, blob(0)).unwrap();
    let refused = until(&mut progress, "a refusal", |progress| progress.refused.is_some()).await;
    assert!(refused.refused.unwrap().contains("--blobs N"));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_let_go_and_forgotten_ones_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    site.allow_blobs(&key(9), 10).await;
    let client = BlobClient::start(config(&site));
    let (first, second) = (Group([1; 16]), Group([2; 16]));
    for group in [first, second] {
        let mut progress = client.register(group, 0, 0);
        hand_over_all(&client, &mut progress, group, 5).await;
    }
    drop(client);
    let client = BlobClient::start(config(&site));
    let mut progress = client.register(second, 5, 5);
    until(&mut progress, "the account", |progress| progress.acknowledged == 5).await;
    timeout(LIMIT, client.link().wait_for(|link| *link == Link::Up)).await.unwrap().unwrap();
    assert_eq!(client.strangers(), [first]);
    // One that the tower has never heard of, too.
    client.register(first, 5, 5);
    client.register(GROUP, 0, 0);
    for group in [first, GROUP] {
        client.release(group);
    }
    let gone = async {
        while client.all_progress().len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, gone).await.expect("let go in time");
    assert_eq!((held(&site, first).await, held(&site, second).await), (0, 5));
    assert_eq!(client.strangers(), []);
    // There is room again.
    hand_over_all(&client, &mut progress, second, 10).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_about_blobs_name_the_reason_and_what_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    site.allow_blobs(&key(9), 1).await;
    let mut connection = by_hand(&site, 9).await;
    let mut ask = async |message: Message| {
        connection.writer.send(&message).await.unwrap();
        connection.reader.next().await.unwrap()
    };
    let told = |sequence, number| Message::Blob { group: GROUP, sequence, sealed: blob(number) };
    let reason = |answer: Message| {
        let Message::Refused { about: About::Group(GROUP), reason, next, .. } = answer else { panic!("{answer:?}") };
        (reason, next.0)
    };
    assert_eq!(reason(ask(told(1, 1)).await), (Reason::Gap, 0));
    let first = ask(told(0, 0)).await;
    let Message::BlobAck { next: 1, .. } = first else { panic!("{first:?}") };
    // The same again: the same receipt.
    assert_eq!(ask(told(0, 0)).await, first);
    assert_eq!(ask(Message::AskReceipt(GROUP)).await, first);
    assert_eq!(reason(ask(told(0, 5)).await).0, Reason::BadBlob);
    assert_eq!(reason(ask(told(5, 5)).await), (Reason::Gap, 1));
    assert_eq!(reason(ask(told(1, 1)).await).0, Reason::TooMany);
    let Message::Groups { is_last: true, blobs_max: 1, held } = ask(Message::ListGroups).await else { panic!() };
    assert_eq!(held.iter().map(|held| (held.group, held.next)).collect::<Vec<_>>(), [(GROUP, 1)]);
    assert_eq!(ask(Message::Release(GROUP)).await, Message::Released(GROUP));
    assert_eq!(reason(ask(Message::Release(GROUP)).await).0, Reason::UnknownGroup);
    assert_eq!(reason(ask(Message::AskReceipt(GROUP)).await).0, Reason::UnknownGroup);
    // A long answer is given once.
    let Message::Error(text) = ask(Message::ListGroups).await else { panic!() };
    assert!(text.contains("not for a tower"), "{text}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_groups_than_one_message_holds_are_told_in_pages() {
    const GROUPS: u32 = 2_001;
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    site.allow_blobs(&key(9), GROUPS).await;
    let group = |number: u32| {
        let mut name = [0; 16];
        name[..4].copy_from_slice(&number.to_be_bytes());
        Group(name)
    };
    let client = BlobClient::start(config(&site));
    for number in 0..GROUPS {
        client.register(group(number), 0, 0);
        client.hand_over(group(number), 0, blob(u64::from(number))).unwrap();
    }
    for number in 0..GROUPS {
        until(&mut client.progress(group(number)).unwrap(), "one", |progress| progress.acknowledged == 1).await;
    }
    drop(client);
    let client = BlobClient::start(config(&site));
    timeout(LIMIT, client.link().wait_for(|link| *link == Link::Up)).await.unwrap().unwrap();
    assert_eq!(client.strangers().len(), GROUPS as usize);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipt_for_blobs_that_another_key_has_signed_or_that_were_never_told_is_none() {
    for (signer, next) in [(6, 1), (5, 2)] {
        let receipt = BlobReceipt::sign(&key(signer), GROUP, next, 8);
        let account = Message::Groups { is_last: true, blobs_max: 9, held: Vec::new() };
        let ack = Message::BlobAck { group: GROUP, next, time_s: 8, signature: receipt.signature };
        let address = super::super::site::saying(vec![account, ack]).await;
        let tower = key(5).public_key(secp256k1::SECP256K1);
        let client = BlobClient::start(BlobConfig::new(tower, address, key(9), super::super::site::chain_hash()));
        let progress = client.register(GROUP, 0, 0);
        client.hand_over(GROUP, 0, blob(0)).unwrap();
        let mut link = client.link();
        let is_said = |link: &Link| matches!(link, Link::Down(why) if why.contains("a receipt"));
        timeout(LIMIT, link.wait_for(is_said)).await.expect("found out in time").unwrap();
        assert_eq!((progress.borrow().acknowledged, progress.borrow().receipt), (0, None));
    }
}
