//! What the unit tests share: a channel's two sides, and commitments of the peer with HTLCs in them.

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid, WPubkeyHash};
use millrace_channel::keys::{ChannelKeys, CommitmentKeys};
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::{ChannelType, CommitmentFormat, PartyTerms, Terms};
use millrace_channel::tx::{Commitment, CommitmentHtlc, CommitmentSpec, HtlcTx};
use millrace_wire::{ChannelId, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, Preimage, Sat};

use crate::registration::Registration;

/// The delay on the peer's outputs.
pub(crate) const DELAY: u16 = 144;

/// A channel of this side's with a peer who cheats.
pub(crate) struct Sample {
    pub(crate) local: ChannelKeys,
    pub(crate) remote: ChannelKeys,
    pub(crate) terms: Terms,
}

impl Sample {
    /// The channel with this number, which also makes its keys.
    pub(crate) fn new(number: u32, format: CommitmentFormat) -> Self {
        let seed = |side: u8| {
            let mut seed = [side; 32];
            seed[..4].copy_from_slice(&number.to_be_bytes());
            ChannelKeys::from_seed(&seed)
        };
        let (local, remote) = (seed(1), seed(2));
        let mut txid = [0xf0; 32];
        txid[..4].copy_from_slice(&number.to_be_bytes());
        let funding_outpoint = OutPoint { txid: Txid::from_byte_array(txid), vout: 1 };
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
        let terms = Terms {
            channel_id: ChannelId::v1_from_funding(funding_outpoint),
            remote_node: remote.basepoints().funding,
            funder: Side::Local,
            channel_type: ChannelType { format, scid_alias: false, zero_conf: false },
            funding_outpoint,
            capacity: Sat(10_000_000),
            push: Msat::ZERO,
            minimum_depth: 3,
            announce: false,
            parties: Both { local: party(&local, DELAY), remote: party(&remote, 720) },
        };
        Self { local, remote, terms }
    }

    pub(crate) fn registration(&self) -> Registration {
        Registration::of(&self.terms, &self.local, wallet(7)).unwrap()
    }

    /// The peer's secret of a commitment.
    pub(crate) fn secret(&self, number: u64) -> [u8; 32] {
        self.remote.commitment_secret(CommitmentNumber(number))
    }

    fn keys(&self, number: u64) -> CommitmentKeys {
        let point = self.remote.commitment_point(CommitmentNumber(number));
        CommitmentKeys::of(&self.terms, Side::Remote, &point)
    }

    /// The peer's commitment, in which `to_local_sat` are the peer's and each HTLC is of 100,000 sat and more: first those
    /// that the peer offered.
    pub(crate) fn commitment(&self, number: u64, to_local_sat: u64, offered: u8, received: u8) -> Commitment {
        let htlc = |id: u8, offered_by| CommitmentHtlc {
            id: HtlcId(u64::from(id)),
            offered_by,
            amount: Msat(100_000_000 + u64::from(id) * 1_000_000),
            payment_hash: preimage(id).hash(),
            cltv_expiry: CltvExpiry(500),
        };
        let htlcs: Vec<CommitmentHtlc> = (0..offered)
            .map(|id| htlc(id, Side::Remote))
            .chain((offered..offered + received).map(|id| htlc(id, Side::Local)))
            .collect();
        let in_htlcs: u64 = htlcs.iter().map(|htlc| htlc.amount.0).sum();
        let remote = Msat(to_local_sat * 1000);
        let balances = Both { local: Msat(10_000_000_000 - in_htlcs - remote.0), remote };
        let number = CommitmentNumber(number);
        let spec = CommitmentSpec { side: Side::Remote, number, feerate: FeeratePerKw(1000), balances, htlcs: &htlcs };
        Commitment::build(&self.terms, &self.keys(number.0), &spec)
    }

    /// The peer's HTLC transactions of a commitment, not signed: with the preimage of those that it received.
    pub(crate) fn htlc_txs(&self, commitment: &Commitment) -> Vec<Transaction> {
        let keys = self.keys(commitment.number.0);
        let made = commitment.htlcs.iter().map(|htlc| {
            let htlc_tx = HtlcTx::build(&self.terms, &keys, commitment, htlc);
            let mut tx = htlc_tx.tx;
            if htlc.offered_by == Side::Local {
                let preimage = preimage(u8::try_from(htlc.id.0).unwrap());
                let witness: [&[u8]; 5] =
                    [&[], &[9; 71], &[8; 71], preimage.as_bytes(), htlc_tx.witness_script.as_bytes()];
                tx.input[0].witness = bitcoin::Witness::from_slice(&witness);
            }
            tx
        });
        made.collect()
    }
}

/// The preimage of the HTLC with this id.
pub(crate) fn preimage(id: u8) -> Preimage {
    Preimage::new([0xa0 | (id & 0xf); 32])
}

/// A wallet's script.
pub(crate) fn wallet(seed: u8) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&WPubkeyHash::from_byte_array([seed; 20]))
}

/// The registration of channel `number`, with anchors.
pub(crate) fn registration(number: u32) -> Registration {
    Sample::new(number, CommitmentFormat::Anchors).registration()
}
