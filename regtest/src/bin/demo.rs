//! `cargo demo`: two daemons on a real bitcoind play the main job and account for every satoshi; then five route payments.

use std::process::ExitCode;

use clap::Parser;
use millrace_regtest::demo;
use millrace_regtest::network::Network;
use millrace_regtest::report::Report;
use serde_json::json;

/// Millrace daemons on a real bitcoind: two fund, open, pay, are killed, close and account for every satoshi; five more pay
/// each other over one another.
#[derive(Parser)]
#[command(name = "demo", version)]
struct Arguments {
    /// Print one JSON object as the last line.
    #[arg(long)]
    json: bool,
    /// Leave the network running, and say how to talk to it.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::new();
    let demo = demo::play(&mut report).await;
    let figures = demo.as_ref().map(|demo| demo.figures().clone()).unwrap_or_default();
    let mut stop_error = None;
    if let Some(demo) = demo {
        let mut network = demo.into_network();
        if arguments.keep {
            say_how_to_talk(&network);
            network.leave_running();
        } else {
            stop_error = stop(&mut network).await.err();
        }
    }
    let ok = report.is_ok() && stop_error.is_none();
    if let Some(error) = &stop_error {
        eprintln!("✗ stop: {error}");
    }
    if arguments.json {
        let seconds = report.elapsed().as_secs_f64();
        let error = stop_error.map(|error| error.to_string());
        println!(
            "{}",
            json!({ "ok": ok, "steps": report.steps(), "seconds": seconds, "figures": figures, "error": error })
        );
    } else if ok {
        println!("The demo went through in {:.0} s: nothing lost, nothing doubled.", report.elapsed().as_secs_f64());
    } else {
        println!("The demo failed; the step marked ✗ says why.");
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn stop(network: &mut Network) -> Result<(), millrace_regtest::network::Error> {
    for node in &mut network.nodes {
        node.stop().await?;
    }
    Ok(())
}

fn say_how_to_talk(network: &Network) {
    eprintln!("The network goes on running in {}.", network.folder().display());
    for node in &network.nodes {
        let (millrace, folder) = (node.programs().millrace.display(), node.data_dir().display());
        eprintln!("  {}: {millrace} --network regtest --data-dir {folder} node info", node.name);
    }
    eprintln!("  bitcoind: {} (cookie {})", network.bitcoind.rpc_url(), network.bitcoind.cookie_path().display());
    eprintln!("To stop it: `millrace … node stop` for each daemon, then `stop` to bitcoind by its RPC.");
}
