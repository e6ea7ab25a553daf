//! Failures on their way back to the sender of a payment (BOLT 4, "Returning Errors").
//!
//! [`encrypt`] is for the node where an HTLC fails, [`wrap`] for each hop that passes a failure back, [`decode`]
//! for the sender. What a failure means for the graph or for the next attempt is decided elsewhere.

pub mod code;
mod message;
mod packet;

pub use message::FailureMessage;
pub use packet::{Decoded, MAX_HOPS, Undecodable, decode, encrypt, wrap};
