//! What a seed decides before anything happens: who opens, on which terms, how much is done, and how it ends.

use bitcoin::ScriptBuf;
use lightning::util::config::{MaxDustHTLCExposure, UserConfig};
use millrace_channel::channel::Policy;
use millrace_channel::phase::opening::LocalParams;
use millrace_channel::side::Side;
use millrace_channel::terms::{ChannelType, CommitmentFormat};
use millrace_wire::{FeeratePerKw, Msat, Sat};

use crate::dice::Dice;

/// More than any exposure: LDK never minds.
const NO_DUST_LIMIT: MaxDustHTLCExposure = MaxDustHTLCExposure::FixedLimitMsat(2_100_000_000_000_000_000);

/// How a channel ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// It stays open: checked at rest.
    Open,
    /// Together, begun by this side.
    Mutual(Side),
    /// Alone, begun by this side.
    Unilateral(Side),
}

/// The plan.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) opener: Side,
    pub(crate) channel_type: ChannelType,
    /// The network is to be told of it.
    pub(crate) announce: bool,
    pub(crate) funding: Sat,
    pub(crate) push: Msat,
    pub(crate) feerate: FeeratePerKw,
    pub(crate) local: LocalParams,
    pub(crate) minimum_depth: u32,
    pub(crate) policy: Policy,
    pub(crate) ldk: UserConfig,
    /// Cut once before the channel exists.
    pub(crate) is_opening_cut: bool,
    /// Every slot of both sides is filled once.
    pub(crate) is_full: bool,
    pub(crate) actions: u64,
    pub(crate) ending: Ending,
    /// The ending comes while HTLCs are in flight.
    pub(crate) is_ending_early: bool,
}

impl Plan {
    pub(crate) fn of(seed: u64, dice: &mut Dice) -> Self {
        let is_full = seed % 250 == 17;
        let opener = dice.one_of(&[Side::Local, Side::Remote]);
        let funding = Sat(match dice.below(8) {
            _ if is_full => 50_000_000,
            0 | 1 => dice.between(30_000, 100_000),
            2 | 3 => dice.between(100_000, 2_000_000),
            4 | 5 => 10_000_000,
            6 => 16_777_215,
            _ => dice.between(16_777_216, 100_000_000),
        });
        let feerate = FeeratePerKw(if is_full { 253 } else { Self::feerate(dice, funding) });
        let all = funding.to_msat().0;
        let push = Msat(match dice.below(5) {
            _ if is_full => all / 2,
            0 => 0,
            1 => dice.below(all / 10),
            2 => dice.below(2_000) * 1_000 + dice.below(1_000),
            _ => all / 2 - dice.below(all / 4),
        });
        Self {
            opener,
            channel_type: Self::channel_type(dice, opener),
            announce: false,
            funding,
            push,
            feerate,
            local: Self::local(dice, funding, is_full),
            minimum_depth: dice.between(1, 3) as u32,
            policy: Self::policy(dice, funding, is_full),
            ldk: Self::ldk(dice, is_full),
            is_opening_cut: dice.chance(8),
            is_full,
            actions: if is_full { 12 } else { dice.between(20, 50) },
            ending: Self::ending(dice),
            is_ending_early: dice.chance(60),
        }
        .consistent()
        .at_edge(dice)
    }

    /// Now and then, an idle channel that closes together while one side has exactly LDK's dust limit.
    fn at_edge(mut self, dice: &mut Dice) -> Self {
        if matches!(self.ending, Ending::Mutual(_)) && !self.is_full && dice.chance(6) {
            self.push = Msat(354_000 + dice.below(1_000));
            self.actions = 0;
        }
        self
    }

    /// What neither side refuses, whatever was planned.
    pub(crate) fn plain(mut self) -> Self {
        self.funding = Sat(10_000_000);
        self.push = Msat(4_000_000_000);
        self.feerate = FeeratePerKw(500);
        self.local = LocalParams { to_self_delay: 20, ..LocalParams::usual_for(self.funding) };
        self.ldk.channel_handshake_config.their_channel_reserve_proportional_millionths = 10_000;
        self
    }

    fn ending(dice: &mut Dice) -> Ending {
        match dice.below(100) {
            0..=39 => Ending::Open,
            40..=62 => Ending::Mutual(Side::Local),
            63..=85 => Ending::Mutual(Side::Remote),
            86..=92 => Ending::Unilateral(Side::Local),
            _ => Ending::Unilateral(Side::Remote),
        }
    }

    fn consistent(mut self) -> Self {
        // BOLT 3 has the signer of a `closing_signed` leave out what is below its own dust limit. LDK takes no signature
        // that leaves out LDK's output: with both at the same limit, as our nodes have it, the question does not arise.
        if let Ending::Mutual(_) = self.ending {
            self.local.dust_limit = Sat(354);
        }
        let handshake = &mut self.ldk.channel_handshake_config;
        handshake.negotiate_anchors_zero_fee_htlc_tx = self.channel_type.format == CommitmentFormat::Anchors;
        handshake.negotiate_scid_privacy = self.channel_type.scid_alias;
        // Half of those that may be announced; no throw of the dice of its own, so that seeds stay what they were.
        self.announce =
            !self.channel_type.scid_alias && !self.channel_type.zero_conf && self.funding.0.is_multiple_of(2);
        handshake.announce_for_forwarding = self.announce;
        self
    }

    /// Commitments that a channel of this size can pay, high enough for the fee to matter.
    fn feerate(dice: &mut Dice, funding: Sat) -> u32 {
        let most = (funding.0 / 20).clamp(300, 5_000) as u32;
        match dice.below(4) {
            0 => 253,
            1 => most,
            _ => dice.between(253, u64::from(most)) as u32,
        }
    }

    fn channel_type(dice: &mut Dice, opener: Side) -> ChannelType {
        let format =
            dice.one_of(&[CommitmentFormat::StaticRemotekey, CommitmentFormat::Anchors, CommitmentFormat::Anchors]);
        // LDK does not ask for a zero-conf type of its own accord; it takes ours.
        let zero_conf = opener == Side::Local && dice.chance(20);
        ChannelType { format, scid_alias: dice.chance(25), zero_conf }
    }

    fn local(dice: &mut Dice, funding: Sat, is_full: bool) -> LocalParams {
        let all = funding.to_msat().0;
        let mut local = LocalParams::usual_for(funding);
        local.upfront_shutdown_script = dice.chance(30).then(upfront_script);
        local.to_self_delay = dice.between(6, 30) as u16;
        if is_full {
            return local;
        }
        local.dust_limit = Sat(dice.one_of(&[354, 400, 546]));
        local.max_htlc_value_in_flight = Msat(dice.one_of(&[all, all, all / 2, (all / 10).max(1_000_000)]));
        local.channel_reserve = Sat(dice.between(546, (funding.0 / 50).max(600)));
        local.htlc_minimum = Msat(dice.one_of(&[1, 1, 1, 1_000, 25_000]));
        local.max_accepted_htlcs = dice.one_of(&[483, 483, 30, 6, 2]);
        local
    }

    fn policy(dice: &mut Dice, funding: Sat, is_full: bool) -> Policy {
        let all = funding.to_msat().0;
        let limits = [all, all, 50_000_000, 5_000_000, 1_000_000];
        let max_dust_exposure = Msat(if is_full { all } else { dice.one_of(&limits) });
        Policy { max_dust_exposure, burial_depth: 12, ..Policy::default() }
    }

    fn ldk(dice: &mut Dice, is_full: bool) -> UserConfig {
        let mut config = UserConfig { manually_accept_inbound_channels: true, ..UserConfig::default() };
        config.channel_config.max_dust_htlc_exposure = NO_DUST_LIMIT;
        config.channel_handshake_limits.max_funding_satoshis = 21_000_000 * 100_000_000;
        config.channel_handshake_limits.force_announced_channel_preference = false;
        let handshake = &mut config.channel_handshake_config;
        handshake.minimum_depth = dice.between(1, 3) as u32;
        handshake.commit_upfront_shutdown_pubkey = dice.chance(50);
        handshake.our_max_accepted_htlcs = if is_full { 483 } else { dice.one_of(&[483, 50, 6, 2]) };
        handshake.max_inbound_htlc_value_in_flight_percent_of_channel =
            if is_full { 100 } else { dice.one_of(&[100, 100, 50, 10]) };
        handshake.our_htlc_minimum_msat = if is_full { 1 } else { dice.one_of(&[1, 1, 1, 1_000, 10_000]) };
        handshake.their_channel_reserve_proportional_millionths = dice.one_of(&[10_000, 10_000, 1_000, 40_000]);
        config
    }
}

/// Taproot, which only `option_shutdown_anysegwit` allows.
fn upfront_script() -> ScriptBuf {
    ScriptBuf::from_bytes([&[0x51, 32], &[3; 32][..]].concat())
}
