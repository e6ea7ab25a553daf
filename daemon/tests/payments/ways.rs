//! Ways over other nodes: shown, tried, and their failures told by hop. Who forwards is another matter: here nobody does.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::Network;
use millrace_routing::graph::{Direction, NodeId, Policy};
use millrace_routing::invoice::{Description, MIN_FINAL_CLTV, NewInvoice};
use millrace_routing::map::{Map, Usable};
use millrace_rpc::v1::graph_client::GraphClient;
use millrace_rpc::v1::{self, ErrorReason, PaymentStatus};
use millrace_wire::{Msat, PaymentSecret, Preimage, PublicKey, ShortChannelId};
use secp256k1::{SECP256K1, SecretKey};

use crate::support::FakeChain;
use crate::world::{World, open_between, pay_request, start};
use crate::{pair, reason};

const BEHIND: ShortChannelId = ShortChannelId(0x0001_0000_0100_0001);

/// A node that is not there: only a map speaks of it, and an invoice.
fn carol() -> SecretKey {
    SecretKey::from_slice(&[77; 32]).unwrap()
}

fn invoice_of_carol(msat: u64) -> String {
    let invoice = NewInvoice {
        network: Network::Regtest,
        amount: Some(Msat(msat)),
        payment_hash: Preimage::new([5; 32]).hash(),
        payment_secret: PaymentSecret::new([6; 32]),
        description: Description::Text("tea".to_owned()),
        timestamp: SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
        expiry: Duration::from_secs(3_600),
        min_final_cltv: MIN_FINAL_CLTV,
        basic_mpp: true,
        payment_metadata: None,
        route_hints: Vec::new(),
    };
    invoice.sign(&carol()).unwrap()
}

/// A map on which a channel leads from this node to Carol, for 2 sat.
fn map_to_carol(from: PublicKey) -> Map {
    let (from, to) = (NodeId::from(from), NodeId::from(carol().public_key(SECP256K1)));
    Map::of_channels(vec![Usable {
        short_channel_id: BEHIND,
        direction: if from < to { Direction::FromLesser } else { Direction::FromGreater },
        from,
        to,
        policy: Policy {
            is_disabled: false,
            cltv_expiry_delta: 40,
            htlc_minimum: Msat(1),
            htlc_maximum: Msat(1_000_000_000),
            fee_base_msat: 2_000,
            fee_proportional_millionths: 0,
        },
        capacity: Msat(1_000_000_000),
    }])
}

async fn estimate(world: &World, payment: v1::PayRequest) -> Result<v1::EstimateRouteResponse, tonic::Status> {
    let request = v1::EstimateRouteRequest { payment: Some(payment) };
    world.payments_client().await.estimate_route(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_over_a_peer_is_shown_and_tried_and_whoever_fails_it_is_named_also_after_a_restart() {
    let (chain, a_home, b_home) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = pair(&chain, [a_home.path(), b_home.path()]).await;
    open_between(&alice, &bob, &chain, 1_000_000, 0).await;
    let invoice = invoice_of_carol(50_000);

    let unknown = estimate(&alice, pay_request(&invoice)).await.unwrap_err();
    assert_eq!(reason(&unknown), ErrorReason::NoRoute, "{unknown}");
    let mut graph = GraphClient::new(alice.link().await);
    let nothing = graph.get_channel(v1::GetGraphChannelRequest { scid: BEHIND.0 }).await.unwrap_err();
    assert_eq!(nothing.message(), format!("there is no channel {BEHIND} in the public graph"));
    let node_id = bob.node_id.serialize().to_vec();
    let nobody = graph.get_node(v1::GetGraphNodeRequest { node_id, channels_max: 0 }).await.unwrap_err();
    assert_eq!(nobody.message(), format!("there is no node {} in the public graph", bob.node_id));
    alice.network.publish(Arc::new(map_to_carol(bob.node_id)));
    let found = estimate(&alice, pay_request(&invoice)).await.unwrap();
    assert_eq!((found.amount_msat, found.fee_msat, found.routes.len()), (50_000, 2_000, 1));
    let hops: Vec<(u64, u64)> = found.routes[0].hops.iter().map(|hop| (hop.amount_msat, hop.fee_msat)).collect();
    assert_eq!(hops, [(52_000, 2_000), (50_000, 0)]);
    assert_eq!(found.routes[0].hops[0].node_id, bob.node_id.serialize());
    let dear = v1::PayRequest { fee_limit_msat: Some(1_999), ..pay_request(&invoice) };
    assert_eq!(reason(&estimate(&alice, dear.clone()).await.unwrap_err()), ErrorReason::NoRoute);
    assert_eq!(reason(&alice.pay(dear).await.unwrap_err()), ErrorReason::NoRoute);
    // With the blocks that may come while the payment is under way.
    let needed = u32::from(MIN_FINAL_CLTV.0) + 3 + 40;
    let near = |blocks| v1::PayRequest { max_cltv_expiry_blocks: blocks, ..pay_request(&invoice) };
    assert!(estimate(&alice, near(needed)).await.is_ok());
    for status in [estimate(&alice, near(needed - 1)).await.unwrap_err(), alice.pay(near(50)).await.unwrap_err()] {
        assert_eq!(reason(&status), ErrorReason::NoRoute, "{status}");
        assert!(status.message().ends_with(&format!("blocks, the cheapest {needed}")), "{status}");
        let detail = v1::ErrorDetail::from_status(&status).unwrap();
        assert_eq!(detail.facts["blocks"], needed.to_string());
        assert!(detail.hint.contains("limit of blocks"), "{}", detail.hint);
    }
    let lists = alice.payments_client().await.list(v1::ListPaymentsRequest::default()).await.unwrap();
    assert!(lists.into_inner().payments.is_empty(), "nothing was begun");

    // Bob has no such channel, and says so.
    let failed = alice.pay(pay_request(&invoice)).await.unwrap();
    assert_eq!(failed.status(), PaymentStatus::Failed);
    let attempt = &failed.attempts[0];
    let failure = attempt.failure.as_ref().unwrap();
    assert_eq!((failure.hop_index, failure.failure_name.as_str()), (Some(1), "unknown_next_peer"));
    assert_eq!(failure.node_id, bob.node_id.serialize());
    assert_eq!((attempt.amount_msat, attempt.fee_msat, attempt.hops.len()), (50_000, 2_000, 2));

    let hash = failed.payment_hash.clone();
    alice.stop().await;
    let alice = start(a_home.path(), &chain).await;
    let request = v1::GetPaymentRequest { payment_hash: hash };
    let again = alice.payments_client().await.get(request).await.unwrap().into_inner().payment.unwrap();
    assert_eq!(again, failed);
    alice.stop().await;
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_that_cannot_be_right_are_refused_by_name() {
    let (chain, home) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let alice = start(home.path(), &chain).await;
    let invoice = invoice_of_carol(50_000);
    let node_id = carol().public_key(SECP256K1).serialize().to_vec();
    let requests = [
        ("max_parts", v1::PayRequest { max_parts: 65, ..pay_request(&invoice) }),
        ("max_cltv_expiry_blocks", v1::PayRequest { max_cltv_expiry_blocks: 65_536, ..pay_request(&invoice) }),
        ("node_id", v1::PayRequest { node_id: node_id.clone(), ..pay_request(&invoice) }),
        ("node_id", v1::PayRequest { node_id: vec![2; 32], amount_msat: Some(5), ..v1::PayRequest::default() }),
        ("timeout_s", v1::PayRequest { timeout_s: 86_401, ..pay_request(&invoice) }),
    ];
    for (field, request) in requests {
        for status in [alice.pay(request.clone()).await.unwrap_err(), estimate(&alice, request).await.unwrap_err()] {
            assert_eq!(reason(&status), ErrorReason::InvalidField, "{field}: {status}");
            assert!(status.message().contains(field), "{status}");
        }
    }
    let no_amount = v1::PayRequest { node_id, ..v1::PayRequest::default() };
    assert_eq!(reason(&alice.pay(no_amount).await.unwrap_err()), ErrorReason::AmountMissing);
    let own = alice.node_id.serialize().to_vec();
    let to_itself = v1::PayRequest { node_id: own, amount_msat: Some(5), ..v1::PayRequest::default() };
    assert_eq!(reason(&alice.pay(to_itself).await.unwrap_err()), ErrorReason::SelfPayment);
    alice.stop().await;
}
