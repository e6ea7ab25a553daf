//! The switch among channels that are made up, with orders, answers, news and crashes in every order that chance brings.
//!
//! A channel here is only what the switch can see of one: an HTLC that came in is undecided, decided or gone; one that
//! went out is proposed, committed, fulfilled, resolved. What is durable is a list of facts; a crash loses all the rest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

const INCOMING: [ChannelId; 2] = [IN, ChannelId([11; 32])];
const OUTGOING: [ChannelId; 2] = [OUT, ALSO];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Upstream {
    Undecided,
    Decided(bool),
    Removed(bool),
}

#[derive(Clone, PartialEq, Debug)]
enum Downstream {
    Proposed,
    Committed,
    /// The preimage is known.
    Fulfilled,
    /// How it ended is kept.
    Kept(Removal),
    Released,
    TimedOut,
}

#[derive(Clone, Debug)]
struct Offered {
    key: Key,
    channel_id: ChannelId,
    id: u64,
    stage: Downstream,
}

#[derive(Clone, Debug)]
struct Told {
    channel_id: ChannelId,
    fact: Fact,
    /// In the list of what is durable.
    place: Option<usize>,
}

struct Model {
    stand: Stand,
    durable: Vec<(ChannelId, Fact)>,
    news: BTreeMap<ChannelId, VecDeque<Told>>,
    told: BTreeSet<usize>,
    orders: VecDeque<Act>,
    answers: Vec<(Key, ChannelId, bool)>,
    to_peel: Vec<Key>,
    upstream: BTreeMap<Key, Upstream>,
    downstream: Vec<Offered>,
    checkpoint: (Vec<u8>, BTreeSet<usize>),
    next_id: u64,
}

fn section_of(forwarding: &Forwarding) -> Vec<u8> {
    postcard::to_stdvec(&forwarding.section()).unwrap()
}

impl Model {
    fn new() -> Self {
        let mut stand = Stand::new();
        stand.table.0.push(channel(INCOMING[1], 3));
        let checkpoint = (section_of(&stand.forwarding), BTreeSet::new());
        Self {
            stand,
            durable: Vec::new(),
            news: BTreeMap::new(),
            told: BTreeSet::new(),
            orders: VecDeque::new(),
            answers: Vec::new(),
            to_peel: Vec::new(),
            upstream: BTreeMap::new(),
            downstream: Vec::new(),
            checkpoint,
            next_id: 0,
        }
    }

    fn becomes_true(&mut self, channel_id: ChannelId, fact: Fact) {
        let place = Some(self.durable.len());
        self.durable.push((channel_id, fact.clone()));
        self.news.entry(channel_id).or_default().push_back(Told { channel_id, fact, place });
    }

    // --- what chance may bring ---

    fn step(&mut self, what: u8, which: u8) {
        match what % 14 {
            0 if self.upstream.len() < 6 => self.comes_in(which),
            1..=3 => self.news_arrive(which),
            4 => self.peel(which),
            5 | 6 => self.order_arrives(which),
            7 => self.answer_arrives(which),
            8 => self.downstream_goes_on(which, false),
            9 => self.downstream_goes_on(which, true),
            10 => self.is_removed_upstream(which),
            11 => self.checkpoint = (section_of(&self.stand.forwarding), self.told.clone()),
            12 => {
                let acts = self.stand.go_on_at(true);
                self.orders.extend(acts);
            }
            13 if which < 40 => self.crash(),
            _ => {}
        }
    }

    fn comes_in(&mut self, which: u8) {
        let key = (INCOMING[usize::from(which) % 2], HtlcId(self.upstream.len() as u64));
        self.upstream.insert(key, Upstream::Undecided);
        self.becomes_true(key.0, received_fact(key, 10_002_000, 1_180));
    }

    fn news_arrive(&mut self, which: u8) {
        let waiting: Vec<ChannelId> = self.news.iter().filter(|(_, n)| !n.is_empty()).map(|(id, _)| *id).collect();
        if waiting.is_empty() {
            return;
        }
        let from = waiting[usize::from(which) % waiting.len()];
        let told = self.news.get_mut(&from).and_then(VecDeque::pop_front).unwrap();
        self.hear(&told, false);
        let acts = self.stand.go_on();
        self.orders.extend(acts);
    }

    fn hear(&mut self, told: &Told, is_replay: bool) {
        if let Some(place) = told.place
            && !self.told.insert(place)
        {
            return;
        }
        let onion = match &told.fact {
            Fact::HtlcReceived { id, .. } => {
                if !is_replay {
                    self.to_peel.push((told.channel_id, *id));
                }
                let n = u8::try_from(id.0).unwrap();
                Some(ReceivedOnion { onion: Box::new(OnionPacket([n; 1366])), path_key: None })
            }
            _ => None,
        };
        let Stand { forwarding, acts, happened, .. } = &mut self.stand;
        let mut nothing = Vec::new();
        let acts = if is_replay { &mut nothing } else { acts };
        forwarding.on_fact(told.channel_id, &told.fact, onion.as_ref(), 7, is_replay, acts, happened);
        assert!(nothing.is_empty(), "nothing follows from a replay");
    }

    fn peel(&mut self, which: u8) {
        if self.to_peel.is_empty() {
            return;
        }
        let key = self.to_peel.swap_remove(usize::from(which) % self.to_peel.len());
        self.stand.peel(key, forward(10_000_000, 1_100));
        let acts = self.stand.go_on();
        self.orders.extend(acts);
    }

    fn order_arrives(&mut self, which: u8) {
        match self.orders.pop_front() {
            None => {}
            Some(Act::Offer { key, channel_id, .. }) => {
                let is_taken = which.is_multiple_of(3) || which > 100;
                if is_taken {
                    self.next_id += 1;
                    let stage = Downstream::Proposed;
                    self.downstream.push(Offered { key, channel_id, id: self.next_id, stage });
                }
                self.answers.push((key, channel_id, is_taken));
            }
            Some(Act::Fulfill { key, preimage: shown, .. }) => {
                assert_eq!(shown, preimage());
                let is_known = self.stages(key).any(|stage| {
                    matches!(
                        stage,
                        Downstream::Fulfilled | Downstream::Kept(Removal::Fulfill { .. }) | Downstream::Released
                    )
                });
                assert!(is_known, "a preimage from nowhere");
                self.decide(key, true);
            }
            Some(Act::Fail { key, .. }) => {
                let may_succeed = self.stages(key).any(|stage| {
                    !matches!(
                        stage,
                        Downstream::TimedOut | Downstream::Kept(Removal::Fail { .. }) | Downstream::Released
                    )
                });
                if self.upstream[&key] == Upstream::Undecided {
                    assert!(!may_succeed, "{key:?} fails and may still succeed downstream");
                }
                self.decide(key, false);
            }
            Some(Act::Release(channel_id, id)) => {
                let one = self.downstream.iter_mut().find(|one| one.channel_id == channel_id && one.id == id.0);
                let Some(one) = one else { return };
                if let Downstream::Kept(removal) = &one.stage {
                    let end = Upstream::Removed(removal.is_fulfill());
                    assert_eq!(self.upstream[&one.key], end, "released too early, or with another end upstream");
                    one.stage = Downstream::Released;
                }
            }
        }
    }

    fn stages(&self, key: Key) -> impl Iterator<Item = &Downstream> {
        self.downstream.iter().filter(move |one| one.key == key).map(|one| &one.stage)
    }

    fn decide(&mut self, key: Key, fulfilled: bool) {
        let upstream = self.upstream.get_mut(&key).unwrap();
        if *upstream == Upstream::Undecided {
            *upstream = Upstream::Decided(fulfilled);
        }
    }

    fn answer_arrives(&mut self, which: u8) {
        if self.answers.is_empty() {
            return;
        }
        let (key, channel_id, is_taken) = self.answers.swap_remove(usize::from(which) % self.answers.len());
        let result = match is_taken {
            true => Ok(Accepted::Offered(HtlcId(0))),
            false if which.is_multiple_of(2) => Err(CommandError::Busy { waiting: 1 }),
            false => Err(CommandError::Refused(millrace_channel::Refusal::NotUsable("now"))),
        };
        self.stand.forwarding.answered(key, channel_id, result, self.stand.now_ms);
        let acts = self.stand.go_on();
        self.orders.extend(acts);
    }

    fn downstream_goes_on(&mut self, which: u8, well: bool) {
        if self.downstream.is_empty() {
            return;
        }
        let index = usize::from(which) % self.downstream.len();
        let Offered { key, channel_id, id, stage } = self.downstream[index].clone();
        let id = HtlcId(id);
        let next = match (stage, well) {
            (Downstream::Proposed, true) => {
                self.becomes_true(
                    channel_id,
                    Fact::OfferCommitted { id, origin: origin(key), amount: Msat(10_000_000) },
                );
                let went = self.stages(key).filter(|stage| **stage != Downstream::Proposed).count();
                assert_eq!(went, 0, "{key:?} went on twice");
                Downstream::Committed
            }
            (Downstream::Proposed, false) => {
                self.downstream.swap_remove(index);
                let fact = Fact::OfferDropped { origin: origin(key) };
                self.news.entry(channel_id).or_default().push_back(Told { channel_id, fact, place: None });
                return;
            }
            (Downstream::Committed, true) => {
                self.becomes_true(channel_id, Fact::OfferFulfilled { id, origin: origin(key), preimage: preimage() });
                Downstream::Fulfilled
            }
            (Downstream::Committed, false) if which.is_multiple_of(4) => {
                self.becomes_true(channel_id, Fact::OfferTimedOut { id, origin: origin(key) });
                Downstream::TimedOut
            }
            (Downstream::Committed, false) => {
                let removal = Removal::Fail { reason: vec![7; 292], attribution: None };
                self.becomes_true(
                    channel_id,
                    Fact::OfferResolved { id, origin: origin(key), removal: removal.clone() },
                );
                Downstream::Kept(removal)
            }
            (Downstream::Fulfilled, _) => {
                let removal = settled_removal();
                self.becomes_true(
                    channel_id,
                    Fact::OfferResolved { id, origin: origin(key), removal: removal.clone() },
                );
                Downstream::Kept(removal)
            }
            (stage @ (Downstream::Kept(_) | Downstream::Released | Downstream::TimedOut), _) => stage,
        };
        self.downstream[index].stage = next;
    }

    fn is_removed_upstream(&mut self, which: u8) {
        let decided: Vec<(Key, bool)> = self
            .upstream
            .iter()
            .filter_map(|(key, stage)| if let Upstream::Decided(how) = stage { Some((*key, *how)) } else { None })
            .collect();
        if decided.is_empty() {
            return;
        }
        let (key, fulfilled) = decided[usize::from(which) % decided.len()];
        self.upstream.insert(key, Upstream::Removed(fulfilled));
        self.becomes_true(key.0, Fact::RemovalIrrevocable { id: key.1, fulfilled });
    }

    /// Everything that is not durable is lost; then a start.
    fn crash(&mut self) {
        self.news.clear();
        self.orders.clear();
        self.answers.clear();
        self.to_peel.clear();
        self.downstream.retain(|one| one.stage != Downstream::Proposed);
        self.stand.forwarding = Forwarding::default();
        self.stand.acts.clear();
        self.stand.forwarding.restore(postcard::from_bytes(&self.checkpoint.0).unwrap());
        self.told.clone_from(&self.checkpoint.1);
        for (place, (channel_id, fact)) in self.durable.clone().into_iter().enumerate() {
            self.hear(&Told { channel_id, fact, place: Some(place) }, true);
        }
        self.check_same_as_replayed();
        for told in self.owed() {
            self.hear(&told, false);
        }
        let acts = self.stand.go_on();
        self.orders.extend(acts);
    }

    /// What channels tell again at a start.
    fn owed(&self) -> Vec<Told> {
        let undecided = self.upstream.iter().filter(|(_, stage)| **stage == Upstream::Undecided);
        let incoming = undecided.map(|(key, _)| (key.0, received_fact(*key, 10_002_000, 1_180)));
        let outgoing = self.downstream.iter().filter_map(|one| {
            let (id, origin) = (HtlcId(one.id), origin(one.key));
            let fact = match &one.stage {
                Downstream::Fulfilled => Fact::OfferFulfilled { id, origin, preimage: preimage() },
                Downstream::Kept(removal) => Fact::OfferResolved { id, origin, removal: removal.clone() },
                Downstream::Proposed | Downstream::Committed | Downstream::Released | Downstream::TimedOut => {
                    return None;
                }
            };
            Some((one.channel_id, fact))
        });
        incoming.chain(outgoing).map(|(channel_id, fact)| Told { channel_id, fact, place: None }).collect()
    }

    /// A fold over everything from the first day on arrives at the same.
    fn check_same_as_replayed(&self) {
        let mut fresh = Model::new();
        for (place, (channel_id, fact)) in self.durable.clone().into_iter().enumerate() {
            fresh.hear(&Told { channel_id, fact, place: Some(place) }, true);
        }
        assert_eq!(section_of(&fresh.stand.forwarding), section_of(&self.stand.forwarding));
    }

    /// Lets everything come to its end.
    fn settle(&mut self) {
        for round in 0..400u16 {
            let byte = u8::try_from(round % 251).unwrap();
            for what in [1, 2, 3, 4, 5, 6, 7, 9, 10, 12] {
                self.step(what, byte | 128);
            }
            for index in 0..self.downstream.len() {
                self.downstream_goes_on(u8::try_from(index).unwrap(), true);
            }
            // A channel that never has time is given up in the end.
            self.stand.now_ms += 100;
        }
        self.check_same_as_replayed();
        for (key, stage) in &self.upstream {
            let went_well = self.stages(*key).any(|stage| matches!(stage, Downstream::Kept(r) if r.is_fulfill()));
            assert!(!went_well, "an outcome is kept for ever");
            let Upstream::Removed(_) = stage else { panic!("{key:?} is stuck: {stage:?}") };
        }
        assert_eq!((self.stand.forwarding.len(), self.stand.forwarding.live.len()), (0, 0));
        assert!(self.stand.forwarding.circuits.load.is_empty(), "{:?}", self.stand.forwarding.circuits.load);
        assert!(self.downstream.iter().all(|one| matches!(one.stage, Downstream::Released | Downstream::TimedOut)));
        assert!(self.downstream.iter().all(|one| OUTGOING.contains(&one.channel_id)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_htlc_is_resolved_once_and_as_it_was_downstream(
        steps in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..400),
    ) {
        let mut model = Model::new();
        for (what, which) in steps {
            model.step(what, which);
        }
        model.settle();
    }
}
