//! `bench route`: one-way searches over the public graph of 2021, with gossip going on meanwhile.
//!
//! The snapshot is signed with keys that are made up and saved as the daemon saves it. Then a process of its own, which did
//! none of that, loads the file and searches: its memory is what a node needs for the graph. What the daemon does besides
//! (funding outputs, peers) is not in it.

mod measure;
mod signed;
mod snapshot;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::payments::Latency;
use crate::network::Error;
use crate::report::Report;

/// Targets.
const P50_MS_MAX: f64 = 30.0;
const P99_MS_MAX: f64 = 120.0;
const LOAD_S_MAX: f64 = 2.0;
const RSS_MIB_MAX: u64 = 350;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Searches, each between two nodes that are drawn.
    #[arg(long, default_value_t = 1_000)]
    pub pairs: usize,
    /// What is sent, in sat.
    #[arg(long, default_value_t = 100_000)]
    pub amount: u64,
    /// What the nodes are drawn from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Measures what was prepared there, and prints it: for the process that does nothing else.
    #[arg(long, hide = true, value_name = "DIR")]
    pub prepared: Option<PathBuf>,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// Whether every target was met.
    pub ok: bool,
    /// Searches.
    pub pairs: usize,
    /// What was sent, in sat.
    pub amount_sat: u64,
    /// What was measured.
    #[serde(flatten)]
    pub measured: Measured,
}

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Channels of the graph.
    pub channels: usize,
    /// Nodes.
    pub nodes: usize,
    /// Of one search, with getting the newest map.
    pub latency_ms: Latency,
    /// Searches that found a way within the default fee limit.
    pub success_share: f64,
    /// The most memory: graph, maps, and a search's.
    pub rss_mib: u64,
    /// Until the first search could be made.
    pub load_s: f64,
    /// Size of the file.
    pub file_mib: usize,
    /// Updates that were verified and taken meanwhile.
    pub updates_taken: usize,
    /// Maps that were made meanwhile.
    pub maps_made: usize,
}

impl Measured {
    fn is_within_targets(&self) -> bool {
        self.latency_ms.p50 <= P50_MS_MAX
            && self.latency_ms.p99 <= P99_MS_MAX
            && self.load_s <= LOAD_S_MAX
            && self.rss_mib <= RSS_MIB_MAX
    }
}

/// Runs it.
///
/// # Errors
/// If a file or a process fails.
pub async fn run(arguments: Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    let folder = match &arguments.prepared {
        Some(folder) => folder.clone(),
        None => return prepare_and_measure(&arguments, report).await,
    };
    let failed = |source| Error::Io { what: "measure", path: folder.clone(), source };
    let measured = measure::measure(&arguments, &folder).map_err(failed)?;
    Ok(outcomes(&arguments, measured))
}

fn outcomes(arguments: &Arguments, measured: Measured) -> Outcomes {
    let ok = measured.is_within_targets();
    Outcomes { ok, pairs: arguments.pairs, amount_sat: arguments.amount, measured }
}

async fn prepare_and_measure(arguments: &Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    let folder = tempfile::tempdir().map_err(io("make", "a folder"))?;
    report.begin("sign the graph of 2021");
    let prepared = tokio::task::spawn_blocking(signed::prepare).await.map_err(std::io::Error::other);
    let written = prepared.and_then(|prepared| prepared.write(folder.path())).map_err(io("write", "the graph"));
    report.end(&written.as_ref().map(|()| String::new()).map_err(ToString::to_string));
    written?;
    report.begin("search");
    let measured = in_a_process(arguments, folder.path()).await;
    report
        .end(&measured.as_ref().map(|measured| format!("{} channels", measured.channels)).map_err(ToString::to_string));
    Ok(outcomes(arguments, measured?))
}

async fn in_a_process(arguments: &Arguments, folder: &std::path::Path) -> Result<Measured, Error> {
    let program = std::env::current_exe().map_err(io("find", "this program"))?;
    let mut command = tokio::process::Command::new(program);
    command.args(["bench", "route", "--json", "--prepared"]).arg(folder);
    command.args(["--pairs", &arguments.pairs.to_string(), "--amount", &arguments.amount.to_string()]);
    command.args(["--seed", &arguments.seed.to_string()]);
    let output = command.output().await.map_err(io("run", "this program"))?;
    // It exits with failure when a target is missed, and has measured all the same.
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).map_err(|error| {
        let source = std::io::Error::other(format!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
        io("understand", "the measuring process")(source)
    })
}

fn io(what: &'static str, with: &str) -> impl FnOnce(std::io::Error) -> Error {
    let path = PathBuf::from(with);
    move |source| Error::Io { what, path, source }
}
