//! A real ldk-node, driven over standard input: one JSON command a line, one JSON answer a line on standard output, and
//! events between them (`protocol`).
//!
//! The end of standard input ends the process at once, as a kill would: so it never outlives whoever started it. It reads
//! no arguments and decides nothing; all that it knows of Lightning is ldk-node.

mod driver;
mod output;
#[path = "../../src/ldk/protocol.rs"]
#[allow(unreachable_pub)]
mod protocol;
mod translate;

use std::io::BufRead;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use driver::Driver;
use protocol::{Event, Line, Outcome, Request};

/// Commands that run at the same time. ldk-node's calls block until they are on disk, and many payments begin at once.
const WORKERS: usize = 8;

/// Commands that wait. When there are more, the reader stops reading, and whoever writes them waits.
const QUEUE: usize = 1024;

fn main() -> ExitCode {
    // A node with a dead thread answers some calls and never others: better none.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        output::write(&Line::Event(Event::Panicked { text: info.to_string() }));
        std::process::abort();
    }));
    let driver = Arc::new(Driver::default());
    let (sender, receiver) = sync_channel(QUEUE);
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..WORKERS {
        let (driver, receiver) = (driver.clone(), receiver.clone());
        thread::spawn(move || work(&driver, &receiver));
    }
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str::<Request>(&line) {
            Ok(request) => {
                if sender.send(request).is_err() {
                    break;
                }
            }
            Err(error) => {
                eprintln!("not a command: {error}: {line}");
                return ExitCode::from(2);
            }
        }
    }
    // Not by returning from here with a node that runs: its threads would be waited for.
    std::process::exit(0)
}

fn work(driver: &Arc<Driver>, receiver: &Mutex<Receiver<Request>>) {
    loop {
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Request { id, command }) = next else { return };
        let is_last = matches!(command, protocol::Command::Stop);
        let outcome = match driver.execute(command) {
            Ok(reply) => Outcome::Done(reply),
            Err(reason) => Outcome::Refused(reason),
        };
        output::write(&Line::Answer { id, outcome });
        if is_last {
            std::process::exit(0);
        }
    }
}
