//! The first seconds of a connection: BOLT 8's three acts, and `init` (BOLT 1, "The `init` Message").
//!
//! The caller bounds the time of all of it.

use std::io;

use millrace_wire::noise::{
    ACT_ONE_BYTES, ACT_THREE_BYTES, ACT_TWO_BYTES, HandshakeError, Initiator, Responder, Transport,
};
use millrace_wire::{ChainHash, ChannelId, DecodeError, Decoded, Features, Init, Message, PublicKey, Warning};
use secp256k1::SecretKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{WireError, WireReader, WireWriter};
use crate::channels::random;

/// Why a connection does not come about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeFailure {
    /// The socket.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// BOLT 8.
    #[error("{0}")]
    Noise(#[from] HandshakeError),
    /// The cipher, or the socket.
    #[error("{0}")]
    Wire(String),
    /// The first message is no message.
    #[error("the first message: {0}")]
    Decode(#[from] DecodeError),
    /// The first message is not `init`.
    #[error("the first message is {0} and not init")]
    NotInit(&'static str),
    /// It requires what we do not know.
    #[error("the peer requires unknown features: bits {bits:?}")]
    UnknownFeatures {
        /// Which.
        bits: Vec<u32>,
    },
    /// It is on other chains only.
    #[error("the peer is not on this chain, but on {0}")]
    OtherChain(String),
    /// It has proved that it is who was called, and then closed without a word: it may hold an older connection of ours
    /// for alive, or have no room.
    #[error("the node hung up before init")]
    HungUp,
    /// It took too long.
    #[error("no init within {0} s")]
    TimedOut(u64),
}

impl From<WireError> for HandshakeFailure {
    fn from(error: WireError) -> Self {
        if error.is_hang_up() { Self::HungUp } else { Self::Wire(error.to_string()) }
    }
}

/// A connection on which both sides have said `init`.
pub(crate) struct Established {
    pub(crate) peer: PublicKey,
    pub(crate) reader: WireReader,
    pub(crate) writer: WireWriter,
    pub(crate) ours: Features,
    pub(crate) theirs: Features,
}

/// What this node says of itself.
pub(crate) struct Ours<'a> {
    pub(crate) node_key: SecretKey,
    pub(crate) chain_hash: ChainHash,
    pub(crate) features_for: &'a (dyn Fn(&PublicKey) -> Features + Send + Sync),
}

/// Calls a node.
pub(crate) async fn initiate(
    mut socket: TcpStream,
    remote: PublicKey,
    ours: &Ours<'_>,
) -> Result<Established, HandshakeFailure> {
    let (initiator, act_one) = Initiator::new(ours.node_key, remote, fresh_key());
    socket.write_all(&act_one).await?;
    let mut act_two = [0; ACT_TWO_BYTES];
    socket.read_exact(&mut act_two).await?;
    let (act_three, transport) = initiator.act_two(&act_two)?;
    socket.write_all(&act_three).await.map_err(WireError::Io)?;
    exchange_init(socket, transport, ours).await
}

/// Answers a caller.
pub(crate) async fn respond(mut socket: TcpStream, ours: &Ours<'_>) -> Result<Established, HandshakeFailure> {
    let mut act_one = [0; ACT_ONE_BYTES];
    socket.read_exact(&mut act_one).await?;
    let (waiting, act_two) = Responder::new(ours.node_key, fresh_key()).act_one(&act_one)?;
    socket.write_all(&act_two).await?;
    let mut act_three = [0; ACT_THREE_BYTES];
    socket.read_exact(&mut act_three).await?;
    let transport = waiting.act_three(&act_three)?;
    exchange_init(socket, transport, ours).await
}

async fn exchange_init(
    socket: TcpStream,
    transport: Transport,
    ours: &Ours<'_>,
) -> Result<Established, HandshakeFailure> {
    let Transport { remote: peer, encryptor, decryptor } = transport;
    let (read_half, write_half) = socket.into_split();
    let (mut reader, mut writer) = (WireReader::new(read_half, decryptor), WireWriter::new(write_half, encryptor));
    let features = (ours.features_for)(&peer);
    let init = Init { features: features.clone(), networks: vec![ours.chain_hash], remote_address: None };
    writer.put(&Message::Init(init))?;
    writer.flush().await?;
    match read_init(&mut reader).await.and_then(|init| check_init(&init, &features, ours).map(|()| init)) {
        Ok(init) => Ok(Established { peer, reader, writer, ours: features, theirs: init.features }),
        Err(failure) => {
            // The peer is told, as far as it still listens.
            let warning = Warning::new(ChannelId::ALL, &failure.to_string());
            if writer.put(&Message::Warning(warning)).is_ok() && writer.flush().await.is_ok() {
                writer.end().await;
            }
            Err(failure)
        }
    }
}

async fn read_init(reader: &mut WireReader) -> Result<Init, HandshakeFailure> {
    match Message::decode(reader.next().await?)? {
        Decoded::Message(Message::Init(init)) => Ok(init),
        Decoded::Message(other) => Err(HandshakeFailure::NotInit(other.name())),
        Decoded::Ignored { .. } => Err(HandshakeFailure::NotInit("of an unknown type")),
    }
}

fn check_init(init: &Init, features: &Features, ours: &Ours<'_>) -> Result<(), HandshakeFailure> {
    let bits = init.features.unknown_even(features);
    if !bits.is_empty() {
        return Err(HandshakeFailure::UnknownFeatures { bits });
    }
    if init.networks.is_empty() || init.networks.contains(&ours.chain_hash) {
        return Ok(());
    }
    let chains: Vec<String> = init.networks.iter().take(4).map(ToString::to_string).collect();
    Err(HandshakeFailure::OtherChain(chains.join(", ")))
}

/// For one handshake only.
fn fresh_key() -> SecretKey {
    loop {
        if let Ok(key) = SecretKey::from_slice(&random::<32>()) {
            return key;
        }
    }
}
