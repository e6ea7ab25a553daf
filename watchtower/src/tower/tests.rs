#![allow(clippy::unwrap_used)]

use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{Amount, ScriptBuf, Sequence, TxIn, TxOut, Witness, absolute};
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::Commitment;
use secp256k1::SECP256K1;

use super::*;
use crate::samples::{DELAY, Sample, preimage, wallet};
use crate::story::OutputKind;

const FORMATS: [CommitmentFormat; 2] = [CommitmentFormat::Anchors, CommitmentFormat::StaticRemotekey];

fn client(seed: u8) -> PublicKey {
    SecretKey::from_slice(&[seed; 32]).unwrap().public_key(SECP256K1)
}

/// A tower, all that it has recorded, and the height of its chain.
struct Scene {
    tower: Tower,
    records: Vec<Record>,
    height: u32,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self { tower: Tower::default(), records: Vec::new(), height: 100 };
        scene.tower.allow(client(1), 100, &mut scene.records).unwrap();
        scene
    }

    /// Registers a channel and takes the peer's first secrets.
    fn watch(&mut self, sample: &Sample, revealed: u64) -> Handle {
        let handle = self.tower.register(client(1), sample.registration(), &mut self.records).unwrap().handle;
        for number in 0..revealed {
            self.reveal(sample, handle, number).unwrap();
        }
        handle
    }

    fn reveal(&mut self, sample: &Sample, handle: Handle, number: u64) -> Result<Held, Refusal> {
        let (number, secret) = (CommitmentNumber(number), sample.secret(number));
        self.tower.reveal(&client(1), handle, number, secret, 1_700_000_000, &mut self.records)
    }

    fn mine(&mut self, txs: &[Transaction]) {
        self.height += 1;
        let hash = BlockHash::hash(&self.height.to_be_bytes());
        self.tower.connect(BlockHeight(self.height), hash, txs, &mut self.records);
    }

    fn mine_empty(&mut self, blocks: u32) {
        (0..blocks).for_each(|_| self.mine(&[]));
    }

    fn disconnect(&mut self, blocks: u32) {
        for _ in 0..blocks {
            self.tower.disconnect(BlockHeight(self.height), &mut self.records);
            self.height -= 1;
        }
    }

    /// What is to be taken: outpoint and value.
    fn claims(&self) -> Vec<(OutPoint, u64)> {
        self.tower.claims().iter().map(|claim| (claim.outpoint, claim.value.0)).collect()
    }

    /// Takes everything there is to take, in one block.
    fn punish(&mut self) {
        let taken: Vec<OutPoint> = self.claims().into_iter().map(|(outpoint, _)| outpoint).collect();
        self.mine(&[spend(&taken, vec![TxOut { value: Amount::from_sat(1), script_pubkey: wallet(7) }])]);
    }

    /// Every prefix of the records gives the state that it gave live; the whole gives this one.
    fn check_replay(&self) {
        let mut replayed = Tower::default();
        self.records.iter().for_each(|record| replayed.apply(Record::decode(&record.encode()).unwrap()));
        assert_eq!(format!("{:?}", replayed.channels), format!("{:?}", self.tower.channels));
        assert_eq!(replayed.watching, self.tower.watching);
        assert_eq!(replayed.closing, self.tower.closing);
        assert_eq!(replayed.counts, self.tower.counts);
        assert_eq!(replayed.unchecked, self.tower.unchecked);
    }
}

fn spend(outpoints: &[OutPoint], output: Vec<TxOut>) -> Transaction {
    let input = |previous_output: &OutPoint| TxIn {
        previous_output: *previous_output,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::MAX,
        witness: Witness::new(),
    };
    let input = outpoints.iter().map(input).collect();
    Transaction { version: Version::TWO, lock_time: absolute::LockTime::ZERO, input, output }
}

fn to_local(commitment: &Commitment) -> (OutPoint, u64) {
    let vout = commitment.to_local.unwrap();
    (commitment.outpoint(vout), commitment.output(vout).value.to_sat())
}

fn value_of(tx: &Transaction) -> (OutPoint, u64) {
    (OutPoint { txid: tx.compute_txid(), vout: 0 }, tx.output[0].value.to_sat())
}

mod breach {
    use super::*;

    #[test]
    fn revoked_commitment_of_either_format() {
        for format in FORMATS {
            let (mut scene, sample) = (Scene::new(), Sample::new(1, format));
            let handle = scene.watch(&sample, 5);
            let commitment = sample.commitment(3, 2_000_000, 2, 2);
            scene.mine(std::slice::from_ref(&commitment.tx));
            assert_eq!(scene.claims(), [to_local(&commitment)], "{format:?}");
            let claim = &scene.tower.claims()[0];
            assert_eq!((claim.handle, claim.deadline), (handle, BlockHeight(101 + u32::from(DELAY))));
            assert!(scene.tower.channel(handle).unwrap().story().unwrap().is_breach());
            scene.check_replay();
        }
    }

    #[test]
    fn htlc_transactions_of_the_second_level_each_and_in_the_commitments_own_block() {
        for format in FORMATS {
            let (mut scene, sample) = (Scene::new(), Sample::new(1, format));
            scene.watch(&sample, 5);
            let commitment = sample.commitment(4, 2_000_000, 2, 2);
            let htlc_txs = sample.htlc_txs(&commitment);
            let mut expected: Vec<_> = htlc_txs.iter().map(value_of).chain([to_local(&commitment)]).collect();
            expected.sort_unstable();
            // Two in the same block, the others later, one by one.
            scene.mine(&[commitment.tx.clone(), htlc_txs[0].clone(), htlc_txs[1].clone()]);
            scene.mine(std::slice::from_ref(&htlc_txs[2]));
            scene.mine(std::slice::from_ref(&htlc_txs[3]));
            assert_eq!(scene.claims(), expected, "{format:?}");
            scene.check_replay();
        }
    }

    #[test]
    fn htlc_transactions_aggregated_and_reordered_with_foreign_outputs_between() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        scene.watch(&sample, 5);
        let commitment = sample.commitment(4, 2_000_000, 2, 2);
        let mut aggregated = spend(&[], Vec::new());
        for (index, tx) in sample.htlc_txs(&commitment).into_iter().rev().enumerate() {
            aggregated.output.push(TxOut { value: Amount::from_sat(9_000), script_pubkey: wallet(index as u8) });
            aggregated.input.extend(tx.input);
            aggregated.output.splice(0..0, tx.output);
        }
        scene.mine(&[commitment.tx.clone(), aggregated.clone()]);
        let txid = aggregated.compute_txid();
        let second: Vec<u32> = scene.claims().iter().filter(|(o, _)| o.txid == txid).map(|(o, _)| o.vout).collect();
        assert_eq!(second, [0, 1, 2, 3]);
        assert_eq!(scene.claims().len(), 5);
    }

    #[test]
    fn commitment_without_to_local_is_watched_for_its_second_level() {
        for format in FORMATS {
            let (mut scene, sample) = (Scene::new(), Sample::new(1, format));
            let handle = scene.watch(&sample, 5);
            let commitment = sample.commitment(4, 0, 0, 1);
            assert!(commitment.to_local.is_none());
            scene.mine(std::slice::from_ref(&commitment.tx));
            assert_eq!(scene.claims(), []);
            assert!(!scene.tower.channel(handle).unwrap().story().unwrap().is_breach());
            let htlc_tx = sample.htlc_txs(&commitment).remove(0);
            scene.mine(std::slice::from_ref(&htlc_tx));
            assert_eq!(scene.claims(), [value_of(&htlc_tx)]);
        }
    }

    #[test]
    fn commitment_that_is_not_revoked_is_none() {
        for format in FORMATS {
            let (mut scene, sample) = (Scene::new(), Sample::new(1, format));
            scene.watch(&sample, 5);
            let commitment = sample.commitment(5, 2_000_000, 1, 1);
            scene.mine(&[commitment.tx.clone(), sample.htlc_txs(&commitment)[0].clone()]);
            assert_eq!(scene.claims(), []);
        }
    }

    #[test]
    fn secret_that_comes_after_the_commitment_and_its_second_level() {
        for format in FORMATS {
            let (mut scene, sample) = (Scene::new(), Sample::new(1, format));
            let handle = scene.watch(&sample, 5);
            let commitment = sample.commitment(5, 2_000_000, 1, 1);
            let htlc_tx = sample.htlc_txs(&commitment)[1].clone();
            scene.mine(&[commitment.tx.clone(), htlc_tx.clone()]);
            scene.reveal(&sample, handle, 5).unwrap();
            let mut expected = [to_local(&commitment), value_of(&htlc_tx)];
            expected.sort_unstable();
            assert_eq!(scene.claims(), expected);
            scene.check_replay();
        }
    }

    #[test]
    fn mutual_close_is_none() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 5);
        let funding = sample.terms.funding_outpoint;
        scene.mine(&[spend(&[funding], vec![TxOut { value: Amount::from_sat(1), script_pubkey: wallet(1) }])]);
        assert_eq!(scene.claims(), []);
        assert_eq!(scene.tower.channel(handle).unwrap().story().unwrap().number, None);
    }

    #[test]
    fn our_own_commitment_with_a_number_that_the_peer_has_revoked() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        scene.watch(&sample, 5);
        // The same commitment with a to_local of another script, as ours has.
        let mut tx = sample.commitment(3, 2_000_000, 0, 0).tx;
        let vout = sample.commitment(3, 2_000_000, 0, 0).to_local.unwrap() as usize;
        tx.output[vout].script_pubkey = ScriptBuf::new_p2wsh(&Hash::hash(b"ours"));
        scene.mine(&[tx]);
        assert_eq!(scene.claims(), []);
    }

    #[test]
    fn equal_hash_and_amount_are_told_by_outpoint() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        scene.watch(&sample, 5);
        let commitment = sample.commitment(4, 2_000_000, 2, 0);
        let mut txs = sample.htlc_txs(&commitment);
        let value = txs[0].output[0].value;
        txs[1].output[0].value = value;
        scene.mine(&[commitment.tx.clone(), txs[0].clone()]);
        scene.mine(std::slice::from_ref(&txs[1]));
        scene.mine(&[spend(&[value_of(&txs[0]).0], vec![TxOut { value, script_pubkey: wallet(7) }])]);
        let mut expected = [to_local(&commitment), value_of(&txs[1])];
        expected.sort_unstable();
        assert_eq!(scene.claims(), expected);
    }

    #[test]
    fn channel_that_is_registered_after_the_breach_is_looked_for_in_the_blocks_before() {
        let mut scene = Scene::new();
        let [late, other] = [1, 2].map(|number| Sample::new(number, CommitmentFormat::Anchors));
        scene.watch(&other, 5);
        let commitment = late.commitment(3, 2_000_000, 1, 0);
        let of_other = other.commitment(3, 2_000_000, 0, 0);
        let blocks = [vec![commitment.tx.clone(), of_other.tx.clone()], late.htlc_txs(&commitment)];
        blocks.iter().for_each(|block| scene.mine(block));
        let handle = scene.watch(&late, 5);
        assert_eq!(scene.claims(), [to_local(&of_other)]);
        assert!(scene.tower.unchecked().any(|(unchecked, _)| unchecked == handle));
        let before = scene.records.len();
        let only = BTreeSet::from([handle]);
        for (height, block) in (101..).zip(&blocks) {
            scene.tower.look_back(BlockHeight(height), block, &only, &mut scene.records);
        }
        assert_eq!(scene.claims().len(), 3);
        assert_eq!(scene.records.len(), before + 2, "nothing is told of the other one again");
        scene.tower.checked([handle], &mut scene.records);
        assert!(scene.tower.unchecked().all(|(unchecked, _)| unchecked != handle));
        scene.check_replay();
    }

    #[test]
    fn both_ends_of_a_channel_at_the_same_tower() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        scene.watch(&sample, 5);
        scene.tower.allow(client(2), 1, &mut scene.records).unwrap();
        let other = Registration::of(&sample.terms, &sample.remote, wallet(8)).unwrap();
        scene.tower.register(client(2), other, &mut scene.records).unwrap();
        let commitment = sample.commitment(3, 2_000_000, 0, 0);
        scene.mine(std::slice::from_ref(&commitment.tx));
        assert_eq!(scene.claims(), [to_local(&commitment)]);
        scene.check_replay();
    }
}

mod end {
    use super::*;

    fn breached() -> (Scene, Sample, Handle, Commitment) {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 5);
        let commitment = sample.commitment(4, 2_000_000, 1, 0);
        scene.mine(std::slice::from_ref(&commitment.tx));
        (scene, sample, handle, commitment)
    }

    fn is_resolved(scene: &Scene, handle: Handle) -> bool {
        matches!(scene.tower.channel(handle).unwrap().phase, Phase::Resolved(_))
    }

    #[test]
    fn claim_ends_with_a_spend_and_the_channel_a_hundred_blocks_after_the_last() {
        let (mut scene, sample, handle, commitment) = breached();
        scene.punish();
        assert_eq!(scene.claims(), []);
        // An HTLC is still there: it may be taken by a second level at any time.
        scene.mine_empty(300);
        assert!(!is_resolved(&scene, handle));
        let htlc_tx = sample.htlc_txs(&commitment).remove(0);
        scene.mine(std::slice::from_ref(&htlc_tx));
        assert_eq!(scene.claims(), [value_of(&htlc_tx)]);
        scene.punish();
        // What was ours from the beginning, the node has still to take.
        let to_remote = commitment.outpoint(commitment.to_remote.unwrap());
        scene.mine(&[spend(&[to_remote], vec![TxOut { value: Amount::from_sat(1), script_pubkey: wallet(1) }])]);
        scene.mine_empty(99);
        assert!(!is_resolved(&scene, handle));
        scene.mine_empty(1);
        assert!(is_resolved(&scene, handle));
        let Phase::Resolved(ended) = scene.tower.channel(handle).unwrap().phase else { panic!() };
        assert!(ended.was_breach);
        assert_eq!((ended.next, ended.lost), (CommitmentNumber(5), Sat::ZERO));
        assert_eq!(ended.taken.0, to_local(&commitment).1 + value_of(&htlc_tx).1);
        assert_eq!(scene.tower.channel(handle).unwrap().secrets.next(), CommitmentNumber(0));
        assert!(scene.tower.watching.is_empty());
        scene.check_replay();
    }

    #[test]
    fn what_the_cheater_takes_after_the_delay_is_lost_and_said_so() {
        let (mut scene, _, handle, commitment) = breached();
        scene.mine_empty(u32::from(DELAY) - 1);
        let outputs = vec![TxOut { value: Amount::from_sat(1), script_pubkey: wallet(66) }];
        scene.mine(&[spend(&[to_local(&commitment).0], outputs)]);
        let story = scene.tower.channel(handle).unwrap().story().unwrap().clone();
        assert_eq!(story.taken_and_lost(DELAY), (Sat::ZERO, Sat(to_local(&commitment).1)));
        assert_eq!(story.taken_and_lost(DELAY + 1).1, Sat::ZERO);
    }

    #[test]
    fn mutual_close_after_a_hundred_blocks() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 5);
        let funding = sample.terms.funding_outpoint;
        scene.mine(&[spend(&[funding], vec![TxOut { value: Amount::from_sat(1), script_pubkey: wallet(1) }])]);
        scene.mine_empty(99);
        assert!(!is_resolved(&scene, handle));
        assert!(matches!(scene.tower.forget(&client(1), handle, &mut Vec::new()), Err(Refusal::AtRisk(..))));
        scene.mine_empty(1);
        assert!(is_resolved(&scene, handle));
        scene.tower.forget(&client(1), handle, &mut scene.records).unwrap();
        assert!(scene.tower.channel(handle).is_none());
        scene.check_replay();
    }

    #[test]
    fn commitment_that_is_not_revoked_after_the_delay_and_a_hundred_blocks() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 5);
        scene.mine(&[sample.commitment(5, 2_000_000, 1, 0).tx]);
        scene.mine_empty(99 + u32::from(DELAY));
        assert!(!is_resolved(&scene, handle));
        scene.mine_empty(1);
        assert!(is_resolved(&scene, handle));
        assert_eq!(scene.reveal(&sample, handle, 5), Err(Refusal::Ended(handle)));
    }

    #[test]
    fn forget_before_and_after_there_is_something_to_lose() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 0);
        let mut scratch = scene.tower.clone();
        scratch.forget(&client(1), handle, &mut Vec::new()).unwrap();
        scene.reveal(&sample, handle, 0).unwrap();
        let refused = scene.tower.forget(&client(1), handle, &mut Vec::new());
        assert_eq!(refused, Err(Refusal::AtRisk(handle, "its funding output is not spent")));
    }

    #[test]
    fn forget_a_breach_whose_htlcs_the_node_has_to_take_itself() {
        let (mut scene, _, handle, _) = breached();
        scene.mine_empty(150);
        assert!(matches!(scene.tower.forget(&client(1), handle, &mut Vec::new()), Err(Refusal::AtRisk(..))));
        scene.punish();
        scene.mine_empty(99);
        assert!(matches!(scene.tower.forget(&client(1), handle, &mut Vec::new()), Err(Refusal::AtRisk(..))));
        scene.mine_empty(1);
        assert!(!is_resolved(&scene, handle));
        scene.tower.forget(&client(1), handle, &mut scene.records).unwrap();
        assert!(scene.tower.watching.is_empty());
    }
}

mod reorg {
    use super::*;

    #[test]
    fn breach_that_vanishes_and_comes_back_a_hundred_blocks_later() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 5);
        let commitment = sample.commitment(4, 2_000_000, 1, 1);
        let htlc_txs = sample.htlc_txs(&commitment);
        scene.mine(std::slice::from_ref(&commitment.tx));
        scene.mine(&htlc_txs);
        scene.punish();
        scene.mine_empty(97);
        assert_eq!(scene.claims(), []);
        scene.disconnect(98);
        assert_eq!(scene.claims().len(), 3, "the penalty is not in a block any more");
        scene.disconnect(1);
        assert_eq!(scene.claims(), [to_local(&commitment)]);
        scene.disconnect(1);
        assert_eq!(scene.claims(), []);
        assert_eq!(scene.tower.channel(handle).unwrap().phase, Phase::Open);
        assert_eq!(scene.tower.watching.len(), 1);
        scene.mine_empty(3);
        scene.mine(&[commitment.tx.clone(), htlc_txs[0].clone()]);
        assert_eq!(scene.claims().len(), 2);
        scene.check_replay();
    }

    #[test]
    fn another_commitment_takes_its_place() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        scene.watch(&sample, 5);
        scene.mine(&[sample.commitment(4, 2_000_000, 1, 1).tx]);
        scene.disconnect(1);
        let other = sample.commitment(2, 3_000_000, 0, 2);
        scene.mine(std::slice::from_ref(&other.tx));
        assert_eq!(scene.claims(), [to_local(&other)]);
    }

    #[test]
    fn block_that_was_not_looked_through_to_its_end_is_looked_through_again() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        scene.watch(&sample, 5);
        scene.mine_empty(1);
        let commitment = sample.commitment(4, 2_000_000, 1, 1);
        let block = [commitment.tx.clone(), sample.htlc_txs(&commitment)[1].clone()];
        let before = scene.records.len();
        scene.mine(&block);
        let expected = scene.claims();
        for cut in before..scene.records.len() {
            let mut tower = Tower::default();
            scene.records[..cut].iter().cloned().for_each(|record| tower.apply(record));
            let mut records = scene.records[..cut].to_vec();
            tower.drop_unfinished_block(&mut records);
            assert!(tower.claims().is_empty(), "nothing is taken before its block was looked through");
            let mut again = Scene { tower: tower.clone(), records: records.clone(), height: scene.height - 1 };
            again.mine(&block);
            assert_eq!(again.claims(), expected, "cut after {cut} records");
            again.check_replay();
            // Or the chain has another block there by now.
            let mut other = Scene { tower, records, height: scene.height - 1 };
            other.mine(&[]);
            assert_eq!(other.claims(), []);
            other.check_replay();
        }
    }
}

mod preimages {
    use super::*;

    #[test]
    fn seen_in_a_cheaters_transactions_and_kept_until_taken() {
        for (format, revealed) in [(CommitmentFormat::Anchors, 5), (CommitmentFormat::StaticRemotekey, 4)] {
            let (mut scene, sample) = (Scene::new(), Sample::new(1, format));
            let handle = scene.watch(&sample, revealed);
            // Known to be revoked, or not: the node needs the preimage either way.
            let commitment = sample.commitment(4, 2_000_000, 1, 2);
            let mut block = vec![commitment.tx.clone()];
            block.extend(sample.htlc_txs(&commitment));
            scene.mine(&block);
            let expected = [preimage(1), preimage(2)].map(|preimage| *preimage.as_bytes());
            let found: Vec<_> = scene.tower.preimages_for(&client(1)).collect();
            let mut seen = found[0].2.to_vec();
            seen.sort_unstable();
            assert_eq!((found[0].0, found[0].1, seen), (handle, 0, expected.to_vec()));
            // A reorg does not take back what is known.
            scene.disconnect(1);
            scene.mine(&block);
            assert_eq!(scene.tower.channel(handle).unwrap().preimages.len(), 2);
            scene.tower.preimages_taken(&client(1), handle, 1, &mut scene.records).unwrap();
            assert_eq!(scene.tower.preimages_for(&client(1)).next().unwrap().2.len(), 1);
            scene.tower.preimages_taken(&client(1), handle, 99, &mut scene.records).unwrap();
            assert_eq!(scene.tower.preimages_for(&client(1)).count(), 0);
            scene.check_replay();
        }
    }

    #[test]
    fn channel_is_not_forgotten_before_its_preimages_are_taken() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 5);
        let commitment = sample.commitment(6, 2_000_000, 0, 1);
        scene.mine(&[commitment.tx.clone(), sample.htlc_txs(&commitment).remove(0)]);
        scene.mine_empty(400);
        let refused = scene.tower.forget(&client(1), handle, &mut Vec::new());
        assert!(matches!(refused, Err(Refusal::AtRisk(_, why)) if why.contains("preimages")), "{refused:?}");
        scene.tower.preimages_taken(&client(1), handle, 1, &mut scene.records).unwrap();
        scene.tower.forget(&client(1), handle, &mut scene.records).unwrap();
    }
}

mod clients {
    use super::*;

    #[test]
    fn unknown_or_no_longer_let_in() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let stranger = client(9);
        let refused = Err(Refusal::UnknownClient(stranger));
        assert_eq!(scene.tower.register(stranger, sample.registration(), &mut scene.records), refused);
        let handle = scene.watch(&sample, 1);
        scene.tower.allow(client(1), 0, &mut scene.records).unwrap();
        assert_eq!(scene.reveal(&sample, handle, 1), Err(Refusal::UnknownClient(client(1))));
        // What was watched for it stays watched.
        scene.mine(&[sample.commitment(0, 2_000_000, 0, 0).tx]);
        assert_eq!(scene.claims().len(), 1);
    }

    #[test]
    fn as_many_channels_as_allowed() {
        let mut scene = Scene::new();
        scene.tower.allow(client(1), 2, &mut scene.records).unwrap();
        for number in 0..2 {
            scene.watch(&Sample::new(number, CommitmentFormat::Anchors), 0);
        }
        let third = Sample::new(2, CommitmentFormat::Anchors).registration();
        let refused = scene.tower.register(client(1), third, &mut scene.records);
        assert_eq!(refused, Err(Refusal::TooManyChannels { max: 2 }));
        // One that is forgotten makes room.
        let first = scene.tower.held_by(&client(1)).next().unwrap().handle;
        scene.tower.forget(&client(1), first, &mut scene.records).unwrap();
        let third = Sample::new(2, CommitmentFormat::Anchors).registration();
        scene.tower.register(client(1), third, &mut scene.records).unwrap();
        scene.check_replay();
    }

    #[test]
    fn registered_again_with_the_same_and_with_other_data() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 3);
        let before = scene.records.len();
        let held = scene.tower.register(client(1), sample.registration(), &mut scene.records).unwrap();
        assert_eq!((held.handle, held.next, scene.records.len()), (handle, CommitmentNumber(3), before));
        let other = Registration::of(&sample.terms, &sample.local, wallet(99)).unwrap();
        let refused = scene.tower.register(client(1), other, &mut scene.records);
        assert_eq!(refused, Err(Refusal::OtherRegistration(handle)));
    }

    #[test]
    fn channel_of_another_client_is_out_of_reach() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 1);
        scene.tower.allow(client(2), 5, &mut scene.records).unwrap();
        let unknown = Refusal::UnknownChannel(handle);
        let secret = sample.secret(1);
        let number = CommitmentNumber(1);
        let revealed = scene.tower.reveal(&client(2), handle, number, secret, 0, &mut scene.records);
        assert_eq!(revealed, Err(unknown.clone()));
        assert_eq!(scene.tower.forget(&client(2), handle, &mut scene.records), Err(unknown.clone()));
        assert_eq!(scene.tower.preimages_taken(&client(2), handle, 1, &mut scene.records), Err(unknown));
        assert_eq!(scene.tower.held_by(&client(2)).count(), 0);
        assert_eq!(scene.tower.held_by(&client(1)).count(), 1);
    }

    #[test]
    fn secrets_out_of_order_wrong_or_again() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let handle = scene.watch(&sample, 4);
        let before = scene.records.len();
        let (next, found) = (CommitmentNumber(4), CommitmentNumber(5));
        assert_eq!(scene.reveal(&sample, handle, 5), Err(Refusal::Gap { next, found }));
        assert_eq!(scene.reveal(&sample, handle, 2).unwrap().next, next);
        let tell = |scene: &mut Scene, number, secret| {
            scene.tower.reveal(&client(1), handle, CommitmentNumber(number), secret, 0, &mut Vec::new())
        };
        assert!(matches!(tell(&mut scene, 2, [7; 32]), Err(Refusal::BadSecret(_))));
        assert!(matches!(tell(&mut scene, 4, [0; 32]), Err(Refusal::BadSecret(_))));
        scene.reveal(&sample, handle, 4).unwrap();
        // That of 5 must derive that of 4.
        assert!(matches!(tell(&mut scene, 5, [7; 32]), Err(Refusal::BadSecret(_))));
        assert_eq!(scene.records.len(), before + 1);
    }

    #[test]
    fn many_secrets_at_once_as_one_after_the_other() {
        let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
        let other = Sample::new(2, CommitmentFormat::Anchors);
        let handle = scene.watch(&sample, 40);
        let mut all = scene.tower.channel(handle).unwrap().secrets.clone();
        for number in 40..1_064 {
            all.insert(CommitmentNumber(number), sample.secret(number)).unwrap();
        }
        let (from, to) = (CommitmentNumber(40), CommitmentNumber(1_064));
        let changed = all.since(from);
        let mut advance = |from, to, changed: Vec<[u8; 32]>| {
            scene.tower.advance(&client(1), handle, from..to, changed, 7, &mut scene.records)
        };
        assert!(matches!(advance(CommitmentNumber(41), to, changed.clone()), Err(Refusal::Gap { .. })));
        assert!(matches!(advance(from, to, changed[1..].to_vec()), Err(Refusal::BadSecret(_))));
        let foreign = changed.iter().enumerate().map(|(n, _)| other.secret(n as u64)).collect();
        assert!(matches!(advance(from, to, foreign), Err(Refusal::BadSecret(_))));
        let held = advance(from, to, changed).unwrap();
        assert_eq!(held.next, to);
        assert_eq!(held.time_s, 1_700_000_000, "time never goes back");
        assert_eq!(advance(to, to, Vec::new()).unwrap(), held);
        assert_eq!(scene.tower.channel(handle).unwrap().secrets, all);
        scene.mine(&[sample.commitment(777, 2_000_000, 0, 0).tx]);
        assert_eq!(scene.claims().len(), 1);
        scene.check_replay();
    }
}

/// Of the commitment's outputs, anchors are nobody's to watch for.
#[test]
fn anchors_and_foreign_scripts_are_not_watched() {
    let (mut scene, sample) = (Scene::new(), Sample::new(1, CommitmentFormat::Anchors));
    let handle = scene.watch(&sample, 5);
    let commitment = sample.commitment(4, 2_000_000, 1, 1);
    scene.mine(std::slice::from_ref(&commitment.tx));
    let story = scene.tower.channel(handle).unwrap().story().unwrap();
    assert_eq!(commitment.tx.output.len(), 6);
    // to_local, to_remote, and two HTLCs.
    assert_eq!(story.outputs.len(), 4);
    let kinds = |kind| story.outputs.values().filter(|output| output.kind == kind).count();
    assert_eq!((kinds(OutputKind::Revocable), kinds(OutputKind::Other)), (1, 3));
}
