//! A network: one bitcoind on regtest, and daemons on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bitcoin::{Address, Amount, Network as Chain};
use millrace_rpc::v1::{
    BalanceRequest, BalanceResponse, Channel, ChannelState, ConnectRequest, GetChannelRequest, GetInfoRequest,
    ListChannelsRequest, NewAddressRequest, OpenChannelRequest, Page, get_channel_request, open_channel_progress,
};
use tempfile::TempDir;

use crate::bitcoind::{self, Bitcoind};
use crate::node::Node;
use crate::programs::Programs;

/// How long anything that should happen soon may take.
pub const SOON: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Why the network does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// bitcoind.
    #[error(transparent)]
    Bitcoind(#[from] bitcoind::Error),
    /// A file or a process of ours.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program is not where it should be.
    #[error(
        "{path} is not there: build it (cargo build --bin millraced --bin millrace), or install it beside this program"
    )]
    NoProgram {
        /// Where it should be.
        path: PathBuf,
    },
    /// The programs do not build.
    #[error("the daemon and the command line do not build:\n{text}")]
    Build {
        /// What cargo said.
        text: String,
    },
    /// The other implementation cannot be had.
    #[error("ldk-node: {text}")]
    Ldk {
        /// Why, and what to do.
        text: String,
    },
    /// A daemon.
    #[error("{name}: {what}\n{log}")]
    Node {
        /// Which.
        name: String,
        /// What is wrong.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// A call.
    #[error("{name}: {what}")]
    Call {
        /// At which daemon.
        name: String,
        /// What it said.
        what: String,
    },
    /// No connection to a daemon.
    #[error("no gRPC connection to {url}: {source}")]
    Rpc {
        /// Where.
        url: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The token file holds something else.
    #[error("the access token is not one")]
    BadToken,
    /// Something that should happen does not.
    #[error("{what} did not happen within {seconds} s{state}")]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// How things stand instead.
        state: String,
    },
    /// Something is not as it must be.
    #[error("{0}")]
    Wrong(String),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

/// A key for a call that is to happen once.
#[must_use]
pub fn random_key() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has random bytes");
    hex::encode(bytes)
}

/// One bitcoind and its daemons, in one folder.
pub struct Network {
    /// The chain.
    pub bitcoind: Bitcoind,
    /// The daemons.
    pub nodes: Vec<Node>,
    folder: PathBuf,
    temporary: Option<TempDir>,
    miner: Address,
    programs: Programs,
    deposits: Vec<Deposit>,
}

/// Coins given to a daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deposit {
    /// To which, by its index.
    pub node: usize,
    /// The transaction, as people write it.
    pub txid: String,
    /// The daemon's address.
    pub address: String,
}

/// As much of a list as one answer holds.
#[must_use]
pub fn whole_page() -> Page {
    Page { size: 1000, cursor: String::new() }
}

impl Network {
    /// A bitcoind with coins to give, and no daemon yet.
    ///
    /// # Errors
    /// If bitcoind or the daemons' programs cannot be had.
    pub fn start() -> Result<Self, Error> {
        let programs = Programs::find()?;
        let temporary = tempfile::Builder::new()
            .prefix("millrace-network-")
            .tempdir()
            .map_err(|source| Error::io("make a folder in", &std::env::temp_dir(), source))?;
        let folder = temporary.path().to_owned();
        let options = bitcoind::Options { data_folder: Some(folder.join("bitcoind")), ..bitcoind::Options::default() };
        let bitcoind = Bitcoind::start(options)?;
        bitcoind.mine_to_wallet(110)?;
        let miner = bitcoind.new_address()?;
        Ok(Self {
            bitcoind,
            nodes: Vec::new(),
            folder,
            temporary: Some(temporary),
            miner,
            programs,
            deposits: Vec::new(),
        })
    }

    /// Daemons that run without us, on a bitcoind that does, in a folder that stays.
    pub(crate) fn attached(
        bitcoind: Bitcoind,
        nodes: Vec<Node>,
        folder: &Path,
        programs: Programs,
    ) -> Result<Self, Error> {
        let miner = bitcoind.new_address()?;
        Ok(Self { bitcoind, nodes, folder: folder.to_owned(), temporary: None, miner, programs, deposits: Vec::new() })
    }

    /// A daemon more, not started yet. Returns its index.
    pub fn add(&mut self, name: &str) -> usize {
        let data_dir = self.folder.join(name);
        let (url, cookie) = (self.bitcoind.rpc_url(), self.bitcoind.cookie_path());
        self.nodes.push(Node::new(name, &self.programs, data_dir, &url, &cookie));
        self.nodes.len() - 1
    }

    /// The coins given to daemons so far.
    #[must_use]
    pub fn deposits(&self) -> &[Deposit] {
        &self.deposits
    }

    /// The folder with everything in it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Lets everything run on when this process ends, and keeps the folder.
    pub fn leave_running(&mut self) {
        self.nodes.iter_mut().for_each(Node::leave_running);
        self.bitcoind.leave_running();
        if let Some(temporary) = self.temporary.take() {
            let _ = temporary.keep();
        }
    }

    // --- the chain ---

    /// Mines blocks, and waits until every running daemon has seen the last.
    ///
    /// # Errors
    /// If bitcoind refuses, or a daemon does not follow.
    pub async fn mine(&mut self, blocks: u32) -> Result<(), Error> {
        tokio::task::block_in_place(|| self.bitcoind.mine(blocks, &self.miner))?;
        let height = tokio::task::block_in_place(|| self.bitcoind.height())?;
        for node in &self.nodes {
            let Ok(mut client) = node.client() else { continue };
            wait_for(&format!("{} at height {height}", node.name), SOON, async || {
                let info = client.node.get_info(GetInfoRequest {}).await.map_err(|status| node.call_failed(&status))?;
                let tip = info.into_inner().tip_height;
                Ok(if tip >= height { Ok(()) } else { Err(format!("it is at {tip}")) })
            })
            .await?;
        }
        Ok(())
    }

    /// Gives a daemon coins, in one output, and waits until they are confirmed.
    ///
    /// # Errors
    /// If any of it fails.
    pub async fn fund(&mut self, node: usize, amount: Amount) -> Result<(), Error> {
        let request = NewAddressRequest { idempotency_key: random_key(), address_type: 0 };
        let answer = self.nodes[node].client()?.wallet.new_address(request).await;
        let text = answer.map_err(|status| self.nodes[node].call_failed(&status))?.into_inner().address;
        let address = text.parse::<Address<_>>().ok().and_then(|address| address.require_network(Chain::Regtest).ok());
        let address = address.ok_or_else(|| Error::Wrong(format!("{text} is not an address of regtest")))?;
        let before = self.balance(node).await?.confirmed_sat;
        let txid = tokio::task::block_in_place(|| self.bitcoind.send_to(&address, amount))?;
        self.deposits.push(Deposit { node, txid: txid.to_string(), address: text });
        self.mine(1).await?;
        let wanted = before + amount.to_sat();
        self.wait(&format!("{wanted} sat in {}'s wallet", self.nodes[node].name), async || {
            let has = self.balance(node).await?.confirmed_sat;
            Ok(if has == wanted { Ok(()) } else { Err(format!("it has {has} sat")) })
        })
        .await
    }

    // --- daemons ---

    /// What a daemon's wallet says.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn balance(&self, node: usize) -> Result<BalanceResponse, Error> {
        let answer = self.nodes[node].client()?.wallet.balance(BalanceRequest {}).await;
        Ok(answer.map_err(|status| self.nodes[node].call_failed(&status))?.into_inner())
    }

    /// A daemon's channels, closed ones too.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn channels(&self, node: usize) -> Result<Vec<Channel>, Error> {
        let request = ListChannelsRequest { page: Some(whole_page()), node_id: Vec::new(), include_closed: true };
        let answer = self.nodes[node].client()?.channels.list(request).await;
        Ok(answer.map_err(|status| self.nodes[node].call_failed(&status))?.into_inner().channels)
    }

    /// A channel by its id.
    ///
    /// # Errors
    /// If the call fails, or it is not there.
    pub async fn channel(&self, node: usize, channel_id: &[u8]) -> Result<Channel, Error> {
        let request = GetChannelRequest { channel: Some(get_channel_request::Channel::ChannelId(channel_id.to_vec())) };
        let answer = self.nodes[node].client()?.channels.get(request).await;
        let found = answer.map_err(|status| self.nodes[node].call_failed(&status))?.into_inner().channel;
        found.ok_or_else(|| Error::Wrong(format!("{} does not know the channel", self.nodes[node].name)))
    }

    /// Connects `from` to `to`.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn connect(&self, from: usize, to: usize) -> Result<(), Error> {
        let request = ConnectRequest {
            idempotency_key: random_key(),
            node_id: self.nodes[to].node_id().to_vec(),
            address: self.nodes[to].lightning_address()?,
        };
        let answer = self.nodes[from].client()?.peers.connect(request).await;
        answer.map(|_| ()).map_err(|status| self.nodes[from].call_failed(&status))
    }

    /// Opens a channel and mines until both sides can use it. Returns its id.
    ///
    /// # Errors
    /// If any of it fails.
    pub async fn open(&mut self, from: usize, to: usize, capacity_sat: u64, push_msat: u64) -> Result<Vec<u8>, Error> {
        let request = OpenChannelRequest {
            idempotency_key: random_key(),
            node_id: self.nodes[to].node_id().to_vec(),
            capacity_sat,
            push_msat,
            ..OpenChannelRequest::default()
        };
        let answer = self.nodes[from].client()?.channels.open(request).await;
        let mut progress = answer.map_err(|status| self.nodes[from].call_failed(&status))?.into_inner();
        let (channel_id, funding) = loop {
            let step = progress.message().await.map_err(|status| self.nodes[from].call_failed(&status))?;
            let Some(step) = step else { return Err(Error::Wrong("opening ended without a word".to_owned())) };
            if let Some(open_channel_progress::Stage::FundingBroadcast(broadcast)) = step.stage {
                break (step.channel_id, broadcast.funding_outpoint.unwrap_or_default().txid);
            }
        };
        self.wait_for_transaction(&hex::encode(funding)).await?;
        self.mine(6).await?;
        for node in [from, to] {
            self.wait_until_usable(node, &channel_id).await?;
        }
        Ok(channel_id)
    }

    /// Waits until a channel can be used.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_until_usable(&self, node: usize, channel_id: &[u8]) -> Result<(), Error> {
        self.wait(&format!("{}'s channel usable", self.nodes[node].name), async || {
            let channel = self.channels(node).await?.into_iter().find(|channel| channel.channel_id == channel_id);
            let Some(channel) = channel else { return Ok(Err("it is not there".to_owned())) };
            let is_usable = channel.state() == ChannelState::Normal && channel.online;
            Ok(if is_usable { Ok(()) } else { Err(format!("it is {:?}, online {}", channel.state(), channel.online)) })
        })
        .await
    }

    /// Waits until the mempool holds at least so many transactions.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_for_mempool(&self, count: usize) -> Result<(), Error> {
        self.wait(&format!("{count} transactions in the mempool"), async || {
            let has = tokio::task::block_in_place(|| self.bitcoind.mempool())?.len();
            Ok(if has >= count { Ok(()) } else { Err(format!("there are {has}")) })
        })
        .await
    }

    /// Waits until the mempool holds this transaction, by its id as people write it. Others may come before it: a node divides
    /// coins for its reserve.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_for_transaction(&self, txid: &str) -> Result<(), Error> {
        self.wait(&format!("transaction {txid} in the mempool"), async || {
            let mempool = tokio::task::block_in_place(|| self.bitcoind.mempool())?;
            let has = mempool.iter().any(|other| other.to_string() == txid);
            Ok(if has { Ok(()) } else { Err(format!("it is none of {}", mempool.len())) })
        })
        .await
    }

    /// Waits until `check` is content, at most [`SOON`].
    ///
    /// # Errors
    /// If it takes too long, or the check itself fails.
    pub async fn wait(
        &self,
        what: &str,
        check: impl AsyncFnMut() -> Result<Result<(), String>, Error>,
    ) -> Result<(), Error> {
        wait_for(what, SOON, check).await
    }
}

/// Asks again and again until the answer is content, or says how things stand instead.
///
/// # Errors
/// [`Error::Late`], or what the check itself fails with.
pub async fn wait_for(
    what: &str,
    limit: Duration,
    mut check: impl AsyncFnMut() -> Result<Result<(), String>, Error>,
) -> Result<(), Error> {
    let until = Instant::now() + limit;
    loop {
        let state = match check().await? {
            Ok(()) => return Ok(()),
            Err(state) => state,
        };
        if Instant::now() > until {
            return Err(Error::Late { what: what.to_owned(), seconds: limit.as_secs(), state: format!(": {state}") });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
