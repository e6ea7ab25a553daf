//! The task behind a client: it calls the tower, tells what is to be told, hears what comes, and begins again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bitcoin::OutPoint;
use millrace_wire::{ChannelId, CommitmentNumber};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, sleep_until};

use super::{Event, Link, Shared};
use crate::message::{About, Message, PROTOCOL, Reason};
use crate::receipt::Receipt;
use crate::tower::Held;
use crate::transport::{Connection, ConnectionError, MessageReader, MessageWriter, call, in_time};

/// The first pause before calling again; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a call may take.
const CALL_TIME: Duration = Duration::from_secs(10);
/// How long the tower may take to say what it has.
const WELCOME_TIME: Duration = Duration::from_secs(60);
/// How often the tower is pinged.
const PING_EVERY: Duration = Duration::from_secs(20);
/// A tower that says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What was refused is tried again after so long.
const REST: Duration = Duration::from_secs(30);
/// Messages that are made at once.
const MESSAGES_MAX: usize = 256;
/// Messages that were read and wait.
const READ_MAX: usize = 256;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Said(String),
}

/// Talks to the tower for ever.
pub(super) async fn run(shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    let mut pause = PAUSE_MIN;
    loop {
        let begun = Instant::now();
        let Err(ended) = Talk::new(&shared, &events).run().await;
        let why = ended.to_string();
        tracing::info!(tower = %shared.config.tower, why, "no connection with the watchtower");
        shared.link.send_replace(Link::Down(why));
        // A connection that lasted was a good one.
        pause = if begun.elapsed() > PAUSE_MAX { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        sleep(pause).await;
    }
}

struct Talk<'a> {
    shared: &'a Shared,
    events: &'a mpsc::Sender<Event>,
}

/// Nothing: a connection only ends by an error.
enum Never {}

impl<'a> Talk<'a> {
    fn new(shared: &'a Shared, events: &'a mpsc::Sender<Event>) -> Self {
        Self { shared, events }
    }

    async fn run(&self) -> Result<Never, Ended> {
        let config = &self.shared.config;
        let connect = async { Ok::<TcpStream, ConnectionError>(TcpStream::connect(&config.address).await?) };
        let socket = in_time("the call", CALL_TIME, connect).await?;
        let traffic = Arc::clone(&self.shared.traffic);
        let Connection { mut reader, mut writer, .. } = call(socket, config.key, config.tower, traffic).await?;
        writer.send(&Message::Hello { version: PROTOCOL, chain_hash: config.chain_hash }).await?;
        self.shared.book.begin();
        in_time("the tower's account", WELCOME_TIME, self.welcome(&mut reader)).await?;
        self.shared.link.send_replace(Link::Up);
        tracing::info!(tower = %config.tower, "connected with the watchtower");
        let (sender, incoming) = mpsc::channel(READ_MAX);
        // Reading cannot be given up half-way, so it is a task of its own.
        let reading = tokio::spawn(read(reader, sender));
        let ended = self.talk(&mut writer, incoming).await;
        reading.abort();
        ended
    }

    async fn welcome(&self, reader: &mut MessageReader) -> Result<(), Ended> {
        loop {
            match reader.next().await? {
                Message::Welcome { version: PROTOCOL, .. } => {}
                Message::Welcome { version, .. } => {
                    return Err(Ended::Said(format!("the tower speaks version {version}")));
                }
                Message::Channels { is_last, held } => {
                    held.iter().try_for_each(|held| self.on_held(held))?;
                    if is_last {
                        return Ok(());
                    }
                }
                other => self.on_message(other)?,
            }
        }
    }

    async fn talk(
        &self,
        writer: &mut MessageWriter,
        mut incoming: mpsc::Receiver<Result<Message, ConnectionError>>,
    ) -> Result<Never, Ended> {
        let mut pings = interval(PING_EVERY);
        let mut heard = Instant::now();
        loop {
            let next = self.tell(writer).await?;
            let next = next.unwrap_or_else(|| Instant::now() + PING_EVERY);
            tokio::select! {
                () = self.shared.work.notified() => {}
                () = sleep_until(next.into()) => {}
                message = incoming.recv() => {
                    heard = Instant::now();
                    let Some(message) = message else { return Err(Ended::Said("the reader has ended".to_owned())) };
                    self.on_message(message?)?;
                    while let Ok(message) = incoming.try_recv() {
                        self.on_message(message?)?;
                    }
                }
                _ = pings.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return Err(Ended::Said("the tower is silent".to_owned()));
                    }
                    writer.send(&Message::Ping).await?;
                }
            }
        }
    }

    /// Tells all that is due; when there is more to be told later, by itself.
    async fn tell(&self, writer: &mut MessageWriter) -> Result<Option<Instant>, Ended> {
        self.shared.book.tell_caller(self.events);
        let config = &self.shared.config;
        let due = self.shared.book.due(Instant::now(), config.linger, config.batch_max, MESSAGES_MAX);
        let counters = &self.shared.counters;
        for message in &due.messages {
            let bytes = writer.put(message)?;
            if matches!(message, Message::Update { .. } | Message::Batch { .. }) {
                counters.messages.fetch_add(1, Ordering::Relaxed);
                counters.payload_bytes.fetch_add(bytes as u64 - 2, Ordering::Relaxed);
            }
        }
        if !due.messages.is_empty() {
            writer.flush().await?;
        }
        Ok(due.next)
    }

    fn on_message(&self, message: Message) -> Result<(), Ended> {
        let book = &self.shared.book;
        match message {
            Message::Ack { handle, next, time_s, signature } => {
                let tower = &self.shared.config.tower;
                let receipt = |funding_outpoint| Receipt { funding_outpoint, next, time_s, signature };
                let Some(updates) = book.on_ack(handle, receipt, |receipt| receipt.is_by(tower)) else {
                    return Err(Ended::Said(format!("a receipt for {handle} that is none")));
                };
                self.shared.counters.updates.fetch_add(updates, Ordering::Relaxed);
            }
            Message::Channel(held) => self.on_held(&held)?,
            Message::Refused { about, reason, next, text } => self.on_refused(about, reason, next, &text),
            Message::Preimages { handle, first, preimages } => {
                let count = first.saturating_add(u32::try_from(preimages.len()).unwrap_or(u32::MAX));
                book.on_preimages(handle, preimages, count);
            }
            Message::Forgotten(handle) => book.on_forgotten(handle),
            Message::Error(text) => return Err(Ended::Said(format!("the tower says: {text}"))),
            Message::Ping | Message::Pong => {}
            other @ (Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Channels { .. }
            | Message::Register(_)
            | Message::Update { .. }
            | Message::Batch { .. }
            | Message::PreimagesTaken { .. }
            | Message::Forget(_)) => {
                return Err(Ended::Said(format!("a message of type {} is not for a client", other.kind())));
            }
        }
        Ok(())
    }

    fn on_held(&self, held: &Held) -> Result<(), Ended> {
        let is_taken = self.shared.book.on_held(held);
        is_taken.then_some(()).ok_or_else(|| Ended::Said("the tower speaks of too many channels".to_owned()))
    }

    fn on_refused(&self, about: About, reason: Reason, next: CommitmentNumber, text: &str) {
        let channel_id = match about {
            About::Channel(handle) => self.shared.book.channel_of(handle),
            About::Registration(outpoint) => Some(channel_of(outpoint)),
        };
        let Some(channel_id) = channel_id else { return };
        let next = (reason == Reason::Gap).then_some(next);
        tracing::warn!(%channel_id, text, "the watchtower refuses");
        self.shared.book.on_refused(channel_id, text, next, REST);
    }
}

fn channel_of(funding_outpoint: OutPoint) -> ChannelId {
    ChannelId::v1_from_funding(funding_outpoint)
}

async fn read(mut reader: MessageReader, sender: mpsc::Sender<Result<Message, ConnectionError>>) {
    loop {
        let message = reader.next().await;
        let is_last = message.is_err();
        if sender.send(message).await.is_err() || is_last {
            return;
        }
    }
}
