//! The tower towards its clients: it listens, lets in whom its owner allows, and answers.
//!
//! Each connection reads one message after the other and gives the keeper its order; the answer goes into a short queue
//! whose other end waits until the journal has it (D8), signs and writes. When the queue is full, nothing more is read: a
//! client that does not take its answers, and a disk that is slow, hold up that client's socket and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_journal::Ticket;
use millrace_wire::{ChainHash, CommitmentNumber};
use secp256k1::{PublicKey, SecretKey};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::keeper::{Desk, Durability, Fault, Keeper, Promised};
use crate::message::{About, CHANNELS_MAX, GROUPS_MAX, Message, PREIMAGES_MAX, PROTOCOL, Reason};
use crate::receipt::{BlobReceipt, Receipt};
use crate::record::Handle;
use crate::tower::{Held, Refusal};
use crate::transport::{Connection, ConnectionError, MessageReader, MessageWriter, Traffic, answer, in_time};
use crate::vault::{Group, HeldGroup};

/// Connections of clients at once: many more than a household has nodes, few enough to cost nothing.
const CONNECTIONS_MAX: usize = 256;
/// Callers at once who have not yet proved to be clients: they take no client's place.
const CALLERS_MAX: usize = 64;
/// Answers of one connection that wait for the disk.
const ANSWERS_MAX: usize = 1_024;
/// What is encrypted before it is written at once.
const WRITE_BYTES: usize = 64 << 10;
/// How long a caller may take to say who it is, after the handshake.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// A client that says nothing for so long is gone: it pings every half of that.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What a server needs.
#[derive(Clone)]
pub struct Context {
    /// Where orders for the keeper are given.
    pub desk: Desk,
    /// How far the journal is durable.
    pub durability: Durability,
    /// The tower's key.
    pub key: SecretKey,
    /// The chain it is on.
    pub chain_hash: ChainHash,
}

/// An answer, and the ticket that must be durable before it leaves.
struct Answer {
    ticket: Ticket,
    content: Content,
}

enum Content {
    Message(Message),
    /// A receipt, to be signed.
    Ack(Held),
    /// The same for blobs.
    BlobAck(HeldGroup),
}

/// Serves until `stop` says so.
pub async fn serve(listener: TcpListener, context: Context, mut stop: watch::Receiver<bool>) {
    let (callers, clients) = (Arc::new(Semaphore::new(CALLERS_MAX)), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "no connection could be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Who finds no place is hung up on.
        let Ok(place) = Arc::clone(&callers).try_acquire_owned() else { continue };
        connections.spawn(serve_one(socket, context.clone(), place, Arc::clone(&clients)));
    }
    connections.shutdown().await;
}

async fn serve_one(socket: TcpStream, context: Context, caller: OwnedSemaphorePermit, clients: Arc<Semaphore>) {
    let peer = socket.peer_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string());
    match answer(socket, context.key, Arc::new(Traffic::default())).await {
        Ok(connection) => {
            let client = connection.remote;
            tracing::debug!(%client, peer, "a client is connected");
            let ended = talk(connection, context, caller, clients).await;
            let why = ended.map_or_else(|error| error.to_string(), |()| "the tower is stopping".to_owned());
            tracing::debug!(%client, why, "a client's connection has ended");
        }
        Err(error) => tracing::debug!(peer, %error, "no handshake"),
    }
}

async fn talk(
    connection: Connection,
    context: Context,
    caller: OwnedSemaphorePermit,
    clients: Arc<Semaphore>,
) -> Result<(), ConnectionError> {
    let Connection { remote: client, mut reader, mut writer } = connection;
    let hello = in_time("hello", HELLO_TIME, reader.next()).await?;
    let checked = context.desk.ask(move |keeper| keeper.tower().check_client(&client)).await;
    let channels_max = match (hello, checked) {
        (Message::Hello { version, .. }, _) if version != PROTOCOL => {
            return refuse(&mut writer, format!("version {version}: this tower speaks {PROTOCOL}")).await;
        }
        (Message::Hello { chain_hash, .. }, _) if chain_hash != context.chain_hash => {
            return refuse(&mut writer, "this tower watches another chain".to_owned()).await;
        }
        (Message::Hello { .. }, Ok(Ok(channels_max))) => channels_max,
        (Message::Hello { .. }, Ok(Err(refusal))) => return refuse(&mut writer, refusal.to_string()).await,
        (Message::Hello { .. }, Err(fault)) => return refuse(&mut writer, fault.to_string()).await,
        (_, _) => return refuse(&mut writer, "the first message is not hello".to_owned()).await,
    };
    let Ok(_place) = clients.try_acquire_owned() else {
        return refuse(&mut writer, format!("there are {CONNECTIONS_MAX} connections already")).await;
    };
    drop(caller);
    writer.put(&Message::Welcome { version: PROTOCOL, channels_max })?;
    let (sender, answers) = mpsc::channel(ANSWERS_MAX);
    let Ok(news) = context.desk.ask(|keeper| keeper.news()).await else { return Ok(()) };
    let session = Session { client, desk: context.desk.clone(), answers: sender };
    tokio::select! {
        ended = session.clone().read(reader) => ended,
        ended = write(writer, answers, context) => ended,
        ended = session.tell(news) => ended,
    }
}

async fn refuse(writer: &mut MessageWriter, why: String) -> Result<(), ConnectionError> {
    writer.send(&Message::Error(why)).await
}

/// One client's connection.
#[derive(Clone)]
struct Session {
    client: PublicKey,
    desk: Desk,
    answers: mpsc::Sender<Answer>,
}

impl Session {
    async fn read(self, mut reader: MessageReader) -> Result<(), ConnectionError> {
        let mut has_groups = false;
        loop {
            let message = in_time("the client's silence", SILENCE_MAX, reader.next()).await?;
            // It is answered by many messages, and so once.
            if message == Message::ListGroups && !std::mem::replace(&mut has_groups, true) {
                if !self.tell_groups().await {
                    return Ok(());
                }
                continue;
            }
            let Ok(answer) = self.on_message(message).await else { return Ok(()) };
            if self.answers.send(answer).await.is_err() {
                return Ok(());
            }
        }
    }

    /// What the tower has of every channel.
    async fn tell_all(&self) -> bool {
        let client = self.client;
        let asked = self.desk.ask(move |keeper| {
            let held: Vec<Held> = keeper.tower().held_by(&client).collect();
            (held, keeper.promised().ticket)
        });
        let Ok((held, ticket)) = asked.await else { return false };
        let pages = held.chunks(CHANNELS_MAX).count().max(1);
        for page in 0..pages {
            let held = held.iter().skip(page * CHANNELS_MAX).take(CHANNELS_MAX).copied().collect();
            let message = Message::Channels { is_last: page + 1 == pages, held };
            if self.answers.send(Answer { ticket, content: Content::Message(message) }).await.is_err() {
                return false;
            }
        }
        true
    }

    /// What the tower has of every group of blobs.
    async fn tell_groups(&self) -> bool {
        let client = self.client;
        let asked = self.desk.ask(move |keeper| {
            let vault = keeper.tower().vault();
            let held: Vec<HeldGroup> = vault.held_by(&client).collect();
            (held, vault.quota(&client), keeper.promised().ticket)
        });
        let Ok((held, blobs_max, ticket)) = asked.await else { return false };
        let pages = held.chunks(GROUPS_MAX).count().max(1);
        for page in 0..pages {
            let held = held.iter().skip(page * GROUPS_MAX).take(GROUPS_MAX).copied().collect();
            let message = Message::Groups { is_last: page + 1 == pages, blobs_max, held };
            if self.answers.send(Answer { ticket, content: Content::Message(message) }).await.is_err() {
                return false;
            }
        }
        true
    }

    /// All channels first, and then preimages that the client does not have, and channels that have ended, now and whenever
    /// there are new ones.
    async fn tell(self, mut news: watch::Receiver<u64>) -> Result<(), ConnectionError> {
        if !self.tell_all().await {
            return Ok(());
        }
        news.mark_changed();
        let mut told = BTreeMap::new();
        while news.changed().await.is_ok() {
            let client = self.client;
            let asked = self.desk.ask(move |keeper| news_for(keeper, &client)).await;
            let Ok((messages, ticket)) = asked else { break };
            for (handle, message) in messages {
                if told.get(&handle) == Some(&message) {
                    continue;
                }
                told.insert(handle, message.clone());
                if self.answers.send(Answer { ticket, content: Content::Message(message) }).await.is_err() {
                    return Ok(());
                }
            }
        }
        // The keeper has ended, and with it soon the connection.
        std::future::pending().await
    }

    async fn on_message(&self, message: Message) -> Result<Answer, Fault> {
        let client = self.client;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match message {
            Message::Update { handle, number, secret } => {
                let order = move |keeper: &mut Keeper| {
                    let revealed = keeper.reveal(&client, handle, number, secret.0, now_s);
                    held(keeper, handle, revealed)
                };
                self.desk.ask(order).await
            }
            Message::Batch { handle, from, to, changed } => {
                let changed = changed.into_iter().map(|secret| secret.0).collect();
                let order = move |keeper: &mut Keeper| {
                    let advanced = keeper.advance(&client, handle, from..to, changed, now_s);
                    held(keeper, handle, advanced)
                };
                self.desk.ask(order).await
            }
            Message::Register(registration) => {
                let about = About::Registration(registration.funding_outpoint);
                let order = move |keeper: &mut Keeper| {
                    let registered = keeper.register(client, *registration);
                    answered(keeper, about, registered, Message::Channel)
                };
                self.desk.ask(order).await
            }
            Message::Forget(handle) => {
                let order = move |keeper: &mut Keeper| {
                    let forgotten = keeper.forget(&client, handle);
                    answered(keeper, About::Channel(handle), forgotten, |()| Message::Forgotten(handle))
                };
                self.desk.ask(order).await
            }
            Message::PreimagesTaken { handle, count } => {
                let order = move |keeper: &mut Keeper| {
                    let taken = keeper.preimages_taken(&client, handle, count);
                    answered(keeper, About::Channel(handle), taken, |()| Message::Pong)
                };
                self.desk.ask(order).await
            }
            Message::Blob { group, sequence, sealed } => {
                let order = move |keeper: &mut Keeper| {
                    let taken = keeper.take_blob(&client, group, sequence, sealed, now_s);
                    held_group(keeper, group, taken)
                };
                self.desk.ask(order).await
            }
            Message::AskReceipt(group) => {
                let order = move |keeper: &mut Keeper| {
                    let held = keeper.held_group(&client, group);
                    held_group(keeper, group, held)
                };
                self.desk.ask(order).await
            }
            Message::Release(group) => {
                let order = move |keeper: &mut Keeper| {
                    let released = keeper.release(&client, group);
                    answered(keeper, About::Group(group), released, |()| Message::Released(group))
                };
                self.desk.ask(order).await
            }
            Message::Ping => Ok(now(Message::Pong)),
            Message::Pong => Ok(now(Message::Pong)),
            other @ (Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Channels { .. }
            | Message::Channel(_)
            | Message::Ack { .. }
            | Message::Refused { .. }
            | Message::Preimages { .. }
            | Message::Forgotten(_)
            | Message::ListGroups
            | Message::Groups { .. }
            | Message::BlobAck { .. }
            | Message::Released(_)
            | Message::Error(_)) => {
                Ok(now(Message::Error(format!("a message of type {} is not for a tower", other.kind()))))
            }
        }
    }
}

fn now(message: Message) -> Answer {
    Answer { ticket: Ticket(0), content: Content::Message(message) }
}

fn news_for(keeper: &Keeper, client: &PublicKey) -> (Vec<(Handle, Message)>, Ticket) {
    let tower = keeper.tower();
    let mut messages = Vec::new();
    for (handle, first, left) in tower.preimages_for(client) {
        let preimages = left.iter().take(PREIMAGES_MAX).copied().collect();
        messages.push((handle, Message::Preimages { handle, first, preimages }));
    }
    let ended = tower.held_by(client).filter(|held| held.is_resolved);
    messages.extend(ended.map(|held| (held.handle, Message::Channel(held))));
    (messages, keeper.promised().ticket)
}

fn held(keeper: &Keeper, handle: Handle, result: Result<Promised<Held>, Fault>) -> Answer {
    match result {
        Ok(Promised { answer, ticket }) => Answer { ticket, content: Content::Ack(answer) },
        Err(fault) => refused(keeper, About::Channel(handle), &fault),
    }
}

fn held_group(keeper: &Keeper, group: Group, result: Result<Promised<HeldGroup>, Fault>) -> Answer {
    match result {
        Ok(Promised { answer, ticket }) => Answer { ticket, content: Content::BlobAck(answer) },
        Err(fault) => refused(keeper, About::Group(group), &fault),
    }
}

fn answered<T>(
    keeper: &Keeper,
    about: About,
    result: Result<Promised<T>, Fault>,
    message: impl FnOnce(T) -> Message,
) -> Answer {
    match result {
        Ok(Promised { answer, ticket }) => Answer { ticket, content: Content::Message(message(answer)) },
        Err(fault) => refused(keeper, about, &fault),
    }
}

fn refused(keeper: &Keeper, about: About, fault: &Fault) -> Answer {
    let none = CommitmentNumber(0);
    let (reason, next) = match fault {
        Fault::Full | Fault::Stopping => (Reason::Full, none),
        Fault::Refused(refusal) => match refusal {
            Refusal::UnknownClient(_) | Refusal::NoBlobs(_) => (Reason::NotAllowed, none),
            Refusal::TooManyChannels { .. } | Refusal::TooManyClients | Refusal::NoNames => (Reason::TooMany, none),
            Refusal::OtherRegistration(_) => (Reason::OtherRegistration, none),
            Refusal::UnknownChannel(_) => (Reason::UnknownChannel, none),
            Refusal::Gap { next, .. } => (Reason::Gap, *next),
            Refusal::BadSecret(_) => (Reason::BadSecret, none),
            Refusal::Ended(_) => (Reason::Ended, none),
            Refusal::AtRisk(..) | Refusal::GroupAtRisk(_) => (Reason::AtRisk, none),
            Refusal::TooManyBlobs { .. } => (Reason::TooMany, none),
            Refusal::BlobGap { next, .. } => (Reason::Gap, CommitmentNumber(*next)),
            Refusal::OtherBlob { .. } | Refusal::SameHint { .. } => (Reason::BadBlob, none),
            Refusal::UnknownGroup(_) => (Reason::UnknownGroup, none),
        },
    };
    let text = fault.to_string();
    // What it says of `next` must be durable, too; that the disk is full must be said before there is room.
    let ticket = if reason == Reason::Full { Ticket(0) } else { keeper.promised().ticket };
    Answer { ticket, content: Content::Message(Message::Refused { about, reason, next, text }) }
}

/// Lets answers out once they may. Of several receipts of one channel that may leave at once, only the newest does.
async fn write(
    mut writer: MessageWriter,
    mut answers: mpsc::Receiver<Answer>,
    context: Context,
) -> Result<(), ConnectionError> {
    let Context { mut durability, key, .. } = context;
    let mut ready: Vec<Answer> = Vec::new();
    while let Some(first) = answers.recv().await {
        let mut next = Some(first);
        while let Some(answer) = next {
            if !durability.has(answer.ticket) && ready.is_empty() && !durability.wait(answer.ticket).await {
                return Ok(());
            }
            if !durability.has(answer.ticket) {
                // Those before it need not wait for it.
                write_ready(&mut writer, &mut ready, &key).await?;
                if !durability.wait(answer.ticket).await {
                    return Ok(());
                }
            }
            ready.push(answer);
            next = if ready.len() < ANSWERS_MAX { answers.try_recv().ok() } else { None };
        }
        write_ready(&mut writer, &mut ready, &key).await?;
    }
    Ok(())
}

async fn write_ready(
    writer: &mut MessageWriter,
    ready: &mut Vec<Answer>,
    key: &SecretKey,
) -> Result<(), ConnectionError> {
    let mut newest: BTreeMap<Handle, usize> = BTreeMap::new();
    let mut newest_blobs: BTreeMap<Group, usize> = BTreeMap::new();
    for (index, answer) in ready.iter().enumerate() {
        match &answer.content {
            Content::Ack(held) => _ = newest.insert(held.handle, index),
            Content::BlobAck(held) => _ = newest_blobs.insert(held.group, index),
            Content::Message(_) => {}
        }
    }
    for (index, answer) in std::mem::take(ready).into_iter().enumerate() {
        let (message, is_last) = match answer.content {
            Content::Ack(held) if newest.get(&held.handle) != Some(&index) => continue,
            Content::Ack(held) => (receipt(key, &held), false),
            Content::BlobAck(held) if newest_blobs.get(&held.group) != Some(&index) => continue,
            Content::BlobAck(held) => (blob_receipt(key, &held), false),
            Content::Message(message) => {
                let is_last = matches!(message, Message::Error(_));
                (message, is_last)
            }
        };
        writer.put(&message)?;
        if is_last || writer.waiting_bytes() > WRITE_BYTES {
            writer.flush().await?;
        }
        if is_last {
            return Err(ConnectionError::Io(std::io::ErrorKind::ConnectionAborted.into()));
        }
    }
    writer.flush().await
}

fn receipt(key: &SecretKey, held: &Held) -> Message {
    let Held { handle, funding_outpoint, next, time_s, .. } = *held;
    let Receipt { signature, .. } = Receipt::sign(key, funding_outpoint, next, time_s);
    Message::Ack { handle, next, time_s, signature }
}

fn blob_receipt(key: &SecretKey, held: &HeldGroup) -> Message {
    let HeldGroup { group, next, time_s } = *held;
    let BlobReceipt { signature, .. } = BlobReceipt::sign(key, group, next, time_s);
    Message::BlobAck { group, next, time_s, signature }
}
