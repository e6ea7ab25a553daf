//! What an ldk-node can be asked, and told to do.

use bitcoin::{Address, Network as Chain};

use super::LdkNode;
use super::protocol::{Balances, Channel, Command, Event, Graph, Payment, PaymentStatus, Reply};
use crate::network::{Error, SOON, wait_for};

/// Both anchors of a commitment, which the funder pays (BOLT 3).
const ANCHORS_MSAT: u64 = 2 * 330_000;

impl Channel {
    /// The node's balance in a channel with anchors and without HTLCs, its reserve and the anchors it pays included.
    ///
    /// LDK says how much each side can send, which ends at zero; the larger of the two balances tells the other.
    #[must_use]
    pub fn local_msat(&self) -> Option<u64> {
        let anchors = |pays: bool| if pays { ANCHORS_MSAT } else { 0 };
        if self.outbound_capacity_msat >= self.inbound_capacity_msat {
            Some(self.outbound_capacity_msat + self.reserve_sat * 1000 + anchors(self.is_funder))
        } else {
            let remote = self.inbound_capacity_msat + self.remote_reserve_sat * 1000 + anchors(!self.is_funder);
            (self.value_sat * 1000).checked_sub(remote)
        }
    }
}

impl LdkNode {
    /// A fresh address of its wallet.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn new_address(&self) -> Result<Address, Error> {
        let Reply::Address(text) = self.call(Command::NewAddress).await? else { return Err(self.odd_answer()) };
        let address = text.parse::<Address<_>>().ok().and_then(|address| address.require_network(Chain::Regtest).ok());
        address.ok_or_else(|| self.failed(&format!("{text} is not an address of regtest")))
    }

    /// Makes it ask bitcoind for new blocks now.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn sync(&self) -> Result<(), Error> {
        self.order(Command::Sync).await
    }

    /// Waits until it has seen a height.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn sync_to(&self, height: u32) -> Result<(), Error> {
        wait_for(&format!("{} at height {height}", self.name), SOON, async || {
            self.sync().await?;
            let Reply::Height(has) = self.call(Command::Height).await? else { return Err(self.odd_answer()) };
            Ok(if has >= height { Ok(()) } else { Err(format!("it is at {has}")) })
        })
        .await
    }

    /// What it owns.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn balances(&self) -> Result<Balances, Error> {
        let Reply::Balances(balances) = self.call(Command::Balances).await? else { return Err(self.odd_answer()) };
        Ok(balances)
    }

    /// Connects, and keeps the peer in mind: LDK calls it again, once a minute.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn connect(&self, node_id: &str, address: &str) -> Result<(), Error> {
        self.order(Command::Connect { node_id: node_id.to_owned(), address: address.to_owned() }).await
    }

    /// Disconnects, and forgets the peer's address.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn disconnect(&self, node_id: &str) -> Result<(), Error> {
        self.order(Command::Disconnect { node_id: node_id.to_owned() }).await
    }

    /// The public keys of the peers it is connected with.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn peers(&self) -> Result<Vec<String>, Error> {
        let Reply::Peers(peers) = self.call(Command::Peers).await? else { return Err(self.odd_answer()) };
        Ok(peers)
    }

    /// Asks for a channel. Returns LDK's own number for it; its funding is in [`LdkNode::channels`] once it is known.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn open_channel(
        &self,
        node_id: &str,
        address: &str,
        amount_sat: u64,
        push_msat: u64,
    ) -> Result<String, Error> {
        let (node_id, address) = (node_id.to_owned(), address.to_owned());
        self.open(Command::OpenChannel { node_id, address, amount_sat, push_msat }).await
    }

    /// The same with a channel that is announced.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn open_announced_channel(
        &self,
        node_id: &str,
        address: &str,
        amount_sat: u64,
        push_msat: u64,
    ) -> Result<String, Error> {
        let (node_id, address) = (node_id.to_owned(), address.to_owned());
        self.open(Command::OpenAnnouncedChannel { node_id, address, amount_sat, push_msat }).await
    }

    async fn open(&self, command: Command) -> Result<String, Error> {
        let Reply::UserChannelId(id) = self.call(command).await? else { return Err(self.odd_answer()) };
        Ok(id)
    }

    /// Asks for other fees and another delay for forwarding over a channel; `None` is ldk-node's default.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn set_policy(
        &self,
        channel_id: &str,
        fee_base_msat: Option<u32>,
        fee_ppm: Option<u32>,
        cltv_delta: Option<u16>,
    ) -> Result<(), Error> {
        let Channel { user_channel_id, node_id, .. } = self.channel(channel_id).await?;
        self.order(Command::SetPolicy { user_channel_id, node_id, fee_base_msat, fee_ppm, cltv_delta }).await
    }

    /// How much of the public graph it knows.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn graph(&self) -> Result<Graph, Error> {
        let Reply::Graph(graph) = self.call(Command::Graph).await? else { return Err(self.odd_answer()) };
        Ok(graph)
    }

    /// Its channels that are not closed.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn channels(&self) -> Result<Vec<Channel>, Error> {
        let Reply::Channels(channels) = self.call(Command::Channels).await? else { return Err(self.odd_answer()) };
        Ok(channels)
    }

    /// A channel by BOLT 2's id.
    ///
    /// # Errors
    /// If the call fails, or it is not there.
    pub async fn channel(&self, channel_id: &str) -> Result<Channel, Error> {
        let found = self.channels().await?.into_iter().find(|channel| channel.channel_id == channel_id);
        found.ok_or_else(|| self.failed(&format!("it does not know channel {channel_id}")))
    }

    /// Asks the peer to close a channel together.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn close_channel(&self, channel_id: &str) -> Result<(), Error> {
        let Channel { user_channel_id, node_id, .. } = self.channel(channel_id).await?;
        self.order(Command::CloseChannel { user_channel_id, node_id }).await
    }

    /// Closes a channel with its own commitment.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn force_close(&self, channel_id: &str) -> Result<(), Error> {
        let Channel { user_channel_id, node_id, .. } = self.channel(channel_id).await?;
        self.order(Command::ForceClose { user_channel_id, node_id }).await
    }

    /// Makes an invoice; without an amount the payer chooses.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn receive(&self, amount_msat: Option<u64>, description: &str) -> Result<String, Error> {
        let command = Command::Receive { amount_msat, description: description.to_owned(), expiry_s: 3600 };
        let Reply::Invoice(bolt11) = self.call(command).await? else { return Err(self.odd_answer()) };
        Ok(bolt11)
    }

    /// Makes an invoice whose preimage it does not know; a payment of it is held from [`LdkNode::wait_until_held`] on.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn receive_held(&self, payment_hash: &str, amount_msat: u64) -> Result<String, Error> {
        let (payment_hash, description) = (payment_hash.to_owned(), "held".to_owned());
        let command = Command::ReceiveHeld { payment_hash, amount_msat, description, expiry_s: 3600 };
        let Reply::Invoice(bolt11) = self.call(command).await? else { return Err(self.odd_answer()) };
        Ok(bolt11)
    }

    /// Waits until a payment has arrived for an invoice of [`LdkNode::receive_held`].
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_until_held(&self, payment_hash: &str) -> Result<(), Error> {
        wait_for(&format!("payment {payment_hash} held by {}", self.name), SOON, async || {
            let is_it =
                |event: &Event| matches!(event, Event::PaymentHeld { payment_id, .. } if payment_id == payment_hash);
            let events = self.events();
            Ok(if events.iter().any(is_it) { Ok(()) } else { Err(format!("{events:?}")) })
        })
        .await
    }

    /// Claims a held payment.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn claim_held(&self, preimage: &str, payment_hash: &str, amount_msat: u64) -> Result<(), Error> {
        let (preimage, payment_hash) = (preimage.to_owned(), payment_hash.to_owned());
        self.order(Command::ClaimHeld { preimage, payment_hash, amount_msat }).await
    }

    /// Fails a held payment.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn fail_held(&self, payment_hash: &str) -> Result<(), Error> {
        self.order(Command::FailHeld { payment_hash: payment_hash.to_owned() }).await
    }

    /// Begins a payment; returns its id, the payment hash. [`LdkNode::wait_until_paid`] waits for its outcome.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn pay(&self, bolt11: &str, amount_msat: Option<u64>) -> Result<String, Error> {
        let reply = self.call(Command::Pay { bolt11: bolt11.to_owned(), amount_msat }).await?;
        let Reply::PaymentId(id) = reply else { return Err(self.odd_answer()) };
        Ok(id)
    }

    /// Every payment over channels, made and received, invoices that nobody has paid included.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn payments(&self) -> Result<Vec<Payment>, Error> {
        let Reply::Payments(payments) = self.call(Command::Payments).await? else { return Err(self.odd_answer()) };
        Ok(payments)
    }

    /// One payment.
    ///
    /// # Errors
    /// If the call fails, or there is none.
    pub async fn payment(&self, payment_id: &str) -> Result<Payment, Error> {
        let reply = self.call(Command::Payment { payment_id: payment_id.to_owned() }).await?;
        let Reply::Payment(payment) = reply else { return Err(self.odd_answer()) };
        payment.ok_or_else(|| self.failed(&format!("it does not know payment {payment_id}")))
    }

    /// Waits until a payment is decided, and it must be paid.
    ///
    /// # Errors
    /// If it fails or takes too long.
    pub async fn wait_until_paid(&self, payment_id: &str) -> Result<(), Error> {
        wait_for(&format!("{}'s payment {payment_id}", self.name), SOON, async || {
            match self.payment(payment_id).await?.status {
                PaymentStatus::Succeeded => Ok(Ok(())),
                PaymentStatus::Pending => Ok(Err("it is under way".to_owned())),
                PaymentStatus::Failed => Err(self.failed(&format!("payment {payment_id} failed: {:?}", self.events()))),
            }
        })
        .await
    }

    /// Waits until a channel can be used.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_until_usable(&self, channel_id: &str) -> Result<(), Error> {
        wait_for(&format!("{}'s channel usable", self.name), SOON, async || {
            let found = self.channels().await?.into_iter().find(|channel| channel.channel_id == channel_id);
            let Some(channel) = found else { return Ok(Err(format!("it is not there; {:?}", self.events()))) };
            Ok(if channel.is_usable { Ok(()) } else { Err(format!("{channel:?}")) })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn channel(is_funder: bool, outbound: u64, inbound: u64) -> Channel {
        Channel {
            channel_id: String::new(),
            user_channel_id: String::new(),
            node_id: String::new(),
            funding: None,
            value_sat: 100_000,
            outbound_capacity_msat: outbound,
            inbound_capacity_msat: inbound,
            reserve_sat: 1_000,
            remote_reserve_sat: 1_000,
            next_outbound_htlc_limit_msat: 0,
            feerate_sat_per_kw: 253,
            is_funder,
            is_ready: true,
            is_usable: true,
            confirmations: None,
            to_self_delay_blocks: None,
            is_public: false,
            remote_fee: None,
        }
    }

    #[test]
    fn local_balance_is_what_can_be_sent_and_what_must_stay() {
        assert_eq!(channel(true, 98_340_000, 0).local_msat(), Some(100_000_000));
        assert_eq!(channel(false, 0, 98_340_000).local_msat(), Some(0));
        assert_eq!(channel(false, 50_000_000, 47_340_000).local_msat(), Some(51_000_000));
        assert_eq!(channel(true, 47_340_000, 50_000_000).local_msat(), Some(49_000_000));
    }
}
