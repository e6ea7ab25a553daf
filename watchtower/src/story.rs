//! How one channel's funding output was spent, and what became of every output that matters (BOLT 5).
//!
//! A story is folded from blocks. Each part of it knows the height of its block, so a reorg takes back exactly what its
//! blocks had told. It decides nothing about fees or transactions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid, WScriptHash};
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::ANCHOR_VALUE;
use millrace_channel::tx::commitment::number_behind;
use millrace_wire::{BlockHeight, CommitmentNumber, Sat};
use serde::{Deserialize, Serialize};

use crate::preimage::revealed_by;
use crate::registration::Registration;
use crate::revoked::Revoked;

/// A block this deep is not expected to leave the chain any more.
pub const BURIED_BLOCKS: u32 = 100;

/// How the funding output was spent, and by what the outputs of that were.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Story {
    /// The transaction that spent the funding output.
    pub txid: Txid,
    /// The height of its block.
    pub height: BlockHeight,
    /// The number of the commitment that it looks like; `None` for a mutual close.
    pub number: Option<CommitmentNumber>,
    /// Its outputs that matter, and those second-level outputs that do.
    pub outputs: BTreeMap<OutPoint, Output>,
    /// How to punish it, if its secret is known.
    #[serde(skip)]
    revoked: Option<Arc<Revoked>>,
}

/// An output of the commitment, or of a transaction that spends one of those.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Output {
    /// Its value.
    pub value: Sat,
    /// The height of its block.
    pub confirmed: BlockHeight,
    /// What is known of its script.
    pub kind: OutputKind,
    /// Who spent it.
    pub spent: Option<Spent>,
}

/// What is known of an output's script.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OutputKind {
    /// It is the delayed script of a revoked commitment: to be taken.
    Revocable,
    /// It is another one: an HTLC's, or this node's own.
    Other,
    /// The commitment is not known to be revoked. Should its secret still come, this tells which it is.
    Unknown([u8; 32]),
}

/// A confirmed spend of an output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spent {
    /// The transaction.
    pub by: Txid,
    /// The height of its block.
    pub height: BlockHeight,
    /// Whether it pays to the channel's sweep script.
    pub to_sweep: bool,
}

/// An output of a transaction, before it is a part of the story.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewOutput {
    /// Its index.
    pub vout: u32,
    /// Its value.
    pub value: Sat,
    /// What is known of its script.
    pub kind: OutputKind,
}

/// What a transaction that spends the funding output says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Closing {
    /// Its id.
    pub txid: Txid,
    /// The number of the commitment that it looks like.
    pub number: Option<CommitmentNumber>,
    /// Its outputs that matter.
    pub outputs: Vec<NewOutput>,
}

/// What a transaction that spends outputs of the story says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spending {
    /// Its id.
    pub txid: Txid,
    /// The outputs of the story that it spends.
    pub spends: Vec<OutPoint>,
    /// Whether it pays to the channel's sweep script.
    pub to_sweep: bool,
    /// Its own outputs that matter.
    pub outputs: Vec<NewOutput>,
    /// The preimages that its witnesses show.
    pub preimages: Vec<[u8; 32]>,
}

impl Closing {
    /// Reads a transaction that spends the funding output. `secret_of` knows the secrets of revoked commitments.
    pub(crate) fn read(
        registration: &Registration,
        tx: &Transaction,
        secret_of: impl FnOnce(CommitmentNumber) -> Option<[u8; 32]>,
    ) -> Self {
        let number = number_behind(registration.obscuring_factor, tx);
        let revoked = number.and_then(secret_of).and_then(|secret| Revoked::of(registration, &secret));
        let is_anchor = |value| registration.format == CommitmentFormat::Anchors && value == ANCHOR_VALUE;
        let mut outputs = Vec::new();
        if number.is_some() {
            outputs = scripts_in(tx)
                .filter(|(_, value, _)| !is_anchor(*value))
                .map(|(vout, value, script)| NewOutput { vout, value, kind: kind_of(revoked.as_ref(), script) })
                .collect();
        }
        Self { txid: tx.compute_txid(), number, outputs }
    }
}

impl Spending {
    /// Reads a transaction that spends these outputs of a story.
    pub(crate) fn read(registration: &Registration, story: &Story, tx: &Transaction, spends: Vec<OutPoint>) -> Self {
        let outputs = scripts_in(tx)
            .map(|(vout, value, script)| NewOutput { vout, value, kind: kind_of(story.revoked.as_deref(), script) })
            // Of a revoked commitment's second level only what can be taken matters.
            .filter(|output| output.kind != OutputKind::Other)
            .collect();
        let of_commitment = tx.input.iter().filter(|input| {
            let outpoint = input.previous_output;
            outpoint.txid == story.txid && spends.contains(&outpoint)
        });
        let preimages = of_commitment.filter_map(|input| revealed_by(&input.witness)).map(|found| *found.as_bytes());
        let preimages = preimages.collect();
        let to_sweep = tx.output.iter().any(|output| output.script_pubkey == registration.sweep_script);
        Self { txid: tx.compute_txid(), spends, to_sweep, outputs, preimages }
    }
}

/// The P2WSH outputs of a transaction: all that a commitment's delayed outputs and HTLCs can be.
fn scripts_in(tx: &Transaction) -> impl Iterator<Item = (u32, Sat, [u8; 32])> {
    (0..).zip(&tx.output).filter_map(|(vout, output)| {
        let program = output.script_pubkey.is_p2wsh().then(|| output.script_pubkey.as_bytes().last_chunk())?;
        Some((vout, Sat::from(output.value), *program?))
    })
}

fn kind_of(revoked: Option<&Revoked>, program: [u8; 32]) -> OutputKind {
    match revoked {
        None => OutputKind::Unknown(program),
        Some(revoked) if is_of(revoked.script_pubkey(), &program) => OutputKind::Revocable,
        Some(_) => OutputKind::Other,
    }
}

fn is_of(script_pubkey: &ScriptBuf, program: &[u8; 32]) -> bool {
    *script_pubkey == ScriptBuf::new_p2wsh(&WScriptHash::from_byte_array(*program))
}

impl Story {
    /// It begins with the spend of the funding output.
    pub(crate) fn new(height: BlockHeight, closing: &Closing) -> Self {
        let Closing { txid, number, outputs } = closing;
        let mut story = Self { txid: *txid, height, number: *number, outputs: BTreeMap::new(), revoked: None };
        story.add(*txid, height, outputs);
        story
    }

    fn add(&mut self, txid: Txid, height: BlockHeight, outputs: &[NewOutput]) {
        for NewOutput { vout, value, kind } in outputs {
            let output = Output { value: *value, confirmed: height, kind: *kind, spent: None };
            self.outputs.entry(OutPoint { txid, vout: *vout }).or_insert(output);
        }
    }

    /// It goes on with a transaction that spends outputs of it.
    pub(crate) fn go_on(&mut self, height: BlockHeight, spending: &Spending) {
        let spent = Spent { by: spending.txid, height, to_sweep: spending.to_sweep };
        for outpoint in &spending.spends {
            if let Some(output) = self.outputs.get_mut(outpoint) {
                output.spent = Some(spent);
            }
        }
        self.add(spending.txid, height, &spending.outputs);
    }

    /// Forgets what blocks from this height on have told. `false` if nothing is left of it.
    pub(crate) fn take_back(&mut self, from: BlockHeight) -> bool {
        self.outputs.retain(|_, output| output.confirmed < from);
        for output in self.outputs.values_mut() {
            output.spent = output.spent.filter(|spent| spent.height < from);
        }
        self.height < from
    }

    /// The secret of its commitment is known, now or since a start: outputs that nobody could tell are told apart.
    pub(crate) fn judge(&mut self, registration: &Registration, secret: &[u8; 32]) {
        if self.revoked.is_some() {
            return;
        }
        let Some(revoked) = Revoked::of(registration, secret) else { return };
        for output in self.outputs.values_mut() {
            if let OutputKind::Unknown(program) = output.kind {
                output.kind = kind_of(Some(&revoked), program);
            }
        }
        let commitment = self.txid;
        self.outputs.retain(|outpoint, output| outpoint.txid == commitment || output.kind != OutputKind::Other);
        self.revoked = Some(Arc::new(revoked));
    }

    /// How to punish it: only what is revoked can be.
    #[must_use]
    pub const fn revoked(&self) -> Option<&Arc<Revoked>> {
        self.revoked.as_ref()
    }

    /// Whether an output of it carried the delayed script of a revoked commitment: a breach, beyond doubt.
    #[must_use]
    pub fn is_breach(&self) -> bool {
        self.outputs.values().any(|output| output.kind == OutputKind::Revocable)
    }

    /// What can be taken and is not spent in any block.
    pub fn to_take(&self) -> impl Iterator<Item = (&OutPoint, &Output)> {
        self.outputs.iter().filter(|(_, output)| output.kind == OutputKind::Revocable && output.spent.is_none())
    }

    /// What was taken of what could be, and what the cheater got. Before the delay is over only whoever has the revocation
    /// key can spend: this tower, another one, or the node itself.
    #[must_use]
    pub fn taken_and_lost(&self, to_self_delay: u16) -> (Sat, Sat) {
        let (mut taken, mut lost) = (Vec::new(), Vec::new());
        for output in self.outputs.values().filter(|output| output.kind == OutputKind::Revocable) {
            let Some(spent) = output.spent else { continue };
            let age = spent.height.blocks_since(output.confirmed).unwrap_or(0);
            if spent.to_sweep || age < u32::from(to_self_delay) {
                taken.push(output.value)
            } else {
                lost.push(output.value)
            }
        }
        (taken.into_iter().sum(), lost.into_iter().sum())
    }

    /// Whether nothing can happen any more that would have to be answered. Of a commitment that is not known to be revoked, its
    /// owner may take his part after the delay: whoever learns of the secret later is late.
    #[must_use]
    pub fn is_over(&self, tip: BlockHeight, to_self_delay: u16) -> bool {
        let is_buried = |height, blocks| tip.blocks_since(height).is_some_and(|depth| depth >= blocks);
        match (self.number, &self.revoked) {
            (None, _) => is_buried(self.height, BURIED_BLOCKS),
            (Some(_), None) => is_buried(self.height, BURIED_BLOCKS + u32::from(to_self_delay)),
            (Some(_), Some(_)) => {
                let is_done =
                    |output: &Output| output.spent.is_some_and(|spent| is_buried(spent.height, BURIED_BLOCKS));
                is_buried(self.height, BURIED_BLOCKS) && self.outputs.values().all(is_done)
            }
        }
    }

    /// Whether its owner may say that he has no more need of the tower: nothing that could be taken is left to be.
    #[must_use]
    pub fn may_be_forgotten(&self, tip: BlockHeight) -> bool {
        let is_buried = |height| tip.blocks_since(height).is_some_and(|depth| depth >= BURIED_BLOCKS);
        let revocable = self.outputs.values().filter(|output| output.kind == OutputKind::Revocable);
        is_buried(self.height)
            && revocable.into_iter().all(|output| output.spent.is_some_and(|spent| is_buried(spent.height)))
    }
}
