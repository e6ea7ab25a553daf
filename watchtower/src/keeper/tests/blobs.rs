//! Blob mode on a disk that is killed between any two things that reach it.

use bitcoin::hashes::Hash;
use bitcoin::{Txid, Witness};
use millrace_wire::Sat;

use super::*;
use crate::sealed::{Sealed, hint_of, seal};
use crate::tower::Refusal;
use crate::vault::{CatchSpent, Group, HeldGroup, Why};

const GROUP: Group = Group([7; 16]);
const BLOBS: u64 = 6;

fn key(seed: u8) -> PublicKey {
    SecretKey::from_slice(&[seed; 32]).unwrap().public_key(SECP256K1)
}

/// The penalty for the peer's commitment with this number, and that commitment.
fn penalty(sample: &Sample, number: u64) -> (Sealed, Transaction) {
    let commitment = sample.commitment(number, 2_000_000, 0, 0);
    let vout = commitment.to_local.unwrap();
    let value = Sat::from(commitment.output(vout).value);
    let sealed = seal(&sample.registration(), &sample.secret(number), &commitment.txid, vout, value).unwrap();
    (sealed, commitment.tx)
}

/// A blob that nobody will ever match.
fn filler(number: u64) -> Sealed {
    let hint = hint_of(&Txid::hash(&number.to_be_bytes()));
    Sealed { hint, bytes: vec![number as u8; crate::sealed::SEALED_BYTES] }
}

fn fresh() -> (Arc<MemoryLog>, Keeper) {
    let log = Arc::new(MemoryLog::default());
    let (mut keeper, _) = Keeper::new(Tower::default(), Arc::clone(&log) as Arc<dyn Log>, Ticket(0));
    let Promised { .. } = keeper.allow_blobs(client(), 1_000_000).unwrap();
    (log, keeper)
}

fn take(keeper: &mut Keeper, group: Group, sequence: u64, sealed: Sealed) -> Promised<HeldGroup> {
    keeper.take_blob(&client(), group, sequence, sealed, 1_700_000_000).unwrap()
}

fn next(keeper: &Keeper, group: Group) -> u64 {
    keeper.tower().vault().held(&client(), group).map_or(0, |held| held.next)
}

/// The client after any interruption: it hands over what is missing.
fn catch_up(keeper: &mut Keeper, sample: &Sample) {
    let Promised { .. } = keeper.allow_blobs(client(), 1_000_000).unwrap();
    for number in next(keeper, GROUP)..BLOBS {
        let Promised { .. } = take(keeper, GROUP, number, penalty(sample, number).0);
    }
}

fn outpoints(keeper: &Keeper) -> Vec<OutPoint> {
    keeper.tower().vault().to_take().iter().map(|loot| loot.outpoint()).collect()
}

/// Acknowledgements and what could be broadcast, each with the ticket it rests on.
#[derive(Default)]
struct Told {
    acks: Vec<Promised<HeldGroup>>,
    to_take: Vec<(Ticket, Vec<OutPoint>)>,
}

/// Another group beside; two checkpoints, one of which writes the log anew; a breach that a reorg takes back and that comes again.
fn story(keeper: &mut Keeper, sample: &Sample, chain: &Chain) -> Told {
    let mut told = Told::default();
    keeper.sweep_slack = 1;
    let other = Group([9; 16]);
    for number in 0..BLOBS {
        told.acks.push(take(keeper, GROUP, number, penalty(sample, number).0));
        told.acks.push(take(keeper, other, number, filler(number)));
        told.acks.push(take(keeper, other, number, filler(number)));
        if number == 2 {
            keeper.checkpoint();
        }
    }
    keeper.checkpoint();
    let Promised { .. } = keeper.release(&client(), other).unwrap();
    for group in 10..18 {
        told.acks.push(take(keeper, Group([group; 16]), 0, filler(u64::from(group))));
    }
    keeper.checkpoint();
    for group in 10..18 {
        let Promised { .. } = keeper.release(&client(), Group([group; 16])).unwrap();
    }
    // More is of no use now than is needed.
    keeper.checkpoint();
    follow(keeper, &chain.before);
    told.to_take.push((keeper.promised().ticket, outpoints(keeper)));
    follow(keeper, &chain.after);
    told.to_take.push((keeper.promised().ticket, outpoints(keeper)));
    told
}

fn chain_of(breach: &Transaction) -> Chain {
    let before = vec![block(101, 0, Vec::new()), block(102, 1, vec![breach.clone()])];
    let after = vec![
        block(101, 0, Vec::new()),
        block(102, 2, Vec::new()),
        block(103, 2, vec![breach.clone()]),
        block(104, 2, Vec::new()),
    ];
    Chain { before, after, taken_max: 1 }
}

#[test]
fn killed_between_any_two_things_on_the_disk_it_keeps_every_blob_and_still_punishes() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (log, mut keeper) = fresh();
    let chain = chain_of(&penalty(&sample, 3).1);
    let told = story(&mut keeper, &sample, &chain);
    log.flush();
    let events = log.0.lock().unwrap().events.clone();
    assert!(events.iter().filter(|event| matches!(event, Event::Checkpoint(_))).count() == 4);
    assert!(events.iter().any(|event| matches!(event, Event::Forget(_))), "the log was never written anew");
    assert!(told.to_take.iter().all(|(_, outpoints)| outpoints.len() == 1));
    for cut in 0..=events.len() {
        let steps = events[..cut].iter().filter(|event| matches!(event, Event::Step(_))).count() as u64;
        let (log, mut keeper, _) = log.after_events(cut);
        for Promised { answer, ticket } in told.acks.iter().filter(|ack| ack.ticket.0 <= steps) {
            let is_released = answer.group != GROUP;
            assert!(is_released || next(&keeper, answer.group) >= answer.next, "killed after {cut}: {ticket:?}");
        }
        if let Some((_, expected)) = told.to_take.iter().rfind(|(ticket, _)| ticket.0 == steps) {
            assert_eq!(outpoints(&keeper), *expected, "killed after {cut}");
        }
        catch_up(&mut keeper, &sample);
        let mut blocks = chain.after.clone();
        follow(&mut keeper, &blocks);
        assert_eq!(outpoints(&keeper).len(), chain.taken_max, "killed after {cut}");
        let taken = spend(&outpoints(&keeper), wallet(7));
        blocks.push(block(105, 3, vec![taken]));
        follow(&mut keeper, &blocks);
        assert!(outpoints(&keeper).is_empty(), "killed after {cut}");
        // Another checkpoint, another kill: all is still there.
        keeper.checkpoint();
        log.flush();
        let events = log.0.lock().unwrap().events.len();
        let (_, keeper, _) = log.after_events(events);
        assert_eq!((next(&keeper, GROUP), outpoints(&keeper).len()), (BLOBS, 0), "killed after {cut}");
    }
}

#[test]
fn blob_is_found_in_memory_in_the_log_and_after_the_log_was_written_anew() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (log, mut keeper) = fresh();
    keeper.sweep_slack = 1;
    let (sealed, breach) = penalty(&sample, 0);
    let Promised { .. } = take(&mut keeper, GROUP, 0, sealed);
    let look = |keeper: &mut Keeper| {
        let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), std::slice::from_ref(&breach));
        assert_eq!(outpoints(keeper).len(), 1);
        let Promised { .. } = keeper.disconnect(BlockHeight(7));
        assert_eq!(outpoints(keeper).len(), 0);
    };
    look(&mut keeper);
    assert_eq!(log.0.lock().unwrap().reads, 0);
    keeper.checkpoint();
    look(&mut keeper);
    assert_eq!(log.0.lock().unwrap().reads, 1);
    assert_eq!(keeper.tower().vault().log_use(), (1, 0));
    for number in 0..9 {
        let Promised { .. } = take(&mut keeper, Group([1; 16]), number, filler(number));
    }
    keeper.checkpoint();
    let Promised { .. } = keeper.release(&client(), Group([1; 16])).unwrap();
    assert_eq!(keeper.tower().vault().log_use(), (1, 9));
    keeper.checkpoint();
    assert_eq!(keeper.tower().vault().log_use(), (1, 0));
    let parts: Vec<usize> = log.0.lock().unwrap().parts.values().map(Vec::len).collect();
    assert_eq!(parts, [1]);
    look(&mut keeper);
}

#[test]
fn blob_that_matches_and_does_not_open_or_cannot_be_read_is_reported_and_no_more() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (log, mut keeper) = fresh();
    let (good, breach) = penalty(&sample, 0);
    let bad = Sealed { hint: good.hint, bytes: vec![3; good.bytes.len()] };
    let Promised { .. } = take(&mut keeper, GROUP, 0, bad);
    let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), std::slice::from_ref(&breach));
    let whys = |keeper: &Keeper| keeper.tower().vault().unopened().map(|found| found.why).collect::<Vec<_>>();
    assert_eq!(whys(&keeper), [Why::Bad(crate::sealed::BadSealed::Cipher)]);
    assert!(outpoints(&keeper).is_empty());
    // It holds up nobody: the same hint by another group is tried as well.
    let Promised { .. } = keeper.disconnect(BlockHeight(7));
    assert!(whys(&keeper).is_empty());
    let Promised { .. } = take(&mut keeper, Group([8; 16]), 0, good);
    keeper.checkpoint();
    log.0.lock().unwrap().is_unreadable = true;
    let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), std::slice::from_ref(&breach));
    assert_eq!(whys(&keeper), [Why::Unreadable; 2]);
    let Promised { .. } = keeper.disconnect(BlockHeight(7));
    log.0.lock().unwrap().is_unreadable = false;
    let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), std::slice::from_ref(&breach));
    assert_eq!((whys(&keeper).len(), outpoints(&keeper).len()), (1, 1));
    // It is all told again after a start.
    keeper.checkpoint();
    let events = log.0.lock().unwrap().events.len();
    let (_, keeper, _) = log.after_events(events);
    assert_eq!((whys(&keeper).len(), outpoints(&keeper).len()), (1, 1));
}

#[test]
fn catch_is_watched_until_it_is_buried_and_holds_its_group_so_long() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (_log, mut keeper) = fresh();
    let (sealed, breach) = penalty(&sample, 0);
    let Promised { .. } = take(&mut keeper, GROUP, 0, sealed);
    let mine = |keeper: &mut Keeper, height: u32, txs: &[Transaction]| {
        let Promised { .. } = keeper.connect(BlockHeight(height), BlockHash::hash(&height.to_be_bytes()), txs);
    };
    mine(&mut keeper, 1, std::slice::from_ref(&breach));
    let penalty_of = |keeper: &Keeper| keeper.tower().vault().to_take()[0].opened.penalty(0).unwrap();
    let at_risk = Err(Fault::Refused(Refusal::GroupAtRisk(GROUP)));
    let taken = penalty_of(&keeper);
    assert_eq!(keeper.release(&client(), GROUP), at_risk);
    mine(&mut keeper, 2, std::slice::from_ref(&taken));
    let spent = |keeper: &Keeper| keeper.tower().vault().catches().next().unwrap().spent;
    let expected = CatchSpent { by: taken.compute_txid(), height: BlockHeight(2), to_sweep: true };
    assert_eq!(spent(&keeper), Some(expected));
    assert!(outpoints(&keeper).is_empty());
    // A reorg takes it back.
    let Promised { .. } = keeper.disconnect(BlockHeight(2));
    assert_eq!((spent(&keeper), outpoints(&keeper).len()), (None, 1));
    mine(&mut keeper, 2, std::slice::from_ref(&taken));
    (3..102).for_each(|height| mine(&mut keeper, height, &[]));
    assert_eq!(keeper.release(&client(), GROUP), at_risk);
    mine(&mut keeper, 102, &[]);
    assert!(keeper.tower().vault().catches().next().unwrap().is_over);
    let Promised { .. } = keeper.release(&client(), GROUP).unwrap();
    assert_eq!(keeper.tower().vault().catches().count(), 0);
    assert_eq!(keeper.release(&client(), GROUP), Err(Fault::Refused(Refusal::UnknownGroup(GROUP))));
}

#[test]
fn what_the_cheater_gets_after_his_delay_is_lost_and_what_is_taken_before_is_not() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let delay = u32::from(crate::samples::DELAY);
    for (height, is_taken) in [(delay, true), (delay + 1, false)] {
        let (_log, mut keeper) = fresh();
        let (sealed, breach) = penalty(&sample, 0);
        let Promised { .. } = take(&mut keeper, GROUP, 0, sealed);
        let Promised { .. } = keeper.connect(BlockHeight(1), BlockHash::hash(&[1]), &[breach]);
        let thief = spend(&outpoints(&keeper), wallet(0x99));
        let Promised { .. } = keeper.connect(BlockHeight(height), BlockHash::hash(&[2]), &[thief]);
        assert_eq!(keeper.tower().vault().catches().next().unwrap().is_taken(), is_taken, "{height}");
    }
}

#[test]
fn full_disk_takes_no_blob_and_still_punishes() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (log, mut keeper) = fresh();
    let (sealed, breach) = penalty(&sample, 0);
    let Promised { .. } = take(&mut keeper, GROUP, 0, sealed);
    log.fill();
    assert_eq!(keeper.take_blob(&client(), GROUP, 1, filler(1), 0), Err(Fault::Full));
    let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), &[breach]);
    assert_eq!(outpoints(&keeper).len(), 1);
}

#[test]
fn checkpoint_is_not_written_while_its_blobs_cannot_be() {
    let (log, mut keeper) = fresh();
    let Promised { .. } = take(&mut keeper, GROUP, 0, filler(0));
    log.flush();
    log.0.lock().unwrap().is_closed = true;
    keeper.checkpoint();
    assert!(log.0.lock().unwrap().checkpoint.is_none());
    log.0.lock().unwrap().is_closed = false;
    let events = log.0.lock().unwrap().events.len();
    let (_, keeper, _) = log.after_events(events);
    assert_eq!(next(&keeper, GROUP), 1);
}

#[test]
fn real_disk_keeps_blobs_over_restarts_and_refuses_to_go_on_without_them() {
    const COUNT: u64 = 3_000;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("journal");
    let options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, history_file_bytes: 1 << 20 };
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (mut keeper, _) = open(&dir, options).unwrap();
    keeper.bytes_max = 400_000;
    let Promised { .. } = keeper.allow_blobs(client(), 1_000_000).unwrap();
    let (sealed, breach) = penalty(&sample, 0);
    let Promised { .. } = take(&mut keeper, GROUP, 0, sealed);
    for number in 0..COUNT {
        let Promised { .. } = take(&mut keeper, Group([1; 16]), number, filler(number));
    }
    drop(keeper);
    let bytes = |name: &str| -> u64 {
        let files = std::fs::read_dir(dir.join(name)).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    let (mut keeper, _) = open(&dir, options).unwrap();
    assert_eq!((next(&keeper, GROUP), next(&keeper, Group([1; 16]))), (1, COUNT));
    keeper.checkpoint();
    let per_blob = bytes("blobs") as f64 / (COUNT + 1) as f64;
    println!("bytes per blob in the log: {per_blob}");
    assert!(per_blob < 480.0, "{per_blob}");
    let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), std::slice::from_ref(&breach));
    assert_eq!(outpoints(&keeper).len(), 1);
    // Nobody needs most of it any more.
    let before = bytes("blobs");
    let Promised { .. } = keeper.release(&client(), Group([1; 16])).unwrap();
    keeper.sweep_slack = 100;
    keeper.checkpoint();
    assert!(bytes("blobs") < before * 4 / 5, "{} of {before}", bytes("blobs"));
    drop(keeper);
    let (keeper, _) = open(&dir, options).unwrap();
    assert_eq!((next(&keeper, GROUP), outpoints(&keeper).len()), (1, 1));
    drop(keeper);
    for file in std::fs::read_dir(dir.join("blobs")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    assert!(open(&dir, options).is_err());
}

#[test]
fn looking_through_a_full_block_is_cheap_among_many_blobs() {
    const COUNT: u64 = 200_000;
    const TXS: u32 = 4_000;
    let (_log, mut keeper) = fresh();
    for number in 0..COUNT {
        let Promised { .. } = take(&mut keeper, GROUP, number, filler(number));
    }
    let txs: Vec<Transaction> = (0..TXS)
        .map(|vout| {
            let mut tx = spend(&[OutPoint { txid: Txid::all_zeros(), vout }], wallet(1));
            tx.input[0].witness = Witness::from_slice(&[[1; 72], [2; 72]]);
            tx
        })
        .collect();
    let begun = std::time::Instant::now();
    let found = keeper.tower().vault().look_up(&txs);
    let took = begun.elapsed();
    println!("{TXS} transactions among {COUNT} blobs: {took:?}");
    assert!(found.is_empty() && took < std::time::Duration::from_secs(1), "{took:?}");
}

#[test]
fn same_again_changes_nothing_and_what_does_not_follow_is_refused() {
    let (log, mut keeper) = fresh();
    let first = take(&mut keeper, GROUP, 0, filler(0));
    let before = log.pending();
    assert_eq!(take(&mut keeper, GROUP, 0, filler(0)), first);
    assert_eq!(log.pending(), before);
    let mut refused = |client: PublicKey, group, sequence, sealed| {
        let found = keeper.take_blob(&client, group, sequence, sealed, 0);
        let Err(Fault::Refused(refusal)) = found else { panic!("{found:?}") };
        refusal
    };
    let gap = |next, found| Refusal::BlobGap { next, found };
    assert_eq!(refused(client(), GROUP, 2, filler(2)), gap(1, 2));
    assert_eq!(refused(client(), Group([8; 16]), 1, filler(1)), gap(0, 1));
    assert_eq!(refused(client(), GROUP, 0, filler(5)), Refusal::OtherBlob { group: GROUP, sequence: 0 });
    assert_eq!(refused(key(2), GROUP, 0, filler(0)), Refusal::NoBlobs(key(2)));
}

#[test]
fn quota_is_each_clients_own_and_comes_back_with_what_is_let_go() {
    let (_log, mut keeper) = fresh();
    let Promised { .. } = keeper.allow_blobs(client(), 2).unwrap();
    let Promised { .. } = keeper.allow_blobs(key(2), 1).unwrap();
    let other = Group([8; 16]);
    let Promised { .. } = take(&mut keeper, GROUP, 0, filler(0));
    let Promised { .. } = take(&mut keeper, other, 0, filler(1));
    let too_many = |max| Err(Fault::Refused(Refusal::TooManyBlobs { max }));
    assert_eq!(keeper.take_blob(&client(), GROUP, 1, filler(2), 0), too_many(2));
    let Promised { .. } = keeper.take_blob(&key(2), GROUP, 0, filler(0), 0).unwrap();
    assert_eq!(keeper.take_blob(&key(2), GROUP, 1, filler(1), 0), too_many(1));
    // Another client's group of the same name is another group.
    let Promised { .. } = keeper.release(&client(), other).unwrap();
    let Promised { .. } = take(&mut keeper, GROUP, 1, filler(2));
    assert_eq!(keeper.tower().vault().count(&client()), 2);
    assert_eq!(keeper.tower().vault().held_by(&key(2)).map(|held| held.next).collect::<Vec<_>>(), [1]);
    // Whose quota goes keeps what he has.
    let Promised { .. } = keeper.allow_blobs(key(2), 0).unwrap();
    assert_eq!(keeper.take_blob(&key(2), GROUP, 0, filler(0), 0), Err(Fault::Refused(Refusal::NoBlobs(key(2)))));
    assert_eq!(keeper.tower().vault().count(&key(2)), 1);
}

#[test]
fn squatter_on_a_hint_keeps_nobody_out_and_is_bounded() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (_log, mut keeper) = fresh();
    let Promised { .. } = keeper.allow_blobs(key(2), 1_000).unwrap();
    let (good, breach) = penalty(&sample, 0);
    let junk = Sealed { hint: good.hint, bytes: vec![9; good.bytes.len()] };
    for sequence in 0..4 {
        let Promised { .. } = keeper.take_blob(&key(2), GROUP, sequence, junk.clone(), 0).unwrap();
    }
    let refused = keeper.take_blob(&key(2), GROUP, 4, junk, 0);
    assert_eq!(refused, Err(Fault::Refused(Refusal::SameHint { group: GROUP, sequence: 4 })));
    let Promised { .. } = take(&mut keeper, GROUP, 0, good.clone());
    let Promised { .. } = take(&mut keeper, Group([8; 16]), 0, good);
    assert_eq!(keeper.tower().vault().look_up(std::slice::from_ref(&breach)).len(), 6);
    // Whoever lets his go, the others are still found.
    let Promised { .. } = keeper.release(&client(), GROUP).unwrap();
    let Promised { .. } = keeper.release(&key(2), GROUP).unwrap();
    let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), std::slice::from_ref(&breach));
    assert_eq!(outpoints(&keeper).len(), 1);
    assert_eq!(keeper.tower().vault().unopened().count(), 0);
}

#[test]
fn several_blobs_for_one_output_are_one_catch() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (_log, mut keeper) = fresh();
    let (good, breach) = penalty(&sample, 0);
    let Promised { .. } = take(&mut keeper, GROUP, 0, good.clone());
    let Promised { .. } = take(&mut keeper, Group([8; 16]), 0, good);
    let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), &[breach]);
    let vault = keeper.tower().vault();
    assert_eq!((outpoints(&keeper).len(), vault.unopened().count()), (1, 0));
    // The first one's; what became of it does not begin anew with the second.
    let caught: Vec<_> = vault.catches().map(|catch| vault.group(catch.blob.group).unwrap().1).collect();
    assert_eq!(caught, [GROUP]);
}

#[test]
fn client_may_have_channels_or_blobs_or_both() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (_log, mut keeper) = fresh();
    assert_eq!(keeper.tower().check_client(&client()), Ok(0));
    let unknown = Fault::Refused(Refusal::UnknownClient(client()));
    assert_eq!(keeper.register(client(), sample.registration()), Err(unknown));
    let Promised { .. } = keeper.allow(client(), 5).unwrap();
    assert_eq!(keeper.tower().check_client(&client()), Ok(5));
    let Promised { .. } = keeper.register(client(), sample.registration()).unwrap();
    let Promised { .. } = keeper.allow(client(), 0).unwrap();
    assert_eq!(keeper.tower().check_client(&client()), Ok(0));
    let Promised { .. } = keeper.allow_blobs(client(), 0).unwrap();
    assert!(keeper.tower().check_client(&client()).is_err());
}

#[test]
fn one_client_more_than_there_can_be_finds_no_place_in_either_mode() {
    let (_log, mut keeper) = fresh();
    let number = |number: u32| {
        let mut secret = [1; 32];
        secret[..4].copy_from_slice(&number.to_be_bytes());
        SecretKey::from_slice(&secret).unwrap().public_key(SECP256K1)
    };
    // One has blobs already; half of the others have channels, some of them both.
    for client in (1..crate::tower::CLIENTS_MAX as u32).map(number) {
        let Promised { .. } = keeper.allow_blobs(client, 1).unwrap();
        let Promised { .. } = keeper.allow(client, 1).unwrap();
    }
    let full = Err(Fault::Refused(Refusal::TooManyClients));
    assert_eq!((keeper.allow(number(5_000), 1), keeper.allow_blobs(number(5_000), 1)), (full.clone(), full));
    let Promised { .. } = keeper.allow(client(), 1).unwrap();
    let Promised { .. } = keeper.allow_blobs(client(), 7).unwrap();
}
