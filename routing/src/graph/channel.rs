//! Channels of the public graph, and on what terms each side forwards (BOLT 7, "The `channel_update` Message").

use lightning::ln::msgs::UnsignedChannelUpdate;
use millrace_wire::{BlockHeight, ChannelUpdate, Msat, Sat};

use super::NodeId;
use super::allowance::Allowance;

/// Bit 0 of `channel_flags`: the update is by the node with the greater id.
const DIRECTION: u8 = 1;
/// Bit 1 of `channel_flags`: nothing is forwarded now.
const DISABLED: u8 = 2;
/// Bit 1 of `message_flags`: the update is for the peer alone.
const DONT_FORWARD: u8 = 2;

/// One of the two directions of a channel, by whose terms hold in it: the sender's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// From the node with the lesser id to the other.
    FromLesser = 0,
    /// From the node with the greater id to the other.
    FromGreater = 1,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::FromLesser, Self::FromGreater];

    /// Whose terms an update tells.
    #[must_use]
    pub const fn of_update(update: &UnsignedChannelUpdate) -> Self {
        if update.channel_flags & DIRECTION == 0 { Self::FromLesser } else { Self::FromGreater }
    }

    /// The index in an array of both.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The other one.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::FromLesser => Self::FromGreater,
            Self::FromGreater => Self::FromLesser,
        }
    }
}

/// On what terms a side forwards over a channel of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Policy {
    /// Nothing is forwarded now.
    pub is_disabled: bool,
    /// Blocks between the incoming HTLC's expiry and the outgoing one's.
    pub cltv_expiry_delta: u16,
    /// The least that is forwarded.
    pub htlc_minimum: Msat,
    /// The most that is forwarded.
    pub htlc_maximum: Msat,
    /// Charged for each HTLC, in msat.
    pub fee_base_msat: u32,
    /// Charged in proportion to what is forwarded, in millionths.
    pub fee_proportional_millionths: u32,
}

impl Policy {
    /// Of an update.
    #[must_use]
    pub const fn of_update(update: &UnsignedChannelUpdate) -> Self {
        Self {
            is_disabled: update.channel_flags & DISABLED != 0,
            cltv_expiry_delta: update.cltv_expiry_delta,
            htlc_minimum: Msat(update.htlc_minimum_msat),
            htlc_maximum: Msat(update.htlc_maximum_msat),
            fee_base_msat: update.fee_base_msat,
            fee_proportional_millionths: update.fee_proportional_millionths,
        }
    }

    /// BOLT 7, "HTLC Fees": what is charged for forwarding `amount`, the fraction of a millisatoshi dropped. `None` if it
    /// is more than there can be.
    #[must_use]
    pub fn fee(&self, amount: Msat) -> Option<Msat> {
        let proportional = u128::from(amount.0) * u128::from(self.fee_proportional_millionths) / 1_000_000;
        u64::try_from(proportional + u128::from(self.fee_base_msat)).ok().map(Msat)
    }
}

/// A side's terms, and the message that says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The terms.
    pub policy: Policy,
    /// Seconds of Unix time: only a greater one replaces it.
    pub timestamp: u32,
    /// CRC32C of the message without signature and timestamp (BOLT 7, `query_channel_range`).
    pub checksum: u32,
    /// The message, to be relayed as it came.
    pub bytes: Box<[u8]>,
    /// How many more changes are taken at once.
    pub(super) allowance: Allowance,
}

/// Behind the signature: chain hash and short channel id, then the timestamp, then everything else.
const SIGNATURE_BYTES: usize = 64;
const NAME_BYTES: usize = 32 + 8;
const TIMESTAMP_BYTES: usize = 4;

impl Terms {
    pub(super) fn new(update: &ChannelUpdate, allowance: Allowance) -> Self {
        let contents = &update.parsed().contents;
        let bytes = update.bytes();
        let (name, rest) =
            bytes.get(SIGNATURE_BYTES..).unwrap_or_default().split_at_checked(NAME_BYTES).unwrap_or_default();
        let rest = rest.get(TIMESTAMP_BYTES..).unwrap_or_default();
        Self {
            policy: Policy::of_update(contents),
            timestamp: contents.timestamp,
            checksum: crc32c::crc32c_append(crc32c::crc32c(name), rest),
            bytes: bytes.into(),
            allowance,
        }
    }
}

/// Whether an update is for the peer alone, and not to be relayed.
pub(super) const fn is_for_peer_alone(update: &UnsignedChannelUpdate) -> bool {
    update.message_flags & DONT_FORWARD != 0
}

/// An announced channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Channel {
    /// Its nodes, the lesser id first.
    pub nodes: [NodeId; 2],
    /// What its funding output holds.
    pub capacity: Sat,
    /// The `channel_announcement`, to be relayed as it came.
    pub announcement: Box<[u8]>,
    /// When it was first heard of, in seconds of Unix time.
    pub known_since: u32,
    /// Nothing that it demands is unknown here.
    pub is_understood: bool,
    /// Each side's terms, by [`Direction`].
    pub terms: [Option<Terms>; 2],
    /// The block that spends its funding output.
    pub spent_at: Option<BlockHeight>,
}

impl Channel {
    /// Who forwards in a direction.
    #[must_use]
    pub const fn sender(&self, direction: Direction) -> &NodeId {
        &self.nodes[direction.index()]
    }

    /// The terms of a direction.
    #[must_use]
    pub const fn terms_of(&self, direction: Direction) -> Option<&Terms> {
        self.terms[direction.index()].as_ref()
    }

    /// Whether a route may use a direction, and on what terms.
    #[must_use]
    pub fn usable(&self, direction: Direction) -> Option<&Policy> {
        let terms = self.terms_of(direction)?;
        let is_usable = self.is_understood && self.spent_at.is_none() && !terms.policy.is_disabled;
        (is_usable && !self.promises_more_than_it_holds()).then_some(&terms.policy)
    }

    /// BOLT 7, "The `channel_update` Message": a channel with an `htlc_maximum_msat` above its capacity should be ignored when
    /// ways are looked for, whichever side says so.
    fn promises_more_than_it_holds(&self) -> bool {
        self.terms.iter().flatten().any(|terms| terms.policy.htlc_maximum > self.capacity.to_msat())
    }
}
