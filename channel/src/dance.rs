//! `commitment_signed` and `revoke_and_ack` (BOLT 2, "Committing Updates So Far", "Completing the Transition to
//! the Updated State").

use millrace_wire::message::{CommitmentSigned, RevokeAndAck};
use millrace_wire::{CommitmentNumber, HtlcId, Message};

use crate::channel::Channel;
use crate::curve::Curve;
use crate::effect::{Effect, Effects};
use crate::fault::PeerFault;
use crate::input::Millis;
use crate::ledger::Which;
use crate::ledger::htlc::Status;
use crate::ledger::limits::{check_proposals, is_dust_exposed, is_dust_somewhere};
use crate::ledger::stage::Stage;
use crate::record::{CommitmentReceived, Record, Signature64};
use crate::secrets::Secret;
use crate::side::Side;
use crate::tx::commitment::{Commitment, CommitmentSpec};

const RULE_COMMIT: &str = "BOLT 2, \"Committing Updates So Far\"";
const RULE_REVOKE: &str = "BOLT 2, \"Completing the Transition to the Updated State\"";

impl Channel {
    /// The end of a batch of inputs: one `commitment_signed` for everything proposed, if one may be sent.
    pub fn commit(&mut self, now: Millis, curve: &impl Curve, fx: &mut Effects) {
        if self.may_sign() {
            match check_proposals(&self.state.ledger, &self.state.terms) {
                Ok(()) => self.sign_remote(curve, fx),
                Err(short_msat) => self.withdraw_proposals(short_msat, fx),
            }
        }
        if self.link.is_up() && self.state.remote.is_revoke_outstanding() {
            let due = now.plus(self.policy.revoke_timeout_ms);
            self.link.revoke_deadline.get_or_insert(due);
        }
        self.begin_closing(fx);
    }

    fn may_sign(&self) -> bool {
        self.link.is_up()
            && self.may_dance()
            && !self.state.remote.is_revoke_outstanding()
            && (self.state.ledger.has_proposals(Side::Local) || self.state.ledger.owes_cross_commit())
    }

    /// Nothing that was proposed can be taken back but by a new connection, on which it is forgotten.
    fn withdraw_proposals(&mut self, short_msat: u64, fx: &mut Effects) {
        self.on_link_down(fx);
        fx.list.push(Effect::Disconnect(format!(
            "proposals of both sides have crossed, and the funder is {short_msat} msat short of paying for all: ours are withdrawn"
        )));
    }

    fn sign_remote(&mut self, curve: &impl Curve, fx: &mut Effects) {
        let message = self.signatures_for(Which::Next(Side::Remote), curve);
        let record = Record::CommitmentSent {
            removals: self.state.ledger.sent_removals(),
            adds: self.state.ledger.take_proposed_adds(Side::Local),
            feerate: self.state.ledger.take_proposed_fee(Side::Local),
            early_adds: std::mem::take(&mut self.link.early_adds),
        };
        self.record(record, fx);
        fx.send(Message::CommitmentSigned(message));
    }

    /// Signs a commitment of the peer's: the next one, or (to send it again) the current one.
    pub(crate) fn signatures_for(&self, which: Which, curve: &impl Curve) -> CommitmentSigned {
        debug_assert_eq!(which.side(), Side::Remote);
        let commitment = self.build_remote(which);
        let keys = self.remote_keys(&self.remote_point(which));
        let mut jobs = Vec::new();
        commitment.sign_jobs(&self.state.terms, &self.keys, &keys, &mut jobs);
        let mut signatures = Vec::with_capacity(jobs.len());
        curve.sign_all(&jobs, &mut signatures);
        let htlc_signatures = signatures.split_off(1);
        CommitmentSigned { channel_id: self.id(), signature: signatures[0], htlc_signatures }
    }

    /// The number of the commitment that `which` names.
    pub(crate) fn number_of(&self, which: Which) -> CommitmentNumber {
        match which {
            Which::Current(Side::Local) => self.state.local.number,
            Which::Next(Side::Local) => CommitmentNumber(self.state.local.number.0 + 1),
            Which::Current(Side::Remote) => self.state.remote.number,
            Which::Next(Side::Remote) => CommitmentNumber(self.state.remote.number.0 + 1),
            Which::RemoteUnrevoked => self.state.remote.unrevoked,
        }
    }

    /// The per-commitment point of a commitment of the peer's.
    pub(crate) fn remote_point(&self, which: Which) -> secp256k1::PublicKey {
        let remote = &self.state.remote;
        if self.number_of(which) == remote.unrevoked {
            remote.point
        } else {
            remote.next_point.expect("no commitment after the first is signed before channel_ready")
        }
    }

    /// Builds a commitment of the peer's.
    pub(crate) fn build_remote(&self, which: Which) -> Commitment {
        let view = self.checked_view(which);
        let keys = self.remote_keys(&self.remote_point(which));
        let spec = CommitmentSpec {
            side: Side::Remote,
            number: self.number_of(which),
            feerate: view.feerate,
            balances: view.balances,
            htlcs: &view.htlcs,
        };
        Commitment::build(&self.state.terms, &keys, &spec)
    }

    /// `commitment_signed` of the peer: our next commitment, checked, recorded, and the one before revoked.
    pub(crate) fn on_commitment_signed(
        &mut self,
        message: &CommitmentSigned,
        curve: &impl Curve,
        fx: &mut Effects,
    ) -> Result<(), PeerFault> {
        self.check_updates_flow("commitment_signed")?;
        self.check_local_commitment(message, curve)?;
        let record = CommitmentReceived {
            adds: self.state.ledger.take_proposed_adds(Side::Remote),
            removals: self.state.ledger.take_proposed_removals(),
            feerate: self.state.ledger.take_proposed_fee(Side::Remote),
            signature: Signature64(message.signature),
            htlc_signatures: message.htlc_signatures.iter().copied().map(Signature64).collect(),
        };
        self.link.may_repeat_adds = false;
        let proposed = self.state.ledger.proposed(Side::Local).len();
        self.link.early_adds = u16::try_from(proposed).expect("no more are proposed than the peer has slots");
        self.record(Record::CommitmentReceived(Box::new(record)), fx);
        fx.send(Message::RevokeAndAck(self.revocation()));
        Ok(())
    }

    fn check_local_commitment(&self, message: &CommitmentSigned, curve: &impl Curve) -> Result<(), PeerFault> {
        let which = Which::Next(Side::Local);
        let view =
            self.state.ledger.view(which).map_err(|overdrawn| PeerFault::fail(RULE_COMMIT, overdrawn.to_string()))?;
        let number = self.number_of(which);
        let keys = self.local_keys(number);
        let spec = CommitmentSpec {
            side: Side::Local,
            number,
            feerate: view.feerate,
            balances: view.balances,
            htlcs: &view.htlcs,
        };
        let commitment = Commitment::build(&self.state.terms, &keys, &spec);
        let mut jobs = Vec::new();
        commitment
            .verify_jobs(&self.state.terms, &keys, &message.signature, &message.htlc_signatures, &mut jobs)
            .map_err(|mismatch| PeerFault::fail(RULE_COMMIT, mismatch.to_string()))?;
        curve.verify_all(&jobs).map_err(|index| {
            let what = match index.checked_sub(1) {
                None => format!("the signature for commitment {} is not valid", number.0),
                Some(htlc) => format!("HTLC signature {htlc} for commitment {} is not valid", number.0),
            };
            PeerFault::fail(RULE_COMMIT, what)
        })
    }

    /// The newest `revoke_and_ack`: the secret of the commitment before ours, and the point of the one after it.
    /// D9: from here on that commitment is never signed nor broadcast.
    pub(crate) fn revocation(&self) -> RevokeAndAck {
        let number = self.state.local.number;
        let revoked = CommitmentNumber(number.0.checked_sub(1).expect("commitment 0 replaces none"));
        RevokeAndAck {
            channel_id: self.id(),
            per_commitment_secret: self.keys.commitment_secret(revoked),
            next_per_commitment_point: self.keys.commitment_point(CommitmentNumber(number.0 + 1)),
        }
    }

    /// `revoke_and_ack` of the peer.
    pub(crate) fn on_revoke_and_ack(
        &mut self,
        message: &RevokeAndAck,
        _curve: &impl Curve,
        fx: &mut Effects,
    ) -> Result<(), PeerFault> {
        self.check_updates_flow("revoke_and_ack")?;
        if !self.state.remote.is_revoke_outstanding() {
            return Err(PeerFault::fail(RULE_REVOKE, "a revoke_and_ack that no commitment_signed of ours asked for"));
        }
        self.check_revealed(&message.per_commitment_secret)?;
        let record = Record::RevocationReceived {
            secret: Secret(message.per_commitment_secret),
            next_point: message.next_per_commitment_point,
            over_dust_exposure: self.over_dust_exposure(),
        };
        self.link.revoke_deadline = None;
        self.record(record, fx);
        Ok(())
    }

    /// The secret must be that of the point, and derive the earlier ones.
    fn check_revealed(&self, secret: &[u8; 32]) -> Result<(), PeerFault> {
        let remote = &self.state.remote;
        let number = remote.unrevoked;
        let point = secp256k1::SecretKey::from_slice(secret).map(|key| key.public_key(secp256k1::SECP256K1));
        if point != Ok(remote.point) {
            return Err(PeerFault::fail(
                RULE_REVOKE,
                format!("the secret of commitment {} is not that of its point", number.0),
            ));
        }
        let mut secrets = remote.secrets.clone();
        secrets.insert(number, *secret).map_err(|bad| PeerFault::fail(RULE_REVOKE, bad.to_string()))
    }

    /// HTLCs of the peer that the coming revocation makes irrevocable, that are dust, and that stand above the limit:
    /// they are failed back, and the channel stays (interop.md, attacks.md).
    fn over_dust_exposure(&self) -> Vec<HtlcId> {
        let ledger = &self.state.ledger;
        let terms = &self.state.terms;
        let coming =
            || ledger.htlcs(Side::Remote).iter().filter(|htlc| htlc.status == Status::Adding(Stage::CrossCommitted));
        if coming().next().is_none() || !is_dust_exposed(ledger, terms, self.policy.max_dust_exposure) {
            return Vec::new();
        }
        coming()
            .filter(|htlc| is_dust_somewhere(ledger, terms, Side::Remote, htlc.add.amount))
            .map(|htlc| htlc.add.id)
            .collect()
    }

    /// Updates and signatures flow only after `channel_ready` and on a link that is reestablished.
    pub(crate) fn check_updates_flow(&self, name: &str) -> Result<(), PeerFault> {
        if !self.link.is_up() {
            return Err(PeerFault::disconnect(
                "BOLT 2, \"Message Retransmission\"",
                format!("{name} before channel_reestablish"),
            ));
        }
        if !self.may_dance() {
            return Err(PeerFault::disconnect(
                "BOLT 2, \"Normal Operation\"",
                format!("{name} while {}", self.state.phase.name()),
            ));
        }
        Ok(())
    }
}
