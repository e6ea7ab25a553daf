//! What the transactions of a channel weigh and pay, and which HTLCs are too small to be in them
//! (BOLT 3, "Trimmed Outputs", "Fees" and Appendix A).
//!
//! [`is_trimmed`] is the only place that decides about trimming: accepting an HTLC, predicting a fee and
//! building a commitment all ask it.

use bitcoin::{Script, Weight};
use millrace_wire::{FeeratePerKw, Msat, Sat};

use crate::terms::CommitmentFormat;

/// BOLT 3, "`to_local_anchor` and `to_remote_anchor` Output": the value of one anchor.
pub const ANCHOR_VALUE: Sat = Sat(330);

/// What each HTLC output adds to the expected weight of a commitment transaction.
pub const COMMIT_WEIGHT_PER_HTLC: Weight = Weight::from_wu(172);

/// The longest signature that we make in a witness: DER with a high R and a low S, and the sighash type.
pub const SIGNATURE_BYTES_MAX: u64 = 72;

/// The signature length with which BOLT 3 counts expected weights.
const SIGNATURE_BYTES_EXPECTED: u64 = 73;

/// The two bytes, marker and flag, that make a transaction a segwit one.
const SEGWIT_MARKER: u64 = 2;

/// Outpoint, empty script length, sequence.
const INPUT_BYTES: u64 = 32 + 4 + 1 + 4;

/// What both anchors take from the funder: nothing without them.
#[must_use]
pub const fn anchors_value(format: CommitmentFormat) -> Sat {
    match format {
        CommitmentFormat::StaticRemotekey => Sat::ZERO,
        CommitmentFormat::Anchors => Sat(2 * ANCHOR_VALUE.0),
    }
}

/// BOLT 3, "Fee Calculation": the expected weight of a commitment transaction.
#[must_use]
pub fn commit_weight(format: CommitmentFormat, untrimmed_htlcs: usize) -> Weight {
    let base = match format {
        CommitmentFormat::StaticRemotekey => 724,
        CommitmentFormat::Anchors => 1124,
    };
    Weight::from_wu(base + COMMIT_WEIGHT_PER_HTLC.to_wu() * untrimmed_htlcs as u64)
}

/// BOLT 3, "Fee Calculation": the base fee of a commitment transaction, without the anchors.
#[must_use]
pub fn commit_fee(format: CommitmentFormat, feerate: FeeratePerKw, untrimmed_htlcs: usize) -> Sat {
    feerate.fee_floor(commit_weight(format, untrimmed_htlcs))
}

/// BOLT 3, "Fee Calculation": the expected weight of an HTLC-timeout (`offered`) or HTLC-success transaction.
#[must_use]
pub const fn htlc_tx_weight(format: CommitmentFormat, offered_by_broadcaster: bool) -> Weight {
    Weight::from_wu(match (format, offered_by_broadcaster) {
        (CommitmentFormat::StaticRemotekey, true) => 663,
        (CommitmentFormat::StaticRemotekey, false) => 703,
        (CommitmentFormat::Anchors, true) => 666,
        (CommitmentFormat::Anchors, false) => 706,
    })
}

/// BOLT 3, "Fee Calculation": what an HTLC transaction pays out of its HTLC: nothing with anchors.
#[must_use]
pub fn htlc_tx_fee(format: CommitmentFormat, feerate: FeeratePerKw, offered_by_broadcaster: bool) -> Sat {
    match format {
        CommitmentFormat::StaticRemotekey => feerate.fee_floor(htlc_tx_weight(format, offered_by_broadcaster)),
        CommitmentFormat::Anchors => Sat::ZERO,
    }
}

/// BOLT 3, "Trimmed Outputs": whether an HTLC has no output in a commitment of the side with this dust limit.
///
/// `offered_by_broadcaster`: the side whose commitment it is also offered the HTLC.
#[must_use]
pub fn is_trimmed(
    format: CommitmentFormat,
    broadcaster_dust_limit: Sat,
    feerate: FeeratePerKw,
    offered_by_broadcaster: bool,
    amount: Msat,
) -> bool {
    let fee = htlc_tx_fee(format, feerate, offered_by_broadcaster);
    match amount.floor_to_sat().checked_sub(fee) {
        Some(rest) => rest < broadcaster_dust_limit,
        None => true,
    }
}

/// The expected weight of a mutual close with these outputs (BOLT 3 signature lengths, so never less than it is).
#[must_use]
pub fn closing_weight<'a>(output_scripts: impl IntoIterator<Item = &'a Script>) -> Weight {
    let outputs: u64 = output_scripts.into_iter().map(output_bytes).sum();
    let funding_witness = 1 + 1 + 2 * (1 + SIGNATURE_BYTES_EXPECTED) + 1 + 71;
    Weight::from_wu(4 * (transaction_bytes(1, 2) + INPUT_BYTES + outputs) + SEGWIT_MARKER + funding_witness)
}

/// The most that a transaction with these inputs (see [`input_weight`]) and outputs weighs.
#[must_use]
pub fn spend_weight<'a>(
    inputs: impl ExactSizeIterator<Item = Weight>,
    output_scripts: impl ExactSizeIterator<Item = &'a Script>,
) -> Weight {
    let base = transaction_bytes(inputs.len() as u64, output_scripts.len() as u64);
    let outputs: u64 = output_scripts.map(output_bytes).sum();
    let inputs: u64 = inputs.map(Weight::to_wu).sum();
    Weight::from_wu(4 * (base + outputs) + SEGWIT_MARKER + inputs)
}

/// The weight of one segwit input whose witness has items of these lengths.
#[must_use]
pub fn input_weight(witness_items: &[u64]) -> Weight {
    let items: u64 = witness_items.iter().map(|length| length_bytes(*length) + length).sum();
    Weight::from_wu(4 * INPUT_BYTES + length_bytes(witness_items.len() as u64) + items)
}

/// Version, counts and lock time.
const fn transaction_bytes(inputs: u64, outputs: u64) -> u64 {
    4 + length_bytes(inputs) + length_bytes(outputs) + 4
}

fn output_bytes(script: &Script) -> u64 {
    let length = script.len() as u64;
    8 + length_bytes(length) + length
}

/// The bytes that Bitcoin's compact integers take.
const fn length_bytes(value: u64) -> u64 {
    match value {
        0..=0xfc => 1,
        0xfd..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bolt_3_example_of_fees() {
        let format = CommitmentFormat::StaticRemotekey;
        let (feerate, dust) = (FeeratePerKw(5000), Sat(546));
        assert_eq!(htlc_tx_fee(format, feerate, true), Sat(3315));
        assert_eq!(htlc_tx_fee(format, feerate, false), Sat(3515));
        assert!(!is_trimmed(format, dust, feerate, true, Msat(5_000_000)));
        assert!(is_trimmed(format, dust, feerate, true, Msat(1_000_000)));
        assert!(!is_trimmed(format, dust, feerate, false, Msat(7_000_000)));
        assert!(is_trimmed(format, dust, feerate, false, Msat(800_000)));
        assert_eq!(commit_weight(format, 2), Weight::from_wu(1068));
        assert_eq!(commit_fee(format, feerate, 2), Sat(5340));
    }

    #[test]
    fn an_htlc_of_exactly_the_dust_limit_is_not_trimmed() {
        let dust = Sat(354);
        for (format, offered, fee) in [
            (CommitmentFormat::StaticRemotekey, true, 663 * 253 / 1000),
            (CommitmentFormat::StaticRemotekey, false, 703 * 253 / 1000),
            (CommitmentFormat::Anchors, true, 0),
            (CommitmentFormat::Anchors, false, 0),
        ] {
            let trimmed = |amount| is_trimmed(format, dust, FeeratePerKw(253), offered, amount);
            let threshold = Sat(dust.0 + fee).to_msat();
            assert!(trimmed(Msat(threshold.0 - 1000)), "{format:?}");
            assert!(trimmed(Msat(threshold.0 - 1)), "{format:?}: the fraction of a satoshi does not count");
            assert!(!trimmed(threshold), "{format:?}");
            assert!(!trimmed(Msat(threshold.0 + 999)), "{format:?}");
        }
    }

    #[test]
    fn absurd_feerates_trim_everything_and_overflow_nothing() {
        let format = CommitmentFormat::StaticRemotekey;
        assert!(is_trimmed(format, Sat(354), FeeratePerKw(u32::MAX), true, Msat(1_000_000_000)));
        assert!(!is_trimmed(format, Sat(354), FeeratePerKw(u32::MAX), true, Msat::MAX_MONEY));
        assert!(is_trimmed(CommitmentFormat::Anchors, Sat(u64::MAX), FeeratePerKw(0), true, Msat::MAX_MONEY));
    }

    #[test]
    fn anchors_cost_the_funder_both() {
        assert_eq!(anchors_value(CommitmentFormat::Anchors), Sat(660));
        assert_eq!(anchors_value(CommitmentFormat::StaticRemotekey), Sat::ZERO);
        assert_eq!(commit_weight(CommitmentFormat::Anchors, 966), Weight::from_wu(1124 + 172 * 966));
    }
}
