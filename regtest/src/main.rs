//! `millrace-regtest`: crash tests and benchmarks on a real bitcoind.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millrace_regtest::bench::{payments, route};
use millrace_regtest::crash;
use millrace_regtest::report::Report;

/// Crash tests and benchmarks of real Millrace daemons on a real bitcoind.
#[derive(Parser)]
#[command(name = "millrace-regtest", version)]
struct Arguments {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill -9 at random moments under payment load: nothing may be lost, doubled or stuck.
    Crash {
        /// How many kills.
        #[arg(long, default_value_t = 20)]
        cycles: u32,
        /// What the moments are drawn from; the present time unless given.
        #[arg(long)]
        seed: Option<u64>,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// Measure.
    Bench {
        /// What.
        #[command(subcommand)]
        bench: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// BOLT 11 payments between two daemons.
    Payments {
        #[command(flatten)]
        arguments: payments::Arguments,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// Ways through the public graph of 2021, while gossip goes on.
    Route {
        #[command(flatten)]
        arguments: route::Arguments,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::new();
    match Arguments::parse().command {
        Command::Crash { cycles, seed, json } => {
            let outcomes = crash::run(cycles, seed.unwrap_or_else(seed_of_now), &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
        Command::Bench { bench: Bench::Payments { arguments, json } } => {
            let outcomes = payments::run(arguments, &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
        Command::Bench { bench: Bench::Route { arguments, json } } => {
            let outcomes = route::run(arguments, &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
    }
}

/// A seed for a run that nobody gave one for; it is printed with the outcome, so the run can be repeated.
fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(0)
}

fn finish<T: serde::Serialize>(outcomes: Result<(bool, T), millrace_regtest::network::Error>, json: bool) -> ExitCode {
    let (ok, text) = match outcomes {
        Ok((ok, outcomes)) if json => (ok, serde_json::to_string(&outcomes).unwrap_or_default()),
        Ok((ok, outcomes)) => (ok, serde_json::to_string_pretty(&outcomes).unwrap_or_default()),
        Err(error) => (false, serde_json::json!({ "ok": false, "error": error.to_string() }).to_string()),
    };
    println!("{text}");
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
