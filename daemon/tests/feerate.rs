//! `update_fee` as the daemon itself sends it: two nodes with a channel between them, and fee estimates that change.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bitcoin::Network;
use millrace_chain::fees::FeeEstimates;
use millrace_chain::{Auth, Bitcoind, Config, Timeouts};
use millrace_wire::{ChannelId, FeeratePerKw, Msat};
use millraced::channels::{ChannelSnapshot, ChannelState};
use serde_json::{Value, json};
use support::{FakeChain, Setup, TestNode, open_between, preimage, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A node that wants to send `update_fee` has done so by then.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// What a bitcoind says that estimates this for every target, in sat per 1000 weight units. A commitment pays a quarter
/// more.
async fn estimates(rate: u32) -> FeeEstimates {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        loop {
            answer(listener.accept().await.unwrap().0, rate).await;
        }
    });
    let fees = FeeEstimates::fetch(&bitcoind_at(address)).await.unwrap();
    served.abort();
    fees
}

fn bitcoind_at(address: SocketAddr) -> Bitcoind {
    let auth = Auth::UserPass { user: String::new(), password: String::new() };
    let url = format!("http://{address}");
    Bitcoind::new(Config { url, auth, network: Network::Regtest, timeouts: Timeouts::default() }).unwrap()
}

/// Answers one call, whichever it is: each takes of the answer what it knows.
async fn answer(mut stream: TcpStream, rate: u32) {
    let (mut text, mut buffer) = (Vec::new(), [0; 1024]);
    let call: Value = loop {
        let bytes = stream.read(&mut buffer).await.unwrap();
        assert!(bytes > 0, "the call ends early: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..bytes]);
        let body = text.iter().position(|byte| *byte == b'{').map(|start| &text[start..]);
        if let Some(call) = body.and_then(|body| serde_json::from_slice(body).ok()) {
            break call;
        }
    };
    let per_kvb = f64::from(rate) * 4.0 / 1e8;
    let result = json!({"mempoolminfee": 0.00001, "minrelaytxfee": 0.00001, "feerate": per_kvb});
    let body = json!({"result": result, "error": null, "id": call["id"]}).to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

/// Alice has funded a channel with Bob. Both have the same estimates.
struct Pair {
    chain: FakeChain,
    alice: TestNode,
    bob: TestNode,
    id: ChannelId,
    _dirs: [tempfile::TempDir; 2],
}

/// Feerate, and the numbers of both sides' commitments: none of them changes unless somebody sends something.
type Standing = (FeeratePerKw, u64, u64);

fn standing(snapshot: &ChannelSnapshot) -> Standing {
    let numbers = &snapshot.commitment_numbers;
    (snapshot.feerate, numbers.local.0, numbers.remote.0)
}

impl Pair {
    async fn new() -> Self {
        let (chain, dirs) = (FakeChain::new(), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
        let alice = start(&Setup::new(1), &chain, dirs[0].path()).await;
        let bob = start(&Setup::new(2), &chain, dirs[1].path()).await;
        alice.connect(&bob).await;
        let id = open_between(&alice, &bob, &chain, 1_000_000).await;
        let pair = Self { chain, alice, bob, id, _dirs: dirs };
        pair.check_stays((FeeratePerKw(1250), 0, 0)).await;
        pair
    }

    /// Both say so, and go on saying so.
    async fn check_stays(&self, expected: Standing) {
        tokio::time::sleep(LONG_ENOUGH).await;
        for node in [&self.alice, &self.bob] {
            let snapshot = node.fresh(self.id).await;
            assert_eq!(standing(&snapshot), expected);
            assert_eq!((snapshot.state, &snapshot.last_error), (ChannelState::Normal, &None));
        }
    }

    /// The estimates change, and the channel's feerate with them, by one round: one commitment more of each side, so
    /// neither Alice says it twice nor Bob at all.
    async fn check_follows(&self, rate: u32, expected: Standing) {
        self.chain.estimate(estimates(rate).await);
        for node in [&self.alice, &self.bob] {
            node.wait_until(self.id, "the new feerate is in both commitments", |snapshot| {
                standing(snapshot) == expected && !snapshot.awaits_revocation
            })
            .await;
        }
        self.check_stays(expected).await;
    }

    async fn check_ignores(&self, rate: u32, expected: Standing) {
        self.chain.estimate(estimates(rate).await);
        self.check_stays(expected).await;
    }
}

async fn pay(from: &TestNode, to: &TestNode, id: ChannelId, n: u8, amount_msat: u64) {
    from.offer(id, &preimage(n), amount_msat, vec![]).await;
    to.fulfill(id, &preimage(n)).await;
    from.wait_fulfilled(&preimage(n)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_funder_follows_the_estimates_and_payments_go_on() {
    let pair = Pair::new().await;
    pair.check_follows(1_100, (FeeratePerKw(1_375), 1, 1)).await;
    pay(&pair.alice, &pair.bob, pair.id, 1, 300_000_000).await;
    pay(&pair.bob, &pair.alice, pair.id, 2, 100_000_000).await;
    let paid = pair.alice.fresh(pair.id).await;
    assert_eq!((paid.balances.local, paid.feerate), (Msat(800_000_000), FeeratePerKw(1_375)));

    // A large fall, with coins on both sides.
    let (_, local, remote) = standing(&paid);
    pair.check_follows(700, (FeeratePerKw(875), local + 1, remote + 1)).await;
    pay(&pair.alice, &pair.bob, pair.id, 3, 50_000_000).await;
    assert_eq!(pair.bob.fresh(pair.id).await.balances.local, Msat(250_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_change_is_not_worth_a_round() {
    let pair = Pair::new().await;
    // 4 percent up, 27 percent down.
    pair.check_ignores(1_040, (FeeratePerKw(1_250), 0, 0)).await;
    pair.check_ignores(730, (FeeratePerKw(1_250), 0, 0)).await;
    pay(&pair.alice, &pair.bob, pair.id, 1, 300_000_000).await;
    assert_eq!(pair.bob.fresh(pair.id).await.feerate, FeeratePerKw(1_250));
}
