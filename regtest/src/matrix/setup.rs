//! Brings the cells of one run to the moment before the first commitment is published: coins, channels, HTLCs, and what
//! each peer keeps of its past.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut};
use millrace_channel::effect::Fact;
use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_routing::invoice::{Description, Invoice, NewInvoice};
use millrace_routing::onion::{self, FinalPayload, Hop, Payload};
use millrace_rpc::v1::{CreateInvoiceRequest, InvoiceStatus, PayRequest, pay_progress};
use millrace_wire::{CltvDelta, CltvExpiry, FeeratePerKw, HtlcId, Msat, PaymentSecret, Preimage, Sat};
use serde_json::json;

use super::batch::Batch;
use super::cell::{Form, InFlight, Known, Next, Stands};
use super::chain::signed;
use super::claimant::{Coin, anyones_script};
use super::link::random_secret;
use super::output::{Htlc, Part};
use super::peer::{Opens, Peer};
use super::scene::Scene;
use crate::network::{Error, SOON, random_key, wait_for};

/// A channel, and what of it is the daemon's at first.
pub(super) const CAPACITY: Sat = Sat(2_000_000);
pub(super) const PUSHED: Sat = Sat(900_000);
/// What the HTLCs hold: by direction, and when all are equal.
const OFFERED_SAT: u64 = 60_000;
const RECEIVED_SAT: u64 = 70_000;
const EQUAL_SAT: u64 = 50_000;
/// What is added last, and stands in one commitment only.
const HALF_SAT: u64 = 40_000;
/// What is too small for an output in any commitment, by the dust limit alone.
const TRIMMED_SAT: u64 = 300;
/// The payer's channel.
const PAYER_CAPACITY: Sat = Sat(16_000_000);
/// Blocks from the last block before the commitments to the expiry of what the daemon received, and of what it forwards.
/// Held HTLCs are failed back 22 blocks before: there are some left for preimages that come late.
const RECEIVED_EXPIRY: u32 = 31;
const FORWARD_EXPIRY: u32 = 27;
/// What the peer's invoices ask of the last HTLC.
const FINAL_CLTV: CltvDelta = CltvDelta(25);
/// The feerates of the commitments, one after the other: each change makes the one before a revoked one.
const FEERATES: [FeeratePerKw; 3] = [FeeratePerKw(1_000), FeeratePerKw(1_100), FeeratePerKw(1_200)];
/// A coin of the daemon's: it pays for one HTLC transaction or one child, and the reserve of a channel.
const DAEMON_COIN: Amount = Amount::from_sat(200_000);
/// Such coins for each channel.
const DAEMON_COINS_PER_CELL: usize = 3;
/// Coins for what the peers aggregate.
const PEER_COIN: Amount = Amount::from_sat(20_000);
const PEER_COINS_PER_CELL: usize = 2;

impl Batch {
    /// Everything, in order. A scene that cannot be set has failed; the others go on.
    pub(super) async fn set_up(&mut self) -> Result<(), Error> {
        self.give_coins().await?;
        self.open_channels().await?;
        let height = self.height()?;
        for index in 0..self.scenes.len() {
            let set = self.set_scene(index, height).await;
            if let Err(error) = set {
                self.scenes[index].fail(height, format!("it cannot be set up: {error}"));
            }
        }
        self.payer.peer.hang_up();
        self.scenes.iter_mut().for_each(|scene| scene.peer.hang_up());
        Ok(())
    }

    // --- coins and channels ---

    async fn give_coins(&mut self) -> Result<(), Error> {
        let request = millrace_rpc::v1::NewAddressRequest { idempotency_key: random_key(), address_type: 0 };
        let answer = self.daemon().client()?.wallet.new_address(request).await;
        let text = answer.map_err(|status| self.daemon().call_failed(&status))?.into_inner().address;
        let address = text.parse::<bitcoin::Address<_>>().ok();
        let address = address.and_then(|address| address.require_network(bitcoin::Network::Regtest).ok());
        let address = address.ok_or_else(|| Error::Wrong(format!("{text} is not an address of regtest")))?;
        let count = self.scenes.len() * DAEMON_COINS_PER_CELL + 10;
        let coin = TxOut { value: DAEMON_COIN, script_pubkey: address.script_pubkey() };
        let tx = signed(&self.network.bitcoind, vec![coin; count])?;
        self.broadcast(&tx)?;
        self.network.mine(1).await?;
        let given = DAEMON_COIN.to_sat() * count as u64;
        self.network
            .wait("the daemon's coins", async || {
                let has = self.network.balance(0).await?.confirmed_sat;
                Ok(if has == given { Ok(()) } else { Err(format!("it has {has} sat of {given}")) })
            })
            .await?;
        self.given_sat = given;
        let txid = tx.compute_txid();
        self.given = (0..).take(count).map(|vout| OutPoint { txid, vout }).collect();
        Ok(())
    }

    async fn open_channels(&mut self) -> Result<(), Error> {
        let (address, node_id) = (self.daemon().lightning_address()?, self.daemon_id()?);
        let height = self.height()?;
        let mut outputs = Vec::new();
        for scene in &mut self.scenes {
            let format = match scene.cell.form {
                Form::Anchors => CommitmentFormat::Anchors,
                Form::Static => CommitmentFormat::StaticRemotekey,
            };
            let opens = Opens { capacity: CAPACITY, push: PUSHED.to_msat(), format, feerate: FEERATES[0] };
            scene.peer.connect(&address, &node_id).await?;
            scene.peer.propose(node_id, opens, height).await?;
            outputs.extend(funding_output(scene.peer.funding()));
        }
        let opens = Opens {
            capacity: PAYER_CAPACITY,
            push: Msat::ZERO,
            format: CommitmentFormat::Anchors,
            feerate: FEERATES[0],
        };
        self.payer.peer.connect(&address, &node_id).await?;
        self.payer.peer.propose(node_id, opens, height).await?;
        outputs.extend(funding_output(self.payer.peer.funding()));
        self.fund_channels(outputs).await
    }

    /// One transaction funds them all.
    async fn fund_channels(&mut self, mut outputs: Vec<TxOut>) -> Result<(), Error> {
        let coins_from = outputs.len();
        let coin = TxOut { value: PEER_COIN, script_pubkey: anyones_script().to_p2wsh() };
        outputs.extend(vec![coin; self.scenes.len() * PEER_COINS_PER_CELL]);
        let coins = outputs.len() - coins_from;
        let tx = signed(&self.network.bitcoind, outputs)?;
        let txid = tx.compute_txid();
        let place = |at: usize| u32::try_from(at).expect("a transaction has fewer outputs");
        for (vout, scene) in self.scenes.iter_mut().enumerate() {
            scene.peer.fund(&tx, place(vout)).await?;
        }
        self.payer.peer.fund(&tx, place(coins_from - 1)).await?;
        let coin =
            |at: usize| Coin { outpoint: OutPoint { txid, vout: place(coins_from + at) }, sat: PEER_COIN.to_sat() };
        self.coins = (0..coins).map(coin).collect();
        self.broadcast(&tx)?;
        self.network.mine(1).await?;
        let (height, index) = (self.height()?, 1);
        let peers = self.scenes.iter_mut().map(|scene| &mut scene.peer).chain([&mut self.payer.peer]);
        for peer in peers {
            peer.funded(&tx, index, height).await?;
            peer.until("channel_ready", |peer| peer.facts().contains(&Fact::Ready)).await?;
        }
        let peers = self.scenes.iter().map(|scene| &scene.peer).chain([&self.payer.peer]);
        for peer in peers {
            self.network.wait_until_usable(0, &peer.channel()?.id().0).await?;
        }
        Ok(())
    }

    fn broadcast(&self, tx: &Transaction) -> Result<(), Error> {
        self.network.bitcoind.call("sendrawtransaction", &json!([serialize_hex(tx)]))?;
        Ok(())
    }

    // --- one scene ---

    async fn set_scene(&mut self, index: usize, height: u32) -> Result<(), Error> {
        let cell = self.scenes[index].cell;
        self.put_in_flight(index, height).await?;
        let scene = &mut self.scenes[index];
        scene.snapshots.revoked = scene.peer.snapshot()?;
        if cell.stands == Stands::Revoked && cell.known == Known::Early {
            self.resolve(index).await?;
        }
        self.change_fee(index, FEERATES[1]).await?;
        let scene = &mut self.scenes[index];
        scene.snapshots.current = scene.peer.snapshot()?;
        if cell.has(Stands::TheirNext) {
            self.bring_about_next(index).await?;
        }
        if cell.known == Known::Early && cell.stands != Stands::Revoked {
            if !self.scenes[index].is_settled {
                self.settle(index).await?;
            }
            self.scenes[index].is_told = true;
        }
        Ok(())
    }

    /// What the cell says, and of each direction one that is too small for an output.
    async fn put_in_flight(&mut self, index: usize, height: u32) -> Result<(), Error> {
        let cell = self.scenes[index].cell;
        let (mut is_offered, mut is_received) = (false, false);
        match cell.in_flight {
            InFlight::None => return Ok(()),
            InFlight::Offered => is_offered = true,
            InFlight::Received => is_received = true,
            InFlight::Both => (is_offered, is_received) = (true, true),
            InFlight::Equal => {
                let preimage = random_preimage();
                self.receive(index, 2, EQUAL_SAT, preimage.clone(), height).await?;
                for _ in 0..2 {
                    self.forward(index, EQUAL_SAT, preimage.clone(), height).await?;
                }
            }
        }
        if is_offered {
            self.offer(index, OFFERED_SAT, Part::Whole).await?;
        }
        if is_received {
            self.receive(index, 1, RECEIVED_SAT, random_preimage(), height).await?;
        }
        if is_offered || cell.in_flight == InFlight::Equal {
            self.offer(index, TRIMMED_SAT, Part::Trimmed).await?;
        }
        // Nobody settles it: where everything is to be settled off chain, there is none.
        let is_resolved = cell.stands == Stands::Revoked && cell.known == Known::Early;
        if is_received && !is_resolved {
            self.receive(index, 1, TRIMMED_SAT, random_preimage(), height).await?;
        }
        Ok(())
    }

    /// The daemon signs the peer's next commitment, by whatever is half done then; the peer revokes none.
    async fn bring_about_next(&mut self, index: usize) -> Result<(), Error> {
        let next_by = self.scenes[index].cell.next_by();
        let of_direction =
            |is_offered: bool| self.scenes[index].htlcs.iter().position(|htlc| htlc.is_offered == is_offered);
        let (offered, received) = (of_direction(true), of_direction(false));
        match (next_by, offered, received) {
            (Next::Fulfills, Some(at), _) => {
                let scene = &mut self.scenes[index];
                scene.htlcs[at].part = Part::HalfFulfilled;
                let (id, preimage) = (scene.htlcs[at].id, scene.htlcs[at].preimage.clone());
                scene.peer.fulfill(id, preimage).await?;
            }
            (Next::Fails, Some(at), _) => {
                let scene = &mut self.scenes[index];
                scene.htlcs[at].part = Part::HalfFailed;
                let id = scene.htlcs[at].id;
                scene.peer.fail(id).await?;
            }
            (Next::Settles, _, Some(at)) => {
                self.scenes[index].htlcs[at].part = Part::HalfSettled;
                self.settle(index).await?;
            }
            (Next::Adds, _, _) => {
                let preimage = random_preimage();
                self.pay(index, HALF_SAT, &preimage).await?;
                self.withhold(index).await?;
                return self.note_half_added(index, preimage);
            }
            (Next::Fee | Next::Fulfills | Next::Fails | Next::Settles, _, _) => {
                self.scenes[index].peer.update_fee(FEERATES[2]).await?;
            }
        }
        self.withhold(index).await
    }

    /// The HTLC that the peer's next commitment alone has.
    fn note_half_added(&mut self, index: usize, preimage: Preimage) -> Result<(), Error> {
        let scene = &mut self.scenes[index];
        let payment_hash = preimage.hash();
        let added = scene.peer.channel()?.ledger().htlcs(Side::Remote).iter();
        let mut added = added.filter(|htlc| htlc.add.payment_hash == payment_hash);
        let Some(htlc) = added.next() else {
            return Err(Error::Wrong("the daemon's last HTLC is not in the commitment that it signed".to_owned()));
        };
        let (id, cltv_expiry) = (htlc.add.id, htlc.add.cltv_expiry);
        let (sat, part) = (HALF_SAT, Part::HalfAdded);
        let (is_offered, is_forward) = (true, false);
        scene.htlcs.push(Htlc { is_offered, sat, preimage, payment_hash, cltv_expiry, id, is_forward, part });
        Ok(())
    }

    /// The daemon pays an invoice of the peer's, until both have its HTLC for good.
    async fn offer(&mut self, index: usize, sat: u64, part: Part) -> Result<(), Error> {
        let preimage = random_preimage();
        self.pay(index, sat, &preimage).await?;
        self.take(index, preimage, sat, false, part).await
    }

    /// The daemon is told to pay an invoice of the peer's.
    async fn pay(&mut self, index: usize, sat: u64, preimage: &Preimage) -> Result<(), Error> {
        let scene = &mut self.scenes[index];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let invoice = NewInvoice {
            network: bitcoin::Network::Regtest,
            amount: Some(Msat(sat * 1000)),
            payment_hash: preimage.hash(),
            payment_secret: PaymentSecret::new(random_secret().secret_bytes()),
            description: Description::Text(scene.cell.to_string()),
            timestamp: Duration::from_secs(now.as_secs()),
            expiry: Duration::from_secs(86_400),
            min_final_cltv: FINAL_CLTV,
            basic_mpp: false,
            payment_metadata: None,
            route_hints: Vec::new(),
        };
        let bolt11 = invoice.sign(scene.peer.node_key());
        let bolt11 = bolt11.map_err(|error| Error::Wrong(format!("an invoice: {error}")))?;
        let node = &self.network.nodes[0];
        let request = PayRequest { idempotency_key: random_key(), bolt11, ..PayRequest::default() };
        let answer = node.client()?.payments.pay(request).await;
        let mut progress = answer.map_err(|status| node.call_failed(&status))?.into_inner();
        loop {
            let step = progress.message().await.map_err(|status| node.call_failed(&status))?;
            match step.and_then(|step| step.step) {
                Some(pay_progress::Step::Accepted(_)) => return Ok(()),
                Some(pay_progress::Step::Attempt(_)) => {}
                other => return Err(Error::Wrong(format!("a payment was not accepted: {other:?}"))),
            }
        }
    }

    /// The payer sends an HTLC over the daemon to the peer.
    async fn forward(&mut self, index: usize, sat: u64, preimage: Preimage, height: u32) -> Result<(), Error> {
        let daemon = self.daemon_id()?;
        let scene = &mut self.scenes[index];
        let (_, alias) = scene.peer.channel()?.aliases();
        let next = alias.or(scene.peer.channel()?.short_channel_id());
        let next = next.ok_or_else(|| Error::Wrong("the channel has no short channel id".to_owned()))?;
        let htlc = Htlc {
            is_offered: true,
            sat,
            payment_hash: preimage.hash(),
            preimage: preimage.clone(),
            cltv_expiry: CltvExpiry(height + FORWARD_EXPIRY),
            id: HtlcId(0),
            is_forward: true,
            part: Part::Whole,
        };
        let payee = scene.peer.node_id();
        let id = self.payer.send(daemon, payee, next, &htlc).await?;
        self.forwards.push((index, id, htlc.payment_hash));
        self.take(index, preimage, sat, true, Part::Whole).await
    }

    /// What the daemon offers has come.
    async fn take(
        &mut self,
        index: usize,
        preimage: Preimage,
        sat: u64,
        is_forward: bool,
        part: Part,
    ) -> Result<(), Error> {
        let scene = &mut self.scenes[index];
        let before = scene.of_direction(true).count();
        scene.peer.until("an HTLC of the daemon's", |peer| received_by(peer.facts()).count() > before).await?;
        let all = received(scene);
        let known: Vec<HtlcId> = scene.of_direction(true).map(|htlc| htlc.id).collect();
        let new = all.into_iter().find(|(id, _, _)| !known.contains(id));
        let Some((id, amount, cltv_expiry)) = new else {
            return Err(Error::Wrong("the daemon offered nothing new".to_owned()));
        };
        if amount != Msat(sat * 1000) {
            return Err(Error::Wrong(format!("the daemon offered {amount} instead of {sat} sat")));
        }
        let payment_hash = preimage.hash();
        scene.htlcs.push(Htlc { is_offered: true, sat, preimage, payment_hash, cltv_expiry, id, is_forward, part });
        self.at_rest(index).await
    }

    /// The peer pays a hold invoice of the daemon's, in so many equal parts.
    async fn receive(
        &mut self,
        index: usize,
        parts: u64,
        sat: u64,
        preimage: Preimage,
        height: u32,
    ) -> Result<(), Error> {
        let daemon = self.daemon_id()?;
        let node = &self.network.nodes[0];
        let total = Msat(parts * sat * 1000);
        let request = CreateInvoiceRequest {
            idempotency_key: random_key(),
            amount_msat: Some(total.0),
            hold: true,
            payment_hash: preimage.hash().0.to_vec(),
            min_final_cltv_expiry_delta: 22,
            no_hints: true,
            ..CreateInvoiceRequest::default()
        };
        let answer = node.client()?.invoices.create(request).await;
        let made = answer.map_err(|status| node.call_failed(&status))?.into_inner().invoice.unwrap_or_default();
        let invoice = Invoice::parse(&made.bolt11).map_err(|error| Error::Wrong(format!("our invoice: {error}")))?;
        let cltv_expiry = CltvExpiry(height + RECEIVED_EXPIRY);
        let scene = &mut self.scenes[index];
        for _ in 0..parts {
            let id = HtlcId(scene.of_direction(false).count() as u64);
            let amount = Msat(sat * 1000);
            let last =
                FinalPayload { total, ..FinalPayload::new(amount, cltv_expiry, invoice.payment_secret.clone(), None) };
            let hops = [Hop { node_id: daemon, payload: Payload::Final(last) }];
            let built = onion::build(&random_secret(), &hops, &preimage.hash());
            let built = built.map_err(|error| Error::Wrong(format!("an onion: {error}")))?;
            scene.peer.offer(amount, preimage.hash(), cltv_expiry, built.packet).await?;
            scene.htlcs.push(Htlc {
                is_offered: false,
                sat,
                preimage: preimage.clone(),
                payment_hash: preimage.hash(),
                cltv_expiry,
                id,
                is_forward: false,
                part: if sat == TRIMMED_SAT { Part::Trimmed } else { Part::Whole },
            });
        }
        self.at_rest(index).await?;
        self.until_invoice(preimage.hash(), InvoiceStatus::Held).await
    }

    /// Another feerate, and with it a new commitment for both.
    async fn change_fee(&mut self, index: usize, feerate: FeeratePerKw) -> Result<(), Error> {
        self.scenes[index].peer.update_fee(feerate).await?;
        self.at_rest(index).await
    }

    /// The daemon signs the peer's next commitment; the peer revokes none.
    async fn withhold(&mut self, index: usize) -> Result<(), Error> {
        let scene = &mut self.scenes[index];
        let withheld = scene.peer.withhold().await?;
        scene.snapshots.current = withheld.before;
        scene.snapshots.next = Some(withheld.after);
        self.until_numbers(index, true).await
    }

    /// Everything in flight is settled off chain.
    async fn resolve(&mut self, index: usize) -> Result<(), Error> {
        self.settle(index).await?;
        self.scenes[index].is_told = true;
        let offered: Vec<(HtlcId, Preimage)> =
            self.scenes[index].of_direction(true).map(|htlc| (htlc.id, htlc.preimage.clone())).collect();
        let scene = &mut self.scenes[index];
        for (id, preimage) in offered {
            scene.peer.fulfill(id, preimage).await?;
        }
        let is_over = |peer: &Peer| peer.channel().is_ok_and(|channel| channel.is_at_rest());
        scene.peer.until("the end of what is in flight", is_over).await?;
        self.until_numbers(index, false).await
    }

    /// Nothing is under way, by the word of both.
    async fn at_rest(&mut self, index: usize) -> Result<(), Error> {
        let is_quiet = |peer: &Peer| {
            peer.channel().is_ok_and(|channel| {
                let settled = |htlc: &millrace_channel::ledger::htlc::Htlc| htlc.is_live();
                !channel.awaits_revocation()
                    && !channel.ledger().is_fee_pending()
                    && channel.ledger().htlcs(Side::Local).iter().all(settled)
            })
        };
        self.scenes[index].peer.until("the end of the round", is_quiet).await?;
        self.until_numbers(index, false).await
    }

    /// The daemon holds what the peer holds.
    async fn until_numbers(&mut self, index: usize, is_withheld: bool) -> Result<(), Error> {
        let scene = &self.scenes[index];
        let channel = scene.peer.channel()?;
        let (id, numbers) = (channel.id(), channel.commitment_numbers());
        wait_for("both sides at the same commitments", SOON, async || {
            let told = self.network.channel(0, &id.0).await?;
            let theirs = (told.local_commitment_number, told.awaiting_revocation);
            let ours = (numbers.remote.0, is_withheld);
            Ok(if theirs == ours { Ok(()) } else { Err(format!("the daemon is at {theirs:?}, the peer at {ours:?}")) })
        })
        .await
    }
}

/// HTLCs of the daemon's that have come: id, amount, expiry.
fn received_by(facts: &[Fact]) -> impl Iterator<Item = (HtlcId, Msat, CltvExpiry)> + '_ {
    facts.iter().filter_map(|fact| match fact {
        Fact::HtlcReceived { id, amount, cltv_expiry, .. } => Some((*id, *amount, *cltv_expiry)),
        _ => None,
    })
}

fn received(scene: &Scene) -> Vec<(HtlcId, Msat, CltvExpiry)> {
    received_by(scene.peer.facts()).collect()
}

fn random_preimage() -> Preimage {
    Preimage::new(random_secret().secret_bytes())
}

fn funding_output(funding: Option<&(ScriptBuf, Sat)>) -> Option<TxOut> {
    funding.map(|(script_pubkey, amount)| TxOut { value: amount.to_amount(), script_pubkey: script_pubkey.clone() })
}
