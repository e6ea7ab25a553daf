//! A story with everything in it, killed between any two steps; and how much room a channel takes.

#![allow(clippy::unwrap_used)]

mod blobs;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, TxIn, TxOut, Witness, absolute};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::secrets::RevealedSecrets;
use millrace_channel::terms::CommitmentFormat;
use secp256k1::{SECP256K1, SecretKey};

use super::*;
use crate::registration::REGISTRATION_BYTES_MAX;
use crate::samples::{Sample, wallet};
use crate::watched::Phase;

/// A journal in memory: a step is there once it was written, and whoever waits is told later.
#[derive(Default)]
pub(crate) struct MemoryLog(Mutex<State>);

#[derive(Default)]
struct State {
    written: Vec<Vec<u8>>,
    pending: VecDeque<(Vec<u8>, WakeHandle)>,
    /// After how many steps, and what it holds.
    checkpoint: Option<(usize, Vec<Section>)>,
    /// The blobs beside it, by part.
    parts: BTreeMap<Part, Vec<Vec<u8>>>,
    next_part: Part,
    /// All that has reached the disk, in its order.
    events: Vec<Event>,
    /// Blobs that were read.
    reads: usize,
    is_unreadable: bool,
    is_full: bool,
    is_closed: bool,
}

/// Something that has reached the disk.
#[derive(Clone)]
enum Event {
    Step(Vec<u8>),
    Part(Vec<Vec<u8>>),
    Checkpoint(Vec<Section>),
    Forget(Part),
}

impl State {
    fn happen(&mut self, event: Event) {
        match event.clone() {
            Event::Step(step) => self.written.push(step),
            Event::Part(blobs) => {
                self.parts.insert(self.next_part, blobs);
                self.next_part += 1;
            }
            Event::Checkpoint(sections) => self.checkpoint = Some((self.written.len(), sections)),
            Event::Forget(below) => self.parts.retain(|part, _| *part >= below),
        }
        self.events.push(event);
    }
}

impl Log for MemoryLog {
    fn submit(&self, step: Vec<u8>, wake: WakeHandle) -> Result<Ticket, SubmitError> {
        let mut state = self.0.lock().unwrap();
        if state.is_closed {
            return Err(SubmitError::Closed);
        }
        state.pending.push_back((step, wake));
        Ok(Ticket((state.written.len() + state.pending.len()) as u64))
    }

    fn write_checkpoint(&self, sections: Vec<Section>) -> Result<(), LogError> {
        self.flush();
        self.0.lock().unwrap().happen(Event::Checkpoint(sections));
        Ok(())
    }

    fn append_blobs(&self, blobs: &[Vec<u8>]) -> Result<(Part, (u64, u32)), LogError> {
        self.flush();
        let mut state = self.0.lock().unwrap();
        if state.is_closed {
            return Err(LogError::Submit(SubmitError::Closed));
        }
        let part = state.next_part;
        state.happen(Event::Part(blobs.to_vec()));
        Ok((part, (1, part + 1)))
    }

    fn read_blobs(&self, from: Part, each: &mut dyn FnMut(Part, &[u8]) -> bool) -> Result<(), LogError> {
        let mut next = from;
        loop {
            let (part, blobs) = {
                let mut state = self.0.lock().unwrap();
                if state.is_unreadable {
                    return Err(LogError::Submit(SubmitError::Closed));
                }
                let found = state.parts.range(next..).next().map(|(part, blobs)| (*part, blobs.clone()));
                let Some((part, blobs)) = found else { return Ok(()) };
                state.reads += blobs.len();
                (part, blobs)
            };
            if !blobs.iter().all(|bytes| each(part, bytes)) {
                return Ok(());
            }
            next = part + 1;
        }
    }

    fn forget_blobs_below(&self, part: Part) {
        self.0.lock().unwrap().happen(Event::Forget(part));
    }

    fn has_room(&self) -> bool {
        !self.0.lock().unwrap().is_full
    }

    fn is_busy(&self) -> bool {
        false
    }
}

impl MemoryLog {
    /// Writes one step, and tells whoever waits for it.
    fn write_one(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let Some((step, wake)) = state.pending.pop_front() else { return false };
        state.happen(Event::Step(step));
        let flush = Flush::new(state.written.len() as u64, Ticket(state.written.len() as u64), 1);
        drop(state);
        wake.durable(&flush);
        true
    }

    pub(crate) fn flush(&self) {
        while self.write_one() {}
    }

    /// From now on there is no room.
    pub(crate) fn fill(&self) {
        self.0.lock().unwrap().is_full = true;
    }

    pub(crate) fn pending(&self) -> usize {
        self.0.lock().unwrap().pending.len()
    }

    /// What a restart finds after a crash that kept so much of what had reached the disk.
    fn after_events(&self, count: usize) -> (Arc<Self>, Keeper, Durability) {
        let mut after = State::default();
        self.0.lock().unwrap().events[..count].iter().cloned().for_each(|event| after.happen(event));
        let (from, mut tower) = match &after.checkpoint {
            Some((at, sections)) => (*at, snapshot::restore(sections).unwrap()),
            None => (0, Tower::default()),
        };
        after.written[from..].iter().for_each(|step| tower.apply(Record::decode(step).unwrap()));
        let last = Ticket(after.written.len() as u64);
        let log = Arc::new(Self(Mutex::new(after)));
        super::blobs::find(&*log, &mut tower).unwrap();
        let (keeper, durability) = Keeper::new(tower, Arc::clone(&log) as Arc<dyn Log>, last);
        (log, keeper, durability)
    }

    /// What a restart finds after a crash that kept so many steps.
    fn after_crash(&self, steps: usize) -> (Arc<Self>, Keeper, Durability) {
        let state = self.0.lock().unwrap();
        let written = state.written[..steps].to_vec();
        let checkpoint = state.checkpoint.clone().filter(|(at, _)| *at <= steps);
        let (from, mut tower) = match &checkpoint {
            Some((at, sections)) => (*at, snapshot::restore(sections).unwrap()),
            None => (0, Tower::default()),
        };
        written[from..].iter().for_each(|step| tower.apply(Record::decode(step).unwrap()));
        let log = Arc::new(Self(Mutex::new(State { written, checkpoint, ..State::default() })));
        let (keeper, durability) = Keeper::new(tower, Arc::clone(&log) as Arc<dyn Log>, Ticket(steps as u64));
        (log, keeper, durability)
    }
}

fn client() -> PublicKey {
    SecretKey::from_slice(&[1; 32]).unwrap().public_key(SECP256K1)
}

fn spend(outpoints: &[OutPoint], script_pubkey: ScriptBuf) -> Transaction {
    let input = outpoints.iter().map(|previous_output| TxIn {
        previous_output: *previous_output,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::MAX,
        witness: Witness::new(),
    });
    let output = vec![TxOut { value: Amount::from_sat(1), script_pubkey }];
    Transaction { version: Version::TWO, lock_time: absolute::LockTime::ZERO, input: input.collect(), output }
}

/// Blocks, each with a number of its own so that two of one height differ.
#[derive(Clone)]
struct Block {
    height: u32,
    hash: BlockHash,
    txs: Vec<Transaction>,
}

fn block(height: u32, name: u8, txs: Vec<Transaction>) -> Block {
    Block { height, hash: BlockHash::hash(&[name, height as u8]), txs }
}

/// The chain's blocks at two moments: before a reorg and after it.
struct Chain {
    before: Vec<Block>,
    after: Vec<Block>,
    taken_max: usize,
}

struct Channels {
    one: Sample,
    two: Sample,
}

impl Channels {
    fn new() -> Self {
        Self { one: Sample::new(1, CommitmentFormat::Anchors), two: Sample::new(2, CommitmentFormat::StaticRemotekey) }
    }

    /// Both are breached; the block of the second breach and what follows is reorganised, and comes back later.
    fn chain(&self) -> Chain {
        let one = self.one.commitment(3, 2_000_000, 1, 1);
        let two = self.two.commitment(70, 3_000_000, 0, 1);
        let second_level = self.one.htlc_txs(&one);
        let of_two = self.two.htlc_txs(&two);
        let common = [
            block(101, 0, Vec::new()),
            block(102, 0, vec![one.tx.clone(), second_level[0].clone()]),
            block(103, 0, vec![second_level[1].clone()]),
        ];
        let with = |name, blocks: Vec<Vec<Transaction>>| {
            let new = (104..).zip(blocks).map(|(height, txs)| block(height, name, txs));
            common.iter().cloned().chain(new).collect()
        };
        let before = with(1, vec![vec![two.tx.clone()], of_two.clone()]);
        let mut later = of_two;
        later.insert(0, two.tx.clone());
        let after = with(2, vec![Vec::new(), later, Vec::new()]);
        // to_local and both of the second level in the first, to_local and one in the second.
        Chain { before, after, taken_max: 5 }
    }
}

/// Brings the keeper to the end of a chain, as the watcher does.
fn follow(keeper: &mut Keeper, chain: &[Block]) {
    loop {
        match keeper.tower().tip() {
            Some((height, hash)) if !chain.iter().any(|block| block.hash == hash) => {
                let Promised { .. } = keeper.disconnect(height);
            }
            tip => {
                let next = tip.map_or(101, |(height, _)| height.0 + 1);
                let Some(block) = chain.iter().find(|block| block.height == next) else { return };
                let Promised { .. } = keeper.connect(BlockHeight(block.height), block.hash, &block.txs);
            }
        }
    }
}

/// What was told to the outside, each with the ticket it rests on.
#[derive(Default)]
struct Told {
    acks: Vec<(Ticket, Handle, CommitmentNumber)>,
    claims: Vec<(Ticket, Vec<OutPoint>)>,
}

impl Told {
    fn ack(&mut self, promised: Promised<Held>) -> Held {
        self.acks.push((promised.ticket, promised.answer.handle, promised.answer.next));
        promised.answer
    }

    fn claims(&mut self, keeper: &Keeper) {
        let claims = keeper.tower().claims().iter().map(|claim| claim.outpoint).collect();
        self.claims.push((keeper.promised().ticket, claims));
    }
}

/// The client after any interruption: registers what is not there, and tells what is missing.
fn catch_up(keeper: &mut Keeper, channels: &Channels, told: &mut Told) {
    let Promised { .. } = keeper.allow(client(), 10).unwrap();
    for (sample, revealed) in [(&channels.one, 5), (&channels.two, 100)] {
        let held = told.ack(keeper.register(client(), sample.registration()).unwrap());
        if held.is_resolved || held.next.0 >= revealed {
            continue;
        }
        let mut secrets = RevealedSecrets::new();
        (0..revealed).for_each(|n| secrets.insert(CommitmentNumber(n), sample.secret(n)).unwrap());
        let range = held.next..CommitmentNumber(revealed);
        let changed = secrets.since(held.next);
        told.ack(keeper.advance(&client(), held.handle, range, changed, 1_700_000_000).unwrap());
    }
}

/// From the first client to both breaches, a checkpoint among it.
fn story(keeper: &mut Keeper, channels: &Channels, chain: &Chain) -> Told {
    let mut told = Told::default();
    let Promised { .. } = keeper.allow(client(), 10).unwrap();
    let one = told.ack(keeper.register(client(), channels.one.registration()).unwrap()).handle;
    for number in 0..4 {
        let number = CommitmentNumber(number);
        let secret = channels.one.secret(number.0);
        told.ack(keeper.reveal(&client(), one, number, secret, 1_700_000_000).unwrap());
    }
    follow(keeper, &chain.before[..1]);
    keeper.checkpoint();
    catch_up(keeper, channels, &mut told);
    for blocks in 2..=chain.before.len() {
        follow(keeper, &chain.before[..blocks]);
        told.claims(keeper);
    }
    follow(keeper, &chain.after);
    told.claims(keeper);
    told
}

fn take_all(keeper: &mut Keeper, chain: &mut Vec<Block>) -> usize {
    let claims: Vec<OutPoint> = keeper.tower().claims().iter().map(|claim| claim.outpoint).collect();
    let height = chain.last().unwrap().height + 1;
    chain.push(block(height, 3, vec![spend(&claims, wallet(7))]));
    follow(keeper, chain);
    claims.len()
}

#[test]
fn killed_between_any_two_steps_it_keeps_its_word_and_still_punishes() {
    let channels = Channels::new();
    let chain = channels.chain();
    let log = Arc::new(MemoryLog::default());
    let (mut keeper, _) = Keeper::new(Tower::default(), Arc::clone(&log) as Arc<dyn Log>, Ticket(0));
    let told = story(&mut keeper, &channels, &chain);
    log.flush();
    let steps = log.0.lock().unwrap().written.len();
    assert!(steps > 20, "only {steps} steps");
    assert_eq!(told.claims.last().unwrap().1.len(), chain.taken_max);
    for cut in 0..=steps {
        let (log, mut keeper, _) = log.after_crash(cut);
        for (ticket, handle, next) in told.acks.iter().filter(|(ticket, ..)| ticket.0 <= cut as u64) {
            let watched = keeper.tower().channel(*handle).unwrap();
            assert!(watched.next() >= *next, "killed after {cut}: {handle} was acknowledged with {ticket}");
        }
        // Whatever had been broadcast rested on what is still known.
        if let Some((_, claims)) = told.claims.iter().rfind(|(ticket, _)| ticket.0 == cut as u64) {
            let found: Vec<OutPoint> = keeper.tower().claims().iter().map(|claim| claim.outpoint).collect();
            assert_eq!(found, *claims, "killed after {cut}");
        }
        catch_up(&mut keeper, &channels, &mut Told::default());
        let mut blocks = chain.after.clone();
        follow(&mut keeper, &blocks);
        assert_eq!(take_all(&mut keeper, &mut blocks), chain.taken_max, "killed after {cut}");
        assert_eq!(keeper.tower().claims().len(), 0);
        // And after another kill at the very end, it knows that it has.
        log.flush();
        let steps = log.0.lock().unwrap().written.len();
        let (_, keeper, _) = log.after_crash(steps);
        assert_eq!(keeper.tower().claims().len(), 0, "killed after {cut}");
    }
}

#[test]
fn killed_again_and_again_after_a_few_steps_each() {
    let channels = Channels::new();
    let chain = channels.chain();
    let mut log = Arc::new(MemoryLog::default());
    let mut kills = 0;
    loop {
        let written = log.0.lock().unwrap().written.len();
        let (next, mut keeper, _) = log.after_crash(written);
        catch_up(&mut keeper, &channels, &mut Told::default());
        follow(&mut keeper, &chain.after);
        // A block is a few steps, and one that was cut short is looked through again.
        let is_done = !(0..5).all(|_| next.write_one()) || next.0.lock().unwrap().pending.is_empty();
        log = next;
        kills += 1;
        if is_done {
            break;
        }
        // All that was not written is gone.
        log.0.lock().unwrap().pending.clear();
    }
    assert!(kills > 4, "{kills} kills");
    log.flush();
    let written = log.0.lock().unwrap().written.len();
    let (_, keeper, _) = log.after_crash(written);
    assert_eq!(keeper.tower().claims().len(), chain.taken_max);
}

#[tokio::test]
async fn nothing_is_promised_as_durable_before_it_is() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let log = Arc::new(MemoryLog::default());
    let (mut keeper, mut durability) = Keeper::new(Tower::default(), Arc::clone(&log) as Arc<dyn Log>, Ticket(0));
    let Promised { .. } = keeper.allow(client(), 10).unwrap();
    let registered = keeper.register(client(), sample.registration()).unwrap();
    let handle = registered.answer.handle;
    log.flush();
    assert!(durability.has(registered.ticket));
    let revealed = keeper.reveal(&client(), handle, CommitmentNumber(0), sample.secret(0), 0).unwrap();
    assert!(!durability.has(revealed.ticket));
    // The same again is no news, and still no promise.
    let again = keeper.reveal(&client(), handle, CommitmentNumber(0), sample.secret(0), 0).unwrap();
    assert_eq!(again, revealed);
    log.write_one();
    assert!(durability.wait(revealed.ticket).await);
    // A journal that takes nothing more: nobody is ever told.
    log.0.lock().unwrap().is_closed = true;
    let lost = keeper.reveal(&client(), handle, CommitmentNumber(1), sample.secret(1), 0).unwrap();
    assert!(!durability.has(lost.ticket));
    drop((keeper, log));
    assert!(!durability.wait(lost.ticket).await);
}

#[test]
fn full_disk_takes_nothing_new_and_still_punishes() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let log = Arc::new(MemoryLog::default());
    let (mut keeper, _) = Keeper::new(Tower::default(), Arc::clone(&log) as Arc<dyn Log>, Ticket(0));
    let Promised { .. } = keeper.allow(client(), 10).unwrap();
    let handle = keeper.register(client(), sample.registration()).unwrap().answer.handle;
    let Promised { .. } = keeper.reveal(&client(), handle, CommitmentNumber(0), sample.secret(0), 0).unwrap();
    log.fill();
    let secret = sample.secret(1);
    assert_eq!(keeper.reveal(&client(), handle, CommitmentNumber(1), secret, 0), Err(Fault::Full));
    let other = Sample::new(2, CommitmentFormat::Anchors).registration();
    assert_eq!(keeper.register(client(), other), Err(Fault::Full));
    let Promised { .. } =
        keeper.connect(BlockHeight(7), BlockHash::all_zeros(), &[sample.commitment(0, 9_000, 0, 0).tx]);
    assert_eq!(keeper.tower().claims().len(), 1);
}

/// A channel that is told of after its breach, and a tower that is killed at any step of looking for it.
#[test]
fn killed_while_it_looks_through_the_blocks_before_a_registration() {
    let channels = Channels::new();
    let chain = channels.chain().after;
    let log = Arc::new(MemoryLog::default());
    let (mut keeper, _) = Keeper::new(Tower::default(), Arc::clone(&log) as Arc<dyn Log>, Ticket(0));
    let Promised { .. } = keeper.allow(client(), 10).unwrap();
    follow(&mut keeper, &chain);
    catch_up(&mut keeper, &channels, &mut Told::default());
    log.flush();
    let before = log.0.lock().unwrap().written.len();
    let look = |keeper: &mut Keeper| {
        let only: BTreeSet<Handle> = keeper.tower().unchecked().map(|(handle, _)| handle).collect();
        for block in chain.iter().filter(|_| !only.is_empty()) {
            let Promised { .. } = keeper.look_back(BlockHeight(block.height), &block.txs, &only);
        }
        let Promised { .. } = keeper.checked(only);
    };
    assert_eq!(keeper.tower().unchecked().count(), 2);
    look(&mut keeper);
    assert_eq!((keeper.tower().unchecked().count(), keeper.tower().claims().len()), (0, 5));
    log.flush();
    let steps = log.0.lock().unwrap().written.len();
    assert!(steps > before + 5);
    for cut in before..=steps {
        let (_, mut keeper, _) = log.after_crash(cut);
        look(&mut keeper);
        assert_eq!((keeper.tower().unchecked().count(), keeper.tower().claims().len()), (0, 5), "killed after {cut}");
    }
}

#[test]
fn many_records_bring_a_checkpoint_by_themselves() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let log = Arc::new(MemoryLog::default());
    let (mut keeper, _) = Keeper::new(Tower::default(), Arc::clone(&log) as Arc<dyn Log>, Ticket(0));
    keeper.bytes_max = 1_000;
    let Promised { .. } = keeper.allow(client(), 10).unwrap();
    let handle = keeper.register(client(), sample.registration()).unwrap().answer.handle;
    let mut checkpoints = std::collections::BTreeSet::new();
    for number in (0..100).map(CommitmentNumber) {
        let secret = sample.secret(number.0);
        let Promised { .. } = keeper.reveal(&client(), handle, number, secret, 0).unwrap();
        checkpoints.extend(log.0.lock().unwrap().checkpoint.as_ref().map(|(at, _)| *at));
    }
    assert_eq!(checkpoints.len(), 3, "after {checkpoints:?} steps");
    log.flush();
    let steps = log.0.lock().unwrap().written.len();
    let (_, restarted, _) = log.after_crash(steps);
    assert_eq!(restarted.tower().channel(handle).unwrap().next(), CommitmentNumber(100));
}

/// The slots of a peer's secrets when all below `to` are revealed, from the keys alone.
fn slots(keys: &ChannelKeys, to: u64) -> Vec<[u8; 32]> {
    let lowest = CommitmentNumber::MAX.0 + 1 - to;
    let count = u64::BITS - to.leading_zeros();
    let index = |slot: u32| if slot == 48 { 0 } else { (lowest.div_ceil(1 << slot) | 1) << slot };
    (0..count).map(|slot| keys.commitment_secret(CommitmentNumber(CommitmentNumber::MAX.0 - index(slot)))).collect()
}

/// The bytes of a checkpoint with so many channels, each with as many revealed secrets, less those of one without any.
fn checkpoint_bytes(channels: u32, revealed: u64) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("journal");
    let options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, ..Options::default() };
    let (mut keeper, _) = open(&dir, options).unwrap();
    let Promised { .. } = keeper.allow(client(), channels + 1).unwrap();
    for number in 0..channels {
        let sample = Sample::new(number, CommitmentFormat::Anchors);
        let handle = keeper.register(client(), sample.registration()).unwrap().answer.handle;
        let range = CommitmentNumber(0)..CommitmentNumber(revealed);
        let changed = slots(&sample.remote, revealed);
        let Promised { .. } = keeper.advance(&client(), handle, range, changed, 1_700_000_000).unwrap();
    }
    keeper.checkpoint();
    let bytes = std::fs::metadata(dir.join("checkpoint")).unwrap().len();
    drop(keeper);
    // It is all there again, and cheap to read.
    let (keeper, _) = open(&dir, options).unwrap();
    let watched: Vec<_> = keeper.tower().channels().collect();
    assert_eq!(watched.len(), channels as usize);
    assert!(watched.iter().all(|(_, watched)| watched.next().0 == revealed && watched.phase == Phase::Open));
    bytes
}

#[test]
fn channel_takes_at_most_1800_bytes_after_100_000_updates_and_after_all_there_can_be() {
    const CHANNELS: u32 = 300;
    let empty = checkpoint_bytes(0, 1);
    let per_channel = |revealed| (checkpoint_bytes(CHANNELS, revealed) - empty) as f64 / f64::from(CHANNELS);
    let after_100_000 = per_channel(100_000);
    let after_all = per_channel(CommitmentNumber::MAX.0);
    println!("bytes per channel: {after_100_000} after 100,000 updates, {after_all} after 2^48 - 1");
    assert!(after_100_000 <= 800.0, "{after_100_000}");
    assert!(after_all <= 1_724.0 + REGISTRATION_BYTES_MAX as f64 && after_all <= 1_800.0, "{after_all}");
}

#[test]
fn slots_from_keys_are_those_of_one_secret_after_the_other() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let mut secrets = RevealedSecrets::new();
    (0..1_000).for_each(|n| secrets.insert(CommitmentNumber(n), sample.secret(n)).unwrap());
    assert_eq!(slots(&sample.remote, 1_000), secrets.since(CommitmentNumber(0)));
}
