//! A second peer, whose HTLCs the daemon forwards into the cells: two of the same hash and amount go into one channel as no
//! payment of the daemon's own would. It hears how each ended when all is over.

use millrace_channel::effect::Fact;
use millrace_channel::ledger::htlc::Removal;
use millrace_channel::side::Side;
use millrace_routing::onion::{self, FinalPayload, ForwardPayload, Hop, Payload};
use millrace_wire::{CltvExpiry, HtlcId, Msat, PaymentHash, PaymentSecret, Preimage, PublicKey, ShortChannelId};

use super::link::random_secret;
use super::output::Htlc;
use super::peer::Peer;
use super::rules::End;
use crate::network::Error;

/// Blocks between the expiries of both sides of a forward: the least that the daemon's setting allows.
pub(super) const FORWARD_DELTA: u32 = 48;

/// The payer.
pub(super) struct Payer {
    pub(super) peer: Peer,
    offered: u64,
}

impl Payer {
    pub(super) fn new() -> Self {
        Self { peer: Peer::new(), offered: 0 }
    }

    /// Sends an HTLC over the daemon into a channel of the daemon's. Returns its id.
    pub(super) async fn send(
        &mut self,
        daemon: PublicKey,
        payee: PublicKey,
        next: ShortChannelId,
        htlc: &Htlc,
    ) -> Result<HtlcId, Error> {
        let amount = Msat(htlc.sat * 1000);
        let secret = PaymentSecret::new(random_secret().secret_bytes());
        let forward = ForwardPayload { next, amount, expiry: htlc.cltv_expiry };
        let last = FinalPayload::new(amount, htlc.cltv_expiry, secret, None);
        let hops = [
            Hop { node_id: daemon, payload: Payload::Forward(forward) },
            Hop { node_id: payee, payload: Payload::Final(last) },
        ];
        let built = onion::build(&random_secret(), &hops, &htlc.payment_hash);
        let built = built.map_err(|error| Error::Wrong(format!("an onion: {error}")))?;
        let expiry = CltvExpiry(htlc.cltv_expiry.0 + FORWARD_DELTA);
        self.peer.offer(amount, htlc.payment_hash, expiry, built.packet).await?;
        let id = HtlcId(self.offered);
        self.offered += 1;
        self.peer.until("the daemon's word on a forward", |peer| is_committed(peer, id)).await?;
        Ok(id)
    }

    /// Listens until all of these have ended, and nothing of them is left in the channel: the daemon would close it for what
    /// it may claim there.
    pub(super) async fn hear_all(&mut self, forwards: &[(usize, HtlcId, PaymentHash)]) -> Result<(), Error> {
        let has_ended = |peer: &Peer, id, payment_hash| end_of(peer, id, payment_hash).is_some();
        let is_over = |peer: &Peer| {
            forwards.iter().all(|(_, id, payment_hash)| has_ended(peer, *id, payment_hash))
                && peer.channel().is_ok_and(|channel| channel.is_at_rest())
        };
        self.peer.until("the end of every forward", is_over).await
    }

    /// How a forward has ended; none while it has not.
    pub(super) fn end(&self, id: HtlcId, payment_hash: &PaymentHash) -> Option<End> {
        end_of(&self.peer, id, payment_hash)
    }
}

fn end_of(peer: &Peer, id: HtlcId, payment_hash: &PaymentHash) -> Option<End> {
    let is_preimage = |preimage: &Preimage| preimage.hash() == *payment_hash;
    let end = |fact: &Fact| match fact {
        Fact::OfferFulfilled { id: found, preimage, .. } if *found == id && is_preimage(preimage) => Some(End::Paid),
        Fact::OfferResolved { id: found, removal: Removal::Fail { .. } | Removal::Malformed { .. }, .. }
            if *found == id =>
        {
            Some(End::Failed)
        }
        _ => None,
    };
    peer.facts().iter().find_map(end)
}

/// Both sides have it for good.
fn is_committed(peer: &Peer, id: HtlcId) -> bool {
    let Ok(channel) = peer.channel() else { return false };
    channel.htlc(Side::Local, id).is_some_and(millrace_channel::ledger::htlc::Htlc::is_live)
        && !channel.awaits_revocation()
}
