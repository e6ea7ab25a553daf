#![allow(clippy::unwrap_used)]
//! Payments, funding transactions and replacements.

use super::*;

#[test]
fn addresses_are_fresh_and_of_the_kind_asked_for() {
    let mut wallet = empty_wallet();
    let taproot = wallet.new_address(AddressType::Taproot);
    let segwit = wallet.new_address(AddressType::Segwit);
    assert!(taproot.script_pubkey().is_p2tr() && taproot.to_string().starts_with("bcrt1p"));
    assert!(segwit.script_pubkey().is_p2wpkh() && segwit.to_string().starts_with("bcrt1q"));
    assert_ne!(wallet.new_address(AddressType::Taproot), taproot);
    assert!(wallet.is_mine(&taproot.script_pubkey()) && wallet.is_mine(&segwit.script_pubkey()));
    assert!(!wallet.is_mine(&p2wsh(1)));
    let destination = wallet.new_destination();
    assert!(wallet.is_mine(&destination) && destination.is_p2tr());
}

#[test]
fn send_an_exact_amount() {
    let mut world = world_with(&[100_000, 50_000]);
    let made = world.wallet.send(STRANGER, Amount::Exactly(Sat(60_000)), FEERATE).unwrap();
    world.check(&made, FEERATE, 0);
    assert_eq!(made.amount, Sat(60_000));
    assert_eq!(made.tx.lock_time.to_consensus_u32(), world.height(), "against fee sniping");
    world.broadcast(&made, WITHDRAWAL);
    let balance = world.wallet.balance();
    assert_eq!(balance.confirmed.0 + balance.unconfirmed.0, 150_000 - 60_000 - made.fee.0);
    world.mine(std::slice::from_ref(&made.tx));
    let balance = world.wallet.balance();
    assert_eq!(balance.confirmed.0, 150_000 - 60_000 - made.fee.0);
    let told = world.wallet.transaction(&made.tx.compute_txid()).unwrap();
    assert_eq!((told.fee, told.confirmations, told.label), (Some(made.fee), 1, WITHDRAWAL));
    assert_eq!(told.sent.0 - told.received.0, 60_000 + made.fee.0);
}

#[test]
fn send_from_both_accounts_at_once() {
    let mut world = world_with(&[100_000, 50_000, 20_000, 30_000]);
    let made = world.wallet.send(STRANGER, Amount::Exactly(Sat(195_000)), FEERATE).unwrap();
    world.check(&made, FEERATE, 0);
    assert_eq!(made.tx.input.len(), 4);
}

#[test]
fn send_all_without_channels_leaves_nothing() {
    let mut world = world_with(&[100_000, 50_000, 150]);
    let made = world.wallet.send(STRANGER, Amount::All, FEERATE).unwrap();
    world.check(&made, FEERATE, 0);
    assert_eq!((made.tx.output.len(), made.tx.input.len()), (1, 2), "150 sat cost more than they bring");
    assert_eq!(made.amount, Sat(150_000 - made.fee.0));
}

#[test]
fn send_all_with_channels_keeps_the_reserve() {
    let mut world = world_with(&[100_000, 50_000]);
    world.wallet.set_anchor_channels(2);
    assert_eq!(world.wallet.balance().spendable, Sat(100_000));
    let made = world.wallet.send(STRANGER, Amount::All, FEERATE).unwrap();
    world.check(&made, FEERATE, 0);
    assert_eq!(made.amount, Sat(100_000 - made.fee.0));
    world.broadcast(&made, WITHDRAWAL);
    assert_eq!(world.wallet.balance().unconfirmed, Sat(50_000));
    assert_eq!(world.wallet.balance().spendable, Sat::ZERO);
}

#[test]
fn send_more_than_there_is_tells_the_numbers() {
    let mut world = world_with(&[100_000]);
    let error = world.wallet.send(STRANGER, Amount::Exactly(Sat(100_000)), FEERATE).unwrap_err();
    let WalletError::InsufficientFunds { needed, available } = error else { panic!("{error}") };
    assert_eq!(available, Sat(100_000));
    assert!(needed > Sat(100_000) && needed < Sat(101_000), "{needed}");
    let nothing = super::world().wallet.send(STRANGER, Amount::All, FEERATE).unwrap_err();
    assert!(matches!(nothing, WalletError::InsufficientFunds { available: Sat(0), .. }), "{nothing}");
}

#[test]
fn send_up_to_the_last_satoshi_and_one_more() {
    let mut world = world_with(&[100_000]);
    let all = world.wallet.send(STRANGER, Amount::All, FEERATE).unwrap();
    world.wallet.release(&all.tx.compute_txid());
    let exactly = world.wallet.send(STRANGER, Amount::Exactly(all.amount), FEERATE).unwrap();
    assert_eq!(exactly.fee, all.fee);
    world.wallet.release(&exactly.tx.compute_txid());
    world.wallet.send(STRANGER, Amount::Exactly(Sat(all.amount.0 + 1)), FEERATE).unwrap_err();
}

#[test]
fn send_into_the_reserve_is_refused_with_the_difference() {
    let mut world = world_with(&[100_000]);
    world.wallet.set_anchor_channels(1);
    let error = world.wallet.send(STRANGER, Amount::Exactly(Sat(80_000)), FEERATE).unwrap_err();
    let WalletError::Reserve { reserve, left, short } = error else { panic!("{error}") };
    assert_eq!((reserve, reserve.0 - left.0), (Sat(25_000), short.0));
    world.wallet.send(STRANGER, Amount::Exactly(Sat(80_000 - short.0)), FEERATE).unwrap();
}

#[test]
fn the_reserve_grows_by_channel_up_to_its_maximum_and_goes_with_them() {
    let mut world = world_with(&[100_000]);
    for (channels, reserve) in [(0, 0), (1, 25_000), (4, 100_000), (5, 100_000), (u32::MAX, 100_000), (1, 25_000)] {
        world.wallet.set_anchor_channels(channels);
        assert_eq!(world.wallet.reserve(), Sat(reserve), "{channels}");
    }
    world.wallet.set_anchor_channels(0);
    world.wallet.check_reserve_for(1).unwrap();
    let mut many = world_with(&[30_000, 30_000, 25_000, 25_000]);
    many.wallet.set_anchor_channels(3);
    many.wallet.check_reserve_for(u32::MAX).unwrap();
    let mut scant = world_with(&[30_000, 30_000]);
    scant.wallet.set_anchor_channels(1);
    scant.wallet.check_reserve_for(1).unwrap();
    assert!(matches!(scant.wallet.check_reserve_for(2), Err(WalletError::Reserve { short: Sat(15_000), .. })));
    let mut poor = world_with(&[24_999]);
    assert_eq!(
        poor.wallet.check_reserve_for(1),
        Err(WalletError::Reserve { reserve: Sat(25_000), left: Sat(24_999), short: Sat(1) })
    );
    poor.wallet.set_anchor_channels(0);
    assert_eq!(poor.wallet.reserve(), Sat::ZERO);
}

/// Coins of at least what is kept back for a channel.
fn reserve_coins(world: &World) -> usize {
    world.wallet.utxos().iter().filter(|utxo| utxo.amount >= Sat(25_000) && !utxo.is_locked).count()
}

#[test]
fn enough_in_one_coin_does_not_do_for_two_channels_and_is_divided() {
    let mut world = world_with(&[120_000]);
    world.wallet.set_anchor_channels(1);
    let error = world.wallet.check_reserve_for(1).unwrap_err();
    assert_eq!(error, WalletError::ReserveCoins { coins: 2, left: 1, each: Sat(25_000) });
    assert!(error.to_string().contains("2 coins of at least 25000 sat"), "{error}");
    let made = world.wallet.divide(1, FEERATE).unwrap();
    world.check(&made, FEERATE, 0);
    world.broadcast(&made, WITHDRAWAL);
    assert_eq!(reserve_coins(&world), 2);
    world.wallet.check_reserve_for(1).unwrap();
    world.mine(std::slice::from_ref(&made.tx));
    world.wallet.check_reserve_for(1).unwrap();
    let reserved = world.wallet.utxos().iter().filter(|utxo| utxo.is_reserved).count();
    assert_eq!(reserved, 1, "one for the channel that there is");
}

#[test]
fn funding_leaves_a_coin_for_each_channel_until_there_is_too_little() {
    let mut world = world_with(&[400_000]);
    let mut channels = 0;
    let refusal = loop {
        world.wallet.set_anchor_channels(channels);
        match world.wallet.fund_channel(p2wsh(u8::try_from(channels).unwrap()), Sat(50_000), FEERATE, true) {
            Ok(made) => {
                world.check(&made, FEERATE, 0);
                world.broadcast(&made, FUNDING);
                channels += 1;
                assert!(reserve_coins(&world) >= channels.min(4) as usize, "{channels}");
                world.mine(std::slice::from_ref(&made.tx));
            }
            Err(refusal) => break refusal,
        }
    };
    // RESERVE keeps 100,000 sat at most, four coins.
    assert!(channels >= 4, "{channels}: {refusal}");
    let is_reserve = matches!(
        refusal,
        WalletError::Reserve { reserve: Sat(100_000), .. } | WalletError::ReserveCoins { coins: 4, .. }
    );
    assert!(is_reserve, "{refusal}");
    assert!(reserve_coins(&world) >= 4);
}

#[test]
fn whatever_is_sent_and_made_again_leaves_a_coin_for_each_channel() {
    let mut world = world_with(&[200_000]);
    world.wallet.set_anchor_channels(3);
    let made = world.wallet.send(STRANGER, Amount::Exactly(Sat(50_000)), FEERATE).unwrap();
    world.check(&made, FEERATE, 0);
    world.broadcast(&made, WITHDRAWAL);
    assert_eq!(reserve_coins(&world), 3);
    let dearer = FeeratePerKw(FEERATE.0 * 5);
    let again = world.wallet.bump_fee(&made.tx.compute_txid(), dearer).unwrap();
    assert_eq!(again.tx.output.len(), made.tx.output.len(), "the coins of the reserve stay what they are");
    world.broadcast(&again, WITHDRAWAL);
    assert_eq!(reserve_coins(&world), 3);
    world.mine(std::slice::from_ref(&again.tx));
    let all = world.wallet.send(STRANGER, Amount::All, FEERATE).unwrap();
    world.check(&all, FEERATE, 0);
    world.broadcast(&all, WITHDRAWAL);
    assert_eq!((reserve_coins(&world), world.wallet.balance().spendable), (3, Sat::ZERO));
}

#[test]
fn addresses_that_are_none_or_of_another_network() {
    let mut world = world_with(&[100_000]);
    let mut send = |address: &str| world.wallet.send(address, Amount::Exactly(Sat(1000)), FEERATE).unwrap_err();
    for address in ["", "hello", "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt081"] {
        assert!(matches!(send(address), WalletError::Address { .. }), "{address}");
    }
    for address in ["bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx"] {
        let error = send(address);
        assert!(error.to_string().ends_with("is not an address of the network regtest"), "{error}");
    }
    assert!(world.wallet.locks.is_empty() && world.wallet.drafts.is_empty(), "a refusal changes nothing");
}

#[test]
fn dust_and_odd_feerates_are_refused() {
    let mut world = world_with(&[100_000]);
    let error = world.wallet.send(STRANGER, Amount::Exactly(Sat(293)), FEERATE).unwrap_err();
    assert_eq!(error, WalletError::Dust { amount: Sat(293), dust: Sat(294) });
    world.wallet.send(STRANGER, Amount::Exactly(Sat(294)), FEERATE).unwrap();
    for feerate in [FeeratePerKw(0), FeeratePerKw(252), FeeratePerKw(250_001)] {
        let error = world.wallet.send(STRANGER, Amount::Exactly(Sat(1000)), feerate).unwrap_err();
        assert!(matches!(error, WalletError::Feerate { .. }), "{error}");
    }
}

#[test]
fn fund_a_channel() {
    let mut world = world_with(&[200_000, 200_000]);
    let made = world.wallet.fund_channel(p2wsh(7), Sat(150_000), FEERATE, true).unwrap();
    world.check(&made, FEERATE, 0);
    let output = &made.tx.output[made.vout as usize];
    assert_eq!((output.script_pubkey.clone(), made.amount), (p2wsh(7), Sat(150_000)));
    assert!(world.wallet.unconfirmed_txids().is_empty(), "nothing is broadcast");
    assert_eq!(world.wallet.balance().locked, Sat(200_000));
}

#[test]
fn a_channel_with_anchors_must_leave_its_own_reserve() {
    let mut world = world_with(&[100_000]);
    let error = world.wallet.fund_channel(p2wsh(7), Sat(80_000), FEERATE, true).unwrap_err();
    assert!(matches!(error, WalletError::Reserve { reserve: Sat(25_000), .. }), "{error}");
    let made = world.wallet.fund_channel(p2wsh(7), Sat(80_000), FEERATE, false).unwrap();
    assert_eq!(made.amount, Sat(80_000));
}

#[test]
fn promised_coins_are_not_promised_again_until_released() {
    let mut world = world_with(&[100_000]);
    let first = world.wallet.fund_channel(p2wsh(7), Sat(50_000), FEERATE, false).unwrap();
    let error = world.wallet.fund_channel(p2wsh(8), Sat(50_000), FEERATE, false).unwrap_err();
    assert!(matches!(error, WalletError::InsufficientFunds { available: Sat(0), .. }), "{error}");
    assert!(world.wallet.utxos()[0].is_locked);
    world.wallet.release(&first.tx.compute_txid());
    world.wallet.fund_channel(p2wsh(8), Sat(50_000), FEERATE, false).unwrap();
}

#[test]
fn change_of_a_broadcast_transaction_can_be_used_and_a_strangers_coins_only_when_confirmed() {
    let mut world = world_with(&[100_000]);
    let first = world.wallet.fund_channel(p2wsh(7), Sat(30_000), FEERATE, false).unwrap();
    world.broadcast(&first, FUNDING);
    let second = world.wallet.fund_channel(p2wsh(8), Sat(30_000), FEERATE, false).unwrap();
    world.check(&second, FEERATE, 0);
    assert_eq!(second.tx.input[0].previous_output.txid, first.tx.compute_txid());
    let gift = world.pays_us(500_000, AddressType::Taproot);
    world.wallet.see_transaction(&gift, world.now);
    assert_eq!(world.wallet.balance().unconfirmed.0, 500_000 + 100_000 - 30_000 - first.fee.0);
    world.wallet.send(STRANGER, Amount::Exactly(Sat(400_000)), FEERATE).unwrap_err();
    world.mine(&[first.tx.clone(), gift]);
    world.wallet.send(STRANGER, Amount::Exactly(Sat(400_000)), FEERATE).unwrap();
}

#[test]
fn confirmed_coins_go_before_change() {
    let mut world = world_with(&[100_000, 100_000]);
    let first = world.wallet.fund_channel(p2wsh(7), Sat(30_000), FEERATE, false).unwrap();
    world.broadcast(&first, FUNDING);
    let second = world.wallet.fund_channel(p2wsh(8), Sat(30_000), FEERATE, false).unwrap();
    assert_ne!(second.tx.input[0].previous_output.txid, first.tx.compute_txid());
}

#[test]
fn bump_a_withdrawal() {
    let mut world = world_with(&[100_000, 50_000]);
    let made = world.wallet.send(STRANGER, Amount::Exactly(Sat(60_000)), FEERATE).unwrap();
    world.broadcast(&made, WITHDRAWAL);
    let bumped = world.wallet.bump_fee(&made.tx.compute_txid(), FeeratePerKw(3000)).unwrap();
    world.check(&bumped, FeeratePerKw(3000), 0);
    assert_eq!(bumped.amount, Sat(60_000));
    let relay = FeeratePerKw::FLOOR.fee_ceil(bumped.tx.weight());
    assert!(bumped.fee.0 >= made.fee.0 + relay.0, "BIP 125, rule 4");
    let spent = |tx: &Transaction| tx.input.iter().map(|input| input.previous_output).collect::<Vec<_>>();
    assert!(spent(&made.tx).iter().all(|outpoint| spent(&bumped.tx).contains(outpoint)));
    world.broadcast(&bumped, WITHDRAWAL);
    assert_eq!(world.wallet.unconfirmed_txids(), [bumped.tx.compute_txid()], "the first is void");
    world.mine(std::slice::from_ref(&bumped.tx));
    assert_eq!(world.wallet.balance().confirmed.0, 150_000 - 60_000 - bumped.fee.0);
}

#[test]
fn bump_takes_another_coin_when_the_change_does_not_do() {
    let mut world = world_with(&[61_000]);
    let made = world.wallet.send(STRANGER, Amount::Exactly(Sat(60_000)), FEERATE).unwrap();
    world.broadcast(&made, WITHDRAWAL);
    let error = world.wallet.bump_fee(&made.tx.compute_txid(), FeeratePerKw(20_000)).unwrap_err();
    assert!(matches!(error, WalletError::InsufficientFunds { .. }), "{error}");
    let another = world.pays_us(50_000, AddressType::Segwit);
    world.mine(&[another]);
    let bumped = world.wallet.bump_fee(&made.tx.compute_txid(), FeeratePerKw(20_000)).unwrap();
    world.check(&bumped, FeeratePerKw(20_000), 0);
    assert_eq!(bumped.tx.input.len(), 2);
}

fn check_not_bumped(world: &mut World, txid: Txid, reason: &str) {
    let error = world.wallet.bump_fee(&txid, FeeratePerKw(5000)).unwrap_err();
    assert!(matches!(&error, WalletError::NotReplaceable { .. }) && error.to_string().contains(reason), "{error}");
}

#[test]
fn what_is_not_a_withdrawal_is_not_bumped() {
    let mut world = world_with(&[100_000]);
    let unknown = Txid::all_zeros();
    assert_eq!(world.wallet.bump_fee(&unknown, FEERATE).unwrap_err(), WalletError::UnknownTransaction(unknown));
    let funding = world.wallet.fund_channel(p2wsh(7), Sat(70_000), FEERATE, false).unwrap();
    world.broadcast(&funding, FUNDING);
    check_not_bumped(&mut world, funding.tx.compute_txid(), "it is not a withdrawal (Funding)");
    let gift = world.pays_us(5000, AddressType::Segwit);
    world.wallet.see_transaction(&gift, world.now);
    check_not_bumped(&mut world, gift.compute_txid(), "not all of its inputs are known");
    let change = funding.tx.output.iter().position(|output| output.script_pubkey != p2wsh(7)).unwrap();
    let mut elsewhere = world.pays(p2wsh(8), 5000);
    elsewhere.input[0].previous_output =
        OutPoint { txid: funding.tx.compute_txid(), vout: u32::try_from(change).unwrap() };
    world.wallet.see_transaction(&elsewhere, world.now);
    check_not_bumped(&mut world, elsewhere.compute_txid(), "it was not made by this node");
}

#[test]
fn a_withdrawal_that_something_rests_on_is_not_bumped() {
    let mut world = world_with(&[100_000]);
    let sent = world.wallet.send(STRANGER, Amount::Exactly(Sat(40_000)), FEERATE).unwrap();
    world.broadcast(&sent, WITHDRAWAL);
    let txid = sent.tx.compute_txid();
    let error = world.wallet.bump_fee(&txid, FEERATE).unwrap_err().to_string();
    assert!(error.contains("1000 sat/kw is not more"), "{error}");
    let child = world.wallet.fund_channel(p2wsh(9), Sat(5_000), FEERATE, false).unwrap();
    assert_eq!(child.tx.input[0].previous_output.txid, txid);
    check_not_bumped(&mut world, txid, "its change is promised to transaction");
    world.broadcast(&child, FUNDING);
    check_not_bumped(&mut world, txid, "spends its change");
    world.mine(std::slice::from_ref(&sent.tx));
    check_not_bumped(&mut world, txid, "it is confirmed");
}
