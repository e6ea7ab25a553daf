//! The driver's process: commands go in, answers and events come out.
//!
//! It needs no shell around it (as `supervisor` puts one around programs that do not know us): the driver ends by itself
//! when its standard input does, however this process ends. One that a keeper holds is reached by a socket instead, and
//! goes on without us.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::protocol::{self, Event, Line, Outcome, Reply, Request};

/// How often the end of the process is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long one command may take: a start reads the whole chain of a test, a stop waits for LDK's own timers.
const CALL_LIMIT: Duration = Duration::from_secs(90);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The driver says no.
    #[error("{0}")]
    Refused(String),
    /// The process has ended, or does not listen.
    #[error("it does not answer: the process has ended")]
    Gone,
    /// Too long.
    #[error("it does not answer within {} s", CALL_LIMIT.as_secs())]
    Late,
}

/// What both the reader and the callers see.
#[derive(Default)]
struct Shared {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
    /// Everything that happened, with the moment: the record of a run, no longer than the run.
    events: Mutex<Vec<(Instant, Event)>>,
    news: Notify,
    /// Set when nothing will come any more.
    ended: std::sync::atomic::AtomicBool,
}

/// A running driver. Dropping it kills it, unless a keeper holds it.
pub(super) struct Process {
    /// None if a keeper holds it.
    child: Option<Child>,
    input: Option<Mutex<Box<dyn Write + Send>>>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

impl Process {
    /// Starts the program; what it says apart from the protocol goes to the end of the file `words`.
    pub(super) fn start(program: &Path, words: &Path) -> std::io::Result<Self> {
        let words = File::options().create(true).append(true).open(words)?;
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(words).spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Ok(Self::talk(Some(child), stdin.map(|stdin| Box::new(stdin) as Box<_>), stdout))
    }

    /// One that a keeper holds, by its socket. Its events are those from now on.
    pub(super) fn attach(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        let reads = stream.try_clone()?;
        Ok(Self::talk(None, Some(Box::new(stream)), Some(reads)))
    }

    fn talk(
        child: Option<Child>,
        input: Option<Box<dyn Write + Send>>,
        output: Option<impl Read + Send + 'static>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        if let Some(output) = output {
            let shared = shared.clone();
            thread::spawn(move || read(BufReader::new(output), &shared));
        }
        Self { child, input: input.map(Mutex::new), shared, next_id: AtomicU64::new(1) }
    }

    /// The process's id; of one that a keeper holds, the keeper's file says it.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Gives a command and waits for its answer.
    pub(super) async fn call(&self, command: protocol::Command) -> Result<Reply, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        if self.shared.ended.load(Ordering::SeqCst) || self.write(&Request { id, command }).is_err() {
            self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            return Err(CallError::Gone);
        }
        match tokio::time::timeout(CALL_LIMIT, receiver).await {
            Ok(Ok(Outcome::Done(reply))) => Ok(reply),
            Ok(Ok(Outcome::Refused(reason))) => Err(CallError::Refused(reason)),
            Ok(Err(_)) => Err(CallError::Gone),
            Err(_) => Err(CallError::Late),
        }
    }

    fn write(&self, request: &Request) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        let Some(input) = &self.input else { return Err(std::io::ErrorKind::BrokenPipe.into()) };
        input.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text)
    }

    /// Everything that happened so far.
    pub(super) fn events(&self) -> Vec<Event> {
        let events = self.shared.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().map(|(_, event)| event.clone()).collect()
    }

    /// The event with this number; waits for it. `None` if the process ends first.
    pub(super) async fn event(&self, number: usize) -> Option<(Instant, Event)> {
        loop {
            let news = self.shared.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let has_ended = self.shared.ended.load(Ordering::SeqCst);
            let found = self.shared.events.lock().unwrap_or_else(PoisonError::into_inner).get(number).cloned();
            if found.is_some() || has_ended {
                return found;
            }
            news.await;
        }
    }

    /// Whether it has ended.
    pub(super) fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => !self.shared.ended.load(Ordering::SeqCst),
        }
    }

    /// Waits for its end; whether it came.
    pub(super) fn wait_for(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() > until {
                return false;
            }
            thread::sleep(LOOK_AGAIN);
        }
        true
    }

    /// Kills it and waits until it is gone. From one that a keeper holds we only hang up.
    pub(super) fn kill(&mut self) -> std::io::Result<()> {
        self.input = None;
        let Some(child) = &mut self.child else { return Ok(()) };
        child.kill()?;
        child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, which is what is wanted.
        let _ = self.kill();
    }
}

fn read(mut lines: impl BufRead, shared: &Shared) {
    let mut text = String::new();
    while matches!(lines.read_line(&mut text), Ok(length) if length > 0) {
        match serde_json::from_str(&text) {
            Ok(Line::Answer { id, outcome }) => {
                let waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                if let Some(waiting) = waiting {
                    // Whoever gave up waiting does not want it.
                    let _ = waiting.send(outcome);
                }
            }
            Ok(Line::Event(event)) => {
                shared.events.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), event));
                shared.news.notify_waiters();
            }
            Err(error) => {
                let text = format!("a line that is none of the driver's: {error}: {text}");
                shared
                    .events
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((Instant::now(), Event::Other { text }));
            }
        }
        text.clear();
    }
    shared.ended.store(true, Ordering::SeqCst);
    // Dropping what the callers wait on tells them.
    shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    shared.news.notify_waiters();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_that_ends_answers_every_caller() {
        let folder = tempfile::tempdir().unwrap();
        // `head` takes one line, writes it back (it is no line of the driver's) and ends.
        let script = folder.path().join("one-line");
        std::fs::write(&script, "#!/bin/sh\nexec head -n 1\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&script, mode).unwrap();
        let process = Process::start(&script, &folder.path().join("words")).unwrap();
        assert!(matches!(process.call(protocol::Command::NodeId).await, Err(CallError::Gone)));
        assert!(matches!(process.call(protocol::Command::NodeId).await, Err(CallError::Gone)));
        assert!(matches!(process.event(0).await, Some((_, Event::Other { .. }))));
        assert!(process.event(1).await.is_none());
    }

    #[test]
    fn answers_and_events_are_told_apart() {
        let shared = Shared::default();
        let (sender, mut receiver) = oneshot::channel();
        shared.waiting.lock().unwrap().insert(7, sender);
        let lines = b"{\"event\":{\"channel_ready\":{\"channel_id\":\"00\"}}}\n\
            {\"answer\":{\"id\":7,\"outcome\":{\"refused\":\"no\"}}}\n";
        read(&lines[..], &shared);
        assert!(matches!(receiver.try_recv(), Ok(Outcome::Refused(reason)) if reason == "no"));
        let events = shared.events.lock().unwrap();
        assert!(matches!(&events[..], [(_, Event::ChannelReady { channel_id })] if channel_id == "00"));
    }
}
