//! What is told of channels to those who follow events: folded from the facts, the same live and on replay.

use std::collections::BTreeMap;

use bitcoin::Txid;
use millrace_channel::phase::on_chain::SpendKind;
use millrace_channel::{Fact, Side, Terms};
use millrace_wire::ChannelId;
use serde::{Deserialize, Serialize};

use crate::happened::{ChannelOpening, CloseKind, Happened};

/// What is known of the closing of channels that are not closed yet.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChannelNews {
    closing: BTreeMap<ChannelId, Closing>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Closing {
    kind: Option<CloseKind>,
    txid: Option<Txid>,
    is_told: bool,
}

impl ChannelNews {
    /// Takes a fact of a channel.
    pub(crate) fn on_fact(
        &mut self,
        channel_id: ChannelId,
        terms: Option<&Terms>,
        fact: &Fact,
        happened: &mut Vec<Happened>,
    ) {
        let Some(terms) = terms else { return };
        let peer = terms.remote_node;
        match fact {
            Fact::Opened { .. } => happened.push(Happened::ChannelOpening(Box::new(ChannelOpening {
                channel_id,
                peer,
                capacity: terms.capacity,
                is_funder: terms.funder == Side::Local,
                funding_outpoint: terms.funding_outpoint,
                push: terms.push,
            }))),
            Fact::Ready => {
                let balances = terms.first_balances();
                let (local, remote) = (balances.local, balances.remote);
                happened.push(Happened::ChannelReady { channel_id, peer, local, remote });
            }
            Fact::ShuttingDown | Fact::CloseAsked => {
                let closing = self.closing.entry(channel_id).or_default();
                if !closing.is_told {
                    closing.is_told = true;
                    let (kind, reason) = (CloseKind::Cooperative, "shutdown was said".to_owned());
                    happened.push(Happened::ChannelClosing { channel_id, peer, kind, reason, txid: None });
                }
            }
            Fact::MutualCloseSigned { txid, .. } => {
                let (kind, reason) = (CloseKind::Cooperative, "the closing transaction is signed".to_owned());
                let closing = self.closing.entry(channel_id).or_default();
                (closing.kind, closing.txid, closing.is_told) = (Some(kind), Some(*txid), true);
                happened.push(Happened::ChannelClosing { channel_id, peer, kind, reason, txid: Some(*txid) });
            }
            Fact::Failed { reason } => {
                let (kind, reason) = (CloseKind::Unknown, reason.clone());
                let closing = self.closing.entry(channel_id).or_default();
                closing.is_told = true;
                happened.push(Happened::ChannelClosing { channel_id, peer, kind, reason, txid: None });
            }
            Fact::FundingSpent { txid, what, .. } => {
                let (kind, reason) = spent(what);
                let closing = self.closing.entry(channel_id).or_default();
                let is_known = closing.kind == Some(kind) && closing.txid == Some(*txid);
                (closing.kind, closing.txid) = (Some(kind), Some(*txid));
                if !is_known {
                    let reason = reason.to_owned();
                    happened.push(Happened::ChannelClosing { channel_id, peer, kind, reason, txid: Some(*txid) });
                }
            }
            Fact::Closed => {
                let closing = self.closing.remove(&channel_id).unwrap_or_default();
                let kind = closing.kind.unwrap_or(CloseKind::NeverFunded);
                happened.push(Happened::ChannelClosed { channel_id, peer, kind, txid: closing.txid });
            }
            Fact::FundingConfirmed { .. }
            | Fact::HtlcReceived { .. }
            | Fact::OfferCommitted { .. }
            | Fact::OfferDropped { .. }
            | Fact::OfferFulfilled { .. }
            | Fact::OfferResolved { .. }
            | Fact::OfferTimedOut { .. }
            | Fact::RemovalIrrevocable { .. }
            | Fact::PeerSaid { .. } => {}
        }
    }
}

fn spent(what: &SpendKind) -> (CloseKind, &'static str) {
    match what {
        SpendKind::MutualClose => (CloseKind::Cooperative, "the closing transaction is in a block"),
        SpendKind::Local => (CloseKind::LocalCommitment, "our commitment is in a block"),
        SpendKind::RemoteUnrevoked => (CloseKind::RemoteCommitment, "the peer's commitment is in a block"),
        SpendKind::RemoteNext => (CloseKind::RemoteNextCommitment, "the peer's next commitment is in a block"),
        SpendKind::Unknown { .. } => {
            (CloseKind::Unknown, "a commitment is in a block that is revoked, or later than our data")
        }
    }
}
