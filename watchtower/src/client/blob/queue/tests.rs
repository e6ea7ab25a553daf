//! The queue between a caller and a tower that refuses, forgets and hangs up, by seed.

#![allow(clippy::unwrap_used)]

use secp256k1::SecretKey;

use super::*;
use crate::sealed::Hint;

const GROUPS: u8 = 3;
const EACH: u64 = 20;
const WAITING_MAX: usize = 10;

fn group(number: u8) -> Group {
    Group([number; 16])
}

fn blob(group: Group, sequence: u64) -> Sealed {
    Sealed { hint: Hint([group.0[0]; 16]), bytes: sequence.to_be_bytes().to_vec() }
}

/// What a tower says.
enum Answer {
    Ack(Group, u64),
    Refused(Group, Option<u64>),
}

struct World {
    queue: Queue,
    /// What the tower has.
    tower: BTreeMap<Group, Vec<Sealed>>,
    to_tower: VecDeque<Message>,
    to_client: VecDeque<Answer>,
    state: u64,
    told: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let queue = Queue::new(WAITING_MAX);
        (0..GROUPS).for_each(|number| _ = queue.register(group(number), 0, EACH));
        let (tower, to_tower, to_client) = (BTreeMap::new(), VecDeque::new(), VecDeque::new());
        let mut world = Self { queue, tower, to_tower, to_client, state: seed * 2 + 1, told: 0 };
        world.connect();
        world
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % sides
    }

    fn connect(&mut self) {
        self.to_tower.clear();
        self.to_client.clear();
        self.queue.begin();
        let held =
            |(group, blobs): (&Group, &Vec<Sealed>)| HeldGroup { group: *group, next: blobs.len() as u64, time_s: 0 };
        let held: Vec<HeldGroup> = self.tower.iter().map(held).collect();
        assert!(self.queue.on_account(&held));
        self.queue.settle_account();
    }

    /// The caller has copies of everything, and hands over from what is wanted on.
    fn call(&mut self) {
        let group = group(self.dice(u64::from(GROUPS)) as u8);
        let wanted = self.queue.progress(group).unwrap().borrow().wanted;
        for sequence in wanted..EACH {
            match self.queue.hand_over(group, sequence, blob(group, sequence)) {
                Ok(()) => {}
                Err(HandOverError::Full { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn tell(&mut self) {
        let max = 1 + self.dice(5) as usize;
        let due = self.queue.due(Instant::now(), max);
        assert!(due.messages.len() <= max);
        self.told += due.messages.len();
        self.to_tower.extend(due.messages);
    }

    fn hear(&mut self) {
        let refuses = self.dice(8) == 0;
        let (group, sequence, sealed) = match self.to_tower.pop_front() {
            Some(Message::Blob { group, sequence, sealed }) => (group, sequence, sealed),
            Some(Message::AskReceipt(group)) => {
                let next = self.tower[&group].len() as u64;
                return self.to_client.push_back(Answer::Ack(group, next));
            }
            Some(other) => panic!("{other:?}"),
            None => return,
        };
        let has = self.tower.entry(group).or_default();
        let next = has.len() as u64;
        self.to_client.push_back(match sequence {
            _ if sequence > next => Answer::Refused(group, Some(next)),
            _ if refuses => Answer::Refused(group, None),
            _ => {
                if sequence == next {
                    has.push(sealed);
                } else {
                    assert_eq!(has[sequence as usize], sealed);
                }
                Answer::Ack(group, has.len() as u64)
            }
        });
    }

    fn answer(&mut self) {
        match self.to_client.pop_front() {
            Some(Answer::Ack(group, next)) => {
                let key = SecretKey::from_slice(&[5; 32]).unwrap();
                assert!(self.queue.on_ack(BlobReceipt::sign(&key, group, next, 0), |_| ()));
            }
            Some(Answer::Refused(group, next)) => self.queue.on_refused(group, "no", next, Duration::ZERO),
            None => {}
        }
    }

    fn step(&mut self) {
        match self.dice(200) {
            0..=4 => self.connect(),
            5 => {
                // Its disk was put back from an old copy.
                let keeps = self.dice(EACH) as usize;
                self.tower.values_mut().for_each(|blobs| blobs.truncate(keeps));
                self.connect();
            }
            6..=50 => self.call(),
            51..=95 => self.tell(),
            96..=147 => self.hear(),
            _ => self.answer(),
        }
        let state = self.queue.lock();
        let waiting: usize = state.entries.values().map(|entry| entry.waiting.len()).sum();
        assert_eq!(state.waiting, waiting);
        assert!(waiting <= WAITING_MAX);
        let under_way: u64 = state.entries.values().map(|entry| entry.told - entry.acknowledged()).sum();
        assert_eq!(state.in_flight, under_way);
    }

    fn is_done(&self) -> bool {
        self.queue.all_progress().iter().all(|(_, progress)| progress.lag() == 0)
    }
}

#[test]
fn whatever_the_tower_does_every_blob_arrives_in_order() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        let mut steps = 0;
        while !world.is_done() {
            world.step();
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: it does not come to its end: {:?}", world.queue.all_progress());
        }
        for (group, blobs) in &world.tower {
            let expected: Vec<Sealed> = (0..EACH).map(|sequence| blob(*group, sequence)).collect();
            assert_eq!(*blobs, expected, "seed {seed}");
        }
        assert_eq!(world.tower.len(), usize::from(GROUPS), "seed {seed}");
        // Whatever became of receipts on their way, there is one for all in the end.
        for _ in 0..10 {
            world.tell();
            (0..100).for_each(|_| world.hear());
            (0..100).for_each(|_| world.answer());
        }
        let receipts = world.queue.all_progress().into_iter().map(|(_, progress)| progress.receipt.unwrap().next);
        assert!(receipts.into_iter().all(|next| next == EACH), "seed {seed}");
    }
}

#[test]
fn one_group_does_not_hold_up_the_others_and_no_more_than_the_window_is_under_way() {
    let queue = Queue::new(10_000);
    queue.begin();
    queue.settle_account();
    for number in 0..2 {
        queue.register(group(number), 0, 0);
        (0..2_000)
            .for_each(|sequence| queue.hand_over(group(number), sequence, blob(group(number), sequence)).unwrap());
    }
    let told = |queue: &Queue| {
        let mut told = [0_u64; 2];
        loop {
            let due = queue.due(Instant::now(), 100);
            for message in &due.messages {
                let Message::Blob { group, .. } = message else { panic!("{message:?}") };
                told[usize::from(group.0[0])] += 1;
            }
            if due.messages.is_empty() {
                return told;
            }
        }
    };
    let first = told(&queue);
    assert_eq!(first[0] + first[1], IN_FLIGHT_MAX);
    assert!(first[0] > 0 && first[1] > 0, "{first:?}");
}

/// It must not end its client by a number.
#[test]
fn tower_that_announces_more_than_anybody_has_is_not_believed() {
    let queue = Queue::new(WAITING_MAX);
    let _progress = queue.register(group(1), 0, EACH);
    queue.begin();
    let held = |next| HeldGroup { group: group(1), next, time_s: 0 };
    for next in [u64::MAX, u64::MAX - 1, u64::from(u32::MAX) + 1] {
        assert!(!queue.on_account(&[held(next)]), "{next}");
    }
    assert!(queue.on_account(&[held(u64::from(u32::MAX))]));
    queue.settle_account();
    assert!(queue.due(Instant::now(), 10).messages.is_empty());
    assert!(queue.progress(group(1)).unwrap().borrow().is_tower_ahead);
}
