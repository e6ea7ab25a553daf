//! The demo's last act: bob keeps an old commitment while payments are in flight, alice is switched off, and bob publishes it. A
//! watchtower punishes him alone, HTLCs included; alice comes back and finds her money.

use std::collections::{BTreeMap, HashMap};

use bitcoin::consensus::encode::deserialize;
use bitcoin::{Amount, Block, OutPoint, Transaction, TxOut, Witness};
use millrace_rpc::v1::{
    AddTowerRequest, ChannelState, CloseKind, CreateInvoiceRequest, GetInvoiceRequest, GetTowerStatusRequest,
    InvoiceStatus, PayRequest, SettleInvoiceRequest, TakeCommitmentRequest, TakeCommitmentResponse, TakenHtlc,
    settle_invoice_request,
};
use secp256k1::PublicKey;
use serde_json::json;
use tokio::task::block_in_place;

use super::{ALICE, BOB, CAPACITY_SAT, Figures, GIVEN_SAT, TO_SELF_DELAY};
use crate::network::{Error, Network, random_key};
use crate::pay_stream::{Outcome, PayStream, make_invoices};
use crate::programs::find_tower;
use crate::report::Report;
use crate::tower::Tower;

/// What is in flight in the commitment that bob keeps: from alice, and from bob.
const IN_FLIGHT_SAT: [u64; 2] = [300_000, 200_000];
/// What bob pays afterwards, and would have back.
const PAID_SAT: u64 = 2_500_000;
/// The preimages of the payments in flight.
const PREIMAGES: [[u8; 32]; 2] = [[0xa1; 32], [0xb0; 32]];
/// Channels that the tower lets alice have.
const CHANNELS_MAX: u32 = 10;
/// Item of an HTLC-success transaction's witness where the preimage stands (BOLT 3).
const PREIMAGE: usize = 3;

struct Act {
    network: Network,
    tower: Tower,
    channel_id: Vec<u8>,
    /// What bob keeps.
    kept: Option<TakeCommitmentResponse>,
    /// The wallets before bob cheats, in sat.
    before_sat: [u64; 2],
    /// The height below his commitment.
    from_height: u32,
    figures: Figures,
}

/// Plays it. Its figures are returned, whatever became of it.
pub(super) async fn play(report: &mut Report) -> Figures {
    report.begin("start two daemons and a watchtower");
    let started = Act::start().await;
    report.end(
        &started
            .as_ref()
            .map(|_| "alice's watchtower knows her by a key of its own".to_owned())
            .map_err(ToString::to_string),
    );
    let Ok(mut act) = started else { return BTreeMap::new() };
    act.story(report).await;
    act.figures
}

impl Act {
    async fn start() -> Result<Self, Error> {
        let mut network = block_in_place(Network::start)?;
        for name in ["alice", "bob"] {
            let index = network.add(name);
            network.nodes[index].argument("--channel-to-self-delay-blocks");
            network.nodes[index].argument(&TO_SELF_DELAY.to_string());
        }
        for index in [ALICE, BOB] {
            network.nodes[index].start().await?;
        }
        let mut tower = Tower::new(&find_tower()?, network.folder().join("tower"), &network.bitcoind)?;
        tower.start().await?;
        for node in [ALICE, BOB] {
            for _ in 0..2 {
                network.fund(node, Amount::from_sat(GIVEN_SAT / 2)).await?;
            }
        }
        network.connect(ALICE, BOB).await?;
        let (channel_id, kept, figures) = (Vec::new(), None, BTreeMap::new());
        let mut act = Self { network, tower, channel_id, kept, before_sat: [0; 2], from_height: 0, figures };
        act.add_tower().await?;
        act.channel_id = act.network.open(ALICE, BOB, CAPACITY_SAT, CAPACITY_SAT / 2 * 1000).await?;
        Ok(act)
    }

    /// Alice is told of the tower, and the tower of alice.
    async fn add_tower(&mut self) -> Result<(), Error> {
        let (tower, address) = self.tower.key_and_address()?;
        let alice = &self.network.nodes[ALICE];
        let request = || AddTowerRequest {
            idempotency_key: random_key(),
            tower: tower.serialize().to_vec(),
            address: address.clone(),
            ..AddTowerRequest::default()
        };
        let add = async || {
            let answer = alice.client()?.towers.add(request()).await;
            Ok::<_, Error>(answer.map_err(|status| alice.call_failed(&status))?.into_inner().tower.unwrap_or_default())
        };
        let added = add().await?;
        let key = PublicKey::from_slice(&added.client_key);
        let key = key.map_err(|_| Error::Wrong("alice has no key for her tower".to_owned()))?;
        self.tower.allow(&key, CHANNELS_MAX).await?;
        self.network
            .wait("alice's watchtower connected", async || {
                let told = add().await?;
                Ok(if told.connected { Ok(()) } else { Err(told.last_error) })
            })
            .await
    }

    async fn story(&mut self, report: &mut Report) {
        step!(report, "bob keeps a commitment, two payments in flight", self.keep_old());
        step!(report, "the payments arrive, and bob pays more", self.go_on());
        step!(report, "switch alice off", self.switch_alice_off());
        step!(report, "bob publishes what he has revoked", self.cheat());
        step!(report, "the watchtower takes it all from him", self.punish());
        step!(report, "alice comes back", self.come_back());
        step!(report, "account for every satoshi", self.account());
    }

    // --- before ---

    async fn keep_old(&mut self) -> Result<String, Error> {
        for (from, to, which) in [(ALICE, BOB, 0), (BOB, ALICE, 1)] {
            self.pay_held(from, to, which).await?;
        }
        let bob = &self.network.nodes[BOB];
        let request = TakeCommitmentRequest { channel_id: self.channel_id.clone() };
        let answer = bob.client()?.channels.take_commitment(request).await;
        let kept = answer.map_err(|status| bob.call_failed(&status))?.into_inner();
        if kept.htlcs.len() != 2 {
            return Err(Error::Wrong(format!("{} HTLCs are in it", kept.htlcs.len())));
        }
        let told = format!(
            "number {}, with {} and {} sat in flight",
            kept.commitment_number, IN_FLIGHT_SAT[0], IN_FLIGHT_SAT[1]
        );
        self.kept = Some(kept);
        Ok(told)
    }

    /// A payment that arrives and is held.
    async fn pay_held(&self, from: usize, to: usize, which: usize) -> Result<(), Error> {
        let (payer, payee) = (&self.network.nodes[from], &self.network.nodes[to]);
        let request = CreateInvoiceRequest {
            idempotency_key: random_key(),
            amount_msat: Some(IN_FLIGHT_SAT[which] * 1000),
            preimage: PREIMAGES[which].to_vec(),
            hold: true,
            ..CreateInvoiceRequest::default()
        };
        let made = payee.client()?.invoices.create(request).await;
        let invoice = made.map_err(|status| payee.call_failed(&status))?.into_inner().invoice.unwrap_or_default();
        let order = PayRequest { idempotency_key: random_key(), bolt11: invoice.bolt11, ..PayRequest::default() };
        // It goes on when nobody listens any more.
        let _progress = payer.client()?.payments.pay(order).await.map_err(|status| payer.call_failed(&status))?;
        self.network
            .wait("a payment that is held", async || {
                let request = GetInvoiceRequest { payment_hash: invoice.payment_hash.clone() };
                let shown = payee.client()?.invoices.get(request).await.map_err(|status| payee.call_failed(&status))?;
                let status = shown.into_inner().invoice.unwrap_or_default().status();
                Ok(if status == InvoiceStatus::Held { Ok(()) } else { Err(format!("{status:?}")) })
            })
            .await
    }

    async fn go_on(&mut self) -> Result<String, Error> {
        for (payee, which) in [(BOB, 0), (ALICE, 1)] {
            let which = Some(settle_invoice_request::Which::Preimage(PREIMAGES[which].to_vec()));
            let request = SettleInvoiceRequest { idempotency_key: random_key(), which };
            let payee = &self.network.nodes[payee];
            payee.client()?.invoices.settle(request).await.map_err(|status| payee.call_failed(&status))?;
        }
        let invoices = make_invoices(&self.network.nodes[ALICE].client()?, &[PAID_SAT * 1000], "more").await?;
        let mut stream = PayStream::open(&self.network.nodes[BOB]).await?;
        stream.pay(0, invoices[0].clone(), random_key()).await?;
        match stream.next().await? {
            Some((_, Outcome::Paid, _)) => {}
            other => return Err(Error::Wrong(format!("the payment came to {other:?}"))),
        }
        self.wait_until_told().await
    }

    /// Waits until no HTLC is there, and the tower has everything that is revoked.
    async fn wait_until_told(&self) -> Result<String, Error> {
        let alice = &self.network.nodes[ALICE];
        let mut told = (0, 0);
        self.network
            .wait("the tower with all that is revoked", async || {
                let channel = self.network.channel(ALICE, &self.channel_id).await?;
                let request = GetTowerStatusRequest::default();
                let answer = alice.client()?.towers.get_status(request).await;
                let status = answer.map_err(|status| alice.call_failed(&status))?.into_inner();
                let channels = status.towers.first().map(|tower| tower.channels.clone()).unwrap_or_default();
                let of = channels.into_iter().find(|one| one.channel_id == self.channel_id).unwrap_or_default();
                told = (of.revoked, of.acknowledged);
                let at_rest = channel.offered_htlcs + channel.received_htlcs == 0;
                // All but the newest.
                let is_all = of.revoked == channel.remote_commitment_number && of.acknowledged == of.revoked;
                Ok(if at_rest && is_all {
                    Ok(())
                } else {
                    Err(format!("it has {} of {}", of.acknowledged, of.revoked))
                })
            })
            .await?;
        Ok(format!("{PAID_SAT} sat; the watchtower has signed for {} revoked commitments", told.1))
    }

    async fn switch_alice_off(&mut self) -> Result<String, Error> {
        for node in [ALICE, BOB] {
            let balance = self.network.balance(node).await?;
            self.before_sat[node] = balance.confirmed_sat + balance.unconfirmed_sat;
        }
        self.network.nodes[ALICE].stop().await?;
        self.from_height = block_in_place(|| self.network.bitcoind.height())?;
        Ok(String::new())
    }

    // --- the cheat ---

    async fn cheat(&mut self) -> Result<String, Error> {
        let kept = self.kept.clone().unwrap_or_default();
        let sent = json!([hex::encode(&kept.transaction)]);
        let txid = block_in_place(|| self.network.bitcoind.call("sendrawtransaction", &sent))?;
        self.network.mine(1).await?;
        // He knows the preimage of what alice has offered: that HTLC is his to take at once.
        let success = kept.htlcs.iter().find(|htlc| htlc.is_success).cloned().unwrap_or_default();
        self.mine_with(&with_preimage(&success, PREIMAGES[0])?).await?;
        Ok(format!(
            "{}…, and the HTLC of {} sat with its preimage",
            &txid.as_str().unwrap_or_default()[..12],
            IN_FLIGHT_SAT[0]
        ))
    }

    /// A block with this transaction, which pays no fee: a miner is in league with bob.
    async fn mine_with(&mut self, tx: &Transaction) -> Result<(), Error> {
        let bytes = hex::encode(bitcoin::consensus::serialize(tx));
        block_in_place(|| {
            let address = self.network.bitcoind.new_address()?;
            // All that waits goes into the block, too.
            let mut txs: Vec<String> = self.network.bitcoind.mempool()?.iter().map(ToString::to_string).collect();
            txs.push(bytes);
            self.network.bitcoind.call("generateblock", &json!([address.to_string(), txs]))
        })?;
        Ok(())
    }

    async fn punish(&mut self) -> Result<String, Error> {
        let taken = self.mine_until_taken(2).await?;
        // Bob's own HTLC is his once it has expired.
        let kept = self.kept.clone().unwrap_or_default();
        let timeout = kept.htlcs.iter().find(|htlc| !htlc.is_success).cloned().unwrap_or_default();
        let timeout: Transaction = decoded(&timeout.transaction)?;
        let expiry = timeout.lock_time.to_consensus_u32();
        let height = block_in_place(|| self.network.bitcoind.height())?;
        self.network.mine(expiry.saturating_sub(height)).await?;
        self.mine_with(&timeout).await?;
        let all = self.mine_until_taken(3).await?;
        self.figures.insert("punished_sat", json!(all));
        Ok(format!(
            "{taken} sat of his balance and the HTLC at once, and {} sat when he took the other HTLC at its expiry",
            all - taken
        ))
    }

    /// Mines block by block, each once the tower has seen the one before, until so many of bob's outputs are taken. Gives what
    /// they held, in sat.
    async fn mine_until_taken(&mut self, outputs: usize) -> Result<u64, Error> {
        // What must be his for so long can be taken from him.
        for _ in 0..TO_SELF_DELAY {
            self.let_the_tower_see().await?;
            let taken = self.taken()?;
            if taken.len() >= outputs {
                return Ok(taken.iter().map(|output| output.value.to_sat()).sum());
            }
            self.network.wait_for_mempool(1).await?;
            self.network.mine(1).await?;
        }
        let status = self.tower.status().await?;
        Err(Error::Wrong(format!("the tower does not take what it may: {status:?}")))
    }

    async fn let_the_tower_see(&self) -> Result<(), Error> {
        let height = block_in_place(|| self.network.bitcoind.height())?;
        crate::network::wait_for(&format!("the tower at height {height}"), super::PAYMENT_LIMIT, async || {
            let seen = self.tower.status().await?.height;
            Ok(if seen >= height { Ok(()) } else { Err(format!("it is at {seen}")) })
        })
        .await
    }

    /// Outputs under bob's revoked delayed key that are spent already. With alice switched off, only the tower can have done
    /// that, unless bob has: see [`Act::account`].
    fn taken(&self) -> Result<Vec<TxOut>, Error> {
        let kept: Transaction = decoded(&self.kept.clone().unwrap_or_default().transaction)?;
        let txs = block_in_place(|| self.transactions())?;
        let seconds = self.seconds()?;
        let script = seconds.first().map(|tx| tx.output[0].script_pubkey.clone()).unwrap_or_default();
        let mut delayed: HashMap<OutPoint, TxOut> = HashMap::new();
        for tx in std::iter::once(&kept).chain(&seconds) {
            for (vout, output) in (0..).zip(&tx.output).filter(|(_, output)| output.script_pubkey == script) {
                delayed.insert(OutPoint { txid: tx.compute_txid(), vout }, output.clone());
            }
        }
        let inputs = txs.iter().flat_map(|tx| &tx.input);
        Ok(inputs.filter_map(|input| delayed.remove(&input.previous_output)).collect())
    }

    /// The second-level transactions that bob keeps.
    fn seconds(&self) -> Result<Vec<Transaction>, Error> {
        self.kept.iter().flat_map(|kept| &kept.htlcs).map(|htlc| decoded(&htlc.transaction)).collect()
    }

    /// Everything in blocks since bob's commitment.
    fn transactions(&self) -> Result<Vec<Transaction>, Error> {
        let tip = self.network.bitcoind.height()?;
        let mut txs = Vec::new();
        for height in self.from_height + 1..=tip {
            let hash = self.network.bitcoind.block_hash(height)?;
            let block = self.network.bitcoind.call("getblock", &json!([hash.to_string(), 0]))?;
            let bytes = hex::decode(block.as_str().unwrap_or_default()).unwrap_or_default();
            let block: Block = decoded(&bytes)?;
            txs.extend(block.txdata);
        }
        Ok(txs)
    }

    // --- the end ---

    async fn come_back(&mut self) -> Result<String, Error> {
        self.network.nodes[ALICE].start().await?;
        // What nobody but her could take.
        self.network.wait_for_mempool(1).await?;
        self.network.mine(111).await?;
        let channel_id = self.channel_id.clone();
        for node in [ALICE, BOB] {
            self.network
                .wait(&format!("{}'s channel closed", self.network.nodes[node].name), async || {
                    let state = self.network.channel(node, &channel_id).await?.state();
                    Ok(if state == ChannelState::Closed { Ok(()) } else { Err(format!("it is {state:?}")) })
                })
                .await?;
        }
        let closing = self.network.channel(ALICE, &channel_id).await?.closing.unwrap_or_default();
        if closing.kind() != CloseKind::RevokedCommitment {
            return Err(Error::Wrong(format!("alice says that it was closed by {:?}", closing.kind())));
        }
        Ok(closing.reason)
    }

    /// The whole channel is alice's, but for fees and anchors; bob has what he had in his wallet, and nothing of the channel.
    async fn account(&mut self) -> Result<String, Error> {
        let (alices, anchors_sat, fees_sat) = self.follow_channel()?;
        let mut after_sat = [0; 2];
        for node in [ALICE, BOB] {
            let balance = self.network.balance(node).await?;
            after_sat[node] = balance.confirmed_sat + balance.unconfirmed_sat;
        }
        let gained = after_sat[ALICE].checked_sub(self.before_sat[ALICE]).ok_or_else(|| {
            Error::Wrong(format!("alice had {} sat and has {}", self.before_sat[ALICE], after_sat[ALICE]))
        })?;
        if after_sat[BOB] != self.before_sat[BOB] {
            return Err(Error::Wrong(format!("bob had {} sat and has {}", self.before_sat[BOB], after_sat[BOB])));
        }
        if gained != alices || gained + anchors_sat + fees_sat != CAPACITY_SAT {
            return Err(Error::Wrong(format!(
                "of {CAPACITY_SAT} sat alice has {gained}, by the blocks {alices}; {anchors_sat} are in anchors, {fees_sat} were fees"
            )));
        }
        self.figures.insert("punished_fees_sat", json!(fees_sat));
        Ok(format!(
            "{CAPACITY_SAT} sat in the channel = {gained} alice's + {fees_sat} in fees + {anchors_sat} in unspent anchors; bob got nothing of it"
        ))
    }

    /// Follows the channel's coins through the blocks: what is left in outputs, what of it in the commitment's anchors, and what
    /// was paid in fees; in sat.
    fn follow_channel(&self) -> Result<(u64, u64, u64), Error> {
        let commitment: Transaction = decoded(&self.kept.clone().unwrap_or_default().transaction)?;
        let txs = block_in_place(|| self.transactions())?;
        let mut coins = HashMap::from([(commitment.input[0].previous_output, CAPACITY_SAT)]);
        let mut fees_sat = 0;
        for tx in txs {
            let spent: u64 = tx.input.iter().filter_map(|input| coins.remove(&input.previous_output)).sum();
            if spent == 0 {
                continue;
            }
            let paid: u64 = tx.output.iter().map(|output| output.value.to_sat()).sum();
            fees_sat += spent.checked_sub(paid).ok_or_else(|| Error::Wrong("other coins were put in".to_owned()))?;
            let txid = tx.compute_txid();
            coins.extend((0..).zip(&tx.output).map(|(vout, output)| (OutPoint { txid, vout }, output.value.to_sat())));
        }
        let txid = commitment.compute_txid();
        let is_anchor = |coin: &OutPoint| coin.txid == txid;
        let anchors_sat = coins.iter().filter(|(coin, _)| is_anchor(coin)).map(|(_, sat)| sat).sum();
        let left_sat = coins.iter().filter(|(coin, _)| !is_anchor(coin)).map(|(_, sat)| sat).sum();
        Ok((left_sat, anchors_sat, fees_sat))
    }
}

fn decoded<T: bitcoin::consensus::Decodable>(bytes: &[u8]) -> Result<T, Error> {
    deserialize(bytes).map_err(|error| Error::Wrong(format!("what was handed out does not decode: {error}")))
}

/// An HTLC-success transaction with the preimage in its place.
fn with_preimage(htlc: &TakenHtlc, preimage: [u8; 32]) -> Result<Transaction, Error> {
    let mut tx: Transaction = decoded(&htlc.transaction)?;
    let mut items = tx.input[0].witness.to_vec();
    items[PREIMAGE] = preimage.to_vec();
    tx.input[0].witness = Witness::from_slice(&items);
    Ok(tx)
}
