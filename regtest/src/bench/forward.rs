//! `bench forward`: BOLT 11 payments over a node in the middle, all three durable, with their default policies, all three
//! on two cores.

use std::process::{Command, Stdio};

use serde::Serialize;

use super::payments::{self, Latency, measure};
use super::process::cores;
use crate::crash::paid_invoices;
use crate::mesh::Mesh;
use crate::network::Error;
use crate::pay_stream::make_invoices;
use crate::plan::Plan;
use crate::report::Report;

const PAYER: usize = 0;
const MIDDLE: usize = 1;
const PAYEE: usize = 2;
/// Channels between payer and payee.
const HOPS: u32 = 2;
/// The target...
const PAYMENTS_PER_S_MIN: f64 = 500.0;
/// ...with the three daemons on no more cores than these.
const CORES_MAX: usize = 2;
/// Payments one after the other, by which one hop and two are compared.
const SINGLES: usize = 100;
/// What a channel has beside the amounts: reserve, the commitment's fee, and what the middle asks for.
const SPARE_SAT: u64 = 1_000_000;

/// What to run.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Arguments {
    /// Payments outstanding at once: by default a node lets one peer hold half of a channel's places.
    #[arg(long, default_value_t = 200)]
    pub outstanding: usize,
    /// Payments in all.
    #[arg(long, default_value_t = 10_000)]
    pub payments: usize,
    /// Of each payment, in sat.
    #[arg(long, default_value_t = 10_000)]
    pub amount: u64,
}

impl Arguments {
    const fn load(self, payments: usize, outstanding: usize) -> payments::Arguments {
        payments::Arguments { channels: 1, outstanding, payments, amount: self.amount, implementation: None }
    }
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// The target for payments per second.
    pub target_per_s: f64,
    /// Why `ok` says nothing about the target, only that the sums are right; absent if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_not_judged: Option<&'static str>,
    /// Cores that the daemons ran on.
    pub cores: usize,
    /// As of payments between two; CPU, signatures, flushes and bytes are all three daemons'.
    #[serde(flatten)]
    pub payments: payments::Outcomes,
    /// Channels between payer and payee.
    pub hops: u32,
    /// Of payments one after the other, the median over two hops less the median over one.
    pub added_latency_ms_per_hop: f64,
    /// Of a payment alone, over two hops.
    pub single_latency_ms: Latency,
    /// What the middle has earned.
    pub fees_msat: u64,
}

/// Runs it.
///
/// # Errors
/// If anything fails, a payment included.
pub async fn run(arguments: Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    report.begin("start three daemons in a line and open channels");
    let mesh = start(arguments).await;
    report.end(&mesh.as_ref().map(|_| String::new()).map_err(ToString::to_string));
    let mut mesh = mesh?;
    let daemons_cores = cores_of_daemons(&mesh);
    let before = mesh.sums_msat().await?;
    report.begin("pay one after the other, over one hop and over two");
    let singles = singles(&mesh, arguments).await;
    let note = |(one, two): &(Latency, Latency)| format!("{:.1} ms and {:.1} ms", one.p50, two.p50);
    report.end(&singles.as_ref().map(note).map_err(ToString::to_string));
    let (one, two) = singles?;
    report.begin("forward");
    let load = arguments.load(arguments.payments, arguments.outstanding);
    let measured =
        async { measure(&mesh.network, PAYER, load, invoices(&mesh, arguments, load.payments).await?).await };
    let measured = measured.await;
    report.end(&measured.as_ref().map(|o| format!("{:.0} per second", o.payments_per_s)).map_err(ToString::to_string));
    let mut payments = measured?;
    // Each of a payment's two channels costs what the one of a payment between neighbours does.
    payments.floor_per_s /= f64::from(HOPS);
    // And is measured on this program's cores.
    let own = cores(std::process::id()).len().max(1);
    payments.floor_per_s *= daemons_cores.clamp(1, own) as f64 / own as f64;
    payments.share_of_floor = payments.payments_per_s / payments.floor_per_s;
    report.begin("kill all, start again, and compare the sums");
    let paid = arguments.payments + 2 * SINGLES;
    let fees = sums_after_restart(&mut mesh, &before, paid, arguments.amount).await;
    report.end(&fees.as_ref().map(|msat| format!("the middle earned {msat} msat")).map_err(ToString::to_string));
    let target_not_judged = not_judged(cfg!(debug_assertions), daemons_cores);
    payments.ok = fees.is_ok() && (target_not_judged.is_some() || payments.payments_per_s >= PAYMENTS_PER_S_MIN);
    let fees_msat = fees?;
    for node in &mut mesh.network.nodes {
        node.stop().await?;
    }
    let added_latency_ms_per_hop = (two.p50 - one.p50) / f64::from(HOPS - 1);
    Ok(Outcomes {
        target_per_s: PAYMENTS_PER_S_MIN,
        target_not_judged,
        cores: daemons_cores,
        payments,
        hops: HOPS,
        added_latency_ms_per_hop,
        single_latency_ms: two,
        fees_msat,
    })
}

/// Why the speed says nothing about the target, if so.
const fn not_judged(is_debug: bool, cores: usize) -> Option<&'static str> {
    if is_debug {
        Some("this is no release build")
    } else if cores == 0 {
        Some("the system does not say on how many cores the daemons ran")
    } else if cores > CORES_MAX {
        Some("the daemons ran on more than two cores: taskset, which keeps them on two, is not there")
    } else {
        None
    }
}

/// The words before a daemon's that keep it on so few of these cores; none if there are no more, or no way.
fn keep_on(cores: &[usize]) -> Vec<String> {
    if cores.len() <= CORES_MAX {
        return Vec::new();
    }
    let list: Vec<String> = cores.iter().take(CORES_MAX).map(usize::to_string).collect();
    let words = ["taskset", "-c", &list.join(",")].map(str::to_owned);
    let mut trial = Command::new(&words[0]);
    trial.args(&words[1..]).arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if trial.status().is_ok_and(|status| status.success()) { words.to_vec() } else { Vec::new() }
}

/// How many cores the daemons may run on, all together.
fn cores_of_daemons(mesh: &Mesh) -> usize {
    let pids = mesh.network.nodes.iter().filter_map(|node| node.rpc_info().map(|info| info.pid));
    pids.flat_map(cores).collect::<std::collections::BTreeSet<usize>>().len()
}

async fn start(arguments: Arguments) -> Result<Mesh, Error> {
    let mut plan = Plan::line(3);
    // All payments go one way, and the middle's fee is less than a tenth.
    let total_sat = arguments.amount * (arguments.payments + 2 * SINGLES) as u64;
    for channel in &mut plan.channels {
        channel.capacity_sat = total_sat + total_sat / 5 + SPARE_SAT;
        channel.push_sat = 0;
    }
    let words = keep_on(&cores(std::process::id()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let prepare = |node: &mut crate::node::Node| {
        node.serve_metrics();
        node.start_by(&words);
    };
    let mesh = Mesh::start_with(plan, prepare).await?;
    mesh.wait_for_graph(PAYER).await?;
    Ok(mesh)
}

async fn invoices(mesh: &Mesh, arguments: Arguments, count: usize) -> Result<Vec<String>, Error> {
    let client = mesh.network.nodes[PAYEE].client()?;
    make_invoices(&client, &vec![arguments.amount * 1000; count], "bench").await
}

/// Payments alone, over one hop and over two.
async fn singles(mesh: &Mesh, arguments: Arguments) -> Result<(Latency, Latency), Error> {
    let load = arguments.load(SINGLES, 1);
    let one = measure(&mesh.network, MIDDLE, load, invoices(mesh, arguments, SINGLES).await?).await?;
    let two = measure(&mesh.network, PAYER, load, invoices(mesh, arguments, SINGLES).await?).await?;
    Ok((one.latency_ms, two.latency_ms))
}

/// A benchmark whose money is not there afterwards measured nothing. What the middle has earned, in msat.
async fn sums_after_restart(mesh: &mut Mesh, before: &[u64], paid: usize, amount_sat: u64) -> Result<u64, Error> {
    let arrived_msat = paid as u64 * amount_sat * 1000;
    mesh.wait_until_at_rest().await?;
    let at_rest = mesh.sums_msat().await?;
    for node in &mut mesh.network.nodes {
        node.kill9()?;
    }
    for node in &mut mesh.network.nodes {
        node.start().await?;
    }
    mesh.wait_until_usable().await?;
    mesh.check_conserved().await?;
    let after = mesh.sums_msat().await?;
    let wanted = (paid as u64, arrived_msat);
    let invoices = paid_invoices(&mesh.network, PAYEE).await?;
    if after != at_rest || invoices != wanted {
        return Err(Error::Wrong(format!(
            "{invoices:?} paid of {wanted:?}; sums {after:?}, before the kill {at_rest:?}"
        )));
    }
    // The middle has paid its own singles, and earned.
    let own_msat = SINGLES as u64 * amount_sat * 1000;
    let gained = [PAYEE, MIDDLE].map(|node| i128::from(after[node]) - i128::from(before[node]));
    let fees = gained[1] + i128::from(own_msat);
    match u64::try_from(fees) {
        Ok(fees_msat) if gained[0] == i128::from(arrived_msat) => Ok(fees_msat),
        Ok(_) | Err(_) => Err(Error::Wrong(format!("the payee gained {} msat, the middle {}", gained[0], gained[1]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_judged_of_release_builds_on_two_cores() {
        assert_eq!(not_judged(false, 2), None);
        assert_eq!(not_judged(false, 1), None);
        assert!(not_judged(true, 2).is_some());
        assert!(not_judged(false, 0).is_some());
        assert!(not_judged(false, 3).is_some());
    }

    #[test]
    fn a_machine_of_two_cores_needs_no_keeping() {
        assert!(keep_on(&[0, 1]).is_empty());
        // Cores that are there, so that the trial can be made; without the program there are no words.
        let there = cores(std::process::id());
        let many: Vec<usize> = there.iter().copied().cycle().take(3).collect();
        let words = keep_on(&many);
        assert!(words.is_empty() || words[..2] == ["taskset", "-c"], "{words:?}");
    }
}
