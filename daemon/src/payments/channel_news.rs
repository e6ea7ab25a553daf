//! What is told of channels to those who follow events: folded from the facts, the same live and on replay.

use std::collections::BTreeMap;

use millrace_channel::phase::on_chain::SpendKind;
use millrace_channel::{Fact, Side, Terms};
use millrace_wire::ChannelId;
use serde::{Deserialize, Serialize};

use crate::happened::{ChannelOpening, CloseKind, ClosedChannel, ClosingTx, Happened};

/// What is known of the closing of channels that are not closed yet.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ChannelNews {
    closing: BTreeMap<ChannelId, Closing>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Closing {
    kind: Option<CloseKind>,
    close: Option<ClosingTx>,
    /// Why, as it was told first: what follows from that is no other reason.
    reason: Option<String>,
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
                if closing.reason.is_none() {
                    let by = if matches!(fact, Fact::CloseAsked) { "the peer" } else { "a side" };
                    let (kind, reason) = (CloseKind::Cooperative, format!("{by} said shutdown"));
                    closing.reason = Some(reason.clone());
                    happened.push(Happened::ChannelClosing { channel_id, peer, kind, reason, close: None });
                }
            }
            Fact::MutualCloseSigned { txid, fee, direct } => {
                let close = Some(ClosingTx { txid: *txid, fee: *fee, direct: *direct, height: None });
                let kind = CloseKind::Cooperative;
                let closing = self.closing.entry(channel_id).or_default();
                (closing.kind, closing.close) = (Some(kind), close);
                let reason = closing.reason_or("both sides signed the closing transaction");
                happened.push(Happened::ChannelClosing { channel_id, peer, kind, reason, close });
            }
            Fact::Failed { reason } => {
                let (kind, reason) = (CloseKind::Unknown, reason.clone());
                self.closing.entry(channel_id).or_default().reason = Some(reason.clone());
                happened.push(Happened::ChannelClosing { channel_id, peer, kind, reason, close: None });
            }
            Fact::FundingSpent { txid, height, what, fee, direct } => {
                let (kind, reason) = spent(what);
                let close = Some(ClosingTx { txid: *txid, fee: *fee, direct: *direct, height: Some(*height) });
                let closing = self.closing.entry(channel_id).or_default();
                let is_known = closing.kind == Some(kind) && closing.close == close;
                (closing.kind, closing.close) = (Some(kind), close);
                if !is_known {
                    // Whatever was under way before it: this is what matters.
                    if kind == CloseKind::RevokedCommitment {
                        closing.reason = Some(reason.clone());
                    }
                    let reason = closing.reason_or(&reason);
                    happened.push(Happened::ChannelClosing { channel_id, peer, kind, reason, close });
                }
            }
            Fact::Closed(last) => {
                let closing = self.closing.remove(&channel_id).unwrap_or_default();
                let kind = closing.kind.unwrap_or(CloseKind::NeverFunded);
                let last = Box::new(ClosedChannel { terms: terms.clone(), last: (**last).clone() });
                happened.push(Happened::ChannelClosed { channel_id, peer, kind, close: closing.close, last });
            }
            Fact::FundingConfirmed { .. }
            | Fact::HtlcReceived { .. }
            | Fact::OfferCommitted { .. }
            | Fact::OfferDropped { .. }
            | Fact::OfferFulfilled { .. }
            | Fact::OfferResolved { .. }
            | Fact::OfferTimedOut { .. }
            | Fact::RemovalIrrevocable { .. }
            | Fact::PeerSaid { .. }
            | Fact::OfferAttributed { .. }
            | Fact::HtlcPast(_)
            | Fact::Breached { .. }
            | Fact::Announced { .. } => {}
        }
    }
}

impl Closing {
    fn reason_or(&mut self, reason: &str) -> String {
        self.reason.get_or_insert_with(|| reason.to_owned()).clone()
    }
}

fn spent(what: &SpendKind) -> (CloseKind, String) {
    match what {
        SpendKind::MutualClose => (CloseKind::Cooperative, "the closing transaction is in a block".to_owned()),
        SpendKind::Local => (CloseKind::LocalCommitment, "our commitment is in a block".to_owned()),
        SpendKind::RemoteUnrevoked => (CloseKind::RemoteCommitment, "the peer's commitment is in a block".to_owned()),
        SpendKind::RemoteNext => {
            (CloseKind::RemoteNextCommitment, "the peer's next commitment is in a block".to_owned())
        }
        SpendKind::Revoked { .. } => (CloseKind::RevokedCommitment, "a revoked commitment is in a block".to_owned()),
        SpendKind::Breach(breach) => (CloseKind::RevokedCommitment, breach.reason()),
        SpendKind::Future { .. } => (
            CloseKind::FutureCommitment,
            "what is in a block was signed after all that this node knows of: its data is old".to_owned(),
        ),
    }
}
