//! Links and channels of a mesh: connected, opened, used, and what is asked for forwarding over them.

use std::time::Duration;

use millrace_rpc::v1::{ConnectRequest, OpenChannelRequest};
use serde_json::json;

use super::{Member, Mesh, Place, daemon};
use crate::network::{Error, SOON, random_key, wait_for};
use crate::plan::{ChannelPlan, PolicyPlan};

/// Blocks on a funding transaction after which a channel can be used, and announced (BOLT 7).
const BLOCKS_TO_OPEN: u32 = 6;

/// Searches read a copy of the graph, which is at most a second old.
const MAP_AGE_MAX: Duration = Duration::from_millis(1_500);

impl Mesh {
    /// A node's public key.
    ///
    /// # Errors
    /// If it was never started.
    pub fn node_id(&self, node: usize) -> Result<Vec<u8>, Error> {
        match self.member(node) {
            Member::Ours(node) => Ok(node.node_id().to_vec()),
            Member::Ldk(node) => hex::decode(node.node_id()).map_err(|error| Error::Wrong(error.to_string())),
        }
    }

    fn address(&self, node: usize) -> Result<String, Error> {
        match self.member(node) {
            Member::Ours(node) => node.lightning_address(),
            Member::Ldk(node) => node.lightning_address(),
        }
    }

    /// Connects two nodes. Already connected: does nothing.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn connect(&self, one: usize, other: usize) -> Result<(), Error> {
        // Ours takes an address that it may call again later; LDK calls again but once a minute.
        let (from, to) = match (self.places[one], self.places[other]) {
            (Place::Ldk(_), Place::Ours(_)) => (other, one),
            (Place::Ours(_) | Place::Ldk(_), _) => (one, other),
        };
        let (node_id, address) = (self.node_id(to)?, self.address(to)?);
        match self.member(from) {
            Member::Ours(node) => {
                let request = ConnectRequest { idempotency_key: random_key(), node_id, address };
                let answer = node.client()?.peers.connect(request).await;
                answer.map(drop).map_err(|status| node.call_failed(&status))
            }
            Member::Ldk(node) => node.connect(&hex::encode(node_id), &address).await,
        }
    }

    /// Opens a channel of the plan as far as its funding being broadcast, and puts that into a block. Returns its id. The
    /// same key never opens twice, if who opens is a `millraced`.
    ///
    /// # Errors
    /// If any of it fails.
    pub async fn open(&mut self, channel: usize, key: &str) -> Result<Vec<u8>, Error> {
        let planned = self.plan.channels[channel].clone();
        let channel_id = match self.places[planned.from] {
            Place::Ours(index) => self.open_from_ours(index, &planned, key).await?,
            Place::Ldk(index) => self.open_from_ldk(index, &planned).await?,
        };
        // What the next channel is paid with should be no unconfirmed change.
        self.wait_for_funding(planned.from, &channel_id).await?;
        self.mine(1).await?;
        Ok(channel_id)
    }

    /// Waits until bitcoind knows a channel's funding, in a block or not.
    async fn wait_for_funding(&self, node: usize, channel_id: &[u8]) -> Result<(), Error> {
        wait_for(&format!("the funding of {}'s channel", self.plan.nodes[node].name), SOON, async || {
            let Some((txid, vout)) = self.funding(node, channel_id).await? else {
                return Ok(Err("it has none".to_owned()));
            };
            let parameters = json!([txid, vout, true]);
            let output = tokio::task::block_in_place(|| self.network.bitcoind.call("gettxout", &parameters))?;
            Ok(if output.is_null() { Err(format!("bitcoind does not know {txid}:{vout}")) } else { Ok(()) })
        })
        .await
    }

    async fn funding(&self, node: usize, channel_id: &[u8]) -> Result<Option<(String, u32)>, Error> {
        match self.places[node] {
            Place::Ours(index) => {
                let outpoint = self.network.channel(index, channel_id).await?.funding_outpoint;
                Ok(outpoint.map(|outpoint| (hex::encode(outpoint.txid), outpoint.vout)))
            }
            Place::Ldk(index) => {
                let funding = self.ldk[index].channel(&hex::encode(channel_id)).await?.funding;
                let parts = funding.as_deref().and_then(|text| text.split_once(':'));
                Ok(parts.and_then(|(txid, vout)| Some((txid.to_owned(), vout.parse().ok()?))))
            }
        }
    }

    async fn open_from_ours(&self, index: usize, planned: &ChannelPlan, key: &str) -> Result<Vec<u8>, Error> {
        let node = &self.network.nodes[index];
        let mut request = OpenChannelRequest {
            idempotency_key: key.to_owned(),
            node_id: self.node_id(planned.to)?,
            capacity_sat: planned.capacity_sat,
            push_msat: planned.push_sat * 1000,
            ..OpenChannelRequest::default()
        };
        request.public = Some(planned.public);
        let answer = node.client()?.channels.open(request).await;
        let mut progress = answer.map_err(|status| node.call_failed(&status))?.into_inner();
        loop {
            let step = tokio::time::timeout(SOON, progress.message()).await;
            let step = step.map_err(|_| node.failed("its opening makes no progress"))?;
            let step = step.map_err(|status| node.call_failed(&status))?;
            let Some(step) = step else { return Err(Error::Wrong("opening ended without a word".to_owned())) };
            if !step.temporary {
                return Ok(step.channel_id);
            }
        }
    }

    async fn open_from_ldk(&self, index: usize, planned: &ChannelPlan) -> Result<Vec<u8>, Error> {
        let node = &self.ldk[index];
        let (peer, address) = (hex::encode(self.node_id(planned.to)?), self.address(planned.to)?);
        let (sat, push_msat) = (planned.capacity_sat, planned.push_sat * 1000);
        let number = match planned.public {
            true => node.open_announced_channel(&peer, &address, sat, push_msat).await?,
            false => node.open_channel(&peer, &address, sat, push_msat).await?,
        };
        let found = std::cell::RefCell::new(None);
        wait_for(&format!("the funding of {}'s channel", node.name), SOON, async || {
            let channels = node.channels().await?;
            let Some(channel) = channels.into_iter().find(|channel| channel.user_channel_id == number) else {
                return Err(node.failed("it gave the opening up"));
            };
            if channel.funding.is_none() {
                return Ok(Err("it is not known".to_owned()));
            }
            *found.borrow_mut() = hex::decode(channel.channel_id).ok();
            Ok(Ok(()))
        })
        .await?;
        found.into_inner().ok_or_else(|| node.failed("its channel has no id"))
    }

    /// Buries every funding so deep that the channel can be used and announced.
    ///
    /// # Errors
    /// If a node does not follow.
    pub async fn bury(&mut self) -> Result<(), Error> {
        self.mine(BLOCKS_TO_OPEN).await
    }

    /// A channel of the plan that was opened just now.
    pub(crate) fn opened(&mut self, channel: usize, channel_id: Vec<u8>) {
        self.channels[channel] = channel_id;
    }

    /// Waits until every channel of the plan can be used, by both sides' word.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_until_usable(&self) -> Result<(), Error> {
        for (planned, channel_id) in self.plan.channels.iter().zip(&self.channels) {
            for node in [planned.from, planned.to] {
                self.wait_until_usable_at(node, channel_id).await?;
            }
        }
        Ok(())
    }

    /// Waits until one side can use a channel.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_until_usable_at(&self, node: usize, channel_id: &[u8]) -> Result<(), Error> {
        match self.places[node] {
            Place::Ours(index) => self.network.wait_until_usable(index, channel_id).await,
            Place::Ldk(index) => self.ldk[index].wait_until_usable(&hex::encode(channel_id)).await,
        }
    }

    /// Sets what the plan says of forwarding, on the channels that are open. On how many it was set.
    ///
    /// # Errors
    /// If a node refuses.
    pub async fn set_policies(&self) -> Result<usize, Error> {
        let mut set = 0;
        for policy in &self.plan.policies {
            for channel_id in self.channels_of(policy).await? {
                self.set_policy(policy, &channel_id).await?;
                set += 1;
            }
        }
        Ok(set)
    }

    /// The channels that a policy is for, as far as they are open.
    async fn channels_of(&self, policy: &PolicyPlan) -> Result<Vec<Vec<u8>>, Error> {
        let open: Vec<Vec<u8>> = self
            .sides(policy.node)
            .await?
            .into_iter()
            .filter(|side| !side.is_closing)
            .map(|side| side.channel_id)
            .collect();
        let planned = self.plan.channels.iter().zip(&self.channels).filter(|(planned, _)| policy.is_for(planned));
        Ok(planned.map(|(_, channel_id)| channel_id.clone()).filter(|channel_id| open.contains(channel_id)).collect())
    }

    async fn set_policy(&self, policy: &PolicyPlan, channel_id: &[u8]) -> Result<(), Error> {
        match self.member(policy.node) {
            Member::Ours(node) => daemon::set_policy(node, channel_id, policy).await,
            Member::Ldk(node) => {
                let base = policy.fee_base_msat.and_then(|msat| u32::try_from(msat).ok());
                node.set_policy(&hex::encode(channel_id), base, policy.fee_ppm, policy.cltv_delta).await
            }
        }
    }

    /// Waits until a node knows every announced channel of the plan that is open.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_for_graph(&self, node: usize) -> Result<(), Error> {
        let mut wanted = 0;
        for (planned, channel_id) in self.plan.channels.iter().zip(&self.channels) {
            let sides = self.sides(planned.from).await?;
            let is_open = sides.iter().any(|side| side.channel_id == *channel_id && !side.is_closing);
            wanted += usize::from(planned.public && is_open);
        }
        wait_for(&format!("{wanted} channels in {}'s graph", self.plan.nodes[node].name), SOON, async || {
            let has = match self.member(node) {
                Member::Ours(node) => daemon::graph_channels(node).await?,
                Member::Ldk(node) => node.graph().await?.usable_channels,
            };
            Ok(if has >= wanted { Ok(()) } else { Err(format!("it knows {has}")) })
        })
        .await
    }

    /// The same of every node: then whoever is known can be paid.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_for_graphs(&self) -> Result<(), Error> {
        for node in self.all() {
            self.wait_for_graph(node).await?;
        }
        tokio::time::sleep(MAP_AGE_MAX).await;
        Ok(())
    }
}
