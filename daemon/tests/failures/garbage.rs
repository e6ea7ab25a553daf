//! What a hop sends back that is no failure of BOLT 4, or one that asks for too much: the payment ends, in words, and the
//! channels go on.

use millrace_routing::failure::code;
use millrace_rpc::v1;
use millrace_wire::Message;
use millrace_wire::message::AttributionData;
use millraced::policy::ForwardPolicy;

use crate::four::{A, B, C, Four};
use crate::support::tap::To;
use crate::table::Cause;
use crate::{Case, reset};

const AMOUNT: u64 = 50_000_000;

/// Alice pays, and every failure that passes a tap is made into this.
async fn fail_with(four: &Four, at: usize, reason: Vec<u8>, attribution: Option<Box<AttributionData>>) -> v1::Payment {
    let case = Case { code: code::UNKNOWN_NEXT_PEER, at: C, cause: Cause::UnknownChannel };
    four.taps[at - 1].rewrite(move |to, mut message| {
        if let (To::Left, Message::UpdateFailHtlc(failed)) = (to, &mut message) {
            (failed.reason, failed.attribution) = (reason.clone(), attribution.clone());
        }
        vec![(to, message)]
    });
    let payment = case.shown(four, AMOUNT).await;
    reset(four, at, case.cause).await;
    four.at_rest().await;
    payment
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_cannot_be_read_are_shown_as_such_whoever_sends_them() {
    let four = Four::new().await;
    let noise = Box::new(AttributionData { hold_times: [0xff; 80], hmacs: [0xff; 840] });
    for at in [B, C] {
        for length in [0, 1, 33, 291, 292, 293, 2_000, 60_000] {
            for attribution in [None, Some(noise.clone())] {
                let payment = fail_with(&four, at, vec![9; length], attribution).await;
                assert_eq!((payment.status(), payment.attempts.len()), (v1::PaymentStatus::Failed, 1), "{at} {length}");
                let failure = payment.attempts[0].failure.as_ref().unwrap();
                assert_eq!((failure.failure_code, failure.hop_index), (0, None), "{at} {length}: {failure:?}");
                assert!(failure.message.starts_with("the answer cannot be read"), "{at} {length}: {failure:?}");
            }
        }
    }
    four.pay_well(AMOUNT).await;
    four.stop().await;
}

/// Reckless_Satoshi, 2021: a hop whose terms, told in a failure, cost more than the payer has agreed to.
#[tokio::test(flavor = "multi_thread")]
async fn terms_that_a_failure_tells_do_not_cost_more_than_was_agreed() {
    let four = Four::new().await;
    let dear = ForwardPolicy { fee_ppm: 500_000, htlc_minimum: millrace_wire::Msat(7), ..ForwardPolicy::default() };
    four.set_policy(C, dear).await;
    let case = Case { code: code::FEE_INSUFFICIENT, at: C, cause: Cause::LowFee };
    let since = four.taps[A].mark();
    let payment = case.shown(&four, AMOUNT).await;
    assert_eq!((payment.status(), payment.attempts.len()), (v1::PaymentStatus::Failed, 1));
    let failure = payment.attempts[0].failure.as_ref().unwrap();
    assert_eq!((failure.failure_name.as_str(), failure.hop_index), ("fee_insufficient", Some(2)));
    let told = four.told(since).await;
    assert!(told.came[0].amount.0 < AMOUNT + AMOUNT / 100, "no more than one percent was ever sent: {told:?}");
    reset(&four, C, Cause::BelowMinimum).await;
    four.at_rest().await;
    four.pay_well(AMOUNT).await;
    four.stop().await;
}
