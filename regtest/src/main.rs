//! `millrace-regtest`: a demo network that stays, crash tests and benchmarks, on a real bitcoind.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millrace_regtest::bench::{forward, payments, route, tower, watched};
use millrace_regtest::random::seed_of_now;
use millrace_regtest::report::Report;
use millrace_regtest::stay;
use millrace_regtest::{crash, matrix};

/// Real Millrace daemons on a real bitcoind on regtest: a demo network that stays, crash tests, benchmarks.
#[derive(Parser)]
#[command(
    name = "millrace-regtest",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = EXAMPLES
)]
struct Arguments {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
A network in five lines:
  millrace-regtest up --nodes 3
  eval \"$(millrace-regtest env alice)\" && millrace channel list
  millrace-regtest load --rate 5 --seconds 10
  millrace-regtest kill bob && millrace-regtest start bob
  millrace-regtest down --wipe

Nothing leaves this machine, and no coin is worth anything. docs/regtest.md shows around.";

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Stay(stay::command::Command),
    /// Kill -9 at random moments under payment load: nothing may be lost, doubled or stuck
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
    /// Every way in which a channel can end on chain, on a real bitcoind: everybody gets what the rules give
    ///
    /// {our, their, their next, a revoked} commitment, with HTLCs offered, received, both or all of one hash and amount, whose
    /// preimages are known early, late or never, with a peer that is silent, claims or aggregates, with and without a reorg
    /// that swaps the commitment; the daemon is killed and started again at every block at which its claims change.
    Matrix {
        #[command(flatten)]
        arguments: matrix::Arguments,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// Measure
    Bench {
        /// What.
        #[command(subcommand)]
        bench: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// BOLT 11 payments between two daemons
    Payments {
        #[command(flatten)]
        arguments: payments::Arguments,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// Ways through the public graph of 2021, while gossip goes on
    ///
    /// ok: half of the searches within 30 ms, 99 of 100 within 120 ms, loaded within 2 s, no more than 350 MiB; most found a
    /// way, and gossip was taken meanwhile. In a build without optimisation, or with --channels, only the last two are judged.
    ///
    /// Not in it: the funding outputs that a daemon looks up in the chain, its peers, its channels and their payments, and what
    /// all that takes of memory and cores. What the searches find is "paid" against balances that are drawn, and teaches the
    /// next searches.
    Route {
        #[command(flatten)]
        arguments: route::Arguments,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// BOLT 11 payments over a node in the middle
    ///
    /// ok: 500 a second or more, and after a kill -9 of all three the sums are right. The daemons are kept on two cores, if
    /// the machine has more. Only a release build is judged by its speed.
    Forward {
        #[command(flatten)]
        arguments: forward::Arguments,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// A watchtower: what updates cost it, and all of its channels breached in one block
    ///
    /// ok: every output that is the tower's to take is taken before the deadline; a channel takes 1,800 bytes of its disk at most,
    /// an update 42 of the upload, and one of a batch of 1,024 takes 1.
    ///
    /// The channels that are breached are real ones, half of them with HTLCs; their cheaters have a miner who puts whatever they
    /// want into the next block, for nothing. What they leave untouched is not the tower's to take.
    Tower {
        #[command(flatten)]
        arguments: tower::Arguments,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// Payments without a watchtower, with one, and beside a silent, a full and somebody else's, taking turns
    ///
    /// ok: after a kill -9 of both daemons the sums are right, and the silent and the full tower lacked what the others had. The
    /// figures are for the reader: `ratio` is each kind's payments per second to those without a tower.
    Watched {
        #[command(flatten)]
        arguments: watched::Arguments,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::new();
    match Arguments::parse().command {
        Command::Stay(command) => match command.run().await {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        },
        Command::Crash { cycles, seed, json } => {
            let outcomes = crash::run(cycles, seed.unwrap_or_else(seed_of_now), &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
        Command::Matrix { arguments, .. } if arguments.list => {
            matrix::run::list(&arguments);
            ExitCode::SUCCESS
        }
        Command::Matrix { arguments, json } => {
            let outcomes = matrix::run(arguments, &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
        Command::Bench { bench: Bench::Forward { arguments, json } } => {
            let outcomes = forward::run(arguments, &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.payments.ok, outcomes)), json)
        }
        Command::Bench { bench: Bench::Payments { arguments, json } } => {
            let outcomes = payments::run(arguments, &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
        Command::Bench { bench: Bench::Route { arguments, json } } => {
            let outcomes = route::run(arguments, &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
        Command::Bench { bench: Bench::Watched { arguments, json } } => {
            let outcomes = watched::run(arguments, &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
        Command::Bench { bench: Bench::Tower { arguments, json } } => {
            let outcomes = tower::run(arguments, &mut report).await;
            finish(outcomes.map(|outcomes| (outcomes.ok, outcomes)), json)
        }
    }
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
