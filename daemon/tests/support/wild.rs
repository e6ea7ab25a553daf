//! A peer that is played by hand, on the wire itself.

use std::net::SocketAddr;

use millrace_wire::noise::{
    ACT_ONE_BYTES, ACT_THREE_BYTES, ACT_TWO_BYTES, BODY_TAG_BYTES, Decryptor, Encryptor, Initiator,
    LENGTH_HEADER_BYTES, Responder,
};
use millrace_wire::{ChainHash, Decoded, Features, Init, Message, Ping, PublicKey};
use secp256k1::SecretKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, TestNode};

/// A peer that says whatever the test wants.
pub struct Wild {
    pub socket: TcpStream,
    pub encryptor: Encryptor,
    pub decryptor: Decryptor,
}

pub fn key(n: u8) -> SecretKey {
    SecretKey::from_slice(&[n; 32]).unwrap()
}

pub fn init(features: Features, networks: Vec<ChainHash>) -> Message {
    Message::Init(Init { features, networks, remote_address: None })
}

pub fn good_init() -> Message {
    init(Features::ours(false), vec![ChainHash::REGTEST])
}

impl Wild {
    /// As far as the end of the handshake.
    pub async fn call(node: &TestNode, as_key: SecretKey) -> Self {
        Self::call_at(node.address, node.id(), as_key).await
    }

    /// The same, of any node.
    pub async fn call_at(address: SocketAddr, node_id: PublicKey, as_key: SecretKey) -> Self {
        Self::try_call(address, node_id, as_key).await.unwrap()
    }

    /// The same, of one that may turn it away.
    pub async fn try_call(address: SocketAddr, node_id: PublicKey, as_key: SecretKey) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        let (initiator, act_one) = Initiator::new(as_key, node_id, key(0x55));
        socket.write_all(&act_one).await?;
        let mut act_two = [0; ACT_TWO_BYTES];
        socket.read_exact(&mut act_two).await?;
        let (act_three, transport) = initiator.act_two(&act_two).unwrap();
        socket.write_all(&act_three).await?;
        Ok(Self { socket, encryptor: transport.encryptor, decryptor: transport.decryptor })
    }

    /// Called by a node: as far as the end of the handshake.
    pub async fn answer(mut socket: TcpStream, as_key: SecretKey) -> Self {
        let mut act_one = [0; ACT_ONE_BYTES];
        socket.read_exact(&mut act_one).await.unwrap();
        let (waiting, act_two) = Responder::new(as_key, key(0x56)).act_one(&act_one).unwrap();
        socket.write_all(&act_two).await.unwrap();
        let mut act_three = [0; ACT_THREE_BYTES];
        socket.read_exact(&mut act_three).await.unwrap();
        let transport = waiting.act_three(&act_three).unwrap();
        Self { socket, encryptor: transport.encryptor, decryptor: transport.decryptor }
    }

    /// With both `init`s said.
    pub async fn connect(node: &TestNode, as_key: SecretKey) -> Self {
        let mut wild = Self::call(node, as_key).await;
        wild.say(&good_init()).await;
        assert!(matches!(wild.hear().await, Some(Message::Init(_))));
        wild
    }

    pub async fn say(&mut self, message: &Message) {
        let mut plain = Vec::new();
        message.encode(&mut plain).unwrap();
        self.say_bytes(&plain).await;
    }

    pub async fn say_bytes(&mut self, plain: &[u8]) {
        let mut sealed = Vec::new();
        self.encryptor.encrypt(plain, &mut sealed).unwrap();
        // A node that has hung up is what some tests want.
        let _gone = self.socket.write_all(&sealed).await;
    }

    /// The next message; none if the node hangs up.
    pub async fn hear(&mut self) -> Option<Message> {
        timeout(PATIENCE, self.read()).await.expect("the node says something or hangs up")
    }

    pub async fn read(&mut self) -> Option<Message> {
        let mut header = [0; LENGTH_HEADER_BYTES];
        self.socket.read_exact(&mut header).await.ok()?;
        let length = usize::from(self.decryptor.decrypt_length(&header).ok()?);
        let mut body = vec![0; length + BODY_TAG_BYTES];
        self.socket.read_exact(&mut body).await.ok()?;
        self.decryptor.decrypt_body(&mut body).ok()?;
        match Message::decode(&body).unwrap() {
            Decoded::Message(message) => Some(message),
            Decoded::Ignored { type_number } => panic!("the node sends type {type_number}"),
        }
    }

    /// What the node says until it answers a ping: everything before was handled.
    pub async fn hear_until_pong(&mut self) -> Vec<Message> {
        self.say(&Message::Ping(Ping { num_pong_bytes: 3, ignored_len: 0 })).await;
        let mut heard = Vec::new();
        loop {
            match self.hear().await {
                Some(Message::Pong(pong)) if pong.ignored_len == 3 => return heard,
                Some(message) => heard.push(message),
                None => panic!("the node has hung up after {heard:?}"),
            }
        }
    }

    /// The warning with which the node hangs up.
    pub async fn hear_last_words(&mut self) -> Option<String> {
        let mut words = None;
        while let Some(message) = self.hear().await {
            if let Message::Warning(warning) = message {
                words = Some(warning.text());
            }
        }
        words
    }
}
