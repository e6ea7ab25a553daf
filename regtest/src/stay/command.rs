//! The commands of a network that stays, as people type them.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::answer::{Answer, down, env, mine, start, status, what_now};
use super::load::Order;
use super::processes::Ending;
use super::{Stay, default_folder, keeper};
use crate::network::Error;
use crate::plan::{self, NODES_MAX, NODES_MIN, Plan, Topology};
use crate::random::seed_of_now;
use crate::report::Report;

/// Nodes unless it is said.
const NODES: usize = 5;

/// What every command of the network takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// The network's folder [default: ~/.local/share/millrace-regtest, or in $XDG_DATA_HOME]
    #[arg(long, value_name = "DIR", env = "REGTEST_DIR", hide_env_values = true)]
    dir: Option<PathBuf>,
    /// Print one JSON object as the last line, errors too
    #[arg(long)]
    json: bool,
}

/// Which network it shall be.
#[derive(Args, Clone, Debug)]
pub struct Wanted {
    /// How many nodes, from 2 to 40 [default: 5]
    #[arg(long, value_name = "N", conflicts_with = "file", value_parser = parse_nodes)]
    nodes: Option<usize>,
    /// How channels lie between them [default: line]
    #[arg(long, conflicts_with = "file")]
    topology: Option<Topology>,
    /// What a random topology is drawn from [default: the time]
    #[arg(long, conflicts_with = "file")]
    seed: Option<u64>,
    /// A TOML file that names nodes, channels and policies, such as regtest/networks/market.toml
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// A command of the network that stays.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Bring a network up: bitcoind and nodes that go on running, funded, with channels open
    ///
    /// Run again, it starts what does not run, adds what the plan has more than before, and opens nothing twice. Without a
    /// plan it is a line of five, or what the network was. Everything of it is in one folder (--dir) and kept until
    /// `down --wipe`: data, logs, who its processes are. Another folder is another network.
    #[command(
        after_help = "Examples:\n  millrace-regtest up\n  millrace-regtest up --nodes 8 --topology random --seed 7\n  \
                            millrace-regtest up --file regtest/networks/market.toml"
    )]
    Up {
        /// Which network.
        #[command(flatten)]
        wanted: Wanted,
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Show nodes, channels with their balances, and the chain
    Status {
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Mine blocks, and wait until every running node has seen them
    Mine {
        /// How many
        #[arg(value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        blocks: u32,
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Print shell exports so that `millrace` talks to a node
    ///
    /// For sh, bash and zsh: eval "$(millrace-regtest env alice)"
    Env {
        /// Which node, by its name
        #[arg(value_name = "NODE")]
        node: String,
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Kill a node at once (SIGKILL), as a power cut would end it
    ///
    /// A millraced comes back with everything. An ldk-node that is killed in the middle of payments closes channels when it
    /// comes back: its own records are then of different age.
    Kill {
        /// Which node, by its name
        #[arg(value_name = "NODE")]
        node: String,
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Stop a node in good order
    Stop {
        /// Which node, by its name
        #[arg(value_name = "NODE")]
        node: String,
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Start a node again, with its data, and connect it with its peers
    Start {
        /// Which node, by its name
        #[arg(value_name = "NODE")]
        node: String,
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Make payments between random nodes, with a live count of paid and failed
    ///
    /// Ctrl-C ends it; payments under way are waited for. Killing and starting nodes meanwhile is allowed, and what it is
    /// for.
    #[command(after_help = "Examples:\n  millrace-regtest load --rate 20\n  \
                            millrace-regtest load --rate 100 --seconds 30 --amount 1000..50000 --seed 7 --json")]
    Load {
        /// Payments a second
        #[arg(long, value_name = "N", value_parser = parse_rate)]
        rate: f64,
        /// For how long [default: until it is interrupted]
        #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
        seconds: Option<u64>,
        /// Of each payment, in sat: one amount, or the least and the most, as 1000..50000
        #[arg(long, value_name = "SAT", default_value = "1000", value_parser = parse_amount)]
        amount: RangeInclusive<u64>,
        /// What pairs and amounts are drawn from [default: the time; it is printed]
        #[arg(long)]
        seed: Option<u64>,
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Stop the whole network; its data stays for the next `up`
    Down {
        /// Remove its data too; nothing brings it back
        #[arg(long)]
        wipe: bool,
        /// Where, and how to answer.
        #[command(flatten)]
        common: Common,
    },
    /// Keep an ldk-node running: started by `up` and `start`, not by people
    #[command(hide = true)]
    KeepLdk {
        /// The driver.
        #[arg(long)]
        program: PathBuf,
        /// Where callers come.
        #[arg(long)]
        socket: PathBuf,
        /// Where to put down who the driver is.
        #[arg(long)]
        driver_file: PathBuf,
    },
}

fn parse_nodes(text: &str) -> Result<usize, String> {
    let range = NODES_MIN..=NODES_MAX;
    let no_number = || format!("a network has {NODES_MIN} to {NODES_MAX} nodes");
    text.parse().ok().filter(|count| range.contains(count)).ok_or_else(no_number)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let no_rate = || "payments a second are a number from 0.01 to 10000".to_owned();
    text.parse().ok().filter(|rate| (0.01..=10_000.0).contains(rate)).ok_or_else(no_rate)
}

fn parse_amount(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let no_amount = || "an amount is a number of sat from 1 on, or two of them, as 1000..50000".to_owned();
    let parse = |text: &str| text.parse().ok().filter(|sat| (1..=1_000_000_000).contains(sat)).ok_or_else(no_amount);
    let (least, most) = (parse(least)?, parse(most)?);
    if least <= most { Ok(least..=most) } else { Err("the least amount is more than the most".to_owned()) }
}

impl Wanted {
    /// The plan, if one is wanted.
    fn plan(&self) -> Result<Option<Plan>, Error> {
        if let Some(file) = &self.file {
            return plan::file::read(file).map(Some).map_err(|error| Error::Wrong(error.to_string()));
        }
        if (self.nodes, self.topology, self.seed) == (None, None, None) {
            return Ok(None);
        }
        let topology = self.topology.unwrap_or(Topology::Line);
        let seed = self.seed.unwrap_or_else(seed_of_now);
        if topology == Topology::Random && self.seed.is_none() {
            eprintln!("seed {seed}");
        }
        Ok(Some(Plan::topology(topology, self.nodes.unwrap_or(NODES), seed)))
    }
}

impl Common {
    pub(super) fn folder(&self) -> Result<PathBuf, Error> {
        self.dir.clone().map_or_else(default_folder, Ok)
    }

    fn open(&self) -> Result<Stay, Error> {
        Stay::open(&self.folder()?)
    }

    /// Of a network that is about to be changed.
    fn open_to_change(&self) -> Result<Stay, Error> {
        let mut stay = self.open()?;
        stay.lock()?;
        Ok(stay)
    }
}

impl Command {
    /// Whether the answer is to be JSON.
    fn is_json(&self) -> bool {
        match self {
            Self::Up { common, .. }
            | Self::Status { common }
            | Self::Mine { common, .. }
            | Self::Env { common, .. }
            | Self::Kill { common, .. }
            | Self::Stop { common, .. }
            | Self::Start { common, .. }
            | Self::Load { common, .. }
            | Self::Down { common, .. } => common.json,
            Self::KeepLdk { .. } => false,
        }
    }

    /// Does it and prints the answer. Whether it was done.
    pub async fn run(self) -> bool {
        let is_json = self.is_json();
        match self.answer(&mut Report::new()).await {
            Ok(Answer { text, json, ok }) => {
                match (is_json, text.is_empty()) {
                    (true, _) => println!("{json}"),
                    (false, false) => println!("{text}"),
                    (false, true) => {}
                }
                ok
            }
            Err(error) if is_json => {
                println!("{}", json!({ "ok": false, "error": error.to_string() }));
                false
            }
            Err(error) => {
                eprintln!("error: {error}");
                false
            }
        }
    }

    async fn answer(self, report: &mut Report) -> Result<Answer, Error> {
        match self {
            Self::Up { wanted, common } => {
                let plan = wanted.plan()?;
                let stay = Stay::up(&common.folder()?, plan, report).await?;
                let mut answer = status(&stay).await?;
                answer.text += &format!("\n\n{}", what_now(&stay));
                Ok(answer)
            }
            Self::Status { common } => status(&common.open()?).await,
            Self::Mine { blocks, common } => mine(&common.open()?, blocks).await,
            Self::Env { node, common } => env(&common.open()?, &node),
            Self::Kill { node, common } => {
                let was_running = common.open_to_change()?.kill_node(&node)?;
                let text = if was_running { format!("{node} is dead") } else { format!("{node} did not run") };
                Ok(Answer::new(text, json!({ "ok": true, "node": node, "was_running": was_running })))
            }
            Self::Stop { node, common } => {
                let ending = common.open_to_change()?.stop_node(&node).await?;
                let text = match ending {
                    Ending::WasAway => format!("{node} did not run"),
                    Ending::Stopped => format!("{node} has stopped"),
                    Ending::Killed => format!("{node} did not stop in time, and was killed"),
                };
                Ok(Answer::new(text, json!({ "ok": true, "node": node, "was_running": ending != Ending::WasAway })))
            }
            Self::Start { node, common } => start(common.open_to_change()?, &node).await,
            Self::Load { rate, seconds, amount, seed, common } => {
                let lasts = seconds.map(Duration::from_secs);
                let order = Order { rate, lasts, amount_sat: amount, seed: seed.unwrap_or_else(seed_of_now) };
                let outcomes = common.open()?.load(order, report).await?;
                let json = serde_json::to_value(&outcomes).map_err(|error| Error::Wrong(error.to_string()))?;
                Ok(Answer { ok: outcomes.ok, text: outcomes.text(), json })
            }
            Self::Down { wipe, common } => down(&common, wipe, report).await,
            Self::KeepLdk { program, socket, driver_file } => {
                keeper::keep(&program, &socket, &driver_file).map_err(|source| Error::io("keep", &program, source))?;
                Ok(Answer::new(String::new(), json!({ "ok": true })))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn amounts() {
        assert_eq!(parse_amount("1000").unwrap(), 1000..=1000);
        assert_eq!(parse_amount("1..50").unwrap(), 1..=50);
        for text in ["0", "x", "5..1", "..7", "1..", "-1"] {
            assert!(parse_amount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_and_counts() {
        assert!((parse_rate("0.5").unwrap() - 0.5).abs() < 1e-9);
        for text in ["0", "NaN", "inf", "-3", "x"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        assert_eq!(parse_nodes("40").unwrap(), 40);
        assert!(parse_nodes("1").is_err() && parse_nodes("41").is_err());
    }

    #[test]
    fn nothing_said_is_no_plan_and_a_part_of_it_is_one() {
        let nothing = Wanted { nodes: None, topology: None, seed: None, file: None };
        assert_eq!(nothing.plan().unwrap(), None);
        let star = Wanted { topology: Some(Topology::Star), ..nothing.clone() };
        assert_eq!(star.plan().unwrap(), Some(Plan::topology(Topology::Star, 5, 0)));
        let missing = Wanted { file: Some("/no/such.toml".into()), ..nothing };
        assert!(missing.plan().unwrap_err().to_string().contains("/no/such.toml"));
    }
}
