//! Whatever comes in whatever order, with crashes anywhere: a payment is taken whole or not at all, and once; and whoever
//! reads the journal back finds what those who were there were told.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// This HTLC arrives, if it has not.
    Htlc(usize),
    /// The next order reaches its channel, or the journal.
    Order,
    /// The next durable step of this source is told.
    Told(usize),
    Seconds(u64),
    Blocks(u32),
    Settle(u8),
    Cancel(u8),
    /// The removal of this HTLC is irrevocable.
    Removed(usize),
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..HTLCS.len()).prop_map(Act::Htlc),
        8 => Just(Act::Order),
        8 => (0_usize..3).prop_map(Act::Told),
        1 => (1_u64..40).prop_map(Act::Seconds),
        1 => (1_u32..60).prop_map(Act::Blocks),
        2 => (2_u8..4).prop_map(Act::Settle),
        1 => (1_u8..4).prop_map(Act::Cancel),
        2 => (0..HTLCS.len()).prop_map(Act::Removed),
        1 => Just(Act::Crash),
    ]
}

/// Which payment, by which channel, how much of how much.
const HTLCS: [(u8, ChannelId, u64, u64); 12] = [
    (1, A, 60_000, 100_000),
    (1, B, 30_000, 100_000),
    (1, A, 10_000, 100_000),
    (1, B, 10_000, 100_000),
    (1, A, 50_000, 110_000),
    (2, A, 50_000, 100_000),
    (2, B, 50_000, 100_000),
    (3, B, 100_000, 100_000),
    (3, A, 70_000, 120_000),
    (3, B, 50_000, 120_000),
    (9, A, 5, 5),
    (9, B, 5, 5),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Away,
    Undecided,
    Fulfilled,
    Failed,
}

/// A durable step.
#[derive(Clone)]
enum Step {
    Entry(InvoiceEntry),
    Removed(Place),
}

struct World {
    payee: Payee,
    orders: VecDeque<Receipt>,
    fates: Vec<Fate>,
    is_removed: Vec<bool>,
    journal: Vec<(usize, Step)>,
    /// By source: which steps are yet to be told.
    untold: [VecDeque<usize>; 3],
    /// What was told, by step.
    told: BTreeMap<usize, Vec<Happened>>,
    /// Which invoice, whether it was to be settled, and the answer.
    answers: Vec<(u8, bool, Answer)>,
}

const fn place(index: usize) -> Place {
    (HTLCS[index].1, HtlcId(index as u64))
}

fn index_of(place: Place) -> usize {
    usize::try_from(place.1.0).unwrap()
}

fn source_of(channel_id: ChannelId) -> usize {
    if channel_id == A { 0 } else { 1 }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            payee: Payee::new(&[]),
            orders: VecDeque::new(),
            fates: vec![Fate::Away; HTLCS.len()],
            is_removed: vec![false; HTLCS.len()],
            journal: Vec::new(),
            untold: Default::default(),
            told: BTreeMap::new(),
            answers: Vec::new(),
        };
        for entry in [plain(1), hold(2, true), hold(3, false)] {
            world.write(2, Step::Entry(entry));
        }
        world.tell_all();
        world
    }

    fn write(&mut self, source: usize, step: Step) {
        self.untold[source].push_back(self.journal.len());
        self.journal.push((source, step));
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Htlc(index) if self.fates[index] == Fate::Away => {
                self.fates[index] = Fate::Undecided;
                self.arrive(index);
            }
            Act::Order => self.order(),
            Act::Told(source) => self.tell(source),
            Act::Seconds(seconds) => {
                self.payee.now.0 += seconds * 1_000;
                self.payee.time();
            }
            Act::Blocks(blocks) => {
                self.payee.height.0 += blocks;
                self.payee.time();
            }
            Act::Settle(n) => {
                let answer = self.payee.settle(n, Some(preimage(n)));
                self.answers.push((n, true, answer));
            }
            Act::Cancel(n) => {
                let answer = self.payee.cancel(n);
                self.answers.push((n, false, answer));
            }
            Act::Removed(index) if self.fates[index] == Fate::Fulfilled && !self.is_removed[index] => {
                self.is_removed[index] = true;
                self.write(source_of(HTLCS[index].1), Step::Removed(place(index)));
            }
            Act::Crash => self.crash(),
            Act::Htlc(_) | Act::Removed(_) => {}
        }
        self.orders.extend(self.payee.take());
    }

    /// As the task does it.
    fn arrive(&mut self, index: usize) {
        let (n, _, amount, total) = HTLCS[index];
        if let Some(fulfilment) = self.payee.receiving.owed(place(index)) {
            return self.orders.push_back(Receipt::Fulfill(fulfilment));
        }
        let mut last = last(amount, total);
        if n == 9 {
            last = Final { payment_secret: None, keysend_preimage: Some(preimage(9)), ..last };
        }
        if self.payee.htlc(part(n, place(index), amount), &last).is_err() {
            self.fates[index] = Fate::Failed;
        }
    }

    fn order(&mut self) {
        match self.orders.pop_front() {
            Some(Receipt::Fulfill(fulfilment)) => {
                let index = index_of(fulfilment.place);
                assert_ne!(self.fates[index], Fate::Failed, "fulfilled after it was failed: {fulfilment:?}");
                assert_eq!(fulfilment.preimage.hash(), hash(HTLCS[index].0));
                if self.fates[index] == Fate::Undecided {
                    self.fates[index] = Fate::Fulfilled;
                    if let Some(entry) = fulfilment.entry {
                        self.write(source_of(fulfilment.place.0), Step::Entry(entry));
                    }
                } else {
                    self.payee.receiving.on_refused(&fulfilment, false, &mut self.payee.out);
                }
            }
            Some(Receipt::Fail(place, _)) => {
                let index = index_of(place);
                assert_ne!(self.fates[index], Fate::Fulfilled, "failed after it was fulfilled");
                self.fates[index] = Fate::Failed;
            }
            Some(Receipt::Write(entry)) => {
                self.write(2, Step::Entry(InvoiceEntry::decode(&entry.bytes).unwrap()));
            }
            None => {}
        }
    }

    fn tell(&mut self, source: usize) {
        let Some(at) = self.untold[source].pop_front() else { return };
        let step = self.journal[at].1.clone();
        let happened = apply(&mut self.payee, step);
        self.told.insert(at, happened);
    }

    fn tell_all(&mut self) {
        for source in 0..3 {
            while !self.untold[source].is_empty() {
                self.tell(source);
            }
        }
    }

    /// Everything that is not durable is gone; the journal is read back, and the channels tell of what is undecided.
    fn crash(&mut self) {
        let (now, height) = (self.payee.now, self.payee.height);
        self.payee = Payee::new(&[]);
        (self.payee.now, self.payee.height) = (now, height);
        self.orders.clear();
        self.untold = Default::default();
        let journal = self.journal.clone();
        for (at, (_, step)) in journal.into_iter().enumerate() {
            let happened = apply(&mut self.payee, step);
            let before = self.told.insert(at, happened.clone());
            assert!(before.is_none_or(|before| before == happened), "step {at} says something else on replay");
        }
        self.payee.take();
        for index in 0..HTLCS.len() {
            if self.fates[index] == Fate::Undecided {
                self.arrive(index);
            }
        }
        self.payee.time();
    }

    fn settle_down(&mut self) {
        for _ in 0..4 {
            self.orders.extend(self.payee.take());
            while !self.orders.is_empty() || self.untold.iter().any(|untold| !untold.is_empty()) {
                self.order();
                self.orders.extend(self.payee.take());
                self.tell_all();
                self.orders.extend(self.payee.take());
            }
            self.payee.now.0 += MPP_TIMEOUT_MS;
            self.payee.height.0 += 200;
            self.payee.time();
        }
    }

    fn check(&mut self) {
        assert!(!self.fates.contains(&Fate::Undecided), "an HTLC is held for ever: {:?}", self.fates);
        let happened: Vec<&Happened> = self.told.values().flatten().collect();
        for n in [1, 2, 3, 9] {
            let taken: Vec<Place> = (0..HTLCS.len())
                .filter(|index| HTLCS[*index].0 == n && self.fates[*index] == Fate::Fulfilled)
                .map(place)
                .collect();
            let paid: Vec<Vec<Place>> = happened.iter().filter_map(|what| paid(what, n)).collect();
            assert!(paid.len() <= 1, "paid twice: {paid:?}");
            let mut named = paid.first().cloned().unwrap_or_default();
            named.sort_unstable();
            let mut taken = taken;
            taken.sort_unstable();
            assert_eq!(named, taken, "what was fulfilled is what was counted");
            let sum: u64 = taken.iter().map(|place| HTLCS[index_of(*place)].2).sum();
            assert!(taken.is_empty() || n == 9 || sum >= ASKED.0, "{sum} of {ASKED}");
        }
        for (n, is_settle, answer) in &mut self.answers {
            let Ok(answer) = answer.try_recv() else { continue };
            let is_paid = happened.iter().any(|what| paid(what, *n).is_some());
            let is_cancelled = happened.iter().any(
                |what| matches!(what, Happened::InvoiceCancelled { payment_hash, .. } if *payment_hash == hash(*n)),
            );
            assert!(!(is_paid && is_cancelled), "both settled and cancelled");
            if answer.is_ok() {
                assert!(if *is_settle { is_paid } else { is_cancelled }, "an answer that is not true");
            }
        }
    }
}

fn apply(payee: &mut Payee, step: Step) -> Vec<Happened> {
    match step {
        Step::Entry(entry) => payee.told(entry),
        Step::Removed((channel_id, id)) => payee.receiving.invoices.on_removed(channel_id, id),
    }
    std::mem::take(&mut payee.happened)
}

/// The HTLCs that paid this.
fn paid(what: &Happened, n: u8) -> Option<Vec<Place>> {
    let places = |parts: &[ReceivedPart]| parts.iter().map(|part| (part.channel_id, part.htlc_id)).collect();
    match what {
        Happened::InvoicePaid { payment_hash, channel_id, htlc_id, .. } if *payment_hash == hash(n) => {
            Some(vec![(*channel_id, *htlc_id)])
        }
        Happened::InvoicePaidInParts { payment_hash, parts, .. } if *payment_hash == hash(n) => Some(places(parts)),
        Happened::KeysendReceived { payment_hash, part, .. } if *payment_hash == hash(n) => Some(places(&[*part])),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whole_or_not_at_all_and_once(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.settle_down();
        world.check();
        world.crash();
        world.settle_down();
        world.check();
    }
}
