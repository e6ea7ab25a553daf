//! The transactions that the wallet makes: payments, funding, replacements, and fees for others.
//!
//! None is broadcast here. Its coins are locked until [`Wallet::mark_broadcast`], [`Wallet::release`], or a block that
//! spends them.

use bdk_wallet::KeychainKind;
use bitcoin::address::NetworkUnchecked;
use bitcoin::transaction::Version;
use bitcoin::{Address, OutPoint, ScriptBuf, Transaction, TxOut, Txid, absolute};
use millrace_wire::{FeeratePerKw, Sat};

use super::codec::TxKind;
use super::coin::{Coin, InputToAdd, Reach};
use super::compose::{Draft, Plan, check_dust, check_feerate};
use super::error::WalletError;
use super::ledger::Wallet;
use super::reserve::{self, PIECES_MAX};
use crate::keys::{Account, Branch};

/// How much to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// So much arrives; the fee comes on top.
    Exactly(Sat),
    /// Everything but the reserve; the fee comes out of it.
    All,
}

/// A transaction that the wallet made, its own inputs signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// The transaction.
    pub tx: Transaction,
    /// What the miners get of it.
    pub fee: Sat,
    /// The output that it was made for; 0 if it has none but change.
    pub vout: u32,
    /// That output's amount.
    pub amount: Sat,
}

/// A child that pays for its parent's confirmation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cpfp {
    /// The transaction to get confirmed.
    pub parent: Transaction,
    /// What the parent pays itself.
    pub parent_fee: Sat,
    /// The parent's output that the child spends. Its witness is left empty.
    pub anchor: InputToAdd,
    /// What both together shall pay.
    pub feerate: FeeratePerKw,
    /// A child made before, which this one replaces.
    pub replaces: Option<Txid>,
}

/// A transaction that brings no fee along and gets one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachFee {
    /// The transaction. Its inputs and outputs keep their indexes; the wallet's come after them.
    pub tx: Transaction,
    /// What its inputs are, in their order. Their witnesses are left empty: they can only be signed when it is complete.
    pub inputs: Vec<InputToAdd>,
    /// What it shall pay.
    pub feerate: FeeratePerKw,
    /// A transaction made before from the same inputs, which this one replaces.
    pub replaces: Option<Txid>,
}

/// A transaction that is to be replaced.
struct Replaced {
    txid: Txid,
    tx: Transaction,
    coins: Vec<Coin>,
    fee: Sat,
}

impl Wallet {
    /// Sends coins to an address of this network.
    ///
    /// # Errors
    /// [`WalletError`].
    pub fn send(&mut self, address: &str, amount: Amount, feerate: FeeratePerKw) -> Result<Made, WalletError> {
        let script = self.parse_address(address)?;
        match amount {
            Amount::Exactly(amount) => {
                let output = TxOut { value: amount.to_amount(), script_pubkey: script };
                self.pay(Some(output), feerate, self.anchor_channels)
            }
            Amount::All => self.send_all(script, feerate),
        }
    }

    /// Makes a channel's funding transaction. The channel counts for the reserve if it has anchors.
    ///
    /// # Errors
    /// [`WalletError`].
    pub fn fund_channel(
        &mut self,
        script: ScriptBuf,
        amount: Sat,
        feerate: FeeratePerKw,
        has_anchors: bool,
    ) -> Result<Made, WalletError> {
        let channels = self.anchor_channels.saturating_add(u32::from(has_anchors));
        self.pay(Some(TxOut { value: amount.to_amount(), script_pubkey: script }), feerate, channels)
    }

    /// Divides coins, so that each of the channels, and of so many more, has one of its own: where
    /// [`WalletError::ReserveCoins`] says that there are too few. To be broadcast and marked as a withdrawal.
    ///
    /// # Errors
    /// [`WalletError`].
    pub fn divide(&mut self, more: u32, feerate: FeeratePerKw) -> Result<Made, WalletError> {
        self.pay(None, feerate, self.anchor_channels.saturating_add(more))
    }

    /// Makes a withdrawal again with a higher fee (BIP 125). What it pays others stays as it is. To be
    /// broadcast and marked as the one before.
    ///
    /// # Errors
    /// [`WalletError`]; a transaction that anything else rests on is not replaced.
    pub fn bump_fee(&mut self, txid: &Txid, feerate: FeeratePerKw) -> Result<Made, WalletError> {
        check_feerate(feerate)?;
        let replaced = self.replaced(txid)?;
        self.check_replaceable(&replaced, feerate)?;
        let is_change = |output: &TxOut| {
            matches!(self.taproot.derivation_of_spk(output.script_pubkey.clone()), Some((KeychainKind::Internal, _)))
        };
        let (mut change, mut outputs): (Vec<TxOut>, Vec<TxOut>) =
            replaced.tx.output.iter().cloned().partition(is_change);
        let paid = outputs.first().cloned();
        // The largest pays the new fee; the others are coins of the reserve.
        change.sort_by_key(|output| output.value);
        let branch = if change.is_empty() { Some(Branch::Change) } else { None };
        let change_script = match change.pop() {
            Some(output) => output.script_pubkey,
            None => self.next_script(Branch::Change, 0),
        };
        let pieces: Vec<Sat> = change.iter().map(|output| Sat::from(output.value)).collect();
        outputs.extend(change);
        let plan = Plan {
            foreign: Vec::new(),
            outputs,
            required: replaced.coins.clone(),
            optional: self.coins_within(Reach::Confirmed),
            change_script,
            needs_change: false,
            feerate,
            parent: None,
            replaced_fee: Some(replaced.fee),
            version: Version::TWO,
            lock_time: self.lock_time(),
            shuffles: true,
        };
        let draft = plan.compose()?;
        reserve::check(&self.reserve_policy, self.anchor_channels, &self.left_after(&draft, &pieces, Some(*txid)))?;
        Ok(self.finish(draft, branch, paid.as_ref(), 0))
    }

    /// Makes a child that pays for its parent by an anchor. May use the reserve: that is what it is for.
    ///
    /// # Errors
    /// [`WalletError`].
    pub fn cpfp(&mut self, request: &Cpfp) -> Result<Made, WalletError> {
        let outpoint = request.anchor.outpoint;
        if outpoint.txid != request.parent.compute_txid() {
            return Err(WalletError::Input { outpoint, reason: "is not an output of the parent" });
        }
        let replaced = request.replaces.map(|txid| self.replaced(&txid)).transpose()?;
        let draft = self.compose_from_anywhere(replaced.as_ref(), |optional, change_script, replaced_fee| Plan {
            foreign: vec![request.anchor.clone()],
            outputs: Vec::new(),
            required: Vec::new(),
            optional,
            change_script,
            needs_change: true,
            feerate: request.feerate,
            parent: Some((request.parent.weight(), request.parent_fee)),
            replaced_fee,
            version: Version::TWO,
            lock_time: absolute::LockTime::ZERO,
            shuffles: false,
        })?;
        Ok(self.finish(draft, Some(Branch::Receive), None, 0))
    }

    /// Adds inputs and change to a transaction that pays no fee, such as HTLC transactions with anchors. May use
    /// the reserve.
    ///
    /// # Errors
    /// [`WalletError`].
    pub fn attach_fee(&mut self, request: &AttachFee) -> Result<Made, WalletError> {
        check_inputs(&request.tx, &request.inputs)?;
        let replaced = request.replaces.map(|txid| self.replaced(&txid)).transpose()?;
        let draft = self.compose_from_anywhere(replaced.as_ref(), |optional, change_script, replaced_fee| Plan {
            foreign: request.inputs.clone(),
            outputs: request.tx.output.clone(),
            required: Vec::new(),
            optional,
            change_script,
            needs_change: false,
            feerate: request.feerate,
            parent: None,
            replaced_fee,
            version: request.tx.version,
            lock_time: request.tx.lock_time,
            shuffles: false,
        })?;
        Ok(self.finish(draft, Some(Branch::Receive), request.tx.output.first(), 0))
    }

    fn parse_address(&self, text: &str) -> Result<ScriptBuf, WalletError> {
        let wrong = |reason: String| WalletError::Address { address: text.to_owned(), reason };
        let address: Address<NetworkUnchecked> =
            text.trim().parse().map_err(|error: bitcoin::address::ParseError| wrong(error.to_string()))?;
        let network = self.keys.network();
        let address = address
            .require_network(network)
            .map_err(|_| WalletError::WrongNetwork { address: text.to_owned(), network })?;
        Ok(address.script_pubkey())
    }

    /// One output, if any, and change that leaves the reserve of so many channels untouched, in as many coins.
    fn pay(&mut self, output: Option<TxOut>, feerate: FeeratePerKw, channels: u32) -> Result<Made, WalletError> {
        output.iter().try_for_each(check_dust)?;
        let (mut pieces, mut lacking) = (u32::from(output.is_none()), None);
        // Ends: there are more pieces each time, and as many as coins that are to stay are always enough.
        loop {
            let draft = match (self.draft(output.as_ref(), feerate, pieces), lacking) {
                (Err(WalletError::InsufficientFunds { .. }), Some(lacking)) => return Err(lacking),
                (drafted, _) => drafted?,
            };
            let made = vec![self.reserve_policy.per_channel; pieces as usize];
            match reserve::check(&self.reserve_policy, channels, &self.left_after(&draft, &made, None)) {
                Ok(()) => return Ok(self.finish(draft, Some(Branch::Change), output.as_ref(), pieces)),
                Err(WalletError::ReserveCoins { coins, left, each }) if pieces + (coins - left) <= PIECES_MAX => {
                    pieces += coins - left;
                    lacking = Some(WalletError::ReserveCoins { coins, left, each });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A payment that also makes so many coins for the reserve.
    fn draft(&self, output: Option<&TxOut>, feerate: FeeratePerKw, pieces: u32) -> Result<Draft, WalletError> {
        let plan = |optional| Plan {
            foreign: Vec::new(),
            outputs: output.cloned().into_iter().chain(self.pieces(pieces)).collect(),
            required: Vec::new(),
            optional,
            change_script: self.next_script(Branch::Change, pieces),
            needs_change: false,
            feerate,
            parent: None,
            replaced_fee: None,
            version: Version::TWO,
            lock_time: self.lock_time(),
            shuffles: true,
        };
        nearest(&[Reach::Confirmed, Reach::OwnChange], |reach| plan(self.coins_within(reach)).compose())
    }

    /// So many coins for the reserve, each to an address of its own.
    fn pieces(&self, count: u32) -> impl Iterator<Item = TxOut> + '_ {
        let value = self.reserve_policy.per_channel.to_amount();
        (0..count).map(move |at| TxOut { value, script_pubkey: self.next_script(Branch::Change, at) })
    }

    fn send_all(&mut self, script: ScriptBuf, feerate: FeeratePerKw) -> Result<Made, WalletError> {
        let is_worth_it = |coin: &Coin| coin.value() > feerate.fee_ceil(coin.weight());
        let coins: Vec<Coin> = self.coins_within(Reach::OwnChange).into_iter().filter(is_worth_it).collect();
        let output = TxOut { value: bitcoin::Amount::ZERO, script_pubkey: script.clone() };
        // The last of them is the change.
        let count = self.reserve_policy.coins(self.anchor_channels);
        let pieces = count.saturating_sub(1);
        if pieces > PIECES_MAX {
            return Err(WalletError::ReserveCoins {
                coins: count,
                left: PIECES_MAX,
                each: self.reserve_policy.per_channel,
            });
        }
        let made = self.reserve_policy.of(pieces);
        let plan = Plan {
            foreign: Vec::new(),
            outputs: std::iter::once(output).chain(self.pieces(pieces)).collect(),
            required: coins,
            optional: Vec::new(),
            change_script: self.next_script(Branch::Change, pieces),
            needs_change: false,
            feerate,
            parent: None,
            replaced_fee: None,
            version: Version::TWO,
            lock_time: self.lock_time(),
            shuffles: true,
        };
        let draft = plan.compose_all(self.reserve().saturating_sub(made))?;
        let paid = draft.tx.output.iter().find(|output| output.script_pubkey == script).cloned();
        Ok(self.finish(draft, Some(Branch::Change), paid.as_ref(), pieces))
    }

    /// From confirmed coins if they do, else from our change too, else from whatever there is: it is urgent.
    fn compose_from_anywhere(
        &self,
        replaced: Option<&Replaced>,
        plan: impl Fn(Vec<Coin>, ScriptBuf, Option<Sat>) -> Plan,
    ) -> Result<Draft, WalletError> {
        let change_script = self.next_script(Branch::Receive, 0);
        nearest(&[Reach::Confirmed, Reach::OwnChange, Reach::Anything], |reach| {
            let mut coins = self.coins_within(reach);
            if let Some(replaced) = replaced {
                // What it created goes with it; what it spent comes back.
                coins.retain(|coin| coin.outpoint.txid != replaced.txid);
                coins.extend(replaced.coins.iter().cloned());
            }
            plan(coins, change_script.clone(), replaced.map(|replaced| replaced.fee)).compose()
        })
    }

    /// The coins that could be spent after this transaction, its own among them: `pieces` and change. What `instead_of`
    /// made is gone then.
    fn left_after(&self, draft: &Draft, pieces: &[Sat], instead_of: Option<Txid>) -> Vec<Sat> {
        let spent: Vec<OutPoint> = draft.coins.iter().map(|coin| coin.outpoint).collect();
        let stays = |coin: &&Coin| !spent.contains(&coin.outpoint) && Some(coin.outpoint.txid) != instead_of;
        let rest = self.coins_within(Reach::OwnChange);
        let rest = rest.iter().filter(stays).map(Coin::value);
        rest.chain(pieces.iter().copied()).chain(draft.change).collect()
    }

    /// Anti fee sniping: a transaction is for the next block, not for one that somebody mines again.
    fn lock_time(&self) -> absolute::LockTime {
        absolute::LockTime::from_height(self.height()).unwrap_or(absolute::LockTime::ZERO)
    }

    /// The script that the next fresh address of the taproot account will have, but for so many before it.
    fn next_script(&self, branch: Branch, before: u32) -> ScriptBuf {
        let keychain = keychain(branch);
        let index = self.taproot.next_derivation_index(keychain) + before;
        self.taproot.peek_address(keychain, index).address.script_pubkey()
    }

    /// Signs, takes the addresses of `pieces` and change if they were used, and locks the coins.
    fn finish(&mut self, draft: Draft, fresh_change: Option<Branch>, paid: Option<&TxOut>, pieces: u32) -> Made {
        let is_segwit = |output: &TxOut| output.script_pubkey.is_witness_program();
        assert!(draft.prevouts.iter().all(is_segwit), "an input that is not segwit could change the transaction's id");
        for _ in 0..pieces {
            self.taproot.reveal_next_address(KeychainKind::Internal);
        }
        if let (Some(branch), Some(_)) = (fresh_change, draft.change) {
            self.taproot.reveal_next_address(keychain(branch));
        }
        let (fee, prevouts) = (draft.fee, draft.prevouts.clone());
        let (tx, draft) = draft.sign(&self.keys);
        let txid = tx.compute_txid();
        self.locks.extend(draft.coins.iter().map(|coin| (coin.outpoint, txid)));
        let outpoints = tx.input.iter().map(|input| input.previous_output);
        self.drafts.insert(txid, outpoints.zip(prevouts).collect());
        self.stage();
        let vout = paid.and_then(|paid| tx.output.iter().position(|output| output == paid)).unwrap_or(0);
        let amount = tx.output.get(vout).map_or(Sat::ZERO, |output| Sat::from(output.value));
        Made { fee, vout: u32::try_from(vout).expect("outputs are counted in 32 bits"), amount, tx }
    }

    /// An unconfirmed transaction of the wallet, its coins and its fee.
    fn replaced(&self, txid: &Txid) -> Result<Replaced, WalletError> {
        let refusal = |reason: &str| WalletError::NotReplaceable { txid: *txid, reason: reason.to_owned() };
        let known = self.taproot.get_tx(*txid).or_else(|| self.segwit.get_tx(*txid));
        let known = known.ok_or(WalletError::UnknownTransaction(*txid))?;
        if known.chain_position.is_confirmed() {
            return Err(refusal("it is confirmed"));
        }
        let tx = known.tx_node.tx.as_ref().clone();
        let spent: Option<Vec<TxOut>> = tx.input.iter().map(|input| self.prevout(&input.previous_output)).collect();
        let spent = spent.ok_or_else(|| refusal("not all of its inputs are known"))?;
        let value_in: Sat = spent.iter().map(|output| Sat::from(output.value)).sum();
        let value_out: Sat = tx.output.iter().map(|output| Sat::from(output.value)).sum();
        let outpoints = tx.input.iter().map(|input| input.previous_output);
        let coins = outpoints.zip(spent).filter_map(|(outpoint, output)| self.spent_coin(outpoint, output)).collect();
        Ok(Replaced { txid: *txid, fee: value_in.saturating_sub(value_out), coins, tx })
    }

    /// A coin of the wallet, although it is spent.
    fn spent_coin(&self, outpoint: OutPoint, output: TxOut) -> Option<Coin> {
        [Account::Taproot, Account::Segwit].into_iter().find_map(|account| {
            let (keychain, index) = self.account(account).derivation_of_spk(output.script_pubkey.clone())?;
            let branch = match keychain {
                KeychainKind::External => Branch::Receive,
                KeychainKind::Internal => Branch::Change,
            };
            let output = output.clone();
            Some(Coin { outpoint, output, account, branch, index, height: None, is_immature: false, is_locked: false })
        })
    }

    fn check_replaceable(&self, replaced: &Replaced, feerate: FeeratePerKw) -> Result<(), WalletError> {
        let txid = replaced.txid;
        let refusal = |reason: String| Err(WalletError::NotReplaceable { txid, reason });
        // Another id for the funding transaction of a channel would lose the channel's coins.
        match self.recorded.labels.get(&txid).map(|label| label.kind) {
            Some(TxKind::Withdrawal) => {}
            Some(kind) => return refusal(format!("it is not a withdrawal ({kind:?})")),
            None => return refusal("it was not made by this node".to_owned()),
        }
        let spends_it = |tx: &Transaction| tx.input.iter().any(|input| input.previous_output.txid == txid);
        let child = [&self.taproot, &self.segwit]
            .into_iter()
            .flat_map(|account| account.transactions())
            .find(|tx| spends_it(&tx.tx_node.tx));
        if let Some(child) = child {
            return refusal(format!("transaction {} spends its change", child.tx_node.txid));
        }
        if let Some((_, owner)) = self.locks.iter().find(|(outpoint, _)| outpoint.txid == txid) {
            return refusal(format!("its change is promised to transaction {owner}"));
        }
        let paid = replaced.fee.0.saturating_mul(1000) / replaced.tx.weight().to_wu();
        if u64::from(feerate.0) <= paid {
            return refusal(format!("it pays {paid} sat/kw, and {feerate} is not more"));
        }
        Ok(())
    }
}

const fn keychain(branch: Branch) -> KeychainKind {
    match branch {
        Branch::Receive => KeychainKind::External,
        Branch::Change => KeychainKind::Internal,
    }
}

/// The first reach from which there are enough coins; else what the last one says.
fn nearest(reaches: &[Reach], compose: impl Fn(Reach) -> Result<Draft, WalletError>) -> Result<Draft, WalletError> {
    let (last, before) = reaches.split_last().expect("there is a reach to try");
    for reach in before {
        match compose(*reach) {
            Err(WalletError::InsufficientFunds { .. }) => {}
            decided => return decided,
        }
    }
    compose(*last)
}

fn check_inputs(tx: &Transaction, inputs: &[InputToAdd]) -> Result<(), WalletError> {
    let refusal = |outpoint: OutPoint, reason| Err(WalletError::Input { outpoint, reason });
    for (index, input) in tx.input.iter().enumerate() {
        let described = inputs.get(index);
        if described.map(|described| (described.outpoint, described.sequence))
            != Some((input.previous_output, input.sequence))
        {
            return refusal(input.previous_output, "is not described at its place");
        }
    }
    if let Some(extra) = inputs.get(tx.input.len()) {
        return refusal(extra.outpoint, "is not an input of the transaction");
    }
    let value_in: Sat = inputs.iter().map(|input| Sat::from(input.output.value)).sum();
    let value_out: Sat = tx.output.iter().map(|output| Sat::from(output.value)).sum();
    match inputs.first() {
        Some(first) if value_in < value_out => {
            refusal(first.outpoint, "and those beside it hold less than is paid out")
        }
        _ => Ok(()),
    }
}
