//! Payments between random nodes, so many a second, with a live count of what comes of them.
//!
//! Nodes may be killed and started while it runs. Payments are drawn between those that run at that moment, also such as did
//! not when it began; what a node was asked for when it went away counts as failed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Stay;
use super::payer::{Answer, Ask, Reach, invoice, payer};
use super::status::grouped;
use crate::bench::payments::{Latency, percentiles};
use crate::mesh::Member;
use crate::network::Error;
use crate::random::Random;
use crate::report::Report;

/// Payments without an answer; what would be more is not asked for, and counted.
const OUTSTANDING_MAX: u64 = 2_000;
/// Payments that wait for a payer's stream.
const QUEUE: usize = 256;
/// How long the last payments are waited for.
const LAST_WAIT: Duration = Duration::from_secs(60);
/// How often the count is shown, and where nobody sees it change, said.
const SHOW_AGAIN: Duration = Duration::from_millis(250);
const SAY_AGAIN: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Payments a second.
    pub rate: f64,
    /// For how long; without an end, until it is interrupted.
    pub lasts: Option<Duration>,
    /// Of each payment.
    pub amount_sat: RangeInclusive<u64>,
    /// What pairs and amounts are drawn from.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// Every payment has an outcome, and one at least was paid.
    pub ok: bool,
    /// What pairs and amounts were drawn from.
    pub seed: u64,
    /// How long it took, the last answers included.
    pub seconds: f64,
    /// Payments that were asked for.
    pub asked: u64,
    /// Of these, paid.
    pub paid: u64,
    /// Failed, or refused.
    pub failed: u64,
    /// Without an answer when it ended.
    pub unanswered: u64,
    /// Not asked for, because too many were under way.
    pub held_back: u64,
    /// Not asked for, because fewer than two nodes ran.
    pub without_nodes: u64,
    /// Paid per second.
    pub paid_per_s: f64,
    /// Of the paid ones, from the request to the answer.
    pub latency_ms: Latency,
    /// What arrived.
    pub amount_msat: u64,
    /// What routing cost.
    pub fees_msat: u64,
    /// How often payments failed for which reason.
    pub failures: BTreeMap<String, u64>,
}

impl Stay {
    /// Pays until the time is over.
    ///
    /// # Errors
    /// If fewer than two nodes run.
    pub async fn load(self, order: Order, report: &mut Report) -> Result<Outcomes, Error> {
        let mesh = self.mesh().await?;
        let does_answer = |node: &usize| match mesh.member(*node) {
            Member::Ours(daemon) => daemon.client().is_ok(),
            Member::Ldk(ldk) => ldk.is_attached(),
        };
        let nodes: Vec<usize> = mesh.all().filter(does_answer).collect();
        if nodes.len() < 2 {
            return Err(Error::Wrong(format!("{} of the nodes run, and it takes two to pay: `up`", nodes.len())));
        }
        drop(mesh);
        let reach = Arc::new(Reach::new(self, &nodes));
        report.begin("pay");
        let outcomes = Load::start(reach, order).run(report).await;
        report.end(&Ok::<String, String>(outcomes.line()));
        Ok(outcomes)
    }
}

struct Load {
    reach: Arc<Reach>,
    /// Who looks after the nodes, as long as it lasts.
    _lookers: JoinSet<()>,
    order: Order,
    random: Random,
    /// Of each node.
    queues: Vec<mpsc::Sender<Ask>>,
    to: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
    took: Vec<Duration>,
    outcomes: Outcomes,
}

impl Load {
    fn start(reach: Arc<Reach>, order: Order) -> Self {
        let (to, answers) = mpsc::unbounded_channel();
        let (mut queues, mut lookers) = (Vec::new(), JoinSet::new());
        for node in 0..reach.count() {
            let (queue, asks) = mpsc::channel(QUEUE);
            queues.push(queue);
            tokio::spawn(payer(reach.clone(), node, asks, to.clone()));
            lookers.spawn(reach.clone().look_after(node));
        }
        let outcomes = Outcomes {
            ok: false,
            seed: order.seed,
            seconds: 0.0,
            asked: 0,
            paid: 0,
            failed: 0,
            unanswered: 0,
            held_back: 0,
            without_nodes: 0,
            paid_per_s: 0.0,
            latency_ms: Latency { p50: 0.0, p95: 0.0, p99: 0.0 },
            amount_msat: 0,
            fees_msat: 0,
            failures: BTreeMap::new(),
        };
        let (random, took) = (Random(order.seed), Vec::new());
        Self { reach, _lookers: lookers, order, random, queues, to, answers, took, outcomes }
    }

    async fn run(mut self, report: &Report) -> Outcomes {
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / self.order.rate));
        let mut shows = tokio::time::interval(SHOW_AGAIN);
        let mut said = begun;
        let end = tokio::time::sleep(self.order.lasts.unwrap_or(Duration::MAX));
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(end, interrupted);
        loop {
            tokio::select! {
                () = &mut end => break,
                _ = &mut interrupted => break,
                _ = ticks.tick() => self.ask(),
                Some(answer) = self.answers.recv() => self.count(answer),
                _ = shows.tick() => {
                    self.outcomes.seconds = begun.elapsed().as_secs_f64();
                    let line = self.outcomes.line();
                    report.progress(&line);
                    if !report.is_watched() && said.elapsed() >= SAY_AGAIN {
                        said = Instant::now();
                        eprintln!("{line}");
                    }
                }
            }
        }
        let until = tokio::time::Instant::now() + LAST_WAIT;
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        while self.outcomes.outstanding() > 0 {
            tokio::select! {
                Some(answer) = self.answers.recv() => self.count(answer),
                _ = &mut interrupted => break,
                () = tokio::time::sleep_until(until) => break,
            }
        }
        let outcomes = &mut self.outcomes;
        outcomes.seconds = begun.elapsed().as_secs_f64();
        outcomes.unanswered = outcomes.outstanding();
        outcomes.paid_per_s = outcomes.paid as f64 / outcomes.seconds;
        outcomes.latency_ms = percentiles(&mut self.took);
        outcomes.ok = outcomes.unanswered == 0 && outcomes.paid > 0;
        self.outcomes
    }

    /// One payment more, between two of the nodes that run now.
    fn ask(&mut self) {
        let nodes = self.reach.answering();
        if nodes.len() < 2 {
            self.outcomes.without_nodes += 1;
            return;
        }
        if self.outcomes.outstanding() >= OUTSTANDING_MAX {
            self.outcomes.held_back += 1;
            return;
        }
        self.outcomes.asked += 1;
        let count = nodes.len() as u64;
        let from = self.random.below(count);
        let to = (from + 1 + self.random.below(count - 1)) % count;
        let [from, to] = [from, to].map(|index| nodes[usize::try_from(index).expect("it is below a usize")]);
        let (least, most) = (*self.order.amount_sat.start(), *self.order.amount_sat.end());
        let amount_msat = (least + self.random.below(most - least + 1)) * 1000;
        let (reach, queue, answers) = (self.reach.clone(), self.queues[from].clone(), self.to.clone());
        tokio::spawn(async move {
            let asked = match invoice(&reach, to, amount_msat).await {
                Ok(bolt11) => {
                    queue.send(Ask { bolt11, amount_msat }).await.map_err(|_| "the load has ended".to_owned())
                }
                Err(why) => Err(why),
            };
            if let Err(why) = asked {
                // Nobody counts any more: it has ended.
                let _ = answers.send(Err(why));
            }
        });
    }

    fn count(&mut self, answer: Answer) {
        match answer {
            Ok(paid) => {
                self.outcomes.paid += 1;
                self.outcomes.amount_msat += paid.amount_msat;
                self.outcomes.fees_msat += paid.fee_msat;
                self.took.push(paid.took);
            }
            Err(why) => {
                self.outcomes.failed += 1;
                *self.outcomes.failures.entry(why).or_default() += 1;
            }
        }
    }
}

impl Outcomes {
    const fn outstanding(&self) -> u64 {
        self.asked - self.paid - self.failed
    }

    fn line(&self) -> String {
        let rate = self.paid as f64 / self.seconds.max(0.001);
        let under_way = self.outstanding();
        let mut line =
            format!("{} paid ({rate:.1} per second), {} failed, {under_way} under way", self.paid, self.failed);
        if self.without_nodes > 0 {
            line += &format!(", {} not asked for: fewer than two nodes ran", self.without_nodes);
        }
        line
    }

    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let Latency { p50, p99, .. } = self.latency_ms;
        let mut text = format!(
            "{} payments in {:.1} s (seed {}): {} paid, {} failed, {} without an answer\n\
             {:.1} paid per second, half of them within {p50:.1} ms, 99 of 100 within {p99:.1} ms\n\
             {} sat arrived, and routing cost {} msat",
            self.asked,
            self.seconds,
            self.seed,
            self.paid,
            self.failed,
            self.unanswered,
            self.paid_per_s,
            grouped(self.amount_msat / 1000),
            grouped(self.fees_msat),
        );
        if self.held_back > 0 {
            text += &format!("\n{} more were not asked for: too many were under way", self.held_back);
        }
        if self.without_nodes > 0 {
            text += &format!("\n{} more were not asked for: fewer than two nodes ran", self.without_nodes);
        }
        for (why, count) in &self.failures {
            text += &format!("\n  {count} failed: {why}");
        }
        text
    }
}
