//! The keys of one channel, and those that each commitment derives from them (BOLT 3, "Key Derivation").
//!
//! Both directions are here: public keys from the basepoints of both sides ([`CommitmentKeys`]), secret
//! keys from our own ([`ChannelKeys`]). Where the seed of a channel comes from, and what is signed with a
//! key, is decided elsewhere.

use core::fmt;

use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use millrace_wire::{ChainHash, CommitmentNumber};
use secp256k1::{PublicKey, SECP256K1, Scalar, SecretKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::secrets::{derive_secret, index_of};
use crate::side::Side;
use crate::terms::Terms;

/// Prefixed to every name, so that no other use of the same seed can give the same key.
const DOMAIN: &[u8] = b"millrace/channel/1/";

/// Why a key derivation cannot fail: a peer would have to find a hash with a chosen value.
const UNREACHABLE_BY_HASH: &str = "fails only for one hash value in 2^128, which nobody can choose";

/// The five public keys that one side announces in `open_channel` or `accept_channel`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Basepoints {
    /// `funding_pubkey`: this side's half of the funding output's 2-of-2.
    pub funding: PublicKey,
    /// `revocation_basepoint`: with the other side's commitment secret it gives the key that punishes.
    pub revocation: PublicKey,
    /// `payment_basepoint`: used as it is for `to_remote` (`option_static_remotekey`).
    pub payment: PublicKey,
    /// `delayed_payment_basepoint`: gives the key of this side's delayed outputs.
    pub delayed_payment: PublicKey,
    /// `htlc_basepoint`: gives the key of this side in HTLC outputs.
    pub htlc: PublicKey,
}

/// The secrets of one channel, wiped from memory when dropped.
#[derive(Clone)]
pub struct ChannelKeys {
    secrets: ChannelSecrets,
    basepoints: Basepoints,
    identity: Option<Identity>,
}

/// Whose channel it is, on which chain: what a `channel_announcement` says and is signed with besides the channel's own
/// keys (BOLT 7). It stays with the keys, and is in no record or snapshot.
#[derive(Clone)]
pub struct Identity {
    /// The node's key.
    key: SecretKey,
    /// The chain of the funding transaction.
    chain_hash: ChainHash,
}

impl Identity {
    /// Of the node with this key, on this chain.
    #[must_use]
    pub const fn new(key: SecretKey, chain_hash: ChainHash) -> Self {
        Self { key, chain_hash }
    }

    /// The node's key.
    pub(crate) const fn key(&self) -> &SecretKey {
        &self.key
    }

    /// The chain.
    pub(crate) const fn chain_hash(&self) -> ChainHash {
        self.chain_hash
    }
}

/// The secrets that [`ChannelKeys`] is made of.
#[derive(Clone)]
pub struct ChannelSecrets {
    /// Secret of [`Basepoints::funding`].
    pub funding: SecretKey,
    /// Secret of [`Basepoints::revocation`].
    pub revocation: SecretKey,
    /// Secret of [`Basepoints::payment`].
    pub payment: SecretKey,
    /// Secret of [`Basepoints::delayed_payment`].
    pub delayed_payment: SecretKey,
    /// Secret of [`Basepoints::htlc`].
    pub htlc: SecretKey,
    /// What all commitment secrets derive from (BOLT 3, "Per-commitment Secret Requirements").
    pub commitment_seed: [u8; 32],
}

impl ChannelKeys {
    /// All keys of a channel from its own 32 secret bytes.
    ///
    /// This derivation is Millrace's own and must never change. Each secret is
    /// `HMAC-SHA256(seed, "millrace/channel/1/" || name || counter)` with the names `funding`,
    /// `revocation`, `payment`, `delayed-payment`, `htlc` and `commitment-seed`. The counter is one byte,
    /// 0 unless that gave no valid secret key, which one hash in 2^128 does.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::from_parts(ChannelSecrets {
            funding: secret_key(seed, b"funding"),
            revocation: secret_key(seed, b"revocation"),
            payment: secret_key(seed, b"payment"),
            delayed_payment: secret_key(seed, b"delayed-payment"),
            htlc: secret_key(seed, b"htlc"),
            commitment_seed: named_hash(seed, b"commitment-seed", 0),
        })
    }

    /// From secrets made elsewhere, as test vectors give them.
    #[must_use]
    pub fn from_parts(secrets: ChannelSecrets) -> Self {
        let basepoints = Basepoints {
            funding: secrets.funding.public_key(SECP256K1),
            revocation: secrets.revocation.public_key(SECP256K1),
            payment: secrets.payment.public_key(SECP256K1),
            delayed_payment: secrets.delayed_payment.public_key(SECP256K1),
            htlc: secrets.htlc.public_key(SECP256K1),
        };
        Self { secrets, basepoints, identity: None }
    }

    /// With the identity of the node, without which no channel is announced.
    #[must_use]
    pub fn of_node(self, identity: Identity) -> Self {
        Self { identity: Some(identity), ..self }
    }

    /// The node's identity, if it was given.
    pub(crate) const fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The public keys to announce.
    #[must_use]
    pub const fn basepoints(&self) -> &Basepoints {
        &self.basepoints
    }

    /// The secret that revokes our commitment `number`, revealed in `revoke_and_ack` and never before.
    ///
    /// # Panics
    /// For a number of more than 48 bits: no commitment has one.
    #[must_use]
    pub fn commitment_secret(&self, number: CommitmentNumber) -> [u8; 32] {
        derive_secret(self.secrets.commitment_seed, 48, index_of(number))
    }

    /// The `per_commitment_point` of our commitment `number`.
    ///
    /// # Panics
    /// For a number of more than 48 bits: no commitment has one.
    #[must_use]
    pub fn commitment_point(&self, number: CommitmentNumber) -> PublicKey {
        let secret = SecretKey::from_slice(&self.commitment_secret(number)).expect(UNREACHABLE_BY_HASH);
        secret.public_key(SECP256K1)
    }

    /// The secret of [`Basepoints::funding`], which signs commitments, closing transactions and our anchor.
    #[must_use]
    pub const fn funding_key(&self) -> &SecretKey {
        &self.secrets.funding
    }

    /// The secret of [`Basepoints::payment`], which spends `to_remote` of the peer's commitments.
    #[must_use]
    pub const fn payment_key(&self) -> &SecretKey {
        &self.secrets.payment
    }

    /// The secret of our HTLC key in the commitment (of either side) with this point.
    #[must_use]
    pub fn htlc_key(&self, point: &PublicKey) -> SecretKey {
        derive_secret_key(&self.secrets.htlc, &self.basepoints.htlc, point)
    }

    /// The secret of our delayed key in our commitment with this point.
    #[must_use]
    pub fn delayed_payment_key(&self, point: &PublicKey) -> SecretKey {
        derive_secret_key(&self.secrets.delayed_payment, &self.basepoints.delayed_payment, point)
    }

    /// The secret of the revocation key in the peer's commitment that this secret of his revoked.
    #[must_use]
    pub fn revocation_key(&self, commitment_secret: &SecretKey) -> SecretKey {
        revocation_secret(&self.secrets.revocation, commitment_secret)
    }

    /// The secret of [`Basepoints::revocation`], for the owner's own watchtower: with the peer's commitment secrets it
    /// punishes for this channel. It goes nowhere else.
    #[must_use]
    pub const fn revocation_basepoint_secret(&self) -> &SecretKey {
        &self.secrets.revocation
    }
}

impl fmt::Debug for ChannelKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelKeys").field("basepoints", &self.basepoints).finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("chain_hash", &self.chain_hash).finish_non_exhaustive()
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.key.non_secure_erase();
    }
}

impl fmt::Debug for ChannelSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelSecrets(…)")
    }
}

impl Drop for ChannelSecrets {
    fn drop(&mut self) {
        for key in
            [&mut self.funding, &mut self.revocation, &mut self.payment, &mut self.delayed_payment, &mut self.htlc]
        {
            key.non_secure_erase();
        }
        self.commitment_seed.zeroize();
    }
}

/// The public keys of one commitment transaction, derived once for it and not per HTLC.
///
/// "Broadcaster" is the side whose commitment it is, "countersignatory" the other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommitmentKeys {
    /// The broadcaster's point that the others derive from.
    pub per_commitment_point: PublicKey,
    /// `revocationpubkey`: the countersignatory can sign for it once the commitment is revoked.
    pub revocation: PublicKey,
    /// `local_htlcpubkey`.
    pub broadcaster_htlc: PublicKey,
    /// `remote_htlcpubkey`.
    pub countersignatory_htlc: PublicKey,
    /// `local_delayedpubkey`.
    pub broadcaster_delayed: PublicKey,
    /// `remotepubkey`: the countersignatory's payment basepoint itself (`option_static_remotekey`).
    pub countersignatory_payment: PublicKey,
}

impl CommitmentKeys {
    /// The keys of the broadcaster's commitment with this point. Costs five curve operations (0.1 ms).
    #[must_use]
    pub fn derive(broadcaster: &Basepoints, countersignatory: &Basepoints, point: &PublicKey) -> Self {
        Self {
            per_commitment_point: *point,
            revocation: derive_revocation_key(&countersignatory.revocation, point),
            broadcaster_htlc: derive_public_key(&broadcaster.htlc, point),
            countersignatory_htlc: derive_public_key(&countersignatory.htlc, point),
            broadcaster_delayed: derive_public_key(&broadcaster.delayed_payment, point),
            countersignatory_payment: countersignatory.payment,
        }
    }

    /// The keys of `side`'s commitment with this point, in the channel with these terms.
    #[must_use]
    pub fn of(terms: &Terms, side: Side, point: &PublicKey) -> Self {
        Self::derive(&terms.party(side).basepoints, &terms.party(side.other()).basepoints, point)
    }
}

fn named_hash(seed: &[u8; 32], name: &[u8], counter: u8) -> [u8; 32] {
    let mut engine = HmacEngine::<sha256::Hash>::new(seed);
    engine.input(DOMAIN);
    engine.input(name);
    engine.input(&[counter]);
    Hmac::from_engine(engine).to_byte_array()
}

fn secret_key(seed: &[u8; 32], name: &[u8]) -> SecretKey {
    (0..=u8::MAX)
        .find_map(|counter| SecretKey::from_slice(&named_hash(seed, name, counter)).ok())
        .expect(UNREACHABLE_BY_HASH)
}

/// `SHA256(first || second)` as a number to multiply or add with.
fn hash_of_keys(first: &PublicKey, second: &PublicKey) -> Scalar {
    let mut engine = sha256::Hash::engine();
    engine.input(&first.serialize());
    engine.input(&second.serialize());
    Scalar::from_be_bytes(sha256::Hash::from_engine(engine).to_byte_array()).expect(UNREACHABLE_BY_HASH)
}

/// BOLT 3, "`localpubkey`, `local_htlcpubkey`, …": `basepoint + SHA256(point || basepoint) * G`.
#[must_use]
pub fn derive_public_key(basepoint: &PublicKey, point: &PublicKey) -> PublicKey {
    basepoint.add_exp_tweak(SECP256K1, &hash_of_keys(point, basepoint)).expect(UNREACHABLE_BY_HASH)
}

fn derive_secret_key(secret: &SecretKey, basepoint: &PublicKey, point: &PublicKey) -> SecretKey {
    secret.add_tweak(&hash_of_keys(point, basepoint)).expect(UNREACHABLE_BY_HASH)
}

/// What the revocation basepoint and the point are multiplied with before they are added.
fn revocation_factors(basepoint: &PublicKey, point: &PublicKey) -> (Scalar, Scalar) {
    (hash_of_keys(basepoint, point), hash_of_keys(point, basepoint))
}

/// BOLT 3, "`revocationprivkey` Derivation": the secret of [`derive_revocation_key`], from both sides' secrets.
#[must_use]
pub fn revocation_secret(basepoint_secret: &SecretKey, commitment_secret: &SecretKey) -> SecretKey {
    let (basepoint, point) = (basepoint_secret.public_key(SECP256K1), commitment_secret.public_key(SECP256K1));
    let (basepoint_factor, point_factor) = revocation_factors(&basepoint, &point);
    let part = commitment_secret.mul_tweak(&point_factor).expect(UNREACHABLE_BY_HASH);
    let key = basepoint_secret.mul_tweak(&basepoint_factor).expect(UNREACHABLE_BY_HASH);
    key.add_tweak(&Scalar::from(part)).expect(UNREACHABLE_BY_HASH)
}

/// BOLT 3, "`revocationpubkey` Derivation".
#[must_use]
pub fn derive_revocation_key(basepoint: &PublicKey, point: &PublicKey) -> PublicKey {
    let (basepoint_factor, point_factor) = revocation_factors(basepoint, point);
    let first = basepoint.mul_tweak(SECP256K1, &basepoint_factor).expect(UNREACHABLE_BY_HASH);
    let second = point.mul_tweak(SECP256K1, &point_factor).expect(UNREACHABLE_BY_HASH);
    first.combine(&second).expect(UNREACHABLE_BY_HASH)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(hex: &str) -> SecretKey {
        hex.parse().unwrap()
    }

    /// BOLT 3, Appendix E: one base secret, one commitment secret.
    const BASE_SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const COMMITMENT_SECRET: &str = "1f1e1d1c1b1a191817161514131211100f0e0d0c0b0a09080706050403020100";

    /// Basepoints and the first two commitment secrets, worked out apart from this code.
    const FROM_SEED_42: [&str; 7] = [
        "02ea61d28d27172ba5672c20a3c087341e5dd0b9ef7f71d4bd770251cec05db240",
        "02089e177e8fbd84b97bfedf304e8e861bf37b7705adb4b998858a88a978e57900",
        "0347447dd48aa4747b685a1492d84c92a1395afda7fa9a35f6a96b3719ffb496bb",
        "039f785c7fab0b042a44fac3e3cf2227ad746b30335d654429b7ce98e6bc197cb2",
        "02d5aa4f43090c642705ad8a78ce7a0b09ba1840cac5761dad8f254bdec9d758e9",
        "e7fcd798df099be5cb2b1294905e35bb79d25c4ac0be3326295292c328adadec",
        "f1cfd7d55f3449df7d499725313a0e8cb48306c5b526f8cf8ceab4351644f4e0",
    ];

    fn appendix_e_keys() -> ChannelKeys {
        let base = key(BASE_SECRET);
        ChannelKeys::from_parts(ChannelSecrets {
            funding: base,
            revocation: base,
            payment: base,
            delayed_payment: base,
            htlc: base,
            commitment_seed: [0; 32],
        })
    }

    #[test]
    fn appendix_e_public_keys() {
        let keys = appendix_e_keys();
        let point = key(COMMITMENT_SECRET).public_key(SECP256K1);
        assert_eq!(
            keys.basepoints().htlc.to_string(),
            "036d6caac248af96f6afa7f904f550253a0f3ef3f5aa2fe6838a95b216691468e2"
        );
        assert_eq!(point.to_string(), "025f7117a78150fe2ef97db7cfc83bd57b2e2c0d0dd25eaf467a4a1c2a45ce1486");
        let derived = CommitmentKeys::derive(keys.basepoints(), keys.basepoints(), &point);
        let localpubkey = "0235f2dbfaa89b57ec7b055afe29849ef7ddfeb1cefdb9ebdc43f5494984db29e5";
        assert_eq!(derived.broadcaster_htlc.to_string(), localpubkey);
        assert_eq!(derived.countersignatory_htlc.to_string(), localpubkey);
        assert_eq!(derived.broadcaster_delayed.to_string(), localpubkey);
        assert_eq!(
            derived.revocation.to_string(),
            "02916e326636d19c33f13e8c0c3a03dd157f332f3e99c317c141dd865eb01f8ff0"
        );
        assert_eq!(derived.countersignatory_payment, keys.basepoints().payment);
        assert_eq!(derived.per_commitment_point, point);
    }

    #[test]
    fn appendix_e_secret_keys() {
        let keys = appendix_e_keys();
        let point = key(COMMITMENT_SECRET).public_key(SECP256K1);
        let localprivkey = key("cbced912d3b21bf196a766651e436aff192362621ce317704ea2f75d87e7be0f");
        assert_eq!(keys.htlc_key(&point), localprivkey);
        assert_eq!(keys.delayed_payment_key(&point), localprivkey);
        assert_eq!(
            keys.revocation_key(&key(COMMITMENT_SECRET)),
            key("d09ffff62ddb2297ab000cc85bcb4283fdeb6aa052affbc9dddcf33b61078110")
        );
    }

    #[test]
    fn every_secret_key_belongs_to_its_public_key() {
        let (broadcaster, other) = (ChannelKeys::from_seed(&[1; 32]), ChannelKeys::from_seed(&[2; 32]));
        let number = CommitmentNumber(7);
        let point = broadcaster.commitment_point(number);
        let keys = CommitmentKeys::derive(broadcaster.basepoints(), other.basepoints(), &point);
        assert_eq!(broadcaster.htlc_key(&point).public_key(SECP256K1), keys.broadcaster_htlc);
        assert_eq!(other.htlc_key(&point).public_key(SECP256K1), keys.countersignatory_htlc);
        assert_eq!(broadcaster.delayed_payment_key(&point).public_key(SECP256K1), keys.broadcaster_delayed);
        let revealed = SecretKey::from_slice(&broadcaster.commitment_secret(number)).unwrap();
        assert_eq!(other.revocation_key(&revealed).public_key(SECP256K1), keys.revocation);
        assert_eq!(other.payment_key().public_key(SECP256K1), keys.countersignatory_payment);
        assert_eq!(other.funding_key().public_key(SECP256K1), other.basepoints().funding);
    }

    #[test]
    fn from_seed_stays_what_it_was_on_the_first_day() {
        let keys = ChannelKeys::from_seed(&[0x42; 32]);
        let found = [
            keys.basepoints().funding.to_string(),
            keys.basepoints().revocation.to_string(),
            keys.basepoints().payment.to_string(),
            keys.basepoints().delayed_payment.to_string(),
            keys.basepoints().htlc.to_string(),
            hex::encode(keys.commitment_secret(CommitmentNumber(0))),
            hex::encode(keys.commitment_secret(CommitmentNumber(1))),
        ];
        assert_eq!(found, FROM_SEED_42);
    }

    #[test]
    fn debug_shows_no_secret() {
        let keys = ChannelKeys::from_seed(&[0x42; 32]);
        let shown = format!("{keys:?} {:?}", keys.secrets);
        for secret in [
            &keys.secrets.funding.secret_bytes(),
            &keys.secrets.revocation.secret_bytes(),
            &keys.secrets.payment.secret_bytes(),
            &keys.secrets.delayed_payment.secret_bytes(),
            &keys.secrets.htlc.secret_bytes(),
            &keys.secrets.commitment_seed,
        ] {
            assert!(!shown.contains(&hex::encode(secret)), "{shown}");
            assert!(!shown.contains(&format!("{secret:?}")), "{shown}");
        }
        assert!(shown.contains("basepoints"), "{shown}");
    }
}
