//! A connection between a client and a tower: TCP, encrypted and authenticated by BOLT 8, with the tower's key and the
//! client's as the static keys.
//!
//! It carries whole messages and counts bytes; what they mean is said elsewhere.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_wire::noise::{
    ACT_ONE_BYTES, ACT_THREE_BYTES, ACT_TWO_BYTES, BODY_TAG_BYTES, Decryptor, Encryptor, HandshakeError, Initiator,
    LENGTH_HEADER_BYTES, Responder, Transport, TransportError,
};
use secp256k1::{PublicKey, SecretKey};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::message::{DecodeError, Message};

/// What is read from a socket at once.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long a write may take: whoever takes nothing for so long is gone.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Why a connection is of no use any more.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The socket.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The other side is not who it should be, or speaks something else.
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    /// The cipher.
    #[error("{0}")]
    Cipher(#[from] TransportError),
    /// What came is no message.
    #[error("{0}")]
    Decode(#[from] DecodeError),
    /// Nothing happened for too long.
    #[error("{0} took longer than {1} s")]
    TimedOut(&'static str, u64),
    /// The operating system has no randomness.
    #[error("no randomness: {0}")]
    Randomness(String),
}

/// Bytes that went over a socket, handshake included.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Bytes that were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that were received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// An established connection.
pub struct Connection {
    /// Who the other side has proved to be.
    pub remote: PublicKey,
    /// What comes in.
    pub reader: MessageReader,
    /// What goes out.
    pub writer: MessageWriter,
}

/// What comes in.
pub struct MessageReader {
    socket: BufReader<OwnedReadHalf>,
    decryptor: Decryptor,
    body: Vec<u8>,
    traffic: Arc<Traffic>,
}

/// What goes out.
pub struct MessageWriter {
    socket: OwnedWriteHalf,
    encryptor: Encryptor,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    traffic: Arc<Traffic>,
}

/// Calls a tower.
///
/// # Errors
/// [`ConnectionError`].
pub async fn call(
    mut socket: TcpStream,
    key: SecretKey,
    tower: PublicKey,
    traffic: Arc<Traffic>,
) -> Result<Connection, ConnectionError> {
    // Updates are small and wait for their answers.
    socket.set_nodelay(true)?;
    let acts = async {
        let (initiator, act_one) = Initiator::new(key, tower, fresh_key()?);
        socket.write_all(&act_one).await?;
        let mut act_two = [0; ACT_TWO_BYTES];
        socket.read_exact(&mut act_two).await?;
        let (act_three, transport) = initiator.act_two(&act_two)?;
        socket.write_all(&act_three).await?;
        Ok::<Transport, ConnectionError>(transport)
    };
    let transport = in_time("the handshake", HANDSHAKE_TIME, acts).await?;
    traffic.add_sent(ACT_ONE_BYTES + ACT_THREE_BYTES);
    traffic.add_received(ACT_TWO_BYTES);
    Ok(established(socket, transport, traffic))
}

/// Answers a caller.
///
/// # Errors
/// [`ConnectionError`].
pub async fn answer(
    mut socket: TcpStream,
    key: SecretKey,
    traffic: Arc<Traffic>,
) -> Result<Connection, ConnectionError> {
    socket.set_nodelay(true)?;
    let acts = async {
        let mut act_one = [0; ACT_ONE_BYTES];
        socket.read_exact(&mut act_one).await?;
        let (waiting, act_two) = Responder::new(key, fresh_key()?).act_one(&act_one)?;
        socket.write_all(&act_two).await?;
        let mut act_three = [0; ACT_THREE_BYTES];
        socket.read_exact(&mut act_three).await?;
        Ok::<Transport, ConnectionError>(waiting.act_three(&act_three)?)
    };
    let transport = in_time("the handshake", HANDSHAKE_TIME, acts).await?;
    traffic.add_sent(ACT_TWO_BYTES);
    traffic.add_received(ACT_ONE_BYTES + ACT_THREE_BYTES);
    Ok(established(socket, transport, traffic))
}

fn established(socket: TcpStream, transport: Transport, traffic: Arc<Traffic>) -> Connection {
    let Transport { remote, encryptor, decryptor } = transport;
    let (read_half, write_half) = socket.into_split();
    let reader = MessageReader {
        socket: BufReader::with_capacity(READ_BUFFER_BYTES, read_half),
        decryptor,
        body: Vec::new(),
        traffic: Arc::clone(&traffic),
    };
    let writer = MessageWriter { socket: write_half, encryptor, plain: Vec::new(), sealed: Vec::new(), traffic };
    Connection { remote, reader, writer }
}

/// Something that may not take for ever.
pub(crate) async fn in_time<T, E: From<ConnectionError>>(
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(ConnectionError::TimedOut(what, limit.as_secs()).into()),
    }
}

/// For one handshake only.
fn fresh_key() -> Result<SecretKey, ConnectionError> {
    loop {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| ConnectionError::Randomness(error.to_string()))?;
        if let Ok(key) = SecretKey::from_slice(&bytes) {
            return Ok(key);
        }
    }
}

impl MessageReader {
    /// The next message. Not to be given up half-way: what was read of it would be lost.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn next(&mut self) -> Result<Message, ConnectionError> {
        let mut header = [0; LENGTH_HEADER_BYTES];
        self.socket.read_exact(&mut header).await?;
        let length = usize::from(self.decryptor.decrypt_length(&header)?);
        self.body.clear();
        self.body.resize(length + BODY_TAG_BYTES, 0);
        self.socket.read_exact(&mut self.body).await?;
        self.traffic.add_received(LENGTH_HEADER_BYTES + self.body.len());
        self.decryptor.decrypt_body(&mut self.body)?;
        Ok(Message::decode(&self.body)?)
    }
}

impl MessageWriter {
    /// Encrypts a message, to be written with others; gives the bytes of its plain form.
    ///
    /// # Errors
    /// If it is too long, which none of ours is.
    pub fn put(&mut self, message: &Message) -> Result<usize, ConnectionError> {
        self.plain.clear();
        message.encode(&mut self.plain);
        self.encryptor.encrypt(&self.plain, &mut self.sealed)?;
        Ok(self.plain.len())
    }

    /// Bytes that were put and not written.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.sealed.len()
    }

    /// Writes all that was put.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        let write = async { Ok::<(), ConnectionError>(self.socket.write_all(&self.sealed).await?) };
        in_time("a write", WRITE_TIME, write).await?;
        self.traffic.add_sent(self.sealed.len());
        self.sealed.clear();
        Ok(())
    }

    /// Puts and writes one message.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn send(&mut self, message: &Message) -> Result<(), ConnectionError> {
        self.put(message)?;
        self.flush().await
    }
}
