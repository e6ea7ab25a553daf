//! Private channels at the end of routes that mix LDK and us: invoices with hints, ours paid by LDK and LDK's paid by us.

use millrace_regtest::mesh::Mesh;
use millrace_regtest::network::wait_for;
use millrace_regtest::plan::{ChannelPlan, Kind, Plan};
use millrace_rpc::v1::{DecodeInvoiceRequest, PaymentStatus, RouteHintHop};

use crate::routes::{check_paid_by, started};
use crate::tried::{Expected, check_decoded, check_failed, fails_at_ldk, ldk, ours, outcome_at_ldk, pay_from_us};

const AMOUNT_MSAT: u64 = 100_000_000;
/// What is asked for in the end, when the terms before it are no longer taken.
const DEAR_MSAT: u32 = 50_001;
const FEE_INSUFFICIENT: u16 = 0x100c;

/// How long an invoice may lack its hint: until the peer has told its terms.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

fn private(from: usize, to: usize) -> ChannelPlan {
    ChannelPlan { public: false, ..ChannelPlan::halves(from, to) }
}

/// An invoice with a hint that will do, and the hint.
async fn hinted(mesh: &Mesh, payee: usize, is_good: impl Fn(&RouteHintHop) -> bool) -> (String, RouteHintHop) {
    let found = std::cell::RefCell::new(None);
    wait_for(&format!("a hint in an invoice of {payee}"), LIMIT, async || {
        let bolt11 = mesh.invoice(payee, AMOUNT_MSAT).await?;
        let reader = ours(mesh, 0);
        let request = DecodeInvoiceRequest { bolt11: bolt11.clone() };
        let answer = reader.client()?.invoices.decode(request).await.map_err(|status| reader.call_failed(&status))?;
        let hints: Vec<RouteHintHop> = answer.into_inner().route_hints.into_iter().flat_map(|hint| hint.hops).collect();
        match &hints[..] {
            [hint] if is_good(hint) => {
                found.replace(Some((bolt11, hint.clone())));
                Ok(Ok(()))
            }
            _ => Ok(Err(format!("{hints:?}"))),
        }
    })
    .await
    .unwrap();
    found.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_lead_over_either_to_either() {
    // Ours and LDK's with an announced channel, and behind each of them one of both kinds.
    let mut plan = Plan::nodes(6).with_channels(&[(1, 0)]).with_kind(&[1, 4, 5], Kind::Ldk);
    plan.channels.extend([private(0, 2), private(1, 3), private(4, 0), private(5, 1)]);
    let mesh = started(plan).await;
    let ways = [
        // To ours: from LDK over us, from us over LDK, and between the private ends.
        (1, 2, 0),
        (0, 3, 1),
        (2, 3, 1),
        (4, 3, 1),
        (5, 2, 0),
        // To LDK's: from us over us, from us over LDK, and between the private ends.
        (2, 4, 0),
        (0, 5, 1),
        (3, 4, 0),
        (4, 5, 1),
    ];
    for (payer, payee, before) in ways {
        let (invoice, hint) = hinted(&mesh, payee, |_| true).await;
        assert_eq!(hint.node_id, mesh.node_id(before).unwrap(), "{payer} to {payee}");
        check_paid_by(&mesh, payer, payee, AMOUNT_MSAT, &invoice).await;
    }
}

/// LDK takes the terms before a change for a while, but forgets them at the next one.
async fn set_fee_of_ldk(mesh: &Mesh, node: usize, channel: usize) {
    let channel_id = hex::encode(mesh.channel_id(channel));
    for fee in [DEAR_MSAT - 1, DEAR_MSAT] {
        ldk(mesh, node).set_policy(&channel_id, Some(fee), None, None).await.unwrap();
    }
}

/// Ours takes for ten minutes what was set before; what stands in its settings holds alone from a start on.
async fn start_dearer(mesh: &mut Mesh, node: usize, peers: &[usize]) {
    let ours = mesh.ours(node).unwrap();
    ours.stop().await.unwrap();
    for argument in ["--routing-fee-base-msat", &DEAR_MSAT.to_string(), "--routing-fee-ppm", "0"] {
        ours.argument(argument);
    }
    ours.start().await.unwrap();
    for peer in peers {
        mesh.connect(node, *peer).await.unwrap();
    }
    mesh.wait_until_usable().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fee_that_changed_since_the_invoice_is_refused_and_told_apart() {
    let mut plan = Plan::nodes(4).with_channels(&[(1, 0)]).with_kind(&[1], Kind::Ldk);
    plan.channels.extend([private(0, 2), private(1, 3)]);
    let mut mesh = started(plan).await;

    // LDK in the middle. It says that its fee is another, and never which (its `channel_update` has a length of 0).
    let (invoice, hint) = hinted(&mesh, 3, |_| true).await;
    assert!(hint.fee_base_msat < DEAR_MSAT);
    set_fee_of_ldk(&mesh, 1, 2).await;
    let expected = Expected { hop: 1, node: 1, code: FEE_INSUFFICIENT.into(), name: "fee_insufficient" };
    let failed = pay_from_us(ours(&mesh, 0), &invoice).await;
    check_failed(&mesh, 0, &failed, &expected).await;
    // A new invoice tells.
    let (invoice, _) = hinted(&mesh, 3, |hint| hint.fee_base_msat == DEAR_MSAT).await;
    let paid = pay_from_us(ours(&mesh, 0), &invoice).await;
    assert_eq!((paid.status(), paid.fee_msat), (PaymentStatus::Succeeded, u64::from(DEAR_MSAT)), "{paid:?}");

    // We in the middle: LDK reads what we say, and does not act on it (it takes no terms from failures).
    let (invoice, hint) = hinted(&mesh, 2, |_| true).await;
    assert!(hint.fee_base_msat < DEAR_MSAT);
    start_dearer(&mut mesh, 0, &[1, 2]).await;
    let (before, _) = fails_at_ldk(ldk(&mesh, 1), &invoice).await;
    check_decoded(&mesh, 1, before, 0, FEE_INSUFFICIENT).await;
    // It pays a new invoice.
    let (invoice, _) = hinted(&mesh, 2, |hint| hint.fee_base_msat == DEAR_MSAT).await;
    let payment_id = ldk(&mesh, 1).pay(&invoice, None).await.unwrap();
    assert_eq!(outcome_at_ldk(ldk(&mesh, 1), &payment_id).await, Ok(()));
    assert_eq!(ldk(&mesh, 1).payment(&payment_id).await.unwrap().fee_msat, Some(u64::from(DEAR_MSAT)));
}
