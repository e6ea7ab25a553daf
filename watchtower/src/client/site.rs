//! What the clients' tests share: a tower that listens, a client by hand, and a tower by hand.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::{BlockHash, Network, Transaction};
use millrace_journal::{Options, Ticket};
use millrace_wire::{BlockHeight, ChainHash};
use secp256k1::{SECP256K1, SecretKey};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Config;
use crate::keeper::tests::MemoryLog;
use crate::keeper::{self, Desk, Log};
use crate::message::Message;
use crate::samples::Sample;
use crate::server::{self, Context};
use crate::tower::Tower;
use crate::transport::{self, Connection};

/// How long anything may take before the test fails.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn key(seed: u8) -> SecretKey {
    SecretKey::from_slice(&[seed; 32]).unwrap()
}

pub(super) fn chain_hash() -> ChainHash {
    ChainHash::using_genesis_block_const(Network::Regtest)
}

/// A tower that listens.
pub(super) struct Site {
    pub(super) desk: Desk,
    pub(super) address: String,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

impl Site {
    /// In this folder, at this address if it is one it had before.
    pub(super) async fn start(folder: &Path, address: &str) -> Self {
        let options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, ..Options::default() };
        let (keeper, durability) = keeper::open(&folder.join("journal"), options).unwrap();
        Self::with_keeper(keeper, durability, address).await
    }

    async fn with_keeper(keeper: keeper::Keeper, durability: keeper::Durability, address: &str) -> Self {
        let (desk, thread) = Desk::open(keeper).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = watch::channel(false);
        let context = Context { desk: desk.clone(), durability, key: key(5), chain_hash: chain_hash() };
        let serving = tokio::spawn(server::serve(listener, context, stopped));
        Self { desk, address, stop, serving, keeper: Some(thread) }
    }

    /// A tower whose journal is written when the test says so. Client 9 is let in.
    pub(super) async fn in_memory() -> (Self, Arc<MemoryLog>) {
        let log = Arc::new(MemoryLog::default());
        let (keeper, durability) = keeper::Keeper::new(Tower::default(), Arc::clone(&log) as Arc<dyn Log>, Ticket(0));
        let site = Self::with_keeper(keeper, durability, "127.0.0.1:0").await;
        site.allow(&key(9), 10).await;
        log.flush();
        (site, log)
    }

    /// In this folder, with client 9 let in.
    pub(super) async fn fresh(folder: &Path) -> Self {
        let site = Self::start(folder, "127.0.0.1:0").await;
        site.allow(&key(9), 10).await;
        site
    }

    pub(super) async fn allow_blobs(&self, client: &SecretKey, blobs_max: u32) {
        let client = client.public_key(SECP256K1);
        let _allowed = self.desk.ask(move |keeper| keeper.allow_blobs(client, blobs_max)).await.unwrap().unwrap();
    }

    pub(super) async fn allow(&self, client: &SecretKey, channels_max: u32) {
        let client = client.public_key(SECP256K1);
        let _allowed = self.desk.ask(move |keeper| keeper.allow(client, channels_max)).await.unwrap().unwrap();
    }

    pub(super) fn config(&self, client: SecretKey) -> Config {
        Config::new(key(5).public_key(SECP256K1), self.address.clone(), client, chain_hash())
    }

    /// The next of the channel's secrets that it lacks.
    pub(super) async fn next(&self, sample: &Sample) -> Option<u64> {
        let funding = sample.terms.funding_outpoint;
        let found = self.desk.ask(move |keeper| {
            let mut channels = keeper.tower().channels();
            channels.find(|(_, watched)| watched.registration.funding_outpoint == funding).map(|(_, w)| w.next().0)
        });
        found.await.unwrap()
    }

    pub(super) async fn mine(&self, height: u32, txs: Vec<Transaction>) {
        let hash: BlockHash = bitcoin::hashes::Hash::hash(&height.to_be_bytes());
        let _connected = self.desk.ask(move |keeper| keeper.connect(BlockHeight(height), hash, &txs)).await.unwrap();
    }

    pub(super) async fn stop(self) -> String {
        let Self { desk, address, stop, serving, keeper } = self;
        stop.send_replace(true);
        serving.await.unwrap();
        drop(desk);
        tokio::task::spawn_blocking(move || keeper.unwrap().join().unwrap()).await.unwrap();
        address
    }
}

/// A client by hand, for what no honest one says.
pub(super) async fn by_hand(site: &Site, seed: u8) -> Connection {
    let socket = tokio::net::TcpStream::connect(&site.address).await.unwrap();
    let tower = key(5).public_key(SECP256K1);
    let mut connection = transport::call(socket, key(seed), tower, Arc::default()).await.unwrap();
    connection.writer.send(&Message::Hello { version: 1, chain_hash: chain_hash() }).await.unwrap();
    assert!(matches!(connection.reader.next().await.unwrap(), Message::Welcome { .. }));
    assert!(matches!(connection.reader.next().await.unwrap(), Message::Channels { is_last: true, .. }));
    connection
}

/// A tower by hand: it says this to whoever calls, after its welcome, and nothing more. Gives its address.
pub(super) async fn saying(messages: Vec<Message>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let mut connection = transport::answer(socket, key(5), Arc::default()).await.unwrap();
            let welcome = Message::Welcome { version: 1, channels_max: 9 };
            for message in std::iter::once(&welcome).chain(&messages) {
                connection.writer.send(message).await.unwrap();
            }
            while connection.reader.next().await.is_ok() {}
        }
    });
    address
}
