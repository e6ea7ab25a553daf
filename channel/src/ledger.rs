//! Who owns what: balances, HTLCs and the feerate, at every stage of the commit/revoke dance (BOLT 2,
//! "Normal Operation"). It knows no keys, no signatures and no messages.
//!
//! Invariant: `settled` counts no HTLC of the two lists. An HTLC leaves its list when its removal is irrevocable,
//! and only then is its amount settled; every other balance is computed from there.

pub mod htlc;
pub mod limits;
pub mod past;
pub mod stage;

use millrace_wire::{CommitmentNumber, FeeratePerKw, HtlcId, Msat};
use serde::{Deserialize, Serialize};

use crate::ledger::htlc::{Add, Htlc, Removal, Standing, Status};
use crate::ledger::stage::{Stage, Step};
use crate::side::{Both, Side};
use crate::tx::commitment::CommitmentHtlc;

/// The balances, HTLCs and fee of a channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ledger {
    settled: Both<Msat>,
    offered: Vec<Htlc>,
    received: Vec<Htlc>,
    feerate: FeeratePerKw,
    fee_updates: Vec<(FeeratePerKw, Stage)>,
    funder: Side,
    next_id: Both<u64>,
    #[serde(skip)]
    proposed_adds: Both<Vec<Add>>,
    #[serde(skip)]
    proposed_fee: Option<FeeratePerKw>,
}

/// Which commitment a view is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The newest one that a side holds, or (for the peer, while its `revoke_and_ack` is outstanding) was sent.
    Current(Side),
    /// The one that would be signed for a side now.
    Next(Side),
    /// While the peer's `revoke_and_ack` is outstanding: the one it has not revoked yet.
    RemoteUnrevoked,
}

impl Which {
    /// Whose commitment it is.
    #[must_use]
    pub const fn side(self) -> Side {
        match self {
            Self::Current(side) | Self::Next(side) => side,
            Self::RemoteUnrevoked => Side::Remote,
        }
    }

    fn stands(self, stage: Stage, proposer: Side) -> bool {
        match self {
            Self::Current(side) => stage.stands_in(side, proposer),
            Self::Next(side) => stage.stands_in_next(side, proposer),
            // What the outstanding `commitment_signed` brought in is not there yet: our `Committed`, their
            // `CrossCommitted`.
            Self::RemoteUnrevoked => stage >= if proposer == Side::Local { Stage::Acked } else { Stage::Irrevocable },
        }
    }
}

/// The contents of one commitment, before fees and anchors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Balances with the HTLCs below subtracted from who offered them.
    pub balances: Both<Msat>,
    /// The HTLCs, offered before received, each by id.
    pub htlcs: Vec<CommitmentHtlc>,
    /// The feerate.
    pub feerate: FeeratePerKw,
}

/// A commitment in which a side would have less than nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{side:?} would be {missing_msat} msat short in the commitment")]
pub struct Overdrawn {
    /// Who.
    pub side: Side,
    /// By how much, in msat.
    pub missing_msat: u64,
}

/// What one step of the dance made irrevocable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// Ids of HTLCs whose add became irrevocable, with who offered them.
    pub added: Vec<(Side, HtlcId)>,
    /// HTLCs whose removal became irrevocable: gone from the ledger.
    pub removed: Vec<(Htlc, Removal)>,
}

impl Ledger {
    /// The ledger of a new channel.
    #[must_use]
    pub const fn new(funder: Side, balances: Both<Msat>, feerate: FeeratePerKw) -> Self {
        Self {
            settled: balances,
            offered: Vec::new(),
            received: Vec::new(),
            feerate,
            fee_updates: Vec::new(),
            funder,
            next_id: Both { local: 0, remote: 0 },
            proposed_adds: Both { local: Vec::new(), remote: Vec::new() },
            proposed_fee: None,
        }
    }

    /// Balances that count no HTLC in flight.
    #[must_use]
    pub const fn settled(&self) -> Both<Msat> {
        self.settled
    }

    /// The HTLCs that `side` offered and that are in some commitment, by id.
    #[must_use]
    pub fn htlcs(&self, side: Side) -> &[Htlc] {
        match side {
            Side::Local => &self.offered,
            Side::Remote => &self.received,
        }
    }

    /// The adds that `side` has proposed and no signature covers yet.
    #[must_use]
    pub fn proposed(&self, side: Side) -> &[Add] {
        self.proposed_adds.of(side)
    }

    /// The HTLC that `side` offered with this id, unless it is merely proposed.
    #[must_use]
    pub fn htlc(&self, side: Side, id: HtlcId) -> Option<&Htlc> {
        let list = self.htlcs(side);
        list.binary_search_by_key(&id, |htlc| htlc.add.id).ok().map(|index| &list[index])
    }

    pub(crate) fn htlc_mut(&mut self, side: Side, id: HtlcId) -> Option<&mut Htlc> {
        let list = self.list_mut(side);
        list.binary_search_by_key(&id, |htlc| htlc.add.id).ok().map(|index| &mut list[index])
    }

    fn list_mut(&mut self, side: Side) -> &mut Vec<Htlc> {
        match side {
            Side::Local => &mut self.offered,
            Side::Remote => &mut self.received,
        }
    }

    /// The id that the next add of `side` carries.
    #[must_use]
    pub fn next_id(&self, side: Side) -> HtlcId {
        HtlcId(self.next_id.of(side) + self.proposed_adds.of(side).len() as u64)
    }

    /// True while no HTLC is in any commitment and none is proposed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offered.is_empty() && self.received.is_empty() && !self.has_proposed_adds()
    }

    fn has_proposed_adds(&self) -> bool {
        !self.proposed_adds.local.is_empty() || !self.proposed_adds.remote.is_empty()
    }

    /// True while some fee update is on its way through the dance.
    #[must_use]
    pub fn is_fee_pending(&self) -> bool {
        self.proposed_fee.is_some() || !self.fee_updates.is_empty()
    }

    /// The newest feerate that is signed and not irrevocable.
    pub(crate) fn fee_under_way(&self) -> Option<FeeratePerKw> {
        self.fee_updates.last().map(|(feerate, _)| *feerate)
    }

    // --- proposals: volatile, forgotten when the link goes down ---

    pub(crate) fn propose_add(&mut self, side: Side, add: Add) {
        debug_assert_eq!(add.id, self.next_id(side));
        self.proposed_adds.of_mut(side).push(add);
    }

    pub(crate) const fn propose_fee(&mut self, feerate: FeeratePerKw) {
        self.proposed_fee = Some(feerate);
    }

    /// The `update_fee` that no signature covers yet.
    #[must_use]
    pub const fn proposed_fee(&self) -> Option<FeeratePerKw> {
        self.proposed_fee
    }

    /// Takes the proposals of `side` out, for the record of the signature that covers them: adds, ids of the
    /// removals (with the removal itself where the peer decided it), and the fee.
    pub(crate) fn take_proposed_adds(&mut self, side: Side) -> Vec<Add> {
        std::mem::take(self.proposed_adds.of_mut(side))
    }

    pub(crate) fn take_proposed_fee(&mut self, side: Side) -> Option<FeeratePerKw> {
        if side == self.funder { self.proposed_fee.take() } else { None }
    }

    /// Ids of the removals of ours that have been sent and no signature covers yet.
    pub(crate) fn sent_removals(&self) -> Vec<HtlcId> {
        self.received.iter().filter(|htlc| htlc.removal_sent).map(|htlc| htlc.add.id).collect()
    }

    pub(crate) fn take_proposed_removals(&mut self) -> Vec<(HtlcId, Removal)> {
        self.offered
            .iter_mut()
            .filter_map(|htlc| htlc.proposed_removal.take().map(|removal| (htlc.add.id, removal)))
            .collect()
    }

    /// Whether `side` has proposed anything that no signature covers yet.
    #[must_use]
    pub fn has_proposals(&self, side: Side) -> bool {
        !self.proposed_adds.of(side).is_empty()
            || (self.funder == side && self.proposed_fee.is_some())
            || match side {
                Side::Local => self.received.iter().any(|htlc| htlc.removal_sent),
                Side::Remote => self.offered.iter().any(|htlc| htlc.proposed_removal.is_some()),
            }
    }

    /// Whether something the peer proposed waits for us to sign it into the peer's own commitment.
    #[must_use]
    pub fn owes_cross_commit(&self) -> bool {
        let acked_add = |htlc: &Htlc| matches!(htlc.status, Status::Adding(Stage::Acked));
        let acked_removal = |htlc: &Htlc| matches!(htlc.status, Status::Removing(Stage::Acked, _));
        self.received.iter().any(acked_add)
            || self.offered.iter().any(acked_removal)
            || (self.funder == Side::Remote && self.fee_updates.iter().any(|(_, stage)| *stage == Stage::Acked))
    }

    /// Forgets everything that no signature covers (BOLT 2, "Message Retransmission"). Returns the adds of ours
    /// that are gone.
    pub(crate) fn forget_proposals(&mut self) -> Vec<Add> {
        self.proposed_fee = None;
        self.proposed_adds.remote.clear();
        for htlc in self.offered.iter_mut().chain(&mut self.received) {
            htlc.forget_proposals();
        }
        std::mem::take(&mut self.proposed_adds.local)
    }

    // --- the dance: only from `apply` ---

    /// Brings the adds, removals and fee of `side` in as `Proposed`: they are what the signature about to be
    /// applied covers. `since` is the first commitment of the peer's that may hold the adds.
    pub(crate) fn enter(&mut self, side: Side, adds: Vec<Add>, fee: Option<FeeratePerKw>, since: CommitmentNumber) {
        for add in adds {
            *self.next_id.of_mut(side) = add.id.0 + 1;
            self.list_mut(side).push(Htlc::proposed(side, add, since));
        }
        if let Some(feerate) = fee {
            self.fee_updates.push((feerate, Stage::Proposed));
        }
    }

    /// Starts the removal of an HTLC that `side.other()` offered.
    pub(crate) fn enter_removal(&mut self, side: Side, id: HtlcId, removal: Option<Removal>) {
        let htlc = self.htlc_mut(side.other(), id).expect("a recorded removal names an HTLC of the ledger");
        htlc.forget_proposals();
        let status = std::mem::replace(&mut htlc.status, Status::Adding(Stage::Irrevocable));
        htlc.status = match (status, removal) {
            (Status::Decided(removal), None) | (Status::Adding(_), Some(removal)) => {
                Status::Removing(Stage::Proposed, removal)
            }
            (status, _) => panic!("htlc {} cannot enter its removal from {status:?}", id.0),
        };
    }

    /// Moves every update on, after `sender` has sent `step`, and settles what became irrevocable.
    pub(crate) fn advance(&mut self, step: Step, sender: Side) -> Settled {
        let mut settled = Settled::default();
        for side in [Side::Local, Side::Remote] {
            for htlc in self.list_mut(side) {
                if htlc.advance(step, sender) && htlc.is_live() {
                    settled.added.push((side, htlc.add.id));
                }
            }
            self.take_removed(side, &mut settled.removed);
        }
        let funder = self.funder;
        for (_, stage) in &mut self.fee_updates {
            *stage = stage.after(step, sender, funder);
        }
        while let Some(&(feerate, Stage::Irrevocable)) = self.fee_updates.first() {
            self.feerate = feerate;
            self.fee_updates.remove(0);
        }
        settled
    }

    fn take_removed(&mut self, side: Side, removed: &mut Vec<(Htlc, Removal)>) {
        let is_gone = |htlc: &Htlc| matches!(htlc.status, Status::Removing(Stage::Irrevocable, _));
        if !self.htlcs(side).iter().any(is_gone) {
            return;
        }
        let (gone, kept) = std::mem::take(self.list_mut(side)).into_iter().partition(is_gone);
        *self.list_mut(side) = kept;
        let gone: Vec<Htlc> = gone;
        for mut htlc in gone {
            let status = std::mem::replace(&mut htlc.status, Status::Adding(Stage::Irrevocable));
            let Status::Removing(_, removal) = status else { unreachable!("partitioned by this status") };
            if removal.is_fulfill() {
                self.settle(htlc.offered_by, htlc.add.amount);
            }
            removed.push((htlc, removal));
        }
    }

    fn settle(&mut self, payer: Side, amount: Msat) {
        let from = self.settled.of_mut(payer);
        *from = from.checked_sub(amount).expect("the payer was checked to afford the HTLC when it was added");
        let to = self.settled.of_mut(payer.other());
        *to = to.checked_add(amount).expect("balances never exceed the channel's capacity");
    }

    /// For each HTLC, offered before received and each by id, the first commitment of the peer's that may hold it.
    pub(crate) fn since(&self) -> Vec<CommitmentNumber> {
        self.offered.iter().chain(&self.received).map(|htlc| htlc.since).collect()
    }

    /// What [`Ledger::since`] told is so again. False if it does not tell of as many HTLCs as there are.
    pub(crate) fn set_since(&mut self, since: &[CommitmentNumber]) -> bool {
        let htlcs = self.offered.iter_mut().chain(&mut self.received);
        htlcs.zip(since).for_each(|(htlc, since)| htlc.since = *since);
        since.len() == self.offered.len() + self.received.len()
    }

    // --- views ---

    /// The feerate of a commitment.
    #[must_use]
    pub fn feerate(&self, which: Which) -> FeeratePerKw {
        let proposed = self.proposed_fee.map(|feerate| (feerate, Stage::Proposed));
        self.fee_updates
            .iter()
            .copied()
            .chain(proposed)
            .rfind(|(_, stage)| which.stands(*stage, self.funder))
            .map_or(self.feerate, |(feerate, _)| feerate)
    }

    /// The fee update of `side` that its outstanding `commitment_signed` brought in.
    pub(crate) fn committed_fee(&self, side: Side) -> Option<FeeratePerKw> {
        let is_committed = |&&(_, stage): &&(FeeratePerKw, Stage)| stage == Stage::Committed;
        if side == self.funder {
            self.fee_updates.iter().rfind(is_committed).map(|(feerate, _)| *feerate)
        } else {
            None
        }
    }

    /// The highest feerate that any present or coming commitment pays.
    #[must_use]
    pub fn feerate_max(&self) -> FeeratePerKw {
        let pending = self.fee_updates.iter().map(|(feerate, _)| *feerate).chain(self.proposed_fee);
        pending.fold(self.feerate, |a, b| if a.0 >= b.0 { a } else { b })
    }

    /// What a commitment holds.
    ///
    /// # Errors
    /// [`Overdrawn`] if a side would have less than nothing.
    pub fn view(&self, which: Which) -> Result<View, Overdrawn> {
        let mut htlcs = Vec::with_capacity(self.offered.len() + self.received.len() + self.proposed_adds.local.len());
        let mut net = NetBalances::new(self.settled);
        for side in [Side::Local, Side::Remote] {
            for htlc in self.htlcs(side) {
                match htlc.standing(|stage, proposer| which.stands(stage, proposer)) {
                    Standing::Absent => {}
                    Standing::Output => {
                        net.take(side, htlc.add.amount);
                        htlcs.push(htlc.to_commitment());
                    }
                    Standing::Removed(removal) if removal.is_fulfill() => {
                        net.take(side, htlc.add.amount);
                        net.give(side.other(), htlc.add.amount);
                    }
                    Standing::Removed(_) => {}
                }
            }
            if which.stands(Stage::Proposed, side) {
                for add in self.proposed_adds.of(side) {
                    net.take(side, add.amount);
                    htlcs.push(CommitmentHtlc {
                        id: add.id,
                        offered_by: side,
                        amount: add.amount,
                        payment_hash: add.payment_hash,
                        cltv_expiry: add.cltv_expiry,
                    });
                }
            }
        }
        Ok(View { balances: net.finish()?, htlcs, feerate: self.feerate(which) })
    }
}

/// Balances under addition and subtraction in any order; checked at the end.
struct NetBalances(Both<i128>);

impl NetBalances {
    fn new(start: Both<Msat>) -> Self {
        Self(Both { local: i128::from(start.local.0), remote: i128::from(start.remote.0) })
    }

    fn take(&mut self, side: Side, amount: Msat) {
        *self.0.of_mut(side) -= i128::from(amount.0);
    }

    fn give(&mut self, side: Side, amount: Msat) {
        *self.0.of_mut(side) += i128::from(amount.0);
    }

    fn finish(self) -> Result<Both<Msat>, Overdrawn> {
        let checked = |side: Side| {
            let net = *self.0.of(side);
            u64::try_from(net)
                .map(Msat)
                .map_err(|_| Overdrawn { side, missing_msat: u64::try_from(-net).unwrap_or(u64::MAX) })
        };
        Ok(Both { local: checked(Side::Local)?, remote: checked(Side::Remote)? })
    }
}
