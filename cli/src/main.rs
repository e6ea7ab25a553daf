//! `millrace`: the command line of a Millrace node.
//!
//! It talks to the daemon over gRPC and to nothing else. It keeps no state and decides nothing about money:
//! it parses, asks, and shows the answer. Exit codes stand in `fault`.

mod amount;
mod args;
mod channel;
mod estimate;
mod events;
mod fault;
mod forward;
mod graph;
mod invoice;
mod locate;
mod node;
mod output;
mod pay;
mod payment;
mod peer;
mod progress;
mod session;
mod shell;
mod tower;
mod wallet;
mod words;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, Globals};
use fault::Fault;
use locate::Location;
use output::Output;
use session::Session;

/// clap's own code for usage errors is another.
const EXIT_USAGE: u8 = 3;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. If they cannot be printed, there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let json_errors = cli.globals.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            if json_errors {
                eprintln!("{}", fault.to_json());
            } else {
                eprintln!("{}", fault.to_text());
            }
            ExitCode::from(fault.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Fault> {
    let mut output = Output::new(&cli.globals);
    match cli.command {
        Command::Completions(completions) => completions.run(&mut output),
        Command::Man(man) => man.run(&mut output),
        online => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| Fault::Io { what: "starting".to_owned(), source })?;
            runtime.block_on(ask(online, &cli.globals, &mut output))
        }
    }
}

/// The commands that need the daemon.
async fn ask(command: Command, globals: &Globals, output: &mut Output) -> Result<(), Fault> {
    let session = || Session::new(Location::find(globals)?, globals.retry_for);
    match command {
        Command::Node(command) => command.run(&session()?, output).await,
        Command::Wallet(command) => command.run(&session()?, output).await,
        Command::Peer(command) => command.run(&session()?, output).await,
        Command::Tower(command) => command.run(&session()?, output).await,
        Command::Channel(command) => command.run(&session()?, output).await,
        Command::Invoice(command) => command.run(&session()?, output).await,
        Command::Graph(command) => command.run(&session()?, output).await,
        Command::Pay(pay) => pay.run(&session()?, output).await,
        Command::Payment(command) => command.run(&session()?, output).await,
        Command::Forward(command) => command.run(&session()?, output).await,
        Command::Events(events) => events.run(&session()?, output).await,
        Command::Completions(completions) => completions.run(output),
        Command::Man(man) => man.run(output),
    }
}
