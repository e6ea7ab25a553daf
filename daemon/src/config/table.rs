//! One row for each setting: its key, what it means, and its place in [`Config`].
//!
//! The key gives all its names: `channel.reserve_ppm` is `reserve_ppm` in the section `[channel]` of the file,
//! `--channel-reserve-ppm` as a flag and `MILLRACE_CHANNEL_RESERVE_PPM` in the environment.

use super::Config;
use super::setting::{Class, Setting};

/// Puts a value in its place; false when it is not one.
type Set = Box<dyn Fn(&mut Config, &str) -> bool + Send + Sync>;
/// The value as text.
type Text = Box<dyn Fn(&Config) -> Option<String> + Send + Sync>;

/// A row.
pub(super) struct Field {
    /// Its name in the file, with its section.
    pub(super) key: &'static str,
    /// What it means, one sentence.
    pub(super) help: &'static str,
    /// What it looks like in the file.
    pub(super) class: Class,
    /// What a right value looks like.
    pub(super) expected: &'static str,
    /// What may be known of it.
    pub(super) exposure: Exposure,
    set: Set,
    text: Text,
}

/// What may be known of a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exposure {
    /// Everything.
    Open,
    /// Its default differs from one user or network to the other, so the example only mentions it.
    Local,
    /// Nothing: it is not a flag (other users of the machine see those) and is never shown.
    Secret,
}

impl Field {
    /// The flag, without its dashes.
    pub(super) fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }

    /// The environment's variable.
    pub(super) fn variable(&self) -> String {
        format!("MILLRACE_{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The section of the file (empty at the top) and the name there.
    pub(super) fn section_and_name(&self) -> (&'static str, &'static str) {
        self.key.split_once('.').unwrap_or(("", self.key))
    }

    /// Puts a value in its place; false when it is not one.
    pub(super) fn set(&self, config: &mut Config, text: &str) -> bool {
        (self.set)(config, text)
    }

    /// Its value as text, `None` if there is none.
    pub(super) fn text(&self, config: &Config) -> Option<String> {
        (self.text)(config)
    }
}

fn field<T: Setting + 'static>(key: &'static str, at: fn(&mut Config) -> &mut T, help: &'static str) -> Field {
    Field {
        key,
        help,
        class: T::CLASS,
        expected: T::EXPECTED,
        exposure: Exposure::Open,
        set: Box::new(move |config, text| T::parse(text).map(|value| *at(config) = value).is_some()),
        text: Box::new(move |config| at(&mut config.clone()).text()),
    }
}

fn local(field: Field) -> Field {
    Field { exposure: Exposure::Local, ..field }
}

fn secret(field: Field) -> Field {
    Field { exposure: Exposure::Secret, ..field }
}

/// All rows, in the order in which they are shown; those of one section stand together, the top ones first.
pub(super) fn fields() -> Vec<Field> {
    [node(), bitcoind(), channel(), payments(), routing(), rest()].into_iter().flatten().collect()
}

fn node() -> Vec<Field> {
    vec![
        field("network", |c| &mut c.network, "The network: regtest, signet, testnet4 or bitcoin."),
        local(field("data_dir", |c| &mut c.data_dir, "Where the node keeps everything.")),
        field("listen", |c| &mut c.listen, "Where Lightning peers connect to; port 0 takes a free one."),
        field("rpc_listen", |c| &mut c.rpc_listen, "Where gRPC is served; port 0 takes a free one."),
        field("metrics_listen", |c| &mut c.metrics_listen, "Where Prometheus asks for metrics; off unless given."),
        field("log", |c| &mut c.log, "How log lines look: text or json."),
        field(
            "log_level",
            |c| &mut c.log_level,
            "Which lines are logged: error, warn, info, debug, trace or a filter.",
        ),
        field("alias", |c| &mut c.alias, "The node's name for others, at most 32 bytes."),
        field("color", |c| &mut c.color, "The node's colour on maps, as #RRGGBB."),
        field(
            "announced_addresses",
            |c| &mut c.announced_addresses,
            "Where the network is told that the node may be called, as HOST:PORT.",
        ),
        field(
            "i_accept_the_risk_of_losing_money",
            |c| &mut c.accepts_risk,
            "Needed to run on the network bitcoin: the software is young.",
        ),
        field("shards", |c| &mut c.shards, "Threads that channels run on; 0 is one for each core."),
    ]
}

fn bitcoind() -> Vec<Field> {
    vec![
        local(field("bitcoind.url", |c| &mut c.bitcoind.url, "bitcoind's RPC.")),
        local(field("bitcoind.cookie", |c| &mut c.bitcoind.cookie, "bitcoind's cookie file, unless a user is named.")),
        field("bitcoind.user", |c| &mut c.bitcoind.user, "User name for bitcoind's RPC."),
        secret(field("bitcoind.password", |c| &mut c.bitcoind.password, "Password for bitcoind's RPC; never shown.")),
    ]
}

fn channel() -> Vec<Field> {
    vec![
        field(
            "channel.announce",
            |c| &mut c.channel.announce,
            "Tell the network of channels that this node opens, unless the opening says otherwise.",
        ),
        field("channel.min_funding_sat", |c| &mut c.channel.min_funding, "Smallest channel, in satoshi."),
        field("channel.max_funding_sat", |c| &mut c.channel.max_funding, "Largest channel, in satoshi."),
        field(
            "channel.reserve_ppm",
            |c| &mut c.channel.reserve_ppm,
            "The part of a channel that the peer must keep as its own, in millionths.",
        ),
        field(
            "channel.to_self_delay_blocks",
            |c| &mut c.channel.to_self_delay_blocks,
            "Blocks that the peer waits for its coins when it closes by itself.",
        ),
        field(
            "channel.max_to_self_delay_blocks",
            |c| &mut c.channel.max_to_self_delay_blocks,
            "The longest such wait that we accept.",
        ),
        field("channel.htlc_minimum_msat", |c| &mut c.channel.htlc_minimum, "Smallest HTLC accepted, in millisatoshi."),
        field("channel.max_accepted_htlcs", |c| &mut c.channel.max_accepted_htlcs, "Most HTLCs accepted at once."),
        field(
            "channel.closing_cost_percent",
            |c| &mut c.channel.closing_cost_percent,
            "The part of a channel that it may cost to close it at 100 sat/vB when it is full of HTLCs, in percent; 10 are always accepted.",
        ),
        field(
            "channel.max_in_flight_percent",
            |c| &mut c.channel.max_in_flight_percent,
            "The part of a channel that may be in flight towards us, in percent.",
        ),
        field(
            "channel.max_dust_exposure_msat",
            |c| &mut c.channel.max_dust_exposure,
            "The most that dust HTLCs may put at risk in one channel, in millisatoshi.",
        ),
        field("channel.minimum_depth", |c| &mut c.channel.minimum_depth, "Confirmations before a channel is used."),
        field("channel.minimum_depth_large", |c| &mut c.channel.minimum_depth_large, "The same for a large channel."),
        field("channel.large_channel_sat", |c| &mut c.channel.large_channel, "From this size on a channel is large."),
        field(
            "channel.zero_conf_peers",
            |c| &mut c.channel.zero_conf_peers,
            "Peers whose channels may be used unconfirmed: they can take back what they funded.",
        ),
        field(
            "channel.offered_grace_blocks",
            |c| &mut c.channel.offered_grace_blocks,
            "Blocks after the expiry of an unresolved offered HTLC at which the node closes; with the margin below at most 24.",
        ),
        field(
            "channel.received_margin_blocks",
            |c| &mut c.channel.received_margin_blocks,
            "Blocks before the expiry of a received HTLC with known preimage at which the node closes; 6 to 18.",
        ),
    ]
}

fn payments() -> Vec<Field> {
    vec![
        field(
            "payments.final_cltv_delta_blocks",
            |c| &mut c.payments.final_cltv_delta,
            "Blocks that our invoices ask of the last hop.",
        ),
        field(
            "payments.max_cltv_expiry_blocks",
            |c| &mut c.payments.max_cltv_expiry_blocks,
            "The furthest expiry of an HTLC that pays for us, in blocks from now.",
        ),
        field("payments.invoice_expiry_s", |c| &mut c.payments.invoice_expiry_s, "Life of an invoice, in seconds."),
        field(
            "payments.idempotency_hours",
            |c| &mut c.payments.idempotency_hours,
            "How long idempotency keys are remembered.",
        ),
        field(
            "payments.accept_keysend",
            |c| &mut c.payments.accept_keysend,
            "Whether payments are taken that no invoice asked for.",
        ),
    ]
}

fn routing() -> Vec<Field> {
    vec![
        field(
            "routing.fee_base_msat",
            |c| &mut c.routing.fee_base,
            "Charged for each forwarded HTLC, in millisatoshi.",
        ),
        field(
            "routing.fee_ppm",
            |c| &mut c.routing.fee_ppm,
            "Charged in proportion to what is forwarded, in millionths.",
        ),
        field(
            "routing.cltv_delta_blocks",
            |c| &mut c.routing.cltv_delta,
            "Blocks between the expiries of an incoming HTLC and the outgoing one; at least 48.",
        ),
        field(
            "routing.htlc_minimum_msat",
            |c| &mut c.routing.htlc_minimum,
            "The least that is forwarded, in millisatoshi.",
        ),
        field(
            "routing.htlc_maximum_msat",
            |c| &mut c.routing.htlc_maximum,
            "The most that is forwarded in one HTLC, in millisatoshi; 0 is all that a channel can carry.",
        ),
        field(
            "routing.peer_share_percent",
            |c| &mut c.routing.peer_share_percent,
            "The part of a channel's slots and liquidity that one incoming peer may hold, in percent.",
        ),
    ]
}

fn rest() -> Vec<Field> {
    vec![
        field(
            "wallet.anchor_reserve_sat",
            |c| &mut c.wallet.anchor_reserve,
            "Kept back for each anchor channel, as a coin of its own: enough for its commitment at 100 sat/vB.",
        ),
        field("wallet.anchor_reserve_max_sat", |c| &mut c.wallet.anchor_reserve_max, "The most that is kept back."),
        field("journal.segment_mib", |c| &mut c.journal.segment_mib, "Size of a segment of the journal, in MiB."),
        field("peers.max_connections", |c| &mut c.peers.max_connections, "Most connections with peers."),
        field(
            "peers.max_without_channels",
            |c| &mut c.peers.max_without_channels,
            "Most connections with peers that have no channel with us.",
        ),
        field(
            "peers.max_openings_per_peer",
            |c| &mut c.peers.max_openings_per_peer,
            "Most openings under way with one peer, its unconfirmed channels included.",
        ),
        field("peers.handshake_timeout_s", |c| &mut c.peers.handshake_timeout_s, "Time for handshake and init."),
        field("peers.ping_interval_s", |c| &mut c.peers.ping_interval_s, "Silence after which a ping is sent."),
        field("peers.ping_timeout_s", |c| &mut c.peers.ping_timeout_s, "Time for the pong."),
        field(
            "gossip.relay_interval_ms",
            |c| &mut c.gossip.relay_interval_ms,
            "How often what is new in the network is passed on to peers, in milliseconds.",
        ),
        field(
            "gossip.sync_peers",
            |c| &mut c.gossip.sync_peers,
            "Peers that are asked for the whole public graph in an hour.",
        ),
        field(
            "tower.lag_max",
            |c| &mut c.tower.lag_max,
            "Revoked commitments of a channel that a watchtower may lack, before no HTLC is added in it.",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_key() {
        let fields = fields();
        let row = fields.iter().find(|field| field.key == "channel.reserve_ppm");
        let row = row.expect("a row of the table");
        assert_eq!(row.flag(), "channel-reserve-ppm");
        assert_eq!(row.variable(), "MILLRACE_CHANNEL_RESERVE_PPM");
        assert_eq!(row.section_and_name(), ("channel", "reserve_ppm"));
    }

    #[test]
    fn keys_are_unique_and_sections_stand_together() {
        let fields = fields();
        let mut keys: Vec<_> = fields.iter().map(|field| field.variable()).collect();
        let mut sections: Vec<_> = fields.iter().map(|field| field.section_and_name().0).collect();
        sections.dedup();
        let count = sections.len();
        sections.sort_unstable();
        sections.dedup();
        assert_eq!(sections.len(), count, "a section is torn apart");
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), fields.len());
    }
}
