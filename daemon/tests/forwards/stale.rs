//! As after an outage: bitcoind wakes with a tip of long ago. What had gone on before is downstream's to decide, whatever is
//! known of the chain.

use std::time::Duration;

use millrace_chain::SyncState;
use millrace_channel::Fact;
use millrace_routing::failure::{Decoded, Failure, FailureMessage, HoldTime, code, fail};
use millrace_rpc::v1;
use millrace_wire::{BlockHeight, ChannelId, HtlcId, Msat};
use millraced::readiness::Readiness;

use crate::line::{Line, Outcome, Plan, Sent, alias, at_rest, fee, find, forwards, usable};
use crate::support::{Homes, TestNode, eventually, preimage};
use crate::world::{World, start_unready};
use crate::{homes, line_to_charlie};

const AMOUNT: u64 = 5_000_000;

/// Alice's HTLC has come to Charlie over Bob, who was started anew since and does not know how high the chain is.
struct Stage {
    line: Line,
    bob: World,
    charlie: TestNode,
    second: ChannelId,
    out: Sent,
    htlc_id: HtlcId,
    _homes: Homes<3>,
}

impl Stage {
    async fn new() -> Self {
        let homes = homes();
        let (line, bob, charlie, second) = line_to_charlie(&homes).await;
        let height = line.chain.height();
        let plan = Plan::new(bob.node_id, charlie.id(), alias(&bob, second), AMOUNT, height);
        let [out, refused] = [7, 8].map(|n| plan.clone().to(&preimage(n)).build());
        line.offer(&out).await;
        let id_of = |fact: &Fact| match fact {
            Fact::HtlcReceived { id, .. } => Some(*id),
            _ => None,
        };
        let htlc_id = eventually("it comes to Charlie", || find(&charlie.fold, id_of)).await;
        bob.stop().await;
        let bob = start_unready(homes[1].path(), &line.chain).await;
        bob.sync.send_replace(SyncState::Stalled { height, tip_time: 1 });
        bob.payments.start(bob.node.registry().clone(), bob.sync.subscribe(), bob.serving.archive()).unwrap();
        bob.readiness.send_replace(Readiness::Ready);
        usable(&bob.node, line.first).await;
        usable(&line.alice.node, line.first).await;
        // What comes now is refused; the refusal is the sign that everything before it was decided too.
        let (hop, message) = line.failure(&refused).await;
        assert_eq!((hop, message.code()), (0, code::TEMPORARY_NODE_FAILURE));
        assert_eq!(line.removal(&out), None);
        Self { line, bob, charlie, second, out, htlc_id, _homes: homes }
    }

    /// What Bob tells of it, once it is over; and what he has then.
    async fn end(self) -> (v1::ForwardOutcome, Msat) {
        let balance = at_rest(&self.bob.node, self.line.first).await.balances.local;
        let told = forwards(&self.bob).await.forwards;
        let [forward] = &told[..] else { panic!("{told:?}") };
        let outcome = forward.outcome();
        self.bob.stop().await;
        (outcome, balance)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_had_gone_on_waits_for_its_end_though_the_chain_is_stale_after_a_restart() {
    let stage = Stage::new().await;
    stage.charlie.fulfill(stage.second, &preimage(7)).await;
    let outcome = stage.line.outcome(&stage.out).await;
    assert!(matches!(outcome, Outcome::Paid(ref paid, _) if *paid == preimage(7)), "{outcome:?}");
    assert_eq!(stage.end().await, (v1::ForwardOutcome::Settled, Msat(AMOUNT + fee(AMOUNT))));
}

/// Bob needs the secret that he shares with Alice for it, and so has to peel the onion again.
#[tokio::test(flavor = "multi_thread")]
async fn what_had_gone_on_fails_with_charlies_reason_though_the_chain_is_stale_after_a_restart() {
    let stage = Stage::new().await;
    let height = BlockHeight(stage.line.chain.height());
    let reason = FailureMessage::IncorrectOrUnknownPaymentDetails { amount: Msat(AMOUNT), height };
    let Failure { reason: packet, attribution } = fail(&stage.out.secrets[1], &reason, HoldTime::floor(Duration::ZERO));
    let registry = stage.charlie.node.registry();
    let answer = registry.fail(stage.second, stage.htlc_id, packet, Some(attribution), Vec::new()).await;
    answer.unwrap().unwrap();
    match stage.line.outcome(&stage.out).await {
        Outcome::Failed(Decoded { hop, message }, times) => {
            assert_eq!((hop, message), (1, reason));
            assert_eq!((times.hops.len(), times.broken_at), (2, None), "both tell how long they held it");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(stage.end().await, (v1::ForwardOutcome::Failed, Msat(0)));
}
