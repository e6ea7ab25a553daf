//! Channels and commitment states by seed, crowded around the limits where they go wrong.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Txid};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::CommitmentHtlc;
use millrace_wire::{CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, PaymentHash, Preimage, Sat};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::pair::{Pair, State};

/// The preimages that the HTLCs share, few enough for some to have the same.
const PREIMAGES: u64 = 4;

/// A source of choices that the seed decides.
pub(crate) struct Choices(ChaCha12Rng);

impl Choices {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha12Rng::seed_from_u64(seed))
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// Something near `threshold`, or far above.
    fn around(&mut self, threshold: Sat) -> Msat {
        let near = threshold.to_msat().0;
        let far = near + 1_000 + self.below(200_000_000);
        Msat(self.one_of(&[near.saturating_sub(1000), near.saturating_sub(1), near, near + 1, near + 1000, far, far]))
    }
}

/// The preimage that opens `hash`, which is one of ours.
pub(crate) fn preimage_of(hash: &PaymentHash) -> Preimage {
    (0..PREIMAGES).map(shared_preimage).find(|preimage| preimage.hash() == *hash).expect("one of ours")
}

fn shared_preimage(index: u64) -> Preimage {
    Preimage::new([u8::try_from(index).expect("few"); 32])
}

/// A channel and a state of one of its commitments. The funder can pay the anchors; one in eight cannot pay the
/// whole fee.
pub(crate) fn random(seed: u64) -> (Pair, State) {
    let choices = &mut Choices::new(seed);
    let mut pair = random_pair(choices);
    let side = choices.one_of(&[Side::Local, Side::Remote]);
    let any = choices.below(20_000) as u32;
    let feerate = FeeratePerKw(choices.one_of(&[0, 253, 1000, 2500, any]));
    let count = if seed % 100 == 99 { 966 } else { choices.below(20) };
    let htlcs: Vec<_> = (0..count).map(|id| random_htlc(choices, &pair, side, feerate, id)).collect();
    let dust_limit = pair.terms.party(side).dust_limit;
    let mut balances = Both { local: choices.around(dust_limit), remote: choices.around(dust_limit) };
    add_fee_of_the_funder(choices, &pair, feerate, &htlcs, &mut balances);
    let in_htlcs: Msat = htlcs.iter().map(|htlc| htlc.amount).sum();
    let sum = Msat(balances.local.0 + balances.remote.0 + in_htlcs.0);
    pair.terms.capacity = sum.ceil_to_sat();
    balances.of_mut(pair.terms.funder.other()).0 += pair.terms.capacity.to_msat().0 - sum.0;
    let number = choices.one_of(&[0, 1, 42, (1 << 24) - 1, 1 << 24, (1 << 48) - 1]);
    let number = CommitmentNumber(if choices.below(2) == 0 { number } else { choices.below(1 << 48) });
    (pair, State { side, number, feerate, balances, htlcs })
}

fn random_pair(choices: &mut Choices) -> Pair {
    let (local, remote) = (ChannelKeys::from_seed(&choices.bytes()), ChannelKeys::from_seed(&choices.bytes()));
    let format = choices.one_of(&[CommitmentFormat::StaticRemotekey, CommitmentFormat::Anchors]);
    let funder = choices.one_of(&[Side::Local, Side::Remote]);
    let mut pair = Pair::new(local, remote, format, funder);
    let txid = Txid::from_byte_array(choices.bytes());
    pair.terms.funding_outpoint = OutPoint { txid, vout: choices.below(3) as u32 };
    for side in [Side::Local, Side::Remote] {
        let party = pair.terms.parties.of_mut(side);
        let any = 330 + choices.below(1000);
        party.dust_limit = Sat(choices.one_of(&[354, 546, any]));
        party.to_self_delay = choices.one_of(&[1, 16, 17, 144, 720, 2016, 32_767, 32_768, 65_535]);
    }
    pair
}

fn random_htlc(choices: &mut Choices, pair: &Pair, side: Side, feerate: FeeratePerKw, id: u64) -> CommitmentHtlc {
    let offered_by = choices.one_of(&[Side::Local, Side::Remote]);
    let weight = if offered_by == side { 663 } else { 703 };
    let fee = match pair.terms.format() {
        CommitmentFormat::StaticRemotekey => u64::from(feerate.0) * weight / 1000,
        CommitmentFormat::Anchors => 0,
    };
    let threshold = Sat(pair.terms.party(side).dust_limit.0 + fee);
    let far = 100_000_000 + choices.below(3) * 1000;
    let amount = if choices.below(3) == 0 { Msat(far) } else { choices.around(threshold) };
    CommitmentHtlc {
        id: HtlcId(id),
        offered_by,
        amount,
        payment_hash: shared_preimage(choices.below(PREIMAGES)).hash(),
        cltv_expiry: CltvExpiry(choices.one_of(&[16, 500, 501, 502, 40_000, 900_000])),
    }
}

/// The balances so far are what is to be left: the funder gets fee and anchors on top, or only a part of the fee.
fn add_fee_of_the_funder(
    choices: &mut Choices,
    pair: &Pair,
    feerate: FeeratePerKw,
    htlcs: &[CommitmentHtlc],
    balances: &mut Both<Msat>,
) {
    let (anchors, weight) = match pair.terms.format() {
        CommitmentFormat::StaticRemotekey => (0, 724),
        CommitmentFormat::Anchors => (660, 1124),
    };
    let fee = u64::from(feerate.0) * (weight + 172 * htlcs.len() as u64) / 1000;
    let funder = balances.of_mut(pair.terms.funder);
    *funder = match choices.below(8) {
        0 => Msat(1000 * anchors + choices.below(1000 * fee + 1)),
        _ => Msat(funder.0 + 1000 * (anchors + fee)),
    };
}
