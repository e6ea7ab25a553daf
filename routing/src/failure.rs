//! Failures on their way back to the sender of a payment (BOLT 4, "Returning Errors").
//!
//! [`encrypt`] is for the node where an HTLC fails, [`wrap`] for each hop that passes a failure back, [`decode`]
//! for the sender. With attribution data these are [`fail`], [`pass_back`] and [`decode_attributed`], and
//! [`fulfill`] and [`hold_times`] for what goes back with a preimage. What a failure means for the graph or for the next attempt is decided elsewhere.

mod attribution;
pub mod code;
mod message;
mod packet;

pub use attribution::{
    Attributed, Failure, HoldTime, HoldTimes, MAX_ATTRIBUTED, decode_attributed, fail, fulfill, hold_times, pass_back,
};
pub use message::FailureMessage;
pub use packet::{Decoded, MAX_HOPS, Undecodable, decode, encrypt, wrap};
