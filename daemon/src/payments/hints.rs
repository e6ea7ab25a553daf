//! Ways to this node that invoices tell: a payer cannot know channels that are not announced (BOLT 11, "Tagged Fields",
//! `r`).

use millrace_channel::Side;
use millrace_routing::invoice::HintHop;
use millrace_wire::{CltvDelta, Msat};

use crate::channels::{ChannelSnapshot, ChannelState};
use crate::network::Network;

/// Channels that an invoice tells of: each makes its text, and the QR code, longer.
const HINTS_MAX: usize = 3;

/// The ways over unannounced channels, those first through which most can come.
pub(super) fn hints<'a>(channels: impl Iterator<Item = &'a ChannelSnapshot>, network: &Network) -> Vec<Vec<HintHop>> {
    let mut found: Vec<(Msat, HintHop)> = channels.filter_map(|channel| hint(channel, network)).collect();
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    found.truncate(HINTS_MAX);
    found.into_iter().map(|(_, hop)| vec![hop]).collect()
}

fn hint(channel: &ChannelSnapshot, network: &Network) -> Option<(Msat, HintHop)> {
    if channel.terms.announce || channel.state != ChannelState::Normal || !channel.is_online {
        return None;
    }
    let reserve = channel.terms.reserve_of(Side::Remote).to_msat();
    let inbound = channel.balances.remote.checked_sub(reserve).filter(|inbound| *inbound > Msat::ZERO)?;
    // BOLT 2, `channel_ready`: the alias that the peer gave us is one that the peer understands.
    let short_channel_id = channel.remote_alias.or(channel.short_channel_id)?;
    let terms = network.towards_us(&channel.channel_id).filter(|terms| !terms.is_disabled)?;
    let hop = HintHop {
        node_id: channel.peer,
        short_channel_id,
        fee_base: Msat(terms.fee_base_msat.into()),
        fee_proportional_millionths: terms.fee_proportional_millionths,
        cltv_expiry_delta: CltvDelta(terms.cltv_expiry_delta),
    };
    Some((inbound, hop))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millrace_channel::keys::ChannelKeys;
    use millrace_channel::{Both, ChannelType, PartyTerms, Terms};
    use millrace_routing::graph::Policy;
    use millrace_wire::{ChannelId, CommitmentNumber, FeeratePerKw, Sat, ShortChannelId};

    use super::super::prepare::tests::node;
    use super::*;

    fn with(n: u8, remote: u64, change: impl FnOnce(&mut ChannelSnapshot)) -> ChannelSnapshot {
        let party = || PartyTerms {
            dust_limit: Sat(354),
            max_htlc_value_in_flight: Msat(900_000_000),
            channel_reserve: Sat(10_000),
            htlc_minimum: Msat(1_000),
            to_self_delay: 144,
            max_accepted_htlcs: 483,
            basepoints: ChannelKeys::from_seed(&[n; 32]).basepoints().clone(),
            upfront_shutdown_script: None,
        };
        let terms = Terms {
            channel_id: ChannelId([n; 32]),
            remote_node: node(2),
            funder: Side::Local,
            channel_type: ChannelType::ANCHORS,
            funding_outpoint: bitcoin::OutPoint::null(),
            capacity: Sat(1_000_000),
            push: Msat(0),
            minimum_depth: 3,
            announce: false,
            parties: Both { local: party(), remote: party() },
        };
        let mut snapshot = ChannelSnapshot {
            channel_id: ChannelId([n; 32]),
            peer: node(2),
            terms: Arc::new(terms),
            state: ChannelState::Normal,
            is_online: true,
            opened_ms: 0,
            short_channel_id: None,
            local_alias: ShortChannelId(1_000),
            remote_alias: Some(ShortChannelId(u64::from(n))),
            funding_depth: 3,
            required_depth: 3,
            balances: Both { local: Msat(0), remote: Msat(remote) },
            in_flight: Both::default(),
            htlc_counts: Both::default(),
            available_to_send: Msat(0),
            feerate: FeeratePerKw(1000),
            commitment_numbers: Both { local: CommitmentNumber(0), remote: CommitmentNumber(0) },
            htlcs: Vec::new(),
            awaits_revocation: false,
            announcement: None,
            ending: None,
            last_error: None,
        };
        change(&mut snapshot);
        snapshot
    }

    fn terms(fee_base_msat: u32) -> Policy {
        Policy {
            is_disabled: false,
            cltv_expiry_delta: 40,
            htlc_minimum: Msat(1),
            htlc_maximum: Msat(2),
            fee_base_msat,
            fee_proportional_millionths: 4,
        }
    }

    fn told(channels: &[ChannelSnapshot], network: &Network) -> Vec<(u64, u64)> {
        let hints = hints(channels.iter(), network);
        hints.iter().map(|hops| (hops[0].short_channel_id.0, hops[0].fee_base.0)).collect()
    }

    #[test]
    fn the_widest_first_and_not_too_many() {
        let network = Network::default();
        let channels: Vec<ChannelSnapshot> = (1..=5).map(|n| with(n, u64::from(n) * 100_000_000, |_| {})).collect();
        for channel in &channels {
            network.set_towards_us(channel.channel_id, terms(u32::from(channel.channel_id.0[0])));
        }
        assert_eq!(told(&channels, &network), [(5, 5), (4, 4), (3, 3)]);
    }

    #[test]
    fn what_a_payer_could_not_use_is_not_told() {
        let network = Network::default();
        let unknown = with(1, 500_000_000, |_| {});
        assert!(told(std::slice::from_ref(&unknown), &network).is_empty(), "no terms are known");
        network.set_towards_us(unknown.channel_id, terms(7));
        assert_eq!(told(std::slice::from_ref(&unknown), &network), [(1, 7)]);
        type Change = fn(&mut ChannelSnapshot);
        let unusable: [Change; 5] = [
            |channel| channel.is_online = false,
            |channel| channel.state = ChannelState::ShuttingDown,
            |channel| channel.balances.remote = Msat(1),
            |channel| Arc::make_mut(&mut channel.terms).announce = true,
            |channel| (channel.remote_alias, channel.short_channel_id) = (None, None),
        ];
        for change in unusable {
            assert!(told(&[with(1, 500_000_000, change)], &network).is_empty());
        }
        network.set_towards_us(unknown.channel_id, Policy { is_disabled: true, ..terms(7) });
        assert!(told(&[unknown], &network).is_empty(), "the peer forwards nothing now");
    }

    /// The real number is for channels without an alias only.
    #[test]
    fn the_alias_goes_before_the_number() {
        let network = Network::default();
        let both = with(1, 500_000_000, |channel| channel.short_channel_id = Some(ShortChannelId(99)));
        let real = with(2, 400_000_000, |channel| {
            (channel.remote_alias, channel.short_channel_id) = (None, Some(ShortChannelId(98)));
        });
        for channel in [&both, &real] {
            network.set_towards_us(channel.channel_id, terms(0));
        }
        assert_eq!(told(&[both, real], &network), [(1, 0), (98, 0)]);
    }
}
