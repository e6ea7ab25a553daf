//! How much each node has in its channels, and that payments only move it.

use millrace_rpc::v1::{Channel, ChannelState};

use super::{Mesh, Place};
use crate::ldk::protocol;
use crate::network::{Error, SOON, wait_for};

/// A channel that is not closed, as one of its two nodes sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    /// Its id.
    pub channel_id: Vec<u8>,
    /// The other node's public key.
    pub peer: Vec<u8>,
    /// Its whole size.
    pub capacity_sat: u64,
    /// The node's own part.
    pub local_msat: u64,
    /// The other's part.
    pub remote_msat: u64,
    /// In neither's: HTLCs on their way. Always 0 by LDK's word, which does not tell.
    pub in_flight_msat: u64,
    /// How many HTLCs. Always 0 by LDK's word.
    pub htlcs: u32,
    /// The node opened it.
    pub is_funder: bool,
    /// Both have it, and the peer is there.
    pub is_usable: bool,
    /// It takes no HTLC any more.
    pub is_closing: bool,
    /// Where it stands, in a word.
    pub state: String,
}

impl Side {
    fn of_ours(channel: Channel) -> Self {
        let is_normal = channel.state() == ChannelState::Normal;
        let (is_closing, state) = match channel.state() {
            ChannelState::Normal if channel.online => (false, "usable"),
            ChannelState::Normal => (false, "peer away"),
            ChannelState::Unspecified | ChannelState::AwaitingConfirmations => (false, "opening"),
            ChannelState::ShuttingDown | ChannelState::Closing => (true, "closing"),
            ChannelState::OnChain => (true, "on chain"),
            ChannelState::Closed => (true, "closed"),
        };
        Self {
            is_closing,
            state: state.to_owned(),
            in_flight_msat: channel.offered_msat + channel.received_msat,
            htlcs: channel.offered_htlcs + channel.received_htlcs,
            is_funder: channel.funder,
            is_usable: is_normal && channel.online,
            channel_id: channel.channel_id,
            peer: channel.node_id,
            capacity_sat: channel.capacity_sat,
            local_msat: channel.local_msat,
            remote_msat: channel.remote_msat,
        }
    }

    fn of_ldk(channel: &protocol::Channel) -> Self {
        let whole_msat = channel.value_sat * 1000;
        let local_msat = channel.local_msat().unwrap_or(0);
        let state = match (channel.is_ready, channel.is_usable) {
            (_, true) => "usable",
            (true, false) => "peer away",
            (false, false) => "opening",
        };
        Self {
            channel_id: hex::decode(&channel.channel_id).unwrap_or_default(),
            peer: hex::decode(&channel.node_id).unwrap_or_default(),
            capacity_sat: channel.value_sat,
            local_msat,
            remote_msat: whole_msat.saturating_sub(local_msat),
            in_flight_msat: 0,
            htlcs: 0,
            is_funder: channel.is_funder,
            is_usable: channel.is_usable,
            is_closing: false,
            state: state.to_owned(),
        }
    }
}

impl Mesh {
    /// A node's channels that are not closed.
    ///
    /// # Errors
    /// If the call fails.
    pub async fn sides(&self, node: usize) -> Result<Vec<Side>, Error> {
        match self.places[node] {
            Place::Ours(index) => {
                let channels = self.network.channels(index).await?;
                let open = channels.into_iter().filter(|channel| channel.state() != ChannelState::Closed);
                Ok(open.map(Side::of_ours).collect())
            }
            Place::Ldk(index) => Ok(self.ldk[index].channels().await?.iter().map(Side::of_ldk).collect()),
        }
    }

    /// What each node has in its channels, by its own word.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn sums_msat(&self) -> Result<Vec<u64>, Error> {
        let mut sums = Vec::new();
        for node in self.all() {
            sums.push(self.sides(node).await?.iter().map(|side| side.local_msat).sum());
        }
        Ok(sums)
    }

    /// Waits until no HTLC is in flight, by the word of every `millraced`.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn wait_until_at_rest(&self) -> Result<(), Error> {
        wait_for("no HTLC in flight", SOON, async || {
            let mut htlcs = 0;
            for node in self.all() {
                htlcs += self.sides(node).await?.iter().map(|side| side.htlcs).sum::<u32>();
            }
            Ok(if htlcs == 0 { Ok(()) } else { Err(format!("{htlcs} are")) })
        })
        .await
    }

    /// Both sides of every channel agree, and together have all of it: nothing has appeared or disappeared. Waits until it
    /// is so, with no HTLC in flight.
    ///
    /// # Errors
    /// If it takes too long.
    pub async fn check_conserved(&self) -> Result<(), Error> {
        self.wait_until_at_rest().await?;
        wait_for("both sides' sums", SOON, async || {
            for (planned, channel_id) in self.plan.channels.iter().zip(&self.channels) {
                let mut words = Vec::new();
                for node in [planned.from, planned.to] {
                    words.extend(self.sides(node).await?.into_iter().filter(|side| side.channel_id == *channel_id));
                }
                // One that is closed is in the wallets by now.
                let [one, other] = &words[..] else { continue };
                let whole_msat = planned.capacity_sat * 1000;
                let mirrored = (one.local_msat, one.remote_msat) == (other.remote_msat, other.local_msat);
                if !mirrored || one.local_msat + one.remote_msat != whole_msat {
                    return Ok(Err(format!("of {whole_msat} msat they say: {one:?}, {other:?}")));
                }
            }
            Ok(Ok(()))
        })
        .await
    }

    /// Waits until each node has what it had `before` and what is said here (fees that it earned included), and nobody else
    /// has more or less; then that nothing is lost between.
    ///
    /// # Errors
    /// If it takes too long, or what is said does not come to nothing.
    pub async fn check_moved(&self, before_msat: &[u64], moved_msat: &[(usize, i64)]) -> Result<(), Error> {
        let left: i64 = moved_msat.iter().map(|(_, msat)| msat).sum();
        if left != 0 {
            return Err(Error::Wrong(format!("{left} msat would appear: what moves must come to nothing")));
        }
        let mut wanted: Vec<i128> = before_msat.iter().map(|msat| i128::from(*msat)).collect();
        for (node, msat) in moved_msat {
            wanted[*node] += i128::from(*msat);
        }
        wait_for("what was moved in everybody's channels", SOON, async || {
            let has: Vec<i128> = self.sums_msat().await?.into_iter().map(i128::from).collect();
            Ok(if has == wanted { Ok(()) } else { Err(format!("they have {has:?} and should have {wanted:?}")) })
        })
        .await?;
        self.check_conserved().await
    }
}
