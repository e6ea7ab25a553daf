//! One of each thing that can happen, with its bytes in version 1.

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Txid};
use millrace_wire::{
    BlockHeight, ChannelId, CltvExpiry, HtlcId, Msat, PaymentHash, Preimage, PublicKey, Sat, ShortChannelId,
};

use crate::happened::{
    AttemptBegun, ChannelOpening, CloseKind, ClosingTx, Failure, FailureReason, Happened, InvoiceCreated, PaymentId,
    PaymentStarted,
};

const CHANNEL: ChannelId = ChannelId([3; 32]);
const ID: PaymentId = PaymentId([4; 32]);
const HASH: PaymentHash = PaymentHash([5; 32]);

fn peer() -> PublicKey {
    secp256k1::SecretKey::from_slice(&[1; 32]).expect("a key").public_key(secp256k1::SECP256K1)
}

fn txid(byte: u8) -> Txid {
    Txid::from_byte_array([byte; 32])
}

fn close(height: Option<u32>) -> ClosingTx {
    ClosingTx { txid: txid(8), fee: Sat(200), direct: Sat(300), height: height.map(BlockHeight) }
}

const fn attempt() -> AttemptBegun {
    AttemptBegun { attempt: 1, channel_id: CHANNEL, scid: ShortChannelId(77), cltv_expiry: CltvExpiry(500) }
}

pub(super) fn all() -> Vec<(Happened, &'static str)> {
    let (channel_id, peer) = (CHANNEL, peer());
    let failure = Failure { reason: FailureReason::Temporary, message: "m".to_owned(), code: 9, hop: Some(1) };
    let preimage = || Preimage::new([6; 32]);
    vec![
        (
            Happened::ChannelOpening(Box::new(ChannelOpening {
                channel_id,
                peer,
                capacity: Sat(1_000),
                is_funder: true,
                funding_outpoint: OutPoint { txid: txid(7), vout: 1 },
                push: Msat(2),
            })),
            "0107000303030303030303030303030303030303030303030303030303030303030303031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078fe807012007070707070707070707070707070707070707070707070707070707070707070102",
        ),
        (
            Happened::ChannelReady { channel_id, peer, local: Msat(1), remote: Msat(2) },
            "0107010303030303030303030303030303030303030303030303030303030303030303031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f0102",
        ),
        (
            Happened::ChannelClosing {
                channel_id,
                peer,
                kind: CloseKind::Cooperative,
                reason: "r".to_owned(),
                close: Some(close(None)),
            },
            "0107020303030303030303030303030303030303030303030303030303030303030303031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f01017201200808080808080808080808080808080808080808080808080808080808080808c801ac0200",
        ),
        (
            Happened::ChannelClosed { channel_id, peer, kind: CloseKind::LocalCommitment, close: Some(close(Some(9))) },
            "0107030303030303030303030303030303030303030303030303030303030303030303031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f0201200808080808080808080808080808080808080808080808080808080808080808c801ac020109",
        ),
        (
            Happened::PaymentStarted(Box::new(PaymentStarted {
                id: ID,
                payment_hash: HASH,
                amount: Msat(1),
                payee: peer,
                bolt11: "ln".to_owned(),
                idempotency_key: "k".to_owned(),
                attempt: attempt(),
            })),
            "0107040404040404040404040404040404040404040404040404040404040404040404050505050505050505050505050505050505050505050505050505050505050501031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f026c6e016b0103030303030303030303030303030303030303030303030303030303030303034df403",
        ),
        (
            Happened::AttemptBegun { id: ID, attempt: attempt() },
            "01070504040404040404040404040404040404040404040404040404040404040404040103030303030303030303030303030303030303030303030303030303030303034df403",
        ),
        (
            Happened::AttemptFailed { id: ID, attempt: 1, failure: failure.clone() },
            "01070604040404040404040404040404040404040404040404040404040404040404040107016d090101",
        ),
        (
            Happened::PaymentSucceeded {
                id: ID,
                payment_hash: HASH,
                preimage: preimage(),
                amount: Msat(1),
                fee: Msat(0),
            },
            "0107070404040404040404040404040404040404040404040404040404040404040404050505050505050505050505050505050505050505050505050505050505050506060606060606060606060606060606060606060606060606060606060606060100",
        ),
        (
            Happened::PaymentFailed { id: ID, payment_hash: HASH, failure },
            "0107080404040404040404040404040404040404040404040404040404040404040404050505050505050505050505050505050505050505050505050505050505050507016d090101",
        ),
        (
            Happened::InvoiceCreated(Box::new(InvoiceCreated {
                payment_hash: HASH,
                amount: Some(Msat(1)),
                expires_ms: 2,
                bolt11: "ln".to_owned(),
                idempotency_key: "k".to_owned(),
            })),
            "0107090505050505050505050505050505050505050505050505050505050505050505010102026c6e016b",
        ),
        (
            Happened::InvoicePaid {
                payment_hash: HASH,
                received: Msat(1),
                preimage: preimage(),
                channel_id,
                htlc_id: HtlcId(2),
            },
            "01070a0505050505050505050505050505050505050505050505050505050505050505010606060606060606060606060606060606060606060606060606060606060606030303030303030303030303030303030303030303030303030303030303030302",
        ),
    ]
}
