//! Peers that send garbage, or half of something: they are dropped, and payments go on as if nothing had been.

use std::time::Duration;

use millrace_regtest::pay_stream::Outcome;
use millrace_rpc::v1::{ChannelState, ListPeersRequest};
use millrace_wire::noise::{ACT_TWO_BYTES, BODY_TAG_BYTES, Decryptor, Encryptor, Initiator, LENGTH_HEADER_BYTES};
use millrace_wire::{ChainHash, Decoded, Features, Init, Message, PublicKey};
use secp256k1::SecretKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::{ALICE, BOB, CAPACITY_SAT, LIMIT, Load, pair_with};

/// What the daemons allow for handshake and `init`, in seconds.
const HANDSHAKE_TIMEOUT_S: &str = "2";
/// Within this time a peer that misbehaves is gone.
const GONE: Duration = Duration::from_secs(10);

fn key() -> SecretKey {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    SecretKey::from_slice(&bytes).unwrap()
}

fn garbage<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// Where to call, and whom.
#[derive(Clone)]
struct Target {
    address: String,
    node_id: PublicKey,
}

/// A peer after the handshake.
struct Wild {
    socket: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
}

impl Target {
    async fn raw(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    async fn shake_hands(&self) -> Wild {
        let mut socket = self.raw().await;
        let (initiator, act_one) = Initiator::new(key(), self.node_id, key());
        socket.write_all(&act_one).await.unwrap();
        let mut act_two = [0; ACT_TWO_BYTES];
        socket.read_exact(&mut act_two).await.unwrap();
        let (act_three, transport) = initiator.act_two(&act_two).unwrap();
        socket.write_all(&act_three).await.unwrap();
        Wild { socket, encryptor: transport.encryptor, decryptor: transport.decryptor }
    }

    /// With both `init`s said.
    async fn meet(&self) -> Wild {
        let mut wild = self.shake_hands().await;
        wild.say(&init()).await;
        loop {
            if let Some(Message::Init(_)) = wild.hear().await.expect("it hung up before its init") {
                return wild;
            }
        }
    }
}

/// A good `init`, as bytes.
fn init() -> Vec<u8> {
    let init = Init { features: Features::ours(false), networks: vec![ChainHash::REGTEST], remote_address: None };
    let mut bytes = Vec::new();
    Message::Init(init).encode(&mut bytes).unwrap();
    bytes
}

impl Wild {
    async fn say(&mut self, plaintext: &[u8]) {
        let bytes = self.encrypted(plaintext);
        self.socket.write_all(&bytes).await.unwrap();
    }

    fn encrypted(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encryptor.encrypt(plaintext, &mut bytes).unwrap();
        bytes
    }

    /// The next message (none: one of no known type); an error at the connection's end.
    async fn hear(&mut self) -> std::io::Result<Option<Message>> {
        let mut header = [0; LENGTH_HEADER_BYTES];
        self.socket.read_exact(&mut header).await?;
        let length = self.decryptor.decrypt_length(&header).unwrap();
        let mut body = vec![0; usize::from(length) + BODY_TAG_BYTES];
        self.socket.read_exact(&mut body).await?;
        self.decryptor.decrypt_body(&mut body).unwrap();
        Ok(match Message::decode(&body).unwrap() {
            Decoded::Message(message) => Some(message),
            Decoded::Ignored { .. } => None,
        })
    }
}

/// That the daemon hangs up.
async fn check_dropped(what: &str, mut socket: TcpStream) {
    let mut buffer = [0; 1024];
    let gone = timeout(GONE, async { while matches!(socket.read(&mut buffer).await, Ok(1..)) {} });
    assert!(gone.await.is_ok(), "{what}: it is still connected");
}

/// Before the handshake is over.
async fn before_the_end_of_the_handshake(target: Target) {
    let mut socket = target.raw().await;
    socket.write_all(&garbage::<1000>()).await.unwrap();
    check_dropped("random bytes", socket).await;

    let (_, act_one) = Initiator::new(key(), target.node_id, key());
    let mut half = target.raw().await;
    half.write_all(&act_one[..25]).await.unwrap();
    let silent = target.raw().await;
    tokio::join!(check_dropped("half an act one", half), check_dropped("silence", silent));

    let (_, for_another) = Initiator::new(key(), key().public_key(secp256k1::SECP256K1), key());
    let mut socket = target.raw().await;
    socket.write_all(&for_another).await.unwrap();
    check_dropped("an act one for somebody else", socket).await;

    let mut socket = target.raw().await;
    socket.write_all(&act_one).await.unwrap();
    socket.read_exact(&mut [0; ACT_TWO_BYTES]).await.unwrap();
    let mut act_three = garbage::<66>();
    act_three[0] = 0;
    socket.write_all(&act_three).await.unwrap();
    check_dropped("a wrong act three", socket).await;
}

/// Between the handshake and `init`.
async fn instead_of_init(target: Target) {
    let mut wild = target.shake_hands().await;
    wild.socket.write_all(&garbage::<500>()).await.unwrap();
    check_dropped("bytes that are not encrypted", wild.socket).await;

    let mut wild = target.shake_hands().await;
    let bytes = wild.encrypted(&init());
    wild.socket.write_all(&bytes[..bytes.len() / 2]).await.unwrap();
    let silent = target.shake_hands().await;
    tokio::join!(check_dropped("half an init", wild.socket), check_dropped("no init", silent.socket));

    for (what, plaintext) in
        [("no type", vec![]), ("half a type", vec![0]), ("an init that ends early", vec![0, 16, 0, 9])]
    {
        let mut wild = target.shake_hands().await;
        wild.say(&plaintext).await;
        check_dropped(what, wild.socket).await;
    }
}

/// Messages of peers that have said `init`.
async fn after_init(target: Target) {
    let mut damaged = target.meet().await;
    let mut bytes = damaged.encrypted(&[0, 18, 0, 1, 0, 0]);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    damaged.socket.write_all(&bytes).await.unwrap();
    check_dropped("a ping with a wrong tag", damaged.socket).await;

    let mut half = target.meet().await;
    let bytes = half.encrypted(&[0, 18, 0, 1, 0, 0]);
    half.socket.write_all(&bytes[..LENGTH_HEADER_BYTES + 2]).await.unwrap();
    drop(half);

    for (what, plaintext) in [
        ("half a type", vec![1]),
        ("an unknown even type", vec![0x7f, 0xfe, 1, 2, 3]),
        ("an open_channel that ends early", vec![0, 32, 1, 2, 3]),
        ("a ping that ends early", vec![0, 18, 0]),
    ] {
        let mut wild = target.meet().await;
        wild.say(&plaintext).await;
        check_dropped(what, wild.socket).await;
    }

    // What BOLT 1 lets pass: an unknown odd type, and a channel that this peer does not have.
    let mut polite = target.meet().await;
    polite.say(&[0x7f, 0xff, 1, 2, 3]).await;
    polite.say(&[0, 18, 0, 4, 0, 0]).await;
    let answer = timeout(LIMIT, async {
        loop {
            if let Some(Message::Pong(pong)) = polite.hear().await.unwrap() {
                return pong;
            }
        }
    });
    answer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_half_messages_while_payments_go_on() {
    let limits = ["--peers-handshake-timeout-s", HANDSHAKE_TIMEOUT_S];
    let pair = pair_with(|node| limits.iter().for_each(|limit| node.argument(limit)), |_| {}).await;
    let target = Target {
        address: pair.network.nodes[BOB].lightning_address().unwrap(),
        node_id: PublicKey::from_slice(pair.network.nodes[BOB].node_id()).unwrap(),
    };
    let loads = [Load::start(&pair, ALICE, BOB).await, Load::start(&pair, BOB, ALICE).await];
    let attacks = [
        tokio::spawn(before_the_end_of_the_handshake(target.clone())),
        tokio::spawn(instead_of_init(target.clone())),
        tokio::spawn(after_init(target)),
    ];
    for attack in attacks {
        attack.await.unwrap();
    }
    let mut paid = Vec::new();
    for load in loads {
        let outcomes = load.finish().await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Paid), "{outcomes:?}");
        assert!(outcomes.len() > 20, "only {} payments", outcomes.len());
        paid.push(outcomes.len() as u64 * 1_000);
    }

    pair.wait_until_at_rest().await;
    let half = CAPACITY_SAT / 2 * 1000;
    for (node, local_msat) in [(ALICE, half + paid[1] - paid[0]), (BOB, half + paid[0] - paid[1])] {
        let channel = pair.network.channel(node, &pair.channel_id).await.unwrap();
        assert_eq!((channel.state(), channel.online), (ChannelState::Normal, true));
        assert_eq!(channel.local_msat, local_msat);
        assert_eq!(channel.last_error, "");
    }
    let peers = pair.client(BOB).peers.list(ListPeersRequest {}).await.unwrap().into_inner().peers;
    let connected: Vec<_> = peers.iter().filter(|peer| peer.connected).map(|peer| peer.node_id.clone()).collect();
    assert_eq!(connected, [pair.network.nodes[ALICE].node_id()]);
    pair.stop().await;
}
