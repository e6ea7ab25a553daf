#![allow(clippy::unwrap_used)]
//! What the journal keeps of the wallet, and the actor that puts it there.

use std::sync::{Arc, Mutex};

use super::*;

/// What must be the same after a restart.
fn told(wallet: &Wallet) -> (Balance, Vec<Utxo>, Vec<WalletTx>, (u32, BlockHash)) {
    (wallet.balance(), wallet.utxos(), wallet.transactions(), wallet.tip())
}

fn restart(records: impl IntoIterator<Item = Vec<u8>>) -> Wallet {
    Wallet::load(records, keys().wallet().clone(), RESERVE).unwrap()
}

/// A wallet with a bit of everything, and all its records.
fn eventful() -> (World, Vec<Vec<u8>>) {
    let mut world = world();
    let mut records = Vec::new();
    let step = |world: &mut World, records: &mut Vec<Vec<u8>>| records.extend(world.wallet.take_staged());
    step(&mut world, &mut records);
    let deposits = [world.pays_us(100_000, AddressType::Taproot), world.pays_us(80_000, AddressType::Segwit)];
    step(&mut world, &mut records);
    world.mine(&deposits);
    step(&mut world, &mut records);
    let sent = world.wallet.send(STRANGER, Amount::Exactly(Sat(20_000)), FEERATE).unwrap();
    world.broadcast(&sent, WITHDRAWAL);
    step(&mut world, &mut records);
    world.mine(&[]);
    world.unmine();
    step(&mut world, &mut records);
    world.mine(std::slice::from_ref(&sent.tx));
    let gift = world.pays_us(9_000, AddressType::Segwit);
    world.wallet.see_transaction(&gift, world.now);
    step(&mut world, &mut records);
    (world, records)
}

#[test]
fn records_one_by_one_make_the_same_wallet() {
    let (world, records) = eventful();
    assert!(records.len() >= 6, "{}", records.len());
    assert_eq!(told(&restart(records)), told(&world.wallet));
}

#[test]
fn a_snapshot_stands_for_all_records_and_bears_older_ones_again() {
    let (mut world, records) = eventful();
    let snapshot = world.wallet.snapshot();
    assert_eq!(told(&restart([snapshot.clone()])), told(&world.wallet));
    let again = std::iter::once(snapshot).chain(records);
    assert_eq!(told(&restart(again)), told(&world.wallet));
}

#[test]
fn records_tell_of_what_appears_is_confirmed_and_goes() {
    let seen = |records: &[Vec<u8>]| -> Vec<_> {
        let all = records.iter().flat_map(|bytes| crate::wallet::seen_in_record(bytes).unwrap());
        all.map(|seen| (seen.sent != Sat::ZERO, seen.label.kind, seen.height.is_some(), seen.is_replaced)).collect()
    };
    let (mut world, records) = eventful();
    let deposit = (false, TxKind::Deposit, true, false);
    let sent = |is_mined, is_replaced| (true, TxKind::Withdrawal, is_mined, is_replaced);
    let gift = (false, TxKind::Deposit, false, false);
    let mut told = seen(&records);
    assert_eq!(told[..3], [deposit, deposit, sent(false, false)]);
    told[3..].sort_unstable();
    assert_eq!(told[3..], [gift, sent(true, false)]);
    world.unmine();
    assert_eq!(seen(&world.wallet.take_staged()), [sent(false, true)], "a reorganisation took it");
    assert_eq!(seen(&[world.wallet.snapshot()]), [], "a snapshot tells nothing again");
}

#[test]
fn nothing_new_is_nothing_to_write() {
    let (mut world, records) = eventful();
    assert!(world.wallet.take_staged().is_empty());
    assert!(restart(records).take_staged().is_empty());
    assert_eq!(empty_wallet().take_staged().len(), 1, "a new wallet records its public keys");
}

#[test]
fn an_address_that_was_given_is_not_given_again_after_a_restart() {
    let mut wallet = empty_wallet();
    let given = [AddressType::Taproot, AddressType::Segwit].map(|kind| wallet.new_address(kind));
    let mut again = restart(wallet.take_staged());
    for (kind, address) in [AddressType::Taproot, AddressType::Segwit].into_iter().zip(given) {
        assert!(again.is_mine(&address.script_pubkey()));
        assert_ne!(again.new_address(kind), address);
    }
}

#[test]
fn a_snapshot_does_not_grow_with_the_chain() {
    let mut world = world_with(&[100_000]);
    world.mine_empty(300);
    let size = world.wallet.snapshot().len();
    world.mine_empty(300);
    let later = world.wallet.snapshot();
    assert!(later.len() <= size + 10, "{} after {size}", later.len());
    let mut again = restart([later]);
    assert_eq!(told(&again), told(&world.wallet));
    assert_eq!(again.utxos()[0].confirmations, 601);
    let next = world.next_block(&[]);
    again.apply_block(world.height() + 1, &next).unwrap();
}

#[test]
fn records_of_others_are_refused() {
    let record = empty_wallet().take_staged().remove(0);
    let other = Keys::derive(&Seed::from_entropy(&[1; 32]), Network::Regtest);
    let error = Wallet::load([record.clone()], other.wallet().clone(), RESERVE).unwrap_err();
    assert!(matches!(error, LoadError::Foreign(_)), "{error}");
    let signet = Keys::derive(&Seed::from_entropy(&[9; 32]), Network::Signet);
    let error = Wallet::load([record.clone()], signet.wallet().clone(), RESERVE).unwrap_err();
    assert!(matches!(error, LoadError::Foreign(_)), "{error}");
    let theirs = Wallet::load([], other.wallet().clone(), RESERVE).unwrap().take_staged().remove(0);
    let error = Wallet::load([record, theirs], keys().wallet().clone(), RESERVE).unwrap_err();
    assert!(matches!(error, LoadError::Foreign(_)), "{error}");
}

#[test]
fn records_that_are_none_are_refused() {
    let load = |bytes: &[u8]| Wallet::load([bytes.to_vec()], keys().wallet().clone(), RESERVE).unwrap_err();
    assert_eq!(load(&[]), LoadError::Version { index: 0, version: 0, known: 1 });
    assert_eq!(load(&[2, b'{', b'}']), LoadError::Version { index: 0, version: 2, known: 1 });
    assert!(matches!(load(b"\x01nonsense"), LoadError::Record { index: 0, .. }));
}

#[test]
fn a_record_of_the_first_version_stays_readable() {
    let stored = include_bytes!("record_v1.json");
    let record = std::iter::once(1).chain(stored.iter().copied()).collect();
    let wallet = restart([record]);
    assert_eq!(wallet.height(), 101);
    let balance = wallet.balance();
    assert_eq!((balance.confirmed, balance.unconfirmed), (Sat(80_000), Sat(4_432)));
    assert_eq!(wallet.transactions()[0].label, WITHDRAWAL);
}

#[test]
fn no_secret_key_is_recorded() {
    let (mut world, _) = eventful();
    let text = String::from_utf8(world.wallet.snapshot()).unwrap();
    assert!(text.contains("tpub") && !text.contains("tprv"));
}

#[tokio::test]
async fn the_actor_answers_after_the_record_is_on_disk() {
    let disk = Arc::new(Mutex::new(Vec::new()));
    let to_disk = Arc::clone(&disk);
    let (handle, task) = spawn(empty_wallet(), move |bytes| {
        let disk = Arc::clone(&to_disk);
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            disk.lock().unwrap().push(bytes);
        }
    });
    let address = handle.new_address(AddressType::Taproot).await.unwrap();
    let on_disk = disk.lock().unwrap().clone();
    assert_eq!(on_disk.len(), 2, "the keys, then the address");
    let mut again = restart(on_disk);
    assert_ne!(again.new_address(AddressType::Taproot), address);
    assert_eq!(handle.balance().await.unwrap(), Balance::default());
    assert_eq!(disk.lock().unwrap().len(), 2, "a question writes nothing");
    let snapshot = handle.snapshot().await.unwrap();
    assert!(restart([snapshot]).is_mine(&address.script_pubkey()));
    drop(handle);
    assert!(task.await.unwrap().is_mine(&address.script_pubkey()));
}

#[tokio::test]
async fn coins_of_an_answer_that_nobody_hears_are_free_again() {
    let world = world_with(&[100_000]);
    let (handle, task) = spawn(world.wallet, |_| std::future::ready(()));
    let asking = handle.clone();
    // Asked, and given up before the answer.
    let mut asked = Box::pin(async move { asking.fund_channel(p2wsh(1), Sat(50_000), FEERATE, false).await });
    let waker = std::task::Waker::noop();
    assert!(asked.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    drop(asked);
    assert_eq!(handle.balance().await.unwrap().locked, Sat::ZERO);
    let made = handle.fund_channel(p2wsh(1), Sat(50_000), FEERATE, false).await.unwrap().unwrap();
    assert_eq!(handle.balance().await.unwrap().locked, Sat(100_000));
    handle.release(made.tx.compute_txid()).await.unwrap();
    task.abort();
    assert!(task.await.is_err());
    assert_eq!(handle.balance().await, Err(Closed));
}

/// Large transactions of somebody else, each paying both accounts, and as many small ones: a block that is nearly all ours.
fn flood(world: &mut World) -> Vec<Transaction> {
    let scripts =
        [AddressType::Taproot, AddressType::Segwit].map(|kind| world.wallet.new_address(kind).script_pubkey());
    let large = (0..6).map(|_| {
        let mut tx = world.pays(scripts[0].clone(), 1_000);
        let value = bitcoin::Amount::from_sat(600);
        tx.output.push(TxOut { value, script_pubkey: scripts[1].clone() });
        tx.output
            .resize(2_200, TxOut { value, script_pubkey: ScriptBuf::from_bytes([&[0x51, 32], &[9; 32][..]].concat()) });
        tx.input[0].witness = Witness::from_slice(&[vec![1; 600_000]]);
        tx
    });
    let mut txs: Vec<Transaction> = large.collect();
    txs.extend((0..400).map(|_| world.pays(scripts[1].clone(), 700)));
    txs
}

/// A step of the journal holds 8 MiB at most, and anybody may pay to the wallet.
const STEP_BYTES: usize = 3 << 20;

#[test]
fn whatever_is_paid_at_once_fits_into_steps() {
    for is_mined in [false, true] {
        let mut world = world();
        let before = world.wallet.snapshot();
        world.wallet.take_staged();
        let txs = flood(&mut world);
        let mut records = world.wallet.take_staged();
        if is_mined {
            world.mine(&txs);
        } else {
            let now = world.now;
            txs.iter().for_each(|tx| world.wallet.see_transaction(tx, now));
        }
        let staged = world.wallet.take_staged();
        let sizes: Vec<usize> = staged.iter().map(Vec::len).collect();
        assert!(sizes.len() > 1 && sizes.iter().all(|size| *size < STEP_BYTES), "{sizes:?}");
        records.extend(staged);
        let all = || std::iter::once(before.clone()).chain(records.clone());
        assert_eq!(told(&restart(all())), told(&world.wallet), "mined: {is_mined}");
        let expected = 6 * (1_000 + 600) + 400 * 700;
        assert_eq!(world.wallet.utxos().iter().map(|utxo| utxo.amount.0).sum::<u64>(), expected);

        // Cut anywhere, it takes the block, or the transactions, again.
        for kept in 0..records.len() {
            let mut cut = restart(all().take(kept + 1));
            if is_mined {
                cut.apply_block(world.height(), world.blocks.last().unwrap()).unwrap();
            } else {
                txs.iter().for_each(|tx| cut.see_transaction(tx, world.now));
            }
            assert_eq!(cut.balance(), world.wallet.balance(), "mined: {is_mined}, cut after {kept}");
        }
    }
}

#[test]
fn what_others_signed_with_is_not_kept_and_what_we_signed_with_is() {
    let mut world = world_with(&[100_000]);
    let mut gift = world.pays_us(9_000, AddressType::Segwit);
    gift.input[0].witness = Witness::from_slice(&[vec![7; 5_000]]);
    world.wallet.see_transaction(&gift, world.now);
    let sent = world.wallet.send(STRANGER, Amount::Exactly(Sat(20_000)), FEERATE).unwrap();
    world.broadcast(&sent, WITHDRAWAL);
    world.mine(&[gift.clone(), sent.tx.clone()]);
    let known = |txid: &Txid| {
        let accounts = [&world.wallet.taproot, &world.wallet.segwit];
        accounts.iter().find_map(|account| account.get_tx(*txid)).unwrap().tx_node.tx.clone()
    };
    assert!(known(&gift.compute_txid()).input[0].witness.is_empty());
    assert_eq!(*known(&sent.tx.compute_txid()), sent.tx);
}
