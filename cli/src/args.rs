//! The command line as people type it: flags that hold for every command, and the groups of commands.
//!
//! Each group's own arguments stand with the group. Every help text is written for people and shows examples;
//! `tests/help` holds them all, so that a change is seen.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use millrace_rpc::v1::{FeeChoice, Page, fee_choice};

use crate::{channel, events, forward, graph, invoice, node, pay, payment, peer, shell, tower, wallet, words};

/// Uses a Millrace node: its wallet, channels, invoices and payments.
#[derive(Parser)]
#[command(
    name = "millrace",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = EXIT_CODES,
    after_long_help = LONG_HELP,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused, 2 cannot reach the daemon, 3 usage, \
4 payment failed, 5 outcome unknown, 6 not authorised.";

const LONG_HELP: &str = "\
Examples:
  millrace node info
  millrace wallet new-address
  millrace peer connect 02ab…@203.0.113.7:9735
  millrace channel open 02ab… 0.01btc
  millrace invoice create 21sat --description \"coffee\"
  millrace pay lnbcrt210n1…
  millrace --network signet channel list --json

Amounts carry their unit: 21sat, 21000msat, 0.001btc.

On a terminal the answer is a table; piped, or with --json, it is JSON: one object, or with commands
that tell their progress one object per line. In JSON, amounts are whole numbers with the unit in their
name, ids are hex, times are Unix milliseconds.

Exit codes:
  0  done
  1  refused by the daemon: nothing has changed
  2  the daemon cannot be reached: nothing was asked of it
  3  the command cannot be understood
  4  the payment was tried and failed: no money has left
  5  outcome unknown: the connection broke after the daemon may have begun, or the answer could not be
     written; the same command with the same --idempotency-key finds out and never does it twice
  6  not authorised: the token is missing or wrong";

/// Flags that hold for every command.
#[derive(Args)]
pub(crate) struct Globals {
    /// Folder that the daemon keeps its data in [default: ~/.millrace]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "MILLRACE_DATA_DIR",
        hide_env_values = true,
        help_heading = "Which daemon"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// Network of the daemon [default: the only one that has run in the data folder]
    #[arg(
        long,
        global = true,
        value_name = "NETWORK",
        env = "MILLRACE_NETWORK",
        hide_env_values = true,
        help_heading = "Which daemon"
    )]
    pub(crate) network: Option<Network>,
    /// Address of the daemon [default: as in its rpc.json, else https://127.0.0.1:9737]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "MILLRACE_RPC",
        hide_env_values = true,
        help_heading = "Which daemon"
    )]
    pub(crate) rpc: Option<String>,
    /// The daemon's certificate [default: tls.cert in its folder]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MILLRACE_TLS_CERT",
        hide_env_values = true,
        help_heading = "Which daemon"
    )]
    pub(crate) tls_cert: Option<PathBuf>,
    /// File with the daemon's access token [default: access.token in its folder]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MILLRACE_TOKEN_FILE",
        hide_env_values = true,
        help_heading = "Which daemon"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Answer in JSON, errors too
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// Answer in tables even if the output is no terminal
    #[arg(long, global = true, conflicts_with = "json", help_heading = "Output")]
    pub(crate) table: bool,
    /// How long to try again with the same key after the connection broke
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = words::parse_duration, hide_short_help = true, help_heading = "Which daemon")]
    pub(crate) retry_for: Duration,
}

/// Networks that a daemon can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// A private chain for tests
    Regtest,
    /// The public test network with signed blocks
    Signet,
    /// The public test network, fourth
    Testnet4,
    /// Real money
    Bitcoin,
}

impl Network {
    pub(crate) const ALL: [Self; 4] = [Self::Regtest, Self::Signet, Self::Testnet4, Self::Bitcoin];

    /// Its name, which is its folder's as well.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Regtest => "regtest",
            Self::Signet => "signet",
            Self::Testnet4 => "testnet4",
            Self::Bitcoin => "bitcoin",
        }
    }
}

/// Groups of commands. Those with arguments of their own bring their help text along.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// The node itself: who it is, how it stands, stop it
    #[command(subcommand)]
    Node(node::Command),
    /// Coins on chain: addresses, balance, sending
    #[command(subcommand)]
    Wallet(wallet::Command),
    /// Connections to other Lightning nodes
    #[command(subcommand)]
    Peer(peer::Command),
    /// Watchtowers that keep watch while the node is off
    #[command(subcommand)]
    Tower(tower::Command),
    /// Payment channels: open, close, look at
    #[command(subcommand)]
    Channel(channel::Command),
    /// Invoices: make, read, look up
    #[command(subcommand)]
    Invoice(invoice::Command),
    /// The public graph: nodes, channels, terms
    #[command(subcommand)]
    Graph(graph::Command),
    Pay(pay::Pay),
    /// Payments made
    #[command(subcommand)]
    Payment(payment::Command),
    /// Payments of others that this node has passed on
    #[command(subcommand)]
    Forward(forward::Command),
    Events(events::Events),
    Completions(shell::Completions),
    #[command(hide = true)]
    Man(shell::Man),
}

/// The key of a command that changes something.
#[derive(Args)]
pub(crate) struct KeyArg {
    /// Makes the command happen once, however often it is given with this key [default: random]
    #[arg(long = "idempotency-key", value_name = "KEY")]
    pub(crate) key: Option<String>,
}

/// What a transaction should pay the miners.
#[derive(Args)]
pub(crate) struct FeeArgs {
    /// Aim at confirmation within this many blocks
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) target: Option<u32>,
    /// Pay exactly this, in satoshi per vbyte
    #[arg(long, value_name = "SAT_PER_VB", value_parser = words::parse_feerate, conflicts_with = "target")]
    pub(crate) feerate: Option<u32>,
}

impl FeeArgs {
    /// As the contract says it; none if the user left it to the node.
    pub(crate) fn choice(&self) -> Option<FeeChoice> {
        let target = self.target.map(fee_choice::Choice::TargetBlocks);
        let feerate = self.feerate.map(fee_choice::Choice::FeerateSatPerKw);
        let choice = target.or(feerate)?;
        Some(FeeChoice { choice: Some(choice) })
    }
}

/// Which part of a list.
#[derive(Args)]
pub(crate) struct PageArgs {
    /// How many entries at most, from 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Where to go on: the `next_cursor` of the answer before
    #[arg(long, value_name = "CURSOR", default_value = "", hide_default_value = true)]
    cursor: String,
}

impl PageArgs {
    /// As the contract says it.
    pub(crate) fn page(&self) -> Option<Page> {
        Some(Page { size: self.limit, cursor: self.cursor.clone() })
    }
}
