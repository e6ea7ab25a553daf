//! The ways that a payment would take now, and what they cost: `millrace pay --dry-run` and `millrace graph route`.

use millrace_rpc::v1::payments_client::PaymentsClient;
use millrace_rpc::v1::{EstimateRouteRequest, PayRequest, Route};
use serde_json::{Value, json};

use crate::fault::Fault;
use crate::output::{Output, facts};
use crate::payment;
use crate::session::Session;
use crate::wallet::msat;
use crate::words;

/// Asks and shows.
pub(crate) async fn run(session: &Session, output: &mut Output, payment: PayRequest) -> Result<(), Fault> {
    let request = EstimateRouteRequest { payment: Some(payment) };
    let found = session
        .read(|link| {
            let request = request.clone();
            async move { PaymentsClient::new(link).estimate_route(request).await }
        })
        .await?;
    let route = |route: &Route| {
        json!({
            "amount_msat": route.amount_msat,
            "fee_msat": route.fee_msat,
            "chance_ppm": route.chance_ppm,
            "hops": route.hops.iter().map(payment::hop_json).collect::<Vec<_>>(),
        })
    };
    let routes: Vec<Value> = found.routes.iter().map(route).collect();
    let json = json!({ "amount_msat": found.amount_msat, "fee_msat": found.fee_msat, "routes": routes });
    output.answer(&json, || {
        let parts = words::count(found.routes.len(), "part");
        let mut sections =
            vec![facts([("Would pay", msat(found.amount_msat)), ("Fee", msat(found.fee_msat)), ("In", parts)])];
        sections.extend(found.routes.iter().enumerate().map(|(index, route)| {
            let (number, amount, fee) = (index + 1, msat(route.amount_msat), msat(route.fee_msat));
            let chance = chance(route.chance_ppm);
            format!("Part {number}, {amount} for {fee}, chance {chance}\n{}", payment::hops_table(&route.hops))
        }));
        sections.join("\n\n")
    })
}

/// Rounded down: what is not certain is not called so.
fn chance(ppm: u32) -> String {
    match ppm / 10_000 {
        0 => "below 1 %".to_owned(),
        percent => format!("{percent} %"),
    }
}
