//! What the two sides agreed on when the channel was opened, and what never changes afterwards
//! (BOLT 2, "Channel Establishment v1").

use bitcoin::{OutPoint, ScriptBuf};
use millrace_wire::{ChannelId, Features, Msat, Sat};
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::keys::Basepoints;
use crate::side::{Both, Side};

/// How the commitment transactions of the channel look (BOLT 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CommitmentFormat {
    /// `option_static_remotekey`: HTLC transactions pay their fee from the HTLC; no anchors.
    StaticRemotekey,
    /// `option_anchors` (zero-fee HTLC transactions): two 330 sat anchors, HTLC transactions bring
    /// their fee along.
    Anchors,
}

/// The channel type of BOLT 2: the feature bits {12} or {12, 22}, each with 46 and 50.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelType {
    /// Bit 12 alone, or bits 12 and 22.
    pub format: CommitmentFormat,
    /// Bit 46, `option_scid_alias`: the real short channel id is never told.
    pub scid_alias: bool,
    /// Bit 50, `option_zeroconf`: may be used before the funding transaction confirms.
    pub zero_conf: bool,
}

impl ChannelType {
    /// An anchor channel with neither variant.
    pub const ANCHORS: Self = Self { format: CommitmentFormat::Anchors, scid_alias: false, zero_conf: false };

    /// The feature bits, all required (even), as `channel_type` carries them.
    #[must_use]
    pub fn to_features(self) -> Features {
        let mut features = Features::default();
        features.set(12);
        if self.format == CommitmentFormat::Anchors {
            features.set(22);
        }
        if self.scid_alias {
            features.set(46);
        }
        if self.zero_conf {
            features.set(50);
        }
        features
    }

    /// The type that exactly these bits name, or `None` for any other set.
    #[must_use]
    pub fn from_features(features: &Features) -> Option<Self> {
        let candidate = Self {
            format: if features.is_set(22) { CommitmentFormat::Anchors } else { CommitmentFormat::StaticRemotekey },
            scid_alias: features.is_set(46),
            zero_conf: features.is_set(50),
        };
        (candidate.to_features() == *features).then_some(candidate)
    }
}

/// What one party announced in its `open_channel` or `accept_channel`, as the message says it: the reserve and
/// the delay are those it asks of the *other* party.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartyTerms {
    /// Outputs below this are left out of this party's own commitment transaction.
    pub dust_limit: Sat,
    /// The most this party lets the other have in flight towards it.
    pub max_htlc_value_in_flight: Msat,
    /// What this party asks the *other* to keep. See [`Terms::reserve_of`].
    pub channel_reserve: Sat,
    /// The smallest HTLC that this party takes.
    pub htlc_minimum: Msat,
    /// The blocks by which this party asks the *other's* own outputs to be delayed. See [`Terms::delay_of`].
    pub to_self_delay: u16,
    /// The most HTLCs that this party takes at once (at most 483).
    pub max_accepted_htlcs: u16,
    /// The five public keys everything else is derived from.
    pub basepoints: Basepoints,
    /// Where this party committed to be paid at a mutual close (BOLT 2, `option_upfront_shutdown_script`).
    pub upfront_shutdown_script: Option<ScriptBuf>,
}

/// Everything agreed at opening.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// The final id, derived from the funding outpoint.
    pub channel_id: ChannelId,
    /// The peer's node id.
    pub remote_node: PublicKey,
    /// Who pays for the commitment transaction and sends `update_fee`.
    pub funder: Side,
    /// The agreed `channel_type`.
    pub channel_type: ChannelType,
    /// The output both commitment transactions spend.
    pub funding_outpoint: OutPoint,
    /// The value of that output.
    pub capacity: Sat,
    /// What the funder gave to the other side at opening.
    pub push: Msat,
    /// Confirmations before `channel_ready`; 0 for a zero-conf channel.
    pub minimum_depth: u32,
    /// Whether the channel is to be announced (BOLT 7).
    pub announce: bool,
    /// What each side announced.
    pub parties: Both<PartyTerms>,
}

impl Terms {
    /// What `side` announced.
    #[must_use]
    pub const fn party(&self, side: Side) -> &PartyTerms {
        self.parties.of(side)
    }

    /// The balance that `side` must keep, as the other side asked it to.
    #[must_use]
    pub const fn reserve_of(&self, side: Side) -> Sat {
        self.parties.of(side.other()).channel_reserve
    }

    /// The `to_self_delay` on `side`'s own outputs, as the other side asked it to.
    #[must_use]
    pub const fn delay_of(&self, side: Side) -> u16 {
        self.parties.of(side.other()).to_self_delay
    }

    /// The balances at commitment 0.
    ///
    /// # Panics
    /// If `push` exceeds the capacity: it was checked at opening.
    #[must_use]
    pub fn first_balances(&self) -> Both<Msat> {
        let all = self.capacity.to_msat();
        let funder = all.checked_sub(self.push).expect("push was checked against the capacity at opening");
        let mut balances = Both { local: self.push, remote: self.push };
        *balances.of_mut(self.funder) = funder;
        balances
    }

    /// The format of this channel's commitment transactions.
    #[must_use]
    pub const fn format(&self) -> CommitmentFormat {
        self.channel_type.format
    }
}
