//! The commands of `millrace-tower`.

mod admin;
mod ask;
mod identity;
mod run;
mod settings;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use secp256k1::PublicKey;

use settings::{Flags, SettingsError};

/// The tower refused, or could not go on.
const FAILED: u8 = 1;
/// The tower was not reached.
const NOT_REACHED: u8 = 2;
/// The command line or a setting is wrong.
const USAGE: u8 = 3;

/// A watchtower for Lightning nodes: it punishes revoked commitments while they are off, HTLCs included.
#[derive(Parser)]
#[command(name = "millrace-tower", version, about, args_override_self = true)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run the tower, until SIGINT or SIGTERM. Its address is printed first: PUBKEY@HOST:PORT.
    Run,
    /// Let a node in: it may have its channels watched, or hand over blobs. What is not named stays as it is; nothing named
    /// are 1,000 channels. The tower must be running.
    Allow {
        /// The node's tower key, in hexadecimal.
        client: PublicKey,
        /// How many channels it may have watched; 0 takes no more. For nodes of one's own.
        #[arg(long)]
        channels: Option<u32>,
        /// How many blobs it may hand over, one for each revoked commitment; 0 takes no more. For nodes of others.
        #[arg(long)]
        blobs: Option<u32>,
    },
    /// Show how the tower stands. It must be running.
    Status {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show the tower's address, PUBKEY@HOST:PORT, which nodes are given.
    Address,
}

/// What ends a command, by its exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    NotReached(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

impl Failure {
    const fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => FAILED,
            Self::NotReached(_) => NOT_REACHED,
            Self::Settings(_) => USAGE,
        }
    }
}

/// Runs the command that the command line names.
pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers, the rest is a mistake. Nothing is left to do if the terminal does not take it.
            let _ = error.print();
            return if error.exit_code() == 0 { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    match act(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Standard error may be closed.
            let _ = writeln!(std::io::stderr(), "millrace-tower: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

fn act(Arguments { flags, command }: Arguments) -> Result<(), Failure> {
    let settings = settings::load(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(error.to_string()))?;
    match command {
        Command::Run => runtime.block_on(run::run(settings)),
        Command::Allow { client, channels, blobs } => runtime.block_on(ask::allow(&settings, &client, channels, blobs)),
        Command::Status { json } => runtime.block_on(ask::status(&settings, json)),
        Command::Address => runtime.block_on(ask::address(&settings)),
    }
}

/// As `println!`, but a reader that has gone away is no reason to panic.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::Failed(error.to_string())),
        Ok(()) | Err(_) => Ok(()),
    }
}
