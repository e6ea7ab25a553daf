//! The only bitcoind client.
