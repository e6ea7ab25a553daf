//! The link comes and goes (BOLT 2, "Message Retransmission").
//!
//! What no signature covers is forgotten when the link goes. When it comes back, `channel_reestablish` says what each
//! side has, and whatever the other lacks is sent again in its original order, before anything new.

use millrace_wire::message::{ChannelReestablish, UpdateAddHtlc, UpdateFee};
use millrace_wire::{CommitmentNumber, Message};

use crate::channel::{Channel, LastSent};
use crate::curve::Curve;
use crate::effect::{Effects, Fact};
use crate::fault::PeerFault;
use crate::input::LinkFeatures;
use crate::ledger::Which;
use crate::ledger::htlc::{Htlc, Status};
use crate::ledger::stage::Stage;
use crate::link::{Link, LinkState};
use crate::phase::Phase;
use crate::record::Record;
use crate::side::Side;

const RULE: &str = "BOLT 2, \"Message Retransmission\"";

/// What the peer's `channel_reestablish` says of its last state.
enum PeerState {
    /// It has everything, or lacks only the messages that can be sent again.
    Level { lacks_commitment: bool, lacks_revocation: bool },
    /// It proved that we revoked a commitment that we do not know of.
    AheadProven,
    /// It lacks more than can be sent again.
    Behind,
}

impl Channel {
    pub(crate) fn on_link_up(&mut self, features: LinkFeatures, fx: &mut Effects) {
        if self.link.state != LinkState::Down {
            self.on_link_down(fx);
        }
        self.link = Link { state: LinkState::Reestablishing, features, ..Link::default() };
        if self.state.phase == Phase::Closed {
            self.link.state = LinkState::Down;
            return;
        }
        fx.send(Message::ChannelReestablish(self.channel_reestablish()));
    }

    /// A connection on which the channel was opened: nothing is to be reestablished.
    pub(crate) fn begin_link(&mut self, features: LinkFeatures) {
        self.link = Link { state: LinkState::Up, features, ..Link::default() };
    }

    pub(crate) fn on_link_down(&mut self, fx: &mut Effects) {
        self.link = Link::default();
        self.drop_proposals(fx);
    }

    /// No signature will ever cover what is merely proposed: the connection or the channel is over.
    pub(crate) fn drop_proposals(&mut self, fx: &mut Effects) {
        for add in self.state.ledger.forget_proposals() {
            if let Some(origin) = add.origin {
                fx.fact(Fact::OfferDropped { origin });
            }
        }
    }

    fn channel_reestablish(&self) -> ChannelReestablish {
        let remote = &self.state.remote;
        let last_secret = remote.unrevoked.0.checked_sub(1).map(|number| {
            remote.secrets.get(CommitmentNumber(number)).expect("every revoked commitment's secret is stored")
        });
        ChannelReestablish {
            channel_id: self.id(),
            next_commitment_number: self.state.local.number.0 + 1,
            next_revocation_number: remote.unrevoked.0,
            your_last_per_commitment_secret: last_secret.unwrap_or([0; 32]),
            my_current_per_commitment_point: self.keys.commitment_point(self.state.local.number),
        }
    }

    pub(crate) fn on_channel_reestablish(
        &mut self,
        message: &ChannelReestablish,
        curve: &impl Curve,
        fx: &mut Effects,
    ) -> Result<(), PeerFault> {
        if self.link.state != LinkState::Reestablishing {
            return Err(PeerFault::disconnect(RULE, "channel_reestablish where none is due"));
        }
        if let Phase::OnChain(_) | Phase::Closed = self.state.phase {
            self.say_failed(fx);
            return Ok(());
        }
        match self.peer_state(message)? {
            PeerState::AheadProven => {
                let remote_point = message.my_current_per_commitment_point;
                self.record(Record::LocalDataLost { remote_point }, fx);
                self.say_failed(fx);
                Ok(())
            }
            PeerState::Behind => {
                self.link.state = LinkState::PeerBehind;
                let (theirs, ours) = (message.next_commitment_number, self.state.remote.number.0 + 1);
                Err(PeerFault::warn(
                    RULE,
                    format!(
                        "you expect commitment {theirs}, {ours} is next: your data is old; send an error and this node closes the channel"
                    ),
                ))
            }
            PeerState::Level { lacks_commitment, lacks_revocation } => {
                self.link.state = LinkState::Up;
                self.link.may_repeat_adds = true;
                self.retransmit_ready(message, fx);
                self.retransmit(lacks_commitment, lacks_revocation, curve, fx);
                self.send_shutdown_if_clean(fx);
                self.propose_removals(fx);
                self.on_depth(fx);
                Ok(())
            }
        }
    }

    fn peer_state(&self, message: &ChannelReestablish) -> Result<PeerState, PeerFault> {
        let (expects_commitment, expects_revocation) = (message.next_commitment_number, message.next_revocation_number);
        let local = self.state.local.number.0;
        let remote = &self.state.remote;
        if expects_commitment == 0 {
            return Err(PeerFault::fail(RULE, "next_commitment_number 0, which is before the channel"));
        }
        let is_secret_ours = self.is_secret_ours(message);
        if expects_revocation > local {
            return if is_secret_ours {
                Ok(PeerState::AheadProven)
            } else {
                let what = format!(
                    "next_revocation_number {expects_revocation} after our {local}, without the secret that would prove it"
                );
                Err(PeerFault::fail(RULE, what))
            };
        }
        if !is_secret_ours {
            return Err(PeerFault::fail(RULE, "your_last_per_commitment_secret is not one of ours"));
        }
        if expects_commitment > remote.number.0 + 1 {
            let what = format!(
                "next_commitment_number {expects_commitment} after our {}, which nothing proves",
                remote.number.0
            );
            return Err(PeerFault::fail(RULE, what));
        }
        let lacks_commitment = expects_commitment == remote.number.0;
        let is_behind = expects_revocation + 1 < local
            || expects_commitment < remote.number.0
            || (lacks_commitment && !remote.is_revoke_outstanding());
        if is_behind {
            return Ok(PeerState::Behind);
        }
        Ok(PeerState::Level { lacks_commitment, lacks_revocation: expects_revocation + 1 == local })
    }

    /// Whether the secret that the peer names is the one we revealed (or would have) last by its count.
    fn is_secret_ours(&self, message: &ChannelReestablish) -> bool {
        let expected = match message.next_revocation_number.checked_sub(1) {
            None => [0; 32],
            Some(number) if number < (1 << 48) => self.keys.commitment_secret(CommitmentNumber(number)),
            Some(_) => return false,
        };
        message.your_last_per_commitment_secret == expected
    }

    /// BOLT 2: `channel_ready` again while both sides are at their first commitment.
    fn retransmit_ready(&self, message: &ChannelReestablish, fx: &mut Effects) {
        let is_at_start = message.next_commitment_number == 1 && self.state.local.number == CommitmentNumber(0);
        if is_at_start && self.state.funding.is_ready_sent {
            fx.send(self.channel_ready());
        }
    }

    /// What the peer lacks, in its original order.
    fn retransmit(&self, commitment: bool, revocation: bool, curve: &impl Curve, fx: &mut Effects) {
        let is_commitment_last = self.state.last_sent == LastSent::Commitment;
        let mut early_adds = 0;
        if commitment {
            self.retransmit_removals(fx);
        }
        if revocation && is_commitment_last {
            if commitment {
                early_adds = usize::from(self.state.early_adds);
                self.committed_adds().take(early_adds).for_each(|add| fx.send(add));
            }
            fx.send(Message::RevokeAndAck(self.revocation()));
        }
        if commitment {
            self.committed_adds().skip(early_adds).for_each(|add| fx.send(add));
            if let Some(feerate) = self.state.ledger.committed_fee(Side::Local) {
                fx.send(Message::UpdateFee(UpdateFee { channel_id: self.id(), feerate }));
            }
            fx.send(Message::CommitmentSigned(self.signatures_for(Which::Current(Side::Remote), curve)));
        }
        if revocation && !is_commitment_last {
            fx.send(Message::RevokeAndAck(self.revocation()));
        }
    }

    /// The removals that our outstanding `commitment_signed` covers. They go first, wherever they went before: none of
    /// them needs what follows, and each add then meets a commitment with no more HTLCs than it met the first time.
    fn retransmit_removals(&self, fx: &mut Effects) {
        for htlc in self.state.ledger.htlcs(Side::Remote) {
            if let Status::Removing(Stage::Committed, removal) = &htlc.status {
                fx.send(self.removal_message(htlc.add.id, removal.clone()));
            }
        }
    }

    /// The adds that our outstanding `commitment_signed` covers. One that left before a `revoke_and_ack` leaves before it
    /// again: LDK as the funder counts its own adds only once we have revoked for them, and closes over one of ours
    /// that it could then not carry.
    fn committed_adds(&self) -> impl Iterator<Item = Message> + '_ {
        let is_committed = |htlc: &&Htlc| htlc.status == Status::Adding(Stage::Committed);
        self.state.ledger.htlcs(Side::Local).iter().filter(is_committed).map(|htlc| self.add_message(htlc))
    }

    fn add_message(&self, htlc: &Htlc) -> Message {
        let add = &htlc.add;
        Message::UpdateAddHtlc(UpdateAddHtlc {
            channel_id: self.id(),
            id: add.id,
            amount: add.amount,
            payment_hash: add.payment_hash,
            cltv_expiry: add.cltv_expiry,
            onion: add.onion.clone().expect("an add keeps its onion until it is irrevocable"),
            path_key: add.path_key,
        })
    }
}
