//! What can be wrong with a message's bytes (BOLT 1).
//!
//! Each error names the message, the field and where it stands. How to react to the peer is not decided here.

use thiserror::Error;

/// Bytes that are no message.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// Not even a type.
    #[error("a message of {len} bytes has no type")]
    NoType {
        /// Its length.
        len: usize,
    },
    /// More than BOLT 8 can carry.
    #[error("a message of {len} bytes is longer than 65535")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// BOLT 1, "Lightning Message Format": an even type must be understood.
    #[error("message type {type_number} is unknown and even, so it may not be ignored")]
    UnknownEven {
        /// The type.
        type_number: u16,
    },
    /// One field is wrong.
    #[error("{message}, {field} at byte {offset}: {fault}")]
    Field {
        /// The message's name.
        message: &'static str,
        /// The field's name.
        field: &'static str,
        /// Where the field starts, counted from the first byte of the message's type.
        offset: usize,
        /// What is wrong.
        fault: FieldFault,
    },
}

impl DecodeError {
    /// Whether the bytes were meant as gossip: nothing that a channel depends on.
    #[must_use]
    pub fn is_gossip(&self) -> bool {
        match self {
            Self::Field { message, .. } => super::gossip::NAMES.contains(message),
            Self::NoType { .. } | Self::TooLong { .. } | Self::UnknownEven { .. } => false,
        }
    }

    /// Whether the bytes were meant as a question about gossip, which wants an answer.
    #[must_use]
    pub fn is_gossip_question(&self) -> bool {
        match self {
            Self::Field { message, .. } => super::gossip::QUESTIONS.contains(message),
            Self::NoType { .. } | Self::TooLong { .. } | Self::UnknownEven { .. } => false,
        }
    }
}

/// What is wrong with one field.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FieldFault {
    /// The message ends inside it.
    #[error("needs {needed} bytes, {left} are left")]
    Short {
        /// Bytes it takes.
        needed: u64,
        /// Bytes there are.
        left: usize,
    },
    /// A BigSize that is longer than it must be.
    #[error("{value} is not in its shortest form")]
    NotMinimal {
        /// The number.
        value: u64,
    },
    /// Not a point of the curve.
    #[error("not a public key")]
    NotAPoint,
    /// Not a signature.
    #[error("not a signature")]
    NotASignature,
    /// TLV types do not rise.
    #[error("type {found} after type {previous}")]
    TlvOrder {
        /// The type before.
        previous: u64,
        /// This type.
        found: u64,
    },
    /// A TLV type that may not be ignored.
    #[error("type {found} is unknown and even, so it may not be ignored")]
    TlvUnknownEven {
        /// The type.
        found: u64,
    },
    /// A value that does not end where its length says.
    #[error("{extra} bytes too many")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A number or a length that the field cannot have.
    #[error("{found} is not {expected}")]
    Value {
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: u64,
    },
    /// LDK's decoder refused it.
    #[error("{reason}")]
    Refused {
        /// LDK's word for it.
        reason: String,
    },
}

/// A message that cannot be written.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum EncodeError {
    /// More than BOLT 8 can carry.
    #[error("{message} of {len} bytes is longer than 65535")]
    TooLong {
        /// The message's name.
        message: &'static str,
        /// Its length with the type.
        len: usize,
    },
    /// A [`Custom`](super::Custom) message outside the range that BOLT 1 leaves to everyone.
    #[error("custom message type {type_number} is below 32768")]
    NotCustom {
        /// The type.
        type_number: u16,
    },
}
