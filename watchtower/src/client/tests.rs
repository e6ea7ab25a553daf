//! A client and a tower over a real socket, with a real journal.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use millrace_channel::terms::CommitmentFormat;
use secp256k1::SECP256K1;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::site::{LIMIT, Site, by_hand, chain_hash, key, saying};
use super::*;
use crate::message::Message;
use crate::samples::{Sample, preimage};

async fn until(progress: &mut watch::Receiver<Progress>, what: &str, is_so: impl FnMut(&Progress) -> bool) -> Progress {
    let found = timeout(LIMIT, progress.wait_for(is_so)).await.map(|found| found.unwrap().clone());
    found.unwrap_or_else(|_| panic!("not in time: {what}; {:?}", progress.borrow()))
}

async fn up(client: &Client) {
    timeout(LIMIT, client.link().wait_for(|link| *link == Link::Up)).await.expect("a connection in time").unwrap();
}

fn note(client: &Client, sample: &Sample, numbers: std::ops::Range<u64>) {
    let id = sample.registration().channel_id();
    for number in numbers {
        client.note_revoked(id, CommitmentNumber(number), sample.secret(number)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_acknowledged_with_a_receipt_that_outlives_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::fresh(folder.path()).await;
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (client, _events) = Client::start(site.config(key(9)));
    let id = client.register(sample.registration(), RevealedSecrets::new());
    let mut progress = client.progress(id).unwrap();
    note(&client, &sample, 0..5);
    let told = until(&mut progress, "five", |progress| progress.acknowledged == 5).await;
    let receipt = told.receipt.unwrap();
    assert!(receipt.is_by(&client.tower()) && receipt.next == CommitmentNumber(5));
    assert_eq!(site.next(&sample).await, Some(5));
    // The tower is killed and comes back; the client tells it what it has missed.
    let address = site.stop().await;
    note(&client, &sample, 5..300);
    assert_eq!(progress.borrow().lag(), 295);
    let site = Site::start(folder.path(), &address).await;
    until(&mut progress, "all", |progress| progress.acknowledged == 300).await;
    assert_eq!(site.next(&sample).await, Some(300));
    // The client is new, and knows no more than its channels do: nothing is told twice.
    drop(client);
    let mut secrets = RevealedSecrets::new();
    (0..300).for_each(|n| secrets.insert(CommitmentNumber(n), sample.secret(n)).unwrap());
    let (client, _events) = Client::start(site.config(key(9)));
    let id = client.register(sample.registration(), secrets);
    let mut progress = client.progress(id).unwrap();
    until(&mut progress, "what it had", |progress| progress.acknowledged == 300).await;
    assert_eq!(client.sent().messages, 0);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn update_costs_42_bytes_and_in_batches_of_1024_less_than_one() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::fresh(folder.path()).await;
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let config = Config { linger: Duration::from_secs(3600), batch_max: 1_024, ..site.config(key(9)) };
    let (client, _events) = Client::start(config);
    let id = client.register(sample.registration(), RevealedSecrets::new());
    let mut progress = client.progress(id).unwrap();
    for batch in 0..4 {
        note(&client, &sample, batch * 1_024..(batch + 1) * 1_024);
        until(&mut progress, "a batch", |progress| progress.acknowledged == (batch + 1) * 1_024).await;
    }
    let sent = client.sent();
    assert_eq!((sent.updates, sent.messages), (4_096, 4));
    assert!(sent.payload_bytes <= 4_096, "{sent:?}");
    let (client, _events) = Client::start(site.config(key(9)));
    let mut secrets = RevealedSecrets::new();
    (0..4_096).for_each(|n| secrets.insert(CommitmentNumber(n), sample.secret(n)).unwrap());
    client.register(sample.registration(), secrets);
    let mut progress = client.progress(id).unwrap();
    for number in 4_096..4_106 {
        note(&client, &sample, number..number + 1);
        until(&mut progress, "one", |progress| progress.acknowledged == number + 1).await;
    }
    assert_eq!(client.sent().payload_bytes, 420);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noting_never_waits_and_lag_is_bounded_while_the_tower_is_away_or_silent() {
    // Somebody who takes the call and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let config = Config { lag_max: 100, ..Config::new(key(5).public_key(SECP256K1), address, key(9), chain_hash()) };
    let (client, _events) = Client::start(config);
    let id = client.register(sample.registration(), RevealedSecrets::new());
    note(&client, &sample, 0..100);
    assert!(client.may_add(id));
    let begun = Instant::now();
    note(&client, &sample, 100..2_000);
    assert!(!client.may_add(id));
    assert_eq!(client.progress(id).unwrap().borrow().lag(), 2_000);
    assert!(begun.elapsed() < LIMIT / 4, "noting took {:?}", begun.elapsed());
    assert!(client.may_add(ChannelId([7; 32])), "a channel that is not watched is no matter of the tower's");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_before_it_is_on_disk() {
    let (site, log) = Site::in_memory().await;
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (client, _events) = Client::start(site.config(key(9)));
    let id = client.register(sample.registration(), RevealedSecrets::new());
    let mut progress = client.progress(id).unwrap();
    let log_of = Arc::clone(&log);
    let pending = async |count| {
        while log_of.pending() != count {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, pending(1)).await.expect("the registration is submitted");
    log.flush();
    let mut other = by_hand(&site, 9).await;
    note(&client, &sample, 0..1);
    timeout(LIMIT, pending(1)).await.expect("the secret is submitted");
    // The tower has it, and its pong has overtaken the answer twice; there is still no acknowledgement.
    assert_eq!(site.next(&sample).await, Some(1));
    for _ in 0..2 {
        other.writer.send(&Message::Ping).await.unwrap();
        assert_eq!(other.reader.next().await.unwrap(), Message::Pong);
    }
    assert_eq!(progress.borrow().acknowledged, 0);
    log.flush();
    until(&mut progress, "one", |progress| progress.acknowledged == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_tower_says_so_and_delays_nobody() {
    let (site, log) = Site::in_memory().await;
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (client, _events) = Client::start(Config { lag_max: 50, ..site.config(key(9)) });
    log.fill();
    let id = client.register(sample.registration(), RevealedSecrets::new());
    let mut progress = client.progress(id).unwrap();
    let told = until(&mut progress, "a refusal", |progress| progress.refused.is_some()).await;
    assert!(told.refused.unwrap().contains("full"));
    note(&client, &sample, 0..50);
    assert!(client.may_add(id));
    note(&client, &sample, 50..51);
    assert!(!client.may_add(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_client_is_told_how_to_be_let_in_and_other_chains_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    let said = |config: Config| async move {
        let (client, _events) = Client::start(config);
        let mut link = client.link();
        let is_said = |link: &Link| matches!(link, Link::Down(why) if why.contains("the tower says"));
        let found = timeout(LIMIT, link.wait_for(is_said)).await.unwrap().unwrap().clone();
        let Link::Down(why) = found else { panic!() };
        why
    };
    let why = said(site.config(key(8))).await;
    let public = key(8).public_key(SECP256K1).to_string();
    assert!(why.contains("millrace-tower allow") && why.contains(&public), "{why}");
    site.allow(&key(9), 10).await;
    let other_chain = Config { chain_hash: ChainHash::BITCOIN, ..site.config(key(9)) };
    assert!(said(other_chain).await.contains("another chain"));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_channels_are_refused_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    site.allow(&key(9), 1).await;
    let (client, _events) = Client::start(site.config(key(9)));
    let first = client.register(Sample::new(1, CommitmentFormat::Anchors).registration(), RevealedSecrets::new());
    let sample = Sample::new(2, CommitmentFormat::Anchors);
    up(&client).await;
    let mut progress = client.progress(first).unwrap();
    note(&client, &Sample::new(1, CommitmentFormat::Anchors), 0..1);
    until(&mut progress, "the first", |progress| progress.acknowledged == 1).await;
    let second = client.register(sample.registration(), RevealedSecrets::new());
    let mut progress = client.progress(second).unwrap();
    let told = until(&mut progress, "a refusal", |progress| progress.refused.is_some()).await;
    assert!(told.refused.unwrap().contains("as many as it may"));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preimages_and_ends_reach_the_client_until_it_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::fresh(folder.path()).await;
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (client, mut events) = Client::start(site.config(key(9)));
    let id = client.register(sample.registration(), RevealedSecrets::new());
    note(&client, &sample, 0..5);
    let mut progress = client.progress(id).unwrap();
    until(&mut progress, "five", |progress| progress.acknowledged == 5).await;
    // The last one is not revoked: it ends without a penalty, and shows a preimage.
    let commitment = sample.commitment(5, 2_000_000, 0, 1);
    site.mine(1, vec![commitment.tx.clone(), sample.htlc_txs(&commitment).remove(0)]).await;
    let expected = Event::Preimages { channel_id: id, preimages: vec![preimage(0)], count: 1 };
    assert_eq!(timeout(LIMIT, events.recv()).await.unwrap(), Some(expected.clone()));
    // It was not taken: the next connection brings it again.
    drop((client, events));
    let (client, mut events) = Client::start(site.config(key(9)));
    let mut secrets = RevealedSecrets::new();
    (0..5).for_each(|n| secrets.insert(CommitmentNumber(n), sample.secret(n)).unwrap());
    client.register(sample.registration(), secrets);
    assert_eq!(timeout(LIMIT, events.recv()).await.unwrap(), Some(expected));
    client.preimages_taken(id, 1);
    // Too early: it goes on watching, and may be asked again.
    client.forget(id);
    until(&mut client.progress(id).unwrap(), "it refuses", |progress| progress.refused.is_some()).await;
    // Nor does it forget for one that does not know the channel any more: that stays to be asked again.
    let (stranger, _strangers_events) = Client::start(site.config(key(9)));
    up(&stranger).await;
    stranger.forget(id);
    let other = Sample::new(77, CommitmentFormat::Anchors);
    let other_id = stranger.register(other.registration(), RevealedSecrets::new());
    note(&stranger, &other, 0..1);
    until(&mut stranger.progress(other_id).unwrap(), "what comes after", |progress| progress.acknowledged == 1).await;
    assert!(stranger.knows(id) && site.next(&sample).await.is_some());
    drop(stranger);
    for height in 2..=250 {
        site.mine(height, Vec::new()).await;
    }
    let ended = Event::Resolved { channel_id: id };
    while timeout(LIMIT, events.recv()).await.unwrap() != Some(ended.clone()) {}
    // The channel is over, and nothing of it is registered after a restart.
    drop((client, events));
    let (client, _events) = Client::start(site.config(key(9)));
    client.forget(id);
    assert!(client.knows(id));
    timeout(LIMIT, async {
        while site.next(&sample).await.is_some() || client.knows(id) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("forgotten in time");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tower_that_knows_more_than_its_client_says_that_the_clients_data_is_old() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::fresh(folder.path()).await;
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (client, _events) = Client::start(site.config(key(9)));
    let id = client.register(sample.registration(), RevealedSecrets::new());
    note(&client, &sample, 0..5);
    until(&mut client.progress(id).unwrap(), "five", |progress| progress.acknowledged == 5).await;
    drop(client);
    let (restored, _events) = Client::start(site.config(key(9)));
    let mut secrets = RevealedSecrets::new();
    (0..3).for_each(|n| secrets.insert(CommitmentNumber(n), sample.secret(n)).unwrap());
    restored.register(sample.registration(), secrets);
    let told = until(&mut restored.progress(id).unwrap(), "ahead", |progress| progress.is_tower_ahead).await;
    assert_eq!((told.lag(), told.noted), (0, 3));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_channels_catch_up_over_several_pages() {
    const CHANNELS: u32 = 1_100;
    let folder = tempfile::tempdir().unwrap();
    let site = Site::start(folder.path(), "127.0.0.1:0").await;
    site.allow(&key(9), CHANNELS).await;
    // One peer for all: only the funding outputs differ.
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (client, _events) = Client::start(site.config(key(9)));
    let registration = |number| {
        let mut terms = sample.terms.clone();
        terms.funding_outpoint.vout = number;
        Registration::of(&terms, &sample.local, crate::samples::wallet(7)).unwrap()
    };
    let mut secrets = RevealedSecrets::new();
    (0..7).for_each(|n| secrets.insert(CommitmentNumber(n), sample.secret(n)).unwrap());
    let ids: Vec<ChannelId> = (0..CHANNELS).map(|n| client.register(registration(n), secrets.clone())).collect();
    for id in &ids {
        until(&mut client.progress(*id).unwrap(), "all seven", |progress| progress.acknowledged == 7).await;
    }
    drop(client);
    let (client, _events) = Client::start(site.config(key(9)));
    (0..CHANNELS).for_each(|n| _ = client.register(registration(n), secrets.clone()));
    for id in &ids {
        until(&mut client.progress(*id).unwrap(), "what it had", |progress| progress.acknowledged == 7).await;
    }
    assert_eq!(client.sent().messages, 0);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_that_is_forgotten_before_the_tower_was_told_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::fresh(folder.path()).await;
    let (one, other) = (Sample::new(1, CommitmentFormat::Anchors), Sample::new(2, CommitmentFormat::Anchors));
    let config = site.config(key(9));
    let address = site.stop().await;
    let (client, _events) = Client::start(config);
    let id = client.register(one.registration(), RevealedSecrets::new());
    let kept = client.register(other.registration(), RevealedSecrets::new());
    client.forget(id);
    let site = Site::start(folder.path(), &address).await;
    note(&client, &other, 0..1);
    until(&mut client.progress(kept).unwrap(), "the other", |progress| progress.acknowledged == 1).await;
    assert!(client.progress(id).is_none());
    assert_eq!(site.next(&one).await, None);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_not_for_a_tower_end_the_connection_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::fresh(folder.path()).await;
    let mut connection = by_hand(&site, 9).await;
    connection.writer.send(&Message::Welcome { version: 1, channels_max: 7 }).await.unwrap();
    let Message::Error(text) = connection.reader.next().await.unwrap() else { panic!() };
    assert!(text.contains("not for a tower"), "{text}");
    assert!(timeout(LIMIT, connection.reader.next()).await.unwrap().is_err());
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_reason_and_what_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::fresh(folder.path()).await;
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let mut connection = by_hand(&site, 9).await;
    connection.writer.send(&Message::Register(Box::new(sample.registration()))).await.unwrap();
    let Message::Channel(held) = connection.reader.next().await.unwrap() else { panic!() };
    let handle = held.handle;
    let secret = crate::record::Secret(sample.secret(3));
    connection.writer.send(&Message::Update { handle, number: CommitmentNumber(3), secret }).await.unwrap();
    let Message::Refused { reason, next, .. } = connection.reader.next().await.unwrap() else { panic!() };
    assert_eq!((reason, next), (crate::message::Reason::Gap, CommitmentNumber(0)));
    let wrong = crate::record::Secret([0; 32]);
    connection.writer.send(&Message::Update { handle, number: CommitmentNumber(0), secret: wrong }).await.unwrap();
    let Message::Refused { reason, .. } = connection.reader.next().await.unwrap() else { panic!() };
    assert_eq!(reason, crate::message::Reason::BadSecret);
    connection.writer.send(&Message::Forget(crate::record::Handle(99))).await.unwrap();
    let Message::Refused { reason, .. } = connection.reader.next().await.unwrap() else { panic!() };
    assert_eq!(reason, crate::message::Reason::UnknownChannel);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipt_that_another_key_has_signed_is_none() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let funding_outpoint = sample.terms.funding_outpoint;
    let (handle, next) = (crate::record::Handle(3), CommitmentNumber(1));
    let held =
        crate::tower::Held { handle, funding_outpoint, next: CommitmentNumber(0), time_s: 0, is_resolved: false };
    let Receipt { signature, time_s, .. } = Receipt::sign(&key(6), funding_outpoint, next, 8);
    let account = Message::Channels { is_last: true, held: vec![held] };
    let address = saying(vec![account, Message::Ack { handle, next, time_s, signature }]).await;
    let (client, _events) = Client::start(Config::new(key(5).public_key(SECP256K1), address, key(9), chain_hash()));
    let id = client.register(sample.registration(), RevealedSecrets::new());
    note(&client, &sample, 0..1);
    let mut link = client.link();
    let is_said = |link: &Link| matches!(link, Link::Down(why) if why.contains("a receipt"));
    timeout(LIMIT, link.wait_for(is_said)).await.expect("found out in time").unwrap();
    let progress = client.progress(id).unwrap().borrow().clone();
    assert_eq!((progress.acknowledged, progress.receipt), (0, None));
}
