//! The model's mempool: who is let in, who has to go, and who is mined, as bitcoind decides it.
//!
//! What is kept of bitcoind's policy: the minimum of the moment, replacement by a higher feerate and a higher fee for all that
//! goes (BIP 125's rules 2, 3 and 4), 25 ancestors and descendants, packages of a child with its parent, with or without
//! replacement. Scripts are not run: a real bitcoind does that in `tests/claims`.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::absolute::LockTime;
use bitcoin::relative;
use bitcoin::{OutPoint, Transaction, TxOut, Txid};

/// Ancestors and descendants of a transaction, itself included.
const CHAIN_MAX: usize = 25;
/// What a replacement pays for itself, in sat per 1000 virtual bytes; also the least that is ever relayed.
pub(super) const INCREMENTAL: u64 = 1_000;

/// What is in no block.
#[derive(Clone, Default)]
pub(super) struct Mempool {
    pub(super) entries: BTreeMap<Txid, Entry>,
    pub(super) spenders: BTreeMap<OutPoint, Txid>,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) tx: Transaction,
    pub(super) fee: u64,
    pub(super) vsize: u64,
}

/// What the chain has, for whoever asks about inputs.
pub(super) struct Chain<'a> {
    pub(super) height: u32,
    pub(super) unspent: &'a BTreeMap<OutPoint, (TxOut, u32)>,
}

/// What a transaction would pay and put out.
pub(super) struct Candidate {
    pub(super) tx: Transaction,
    pub(super) fee: u64,
    pub(super) vsize: u64,
    conflicts: BTreeSet<Txid>,
}

/// bitcoind's words, and its code.
pub(super) type Refusal = (i32, String);

fn refuse<T>(code: i32, reason: impl Into<String>) -> Result<T, Refusal> {
    Err((code, reason.into()))
}

/// Whether so much for so many virtual bytes is less than that rate.
pub(super) const fn is_below(fee: u64, vsize: u64, rate: u64) -> bool {
    fee * 1_000 < rate * vsize
}

impl Entry {
    const fn rate(&self) -> u64 {
        self.fee * 1_000 / self.vsize
    }
}

impl Mempool {
    /// An output that nothing here spends: of the chain, or of a transaction here.
    pub(super) fn output(&self, chain: &Chain<'_>, outpoint: &OutPoint) -> Option<TxOut> {
        if self.spenders.contains_key(outpoint) {
            return None;
        }
        self.created(outpoint).or_else(|| chain.unspent.get(outpoint).map(|(output, _)| output.clone()))
    }

    fn created(&self, outpoint: &OutPoint) -> Option<TxOut> {
        let entry = self.entries.get(&outpoint.txid)?;
        entry.tx.output.get(outpoint.vout as usize).cloned()
    }

    /// Whether the inputs are there and its time has come; `parents` are outputs that would come with it.
    pub(super) fn examine(
        &self,
        chain: &Chain<'_>,
        tx: &Transaction,
        parent: Option<&Transaction>,
    ) -> Result<Candidate, Refusal> {
        let next = chain.height + 1;
        if let LockTime::Blocks(height) = tx.lock_time
            && tx.is_lock_time_enabled()
            && height.to_consensus_u32() >= next
        {
            return refuse(-26, "non-final");
        }
        let (mut value_in, mut conflicts) = (0, BTreeSet::new());
        for input in &tx.input {
            let outpoint = &input.previous_output;
            let of_parent = parent.filter(|parent| parent.compute_txid() == outpoint.txid);
            let of_parent = of_parent.and_then(|parent| parent.output.get(outpoint.vout as usize).cloned());
            let confirmed = chain.unspent.get(outpoint);
            let Some(output) =
                of_parent.or_else(|| self.created(outpoint)).or_else(|| confirmed.map(|(o, _)| o.clone()))
            else {
                return refuse(-25, "bad-txns-inputs-missingorspent");
            };
            if let Some(relative::LockTime::Blocks(blocks)) = input.sequence.to_relative_lock_time()
                && confirmed.map_or(next, |(_, height)| *height) + u32::from(blocks.value()) > next
            {
                return refuse(-26, "non-BIP68-final");
            }
            value_in += output.value.to_sat();
            conflicts.extend(self.spenders.get(outpoint));
        }
        let value_out: u64 = tx.output.iter().map(|output| output.value.to_sat()).sum();
        let Some(fee) = value_in.checked_sub(value_out) else { return refuse(-26, "bad-txns-in-belowout") };
        if tx.output.iter().any(|output| output.value < output.script_pubkey.minimal_non_dust()) {
            return refuse(-26, "dust");
        }
        Ok(Candidate { tx: tx.clone(), fee, vsize: tx.vsize() as u64, conflicts })
    }

    /// Lets a transaction in by itself.
    pub(super) fn accept(&mut self, candidate: Candidate, minimum: u64) -> Result<(), Refusal> {
        let Candidate { fee, vsize, .. } = candidate;
        if is_below(fee, vsize, INCREMENTAL) {
            return refuse(-26, format!("min relay fee not met, {fee} < {}", INCREMENTAL * vsize / 1_000));
        }
        if is_below(fee, vsize, minimum) {
            return refuse(-26, format!("mempool min fee not met, {fee} < {}", minimum * vsize / 1_000));
        }
        self.check_replacement(&candidate.conflicts, fee, vsize, &candidate.tx)?;
        self.check_chain(&candidate.tx)?;
        self.put(candidate);
        Ok(())
    }

    /// Lets a parent and its child in together.
    pub(super) fn accept_package(
        &mut self,
        parent: Candidate,
        child: Candidate,
        minimum: u64,
        may_replace: bool,
    ) -> Result<(), Refusal> {
        let (fee, vsize) = (parent.fee + child.fee, parent.vsize + child.vsize);
        if is_below(fee, vsize, minimum.max(INCREMENTAL)) {
            return refuse(0, format!("mempool min fee not met, {fee} < {}", minimum * vsize / 1_000));
        }
        let conflicts: BTreeSet<Txid> = parent.conflicts.union(&child.conflicts).copied().collect();
        if !conflicts.is_empty() && !may_replace {
            return refuse(0, "bip125-replacement-disallowed");
        }
        let is_unconfirmed = |input: &bitcoin::TxIn| self.entries.contains_key(&input.previous_output.txid);
        if !conflicts.is_empty()
            && (parent.tx.input.iter().any(is_unconfirmed) || child.tx.input.iter().any(is_unconfirmed))
        {
            return refuse(0, "package RBF failed: new transaction cannot have mempool ancestors");
        }
        if fee * parent.vsize <= parent.fee * vsize && !conflicts.is_empty() {
            return refuse(0, "package RBF failed: package feerate is less than or equal to parent feerate");
        }
        self.check_replacement(&conflicts, fee, vsize, &parent.tx)
            .map_err(|(_, reason)| (0, format!("package RBF failed: {reason}")))?;
        self.check_chain(&child.tx)?;
        self.put(parent);
        self.put(child);
        Ok(())
    }

    fn check_replacement(
        &self,
        conflicts: &BTreeSet<Txid>,
        fee: u64,
        vsize: u64,
        tx: &Transaction,
    ) -> Result<(), Refusal> {
        if conflicts.is_empty() {
            return Ok(());
        }
        let replaced = |why: String| refuse(-26, format!("insufficient fee, rejecting replacement; {why}"));
        for txid in conflicts {
            let entry = &self.entries[txid];
            if fee * entry.vsize <= entry.fee * vsize {
                return replaced(format!("new feerate {} <= old feerate {}", fee * 1_000 / vsize, entry.rate()));
            }
        }
        let gone = self.with_descendants(conflicts);
        let spent_before = |outpoint: &OutPoint| {
            conflicts
                .iter()
                .any(|txid| self.entries[txid].tx.input.iter().any(|input| input.previous_output == *outpoint))
        };
        for outpoint in tx.input.iter().map(|input| input.previous_output) {
            if gone.contains(&outpoint.txid) {
                return refuse(-26, "bad-txns-spends-conflicting-tx");
            }
            if self.entries.contains_key(&outpoint.txid) && !spent_before(&outpoint) {
                return refuse(-26, "replacement-adds-unconfirmed");
            }
        }
        let before: u64 = gone.iter().map(|txid| self.entries[txid].fee).sum();
        if fee < before {
            return replaced(format!("less fees than conflicting txs; {fee} < {before}"));
        }
        if is_below(fee - before, vsize, INCREMENTAL) {
            return replaced(format!("not enough additional fees to relay; {}", fee - before));
        }
        Ok(())
    }

    fn check_chain(&self, tx: &Transaction) -> Result<(), Refusal> {
        let ancestors = self.with_ancestors(tx.input.iter().map(|input| input.previous_output.txid));
        if ancestors.len() + 1 > CHAIN_MAX {
            return refuse(-26, "too-long-mempool-chain");
        }
        let is_full = |txid: &Txid| self.with_descendants(&BTreeSet::from([*txid])).len() + 1 > CHAIN_MAX;
        if ancestors.iter().any(is_full) { refuse(-26, "too-long-mempool-chain") } else { Ok(()) }
    }

    /// In it goes; what conflicts with it goes out.
    pub(super) fn put(&mut self, candidate: Candidate) {
        let Candidate { tx, fee, vsize, conflicts } = candidate;
        for txid in self.with_descendants(&conflicts) {
            self.remove(&txid);
        }
        let txid = tx.compute_txid();
        self.spenders.extend(tx.input.iter().map(|input| (input.previous_output, txid)));
        self.entries.insert(txid, Entry { tx, fee, vsize });
    }

    pub(super) fn remove(&mut self, txid: &Txid) -> Option<Entry> {
        let entry = self.entries.remove(txid)?;
        self.spenders.retain(|_, spender| spender != txid);
        Some(entry)
    }

    pub(super) fn with_descendants(&self, txids: &BTreeSet<Txid>) -> BTreeSet<Txid> {
        let mut all: BTreeSet<Txid> = txids.iter().copied().filter(|txid| self.entries.contains_key(txid)).collect();
        loop {
            let more: Vec<Txid> = self
                .entries
                .iter()
                .filter(|(txid, _)| !all.contains(*txid))
                .filter(|(_, entry)| entry.tx.input.iter().any(|input| all.contains(&input.previous_output.txid)))
                .map(|(txid, _)| *txid)
                .collect();
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }

    fn with_ancestors(&self, parents: impl Iterator<Item = Txid>) -> BTreeSet<Txid> {
        let mut all = BTreeSet::new();
        let mut next: Vec<Txid> = parents.collect();
        while let Some(txid) = next.pop() {
            if let Some(entry) = self.entries.get(&txid).filter(|_| !all.contains(&txid)) {
                all.insert(txid);
                next.extend(entry.tx.input.iter().map(|input| input.previous_output.txid));
            }
        }
        all
    }

    /// What all of a transaction's unconfirmed ancestors and it pay together.
    fn package_of(&self, txid: &Txid) -> (BTreeSet<Txid>, u64, u64) {
        let all = self.with_ancestors(std::iter::once(*txid));
        let (fee, vsize) = all
            .iter()
            .map(|txid| &self.entries[txid])
            .fold((0, 0), |(fee, vsize), entry| (fee + entry.fee, vsize + entry.vsize));
        (all, fee, vsize)
    }

    /// What pays at least this, the best first, each after what it spends.
    pub(super) fn best(&self, rate: u64) -> Vec<Transaction> {
        let (mut left, mut block) = (self.clone(), Vec::new());
        loop {
            let packages = left.entries.keys().map(|txid| left.package_of(txid));
            let best = packages.max_by(|a, b| (a.1 * b.2).cmp(&(b.1 * a.2)).then_with(|| b.0.cmp(&a.0)));
            let Some((txids, fee, vsize)) = best else { return block };
            if is_below(fee, vsize, rate) {
                return block;
            }
            let mut entries: Vec<Entry> = txids.iter().filter_map(|txid| left.remove(txid)).collect();
            while !entries.is_empty() {
                let waits = |entry: &Entry| {
                    let spends = |other: &Entry| {
                        let txid = other.tx.compute_txid();
                        entry.tx.input.iter().any(|input| input.previous_output.txid == txid)
                    };
                    entries.iter().any(spends)
                };
                let first = entries.iter().position(|entry| !waits(entry)).expect("nothing spends itself");
                block.push(entries.remove(first).tx);
            }
        }
    }

    /// The minimum has risen: what pays less goes, unless what rests on it pays for it.
    pub(super) fn evict(&mut self, minimum: u64) {
        loop {
            let score = |txid: &Txid| {
                let all = self.with_descendants(&BTreeSet::from([*txid]));
                let sum = all.iter().map(|txid| &self.entries[txid]);
                let (fee, vsize) = sum.fold((0, 0), |(fee, vsize), entry| (fee + entry.fee, vsize + entry.vsize));
                let own = &self.entries[txid];
                (own.rate()).max(fee * 1_000 / vsize)
            };
            let Some(worst) = self.entries.keys().copied().find(|txid| score(txid) < minimum) else { return };
            for txid in self.with_descendants(&BTreeSet::from([worst])) {
                self.remove(&txid);
            }
        }
    }
}
