//! The three acts (BOLT 8, "Authenticated Key Exchange Handshake Specification").
//!
//! One type per moment, so that no act can be played twice or out of order. An act that fails ends the
//! handshake: the state is consumed with it.

use core::fmt;

use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use secp256k1::ecdh::SharedSecret;
use secp256k1::{PublicKey, SECP256K1, SecretKey};
use thiserror::Error;
use zeroize::Zeroizing;

use super::symmetric::{BadTag, Key, TAG_BYTES, hkdf, open, seal};
use super::transport::Transport;

/// Length of act one: version, ephemeral key, tag.
pub const ACT_ONE_BYTES: usize = 50;
/// Length of act two: version, ephemeral key, tag.
pub const ACT_TWO_BYTES: usize = 50;
/// Length of act three: version, encrypted static key with its tag, tag.
pub const ACT_THREE_BYTES: usize = 66;

const PROTOCOL_NAME: &[u8] = b"Noise_XK_secp256k1_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"lightning";
const VERSION: u8 = 0;
const POINT_BYTES: usize = 33;

/// One of the handshake's three messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// From the initiator: proves that it knows whom it calls.
    One,
    /// From the responder: proves that it is the one called.
    Two,
    /// From the initiator: says who it is.
    Three,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "act one",
            Self::Two => "act two",
            Self::Three => "act three",
        })
    }
}

/// Why a handshake failed. In every case the connection is to be closed without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HandshakeError {
    /// Not as long as the act is.
    #[error("{act}: {found} bytes instead of {needed}")]
    Length {
        /// The act.
        act: Act,
        /// Its length.
        needed: usize,
        /// How many bytes came.
        found: usize,
    },
    /// A version other than 0.
    #[error("{act}: version {found} is unknown")]
    Version {
        /// The act.
        act: Act,
        /// The version byte.
        found: u8,
    },
    /// The key in it is no point of the curve.
    #[error("{act}: not a public key")]
    Key {
        /// The act.
        act: Act,
    },
    /// Its last tag is wrong: the peer is not who it should be, or does not know whom it called.
    #[error("{act}: authentication failed")]
    Mac {
        /// The act.
        act: Act,
    },
    /// The tag of the static key in act three is wrong.
    #[error("act three: the encrypted static key is not authentic")]
    Ciphertext,
}

/// A secret key that is wiped when dropped.
struct Secret(SecretKey);

impl Secret {
    fn public_key(&self) -> PublicKey {
        self.0.public_key(SECP256K1)
    }

    /// BOLT 8's ECDH: SHA-256 of the compressed shared point.
    fn ecdh(&self, other: &PublicKey) -> Key {
        let mut shared = SharedSecret::new(other, &self.0);
        let key = Key::new(shared.secret_bytes());
        shared.non_secure_erase();
        key
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}

/// The running hash and the chaining key: `h` and `ck`.
struct State {
    hash: [u8; 32],
    chaining_key: Key,
}

impl State {
    fn new(responder: &PublicKey) -> Self {
        let hash = sha256::Hash::hash(PROTOCOL_NAME).to_byte_array();
        let mut state = Self { hash, chaining_key: Key::new(hash) };
        state.mix_hash(PROLOGUE);
        state.mix_hash(&responder.serialize());
        state
    }

    fn mix_hash(&mut self, data: &[u8]) {
        let mut engine = sha256::Hash::engine();
        engine.input(&self.hash);
        engine.input(data);
        self.hash = sha256::Hash::from_engine(engine).to_byte_array();
    }

    /// Takes a shared secret in and gives the act's temporary key.
    fn mix_key(&mut self, secret: &Key) -> Key {
        let (chaining_key, temporary) = hkdf(&self.chaining_key, &secret[..]);
        self.chaining_key = chaining_key;
        temporary
    }

    /// The tag over what has been said so far.
    fn prove(&mut self, key: &Key) -> [u8; TAG_BYTES] {
        let tag = seal(key, 0, &self.hash, &mut []);
        self.mix_hash(&tag);
        tag
    }

    fn check(&mut self, key: &Key, tag: &[u8; TAG_BYTES]) -> Result<(), BadTag> {
        open(key, 0, &self.hash, &mut [], tag)?;
        self.mix_hash(tag);
        Ok(())
    }

    /// The initiator's keys: sending, then receiving.
    fn split(&self) -> (Key, Key) {
        hkdf(&self.chaining_key, &[])
    }

    fn chaining_key(&self) -> Key {
        self.chaining_key.clone()
    }
}

/// Acts one and two are alike: version, point, tag.
fn ephemeral_act(point: &PublicKey, tag: [u8; TAG_BYTES]) -> [u8; ACT_ONE_BYTES] {
    let mut act = [VERSION; ACT_ONE_BYTES];
    act[1..=POINT_BYTES].copy_from_slice(&point.serialize());
    act[1 + POINT_BYTES..].copy_from_slice(&tag);
    act
}

fn read_ephemeral_act(act: Act, bytes: &[u8]) -> Result<(PublicKey, [u8; TAG_BYTES]), HandshakeError> {
    let bytes: &[u8; ACT_ONE_BYTES] = whole(act, bytes)?;
    let point = PublicKey::from_slice(&bytes[1..=POINT_BYTES]).map_err(|_| HandshakeError::Key { act })?;
    Ok((point, last_tag(bytes)))
}

/// The act at its full length and of our version.
fn whole<const N: usize>(act: Act, bytes: &[u8]) -> Result<&[u8; N], HandshakeError> {
    let found = bytes.len();
    let bytes: &[u8; N] = bytes.try_into().map_err(|_| HandshakeError::Length { act, needed: N, found })?;
    if bytes[0] != VERSION {
        return Err(HandshakeError::Version { act, found: bytes[0] });
    }
    Ok(bytes)
}

fn last_tag(bytes: &[u8]) -> [u8; TAG_BYTES] {
    *bytes.last_chunk().expect("an act is longer than a tag")
}

/// The side that opens the connection, waiting for act two.
pub struct Initiator {
    local: Secret,
    ephemeral: Secret,
    remote: PublicKey,
    state: State,
}

impl Initiator {
    /// Begins a handshake with the node `remote` and gives act one. `ephemeral` must be fresh.
    #[must_use]
    pub fn new(local: SecretKey, remote: PublicKey, ephemeral: SecretKey) -> (Self, [u8; ACT_ONE_BYTES]) {
        let (local, ephemeral) = (Secret(local), Secret(ephemeral));
        let mut state = State::new(&remote);
        let point = ephemeral.public_key();
        state.mix_hash(&point.serialize());
        let key = state.mix_key(&ephemeral.ecdh(&remote));
        let act_one = ephemeral_act(&point, state.prove(&key));
        (Self { local, ephemeral, remote, state }, act_one)
    }

    /// Reads act two; gives act three, which is still to be sent, and the transport behind it.
    ///
    /// # Errors
    /// When the responder is not the node that was called, or speaks another version.
    pub fn act_two(mut self, bytes: &[u8]) -> Result<([u8; ACT_THREE_BYTES], Transport), HandshakeError> {
        let act = Act::Two;
        let (remote_ephemeral, tag) = read_ephemeral_act(act, bytes)?;
        let state = &mut self.state;
        state.mix_hash(&remote_ephemeral.serialize());
        let key = state.mix_key(&self.ephemeral.ecdh(&remote_ephemeral));
        state.check(&key, &tag).map_err(|BadTag| HandshakeError::Mac { act })?;
        let act_three = self.act_three(&key, &remote_ephemeral);
        let (sending, receiving) = self.state.split();
        let chaining_key = self.state.chaining_key();
        Ok((act_three, Transport::new(self.remote, chaining_key, sending, receiving)))
    }

    fn act_three(&mut self, key: &Key, remote_ephemeral: &PublicKey) -> [u8; ACT_THREE_BYTES] {
        let state = &mut self.state;
        let mut sealed = [0; POINT_BYTES + TAG_BYTES];
        sealed[..POINT_BYTES].copy_from_slice(&self.local.public_key().serialize());
        let tag = seal(key, 1, &state.hash, &mut sealed[..POINT_BYTES]);
        sealed[POINT_BYTES..].copy_from_slice(&tag);
        state.mix_hash(&sealed);
        let key = state.mix_key(&self.local.ecdh(remote_ephemeral));
        let tag = state.prove(&key);

        let mut act = [VERSION; ACT_THREE_BYTES];
        act[1..=sealed.len()].copy_from_slice(&sealed);
        act[1 + sealed.len()..].copy_from_slice(&tag);
        act
    }
}

/// The side that is called, waiting for act one.
pub struct Responder {
    local: Secret,
    ephemeral: Secret,
}

/// The side that is called, waiting for act three.
pub struct ResponderWaiting {
    ephemeral: Secret,
    key: Key,
    state: State,
}

impl Responder {
    /// Waits for a caller. `ephemeral` must be fresh.
    #[must_use]
    pub fn new(local: SecretKey, ephemeral: SecretKey) -> Self {
        Self { local: Secret(local), ephemeral: Secret(ephemeral) }
    }

    /// Reads act one; gives act two, which is to be sent.
    ///
    /// # Errors
    /// When the caller does not know our key, or speaks another version.
    pub fn act_one(self, bytes: &[u8]) -> Result<(ResponderWaiting, [u8; ACT_TWO_BYTES]), HandshakeError> {
        let act = Act::One;
        let (remote_ephemeral, tag) = read_ephemeral_act(act, bytes)?;
        let Self { local, ephemeral } = self;
        let mut state = State::new(&local.public_key());
        state.mix_hash(&remote_ephemeral.serialize());
        let key = state.mix_key(&local.ecdh(&remote_ephemeral));
        state.check(&key, &tag).map_err(|BadTag| HandshakeError::Mac { act })?;

        let point = ephemeral.public_key();
        state.mix_hash(&point.serialize());
        let key = state.mix_key(&ephemeral.ecdh(&remote_ephemeral));
        let act_two = ephemeral_act(&point, state.prove(&key));
        Ok((ResponderWaiting { ephemeral, key, state }, act_two))
    }
}

impl ResponderWaiting {
    /// Reads act three and learns who the caller is.
    ///
    /// # Errors
    /// When the caller cannot prove its key, or speaks another version.
    pub fn act_three(mut self, bytes: &[u8]) -> Result<Transport, HandshakeError> {
        let act = Act::Three;
        let bytes: &[u8; ACT_THREE_BYTES] = whole(act, bytes)?;
        let remote = self.open_static_key(&bytes[1..=POINT_BYTES + TAG_BYTES])?;
        let state = &mut self.state;
        let key = state.mix_key(&self.ephemeral.ecdh(&remote));
        state.check(&key, &last_tag(bytes)).map_err(|BadTag| HandshakeError::Mac { act })?;
        let (receiving, sending) = state.split();
        Ok(Transport::new(remote, state.chaining_key(), sending, receiving))
    }

    fn open_static_key(&mut self, sealed: &[u8]) -> Result<PublicKey, HandshakeError> {
        let (ciphertext, _) = sealed.split_at(POINT_BYTES);
        let mut point = Zeroizing::new([0; POINT_BYTES]);
        point.copy_from_slice(ciphertext);
        open(&self.key, 1, &self.state.hash, &mut point[..], &last_tag(sealed))
            .map_err(|BadTag| HandshakeError::Ciphertext)?;
        self.state.mix_hash(sealed);
        PublicKey::from_slice(&point[..]).map_err(|_| HandshakeError::Key { act: Act::Three })
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Responder(…)")
    }
}

impl fmt::Debug for ResponderWaiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponderWaiting(…)")
    }
}
