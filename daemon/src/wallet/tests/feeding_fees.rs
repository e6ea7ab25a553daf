#![allow(clippy::unwrap_used)]
//! Children that pay for parents, and fees for transactions that bring none.

use super::*;

/// A commitment-like parent: pays little, has an anchor at 0.
fn parent(world: &mut World) -> (Transaction, Sat) {
    let anchor = TxOut { value: bitcoin::Amount::from_sat(330), script_pubkey: p2wsh(0xaa) };
    let mut tx = world.pays(p2wsh(0xbb), 90_000);
    tx.output.insert(0, anchor);
    tx.input[0].witness = dummy_witness(220);
    world.know(&tx);
    (tx, Sat(200))
}

fn cpfp(parent: &Transaction, parent_fee: Sat, feerate: u32) -> Cpfp {
    Cpfp {
        parent: parent.clone(),
        parent_fee,
        anchor: foreign(parent, 0, Sequence::ENABLE_RBF_NO_LOCKTIME, 279),
        feerate: FeeratePerKw(feerate),
        replaces: None,
    }
}

/// The fee of both together, once the anchor is signed with a witness as heavy as announced.
fn check_package(parent: &Transaction, parent_fee: Sat, made: &Made, feerate: u32) {
    let mut child = made.tx.clone();
    // 279 weight units: 41 bytes of input, then a witness of 115.
    child.input[0].witness = dummy_witness(279 - 164 - 2);
    let weight = parent.weight() + child.weight();
    let fee = Sat(parent_fee.0 + made.fee.0);
    check_fee(weight, child.input.len() as u64, fee, FeeratePerKw(feerate));
}

#[test]
fn a_child_pays_for_its_parent() {
    let mut world = world_with(&[100_000, 40_000]);
    let (parent, parent_fee) = parent(&mut world);
    let made = world.wallet.cpfp(&cpfp(&parent, parent_fee, 5000)).unwrap();
    world.check(&made, FeeratePerKw(5000), 1);
    check_package(&parent, parent_fee, &made, 5000);
    assert_eq!(made.tx.input[0].previous_output, OutPoint { txid: parent.compute_txid(), vout: 0 });
    assert!(made.tx.input[0].witness.is_empty(), "for the channel to sign");
    assert!(made.tx.output.iter().all(|output| world.wallet.is_mine(&output.script_pubkey)));
}

#[test]
fn a_child_may_use_the_reserve_and_as_a_last_resort_a_strangers_unconfirmed_coin() {
    let mut world = world_with(&[20_000]);
    world.wallet.set_anchor_channels(4);
    let (parent, parent_fee) = parent(&mut world);
    let made = world.wallet.cpfp(&cpfp(&parent, parent_fee, 5000)).unwrap();
    world.wallet.release(&made.tx.compute_txid());
    let error = world.wallet.cpfp(&cpfp(&parent, parent_fee, 100_000)).unwrap_err();
    assert!(matches!(error, WalletError::InsufficientFunds { .. }), "{error}");
    let gift = world.pays_us(500_000, AddressType::Taproot);
    world.wallet.see_transaction(&gift, world.now);
    let made = world.wallet.cpfp(&cpfp(&parent, parent_fee, 100_000)).unwrap();
    check_package(&parent, parent_fee, &made, 100_000);
}

#[test]
fn a_parent_that_pays_enough_still_gets_a_child_that_is_relayed() {
    let mut world = world_with(&[20_000]);
    let (parent, _) = parent(&mut world);
    let made = world.wallet.cpfp(&cpfp(&parent, Sat(50_000), 1000)).unwrap();
    let mut child = made.tx.clone();
    child.input[0].witness = dummy_witness(113);
    assert!(made.fee >= FeeratePerKw::FLOOR.fee_ceil(child.weight()));
    assert_eq!(made.tx.output.len(), 1);
}

#[test]
fn a_child_is_replaced_by_one_that_pays_more_from_the_same_coins() {
    let mut world = world_with(&[60_000]);
    let (parent, parent_fee) = parent(&mut world);
    let first = world.wallet.cpfp(&cpfp(&parent, parent_fee, 2000)).unwrap();
    world.broadcast(&first, Label { kind: TxKind::FeeBump, channel: None });
    let replaces = Some(first.tx.compute_txid());
    let second = world.wallet.cpfp(&Cpfp { replaces, ..cpfp(&parent, parent_fee, 2001) }).unwrap();
    world.check(&second, FeeratePerKw(2001), 1);
    let relay = FeeratePerKw::FLOOR.fee_ceil(second.tx.weight());
    assert!(second.fee.0 >= first.fee.0 + relay.0, "{} after {}", second.fee, first.fee);
    assert!(second.tx.input.iter().all(|input| input.previous_output.txid != first.tx.compute_txid()));
    world.broadcast(&second, Label { kind: TxKind::FeeBump, channel: None });
    assert_eq!(world.wallet.unconfirmed_txids(), [second.tx.compute_txid()]);
    assert_eq!(world.wallet.balance().unconfirmed.0, 60_000 + 330 - second.fee.0);
}

#[test]
fn a_child_of_another_transaction_is_refused() {
    let mut world = world_with(&[60_000]);
    let (one, fee) = parent(&mut world);
    let (other, _) = parent(&mut world);
    let mixed = Cpfp { anchor: cpfp(&other, fee, 2000).anchor, ..cpfp(&one, fee, 2000) };
    let error = world.wallet.cpfp(&mixed).unwrap_err();
    assert!(error.to_string().contains("is not an output of the parent"), "{error}");
}

/// Two HTLC transactions of a commitment in one, as BOLT 3 has them with anchors: no fee, sequence 1.
fn htlc_txs(world: &mut World) -> AttachFee {
    let mut commitment = world.pays(p2wsh(1), 20_000);
    commitment.output.push(TxOut { value: bitcoin::Amount::from_sat(30_000), script_pubkey: p2wsh(2) });
    world.know(&commitment);
    let inputs = vec![foreign(&commitment, 0, Sequence(1), 450), foreign(&commitment, 1, Sequence(1), 450)];
    let input = inputs.iter().map(|input| TxIn {
        previous_output: input.outpoint,
        sequence: input.sequence,
        ..TxIn::default()
    });
    let amounts = [20_000, 30_000].map(bitcoin::Amount::from_sat);
    let tx = Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::from_consensus(777),
        input: input.collect(),
        output: amounts.map(|value| TxOut { value, script_pubkey: p2wsh(9) }).to_vec(),
    };
    AttachFee { tx, inputs, feerate: FeeratePerKw(4000), replaces: None }
}

#[test]
fn htlc_transactions_get_a_fee_and_keep_their_shape() {
    let mut world = world_with(&[100_000, 40_000]);
    let request = htlc_txs(&mut world);
    let made = world.wallet.attach_fee(&request).unwrap();
    world.check(&made, request.feerate, 2);
    assert_eq!(made.tx.input[..2], request.tx.input[..], "signed later, at the same place");
    assert_eq!(made.tx.output[..2], request.tx.output[..], "SIGHASH_SINGLE: the output at the input's index");
    assert_eq!((made.tx.version, made.tx.lock_time), (request.tx.version, request.tx.lock_time));
    let mut signed = made.tx.clone();
    for input in &mut signed.input[..2] {
        // 450 weight units: 41 bytes of input; item count, a length of three bytes, the item.
        input.witness = dummy_witness(450 - 164 - 4);
    }
    check_fee(signed.weight(), signed.input.len() as u64, made.fee, request.feerate);
}

#[test]
fn htlc_transactions_are_replaced_with_the_same_coins() {
    let mut world = world_with(&[50_000]);
    let request = htlc_txs(&mut world);
    let first = world.wallet.attach_fee(&request).unwrap();
    world.broadcast(&first, Label { kind: TxKind::Sweep, channel: None });
    let again = AttachFee { replaces: Some(first.tx.compute_txid()), feerate: FeeratePerKw(9000), ..request };
    let second = world.wallet.attach_fee(&again).unwrap();
    world.check(&second, again.feerate, 2);
    assert!(second.fee > first.fee);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let mut world = world_with(&[50_000]);
    let good = htlc_txs(&mut world);
    let mut swapped = good.clone();
    swapped.inputs.swap(0, 1);
    let mut too_few = good.clone();
    too_few.inputs.pop();
    let mut too_many = good.clone();
    too_many.inputs.push(foreign(&world.pays(p2wsh(3), 1000), 0, Sequence(1), 300));
    let mut pays_more = good.clone();
    pays_more.tx.output[0].value += bitcoin::Amount::ONE_SAT;
    let mut malleable = good.clone();
    malleable.inputs[0].output.script_pubkey = ScriptBuf::from_bytes(vec![0x51]).to_p2sh();
    for (request, reason) in [
        (swapped, "is not described at its place"),
        (too_few, "is not described at its place"),
        (too_many, "is not an input of the transaction"),
        (pays_more, "hold less than is paid out"),
        (malleable, "is not a segwit one"),
    ] {
        let error = world.wallet.attach_fee(&request).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    world.wallet.attach_fee(&good).unwrap();
}

#[test]
fn change_of_a_child_is_not_trusted_before_it_confirms() {
    let mut world = world_with(&[60_000]);
    let (parent, parent_fee) = parent(&mut world);
    let made = world.wallet.cpfp(&cpfp(&parent, parent_fee, 2000)).unwrap();
    world.broadcast(&made, Label { kind: TxKind::FeeBump, channel: None });
    // Its parent may lose against the other side's commitment.
    world.wallet.fund_channel(p2wsh(7), Sat(10_000), FEERATE, false).unwrap_err();
    world.wallet.abandon(&made.tx.compute_txid(), world.now);
    world.wallet.fund_channel(p2wsh(7), Sat(10_000), FEERATE, false).unwrap();
}
