//! `update_fee` for the channels that this node funds (BOLT 2, "Updating Fees").
//!
//! Others close a channel whose commitment pays less than they think it must, so a rise is followed soon; a fall is
//! followed only when it is large, since each change costs a round.

use millrace_chain::fees::FeeEstimates;
use millrace_channel::{CommitmentFormat, Side};
use millrace_wire::FeeratePerKw;
use tokio::sync::watch;
use tokio::time::{Duration, MissedTickBehavior, interval};

use crate::channels::{ChannelSnapshot, ChannelState, Registry, commitment_feerate};

/// A rise of so many percent is followed.
const RISE_PERCENT: u64 = 5;
/// A fall of so many percent is followed.
const FALL_PERCENT: u64 = 30;
/// Channels that could not be told (the peer was away, an HTLC in the way) are tried again so often.
const AGAIN: Duration = Duration::from_secs(60);

/// The feerate to propose, if the present one should not stay.
fn wanted(present: FeeratePerKw, target: FeeratePerKw) -> Option<FeeratePerKw> {
    let (present_rate, target_rate) = (u64::from(present.0), u64::from(target.0));
    let rises = target_rate * 100 > present_rate * (100 + RISE_PERCENT);
    let falls = target_rate * 100 < present_rate * (100 - FALL_PERCENT);
    (rises || falls).then_some(target)
}

fn wanted_for(snapshot: &ChannelSnapshot, fees: &FeeEstimates) -> Option<FeeratePerKw> {
    let may_change = matches!(snapshot.state, ChannelState::Normal | ChannelState::ShuttingDown);
    if snapshot.terms.funder != Side::Local || !may_change || !snapshot.is_online {
        return None;
    }
    wanted(snapshot.feerate, commitment_feerate(fees, snapshot.terms.format() == CommitmentFormat::Anchors))
}

/// Follows the chain's fees, for ever.
pub(crate) async fn follow(registry: Registry, mut fees: watch::Receiver<FeeEstimates>) {
    let mut ticks = interval(AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = fees.changed() => if changed.is_err() { return },
            _ = ticks.tick() => {}
        }
        let now = *fees.borrow_and_update();
        for snapshot in registry.snapshots() {
            if let Some(feerate) = wanted_for(&snapshot, &now) {
                tracing::debug!(channel_id = %snapshot.channel_id, from = snapshot.feerate.0, to = feerate.0, "update_fee");
                registry.update_fee(snapshot.channel_id, feerate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_stay() {
        let at = |target| wanted(FeeratePerKw(1000), FeeratePerKw(target));
        assert_eq!((at(1000), at(1050), at(700)), (None, None, None));
        assert_eq!(at(1051), Some(FeeratePerKw(1051)));
        assert_eq!(at(699), Some(FeeratePerKw(699)));
    }
}
