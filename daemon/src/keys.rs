//! Which key is where: everything derives from the seed, by paths that never change (BIP 32).
//!
//! | key | path |
//! |---|---|
//! | wallet, taproot (BIP 86) | `m/86'/COIN'/0'` |
//! | wallet, segwit (BIP 84) | `m/84'/COIN'/0'` |
//! | node id | `m/1296649292'/COIN'/0'` |
//! | seeds of channels | `m/1296649292'/COIN'/1'`, then by HMAC |
//! | secrets of invoices | `m/1296649292'/COIN'/2'`, then by HMAC |
//! | names before watchtowers | `m/1296649292'/COIN'/3'`, then by HMAC |
//!
//! 1296649292 is "MILL" in ASCII. COIN is 0 on the network bitcoin and 1 on all others (SLIP 44). "By HMAC" is
//! `HMAC-SHA256(private key, name || argument)`, with the names in this file. What one channel's seed becomes is
//! written down in `millrace_channel::keys`.

use std::fmt;

use bitcoin::bip32::{ChildNumber, Fingerprint, Xpriv, Xpub};
use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use bitcoin::{Network, NetworkKind};
use millrace_channel::keys::ChannelKeys;
use secp256k1::{Keypair, PublicKey, SECP256K1, SecretKey};
use zeroize::Zeroizing;

use crate::seed::Seed;

/// "MILL": the purpose under which Millrace's own keys stand.
const PURPOSE: u32 = 0x4d49_4c4c;
const NODE: u32 = 0;
const CHANNELS: u32 = 1;
const INVOICES: u32 = 2;
const TOWERS: u32 = 3;

/// Why a derivation along a fixed path cannot fail.
const DERIVES: &str = "fails only for one hash value in 2^127, which nobody can choose";

/// The keys of one node on one network.
#[derive(Clone)]
pub struct Keys {
    node: SecretKey,
    channels: Zeroizing<[u8; 32]>,
    invoices: Zeroizing<[u8; 32]>,
    towers: Zeroizing<[u8; 32]>,
    wallet: WalletKeys,
}

/// The two accounts of the on-chain wallet.
#[derive(Clone)]
pub struct WalletKeys {
    network: Network,
    fingerprint: Fingerprint,
    taproot: Xpriv,
    segwit: Xpriv,
}

/// Which of the two accounts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Account {
    /// BIP 86.
    Taproot,
    /// BIP 84.
    Segwit,
}

/// Which of an account's two branches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Branch {
    /// Addresses that were given to somebody.
    Receive,
    /// Addresses that only this wallet pays to.
    Change,
}

impl Keys {
    /// All keys that follow from the seed.
    #[must_use]
    pub fn derive(seed: &Seed, network: Network) -> Self {
        let master = Xpriv::new_master(NetworkKind::from(network), seed.bytes()).expect(DERIVES);
        let own = |family| hardened(&master, &[PURPOSE, coin(network), family]).private_key;
        Self {
            node: own(NODE),
            channels: Zeroizing::new(own(CHANNELS).secret_bytes()),
            invoices: Zeroizing::new(own(INVOICES).secret_bytes()),
            towers: Zeroizing::new(own(TOWERS).secret_bytes()),
            wallet: WalletKeys {
                network,
                fingerprint: master.fingerprint(SECP256K1),
                taproot: hardened(&master, &[86, coin(network), 0]),
                segwit: hardened(&master, &[84, coin(network), 0]),
            },
        }
    }

    /// The key of the node's identity: BOLT 8's handshake, invoices, onions.
    #[must_use]
    pub const fn node_key(&self) -> &SecretKey {
        &self.node
    }

    /// The node's identity.
    #[must_use]
    pub fn node_id(&self) -> PublicKey {
        self.node.public_key(SECP256K1)
    }

    /// The 32 secret bytes of the channel with this number. Numbers are never used twice.
    #[must_use]
    pub fn channel_seed(&self, index: u64) -> Zeroizing<[u8; 32]> {
        named(&self.channels, b"millrace/channel-seed/1/", &index.to_be_bytes())
    }

    /// The keys of the channel with this number.
    #[must_use]
    pub fn channel_keys(&self, index: u64) -> ChannelKeys {
        ChannelKeys::from_seed(&self.channel_seed(index))
    }

    /// The preimage of the invoice with this number. Numbers are never used twice.
    #[must_use]
    pub fn invoice_preimage(&self, index: u64) -> Zeroizing<[u8; 32]> {
        named(&self.invoices, b"millrace/preimage/1/", &index.to_be_bytes())
    }

    /// The `payment_secret` of the invoice with this hash.
    #[must_use]
    pub fn payment_secret(&self, payment_hash: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        named(&self.invoices, b"millrace/payment-secret/1/", payment_hash)
    }

    /// The key by which the watchtower with this key knows the node: one for each, so that two cannot tell that they have
    /// the same client, and none knows the node's identity.
    #[must_use]
    pub fn tower_key(&self, tower: &PublicKey) -> SecretKey {
        let bytes = named(&self.towers, b"millrace/tower-client/1/", &tower.serialize());
        SecretKey::from_slice(&*bytes).expect(DERIVES)
    }

    /// The on-chain wallet's.
    #[must_use]
    pub const fn wallet(&self) -> &WalletKeys {
        &self.wallet
    }
}

impl WalletKeys {
    /// The network they are for.
    #[must_use]
    pub const fn network(&self) -> Network {
        self.network
    }

    /// The public descriptor of a branch.
    #[must_use]
    pub fn descriptor(&self, account: Account, branch: Branch) -> String {
        let (function, purpose) = match account {
            Account::Taproot => ("tr", 86),
            Account::Segwit => ("wpkh", 84),
        };
        let xpub = Xpub::from_priv(SECP256K1, self.account(account));
        let (coin, branch) = (coin(self.network), branch.number());
        format!("{function}([{}/{purpose}'/{coin}'/0']{xpub}/{branch}/*)", self.fingerprint)
    }

    /// The key of one address.
    #[must_use]
    pub fn keypair(&self, account: Account, branch: Branch, index: u32) -> Keypair {
        let path = [branch.number(), index].map(|index| ChildNumber::Normal { index });
        let key = self.account(account).derive_priv(SECP256K1, &path).expect(DERIVES);
        key.private_key.keypair(SECP256K1)
    }

    const fn account(&self, account: Account) -> &Xpriv {
        match account {
            Account::Taproot => &self.taproot,
            Account::Segwit => &self.segwit,
        }
    }
}

impl Branch {
    const fn number(self) -> u32 {
        match self {
            Self::Receive => 0,
            Self::Change => 1,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.node.non_secure_erase();
    }
}

impl Drop for WalletKeys {
    fn drop(&mut self) {
        self.taproot.private_key.non_secure_erase();
        self.segwit.private_key.non_secure_erase();
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("node_id", &self.node_id()).finish_non_exhaustive()
    }
}

impl fmt::Debug for WalletKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalletKeys").field("network", &self.network).finish_non_exhaustive()
    }
}

const fn coin(network: Network) -> u32 {
    match network {
        Network::Bitcoin => 0,
        _ => 1,
    }
}

fn hardened(master: &Xpriv, path: &[u32]) -> Xpriv {
    let path: Vec<ChildNumber> = path.iter().map(|index| ChildNumber::Hardened { index: *index }).collect();
    master.derive_priv(SECP256K1, &path).expect(DERIVES)
}

fn named(key: &[u8; 32], name: &[u8], argument: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut engine = HmacEngine::<sha256::Hash>::new(key);
    engine.input(name);
    engine.input(argument);
    Zeroizing::new(Hmac::from_engine(engine).to_byte_array())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Worked out apart from this code, from the seed of 32 zero bytes of entropy.
    const NODE_ID_REGTEST: &str = "0316a9923cecd385192724ed610e2364f73b68102f6de9de0da5c5879ccb39e173";
    const NODE_ID_BITCOIN: &str = "02e31c1a4e77b23078e17a7784cf0b5f59c2fbb5c244f93549c2f425c14131e2e1";
    const CHANNEL_SEEDS: [(u64, &str); 3] = [
        (0, "000acd7a696aac18c45a38e62b4309a136af44116ad142564e0819b464fa0622"),
        (1, "3f2d69519408a091649155c4128b3b8949c5678454958ca96755223d61debe9c"),
        (u64::MAX, "f7c8b1f17dcee2883e2f49fe12685b0c6a0760192cdc4a9ac83670435945dd36"),
    ];
    const PREIMAGE_7: &str = "d1a409446727f74c6696c2edcdd3f9b005437e7464f4c2bf695b940a4864ee7c";
    const PAYMENT_SECRET_OF_ONES: &str = "b97a9386231d613a2f772fe44616f7367bce957f3b15b52d1814e2cd222af36a";
    /// The first receive addresses' public keys and the first change one's.
    const TAPROOT_RECEIVE_0: &str = "02662c6fbb7110e0d78e0513ca2127b5c8bd77923b13edc2371c71112929606486";
    const TAPROOT_CHANGE_0: &str = "02e435ada014ae6d28bbca147bde268fd61d917c75b3c1faf74da1a93aed83d162";
    const SEGWIT_RECEIVE_3: &str = "03b74dc470965932fc976459096526b08a0f939a95e4b72db8f9aadce18a08a72e";

    fn keys(network: Network) -> Keys {
        Keys::derive(&Seed::from_entropy(&[0; 32]), network)
    }

    #[test]
    fn keys_stay_what_they_were_on_the_first_day() {
        let keys = keys(Network::Regtest);
        assert_eq!(keys.node_id().to_string(), NODE_ID_REGTEST);
        for (index, seed) in CHANNEL_SEEDS {
            assert_eq!(hex::encode(*keys.channel_seed(index)), seed, "{index}");
        }
        assert_eq!(hex::encode(*keys.invoice_preimage(7)), PREIMAGE_7);
        assert_eq!(hex::encode(*keys.payment_secret(&[1; 32])), PAYMENT_SECRET_OF_ONES);
        let wallet = keys.wallet();
        for (account, branch, index, expected) in [
            (Account::Taproot, Branch::Receive, 0, TAPROOT_RECEIVE_0),
            (Account::Taproot, Branch::Change, 0, TAPROOT_CHANGE_0),
            (Account::Segwit, Branch::Receive, 3, SEGWIT_RECEIVE_3),
        ] {
            assert_eq!(wallet.keypair(account, branch, index).public_key().to_string(), expected, "{account:?}");
        }
    }

    #[test]
    fn the_network_bitcoin_has_keys_of_its_own() {
        assert_eq!(keys(Network::Bitcoin).node_id().to_string(), NODE_ID_BITCOIN);
        assert_eq!(keys(Network::Signet).node_id(), keys(Network::Regtest).node_id());
    }

    #[test]
    fn a_channels_keys_come_from_its_seed() {
        let keys = keys(Network::Regtest);
        let expected = ChannelKeys::from_seed(&keys.channel_seed(3));
        assert_eq!(keys.channel_keys(3).basepoints(), expected.basepoints());
        assert_ne!(keys.channel_keys(4).basepoints(), expected.basepoints());
    }

    #[test]
    fn descriptors_are_public_and_standard() {
        let wallet = keys(Network::Bitcoin).wallet().clone();
        let taproot = wallet.descriptor(Account::Taproot, Branch::Change);
        assert!(taproot.starts_with("tr([5436d724/86'/0'/0']xpub") && taproot.ends_with("/1/*)"), "{taproot}");
        let segwit = keys(Network::Signet).wallet().descriptor(Account::Segwit, Branch::Receive);
        assert!(segwit.starts_with("wpkh([5436d724/84'/1'/0']tpub") && segwit.ends_with("/0/*)"), "{segwit}");
    }

    #[test]
    fn debug_shows_no_secret() {
        let keys = keys(Network::Regtest);
        let shown = format!("{keys:?} {:?}", keys.wallet());
        assert!(!shown.contains(&hex::encode(keys.node_key().secret_bytes())), "{shown}");
        assert!(!shown.contains("prv"), "{shown}");
    }
}
