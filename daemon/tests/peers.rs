//! What peers may do to a node: garbage, floods, half messages, storms of connections.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use millrace_wire::message::OpenChannel;
use millrace_wire::noise::Initiator;
use millrace_wire::{
    ChainHash, ChannelId, ChannelReestablish, Features, FeeratePerKw, Message, Msat, Ping, PublicKey, Sat,
};
use millraced::channels::{ChannelSnapshot, ChannelState, OpenProgress};
use millraced::peer::{ConnectError, DisconnectError, HandshakeFailure};
use secp256k1::SECP256K1;
use support::wild::{Wild, good_init, init, key};
use support::{FakeChain, PATIENCE, Setup, TestNode, eventually, open_between, preimage, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn node() -> (TestNode, FakeChain, tempfile::TempDir) {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let node = start(&Setup::new(1), &chain, dir.path()).await;
    (node, chain, dir)
}

fn open_channel(n: u32) -> Message {
    let point = key(7).public_key(SECP256K1);
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    id[31] = 1;
    Message::from(OpenChannel {
        chain_hash: ChainHash::REGTEST,
        temporary_channel_id: ChannelId(id),
        funding: Sat(1_000_000),
        push: Msat(0),
        dust_limit: Sat(354),
        max_htlc_value_in_flight: Msat(1_000_000_000),
        channel_reserve: Sat(10_000),
        htlc_minimum: Msat(1),
        feerate: FeeratePerKw(1_250),
        to_self_delay: 720,
        max_accepted_htlcs: 483,
        funding_pubkey: point,
        revocation_basepoint: point,
        payment_basepoint: point,
        delayed_payment_basepoint: point,
        htlc_basepoint: point,
        first_per_commitment_point: point,
        channel_flags: 0,
        upfront_shutdown_script: None,
        channel_type: Some(Features::from_bits(&[12, 22])),
    })
}

fn reestablish(n: u32) -> Message {
    let mut id = [0xee; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    Message::ChannelReestablish(ChannelReestablish {
        channel_id: ChannelId(id),
        next_commitment_number: 1,
        next_revocation_number: 0,
        your_last_per_commitment_secret: [0; 32],
        my_current_per_commitment_point: key(7).public_key(SECP256K1),
    })
}

fn is_connected(node: &TestNode, peer: PublicKey) -> bool {
    node.node.peers().is_connected(&peer)
}

// --- before and around init ---

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_silence_before_the_handshake_harm_nobody() {
    let (node, _chain, _dir) = node().await;
    for length in [1, 49, 50, 51, 500] {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        socket.write_all(&vec![0xa5; length]).await.unwrap();
        if length >= 50 {
            let mut answer = Vec::new();
            let _reset = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the node hangs up");
            assert!(answer.is_empty(), "BOLT 8: a bad act is not answered");
        }
    }
    let mut half = TcpStream::connect(node.address).await.unwrap();
    let (_initiator, act_one) = Initiator::new(key(9), node.id(), key(10));
    half.write_all(&act_one[..30]).await.unwrap();
    Wild::connect(&node, key(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_half_open_handshakes_are_turned_away_and_time_out() {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let mut setup = Setup::new(1);
    setup.peers.max_handshakes = 4;
    setup.peers.handshake_timeout = Duration::from_secs(3);
    let node = start(&setup, &chain, dir.path()).await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(TcpStream::connect(node.address).await.unwrap());
    }
    for socket in &mut sockets {
        let mut byte = [0];
        let read = timeout(PATIENCE, socket.read(&mut byte)).await.expect("nobody is kept for ever");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
    Wild::connect(&node, key(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_of_another_chain_or_with_unknown_requirements_is_refused_in_words() {
    let (node, _chain, _dir) = node().await;
    let mut other_chain = Wild::call(&node, key(5)).await;
    other_chain.say(&init(Features::ours(false), vec![ChainHash::BITCOIN])).await;
    assert!(other_chain.hear_last_words().await.unwrap().contains("not on this chain"));
    let mut features = Features::ours(false);
    features.set(200);
    let mut demanding = Wild::call(&node, key(5)).await;
    demanding.say(&init(features, vec![])).await;
    let words = demanding.hear_last_words().await.unwrap();
    assert!(words.contains("[200]"), "{words}");
    let mut hasty = Wild::call(&node, key(5)).await;
    hasty.say(&Message::Ping(Ping { num_pong_bytes: 1, ignored_len: 0 })).await;
    assert!(hasty.hear_last_words().await.unwrap().contains("ping"));
    let mut tolerant = Wild::call(&node, key(5)).await;
    features = Features::ours(false);
    features.set(201);
    tolerant.say(&init(features, vec![])).await;
    assert!(matches!(tolerant.hear().await, Some(Message::Init(_))));
    tolerant.hear_until_pong().await;
}

// --- messages ---

#[tokio::test(flavor = "multi_thread")]
async fn unknown_types_pings_and_gossip() {
    let (node, _chain, _dir) = node().await;
    let mut wild = Wild::connect(&node, key(5)).await;
    wild.say_bytes(&[0xff, 0xff, 1, 2, 3]).await;
    wild.say(&Message::Ping(Ping { num_pong_bytes: 65_532, ignored_len: 4 })).await;
    wild.say(&Message::Ping(Ping { num_pong_bytes: u16::MAX, ignored_len: 0 })).await;
    // A channel_update cut short: no channel depends on it.
    wild.say_bytes(&[0x01, 0x02, 9]).await;
    assert_eq!(wild.hear_until_pong().await, []);
    // An even type must be understood.
    wild.say_bytes(&[0xff, 0xfe, 1]).await;
    assert!(wild.hear_last_words().await.unwrap().contains("65534"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_cut_short_ends_the_connection_with_a_warning() {
    let (node, _chain, _dir) = node().await;
    let mut whole = Vec::new();
    open_channel(1).encode(&mut whole).unwrap();
    for cut in [2, 3, 33, 200, whole.len() - 40] {
        let mut wild = Wild::connect(&node, key(5)).await;
        wild.say_bytes(&whole[..cut]).await;
        let words = wild.hear_last_words().await.unwrap();
        assert!(words.contains("open_channel"), "{cut}: {words}");
    }
    // Half a message on the wire is merely the end of the connection.
    let mut wild = Wild::connect(&node, key(5)).await;
    let mut sealed = Vec::new();
    wild.encryptor.encrypt(&whole, &mut sealed).unwrap();
    wild.socket.write_all(&sealed[..100]).await.unwrap();
    drop(wild);
    eventually("the node notices", || (!is_connected(&node, key(5).public_key(SECP256K1))).then_some(())).await;
    // And a byte that is not authentic, too.
    let mut wild = Wild::connect(&node, key(5)).await;
    sealed.clear();
    wild.encryptor.encrypt(&whole, &mut sealed).unwrap();
    sealed[40] ^= 1;
    wild.socket.write_all(&sealed).await.unwrap();
    assert_eq!(wild.hear_last_words().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_unknown_channels_are_answered_and_only_so_often() {
    let (node, _chain, _dir) = node().await;
    let mut wild = Wild::connect(&node, key(5)).await;
    wild.say(&reestablish(0)).await;
    let answers = wild.hear_until_pong().await;
    assert!(matches!(&answers[..], [Message::Error(error)] if error.text().contains("no such channel")), "{answers:?}");
    for n in 1..5_000 {
        wild.say(&reestablish(n)).await;
    }
    let answers = wild.hear_until_pong().await.len();
    assert!((1..200).contains(&answers), "{answers} answers to 5,000 messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_pipelined_open_channels_are_limited_before_any_is_accepted() {
    let (node, _chain, _dir) = node().await;
    let mut wild = Wild::connect(&node, key(5)).await;
    for n in 0..10_000 {
        wild.say(&open_channel(n)).await;
    }
    let heard = wild.hear_until_pong().await;
    let accepted = |heard: &[Message]| heard.iter().filter(|m| matches!(m, Message::AcceptChannel(_))).count();
    let mut all = heard;
    // The shards answer in their own time.
    let started = std::time::Instant::now();
    while accepted(&all) < 5 && started.elapsed() < PATIENCE {
        all.extend(wild.hear_until_pong().await);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    all.extend(wild.hear_until_pong().await);
    assert_eq!(accepted(&all), 5);
    let refused = all.iter().find_map(|message| match message {
        Message::Error(error) => Some(error.text()),
        _ => None,
    });
    assert!(refused.unwrap().contains("no more than 5"), "{all:?}");
    assert!(all.len() < 300, "{} answers", all.len());
    // They are forgotten with the connection.
    drop(wild);
    let mut wild = eventually_connects(&node).await;
    wild.say(&open_channel(1)).await;
    eventually("one is accepted again", || Some(())).await;
    loop {
        match wild.hear().await {
            Some(Message::AcceptChannel(_)) => return,
            Some(Message::Error(error)) => panic!("{}", error.text()),
            Some(_) => {}
            None => panic!("hung up"),
        }
    }
}

/// A second connection, with the first one's end handled.
async fn eventually_connects(node: &TestNode) -> Wild {
    let peer = key(5).public_key(SECP256K1);
    eventually("the old connection ends", || (!is_connected(node, peer)).then_some(())).await;
    Wild::connect(node, key(5)).await
}

/// A node that pings a silent peer soon and gives it up after `timeout`.
async fn pinging_node(chain: &FakeChain, dir: &tempfile::TempDir, timeout: Duration) -> TestNode {
    let mut setup = Setup::new(1);
    setup.peers.ping_after = Duration::from_millis(300);
    setup.peers.ping_timeout = timeout;
    start(&setup, chain, dir.path()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_that_answers_its_ping_is_kept_and_pinged_again() {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let node = pinging_node(&chain, &dir, PATIENCE).await;
    let mut wild = Wild::connect(&node, key(5)).await;
    let Some(Message::Ping(ping)) = wild.hear().await else { panic!("not pinged") };
    wild.say(&Message::Pong(ping.pong().unwrap())).await;
    assert!(matches!(wild.hear().await, Some(Message::Ping(_))), "alive, and pinged again");
    assert!(node.node.peers().list()[0].ping_us.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_that_does_not_answer_its_ping_is_given_up() {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let node = pinging_node(&chain, &dir, Duration::from_millis(700)).await;
    let mut wild = Wild::connect(&node, key(5)).await;
    assert!(matches!(wild.hear().await, Some(Message::Ping(_))), "pinged");
    assert_eq!(wild.hear().await, None, "and given up");
}

// --- connections ---

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_takes_the_place_of_the_old() {
    let (node, _chain, _dir) = node().await;
    let mut old = Wild::connect(&node, key(5)).await;
    let mut new = Wild::connect(&node, key(5)).await;
    assert_eq!(old.hear().await, None);
    new.hear_until_pong().await;
    assert!(is_connected(&node, key(5).public_key(SECP256K1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_without_channels_are_limited() {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let mut setup = Setup::new(1);
    setup.peers.max_without_channels = 3;
    let node = start(&setup, &chain, dir.path()).await;
    let mut kept = Vec::new();
    for n in 10..13 {
        kept.push(Wild::connect(&node, key(n)).await);
    }
    let mut fourth = Wild::call(&node, key(20)).await;
    fourth.say(&good_init()).await;
    assert_eq!(fourth.hear_last_words().await, None);
    assert_eq!(node.node.peers().list().iter().filter(|peer| peer.is_connected).count(), 3);
    kept.pop();
    let freed = key(12).public_key(SECP256K1);
    eventually("one has gone", || (!is_connected(&node, freed)).then_some(())).await;
    Wild::connect(&node, key(20)).await.hear_until_pong().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_and_disconnect_in_words() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = start(&Setup::new(1), &chain, a_dir.path()).await;
    let b = start(&Setup::new(2), &chain, b_dir.path()).await;
    let peers = a.node.peers();
    assert!(matches!(peers.connect(a.id(), "127.0.0.1:1").await, Err(ConnectError::Ourselves)));
    assert!(matches!(peers.connect(b.id(), "127.0.0.1:1").await, Err(ConnectError::Unreachable { .. })));
    let wrong = key(77).public_key(SECP256K1);
    let failed = peers.connect(wrong, &b.address.to_string()).await;
    assert!(matches!(failed, Err(ConnectError::Handshake { .. })), "{failed:?}");
    assert_eq!(peers.disconnect(b.id(), false), Err(DisconnectError::NotConnected(b.id())));
    let info = peers.connect(b.id(), &b.address.to_string()).await.unwrap();
    assert!(info.is_connected && !info.is_inbound && info.features.is_some());
    let id = open_between(&a, &b, &chain, 1_000_000).await;
    let has_channels = DisconnectError::HasChannels { peer: b.id(), channels: 1 };
    assert_eq!(peers.disconnect(b.id(), false), Err(has_channels));
    assert_eq!(peers.disconnect(b.id(), true), Ok(()));
    a.wait_until(id, "offline", |snapshot| !snapshot.is_online).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!is_connected(&a, b.id()), "it is not called again by itself");
    peers.connect(b.id(), &b.address.to_string()).await.unwrap();
    a.wait_until(id, "online", ChannelSnapshot::is_usable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_reconnections_with_an_opening_and_payments_in_flight() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = start(&Setup::new(1), &chain, a_dir.path()).await;
    let b = start(&Setup::new(2), &chain, b_dir.path()).await;
    a.connect(&b).await;
    let id = open_between(&a, &b, &chain, 1_000_000).await;
    let (mut opened, mut offered) = (0, Vec::new());
    for n in 1..=20 {
        let progress = a.node.registry().open_channel(a.order(b.id(), 500_000));
        let answer = a.node.registry().offer(id, support::offer_of(&preimage(n), 1_000_000, 1_000), vec![]);
        if answer.await.unwrap().is_ok() {
            offered.push(n);
        }
        tokio::time::sleep(Duration::from_millis(u64::from(n) % 7)).await;
        let _gone = a.node.peers().disconnect(b.id(), true);
        let _busy = a.node.peers().connect(b.id(), &b.address.to_string()).await;
        if let Ok(mut progress) = progress {
            while let Some(step) = timeout(PATIENCE, progress.recv()).await.expect("an opening ends") {
                opened += u32::from(matches!(step, OpenProgress::Opened { .. }));
            }
        }
        eventually("connected again", || {
            let _trying = is_connected(&a, b.id());
            a.node.registry().snapshot(id).filter(|snapshot| snapshot.is_usable()).map(|_| ()).or_else(|| {
                let (peers, id, address) = (a.node.peers().clone(), b.id(), b.address.to_string());
                tokio::spawn(async move { peers.connect(id, &address).await });
                None
            })
        })
        .await;
    }
    let open = |node: &TestNode| {
        let snapshots = node.node.registry().snapshots();
        u32::try_from(snapshots.iter().filter(|snapshot| snapshot.state != ChannelState::Closed).count()).unwrap()
    };
    assert_eq!(open(&a), opened + 1, "one actor for each channel that was opened");
    for node in [&a, &b] {
        node.wait_until(id, "usable", ChannelSnapshot::is_usable).await;
    }
    // Each HTLC that is there can be fulfilled; the others never were.
    let there = a.fresh(id).await.htlcs.len();
    eventually("both see the same", || (b.snapshot(id).htlcs.len() >= there).then_some(())).await;
    for htlc in &a.fresh(id).await.htlcs {
        let n = offered.iter().find(|n| preimage(**n).hash() == htlc.payment_hash).unwrap();
        b.fulfill(id, &preimage(*n)).await;
        a.wait_fulfilled(&preimage(*n)).await;
    }
    let (a_shows, b_shows) = (a.fresh(id).await, b.fresh(id).await);
    assert_eq!(a_shows.balances.remote, b_shows.balances.local);
    assert!(a_shows.htlcs.is_empty() && b_shows.htlcs.is_empty());
}

/// LDK turns a second connection away until it has noticed the end of the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_up_before_init_is_called_again() {
    let (node, _chain, _dir) = node().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, wild_id) = (listener.local_addr().unwrap().to_string(), key(9).public_key(SECP256K1));
    let wild = tokio::spawn(async move {
        for _ in 0..2 {
            drop(Wild::answer(listener.accept().await.unwrap().0, key(9)).await);
        }
        let mut wild = Wild::answer(listener.accept().await.unwrap().0, key(9)).await;
        wild.say(&good_init()).await;
        wild
    });
    let connected = node.node.peers().connect(wild_id, &address).await.unwrap();
    assert!(connected.is_connected);
    wild.await.unwrap().hear_until_pong().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_always_hangs_up_is_named_as_such() {
    let (node, _chain, _dir) = node().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let wild = tokio::spawn(async move {
        loop {
            drop(Wild::answer(listener.accept().await.unwrap().0, key(9)).await);
        }
    });
    let failed = node.node.peers().connect(key(9).public_key(SECP256K1), &address).await;
    let is_named = matches!(failed, Err(ConnectError::Handshake { failure: HandshakeFailure::HungUp, .. }));
    assert!(is_named, "{failed:?}");
    wild.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_asked_to_end_does_not_count_as_one() {
    let chain = FakeChain::new();
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = start(&Setup::new(1), &chain, dir_a.path()).await;
    let b = start(&Setup::new(2), &chain, dir_b.path()).await;
    for _ in 0..20 {
        a.node.peers().connect(b.id(), &b.address.to_string()).await.unwrap();
        a.node.peers().disconnect(b.id(), false).unwrap();
        // At once, and it is one that stays.
        let info = a.node.peers().connect(b.id(), &b.address.to_string()).await.unwrap();
        assert!(info.is_connected);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(a.node.peers().is_connected(&b.id()));
        a.node.peers().disconnect(b.id(), false).unwrap();
        eventually("it has ended", || (!is_connected(&a, b.id())).then_some(())).await;
    }
}
