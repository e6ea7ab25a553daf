//! The connection with the peer, as far as the channel knows it. Volatile: nothing here survives a restart, and
//! a cut takes it back to `Down`.

use millrace_wire::AnnouncementSignatures;

use crate::input::{LinkFeatures, Millis};
use crate::phase::closing::Negotiation;

/// How far the connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum LinkState {
    /// No connection.
    #[default]
    Down,
    /// Our `channel_reestablish` is sent, the peer's has not come.
    Reestablishing,
    /// Updates may flow.
    Up,
    /// The peer showed that it has lost data: nothing flows until it has said `error` (D11).
    PeerBehind,
}

/// What only this connection knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    pub(crate) features: LinkFeatures,
    /// From `channel_reestablish` to the peer's first `commitment_signed`: adds may be sent again.
    pub(crate) may_repeat_adds: bool,
    /// How many of the adds that no signature covers yet left before our last `revoke_and_ack`.
    pub(crate) early_adds: u16,
    /// When the peer's `revoke_and_ack` is due.
    pub(crate) revoke_deadline: Option<Millis>,
    /// `announcement_signatures` is sent.
    pub(crate) is_announcement_sent: bool,
    /// The peer's `announcement_signatures`, which came before we saw the funding transaction in a block.
    pub(crate) early_announcement: Option<AnnouncementSignatures>,
    /// The offers of a mutual close; they begin anew on every connection.
    pub(crate) negotiation: Negotiation,
}

impl Link {
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up)
    }
}
