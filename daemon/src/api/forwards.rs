//! The service `Forwards`: what this node has passed on for others.

use millrace_rpc::v1::forwards_server::Forwards;
use millrace_rpc::v1::{self, ForwardOutcome, ListForwardsResponse};
use tonic::{Request, Response, Status};

use super::{Shared, fault, parse};
use crate::happened::{ForwardEnd, Forwarded};
use crate::view::ForwardRow;

pub(super) struct ForwardsService(pub(super) Shared);

#[tonic::async_trait]
impl Forwards for ForwardsService {
    async fn list(&self, request: Request<v1::ListForwardsRequest>) -> Result<Response<ListForwardsResponse>, Status> {
        self.0.ready()?;
        let v1::ListForwardsRequest { page, outcome, from_ms, until_ms, channel_id } = request.into_inner();
        let wanted = ForwardOutcome::try_from(outcome).map_err(|_| fault::field("outcome", "no such outcome"))?;
        let channel = if channel_id.is_empty() { None } else { Some(parse::channel_id(&channel_id)?) };
        let (from, size) = parse::page(page.as_ref())?;
        let past = self.0.past.clone();
        past.view.catch_up(&past.log).await;
        let passes = |row: &ForwardRow| {
            let Forwarded { incoming_channel, outgoing_channel, end, .. } = &row.forwarded;
            (wanted == ForwardOutcome::Unspecified || outcome_of(*end) == wanted)
                && from_ms.is_none_or(|from| row.ended_ms >= from)
                && until_ms.is_none_or(|until| row.ended_ms < until)
                && channel.is_none_or(|id| id == *incoming_channel || id == *outgoing_channel)
        };
        let page = tokio::task::block_in_place(|| past.view.forwards(from, size, passes));
        let page = page.map_err(|error| fault::view(&error))?;
        let totals = past.view.forward_totals().map_err(|error| fault::view(&error))?;
        Ok(Response::new(ListForwardsResponse {
            forwards: page.rows.iter().map(|row| message(&row.forwarded, row.ended_ms)).collect(),
            next_cursor: parse::cursor(page.next),
            totals: Some(v1::ForwardTotals {
                settled: totals.settled,
                failed: totals.failed,
                forwarded_msat: totals.forwarded.0,
                fees_msat: totals.fees.0,
            }),
        }))
    }
}

const fn outcome_of(end: ForwardEnd) -> ForwardOutcome {
    match end {
        ForwardEnd::Settled => ForwardOutcome::Settled,
        ForwardEnd::Failed => ForwardOutcome::Failed,
        ForwardEnd::TimedOut => ForwardOutcome::TimedOut,
        ForwardEnd::Lost => ForwardOutcome::Lost,
    }
}

/// A forward, as the contract shows it.
pub(super) fn message(forwarded: &Forwarded, ended_ms: u64) -> v1::Forward {
    v1::Forward {
        outcome: outcome_of(forwarded.end).into(),
        incoming_channel_id: forwarded.incoming_channel.0.to_vec(),
        incoming_htlc_id: forwarded.incoming_htlc.0,
        outgoing_channel_id: forwarded.outgoing_channel.0.to_vec(),
        outgoing_htlc_id: forwarded.outgoing_htlc.0,
        payment_hash: forwarded.payment_hash.0.to_vec(),
        amount_in_msat: forwarded.amount_in.0,
        amount_out_msat: forwarded.amount_out.0,
        fee_msat: forwarded.fee().0,
        received_ms: forwarded.received_ms,
        ended_ms,
    }
}
