//! The encrypted and authenticated transport between two nodes (BOLT 8), as a machine without I/O.
//!
//! A handshake of three acts ends in a [`Transport`], whose two halves are owned separately: one
//! task may write while another reads. Bytes come in and go out as slices; keys are arguments. The ephemeral key
//! must be fresh for every connection: this crate has no randomness of its own.
//!
//! Keys are wiped when dropped, as far as this crate holds them; what the hash and curve libraries leave on the
//! stack is theirs.

mod handshake;
mod symmetric;
mod transport;

pub use handshake::{
    ACT_ONE_BYTES, ACT_THREE_BYTES, ACT_TWO_BYTES, Act, HandshakeError, Initiator, Responder, ResponderWaiting,
};
pub use transport::{BODY_TAG_BYTES, Decryptor, Encryptor, LENGTH_HEADER_BYTES, Part, Transport, TransportError};
