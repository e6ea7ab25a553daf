//! Whether everybody got what the rules give: each output by who spent it, each payment by what its payer and its payee are
//! told, the wallet to the satoshi.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Transaction, Txid};
use millrace_rpc::v1::{
    ChannelState, CloseKind, Cursor, GetPaymentRequest, InvoiceStatus, ListTransactionsRequest, ListUtxosRequest,
    PaymentStatus, SubscribeRequest, WalletTransaction, event,
};
use millrace_wire::Sat;

use super::batch::Batch;
use super::cell::{Form, Stands};
use super::output::{Part, Role};
use super::rules::{self, End, Owner};
use super::scene::Scene;
use super::setup::PUSHED;
use crate::network::{Error, wait_for, whole_page};

/// What a transaction of the daemon's may pay, in sat per 1000 weight: on regtest nothing can be estimated, and the stated
/// fallback of 1,000 stands in for every estimate; close to a deadline three times the next block's comes on top.
const FEERATE_MAX: u64 = 4 * 1_000;
/// What is decided on chain is told by then.
const TOLD: Duration = Duration::from_secs(20);

/// Lines of the daemon's log that a failure shows.
const LOG_LINES_MAX: usize = 6;

/// What a cell came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// What the rules give to the daemon of the commitment's outputs.
    pub(super) due_sat: u64,
    /// What its claims have cost.
    pub(super) fees_sat: u64,
    /// What they may have cost.
    pub(super) fees_sat_max: u64,
}

impl Batch {
    /// Holds every scene against the rules. Everything is buried at the end of it.
    pub(super) async fn judge(&mut self) -> Result<Vec<Sums>, Error> {
        let height = self.height()?;
        let mut sums = Vec::new();
        let shares = Shares::of(&self.scenes);
        for scene in &mut self.scenes {
            sums.push(judge_outputs(scene, height, &shares, &self.txs, &self.fees));
        }
        self.judge_payments(height).await?;
        self.judge_forwards(height).await?;
        self.network.mine(100).await?;
        self.judge_channels(height).await?;
        self.judge_events(height + 100).await?;
        self.judge_wallet(height + 100).await?;
        self.judge_coins(height + 100).await?;
        Ok(sums)
    }

    /// What the daemon's wallet has besides what the blocks explain, in sat: 0, or something is wrong with all of them.
    pub(super) async fn unexplained_sat(&self) -> Result<i128, Error> {
        let balance = self.network.balance(0).await?;
        let shares = Shares::of(&self.scenes);
        let mut expected = i128::from(self.given_sat);
        for txid in &shares.ours {
            expected -= i128::from(self.fees.get(txid).copied().unwrap_or_default());
        }
        for scene in &self.scenes {
            let values = values(scene);
            for (outpoint, spend) in scene.spends.iter().filter(|(_, spend)| !spend.is_by_peer) {
                expected += i128::from(values.get(outpoint).copied().unwrap_or_default());
                expected -= i128::from(spend.second.map_or(0, |(_, sat)| sat));
            }
        }
        Ok(i128::from(balance.confirmed_sat) - expected)
    }

    /// What the wallet still waits for, 100 blocks after everything: nothing may be.
    async fn judge_wallet(&mut self, height: u32) -> Result<(), Error> {
        // The mempool is looked at every two seconds, and what is missing twice is gone.
        let settled = wait_for("a wallet that waits for nothing", TOLD, async || {
            let left = self.awaited().await?.len();
            Ok(if left == 0 { Ok(()) } else { Err(format!("it waits for {left} transactions")) })
        });
        match settled.await {
            Ok(()) | Err(Error::Late { .. }) => {}
            Err(error) => return Err(error),
        }
        for tx in self.awaited().await? {
            let mut id: [u8; 32] = tx.txid.try_into().unwrap_or_default();
            id.reverse();
            let txid = Txid::from_byte_array(id);
            let inputs: Vec<Txid> = self
                .seen(&txid)
                .map_or_else(Vec::new, |tx| tx.input.iter().map(|input| input.previous_output.txid).collect());
            let said = self.logged(&txid.to_string());
            let what =
                format!("the wallet still waits for {txid}, {} sat, which can never be mined{said}", tx.received_sat);
            let of_it = self.scenes.iter_mut().filter(|scene| inputs.iter().any(|parent| scene.is_gone(parent)));
            let mut is_told = false;
            for scene in of_it {
                is_told = true;
                scene.fail(height, format!("{what}: it spends a commitment that a reorg took out"));
            }
            if !is_told {
                self.scenes.iter_mut().for_each(|scene| scene.fail(height, what.clone()));
            }
        }
        Ok(())
    }

    /// What is unconfirmed by the wallet's word.
    async fn awaited(&self) -> Result<Vec<WalletTransaction>, Error> {
        let request = ListTransactionsRequest { page: Some(whole_page()) };
        let answer = self.daemon().client()?.wallet.list_transactions(request).await;
        let told = answer.map_err(|status| self.daemon().call_failed(&status))?.into_inner().transactions;
        Ok(told.into_iter().filter(|tx| tx.height.is_none()).collect())
    }

    /// Coins of the daemon's that no block has spent and its wallet does not have: stuck, and where the reserve is, dangerous.
    async fn judge_coins(&mut self, height: u32) -> Result<(), Error> {
        let request = ListUtxosRequest { page: Some(whole_page()) };
        let answer = self.daemon().client()?.wallet.list_utxos(request).await;
        let utxos = answer.map_err(|status| self.daemon().call_failed(&status))?.into_inner().utxos;
        let told = utxos.into_iter().filter_map(|utxo| utxo.outpoint);
        let told: HashSet<(String, u32)> = told.map(|outpoint| (hex::encode(&outpoint.txid), outpoint.vout)).collect();
        for coin in self.given.clone() {
            if told.contains(&(coin.txid.to_string(), coin.vout)) || !self.is_unspent(&coin)? {
                continue;
            }
            let spenders = self.spenders(&coin);
            let what =
                format!("coin {coin} is unspent, and the wallet does not have it; it was to be spent by {spenders:?}");
            let parents: Vec<Txid> = spenders.iter().filter_map(|txid| self.seen(txid)).flat_map(parents_of).collect();
            let mut is_told = false;
            for scene in &mut self.scenes {
                if parents.iter().any(|parent| scene.is_gone(parent)) {
                    is_told = true;
                    scene.fail(height, what.clone());
                }
            }
            if !is_told {
                self.scenes.iter_mut().for_each(|scene| scene.fail(height, what.clone()));
            }
        }
        Ok(())
    }

    /// What the daemon's log says of something, shortened.
    fn logged(&self, word: &str) -> String {
        let log = std::fs::read_to_string(self.daemon().log_path()).unwrap_or_default();
        let lines = log.lines().filter(|line| line.contains(word)).take(LOG_LINES_MAX);
        lines.map(|line| format!("\n      log: {line}")).collect()
    }

    fn is_unspent(&self, coin: &OutPoint) -> Result<bool, Error> {
        let ask = serde_json::json!([coin.txid.to_string(), coin.vout, false]);
        let told = tokio::task::block_in_place(|| self.network.bitcoind.call("gettxout", &ask))?;
        Ok(!told.is_null())
    }

    async fn judge_payments(&mut self, height: u32) -> Result<(), Error> {
        for index in 0..self.scenes.len() {
            if self.scenes[index].standing.is_none() {
                continue;
            }
            let own: Vec<_> = self.scenes[index].of_direction(true).filter(|htlc| !htlc.is_forward).cloned().collect();
            for htlc in own {
                let wanted = match self.scenes[index].offered_end(htlc.part) {
                    End::Paid => PaymentStatus::Succeeded,
                    End::Failed => PaymentStatus::Failed,
                };
                let told = wait_for("a payment's end", TOLD, async || {
                    let request = GetPaymentRequest { payment_hash: htlc.payment_hash.0.to_vec() };
                    let answer = self.daemon().client()?.payments.get(request).await;
                    let payment = answer.map_err(|status| self.daemon().call_failed(&status))?.into_inner().payment;
                    let payment = payment.unwrap_or_default();
                    let is_proven =
                        payment.status() != PaymentStatus::Succeeded || payment.preimage == htlc.preimage.as_bytes();
                    let is_right = payment.status() == wanted && is_proven;
                    Ok(if is_right { Ok(()) } else { Err(format!("{:?} where {wanted:?} is due", payment.status())) })
                })
                .await;
                if let Err(error) = told {
                    self.scenes[index].fail(height, error.to_string());
                }
            }
            self.judge_invoice(index, height).await?;
        }
        Ok(())
    }

    async fn judge_invoice(&mut self, index: usize, height: u32) -> Result<(), Error> {
        let received: Vec<_> = self.scenes[index].of_direction(false).cloned().collect();
        for htlc in received {
            let Some(status) = self.invoice_status(htlc.payment_hash).await? else { continue };
            let end = rules::received_end(&self.scenes[index].cell, htlc.part);
            if (status == InvoiceStatus::Paid) != (end == End::Paid) {
                self.scenes[index].fail(height, format!("an invoice is {status:?} where {end:?} is due"));
            }
        }
        Ok(())
    }

    /// Each payment of the daemon's own has ended once in all of its history, whatever was restarted meanwhile; each invoice
    /// was paid once or never.
    async fn judge_events(&mut self, height: u32) -> Result<(), Error> {
        let mut ends: HashMap<Vec<u8>, Vec<End>> = HashMap::new();
        let request = SubscribeRequest { from_cursor: Some(Cursor::default()), stop_at_tip: true };
        let answer = self.daemon().client()?.events.subscribe(request).await;
        let mut events = answer.map_err(|status| self.daemon().call_failed(&status))?.into_inner();
        while let Some(told) = events.message().await.map_err(|status| self.daemon().call_failed(&status))? {
            let (payment_hash, end) = match told.event {
                Some(event::Event::PaymentSucceeded(paid)) => (paid.payment_hash, End::Paid),
                Some(event::Event::PaymentFailed(failed)) => (failed.payment_hash, End::Failed),
                Some(event::Event::InvoicePaid(paid)) => (paid.payment_hash, End::Paid),
                _ => continue,
            };
            ends.entry(payment_hash).or_default().push(end);
        }
        for scene in self.scenes.iter_mut().filter(|scene| scene.standing.is_some()) {
            let own = scene.of_direction(true).filter(|htlc| !htlc.is_forward);
            let mut due: HashMap<_, _> =
                own.map(|htlc| (htlc.payment_hash, vec![scene.offered_end(htlc.part)])).collect();
            // Several parts of one invoice are paid once.
            for htlc in scene.of_direction(false) {
                let is_paid = rules::received_end(&scene.cell, htlc.part) == End::Paid;
                due.insert(htlc.payment_hash, if is_paid { vec![End::Paid] } else { Vec::new() });
            }
            for (payment_hash, due) in due {
                let found = ends.remove(payment_hash.0.as_slice()).unwrap_or_default();
                if found != due {
                    scene.fail(height, format!("the events of {payment_hash} say {found:?} where {due:?} is due"));
                }
            }
        }
        Ok(())
    }

    /// The payer comes back and hears.
    async fn judge_forwards(&mut self, height: u32) -> Result<(), Error> {
        if self.forwards.is_empty() {
            return Ok(());
        }
        let (address, node_id) = (self.daemon().lightning_address()?, self.daemon_id()?);
        self.payer.peer.connect(&address, &node_id).await?;
        let forwards = self.forwards.clone();
        let left = forwards.len();
        let heard = self.payer.hear_all(&forwards).await;
        for (index, id, payment_hash) in &self.forwards {
            let scene = &mut self.scenes[*index];
            if scene.standing.is_none() {
                continue;
            }
            // Of several with one hash, the first tells for all.
            let part = scene.of_direction(true).find(|htlc| htlc.payment_hash == *payment_hash).map(|htlc| htlc.part);
            let wanted = scene.offered_end(part.unwrap_or(Part::Whole));
            let end = self.payer.end(*id, payment_hash);
            if end != Some(wanted) {
                let why = heard.as_ref().err().map_or_else(String::new, |error| format!(" ({error}; {left} in all)"));
                scene.fail(height, format!("a forward's payer was told {end:?} where {wanted:?} is due{why}"));
            }
        }
        Ok(())
    }

    async fn judge_channels(&mut self, height: u32) -> Result<(), Error> {
        for index in 0..self.scenes.len() {
            let Some(standing) = &self.scenes[index].standing else { continue };
            let wanted = kind_of(standing.stands);
            let id = self.scenes[index].peer.channel()?.id();
            let closed = wait_for("a channel that is closed for good", TOLD, async || {
                let channel = self.network.channel(0, &id.0).await?;
                let kind = channel.closing.as_ref().map(|closing| closing.kind());
                let is_right = channel.state() == ChannelState::Closed && kind == Some(wanted);
                let state = channel.state();
                Ok(if is_right { Ok(()) } else { Err(format!("{state:?}, {kind:?} where {wanted:?} is due")) })
            })
            .await;
            if let Err(error) = closed {
                self.scenes[index].fail(height + 100, error.to_string());
            }
        }
        Ok(())
    }
}

fn parents_of(tx: &Transaction) -> Vec<Txid> {
    tx.input.iter().map(|input| input.previous_output.txid).collect()
}

const fn kind_of(stands: Stands) -> CloseKind {
    match stands {
        Stands::Ours => CloseKind::LocalCommitment,
        Stands::Theirs => CloseKind::RemoteCommitment,
        Stands::TheirNext => CloseKind::RemoteNextCommitment,
        Stands::Revoked => CloseKind::RevokedCommitment,
    }
}

/// Which transactions are the daemon's, and how many outputs of channels each spends.
struct Shares {
    ours: HashSet<Txid>,
    inputs: HashMap<Txid, u64>,
}

impl Shares {
    fn of(scenes: &[Scene]) -> Self {
        let mut shares = Self { ours: HashSet::new(), inputs: HashMap::new() };
        for spend in scenes.iter().flat_map(|scene| scene.spends.values()).filter(|spend| !spend.is_by_peer) {
            shares.ours.insert(spend.txid);
            *shares.inputs.entry(spend.txid).or_default() += 1;
        }
        shares
    }
}

/// What every output that is followed holds.
fn values(scene: &Scene) -> HashMap<OutPoint, u64> {
    let outputs = scene.standing.iter().flat_map(|standing| &standing.outputs);
    let first = outputs.map(|output| (output.outpoint, output.sat));
    first.chain(scene.spends.values().filter_map(|spend| spend.second)).collect()
}

fn judge_outputs(
    scene: &mut Scene,
    height: u32,
    shares: &Shares,
    txs: &HashMap<Txid, Transaction>,
    fees: &HashMap<Txid, u64>,
) -> Sums {
    let Some(standing) = &scene.standing else {
        scene.fail(height, "no commitment of it was ever in a block");
        return Sums::default();
    };
    let mut sums = Sums::default();
    let mut wrong = Vec::new();
    if standing.stands != scene.cell.stands {
        wrong.push(format!("the commitment that stands is {:?}", standing.stands));
    }
    for output in &standing.outputs {
        let (due, (has, sat)) = (rules::owner(&scene.cell, output.role, &scene.htlcs), scene.holder(output));
        if due == Owner::Us {
            sums.due_sat += output.sat;
        }
        let is_whole = sat <= output.sat && output.sat - sat <= htlc_fee_max(scene.cell.form);
        if due != Owner::Anyone && (has != due || (due == Owner::Us && !is_whole)) {
            let what = scene.name(output.role);
            wrong.push(format!("{what}: {} sat are {due:?}'s by the rules, and {has:?} has {sat} sat", output.sat));
        }
    }
    if let Some(why) = wrong_balance(scene) {
        wrong.push(why);
    }
    for spend in scene.spends.values().filter(|spend| !spend.is_by_peer) {
        let inputs = shares.inputs.get(&spend.txid).copied().unwrap_or(1).max(1);
        let fee = fees.get(&spend.txid).copied().unwrap_or_default();
        let mut weight = txs.get(&spend.txid).map_or(0, |tx| tx.weight().to_wu());
        if spend.height == standing.height {
            // A child in the block of its commitment pays for both.
            weight += txs.get(&standing.txid).map_or(0, |tx| tx.weight().to_wu());
        }
        let most = (weight * FEERATE_MAX).div_ceil(1000);
        if fee > most {
            wrong.push(format!("{} pays {fee} sat for {weight} weight, {most} at most", spend.txid));
        }
        sums.fees_sat += fee.div_ceil(inputs);
        sums.fees_sat_max += most.div_ceil(inputs);
    }
    for what in wrong {
        scene.fail(height, what);
    }
    sums
}

/// What an HTLC transaction may pay out of its HTLC: nothing with anchors, and 703 weight at 1,200 sat per 1000 without.
const fn htlc_fee_max(form: Form) -> u64 {
    match form {
        Form::Anchors => 0,
        Form::Static => 844,
    }
}

/// The daemon's balance in the commitment that stands is what was pushed, less what it offered in it, and what had been
/// settled before; and every HTLC that is to be in it has an output, and no other.
fn wrong_balance(scene: &Scene) -> Option<String> {
    let standing = scene.standing.as_ref()?;
    let stands = standing.stands;
    let has_output = |index: usize| standing.outputs.iter().any(|output| output.role == Role::Htlc(index));
    let mut wrong = (0..).zip(&scene.htlcs).filter(|(index, htlc)| has_output(*index) != rules::is_in(htlc, stands));
    if let Some((index, htlc)) = wrong.next() {
        let is_there = if has_output(index) { "has an output" } else { "has no output" };
        return Some(format!("HTLC {index} ({:?}) {is_there} in it", htlc.part));
    }
    let (more, less) = scene
        .htlcs
        .iter()
        .map(|htlc| rules::more_and_less(htlc, stands))
        .fold((PUSHED.0, 0), |(more, less), of_htlc| (more + of_htlc.0, less + of_htlc.1));
    let expected = Sat(more).checked_sub(Sat(less))?;
    let main = standing.outputs.iter().find(|output| output.role == Role::OurMain);
    let found = Sat(main.map_or(0, |output| output.sat));
    (found != expected).then(|| format!("our balance in it is {found}, and {expected} were ours"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::matrix::cell::{Cell, Known};
    use crate::matrix::output::Htlc;
    use millrace_wire::{CltvExpiry, HtlcId, Preimage};

    fn htlc(is_offered: bool) -> Htlc {
        let preimage = Preimage::new([7; 32]);
        Htlc {
            is_offered,
            sat: 1,
            payment_hash: preimage.hash(),
            preimage,
            cltv_expiry: CltvExpiry(9),
            id: HtlcId(0),
            is_forward: false,
            part: Part::Whole,
        }
    }

    /// BOLT 5 in a table: who has what we offered, and what we received.
    #[test]
    fn the_rules_by_commitment_preimage_and_conduct() {
        for (name, offered, received) in [
            ("ours/both/early/claims/no-reorg", Owner::Peer, Owner::Us),
            ("ours/both/never/claims/no-reorg", Owner::Us, Owner::Peer),
            ("theirs/both/late/silent/no-reorg", Owner::Us, Owner::Us),
            ("theirs/both/never/silent/no-reorg", Owner::Us, Owner::Nobody),
            ("their-next/both/late/aggregates/swap", Owner::Peer, Owner::Us),
            ("revoked/both/early/aggregates/swap", Owner::Us, Owner::Us),
            ("revoked/both/never/silent/no-reorg", Owner::Us, Owner::Us),
        ] {
            let cell: Cell = name.parse().unwrap();
            let htlcs = [htlc(true), htlc(false)];
            let found = [Role::Htlc(0), Role::Htlc(1)].map(|role| rules::owner(&cell, role, &htlcs));
            assert_eq!(found, [offered, received], "{name}");
            assert_eq!(cell.known == Known::Never, rules::received_end(&cell, Part::Whole) == End::Failed);
        }
    }

    /// What is half done, and what is too small, by the commitment that stands: whether it has an output, and what of it is in
    /// the daemon's balance.
    #[test]
    fn the_rules_for_what_is_half_done() {
        let stands = [Stands::Ours, Stands::Theirs, Stands::TheirNext, Stands::Revoked];
        let nowhere = [(false, 0, 1); 4];
        for (part, is_offered, due) in [
            (Part::Whole, true, [(true, 0, 1); 4]),
            (Part::Whole, false, [(true, 0, 0); 4]),
            (Part::Trimmed, true, nowhere),
            (Part::HalfAdded, true, [(false, 0, 0), (false, 0, 0), (true, 0, 1), (false, 0, 0)]),
            (Part::HalfFulfilled, true, [(false, 0, 1), (true, 0, 1), (false, 0, 1), (true, 0, 1)]),
            (Part::HalfFailed, true, [(false, 0, 0), (true, 0, 1), (false, 0, 0), (true, 0, 1)]),
            (Part::HalfSettled, false, [(true, 0, 0), (true, 0, 0), (false, 1, 0), (true, 0, 0)]),
        ] {
            let htlc = Htlc { part, ..htlc(is_offered) };
            let found = stands.map(|stands| {
                let (more, less) = rules::more_and_less(&htlc, stands);
                (rules::is_in(&htlc, stands), more, less)
            });
            assert_eq!(found, due, "{part:?}");
        }
    }

    #[test]
    fn the_end_of_what_is_half_done_or_too_small() {
        let cell = |name: &str| name.parse::<Cell>().unwrap();
        for (name, part, is_taken, end) in [
            ("theirs/offered/early/claims/no-reorg", Part::Trimmed, false, End::Failed),
            ("revoked/offered/early/claims/no-reorg", Part::Trimmed, false, End::Paid),
            ("revoked/offered/late/claims/no-reorg", Part::Trimmed, true, End::Failed),
            ("theirs/offered/early/silent/swap", Part::HalfFulfilled, false, End::Paid),
            ("their-next/offered/never/claims/swap", Part::HalfFailed, false, End::Failed),
            ("their-next/offered/late/claims/swap", Part::HalfAdded, true, End::Failed),
            ("revoked/offered/late/claims/swap", Part::Whole, true, End::Paid),
            ("revoked/offered/late/claims/swap", Part::Whole, false, End::Failed),
        ] {
            assert_eq!(rules::offered_end(&cell(name), part, is_taken), end, "{name} {part:?}");
        }
        let added = Htlc { part: Part::HalfAdded, ..htlc(true) };
        let next = cell("their-next/offered/late/claims/swap");
        assert_eq!(rules::owner(&next, Role::Htlc(0), std::slice::from_ref(&added)), Owner::Us);
    }
}
