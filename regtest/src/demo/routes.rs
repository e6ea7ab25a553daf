//! The demo's second act: five daemons in a line that ends in a diamond, payments over three hops and in several parts, a
//! node that dies in the middle of forwards, and at the end every millisatoshi accounted for.
//!
//! ```text
//!                ┌─ carol ─┐
//! alice ── bob ──┤         ├── erin
//!                └─ dave ──┘
//! ```

use std::collections::BTreeMap;

use millrace_rpc::v1::{Attempt, ListForwardsRequest, PayRequest, Payment, PaymentStatus, pay_progress};
use serde_json::json;

use super::Figures;
use crate::mesh::Mesh;
use crate::network::{Error, random_key};
use crate::pay_stream::{Outcome, PayStream};
use crate::plan::Plan;
use crate::report::Report;

const ALICE: usize = 0;
const BOB: usize = 1;
const ERIN: usize = 4;
/// Those in the middle.
const FORWARDERS: [usize; 3] = [BOB, 2, 3];
/// What alice and bob have between them: enough to fill both ways behind it.
const WIDE_SAT: u64 = 16_000_000;
const AMOUNT_MSAT: u64 = 250_000_000;
/// More than one of the two ways can carry: bob lets one peer hold half of what he has in a channel.
const LARGE_MSAT: u64 = 4_000_000_000;
/// Payments under way when bob dies, and what each carries.
const UNDER_FIRE: u64 = 60;
const EACH_MSAT: u64 = 1_500_000;

/// Five nodes, and what they have paid each other.
struct Act {
    mesh: Mesh,
    /// What each had at first.
    before_msat: Vec<u64>,
    /// What has arrived at erin.
    arrived_msat: u64,
    figures: Figures,
}

/// Plays it. Its figures are returned, whatever became of it.
pub(super) async fn play(report: &mut Report) -> Figures {
    report.begin("start five daemons: a line and a diamond");
    let started = Act::start().await;
    report.end(&started.as_ref().map(|act| act.greeting()).map_err(ToString::to_string));
    let Ok(mut act) = started else { return BTreeMap::new() };
    act.story(report).await;
    act.figures
}

impl Act {
    async fn start() -> Result<Self, Error> {
        let mut plan = Plan::nodes(5).with_channels(&[(ALICE, BOB), (BOB, 2), (BOB, 3), (2, ERIN), (3, ERIN)]);
        plan.channels[0].capacity_sat = WIDE_SAT;
        plan.channels[0].push_sat = WIDE_SAT / 2;
        let mesh = Mesh::start(plan).await?;
        mesh.wait_for_graphs().await?;
        let before_msat = mesh.sums_msat().await?;
        Ok(Self { mesh, before_msat, arrived_msat: 0, figures: BTreeMap::new() })
    }

    fn greeting(&self) -> String {
        format!("{} announced channels, known to all five", self.mesh.plan().channels.len())
    }

    async fn story(&mut self, report: &mut Report) {
        step!(report, "pay over three hops", self.pay_over_three_hops());
        step!(report, "pay in several parts", self.pay_in_parts());
        step!(report, "kill -9 bob in the middle of forwards", self.forward_under_fire());
        step!(report, "account for every millisatoshi", self.account());
    }

    async fn pay_over_three_hops(&mut self) -> Result<String, Error> {
        let payment = self.pay(AMOUNT_MSAT).await?;
        let [attempt] = &succeeded(&payment)[..] else {
            return Err(Error::Wrong(format!("it took {} attempts", payment.attempts.len())));
        };
        if attempt.hops.len() != 3 {
            return Err(Error::Wrong(format!("it went over {} hops", attempt.hops.len())));
        }
        Ok(self.way(attempt))
    }

    async fn pay_in_parts(&mut self) -> Result<String, Error> {
        let payment = self.pay(LARGE_MSAT).await?;
        let parts = succeeded(&payment);
        if parts.len() < 2 {
            return Err(Error::Wrong(format!("it went in {} part", parts.len())));
        }
        self.figures.insert("parts", json!(parts.len()));
        let ways: Vec<String> = parts.iter().map(|part| self.way(part)).collect();
        Ok(ways.join("; "))
    }

    async fn forward_under_fire(&mut self) -> Result<String, Error> {
        let mut stream = PayStream::open(&self.mesh.network.nodes[ALICE]).await?;
        for number in 0..UNDER_FIRE {
            let invoice = self.mesh.invoice(ERIN, EACH_MSAT).await?;
            stream.pay(number, invoice, random_key()).await?;
        }
        // Some are through, others on their way.
        let mut paid = 0;
        for _ in 0..5 {
            paid += u64::from(matches!(stream.next().await?, Some((_, Outcome::Paid, _))));
        }
        let in_flight = self.mesh.sides(BOB).await?.iter().map(|side| side.htlcs).sum::<u32>();
        self.mesh.network.nodes[BOB].kill9()?;
        self.mesh.network.nodes[BOB].start().await?;
        for _ in 5..UNDER_FIRE {
            match stream.next().await? {
                Some((_, Outcome::Paid, _)) => paid += 1,
                Some((_, Outcome::Failed(_), _)) => {}
                other => return Err(Error::Wrong(format!("a payment came to {other:?}"))),
            }
        }
        self.mesh.wait_until_usable().await?;
        self.mesh.wait_until_at_rest().await?;
        self.arrived_msat += paid * EACH_MSAT;
        if in_flight == 0 {
            return Err(Error::Wrong("nothing was in flight when it died: it was no kill in the middle".to_owned()));
        }
        self.figures.insert("forwards_in_flight_at_kill", json!(in_flight));
        Ok(format!("{in_flight} HTLCs in flight when it died; {paid} paid, {} failed, none twice", UNDER_FIRE - paid))
    }

    /// Nothing has appeared or disappeared; each hop has exactly what it says it has earned, the payee exactly what arrived,
    /// and the payer has paid both.
    async fn account(&mut self) -> Result<String, Error> {
        self.mesh.check_conserved().await?;
        let mut moved = vec![(ERIN, signed(self.arrived_msat))];
        let (mut all_msat, mut told) = (0, Vec::new());
        for node in FORWARDERS {
            let mut client = self.mesh.network.nodes[node].client()?;
            let list = client.forwards.list(ListForwardsRequest::default()).await;
            let list = list.map_err(|status| self.mesh.network.nodes[node].call_failed(&status))?.into_inner();
            let fees_msat = list.totals.unwrap_or_default().fees_msat;
            moved.push((node, signed(fees_msat)));
            all_msat += fees_msat;
            told.push(format!("{} earned {} msat", self.name(node), fees_msat));
        }
        moved.push((ALICE, -signed(self.arrived_msat + all_msat)));
        self.mesh.check_moved(&self.before_msat, &moved).await?;
        self.figures.insert("routed_msat", json!(self.arrived_msat));
        self.figures.insert("routing_fees_msat", json!(all_msat));
        Ok(format!("{}; 0 msat missing", told.join(", ")))
    }

    /// A payment from alice to erin that must be paid.
    async fn pay(&mut self, amount_msat: u64) -> Result<Payment, Error> {
        let alice = &self.mesh.network.nodes[ALICE];
        let bolt11 = self.mesh.invoice(ERIN, amount_msat).await?;
        let request = PayRequest { idempotency_key: random_key(), bolt11, ..PayRequest::default() };
        let failed = |status: tonic::Status| alice.call_failed(&status);
        let mut progress = alice.client()?.payments.pay(request).await.map_err(failed)?.into_inner();
        while let Some(step) = progress.message().await.map_err(failed)? {
            let Some(pay_progress::Step::Outcome(payment)) = step.step else { continue };
            if payment.status() != PaymentStatus::Succeeded {
                return Err(Error::Wrong(format!("the payment failed: {:?}", payment.failure)));
            }
            self.arrived_msat += amount_msat;
            return Ok(payment);
        }
        Err(Error::Wrong("the payment has no outcome".to_owned()))
    }

    fn name(&self, node: usize) -> &str {
        &self.mesh.plan().nodes[node].name
    }

    /// A way in words, with what each hop keeps.
    fn way(&self, attempt: &Attempt) -> String {
        let mut words = format!("{} msat: {}", attempt.amount_msat, self.name(ALICE));
        for hop in &attempt.hops {
            let node = self.mesh.network.nodes.iter().find(|node| node.node_id() == hop.node_id);
            let name = node.map_or_else(|| hex::encode(&hop.node_id), |node| node.name.clone());
            let fee = if hop.fee_msat == 0 { String::new() } else { format!(" ({} msat)", hop.fee_msat) };
            words += &format!(" → {name}{fee}");
        }
        words
    }
}

fn succeeded(payment: &Payment) -> Vec<Attempt> {
    payment.attempts.iter().filter(|attempt| attempt.status() == PaymentStatus::Succeeded).cloned().collect()
}

fn signed(msat: u64) -> i64 {
    i64::try_from(msat).unwrap_or(i64::MAX)
}
