//! One connection with a peer: one task that reads, one that writes.
//!
//! The reader is the slower the more it makes us do; the writer sends what the channels want, pings a silent peer, and
//! ends the connection if the peer does not answer. Whichever ends first ends the other. There is no cycle: the writer
//! waits for the socket only, and the reader for the shards, which wait for neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_wire::{Message, Ping};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::inbox::{Inbox, MustEnd};
use super::link::{Outgoing, Queued};
use super::wire::{WireError, WireReader, WireWriter};
use crate::metrics;

/// What is encrypted before it is written at once.
const WRITE_BYTES: usize = 64 << 10;
/// How long one write may take: a peer that takes nothing for so long is gone.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often the pings are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a connection has ended, in words for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed(pub String);

/// When a silent peer is pinged, and when given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PingRules {
    pub(super) after: Duration,
    pub(super) timeout: Duration,
}

/// What both tasks know of the peer's life.
#[derive(Debug)]
pub(super) struct Pulse {
    started: Instant,
    heard_ms: AtomicU64,
    /// How long the last answer to a ping took, in microseconds, and one more; 0 if there was none.
    ping_us: AtomicU64,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), heard_ms: AtomicU64::new(0), ping_us: AtomicU64::new(0) }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn heard(&self) {
        self.heard_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms().saturating_sub(self.heard_ms.load(Ordering::Relaxed)))
    }

    /// How long the last answer to a ping took, in microseconds.
    pub(super) fn ping_us(&self) -> Option<u64> {
        self.ping_us.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// The two ends of a connection.
pub(super) struct Ends {
    pub(super) reader: WireReader,
    pub(super) writer: WireWriter,
    pub(super) outgoing: mpsc::UnboundedReceiver<Outgoing>,
    pub(super) queued: Arc<Queued>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) pings: PingRules,
}

/// Runs a connection until it ends.
pub(super) async fn run(ends: Ends, mut inbox: Inbox) -> Closed {
    let Ends { mut reader, writer, outgoing, queued, pulse, pings } = ends;
    let link = inbox.link.clone();
    let sent = ::metrics::counter!(metrics::PEER_MESSAGES, "direction" => "sent");
    let htlc_signatures = ::metrics::counter!(metrics::HTLC_SIGNATURES);
    let pulse_of_writer = Arc::clone(&pulse);
    let writing =
        Writing { writer, outgoing, queued, pulse: pulse_of_writer, pings, ping: None, sent, htlc_signatures };
    let mut writer = tokio::spawn(writing.run());
    tokio::select! {
        why = read(&mut reader, &mut inbox, &pulse) => {
            link.close(why.0.clone());
            if timeout(LAST_WORDS, &mut writer).await.is_err() {
                writer.abort();
            }
            why
        }
        why = &mut writer => why.unwrap_or_else(|_| Closed("the writer has ended".to_owned())),
    }
}

async fn read(reader: &mut WireReader, inbox: &mut Inbox, pulse: &Pulse) -> Closed {
    let received = ::metrics::counter!(metrics::PEER_MESSAGES, "direction" => "received");
    loop {
        if let Err(MustEnd(why)) = inbox.may_read().await {
            return Closed(why);
        }
        let bytes = match reader.next().await {
            Ok(bytes) => bytes,
            Err(error) if error.is_end() => return Closed("the peer closed the connection".to_owned()),
            Err(error) => return Closed(error.to_string()),
        };
        pulse.heard();
        received.increment(1);
        if let Err(MustEnd(why)) = inbox.on_bytes(bytes).await {
            return Closed(why);
        }
    }
}

struct Writing {
    writer: WireWriter,
    outgoing: mpsc::UnboundedReceiver<Outgoing>,
    queued: Arc<Queued>,
    pulse: Arc<Pulse>,
    pings: PingRules,
    /// When a ping was sent that nothing has come after.
    ping: Option<Instant>,
    sent: ::metrics::Counter,
    /// Of `commitment_signed`: what an HTLC costs most.
    htlc_signatures: ::metrics::Counter,
}

impl Writing {
    async fn run(mut self) -> Closed {
        let why = match self.write().await {
            Ok(closed) => closed,
            Err(error) => Closed(error.to_string()),
        };
        // Those who wait for the queue to sink must not wait for a socket that is gone.
        self.outgoing.close();
        while let Some(outgoing) = self.outgoing.recv().await {
            self.queued.written(outgoing.weight());
        }
        self.writer.end().await;
        why
    }

    async fn write(&mut self) -> Result<Closed, WireError> {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                outgoing = self.outgoing.recv() => match outgoing {
                    Some(outgoing) => {
                        if let Some(closed) = self.on_outgoing(outgoing).await? {
                            return Ok(closed);
                        }
                    }
                    None => return Ok(Closed("nobody needs the connection any more".to_owned())),
                },
                _ = ticks.tick() => {
                    if let Some(closed) = self.on_tick().await? {
                        return Ok(closed);
                    }
                }
            }
        }
    }

    /// Writes one message, and with it all that waits behind.
    async fn on_outgoing(&mut self, first: Outgoing) -> Result<Option<Closed>, WireError> {
        let mut next = Some(first);
        let mut bytes = 0;
        let mut closed = None;
        while let Some(outgoing) = next {
            bytes += outgoing.weight();
            match outgoing {
                Outgoing::Message(message) => {
                    self.writer.put(&message)?;
                    self.sent.increment(1);
                    if let Message::CommitmentSigned(signed) = &*message {
                        self.htlc_signatures.increment(signed.htlc_signatures.len() as u64);
                    }
                }
                Outgoing::Bytes(message) => {
                    self.writer.put_bytes(&message)?;
                    self.sent.increment(1);
                }
                Outgoing::Close(why) => {
                    closed = Some(Closed(why));
                    break;
                }
            }
            next = if self.writer.waiting_bytes() < WRITE_BYTES { self.outgoing.try_recv().ok() } else { None };
        }
        let flushed = self.flush().await;
        self.queued.written(bytes);
        flushed.map(|()| closed)
    }

    async fn on_tick(&mut self) -> Result<Option<Closed>, WireError> {
        let silent = self.pulse.silent_for();
        match self.ping {
            Some(sent) if sent.elapsed() > silent => {
                // Something came after the ping. Only an idle peer is pinged, so that was the answer.
                let took = sent.elapsed().saturating_sub(silent);
                let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.pulse.ping_us.store(took_us.saturating_add(1), Ordering::Relaxed);
                self.ping = None;
            }
            Some(sent) if sent.elapsed() > self.pings.timeout => {
                return Ok(Some(Closed(format!("no pong within {} s", self.pings.timeout.as_secs()))));
            }
            Some(_) => {}
            None if silent > self.pings.after => {
                self.writer.put(&Message::Ping(Ping { num_pong_bytes: 1, ignored_len: 0 }))?;
                self.sent.increment(1);
                self.flush().await?;
                self.ping = Some(Instant::now());
            }
            None => {}
        }
        Ok(None)
    }

    async fn flush(&mut self) -> Result<(), WireError> {
        match timeout(WRITE_PATIENCE, self.writer.flush()).await {
            Ok(flushed) => flushed,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }
}
