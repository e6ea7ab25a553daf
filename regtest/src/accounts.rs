//! Every satoshi accounted for, from the blocks themselves: what was paid to the daemons is followed through every
//! transaction, and what is left must be what the daemons say they have.

use std::collections::{HashMap, HashSet};

use millrace_rpc::v1::{ChannelState, ListUtxosRequest, OutputKind};
use serde_json::{Value, json};

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

/// Follows the coins from the block after `from_height` on.
///
/// # Errors
/// If a call fails, or an output is found that nobody claims to own.
pub async fn settle(network: &Network, from_height: u32) -> Result<Accounts, Error> {
    let txs = tokio::task::block_in_place(|| transactions_since(network, from_height))?;
    let mut accounts = Accounts::default();
    let mut coins: HashMap<Coin, u64> = HashMap::new();
    for tx in &txs {
        follow(tx, network.deposits(), &mut coins, &mut accounts);
    }
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
    for (coin, sat) in coins {
        if sat != ANCHOR_SAT || !anchors.contains(&coin) {
            return Err(Error::Wrong(format!("nobody owns {}:{}, {sat} sat", coin.0, coin.1)));
        }
        accounts.anchors_sat += sat;
    }
    Ok(accounts)
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

/// A transaction of the daemons spends coins of theirs; a deposit gives them some.
fn follow(tx: &Value, deposits: &[Deposit], coins: &mut HashMap<Coin, u64>, accounts: &mut Accounts) {
    let txid = tx["txid"].as_str().unwrap_or_default().to_owned();
    let inputs = tx["vin"].as_array().cloned().unwrap_or_default();
    let spent = inputs.iter().filter_map(|input| Some((input["txid"].as_str()?.to_owned(), input["vout"].as_u64()?)));
    let value_in: u64 = spent.filter_map(|coin| coins.remove(&coin)).sum();
    let outputs = tx["vout"].as_array().cloned().unwrap_or_default();
    let deposit = deposits.iter().find(|deposit| deposit.txid == txid);
    let mut value_out = 0;
    for (vout, output) in (0_u64..).zip(&outputs) {
        let sat = sat_of(output);
        let is_given = deposit.is_some_and(|deposit| output["scriptPubKey"]["address"] == deposit.address.as_str());
        if is_given {
            accounts.given_sat += sat;
        }
        if value_in > 0 || is_given {
            value_out += sat;
            coins.insert((txid.clone(), vout), sat);
        }
    }
    if value_in > 0 {
        accounts.fees_sat += value_in.saturating_sub(value_out);
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
