//! The node, and what each command does with it.

use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::thread;

use ldk_node::bitcoin::Network;
use ldk_node::bitcoin::secp256k1::PublicKey;
use ldk_node::config::ChannelConfig;
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::lightning::types::payment::{PaymentHash, PaymentPreimage};
use ldk_node::lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescription, Description};
use ldk_node::liquidity::LSPS2ServiceConfig;
use ldk_node::payment::PaymentKind;
use ldk_node::{Builder, Node, UserChannelId};

use crate::output;
use crate::protocol::{Command, Line, Reply, Start, Store};
use crate::translate;

/// A node, once it is started.
#[derive(Default)]
pub(crate) struct Driver {
    node: OnceLock<Arc<Node>>,
}

/// Why a command was not done, in words.
type Reason = String;

/// An error of ldk-node: its kind says less than its words, so both.
fn refused(what: &str) -> impl FnOnce(ldk_node::NodeError) -> Reason {
    let what = what.to_owned();
    move |error| format!("{what}: {error} ({error:?})")
}

impl Driver {
    /// Does a command and waits until it is done.
    pub(crate) fn execute(&self, command: Command) -> Result<Reply, Reason> {
        match command {
            Command::Start(start) => self.start(&start).map(|()| Reply::Nothing),
            Command::NodeId => Ok(Reply::NodeId(self.node()?.node_id().to_string())),
            Command::NewAddress => {
                let address = self.node()?.onchain_payment().new_address().map_err(refused("no address"))?;
                Ok(Reply::Address(address.to_string()))
            }
            Command::Sync => {
                self.node()?.sync_wallets().map_err(refused("cannot sync"))?;
                Ok(Reply::Nothing)
            }
            Command::Height => Ok(Reply::Height(self.node()?.status().current_best_block.height)),
            Command::Balances => Ok(Reply::Balances(translate::balances(&self.node()?.list_balances()))),
            Command::Connect { node_id, address } => {
                let connected = self.node()?.connect(key(&node_id)?, socket_address(&address)?, true);
                connected.map(|()| Reply::Nothing).map_err(refused("cannot connect"))
            }
            Command::Disconnect { node_id } => {
                self.node()?.disconnect(key(&node_id)?).map_err(refused("cannot disconnect"))?;
                Ok(Reply::Nothing)
            }
            Command::Peers => {
                let peers = self.node()?.list_peers();
                let connected = peers.iter().filter(|peer| peer.is_connected);
                Ok(Reply::Peers(connected.map(|peer| peer.node_id.to_string()).collect()))
            }
            Command::OpenChannel { node_id, address, amount_sat, push_msat } => {
                let (node_id, address) = (key(&node_id)?, socket_address(&address)?);
                let opened = self.node()?.open_channel(node_id, address, amount_sat, Some(push_msat), None);
                Ok(Reply::UserChannelId(opened.map_err(refused("cannot open"))?.0.to_string()))
            }
            Command::OpenAnnouncedChannel { node_id, address, amount_sat, push_msat } => {
                let (node_id, address) = (key(&node_id)?, socket_address(&address)?);
                let opened = self.node()?.open_announced_channel(node_id, address, amount_sat, Some(push_msat), None);
                Ok(Reply::UserChannelId(opened.map_err(refused("cannot open"))?.0.to_string()))
            }
            Command::SetPolicy { user_channel_id, node_id, fee_base_msat, fee_ppm, cltv_delta } => {
                let defaults = ChannelConfig::default();
                let config = ChannelConfig {
                    forwarding_fee_base_msat: fee_base_msat.unwrap_or(defaults.forwarding_fee_base_msat),
                    forwarding_fee_proportional_millionths: fee_ppm
                        .unwrap_or(defaults.forwarding_fee_proportional_millionths),
                    cltv_expiry_delta: cltv_delta.unwrap_or(defaults.cltv_expiry_delta),
                    ..defaults
                };
                let channel = self.known_channel(&user_channel_id)?;
                let updated = self.node()?.update_channel_config(&channel, key(&node_id)?, config);
                updated.map(|()| Reply::Nothing).map_err(refused("cannot set the policy"))
            }
            Command::Graph => Ok(Reply::Graph(translate::graph(&self.node()?.network_graph()))),
            Command::Channels => {
                Ok(Reply::Channels(self.node()?.list_channels().iter().map(translate::channel).collect()))
            }
            Command::CloseChannel { user_channel_id, node_id } => {
                let channel = self.known_channel(&user_channel_id)?;
                self.node()?.close_channel(&channel, key(&node_id)?).map_err(refused("cannot close"))?;
                Ok(Reply::Nothing)
            }
            Command::ForceClose { user_channel_id, node_id } => {
                let channel = self.known_channel(&user_channel_id)?;
                let closed = self.node()?.force_close_channel(&channel, key(&node_id)?, None);
                closed.map(|()| Reply::Nothing).map_err(refused("cannot force-close"))
            }
            Command::Receive { amount_msat, description, expiry_s } => {
                self.receive(amount_msat, description, expiry_s).map(Reply::Invoice)
            }
            Command::ReceiveHeld { payment_hash, amount_msat, description, expiry_s } => {
                let (hash, description) = (hash(&payment_hash)?, direct(description)?);
                let payments = self.node()?.bolt11_payment();
                let invoice = payments.receive_for_hash(amount_msat, &description, expiry_s, hash);
                Ok(Reply::Invoice(invoice.map_err(refused("no invoice"))?.to_string()))
            }
            Command::ClaimHeld { preimage, payment_hash, amount_msat } => {
                let preimage = PaymentPreimage(bytes_32(&preimage, "a preimage")?);
                let payments = self.node()?.bolt11_payment();
                let claimed = payments.claim_for_hash(hash(&payment_hash)?, amount_msat, preimage);
                claimed.map(|()| Reply::Nothing).map_err(refused("cannot claim"))
            }
            Command::FailHeld { payment_hash } => {
                let failed = self.node()?.bolt11_payment().fail_for_hash(hash(&payment_hash)?);
                failed.map(|()| Reply::Nothing).map_err(refused("cannot fail"))
            }
            Command::Pay { bolt11, amount_msat } => self.pay(&bolt11, amount_msat).map(Reply::PaymentId),
            Command::Payments => {
                let payments =
                    self.node()?.list_payments_with_filter(|one| !matches!(one.kind, PaymentKind::Onchain { .. }));
                Ok(Reply::Payments(payments.iter().map(translate::payment).collect()))
            }
            Command::Payment { payment_id } => {
                let id = bytes_32(&payment_id, "a payment's id")?;
                Ok(Reply::Payment(self.node()?.payment(&PaymentId(id)).as_ref().map(translate::payment)))
            }
            Command::Stop => {
                // Not started: nothing to stop, and the process ends all the same.
                if let Some(node) = self.node.get() {
                    node.stop().map_err(refused("cannot stop"))?;
                }
                Ok(Reply::Nothing)
            }
        }
    }

    fn node(&self) -> Result<&Arc<Node>, Reason> {
        self.node.get().ok_or_else(|| "the node is not started".to_owned())
    }

    fn start(&self, start: &Start) -> Result<(), Reason> {
        let data_dir = start.data_dir.to_str().ok_or_else(|| format!("{} is not text", start.data_dir.display()))?;
        let mut builder = Builder::new();
        builder.set_network(Network::Regtest);
        builder.set_storage_dir_path(data_dir.to_owned());
        builder.set_filesystem_logger(None, Some(translate::log_level(start.log_level)));
        builder.set_chain_source_bitcoind_rpc(
            start.rpc_host.clone(),
            start.rpc_port,
            start.rpc_user.clone(),
            start.rpc_password.clone(),
        );
        // Without a name, ldk-node turns public channels away.
        builder.set_node_alias("ldk".to_owned()).map_err(|error| format!("cannot be named: {error}"))?;
        builder
            .set_listening_addresses(vec![socket_address(&start.listen)?])
            .map_err(|error| format!("cannot listen on {}: {error}", start.listen))?;
        if let Some(alias) = &start.alias {
            builder.set_node_alias(alias.clone()).map_err(|error| format!("`{alias}` is no alias: {error}"))?;
        }
        if start.forwards_to_private {
            builder.set_liquidity_provider_lsps2(lsp());
        }
        let built = match start.store {
            Store::Sqlite => builder.build(),
            Store::Fs => builder.build_with_fs_store(),
        };
        let node = Arc::new(built.map_err(|error| format!("cannot build the node: {error} ({error:?})"))?);
        node.start().map_err(refused("cannot start"))?;
        let tells = node.clone();
        self.node.set(node).map_err(|_| "the node was started before".to_owned())?;
        thread::spawn(move || tell_events(&tells));
        Ok(())
    }

    /// ldk-node takes the name of a channel that it does not know for one that is closed already.
    fn known_channel(&self, user_channel_id: &str) -> Result<UserChannelId, Reason> {
        let number = user_channel_id.parse().map_err(|_| format!("{user_channel_id} is not a number"))?;
        let channels = self.node()?.list_channels();
        let found = channels.iter().find(|channel| channel.user_channel_id.0 == number);
        found.map(|channel| channel.user_channel_id).ok_or_else(|| format!("there is no channel {user_channel_id}"))
    }

    fn receive(&self, amount_msat: Option<u64>, description: String, expiry_s: u32) -> Result<String, Reason> {
        let description = direct(description)?;
        let payments = self.node()?.bolt11_payment();
        let invoice = match amount_msat {
            Some(amount_msat) => payments.receive(amount_msat, &description, expiry_s),
            None => payments.receive_variable_amount(&description, expiry_s),
        };
        Ok(invoice.map_err(refused("no invoice"))?.to_string())
    }

    fn pay(&self, bolt11: &str, amount_msat: Option<u64>) -> Result<String, Reason> {
        let invoice = Bolt11Invoice::from_str(bolt11).map_err(|error| format!("not an invoice: {error:?}"))?;
        let payments = self.node()?.bolt11_payment();
        let sent = match amount_msat {
            Some(amount_msat) => payments.send_using_amount(&invoice, amount_msat, None),
            None => payments.send(&invoice, None),
        };
        Ok(translate::hex(&sent.map_err(refused("cannot pay"))?.0))
    }
}

/// Tells every event and ticks it off, for as long as the process lives.
fn tell_events(node: &Node) {
    loop {
        let event = node.wait_next_event();
        output::write(&Line::Event(translate::event(&event)));
        // It fails only if the disk does; then the same event comes again, which is no harm.
        if let Err(error) = node.event_handled() {
            eprintln!("event not ticked off: {error}");
        }
    }
}

/// The only way to have ldk-node forward into private channels: as an LSP. Nobody asks it for channels here.
fn lsp() -> LSPS2ServiceConfig {
    LSPS2ServiceConfig {
        require_token: None,
        advertise_service: false,
        channel_opening_fee_ppm: 0,
        channel_over_provisioning_ppm: 0,
        min_channel_opening_fee_msat: 0,
        min_channel_lifetime: 144,
        max_client_to_self_delay: 2016,
        min_payment_size_msat: 1,
        max_payment_size_msat: u64::MAX,
        client_trusts_lsp: false,
    }
}

fn direct(description: String) -> Result<Bolt11InvoiceDescription, Reason> {
    let description = Description::new(description).map_err(|error| format!("bad description: {error}"))?;
    Ok(Bolt11InvoiceDescription::Direct(description))
}

fn bytes_32(text: &str, what: &str) -> Result<[u8; 32], Reason> {
    translate::bytes_32(text).ok_or_else(|| format!("{text} is not {what}"))
}

fn hash(text: &str) -> Result<PaymentHash, Reason> {
    bytes_32(text, "a payment hash").map(PaymentHash)
}

fn key(text: &str) -> Result<PublicKey, Reason> {
    text.parse().map_err(|error| format!("{text} is not a public key: {error}"))
}

fn socket_address(text: &str) -> Result<SocketAddress, Reason> {
    SocketAddress::from_str(text).map_err(|error| format!("{text} is not an address: {error}"))
}
