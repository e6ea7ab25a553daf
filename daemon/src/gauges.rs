//! How things stand, for Prometheus: looked at every few seconds, never on a payment's way. What happens is counted where
//! it happens; here is only what is so at a moment.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::{counter, gauge};
use millrace_journal::{Journal, Stats};
use millrace_watchtower::client::Link;
use tokio::time::{MissedTickBehavior, interval};

use crate::channels::{ChannelSnapshot, ChannelState, Registry};
use crate::gossip::Gossip;
use crate::metrics;
use crate::peer::Peers;
use crate::towers::{Shown, Towers};
use crate::view::View;
use crate::wallet::{Balance, WalletHandle};

/// How often is looked: Prometheus asks every 15 s or more.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Each state of a channel that is not over, as its label says it.
const STATES: [(ChannelState, &str); 5] = [
    (ChannelState::Opening, "opening"),
    (ChannelState::Normal, "normal"),
    (ChannelState::ShuttingDown, "shutting_down"),
    (ChannelState::Closing, "closing"),
    (ChannelState::OnChain, "on_chain"),
];

/// What is looked at.
pub(crate) struct Watched {
    /// The channels.
    pub(crate) registry: Registry,
    /// The peers.
    pub(crate) peers: Peers,
    /// The wallet.
    pub(crate) wallet: WalletHandle,
    /// The journal.
    pub(crate) journal: Arc<Journal>,
    /// Which channels are closed.
    pub(crate) view: Arc<View>,
    /// The public graph.
    pub(crate) gossip: Gossip,
    /// The watchtowers.
    pub(crate) towers: Arc<Towers>,
}

impl Watched {
    /// Looks, and tells, for as long as the wallet runs.
    pub(crate) async fn tell(self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = Stats::default();
        loop {
            ticks.tick().await;
            let (Ok((height, _)), Ok(balance)) = (self.wallet.tip().await, self.wallet.balance().await) else { return };
            gauge!(metrics::BLOCK_HEIGHT).set(f64::from(height));
            tell_balance(&balance);
            tell_channels(&self.registry.snapshots(), self.view.closed_channels());
            gauge!(metrics::PEERS).set(count(self.peers.list().iter().filter(|peer| peer.is_connected).count()));
            let graph = self.gossip.info().await;
            gauge!(metrics::GRAPH_CHANNELS).set(count(graph.channels));
            gauge!(metrics::GRAPH_NODES).set(count(graph.nodes));
            tell_towers(&self.towers.shown());
            let stats = self.journal.stats();
            tell_journal(&before, &stats);
            before = stats;
        }
    }
}

fn tell_balance(balance: &Balance) {
    for (state, amount) in [
        ("confirmed", balance.confirmed),
        ("unconfirmed", balance.unconfirmed),
        ("immature", balance.immature),
        ("reserved", balance.reserved),
    ] {
        gauge!(metrics::WALLET_BALANCE, "state" => state).set(number(amount.0));
    }
}

fn tell_channels(channels: &[Arc<ChannelSnapshot>], closed: usize) {
    for (state, label) in STATES {
        let found = channels.iter().filter(|channel| channel.state == state).count();
        gauge!(metrics::CHANNELS, "state" => label).set(count(found));
    }
    gauge!(metrics::CHANNELS, "state" => "closed").set(count(closed));
    let open = || channels.iter().filter(|channel| channel.state != ChannelState::Closed);
    gauge!(metrics::CHANNEL_LOCAL).set(number(open().map(|channel| channel.balances.local.0).sum()));
    gauge!(metrics::CHANNEL_REMOTE).set(number(open().map(|channel| channel.balances.remote.0).sum()));
    let offered = open().map(|channel| channel.htlc_counts.local).sum();
    gauge!(metrics::HTLCS, "direction" => "offered").set(count(offered));
    let received = open().map(|channel| channel.htlc_counts.remote).sum();
    gauge!(metrics::HTLCS, "direction" => "received").set(count(received));
}

fn tell_towers(towers: &[Shown]) {
    let connected = towers.iter().filter(|tower| tower.link == Link::Up).count();
    gauge!(metrics::TOWERS, "state" => "connected").set(count(connected));
    gauge!(metrics::TOWERS, "state" => "away").set(count(towers.len() - connected));
    gauge!(metrics::TOWER_LAG).set(number(towers.iter().map(Shown::lag).max().unwrap_or_default()));
}

fn tell_journal(before: &Stats, now: &Stats) {
    counter!(metrics::JOURNAL_FLUSHES).absolute(now.flushes);
    counter!(metrics::JOURNAL_BYTES).absolute(now.bytes);
    gauge!(metrics::JOURNAL_FLUSH_LONGEST).set(seconds(now.flush_us_max));
    if let Some(mean_us) = mean_us(before, now) {
        gauge!(metrics::JOURNAL_FLUSH_MEAN).set(seconds(mean_us));
    }
}

/// What a flush took since the look before; nothing if there was none.
fn mean_us(before: &Stats, now: &Stats) -> Option<u64> {
    let took_us = now.flush_us_total.saturating_sub(before.flush_us_total);
    took_us.checked_div(now.flushes.saturating_sub(before.flushes))
}

/// Prometheus knows 64-bit floats only: exact up to 2^53, which is more than all satoshis there are.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn number(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    number(u64::try_from(value).unwrap_or(u64::MAX))
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_of_the_flushes_since_the_look_before() {
        let stats = |flushes, flush_us_total| Stats { flushes, flush_us_total, ..Stats::default() };
        assert_eq!(mean_us(&stats(0, 0), &stats(4, 1_000)), Some(250));
        assert_eq!(mean_us(&stats(4, 1_000), &stats(6, 1_200)), Some(100));
        assert_eq!(mean_us(&stats(6, 1_200), &stats(6, 1_200)), None, "an idle journal keeps its last mean");
    }
}
