//! What payments and invoices write down themselves: only their own decisions. What became of an HTLC is in the records of
//! its channel.
//!
//! The encoding is a version byte and then postcard; variants are only ever added at the end.

use millrace_wire::{BlockHeight, ChannelId, HtlcId, Msat, PaymentHash, Preimage};
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Kind};
use crate::happened::{AttemptBegun, CancelReason, Failure, InvoiceCreated, PaymentId, PaymentStarted, ReceivedPart};
use crate::idempotency::{KeyHash, RequestHash};
use crate::route::Route;

/// The version that this build writes.
const VERSION: u8 = 1;

/// A decision about a payment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum PaymentEntry {
    /// It is accepted, and its first HTLC offered with this (D6, D14).
    Accepted(Box<Accepted>),
    /// An attempt has failed, and another one is offered with this. Not written any more.
    Tried {
        /// Of which payment.
        id: PaymentId,
        /// The new one.
        attempt: AttemptBegun,
        /// Why the one before failed.
        previous: Failure,
    },
    /// No further attempt will be made, and none is under way.
    GivenUp {
        /// Which payment.
        id: PaymentId,
        /// Why.
        failure: Failure,
    },
    /// As `Accepted`, and the first HTLC goes over other nodes, or carries a part.
    AcceptedOver(Box<AcceptedOver>),
    /// A further HTLC is offered with this.
    Offered {
        /// Of which payment.
        id: PaymentId,
        /// Which attempt, and by which channel.
        attempt: AttemptBegun,
        /// Its way, by which its failure is read, also after a restart.
        route: Box<Route>,
    },
    /// An attempt has ended without success.
    Ended {
        /// Of which payment.
        id: PaymentId,
        /// Which attempt.
        attempt: u32,
        /// Why.
        failure: Failure,
        /// For how long each hop says that it held the HTLC, in milliseconds, if they say so.
        held_ms: Vec<u32>,
    },
}

/// A payment that is accepted, with the way of its first HTLC.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct AcceptedOver {
    /// The payment.
    pub(crate) accepted: Accepted,
    /// The way.
    pub(crate) route: Route,
}

/// A payment that is accepted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Accepted {
    /// All that is told of it.
    pub(crate) started: PaymentStarted,
    /// When its invoice expires, as Unix time in milliseconds.
    pub(crate) expires_ms: u64,
    /// Its key and the hash of its request, if the client gave a key.
    pub(crate) key: Option<(KeyHash, RequestHash)>,
}

/// A decision about an invoice.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum InvoiceEntry {
    /// It is made, and handed out only once this is durable (D7).
    Made(Box<Made>),
    /// An HTLC pays it: written in the step that decides the HTLC's fulfilment, so that there is never one without the
    /// other, and no second HTLC can pay it.
    Claimed {
        /// Which invoice.
        payment_hash: PaymentHash,
        /// The HTLC's channel.
        channel_id: ChannelId,
        /// The HTLC.
        htlc_id: HtlcId,
        /// What it carries.
        amount: Msat,
    },
    /// A hold invoice is made, and handed out only once this is durable.
    MadeHold(Box<MadeHold>),
    /// All HTLCs of a payment for a hold invoice are there, and are held.
    Held {
        /// Which invoice.
        payment_hash: PaymentHash,
        /// By these, and no others.
        parts: Vec<ReceivedPart>,
        /// The last block at which it can be settled.
        deadline: BlockHeight,
    },
    /// Several HTLCs pay it together, or one that was held: written in the step that decides the fulfilment of the first.
    /// The others are fulfilled once this is durable; after a crash they are because of this.
    ClaimedParts {
        /// Which invoice.
        payment_hash: PaymentHash,
        /// What fulfils them.
        preimage: Preimage,
        /// All of them; the first is the one of this step.
        parts: Vec<ReceivedPart>,
    },
    /// It cannot be paid any more, and what is held for it is failed.
    Cancelled {
        /// Which invoice.
        payment_hash: PaymentHash,
        /// Why.
        why: CancelReason,
    },
    /// An HTLC that brings its own preimage is taken: written in the step that decides its fulfilment.
    Keysend {
        /// Its hash.
        payment_hash: PaymentHash,
        /// What it brought.
        preimage: Preimage,
        /// It.
        part: ReceivedPart,
    },
}

/// A hold invoice that is made.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct MadeHold {
    /// All that is told of it.
    pub(crate) created: InvoiceCreated,
    /// What pays for it; absent if only the client knows it.
    pub(crate) preimage: Option<Preimage>,
    /// Blocks that the last HTLC must leave.
    pub(crate) min_final_cltv: u16,
}

/// An invoice that is made. Its payment secret follows from the seed and its hash.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    /// All that is told of it.
    pub(crate) created: InvoiceCreated,
    /// What pays for it.
    pub(crate) preimage: Preimage,
    /// Blocks that the last HTLC must leave.
    pub(crate) min_final_cltv: u16,
}

impl PaymentEntry {
    /// For the journal.
    pub(crate) fn entry(&self) -> Entry {
        Entry::new(Kind::Payment, encode(self))
    }

    /// From the journal.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes)
    }
}

impl InvoiceEntry {
    /// For the journal.
    pub(crate) fn entry(&self) -> Entry {
        Entry::new(Kind::Invoice, encode(self))
    }

    /// From the journal.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes)
    }
}

/// Bytes behind this build's version.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("plain data into memory: nothing can fail")
}

/// What [`encode`] wrote.
pub(crate) fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
        Some((&version, _)) => Err(format!("version {version}: this build knows version {VERSION}")),
        None => Err("it is empty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_wire::{CltvExpiry, ShortChannelId};
    use secp256k1::{SECP256K1, SecretKey};

    use super::*;
    use crate::happened::FailureReason;
    use crate::route::RouteHop;

    /// Entries as version 1 wrote them on its first day: they must be read for ever.
    #[test]
    fn version_1_stays_what_it_was() {
        let attempt = AttemptBegun {
            attempt: 0,
            channel_id: ChannelId([4; 32]),
            scid: ShortChannelId(5),
            cltv_expiry: CltvExpiry(6),
        };
        let payee = SecretKey::from_slice(&[7; 32]).unwrap().public_key(SECP256K1);
        let started = PaymentStarted {
            id: PaymentId([1; 32]),
            payment_hash: PaymentHash([2; 32]),
            amount: Msat(3),
            payee,
            bolt11: "ln".to_owned(),
            idempotency_key: "k".to_owned(),
            attempt,
        };
        let key = Some((KeyHash([8; 32]), RequestHash([9; 32])));
        let accepted = PaymentEntry::Accepted(Box::new(Accepted { started, expires_ms: 10, key }));
        let bytes = |n: u8| hex::encode([n; 32]);
        let stored =
            format!("0100{}{}03{payee}026c6e016b00{}05060a01{}{}", bytes(1), bytes(2), bytes(4), bytes(8), bytes(9));
        assert_eq!(hex::encode(accepted.entry().bytes), stored);
        assert_eq!(PaymentEntry::decode(&hex::decode(&stored).unwrap()).unwrap(), accepted);
        let stored_accepted = stored;

        let failure =
            Failure { reason: FailureReason::PayeeRefused, message: "m".to_owned(), code: 0x400f, hop: Some(1) };
        let given_up = PaymentEntry::GivenUp { id: PaymentId([1; 32]), failure };
        let stored = format!("0102{}02016d8f80010101", bytes(1));
        assert_eq!(hex::encode(given_up.entry().bytes), stored);

        let hop = RouteHop { node: payee, scid: ShortChannelId(5), amount: Msat(3), cltv_expiry: CltvExpiry(6) };
        let route = Route { hops: vec![hop, hop] };
        let PaymentEntry::Accepted(accepted) = accepted else { panic!() };
        let over = AcceptedOver { accepted: *accepted, route: route.clone() };
        let over = PaymentEntry::AcceptedOver(Box::new(over)).entry();
        let hops = format!("02{payee}050306{payee}050306");
        assert_eq!(hex::encode(over.bytes), stored_accepted.replacen("0100", "0103", 1) + &hops);
        let offered = PaymentEntry::Offered { id: PaymentId([1; 32]), attempt, route: Box::new(route) };
        let stored = format!("0104{}00{}0506{hops}", bytes(1), bytes(4));
        assert_eq!(hex::encode(offered.entry().bytes), stored);
        let failure = Failure { reason: FailureReason::Temporary, message: "m".to_owned(), code: 9, hop: Some(1) };
        let ended = PaymentEntry::Ended { id: PaymentId([1; 32]), attempt: 2, failure, held_ms: vec![100] };
        assert_eq!(hex::encode(ended.entry().bytes), format!("0105{}0207016d0901010164", bytes(1)));
        assert_eq!(PaymentEntry::decode(&ended.entry().bytes).unwrap(), ended);

        let claimed = InvoiceEntry::Claimed {
            payment_hash: PaymentHash([1; 32]),
            channel_id: ChannelId([2; 32]),
            htlc_id: HtlcId(3),
            amount: Msat(4),
        };
        assert_eq!(hex::encode(claimed.entry().bytes), format!("0101{}{}0304", bytes(1), bytes(2)));
        let created = InvoiceCreated {
            payment_hash: PaymentHash([1; 32]),
            amount: None,
            expires_ms: 2,
            bolt11: "ln".to_owned(),
            idempotency_key: String::new(),
        };
        let made = Made { created, preimage: Preimage::new([5; 32]), min_final_cltv: 42 };
        let made = InvoiceEntry::Made(Box::new(made));
        assert_eq!(hex::encode(made.entry().bytes), format!("0100{}0002026c6e00{}2a", bytes(1), bytes(5)));
        let part = ReceivedPart { channel_id: ChannelId([2; 32]), htlc_id: HtlcId(3), amount: Msat(4) };
        let (payment_hash, preimage) = (PaymentHash([1; 32]), Preimage::new([5; 32]));
        let InvoiceEntry::Made(plain) = &made else { unreachable!() };
        let hold = MadeHold { created: plain.created.clone(), preimage: None, min_final_cltv: 42 };
        let part_hex = format!("{}0304", bytes(2));
        let (hash_hex, preimage_hex) = (bytes(1), bytes(5));
        let samples = [
            (InvoiceEntry::MadeHold(Box::new(hold)), format!("0102{hash_hex}0002026c6e00002a")),
            (
                InvoiceEntry::Held { payment_hash, parts: vec![part], deadline: BlockHeight(9) },
                format!("0103{hash_hex}01{part_hex}09"),
            ),
            (
                InvoiceEntry::ClaimedParts { payment_hash, preimage: preimage.clone(), parts: vec![part, part] },
                format!("0104{hash_hex}{preimage_hex}02{part_hex}{part_hex}"),
            ),
            (InvoiceEntry::Cancelled { payment_hash, why: CancelReason::Deadline }, format!("0105{hash_hex}01")),
            (InvoiceEntry::Keysend { payment_hash, preimage, part }, format!("0106{hash_hex}{preimage_hex}{part_hex}")),
        ];
        for (entry, stored) in samples {
            assert_eq!(hex::encode(entry.entry().bytes), stored);
            assert_eq!(InvoiceEntry::decode(&hex::decode(stored).unwrap()).unwrap(), entry);
        }
        for cut in 0..made.entry().bytes.len() {
            assert!(InvoiceEntry::decode(&made.entry().bytes[..cut]).is_err());
        }
        assert!(InvoiceEntry::decode(&[2, 0]).unwrap_err().contains("version 2"));
    }
}
