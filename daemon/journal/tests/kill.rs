//! A process that writes in a loop is killed, again and again, and loses nothing that it acknowledged.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use millrace_journal::{Checkpoint, Journal, Options, Position, Section};

const FOLDER: &str = "MILLRACE_JOURNAL_KILL_FOLDER";
const ROUNDS: u64 = 10;

fn options() -> Options {
    Options { segment_bytes: 256 << 10, reserve_bytes: 256 << 10, history_file_bytes: 64 << 10 }
}

fn step(ticket: u64) -> Vec<u8> {
    let mut bytes = ticket.to_le_bytes().to_vec();
    bytes.resize(8 + usize::try_from(ticket * 7919 % 3000).unwrap(), 0x5a);
    bytes
}

/// The child: writes until it is killed, and says on standard output what is durable.
fn write_for_ever(dir: &Path) {
    let (journal, recovered) = Journal::open(dir, options()).unwrap();
    drop(recovered);
    let mut out = std::io::stdout();
    for round in 0_u64.. {
        for _ in 0..=(round % 13) {
            let ticket = journal.durable_up_to().0.max(journal.flush_barrier().unwrap().0) + 1;
            let taken = journal.submit(step(ticket), None).unwrap();
            assert_eq!(taken.0, ticket);
            journal.submit(step(ticket + 1), None).unwrap();
        }
        let durable = journal.flush_barrier().unwrap();
        writeln!(out, "acknowledged {}", durable.0).unwrap();
        if round % 10 == 9 {
            let end = journal.durable_end();
            journal.history().append(end, &[]).unwrap();
            write_checkpoint(&journal, end, durable.0);
        }
    }
}

fn write_checkpoint(journal: &Journal, replay_from: Position, ticket: u64) {
    let sections = vec![Section { name: b"ticket".to_vec(), bytes: ticket.to_le_bytes().to_vec() }];
    journal.write_checkpoint(&Checkpoint { replay_from, sections }).unwrap();
}

/// Lets the child write for a while, kills it, and returns the last ticket it acknowledged.
fn run_and_kill(dir: &Path, after: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill_while_writing", "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n').map(Result::unwrap);
    let mut acknowledged = lines.find_map(|line| acknowledged_in(&line)).unwrap();
    let reading = std::thread::spawn(move || lines.filter_map(|line| acknowledged_in(&line)).last());
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    acknowledged = reading.join().unwrap().unwrap_or(acknowledged);
    acknowledged
}

fn acknowledged_in(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?;
    line.split_once("acknowledged ")?.1.parse().ok()
}

#[test]
fn kill_while_writing() {
    if let Some(dir) = std::env::var_os(FOLDER) {
        return write_for_ever(Path::new(&dir));
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("journal");
    let mut last = 0;
    for round in 0..ROUNDS {
        let acknowledged = run_and_kill(&dir, Duration::from_millis(5 + 17 * round));
        assert!(acknowledged > last, "round {round} wrote nothing");
        let (journal, recovered) = Journal::open(&dir, options()).unwrap();
        let mut ticket = recovered
            .checkpoint
            .map_or(0, |checkpoint| u64::from_le_bytes(checkpoint.sections[0].bytes.clone().try_into().unwrap()));
        for found in recovered.tail {
            let found = found.unwrap();
            ticket += 1;
            assert_eq!(found.ticket.0, ticket);
            assert!(found.bytes == step(ticket), "step {ticket} differs");
        }
        assert!(ticket >= acknowledged, "round {round}: {acknowledged} acknowledged, {ticket} left");
        assert_eq!(journal.durable_up_to().0, ticket);
        last = ticket;
    }
}
