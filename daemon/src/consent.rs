//! Real money only with a second, explicit word: the software is young.

use bitcoin::Network;
use thiserror::Error;

use crate::config::Config;

/// Refusal to run with real money.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "refusing to run on the network bitcoin: this software is young, and its faults can lose all that you put into it. \
     To run it with real money nevertheless, add --i-accept-the-risk-of-losing-money (or set \
     i_accept_the_risk_of_losing_money = true in the file); to try it out, use --network regtest, signet or testnet4"
)]
pub struct NoConsent;

/// Checks that the operator agreed, if the network's coins are worth anything.
///
/// # Errors
/// [`NoConsent`].
pub fn check_consent(config: &Config) -> Result<(), NoConsent> {
    if config.network == Network::Bitcoin && !config.accepts_risk { Err(NoConsent) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn bitcoin_alone_needs_consent() {
        for network in [Network::Regtest, Network::Signet, Network::Testnet4] {
            assert_eq!(check_consent(&Config::defaults(network, Path::new("/"))), Ok(()));
        }
        let mut config = Config::defaults(Network::Bitcoin, Path::new("/"));
        assert_eq!(check_consent(&config), Err(NoConsent));
        config.accepts_risk = true;
        assert_eq!(check_consent(&config), Ok(()));
    }
}
