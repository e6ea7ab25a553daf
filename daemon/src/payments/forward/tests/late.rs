//! What is out over a channel that is on chain and does not come to its end, when its incoming side is about to expire.

use super::*;

/// It expires at 1,180.
const LAST: BlockHeight = BlockHeight(1_177);

/// One that went on, and whose channel is like this.
fn out_over(state: ChannelState) -> Stand {
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    stand.table.0[1].state = state;
    stand
}

fn at(stand: &mut Stand, height: BlockHeight) -> Vec<Act> {
    stand.height = Some(height);
    stand.go_on_at(true)
}

#[test]
fn three_blocks_before_it_expires_it_fails_and_not_before() {
    let mut stand = out_over(ChannelState::OnChain);
    assert_eq!(at(&mut stand, BlockHeight(LAST.0 - 1)), [], "its preimage may come");
    let acts = at(&mut stand, LAST);
    let [Act::Fail { key: KEY, failure, went_on: true }] = acts.as_slice() else { panic!("{acts:?}") };
    assert_eq!(read(failure), FailureMessage::PermanentChannelFailure);
    assert_eq!(at(&mut stand, BlockHeight(LAST.0 + 1)), [], "once");
    // It is over upstream, and kept until it is downstream.
    stand.tell(IN, &Fact::RemovalIrrevocable { id: KEY.1, fulfilled: false });
    assert_eq!((stand.go_on(), stand.forwarding.len()), (Vec::new(), 1));
    stand.tell(OUT, &Fact::OfferTimedOut { id: HtlcId(70), origin: origin(KEY) });
    assert_eq!((stand.go_on(), stand.forwarding.len()), (vec![Act::Release(OUT, HtlcId(70))], 0));
    let [Happened::Forwarded(told)] = stand.happened.as_slice() else { panic!("{:?}", stand.happened) };
    assert_eq!(told.end, ForwardEnd::TimedOut);
}

#[test]
fn not_while_the_channel_is_open_or_the_chain_is_not_known_or_the_preimage_is() {
    assert_eq!(at(&mut out_over(ChannelState::Normal), LAST), [], "its own deadline comes first");
    let mut stand = out_over(ChannelState::OnChain);
    stand.height = None;
    assert_eq!(stand.go_on_at(true), []);
    stand.tell(OUT, &fulfilled(KEY));
    let acts = at(&mut stand, LAST);
    assert!(matches!(&acts[..], [Act::Fulfill { key: KEY, .. }]), "{acts:?}");
}

/// After a restart it is peeled once more, and looked at then.
#[test]
fn also_if_the_node_was_away_for_those_blocks() {
    let stand = out_over(ChannelState::OnChain);
    let mut restarted = out_over(ChannelState::OnChain);
    restarted.forwarding = Forwarding::default();
    restarted.forwarding.restore(stand.forwarding.section());
    assert_eq!(at(&mut restarted, BlockHeight(1_179)), [], "nobody could read the failure");
    restarted.receive(KEY);
    restarted.peel(KEY, forward(10_000_000, 1_100));
    let acts = restarted.go_on();
    assert!(matches!(&acts[..], [Act::Fail { key: KEY, went_on: true, .. }]), "{acts:?}");
}

/// The user is told of what a preimage costs that comes after all.
#[test]
fn a_preimage_that_comes_too_late_is_a_loss() {
    for is_removed_first in [true, false] {
        let mut stand = out_over(ChannelState::OnChain);
        at(&mut stand, LAST);
        let removed = Fact::RemovalIrrevocable { id: KEY.1, fulfilled: false };
        if is_removed_first {
            stand.tell(IN, &removed);
            stand.tell(OUT, &fulfilled(KEY));
        } else {
            stand.tell(OUT, &fulfilled(KEY));
            stand.tell(IN, &removed);
        }
        assert_eq!(stand.go_on(), []);
        let Some(Happened::Forwarded(told)) = stand.happened.last() else { panic!("{:?}", stand.happened) };
        assert_eq!((told.end, told.fee(), told.amount_out), (ForwardEnd::Lost, Msat(0), Msat(10_000_000)));
    }
}
