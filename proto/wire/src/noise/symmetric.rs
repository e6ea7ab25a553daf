//! What both parts of BOLT 8 are made of: HKDF over SHA-256, and ChaCha20-Poly1305 with a counter as nonce.

use bitcoin::hashes::{Hash as _, HashEngine as _, Hmac, HmacEngine, sha256};
use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _, Nonce, Tag};
use zeroize::Zeroizing;

/// 32 bytes that are wiped when dropped.
pub(crate) type Key = Zeroizing<[u8; 32]>;

/// The length of an authentication tag.
pub(crate) const TAG_BYTES: usize = 16;

/// A tag that does not fit its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadTag;

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Key {
    let mut engine = HmacEngine::<sha256::Hash>::new(key);
    for part in parts {
        engine.input(part);
    }
    Key::new(Hmac::from_engine(engine).to_byte_array())
}

/// Two keys from `salt` and `secret` (RFC 5869, with no info).
pub(crate) fn hkdf(salt: &[u8; 32], secret: &[u8]) -> (Key, Key) {
    let extracted = hmac(salt, &[secret]);
    let first = hmac(&extracted, &[&[1]]);
    let second = hmac(&extracted, &[&first[..], &[2]]);
    (first, second)
}

/// Encrypts `buffer` where it is and returns its tag.
pub(crate) fn seal(key: &Key, nonce: u64, ad: &[u8], buffer: &mut [u8]) -> [u8; TAG_BYTES] {
    ChaCha20Poly1305::new((&**key).into())
        .encrypt_in_place_detached(&nonce_bytes(nonce), ad, buffer)
        .expect("BOLT 8's messages are far below ChaCha20's limit of 256 GiB")
        .into()
}

/// Checks `tag` and only then decrypts `buffer` where it is.
pub(crate) fn open(key: &Key, nonce: u64, ad: &[u8], buffer: &mut [u8], tag: &[u8; TAG_BYTES]) -> Result<(), BadTag> {
    ChaCha20Poly1305::new((&**key).into())
        .decrypt_in_place_detached(&nonce_bytes(nonce), ad, buffer, Tag::from_slice(tag))
        .map_err(|_| BadTag)
}

/// BOLT 8: 32 zero bits, then the counter in little-endian.
fn nonce_bytes(nonce: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&nonce.to_le_bytes());
    bytes.into()
}
