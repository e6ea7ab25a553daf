//! A peer that has another node's key, and says what the test wants.

use lightning::ln::msgs::{ChannelUpdate as LdkUpdate, UnsignedChannelUpdate};
use lightning::util::ser::Writeable;
use millrace_wire::noise::{ACT_TWO_BYTES, BODY_TAG_BYTES, Decryptor, Encryptor, Initiator, LENGTH_HEADER_BYTES};
use millrace_wire::{ChainHash, ChannelUpdate, Decoded, Features, Init, Message, Ping, PublicKey, ShortChannelId};
use secp256k1::{SECP256K1, SecretKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use bitcoin::hashes::{Hash, sha256d};

use crate::support::{PATIENCE, TestNode};

pub(crate) struct Scripted {
    socket: TcpStream,
    encryptor: Encryptor,
    decryptor: Decryptor,
}

impl Scripted {
    /// Calls a node, with both `init`s said.
    pub(crate) async fn call(node: &TestNode, as_key: SecretKey) -> Self {
        let mut socket = TcpStream::connect(node.address).await.unwrap();
        let ephemeral = SecretKey::from_slice(&[0x55; 32]).unwrap();
        let (initiator, act_one) = Initiator::new(as_key, node.id(), ephemeral);
        socket.write_all(&act_one).await.unwrap();
        let mut act_two = [0; ACT_TWO_BYTES];
        socket.read_exact(&mut act_two).await.unwrap();
        let (act_three, transport) = initiator.act_two(&act_two).unwrap();
        socket.write_all(&act_three).await.unwrap();
        let mut peer = Self { socket, encryptor: transport.encryptor, decryptor: transport.decryptor };
        let (features, networks) = (Features::ours(false), vec![ChainHash::REGTEST]);
        peer.say(&Message::Init(Init { features, networks, remote_address: None })).await;
        assert!(matches!(peer.hear().await, Message::Init(_)));
        peer
    }

    pub(crate) async fn say(&mut self, message: &Message) {
        let (mut plain, mut sealed) = (Vec::new(), Vec::new());
        message.encode(&mut plain).unwrap();
        self.encryptor.encrypt(&plain, &mut sealed).unwrap();
        self.socket.write_all(&sealed).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> Message {
        timeout(PATIENCE, self.read()).await.expect("the node says something")
    }

    async fn read(&mut self) -> Message {
        let mut header = [0; LENGTH_HEADER_BYTES];
        self.socket.read_exact(&mut header).await.unwrap();
        let length = usize::from(self.decryptor.decrypt_length(&header).unwrap());
        let mut body = vec![0; length + BODY_TAG_BYTES];
        self.socket.read_exact(&mut body).await.unwrap();
        self.decryptor.decrypt_body(&mut body).unwrap();
        match Message::decode(&body).unwrap() {
            Decoded::Message(message) => message,
            Decoded::Ignored { type_number } => panic!("the node sends type {type_number}"),
        }
    }

    /// Until everything that was said is handled by the connection.
    pub(crate) async fn ping(&mut self) {
        self.say(&Message::Ping(Ping { num_pong_bytes: 3, ignored_len: 0 })).await;
        while !matches!(self.hear().await, Message::Pong(pong) if pong.ignored_len == 3) {}
    }
}

/// An update signed by `key` for its channel with `other`, as `change` wants it.
pub(crate) fn signed_update(
    key: &SecretKey,
    other: &PublicKey,
    scid: ShortChannelId,
    change: impl FnOnce(&mut UnsignedChannelUpdate),
) -> ChannelUpdate {
    let is_lesser = key.public_key(SECP256K1).serialize() < other.serialize();
    let mut contents = UnsignedChannelUpdate {
        chain_hash: ChainHash::REGTEST,
        short_channel_id: scid.0,
        timestamp: 0,
        message_flags: 3,
        channel_flags: u8::from(!is_lesser),
        cltv_expiry_delta: 40,
        htlc_minimum_msat: 1,
        htlc_maximum_msat: 2_000,
        fee_base_msat: 3,
        fee_proportional_millionths: 4,
        excess_data: Vec::new(),
    };
    change(&mut contents);
    let digest = sha256d::Hash::hash(&contents.encode()).to_byte_array();
    let signature = SECP256K1.sign_ecdsa(&secp256k1::Message::from_digest(digest), key);
    ChannelUpdate::new(LdkUpdate { signature, contents })
}
