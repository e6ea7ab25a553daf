//! `millrace forward`: payments of others that this node has passed on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Subcommand, ValueEnum};
use millrace_rpc::v1::forwards_client::ForwardsClient;
use millrace_rpc::v1::{Forward, ForwardOutcome, ForwardTotals, ListForwardsRequest};
use serde_json::{Value, json};

use crate::args::PageArgs;
use crate::fault::Fault;
use crate::output::{Column, Output, list, page};
use crate::session::Session;
use crate::wallet::msat;
use crate::words;

/// Commands about forwards.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List what was passed on, the newest first, and what it has earned
    ///
    /// Examples:
    ///   millrace forward list --outcome settled --limit 10
    ///   millrace forward list --since 24h --json
    #[command(verbatim_doc_comment)]
    List {
        /// Only those that ended so
        #[arg(long, value_enum)]
        outcome: Option<Outcome>,
        /// Only those that ended within this time
        #[arg(long, value_name = "TIME", value_parser = words::parse_duration)]
        since: Option<Duration>,
        #[command(flatten)]
        page: PageArgs,
    },
}

/// How a forward can end.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Outcome {
    /// Passed on and paid
    Settled,
    /// Failed further on
    Failed,
    /// The outgoing channel ended without it
    TimedOut,
    /// Paid further on when it was over on this side: what went out is lost
    Lost,
}

impl From<Outcome> for ForwardOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Settled => Self::Settled,
            Outcome::Failed => Self::Failed,
            Outcome::TimedOut => Self::TimedOut,
            Outcome::Lost => Self::Lost,
        }
    }
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        let Self::List { outcome, since, page: args } = self;
        let request = ListForwardsRequest {
            page: args.page(),
            outcome: outcome.map_or(ForwardOutcome::Unspecified, ForwardOutcome::from).into(),
            from_ms: since.map(unix_ms_before),
            until_ms: None,
            channel_id: Vec::new(),
        };
        let answer = session.read(|link| async move { ForwardsClient::new(link).list(request).await }).await?;
        let totals = answer.totals.unwrap_or_default();
        let json = json!({
            "forwards": answer.forwards.iter().map(json).collect::<Vec<_>>(),
            "next_cursor": answer.next_cursor,
            "totals": {
                "settled": totals.settled,
                "failed": totals.failed,
                "forwarded_msat": totals.forwarded_msat,
                "fees_msat": totals.fees_msat,
            },
        });
        output.answer(&json, || {
            let shown = page(table(&answer.forwards), &answer.next_cursor);
            format!("{shown}\n\n{}", totals_text(&totals))
        })
    }
}

/// So long ago.
fn unix_ms_before(time: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_sub(time).as_millis()).unwrap_or(u64::MAX)
}

fn table(forwards: &[Forward]) -> String {
    let columns = [
        Column::Text("TIME"),
        Column::Text("OUTCOME"),
        Column::Number("AMOUNT"),
        Column::Number("FEE"),
        Column::Text("FROM"),
        Column::Text("TO"),
        Column::Number("TOOK"),
    ];
    let row = |forward: &Forward| {
        vec![
            words::time(forward.ended_ms),
            outcome(forward),
            msat(forward.amount_out_msat),
            msat(forward.fee_msat),
            words::short(&forward.incoming_channel_id),
            words::short(&forward.outgoing_channel_id),
            format!("{} ms", forward.ended_ms.saturating_sub(forward.received_ms)),
        ]
    };
    list(&columns, forwards.iter().map(row).collect(), "Nothing was passed on yet.")
}

fn totals_text(totals: &ForwardTotals) -> String {
    format!(
        "{} settled with {}, {} earned; {} not",
        totals.settled,
        msat(totals.forwarded_msat),
        msat(totals.fees_msat),
        totals.failed
    )
}

fn outcome(forward: &Forward) -> String {
    words::value(forward.outcome().as_str_name(), "FORWARD_OUTCOME_").replace('_', " ")
}

/// A forward for a program.
pub(crate) fn json(forward: &Forward) -> Value {
    json!({
        "outcome": words::value(forward.outcome().as_str_name(), "FORWARD_OUTCOME_"),
        "incoming_channel_id": hex::encode(&forward.incoming_channel_id),
        "incoming_htlc_id": forward.incoming_htlc_id,
        "outgoing_channel_id": hex::encode(&forward.outgoing_channel_id),
        "outgoing_htlc_id": forward.outgoing_htlc_id,
        "payment_hash": hex::encode(&forward.payment_hash),
        "amount_in_msat": forward.amount_in_msat,
        "amount_out_msat": forward.amount_out_msat,
        "fee_msat": forward.fee_msat,
        "received_ms": forward.received_ms,
        "ended_ms": forward.ended_ms,
    })
}

/// A forward in one line.
pub(crate) fn text(forward: &Forward) -> String {
    let (from, to) = (words::short(&forward.incoming_channel_id), words::short(&forward.outgoing_channel_id));
    let amount = msat(forward.amount_out_msat);
    match forward.outcome() {
        ForwardOutcome::Settled => format!("{amount} passed on from {from} to {to} for {}", msat(forward.fee_msat)),
        _ => format!("{amount} from {from} to {to}: {}", outcome(forward)),
    }
}
