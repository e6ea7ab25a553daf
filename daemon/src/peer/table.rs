//! Who is connected: the table of peers, and the handle of it for the rest of the node.
//!
//! One connection per node: a new one takes the place of the old, since the peer would not have made it if it still had
//! the other. Connections of nodes without a channel are limited, and give way to nobody else's.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use millrace_journal::Space;
use millrace_wire::{ChainHash, Features, Message, PublicKey};
use secp256k1::SecretKey;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use super::address::PeerAddress;
use super::connection::{Closed, Ends, PingRules, Pulse, run};
use super::handshake::{Established, HandshakeFailure, Ours, initiate, respond};
use super::inbox::Inbox;
use super::link::Link;
use crate::announce::Announcer;
use crate::channels::Registry;
use crate::channels::input::{Epoch, Input, LinkUp};
use crate::clock;
use crate::entry::{Entry, Kind};
use crate::gossip::Gossip;

const LOCK: &str = "nothing panics while the table of peers is locked";
/// Events that a slow listener may be behind.
const EVENTS_MAX: usize = 256;
/// How long a TCP connection may take to come about.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Pauses before a node is called again that hung up before `init`. Some nodes turn a second connection away until they
/// have noticed the end of the first (LDK does), which takes them a moment.
const HUNG_UP_PAUSES: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(900), Duration::from_millis(2_700)];
/// TCP keep-alive, for routers that forget: BOLT 1's pings watch over the peer itself.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// What the owner decides about peers.
#[derive(Clone, Debug)]
pub struct PeerRules {
    /// Connections altogether.
    pub max_connections: usize,
    /// Connections with nodes that have no channel with us.
    pub max_without_channels: usize,
    /// Handshakes that callers may have under way.
    pub max_handshakes: usize,
    /// Time for the handshake and `init`.
    pub handshake_timeout: Duration,
    /// Silence after which a ping is sent.
    pub ping_after: Duration,
    /// Time for the pong.
    pub ping_timeout: Duration,
    /// The first pause before a peer is called again; it doubles up to `reconnect_max`.
    pub reconnect_min: Duration,
    /// The longest pause.
    pub reconnect_max: Duration,
    /// Peers that may open channels which are used before they confirm.
    pub zero_conf_peers: Vec<PublicKey>,
}

impl Default for PeerRules {
    fn default() -> Self {
        Self {
            max_connections: 500,
            max_without_channels: 100,
            max_handshakes: 64,
            handshake_timeout: Duration::from_secs(10),
            ping_after: Duration::from_secs(60),
            ping_timeout: Duration::from_secs(30),
            reconnect_min: Duration::from_secs(1),
            reconnect_max: Duration::from_secs(60),
            zero_conf_peers: Vec::new(),
        }
    }
}

/// Why a node is not connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address names nobody.
    #[error("{address}: {reason}")]
    Unreachable {
        /// What was called.
        address: String,
        /// What was seen.
        reason: String,
    },
    /// It answers, and then something is wrong.
    #[error("{address}: {failure}")]
    Handshake {
        /// What was called.
        address: String,
        /// What is wrong.
        failure: HandshakeFailure,
    },
    /// There are too many.
    #[error("{connections} connections are open, and no more than {max} may be")]
    TooMany {
        /// How many.
        connections: usize,
        /// How many may be.
        max: usize,
    },
    /// It is us.
    #[error("this is our own node id")]
    Ourselves,
    /// What peers say could not be written down.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    /// The node is stopping.
    #[error("the node is shutting down")]
    Stopping,
}

/// Why a node is not disconnected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DisconnectError {
    /// It is not connected.
    #[error("peer {0} is not connected")]
    NotConnected(PublicKey),
    /// It has channels with us, which could not be used.
    #[error("there are {channels} channels with peer {peer}")]
    HasChannels {
        /// Which.
        peer: PublicKey,
        /// How many.
        channels: usize,
    },
}

/// What happens to connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerEvent {
    /// One came about.
    Connected {
        /// With whom.
        peer: PublicKey,
        /// Where it is.
        address: String,
        /// It called us.
        is_inbound: bool,
    },
    /// One has ended.
    Disconnected {
        /// With whom.
        peer: PublicKey,
        /// Why, in words.
        reason: String,
    },
}

/// A peer, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerInfo {
    /// Who.
    pub node_id: PublicKey,
    /// Where it was last reached, or called us from.
    pub address: Option<String>,
    /// It is connected.
    pub is_connected: bool,
    /// It called us.
    pub is_inbound: bool,
    /// What it said in `init`, this time or the last since the start.
    pub features: Option<Features>,
    /// Since when it is connected, or when it was last seen, as Unix time in milliseconds.
    pub since_ms: Option<u64>,
    /// How long its last pong took, in microseconds.
    pub ping_us: Option<u64>,
    /// Why the last connection has ended.
    pub last_error: Option<String>,
}

/// The handle of the peers. Clones are the same.
#[derive(Clone)]
pub struct Peers {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) rules: PeerRules,
    pub(super) registry: Registry,
    pub(super) stopping: watch::Receiver<bool>,
    node_key: SecretKey,
    node_id: PublicKey,
    chain_hash: ChainHash,
    table: Mutex<HashMap<PublicKey, Peer>>,
    epochs: AtomicU64,
    handshakes: AtomicUsize,
    gossip: Option<Gossip>,
    events: broadcast::Sender<PeerEvent>,
    announcer: Option<Arc<Announcer>>,
}

#[derive(Debug, Default)]
struct Peer {
    connection: Option<Connection>,
    /// Where it listens, as far as we know.
    listens_at: Option<String>,
    /// Where it was last seen.
    seen_at: Option<String>,
    features: Option<Features>,
    since_ms: Option<u64>,
    last_error: Option<String>,
    /// The owner does not want it until asked again.
    is_unwanted: bool,
    /// Somebody is calling it.
    is_called: bool,
}

#[derive(Debug)]
struct Connection {
    epoch: Epoch,
    link: Link,
    pulse: Arc<Pulse>,
    is_inbound: bool,
    /// It was asked to end.
    is_ending: bool,
}

impl Peers {
    #[allow(clippy::too_many_arguments, reason = "each is another part of the node, and there is one caller")]
    pub(crate) fn new(
        node_key: SecretKey,
        chain_hash: ChainHash,
        rules: PeerRules,
        registry: Registry,
        addresses: BTreeMap<PublicKey, String>,
        announcer: Option<Arc<Announcer>>,
        gossip: Option<Gossip>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let table = addresses
            .into_iter()
            .map(|(id, address)| (id, Peer { listens_at: Some(address), ..Peer::default() }))
            .collect();
        let inner = Inner {
            rules,
            registry,
            stopping,
            node_id: node_key.public_key(secp256k1::SECP256K1),
            node_key,
            chain_hash,
            table: Mutex::new(table),
            epochs: AtomicU64::new(1),
            handshakes: AtomicUsize::new(0),
            gossip,
            events: broadcast::channel(EVENTS_MAX).0,
            announcer,
        };
        Self { inner: Arc::new(inner) }
    }

    // --- orders ---

    /// Connects to a node, and returns when both have said `init`. Already connected: at once. The address is
    /// remembered, and the node called again by itself while there are channels with it.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self, node_id: PublicKey, address: &str) -> Result<PeerInfo, ConnectError> {
        if node_id == self.inner.node_id {
            return Err(ConnectError::Ourselves);
        }
        {
            let mut table = self.inner.table();
            let peer = table.entry(node_id).or_default();
            peer.is_unwanted = false;
            if peer.is_connected_to_stay() {
                return Ok(peer.info(node_id));
            }
        }
        self.call_patiently(node_id, address).await?;
        self.remember(node_id, address).await;
        Ok(self.inner.table().entry(node_id).or_default().info(node_id))
    }

    /// Ends the connection with a node, and does not call it again until asked to, or restarted.
    ///
    /// # Errors
    /// [`DisconnectError`]; with `force` only if it is not connected.
    pub fn disconnect(&self, node_id: PublicKey, force: bool) -> Result<(), DisconnectError> {
        let channels = self.open_channels(&node_id);
        if channels > 0 && !force {
            return Err(DisconnectError::HasChannels { peer: node_id, channels });
        }
        let mut table = self.inner.table();
        let peer = table.get_mut(&node_id).ok_or(DisconnectError::NotConnected(node_id))?;
        peer.is_unwanted = true;
        let connection = peer.connection.as_mut().ok_or(DisconnectError::NotConnected(node_id))?;
        connection.is_ending = true;
        connection.link.close("the owner of this node disconnects".to_owned());
        Ok(())
    }

    /// Peers that are connected, were since the start, or are remembered; by node id.
    #[must_use]
    pub fn list(&self) -> Vec<PeerInfo> {
        let table = self.inner.table();
        let mut all: Vec<PeerInfo> = table.iter().map(|(id, peer)| peer.info(*id)).collect();
        all.sort_unstable_by_key(|info| info.node_id);
        all
    }

    /// Whether a node is connected.
    #[must_use]
    pub fn is_connected(&self, node_id: &PublicKey) -> bool {
        self.inner.table().get(node_id).is_some_and(|peer| peer.connection.is_some())
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.inner.events.subscribe()
    }

    /// Which connection with a node there is.
    pub(crate) fn epoch_of(&self, node_id: &PublicKey) -> Option<Epoch> {
        self.inner.table().get(node_id)?.connection.as_ref().map(|connection| connection.epoch)
    }

    /// Sends a message that is for no channel's actor to send; lost if that connection is gone.
    pub(crate) fn send(&self, node_id: &PublicKey, epoch: Epoch, message: Message) {
        let table = self.inner.table();
        let connection = table.get(node_id).and_then(|peer| peer.connection.as_ref());
        if let Some(connection) = connection.filter(|connection| connection.epoch == epoch) {
            connection.link.send(Box::new(message));
        }
    }

    /// Where nodes listen: for a checkpoint.
    pub(crate) fn addresses(&self) -> Vec<PeerAddress> {
        let table = self.inner.table();
        let known = |(id, peer): (&PublicKey, &Peer)| Some(PeerAddress::new(*id, peer.listens_at.clone()?));
        let mut all: Vec<_> = table.iter().filter_map(known).collect();
        all.sort_unstable_by_key(PeerAddress::encode);
        all
    }

    /// Ends all connections.
    pub(crate) fn close_all(&self, reason: &str) {
        for peer in self.inner.table().values() {
            if let Some(connection) = &peer.connection {
                connection.link.close(reason.to_owned());
            }
        }
    }

    // --- calling and being called ---

    /// Calls, and calls again a node that hangs up before `init`.
    async fn call_patiently(&self, node_id: PublicKey, address: &str) -> Result<(), ConnectError> {
        for pause in HUNG_UP_PAUSES {
            match self.call(node_id, address).await {
                Err(ConnectError::Handshake { failure: HandshakeFailure::HungUp, .. }) => {}
                result => return result,
            }
            tokio::time::sleep(pause).await;
            if self.inner.table().get(&node_id).is_some_and(Peer::is_connected_to_stay) {
                // It has called us meanwhile.
                return Ok(());
            }
        }
        self.call(node_id, address).await
    }

    pub(super) async fn call(&self, node_id: PublicKey, address: &str) -> Result<(), ConnectError> {
        if *self.inner.stopping.borrow() {
            return Err(ConnectError::Stopping);
        }
        self.check_disk()?;
        self.check_room(&node_id)?;
        let unreachable = |reason: String| ConnectError::Unreachable { address: address.to_owned(), reason };
        let socket = match timeout(CONNECT_PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable(format!("no answer within {} s", CONNECT_PATIENCE.as_secs()))),
        };
        prepare(&socket).map_err(|error| unreachable(error.to_string()))?;
        let features = |peer: &PublicKey| self.features_for(peer);
        let ours = self.ours(&features);
        let handshake = initiate(socket, node_id, &ours);
        let failed = |failure| ConnectError::Handshake { address: address.to_owned(), failure };
        let established = self.in_time(handshake).await.map_err(failed)?;
        self.begin(established, address.to_owned(), false)
    }

    /// Somebody has called.
    pub(super) async fn answer(&self, socket: TcpStream, address: String) {
        if let Err(error) = self.check_disk() {
            return tracing::debug!(address, %error, "a caller is turned away");
        }
        let Some(_counted) = self.count_handshake() else {
            return tracing::debug!(address, "too many handshakes at once: a caller is turned away");
        };
        if let Err(error) = prepare(&socket) {
            return tracing::debug!(address, %error, "a caller is gone already");
        }
        let features = |peer: &PublicKey| self.features_for(peer);
        match self.in_time(respond(socket, &self.ours(&features))).await {
            Ok(established) => {
                if let Err(error) = self.begin(established, address, true) {
                    tracing::info!(%error, "a caller is turned away");
                }
            }
            Err(failure) => tracing::debug!(address, %failure, "a caller did not get through"),
        }
    }

    async fn in_time(
        &self,
        handshake: impl Future<Output = Result<Established, HandshakeFailure>>,
    ) -> Result<Established, HandshakeFailure> {
        let patience = self.inner.rules.handshake_timeout;
        timeout(patience, handshake).await.unwrap_or(Err(HandshakeFailure::TimedOut(patience.as_secs())))
    }

    fn ours<'a>(&self, features_for: &'a (dyn Fn(&PublicKey) -> Features + Send + Sync)) -> Ours<'a> {
        Ours { node_key: self.inner.node_key, chain_hash: self.inner.chain_hash, features_for }
    }

    fn features_for(&self, peer: &PublicKey) -> Features {
        Features::ours(self.inner.rules.zero_conf_peers.contains(peer))
    }

    fn count_handshake(&self) -> Option<Counted> {
        let counted = Counted(Arc::clone(&self.inner));
        let under_way = self.inner.handshakes.fetch_add(1, Ordering::Relaxed);
        (under_way < self.inner.rules.max_handshakes).then_some(counted)
    }

    fn check_disk(&self) -> Result<(), ConnectError> {
        match self.inner.registry.log().space() {
            Space::Last { reason } => Err(ConnectError::DiskFull(reason)),
            Space::Enough | Space::Low { .. } => Ok(()),
        }
    }

    fn check_room(&self, node_id: &PublicKey) -> Result<(), ConnectError> {
        let established = self.inner.registry.directory().established_peers();
        let table = self.inner.table();
        let connected = || table.iter().filter(|(id, peer)| peer.connection.is_some() && *id != node_id);
        let check = |connections, max| {
            if connections >= max { Err(ConnectError::TooMany { connections, max }) } else { Ok(()) }
        };
        if established.contains(node_id) {
            return Ok(());
        }
        check(connected().count(), self.inner.rules.max_connections)?;
        let without = connected().filter(|(id, _)| !established.contains(id)).count();
        check(without, self.inner.rules.max_without_channels)
    }

    pub(super) fn open_channels(&self, peer: &PublicKey) -> usize {
        let snapshots = self.inner.registry.snapshots_with(peer);
        snapshots.iter().filter(|snapshot| snapshot.state != crate::channels::ChannelState::Closed).count()
    }

    // --- connections ---

    fn begin(&self, established: Established, address: String, is_inbound: bool) -> Result<(), ConnectError> {
        let Established { peer, reader, writer, ours, theirs } = established;
        self.check_room(&peer)?;
        let (link, outgoing, queued) = Link::new();
        let pulse = Arc::new(Pulse::new());
        let (for_gossip, features) = (link.clone(), theirs.clone());
        let epoch = {
            let mut table = self.inner.table();
            if *self.inner.stopping.borrow() {
                return Err(ConnectError::Stopping);
            }
            let epoch = Epoch(self.inner.epochs.fetch_add(1, Ordering::Relaxed));
            let known = table.entry(peer).or_default();
            if let Some(old) = known.connection.take() {
                old.link.close("the peer has made a new connection".to_owned());
            }
            known.connection =
                Some(Connection { epoch, link: link.clone(), pulse: Arc::clone(&pulse), is_inbound, is_ending: false });
            known.seen_at = Some(address.clone());
            known.features = Some(theirs.clone());
            known.since_ms = Some(clock::unix_ms());
            // Within the lock: the shards learn of connections in the order of their epochs.
            let up = LinkUp { peer, epoch, ours: Arc::new(ours), theirs: Arc::new(theirs), link: link.clone() };
            self.inner.registry.put_all(|| Input::LinkUp(up.clone()));
            epoch
        };
        tracing::info!(%peer, address, is_inbound, "connected");
        self.say(PeerEvent::Connected { peer, address, is_inbound });
        let pings = PingRules { after: self.inner.rules.ping_after, timeout: self.inner.rules.ping_timeout };
        let announcer = self.inner.announcer.clone();
        let seat = self.inner.gossip.as_ref().map(|gossip| gossip.connected(peer, &features, for_gossip));
        let inbox = Inbox::new(self.inner.registry.clone(), announcer, peer, epoch, link, seat, Arc::clone(&queued));
        let ends = Ends { reader, writer, outgoing, queued, pulse, pings };
        let peers = self.clone();
        tokio::spawn(async move {
            let closed = run(ends, inbox).await;
            peers.on_end(peer, epoch, closed);
        });
        Ok(())
    }

    fn on_end(&self, peer: PublicKey, epoch: Epoch, Closed(reason): Closed) {
        tracing::info!(%peer, reason, "disconnected");
        {
            let mut table = self.inner.table();
            let known = table.entry(peer).or_default();
            if known.connection.as_ref().is_some_and(|connection| connection.epoch == epoch) {
                known.connection = None;
                known.since_ms = Some(clock::unix_ms());
                known.last_error = Some(reason.clone());
            }
            self.inner.registry.put_all(|| Input::LinkDown { peer, epoch });
        }
        self.say(PeerEvent::Disconnected { peer, reason });
        self.reconnect(peer);
    }

    fn say(&self, event: PeerEvent) {
        // Nobody has to listen.
        let _nobody = self.inner.events.send(event);
    }

    async fn remember(&self, node_id: PublicKey, address: &str) {
        {
            let mut table = self.inner.table();
            let known = table.entry(node_id).or_default();
            if known.listens_at.as_deref() == Some(address) {
                return;
            }
            known.listens_at = Some(address.to_owned());
        }
        let entry = Entry::new(Kind::Peer, PeerAddress::new(node_id, address.to_owned()).encode());
        // Only a node that stops does not write it.
        let _stopping = self.inner.registry.journal().write(vec![entry]).await;
    }

    // --- for calling again ---

    /// Where to call a peer that has channels with us and is not connected; none if it is not to be called (now).
    pub(super) fn address_to_call(&self, peer: &PublicKey) -> Option<String> {
        if *self.inner.stopping.borrow() || self.open_channels(peer) == 0 {
            return None;
        }
        let table = self.inner.table();
        let known = table.get(peer)?;
        let is_due = known.connection.is_none() && !known.is_unwanted;
        if is_due { known.listens_at.clone() } else { None }
    }

    /// Takes the right to call a peer; false if somebody has it.
    pub(super) fn begin_calling(&self, peer: PublicKey) -> bool {
        let mut table = self.inner.table();
        !std::mem::replace(&mut table.entry(peer).or_default().is_called, true)
    }

    pub(super) fn end_calling(&self, peer: PublicKey) {
        self.inner.table().entry(peer).or_default().is_called = false;
    }

    pub(super) fn note_error(&self, peer: PublicKey, error: String) {
        self.inner.table().entry(peer).or_default().last_error = Some(error);
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("node_id", &self.inner.node_id).finish_non_exhaustive()
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, HashMap<PublicKey, Peer>> {
        self.table.lock().expect(LOCK)
    }
}

impl Peer {
    /// A connection that is about to end does not count: a new one takes its place.
    fn is_connected_to_stay(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| !connection.is_ending)
    }

    fn info(&self, node_id: PublicKey) -> PeerInfo {
        PeerInfo {
            node_id,
            address: self.seen_at.clone().or_else(|| self.listens_at.clone()),
            is_connected: self.connection.is_some(),
            is_inbound: self.connection.as_ref().is_some_and(|connection| connection.is_inbound),
            features: self.features.clone(),
            since_ms: self.since_ms,
            ping_us: self.connection.as_ref().and_then(|connection| connection.pulse.ping_us()),
            last_error: self.last_error.clone(),
        }
    }
}

/// One handshake of a caller.
struct Counted(Arc<Inner>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

fn prepare(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let keep_alive = socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keep_alive)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_connection_is_kept_alive_and_waits_for_no_full_packet() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (called, _) = listener.accept().await.unwrap();
        for socket in [caller, called] {
            prepare(&socket).unwrap();
            let raw = socket2::SockRef::from(&socket);
            assert!(raw.keepalive().unwrap() && socket.nodelay().unwrap());
            assert_eq!(
                (raw.tcp_keepalive_time().unwrap(), raw.tcp_keepalive_interval().unwrap()),
                (KEEP_ALIVE, KEEP_ALIVE)
            );
        }
    }
}
