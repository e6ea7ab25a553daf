//! Every satoshi accounted for, from the blocks themselves: what was paid to the daemons is followed through every
//! transaction, and what is left must be what the daemons say they have.
//!
//! That is a sum over all nodes, which defines fees as what is missing. So each node's own books are gathered too, with
//! the daemons' words for every fee; `books` compares them.

use std::collections::{HashMap, HashSet};

use millrace_rpc::v1::{
    self, ChannelState, CloseKind, ClosingInfo, ListTransactionsRequest, ListUtxosRequest, OutputKind, OutputStatus,
    TransactionKind, WalletTransaction,
};
use serde_json::{Value, json};

use crate::books::{self, Books, Broadcast, Dealings, Fee, Way, Word};
use crate::network::{Deposit, Error, Network, whole_page};

/// Where the coins are, in sat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Accounts {
    /// Given to the daemons.
    pub given_sat: u64,
    /// In their wallets, by their own word.
    pub wallets_sat: u64,
    /// In open channels, by the capacity that both sides name.
    pub channels_sat: u64,
    /// Paid to miners by transactions of theirs, on purpose.
    pub fees_sat: u64,
    /// Millisatoshi that no output of a closing transaction could hold, of both sides together: the miners have them too.
    pub trimmed_msat: u64,
    /// In anchors that nobody has spent.
    pub anchors_sat: u64,
}

impl Accounts {
    /// What no account explains: must be 0.
    #[must_use]
    pub const fn missing_sat(&self) -> i128 {
        self.given_sat as i128
            - self.wallets_sat as i128
            - self.channels_sat as i128
            - self.fees_sat as i128
            - self.anchors_sat as i128
            - (self.trimmed_msat / 1000) as i128
    }
}

/// An anchor's value (BOLT 3).
const ANCHOR_SAT: u64 = 330;

type Coin = (String, u64);

/// A channel of the story that is told.
#[derive(Clone, PartialEq, Debug)]
pub struct Played {
    /// Its id.
    pub channel_id: Vec<u8>,
    /// What was done with it.
    pub dealings: Dealings,
    /// What was first said of closing it, once it was.
    pub broadcast: Option<Broadcast>,
}

/// What the blocks say.
#[derive(Default)]
struct Blocks {
    accounts: Accounts,
    coins: HashMap<Coin, u64>,
    /// Given to each node.
    given_sat: [u64; 2],
    /// What spends coins of the daemons.
    transactions: Vec<books::Transaction>,
}

/// Follows the coins from the block after `from_height` on. The channels of the story are closed by now, and its nodes
/// are the first two.
///
/// # Errors
/// If a call fails, or an output is found that nobody claims to own.
pub async fn settle(network: &Network, from_height: u32, story: &[Played]) -> Result<(Accounts, Books), Error> {
    let txs = tokio::task::block_in_place(|| transactions_since(network, from_height))?;
    let mut blocks = Blocks::default();
    for tx in &txs {
        blocks.follow(tx, network.deposits());
    }
    let Blocks { mut accounts, mut coins, given_sat, transactions } = blocks;
    for node in 0..network.nodes.len() {
        let balance = network.balance(node).await?;
        accounts.wallets_sat += balance.confirmed_sat + balance.unconfirmed_sat;
        take_wallet_coins(network, node, &mut coins).await?;
        for channel in network.channels(node).await? {
            let Some(outpoint) = &channel.funding_outpoint else { continue };
            if let Some(sat) = coins.remove(&(hex::encode(&outpoint.txid), u64::from(outpoint.vout))) {
                check_channel(&channel, sat)?;
                accounts.channels_sat += sat;
            }
        }
    }
    accounts.trimmed_msat = trimmed_msat(network).await?;
    let all_fees_sat = accounts.fees_sat;
    accounts.fees_sat = all_fees_sat.checked_sub(accounts.trimmed_msat / 1000).ok_or_else(|| {
        Error::Wrong(format!("{} msat were trimmed, and the miners got {all_fees_sat} sat", accounts.trimmed_msat))
    })?;
    let anchors = anchors(network).await?;
    let mut anchors_sat: HashMap<String, u64> = HashMap::new();
    for (coin, sat) in coins {
        if sat != ANCHOR_SAT || !anchors.contains(&coin) {
            return Err(Error::Wrong(format!("nobody owns {}:{}, {sat} sat", coin.0, coin.1)));
        }
        accounts.anchors_sat += sat;
        *anchors_sat.entry(coin.0).or_default() += sat;
    }
    let mut channels = Vec::new();
    for played in story {
        channels.push(closed_channel(network, played, &anchors_sat).await?);
    }
    let nodes =
        [node_books(network, 0, given_sat[0], story).await?, node_books(network, 1, given_sat[1], story).await?];
    Ok((accounts, Books { nodes, channels, transactions }))
}

/// What both daemons say of a channel that is closed.
async fn closed_channel(
    network: &Network,
    played: &Played,
    anchors_sat: &HashMap<String, u64>,
) -> Result<books::Channel, Error> {
    let (mut words, mut closings) = (Vec::new(), Vec::new());
    for node in 0..2 {
        let channel = network.channel(node, &played.channel_id).await?;
        let name = &network.nodes[node].name;
        let not_closed = || Error::Wrong(format!("{name} does not say how the channel was closed: {channel:?}"));
        let ClosingInfo { txid, fee_sat, recovered_sat, kind, .. } = channel.closing.clone().ok_or_else(not_closed)?;
        words.push(Word { balance_msat: channel.local_msat, fee_sat, recovered_sat });
        closings.push((hex::encode(txid), kind == i32::from(CloseKind::Cooperative)));
    }
    if closings[0] != closings[1] {
        return Err(Error::Wrong(format!("the nodes say that other transactions closed the channel: {closings:?}")));
    }
    let (closing_txid, is_together) = closings.swap_remove(0);
    let anchors_sat = anchors_sat.get(&closing_txid).copied().unwrap_or_default();
    let way = if is_together { Way::Together } else { Way::Alone { anchors_sat } };
    let broadcast = played.broadcast.clone();
    let broadcast = broadcast.ok_or_else(|| Error::Wrong("a channel of the story was not closed".to_owned()))?;
    Ok(books::Channel { dealings: played.dealings, closing_txid, way, broadcast, words: [words[0], words[1]] })
}

/// A node's own word of its wallet.
async fn node_books(network: &Network, node: usize, given_sat: u64, story: &[Played]) -> Result<books::Node, Error> {
    let daemon = &network.nodes[node];
    let balance = network.balance(node).await?;
    let request = ListTransactionsRequest { page: Some(whole_page()) };
    let answer = daemon.client()?.wallet.list_transactions(request).await;
    let answer = answer.map_err(|status| daemon.call_failed(&status))?.into_inner();
    let mut fees = Vec::new();
    for tx in answer.transactions {
        let sweeps = match tx.kind() {
            // Paid for by who gives, and told of the channel.
            TransactionKind::Deposit | TransactionKind::CooperativeClose | TransactionKind::Commitment => continue,
            TransactionKind::Sweep => story.iter().position(|played| played.channel_id == tx.channel_id),
            TransactionKind::Unspecified
            | TransactionKind::Withdrawal
            | TransactionKind::Funding
            | TransactionKind::FeeBump => None,
        };
        let told = match sweeps {
            Some(index) => swept_fee_sat(network, node, &story[index].channel_id, &tx).await?,
            None => tx.fee_sat,
        };
        let txid = hex::encode(&tx.txid);
        let sat = told.ok_or_else(|| Error::Wrong(format!("{} does not say what {txid} paid", daemon.name)))?;
        fees.push(Fee { txid, sweeps, sat });
    }
    let wallet_sat = balance.confirmed_sat + balance.unconfirmed_sat;
    Ok(books::Node { name: daemon.name.clone(), given_sat, wallet_sat, fees })
}

/// What a sweep paid by the node's word: what it has claimed of the channel, less what that brought. The wallet itself
/// does not know what coins of a commitment are worth.
async fn swept_fee_sat(
    network: &Network,
    node: usize,
    channel_id: &[u8],
    tx: &WalletTransaction,
) -> Result<Option<u64>, Error> {
    let closing = network.channel(node, channel_id).await?.closing;
    let outputs = closing.and_then(|closing| closing.on_chain).map(|on_chain| on_chain.outputs).unwrap_or_default();
    let is_in_it =
        |output: &&v1::OnChainOutput| output.claim_txid == tx.txid && output.status() == OutputStatus::Claimed;
    let claimed_sat: u64 = outputs.iter().filter(is_in_it).map(|output| output.amount_sat).sum();
    Ok((claimed_sat + tx.sent_sat).checked_sub(tx.received_sat))
}

/// The anchors of all commitments that closed a channel.
async fn anchors(network: &Network) -> Result<HashSet<Coin>, Error> {
    let mut anchors = HashSet::new();
    for node in 0..network.nodes.len() {
        for channel in network.channels(node).await? {
            let closing = network.channel(node, &channel.channel_id).await?.closing;
            let outputs = closing.and_then(|closing| closing.on_chain).map(|on_chain| on_chain.outputs);
            for output in outputs.into_iter().flatten() {
                let is_anchor = matches!(output.kind(), OutputKind::LocalAnchor | OutputKind::RemoteAnchor);
                if let Some(outpoint) = output.outpoint.filter(|_| is_anchor) {
                    anchors.insert((hex::encode(&outpoint.txid), u64::from(outpoint.vout)));
                }
            }
        }
    }
    Ok(anchors)
}

/// What the closing transactions of closed channels left out: each side's balance below a whole satoshi.
async fn trimmed_msat(network: &Network) -> Result<u64, Error> {
    let mut by_channel = HashMap::new();
    for node in 0..network.nodes.len() {
        for channel in network.channels(node).await? {
            if channel.state() == ChannelState::Closed {
                if channel.local_msat + channel.remote_msat != channel.capacity_sat * 1000 {
                    return Err(Error::Wrong(format!("a channel was closed with HTLCs in it: {channel:?}")));
                }
                by_channel.insert(channel.channel_id, channel.local_msat % 1000 + channel.remote_msat % 1000);
            }
        }
    }
    Ok(by_channel.values().sum())
}

fn check_channel(channel: &millrace_rpc::v1::Channel, sat: u64) -> Result<(), Error> {
    let parts = channel.local_msat + channel.remote_msat + channel.offered_msat + channel.received_msat;
    if channel.capacity_sat == sat && parts == sat * 1000 {
        return Ok(());
    }
    Err(Error::Wrong(format!("a channel of {sat} sat holds {parts} msat by its own word")))
}

impl Blocks {
    /// A transaction of the daemons spends coins of theirs; a deposit gives them some.
    fn follow(&mut self, tx: &Value, deposits: &[Deposit]) {
        let txid = tx["txid"].as_str().unwrap_or_default().to_owned();
        let inputs = tx["vin"].as_array().cloned().unwrap_or_default();
        let spent =
            inputs.iter().filter_map(|input| Some((input["txid"].as_str()?.to_owned(), input["vout"].as_u64()?)));
        let value_in: u64 = spent.filter_map(|coin| self.coins.remove(&coin)).sum();
        let outputs = tx["vout"].as_array().cloned().unwrap_or_default();
        let deposit = deposits.iter().find(|deposit| deposit.txid == txid);
        let mut value_out = 0;
        for (vout, output) in (0_u64..).zip(&outputs) {
            let sat = sat_of(output);
            let given = deposit.filter(|deposit| output["scriptPubKey"]["address"] == deposit.address.as_str());
            if let Some(deposit) = given {
                self.accounts.given_sat += sat;
                self.given_sat[deposit.node] += sat;
            }
            if value_in > 0 || given.is_some() {
                value_out += sat;
                self.coins.insert((txid.clone(), vout), sat);
            }
        }
        if value_in > 0 {
            let fee_sat = value_in.saturating_sub(value_out);
            self.accounts.fees_sat += fee_sat;
            let weight = tx["weight"].as_u64().unwrap_or_default();
            self.transactions.push(books::Transaction { txid, fee_sat, weight });
        }
    }
}

fn sat_of(output: &Value) -> u64 {
    // bitcoind prints eight decimals: below 2^53 sat a float still tells them apart.
    (output["value"].as_f64().unwrap_or_default() * 1e8).round() as u64
}

fn transactions_since(network: &Network, from_height: u32) -> Result<Vec<Value>, Error> {
    let tip = network.bitcoind.height()?;
    let mut txs = Vec::new();
    for height in from_height + 1..=tip {
        let hash = network.bitcoind.block_hash(height)?;
        let block = network.bitcoind.call("getblock", &json!([hash.to_string(), 2]))?;
        txs.extend(block["tx"].as_array().cloned().unwrap_or_default());
    }
    Ok(txs)
}

async fn take_wallet_coins(network: &Network, node: usize, coins: &mut HashMap<Coin, u64>) -> Result<(), Error> {
    let answer = network.nodes[node].client()?.wallet.list_utxos(ListUtxosRequest { page: Some(whole_page()) }).await;
    let utxos = answer.map_err(|status| network.nodes[node].call_failed(&status))?.into_inner().utxos;
    for utxo in utxos {
        let Some(outpoint) = utxo.outpoint else { continue };
        let coin = (hex::encode(&outpoint.txid), u64::from(outpoint.vout));
        if coins.remove(&coin) != Some(utxo.amount_sat) {
            let name = &network.nodes[node].name;
            return Err(Error::Wrong(format!(
                "{name} names {}:{}, {} sat, which is not its coin",
                coin.0, coin.1, utxo.amount_sat
            )));
        }
    }
    Ok(())
}
