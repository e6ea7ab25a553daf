//! What a start needs before anything runs: consent, the folder, the seed and its keys, certificate and token.

use std::path::Path;
use std::time::SystemTime;

use bitcoin::Network;
use thiserror::Error;

use crate::config::Config;
use crate::consent::{NoConsent, check_consent};
use crate::data_dir::{DataDir, DataDirError};
use crate::keys::Keys;
use crate::seed::{self, Origin, Seed, SeedError};
use crate::tls::{self, Tls, TlsError};
use crate::token::{AccessToken, TokenError};

/// All that the node starts from.
#[derive(Debug)]
pub struct Prepared {
    /// The settings.
    pub config: Config,
    /// The folder, locked as long as this lives.
    pub data_dir: DataDir,
    /// Every key.
    pub keys: Keys,
    /// The certificate of gRPC.
    pub tls: Tls,
    /// What gRPC clients must show.
    pub token: AccessToken,
    /// The seed, if it was made just now and the operator should see it once.
    pub new_seed: Option<Seed>,
}

/// Why the node cannot start.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// Real money, and no consent.
    #[error(transparent)]
    Consent(#[from] NoConsent),
    /// The folder.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The seed.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The access token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Takes the folder and opens, or makes, what is in it.
///
/// # Errors
/// [`PrepareError`]; each says what to do.
pub fn prepare(config: Config) -> Result<Prepared, PrepareError> {
    check_consent(&config)?;
    let data_dir = DataDir::open(&config.data_dir, config.network)?;
    let (seed, origin) = seed::open(&data_dir)?;
    let keys = Keys::derive(&seed, config.network);
    let tls = tls::open(&data_dir, config.rpc_listen, SystemTime::now())?;
    let token = AccessToken::open(&data_dir)?;
    let new_seed = (origin == Origin::Created).then_some(seed);
    Ok(Prepared { config, data_dir, keys, tls, token, new_seed })
}

/// The first block that may pay to a wallet of this software: it is younger. All of the test networks is quickly read.
const fn oldest_wallet(network: Network) -> u32 {
    match network {
        Network::Bitcoin => 900_000,
        _ => 1,
    }
}

/// Puts the seed whose words are in a file into a folder that has none. Its coins are looked for from this height on,
/// which is returned too; `None`: from that of the oldest wallet.
///
/// # Errors
/// [`PrepareError`].
pub fn restore_seed(config: &Config, words_file: &Path, from_height: Option<u32>) -> Result<(Keys, u32), PrepareError> {
    check_consent(config)?;
    let data_dir = DataDir::open(&config.data_dir, config.network)?;
    // The first block has nothing that can be spent.
    let from_height = from_height.unwrap_or(oldest_wallet(config.network)).max(1);
    let seed = seed::restore(&data_dir, words_file, from_height)?;
    Ok((Keys::derive(&seed, config.network), from_height))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_second_start_has_the_same_keys_and_shows_no_seed() {
        let home = tempfile::tempdir().unwrap();
        let config = Config::defaults(Network::Regtest, home.path());
        let first = prepare(config.clone()).unwrap();
        let (id, certificate) = (first.keys.node_id(), first.tls.certificate_pem.clone());
        assert!(first.new_seed.is_some());
        assert!(matches!(prepare(config.clone()).unwrap_err(), PrepareError::DataDir(DataDirError::InUse { .. })));
        drop(first);
        let second = prepare(config).unwrap();
        assert_eq!((second.keys.node_id(), second.tls.certificate_pem.clone()), (id, certificate));
        assert!(second.new_seed.is_none());
    }

    #[test]
    fn without_consent_nothing_is_created() {
        let home = tempfile::tempdir().unwrap();
        let config = Config::defaults(Network::Bitcoin, home.path());
        assert!(matches!(prepare(config).unwrap_err(), PrepareError::Consent(_)));
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_restored_seed_gives_the_same_node() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = prepare(Config::defaults(Network::Regtest, home.path())).unwrap();
        let words = other.path().join("words");
        std::fs::write(&words, first.new_seed.as_ref().unwrap().words()).unwrap();
        let config = Config::defaults(Network::Regtest, other.path());
        let (keys, from) = restore_seed(&config, &words, Some(77)).unwrap();
        assert_eq!((keys.node_id(), from), (first.keys.node_id(), 77));
        let restored = prepare(config).unwrap();
        assert_eq!(restored.keys.node_id(), first.keys.node_id());
        assert_eq!(
            (restored.data_dir.restore_from().unwrap(), first.data_dir.restore_from().unwrap()),
            (Some(77), None)
        );
    }
}
