//! Two sides of one channel: the keys of both, and the terms as each of them sees them.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use bitcoin::hashes::{Hash, sha256};
use bitcoin::{OutPoint, Txid};
use millrace_channel::keys::{ChannelKeys, CommitmentKeys};
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::{ChannelType, CommitmentFormat, PartyTerms, Terms};
use millrace_channel::tx::{Commitment, CommitmentHtlc, CommitmentSpec};
use millrace_wire::{ChannelId, CommitmentNumber, FeeratePerKw, Msat, Sat};
use secp256k1::{SECP256K1, SecretKey};

/// The key of the node whose channel has these keys.
pub(crate) fn node_key(keys: &ChannelKeys) -> SecretKey {
    SecretKey::from_slice(sha256::Hash::hash(&keys.funding_key().secret_bytes()).as_byte_array()).unwrap()
}

/// The keys of both sides and the terms, as `local` sees them.
#[derive(Clone)]
pub(crate) struct Pair {
    /// The keys of the local node.
    pub(crate) local: ChannelKeys,
    /// The keys of its peer.
    pub(crate) remote: ChannelKeys,
    /// What they agreed on.
    pub(crate) terms: Terms,
}

/// What a commitment of either side says, as `local` sees it.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Whose commitment.
    pub(crate) side: Side,
    /// Its number.
    pub(crate) number: CommitmentNumber,
    /// Its feerate.
    pub(crate) feerate: FeeratePerKw,
    /// Before fee and anchors, after HTLCs.
    pub(crate) balances: Both<Msat>,
    /// The HTLCs.
    pub(crate) htlcs: Vec<CommitmentHtlc>,
}

impl Pair {
    /// A channel of 10,000,000 sat that `funder` opened.
    pub(crate) fn new(local: ChannelKeys, remote: ChannelKeys, format: CommitmentFormat, funder: Side) -> Self {
        let party = |keys: &ChannelKeys, to_self_delay| PartyTerms {
            dust_limit: Sat(546),
            max_htlc_value_in_flight: Msat(u64::MAX),
            channel_reserve: Sat(10_000),
            htlc_minimum: Msat(1),
            to_self_delay,
            max_accepted_htlcs: 483,
            basepoints: keys.basepoints().clone(),
            upfront_shutdown_script: None,
        };
        let funding_outpoint = OutPoint { txid: Txid::from_byte_array([0xf0; 32]), vout: 1 };
        let terms = Terms {
            channel_id: ChannelId([0xc1; 32]),
            remote_node: node_key(&remote).public_key(SECP256K1),
            funder,
            channel_type: ChannelType { format, scid_alias: false, zero_conf: false },
            funding_outpoint,
            capacity: Sat(10_000_000),
            push: Msat::ZERO,
            minimum_depth: 3,
            announce: false,
            parties: Both { local: party(&local, 720), remote: party(&remote, 144) },
        };
        Self { local, remote, terms }
    }

    /// The same channel as the peer sees it: local is remote and the other way round.
    pub(crate) fn mirrored(&self) -> Self {
        let Both { local, remote } = self.terms.parties.clone();
        let terms = Terms {
            remote_node: node_key(&self.local).public_key(SECP256K1),
            funder: self.terms.funder.other(),
            parties: Both { local: remote, remote: local },
            ..self.terms.clone()
        };
        Self { local: self.remote.clone(), remote: self.local.clone(), terms }
    }

    /// The public keys of `side`'s commitment `number`.
    pub(crate) fn commitment_keys(&self, side: Side, number: CommitmentNumber) -> CommitmentKeys {
        let broadcaster = match side {
            Side::Local => &self.local,
            Side::Remote => &self.remote,
        };
        CommitmentKeys::of(&self.terms, side, &broadcaster.commitment_point(number))
    }

    /// The commitment that says `state`, and its keys.
    pub(crate) fn build(&self, state: &State) -> (Commitment, CommitmentKeys) {
        let keys = self.commitment_keys(state.side, state.number);
        (Commitment::build(&self.terms, &keys, &state.spec()), keys)
    }
}

impl State {
    /// It as the builder takes it.
    pub(crate) fn spec(&self) -> CommitmentSpec<'_> {
        CommitmentSpec {
            side: self.side,
            number: self.number,
            feerate: self.feerate,
            balances: self.balances,
            htlcs: &self.htlcs,
        }
    }

    /// It as the peer sees it.
    pub(crate) fn mirrored(&self) -> Self {
        let htlcs = self.htlcs.iter().map(|htlc| CommitmentHtlc { offered_by: htlc.offered_by.other(), ..*htlc });
        Self {
            side: self.side.other(),
            balances: Both { local: self.balances.remote, remote: self.balances.local },
            htlcs: htlcs.collect(),
            ..self.clone()
        }
    }
}
