//! Payment onions: a route wrapped so that each hop reads its own instructions alone (BOLT 4, "Packet Structure").
//!
//! [`build`] makes an onion, [`peel`] takes one layer off. Both are our own and LDK's public functions are the
//! oracle in the tests, for three reasons. The sender needs each hop's shared secret to read a failure, and
//! LDK's `create_payment_onion` keeps them to itself: a second ECDH per hop. Its `peel_payment_onion` returns no
//! shared secret with an error, so that the failure could not be encrypted. And it judges by its own margins
//! (a forward's delta of 48 blocks, a final expiry beyond the height + 40), where the switch and the invoice
//! are to decide.
//!
//! [`peel`] judges a final hop by the HTLC's own amount and expiry, never by what the onion claims. It does not
//! judge a forward's fee and expiry delta, the payment secret or the total: who knows the channels and the
//! invoices does. It remembers nothing, so replays are the caller's to find. Blinded hops (BOLT 4, "Route
//! Blinding") and trampolines are not understood and refused as such.

mod bigsize;
mod payload;
mod peel;
mod sphinx;

use millrace_wire::{OnionPacket, PaymentHash};
use secp256k1::{PublicKey, SecretKey};

pub use payload::{FinalPayload, ForwardPayload, Payload};
pub use peel::{FINAL_EXPIRY_MARGIN, Final, Forward, Incoming, PeelFault, Peeled, PeeledHop, peel};

pub(crate) use bigsize::{put_bigsize, take_bigsize};

use crate::cipher::SharedSecret;

/// One hop of a route, in the order of travel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hop {
    /// Who reads this layer.
    pub node_id: PublicKey,
    /// What it says.
    pub payload: Payload,
}

/// An onion, ready for `update_add_htlc`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuiltOnion {
    /// What the first hop gets.
    pub packet: Box<OnionPacket>,
    /// One for each hop, first hop first: what a failure is decoded with.
    pub shared_secrets: Vec<SharedSecret>,
}

/// Why no onion can be made of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OnionError {
    /// There is nobody to send to.
    #[error("a route without hops")]
    NoHops,
    /// The layers do not fit.
    #[error("{hops} hops take {bytes} bytes of onion, of 1300 at most")]
    TooLong {
        /// How many hops the route has.
        hops: usize,
        /// How many bytes their payloads and HMACs take.
        bytes: usize,
    },
    /// Only the last hop can be final, and it must be.
    #[error("hop {hop} of {hops} has the payload of another place in the route")]
    Misplaced {
        /// Its index, from 0.
        hop: usize,
        /// How many hops the route has.
        hops: usize,
    },
    /// BOLT 4 keeps the types below 65536 for itself, and each may occur once.
    #[error("custom record {kind} is reserved or comes twice")]
    CustomType {
        /// Its type.
        kind: u64,
    },
    /// A blinded key fell on the point at infinity, which no session key of good randomness brings about.
    #[error("the session key does not work with hop {hop}")]
    Key {
        /// The hop's index, from 0.
        hop: usize,
    },
}

/// Wraps a route into an onion bound to `payment_hash`.
///
/// `session_key` must be fresh and random for each onion. The same key and hops make the same onion again.
///
/// # Errors
/// [`OnionError`] when the route is empty, misordered, or does not fit into 1300 bytes.
pub fn build(session_key: &SecretKey, hops: &[Hop], payment_hash: &PaymentHash) -> Result<BuiltOnion, OnionError> {
    let mut layers = Vec::with_capacity(hops.len());
    for (index, hop) in hops.iter().enumerate() {
        if matches!(hop.payload, Payload::Final(_)) != (index + 1 == hops.len()) {
            return Err(OnionError::Misplaced { hop: index, hops: hops.len() });
        }
        layers.push(sphinx::Layer { node_id: hop.node_id, payload: hop.payload.encode()? });
    }
    sphinx::build(session_key, &layers, &payment_hash.0)
}

/// The secrets that [`build`] would share with these nodes, for who kept the session key alone.
///
/// # Errors
/// [`OnionError::Key`], as [`build`].
pub fn shared_secrets(session_key: &SecretKey, nodes: &[PublicKey]) -> Result<Vec<SharedSecret>, OnionError> {
    Ok(sphinx::share(session_key, nodes.iter().copied())?.1)
}

#[cfg(test)]
mod tests;
