//! `millraced`: reads the settings and starts the node.
//!
//! Exit codes: 0 done; 1 the node could not start, or ended by a fault; 3 the command line or a setting is wrong;
//! 130 stopped at once by a second signal.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use millraced::config::{self, Action, Config, ConfigError, Loaded, Surroundings, network_name};
use millraced::prepare::{Prepared, prepare, restore_seed};
use millraced::seed::Seed;
use millraced::{log, run, seed, shutdown};
use rustix::fs::Mode;

/// The node could not start, or ended by a fault.
const FAILED: u8 = 1;
/// The command line or a setting is wrong.
const USAGE: u8 = 3;
/// How long tasks may take to end with the node.
const LAST_TASKS: Duration = Duration::from_secs(2);
/// What the operator types to see the seed.
const CONFIRMATION: &str = "show";

/// What ends the program with a message.
type Fault = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // Libraries make files as well (the view's are sled's): whoever makes one, it is its owner's alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let loaded = match config::load(&Surroundings::of_process()) {
        Ok(loaded) => loaded,
        Err(ConfigError::Arguments(error)) => return usage(&error),
        Err(error) => return complain(&error, USAGE),
    };
    match act(loaded) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(error.as_ref(), FAILED),
    }
}

fn act(loaded: Loaded) -> Result<(), Fault> {
    match &loaded.action {
        Action::Run => start(loaded),
        Action::PrintConfig => print(&loaded.render()),
        Action::CheckConfig => {
            loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            print("The settings are right.\n")
        }
        Action::PrintExampleConfig => print(&Config::example()),
        Action::PrintSeed => print_seed(&loaded.config),
        Action::RestoreSeed(words_file, from_height) => {
            let (keys, from) = restore_seed(&loaded.config, words_file, *from_height)?;
            let folder = loaded.config.data_dir.display();
            print(&format!(
                "The seed is in {folder}. The node's id is {}. The next start looks for its coins in every block from {from} on.\n",
                keys.node_id()
            ))
        }
    }
}

fn start(loaded: Loaded) -> Result<(), Fault> {
    log::start(loaded.config.log, &loaded.config.log_level)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let mut prepared = prepare(loaded.config)?;
    if let Some(seed) = prepared.new_seed.take() {
        show_new_seed(&seed, &prepared)?;
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        network = network_name(prepared.config.network),
        node_id = %prepared.keys.node_id(),
        data_dir = %prepared.data_dir.path().display(),
        "starting"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (trigger, shutdown) = shutdown::on_signals()?;
        run::run(prepared, trigger, shutdown).await
    });
    // What still runs belongs to a node that has ended.
    runtime.shutdown_timeout(LAST_TASKS);
    ended.map_err(|fault| -> Fault { fault })
}

/// On a terminal the words are shown, once; elsewhere they would end up in somebody's log.
fn show_new_seed(seed: &Seed, prepared: &Prepared) -> Result<(), Fault> {
    if io::stdout().is_terminal() {
        let text = "A new seed was made. Write these 24 words on paper, in this order, and keep them safe: whoever has \
                    them has your coins, and without them the coins are lost with this disk.\n\n";
        return print(&format!("{text}{}\n", *seed.for_paper()));
    }
    let folder = prepared.data_dir.path().display();
    tracing::warn!("a new seed was made; write its words down: millraced --data-dir {folder} --print-seed");
    Ok(())
}

fn print_seed(config: &Config) -> Result<(), Fault> {
    let seed = seed::look(&config.data_dir)?;
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err("the seed is shown on a terminal only, not to a pipe or a file".into());
    }
    let question = format!("Whoever sees the 24 words has your coins. Type `{CONFIRMATION}` to see them here: ");
    print(&question)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != CONFIRMATION {
        return print("Not shown.\n");
    }
    print(&format!("\n{}", *seed.for_paper()))
}

/// As `println!`, but a reader that has gone away (`| head`) is no reason to panic.
fn print(text: &str) -> Result<(), Fault> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Help and version are answers, the rest is a mistake.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when the terminal does not take it.
    let _ = error.print();
    if error.exit_code() == 0 { ExitCode::SUCCESS } else { ExitCode::from(USAGE) }
}

fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    // Standard error may be closed.
    let _ = writeln!(io::stderr(), "millraced: {error}");
    ExitCode::from(code)
}
