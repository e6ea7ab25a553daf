//! The task's part in receiving: HTLCs that end here are peeled and handed to [`Receiving`](super::super::receive::Receiving), and what it
//! says is carried out.

use std::sync::Arc;

use millrace_routing::SharedSecret;
use millrace_routing::onion::Final;
use millrace_wire::{BlockHeight, ChannelId, HtlcId, PaymentHash, PaymentSecret, Preimage};

use super::super::core::{Consequences, ToPeel};
use super::super::judge::{self, Opened, Received};
use super::super::receive::{HeldPart, HoldReply, Moment, Receipt, keysend};
use super::{Actor, Decision};
use crate::channels::NoNewWork;
use crate::clock;
use crate::facts::ReceivedOnion;

/// Opens one HTLC.
pub(super) type Opener = Box<dyn Fn(&Received, &ReceivedOnion) -> Opened + Send>;

impl Actor {
    /// Fulfils an HTLC whose fulfilment was decided with that of others, whatever its onion says.
    pub(super) fn fulfill_owed(&mut self, place: (ChannelId, HtlcId)) -> bool {
        let owed = self.core.receiving.owed(place);
        if let Some(fulfilment) = owed {
            self.order(place, Decision::Fulfill(Box::new(fulfilment)));
            return true;
        }
        false
    }

    /// What opens these HTLCs on a worker.
    pub(super) fn opener(&self, chunk: &[ToPeel], height: Option<BlockHeight>) -> Opener {
        // Judged before, here or on its way on: however things stand now, it is not judged again.
        let is_known = |received: &Received| {
            let place = (received.channel_id, received.id);
            self.core.receiving.is_held(&received.payment_hash, place) || self.core.forwarding.has_gone_on(&place)
        };
        let known: Vec<(ChannelId, HtlcId)> = chunk
            .iter()
            .filter(|(received, _)| is_known(received))
            .map(|(received, _)| (received.channel_id, received.id))
            .collect();
        let node_key = *self.around.keys.node_key();
        let is_taken = Arc::clone(&self.around.receiving.is_known);
        Box::new(move |received, onion| {
            if known.contains(&(received.channel_id, received.id)) {
                return judge::open_again(&node_key, received, onion);
            }
            let mut opened = judge::open(&node_key, received, onion, height);
            if let Opened::Final(_, last) = &mut opened
                && keysend(received, last).is_some()
                && is_taken(&received.payment_hash)
            {
                // The hash is that of an invoice, or of an earlier payment: its preimage buys nothing by itself.
                last.keysend_preimage = None;
            }
            opened
        })
    }

    /// An HTLC ends here.
    pub(super) fn receive(
        &mut self,
        received: Received,
        secret: SharedSecret,
        last: &Final,
        receipts: &mut Vec<Receipt>,
    ) {
        let place = (received.channel_id, received.id);
        let is_held = self.core.receiving.is_held(&received.payment_hash, place);
        // What is held already is kept, however things stand: it is failed back by its deadline at the latest.
        let height =
            if is_held { Some(self.height().unwrap_or(BlockHeight(0))) } else { self.height_for_new(&received) };
        let Some(height) = height else {
            return self.order(place, Decision::Remove(judge::refuse_for_now(&secret)));
        };
        let moment = Moment { now: clock::now(), unix_ms: clock::unix_ms(), height };
        let expected = PaymentSecret::new(*self.around.keys.payment_secret(&received.payment_hash.0));
        let accepts_keysend = self.around.receiving.accepts_keysend;
        let part = HeldPart { counts: last.amount_to_forward, secret: secret.clone(), since: moment.now, received };
        let refused = part.received.clone();
        let receiving = &mut self.core.receiving;
        if let Err(unpaid) = receiving.on_htlc(part, last, &expected, accepts_keysend, moment, receipts) {
            let (channel_id, htlc_id) = place;
            tracing::info!(%channel_id, htlc_id = htlc_id.0, reason = %unpaid, "an HTLC pays no invoice");
            self.order(place, Decision::Remove(judge::refuse_payment(&refused, &secret, height)));
        }
    }

    fn height(&self) -> Option<BlockHeight> {
        self.around.sync.borrow().height().map(BlockHeight)
    }

    /// The height, if anything new can be taken now.
    fn height_for_new(&self, received: &Received) -> Option<BlockHeight> {
        // On a disk that is nearly full, room is kept for what must be done: the payer may try again later.
        if let Err(why @ NoNewWork::DiskLow(_)) = self.around.registry.check_new_work() {
            // Not louder: the peer decides how often, and the log may be on that same disk. That it is full has been said.
            tracing::debug!(%why, channel_id = %received.channel_id, "an HTLC is failed back: the payer may try again");
            return None;
        }
        self.synced_height()
    }

    pub(super) fn settle(
        &mut self,
        payment_hash: PaymentHash,
        preimage: Option<Preimage>,
        reply: HoldReply,
        out: &mut Consequences,
    ) {
        let height = self.height();
        self.core.receiving.settle(payment_hash, preimage, height, reply, &mut out.receipts);
    }

    /// What is held too long is failed back.
    pub(super) fn look_at_held(&mut self, out: &mut Consequences) {
        let (height, timeout_ms) = (self.height(), self.around.receiving.mpp_timeout_ms);
        self.core.receiving.on_time(clock::now(), timeout_ms, height, &mut out.receipts);
    }

    pub(super) fn carry_out_receipts(&mut self, receipts: Vec<Receipt>) {
        for receipt in receipts {
            match receipt {
                Receipt::Fulfill(fulfilment) => {
                    let place = fulfilment.place;
                    self.order(place, Decision::Fulfill(Box::new(fulfilment)));
                }
                Receipt::Fail(place, removing) => self.order(place, Decision::Remove(removing)),
                Receipt::Write(entry) => self.write(vec![entry]),
            }
        }
    }
}
