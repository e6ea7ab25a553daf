//! Messages after the handshake (BOLT 8, "Lightning Message Specification").
//!
//! Each is an encrypted length and an encrypted body, and each direction has a key of its own that changes after 1000
//! uses. Reading and writing bytes is left to the connection.

use core::fmt;

use secp256k1::PublicKey;
use thiserror::Error;

use super::symmetric::{BadTag, Key, TAG_BYTES, hkdf, open, seal};

/// An encrypted length on the wire: two bytes and their tag.
pub const LENGTH_HEADER_BYTES: usize = 2 + TAG_BYTES;
/// By so many bytes an encrypted body is longer than the message in it.
pub const BODY_TAG_BYTES: usize = TAG_BYTES;

/// BOLT 8, "Lightning Message Key Rotation": a key is used so many times, which is 500 messages.
const ROTATE_AFTER: u64 = 1000;

/// Why a message cannot be sent or read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TransportError {
    /// The message to send is longer than BOLT 8 can carry.
    #[error("a message of {len} bytes is longer than 65535")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// What came was not sent by the peer in this place. The connection is of no use any more.
    #[error("message {number}: authentication of its {part} failed")]
    Mac {
        /// How many messages came before it.
        number: u64,
        /// Length or body.
        part: Part,
    },
    /// The caller asked for a part that is not the next, or gave a body of another length than was announced.
    #[error("message {number}: {found} bytes of {part} given, {expected} expected")]
    OutOfTurn {
        /// How many messages came before it.
        number: u64,
        /// What was given.
        part: Part,
        /// Bytes that were due of that part; 0 when it is not its turn.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// An earlier message failed.
    #[error("the connection already failed authentication")]
    Dead,
}

/// A message's two halves on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The length header.
    Length,
    /// The body.
    Body,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "length",
            Self::Body => "body",
        })
    }
}

/// A finished handshake: the peer's proven identity, and both directions.
#[derive(Debug)]
pub struct Transport {
    /// The peer's static key: its node id.
    pub remote: PublicKey,
    /// For what we send.
    pub encryptor: Encryptor,
    /// For what we receive.
    pub decryptor: Decryptor,
}

impl Transport {
    pub(crate) fn new(remote: PublicKey, chaining_key: Key, sending: Key, receiving: Key) -> Self {
        let encryptor = Encryptor { cipher: Cipher::new(chaining_key.clone(), sending) };
        let cipher = Cipher::new(chaining_key, receiving);
        let decryptor = Decryptor { cipher, number: 0, next: Next::Length };
        Self { remote, encryptor, decryptor }
    }
}

/// One direction's key, how often it was used, and what its successor is made of.
struct Cipher {
    chaining_key: Key,
    key: Key,
    nonce: u64,
}

impl Cipher {
    fn new(chaining_key: Key, key: Key) -> Self {
        Self { chaining_key, key, nonce: 0 }
    }

    fn seal(&mut self, buffer: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = self.next_nonce();
        seal(&self.key, nonce, &[], buffer)
    }

    fn open(&mut self, buffer: &mut [u8], tag: &[u8; TAG_BYTES]) -> Result<(), BadTag> {
        let nonce = self.next_nonce();
        open(&self.key, nonce, &[], buffer, tag)
    }

    fn next_nonce(&mut self) -> u64 {
        if self.nonce == ROTATE_AFTER {
            (self.chaining_key, self.key) = hkdf(&self.chaining_key, &self.key[..]);
            self.nonce = 0;
        }
        let nonce = self.nonce;
        self.nonce += 1;
        nonce
    }
}

/// Encrypts what is sent.
pub struct Encryptor {
    cipher: Cipher,
}

impl Encryptor {
    /// Appends `plaintext`, encrypted as one message, to `out`.
    ///
    /// # Errors
    /// When it is longer than 65535 bytes; nothing has happened then.
    pub fn encrypt(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TransportError> {
        let len = plaintext.len();
        let mut header = u16::try_from(len).map_err(|_| TransportError::TooLong { len })?.to_be_bytes();
        out.reserve(LENGTH_HEADER_BYTES + len + BODY_TAG_BYTES);
        let tag = self.cipher.seal(&mut header);
        out.extend_from_slice(&header);
        out.extend_from_slice(&tag);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let tag = self.cipher.seal(&mut out[start..]);
        out.extend_from_slice(&tag);
        Ok(())
    }
}

/// Decrypts what is received: length and body in turn.
pub struct Decryptor {
    cipher: Cipher,
    /// Messages read so far.
    number: u64,
    next: Next,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Length,
    Body(u16),
    Dead,
}

impl Decryptor {
    /// The length of the next message: read so many bytes and [`BODY_TAG_BYTES`] more for its body.
    ///
    /// # Errors
    /// When it is not authentic: the connection is dead. When a body is due: nothing has happened.
    pub fn decrypt_length(&mut self, header: &[u8; LENGTH_HEADER_BYTES]) -> Result<u16, TransportError> {
        match self.next {
            Next::Length => {}
            Next::Body(_) => return Err(self.out_of_turn(Part::Length, 0, header.len())),
            Next::Dead => return Err(TransportError::Dead),
        }
        let [high, low, tag @ ..] = *header;
        let mut length = [high, low];
        self.open(Part::Length, &mut length, &tag)?;
        let length = u16::from_be_bytes(length);
        self.next = Next::Body(length);
        Ok(length)
    }

    /// Decrypts the body of the message whose length was read last: `buffer` holds it with its tag, and afterwards the
    /// message alone.
    ///
    /// # Errors
    /// When it is not authentic: the connection is dead. When it is not a body's turn or not its length: nothing has happened.
    pub fn decrypt_body(&mut self, buffer: &mut Vec<u8>) -> Result<(), TransportError> {
        let found = buffer.len();
        let len = match self.next {
            Next::Body(len) => usize::from(len),
            Next::Length => return Err(self.out_of_turn(Part::Body, 0, found)),
            Next::Dead => return Err(TransportError::Dead),
        };
        let expected = len + BODY_TAG_BYTES;
        if found != expected {
            return Err(self.out_of_turn(Part::Body, expected, found));
        }
        let tag = *buffer.last_chunk().expect("it is a tag longer than the message");
        buffer.truncate(len);
        self.open(Part::Body, buffer, &tag)?;
        self.number += 1;
        self.next = Next::Length;
        Ok(())
    }

    fn open(&mut self, part: Part, buffer: &mut [u8], tag: &[u8; TAG_BYTES]) -> Result<(), TransportError> {
        let number = self.number;
        self.cipher.open(buffer, tag).map_err(|BadTag| {
            self.next = Next::Dead;
            TransportError::Mac { number, part }
        })
    }

    const fn out_of_turn(&self, part: Part, expected: usize, found: usize) -> TransportError {
        TransportError::OutOfTurn { number: self.number, part, expected, found }
    }
}

impl fmt::Debug for Encryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encryptor(…)")
    }
}

impl fmt::Debug for Decryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decryptor(…)")
    }
}
