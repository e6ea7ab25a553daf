//! Where durable state changes, and nowhere else: a record comes in, live or on replay, and the facts that it
//! makes true go out.

use millrace_wire::{CommitmentNumber, HtlcId};

use crate::announcement::{Announcement, Complete, Pair};
use crate::channel::{Channel, LastSent, LocalCommitment, Outcome, received_fact};
use crate::effect::{Effects, Fact};
use crate::ledger::Settled;
use crate::ledger::htlc::{Origin, Removal, Status};
use crate::ledger::past::PastHtlc;
use crate::ledger::stage::Step;
use crate::phase::Phase;
use crate::record::{CommitmentReceived, Record};
use crate::side::Side;

impl Channel {
    /// Applies a record. What it says was checked before it was written: here nothing can be refused.
    pub(crate) fn apply(&mut self, record: Record, fx: &mut Effects) {
        match record {
            Record::Opened(_) => unreachable!("`replay` refuses a second `Opened`, and no handler records one"),
            Record::FundingConfirmed { height, scid, is_coinbase } => {
                self.state.funding.confirmed = Some((height, scid));
                self.state.funding.is_coinbase = is_coinbase;
                fx.fact(Fact::FundingConfirmed { scid, height });
            }
            Record::FundingUnconfirmed => {
                self.state.funding.confirmed = None;
                // What was signed says where it stood.
                self.state.announcement = Announcement::default();
            }
            Record::ReadySent => {
                self.state.funding.is_ready_sent = true;
                self.become_normal(fx);
            }
            Record::ReadyReceived { next_point, alias } => {
                self.state.funding.is_ready_received = true;
                self.state.funding.remote_alias = alias;
                self.state.remote.next_point = Some(next_point);
                self.become_normal(fx);
            }
            Record::CommitmentSent { adds, removals, feerate, early_adds } => {
                for add in &adds {
                    if let Some(origin) = add.origin {
                        fx.fact(Fact::OfferCommitted { id: add.id, origin, amount: add.amount });
                    }
                }
                let since = CommitmentNumber(self.state.remote.number.0 + 1);
                self.state.ledger.enter(Side::Local, adds, feerate, since);
                for id in removals {
                    self.state.ledger.enter_removal(Side::Local, id, None);
                }
                let settled = self.state.ledger.advance(Step::Commit, Side::Local);
                debug_assert_eq!(settled, Settled::default());
                self.state.remote.number = since;
                self.state.last_sent = LastSent::Commitment;
                self.state.early_adds = early_adds;
            }
            Record::CommitmentReceived(received) => self.apply_commitment_received(*received, fx),
            Record::RevocationReceived { secret, next_point, over_dust_exposure } => {
                let remote = &mut self.state.remote;
                remote
                    .secrets
                    .insert(remote.unrevoked, secret.0)
                    .expect("the secret was checked before it was recorded");
                remote.unrevoked = CommitmentNumber(remote.unrevoked.0 + 1);
                remote.point = remote.next_point.replace(next_point).expect("known since channel_ready");
                for id in over_dust_exposure {
                    if let Some(htlc) = self.state.ledger.htlc_mut(Side::Remote, id) {
                        htlc.over_dust_exposure = true;
                    }
                }
                let settled = self.state.ledger.advance(Step::Revoke, Side::Remote);
                self.tell_settled(settled, fx);
            }
            Record::RemovalDecided { id, removal } => {
                let htlc = self.state.ledger.htlc_mut(Side::Remote, id).expect("only a live HTLC's removal is decided");
                htlc.status = Status::Decided(removal);
                htlc.add.onion = None;
            }
            Record::PreimageReceived { id, preimage } => {
                let htlc =
                    self.state.ledger.htlc_mut(Side::Local, id).expect("a preimage is recorded for an HTLC we offered");
                htlc.known_preimage = Some(preimage.clone());
                if let Some(origin) = htlc.add.origin {
                    fx.fact(Fact::OfferFulfilled { id, origin, preimage });
                }
            }
            Record::AttributionReceived { id, attribution } => {
                let offered = self.state.ledger.htlc(Side::Local, id);
                if let Some(origin) = offered.and_then(|htlc| htlc.add.origin) {
                    fx.fact(Fact::OfferAttributed { origin, attribution });
                }
            }
            Record::OutcomeReleased { id } => self.state.outcomes.retain(|outcome| outcome.id != id),
            Record::ShutdownSent { script } => self.apply_shutdown(Side::Local, script, fx),
            Record::ShutdownReceived { script } => self.apply_shutdown(Side::Remote, script, fx),
            Record::MutualCloseSigned { tx, fee, complete } => self.apply_mutual_close(tx, fee, complete, fx),
            Record::LocalDataLost { remote_point } => self.apply_data_lost(remote_point),
            Record::Failed { reason, broadcast } => self.apply_failed(reason, broadcast, fx),
            Record::Chain(record) => self.apply_chain(record, fx),
            Record::Closed => {
                let last = Box::new(self.last_state());
                self.state.phase = Phase::Closed;
                fx.fact(Fact::Closed(last));
            }
            Record::AnnouncementSigned { node_signature, bitcoin_signature } => {
                self.state.announcement.remote = Some(Pair { node: node_signature, bitcoin: bitcoin_signature });
            }
            Record::Announced { height, announcement } => {
                fx.fact(Fact::Announced { announcement: announcement.clone() });
                self.state.announcement.complete = Some(Complete { height, bytes: announcement });
            }
        }
    }

    fn become_normal(&mut self, fx: &mut Effects) {
        let funding = &self.state.funding;
        if funding.is_ready_sent && funding.is_ready_received {
            if self.state.phase == Phase::Opening {
                self.state.phase = Phase::Normal;
            }
            fx.fact(Fact::Ready);
        }
    }

    fn apply_commitment_received(&mut self, received: CommitmentReceived, fx: &mut Effects) {
        let CommitmentReceived { adds, removals, feerate, signature, htlc_signatures } = received;
        // They come into the peer's own commitment with our next signature, or a later one.
        let since = CommitmentNumber(self.state.remote.number.0 + 1);
        self.state.ledger.enter(Side::Remote, adds, feerate, since);
        for (id, removal) in removals {
            self.state.ledger.enter_removal(Side::Remote, id, Some(removal));
        }
        let settled = self.state.ledger.advance(Step::Commit, Side::Remote);
        debug_assert_eq!(settled, Settled::default());
        let number = CommitmentNumber(self.state.local.number.0 + 1);
        self.state.local = LocalCommitment { number, signature, htlc_signatures };
        let settled = self.state.ledger.advance(Step::Revoke, Side::Local);
        self.state.last_sent = LastSent::Revocation;
        self.tell_settled(settled, fx);
    }

    fn tell_settled(&mut self, settled: Settled, fx: &mut Effects) {
        for (offered_by, id) in settled.added {
            self.on_add_irrevocable(offered_by, id, fx);
        }
        let dust_limit = self.state.terms.party(Side::Remote).dust_limit;
        for (htlc, removal) in settled.removed {
            let id = htlc.add.id;
            // A smaller one has never had an output in a commitment of the peer's.
            if htlc.add.amount.floor_to_sat() >= dust_limit {
                fx.fact(Fact::HtlcPast(PastHtlc::of(&htlc, self.state.remote.number)));
            }
            match (htlc.offered_by, htlc.add.origin) {
                (Side::Remote, _) => fx.fact(Fact::RemovalIrrevocable { id, fulfilled: removal.is_fulfill() }),
                (Side::Local, Some(origin)) => self.keep_outcome(id, origin, removal, fx),
                (Side::Local, None) => {}
            }
        }
    }

    fn on_add_irrevocable(&mut self, offered_by: Side, id: HtlcId, fx: &mut Effects) {
        let htlc = self.state.ledger.htlc_mut(offered_by, id).expect("it has just become irrevocable");
        match offered_by {
            // It will never be sent again.
            Side::Local => htlc.add.onion = None,
            Side::Remote => fx.fact(received_fact(htlc)),
        }
    }

    /// A forward's outcome stays until the incoming side has taken it over (D13). A payment of our own folds the
    /// fact from this very journal: there is nothing to keep.
    fn keep_outcome(&mut self, id: HtlcId, origin: Origin, removal: Removal, fx: &mut Effects) {
        if let Origin::Forward { .. } = origin {
            self.state.outcomes.push(Outcome { id, origin, removal: removal.clone() });
        }
        fx.fact(Fact::OfferResolved { id, origin, removal });
    }
}
