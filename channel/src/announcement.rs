//! Telling the network of a channel (BOLT 7, "The `announcement_signatures` Message"): each end signs one
//! `channel_announcement`, by its node key and by its funding key, and gives the other its signatures.
//!
//! Ours are made again whenever they are sent. Theirs are recorded, since they need not send them twice. Passing the
//! complete message on is the daemon's.

use bitcoin::hashes::{Hash, sha256d};
use millrace_wire::{AnnouncementSignatures, BlockHeight, Message, PublicKey, ShortChannelId};
use secp256k1::SECP256K1;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::curve::{VerifyJob, is_valid, sign};
use crate::effect::{Effects, Fact};
use crate::fault::PeerFault;
use crate::keys::Identity;
use crate::phase::Phase;
use crate::record::{Record, Signature64};
use crate::side::Side;
use crate::tx::funding::funding_key;

const RULE: &str = "BOLT 7, \"The `announcement_signatures` Message\"";

/// BOLT 7: nothing is signed before the funding transaction has so many confirmations.
pub const ANNOUNCE_DEPTH: u32 = 6;

/// How far the announcement is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Announcement {
    /// The peer's signatures, for where the funding transaction stands.
    pub(crate) remote: Option<Pair>,
    /// What may be passed on.
    pub(crate) complete: Option<Complete>,
}

/// One end's two signatures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) node: Signature64,
    pub(crate) bitcoin: Signature64,
}

/// A `channel_announcement` that both ends have signed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Complete {
    /// When it became complete.
    pub(crate) height: BlockHeight,
    /// Without its type.
    pub(crate) bytes: Vec<u8>,
}

impl Channel {
    /// The `channel_announcement` (without its type) that both have signed, and the height at which that was so.
    #[must_use]
    pub fn announced(&self) -> Option<(BlockHeight, &[u8])> {
        self.state.announcement.complete.as_ref().map(|complete| (complete.height, complete.bytes.as_slice()))
    }

    /// Sends our signatures if it is time and the peer may lack them, and completes the announcement if it has sent its own.
    pub(crate) fn announce(&mut self, fx: &mut Effects) {
        self.take_early_announcement(fx);
        let announcement = &self.state.announcement;
        let is_due = !self.link.is_announcement_sent || announcement.remote.is_some();
        if announcement.complete.is_some() || !self.link.is_up() || !is_due {
            return;
        }
        let Some(mut ours) = self.signed_by_us() else { return };
        if !self.link.is_announcement_sent {
            self.link.is_announcement_sent = true;
            fx.send(Message::AnnouncementSignatures(ours.message));
        }
        if let Some(remote) = &self.state.announcement.remote {
            let announcement = ours.complete(remote);
            self.record(Record::Announced { height: self.tip, announcement }, fx);
        }
    }

    /// What was said of an earlier block does not count for the next one.
    pub(crate) fn forget_sent_announcement(&mut self) {
        self.link.is_announcement_sent = false;
        self.link.early_announcement = None;
    }

    pub(crate) fn resume_announcement(&self, fx: &mut Effects) {
        if let Some(complete) = &self.state.announcement.complete {
            fx.fact(Fact::Announced { announcement: complete.bytes.clone() });
        }
    }

    /// The peer's signatures: kept until they can be judged, if we have not seen the block yet that it signed for.
    pub(crate) fn on_announcement_signatures(
        &mut self,
        message: AnnouncementSignatures,
        fx: &mut Effects,
    ) -> Result<(), PeerFault> {
        if !self.link.is_up() {
            return Err(PeerFault::disconnect(RULE, "announcement_signatures before channel_reestablish"));
        }
        // Nobody asked for them; a channel that closes is not announced any more.
        if !self.state.terms.announce || !matches!(self.state.phase, Phase::Opening | Phase::Normal) {
            return Ok(());
        }
        if self.state.funding.confirmed.is_none() {
            self.link.early_announcement = Some(message);
            return Ok(());
        }
        self.take_announcement_signatures(&message, fx)?;
        self.answer_announcement(fx);
        self.announce(fx);
        Ok(())
    }

    /// BOLT 7: the first `announcement_signatures` of a connection is answered, also by who has had them before.
    fn answer_announcement(&mut self, fx: &mut Effects) {
        if self.link.is_announcement_sent {
            return;
        }
        if let Some(ours) = self.signed_by_us() {
            self.link.is_announcement_sent = true;
            fx.send(Message::AnnouncementSignatures(ours.message));
        }
    }

    fn take_early_announcement(&mut self, fx: &mut Effects) {
        if self.state.funding.confirmed.is_none() {
            return;
        }
        let Some(message) = self.link.early_announcement.take() else { return };
        if let Err(fault) = self.take_announcement_signatures(&message, fx) {
            self.react(&fault, fx);
        }
    }

    fn take_announcement_signatures(
        &mut self,
        message: &AnnouncementSignatures,
        fx: &mut Effects,
    ) -> Result<(), PeerFault> {
        let (Some(unsigned), Some((_, scid))) = (self.unsigned_announcement(), self.state.funding.confirmed) else {
            return Ok(());
        };
        if message.short_channel_id != scid {
            let what = format!("short_channel_id {} where {scid} is the channel's", message.short_channel_id);
            return Err(PeerFault::disconnect(RULE, what));
        }
        let digest = digest_of(&unsigned);
        let terms = &self.state.terms;
        let check = |signature, key, name: &str| {
            if is_valid(&VerifyJob { digest, key, signature }) {
                Ok(())
            } else {
                Err(PeerFault::disconnect(RULE, format!("the {name} is not valid")))
            }
        };
        check(message.node_signature, terms.remote_node, "node_signature")?;
        check(message.bitcoin_signature, *funding_key(terms, Side::Remote), "bitcoin_signature")?;
        if self.state.announcement.remote.is_none() {
            let (node_signature, bitcoin_signature) =
                (Signature64(message.node_signature), Signature64(message.bitcoin_signature));
            self.record(Record::AnnouncementSigned { node_signature, bitcoin_signature }, fx);
        }
        Ok(())
    }

    /// Our signatures, if BOLT 7 lets us send them: both are ready, nobody closes, and the funding is deep enough.
    fn signed_by_us(&self) -> Option<SignedByUs> {
        let is_time = self.state.phase == Phase::Normal && self.funding_depth() >= ANNOUNCE_DEPTH;
        let (_, short_channel_id) = self.state.funding.confirmed.filter(|_| is_time)?;
        let identity = self.keys.identity()?;
        let unsigned = self.unsigned_announcement()?;
        let digest = digest_of(&unsigned);
        let message = AnnouncementSignatures {
            channel_id: self.id(),
            short_channel_id,
            node_signature: sign(&digest, identity.key()),
            bitcoin_signature: sign(&digest, self.keys.funding_key()),
        };
        Some(SignedByUs { message, unsigned, is_first: self.is_first(identity) })
    }

    /// BOLT 7, "The `channel_announcement` Message", without its four signatures. No feature of ours belongs in there.
    fn unsigned_announcement(&self) -> Option<Vec<u8>> {
        let terms = &self.state.terms;
        let (identity, (_, scid)) = (self.keys.identity().filter(|_| terms.announce)?, self.state.funding.confirmed?);
        let local = (node_id(identity), *funding_key(terms, Side::Local));
        let remote = (terms.remote_node, *funding_key(terms, Side::Remote));
        let ends = if self.is_first(identity) { [local, remote] } else { [remote, local] };
        Some(unsigned(identity, scid, ends))
    }

    fn is_first(&self, identity: &Identity) -> bool {
        node_id(identity).serialize() < self.state.terms.remote_node.serialize()
    }
}

/// What we sign, and our signatures on it.
struct SignedByUs {
    message: AnnouncementSignatures,
    unsigned: Vec<u8>,
    /// Ours is the lesser node id.
    is_first: bool,
}

impl SignedByUs {
    fn complete(&mut self, remote: &Pair) -> Vec<u8> {
        let local = (self.message.node_signature, self.message.bitcoin_signature);
        let remote = (remote.node.0, remote.bitcoin.0);
        let [one, two] = if self.is_first { [local, remote] } else { [remote, local] };
        let mut bytes = Vec::with_capacity(4 * 64 + self.unsigned.len());
        for signature in [one.0, two.0, one.1, two.1] {
            bytes.extend_from_slice(&signature.serialize_compact());
        }
        bytes.append(&mut self.unsigned);
        bytes
    }
}

fn node_id(identity: &Identity) -> PublicKey {
    identity.key().public_key(SECP256K1)
}

fn unsigned(identity: &Identity, scid: ShortChannelId, ends: [(PublicKey, PublicKey); 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let no_features = 0_u16;
    bytes.extend_from_slice(&no_features.to_be_bytes());
    bytes.extend_from_slice(&identity.chain_hash().to_bytes());
    bytes.extend_from_slice(&scid.0.to_be_bytes());
    for (node, _) in &ends {
        bytes.extend_from_slice(&node.serialize());
    }
    for (_, funding) in &ends {
        bytes.extend_from_slice(&funding.serialize());
    }
    bytes
}

fn digest_of(unsigned: &[u8]) -> [u8; 32] {
    sha256d::Hash::hash(unsigned).to_byte_array()
}
