//! The only way, which has refused for a while: tried again by the payment itself, and by the next one.

use millrace_routing::failure::code;
use millrace_rpc::v1::{self, PaymentStatus};
use millrace_wire::Msat;
use millraced::payments::FIRST_PAUSE_MS;
use millraced::policy::ForwardPolicy;

use crate::four::{A, C, Four};

const AMOUNT: u64 = 80_000_000;
/// Of the channel to Dave, as the map has it: so small that what it has refused is not soon thought likely again.
const CAPACITY: Msat = Msat(100_000_000);

/// Carol takes less than that for a while.
async fn shut(four: &Four) {
    let policy = ForwardPolicy { htlc_maximum: Some(Msat(AMOUNT - 1)), ..ForwardPolicy::default() };
    four.set_policy(C, policy).await;
}

async fn order(four: &Four) -> v1::PayRequest {
    let invoice = four.invoice(|wanted| wanted.amount_msat = Some(AMOUNT)).await;
    let bolt11 = four.forge(AMOUNT, &invoice, |_| {});
    v1::PayRequest { bolt11, max_parts: 1, ..v1::PayRequest::default() }
}

async fn chance_ppm(four: &Four) -> u32 {
    let request = v1::EstimateRouteRequest { payment: Some(order(four).await) };
    let found = four.nodes[A].payments_client().await.estimate_route(request).await.unwrap().into_inner();
    assert_eq!(found.routes.len(), 1);
    assert_eq!(found.routes[0].hops.len(), 3);
    found.routes[0].chance_ppm
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_way_is_tried_again_once_it_may_have_got_better() {
    let four = Four::with_pause(FIRST_PAUSE_MS).await;
    four.draw(|drawn| drawn[1].capacity = CAPACITY);
    let before = chance_ppm(&four).await;
    assert!((150_000..250_000).contains(&before), "a fifth of what there is may be there: {before}");

    // By the same payment, after a pause.
    shut(&four).await;
    let (request, since) = (order(&four).await, four.taps[A].mark());
    let gets_better = async {
        let told = four.told(since).await;
        four.reset_policy(C).await;
        told
    };
    let (paid, told) = tokio::join!(four.pay(&request.bolt11), gets_better);
    assert_eq!((told.by, told.message.code()), (C, code::TEMPORARY_CHANNEL_FAILURE));
    assert_eq!(paid.status(), PaymentStatus::Succeeded, "{:?}", paid.attempts);
    let first = paid.attempts[0].failure.as_ref().unwrap();
    assert_eq!(first.failure_code, u32::from(code::TEMPORARY_CHANNEL_FAILURE));

    // By the next payment of as much, as soon as it is asked for.
    shut(&four).await;
    let failed = four.pay(&order(&four).await.bolt11).await;
    assert_eq!((failed.status(), failed.attempts.len()), (PaymentStatus::Failed, 4), "{:?}", failed.attempts);
    let failure = failed.failure.as_ref().unwrap();
    assert_eq!((failure.failure_code, failure.hop_index), (u32::from(code::TEMPORARY_CHANNEL_FAILURE), Some(2)));
    four.reset_policy(C).await;
    let after = chance_ppm(&four).await;
    assert!(after > 0 && after <= 1_000, "it has just refused as much: {after}");
    let paid = four.pay(&order(&four).await.bolt11).await;
    assert_eq!((paid.status(), paid.attempts.len()), (PaymentStatus::Succeeded, 1), "{:?}", paid.attempts);
    four.stop().await;
}
