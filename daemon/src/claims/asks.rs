//! What the channels have asked for and the task has not looked at yet.
//!
//! A channel's new claims take the place of its old ones, so there is at most one entry for each channel, and whoever
//! asks never waits: it is asked on shard threads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use millrace_channel::phase::on_chain::Claims;
use millrace_wire::ChannelId;
use tokio::sync::{mpsc, watch};

use super::status::ClaimsStatus;

const LOCK: &str = "nothing panics while the claims are locked";

/// New claims, by channel.
pub(super) type NewClaims = Arc<Mutex<BTreeMap<ChannelId, Claims>>>;

/// The handle of the claiming task, which ends with its last handle.
#[derive(Clone, Debug)]
pub struct Claimer {
    pub(super) new: NewClaims,
    /// One place: being woken twice is being woken.
    pub(super) wake: mpsc::Sender<()>,
    pub(super) status: watch::Receiver<ClaimsStatus>,
}

impl Claimer {
    /// Takes over a channel's claims; they replace what was asked for before. Returns at once.
    pub fn claim(&self, channel_id: ChannelId, claims: Claims) {
        self.new.lock().expect(LOCK).insert(channel_id, claims);
        // A full queue wakes as well; a task that has ended belongs to a node that stops.
        let _awake = self.wake.try_send(());
    }

    /// How it stands with everything that is claimed, and the news of it.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ClaimsStatus> {
        self.status.clone()
    }
}

/// Takes what is new.
pub(super) fn take(new: &NewClaims) -> BTreeMap<ChannelId, Claims> {
    std::mem::take(&mut *new.lock().expect(LOCK))
}
