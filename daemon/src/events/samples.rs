//! One of each thing that can happen, with its bytes in version 1.

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Txid};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::phase::on_chain::Ending;
use millrace_channel::phase::on_chain::ending::{LastState, Output, OutputKind};
use millrace_channel::{Both, ChannelType, PartyTerms, Side, Terms};
use millrace_wire::{
    BlockHeight, ChannelId, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, PaymentHash, Preimage, PublicKey,
    Sat, ShortChannelId,
};

use crate::happened::{
    AttemptBegun, CancelReason, ChannelOpening, CloseKind, ClosedChannel, ClosingTx, Failure, FailureReason,
    ForwardEnd, Forwarded, Happened, InvoiceCreated, PaymentId, PaymentStarted, ReceivedPart, WalletSeen,
};
use crate::route::{Route, RouteHop};
use crate::wallet::{Label, TxKind};

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

fn closed() -> ClosedChannel {
    let party = |seed: u8| PartyTerms {
        dust_limit: Sat(354),
        max_htlc_value_in_flight: Msat(9),
        channel_reserve: Sat(10),
        htlc_minimum: Msat(1),
        to_self_delay: 144,
        max_accepted_htlcs: 483,
        basepoints: ChannelKeys::from_seed(&[seed; 32]).basepoints().clone(),
        upfront_shutdown_script: None,
    };
    let output = |kind, spent| Output {
        outpoint: OutPoint { txid: txid(8), vout: 1 },
        amount: Sat(5),
        kind,
        claimable: Some(BlockHeight(6)),
        deadline: None,
        spent,
    };
    let outputs = vec![
        output(OutputKind::Balance(Side::Local), Some((Side::Local, txid(9), BlockHeight(10)))),
        output(OutputKind::Htlc { offered_by: Side::Remote, payment_hash: HASH }, None),
        output(OutputKind::SecondLevel, None),
        output(OutputKind::Anchor(Side::Remote), None),
    ];
    ClosedChannel {
        terms: Terms {
            channel_id: CHANNEL,
            remote_node: peer(),
            funder: Side::Local,
            channel_type: ChannelType::ANCHORS,
            funding_outpoint: OutPoint { txid: txid(7), vout: 1 },
            capacity: Sat(1_000),
            push: Msat(2),
            minimum_depth: 3,
            announce: false,
            parties: Both { local: party(1), remote: party(2) },
        },
        last: LastState {
            short_channel_id: Some(ShortChannelId(77)),
            local_alias: ShortChannelId(78),
            remote_alias: None,
            required_depth: 3,
            balances: Both { local: Msat(4), remote: Msat(5) },
            feerate: FeeratePerKw(253),
            commitment_numbers: Both { local: CommitmentNumber(6), remote: CommitmentNumber(7) },
            ending: Some(Ending {
                txid: txid(8),
                height: Some(BlockHeight(9)),
                fee: Sat(200),
                direct: Sat(300),
                outputs,
            }),
        },
    }
}

const fn attempt() -> AttemptBegun {
    AttemptBegun { attempt: 1, channel_id: CHANNEL, scid: ShortChannelId(77), cltv_expiry: CltvExpiry(500) }
}

fn route() -> Route {
    let hop = RouteHop { node: peer(), scid: ShortChannelId(77), amount: Msat(1), cltv_expiry: CltvExpiry(500) };
    Route { hops: vec![hop, hop] }
}

pub(super) fn all() -> Vec<(Happened, &'static str)> {
    let part = ReceivedPart { channel_id: CHANNEL, htlc_id: HtlcId(2), amount: Msat(1) };
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
            Happened::ChannelClosed {
                channel_id,
                peer,
                kind: CloseKind::LocalCommitment,
                close: Some(close(Some(9))),
                last: Box::new(closed()),
            },
            "0107030303030303030303030303030303030303030303030303030303030303030303031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f0201200808080808080808080808080808080808080808080808080808080808080808c801ac0201090303030303030303030303030303030303030303030303030303030303030303031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f0001000020070707070707070707070707070707070707070707070707070707070707070701e807020300e202090a019001e30302d02427bf62da65438bd82b89ebd5326876f8bf4a35164129ace870c4a4b4d757021ca0a9b8e11eeae758783dc4c2bf3aa878208ae21fd5ff0790ecb840edbaaeac032928165f1ac4948fb12f17927f1b4acf71430c824595b7fb25e44977197bdd00034b2f1b5bbfd4b0b7c6859733b26c4119a94edb0defacbba27d110006cdcf51740385de046506037da53b859b341522b581371471ee69e9ba507502b492931a4ea800e202090a019001e303035a7f0015fe2750a7ed388b3b60751b779e4afc8d5264c8603422b454812147f3033e2ff0953f88dee6b98931c08fb30a295bb3d1c46d7db73ad502d44f614a1abb03d228e8f9b08aca8d9b7826d5423a334c56562d253fb58381adfb6772036f1a3f0341d4447d87cb41267d10bb61c5b38587b740f4166cad9177f1257fa41ec8b988028eb85a5e6388aa2d2b73b97bcd188ee8ce590326e8ca93fb8c474dc754318aaa00014d4e00030405fd010607012008080808080808080808080808080808080808080808080808080808080808080109c801ac02042008080808080808080808080808080808080808080808080808080808080808080105000001060001002009090909090909090909090909090909090909090909090909090909090909090a20080808080808080808080808080808080808080808080808080808080808080801050101050505050505050505050505050505050505050505050505050505050505050501060000200808080808080808080808080808080808080808080808080808080808080808010502010600002008080808080808080808080808080808080808080808080808080808080808080105030101060000",
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
        (
            Happened::WalletTransaction(Box::new(WalletSeen {
                txid: txid(9),
                received: Sat(1),
                sent: Sat(2),
                fee: Some(Sat(1)),
                height: Some(3),
                time_s: 4,
                label: Label { kind: TxKind::Withdrawal, channel: None },
                is_replaced: false,
            })),
            "01070b20090909090909090909090909090909090909090909090909090909090909090901020101010304010000",
        ),
        (
            Happened::PeerConnected { peer, address: "h:1".to_owned(), is_inbound: true },
            "01070c031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f03683a3101",
        ),
        (
            Happened::AttemptRouted { id: ID, attempt: 1, route: Box::new(route()) },
            "01071404040404040404040404040404040404040404040404040404040404040404040102031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f4d01f403031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f4d01f403",
        ),
        (
            Happened::AttemptHeld { id: ID, attempt: 1, held_ms: vec![100, 300] },
            "0107150404040404040404040404040404040404040404040404040404040404040404010264ac02",
        ),
        (
            Happened::PeerDisconnected { peer, reason: "r".to_owned() },
            "01070d031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f0172",
        ),
        (
            Happened::HoldInvoiceCreated(Box::new(InvoiceCreated {
                payment_hash: HASH,
                amount: None,
                expires_ms: 2,
                bolt11: "ln".to_owned(),
                idempotency_key: "k".to_owned(),
            })),
            "01070e05050505050505050505050505050505050505050505050505050505050505050002026c6e016b",
        ),
        (
            Happened::InvoiceHeld { payment_hash: HASH, parts: vec![part], deadline: BlockHeight(9) },
            "01070f0505050505050505050505050505050505050505050505050505050505050505010303030303030303030303030303030303030303030303030303030303030303020109",
        ),
        (
            Happened::InvoiceCancelled { payment_hash: HASH, why: CancelReason::PartGone },
            "010710050505050505050505050505050505050505050505050505050505050505050502",
        ),
        (
            Happened::InvoicePaidInParts { payment_hash: HASH, preimage: preimage(), parts: vec![part] },
            "010711050505050505050505050505050505050505050505050505050505050505050506060606060606060606060606060606060606060606060606060606060606060103030303030303030303030303030303030303030303030303030303030303030201",
        ),
        (
            Happened::KeysendReceived { payment_hash: HASH, preimage: preimage(), part },
            "0107120505050505050505050505050505050505050505050505050505050505050505060606060606060606060606060606060606060606060606060606060606060603030303030303030303030303030303030303030303030303030303030303030201",
        ),
        (
            Happened::Forwarded(Box::new(Forwarded {
                incoming_channel: CHANNEL,
                incoming_htlc: HtlcId(1),
                outgoing_channel: CHANNEL,
                outgoing_htlc: HtlcId(2),
                payment_hash: HASH,
                amount_in: Msat(4),
                amount_out: Msat(3),
                received_ms: 6,
                end: ForwardEnd::TimedOut,
            })),
            "010713030303030303030303030303030303030303030303030303030303030303030301030303030303030303030303030303030303030303030303030303030303030302050505050505050505050505050505050505050505050505050505050505050504030602",
        ),
    ]
}
