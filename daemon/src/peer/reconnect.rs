//! Calling peers again: whoever has channels with us, for as long as it has.
//!
//! The pauses double, and no two nodes that lost each other keep the same ones: otherwise both would call at the same
//! moment for ever, and each take the other's call for the newer.

use std::time::Duration;

use millrace_wire::PublicKey;

use super::table::Peers;
use crate::channels::random;

impl Peers {
    /// Calls everybody who has channels with us.
    pub(crate) fn reconnect_all(&self) {
        for peer in self.inner.registry.directory().peers() {
            self.reconnect(peer);
        }
    }

    /// Calls a peer until it is connected, or need not be.
    pub(super) fn reconnect(&self, peer: PublicKey) {
        if self.address_to_call(&peer).is_some() && self.begin_calling(peer) {
            let peers = self.clone();
            tokio::spawn(async move {
                peers.keep_calling(peer).await;
                peers.end_calling(peer);
                // It may have been lost again between the last look and the end of the call.
                if peers.address_to_call(&peer).is_some() {
                    peers.reconnect(peer);
                }
            });
        }
    }

    async fn keep_calling(&self, peer: PublicKey) {
        let rules = &self.inner.rules;
        let mut pause = rules.reconnect_min;
        let mut stopping = self.inner.stopping.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(jittered(pause, random())) => {}
                _ = stopping.wait_for(|is_stopping| *is_stopping) => return,
            }
            let Some(address) = self.address_to_call(&peer) else { return };
            match self.call(peer, &address).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%peer, %error, "the peer could not be called");
                    self.note_error(peer, error.to_string());
                }
            }
            pause = (pause * 2).min(rules.reconnect_max);
        }
    }
}

/// From half to all of a pause.
fn jittered(pause: Duration, random: [u8; 2]) -> Duration {
    pause / 2 + pause / 2 * u32::from(u16::from_be_bytes(random)) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_from_half_to_all() {
        let pause = Duration::from_secs(4);
        assert_eq!(jittered(pause, [0, 0]), Duration::from_secs(2));
        assert_eq!(jittered(pause, [255, 255]), pause);
        let middle = jittered(pause, [128, 0]);
        assert!(middle > Duration::from_secs(2) && middle < pause);
    }
}
