//! Any order of answers, outcomes, crashes and replays: paid xor failed, never more than approved, nothing left behind.

use std::collections::BTreeSet;

use super::network::{C, D, PEERS, failed_at, invoice, payer, peeled, with_peer};
use super::*;
use crate::payments::prepare::Limits;

const SEEDS: u64 = 250;
const AMOUNT: u64 = 600_000;
const FEE_LIMIT: u64 = 6_000;

/// A small generator: what a seed gives, it gives again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Proposed,
    Committed,
    Resolved,
}

/// An HTLC in a channel.
struct Out {
    channel_id: ChannelId,
    attempt: u32,
    htlc: u64,
    amount: u64,
    brings: u64,
    nodes: Vec<u8>,
    stage: Stage,
    outcome: Option<Fact>,
    is_fulfilled: bool,
}

/// One step of the journal.
struct Step {
    source: Option<ChannelId>,
    entries: Vec<Entry>,
    facts: Vec<Fact>,
    time_ms: u64,
}

struct Story {
    numbers: Numbers,
    payer: Payer,
    id: Option<PaymentId>,
    journal: Vec<Step>,
    out: Vec<Out>,
    released: BTreeSet<(ChannelId, u64)>,
    /// The payee has all it asked for, and gives the preimage for every part.
    is_claimed: bool,
    htlcs: u64,
    crashes: usize,
    /// A life without crashes is long enough to rest in.
    may_crash: bool,
    /// How often it was found at rest.
    rested: usize,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut payer = payer();
        payer.channels = PEERS.map(|(id, peer)| with_peer(id, peer, 400_000)).to_vec();
        payer.channels.push(with_peer(B, 3, 450_000));
        let limits = Limits { fee: Some(Msat(FEE_LIMIT)), parts: 4, ..Limits::default() };
        payer.pay(PayRequest { limits, ..request(invoice(9, AMOUNT)) });
        let numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (journal, out, released) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self {
            numbers,
            payer,
            id: None,
            journal,
            out,
            released,
            is_claimed: false,
            htlcs: 0,
            crashes: 0,
            may_crash: !seed.is_multiple_of(3),
            rested: 0,
        }
    }

    /// Written, and then told.
    fn durable(&mut self, source: Option<ChannelId>, entries: Vec<Entry>, facts: Vec<Fact>) {
        entries.iter().for_each(|entry| self.payer.entry(entry));
        facts.iter().for_each(|fact| self.payer.fact(source.unwrap(), fact.clone()));
        self.journal.push(Step { source, entries, facts, time_ms: self.payer.unix_ms });
    }

    fn do_order(&mut self) {
        let place = self.numbers.below(self.payer.orders.len());
        match self.payer.orders.remove(place) {
            Order::Search(job) => {
                let found = job.run();
                self.payer.with(|sending, world, out| sending.found(job.id, found, world, out));
            }
            Order::Offer { id, attempt, channel_id, offer, entry } => {
                self.id.get_or_insert(id);
                if self.numbers.one_in(6) {
                    let available = Msat(offer.amount.0 / 2);
                    let refusal = Refusal::InsufficientBalance { amount: offer.amount, available };
                    return self.payer.refuse(id, attempt, refusal);
                }
                let peer = if channel_id == D { 5 } else { 3 };
                let (nodes, brings, total) = peeled(&offer, peer);
                assert_eq!(total, Msat(AMOUNT));
                self.htlcs += 1;
                self.out.push(Out {
                    channel_id,
                    attempt,
                    htlc: self.htlcs,
                    amount: offer.amount.0,
                    brings: brings.0,
                    nodes,
                    stage: Stage::Proposed,
                    outcome: None,
                    is_fulfilled: false,
                });
                self.durable(Some(channel_id), vec![entry], Vec::new());
            }
            Order::Write(entries) => self.durable(None, entries, Vec::new()),
            Order::Release(channel_id, htlc) => {
                self.released.insert((channel_id, htlc.0));
            }
            Order::LookUp(..) => unreachable!("nobody asks again"),
        }
    }

    fn change_htlc(&mut self) {
        let unresolved: Vec<usize> =
            (0..self.out.len()).filter(|place| self.out[*place].stage != Stage::Resolved).collect();
        let Some(place) = unresolved.get(self.numbers.below(unresolved.len().max(1))) else { return };
        let id = self.id.unwrap();
        let Out { channel_id, attempt, htlc, stage, .. } = self.out[*place];
        if stage == Stage::Proposed {
            if self.numbers.one_in(8) {
                self.out.remove(*place);
                // Volatile: it is in no journal.
                return self.payer.fact(channel_id, Fact::OfferDropped { origin: origin(id, attempt) });
            }
            self.out[*place].stage = Stage::Committed;
            return self.durable(Some(channel_id), Vec::new(), vec![committed(id, attempt, htlc)]);
        }
        let arrived: u64 = self.out.iter().filter(|out| out.stage == Stage::Committed).map(|out| out.brings).sum();
        let may_claim = arrived == AMOUNT && self.numbers.one_in(2);
        self.is_claimed |= may_claim;
        if !self.is_claimed && !self.numbers.one_in(4) {
            return;
        }
        let fact = if self.is_claimed {
            if !self.out[*place].is_fulfilled {
                self.out[*place].is_fulfilled = true;
                return self.durable(Some(channel_id), Vec::new(), vec![fulfilled(id, attempt, htlc, 9)]);
            }
            let removal = Removal::Fulfill { preimage: Preimage::new([9; 32]), attribution: None };
            Fact::OfferResolved { id: HtlcId(htlc), origin: origin(id, attempt), removal }
        } else {
            let nodes = self.out[*place].nodes.clone();
            let hop = self.numbers.below(nodes.len());
            let message = match self.numbers.below(4) {
                0 => BUSY,
                1 => FailureMessage::TemporaryNodeFailure,
                2 => FailureMessage::UnknownNextPeer,
                _ => FailureMessage::MppTimeout,
            };
            let message = if hop + 1 == nodes.len() && self.numbers.one_in(3) { UNKNOWN } else { message };
            failed_at((id, attempt, htlc), &nodes, hop, &message)
        };
        self.out[*place].stage = Stage::Resolved;
        self.out[*place].outcome = Some(fact.clone());
        self.durable(Some(channel_id), Vec::new(), vec![fact]);
    }

    fn replayed(&self) -> Payer {
        let mut payer = Payer { map: Arc::clone(&self.payer.map), ..Payer::new(self.payer.channels.clone()) };
        for Step { source, entries, facts, time_ms } in &self.journal {
            payer.unix_ms = *time_ms;
            entries.iter().for_each(|entry| payer.entry(entry));
            for fact in facts {
                let Payer { sending, orders, happened, .. } = &mut payer;
                sending.on_fact(source.unwrap(), fact.clone(), *time_ms, true, None, orders, happened);
            }
        }
        payer.unix_ms = self.payer.unix_ms;
        payer
    }

    /// What was only in memory is gone; what the channels owe is told again.
    fn crash(&mut self) {
        self.crashes += 1;
        let happened = self.payer.happened.clone();
        let mut payer = self.replayed();
        assert_eq!(payer.happened, happened, "events are the same live and on replay");
        // On replay nobody is there to release anything.
        payer.orders.clear();
        payer.now = Millis(1_000_000);
        self.payer = payer;
        self.out.retain(|out| out.stage != Stage::Proposed);
        let owed: Vec<(ChannelId, Fact)> = self
            .out
            .iter()
            .filter(|out| !self.released.contains(&(out.channel_id, out.htlc)))
            .filter_map(|out| Some((out.channel_id, out.outcome.clone()?)))
            .collect();
        for (channel_id, fact) in owed {
            self.payer.fact(channel_id, fact);
        }
        let mut out = Vec::new();
        self.payer.sending.sweep(&mut out);
        self.payer.orders.extend(out);
    }

    fn wait(&mut self) {
        self.payer.now = Millis(self.payer.now.0 + 2_000);
        self.rested += self.payer.sending.resting.len();
        self.payer.with(|sending, world, out| sending.retry(world, true, out));
    }

    fn check(&self) {
        let live = || self.out.iter().filter(|out| out.stage != Stage::Resolved && !out.is_fulfilled);
        let (sent, brought): (u64, u64) = (live().map(|out| out.amount).sum(), live().map(|out| out.brings).sum());
        assert!(brought <= AMOUNT, "more is out than is to arrive: {brought}");
        assert!(sent - brought <= FEE_LIMIT, "more is paid than was approved: {}", sent - brought);
    }

    fn run(&mut self) {
        let most = 20 + self.numbers.below(200);
        for step in 0.. {
            assert!(step < 20_000, "it does not end");
            let Sending { waiting, resting, .. } = &self.payer.sending;
            let is_end = self.payer.orders.is_empty()
                && (waiting.is_empty() && resting.is_empty())
                && self.out.iter().all(|out| out.stage == Stage::Resolved);
            if is_end {
                break;
            }
            match self.numbers.below(12) {
                0 if step < most && self.may_crash => self.crash(),
                1 => self.wait(),
                2..6 => self.change_htlc(),
                _ if !self.payer.orders.is_empty() => self.do_order(),
                _ => self.change_htlc(),
            }
            self.check();
        }
    }

    fn verdict(&self) -> (bool, bool) {
        assert_eq!(self.payer.sending.len(), 0, "it is decided: {:?}", self.payer.happened);
        let count = |is: fn(&Happened) -> bool| self.payer.happened.iter().filter(|what| is(what)).count();
        let paid = count(|what| matches!(what, Happened::PaymentSucceeded { .. }));
        let failed = count(|what| matches!(what, Happened::PaymentFailed { .. }));
        let started = count(|what| matches!(what, Happened::PaymentStarted(_)));
        assert_eq!(paid + failed, started, "paid xor failed");
        assert_eq!(paid == 1, self.is_claimed, "paid if and only if the payee has taken it");
        for Out { channel_id, htlc, .. } in &self.out {
            assert!(self.released.contains(&(*channel_id, *htlc)), "an outcome is kept for ever");
        }
        if let Some(Happened::PaymentSucceeded { fee, .. }) =
            self.payer.happened.iter().find(|what| matches!(what, Happened::PaymentSucceeded { .. }))
        {
            let all = self.out.iter().filter(|out| out.is_fulfilled);
            let paid: u64 = all.map(|out| out.amount - out.brings).sum();
            assert_eq!(fee.0, paid, "the fee is what was paid");
            assert!(fee.0 <= FEE_LIMIT);
        }
        let replayed = self.replayed();
        assert_eq!(replayed.happened, self.payer.happened);
        assert_eq!(replayed.sending.len(), 0);
        (paid == 1, failed == 1)
    }
}

#[test]
fn paid_xor_failed_never_more_than_approved_and_nothing_left_behind() {
    let (mut paid, mut failed, mut crashes, mut in_parts, mut rested) = (0, 0, 0, 0, 0);
    for seed in 1..=SEEDS {
        let mut story = Story::new(seed);
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            story.run();
            story.verdict()
        }));
        let (is_paid, is_failed) = told.unwrap_or_else(|_| panic!("seed {seed}"));
        paid += usize::from(is_paid);
        failed += usize::from(is_failed);
        crashes += story.crashes;
        rested += usize::from(story.rested > 0);
        in_parts += usize::from(story.out.iter().filter(|out| out.channel_id == C || out.is_fulfilled).count() > 1);
    }
    let least = SEEDS as usize / 20;
    assert!(
        [paid, failed, crashes, in_parts].into_iter().all(|count| count > least) && rested > 0,
        "{paid} {failed} {crashes} {in_parts} {rested}"
    );
}
