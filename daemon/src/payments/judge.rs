//! What is to be done with an HTLC that came in: its onion peeled, and what it carries held against our invoices
//! (BOLT 4, "Payload for the Last Node"; BOLT 11, `min_final_cltv_expiry_delta`).
//!
//! [`open`] does the curve work and runs on workers. [`judge`] decides, by the HTLC's own amount and expiry, never by
//! what the onion says of them: a preimage leaves this node only for a final HTLC with the right secret, amount and
//! expiry. What is wrong is not told apart to the sender, who would otherwise learn which hashes are ours.

use std::time::Duration;

use bitcoin::hashes::{Hash as _, sha256};
use millrace_routing::SharedSecret;
use millrace_routing::failure::{Failure, FailureMessage, HoldTime, code, fail};
use millrace_routing::onion::{Final, Forward, Incoming, PeelFault, PeeledHop, peel};
use millrace_wire::{AttributionData, BlockHeight, ChannelId, CltvExpiry, HtlcId, Msat, PaymentHash, PaymentSecret};
use secp256k1::SecretKey;

use super::receive::Invoice;
use crate::facts::ReceivedOnion;

/// BOLT 4: more than twice the amount is refused, so that nobody loses much by an error.
pub(crate) const OVERPAYMENT_MAX: u64 = 2;

/// An HTLC of a peer that is irrevocably there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    pub(crate) channel_id: ChannelId,
    pub(crate) id: HtlcId,
    pub(crate) amount: Msat,
    pub(crate) payment_hash: PaymentHash,
    pub(crate) cltv_expiry: CltvExpiry,
    pub(crate) over_dust_exposure: bool,
}

/// What an onion turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    /// It ends here; still to be held against an invoice.
    Final(SharedSecret, Box<Final>),
    /// It asks to go on; for the switch to decide.
    Forward(SharedSecret, Box<Forward>),
    /// It is to be failed, whatever else.
    Refused(Removing),
}

/// How an HTLC is removed without its preimage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Removing {
    /// By `update_fail_htlc`, with this packet; and for how long it was held.
    Fail(Vec<u8>, Box<AttributionData>),
    /// By `update_fail_malformed_htlc`.
    Malformed {
        /// Of the onion.
        sha256_of_onion: [u8; 32],
        /// With BADONION.
        failure_code: u16,
    },
}

impl Removing {
    fn fail(secret: &SharedSecret, message: &FailureMessage) -> Self {
        Self::fail_held(secret, message, Duration::ZERO)
    }

    fn fail_held(secret: &SharedSecret, message: &FailureMessage, held: Duration) -> Self {
        let Failure { reason, attribution } = fail(secret, message, HoldTime::floor(held));
        Self::Fail(reason, attribution)
    }
}

/// Peels. Without a height, the chain is not known well enough to accept anything.
pub(crate) fn open(
    node_key: &SecretKey,
    received: &Received,
    onion: &ReceivedOnion,
    height: Option<BlockHeight>,
) -> Opened {
    let incoming = Incoming {
        packet: &onion.onion,
        payment_hash: &received.payment_hash,
        amount: received.amount,
        cltv_expiry: received.cltv_expiry,
        height: height.unwrap_or(BlockHeight(0)),
        path_key: onion.path_key.as_ref(),
    };
    let peeled = match peel(node_key, &incoming) {
        Ok(peeled) => peeled,
        Err(PeelFault::Malformed { sha256_of_onion, failure_code }) => {
            return Opened::Refused(Removing::Malformed { sha256_of_onion, failure_code });
        }
        Err(PeelFault::Fail { failure, shared_secret }) => {
            return Opened::Refused(Removing::fail(&shared_secret, &failure));
        }
    };
    let refuse = |message: FailureMessage| Opened::Refused(Removing::fail(&peeled.shared_secret, &message));
    if received.over_dust_exposure {
        return refuse(FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() });
    }
    if height.is_none() {
        return refuse(FailureMessage::TemporaryNodeFailure);
    }
    match peeled.hop {
        PeeledHop::Final(last) => Opened::Final(peeled.shared_secret, Box::new(last)),
        PeeledHop::Forward(forward) => Opened::Forward(peeled.shared_secret, Box::new(forward)),
    }
}

/// Peels an HTLC that was judged before, and is held or has gone on since: only the secret is wanted again, and neither the
/// height nor the exposure is held against it any more.
pub(crate) fn open_again(node_key: &SecretKey, received: &Received, onion: &ReceivedOnion) -> Opened {
    let received = Received { over_dust_exposure: false, ..received.clone() };
    open(node_key, &received, onion, Some(BlockHeight(0)))
}

/// An onion that came before (BOLT 4: each is taken once). It shares no secret any more that could be used.
pub(crate) fn used_onion(onion: &ReceivedOnion) -> Opened {
    let sha256_of_onion = sha256::Hash::hash(&onion.onion.0).to_byte_array();
    Opened::Refused(Removing::Malformed { sha256_of_onion, failure_code: code::INVALID_ONION_HMAC })
}

/// Why an HTLC does not pay an invoice. For our own log: the sender is not told which.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Unpaid {
    #[error("no open invoice has its payment hash")]
    Unknown,
    #[error("the invoice is paid or cancelled already")]
    AlreadyPaid,
    #[error("the invoice has expired")]
    Expired,
    #[error("it lacks the invoice's payment secret")]
    Secret,
    #[error("it carries {amount}, the invoice asks for {asked}")]
    Amount { amount: Msat, asked: Msat },
    #[error("it brings its own preimage, and carries {amount}, only a part of {total}")]
    Part { amount: Msat, total: Msat },
    #[error("it brings its own preimage, and this node does not take such")]
    Keysend,
    #[error("it expires at {}, and must not before {least}", expiry.0)]
    Expiry { expiry: CltvExpiry, least: u32 },
}

/// Holds a final HTLC, which may be a part of its payment, against the invoice with its hash. BOLT 4: the amount that is
/// paid is the total of which the HTLC is a part.
pub(crate) fn judge(
    received: &Received,
    last: &Final,
    invoice: Option<&Invoice>,
    secret: &PaymentSecret,
    height: BlockHeight,
    unix_ms: u64,
) -> Result<(), Unpaid> {
    let invoice = invoice.ok_or(Unpaid::Unknown)?;
    if !invoice.is_open() {
        return Err(Unpaid::AlreadyPaid);
    }
    if last.payment_secret.as_ref() != Some(secret) {
        return Err(Unpaid::Secret);
    }
    if invoice.expires_ms <= unix_ms {
        return Err(Unpaid::Expired);
    }
    if let Some(asked) = invoice.amount {
        let most = asked.checked_mul(OVERPAYMENT_MAX).unwrap_or(Msat(u64::MAX));
        // No hop can have paid less than the total for it: each part carries what the onion says of it.
        let amount = last.total_msat.max(received.amount);
        if last.total_msat < asked || amount > most {
            return Err(Unpaid::Amount { amount, asked });
        }
    }
    let least = height.0.saturating_add(invoice.min_final_cltv.into());
    if received.cltv_expiry.0 < least {
        return Err(Unpaid::Expiry { expiry: received.cltv_expiry, least });
    }
    Ok(())
}

/// How an HTLC is failed that pays no invoice.
pub(crate) fn refuse_payment(received: &Received, secret: &SharedSecret, height: BlockHeight) -> Removing {
    let message = FailureMessage::IncorrectOrUnknownPaymentDetails { amount: received.amount, height };
    Removing::fail(secret, &message)
}

/// The same of one that was held.
pub(crate) fn refuse_held(received: &Received, secret: &SharedSecret, height: BlockHeight, held: Duration) -> Removing {
    let message = FailureMessage::IncorrectOrUnknownPaymentDetails { amount: received.amount, height };
    Removing::fail_held(secret, &message, held)
}

/// How an HTLC is failed whose payment did not become whole in time.
pub(crate) fn refuse_alone(secret: &SharedSecret, held: Duration) -> Removing {
    Removing::fail_held(secret, &FailureMessage::MppTimeout, held)
}

/// How an HTLC is failed that cannot be taken just now.
pub(crate) fn refuse_for_now(secret: &SharedSecret) -> Removing {
    Removing::fail(secret, &FailureMessage::TemporaryNodeFailure)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_routing::failure::decode;
    use millrace_routing::onion::{FinalPayload, ForwardPayload, Hop, Payload, build};
    use millrace_wire::{Preimage, ShortChannelId};

    use super::super::prepare::tests::{hash, key, node};
    use super::*;

    const HEIGHT: BlockHeight = BlockHeight(700);
    const NOW: u64 = 5_000;

    fn received(amount: u64, expiry: u32) -> Received {
        Received {
            channel_id: ChannelId([1; 32]),
            id: HtlcId(3),
            amount: Msat(amount),
            payment_hash: hash(9),
            cltv_expiry: CltvExpiry(expiry),
            over_dust_exposure: false,
        }
    }

    fn invoice() -> Invoice {
        Invoice::open(Preimage::new([9; 32]), Some(Msat(21_000)), NOW + 1, 42)
    }

    fn payload(amount: u64, expiry: u32) -> FinalPayload {
        FinalPayload::new(Msat(amount), CltvExpiry(expiry), PaymentSecret::new([4; 32]), None)
    }

    fn onion(payload: Payload, to: u8, rest: Vec<Hop>) -> (ReceivedOnion, Vec<SharedSecret>) {
        let hops = [vec![Hop { node_id: node(to), payload }], rest].concat();
        let built = build(&key(77), &hops, &hash(9)).unwrap();
        (ReceivedOnion { onion: built.packet, path_key: None }, built.shared_secrets)
    }

    fn told(change: impl FnOnce(&mut Received, &mut FinalPayload, &mut Invoice)) -> Result<(), Unpaid> {
        let (mut received, mut payload, mut invoice) = (received(21_000, 742), payload(21_000, 742), invoice());
        change(&mut received, &mut payload, &mut invoice);
        let (onion, _) = onion(Payload::Final(payload), 2, vec![]);
        let Opened::Final(_, last) = open(&key(2), &received, &onion, Some(HEIGHT)) else { panic!("not final") };
        judge(&received, &last, Some(&invoice), &PaymentSecret::new([4; 32]), HEIGHT, NOW)
    }

    #[test]
    fn what_an_invoice_asks_for_pays_it() {
        assert_eq!(told(|_, _, _| {}), Ok(()));
        assert_eq!(told(|htlc, _, _| htlc.amount = Msat(42_000)), Ok(()), "twice as much is still taken");
        assert_eq!(told(|_, _, invoice| invoice.amount = None), Ok(()), "any amount");
    }

    #[test]
    fn the_htlc_decides_not_the_onion() {
        let (mut htlc, payload) = (received(20_999, 742), payload(21_000, 742));
        let (onion, secrets) = onion(Payload::Final(payload), 2, vec![]);
        let Opened::Refused(Removing::Fail(reason, _)) = open(&key(2), &htlc, &onion, Some(HEIGHT)) else { panic!() };
        assert_eq!(decode(&secrets, &reason).unwrap().message.code(), code::FINAL_INCORRECT_HTLC_AMOUNT);
        htlc.amount = Msat(21_000);
        htlc.cltv_expiry = CltvExpiry(741);
        let Opened::Refused(Removing::Fail(reason, _)) = open(&key(2), &htlc, &onion, Some(HEIGHT)) else { panic!() };
        assert_eq!(decode(&secrets, &reason).unwrap().message.code(), code::FINAL_INCORRECT_CLTV_EXPIRY);
    }

    #[test]
    fn amounts_at_the_edges() {
        let asked = Msat(21_000);
        let short = told(|htlc, payload, _| {
            htlc.amount = Msat(20_999);
            *payload = super::tests::payload(20_999, 742);
        });
        assert_eq!(short, Err(Unpaid::Amount { amount: Msat(20_999), asked }));
        let over = told(|htlc, _, _| htlc.amount = Msat(42_001));
        assert_eq!(over, Err(Unpaid::Amount { amount: Msat(42_001), asked }));
    }

    #[test]
    fn a_part_of_a_payment() {
        let part = |amount: u64, total: u64| {
            told(|htlc, payload, _| {
                htlc.amount = Msat(amount);
                *payload = FinalPayload { total: Msat(total), ..super::tests::payload(amount, 742) };
            })
        };
        assert_eq!(part(1, 21_000), Ok(()), "however small: the total counts");
        assert_eq!(part(1, 42_000), Ok(()));
        let asked = Msat(21_000);
        assert_eq!(part(1, 20_999), Err(Unpaid::Amount { amount: Msat(20_999), asked }));
        assert_eq!(part(1, 42_001), Err(Unpaid::Amount { amount: Msat(42_001), asked }));
        assert_eq!(part(42_001, 21_000), Err(Unpaid::Amount { amount: Msat(42_001), asked }), "what came counts too");
    }

    #[test]
    fn another_or_no_secret() {
        let other = told(|_, payload, _| payload.payment_secret = Some(PaymentSecret::new([5; 32])));
        assert_eq!(other, Err(Unpaid::Secret));
        let keysend = told(|_, payload, _| {
            payload.payment_secret = None;
            payload.keysend_preimage = Some(Preimage::new([9; 32]));
        });
        assert_eq!(keysend, Err(Unpaid::Secret));
    }

    #[test]
    fn expiry_one_block_short_or_just_enough() {
        let short = told(|htlc, payload, _| {
            htlc.cltv_expiry = CltvExpiry(741);
            payload.expiry = CltvExpiry(741);
        });
        assert_eq!(short, Err(Unpaid::Expiry { expiry: CltvExpiry(741), least: 742 }));
    }

    #[test]
    fn expired_paid_or_unknown_invoices() {
        assert_eq!(told(|_, _, invoice| invoice.expires_ms = NOW), Err(Unpaid::Expired));
        assert_eq!(told(|_, _, invoice| invoice.claim_for_tests()), Err(Unpaid::AlreadyPaid));
        let (onion, _) = onion(Payload::Final(payload(21_000, 742)), 2, vec![]);
        let htlc = received(21_000, 742);
        let Opened::Final(_, last) = open(&key(2), &htlc, &onion, Some(HEIGHT)) else { panic!() };
        assert_eq!(judge(&htlc, &last, None, &PaymentSecret::new([4; 32]), HEIGHT, NOW), Err(Unpaid::Unknown));
    }

    #[test]
    fn a_forward_reveals_nothing_even_with_the_hash_of_our_invoice() {
        let next =
            Payload::Forward(ForwardPayload { next: ShortChannelId(5), amount: Msat(20_000), expiry: CltvExpiry(700) });
        let rest = vec![Hop { node_id: node(3), payload: Payload::Final(payload(20_000, 742)) }];
        let (onion, _) = onion(next, 2, rest);
        let opened = open(&key(2), &received(21_000, 800), &onion, Some(HEIGHT));
        // It is the switch's, which knows no invoices.
        assert!(matches!(opened, Opened::Forward(..)), "{opened:?}");
    }

    #[test]
    fn above_the_dust_exposure_or_without_a_chain() {
        let (onion, secrets) = onion(Payload::Final(payload(21_000, 742)), 2, vec![]);
        let dust = Received { over_dust_exposure: true, ..received(21_000, 742) };
        let code_of = |opened: Opened| {
            let Opened::Refused(Removing::Fail(reason, _)) = opened else { panic!() };
            decode(&secrets, &reason).unwrap().message.code()
        };
        assert_eq!(code_of(open(&key(2), &dust, &onion, Some(HEIGHT))), code::TEMPORARY_CHANNEL_FAILURE);
        assert_eq!(code_of(open(&key(2), &received(21_000, 742), &onion, None)), code::TEMPORARY_NODE_FAILURE);
    }

    #[test]
    fn an_onion_for_somebody_else_is_malformed() {
        let (onion, _) = onion(Payload::Final(payload(21_000, 742)), 3, vec![]);
        let opened = open(&key(2), &received(21_000, 742), &onion, Some(HEIGHT));
        let Opened::Refused(Removing::Malformed { failure_code, .. }) = opened else { panic!() };
        assert_eq!(failure_code, code::INVALID_ONION_HMAC);
    }
}
