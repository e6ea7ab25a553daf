//! `bench payments`: BOLT 11 payments between two daemons, as many outstanding as asked for.

use std::time::{Duration, Instant};

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use super::floor;
use super::ldk::{self, Pair, Peer, median};
use super::process::{cpu_us, rss_mib_peak};
use super::unary::{self, Unary};
use crate::crash::paid_invoices;
use crate::network::{Error, Network, random_key};
use crate::pay_stream::{Outcome, PayStream, make_invoices};
use crate::report::Report;

/// What to run.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Arguments {
    /// Channels between the two daemons.
    #[arg(long, default_value_t = 1)]
    pub channels: u32,
    /// Payments outstanding at once.
    #[arg(long, default_value_t = 483)]
    pub outstanding: usize,
    /// Payments in all.
    #[arg(long, default_value_t = 20_000)]
    pub payments: usize,
    /// Of each payment, in sat.
    #[arg(long, default_value_t = 10_000)]
    pub amount: u64,
    /// Give the same load to another implementation too, taking turns.
    #[arg(long = "impl", value_name = "IMPLEMENTATION")]
    pub implementation: Option<Implementation>,
}

/// What ours is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Implementation {
    /// Two ldk-node processes.
    Ldk,
}

impl Arguments {
    /// A part of the load is enough to see what a call each costs.
    const fn payments_by_call(&self) -> usize {
        self.payments.div_ceil(10)
    }
}

/// Turns that each side has in a comparison: what else the machine does should not meet one side only.
const TURNS: usize = 3;

/// The daemon looks at its journal's counters for its metrics every two seconds.
const METRICS_LAG: Duration = Duration::from_millis(2500);

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// Whether the sums after a restart are what was paid.
    pub ok: bool,
    /// Channels.
    pub channels: u32,
    /// Outstanding at once.
    pub outstanding: usize,
    /// Payments in all.
    pub payments: usize,
    /// Of each, in sat.
    pub amount_sat: u64,
    /// Complete, preimage in hand and durable, per second.
    pub payments_per_s: f64,
    /// From the request to the answer.
    pub latency_ms: Latency,
    /// Both daemons.
    pub cpu_us_per_payment: f64,
    /// HTLC signatures made by both.
    pub htlc_signatures_per_payment: Option<f64>,
    /// Flushes of both journals.
    pub flushes_per_payment: Option<f64>,
    /// Bytes written to both journals.
    pub journal_bytes_per_payment: Option<f64>,
    /// The larger of the two daemons.
    pub rss_mib_peak: u64,
    /// What the cores could do if a payment were only its curve operations, measured now.
    pub floor_per_s: f64,
    /// How much of that it was.
    pub share_of_floor: f64,
    /// Of all CPU time used, the part of the program that asked for the payments.
    pub driver_cpu_share: f64,
    /// Some more payments, by a call each instead of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unary: Option<Unary>,
    /// Payments per second of each turn, in a comparison.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub turns_per_s: Vec<f64>,
    /// The other implementation, in the setting in which it was better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// And in the other setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_slower: Option<Peer>,
    /// Ours to the better of theirs, in payments per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Ours with no more outstanding than theirs take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_peers_outstanding: Option<Box<Outcomes>>,
}

/// Times, in ms.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Half were faster.
    pub p50: f64,
    /// 95 of 100 were faster.
    pub p95: f64,
    /// 99 of 100 were faster.
    pub p99: f64,
}

/// Counters of a daemon at one moment.
#[derive(Clone, Copy, Default)]
struct Counters {
    signatures: Option<f64>,
    flushes: Option<f64>,
    bytes: Option<f64>,
}

/// Runs it.
///
/// # Errors
/// If anything fails, a payment included.
pub async fn run(arguments: Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    report.begin("start two daemons and open channels");
    let network = start(arguments, &[]).await;
    report.end(&network.as_ref().map(|_| format!("{} channels", arguments.channels)).map_err(ToString::to_string));
    let mut network = network?;
    let measured = match arguments.implementation {
        None => alone(&network, arguments, report).await,
        Some(Implementation::Ldk) => in_turns(&network, arguments, report).await,
    };
    let mut outcomes = measured?;
    report.begin("kill both, start again, and compare the sums");
    let beside = outcomes.at_peers_outstanding.as_ref().map_or(0, |beside| beside.payments)
        + outcomes.unary.as_ref().map_or(0, |unary| unary.payments);
    let same = sums_after_restart(&mut network, arguments.amount, outcomes.payments + beside).await;
    report.end(&same.as_ref().map(|()| "the same".to_owned()).map_err(ToString::to_string));
    outcomes.ok = same.is_ok();
    if let Some(beside) = &mut outcomes.at_peers_outstanding {
        beside.ok = outcomes.ok;
    }
    for node in &mut network.nodes {
        node.stop().await?;
    }
    Ok(outcomes)
}

async fn invoices(network: &Network, arguments: Arguments) -> Result<Vec<String>, Error> {
    make_invoices(&network.nodes[1].client()?, &vec![arguments.amount * 1000; arguments.payments], "bench").await
}

/// The whole load at once.
async fn alone(network: &Network, arguments: Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    report.begin("make invoices");
    let invoices = invoices(network, arguments).await;
    report.end(&invoices.as_ref().map(|made| format!("{}", made.len())).map_err(ToString::to_string));
    let invoices = invoices?;
    report.begin("pay");
    let outcomes = measure(network, 0, arguments, invoices).await;
    report.end(&outcomes.as_ref().map(|o| format!("{:.0} per second", o.payments_per_s)).map_err(ToString::to_string));
    let mut outcomes = outcomes?;
    report.begin("pay by a call each");
    let unary = by_calls(network, arguments).await;
    report.end(&unary.as_ref().map(|o| format!("{:.0} per second", o.payments_per_s)).map_err(ToString::to_string));
    outcomes.unary = Some(unary?);
    Ok(outcomes)
}

async fn by_calls(network: &Network, arguments: Arguments) -> Result<Unary, Error> {
    let fewer = Arguments { payments: arguments.payments_by_call(), ..arguments };
    unary::measure(network, invoices(network, fewer).await?, arguments.outstanding).await
}

/// The load in turns: ours, ours with what theirs take outstanding, theirs as they come, theirs at their best.
async fn in_turns(network: &Network, arguments: Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    report.begin("start four ldk-nodes and open channels");
    let theirs = async { Ok((Pair::defaults(arguments, TURNS).await?, Pair::best(arguments, TURNS).await?)) }.await;
    report.end(&theirs.as_ref().map(|_| String::new()).map_err(|error: &Error| error.to_string()));
    let (mut defaults, mut best) = theirs?;
    let ours = Arguments { payments: arguments.payments.div_ceil(TURNS), ..arguments };
    let at_their_most = ldk::OUTSTANDING_PER_CHANNEL * arguments.channels as usize;
    let beside = Arguments { outstanding: arguments.outstanding.min(at_their_most), ..ours };
    let (mut ours_turns, mut beside_turns) = (Vec::new(), Vec::new());
    for turn in 1..=TURNS {
        report.begin(&format!("turn {turn} of {TURNS}"));
        let result = async {
            ours_turns.push(measure(network, 0, ours, invoices(network, ours).await?).await?);
            beside_turns.push(measure(network, 0, beside, invoices(network, beside).await?).await?);
            defaults.turn().await?;
            best.turn().await
        }
        .await;
        let figure = |turns: &[Outcomes]| turns.last().map_or(0.0, |turn| turn.payments_per_s);
        let note = format!("{:.0} and {:.0} per second", figure(&ours_turns), figure(&beside_turns));
        report.end(&result.as_ref().map(|()| note).map_err(ToString::to_string));
        result?;
    }
    let (mut peer, mut peer_slower) = (best.finish().await?, defaults.finish().await?);
    if peer_slower.payments_per_s > peer.payments_per_s {
        std::mem::swap(&mut peer, &mut peer_slower);
    }
    let mut outcomes = middle(ours_turns)?;
    outcomes.ratio = Some(outcomes.payments_per_s / peer.payments_per_s);
    outcomes.peer = Some(peer);
    outcomes.peer_slower = Some(peer_slower);
    outcomes.at_peers_outstanding = Some(Box::new(middle(beside_turns)?));
    Ok(outcomes)
}

/// The turn in the middle, with the payments of all.
fn middle(turns: Vec<Outcomes>) -> Result<Outcomes, Error> {
    let turns_per_s: Vec<f64> = turns.iter().map(|turn| turn.payments_per_s).collect();
    let payments = turns.iter().map(|turn| turn.payments).sum();
    let wanted = median(&turns_per_s);
    let found = turns.into_iter().find(|turn| turn.payments_per_s.total_cmp(&wanted).is_eq());
    let found = found.ok_or_else(|| Error::Wrong("no turn was measured".to_owned()))?;
    Ok(Outcomes { payments, turns_per_s, ..found })
}

/// Two daemons with their channels, and what the load takes in them. `more` are arguments of the daemons.
pub(super) async fn start(arguments: Arguments, more: &[&str]) -> Result<Network, Error> {
    let mut network = tokio::task::block_in_place(Network::start)?;
    for name in ["payer", "payee"] {
        let index = network.add(name);
        network.nodes[index].serve_metrics();
        more.iter().for_each(|argument| network.nodes[index].argument(argument));
        network.nodes[index].start().await?;
    }
    // All payments go one way: a channel must hold its part of them, and a half more for reserve and chance.
    // In a comparison, everything is paid twice: as asked for, and with what theirs take outstanding.
    let times = if arguments.implementation.is_some() { 2 } else { 1 };
    let total = arguments.amount * (arguments.payments as u64 + TURNS as u64) * times;
    let capacity = (total / u64::from(arguments.channels)) * 3 / 2 + 1_000_000;
    for _ in 0..arguments.channels {
        network.fund(0, Amount::from_sat(capacity + 200_000)).await?;
    }
    network.fund(1, Amount::from_sat(1_000_000)).await?;
    network.connect(0, 1).await?;
    for _ in 0..arguments.channels {
        network.open(0, 1, capacity, 0).await?;
    }
    Ok(network)
}

/// Pays the invoices from a daemon, so many outstanding at once, and measures all of the network's daemons meanwhile.
pub(super) async fn measure(
    network: &Network,
    payer: usize,
    arguments: Arguments,
    invoices: Vec<String>,
) -> Result<Outcomes, Error> {
    let pids: Vec<u32> = network.nodes.iter().filter_map(|node| node.rpc_info().map(|info| info.pid)).collect();
    let own = std::process::id();
    let counters_before = counters(network).await;
    let (cpu_before, own_before) = (pids.iter().map(|pid| cpu_us(*pid)).sum::<u64>(), cpu_us(own));
    let mut stream = PayStream::open(&network.nodes[payer]).await?;
    let mut latencies = Vec::with_capacity(invoices.len());
    let mut waiting = (0_u64..).zip(invoices);
    let begun = Instant::now();
    loop {
        while stream.outstanding() < arguments.outstanding {
            let Some((id, invoice)) = waiting.next() else { break };
            stream.pay(id, invoice, random_key()).await?;
        }
        if stream.outstanding() == 0 {
            break;
        }
        let answer = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
        match answer.map_err(|_| Error::Wrong("no payment completes within 60 s".to_owned()))?? {
            Some((_, Outcome::Paid, took)) => latencies.push(took),
            other => return Err(Error::Wrong(format!("a payment came to {other:?}"))),
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = (pids.iter().map(|pid| cpu_us(*pid)).sum::<u64>() - cpu_before) as f64;
    let own_cpu = (cpu_us(own) - own_before) as f64;
    let counters_after = counters(network).await;
    let count = latencies.len() as f64;
    let per_payment = |after: Option<f64>, before: Option<f64>| Some((after? - before?) / count);
    let floor_per_s = floor::payments_per_second();
    let payments_per_s = count / seconds;
    Ok(Outcomes {
        ok: false,
        channels: arguments.channels,
        outstanding: arguments.outstanding,
        payments: latencies.len(),
        amount_sat: arguments.amount,
        payments_per_s,
        latency_ms: percentiles(&mut latencies),
        cpu_us_per_payment: cpu / count,
        htlc_signatures_per_payment: per_payment(counters_after.signatures, counters_before.signatures),
        flushes_per_payment: per_payment(counters_after.flushes, counters_before.flushes),
        journal_bytes_per_payment: per_payment(counters_after.bytes, counters_before.bytes),
        rss_mib_peak: pids.iter().map(|pid| rss_mib_peak(*pid)).max().unwrap_or(0),
        floor_per_s,
        share_of_floor: payments_per_s / floor_per_s,
        driver_cpu_share: own_cpu / (own_cpu + cpu),
        unary: None,
        turns_per_s: Vec::new(),
        peer: None,
        peer_slower: None,
        ratio: None,
        at_peers_outstanding: None,
    })
}

pub(crate) fn percentiles(latencies: &mut [Duration]) -> Latency {
    latencies.sort_unstable();
    let at = |percent: usize| {
        let index = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    Latency { p50: at(50), p95: at(95), p99: at(99) }
}

/// The counters of all daemons, from their metrics, once those tell all that was done.
async fn counters(network: &Network) -> Counters {
    tokio::time::sleep(METRICS_LAG).await;
    let mut sum = Counters { signatures: Some(0.0), flushes: Some(0.0), bytes: Some(0.0) };
    for node in &network.nodes {
        let text = match node.rpc_info().and_then(|info| info.metrics.clone()) {
            Some(url) => fetch(&url).await.unwrap_or_default(),
            None => String::new(),
        };
        let add = |to: &mut Option<f64>, name: &str| *to = to.zip(metric(&text, name)).map(|(a, b)| a + b);
        add(&mut sum.signatures, "millrace_htlc_signatures_total");
        add(&mut sum.flushes, "millrace_journal_flushes_total");
        add(&mut sum.bytes, "millrace_journal_written_bytes_total");
    }
    sum
}

/// The sum of a metric over its labels; `None` if it is not there.
fn metric(text: &str, name: &str) -> Option<f64> {
    let values: Vec<f64> = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// The body of a small page, over plain HTTP on this machine.
async fn fetch(url: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (host, path) = url.strip_prefix("http://")?.split_once('/')?;
    let mut stream = tokio::net::TcpStream::connect(host).await.ok()?;
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}

/// A benchmark whose money is not there afterwards measured nothing.
pub(super) async fn sums_after_restart(network: &mut Network, amount_sat: u64, payments: usize) -> Result<(), Error> {
    for node in &mut network.nodes {
        node.kill9()?;
    }
    for node in &mut network.nodes {
        node.start().await?;
    }
    let wanted = (payments as u64, amount_sat * 1000 * payments as u64);
    network
        .wait("the payee's invoices paid", async || {
            let has = paid_invoices(network, 1).await?;
            Ok(if has == wanted { Ok(()) } else { Err(format!("{} paid, {} msat", has.0, has.1)) })
        })
        .await?;
    network
        .wait("the payee's balance", async || {
            let has: u64 = network.channels(1).await?.iter().map(|channel| channel.local_msat).sum();
            Ok(if has == wanted.1 { Ok(()) } else { Err(format!("it is {has} msat")) })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::metric;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_told_from_longer_names() {
        let text = "# HELP a_total x\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3.5\na_total_more 9\nb 1\n";
        assert_eq!(metric(text, "a_total"), Some(5.5));
        assert_eq!(metric(text, "b"), Some(1.0));
        assert_eq!(metric(text, "c"), None);
    }
}
