//! A network by a plan: nodes of both kinds on one chain, funded, connected, with channels.
//!
//! Tests start one that ends with them ([`Mesh::start`]); `stay` puts one together from processes that go on by themselves.
//! Nodes and channels are called by their index in the plan.

mod channels;
mod daemon;
mod sums;

pub use sums::Side;

use std::time::Duration;

use bitcoin::{Address, Amount, Network as Chain};
use millrace_rpc::v1::NewAddressRequest;

use crate::ldk::protocol::PaymentStatus;
use crate::ldk::{self, LdkNode};
use crate::network::{Error, Network, SOON, random_key, wait_for};
use crate::node::Node;
use crate::pay_stream::{Outcome, PayStream, make_invoices};
use crate::plan::{ChannelPlan, Kind, Plan};

/// What a node has beside its channels: for the reserve that anchors ask for, and for fees.
const SPARE_SAT: u64 = 1_000_000;
/// What a channel costs beside its capacity: the funding's fee, and the anchors' reserve.
const PER_CHANNEL_SAT: u64 = 100_000;
/// Payments of the miner's that wait for one block: bitcoind takes no long chains of unconfirmed coins.
const GIFTS_PER_BLOCK: usize = 20;
/// Of a daemon's log, what is shown when it does not do what is waited for.
const LOG_LINES: usize = 30;
/// How long a payment may take, restarts included.
const PAYMENT_LIMIT: Duration = Duration::from_secs(90);

/// Where a node of the plan is to be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Among the network's daemons.
    Ours(usize),
    /// Among the ldk-nodes.
    Ldk(usize),
}

/// A node of either kind.
#[derive(Clone, Copy)]
pub enum Member<'a> {
    /// A `millraced`.
    Ours(&'a Node),
    /// An ldk-node.
    Ldk(&'a LdkNode),
}

/// Nodes of both kinds, by a plan.
pub struct Mesh {
    // First: the processes write into the network's folder.
    ldk: Vec<LdkNode>,
    /// The chain, and the daemons that are `millraced`.
    pub network: Network,
    plan: Plan,
    places: Vec<Place>,
    channels: Vec<Vec<u8>>,
}

impl Mesh {
    /// Starts everything that the plan names, and waits until every channel can be used. It ends when this is dropped.
    ///
    /// # Errors
    /// If any of it fails.
    pub async fn start(plan: Plan) -> Result<Self, Error> {
        Self::start_with(plan, |_| {}).await
    }

    /// The same, with some changes to each `millraced` before it starts.
    ///
    /// # Errors
    /// If any of it fails.
    pub async fn start_with(plan: Plan, prepare: impl Fn(&mut Node)) -> Result<Self, Error> {
        let mut network = tokio::task::block_in_place(Network::start)?;
        let (mut ldk, mut places) = (Vec::new(), Vec::new());
        for node in &plan.nodes {
            match node.kind {
                Kind::Millrace => {
                    let index = network.add(&node.name);
                    network.nodes[index].set_alias(&node.alias);
                    prepare(&mut network.nodes[index]);
                    network.nodes[index].start().await?;
                    places.push(Place::Ours(index));
                }
                Kind::Ldk => {
                    let forwards_to_private = plan.forwards_to_private(places.len());
                    let options = ldk::Options { forwards_to_private, ..ldk::Options::default() };
                    let mut one = LdkNode::new(&node.name, network.folder(), &network.bitcoind, options);
                    one.set_alias(&node.alias);
                    one.start().await?;
                    ldk.push(one);
                    places.push(Place::Ldk(ldk.len() - 1));
                }
            }
        }
        let channels = vec![Vec::new(); plan.channels.len()];
        let mut mesh = Self { ldk, network, plan, places, channels };
        let all: Vec<usize> = (0..mesh.plan.channels.len()).collect();
        mesh.fund(&all, true).await?;
        for index in all {
            let channel = mesh.plan.channels[index].clone();
            mesh.connect(channel.from, channel.to).await?;
            let channel_id = mesh.open(index, &random_key()).await?;
            mesh.opened(index, channel_id);
        }
        mesh.bury().await?;
        mesh.wait_until_usable().await?;
        mesh.set_policies().await?;
        Ok(mesh)
    }

    /// Of nodes that run already.
    pub(crate) const fn of(
        network: Network,
        ldk: Vec<LdkNode>,
        plan: Plan,
        places: Vec<Place>,
        channels: Vec<Vec<u8>>,
    ) -> Self {
        Self { ldk, network, plan, places, channels }
    }

    /// What it was made by.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A node.
    ///
    /// # Panics
    /// If the plan has no node of this index.
    #[must_use]
    pub fn member(&self, node: usize) -> Member<'_> {
        match self.places[node] {
            Place::Ours(index) => Member::Ours(&self.network.nodes[index]),
            Place::Ldk(index) => Member::Ldk(&self.ldk[index]),
        }
    }

    /// A `millraced`, to be killed and started.
    ///
    /// # Errors
    /// If it is none.
    pub fn ours(&mut self, node: usize) -> Result<&mut Node, Error> {
        match self.places[node] {
            Place::Ours(index) => Ok(&mut self.network.nodes[index]),
            Place::Ldk(_) => Err(Error::Wrong(format!("{} is no millraced", self.plan.nodes[node].name))),
        }
    }

    /// An ldk-node, to be killed and started.
    ///
    /// # Errors
    /// If it is none.
    pub fn ldk(&mut self, node: usize) -> Result<&mut LdkNode, Error> {
        match self.places[node] {
            Place::Ldk(index) => Ok(&mut self.ldk[index]),
            Place::Ours(_) => Err(Error::Wrong(format!("{} is no ldk-node", self.plan.nodes[node].name))),
        }
    }

    /// A channel's id, by its index in the plan.
    ///
    /// # Panics
    /// If the plan has no channel of this index.
    #[must_use]
    pub fn channel_id(&self, channel: usize) -> &[u8] {
        &self.channels[channel]
    }

    /// Every node's index.
    pub(crate) fn all(&self) -> std::ops::Range<usize> {
        0..self.places.len()
    }

    // --- the chain ---

    /// Mines blocks, and waits until every running node has seen the last.
    ///
    /// # Errors
    /// If bitcoind refuses, or a node does not follow.
    pub async fn mine(&mut self, blocks: u32) -> Result<(), Error> {
        self.network.mine(blocks).await?;
        let height = tokio::task::block_in_place(|| self.network.bitcoind.height())?;
        for node in &mut self.ldk {
            if node.is_running() {
                node.sync_to(height).await?;
            }
        }
        Ok(())
    }

    /// Gives the nodes what these channels need of them, and each something beside if `with_spare`. A node that has that
    /// much already gets nothing.
    ///
    /// # Errors
    /// If any of it fails.
    pub async fn fund(&mut self, channels: &[usize], with_spare: bool) -> Result<(), Error> {
        let (mut waits, mut gifts) = (Vec::new(), Vec::new());
        let mut sent = 0;
        for node in self.all() {
            let coins = self.coins_for(node, channels, with_spare);
            let (wanted, has) = (coins.iter().sum::<u64>(), self.onchain_sat(node).await?);
            if has >= wanted {
                continue;
            }
            for sat in &coins {
                let address = self.new_address(node).await?;
                let give = || self.network.bitcoind.send_to(&address, Amount::from_sat(*sat));
                gifts.push((node, tokio::task::block_in_place(give)?));
                sent += 1;
                if sent % GIFTS_PER_BLOCK == 0 {
                    self.mine(1).await?;
                }
            }
            waits.push((node, has + wanted));
        }
        if waits.is_empty() {
            return Ok(());
        }
        self.mine(1).await?;
        for (node, wanted) in waits {
            let what = format!("{wanted} sat in {}'s wallet", self.plan.nodes[node].name);
            let seen = wait_for(&what, SOON, async || {
                let has = self.onchain_sat(node).await?;
                Ok(if has >= wanted { Ok(()) } else { Err(format!("it has {has}")) })
            });
            if let Err(error) = seen.await {
                let gifts = gifts.iter().filter(|(to, _)| *to == node).map(|(_, txid)| self.gift_in_words(txid));
                let gifts: Vec<String> = gifts.collect();
                return Err(Error::Wrong(format!("{error}; {}; {}", gifts.join(", "), self.end_of_log(node))));
            }
        }
        Ok(())
    }

    fn gift_in_words(&self, txid: &bitcoin::Txid) -> String {
        match tokio::task::block_in_place(|| self.network.bitcoind.confirmations(txid)) {
            Ok(blocks) => format!("{txid} has {blocks} confirmations"),
            Err(error) => format!("{txid}: {error}"),
        }
    }

    /// What a daemon has said last: it usually tells why it does not go on.
    fn end_of_log(&self, node: usize) -> String {
        let Member::Ours(node) = self.member(node) else { return String::new() };
        let log = std::fs::read_to_string(node.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("its log ends:\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
    }

    /// A coin for each channel that the node opens, so that none waits for another's change, and one beside.
    fn coins_for(&self, node: usize, channels: &[usize], with_spare: bool) -> Vec<u64> {
        let planned: Vec<&ChannelPlan> = channels.iter().map(|index| &self.plan.channels[*index]).collect();
        let opens = planned.iter().filter(|channel| channel.from == node);
        let mut coins: Vec<u64> = opens.map(|channel| channel.capacity_sat + PER_CHANNEL_SAT).collect();
        if with_spare {
            let takes = planned.iter().filter(|channel| channel.to == node).count() as u64;
            coins.push(SPARE_SAT + takes * PER_CHANNEL_SAT);
        }
        coins
    }

    async fn new_address(&self, node: usize) -> Result<Address, Error> {
        let node = match self.member(node) {
            Member::Ldk(node) => return node.new_address().await,
            Member::Ours(node) => node,
        };
        let request = NewAddressRequest { idempotency_key: random_key(), address_type: 0 };
        let answer = node.client()?.wallet.new_address(request).await;
        let text = answer.map_err(|status| node.call_failed(&status))?.into_inner().address;
        let address = text.parse::<Address<_>>().ok().and_then(|address| address.require_network(Chain::Regtest).ok());
        address.ok_or_else(|| Error::Wrong(format!("{text} is not an address of regtest")))
    }

    /// What a node's wallet holds, unconfirmed coins included.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn onchain_sat(&self, node: usize) -> Result<u64, Error> {
        match self.places[node] {
            Place::Ours(index) => {
                let balance = self.network.balance(index).await?;
                Ok(balance.confirmed_sat + balance.unconfirmed_sat)
            }
            Place::Ldk(index) => Ok(self.ldk[index].balances().await?.onchain_sat),
        }
    }

    // --- payments ---

    /// An invoice of a node's.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn invoice(&self, node: usize, amount_msat: u64) -> Result<String, Error> {
        match self.member(node) {
            Member::Ours(node) => Ok(make_invoices(&node.client()?, &[amount_msat], "of a mesh").await?.remove(0)),
            Member::Ldk(node) => node.receive(Some(amount_msat), "of a mesh").await,
        }
    }

    /// Pays an invoice, and waits for its outcome.
    ///
    /// # Errors
    /// If a call fails, or there is no outcome in time.
    pub async fn pay(&self, from: usize, bolt11: &str) -> Result<Outcome, Error> {
        match self.member(from) {
            Member::Ours(node) => {
                let mut stream = PayStream::open(node).await?;
                stream.pay(0, bolt11.to_owned(), random_key()).await?;
                let answer = tokio::time::timeout(PAYMENT_LIMIT, stream.next()).await;
                let answer = answer.map_err(|_| node.failed("a payment has no outcome"))??;
                answer.map(|(_, outcome, _)| outcome).ok_or_else(|| node.failed("the payment stream ended early"))
            }
            Member::Ldk(node) => pay_from_ldk(node, bolt11).await,
        }
    }
}

async fn pay_from_ldk(node: &LdkNode, bolt11: &str) -> Result<Outcome, Error> {
    let id = match node.pay(bolt11, None).await {
        Ok(id) => id,
        Err(Error::Node { what, .. }) => return Ok(Outcome::Refused(what)),
        Err(error) => return Err(error),
    };
    let status = std::cell::Cell::new(PaymentStatus::Pending);
    wait_for(&format!("{}'s payment {id}", node.name), PAYMENT_LIMIT, async || {
        status.set(node.payment(&id).await?.status);
        Ok(if status.get() == PaymentStatus::Pending { Err("it is under way".to_owned()) } else { Ok(()) })
    })
    .await?;
    Ok(match status.get() {
        PaymentStatus::Succeeded => Outcome::Paid,
        PaymentStatus::Failed | PaymentStatus::Pending => Outcome::Failed(format!("{:?}", node.events().last())),
    })
}
