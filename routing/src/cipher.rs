//! The keys and ciphers that onions and failure packets share (BOLT 4, "Key Generation" and
//! "Pseudo Random Byte Stream").
//!
//! Every key is an HMAC of the shared secret under a label, every stream is ChaCha20 from a zero nonce.
//! What the bytes mean is not known here.

use core::fmt;

use bitcoin::hashes::{Hash as _, HashEngine as _, Hmac, HmacEngine, cmp::fixed_time_eq, sha256};
use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit as _, StreamCipher as _};
use secp256k1::{PublicKey, SecretKey, ecdh};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// What the sender of an onion and one of its hops have in common, and nobody else.
///
/// With it a hop reads its layer and encrypts a failure; with all of a route's secrets the sender reads that
/// failure.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct SharedSecret([u8; 32]);

impl SharedSecret {
    /// From its 32 bytes, as kept by whoever peeled or built the onion.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// BOLT 4, "Shared Secret": the SHA-256 of the compressed point `secret · public`.
    pub(crate) fn between(public: &PublicKey, secret: &SecretKey) -> Self {
        Self(ecdh::SharedSecret::new(public, secret).secret_bytes())
    }

    pub(crate) fn key(&self, label: Label) -> Key {
        Key::derive(label, &self.0)
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(…)")
    }
}

/// BOLT 4's key types.
#[derive(Clone, Copy)]
pub(crate) enum Label {
    /// Encrypts the routing info.
    Rho,
    /// Authenticates the onion.
    Mu,
    /// Authenticates a failure, and attribution data.
    Um,
    /// Encrypts a failure.
    Ammag,
    /// Encrypts attribution data.
    AmmagExt,
    /// Fills the last hop's unused room.
    Pad,
}

impl Label {
    const fn bytes(self) -> &'static [u8] {
        match self {
            Self::Rho => b"rho",
            Self::Mu => b"mu",
            Self::Um => b"um",
            Self::Ammag => b"ammag",
            Self::AmmagExt => b"ammagext",
            Self::Pad => b"pad",
        }
    }
}

/// A key derived for one purpose.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn derive(label: Label, secret: &[u8; 32]) -> Self {
        let mut engine = HmacEngine::<sha256::Hash>::new(label.bytes());
        engine.input(secret);
        Self(Hmac::from_engine(engine).to_byte_array())
    }

    /// XORs the key's stream onto `bytes`, starting `skip` bytes into the stream.
    pub(crate) fn apply_stream_from(&self, skip: usize, bytes: &mut [u8]) {
        let mut cipher = ChaCha20::new((&self.0).into(), &[0; 12].into());
        let mut skipped = [0; 64];
        let mut left = skip;
        while left > 0 {
            let step = left.min(skipped.len());
            cipher.apply_keystream(&mut skipped[..step]);
            left -= step;
        }
        cipher.apply_keystream(bytes);
    }

    /// XORs the key's stream onto `bytes`, and what follows of it onto `more`.
    pub(crate) fn apply_stream_on_both(&self, bytes: &mut [u8], more: &mut [u8]) {
        let mut cipher = ChaCha20::new((&self.0).into(), &[0; 12].into());
        cipher.apply_keystream(bytes);
        cipher.apply_keystream(more);
    }

    /// XORs the key's stream onto `bytes`.
    pub(crate) fn apply_stream(&self, bytes: &mut [u8]) {
        self.apply_stream_from(0, bytes);
    }

    pub(crate) fn hmac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut engine = HmacEngine::<sha256::Hash>::new(&self.0);
        for part in parts {
            engine.input(part);
        }
        Hmac::from_engine(engine).to_byte_array()
    }

    /// Whether `mac` begins the HMAC of the parts, in a time that does not tell where they differ.
    pub(crate) fn is_hmac(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        self.hmac(parts).get(..mac.len()).is_some_and(|expected| fixed_time_eq(expected, mac))
    }
}
