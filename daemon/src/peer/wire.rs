//! Encrypted messages over a TCP connection (BOLT 8, "Lightning Message Specification").

use std::io;

use millrace_wire::noise::{BODY_TAG_BYTES, Decryptor, Encryptor, LENGTH_HEADER_BYTES, TransportError};
use millrace_wire::{EncodeError, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// What is read from a socket at once.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// Why nothing more can be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The cipher.
    #[error("{0}")]
    Transport(#[from] TransportError),
    /// A message of ours that is none.
    #[error("{0}")]
    Encode(#[from] EncodeError),
}

impl WireError {
    /// Whether the peer simply closed.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::UnexpectedEof,
            Self::Transport(_) | Self::Encode(_) => false,
        }
    }

    /// Whether the peer closed, in whatever way.
    pub(crate) fn is_hang_up(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match self {
            Self::Io(error) => {
                matches!(error.kind(), UnexpectedEof | BrokenPipe | ConnectionAborted | ConnectionReset)
            }
            Self::Transport(_) | Self::Encode(_) => false,
        }
    }
}

/// What comes in.
pub(crate) struct WireReader {
    socket: BufReader<OwnedReadHalf>,
    decryptor: Decryptor,
    body: Vec<u8>,
}

impl WireReader {
    pub(crate) fn new(socket: OwnedReadHalf, decryptor: Decryptor) -> Self {
        Self { socket: BufReader::with_capacity(READ_BUFFER_BYTES, socket), decryptor, body: Vec::new() }
    }

    /// The next message, whole. Not to be given up half-way: what was read of it would be lost.
    pub(crate) async fn next(&mut self) -> Result<&[u8], WireError> {
        let mut header = [0; LENGTH_HEADER_BYTES];
        self.socket.read_exact(&mut header).await?;
        let length = self.decryptor.decrypt_length(&header)?;
        self.body.clear();
        self.body.resize(usize::from(length) + BODY_TAG_BYTES, 0);
        self.socket.read_exact(&mut self.body).await?;
        self.decryptor.decrypt_body(&mut self.body)?;
        Ok(&self.body)
    }
}

/// What goes out.
pub(crate) struct WireWriter {
    socket: OwnedWriteHalf,
    encryptor: Encryptor,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

impl WireWriter {
    pub(crate) fn new(socket: OwnedWriteHalf, encryptor: Encryptor) -> Self {
        Self { socket, encryptor, plain: Vec::new(), sealed: Vec::new() }
    }

    /// Encrypts a message, to be written with others.
    pub(crate) fn put(&mut self, message: &Message) -> Result<(), WireError> {
        self.plain.clear();
        message.encode(&mut self.plain)?;
        self.encryptor.encrypt(&self.plain, &mut self.sealed)?;
        Ok(())
    }

    /// Encrypts a message that is bytes already, to be written with others.
    pub(crate) fn put_bytes(&mut self, message: &[u8]) -> Result<(), WireError> {
        self.encryptor.encrypt(message, &mut self.sealed)?;
        Ok(())
    }

    /// Bytes that were put and not written.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.sealed.len()
    }

    /// Writes all that was put.
    pub(crate) async fn flush(&mut self) -> Result<(), WireError> {
        self.socket.write_all(&self.sealed).await?;
        self.sealed.clear();
        Ok(())
    }

    /// Says that nothing more comes.
    pub(crate) async fn end(&mut self) {
        // The peer may be gone already.
        let _gone = self.socket.shutdown().await;
    }
}
