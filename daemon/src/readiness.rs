//! How far the daemon is: what the API answers while it is not ready.

/// How far the daemon is.
#[derive(Clone, PartialEq, Debug)]
pub enum Readiness {
    /// Reading the journal.
    Recovering,
    /// Catching up with the chain.
    CatchingUp {
        /// The height that every channel has handled.
        height: u32,
        /// The height to reach, if bitcoind has said it.
        headers: Option<u32>,
    },
    /// Calls are served.
    Ready,
    /// No new work is taken.
    Stopping,
}

impl Readiness {
    /// Whether calls are served.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }
}
