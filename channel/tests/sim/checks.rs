//! The rules of durability, held against everything that leaves a node. What they know comes from outside: from the
//! mirrors, which see only the disks, and from what other nodes have been told.

use bitcoin::Transaction;
use millrace_channel::effect::Purpose;
use millrace_channel::ledger::htlc::{Origin, Status};
use millrace_channel::ledger::stage::Stage;
use millrace_channel::side::Side;
use millrace_channel::tx::commitment::number_in;
use millrace_channel::{Channel, Record};
use millrace_wire::{ChannelId, CommitmentNumber, HtlcId, Message};

use crate::world::{LINKS, World};

impl World {
    /// A message is about to leave `node`.
    pub fn check_send(&mut self, node: usize, link: usize, message: &Message) {
        match message {
            Message::FundingSigned(_) => self.check_opened(node, link, "funding_signed"),
            Message::CommitmentSigned(_) => self.check_commitment_signed(node, link),
            Message::RevokeAndAck(m) => self.check_revocation(node, link, &m.per_commitment_secret),
            Message::UpdateAddHtlc(m) => self.check_forward(node, link, m.id),
            Message::UpdateFulfillHtlc(m) => self.check_fulfil(node, link, m.id),
            Message::UpdateFailHtlc(m) => self.check_removal(node, link, m.id),
            Message::UpdateFailMalformedHtlc(m) => self.check_removal(node, link, m.id),
            _ => {}
        }
    }

    fn check_opened(&mut self, node: usize, link: usize, what: &str) {
        self.counters.count("checked: D5");
        if self.end(node, link).mirror.is_none() {
            self.violate(format!("D5: {what} leaves node {node} before its first record is durable"));
        }
    }

    /// D1: the commitment that this signature makes, by the count of the peer that will hold it.
    fn check_commitment_signed(&mut self, node: usize, link: usize) {
        let peer = Self::peer_of(node, link);
        let to = usize::from(LINKS[link][0] == node);
        let is_signature = |message: &&Message| matches!(message, Message::CommitmentSigned(_));
        let queued = self.wires[link].queues[to].iter().filter(is_signature).count() as u64;
        let Some(held) = self.end(peer, link).channel().map(|channel| channel.commitment_numbers().local.0) else {
            return;
        };
        self.counters.count("checked: D1");
        let signed = held + queued + 1;
        let durable = self.end(node, link).mirror.as_ref().map(|mirror| mirror.commitment_numbers().remote.0);
        if durable.is_none_or(|durable| durable < signed) {
            self.violate(format!("D1: node {node} signs commitment {signed}, and its disk knows {durable:?}"));
        }
    }

    /// D2, D4, D9, D13: what is revoked must have a durable successor, and what it removes must be kept.
    fn check_revocation(&mut self, node: usize, link: usize, secret: &[u8; 32]) {
        let end = self.end(node, link);
        let durable = end.mirror.as_ref().map_or(0, |mirror| mirror.commitment_numbers().local.0);
        let is_of = |number: &u64| end.keys.commitment_secret(CommitmentNumber(*number)) == *secret;
        let revoked = (durable.saturating_sub(2)..durable + 3).find(is_of);
        self.counters.count("checked: D2");
        match revoked {
            Some(number) if number < durable => {
                let revealed = self.end(node, link).revealed.max(Some(number));
                self.end_mut(node, link).revealed = revealed;
            }
            other => self.violate(format!("D2: node {node} revokes {other:?}, and its disk has commitment {durable}")),
        }
        let arrived = std::mem::take(&mut self.end_mut(node, link).arrived_removals);
        for removal in arrived {
            if removal.is_covered {
                self.check_kept(node, link, removal.id, removal.origin, removal.is_fulfilled);
            } else {
                self.end_mut(node, link).arrived_removals.push(removal);
            }
        }
    }

    fn check_kept(&mut self, node: usize, link: usize, id: HtlcId, origin: Origin, is_fulfilled: bool) {
        let rule = if is_fulfilled { "D4" } else { "D13" };
        self.counters.count(&format!("checked: {rule}"));
        let end = self.end(node, link);
        let removal_is_durable = match end.mirror.as_ref().and_then(|mirror| mirror.htlc(Side::Local, id)) {
            Some(htlc) => matches!(htlc.status, Status::Removing(_, _)),
            None => end.mirror_has(origin) || self.is_passed_on(node, origin),
        };
        if !removal_is_durable {
            self.violate(format!(
                "{rule}: node {node} gives HTLC {} up, and its disk does not know how it ended",
                id.0
            ));
        }
    }

    /// Whether the disk knows that the incoming side of a forward has been decided; payments have none.
    fn is_passed_on(&self, node: usize, origin: Origin) -> bool {
        let Origin::Forward { channel_id, htlc_id } = origin else { return true };
        let upstream = self.mirror_of(node, channel_id).and_then(|mirror| mirror.htlc(Side::Remote, htlc_id));
        upstream.is_none_or(|htlc| !matches!(htlc.status, Status::Adding(_)))
    }

    fn mirror_of(&self, node: usize, channel_id: ChannelId) -> Option<&Channel> {
        Self::links_of(node)
            .filter_map(|link| self.end(node, link).mirror.as_deref())
            .find(|mirror| mirror.id() == channel_id)
    }

    /// D3: what is forwarded must be irrevocable on the incoming side, on the disk.
    fn check_forward(&mut self, node: usize, link: usize, id: HtlcId) {
        let Some(channel) = self.end(node, link).channel() else { return };
        let proposed =
            channel.ledger().proposed(Side::Local).iter().find(|add| add.id == id).and_then(|add| add.origin);
        let origin = channel.htlc(Side::Local, id).and_then(|htlc| htlc.add.origin).or(proposed);
        let Some(Origin::Forward { channel_id, htlc_id }) = origin else { return };
        self.counters.count("checked: D3");
        let upstream = self.mirror_of(node, channel_id).and_then(|mirror| mirror.htlc(Side::Remote, htlc_id));
        let stage = upstream.map(millrace_channel::ledger::htlc::Htlc::add_stage);
        if stage != Some(Stage::Irrevocable) {
            self.violate(format!("D3: node {node} forwards HTLC {} at {stage:?}", htlc_id.0));
        }
    }

    /// D4: a preimage that goes upstream must be on the disk, with the channel downstream if not with this one.
    fn check_fulfil(&mut self, node: usize, link: usize, id: HtlcId) {
        if self.is_decided_on_disk(node, link, id) || !self.is_preimage_on_disk(node, link, id) {
            return self.check_removal(node, link, id);
        }
        self.counters.count("checked: preimage ahead of its record");
    }

    /// Whether the disk knows the preimage of the HTLC that this one was forwarded by.
    fn is_preimage_on_disk(&self, node: usize, link: usize, id: HtlcId) -> bool {
        let Some(channel_id) = self.end(node, link).channel().map(Channel::id) else { return false };
        let origin = Some(Origin::Forward { channel_id, htlc_id: id });
        let mirrors = Self::links_of(node).filter_map(|link| self.end(node, link).mirror.as_ref());
        mirrors
            .flat_map(|mirror| mirror.ledger().htlcs(Side::Local))
            .any(|htlc| htlc.add.origin == origin && htlc.known_preimage.is_some())
    }

    fn is_decided_on_disk(&self, node: usize, link: usize, id: HtlcId) -> bool {
        let htlc = self.end(node, link).mirror.as_ref().and_then(|mirror| mirror.htlc(Side::Remote, id));
        htlc.is_some_and(|htlc| !matches!(htlc.status, Status::Adding(_)))
    }

    /// A removal that leaves must be decided on the disk.
    fn check_removal(&mut self, node: usize, link: usize, id: HtlcId) {
        if !self.is_decided_on_disk(node, link, id) {
            self.violate(format!("node {node} removes HTLC {}, and its disk has not decided it", id.0));
        }
    }

    /// A transaction is about to leave `node`.
    pub fn check_broadcast(&mut self, node: usize, link: usize, tx: &Transaction, purpose: Purpose) {
        match purpose {
            Purpose::Funding => self.check_opened(node, link, "the funding transaction"),
            Purpose::Commitment => self.check_commitment(node, link, tx),
            Purpose::MutualClose | Purpose::Htlc => {}
        }
        if let Some(fault) = self.blocks.script_fault(tx) {
            self.violate(format!("node {node} broadcasts a {purpose:?} that is not valid: {fault}"));
        }
    }

    fn check_commitment(&mut self, node: usize, link: usize, tx: &Transaction) {
        self.counters.count("checked: D9");
        let end = self.end(node, link);
        let Some(channel) = end.channel() else { return };
        let number = number_in(channel.terms(), tx).map(|number| number.0);
        let (revealed, is_told_old) = (end.revealed, end.is_told_old);
        if number.is_none() || number <= revealed {
            self.violate(format!("D9: node {node} broadcasts commitment {number:?}, and {revealed:?} is revoked"));
        }
        if is_told_old {
            self.violate(format!("D11: node {node} broadcasts, though the peer proved its data old"));
        }
    }

    /// A record has become durable.
    pub fn check_record(&mut self, node: usize, link: usize, record: &Record) {
        match record {
            Record::OutcomeReleased { id } => {
                let mirror = self.end(node, link).mirror.as_ref();
                let origin = mirror
                    .and_then(|mirror| mirror.kept_outcomes().find(|(kept, _)| kept == id))
                    .map(|(_, origin)| origin);
                if origin.is_some_and(|origin| !self.is_passed_on(node, origin)) {
                    self.violate(format!(
                        "D13: node {node} forgets the outcome of HTLC {} before it is passed on",
                        id.0
                    ));
                }
            }
            Record::LocalDataLost { .. } => {
                self.counters.count("checked: D11");
                self.end_mut(node, link).is_told_old = true;
            }
            _ => {}
        }
    }

    /// What arrives about HTLCs offered from here.
    pub fn note_removal(&mut self, node: usize, link: usize, message: &Message) {
        let (id, is_fulfilled) = match message {
            Message::UpdateFulfillHtlc(m) => (m.id, true),
            Message::UpdateFailHtlc(m) => (m.id, false),
            Message::UpdateFailMalformedHtlc(m) => (m.id, false),
            Message::CommitmentSigned(_) => {
                for removal in &mut self.end_mut(node, link).arrived_removals {
                    removal.is_covered = true;
                }
                return;
            }
            _ => return,
        };
        let origin = self.end(node, link).channel().and_then(|channel| channel.htlc(Side::Local, id)?.add.origin);
        if let Some(origin) = origin {
            let removal = crate::end::ArrivedRemoval { id, origin, is_fulfilled, is_covered: false };
            self.end_mut(node, link).arrived_removals.push(removal);
        }
    }
}
