//! One bitcoind over JSON-RPC: Bitcoin Core or Knots, 27 or newer, with or without `txindex`.
//!
//! Its version and network are checked before anything else, and again whenever it has been away.
//! What it answers is verified as far as that goes (see `reply`). It has no wallet calls: keys never
//! meet bitcoind.

mod client;
mod reply;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::constants::genesis_block;
use bitcoin::{Amount, Block, BlockHash, Network, OutPoint, Transaction, Txid};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

pub use client::{Answers, Auth, Timeouts};
pub use reply::{ChainInfo, HeaderInfo, MempoolEntry, MempoolInfo, NetworkInfo, PackageOutcome, TestAccept, Tip, Utxo};

use crate::{ChainError, Result};
use client::{Client, Patience};
use reply::{BlockTxidsReply, EntryReply, FeeReply, HeaderReply, PackageReply, SpenderReply, UtxoReply};

/// The oldest bitcoind that will do.
pub const VERSION_MIN: u32 = 270_000;
/// Transactions asked for in one request: at most 400 kB each, so 40 MB of hex at the very worst.
const BATCH_MAX: usize = 50;

/// Switches off bitcoind's own limit, 0.10 BTC per 1000 virtual bytes, which it holds against each transaction for itself: a
/// small child that pays for a large commitment is above it. Whoever makes a transaction bounds its fee.
const ANY_FEERATE: u32 = 0;
/// bitcoind's codes that mean "there is no such thing".
const RPC_INVALID_ADDRESS_OR_KEY: i32 = -5;
const RPC_INVALID_PARAMETER: i32 = -8;
const RPC_MISC_ERROR: i32 = -1;

/// Which bitcoind, and for which chain.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where its RPC listens, such as `http://127.0.0.1:8332`.
    pub url: String,
    /// How to log in.
    pub auth: Auth,
    /// The network this node is for.
    pub network: Network,
    /// How long to wait for it.
    pub timeouts: Timeouts,
}

/// A bitcoind. Clones share the login.
#[derive(Clone)]
pub struct Bitcoind {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    url: String,
    network: Network,
}

impl fmt::Debug for Bitcoind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { url, network, .. } = &*self.shared;
        f.debug_struct("Bitcoind").field("url", url).field("network", network).finish_non_exhaustive()
    }
}

/// What the mempool has that the caller does not, and the other way round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MempoolDiff {
    /// Transactions in the mempool that were not known.
    pub arrived: Vec<Transaction>,
    /// Known ones that are no longer there: mined, replaced or evicted. The blocks tell which were
    /// mined.
    pub gone: Vec<Txid>,
    /// Whether there are more than were asked for: ask again, with the new ones known.
    pub has_more: bool,
}

impl Bitcoind {
    /// Connects, and checks that it is one we can work with. One that is still syncing is: see
    /// [`Bitcoind::check_synced`].
    ///
    /// # Errors
    /// [`ChainError::Away`], [`ChainError::Auth`], [`ChainError::TooOld`],
    /// [`ChainError::WrongNetwork`], [`ChainError::Url`].
    pub async fn connect(config: Config) -> Result<Self> {
        let bitcoind = Self::new(config)?;
        bitcoind.check().await?;
        Ok(bitcoind)
    }

    /// The same without a first call, for a bitcoind that may be away.
    ///
    /// # Errors
    /// [`ChainError::Url`].
    pub fn new(config: Config) -> Result<Self> {
        let client = Client::new(&config.url, config.auth, config.timeouts)?;
        let shared = Shared { client, url: config.url, network: config.network };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// One inside of this process.
    #[must_use]
    pub fn within(bitcoind: Arc<dyn Answers>, network: Network) -> Self {
        let shared = Shared { client: Client::within(bitcoind), url: "within this process".to_owned(), network };
        Self { shared: Arc::new(shared) }
    }

    /// The network this node is for.
    #[must_use]
    pub fn network(&self) -> Network {
        self.shared.network
    }

    /// Checks its version and its network.
    ///
    /// # Errors
    /// As [`Bitcoind::connect`].
    pub async fn check(&self) -> Result<ChainInfo> {
        let NetworkInfo { version, subversion } = self.network_info().await?;
        if version < VERSION_MIN {
            return Err(ChainError::TooOld { found: version, subversion, min: VERSION_MIN });
        }
        let info = self.chain_info().await?;
        let expected = self.network();
        if info.chain != expected.to_core_arg() {
            return Err(ChainError::WrongNetwork { expected, found: info.chain });
        }
        let genesis = genesis_block(expected).block_hash();
        match self.block_hash(0).await? {
            Some(hash) if hash == genesis => Ok(info),
            other => {
                let hash = other.map_or("no".to_owned(), |hash| hash.to_string());
                let found = format!("{}, with {hash} as its first block", info.chain);
                Err(ChainError::WrongNetwork { expected, found })
            }
        }
    }

    /// Checks that it has caught up with the chain.
    ///
    /// # Errors
    /// [`ChainError::Syncing`], or why it cannot be asked.
    pub async fn check_synced(&self) -> Result<ChainInfo> {
        let info = self.chain_info().await?;
        if info.is_synced(self.network()) { Ok(info) } else { Err(info.syncing()) }
    }

    /// Its version and name.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn network_info(&self) -> Result<NetworkInfo> {
        self.call("getnetworkinfo", &[]).await
    }

    /// The state of its chain.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn chain_info(&self) -> Result<ChainInfo> {
        self.call("getblockchaininfo", &[]).await
    }

    /// The hash of the active chain's block at a height; `None` above its tip.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>> {
        absent(self.call("getblockhash", &[json!(height)]).await, &[RPC_INVALID_PARAMETER])
    }

    /// A header by its hash, verified against it; `None` if bitcoind does not know it.
    ///
    /// # Errors
    /// [`ChainError::Odd`] if another one came, or if it cannot be asked.
    pub async fn header(&self, hash: &BlockHash) -> Result<Option<HeaderInfo>> {
        let reply = self.call::<HeaderReply>("getblockheader", &[json!(hash), json!(true)]).await;
        match absent(reply, &[RPC_INVALID_ADDRESS_OR_KEY])? {
            Some(reply) => reply.verify(hash).map(Some),
            None => Ok(None),
        }
    }

    /// The header of the active chain's block at a height; `None` above its tip.
    ///
    /// # Errors
    /// As [`Bitcoind::header`].
    pub async fn header_at(&self, height: u32) -> Result<Option<HeaderInfo>> {
        let Some(hash) = self.block_hash(height).await? else { return Ok(None) };
        match self.header(&hash).await? {
            Some(info) if info.height == height => Ok(Some(info)),
            Some(info) => {
                let reason = format!("block {hash} of height {height} is said to be at {}", info.height);
                Err(ChainError::odd("getblockheader", reason))
            }
            None => Ok(None),
        }
    }

    /// A block by its hash, verified against it: work, Merkle root and witness commitment too.
    ///
    /// # Errors
    /// [`ChainError::Odd`] if it is not that block, [`ChainError::Rpc`] if it is not there.
    pub async fn block(&self, hash: &BlockHash) -> Result<Block> {
        let arguments = [json!(hash), json!(0)];
        let hex: String = self.shared.client.call("getblock", &arguments, Patience::Bulk).await?;
        let (asked, network) = (*hash, self.network());
        // Some 10 ms of hashing for a full block: not on the threads that serve sockets.
        let verified = spawn_blocking(move || reply::verify_block(&asked, &hex, network)).await;
        verified.unwrap_or_else(|error| Err(ChainError::odd("getblock", error.to_string())))
    }

    /// Waits until the chain has at least this height, or for the long poll's time limit.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn wait_for_height(&self, height: u32) -> Result<Tip> {
        let limit_ms = u64::try_from(self.shared.client.poll_limit().as_millis()).unwrap_or(u64::MAX);
        // To bitcoind, a limit of 0 means none at all.
        let arguments = [json!(height), json!(limit_ms.max(1))];
        self.shared.client.call("waitforblockheight", &arguments, Patience::Poll).await
    }

    /// An output, if it is unspent. With `with_mempool`, one that the mempool spends counts as spent,
    /// and one that the mempool creates is found.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn utxo(&self, outpoint: &OutPoint, with_mempool: bool) -> Result<Option<Utxo>> {
        let arguments = [json!(outpoint.txid), json!(outpoint.vout), json!(with_mempool)];
        let reply: Option<UtxoReply> = self.call("gettxout", &arguments).await?;
        Ok(reply.map(Utxo::from))
    }

    /// The ids of a block's transactions, in their order, verified against the block's hash; `None` if bitcoind does not know
    /// it. For those who need no more of the block than its list.
    ///
    /// # Errors
    /// [`ChainError::Odd`] if it is not that block's list, [`ChainError::Rpc`] if the block was thrown away (see
    /// [`ChainError::is_pruned_block`]), or if it cannot be asked.
    pub async fn block_txids(&self, hash: &BlockHash) -> Result<Option<Vec<Txid>>> {
        let arguments = [json!(hash), json!(1)];
        let reply = self.shared.client.call::<BlockTxidsReply>("getblock", &arguments, Patience::Bulk).await;
        match absent(reply, &[RPC_INVALID_ADDRESS_OR_KEY])? {
            Some(reply) => reply.verify(hash).map(Some),
            None => Ok(None),
        }
    }

    /// Which of these outputs are unspent in the chain, the mempool aside, and what they hold; in their order.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn utxos(&self, outpoints: &[OutPoint]) -> Result<Vec<Option<Utxo>>> {
        let mut found = Vec::with_capacity(outpoints.len());
        for part in outpoints.chunks(BATCH_MAX) {
            let arguments: Vec<_> =
                part.iter().map(|outpoint| vec![json!(outpoint.txid), json!(outpoint.vout), json!(false)]).collect();
            for reply in self.shared.client.batch::<Option<UtxoReply>>("gettxout", &arguments).await? {
                found.push(reply?.map(Utxo::from));
            }
        }
        Ok(found)
    }

    /// A transaction from the mempool, or from the block that is named; `None` if it is not there.
    ///
    /// # Errors
    /// [`ChainError::Odd`] if another one came, or if it cannot be asked.
    pub async fn transaction(&self, txid: &Txid, block: Option<&BlockHash>) -> Result<Option<Transaction>> {
        let mut arguments = vec![json!(txid), json!(false)];
        arguments.extend(block.map(|hash| json!(hash)));
        let reply = self.call::<String>("getrawtransaction", &arguments).await;
        match absent(reply, &[RPC_INVALID_ADDRESS_OR_KEY])? {
            Some(hex) => reply::verify_transaction(txid, &hex).map(Some),
            None => Ok(None),
        }
    }

    /// What has changed in the mempool since the caller knew `known`; at most `max` new ones.
    ///
    /// # Errors
    /// [`ChainError::Odd`] if transactions came that were not asked for, or if it cannot be asked.
    pub async fn mempool_txs(&self, known: &HashSet<Txid>, max: usize) -> Result<MempoolDiff> {
        let all: Vec<Txid> = self.shared.client.call("getrawmempool", &[], Patience::Bulk).await?;
        let present: HashSet<Txid> = all.iter().copied().collect();
        let gone = known.difference(&present).copied().collect();
        let mut wanted = all.into_iter().filter(|txid| !known.contains(txid));
        let asked: Vec<Txid> = wanted.by_ref().take(max).collect();
        let has_more = wanted.next().is_some();
        let mut arrived = Vec::with_capacity(asked.len());
        for part in asked.chunks(BATCH_MAX) {
            let arguments: Vec<_> = part.iter().map(|txid| vec![json!(txid), json!(false)]).collect();
            let replies = self.shared.client.batch::<String>("getrawtransaction", &arguments).await?;
            for (txid, reply) in part.iter().zip(replies) {
                // One that has left since the list was made is not news.
                if let Some(hex) = absent(reply, &[RPC_INVALID_ADDRESS_OR_KEY])? {
                    arrived.push(reply::verify_transaction(txid, &hex)?);
                }
            }
        }
        Ok(MempoolDiff { arrived, gone, has_more })
    }

    /// Which transactions of the mempool spend these outputs, in their order.
    ///
    /// # Errors
    /// [`ChainError::Odd`] if the answers are not about them, or if it cannot be asked.
    pub async fn mempool_spenders(&self, outpoints: &[OutPoint]) -> Result<Vec<Option<Txid>>> {
        const METHOD: &str = "gettxspendingprevout";
        if outpoints.is_empty() {
            return Ok(Vec::new());
        }
        let asked: Vec<Value> =
            outpoints.iter().map(|outpoint| json!({ "txid": outpoint.txid, "vout": outpoint.vout })).collect();
        let replies: Vec<SpenderReply> = self.call(METHOD, &[json!(asked)]).await?;
        let answered = replies.iter().map(|reply| OutPoint { txid: reply.txid, vout: reply.vout });
        if !answered.eq(outpoints.iter().copied()) {
            return Err(ChainError::odd(METHOD, "the answers are about other outputs"));
        }
        Ok(replies.into_iter().map(|reply| reply.spender).collect())
    }

    /// What a transaction of the mempool pays; `None` if it is not there.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn mempool_entry(&self, txid: &Txid) -> Result<Option<MempoolEntry>> {
        let reply = self.call::<EntryReply>("getmempoolentry", &[json!(txid)]).await;
        Ok(absent(reply, &[RPC_INVALID_ADDRESS_OR_KEY])?.map(MempoolEntry::from))
    }

    /// What the mempool demands.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn mempool_info(&self) -> Result<MempoolInfo> {
        self.call("getmempoolinfo", &[]).await
    }

    /// What a transaction should pay, per 1000 virtual bytes, to be mined within this many blocks;
    /// `None` if there is nothing to estimate from.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn estimate_fee(&self, blocks: u16, is_conservative: bool) -> Result<Option<Amount>> {
        let mode = if is_conservative { "conservative" } else { "economical" };
        let reply: FeeReply = self.call("estimatesmartfee", &[json!(blocks), json!(mode)]).await?;
        Ok(reply.per_kvb)
    }

    /// Asks whether the mempool would take these transactions, the later ones on top of the earlier.
    ///
    /// # Errors
    /// [`ChainError::Odd`] if the answers are not about them, or if it cannot be asked.
    pub async fn test_accept(&self, transactions: &[Transaction]) -> Result<Vec<TestAccept>> {
        const METHOD: &str = "testmempoolaccept";
        let hex: Vec<_> = transactions.iter().map(serialize_hex).collect();
        let answers: Vec<TestAccept> = self.shared.client.call(METHOD, &[json!(hex)], Patience::Bulk).await?;
        let asked = transactions.iter().map(Transaction::compute_txid);
        if !answers.iter().map(|answer| answer.txid).eq(asked) {
            return Err(ChainError::odd(METHOD, "the answers are about other transactions"));
        }
        Ok(answers)
    }

    /// Hands a transaction to the mempool and to the peers.
    ///
    /// # Errors
    /// [`ChainError::Rpc`] with the mempool's reason if it is refused.
    pub async fn send(&self, transaction: &Transaction) -> Result<()> {
        const METHOD: &str = "sendrawtransaction";
        let txid: Txid = self.call(METHOD, &[json!(serialize_hex(transaction)), json!(ANY_FEERATE)]).await?;
        let own = transaction.compute_txid();
        if txid == own {
            return Ok(());
        }
        Err(ChainError::odd(METHOD, format!("{own} was sent, and {txid} is said to be accepted")))
    }

    /// Hands over a child with its parents, which may pay too little by themselves: the child last.
    /// What became of each, in their order.
    ///
    /// # Errors
    /// [`ChainError::Rpc`] if it is no such package.
    pub async fn send_package(&self, transactions: &[Transaction]) -> Result<Vec<PackageOutcome>> {
        let hex: Vec<_> = transactions.iter().map(serialize_hex).collect();
        let arguments = [json!(hex), json!(ANY_FEERATE)];
        let reply: PackageReply = self.shared.client.call("submitpackage", &arguments, Patience::Bulk).await?;
        Ok(transactions.iter().map(|transaction| reply.outcome(&transaction.compute_txid())).collect())
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, arguments: &[Value]) -> Result<T> {
        self.shared.client.call(method, arguments, Patience::Call).await
    }
}

/// Turns the refusals that mean "there is no such thing" into `None`.
fn absent<T>(result: Result<T>, codes: &[i32]) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ChainError::Rpc { code, .. }) if codes.contains(&code) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Whether a refused `getblock` means that the block was thrown away.
pub(crate) fn is_pruned(error: &ChainError) -> bool {
    matches!(error, ChainError::Rpc { code: RPC_MISC_ERROR, message, .. } if message.contains("pruned"))
}
