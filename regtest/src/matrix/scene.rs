//! One cell under way: its peer, what is in flight, the commitment that stands, and who has spent what of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_channel::side::Side;
use millrace_wire::{CommitmentNumber, PublicKey};

use super::cell::{Cell, Conduct, Known, Stands};
use super::claimant::{Claimant, Coin};
use super::output::{self, Htlc, Output, Part, Role};
use super::peer::Peer;
use super::rules::{self, End, Owner};
use super::story::Story;
use crate::network::Error;

/// What the peer held at the moments that count.
#[derive(Default)]
pub(super) struct Snapshots {
    /// Before the round that revoked it.
    pub(super) revoked: Vec<u8>,
    /// With the commitment that nothing has revoked.
    pub(super) current: Vec<u8>,
    /// With the next one as well, if the daemon has signed it.
    pub(super) next: Option<Vec<u8>>,
}

/// A spend that is in a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spend {
    pub(super) txid: Txid,
    pub(super) height: u32,
    pub(super) is_by_peer: bool,
    /// The output of an HTLC transaction, which is not the end yet.
    pub(super) second: Option<(OutPoint, u64)>,
}

/// The commitment that is in a block.
pub(super) struct Standing {
    pub(super) stands: Stands,
    pub(super) txid: Txid,
    pub(super) height: u32,
    pub(super) outputs: Vec<Output>,
    claimant: Claimant,
}

/// A cell under way.
pub(super) struct Scene {
    pub(super) cell: Cell,
    pub(super) peer: Peer,
    pub(super) htlcs: Vec<Htlc>,
    pub(super) snapshots: Snapshots,
    pub(super) story: Story,
    /// The daemon's own commitment, once it has broadcast it.
    pub(super) ours: Option<Transaction>,
    pub(super) standing: Option<Standing>,
    pub(super) spends: BTreeMap<OutPoint, Spend>,
    /// The daemon has been given the preimages of what it received.
    pub(super) is_settled: bool,
    /// The peer knows the preimages of what the daemon offered.
    pub(super) is_told: bool,
    /// Claims that did not come into the mempool in time, once: they are not waited for again.
    pub(super) late: BTreeSet<OutPoint>,
    /// What is not as it must be.
    pub(super) failures: Vec<String>,
    peer_txs: BTreeSet<Txid>,
    /// The commitment that a reorg took out.
    gone: Option<Txid>,
    /// The peer has shown a preimage in a block that the reorg took out.
    was_shown: bool,
}

impl Scene {
    pub(super) fn new(cell: Cell) -> Self {
        Self {
            cell,
            peer: Peer::new(),
            htlcs: Vec::new(),
            snapshots: Snapshots::default(),
            story: Story::default(),
            ours: None,
            standing: None,
            spends: BTreeMap::new(),
            is_settled: false,
            is_told: false,
            late: BTreeSet::new(),
            failures: Vec::new(),
            peer_txs: BTreeSet::new(),
            gone: None,
            was_shown: false,
        }
    }

    pub(super) fn fail(&mut self, height: u32, what: impl Into<String>) {
        let what = what.into();
        self.story.tell(height, format!("✗ {what}"));
        self.failures.push(what);
    }

    /// Whether it goes on: what has failed before a commitment was in a block is not played to its end.
    pub(super) fn is_on(&self) -> bool {
        self.failures.is_empty() || self.standing.is_some()
    }

    pub(super) fn funding(&self) -> Result<OutPoint, Error> {
        Ok(self.peer.channel()?.terms().funding_outpoint)
    }

    /// HTLCs of one direction.
    pub(super) fn of_direction(&self, is_offered: bool) -> impl Iterator<Item = &Htlc> {
        self.htlcs.iter().filter(move |htlc| htlc.is_offered == is_offered)
    }

    // --- commitments ---

    fn snapshot(&self, stands: Stands) -> Result<&[u8], Error> {
        match stands {
            Stands::Revoked => Ok(&self.snapshots.revoked),
            Stands::TheirNext => {
                let next = self.snapshots.next.as_deref();
                next.ok_or_else(|| Error::Wrong("the daemon has signed no next commitment".to_owned()))
            }
            Stands::Ours | Stands::Theirs => Ok(&self.snapshots.current),
        }
    }

    fn claimant(&self, stands: Stands) -> Result<Claimant, Error> {
        Claimant::of(self.snapshot(stands)?, self.peer.keys())
    }

    /// A commitment, complete, to be put into a block.
    pub(super) fn commitment(&self, stands: Stands) -> Result<Transaction, Error> {
        if stands == Stands::Ours {
            let ours = self.ours.clone();
            return ours.ok_or_else(|| Error::Wrong("the daemon has not broadcast its commitment".to_owned()));
        }
        self.claimant(stands)?.commitment()
    }

    fn side_and_point(&self, stands: Stands, claimant: &Claimant) -> Result<(Side, PublicKey), Error> {
        let numbers = claimant.commitment_numbers();
        if stands != Stands::Ours {
            return Ok((Side::Local, self.peer.keys().commitment_point(numbers.local)));
        }
        let CommitmentNumber(number) = numbers.remote;
        let point = self.peer.point(numbers.remote);
        let point = point.ok_or_else(|| Error::Wrong(format!("the daemon has not told its point {number}")))?;
        Ok((Side::Remote, point))
    }

    /// A commitment is in the block at `height`, at `index`.
    pub(super) fn stand(
        &mut self,
        stands: Stands,
        height: u32,
        index: u32,
        tx: &Arc<Transaction>,
    ) -> Result<(), Error> {
        let mut claimant = self.claimant(stands)?;
        if stands != Stands::Ours {
            claimant.commitment()?;
        }
        let (side, point) = self.side_and_point(stands, &claimant)?;
        let terms = self.peer.channel()?.terms();
        let outputs = output::outputs(tx, terms, side, &point, &self.htlcs, |htlc| rules::is_in(htlc, stands));
        let outputs = outputs.map_err(Error::Wrong)?;
        claimant.on_block(height, &[(index, Arc::clone(tx))]);
        let txid = tx.compute_txid();
        self.story.tell(height, format!("commitment {txid} is in a block: {stands:?}"));
        for output in &outputs {
            self.story.tell(
                height,
                format!("  output {}: {} sat, {}", output.outpoint.vout, output.sat, self.name(output.role)),
            );
        }
        self.standing = Some(Standing { stands, txid, height, outputs, claimant });
        if self.is_told {
            self.tell_peer(height)?;
        }
        Ok(())
    }

    /// What an output is, in words.
    pub(super) fn name(&self, role: Role) -> String {
        match role {
            Role::OurMain => "our balance".to_owned(),
            Role::TheirMain => "the peer's balance".to_owned(),
            Role::OurAnchor => "our anchor".to_owned(),
            Role::TheirAnchor => "the peer's anchor".to_owned(),
            Role::Htlc(index) => {
                let htlc = &self.htlcs[index];
                let way = if htlc.is_offered { "offered" } else { "received" };
                format!("HTLC {index} ({way}, {} sat, expires {})", htlc.sat, htlc.cltv_expiry.0)
            }
        }
    }

    /// The peer learns the preimages of what the daemon offered, if it ever does and uses them.
    pub(super) fn tell_peer(&mut self, height: u32) -> Result<(), Error> {
        self.is_told = true;
        let Some(standing) = &mut self.standing else { return Ok(()) };
        if self.cell.conduct == Conduct::Silent || self.cell.known == Known::Never {
            return Ok(());
        }
        let mut told = 0;
        let may_be_known = |htlc: &&Htlc| htlc.is_offered && !matches!(htlc.part, Part::Trimmed | Part::HalfAdded);
        for htlc in self.htlcs.iter().filter(may_be_known) {
            told += u32::from(standing.claimant.learn(htlc.id, htlc.preimage.clone())?);
        }
        if told > 0 {
            self.story.tell(height, format!("the peer knows the preimages of {told} HTLCs that we offered"));
        }
        Ok(())
    }

    // --- blocks ---

    /// Every output that is followed.
    fn is_followed(&self, outpoint: &OutPoint) -> bool {
        let Some(standing) = &self.standing else { return false };
        standing.txid == outpoint.txid && (outpoint.vout as usize) < standing.outputs.len()
            || self.spends.values().any(|spend| spend.second.is_some_and(|(second, _)| second == *outpoint))
    }

    fn is_htlc(&self, outpoint: &OutPoint) -> bool {
        let outputs = self.standing.iter().flat_map(|standing| &standing.outputs);
        outputs.into_iter().any(|output| output.outpoint == *outpoint && matches!(output.role, Role::Htlc(_)))
    }

    /// A block: notes what is spent in it, and tells the peer. Whether anything of this cell was in it.
    pub(super) fn on_block(&mut self, height: u32, txs: &[(u32, Arc<Transaction>)]) -> bool {
        let mut of_interest = Vec::new();
        for (index, tx) in txs {
            let followed: Vec<usize> =
                (0..tx.input.len()).filter(|at| self.is_followed(&tx.input[*at].previous_output)).collect();
            for at in &followed {
                self.note_spend(height, tx, *at);
            }
            if !followed.is_empty() {
                of_interest.push((*index, Arc::clone(tx)));
            }
        }
        if let Some(standing) = self.standing.as_mut().filter(|standing| standing.height < height) {
            standing.claimant.on_block(height, &of_interest);
        }
        !of_interest.is_empty()
    }

    fn note_spend(&mut self, height: u32, tx: &Transaction, at: usize) {
        let outpoint = tx.input[at].previous_output;
        let txid = tx.compute_txid();
        let is_by_peer = self.peer_txs.contains(&txid);
        let holder_is_peer = self.standing.as_ref().is_some_and(|standing| standing.stands != Stands::Ours);
        // The holder of a commitment takes its HTLCs by a transaction whose output is not the end.
        let is_second = self.is_htlc(&outpoint) && is_by_peer == holder_is_peer;
        let second = tx.output.get(at).filter(|_| is_second).map(|output| {
            let vout = u32::try_from(at).expect("a transaction has fewer inputs");
            (OutPoint { txid, vout }, output.value.to_sat())
        });
        let who = if is_by_peer { "the peer" } else { "the daemon" };
        self.story.tell(height, format!("{who} spends {} by {txid}", self.words_of(&outpoint)));
        self.spends.insert(outpoint, Spend { txid, height, is_by_peer, second });
    }

    fn words_of(&self, outpoint: &OutPoint) -> String {
        let outputs = self.standing.iter().flat_map(|standing| &standing.outputs);
        match outputs.into_iter().find(|output| output.outpoint == *outpoint) {
            Some(output) => self.name(output.role),
            None => format!("{outpoint}, the output of an HTLC transaction"),
        }
    }

    /// Blocks are gone, and with them the commitment.
    pub(super) fn disconnect(&mut self, height: u32) {
        self.story.tell(height, "a reorg takes the commitment out of the chain");
        self.was_shown = self.is_offered_taken();
        self.gone = self.standing.take().map(|standing| standing.txid);
        self.spends.clear();
        self.late.clear();
    }

    /// Whether this is the commitment that a reorg took out.
    pub(super) fn is_gone(&self, txid: &Txid) -> bool {
        self.gone == Some(*txid)
    }

    /// What the peer wants in the next block.
    pub(super) fn peer_transactions(&mut self, coin: impl FnMut() -> Option<Coin>) -> Vec<Transaction> {
        let Some(standing) = &mut self.standing else { return Vec::new() };
        if self.cell.conduct == Conduct::Silent {
            return Vec::new();
        }
        let spends = &self.spends;
        let is_spent = |outpoint: &OutPoint| spends.contains_key(outpoint);
        let txs = standing.claimant.transactions(self.cell.conduct, is_spent, coin);
        self.peer_txs.extend(txs.iter().map(Transaction::compute_txid));
        txs
    }

    // --- what the rules give ---

    /// The outputs that are the daemon's, not spent, and that a block after `tip` may hold the spend of.
    pub(super) fn due(&self, tip: u32) -> Vec<OutPoint> {
        let Some(standing) = &self.standing else { return Vec::new() };
        let cell = Cell { stands: standing.stands, ..self.cell };
        let mut due = Vec::new();
        for output in &standing.outputs {
            match self.spends.get(&output.outpoint) {
                None => {
                    let from = rules::due(&cell, output.role, &self.htlcs, standing.height, self.is_settled);
                    due.extend(from.filter(|from| *from <= tip + 1).map(|_| output.outpoint));
                }
                Some(Spend { second: Some((second, _)), height, .. }) if !self.spends.contains_key(second) => {
                    let from = rules::second_due(&cell, *height);
                    due.extend(from.filter(|from| *from <= tip + 1).map(|_| *second));
                }
                Some(_) => {}
            }
        }
        due
    }

    /// Who has an output in the end, and how much of it there was.
    pub(super) fn holder(&self, output: &Output) -> (Owner, u64) {
        let mut at = (output.outpoint, output.sat);
        loop {
            match self.spends.get(&at.0) {
                None => return (Owner::Nobody, at.1),
                Some(Spend { second: Some(second), .. }) => at = *second,
                Some(spend) => return (if spend.is_by_peer { Owner::Peer } else { Owner::Us }, at.1),
            }
        }
    }

    /// How what the daemon offered ends for its payer.
    pub(super) fn offered_end(&self, part: Part) -> End {
        rules::offered_end(&self.cell, part, self.was_shown || self.is_offered_taken())
    }

    /// Whether the peer has taken something that the daemon offered, by its preimage.
    fn is_offered_taken(&self) -> bool {
        let outputs = self.standing.iter().flat_map(|standing| &standing.outputs);
        let is_offered = |output: &&Output| matches!(output.role, Role::Htlc(at) if self.htlcs[at].is_offered);
        let mut spends = outputs.filter(is_offered).filter_map(|output| self.spends.get(&output.outpoint));
        spends.any(|spend| spend.is_by_peer)
    }

    /// Whether a transaction takes an HTLC of this cell, and is not the peer's.
    pub(super) fn is_our_htlc_claim(&self, tx: &Transaction) -> bool {
        !self.peer_txs.contains(&tx.compute_txid()) && tx.input.iter().any(|input| self.is_htlc(&input.previous_output))
    }
}
