#![allow(clippy::unwrap_used)]
//! Whatever is asked of whatever coins: a transaction is right, or a refusal changes nothing.

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_transaction_pays_its_feerate_and_leaves_the_reserve(
        coins in prop::collection::vec(600_u64..2_000_000, 1..9),
        amount in 330_u64..3_000_000,
        feerate in 253_u32..60_000,
        channels in 0_u32..3,
        purpose in 0_u8..3,
    ) {
        let mut world = world_with(&coins);
        world.wallet.set_anchor_channels(channels);
        let feerate = FeeratePerKw(feerate);
        let before = world.wallet.balance();
        let result = match purpose {
            0 => world.wallet.send(STRANGER, Amount::Exactly(Sat(amount)), feerate),
            1 => world.wallet.send(STRANGER, Amount::All, feerate),
            _ => world.wallet.fund_channel(p2wsh(7), Sat(amount), feerate, true),
        };
        match result {
            Ok(made) => {
                world.check(&made, feerate, 0);
                prop_assert!(purpose == 1 || made.amount == Sat(amount));
                world.broadcast(&made, WITHDRAWAL);
                let after = world.wallet.balance();
                let reserve = RESERVE.of(channels + u32::from(purpose == 2));
                prop_assert!(after.confirmed.0 + after.unconfirmed.0 >= reserve.0);
                prop_assert_eq!(after.confirmed.0 + after.unconfirmed.0 + made.amount.0 + made.fee.0, before.confirmed.0);
            }
            Err(WalletError::InsufficientFunds { needed, available }) => {
                prop_assert!(needed > available, "{} {}", needed, available);
                prop_assert_eq!(world.wallet.balance(), before);
            }
            Err(WalletError::Reserve { reserve, left, short }) => {
                prop_assert_eq!(left.0 + short.0, reserve.0);
                prop_assert_eq!(world.wallet.balance(), before);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn every_child_lifts_its_package(
        coins in prop::collection::vec(600_u64..400_000, 1..7),
        parent_fee in 0_u64..5_000,
        feerate in 253_u32..40_000,
        witness in 1_usize..4_000,
    ) {
        let mut world = world_with(&coins);
        let mut parent = world.pays(p2wsh(0xaa), 330);
        parent.input[0].witness = dummy_witness(witness);
        world.know(&parent);
        let anchor = foreign(&parent, 0, Sequence::ENABLE_RBF_NO_LOCKTIME, 279);
        let feerate = FeeratePerKw(feerate);
        let request = Cpfp { parent: parent.clone(), parent_fee: Sat(parent_fee), anchor, feerate, replaces: None };
        match world.wallet.cpfp(&request) {
            Ok(made) => {
                world.check(&made, feerate, 1);
                let mut child = made.tx.clone();
                child.input[0].witness = dummy_witness(279 - 164 - 2);
                let weight = parent.weight() + child.weight();
                let fee = Sat(parent_fee + made.fee.0);
                prop_assert!(fee >= feerate.fee_ceil(weight));
                let own_relay = FeeratePerKw::FLOOR.fee_ceil(child.weight()).0 + parent_fee + 10;
                let signatures = feerate.fee_ceil(Weight::from_wu(8 + 3 * child.input.len() as u64)).0;
                prop_assert!(fee.0 <= feerate.fee_ceil(weight).0.max(own_relay) + signatures + 10);
            }
            Err(WalletError::InsufficientFunds { needed, available }) => prop_assert!(needed > available),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
