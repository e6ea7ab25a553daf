//! One `millraced` and one ldk-node on one chain, and what the tests ask of both.

use std::time::Duration;

use bitcoin::Amount;
use bitcoin::hashes::{Hash, sha256};
use millrace_regtest::ldk::protocol::PaymentStatus;
use millrace_regtest::ldk::{self, LdkNode};
use millrace_regtest::network::{Error, Network, SOON, random_key, wait_for};
use millrace_regtest::pay_stream::{Outcome, PayStream, make_invoices};
use millrace_rpc::v1::{
    Channel, ChannelState, CloseChannelRequest, ConnectRequest, DisconnectRequest, OpenChannelRequest,
    close_channel_progress, open_channel_progress,
};

/// Index of the `millraced`.
pub(crate) const OURS: usize = 0;
/// What each side is given, in two coins: the reserve for anchors must not lock all there is.
pub(crate) const GIVEN_SAT: u64 = 30_000_000;
/// Of every channel.
pub(crate) const CAPACITY_SAT: u64 = 10_000_000;
/// An anchor's value (BOLT 3).
const ANCHOR_SAT: u64 = 330;
/// Blocks mined between two looks at what is still unresolved, and how often.
const ROUND_BLOCKS: u32 = 24;
const ROUNDS_MAX: u32 = 60;
/// Blocks in which HTLCs on the chain are claimed, mined so slowly that both sides can answer each with a transaction.
const SLOW_BLOCKS: u32 = 40;
const BLOCK_PAUSE: Duration = Duration::from_millis(300);

/// Both, connected.
pub(crate) struct Mixed {
    // First: the process writes into the network's folder.
    pub(crate) ldk: LdkNode,
    pub(crate) network: Network,
    funded_height: u32,
}

/// Payments asked for, and what each should come to.
pub(crate) struct Orders {
    /// From us: the invoice and the key that it is paid under, at every try.
    from_us: Vec<(String, String)>,
    /// From LDK: the payment's id.
    from_ldk: Vec<String>,
    amount_msat: u64,
}

/// A payment from us that LDK does not claim by itself.
pub(crate) struct Held {
    preimage: String,
    pub(crate) payment_hash: String,
    amount_msat: u64,
    order: (String, String),
}

impl Mixed {
    pub(crate) async fn start() -> Self {
        let mut network = tokio::task::block_in_place(Network::start).unwrap();
        assert_eq!(network.add("ours"), OURS);
        network.nodes[OURS].start().await.unwrap();
        let mut ldk = LdkNode::new("ldk", network.folder(), &network.bitcoind, ldk::Options::default());
        ldk.start().await.unwrap();
        for _ in 0..2 {
            let half = Amount::from_sat(GIVEN_SAT / 2);
            network.bitcoind.send_to(&ldk.new_address().await.unwrap(), half).unwrap();
            network.fund(OURS, half).await.unwrap();
        }
        let funded_height = network.bitcoind.height().unwrap();
        let mixed = Self { ldk, network, funded_height };
        mixed.ldk.sync_to(funded_height).await.unwrap();
        assert_eq!(mixed.ldk.balances().await.unwrap().onchain_sat, GIVEN_SAT);
        mixed.connect_from_ldk().await;
        mixed
    }

    // --- the chain ---

    pub(crate) async fn mine(&mut self, blocks: u32) {
        self.network.mine(blocks).await.unwrap();
        self.ldk.sync_to(self.network.bitcoind.height().unwrap()).await.unwrap();
    }

    /// Mines past the expiry of every HTLC that we have offered, block by block: a race that real blocks would not bring
    /// about shall not decide who gets it.
    pub(crate) async fn mine_slowly(&mut self) {
        for _ in 0..SLOW_BLOCKS {
            self.mine(1).await;
            tokio::time::sleep(BLOCK_PAUSE).await;
        }
    }

    /// Mines until neither side has anything left to do on the chain.
    pub(crate) async fn mine_until_resolved(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.mine(ROUND_BLOCKS).await;
            let ours = self.network.channels(OURS).await.unwrap();
            let theirs = self.ldk.balances().await.unwrap();
            let is_over = ours.iter().all(|channel| channel.state() == ChannelState::Closed);
            if is_over && theirs.claims.is_empty() && theirs.sweeps.is_empty() {
                // A sweep may have been made by the last look.
                return self.mine(ROUND_BLOCKS).await;
            }
        }
        let ours = self.network.channels(OURS).await.unwrap();
        panic!("not resolved; ours: {ours:?}; LDK: {:?}", self.ldk.balances().await.unwrap());
    }

    /// Every satoshi given to the two is in a wallet, a channel, a fee or an anchor that nobody has spent.
    pub(crate) async fn account_for_everything(&self) {
        let ours = self.network.balance(OURS).await.unwrap();
        let channels = self.network.channels(OURS).await.unwrap();
        let open = channels.iter().filter(|channel| channel.state() != ChannelState::Closed);
        let in_channels: u64 = open.map(|channel| channel.capacity_sat).sum();
        let theirs = self.ldk.balances().await.unwrap().onchain_sat;
        let has = ours.confirmed_sat + ours.unconfirmed_sat + theirs + in_channels + self.fees_sat();
        let missing = (2 * GIVEN_SAT).checked_sub(has).unwrap_or_else(|| panic!("{has} sat of {}", 2 * GIVEN_SAT));
        assert!([0, ANCHOR_SAT, 2 * ANCHOR_SAT].contains(&missing), "{missing} sat are missing");
    }

    /// What miners got since both were funded: nobody else sends anything.
    fn fees_sat(&self) -> u64 {
        let tip = self.network.bitcoind.height().unwrap();
        let fee_at = |height: u32| {
            let parameters = serde_json::json!([height, ["totalfee"]]);
            self.network.bitcoind.call("getblockstats", &parameters).unwrap()["totalfee"].as_u64().unwrap()
        };
        (self.funded_height + 1..=tip).map(fee_at).sum()
    }

    // --- the link ---

    pub(crate) fn our_id(&self) -> String {
        hex::encode(self.network.nodes[OURS].node_id())
    }

    pub(crate) fn ldk_id(&self) -> Vec<u8> {
        hex::decode(self.ldk.node_id()).unwrap()
    }

    pub(crate) async fn connect_from_ldk(&self) {
        let address = self.network.nodes[OURS].lightning_address().unwrap();
        self.ldk.connect(&self.our_id(), &address).await.unwrap();
    }

    pub(crate) async fn connect_from_us(&self) {
        let request = ConnectRequest {
            idempotency_key: random_key(),
            node_id: self.ldk_id(),
            address: self.ldk.lightning_address().unwrap(),
        };
        self.network.nodes[OURS].client().unwrap().peers.connect(request).await.unwrap();
    }

    pub(crate) async fn disconnect_from_us(&self) {
        let request = DisconnectRequest { idempotency_key: random_key(), node_id: self.ldk_id(), force: true };
        self.network.nodes[OURS].client().unwrap().peers.disconnect(request).await.unwrap();
    }

    /// After a restart or a cut: LDK calls, unless we have called already.
    pub(crate) async fn connect_again(&self, channel_id: &[u8]) {
        self.connect_from_ldk().await;
        self.wait_until_usable(channel_id).await;
    }

    // --- channels ---

    pub(crate) async fn open_from_us(&mut self, push_msat: u64) -> Vec<u8> {
        self.open_as(push_msat, false).await
    }

    /// A channel that the network is told of.
    pub(crate) async fn open_public_from_us(&mut self, push_msat: u64) -> Vec<u8> {
        self.open_as(push_msat, true).await
    }

    async fn open_as(&mut self, push_msat: u64, is_public: bool) -> Vec<u8> {
        let request = OpenChannelRequest {
            public: Some(is_public),
            idempotency_key: random_key(),
            node_id: self.ldk_id(),
            capacity_sat: CAPACITY_SAT,
            push_msat,
            ..OpenChannelRequest::default()
        };
        let mut progress =
            self.network.nodes[OURS].client().unwrap().channels.open(request).await.unwrap().into_inner();
        let channel_id = loop {
            let step = self.next(progress.message()).await.expect("an opening says when its funding is broadcast");
            if let Some(open_channel_progress::Stage::FundingBroadcast(_)) = step.stage {
                break step.channel_id;
            }
        };
        self.confirm_opening(&channel_id).await;
        channel_id
    }

    pub(crate) async fn open_from_ldk(&mut self, push_msat: u64) -> Vec<u8> {
        let address = self.network.nodes[OURS].lightning_address().unwrap();
        self.ldk.open_channel(&self.our_id(), &address, CAPACITY_SAT, push_msat).await.unwrap();
        self.network.wait_for_mempool(1).await.unwrap_or_else(|error| self.give_up(&error.to_string()));
        let channels = self.ldk.channels().await.unwrap();
        let [channel] = &channels[..] else { panic!("LDK has {channels:?}") };
        let channel_id = hex::decode(&channel.channel_id).unwrap();
        self.confirm_opening(&channel_id).await;
        channel_id
    }

    async fn confirm_opening(&mut self, channel_id: &[u8]) {
        self.network.wait_for_mempool(1).await.unwrap();
        self.mine(6).await;
        self.wait_until_usable(channel_id).await;
    }

    pub(crate) async fn wait_until_usable(&self, channel_id: &[u8]) {
        let ours = self.network.wait_until_usable(OURS, channel_id).await;
        ours.unwrap_or_else(|error| self.give_up(&error.to_string()));
        let theirs = self.ldk.wait_until_usable(&hex::encode(channel_id)).await;
        theirs.unwrap_or_else(|error| self.give_up(&error.to_string()));
    }

    /// Ends the test with what LDK has complained about: it usually says why.
    pub(crate) fn give_up(&self, what: &str) -> ! {
        let complaints = self.ldk.complaints().join("\n");
        let log = std::fs::read_to_string(self.network.nodes[OURS].log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let ours = lines[lines.len().saturating_sub(20)..].join("\n");
        panic!("{what}\nLDK complains:\n{complaints}\nour log ends:\n{ours}\nLDK's events: {:?}", self.ldk.events());
    }

    /// Both sides say that nothing is in flight and that we have so much, to the millisatoshi.
    pub(crate) async fn check_sums(&self, channel_id: &[u8], ours_msat: u64) {
        let both = async || {
            let ours: Channel = self.network.channel(OURS, channel_id).await?;
            let theirs = self.ldk.channel(&hex::encode(channel_id)).await?;
            let in_flight = ours.offered_htlcs + ours.received_htlcs;
            let rest_msat = CAPACITY_SAT * 1000 - ours_msat;
            let is_so = in_flight == 0
                && (ours.local_msat, ours.remote_msat) == (ours_msat, rest_msat)
                && theirs.local_msat() == Some(rest_msat);
            let state = format!(
                "{in_flight} HTLCs; we say {} and {} msat, LDK has {:?}",
                ours.local_msat,
                ours.remote_msat,
                theirs.local_msat()
            );
            Ok(if is_so { Ok(()) } else { Err(state) })
        };
        let checked = wait_for(&format!("{ours_msat} msat on our side"), SOON, both).await;
        checked.unwrap_or_else(|error| self.give_up(&error.to_string()));
    }

    // --- closing ---

    /// Asks our side to close, and waits until the transaction is broadcast.
    pub(crate) async fn close_from_us(&mut self, channel_id: &[u8], force: bool) {
        let request = CloseChannelRequest {
            idempotency_key: random_key(),
            channel_id: channel_id.to_vec(),
            force,
            ..CloseChannelRequest::default()
        };
        let mut progress =
            self.network.nodes[OURS].client().unwrap().channels.close(request).await.unwrap().into_inner();
        loop {
            let step = self.next(progress.message()).await.expect("a closing says when it is broadcast");
            if let Some(close_channel_progress::Stage::Broadcast(_)) = step.stage {
                break;
            }
        }
        self.wait_for_closing_transaction().await;
    }

    /// The next step of something under way.
    async fn next<T>(&self, step: impl Future<Output = Result<T, tonic::Status>>) -> T {
        match tokio::time::timeout(SOON, step).await {
            Ok(Ok(step)) => step,
            Ok(Err(status)) => self.give_up(&status.to_string()),
            Err(_) => self.give_up("no progress is told"),
        }
    }

    pub(crate) async fn wait_for_closing_transaction(&self) {
        let seen = self.network.wait_for_mempool(1).await;
        seen.unwrap_or_else(|error| self.give_up(&error.to_string()));
    }

    /// Both wallets hold what the channel gave each, less fees of at most `fees_sat_max` on either side.
    pub(crate) async fn check_wallets(&self, ours_sat: u64, fees_sat_max: u64) {
        let ours = self.network.balance(OURS).await.unwrap().confirmed_sat;
        let theirs = self.ldk.balances().await.unwrap().onchain_sat;
        for (who, has, due) in [("we", ours, ours_sat), ("LDK", theirs, 2 * GIVEN_SAT - ours_sat)] {
            assert!(has <= due && due - has <= fees_sat_max, "{who}: {has} sat of {due}");
        }
        self.account_for_everything().await;
    }

    // --- payments ---

    /// One payment from us. Must be paid.
    pub(crate) async fn pay_from_us(&self, amount_msat: u64) {
        let invoice = self.ldk.receive(Some(amount_msat), "to LDK").await.unwrap();
        let outcomes = self.outcomes_of(&[(invoice, random_key())]).await;
        assert_eq!(outcomes, [Outcome::Paid], "{amount_msat} msat; LDK complains: {:?}", self.ldk.complaints());
    }

    /// One payment from LDK. Must be paid.
    pub(crate) async fn pay_from_ldk(&self, amount_msat: u64) {
        let invoices = make_invoices(&self.network.nodes[OURS].client().unwrap(), &[amount_msat], "to us").await;
        let id = self.ldk.pay(&invoices.unwrap()[0], None).await.unwrap();
        let paid = self.ldk.wait_until_paid(&id).await;
        paid.unwrap_or_else(|error| self.give_up(&format!("{amount_msat} msat: {error}")));
    }

    /// Begins a payment from us that LDK holds, and waits until it does.
    pub(crate) async fn hold(&self, stream: &mut PayStream, number: u8, amount_msat: u64) -> Held {
        let preimage = [number; 32];
        let payment_hash = sha256::Hash::hash(&preimage).to_string();
        let invoice = self.ldk.receive_held(&payment_hash, amount_msat).await.unwrap();
        let order = (invoice.clone(), random_key());
        stream.pay(u64::from(number), invoice, order.1.clone()).await.unwrap();
        let held = self.ldk.wait_until_held(&payment_hash).await;
        held.unwrap_or_else(|error| self.give_up(&error.to_string()));
        Held { preimage: hex::encode(preimage), payment_hash, amount_msat, order }
    }

    pub(crate) async fn claim(&self, held: &Held) {
        self.ldk.claim_held(&held.preimage, &held.payment_hash, held.amount_msat).await.unwrap();
    }

    /// What became of a held payment, by our word; paid must be what LDK says too.
    pub(crate) async fn is_paid(&self, held: &Held) -> bool {
        let outcomes = self.outcomes_of(std::slice::from_ref(&held.order)).await;
        let is_paid = outcomes == [Outcome::Paid];
        let has_it = self.ldk.payment(&held.payment_hash).await.unwrap().status == PaymentStatus::Succeeded;
        assert_eq!(is_paid, has_it, "we say {outcomes:?}");
        is_paid
    }

    /// Begins `count` payments each way at once and waits for none. Asks our side through `stream`.
    pub(crate) async fn begin(&self, stream: &mut PayStream, count: usize, amount_msat: u64) -> Orders {
        let mut from_us = Vec::new();
        for _ in 0..count {
            from_us.push((self.ldk.receive(Some(amount_msat), "at once").await.unwrap(), random_key()));
        }
        let amounts = vec![amount_msat; count];
        let client = self.network.nodes[OURS].client().unwrap();
        let invoices = make_invoices(&client, &amounts, "at once").await.unwrap();
        for (id, (invoice, key)) in (0..).zip(&from_us) {
            stream.pay(id, invoice.clone(), key.clone()).await.unwrap();
        }
        let mut from_ldk = Vec::new();
        for invoice in &invoices {
            from_ldk.push(self.ldk.pay(invoice, None).await.unwrap());
        }
        Orders { from_us, from_ldk, amount_msat }
    }

    pub(crate) async fn stream(&self) -> PayStream {
        PayStream::open(&self.network.nodes[OURS]).await.unwrap()
    }

    /// What became of every payment: how many msat moved to us (negative: from us), and how many failed.
    ///
    /// Ours are asked for again under their keys, which never pays twice.
    pub(crate) async fn settle(&self, orders: &Orders) -> (i64, usize) {
        let (mut net_msat, mut failed) = (0_i64, 0);
        let amount = i64::try_from(orders.amount_msat).unwrap();
        for outcome in self.outcomes_of(&orders.from_us).await {
            match outcome {
                Outcome::Paid => net_msat -= amount,
                Outcome::Failed(_) => failed += 1,
                Outcome::Refused(why) => self.give_up(&format!("we refuse a payment: {why}")),
            }
        }
        for id in &orders.from_ldk {
            match self.decided(id).await {
                PaymentStatus::Succeeded => net_msat += amount,
                PaymentStatus::Failed | PaymentStatus::Pending => failed += 1,
            }
        }
        (net_msat, failed)
    }

    async fn outcomes_of(&self, orders: &[(String, String)]) -> Vec<Outcome> {
        let mut stream = self.stream().await;
        for (id, (invoice, key)) in (0..).zip(orders) {
            stream.pay(id, invoice.clone(), key.clone()).await.unwrap();
        }
        let mut outcomes = Vec::new();
        while outcomes.len() < orders.len() {
            match tokio::time::timeout(SOON, stream.next()).await {
                Ok(Ok(Some((_, outcome, _)))) => outcomes.push(outcome),
                Ok(other) => self.give_up(&format!("the payment stream ends with {other:?}")),
                Err(_) => self.give_up(&format!("{} payments never end", orders.len() - outcomes.len())),
            }
        }
        outcomes
    }

    /// Waits until a payment of LDK's is decided.
    async fn decided(&self, payment_id: &str) -> PaymentStatus {
        let is_decided = async || -> Result<Result<(), String>, Error> {
            let status = self.ldk.payment(payment_id).await?.status;
            Ok(if status == PaymentStatus::Pending { Err("it is under way".to_owned()) } else { Ok(()) })
        };
        let waited = wait_for(&format!("LDK's payment {payment_id}"), SOON, is_decided).await;
        waited.unwrap_or_else(|error| self.give_up(&error.to_string()));
        self.ldk.payment(payment_id).await.unwrap().status
    }
}
