//! The channel: what it holds, and the inputs it takes. Each input is one function; what they do stands in the
//! module of the thing they do it to.

use std::sync::Arc;

use bitcoin::{Transaction, TxOut};
use millrace_wire::{BlockHeight, ChannelId, CommitmentNumber, HtlcId, Message, Msat, ShortChannelId};
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::announcement::Announcement;
use crate::curve::Curve;
use crate::effect::{Broadcast, Effect, Effects, Fact, Purpose, Watch};
use crate::fault::{PeerFault, Refusal};
use crate::input::{ChainEvent, Command, LinkEvent, Millis};
use crate::keys::{ChannelKeys, CommitmentKeys};
use crate::ledger::htlc::{Htlc, Origin, Removal};
use crate::ledger::limits::OfferBounds;
use crate::ledger::{Ledger, View, Which};
use crate::link::Link;
use crate::phase::Phase;
use crate::record::{Opened, Record, Signature64};
use crate::secrets::RevealedSecrets;
use crate::side::{Both, Side};
use crate::terms::Terms;

/// What the node's owner decides about a channel, and may change from one start to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The most that may be at stake as dust, in either commitment.
    pub max_dust_exposure: Msat,
    /// An offered HTLC unresolved this many blocks after its expiry closes the channel.
    pub offered_grace: u32,
    /// A received HTLC whose preimage we hold closes the channel this many blocks before its expiry.
    pub received_margin: u32,
    /// An HTLC to be failed because the peer is to answer for it: how long a `revoke_and_ack` may take, in ms.
    pub revoke_timeout_ms: u64,
    /// Confirmations after which an on-chain fact is taken to be final.
    pub burial_depth: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_dust_exposure: Msat(50_000_000),
            offered_grace: 2,
            received_margin: 18,
            revoke_timeout_ms: 30_000,
            burial_depth: 100,
        }
    }
}

/// Whether `revoke_and_ack` or `commitment_signed` went last: the order in which they are sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum LastSent {
    Commitment,
    Revocation,
}

/// Our newest commitment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct LocalCommitment {
    pub(crate) number: CommitmentNumber,
    pub(crate) signature: Signature64,
    pub(crate) htlc_signatures: Vec<Signature64>,
}

/// The peer's commitments: the newest that we signed, and what we know of its secrets and points.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct RemoteCommitments {
    /// The newest one signed.
    pub(crate) number: CommitmentNumber,
    /// The one that is not revoked: `number`, or the one before while a `revoke_and_ack` is outstanding.
    pub(crate) unrevoked: CommitmentNumber,
    /// The point of `unrevoked`.
    pub(crate) point: PublicKey,
    /// The point of the one after it; known from `channel_ready` on.
    pub(crate) next_point: Option<PublicKey>,
    pub(crate) secrets: RevealedSecrets,
}

impl RemoteCommitments {
    pub(crate) fn is_revoke_outstanding(&self) -> bool {
        self.number != self.unrevoked
    }
}

/// Where the funding transaction is, and who has said `channel_ready`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Funding {
    pub(crate) tx: Option<Transaction>,
    pub(crate) opened_at: BlockHeight,
    pub(crate) confirmed: Option<(BlockHeight, ShortChannelId)>,
    /// A coinbase needs 100 confirmations, whatever was agreed.
    pub(crate) is_coinbase: bool,
    pub(crate) local_alias: ShortChannelId,
    pub(crate) is_ready_sent: bool,
    pub(crate) is_ready_received: bool,
    pub(crate) remote_alias: Option<ShortChannelId>,
}

/// How an HTLC of ours ended, kept until whoever it was offered for has taken it over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) id: HtlcId,
    pub(crate) origin: Origin,
    pub(crate) removal: Removal,
}

/// Everything durable: what a snapshot holds, and what replaying the records must arrive at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) terms: Terms,
    pub(crate) keys_index: u64,
    pub(crate) funding: Funding,
    pub(crate) ledger: Ledger,
    pub(crate) local: LocalCommitment,
    pub(crate) remote: RemoteCommitments,
    pub(crate) last_sent: LastSent,
    /// How many adds of our newest `commitment_signed` left before the `revoke_and_ack` before it.
    pub(crate) early_adds: u16,
    pub(crate) outcomes: Vec<Outcome>,
    /// Set by `shutdown` from either side, and kept on chain.
    pub(crate) shutdown: Both<Option<bitcoin::ScriptBuf>>,
    /// The peer proved that our data is old (D11): our commitment is never broadcast.
    pub(crate) is_data_lost: bool,
    pub(crate) phase: Phase,
    /// Stands behind the others in a snapshot: the first version had none.
    #[serde(skip)]
    pub(crate) announcement: Announcement,
}

/// One channel.
#[derive(Debug)]
pub struct Channel {
    pub(crate) state: State,
    pub(crate) keys: ChannelKeys,
    pub(crate) policy: Policy,
    pub(crate) link: Link,
    /// The height that the chain events have told so far.
    pub(crate) tip: BlockHeight,
    /// Volatile: the claims that were asked for last.
    pub(crate) last_claims: Option<crate::phase::on_chain::Claims>,
    /// Volatile: what a mutual close may cost, by the last order.
    pub(crate) close_fees: Option<crate::phase::shutting_down::CloseFees>,
}

/// Why stored bytes are not a channel.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplayError {
    /// The snapshot's version is unknown.
    #[error("snapshot version {0}: this build knows version {SNAPSHOT_VERSION}")]
    UnknownVersion(u8),
    /// The snapshot does not decode.
    #[error("the snapshot does not decode: {0}")]
    Malformed(String),
    /// The keys are not those the channel was opened with.
    #[error("the keys do not belong to channel {0}: is this another node's data?")]
    WrongKeys(ChannelId),
    /// The first record of a channel is `Opened`, and no other one is.
    #[error("record {0} cannot stand where it does")]
    OutOfPlace(&'static str),
}

const SNAPSHOT_VERSION: u8 = 3;
/// Before it was known of HTLCs since when they stand in the peer's commitments.
const SNAPSHOT_WITHOUT_SINCE: u8 = 2;
/// Before channels were announced.
const SNAPSHOT_UNANNOUNCED: u8 = 1;

impl Channel {
    // --- a channel begins, or begins again ---

    /// A channel from its first record. Nothing is emitted: see [`Channel::resume`] after a restart.
    ///
    /// # Errors
    /// [`ReplayError::WrongKeys`] if the keys are not those of the record.
    pub fn from_opened(opened: Opened, keys: ChannelKeys, policy: Policy) -> Result<Self, ReplayError> {
        let balances = opened.balances();
        let Opened { terms, keys_index, feerate, signature, remote_first_point, funding_tx, opened_at, local_alias } =
            opened;
        if terms.party(Side::Local).basepoints != *keys.basepoints() {
            return Err(ReplayError::WrongKeys(terms.channel_id));
        }
        let state = State {
            ledger: Ledger::new(terms.funder, balances, feerate),
            funding: Funding {
                tx: funding_tx,
                opened_at,
                confirmed: None,
                is_coinbase: false,
                local_alias,
                is_ready_sent: false,
                is_ready_received: false,
                remote_alias: None,
            },
            local: LocalCommitment { number: CommitmentNumber(0), signature, htlc_signatures: Vec::new() },
            remote: RemoteCommitments {
                number: CommitmentNumber(0),
                unrevoked: CommitmentNumber(0),
                point: remote_first_point,
                next_point: None,
                secrets: RevealedSecrets::new(),
            },
            last_sent: LastSent::Revocation,
            early_adds: 0,
            outcomes: Vec::new(),
            shutdown: Both::default(),
            is_data_lost: false,
            phase: Phase::Opening,
            announcement: Announcement::default(),
            terms,
            keys_index,
        };
        Ok(Self {
            tip: state.funding.opened_at,
            state,
            keys,
            policy,
            link: Link::default(),
            last_claims: None,
            close_fees: None,
        })
    }

    /// A channel from a snapshot. Records written after it follow by [`Channel::replay`], then [`Channel::resume`].
    ///
    /// # Errors
    /// [`ReplayError`] if the bytes are not a snapshot that this build knows, or not of these keys.
    pub fn restore(
        snapshot: &[u8],
        policy: Policy,
        keys_of: impl FnOnce(u64) -> ChannelKeys,
    ) -> Result<Self, ReplayError> {
        let state: State = match snapshot.split_first() {
            Some((&SNAPSHOT_VERSION, body)) => {
                let (mut state, rest) = postcard::take_from_bytes::<State>(body).map_err(malformed)?;
                let (announcement, rest) = postcard::take_from_bytes(rest).map_err(malformed)?;
                let since: Vec<CommitmentNumber> = postcard::from_bytes(rest).map_err(malformed)?;
                if !state.ledger.set_since(&since) {
                    return Err(ReplayError::Malformed(format!("it tells since when of {} HTLCs", since.len())));
                }
                State { announcement, ..state }
            }
            Some((&SNAPSHOT_WITHOUT_SINCE, body)) => {
                let (state, rest) = postcard::take_from_bytes::<State>(body).map_err(malformed)?;
                State { announcement: postcard::from_bytes(rest).map_err(malformed)?, ..state }
            }
            Some((&SNAPSHOT_UNANNOUNCED, body)) => postcard::from_bytes(body).map_err(malformed)?,
            Some((&version, _)) => return Err(ReplayError::UnknownVersion(version)),
            None => return Err(ReplayError::Malformed("it is empty".to_owned())),
        };
        let keys = keys_of(state.keys_index);
        if state.terms.party(Side::Local).basepoints != *keys.basepoints() {
            return Err(ReplayError::WrongKeys(state.terms.channel_id));
        }
        Ok(Self {
            tip: state.funding.opened_at,
            state,
            keys,
            policy,
            link: Link::default(),
            last_claims: None,
            close_fees: None,
        })
    }

    /// Applies a record that was written before. The facts that come out are the same, in the same order, as
    /// when it was written.
    ///
    /// # Errors
    /// [`ReplayError::OutOfPlace`] for a second `Opened`.
    pub fn replay(&mut self, record: Record, fx: &mut Effects) -> Result<(), ReplayError> {
        if let Record::Opened(_) = record {
            return Err(ReplayError::OutOfPlace(record.name()));
        }
        self.apply(record, fx);
        Ok(())
    }

    /// Appends everything durable. Proposals are not in it.
    pub fn snapshot(&self, out: &mut Vec<u8>) {
        out.push(SNAPSHOT_VERSION);
        let taken = std::mem::take(out);
        let written = postcard::to_extend(&self.state, taken)
            .and_then(|state| postcard::to_extend(&self.state.announcement, state))
            .and_then(|state| postcard::to_extend(&self.state.ledger.since(), state));
        *out = written.expect("the state holds nothing that postcard cannot write");
    }

    /// After a restart: everything that is still owed to the world, but for messages, which
    /// `channel_reestablish` covers. Idempotent.
    pub fn resume(&mut self, fx: &mut Effects) {
        self.watch_funding(fx);
        if let (None, Some(tx)) = (self.state.funding.confirmed, &self.state.funding.tx) {
            fx.list.push(Effect::Broadcast(Broadcast { tx: tx.clone(), purpose: Purpose::Funding }));
        }
        for htlc in self.state.ledger.htlcs(Side::Remote).iter().filter(|htlc| htlc.is_live()) {
            fx.fact(received_fact(htlc));
        }
        for htlc in self.state.ledger.htlcs(Side::Local) {
            if let (Some(preimage), Some(origin)) = (&htlc.known_preimage, htlc.add.origin) {
                fx.fact(Fact::OfferFulfilled { id: htlc.add.id, origin, preimage: preimage.clone() });
            }
        }
        for Outcome { id, origin, removal } in &self.state.outcomes {
            fx.fact(Fact::OfferResolved { id: *id, origin: *origin, removal: removal.clone() });
        }
        self.resume_closing(fx);
        self.resume_on_chain(fx);
        self.resume_announcement(fx);
    }

    // --- inputs ---

    /// A message of the peer for this channel.
    ///
    /// # Errors
    /// [`PeerFault`] if the peer broke a rule; what the reaction asks of the channel has been done.
    pub fn on_message(&mut self, message: Message, curve: &impl Curve, fx: &mut Effects) -> Result<(), PeerFault> {
        let result = self.dispatch(message, curve, fx);
        if let Err(fault) = &result {
            self.react(fault, fx);
        }
        result
    }

    fn dispatch(&mut self, message: Message, curve: &impl Curve, fx: &mut Effects) -> Result<(), PeerFault> {
        if let Phase::OnChain(_) | Phase::Closed = self.state.phase {
            return self.dispatch_ended(message, curve, fx);
        }
        match message {
            Message::ChannelReestablish(m) => self.on_channel_reestablish(&m, curve, fx),
            Message::ChannelReady(m) => self.on_channel_ready(&m, fx),
            Message::UpdateAddHtlc(m) => self.on_update_add_htlc(m),
            Message::UpdateFulfillHtlc(m) => self.on_update_fulfill_htlc(m, fx),
            Message::UpdateFailHtlc(m) => self.on_update_fail_htlc(m),
            Message::UpdateFailMalformedHtlc(m) => self.on_update_fail_malformed_htlc(&m),
            Message::UpdateFee(m) => self.on_update_fee(&m),
            Message::CommitmentSigned(m) => self.on_commitment_signed(&m, curve, fx),
            Message::RevokeAndAck(m) => self.on_revoke_and_ack(&m, curve, fx),
            Message::Shutdown(m) => self.on_shutdown(m, fx),
            Message::ClosingSigned(m) => self.on_closing_signed(&m, fx),
            Message::ClosingComplete(m) => self.on_closing_complete(m, fx),
            Message::ClosingSig(m) => self.on_closing_sig(m, fx),
            Message::Error(m) => {
                self.on_error(&m.data, fx);
                Ok(())
            }
            Message::Warning(m) => {
                fx.fact(Fact::PeerSaid { is_error: false, text: printable(&m.data) });
                Ok(())
            }
            Message::AnnouncementSignatures(m) => self.on_announcement_signatures(m, fx),
            other => Err(PeerFault::warn("BOLT 2", format!("{} is not for an established channel", other.name()))),
        }
    }

    /// A peer that has not heard yet that the channel is over goes on as before: nobody's fault. A preimage is welcome.
    fn dispatch_ended(&mut self, message: Message, curve: &impl Curve, fx: &mut Effects) -> Result<(), PeerFault> {
        match message {
            Message::ChannelReestablish(m) => self.on_channel_reestablish(&m, curve, fx),
            Message::UpdateFulfillHtlc(m) => {
                self.learn_preimage(m.id, m.preimage, fx);
                Ok(())
            }
            Message::Error(m) => {
                fx.fact(Fact::PeerSaid { is_error: true, text: m.text() });
                Ok(())
            }
            Message::Warning(m) => {
                fx.fact(Fact::PeerSaid { is_error: false, text: m.text() });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn react(&mut self, fault: &PeerFault, fx: &mut Effects) {
        use crate::fault::Reaction;
        let text = fault.to_string().into_bytes();
        let channel_id = self.id();
        match fault.reaction {
            Reaction::Warn => fx.send(Message::Warning(millrace_wire::message::Warning { channel_id, data: text })),
            Reaction::Disconnect => {
                fx.send(Message::Warning(millrace_wire::message::Warning { channel_id, data: text }));
                fx.list.push(Effect::Disconnect(fault.to_string()));
            }
            Reaction::FailChannel => self.fail(fault.to_string(), fx),
        }
    }

    /// BOLT 1, "The `error` and `warning` Messages": an `error` fails the channel.
    fn on_error(&mut self, data: &[u8], fx: &mut Effects) {
        let text = printable(data);
        fx.fact(Fact::PeerSaid { is_error: true, text: text.clone() });
        self.peer_failed(&text, fx);
    }

    /// An order of our own node.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed.
    pub fn on_command(&mut self, command: Command, fx: &mut Effects) -> Result<(), Refusal> {
        match command {
            Command::Offer(offer) => self.offer(offer, fx).map(|_| ()),
            Command::Fulfill { id, preimage, attribution, is_durable } => {
                self.check_preimage(id, &preimage)?;
                self.decide(id, Removal::Fulfill { preimage, attribution }, is_durable, fx)
            }
            Command::Fail { id, reason, attribution } => {
                self.decide(id, Removal::Fail { reason, attribution }, false, fx)
            }
            Command::FailMalformed { id, sha256_of_onion, failure_code } => {
                self.decide(id, Removal::Malformed { sha256_of_onion, failure_code }, false, fx)
            }
            Command::UpdateFee(feerate) => self.update_fee(feerate, fx),
            Command::ReleaseOutcome(id) => {
                self.release_outcome(id, fx);
                Ok(())
            }
            Command::Close(order) => self.close(order, fx),
            Command::BreachHtlcs(htlcs) => self.take_past_htlcs(&htlcs, fx),
            Command::Preimages(preimages) => {
                self.take_preimages(&preimages, fx);
                Ok(())
            }
            Command::ForceClose { reason } => self.force_close(reason, fx),
        }
    }

    /// News of the link.
    pub fn on_link(&mut self, event: LinkEvent, fx: &mut Effects) {
        match event {
            LinkEvent::Up { features } => self.on_link_up(features, fx),
            LinkEvent::Down => self.on_link_down(fx),
        }
    }

    /// News of the chain.
    pub fn on_chain(&mut self, event: ChainEvent, fx: &mut Effects) {
        match event {
            ChainEvent::Tip { height, .. } => {
                self.tip = height;
                self.on_depth(fx);
                self.on_tip(fx);
            }
            ChainEvent::Confirmed { tx, index } => self.on_confirmed(&tx, index, fx),
            ChainEvent::Unconfirmed { tx } => self.on_unconfirmed(&tx, fx),
            ChainEvent::Disconnected { height } => {
                self.tip = BlockHeight(height.0.saturating_sub(1));
                self.on_disconnected(height, fx);
            }
        }
    }

    fn on_confirmed(&mut self, tx: &Arc<Transaction>, index: u32, fx: &mut Effects) {
        if tx.compute_txid() == self.state.terms.funding_outpoint.txid {
            self.on_funding_confirmed(tx, index, fx);
        }
        self.on_spend_confirmed(tx, fx);
    }

    /// The time has come that [`Channel::deadline`] asked for.
    pub fn on_time(&mut self, now: Millis, fx: &mut Effects) {
        if let Some(deadline) = self.link.revoke_deadline
            && deadline <= now
        {
            self.link.revoke_deadline = None;
            let seconds = self.policy.revoke_timeout_ms / 1000;
            fx.list.push(Effect::Disconnect(format!("no revoke_and_ack within {seconds} s")));
        }
    }

    /// When [`Channel::on_time`] is to be called, if at all.
    #[must_use]
    pub const fn deadline(&self) -> Option<Millis> {
        self.link.revoke_deadline
    }

    // --- what others may see ---

    /// The channel's id.
    #[must_use]
    pub const fn id(&self) -> ChannelId {
        self.state.terms.channel_id
    }

    /// What was agreed at opening.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.state.terms
    }

    /// Balances, HTLCs and feerate.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.state.ledger
    }

    /// What the peer has revealed of its revoked commitments: what a watchtower is told.
    #[must_use]
    pub const fn revealed_secrets(&self) -> &RevealedSecrets {
        &self.state.remote.secrets
    }

    /// Which of the node's channel keys it uses.
    #[must_use]
    pub const fn keys_index(&self) -> u64 {
        self.state.keys_index
    }

    /// Where it is in its life.
    #[must_use]
    pub const fn phase(&self) -> &Phase {
        &self.state.phase
    }

    /// An HTLC by who offered it and its id, with its onion while that can still be needed.
    #[must_use]
    pub fn htlc(&self, offered_by: Side, id: HtlcId) -> Option<&Htlc> {
        self.state.ledger.htlc(offered_by, id)
    }

    /// Whether an HTLC was offered for this and is still here: proposed, in flight, or ended and its outcome kept.
    #[must_use]
    pub fn has_origin(&self, origin: Origin) -> bool {
        let ledger = &self.state.ledger;
        ledger.htlcs(Side::Local).iter().any(|htlc| htlc.add.origin == Some(origin))
            || ledger.proposed(Side::Local).iter().any(|add| add.origin == Some(origin))
            || self.state.outcomes.iter().any(|outcome| outcome.origin == origin)
    }

    /// HTLCs of ours that have ended and whose outcome waits for [`Command::ReleaseOutcome`].
    pub fn kept_outcomes(&self) -> impl Iterator<Item = (HtlcId, Origin)> + '_ {
        self.state.outcomes.iter().map(|outcome| (outcome.id, outcome.origin))
    }

    /// The most that one HTLC can carry now: exactly this much is accepted, one millisatoshi more is refused.
    #[must_use]
    pub fn available_to_send(&self) -> Msat {
        OfferBounds::new(&self.state.ledger, &self.state.terms, self.policy.max_dust_exposure).available()
    }

    /// The commitment numbers: of our newest commitment, and of the newest that we signed for the peer.
    #[must_use]
    pub const fn commitment_numbers(&self) -> Both<CommitmentNumber> {
        Both { local: self.state.local.number, remote: self.state.remote.number }
    }

    /// The real short channel id, once the funding transaction is in a block.
    #[must_use]
    pub fn short_channel_id(&self) -> Option<ShortChannelId> {
        self.state.funding.confirmed.map(|(_, scid)| scid)
    }

    /// The aliases told in `channel_ready`: ours (from the start), and the peer's.
    #[must_use]
    pub const fn aliases(&self) -> (ShortChannelId, Option<ShortChannelId>) {
        (self.state.funding.local_alias, self.state.funding.remote_alias)
    }

    /// Confirmations of the funding transaction, as far as the chain events tell.
    #[must_use]
    pub fn funding_depth(&self) -> u32 {
        self.state.funding.confirmed.map_or(0, |(height, _)| (self.tip.0 + 1).saturating_sub(height.0))
    }

    /// Whether updates may be sent on the present connection.
    #[must_use]
    pub const fn is_link_up(&self) -> bool {
        self.link.is_up()
    }

    /// Whether a `commitment_signed` of ours waits for the peer's `revoke_and_ack`.
    #[must_use]
    pub fn awaits_revocation(&self) -> bool {
        self.state.remote.is_revoke_outstanding()
    }

    /// Whether nothing of ours or of the peer's is under way: no HTLC, no fee, no signature outstanding.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.state.ledger.is_empty()
            && !self.state.ledger.is_fee_pending()
            && !self.state.remote.is_revoke_outstanding()
    }

    /// Equal in everything durable: what replaying the records must arrive at.
    #[must_use]
    pub fn is_same_state(&self, other: &Self) -> bool {
        self.state == other.state
    }

    // --- commitments, for the modules of this crate ---

    /// The keys of a commitment of ours.
    pub(crate) fn local_keys(&self, number: CommitmentNumber) -> CommitmentKeys {
        CommitmentKeys::of(&self.state.terms, Side::Local, &self.keys.commitment_point(number))
    }

    /// The keys of a commitment of the peer's.
    pub(crate) fn remote_keys(&self, point: &PublicKey) -> CommitmentKeys {
        CommitmentKeys::of(&self.state.terms, Side::Remote, point)
    }

    /// What a commitment that was checked before holds.
    pub(crate) fn checked_view(&self, which: Which) -> View {
        self.state.ledger.view(which).expect("no signed commitment is overdrawn: it was checked when it was signed")
    }

    /// The funding output.
    pub(crate) fn funding_txout(&self) -> TxOut {
        crate::tx::funding::output_of(&self.state.terms)
    }

    /// Asks for everything about the funding output.
    pub(crate) fn watch_funding(&self, fx: &mut Effects) {
        let script = self.funding_txout().script_pubkey;
        let outpoint = self.state.terms.funding_outpoint;
        fx.list.push(Effect::Watch(Watch::Confirmation { txid: outpoint.txid, script: script.clone() }));
        fx.list.push(Effect::Watch(Watch::Spend { outpoint, script }));
    }

    /// check → record → emit: the record is written down, then applied.
    pub(crate) fn record(&mut self, record: Record, fx: &mut Effects) {
        fx.record(&record);
        self.apply(record, fx);
    }
}

fn malformed(error: postcard::Error) -> ReplayError {
    ReplayError::Malformed(error.to_string())
}

/// What is told of an HTLC of the peer that is irrevocably there.
pub(crate) fn received_fact(htlc: &Htlc) -> Fact {
    Fact::HtlcReceived {
        id: htlc.add.id,
        amount: htlc.add.amount,
        payment_hash: htlc.add.payment_hash,
        cltv_expiry: htlc.add.cltv_expiry,
        over_dust_exposure: htlc.over_dust_exposure,
    }
}

/// BOLT 1: text of the peer is shown only as far as it is printable ASCII, and not without end.
fn printable(data: &[u8]) -> String {
    data.iter().take(500).map(|&byte| if (32..127).contains(&byte) { char::from(byte) } else { '.' }).collect()
}
