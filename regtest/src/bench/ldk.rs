//! The same load on two ldk-nodes: what the other implementation reaches on this machine, now.
//!
//! Their channels hold less (no more than 16,777,215 sat without a setting that ldk-node does not have) and take 50
//! HTLCs at once, so a turn of theirs is shorter than ours and never asks for more at once than they take.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::Amount;
use serde::Serialize;
use tokio::task::JoinSet;

use super::payments::{Arguments, Latency, percentiles};
use super::process::{cpu_us, rss_mib_peak};
use crate::bitcoind::{self, Bitcoind};
use crate::ldk::protocol::{Direction, Event, LogLevel, PaymentStatus, Store};
use crate::ldk::{LdkNode, Options};
use crate::network::{Error, SOON, wait_for};

/// The largest channel that ldk-node takes from a peer.
const CAPACITY_SAT_MAX: u64 = 16_777_215;
/// What a channel keeps for reserves, anchors and its commitment's fee, at least.
const KEPT_SAT_MIN: u64 = 100_000;
/// HTLCs that LDK takes at once on a channel.
pub(super) const OUTSTANDING_PER_CHANNEL: usize = 50;
/// Payments of one turn, at most: at a hundred a second a turn should not take minutes.
const TURN_MAX: usize = 2_000;
/// Without a payment for so long, the benchmark has failed.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Nothing is asked for so long after LDK had no room for a payment: it takes about that to take HTLCs out.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// What two ldk-nodes came to.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// `ldk`.
    #[serde(rename = "impl")]
    pub implementation: &'static str,
    /// `defaults` or `best`.
    pub setting: &'static str,
    /// Where they keep their data.
    pub store: Store,
    /// Payments outstanding at once: as asked for, or as many as they took in the end.
    pub outstanding: usize,
    /// Payments in all.
    pub payments: usize,
    /// Complete per second: the median of the turns.
    pub payments_per_s: f64,
    /// Every turn.
    pub turns_per_s: Vec<f64>,
    /// From the request to the event.
    pub latency_ms: Latency,
    /// Both processes.
    pub cpu_us_per_payment: f64,
    /// The larger of the two processes.
    pub rss_mib_peak: u64,
    /// Payments that LDK failed and that were asked for again.
    pub retried: usize,
}

/// Two ldk-nodes with channels, and what their turns have come to.
pub(super) struct Pair {
    // Before their bitcoind and their folder.
    payer: Arc<LdkNode>,
    payee: LdkNode,
    bitcoind: Bitcoind,
    _folder: tempfile::TempDir,
    setting: &'static str,
    store: Store,
    outstanding: usize,
    per_turn: usize,
    amount_msat: u64,
    turns_per_s: Vec<f64>,
    latencies: Vec<Duration>,
    cpu_us: u64,
    retried: usize,
}

impl Pair {
    /// As ldk-node comes: SQLite, a debug log; and the load's own number outstanding, as far as they take it.
    pub(super) async fn defaults(arguments: Arguments, turns: usize) -> Result<Self, Error> {
        let options = Options::default();
        Self::start("defaults", options, arguments, turns).await
    }

    /// Their best: a file per datum, and no log but of errors.
    pub(super) async fn best(arguments: Arguments, turns: usize) -> Result<Self, Error> {
        let options = Options { store: Store::Fs, log_level: LogLevel::Error, ..Options::default() };
        Self::start("best", options, arguments, turns).await
    }

    async fn start(setting: &'static str, options: Options, arguments: Arguments, turns: usize) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-bench-ldk-")
            .tempdir()
            .map_err(|source| Error::io("make a folder in", &std::env::temp_dir(), source))?;
        let bitcoind = tokio::task::block_in_place(|| Bitcoind::start(bitcoind::Options::default()))?;
        tokio::task::block_in_place(|| bitcoind.mine_to_wallet(110))?;
        let mut payer = LdkNode::new("payer", folder.path(), &bitcoind, options);
        let mut payee = LdkNode::new("payee", folder.path(), &bitcoind, options);
        payer.start().await?;
        payee.start().await?;
        let channels = arguments.channels.max(1);
        let (per_turn, capacity) = sizes(arguments, turns)?;
        let mut pair = Self {
            payer: Arc::new(payer),
            payee,
            bitcoind,
            _folder: folder,
            setting,
            store: options.store,
            outstanding: arguments.outstanding.min(OUTSTANDING_PER_CHANNEL * channels as usize),
            per_turn,
            amount_msat: arguments.amount * 1000,
            turns_per_s: Vec::new(),
            latencies: Vec::new(),
            cpu_us: 0,
            retried: 0,
        };
        pair.open(channels, capacity).await?;
        Ok(pair)
    }

    async fn mine(&self, blocks: u32) -> Result<(), Error> {
        tokio::task::block_in_place(|| self.bitcoind.mine_to_wallet(blocks))?;
        let height = tokio::task::block_in_place(|| self.bitcoind.height())?;
        self.payer.sync_to(height).await?;
        self.payee.sync_to(height).await
    }

    async fn open(&mut self, channels: u32, capacity_sat: u64) -> Result<(), Error> {
        for _ in 0..channels {
            // The reserve for anchors and the fee come on top.
            for (node, sat) in [(&*self.payer, capacity_sat + 100_000), (&self.payee, 100_000)] {
                let address = node.new_address().await?;
                tokio::task::block_in_place(|| self.bitcoind.send_to(&address, Amount::from_sat(sat)))?;
            }
        }
        self.mine(1).await?;
        let address = self.payee.lightning_address()?;
        for count in 1..=channels as usize {
            self.payer.open_channel(self.payee.node_id(), &address, capacity_sat, 0).await?;
            wait_for("a funding transaction", SOON, async || {
                let has = tokio::task::block_in_place(|| self.bitcoind.mempool())?.len();
                Ok(if has > 0 { Ok(()) } else { Err(format!("there is none; {:?}", self.payee.complaints())) })
            })
            .await?;
            self.mine(6).await?;
            wait_for("ldk's channels usable", SOON, async || {
                let usable = self.payer.channels().await?.iter().filter(|channel| channel.is_usable).count();
                Ok(if usable == count { Ok(()) } else { Err(format!("{usable} are")) })
            })
            .await?;
        }
        Ok(())
    }

    /// One turn of payments.
    pub(super) async fn turn(&mut self) -> Result<(), Error> {
        let mut waiting = VecDeque::new();
        for _ in 0..self.per_turn {
            waiting.push_back(self.payee.receive(Some(self.amount_msat), "bench").await?);
        }
        let pids: Vec<u32> = [self.payer.pid(), self.payee.pid()].into_iter().flatten().collect();
        let cpu = || pids.iter().map(|pid| cpu_us(*pid)).sum::<u64>();
        let (cpu_before, begun) = (cpu(), Instant::now());
        let turn = Turn::new(self.payer.clone(), waiting, self.outstanding);
        let Ended { latencies, retried, limit } = turn.run().await?;
        self.turns_per_s.push(latencies.len() as f64 / begun.elapsed().as_secs_f64());
        self.cpu_us += cpu() - cpu_before;
        self.latencies.extend(latencies);
        self.outstanding = limit;
        self.retried += retried;
        Ok(())
    }

    /// What the turns came to, after a look at the payee's books.
    pub(super) async fn finish(mut self) -> Result<Peer, Error> {
        let paid = self.turns_per_s.len() * self.per_turn;
        wait_for("the payee's books", SOON, async || {
            let payments = self.payee.payments().await?;
            let is_paid = |payment: &&crate::ldk::protocol::Payment| {
                payment.status == PaymentStatus::Succeeded && payment.direction == Direction::Inbound
            };
            let sum: u64 = payments.iter().filter(is_paid).filter_map(|payment| payment.amount_msat).sum();
            let wanted = paid as u64 * self.amount_msat;
            Ok(if sum == wanted { Ok(()) } else { Err(format!("they say {sum} msat, paid were {wanted}")) })
        })
        .await?;
        let pids = [self.payer.pid(), self.payee.pid()];
        Ok(Peer {
            implementation: "ldk",
            setting: self.setting,
            store: self.store,
            outstanding: self.outstanding,
            payments: paid,
            payments_per_s: median(&self.turns_per_s),
            cpu_us_per_payment: self.cpu_us as f64 / paid.max(1) as f64,
            latency_ms: percentiles(&mut self.latencies),
            rss_mib_peak: pids.into_iter().flatten().map(rss_mib_peak).max().unwrap_or(0),
            retried: self.retried,
            turns_per_s: self.turns_per_s,
        })
    }
}

/// The middle one; of two, the lower.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// Payments of a turn, and the capacity of a channel, such that all turns fit.
fn sizes(arguments: Arguments, turns: usize) -> Result<(usize, u64), Error> {
    let (channels, turns) = (u64::from(arguments.channels.max(1)), turns.max(1) as u64);
    // LDK does not spread payments evenly: a third of each channel stays free for that.
    let usable_sat = (CAPACITY_SAT_MAX - KEPT_SAT_MIN) * 2 / 3 * channels;
    let fitting = usable_sat / arguments.amount.max(1) / turns;
    let per_turn = fitting.min(TURN_MAX as u64).min((arguments.payments as u64).div_ceil(turns));
    if per_turn == 0 {
        let amount = arguments.amount;
        return Err(Error::Wrong(format!(
            "{amount} sat is too much for a channel of ldk-node's, {CAPACITY_SAT_MAX} sat"
        )));
    }
    let needed_sat = per_turn * turns * arguments.amount / channels * 3 / 2 + KEPT_SAT_MIN;
    Ok((per_turn as usize, needed_sat.clamp(1_000_000, CAPACITY_SAT_MAX)))
}

/// Payments under way.
struct Turn {
    payer: Arc<LdkNode>,
    waiting: VecDeque<String>,
    limit: usize,
    /// The end of the last pause.
    resumes: Option<Instant>,
    asking: JoinSet<(String, Instant, Result<String, Error>)>,
    begun: HashMap<String, Instant>,
    invoices: HashMap<String, String>,
    done: HashMap<String, Instant>,
    failed_early: HashSet<String>,
    outstanding: usize,
    retried: usize,
    next_event: usize,
}

/// What a turn came to.
struct Ended {
    /// How long each payment took.
    latencies: Vec<Duration>,
    /// How often one was asked for again.
    retried: usize,
    /// How many were outstanding at once in the end.
    limit: usize,
}

impl Turn {
    fn new(payer: Arc<LdkNode>, waiting: VecDeque<String>, limit: usize) -> Self {
        let next_event = payer.events().len();
        Self {
            payer,
            waiting,
            limit,
            resumes: None,
            asking: JoinSet::new(),
            begun: HashMap::new(),
            invoices: HashMap::new(),
            done: HashMap::new(),
            failed_early: HashSet::new(),
            outstanding: 0,
            retried: 0,
            next_event,
        }
    }

    /// Pays everything.
    async fn run(mut self) -> Result<Ended, Error> {
        let total = self.waiting.len();
        let payer = self.payer.clone();
        let mut last_progress = Instant::now();
        while self.done.len() < total || self.begun.len() < total {
            self.ask();
            let (number, idle) = (self.next_event, self.pause().unwrap_or(STALL_LIMIT));
            tokio::select! {
                Some(asked) = self.asking.join_next() => {
                    self.asked(asked.map_err(|error| Error::Wrong(error.to_string()))?);
                }
                event = payer.event(number) => {
                    let (at, event) = event.ok_or_else(|| Error::Wrong("the payer's ldk-node ended".to_owned()))?;
                    self.next_event += 1;
                    if self.happened(at, event) {
                        last_progress = Instant::now();
                    }
                }
                () = tokio::time::sleep(idle) => {}
            }
            if last_progress.elapsed() >= STALL_LIMIT {
                let (done, complaints) = (self.done.len(), payer.complaints());
                let last = complaints.last().cloned().unwrap_or_default();
                return Err(Error::Wrong(format!("ldk-node stops at {done} of {total} payments: {last}")));
            }
        }
        let took = |(id, at): (&String, &Instant)| at.saturating_duration_since(self.begun[id]);
        Ok(Ended { latencies: self.done.iter().map(took).collect(), retried: self.retried, limit: self.limit })
    }

    /// How long nothing is to be asked for.
    fn pause(&self) -> Option<Duration> {
        let rest = self.resumes?.saturating_duration_since(Instant::now());
        (!rest.is_zero()).then_some(rest)
    }

    fn ask(&mut self) {
        while self.outstanding < self.limit && self.pause().is_none() {
            let Some(invoice) = self.waiting.pop_front() else { return };
            self.outstanding += 1;
            let payer = self.payer.clone();
            let begun = Instant::now();
            self.asking.spawn(async move {
                let answer = payer.pay(&invoice, None).await;
                (invoice, begun, answer)
            });
        }
    }

    fn asked(&mut self, (invoice, begun, answer): (String, Instant, Result<String, Error>)) {
        if let Ok(id) = answer {
            self.begun.entry(id.clone()).or_insert(begun);
            if self.failed_early.remove(&id) {
                self.again(invoice);
            } else {
                self.invoices.insert(id, invoice);
            }
        } else {
            self.again(invoice);
        }
    }

    /// There was no room in the channel: a payment is complete before its HTLC has left. Every try in vain costs them
    /// work, so there is a pause, and one less is outstanding from now on, until they refuse none.
    fn again(&mut self, invoice: String) {
        if self.pause().is_none() {
            self.resumes = Some(Instant::now() + TRY_AGAIN);
            self.limit = self.limit.saturating_sub(1).max(1);
        }
        self.outstanding = self.outstanding.saturating_sub(1);
        self.retried += 1;
        self.waiting.push_back(invoice);
    }

    /// Whether a payment is complete with this.
    fn happened(&mut self, at: Instant, event: Event) -> bool {
        match event {
            Event::PaymentSuccessful { payment_id, .. } => {
                self.outstanding = self.outstanding.saturating_sub(1);
                self.done.insert(payment_id, at);
                true
            }
            Event::PaymentFailed { payment_id, .. } => {
                match self.invoices.remove(&payment_id) {
                    Some(invoice) => self.again(invoice),
                    // The event overtook the answer.
                    None => drop(self.failed_early.insert(payment_id)),
                }
                false
            }
            Event::PaymentReceived { .. }
            | Event::PaymentHeld { .. }
            | Event::ChannelPending { .. }
            | Event::ChannelReady { .. }
            | Event::ChannelClosed { .. }
            | Event::Panicked { .. }
            | Event::Other { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn arguments(channels: u32, payments: usize, amount: u64) -> Arguments {
        Arguments { channels, outstanding: 483, payments, amount, implementation: None }
    }

    #[test]
    fn all_turns_fit_into_the_channels() {
        for (channels, payments, amount) in
            [(1, 20_000, 10_000), (10, 20_000, 10_000), (1, 30, 1_000), (3, 9, 3_000_000)]
        {
            let (per_turn, capacity) = sizes(arguments(channels, payments, amount), 3).unwrap();
            assert!(per_turn > 0 && per_turn <= TURN_MAX);
            assert!(capacity <= CAPACITY_SAT_MAX);
            let paid = per_turn as u64 * 3 * amount;
            assert!(paid <= (capacity - KEPT_SAT_MIN) * u64::from(channels), "{paid} over {channels} of {capacity}");
        }
    }

    #[test]
    fn an_amount_larger_than_their_channels_is_refused() {
        assert!(sizes(arguments(1, 10, 12_000_000), 1).is_err());
    }

    #[test]
    fn median_of_an_even_number_is_the_lower_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
    }
}
