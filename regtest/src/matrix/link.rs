//! A Lightning connection of a peer in this process to a daemon: BOLT 8 and `init`, then messages.

use std::io;

use millrace_wire::noise::{ACT_TWO_BYTES, BODY_TAG_BYTES, Decryptor, Encryptor, Initiator, LENGTH_HEADER_BYTES};
use millrace_wire::{ChainHash, Decoded, Features, Init, Message, PublicKey};
use secp256k1::SecretKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::network::Error;

/// Messages that were read and wait; whoever reads no more lets the daemon's bytes wait in the socket.
const WAITING_MAX: usize = 256;

/// A connection.
pub(super) struct Link {
    writer: OwnedWriteHalf,
    encryptor: Encryptor,
    messages: mpsc::Receiver<Message>,
}

impl Link {
    /// Calls a daemon, and says `init`.
    pub(super) async fn call(address: &str, node_id: &PublicKey, key: SecretKey) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::Wrong(format!("the daemon at {address} does not answer: {error}"));
        let mut socket = TcpStream::connect(address).await.map_err(failed)?;
        let (initiator, act_one) = Initiator::new(key, *node_id, random_secret());
        socket.write_all(&act_one).await.map_err(failed)?;
        let mut act_two = [0; ACT_TWO_BYTES];
        socket.read_exact(&mut act_two).await.map_err(failed)?;
        let shaken = initiator.act_two(&act_two).map_err(|error| Error::Wrong(format!("act two: {error}")))?;
        let (act_three, transport) = shaken;
        socket.write_all(&act_three).await.map_err(failed)?;
        let (reader, writer) = socket.into_split();
        let (sender, messages) = mpsc::channel(WAITING_MAX);
        tokio::spawn(read_all(reader, transport.decryptor, sender));
        let mut link = Self { writer, encryptor: transport.encryptor, messages };
        let features = Features::ours(false);
        link.say(&Message::Init(Init { features, networks: vec![ChainHash::REGTEST], remote_address: None })).await?;
        match link.hear().await {
            Some(Message::Init(_)) => Ok(link),
            other => Err(Error::Wrong(format!("instead of init came {:?}", other.map(|message| message.name())))),
        }
    }

    /// Sends a message.
    pub(super) async fn say(&mut self, message: &Message) -> Result<(), Error> {
        let failed = |what: String| Error::Wrong(format!("cannot send {}: {what}", message.name()));
        let mut plain = Vec::new();
        message.encode(&mut plain).map_err(|error| failed(error.to_string()))?;
        let mut bytes = Vec::new();
        self.encryptor.encrypt(&plain, &mut bytes).map_err(|error| failed(error.to_string()))?;
        self.writer.write_all(&bytes).await.map_err(|error| failed(error.to_string()))
    }

    /// The next message; none at the connection's end.
    pub(super) async fn hear(&mut self) -> Option<Message> {
        self.messages.recv().await
    }
}

/// A secret key by chance.
pub(super) fn random_secret() -> SecretKey {
    let mut bytes = [0; 32];
    loop {
        getrandom::fill(&mut bytes).expect("the system has random bytes");
        if let Ok(key) = SecretKey::from_slice(&bytes) {
            return key;
        }
    }
}

async fn read_all(mut reader: OwnedReadHalf, mut decryptor: Decryptor, to: mpsc::Sender<Message>) {
    while let Ok(message) = read_one(&mut reader, &mut decryptor).await {
        if let Some(message) = message
            && to.send(message).await.is_err()
        {
            return;
        }
    }
}

/// None: one of an unknown odd type.
async fn read_one(reader: &mut OwnedReadHalf, decryptor: &mut Decryptor) -> io::Result<Option<Message>> {
    let odd = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut header = [0; LENGTH_HEADER_BYTES];
    reader.read_exact(&mut header).await?;
    let length = decryptor.decrypt_length(&header).map_err(|error| odd(error.to_string()))?;
    let mut body = vec![0; usize::from(length) + BODY_TAG_BYTES];
    reader.read_exact(&mut body).await?;
    decryptor.decrypt_body(&mut body).map_err(|error| odd(error.to_string()))?;
    match Message::decode(&body).map_err(|error| odd(error.to_string()))? {
        Decoded::Message(message) => Ok(Some(message)),
        Decoded::Ignored { .. } => Ok(None),
    }
}
