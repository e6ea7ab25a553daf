//! Negotiating a channel (BOLT 2, "Channel Establishment v1"), until its first record.
//!
//! An [`Opening`] is volatile: a disconnect or a restart forgets it, by dropping it. It has a fixed size, whatever the
//! peer sends; how many of them a peer may have at once is for the caller to bound, before it calls
//! [`Opening::accept`]. It chooses no coins and makes no funding transaction: the wallet does.
//!
//! ```text
//! funder                                   fundee
//! propose ── open_channel ──────────────►  accept
//! FundingNeeded ◄────────── accept_channel ──
//! fund ── funding_created ──────────────►  Opened: journal, funding_signed
//! Opened: journal, broadcast ◄──── funding_signed ──
//! ```

mod agreement;
mod limits;
mod message;
mod request;

#[cfg(test)]
mod tests;

use bitcoin::{OutPoint, ScriptBuf, Transaction};
use millrace_wire::message::{AcceptChannel, Error, FundingCreated, FundingSigned, OpenChannel, Warning};
use millrace_wire::{BlockHeight, ChannelId, Message, Sat};
use secp256k1::PublicKey;

use self::agreement::Agreement;
pub use self::limits::{DUST_LIMIT_MAX, DUST_LIMIT_MIN, LARGE_CHANNEL, OpeningLimits, Unacceptable};
use self::message::{accept_channel, open_channel};
pub use self::request::{AcceptParams, LocalParams, OpenRequest, OpeningFeatures};
use crate::channel::{Channel, Policy};
use crate::curve::Curve;
use crate::effect::{Broadcast, Effect, Effects, Fact, Purpose};
use crate::fault::{PeerFault, Refusal};
use crate::terms::Terms;

const RULE_OPEN: &str = "BOLT 2, \"The `open_channel` Message\"";
const RULE_ACCEPT: &str = "BOLT 2, \"The `accept_channel` Message\"";
const RULE_CREATED: &str = "BOLT 2, \"The `funding_created` Message\"";
const RULE_SIGNED: &str = "BOLT 2, \"The `funding_signed` Message\"";

/// A channel that is being negotiated.
#[derive(Debug)]
pub struct Opening {
    temporary_channel_id: ChannelId,
    remote_node: PublicKey,
    stage: Stage,
}

/// What is waited for.
#[derive(Debug)]
enum Stage {
    /// We fund: for `accept_channel`.
    Proposed(Box<OpenRequest>),
    /// We fund: for the wallet.
    Accepted(Box<Agreement>),
    /// We fund: for `funding_signed`.
    Created { agreement: Box<Agreement>, terms: Box<Terms>, tx: Transaction },
    /// The peer funds: for `funding_created`.
    AwaitingFunding(Box<Agreement>),
    /// Nothing: it has become a channel, or has failed.
    Over,
}

/// What the node around an opening knows.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The height of the chain.
    pub height: BlockHeight,
    /// What the channel begins with.
    pub policy: Policy,
    /// Whether a channel of this node, with any peer, has this id; for [`Opening::accept`] also whether another opening
    /// with this peer has it.
    pub is_taken: &'a dyn Fn(ChannelId) -> bool,
}

/// Where an opening has come to.
#[derive(Debug)]
pub enum OpeningEvent {
    /// The peer agrees. A transaction with exactly this output is needed, signed and not broadcast: see
    /// [`Opening::fund`].
    FundingNeeded {
        /// To pay to.
        script_pubkey: ScriptBuf,
        /// To be paid.
        amount: Sat,
    },
    /// The channel exists, its link is up, and the opening is over.
    Opened(Box<Channel>),
    /// The peer does not want the channel, and the opening is over. Coins chosen for it are free again.
    Refused {
        /// What it says, printable.
        text: String,
    },
}

/// Why a proposed channel is not accepted, and what the peer is told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct OpenRefused {
    /// The reason.
    pub why: Unacceptable,
    /// The `error` for the peer.
    pub reply: Box<Message>,
}

impl Opening {
    // --- beginning ---

    /// Proposes a channel: the `open_channel` to be sent.
    ///
    /// # Errors
    /// [`Refusal::CannotOpen`] with the limit that it would break.
    pub fn propose(request: OpenRequest) -> Result<(Self, Message), Refusal> {
        request.check()?;
        let message = open_channel(&request);
        let (temporary_channel_id, remote_node) = (request.temporary_channel_id, request.remote_node);
        let stage = Stage::Proposed(Box::new(request));
        Ok((Self { temporary_channel_id, remote_node, stage }, Message::OpenChannel(Box::new(message))))
    }

    /// Accepts the channel that the peer proposes: the `accept_channel` to be sent.
    ///
    /// # Errors
    /// [`OpenRefused`] with the limit that it would break, and the message that tells the peer.
    pub fn accept(
        open: OpenChannel,
        params: AcceptParams,
        around: &Surroundings<'_>,
    ) -> Result<(Self, Message), OpenRefused> {
        let (temporary_channel_id, remote_node) = (open.temporary_channel_id, params.remote_node);
        let agreement = Agreement::of_open(open, params, around).map_err(|why| {
            let text = format!("{RULE_OPEN}: {why}");
            OpenRefused { why, reply: Box::new(failure(temporary_channel_id, &text)) }
        })?;
        let message = accept_channel(temporary_channel_id, &agreement);
        let stage = Stage::AwaitingFunding(Box::new(agreement));
        Ok((Self { temporary_channel_id, remote_node, stage }, Message::AcceptChannel(Box::new(message))))
    }

    // --- what others may see ---

    /// The id in the messages up to `funding_created`.
    #[must_use]
    pub const fn temporary_channel_id(&self) -> ChannelId {
        self.temporary_channel_id
    }

    /// The final id, known to the funder from `funding_created` on: the peer's messages then carry it.
    #[must_use]
    pub fn channel_id(&self) -> Option<ChannelId> {
        match &self.stage {
            Stage::Created { terms, .. } => Some(terms.channel_id),
            Stage::Proposed(_) | Stage::Accepted(_) | Stage::AwaitingFunding(_) | Stage::Over => None,
        }
    }

    /// The peer.
    #[must_use]
    pub const fn remote_node(&self) -> PublicKey {
        self.remote_node
    }

    /// Whether nothing more can come of it: it may be dropped.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    // --- going on ---

    /// A message of the peer for this opening, by either of its ids.
    ///
    /// # Errors
    /// [`PeerFault`] if the peer broke a rule: it has been told, and the opening is over.
    pub fn on_message(
        &mut self,
        message: Message,
        around: &Surroundings<'_>,
        curve: &impl Curve,
        fx: &mut Effects,
    ) -> Result<Option<OpeningEvent>, PeerFault> {
        let id = self.channel_id().unwrap_or(self.temporary_channel_id);
        let result = self.dispatch(message, around, curve, fx);
        if let Err(fault) = &result {
            self.stage = Stage::Over;
            fx.send(failure(id, &fault.to_string()));
        }
        result
    }

    fn dispatch(
        &mut self,
        message: Message,
        around: &Surroundings<'_>,
        curve: &impl Curve,
        fx: &mut Effects,
    ) -> Result<Option<OpeningEvent>, PeerFault> {
        match (std::mem::replace(&mut self.stage, Stage::Over), message) {
            (stage, Message::Warning(m)) => {
                self.stage = stage;
                fx.fact(Fact::PeerSaid { is_error: false, text: m.text() });
                Ok(None)
            }
            (_, Message::Error(m)) => {
                fx.fact(Fact::PeerSaid { is_error: true, text: m.text() });
                Ok(Some(OpeningEvent::Refused { text: m.text() }))
            }
            (Stage::Proposed(request), Message::AcceptChannel(m)) => self.on_accept_channel(*request, *m).map(Some),
            (Stage::AwaitingFunding(agreement), Message::FundingCreated(m)) => {
                self.on_funding_created(*agreement, &m, around, curve, fx).map(Some)
            }
            (Stage::Created { agreement, terms, tx }, Message::FundingSigned(m)) => {
                on_funding_signed(*agreement, *terms, tx, &m, around, curve, fx).map(Some)
            }
            (stage, other) => {
                let rule = "BOLT 2, \"Channel Establishment v1\"";
                Err(PeerFault::fail(rule, format!("{} where {} is due", other.name(), stage.awaited())))
            }
        }
    }

    /// Gives up, and tells the peer why: the wallet cannot pay, or the user does not want it any more.
    pub fn cancel(&mut self, reason: &str, fx: &mut Effects) {
        if !self.is_over() {
            let id = self.channel_id().unwrap_or(self.temporary_channel_id);
            self.stage = Stage::Over;
            fx.send(failure(id, reason));
        }
    }

    fn check_temporary_id(&self, rule: &'static str, id: ChannelId) -> Result<(), PeerFault> {
        if id == self.temporary_channel_id {
            return Ok(());
        }
        Err(PeerFault::fail(
            rule,
            format!("temporary_channel_id {id} for the opening of {}", self.temporary_channel_id),
        ))
    }

    // --- we fund ---

    fn on_accept_channel(&mut self, request: OpenRequest, accept: AcceptChannel) -> Result<OpeningEvent, PeerFault> {
        self.check_temporary_id(RULE_ACCEPT, accept.temporary_channel_id)?;
        let agreement =
            Agreement::of_accept(request, accept).map_err(|why| PeerFault::fail(RULE_ACCEPT, why.to_string()))?;
        let event =
            OpeningEvent::FundingNeeded { script_pubkey: agreement.script_pubkey(), amount: agreement.capacity };
        self.stage = Stage::Accepted(Box::new(agreement));
        Ok(event)
    }

    /// The funding transaction, complete and not broadcast: it goes out by itself once the peer has signed.
    ///
    /// # Errors
    /// [`Refusal`] if it does not pay for the channel, or could change its id; nothing has changed.
    pub fn fund(
        &mut self,
        tx: Transaction,
        vout: u32,
        around: &Surroundings<'_>,
        fx: &mut Effects,
    ) -> Result<(), Refusal> {
        let Stage::Accepted(agreement) = &self.stage else {
            return Err(Refusal::NotUsable("no funding transaction is waited for"));
        };
        let funding_output_index = agreement.check_funding_tx(&tx, vout)?;
        let funding_txid = tx.compute_txid();
        let terms = agreement.terms(OutPoint { txid: funding_txid, vout });
        if (around.is_taken)(terms.channel_id) {
            return Err(Unacceptable::ChannelIdTaken(terms.channel_id).into());
        }
        let signature = agreement.sign_remote(&terms);
        let agreement = agreement.clone();
        self.stage = Stage::Created { agreement, terms: Box::new(terms), tx };
        let temporary_channel_id = self.temporary_channel_id;
        fx.send(Message::FundingCreated(FundingCreated {
            temporary_channel_id,
            funding_txid,
            funding_output_index,
            signature,
        }));
        Ok(())
    }

    // --- the peer funds ---

    fn on_funding_created(
        &self,
        agreement: Agreement,
        message: &FundingCreated,
        around: &Surroundings<'_>,
        curve: &impl Curve,
        fx: &mut Effects,
    ) -> Result<OpeningEvent, PeerFault> {
        self.check_temporary_id(RULE_CREATED, message.temporary_channel_id)?;
        let vout = u32::from(message.funding_output_index);
        let terms = agreement.terms(OutPoint { txid: message.funding_txid, vout });
        let channel_id = terms.channel_id;
        if (around.is_taken)(channel_id) {
            return Err(PeerFault::fail(RULE_CREATED, Unacceptable::ChannelIdTaken(channel_id).to_string()));
        }
        if !agreement.is_local_signed(&terms, &message.signature, curve) {
            return Err(PeerFault::fail(RULE_CREATED, "the signature for commitment 0 is not valid"));
        }
        let signature = agreement.sign_remote(&terms);
        let mut channel = agreement.open(terms, message.signature, None, around, fx);
        fx.send(Message::FundingSigned(FundingSigned { channel_id, signature }));
        channel.watch_funding(fx);
        begin(&mut channel, fx);
        Ok(OpeningEvent::Opened(Box::new(channel)))
    }
}

impl Stage {
    const fn awaited(&self) -> &'static str {
        match self {
            Self::Proposed(_) => "accept_channel",
            Self::Accepted(_) => "our own funding_created",
            Self::Created { .. } => "funding_signed",
            Self::AwaitingFunding(_) => "funding_created",
            Self::Over => "nothing",
        }
    }
}

fn on_funding_signed(
    agreement: Agreement,
    terms: Terms,
    tx: Transaction,
    message: &FundingSigned,
    around: &Surroundings<'_>,
    curve: &impl Curve,
    fx: &mut Effects,
) -> Result<OpeningEvent, PeerFault> {
    if message.channel_id != terms.channel_id {
        let what = format!("channel_id {} where {} was funded", message.channel_id, terms.channel_id);
        return Err(PeerFault::fail(RULE_SIGNED, what));
    }
    if !agreement.is_local_signed(&terms, &message.signature, curve) {
        return Err(PeerFault::fail(RULE_SIGNED, "the signature for commitment 0 is not valid"));
    }
    let mut channel = agreement.open(terms, message.signature, Some(tx.clone()), around, fx);
    channel.watch_funding(fx);
    fx.list.push(Effect::Broadcast(Broadcast { tx, purpose: Purpose::Funding }));
    begin(&mut channel, fx);
    Ok(OpeningEvent::Opened(Box::new(channel)))
}

/// The channel is told of; one that waits for no confirmation says `channel_ready` at once.
fn begin(channel: &mut Channel, fx: &mut Effects) {
    fx.fact(Fact::Opened { channel_id: channel.id() });
    channel.on_depth(fx);
}

/// What fails an opening at the peer. An id that means "all channels" must not be failed: it is only warned.
fn failure(id: ChannelId, text: &str) -> Message {
    if id.is_all() { Message::Warning(Warning::new(id, text)) } else { Message::Error(Error::new(id, text)) }
}

impl From<Unacceptable> for Refusal {
    fn from(why: Unacceptable) -> Self {
        Self::CannotOpen(Box::new(why))
    }
}
