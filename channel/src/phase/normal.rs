//! Updates while HTLCs flow: adding, removing, the fee (BOLT 2, "Normal Operation").

use millrace_wire::message::{UpdateAddHtlc, UpdateFailHtlc, UpdateFailMalformedHtlc, UpdateFee, UpdateFulfillHtlc};
use millrace_wire::{FeeratePerKw, HtlcId, Message, Preimage};

use crate::channel::Channel;
use crate::effect::{Effects, Fact};
use crate::fault::{PeerFault, Refusal};
use crate::input::Offer;
use crate::ledger::htlc::{Add, Origin, Removal, Status};
use crate::ledger::limits::{CLTV_EXPIRY_LIMIT, OfferBounds, check_peer_add, check_peer_fee, check_update_fee};
use crate::phase::Phase;
use crate::record::Record;
use crate::side::Side;

const RULE_ADD: &str = "BOLT 2, \"Adding an HTLC\"";
const RULE_REMOVE: &str = "BOLT 2, \"Removing an HTLC\"";
const RULE_FEE: &str = "BOLT 2, \"Updating Fees\"";

/// BOLT 4: the bit that says that the onion itself was bad.
const BADONION: u16 = 0x8000;

/// A failure packet has 292 bytes, or some more (BOLT 4, "Returning Errors"). Of a longer one no more is kept: a peer that
/// fails all 483 HTLCs at once must not make a record that cannot be written.
const REASON_BYTES_MAX: usize = 1_024;

/// A feerate above this is refused: absurdly high, 1,000 sat/vB.
pub(crate) const FEERATE_MAX: FeeratePerKw = FeeratePerKw(250_000);

impl Channel {
    // --- orders of our node ---

    /// Offers an HTLC.
    ///
    /// # Errors
    /// [`Refusal`] with the limit that it would break; nothing has changed.
    pub fn offer(&mut self, offer: Offer, fx: &mut Effects) -> Result<HtlcId, Refusal> {
        self.check_may_offer()?;
        self.check_expiry(&offer)?;
        OfferBounds::new(&self.state.ledger, &self.state.terms, self.policy.max_dust_exposure).check(offer.amount)?;
        let id = self.state.ledger.next_id(Side::Local);
        let Offer { amount, payment_hash, cltv_expiry, onion, path_key, origin } = offer;
        fx.send(Message::UpdateAddHtlc(UpdateAddHtlc {
            channel_id: self.id(),
            id,
            amount,
            payment_hash,
            cltv_expiry,
            onion: onion.clone(),
            path_key,
        }));
        let add = Add { id, amount, payment_hash, cltv_expiry, onion: Some(onion), path_key, origin: Some(origin) };
        self.state.ledger.propose_add(Side::Local, add);
        Ok(id)
    }

    fn check_may_offer(&self) -> Result<(), Refusal> {
        match self.state.phase {
            Phase::Normal => {}
            Phase::Opening => return Err(Refusal::NotUsable("it is not ready yet")),
            Phase::ShuttingDown | Phase::Closing(_) => return Err(Refusal::NotUsable("it is closing")),
            Phase::OnChain(_) | Phase::Closed => return Err(Refusal::NotUsable("it is closed")),
        }
        if self.link.is_up() { Ok(()) } else { Err(Refusal::NotUsable("the peer is not connected")) }
    }

    fn check_expiry(&self, offer: &Offer) -> Result<(), Refusal> {
        let expiry = offer.cltv_expiry.0;
        if expiry <= self.tip.0 || expiry >= CLTV_EXPIRY_LIMIT {
            return Err(Refusal::BadExpiry { expiry, height: self.tip.0 });
        }
        Ok(())
    }

    pub(crate) fn check_preimage(&self, id: HtlcId, preimage: &Preimage) -> Result<(), Refusal> {
        match self.state.ledger.htlc(Side::Remote, id) {
            Some(htlc) if preimage.hash() != htlc.add.payment_hash => Err(Refusal::WrongPreimage { id }),
            Some(_) | None => Ok(()),
        }
    }

    /// Records how an HTLC of the peer ends, even if the peer is away or the channel is on chain, and proposes it if the
    /// link is up. Of a decision that is durable elsewhere the proposal does not wait for the record.
    pub(crate) fn decide(
        &mut self,
        id: HtlcId,
        removal: Removal,
        is_durable: bool,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let what = if removal.is_fulfill() { "fulfilled" } else { "failed" };
        match self.state.ledger.htlc(Side::Remote, id) {
            Some(htlc) if htlc.is_live() => {}
            Some(_) | None => return Err(Refusal::NotThere { id, what }),
        }
        let ahead = is_durable.then(|| fx.ahead_of_records());
        self.record(Record::RemovalDecided { id, removal: removal.recorded() }, fx);
        if self.link.is_up() && self.may_dance() {
            self.note_proposed(id);
            let message = self.removal_message(id, removal);
            match ahead {
                Some(place) => fx.send_at(place, message),
                None => fx.send(message),
            }
        }
        self.on_removal_decided_on_chain(fx);
        Ok(())
    }

    /// Sends the removals that were decided and not sent on this connection: after every retransmitted
    /// `commitment_signed`, whose signature does not cover them.
    pub(crate) fn propose_removals(&mut self, fx: &mut Effects) {
        let is_waiting =
            |htlc: &&crate::ledger::htlc::Htlc| matches!(htlc.status, Status::Decided(_)) && !htlc.removal_sent;
        let ids: Vec<HtlcId> =
            self.state.ledger.htlcs(Side::Remote).iter().filter(is_waiting).map(|htlc| htlc.add.id).collect();
        for id in ids {
            let removal = self.note_proposed(id);
            fx.send(self.removal_message(id, removal));
        }
    }

    /// A decided removal is proposed on this connection.
    fn note_proposed(&mut self, id: HtlcId) -> Removal {
        let htlc = self.state.ledger.htlc_mut(Side::Remote, id).expect("decided HTLCs are in the ledger");
        let Status::Decided(removal) = &htlc.status else { unreachable!("only decided removals are proposed") };
        htlc.removal_sent = true;
        removal.clone()
    }

    /// The `update_…` message of a removal.
    pub(crate) fn removal_message(&self, id: HtlcId, removal: Removal) -> Message {
        let channel_id = self.id();
        match removal {
            Removal::Fulfill { preimage, attribution } => {
                Message::UpdateFulfillHtlc(UpdateFulfillHtlc { channel_id, id, preimage, attribution })
            }
            Removal::Fail { reason, attribution } => {
                Message::UpdateFailHtlc(UpdateFailHtlc { channel_id, id, reason, attribution })
            }
            Removal::Malformed { sha256_of_onion, failure_code } => {
                Message::UpdateFailMalformedHtlc(UpdateFailMalformedHtlc {
                    channel_id,
                    id,
                    sha256_of_onion,
                    failure_code,
                })
            }
        }
    }

    /// `update_fee`, by the funder. Of several before a signature only the last counts.
    ///
    /// BOLT 2 lets one follow while another is signed and not irrevocable. LDK keeps but one: it would forget the
    /// first, and sign our commitment at another feerate than we expect. So the next one waits.
    pub(crate) fn update_fee(&mut self, feerate: FeeratePerKw, fx: &mut Effects) -> Result<(), Refusal> {
        if self.state.terms.funder != Side::Local {
            return Err(Refusal::NotFunder);
        }
        if !self.may_dance() {
            return Err(Refusal::NotUsable("it is not open"));
        }
        // BOLT 2: no update once a channel that shuts down is empty.
        if self.state.phase == Phase::ShuttingDown && self.state.ledger.is_empty() {
            return Err(Refusal::NotUsable("it is closing"));
        }
        if !self.link.is_up() {
            return Err(Refusal::NotUsable("the peer is not connected"));
        }
        if let Some(before) = self.state.ledger.fee_under_way() {
            return Err(Refusal::FeeUpdateUnderWay { before });
        }
        check_update_fee(&self.state.ledger, &self.state.terms, feerate, self.policy.max_dust_exposure)?;
        self.state.ledger.propose_fee(feerate);
        fx.send(Message::UpdateFee(UpdateFee { channel_id: self.id(), feerate }));
        Ok(())
    }

    pub(crate) fn release_outcome(&mut self, id: HtlcId, fx: &mut Effects) {
        if self.state.outcomes.iter().any(|outcome| outcome.id == id) {
            self.record(Record::OutcomeReleased { id }, fx);
        }
    }

    // --- messages of the peer ---

    pub(crate) fn on_update_add_htlc(&mut self, message: UpdateAddHtlc) -> Result<(), PeerFault> {
        self.check_updates_flow("update_add_htlc")?;
        // LDK says `shutdown` again before it sends again what it had signed earlier.
        if self.state.shutdown.remote.is_some() && !self.link.may_repeat_adds {
            return Err(PeerFault::fail(
                "BOLT 2, \"Closing Initiation\"",
                "update_add_htlc after the peer's own shutdown",
            ));
        }
        let UpdateAddHtlc { channel_id: _, id, amount, payment_hash, cltv_expiry, onion, path_key } = message;
        let expected = self.state.ledger.next_id(Side::Remote);
        if id != expected {
            return Err(PeerFault::fail(RULE_ADD, format!("htlc id {} where {} is next", id.0, expected.0)));
        }
        check_peer_add(&self.state.ledger, &self.state.terms, amount, cltv_expiry)
            .map_err(|fault| PeerFault::add(id, &fault))?;
        let add = Add { id, amount, payment_hash, cltv_expiry, onion: Some(onion), path_key, origin: None };
        self.state.ledger.propose_add(Side::Remote, add);
        Ok(())
    }

    pub(crate) fn on_update_fulfill_htlc(
        &mut self,
        message: UpdateFulfillHtlc,
        fx: &mut Effects,
    ) -> Result<(), PeerFault> {
        self.check_removable(message.id, "update_fulfill_htlc")?;
        let htlc = self.state.ledger.htlc(Side::Local, message.id).expect("checked to be there");
        if message.preimage.hash() != htlc.add.payment_hash {
            return Err(PeerFault::fail(RULE_REMOVE, format!("the preimage is not that of htlc {}", message.id.0)));
        }
        if htlc.known_preimage.is_none() {
            match (htlc.add.origin, message.attribution) {
                (Some(Origin::Forward { .. }), Some(attribution)) => {
                    self.record(Record::AttributionReceived { id: message.id, attribution }, fx);
                }
                (Some(origin @ Origin::Payment { .. }), Some(attribution)) => {
                    fx.fact(Fact::OfferAttributed { origin, attribution });
                }
                (None, _) | (_, None) => {}
            }
            self.record(Record::PreimageReceived { id: message.id, preimage: message.preimage.clone() }, fx);
        }
        let removal = Removal::Fulfill { preimage: message.preimage, attribution: None };
        self.propose_peer_removal(message.id, removal);
        Ok(())
    }

    pub(crate) fn on_update_fail_htlc(&mut self, message: UpdateFailHtlc) -> Result<(), PeerFault> {
        self.check_removable(message.id, "update_fail_htlc")?;
        let UpdateFailHtlc { id, mut reason, attribution, .. } = message;
        // It is no failure packet of BOLT 4, and nobody could read it anyway.
        reason.truncate(REASON_BYTES_MAX);
        self.propose_peer_removal(id, Removal::Fail { reason, attribution });
        Ok(())
    }

    pub(crate) fn on_update_fail_malformed_htlc(&mut self, message: &UpdateFailMalformedHtlc) -> Result<(), PeerFault> {
        self.check_removable(message.id, "update_fail_malformed_htlc")?;
        if message.failure_code & BADONION == 0 {
            let what =
                format!("failure_code {:#06x} of htlc {} has no BADONION bit", message.failure_code, message.id.0);
            return Err(PeerFault::fail(RULE_REMOVE, what));
        }
        let removal =
            Removal::Malformed { sha256_of_onion: message.sha256_of_onion, failure_code: message.failure_code };
        self.propose_peer_removal(message.id, removal);
        Ok(())
    }

    /// BOLT 2: only an HTLC that is irrevocably committed may be removed, and only once.
    fn check_removable(&self, id: HtlcId, name: &str) -> Result<(), PeerFault> {
        self.check_updates_flow(name)?;
        match self.state.ledger.htlc(Side::Local, id) {
            None => Err(PeerFault::fail(RULE_REMOVE, format!("{name} for htlc {}, which is not there", id.0))),
            Some(htlc) if htlc.is_live() && htlc.proposed_removal.is_none() => Ok(()),
            Some(htlc) if htlc.is_live() || matches!(htlc.status, Status::Removing(_, _)) => Err(
                PeerFault::disconnect(RULE_REMOVE, format!("{name} for htlc {}, which is being removed already", id.0)),
            ),
            Some(_) => {
                Err(PeerFault::fail(RULE_REMOVE, format!("{name} for htlc {}, which is not irrevocable yet", id.0)))
            }
        }
    }

    fn propose_peer_removal(&mut self, id: HtlcId, removal: Removal) {
        let htlc = self.state.ledger.htlc_mut(Side::Local, id).expect("checked to be there");
        htlc.proposed_removal = Some(removal);
    }

    pub(crate) fn on_update_fee(&mut self, message: &UpdateFee) -> Result<(), PeerFault> {
        self.check_updates_flow("update_fee")?;
        if self.state.terms.funder != Side::Remote {
            return Err(PeerFault::fail(RULE_FEE, "update_fee from the side that did not fund"));
        }
        let feerate = message.feerate;
        if feerate < FeeratePerKw::FLOOR || feerate > FEERATE_MAX {
            let what =
                format!("feerate_per_kw {} is not between {} and {}", feerate.0, FeeratePerKw::FLOOR.0, FEERATE_MAX.0);
            return Err(PeerFault::fail(RULE_FEE, what));
        }
        check_peer_fee(&self.state.ledger, &self.state.terms, feerate).map_err(|short_msat| {
            PeerFault::fail(RULE_FEE, format!("feerate_per_kw {}: {short_msat} msat short of the fee", feerate.0))
        })?;
        self.state.ledger.propose_fee(feerate);
        Ok(())
    }
}
