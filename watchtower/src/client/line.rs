//! The line to a tower: it calls, greets, keeps the connection alive, and begins again. What is said on it is the
//! conversation's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{interval, sleep, sleep_until};

use super::{Config, Link};
use crate::message::{Message, PROTOCOL};
use crate::transport::{Connection, ConnectionError, MessageReader, MessageWriter, Traffic, call, in_time};

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
/// Messages that were read and wait.
const READ_MAX: usize = 256;
/// What was refused is tried again after so long.
pub(super) const REST: Duration = Duration::from_secs(30);
/// Messages that are made at once.
pub(super) const MESSAGES_MAX: usize = 256;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Said(String),
}

/// What there is to do.
pub(crate) struct Due {
    /// To be sent now.
    pub(crate) messages: Vec<Message>,
    /// When to look again, if nothing happens.
    pub(crate) next: Option<Instant>,
}

/// What is said on the line.
pub(super) trait Conversation: Sync {
    /// A connection begins: what was under way means nothing any more.
    fn begin(&self);

    /// What is asked after the greeting.
    fn question(&self) -> Option<Message>;

    /// What the tower says of what it has; `true` once that is all.
    fn on_account(&self, message: Message) -> Result<bool, Ended>;

    /// What the tower says after that.
    fn on_message(&self, message: Message) -> Result<(), Ended>;

    /// What is to be told now.
    fn due(&self) -> Due;

    /// A message of so many bytes is on its way.
    fn on_put(&self, message: &Message, bytes: usize);
}

/// How to reach the tower, and who is to know how it stands.
pub(super) struct Line<'a> {
    pub(super) config: &'a Config,
    /// There is something to tell.
    pub(super) work: &'a Notify,
    pub(super) link: &'a watch::Sender<Link>,
    pub(super) traffic: &'a Arc<Traffic>,
}

/// Nothing: a connection only ends by an error.
enum Never {}

impl Line<'_> {
    /// Talks to the tower for ever.
    pub(super) async fn run(&self, conversation: &impl Conversation) {
        let mut pause = PAUSE_MIN;
        loop {
            let begun = Instant::now();
            let Err(ended) = self.connect(conversation).await;
            let why = ended.to_string();
            tracing::info!(tower = %self.config.tower, why, "no connection with the watchtower");
            self.link.send_replace(Link::Down(why));
            // A connection that lasted was a good one.
            pause = if begun.elapsed() > PAUSE_MAX { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            sleep(pause).await;
        }
    }

    async fn connect(&self, conversation: &impl Conversation) -> Result<Never, Ended> {
        let Config { tower, address, key, chain_hash, .. } = self.config;
        let connect = async { Ok::<TcpStream, ConnectionError>(TcpStream::connect(address).await?) };
        let socket = in_time("the call", CALL_TIME, connect).await?;
        let Connection { mut reader, mut writer, .. } = call(socket, *key, *tower, Arc::clone(self.traffic)).await?;
        writer.put(&Message::Hello { version: PROTOCOL, chain_hash: *chain_hash })?;
        if let Some(question) = conversation.question() {
            writer.put(&question)?;
        }
        writer.flush().await?;
        conversation.begin();
        in_time("the tower's account", WELCOME_TIME, welcome(conversation, &mut reader)).await?;
        self.link.send_replace(Link::Up);
        tracing::info!(%tower, "connected with the watchtower");
        let (sender, incoming) = mpsc::channel(READ_MAX);
        // Reading cannot be given up half-way, so it is a task of its own.
        let reading = tokio::spawn(read(reader, sender));
        let ended = self.talk(conversation, &mut writer, incoming).await;
        reading.abort();
        ended
    }

    async fn talk(
        &self,
        conversation: &impl Conversation,
        writer: &mut MessageWriter,
        mut incoming: mpsc::Receiver<Result<Message, ConnectionError>>,
    ) -> Result<Never, Ended> {
        let mut pings = interval(PING_EVERY);
        let mut heard = Instant::now();
        loop {
            let next = tell(conversation, writer).await?;
            let next = next.unwrap_or_else(|| Instant::now() + PING_EVERY);
            tokio::select! {
                () = self.work.notified() => {}
                () = sleep_until(next.into()) => {}
                message = incoming.recv() => {
                    heard = Instant::now();
                    let Some(message) = message else { return Err(Ended::Said("the reader has ended".to_owned())) };
                    conversation.on_message(message?)?;
                    while let Ok(message) = incoming.try_recv() {
                        conversation.on_message(message?)?;
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
}

async fn welcome(conversation: &impl Conversation, reader: &mut MessageReader) -> Result<(), Ended> {
    loop {
        match reader.next().await? {
            Message::Welcome { version: PROTOCOL, .. } => {}
            Message::Welcome { version, .. } => {
                return Err(Ended::Said(format!("the tower speaks version {version}")));
            }
            other => {
                if conversation.on_account(other)? {
                    return Ok(());
                }
            }
        }
    }
}

/// Tells all that is due; when there is more to be told later, by itself.
async fn tell(conversation: &impl Conversation, writer: &mut MessageWriter) -> Result<Option<Instant>, Ended> {
    let due = conversation.due();
    for message in &due.messages {
        let bytes = writer.put(message)?;
        conversation.on_put(message, bytes);
    }
    if !due.messages.is_empty() {
        writer.flush().await?;
    }
    Ok(due.next)
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
