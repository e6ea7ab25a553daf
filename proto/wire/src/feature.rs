//! Feature bits and what depends on what (BOLT 9).
//!
//! A vector of bits of any length, the table of those that have a name, and the sets that this
//! node shows in `init`. Which features a channel then uses is decided when it is opened, not here.

use core::fmt;

use serde::{Deserialize, Serialize};

/// BOLT 9's table: one feature, two bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Feature {
    /// 0/1: a peer that lost data can prove it and be helped.
    DataLossProtect,
    /// 4/5: the address of a cooperative close may be fixed when the channel is opened.
    UpfrontShutdownScript,
    /// 6/7: the peer has gossip worth asking for.
    GossipQueries,
    /// 8/9: onions of variable-length payloads.
    VarOnion,
    /// 10/11: gossip queries carry timestamps and checksums.
    GossipQueriesEx,
    /// 12/13: the other side's main output pays a key that never changes.
    StaticRemotekey,
    /// 14/15: invoices carry a payment secret.
    PaymentSecret,
    /// 16/17: payments in several parts.
    BasicMpp,
    /// 18/19: channels of 2²⁴ sat and more.
    LargeChannel,
    /// 22/23: anchor outputs and HTLC transactions without fee.
    Anchors,
    /// 24/25: blinded paths.
    RouteBlinding,
    /// 26/27: a close may pay to segwit versions not yet defined.
    ShutdownAnysegwit,
    /// 28/29: both sides may fund a channel.
    DualFund,
    /// 34/35: a channel can be brought to rest with `stfu`.
    Quiesce,
    /// 36/37: failures and fulfilments say which hop held them for how long.
    AttributionData,
    /// 38/39: onion messages are forwarded.
    OnionMessages,
    /// 42/43: the peer keeps a small encrypted backup for others.
    ProvideStorage,
    /// 44/45: `channel_type` in `open_channel` and `accept_channel`.
    ChannelType,
    /// 46/47: aliases instead of the real short channel id.
    ScidAlias,
    /// 48/49: metadata from the invoice goes with the payment.
    PaymentMetadata,
    /// 50/51: channels may be used before their funding confirms.
    Zeroconf,
    /// 60/61: `closing_complete` and `closing_sig` in place of a fee negotiation.
    SimpleClose,
    /// 62/63: the funding transaction can be replaced while the channel lives.
    Splice,
}

impl Feature {
    /// Every feature with a name, by rising bit.
    pub const ALL: [Self; 23] = [
        Self::DataLossProtect,
        Self::UpfrontShutdownScript,
        Self::GossipQueries,
        Self::VarOnion,
        Self::GossipQueriesEx,
        Self::StaticRemotekey,
        Self::PaymentSecret,
        Self::BasicMpp,
        Self::LargeChannel,
        Self::Anchors,
        Self::RouteBlinding,
        Self::ShutdownAnysegwit,
        Self::DualFund,
        Self::Quiesce,
        Self::AttributionData,
        Self::OnionMessages,
        Self::ProvideStorage,
        Self::ChannelType,
        Self::ScidAlias,
        Self::PaymentMetadata,
        Self::Zeroconf,
        Self::SimpleClose,
        Self::Splice,
    ];

    /// The even bit: "I require it".
    #[must_use]
    pub const fn required_bit(self) -> u32 {
        match self {
            Self::DataLossProtect => 0,
            Self::UpfrontShutdownScript => 4,
            Self::GossipQueries => 6,
            Self::VarOnion => 8,
            Self::GossipQueriesEx => 10,
            Self::StaticRemotekey => 12,
            Self::PaymentSecret => 14,
            Self::BasicMpp => 16,
            Self::LargeChannel => 18,
            Self::Anchors => 22,
            Self::RouteBlinding => 24,
            Self::ShutdownAnysegwit => 26,
            Self::DualFund => 28,
            Self::Quiesce => 34,
            Self::AttributionData => 36,
            Self::OnionMessages => 38,
            Self::ProvideStorage => 42,
            Self::ChannelType => 44,
            Self::ScidAlias => 46,
            Self::PaymentMetadata => 48,
            Self::Zeroconf => 50,
            Self::SimpleClose => 60,
            Self::Splice => 62,
        }
    }

    /// The odd bit: "I can do it".
    #[must_use]
    pub const fn optional_bit(self) -> u32 {
        self.required_bit() + 1
    }

    /// Its name in BOLT 9.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DataLossProtect => "option_data_loss_protect",
            Self::UpfrontShutdownScript => "option_upfront_shutdown_script",
            Self::GossipQueries => "gossip_queries",
            Self::VarOnion => "var_onion_optin",
            Self::GossipQueriesEx => "gossip_queries_ex",
            Self::StaticRemotekey => "option_static_remotekey",
            Self::PaymentSecret => "payment_secret",
            Self::BasicMpp => "basic_mpp",
            Self::LargeChannel => "option_support_large_channel",
            Self::Anchors => "option_anchors",
            Self::RouteBlinding => "option_route_blinding",
            Self::ShutdownAnysegwit => "option_shutdown_anysegwit",
            Self::DualFund => "option_dual_fund",
            Self::Quiesce => "option_quiesce",
            Self::AttributionData => "option_attribution_data",
            Self::OnionMessages => "option_onion_messages",
            Self::ProvideStorage => "option_provide_storage",
            Self::ChannelType => "option_channel_type",
            Self::ScidAlias => "option_scid_alias",
            Self::PaymentMetadata => "option_payment_metadata",
            Self::Zeroconf => "option_zeroconf",
            Self::SimpleClose => "option_simple_close",
            Self::Splice => "option_splice",
        }
    }

    /// What it makes no sense without, by BOLT 9's "Dependencies" column.
    ///
    /// Dependencies on features that everybody is ASSUMED to have are not in that column any more:
    /// a peer may leave those bits out.
    #[must_use]
    pub const fn dependencies(self) -> &'static [Self] {
        match self {
            Self::BasicMpp => &[Self::PaymentSecret],
            Self::Zeroconf => &[Self::ScidAlias],
            Self::SimpleClose => &[Self::ShutdownAnysegwit],
            Self::DataLossProtect
            | Self::UpfrontShutdownScript
            | Self::GossipQueries
            | Self::VarOnion
            | Self::GossipQueriesEx
            | Self::StaticRemotekey
            | Self::PaymentSecret
            | Self::LargeChannel
            | Self::Anchors
            | Self::RouteBlinding
            | Self::ShutdownAnysegwit
            | Self::DualFund
            | Self::Quiesce
            | Self::AttributionData
            | Self::OnionMessages
            | Self::ProvideStorage
            | Self::ChannelType
            | Self::ScidAlias
            | Self::PaymentMetadata
            | Self::Splice => &[],
        }
    }

    /// The feature that `bit` speaks of, even or odd.
    #[must_use]
    pub fn of_bit(bit: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|feature| feature.required_bit() == bit & !1)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A feature that a vector sets without another that it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("feature {feature} is set without {missing}, which it depends on")]
pub struct MissingDependency {
    /// The feature that is set.
    pub feature: Feature,
    /// What is not.
    pub missing: Feature,
}

/// A set of feature bits, of any length.
///
/// Two vectors are equal when the same bits are set; leading zero bytes do not count, and none are written.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub struct Features {
    /// Bit 0 is the lowest of the first byte; the last byte is never zero.
    little_endian: Vec<u8>,
}

impl Features {
    /// No bit set.
    #[must_use]
    pub const fn empty() -> Self {
        Self { little_endian: Vec::new() }
    }

    /// A vector of exactly these bits.
    #[must_use]
    pub fn from_bits(bits: &[u32]) -> Self {
        let mut features = Self::empty();
        for bit in bits {
            features.set(*bit);
        }
        features
    }

    /// From the order of the wire: the highest bits come first.
    #[must_use]
    pub fn from_be_bytes(bytes: &[u8]) -> Self {
        let mut features = Self { little_endian: bytes.iter().rev().copied().collect() };
        features.trim();
        features
    }

    /// In the order of the wire, without leading zeros.
    #[must_use]
    pub fn to_be_bytes(&self) -> Vec<u8> {
        self.little_endian.iter().rev().copied().collect()
    }

    /// Sets one bit.
    ///
    /// # Panics
    /// When `bit` cannot be written: a feature vector has at most 65535 bytes.
    pub fn set(&mut self, bit: u32) {
        assert!(bit < 8 * 65_535, "feature bit {bit} does not fit a feature vector");
        let byte = (bit / 8) as usize;
        if self.little_endian.len() <= byte {
            self.little_endian.resize(byte + 1, 0);
        }
        self.little_endian[byte] |= 1 << (bit % 8);
    }

    /// Clears one bit.
    pub fn clear(&mut self, bit: u32) {
        if let Some(byte) = self.little_endian.get_mut((bit / 8) as usize) {
            *byte &= !(1 << (bit % 8));
        }
        self.trim();
    }

    /// Whether one bit is set.
    #[must_use]
    pub fn is_set(&self, bit: u32) -> bool {
        let byte = self.little_endian.get((bit / 8) as usize);
        byte.is_some_and(|byte| byte & 1 << (bit % 8) != 0)
    }

    /// Whether no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.little_endian.is_empty()
    }

    /// Whether the feature is there, required or optional.
    #[must_use]
    pub fn supports(&self, feature: Feature) -> bool {
        self.is_set(feature.required_bit()) || self.is_set(feature.optional_bit())
    }

    /// Whether the feature is required. BOLT 9: with both bits set, it is.
    #[must_use]
    pub fn requires(&self, feature: Feature) -> bool {
        self.is_set(feature.required_bit())
    }

    /// The bits that are set, rising.
    pub fn bits(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..)
            .zip(&self.little_endian)
            .flat_map(|(index, byte)| (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| index * 8 + bit))
    }

    /// The even bits set here that `known` has neither as even nor as odd: BOLT 1 lets a peer that
    /// requires these not be spoken to.
    #[must_use]
    pub fn unknown_even(&self, known: &Self) -> Vec<u32> {
        self.bits().filter(|bit| bit % 2 == 0 && !known.is_set(*bit) && !known.is_set(bit + 1)).collect()
    }

    /// The features set here without one they depend on (BOLT 9, "Dependencies").
    #[must_use]
    pub fn missing_dependencies(&self) -> Vec<MissingDependency> {
        let mut missing = Vec::new();
        for feature in Feature::ALL.into_iter().filter(|feature| self.supports(*feature)) {
            for dependency in feature.dependencies() {
                if !self.supports(*dependency) {
                    missing.push(MissingDependency { feature, missing: *dependency });
                }
            }
        }
        missing
    }

    /// All bits of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut bytes = vec![0; self.little_endian.len().max(other.little_endian.len())];
        for source in [&self.little_endian, &other.little_endian] {
            for (byte, bits) in bytes.iter_mut().zip(source) {
                *byte |= bits;
            }
        }
        Self { little_endian: bytes }
    }

    /// What this node shows in `init`.
    ///
    /// Features that everybody is assumed to have are set as required all the same: some peers hang up
    /// without them. `option_zeroconf` is shown only to a peer that may open such channels to us.
    #[must_use]
    pub fn ours(peer_allowed_zero_conf: bool) -> Self {
        let mut features = Self::empty();
        for feature in OURS_REQUIRED {
            features.set(feature.required_bit());
        }
        for feature in OURS_OPTIONAL {
            features.set(feature.optional_bit());
        }
        if peer_allowed_zero_conf {
            features.set(Feature::Zeroconf.optional_bit());
        }
        features
    }

    fn trim(&mut self) {
        let used = self.little_endian.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.little_endian.truncate(used);
    }
}

const OURS_REQUIRED: [Feature; 5] = [
    Feature::DataLossProtect,
    Feature::VarOnion,
    Feature::StaticRemotekey,
    Feature::PaymentSecret,
    Feature::ChannelType,
];

const OURS_OPTIONAL: [Feature; 10] = [
    Feature::UpfrontShutdownScript,
    Feature::GossipQueries,
    Feature::GossipQueriesEx,
    Feature::BasicMpp,
    Feature::LargeChannel,
    Feature::Anchors,
    Feature::ShutdownAnysegwit,
    Feature::AttributionData,
    Feature::ScidAlias,
    Feature::SimpleClose,
];

impl From<Vec<u8>> for Features {
    fn from(big_endian: Vec<u8>) -> Self {
        Self::from_be_bytes(&big_endian)
    }
}

impl From<Features> for Vec<u8> {
    fn from(features: Features) -> Self {
        features.to_be_bytes()
    }
}

/// Names the features, with `!` after one that is required: `option_anchors, option_scid_alias!, bit 101`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, bit) in self.bits().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match Feature::of_bit(bit) {
                Some(feature) => f.write_str(feature.name())?,
                None => write!(f, "bit {}", bit)?,
            }
            if bit % 2 == 0 {
                f.write_str("!")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn every_set_of_ours() -> Vec<Features> {
        let choices = [false, true];
        choices.map(Features::ours).into()
    }

    #[test]
    fn ours_are_exactly_the_bits_of_the_design() {
        let base = [0, 5, 7, 8, 11, 12, 14, 17, 19, 23, 27, 37, 44, 47, 61];
        assert_eq!(Features::ours(false).bits().collect::<Vec<_>>(), base);
        let all = [0, 5, 7, 8, 11, 12, 14, 17, 19, 23, 27, 37, 44, 47, 51, 61];
        assert_eq!(Features::ours(true).bits().collect::<Vec<_>>(), all);
    }

    #[test]
    fn ours_have_all_their_dependencies() {
        for features in every_set_of_ours() {
            assert_eq!(features.missing_dependencies(), [], "{features}");
        }
    }

    /// Older peers still check the dependencies that BOLT 9 dropped when their targets became ASSUMED.
    #[test]
    fn ours_have_the_dependencies_of_earlier_revisions() {
        let earlier = [
            (Feature::GossipQueriesEx, Feature::GossipQueries),
            (Feature::PaymentSecret, Feature::VarOnion),
            (Feature::BasicMpp, Feature::PaymentSecret),
            (Feature::Anchors, Feature::StaticRemotekey),
            (Feature::RouteBlinding, Feature::VarOnion),
            (Feature::AttributionData, Feature::VarOnion),
            (Feature::OnionMessages, Feature::VarOnion),
            (Feature::ScidAlias, Feature::ChannelType),
            (Feature::Zeroconf, Feature::ScidAlias),
        ];
        for features in every_set_of_ours() {
            for (feature, needs) in earlier {
                assert!(!features.supports(feature) || features.supports(needs), "{feature}");
            }
        }
    }

    #[test]
    fn ours_never_set_both_bits_of_a_feature() {
        for features in every_set_of_ours() {
            for feature in Feature::ALL {
                let both = features.is_set(feature.required_bit()) && features.is_set(feature.optional_bit());
                assert!(!both, "{feature}");
            }
        }
    }

    #[test]
    fn missing_dependency_is_named() {
        for (bit, needs) in [(17, 14), (50, 46), (61, 26)] {
            let alone = Features::from_bits(&[bit]);
            let missing = alone.missing_dependencies();
            assert_eq!(missing.len(), 1);
            assert_eq!(missing[0].missing.required_bit(), needs);
            for either in [needs, needs + 1] {
                assert_eq!(Features::from_bits(&[bit, either]).missing_dependencies(), []);
            }
        }
        assert_eq!(
            Features::from_bits(&[51]).missing_dependencies()[0].to_string(),
            "feature option_zeroconf is set without option_scid_alias, which it depends on"
        );
    }

    #[test]
    fn table_is_in_order_and_finds_both_bits() {
        let bits: Vec<u32> = Feature::ALL.iter().map(|feature| feature.required_bit()).collect();
        assert!(bits.is_sorted_by(|a, b| a < b) && bits.iter().all(|bit| bit % 2 == 0));
        for feature in Feature::ALL {
            assert_eq!(Feature::of_bit(feature.required_bit()), Some(feature));
            assert_eq!(Feature::of_bit(feature.optional_bit()), Some(feature));
        }
        assert_eq!(Feature::of_bit(2), None);
    }

    #[test]
    fn bytes_of_the_wire_and_back() {
        let features = Features::from_bits(&[0, 13, 22]);
        assert_eq!(features.to_be_bytes(), [0x40, 0x20, 0x01]);
        assert_eq!(Features::from_be_bytes(&[0, 0, 0x40, 0x20, 0x01]), features);
        assert_eq!(Features::from_be_bytes(&[0, 0]), Features::empty());
        let mut cleared = features.clone();
        cleared.clear(22);
        assert_eq!(cleared.to_be_bytes(), [0x20, 0x01]);
        cleared.clear(5000);
        assert_eq!(features.union(&Features::from_bits(&[100])).bits().last(), Some(100));
    }

    #[test]
    fn bytes_agree_with_ldk() {
        use lightning::types::features::InitFeatures;
        for features in every_set_of_ours() {
            let ldk = InitFeatures::from_be_bytes(features.to_be_bytes());
            assert!(ldk.requires_static_remote_key() && ldk.supports_anchors_zero_fee_htlc_tx());
            assert!(ldk.supports_scid_privacy() && ldk.supports_wumbo() && ldk.requires_channel_type());
            assert!(!ldk.requires_unknown_bits_from(&InitFeatures::from_be_bytes(vec![0xff; 8])));
        }
    }

    #[test]
    fn unknown_even_counts_only_what_neither_bit_covers() {
        let theirs = Features::from_bits(&[0, 13, 22, 101, 102]);
        let known = Features::from_bits(&[1, 12, 23]);
        assert_eq!(theirs.unknown_even(&known), [102]);
        assert_eq!(theirs.unknown_even(&Features::empty()), [0, 22, 102]);
    }

    #[test]
    fn required_wins_when_both_bits_are_set() {
        let both = Features::from_bits(&[22, 23]);
        assert!(both.supports(Feature::Anchors) && both.requires(Feature::Anchors));
        let odd = Features::from_bits(&[23]);
        assert!(odd.supports(Feature::Anchors) && !odd.requires(Feature::Anchors));
    }

    #[test]
    fn display_names_bits() {
        let features = Features::from_bits(&[12, 23, 101]);
        assert_eq!(features.to_string(), "option_static_remotekey!, option_anchors, bit 101");
        assert_eq!(Features::empty().to_string(), "none");
    }

    #[test]
    fn stored_as_its_bytes() {
        let features = Features::from_bits(&[12, 22]);
        let stored = postcard::to_stdvec(&features).unwrap();
        assert_eq!(stored, [3, 0x40, 0x10, 0x00]);
        assert_eq!(postcard::from_bytes::<Features>(&stored).unwrap(), features);
        assert_eq!(postcard::from_bytes::<Features>(&[2, 0, 1]).unwrap(), Features::from_bits(&[0]));
    }
}
