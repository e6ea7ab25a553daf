//! What a gRPC client must show: 32 random bytes as hex, in a file that only the owner can read.

use std::fs;
use std::io;
use std::path::PathBuf;

use bitcoin::hashes::{Hash, sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::data_dir::{DataDir, make_private, replace_secret};

/// Random bytes in a token.
const BYTES: usize = 32;

/// The token's digest: the token itself is only in the file.
#[derive(Clone)]
pub struct AccessToken {
    digest: sha256::Hash,
}

/// Why there is no token.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The operating system gave no randomness.
    #[error("the operating system gives no random numbers ({0})")]
    Randomness(getrandom::Error),
    /// What is in the file would be easy to guess.
    #[error("{path} holds {found} characters, a token has {}; remove the file to have a new one made", 2 * BYTES)]
    Weak {
        /// The file.
        path: PathBuf,
        /// How many characters it holds.
        found: usize,
    },
    /// The disk.
    #[error("cannot read or write {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

impl AccessToken {
    /// The folder's token, made if there is none.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn open(data_dir: &DataDir) -> Result<Self, TokenError> {
        let path = data_dir.access_token();
        let failed = |error| TokenError::Io { path: path.clone(), error };
        if !path.exists() {
            let mut bytes = Zeroizing::new([0; BYTES]);
            getrandom::fill(&mut *bytes).map_err(TokenError::Randomness)?;
            let text = Zeroizing::new(hex::encode(*bytes));
            replace_secret(&path, text.as_bytes()).map_err(failed)?;
            return Ok(Self::of(&text));
        }
        make_private(&path).map_err(failed)?;
        let text = Zeroizing::new(fs::read_to_string(&path).map_err(failed)?);
        let found = text.trim().len();
        if found < 2 * BYTES {
            return Err(TokenError::Weak { path, found });
        }
        Ok(Self::of(text.trim()))
    }

    /// The token with this text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self { digest: sha256::Hash::hash(text.as_bytes()) }
    }

    /// Whether this is the token. How long that takes says nothing about the token: digests are compared, and all of
    /// them.
    #[must_use]
    pub fn is(&self, presented: &str) -> bool {
        let presented = sha256::Hash::hash(presented.as_bytes()).to_byte_array();
        let differing =
            presented.iter().zip(self.digest.as_byte_array()).fold(0, |all, (one, other)| all | (one ^ other));
        std::hint::black_box(differing) == 0
    }
}

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use bitcoin::Network;

    use super::*;

    #[test]
    fn made_once_kept_and_recognised() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::open(home.path(), Network::Regtest).unwrap();
        let made = AccessToken::open(&data).unwrap();
        let text = fs::read_to_string(data.access_token()).unwrap();
        assert_eq!((text.len(), hex::decode(&text).unwrap().len()), (64, 32));
        assert_eq!(fs::metadata(data.access_token()).unwrap().mode() & 0o777, 0o600);
        let again = AccessToken::open(&data).unwrap();
        assert!(made.is(&text) && again.is(&text));
        assert!(!format!("{made:?}").contains(&text[..8]));
    }

    #[test]
    fn anything_else_is_not_the_token() {
        let token = AccessToken::of(&"a".repeat(64));
        for presented in ["", "a", &"a".repeat(63), &"a".repeat(65), &"A".repeat(64)] {
            assert!(!token.is(presented), "{presented}");
        }
        assert!(token.is(&"a".repeat(64)));
    }

    #[test]
    fn a_token_that_could_be_guessed_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::open(home.path(), Network::Regtest).unwrap();
        fs::write(data.access_token(), "secret\n").unwrap();
        let error = AccessToken::open(&data).unwrap_err();
        assert!(matches!(error, TokenError::Weak { found: 6, .. }), "{error}");
        fs::write(data.access_token(), format!("{}\n", "b".repeat(64))).unwrap();
        assert!(AccessToken::open(&data).unwrap().is(&"b".repeat(64)));
    }
}
