//! Mutual closes, legacy and simple: both sides build the same transaction, and with both signatures it is valid.

use super::*;

fn scripts() -> Both<ScriptBuf> {
    let local = ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(&[4; 33]));
    let remote = ScriptBuf::from_bytes([&[0x51, 32], &[5; 32][..]].concat());
    Both { local, remote }
}

const BALANCES: Both<Msat> = Both { local: Msat(6_000_000_999), remote: Msat(3_999_999_001) };

/// The peer builds the same and signs it; with both signatures it is valid, with a stranger's it is not.
fn check(pair: &Pair, ours: &ClosingTx, theirs: &ClosingTx) {
    assert_eq!(ours, theirs);
    let mirrored = pair.mirrored();
    let remote = theirs.sign(&mirrored.terms, &pair.remote);
    let local = ours.sign(&pair.terms, &pair.local);
    assert!(ours.is_signed_by_remote(&pair.terms, &remote));
    assert!(theirs.is_signed_by_remote(&mirrored.terms, &local));
    let strangers = ours.sign(&pair.terms, &strangers_keys());
    assert!(!ours.is_signed_by_remote(&pair.terms, &strangers));
    let signed = ours.signed_tx(&pair.terms, &local, &remote);
    let prevouts = [funding::output_of(&pair.terms)];
    verify_tx(&signed, &prevouts).unwrap();
    assert_eq!(signed, theirs.signed_tx(&mirrored.terms, &remote, &local));
    assert!(verify_tx(&ours.signed_tx(&pair.terms, &local, &strangers), &prevouts).is_err());
    let paid: u64 = signed.output.iter().map(|output| output.value.to_sat()).sum();
    assert_eq!(paid + ours.fee.0, pair.terms.capacity.0);
    let outputs = signed.output.iter().map(|output| output.script_pubkey.as_script());
    let expected = weight::closing_weight(outputs);
    assert!(signed.weight() <= expected && signed.weight().to_wu() + 6 >= expected.to_wu());
}

fn mirror<T: Clone>(both: &Both<T>) -> Both<T> {
    Both { local: both.remote.clone(), remote: both.local.clone() }
}

#[test]
fn legacy_of_both_outputs() {
    for format in FORMATS {
        let pair = some_pair(format);
        let (scripts, fee) = (scripts(), Sat(777));
        let ours = ClosingTx::legacy(&pair.terms, Side::Local, &BALANCES, &scripts, fee).unwrap();
        let mirrored = pair.mirrored();
        let theirs =
            ClosingTx::legacy(&mirrored.terms, Side::Remote, &mirror(&BALANCES), &mirror(&scripts), fee).unwrap();
        check(&pair, &ours, &theirs);
        let outputs: Vec<_> = ours.tx.output.iter().map(|output| output.value.to_sat()).collect();
        assert_eq!(outputs, [3_999_999, 6_000_000 - 777]);
        assert_eq!(ours.tx.output[0].script_pubkey, scripts.remote);
        assert_eq!(ours.tx.input[0].sequence, Sequence::MAX);
        assert_eq!(ours.tx.lock_time, absolute::LockTime::ZERO);
    }
}

#[test]
fn legacy_leaves_out_what_the_signer_takes_for_dust() {
    let mut pair = some_pair(CommitmentFormat::Anchors);
    pair.terms.parties.local.dust_limit = Sat(354);
    pair.terms.parties.remote.dust_limit = Sat(546);
    let (scripts, fee) = (scripts(), Sat(700));
    let capacity = pair.terms.capacity;
    let outputs = |signer, remote: u64| {
        let balances = Both { local: Sat(capacity.0 - remote).to_msat(), remote: Sat(remote).to_msat() };
        ClosingTx::legacy(&pair.terms, signer, &balances, &scripts, fee).unwrap().tx.output.len()
    };
    assert_eq!([outputs(Side::Local, 353), outputs(Side::Local, 354)], [1, 2]);
    assert_eq!([outputs(Side::Remote, 545), outputs(Side::Remote, 546)], [1, 2]);
}

#[test]
fn legacy_with_the_signers_own_output_left_out() {
    let pair = some_pair(CommitmentFormat::Anchors);
    let (scripts, fee) = (scripts(), Sat(700));
    let terms = &pair.terms;
    let ours = ClosingTx::legacy_without_signer(terms, Side::Remote, &BALANCES, &scripts, fee).unwrap();
    let mirrored = pair.mirrored();
    let (balances, their_scripts) = (mirror(&BALANCES), mirror(&scripts));
    let theirs =
        ClosingTx::legacy_without_signer(&mirrored.terms, Side::Local, &balances, &their_scripts, fee).unwrap();
    check(&pair, &ours, &theirs);
    assert_eq!(ours.tx.output.len(), 1);
    assert_eq!(ours.tx.output[0].script_pubkey, scripts.local);
    let nothing_to_drop = Both { local: terms.capacity.to_msat(), remote: Msat(0) };
    assert_eq!(ClosingTx::legacy_without_signer(terms, Side::Remote, &nothing_to_drop, &scripts, fee), None);
    assert_eq!(ClosingTx::legacy_without_signer(terms, Side::Local, &nothing_to_drop, &scripts, fee), None);
}

#[test]
fn legacy_with_a_fee_that_the_funder_has_not() {
    let pair = some_pair(CommitmentFormat::Anchors);
    let fee = BALANCES.local.floor_to_sat();
    let close = |fee| ClosingTx::legacy(&pair.terms, Side::Local, &BALANCES, &scripts(), fee);
    assert_eq!(close(fee).unwrap().tx.output.len(), 1);
    assert_eq!(close(Sat(fee.0 + 1)), None);
}

#[test]
fn simple_in_every_form_from_either_side() {
    for (closer, outputs, values) in [
        (Side::Local, ClosingOutputs::Both, vec![3_999_999, 6_000_000 - 900]),
        (Side::Local, ClosingOutputs::CloserOnly, vec![6_000_000 - 900]),
        (Side::Remote, ClosingOutputs::Both, vec![3_999_999 - 900, 6_000_000]),
        (Side::Remote, ClosingOutputs::CloseeOnly, vec![6_000_000]),
    ] {
        let pair = some_pair(CommitmentFormat::Anchors);
        let scripts = scripts();
        let close = SimpleClose { closer, balances: &BALANCES, scripts: &scripts, fee: Sat(900), lock_time: 800_123 };
        let ours = close.tx(&pair.terms, outputs).unwrap();
        let (balances, their_scripts) = (mirror(&BALANCES), mirror(&scripts));
        let seen_by_the_peer =
            SimpleClose { closer: closer.other(), balances: &balances, scripts: &their_scripts, ..close };
        let theirs = seen_by_the_peer.tx(&pair.mirrored().terms, outputs).unwrap();
        check(&pair, &ours, &theirs);
        let found: Vec<_> = ours.tx.output.iter().map(|output| output.value.to_sat()).collect();
        assert_eq!(found, values);
        assert_eq!(ours.tx.input[0].sequence, Sequence(0xffff_fffd));
        assert_eq!(ours.tx.lock_time.to_consensus_u32(), 800_123);
        assert_eq!(close.offers(), seen_by_the_peer.offers());
        assert_eq!(close.offers().contains(&outputs), outputs != ClosingOutputs::CloseeOnly);
    }
}

#[test]
fn simple_to_op_return_pays_it_nothing() {
    let pair = some_pair(CommitmentFormat::Anchors);
    let op_return = ScriptBuf::from_bytes([&[0x6a, 6], &[7; 6][..]].concat());
    let scripts = Both { local: op_return.clone(), remote: scripts().remote };
    for (closer, remote_gets) in [(Side::Local, 3_999_999), (Side::Remote, 3_999_999 - 900)] {
        let close = SimpleClose { closer, balances: &BALANCES, scripts: &scripts, fee: Sat(900), lock_time: 0 };
        let tx = close.tx(&pair.terms, ClosingOutputs::Both).unwrap();
        assert_eq!(tx.tx.output[0], TxOut { value: Amount::ZERO, script_pubkey: op_return.clone() });
        assert_eq!(tx.tx.output[1].value.to_sat(), remote_gets);
        let remote = tx.sign(&pair.mirrored().terms, &pair.remote);
        let local = tx.sign(&pair.terms, &pair.local);
        let signed = tx.signed_tx(&pair.terms, &local, &remote);
        verify_tx(&signed, &[funding::output_of(&pair.terms)]).unwrap();
    }
}

#[test]
fn random_closes() {
    let mut built = 0;
    for seed in 0..200 {
        let choices = &mut Choices::new(seed);
        let (mut pair, _) = random(seed);
        pair.terms.capacity = Sat(1000 + choices.below(3_000_000));
        let local = Msat(choices.below(pair.terms.capacity.to_msat().0));
        let balances = Both { local, remote: Msat(pair.terms.capacity.to_msat().0 - local.0) };
        let fee = Sat(choices.below(2000));
        let (scripts, mirrored) = (scripts(), pair.mirrored());
        for signer in [Side::Local, Side::Remote] {
            let ours = ClosingTx::legacy(&pair.terms, signer, &balances, &scripts, fee);
            let (their_balances, their_scripts) = (mirror(&balances), mirror(&scripts));
            let theirs = ClosingTx::legacy(&mirrored.terms, signer.other(), &their_balances, &their_scripts, fee);
            match (&ours, &theirs) {
                (Some(ours), Some(theirs)) => check(&pair, ours, theirs),
                (ours, theirs) => assert_eq!(ours, theirs),
            }
            built += usize::from(ours.is_some());
        }
    }
    assert!(built > 300, "{built}");
}
