//! Kill -9 at random moments under payment load, and what is left afterwards: nothing lost, nothing doubled, no HTLC
//! stuck, no channel closed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitcoin::Amount;
use millrace_rpc::v1::ChannelState;
use serde::Serialize;

use crate::network::{Error, Network, random_key, wait_for};
use crate::pay_stream::{Outcome, PayStream, make_invoices};
use crate::random::Random;
use crate::report::Report;

/// Payments that are kept outstanding each way.
const OUTSTANDING: usize = 200;
/// The channel, in sat.
const CAPACITY_SAT: u64 = 100_000_000;
/// Payments take so long at most, restarts included.
const LIMIT: Duration = Duration::from_secs(120);
/// The least that must be in flight at the median kill, for the run to count.
const IN_FLIGHT_MEDIAN_MIN: u32 = 50;

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// Whether it counts, and everything is as it must be.
    pub ok: bool,
    /// Kills.
    pub cycles: u32,
    /// What the moments and the victims were drawn from.
    pub seed: u64,
    /// Payments with a known outcome.
    pub payments: u64,
    /// Of those, paid.
    pub paid: u64,
    /// HTLCs in flight at the median kill.
    pub in_flight_median: u32,
    /// What the balances lack, by the payers' and the payees' word, in msat: both must be 0.
    pub msat_lost: i128,
    /// HTLCs in flight when nothing is under way any more.
    pub stuck_htlcs: u32,
    /// Channels that are not open any more.
    pub channels_closed: u32,
    /// Payments that the payer calls paid and the payee does not, or the other way round.
    pub mismatched: u64,
}

/// A payment that was asked for.
#[derive(Clone)]
struct Order {
    bolt11: String,
    key: String,
    amount_msat: u64,
}

/// One direction's payments.
#[derive(Default)]
struct Load {
    /// Asked for, outcome unknown, by id.
    open: BTreeMap<u64, Order>,
    next_id: u64,
    spare: Vec<Order>,
    paid_msat: u64,
    paid: u64,
    failed: u64,
}

/// A run under way.
struct Crash {
    network: Network,
    random: Random,
    loads: [Load; 2],
    in_flight: Vec<u32>,
}

/// Runs `cycles` kills.
///
/// # Errors
/// If the network itself fails; what the kills broke is in the outcomes.
pub async fn run(cycles: u32, seed: u64, report: &mut Report) -> Result<Outcomes, Error> {
    report.begin("start two daemons with a channel");
    let started = Crash::start(seed).await;
    report.end(&started.as_ref().map(|_| String::new()).map_err(ToString::to_string));
    let mut crash = started?;
    report.begin("kill and restart under load");
    let mut result = Ok(());
    for cycle in 0..cycles {
        report.progress(&format!("{cycle} of {cycles}, {} paid", crash.loads[0].paid + crash.loads[1].paid));
        result = crash.cycle().await;
        if result.is_err() {
            break;
        }
    }
    report.end(&result.as_ref().map(|()| format!("{cycles} kills")).map_err(ToString::to_string));
    result?;
    report.begin("let every payment come to its end, and count");
    let outcomes = crash.finish(cycles, seed).await;
    report.end(&outcomes.as_ref().map(|o| format!("{} payments", o.payments)).map_err(ToString::to_string));
    outcomes
}

impl Crash {
    async fn start(seed: u64) -> Result<Self, Error> {
        let mut network = tokio::task::block_in_place(Network::start)?;
        for name in ["alice", "bob"] {
            let index = network.add(name);
            network.nodes[index].start().await?;
        }
        network.fund(0, Amount::from_sat(CAPACITY_SAT + 1_000_000)).await?;
        network.fund(1, Amount::from_sat(1_000_000)).await?;
        network.connect(0, 1).await?;
        network.open(0, 1, CAPACITY_SAT, CAPACITY_SAT / 2 * 1000).await?;
        Ok(Self { network, random: Random(seed), loads: [Load::default(), Load::default()], in_flight: Vec::new() })
    }

    /// Payments both ways for a random while, a kill, and the start again.
    async fn cycle(&mut self) -> Result<(), Error> {
        let lasts = Duration::from_millis(60 + self.random.below(400));
        self.prepare().await?;
        let mut streams = [self.stream(0).await?, self.stream(1).await?];
        let until = Instant::now() + lasts;
        while Instant::now() < until {
            for (from, stream) in streams.iter_mut().enumerate() {
                self.refill(from, stream).await?;
                let patience = Duration::from_millis(2);
                while let Ok(answer) = tokio::time::timeout(patience, stream.next()).await {
                    let Some((id, outcome, _)) = answer? else { break };
                    self.loads[from].settle(id, &outcome)?;
                    if Instant::now() >= until {
                        break;
                    }
                    self.refill(from, stream).await?;
                }
            }
        }
        let victim = self.random.below(2) as usize;
        let survivor = 1 - victim;
        let channels = self.network.channels(survivor).await?;
        self.in_flight.push(channels.iter().map(|channel| channel.offered_htlcs + channel.received_htlcs).sum());
        self.network.nodes[victim].kill9()?;
        drop(streams);
        self.network.nodes[victim].start().await?;
        let channel_id = channels.first().map(|channel| channel.channel_id.clone()).unwrap_or_default();
        for node in [survivor, victim] {
            self.network.wait_until_usable(node, &channel_id).await?;
        }
        Ok(())
    }

    /// Enough invoices for a cycle.
    async fn prepare(&mut self) -> Result<(), Error> {
        for from in 0..2 {
            let lacking = (4 * OUTSTANDING).saturating_sub(self.loads[from].spare.len());
            let amounts: Vec<u64> = (0..lacking).map(|_| 1_000_000 + self.random.below(1_000_000)).collect();
            let client = self.network.nodes[1 - from].client()?;
            let invoices = make_invoices(&client, &amounts, "crash").await?;
            let orders = invoices.into_iter().zip(amounts);
            let spare = orders.map(|(bolt11, amount_msat)| Order { bolt11, key: random_key(), amount_msat });
            self.loads[from].spare.extend(spare);
        }
        Ok(())
    }

    /// A stream on which everything without an outcome is asked for again, by its own key.
    async fn stream(&self, from: usize) -> Result<PayStream, Error> {
        let mut stream = PayStream::open(&self.network.nodes[from]).await?;
        for (id, order) in &self.loads[from].open {
            stream.pay(*id, order.bolt11.clone(), order.key.clone()).await?;
        }
        Ok(stream)
    }

    async fn refill(&mut self, from: usize, stream: &mut PayStream) -> Result<(), Error> {
        let load = &mut self.loads[from];
        while load.open.len() < OUTSTANDING {
            let Some(order) = load.spare.pop() else { return Ok(()) };
            let id = load.next_id;
            load.next_id += 1;
            load.open.insert(id, order.clone());
            stream.pay(id, order.bolt11, order.key).await?;
        }
        Ok(())
    }

    async fn finish(mut self, cycles: u32, seed: u64) -> Result<Outcomes, Error> {
        for from in 0..2 {
            let mut stream = self.stream(from).await?;
            while !self.loads[from].open.is_empty() {
                let answer = tokio::time::timeout(LIMIT, stream.next()).await;
                let left = self.loads[from].open.len();
                let answer = answer.map_err(|_| Error::Wrong(format!("{left} payments never end")))?;
                let Some((id, outcome, _)) = answer? else {
                    return Err(Error::Wrong("the payment stream ended early".to_owned()));
                };
                self.loads[from].settle(id, &outcome)?;
            }
        }
        let stuck_htlcs = self.stuck_htlcs().await?;
        let (msat_lost, channels_closed) = self.balances().await?;
        let mismatched = self.mismatched().await?;
        self.in_flight.sort_unstable();
        let in_flight_median = self.in_flight.get(self.in_flight.len() / 2).copied().unwrap_or(0);
        let payments = self.loads.iter().map(|load| load.paid + load.failed).sum();
        let paid = self.loads.iter().map(|load| load.paid).sum();
        let ok = in_flight_median >= IN_FLIGHT_MEDIAN_MIN
            && msat_lost == 0
            && stuck_htlcs == 0
            && channels_closed == 0
            && mismatched == 0
            // Most payments come through: a run that fails them all has shown nothing.
            && paid > payments / 2;
        for node in &mut self.network.nodes {
            node.stop().await?;
        }
        Ok(Outcomes {
            ok,
            cycles,
            seed,
            payments,
            paid,
            in_flight_median,
            msat_lost,
            stuck_htlcs,
            channels_closed,
            mismatched,
        })
    }

    /// HTLCs that are still there when every payment has its outcome.
    async fn stuck_htlcs(&self) -> Result<u32, Error> {
        let left = std::cell::Cell::new(0);
        let waited = wait_for("no HTLC in flight", Duration::from_secs(30), async || {
            let mut htlcs = 0;
            for node in 0..2 {
                let channels = self.network.channels(node).await?;
                htlcs += channels.iter().map(|channel| channel.offered_htlcs + channel.received_htlcs).sum::<u32>();
            }
            left.set(htlcs);
            Ok(if htlcs == 0 { Ok(()) } else { Err(format!("{htlcs} are")) })
        })
        .await;
        match waited {
            Ok(()) | Err(Error::Late { .. }) => Ok(left.get()),
            Err(error) => Err(error),
        }
    }

    /// What the balances differ from what the payers paid, and the channels that are closed.
    async fn balances(&self) -> Result<(i128, u32), Error> {
        let half = i128::from(CAPACITY_SAT / 2 * 1000);
        let net = i128::from(self.loads[0].paid_msat) - i128::from(self.loads[1].paid_msat);
        let mut lost = 0;
        let mut closed = 0;
        for (node, expected) in [(0, half - net), (1, half + net)] {
            let channels = self.network.channels(node).await?;
            if channels.len() != 1 {
                return Err(Error::Wrong(format!("there are {} channels, and there was one", channels.len())));
            }
            for channel in channels {
                closed += u32::from(channel.state() != ChannelState::Normal);
                lost += (expected - i128::from(channel.local_msat)).abs();
            }
        }
        Ok((lost, closed))
    }

    /// The payees' paid invoices, against the payers' paid payments.
    async fn mismatched(&self) -> Result<u64, Error> {
        let mut mismatched = 0;
        for payer in 0..2 {
            let (count, msat) = paid_invoices(&self.network, 1 - payer).await?;
            let load = &self.loads[payer];
            mismatched += load.paid.abs_diff(count) + u64::from(load.paid_msat != msat);
        }
        Ok(mismatched)
    }
}

/// How many invoices of a daemon are paid, and what they received, in msat.
///
/// # Errors
/// If a call fails.
pub async fn paid_invoices(network: &Network, node: usize) -> Result<(u64, u64), Error> {
    use millrace_rpc::v1::{InvoiceStatus, ListInvoicesRequest, Page};
    let (mut count, mut msat, mut cursor) = (0, 0, String::new());
    loop {
        let page = Some(Page { size: 1000, cursor });
        let request = ListInvoicesRequest { page, status: InvoiceStatus::Paid.into() };
        let answer = network.nodes[node].client()?.invoices.list(request).await;
        let answer = answer.map_err(|status| network.nodes[node].call_failed(&status))?.into_inner();
        count += answer.invoices.len() as u64;
        msat += answer.invoices.iter().filter_map(|invoice| invoice.received_msat).sum::<u64>();
        if answer.next_cursor.is_empty() {
            return Ok((count, msat));
        }
        cursor = answer.next_cursor;
    }
}

impl Load {
    fn settle(&mut self, id: u64, outcome: &Outcome) -> Result<(), Error> {
        let Some(order) = self.open.remove(&id) else { return Ok(()) };
        match outcome {
            Outcome::Paid => {
                self.paid += 1;
                self.paid_msat += order.amount_msat;
            }
            Outcome::Failed(_) => self.failed += 1,
            // The daemon was not ready for it, or its channel was away: it is asked for again.
            Outcome::Refused(_) => self.spare.push(order),
        }
        Ok(())
    }
}
