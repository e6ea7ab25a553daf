//! `bench route`: one-way searches over the public graph of 2021, with gossip going on meanwhile.
//!
//! The snapshot is signed with keys that are made up and saved as the daemon saves it. Then a process of its own, which did
//! none of that, loads the file and searches: its memory is what a node needs for the graph. What is found is paid against
//! balances that are drawn, so that searches weigh what payments have taught. What the daemon does besides is not in it
//! ([`LEFT_OUT`]).

mod measure;
mod payer;
mod signed;
mod snapshot;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::payments::Latency;
use crate::network::Error;
use crate::report::Report;

/// What a daemon has or does beside its searches, and this has or does not.
const LEFT_OUT: &str = "the funding outputs that are looked up in the chain, peers, own channels and their payments";

/// Targets.
const P50_MS_MAX: f64 = 30.0;
const P99_MS_MAX: f64 = 120.0;
const LOAD_S_MAX: f64 = 2.0;
const RSS_MIB_MAX: u64 = 350;
/// Most searches must find a way: those that do not are over early, or late.
const SUCCESS_SHARE_MIN: f64 = 0.5;
/// Gossip keeps flowing: half of what it offers, or all there was.
const UPDATES_PER_S_MIN: f64 = 250.0;

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
    /// Only so many of the graph's 37,454 channels, the oldest: a trial, whose times are not judged
    #[arg(long, value_name = "N")]
    pub channels: Option<usize>,
    /// Measures what was prepared there, and prints it: for the process that does nothing else.
    #[arg(long, hide = true, value_name = "DIR")]
    pub prepared: Option<PathBuf>,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// Whether nothing was missed.
    pub ok: bool,
    /// What was missed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<String>,
    /// Why times and memory were not judged; absent if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets_not_judged: Option<&'static str>,
    /// What a daemon has or does beside its searches, and this has or does not.
    pub left_out: &'static str,
    /// Searches that were asked for.
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
    /// Searches that were made: those that were asked for, and more until gossip had made a map. These do not count otherwise.
    pub searches: usize,
    /// How long all of it took.
    pub seconds: f64,
    /// Of one search, with getting the newest map.
    pub latency_ms: Latency,
    /// Searches that found a way within the default fee limit.
    pub success_share: f64,
    /// Payments over these ways that arrived.
    pub arrived_share: f64,
    /// Directions of channels that the payments have taught something of.
    pub ways_learned: usize,
    /// The most memory: graph, maps, and a search's.
    pub rss_mib: u64,
    /// Until the first search could be made.
    pub load_s: f64,
    /// Size of the file.
    pub file_mib: usize,
    /// Updates that gossip has.
    pub updates: usize,
    /// Updates that were verified and taken meanwhile.
    pub updates_taken: usize,
    /// Maps that were made meanwhile.
    pub maps_made: usize,
    /// Searches on such a map.
    pub searches_on_new_maps: usize,
}

impl Measured {
    /// What is wrong however slow the machine is.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |is_right: bool, fault: String| faults.extend((!is_right).then_some(fault));
        check(self.updates_taken > 0, "no update was taken while it searched".to_owned());
        let (maps, on_new) = (self.maps_made, self.searches_on_new_maps);
        check(
            maps > 0 && on_new > 0,
            format!("{maps} maps were made while it searched, and {on_new} searches used them"),
        );
        let (found, wanted) = (self.success_share, SUCCESS_SHARE_MIN);
        check(found >= wanted, format!("of all searches {found:.3} found a way, not {wanted}"));
        check(self.ways_learned > 0, "no payment has taught anything".to_owned());
        faults
    }

    /// What is slower or larger than it should be.
    fn missed_targets(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut most = |what: &str, value: f64, most: f64| {
            missed.extend((value > most).then(|| format!("{what} {value:.1}, and {most} at most")));
        };
        most("half of the searches took, in ms,", self.latency_ms.p50, P50_MS_MAX);
        most("99 of 100 searches took, in ms,", self.latency_ms.p99, P99_MS_MAX);
        most("until the first search it took, in s,", self.load_s, LOAD_S_MAX);
        most("memory took, in MiB,", self.rss_mib as f64, RSS_MIB_MAX as f64);
        let wanted = (self.seconds * UPDATES_PER_S_MIN).min(self.updates as f64);
        let taken = self.updates_taken;
        missed.extend(((taken as f64) < wanted).then(|| format!("{taken} updates were taken, not {wanted:.0}")));
        missed
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
    let targets_not_judged = not_judged(cfg!(debug_assertions), arguments.channels);
    let mut missed = measured.faults();
    if targets_not_judged.is_none() {
        missed.extend(measured.missed_targets());
    }
    let (ok, pairs, amount_sat) = (missed.is_empty(), arguments.pairs, arguments.amount);
    Outcomes { ok, missed, targets_not_judged, left_out: LEFT_OUT, pairs, amount_sat, measured }
}

/// Why times and memory say nothing about the targets, if so.
const fn not_judged(is_debug: bool, channels: Option<usize>) -> Option<&'static str> {
    match (is_debug, channels) {
        (true, _) => Some("this is no release build"),
        (false, Some(_)) => Some("it is not the whole graph"),
        (false, None) => None,
    }
}

async fn prepare_and_measure(arguments: &Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    let folder = tempfile::tempdir().map_err(io("make", "a folder"))?;
    report.begin("sign the graph of 2021");
    let channels_max = arguments.channels;
    let prepared =
        tokio::task::spawn_blocking(move || signed::prepare(channels_max)).await.map_err(std::io::Error::other);
    let written = prepared.and_then(|prepared| prepared.write(folder.path())).map_err(io("write", "the graph"));
    report.end(&written.as_ref().map(|()| String::new()).map_err(ToString::to_string));
    written?;
    report.begin("search");
    let measured = in_a_process(arguments, folder.path()).await;
    let note = |measured: &Measured| format!("{} channels; without {LEFT_OUT}", measured.channels);
    report.end(&measured.as_ref().map(note).map_err(ToString::to_string));
    Ok(outcomes(arguments, measured?))
}

async fn in_a_process(arguments: &Arguments, folder: &std::path::Path) -> Result<Measured, Error> {
    let program = std::env::current_exe().map_err(io("find", "this program"))?;
    let mut command = tokio::process::Command::new(program);
    command.args(["bench", "route", "--json", "--prepared"]).arg(folder);
    command.args(["--pairs", &arguments.pairs.to_string(), "--amount", &arguments.amount.to_string()]);
    command.args(["--seed", &arguments.seed.to_string()]);
    if let Some(channels) = arguments.channels {
        command.args(["--channels", &channels.to_string()]);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Measured {
        Measured {
            channels: 37_454,
            nodes: 8_000,
            searches: 1_000,
            seconds: 10.0,
            latency_ms: Latency { p50: 3.0, p95: 9.0, p99: 20.0 },
            success_share: 0.9,
            arrived_share: 0.5,
            ways_learned: 3_000,
            rss_mib: 100,
            load_s: 0.5,
            file_mib: 20,
            updates: 20_000,
            updates_taken: 4_900,
            maps_made: 9,
            searches_on_new_maps: 900,
        }
    }

    #[test]
    fn nothing_is_wrong_with_a_good_one() {
        assert!(good().faults().is_empty() && good().missed_targets().is_empty());
        let all_taken = Measured { updates_taken: 20_000, seconds: 900.0, ..good() };
        assert!(all_taken.missed_targets().is_empty(), "there were no more");
    }

    #[test]
    fn without_gossip_or_ways_or_lessons_it_is_wrong() {
        for bad in [
            Measured { updates_taken: 0, ..good() },
            Measured { maps_made: 0, ..good() },
            Measured { searches_on_new_maps: 0, ..good() },
            Measured { success_share: 0.49, ..good() },
            Measured { success_share: f64::NAN, ..good() },
            Measured { ways_learned: 0, ..good() },
        ] {
            assert_eq!(bad.faults().len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn each_target_can_be_missed() {
        let latency = |p50, p99| Latency { p50, p95: p99, p99 };
        for bad in [
            Measured { latency_ms: latency(30.1, 50.0), ..good() },
            Measured { latency_ms: latency(3.0, 120.1), ..good() },
            Measured { load_s: 2.1, ..good() },
            Measured { rss_mib: 351, ..good() },
            Measured { updates_taken: 2_499, ..good() },
        ] {
            assert_eq!(bad.missed_targets().len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn targets_are_judged_of_release_builds_on_the_whole_graph() {
        assert_eq!(not_judged(false, None), None);
        assert!(not_judged(true, None).is_some() && not_judged(false, Some(2_000)).is_some());
    }
}
