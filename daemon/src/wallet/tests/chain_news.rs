#![allow(clippy::unwrap_used)]
//! Blocks, reorgs, and what comes and goes in the mempool.

use super::*;

#[test]
fn the_first_block_may_have_any_height_and_the_next_must_follow() {
    let mut world = world();
    assert_eq!(world.wallet.tip(), (100, world.blocks[0].block_hash()));
    world.wallet.apply_block(100, &world.blocks[0].clone()).unwrap();
    let mut elsewhere = super::world();
    elsewhere.mine(&[]);
    let stray = elsewhere.next_block(&[]);
    let error = world.wallet.apply_block(101, &stray).unwrap_err();
    assert!(matches!(error, WalletError::OutOfOrder { height: 101, last: 100, .. }), "{error}");
    let next = world.next_block(&[]);
    world.wallet.apply_block(103, &next).unwrap_err();
    world.wallet.apply_block(100, &next).unwrap_err();
    world.mine(&[]);
    assert_eq!(world.wallet.height(), 101);
}

#[test]
fn a_regtest_chain_from_its_beginning() {
    let mut wallet = empty_wallet();
    assert_eq!(wallet.height(), 0);
    let genesis = bitcoin::constants::genesis_block(Network::Regtest);
    wallet.apply_block(0, &genesis).unwrap();
    let mut world = super::world();
    world.blocks = vec![genesis];
    let first = world.next_block(&[]);
    wallet.apply_block(1, &first).unwrap();
    assert_eq!(wallet.tip(), (1, first.block_hash()));
}

#[test]
fn a_reorg_takes_coins_back_and_brings_them_again() {
    let mut world = world();
    let deposit = world.pays_us(100_000, AddressType::Segwit);
    world.mine(std::slice::from_ref(&deposit));
    world.mine(&[]);
    assert_eq!(world.wallet.utxos()[0].confirmations, 2);
    world.unmine();
    world.unmine();
    assert_eq!(world.wallet.height(), 100);
    let balance = world.wallet.balance();
    assert_eq!((balance.confirmed, balance.unconfirmed, balance.spendable), (Sat::ZERO, Sat(100_000), Sat::ZERO));
    world.mine(&[]);
    world.mine(std::slice::from_ref(&deposit));
    assert_eq!(world.wallet.utxos()[0].confirmations, 1);
    assert_eq!(world.wallet.transaction(&deposit.compute_txid()).unwrap().height, Some(102));
    assert_eq!(world.wallet.balance().spendable, Sat(100_000));
}

#[test]
fn only_the_last_block_can_go_and_an_unknown_one_is_no_news() {
    let mut world = world();
    world.mine(&[]);
    let hash = world.blocks[0].block_hash();
    assert!(matches!(world.wallet.disconnect_block(100, hash), Err(WalletError::OutOfOrder { last: 101, .. })));
    world.wallet.disconnect_block(105, hash).unwrap();
    world.wallet.disconnect_block(101, hash).unwrap();
    assert_eq!(world.wallet.height(), 101);
}

#[test]
fn a_double_spend_in_a_block_wins_over_the_mempool() {
    let mut world = world();
    let gift = world.pays_us(70_000, AddressType::Taproot);
    world.wallet.see_transaction(&gift, world.now);
    assert_eq!(world.wallet.balance().unconfirmed, Sat(70_000));
    let mut rival = world.pays_us(50_000, AddressType::Taproot);
    rival.input = gift.input.clone();
    world.mine(&[rival]);
    let balance = world.wallet.balance();
    assert_eq!((balance.confirmed, balance.unconfirmed), (Sat(50_000), Sat::ZERO));
}

#[test]
fn a_replacement_in_the_mempool_wins_in_the_same_second() {
    for earlier in [1, 2, 3, 4, 5] {
        let mut world = world();
        let gift = world.pays_us(70_000 + earlier, AddressType::Taproot);
        world.wallet.see_transaction(&gift, world.now);
        let mut rival = world.pays_us(50_000 + earlier, AddressType::Segwit);
        rival.input = gift.input.clone();
        world.wallet.see_transaction(&rival, world.now);
        assert_eq!(world.wallet.balance().unconfirmed, Sat(50_000 + earlier));
        assert_eq!(world.wallet.unconfirmed_txids(), [rival.compute_txid()]);
    }
}

#[test]
fn what_leaves_the_mempool_is_gone_and_may_come_back() {
    let mut world = world();
    let gift = world.pays_us(70_000, AddressType::Taproot);
    let txid = gift.compute_txid();
    for _ in 0..3 {
        world.wallet.see_transaction(&gift, world.now);
        assert_eq!(world.wallet.balance().unconfirmed, Sat(70_000));
        world.wallet.evict_transactions(&[txid], world.now);
        assert_eq!(world.wallet.balance().unconfirmed, Sat::ZERO);
    }
    world.mine(&[gift]);
    assert_eq!(world.wallet.balance().confirmed, Sat(70_000));
    world.wallet.evict_transactions(&[txid], world.now);
    assert_eq!(world.wallet.balance().confirmed, Sat(70_000), "what is mined stays");
}

#[test]
fn our_own_withdrawals_and_fundings_stay_when_the_mempool_drops_them() {
    for label in [WITHDRAWAL, FUNDING] {
        let mut world = world_with(&[100_000]);
        let made = world.wallet.send(STRANGER, Amount::Exactly(Sat(40_000)), FEERATE).unwrap();
        let txid = made.tx.compute_txid();
        world.broadcast(&made, label);
        world.wallet.evict_transactions(&[txid], world.now);
        assert_eq!(world.wallet.balance().confirmed, Sat::ZERO, "its coin is spent");
        world.wallet.abandon(&txid, world.now);
        assert_eq!(world.wallet.balance().confirmed, Sat(100_000));
    }
}

#[test]
fn coins_of_a_block_wait_for_a_hundred_more() {
    let mut world = world();
    let script = world.wallet.new_address(AddressType::Taproot).script_pubkey();
    let mut block = world.next_block(&[]);
    let value = bitcoin::Amount::from_sat(5_000_000);
    block.txdata[0].output.push(TxOut { value, script_pubkey: script });
    let coinbase = block.txdata[0].clone();
    world.know(&coinbase);
    world.blocks.push(block.clone());
    world.wallet.apply_block(101, &block).unwrap();
    world.mine_empty(98);
    let balance = world.wallet.balance();
    assert_eq!((balance.immature, balance.confirmed, balance.spendable), (Sat(5_000_000), Sat::ZERO, Sat::ZERO));
    world.wallet.send(STRANGER, Amount::Exactly(Sat(1000)), FEERATE).unwrap_err();
    world.mine_empty(1);
    // Mined in 101, the tip is 200: block 201 may hold the spending.
    assert_eq!(world.wallet.height(), 200);
    assert_eq!((world.wallet.balance().immature, world.wallet.balance().spendable), (Sat::ZERO, Sat(5_000_000)));
    let made = world.wallet.send(STRANGER, Amount::Exactly(Sat(1000)), FEERATE).unwrap();
    world.check(&made, FEERATE, 0);
}

#[test]
fn a_block_that_spends_a_promised_coin_frees_the_promise() {
    let mut world = world_with(&[100_000, 50_000]);
    let made = world.wallet.fund_channel(p2wsh(1), Sat(60_000), FEERATE, false).unwrap();
    assert!(!world.wallet.locks.is_empty());
    world.know(&made.tx);
    world.mine(std::slice::from_ref(&made.tx));
    assert!(world.wallet.locks.is_empty());
}

#[test]
fn lists_tell_what_is_there() {
    let mut world = world_with(&[100_000, 50_000]);
    let gift = world.pays_us(7_000, AddressType::Segwit);
    world.wallet.see_transaction(&gift, world.now);
    world.wallet.set_anchor_channels(1);
    let utxos = world.wallet.utxos();
    let told: Vec<_> = utxos.iter().map(|utxo| (utxo.amount.0, utxo.confirmations, utxo.is_reserved)).collect();
    assert_eq!(told[2], (7_000, 0, false));
    assert!(told.contains(&(100_000, 1, false)) && told.contains(&(50_000, 1, true)), "{told:?}");
    let transactions = world.wallet.transactions();
    assert_eq!(transactions.len(), 3);
    assert_eq!((transactions[0].txid, transactions[0].height), (gift.compute_txid(), None));
    assert_eq!(transactions[0].time_s, world.now);
    assert_eq!(transactions[0].label.kind, TxKind::Deposit);
    assert!(transactions.iter().all(|tx| tx.fee.is_none() && tx.sent == Sat::ZERO));
    let channel = Some(millrace_wire::ChannelId([3; 32]));
    world.wallet.set_label(gift.compute_txid(), Label { kind: TxKind::CooperativeClose, channel });
    assert_eq!(world.wallet.transaction(&gift.compute_txid()).unwrap().label.channel, channel);
}
