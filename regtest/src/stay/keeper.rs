//! Keeps an ldk-node running for a network that stays.
//!
//! The driver (`regtest/ldk`) ends with its standard input, so somebody must hold that: this, a process of its own. It
//! passes lines on between the driver and whoever connects to a socket in the network's folder, and knows nothing of
//! Lightning. Every caller gets the answers to its own commands, and every event from when it connected on; nothing is
//! kept. When the driver ends, so does the keeper, and the other way round.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::Serialize;

use super::detached::Detached;
use crate::ldk::protocol::{Line, Request};

/// Lines that wait for one caller. One that does not read them is cut off: it must not hold up the others.
const LINES_MAX: usize = 4096;

/// The longest path of a socket that every system takes.
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 100;

/// What all threads see.
struct Shared {
    input: Mutex<ChildStdin>,
    callers: Mutex<Callers>,
}

#[derive(Default)]
struct Callers {
    next_id: u64,
    /// Where each caller's lines go.
    lines: HashMap<u64, SyncSender<Vec<u8>>>,
    /// Whose a command is, and its number there, by the number that the driver knows.
    commands: HashMap<u64, (u64, u64)>,
}

/// Runs the driver until it ends. Who the driver is, is put down in `driver_file`; the socket is there from when callers
/// are heard.
///
/// # Errors
/// If the driver does not start, or the socket cannot be made.
pub(super) fn keep(program: &Path, socket: &Path, driver_file: &Path) -> io::Result<()> {
    let _ = fs::remove_file(socket);
    // What the driver says apart from the protocol goes where our own words go.
    let mut driver = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let kept = Detached::of(driver.id()).and_then(|it| it.write(driver_file)).and_then(|()| run(&mut driver, socket));
    // Its end is why we are here, unless something failed before.
    let _ = driver.kill();
    let _ = driver.wait();
    let _ = fs::remove_file(socket);
    kept
}

fn run(driver: &mut Child, socket: &Path) -> io::Result<()> {
    let (Some(input), Some(output)) = (driver.stdin.take(), driver.stdout.take()) else {
        return Err(io::Error::other("the driver has no standard input or output"));
    };
    let shared = Arc::new(Shared { input: Mutex::new(input), callers: Mutex::default() });
    let listener = UnixListener::bind(socket)?;
    let hears = shared.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = hears.clone();
            thread::spawn(move || hear(&shared, stream));
        }
    });
    for line in BufReader::new(output).split(b'\n') {
        shared.pass_on(&line?);
    }
    Ok(())
}

/// One caller: until it hangs up, or says something that is no command.
fn hear(shared: &Shared, stream: UnixStream) {
    let Ok(writes) = stream.try_clone() else { return };
    let (sender, lines) = sync_channel(LINES_MAX);
    let caller = {
        let mut callers = shared.callers();
        callers.next_id += 1;
        let caller = callers.next_id;
        callers.lines.insert(caller, sender);
        caller
    };
    let writer = thread::spawn(move || write_lines(writes, &lines));
    for line in BufReader::new(stream).lines() {
        let Ok(request) = line.and_then(|line| serde_json::from_str::<Request>(&line).map_err(io::Error::from)) else {
            break;
        };
        if shared.command(caller, request).is_err() {
            break;
        }
    }
    shared.callers().forget(caller);
    let _ = writer.join();
}

fn write_lines(mut stream: UnixStream, lines: &Receiver<Vec<u8>>) {
    while let Ok(line) = lines.recv() {
        if stream.write_all(&line).is_err() {
            break;
        }
    }
    // Also ends the reading half: a caller that is cut off must notice.
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

impl Shared {
    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller's command, under a number of our own.
    fn command(&self, caller: u64, request: Request) -> io::Result<()> {
        let id = {
            let mut callers = self.callers();
            callers.next_id += 1;
            let id = callers.next_id;
            callers.commands.insert(id, (caller, request.id));
            id
        };
        let line = line_of(&Request { id, command: request.command })?;
        self.input.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }

    /// A line of the driver's, to whom it concerns.
    fn pass_on(&self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            eprintln!("a line that is none of the driver's: {}", String::from_utf8_lossy(line));
            return;
        };
        let mut callers = self.callers();
        match line {
            Line::Answer { id, outcome } => {
                let Some((caller, id)) = callers.commands.remove(&id) else { return };
                callers.send(&[caller], &Line::Answer { id, outcome });
            }
            Line::Event(event) => {
                let all: Vec<u64> = callers.lines.keys().copied().collect();
                callers.send(&all, &Line::Event(event));
            }
        }
    }
}

impl Callers {
    fn send(&mut self, to: &[u64], line: &Line) {
        let Ok(line) = line_of(line) else { return };
        for caller in to {
            let is_sent = self.lines.get(caller).is_some_and(|lines| lines.try_send(line.clone()).is_ok());
            if !is_sent {
                self.forget(*caller);
            }
        }
    }

    fn forget(&mut self, caller: u64) {
        self.lines.remove(&caller);
        self.commands.retain(|_, (of, _)| *of != caller);
    }
}

fn line_of<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ldk::protocol;
    use std::time::{Duration, Instant};

    /// A driver that answers each command with its own number as an address, tells an event before each answer, and ends
    /// at `"stop"`.
    const DRIVER: &str = r#"#!/bin/sh
while read -r line; do
    id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
    echo '{"event":{"channel_ready":{"channel_id":"'"$id"'"}}}'
    echo '{"answer":{"id":'"$id"',"outcome":{"done":{"address":"'"$id"'"}}}}'
    case "$line" in *'"stop"'*) exit;; esac
done
"#;

    struct Kept {
        folder: tempfile::TempDir,
        keeper: Option<thread::JoinHandle<io::Result<()>>>,
    }

    impl Kept {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let program = folder.path().join("driver");
            fs::write(&program, DRIVER).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(&program, mode).unwrap();
            let (socket, who) = (folder.path().join("socket"), folder.path().join("who"));
            let keeper = Some(thread::spawn(move || keep(&program, &socket, &who)));
            let kept = Self { folder, keeper };
            let until = Instant::now() + Duration::from_secs(10);
            while !kept.folder.path().join("socket").exists() {
                assert!(Instant::now() < until, "no socket");
                thread::sleep(Duration::from_millis(10));
            }
            kept
        }

        fn call(&self) -> (UnixStream, BufReader<UnixStream>) {
            let stream = UnixStream::connect(self.folder.path().join("socket")).unwrap();
            (stream.try_clone().unwrap(), BufReader::new(stream))
        }
    }

    /// Gives a command, and reads until its answer.
    fn ask(caller: &mut (UnixStream, BufReader<UnixStream>), id: u64, command: protocol::Command) -> (u64, usize) {
        caller.0.write_all(&line_of(&Request { id, command }).unwrap()).unwrap();
        let mut events = 0;
        loop {
            let mut text = String::new();
            caller.1.read_line(&mut text).unwrap();
            match serde_json::from_str(&text).unwrap() {
                Line::Answer { id, .. } => return (id, events),
                Line::Event(_) => events += 1,
            }
        }
    }

    #[test]
    fn two_callers_with_the_same_numbers_each_get_their_own_answers() {
        let mut kept = Kept::start();
        let (mut one, mut other) = (kept.call(), kept.call());
        assert_eq!(ask(&mut one, 7, protocol::Command::NodeId), (7, 1));
        // The other may have come after the first event; it has no answer to the first's command.
        assert_eq!(ask(&mut other, 7, protocol::Command::Sync).0, 7);
        assert_eq!(ask(&mut one, 8, protocol::Command::Stop).0, 8);
        kept.keeper.take().unwrap().join().unwrap().unwrap();
        assert!(!kept.folder.path().join("socket").exists());
        assert_eq!(Detached::find(&kept.folder.path().join("who")), None);
    }

    #[test]
    fn a_caller_that_talks_nonsense_is_cut_off_and_the_others_are_not() {
        let mut kept = Kept::start();
        let (mut one, mut other) = (kept.call(), kept.call());
        one.0.write_all(b"hello\n").unwrap();
        let mut rest = String::new();
        assert_eq!(one.1.read_line(&mut rest).unwrap(), 0, "{rest}");
        assert_eq!(ask(&mut other, 1, protocol::Command::Stop).0, 1);
        kept.keeper.take().unwrap().join().unwrap().unwrap();
    }
}
