//! `millrace channel policy`: on what terms payments of others are forwarded.

use clap::{ArgGroup, Args, Subcommand};
use millrace_rpc::v1::channels_client::ChannelsClient;
use millrace_rpc::v1::{ChannelPolicy, ForwardPolicy, SetPolicyRequest};
use serde_json::{Value, json};

use super::{Reference, get};
use crate::amount::Amount;
use crate::args::KeyArg;
use crate::fault::Fault;
use crate::output::{Column, Output, list};
use crate::session::{Order, Session};
use crate::wallet::msat;
use crate::words;

/// Commands about policies.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Set what forwarding costs over a channel, and how much time and money it takes
    ///
    /// What is not given stays as it is. For ten minutes payments on the terms before are taken as well.
    ///
    /// Examples:
    ///   millrace channel policy set 8f2c11 --base 0 --ppm 250
    ///   millrace channel policy set --all --cltv-delta 144 --max-htlc 0.01btc
    #[command(verbatim_doc_comment)]
    Set(Set),
}

/// Arguments of `channel policy set`.
#[derive(Args)]
#[command(group(ArgGroup::new("which").required(true).args(["channel", "all"])))]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["base", "ppm", "cltv_delta", "min_htlc", "max_htlc"])))]
pub(crate) struct Set {
    /// Its id or the id's beginning, its short channel id, or its funding output
    #[arg(value_name = "CHANNEL")]
    channel: Option<Reference>,
    /// All channels that there are
    #[arg(long)]
    all: bool,
    /// Charged for each payment
    #[arg(long, value_name = "AMOUNT")]
    base: Option<Amount>,
    /// Charged in proportion, in millionths
    #[arg(long, value_name = "MILLIONTHS")]
    ppm: Option<u32>,
    /// Blocks between the expiries of what comes in and what goes out; at least 48
    #[arg(long, value_name = "BLOCKS")]
    cltv_delta: Option<u32>,
    /// The least that is forwarded
    #[arg(long, value_name = "AMOUNT")]
    min_htlc: Option<Amount>,
    /// The most that is forwarded at once; 0sat is all that the channel can carry
    #[arg(long, value_name = "AMOUNT")]
    max_htlc: Option<Amount>,
    #[command(flatten)]
    key: KeyArg,
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::Set(set) => set.run(session, output).await,
        }
    }
}

impl Set {
    async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        let order = Order::new("channel policy set", self.key.key.as_deref())?;
        let channel_id = match self.channel {
            None => Vec::new(),
            Some(Reference::Id(id)) => id.to_vec(),
            Some(other) => get(session, other).await?.channel_id,
        };
        let request = SetPolicyRequest {
            idempotency_key: order.key.clone(),
            channel_id,
            fee_base_msat: self.base.map(Amount::msat),
            fee_ppm: self.ppm,
            cltv_delta_blocks: self.cltv_delta,
            htlc_minimum_msat: self.min_htlc.map(Amount::msat),
            htlc_maximum_msat: self.max_htlc.map(Amount::msat),
        };
        let answer = session
            .change(&order, |link| {
                let request = request.clone();
                async move { ChannelsClient::new(link).set_policy(request).await }
            })
            .await?;
        let shown = |one: &ChannelPolicy| {
            json!({
                "channel_id": hex::encode(&one.channel_id),
                "policy": one.policy.as_ref().map(json),
            })
        };
        let json = json!({ "policies": answer.policies.iter().map(shown).collect::<Vec<_>>() });
        output.answer(&json, || table(&answer.policies))
    }
}

fn table(policies: &[ChannelPolicy]) -> String {
    let columns = [
        Column::Text("CHANNEL"),
        Column::Number("BASE FEE"),
        Column::Number("PPM"),
        Column::Number("CLTV DELTA"),
        Column::Number("LEAST"),
        Column::Number("MOST"),
    ];
    let row = |one: &ChannelPolicy| {
        let policy = one.policy.unwrap_or_default();
        vec![
            words::short(&one.channel_id),
            msat(policy.fee_base_msat),
            policy.fee_ppm.to_string(),
            policy.cltv_delta_blocks.to_string(),
            msat(policy.htlc_minimum_msat),
            policy.htlc_maximum_msat.map_or("any".to_owned(), msat),
        ]
    };
    list(&columns, policies.iter().map(row).collect(), "No channels.")
}

/// A policy for a program.
pub(super) fn json(policy: &ForwardPolicy) -> Value {
    json!({
        "fee_base_msat": policy.fee_base_msat,
        "fee_ppm": policy.fee_ppm,
        "cltv_delta_blocks": policy.cltv_delta_blocks,
        "htlc_minimum_msat": policy.htlc_minimum_msat,
        "htlc_maximum_msat": policy.htlc_maximum_msat,
    })
}

/// A policy in one line.
pub(super) fn text(policy: &ForwardPolicy) -> String {
    let most = policy.htlc_maximum_msat.map_or("any amount".to_owned(), msat);
    format!(
        "{} and {} ppm, {} blocks, from {} to {most}",
        msat(policy.fee_base_msat),
        policy.fee_ppm,
        policy.cltv_delta_blocks,
        msat(policy.htlc_minimum_msat),
    )
}
