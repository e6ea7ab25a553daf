//! What the played daemon answers: one of everything, with values that tell the fields apart.

use millrace_rpc::v1::*;
use tonic::Status;

pub(crate) const ADDRESS: &str = "bcrt1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr";
pub(crate) const BOLT11: &str = "lnbcrt210n1pj0example0invoice0for0tests";

/// A moment in 2026, in Unix milliseconds.
const NOON_MS: u64 = 1_767_268_800_000;

fn node(last: u8) -> Vec<u8> {
    let mut id = vec![2; 33];
    id[32] = last;
    id
}

fn feature(bit: u32, name: &str) -> Feature {
    Feature { bit, name: name.to_owned(), required: bit.is_multiple_of(2) }
}

pub(crate) fn too_poor() -> Status {
    ErrorDetail::new(ErrorReason::InsufficientBalance)
        .fact("needed_sat", 50_500)
        .fact("available_sat", 1_200)
        .hint("Receive coins first: millrace wallet new-address.")
        .into_status("50500 sat needed, 1200 sat available")
}

pub(crate) fn info() -> GetInfoResponse {
    GetInfoResponse {
        node_id: node(1),
        alias: "alice".to_owned(),
        network: "regtest".to_owned(),
        version: "0.1.0".to_owned(),
        tip_height: 812,
        tip_hash: vec![0x0f; 32],
        sync_state: SyncState::Synced.into(),
        chain_height: 812,
        channels: Some(ChannelCounts { opening: 1, usable: 2, offline: 3, closing: 4, closed: 5 }),
        peers_connected: 6,
        uptime_s: 93_784,
        features: vec![feature(14, "payment_secret"), feature(23, "option_anchors"), feature(999, "")],
        listen_addresses: vec!["127.0.0.1:9735".to_owned()],
        face: Some(face()),
        announced_s: 1_767_268_800,
    }
}

fn face() -> NodeFace {
    let addresses = vec!["203.0.113.7:9735".to_owned(), "[2001:db8::7]:9735".to_owned()];
    NodeFace { alias: "alice".to_owned(), color: "#3399ff".to_owned(), addresses }
}

pub(crate) fn announced() -> AnnounceResponse {
    AnnounceResponse { face: Some(face()), has_announced_channel: true }
}

pub(crate) fn status() -> GetStatusResponse {
    GetStatusResponse {
        stage: StartStage::Chain.into(),
        done: 700,
        total: 812,
        message: "following the chain".to_owned(),
        network: "regtest".to_owned(),
    }
}

pub(crate) fn balance() -> BalanceResponse {
    BalanceResponse {
        confirmed_sat: 5_000_000,
        unconfirmed_sat: 20_000,
        immature_sat: 0,
        anchor_reserve_sat: 25_000,
        spendable_sat: 4_995_000,
        channels: vec![ChannelStateBalance {
            state: ChannelState::Normal.into(),
            count: 2,
            local_msat: 700_000_123,
            remote_msat: 299_999_877,
            offered_msat: 21_000,
            received_msat: 0,
        }],
        claimable_sat: 7_000,
    }
}

pub(crate) fn sent() -> SendResponse {
    SendResponse {
        txid: vec![0xaa; 32],
        amount_sat: 50_000,
        fee_sat: 282,
        feerate_sat_per_kw: 500,
        waiting: String::new(),
    }
}

pub(crate) fn bumped() -> BumpFeeResponse {
    BumpFeeResponse {
        txid: vec![0xab; 32],
        fee_sat: 2_820,
        feerate_sat_per_kw: 5_000,
        waiting: "insufficient fee".to_owned(),
    }
}

pub(crate) fn transaction() -> WalletTransaction {
    WalletTransaction {
        txid: vec![0xaa; 32],
        received_sat: 949_718,
        sent_sat: 1_000_000,
        fee_sat: Some(282),
        height: Some(810),
        confirmations: 3,
        time_ms: NOON_MS,
        kind: TransactionKind::Withdrawal.into(),
        channel_id: Vec::new(),
    }
}

pub(crate) fn transactions() -> ListTransactionsResponse {
    let funding = WalletTransaction {
        txid: vec![0xac; 32],
        received_sat: 0,
        sent_sat: 1_000_500,
        fee_sat: None,
        height: None,
        confirmations: 0,
        time_ms: NOON_MS - 60_000,
        kind: TransactionKind::Funding.into(),
        channel_id: vec![0xc1; 32],
    };
    ListTransactionsResponse { transactions: vec![transaction(), funding], next_cursor: "41".to_owned() }
}

pub(crate) fn utxos() -> ListUtxosResponse {
    let utxo = |last: u8, amount_sat, reserved, locked| Utxo {
        outpoint: Some(OutPoint { txid: vec![last; 32], vout: u32::from(last) }),
        amount_sat,
        address: ADDRESS.to_owned(),
        confirmations: 12,
        reserved,
        locked,
    };
    ListUtxosResponse {
        utxos: vec![utxo(1, 4_975_000, false, false), utxo(2, 25_000, true, false), utxo(3, 1_000, false, true)],
        next_cursor: String::new(),
    }
}

pub(crate) fn peers() -> Vec<Peer> {
    let bob = Peer {
        node_id: node(2),
        address: "127.0.0.1:19735".to_owned(),
        connected: true,
        inbound: false,
        features: vec![feature(12, "option_static_remotekey")],
        channels: 1,
        since_ms: NOON_MS,
        ping_us: Some(1_534),
        last_error: String::new(),
    };
    let carol = Peer {
        node_id: node(3),
        address: "[::1]:9735".to_owned(),
        connected: false,
        inbound: true,
        features: Vec::new(),
        channels: 2,
        since_ms: NOON_MS - 3_600_000,
        ping_us: None,
        last_error: "pong did not come".to_owned(),
    };
    vec![bob, carol]
}

fn side(reserve_sat: u64) -> ChannelSide {
    ChannelSide {
        reserve_sat,
        dust_limit_sat: 354,
        htlc_minimum_msat: 1,
        max_in_flight_msat: 450_000_000,
        max_accepted_htlcs: 483,
        to_self_delay_blocks: 144,
    }
}

fn policy(htlc_maximum_msat: Option<u64>) -> ForwardPolicy {
    ForwardPolicy { fee_base_msat: 2_000, fee_ppm: 250, cltv_delta_blocks: 80, htlc_minimum_msat: 1, htlc_maximum_msat }
}

/// Of two channels.
pub(crate) fn policies() -> Vec<ChannelPolicy> {
    let of = |byte, most| ChannelPolicy { channel_id: vec![byte; 32], policy: Some(policy(most)) };
    vec![of(0xc1, None), of(0xc2, Some(50_000_000))]
}

fn forward(outcome: ForwardOutcome, fee_msat: u64) -> Forward {
    Forward {
        outcome: outcome.into(),
        incoming_channel_id: vec![0xc1; 32],
        incoming_htlc_id: 7,
        outgoing_channel_id: vec![0xc2; 32],
        outgoing_htlc_id: 3,
        payment_hash: vec![0xee; 32],
        amount_in_msat: 21_003_100,
        amount_out_msat: 21_000_000,
        fee_msat,
        received_ms: NOON_MS,
        ended_ms: NOON_MS + 412,
    }
}

pub(crate) fn forwards() -> ListForwardsResponse {
    ListForwardsResponse {
        forwards: vec![forward(ForwardOutcome::TimedOut, 0), forward(ForwardOutcome::Settled, 3_100)],
        next_cursor: "0a".to_owned(),
        totals: Some(ForwardTotals { settled: 9, failed: 4, forwarded_msat: 210_000_000, fees_msat: 31_000 }),
    }
}

fn open_channel() -> Channel {
    Channel {
        policy: Some(policy(None)),
        channel_id: vec![0xc1; 32],
        node_id: node(2),
        state: ChannelState::Normal.into(),
        online: true,
        funder: true,
        capacity_sat: 1_000_000,
        funding_outpoint: Some(OutPoint { txid: vec![0xac; 32], vout: 1 }),
        short_channel_id: Some(805 << 40 | 2 << 16 | 1),
        local_alias: Some(16_000_000 << 40 | 7),
        remote_alias: None,
        channel_type: vec!["option_static_remotekey".to_owned(), "option_anchors".to_owned()],
        local_msat: 700_000_123,
        remote_msat: 279_999_877,
        offered_msat: 15_000_000,
        received_msat: 5_000_000,
        available_to_send_msat: 680_000_000,
        available_to_receive_msat: 269_999_877,
        offered_htlcs: 1,
        received_htlcs: 1,
        local: Some(side(10_000)),
        remote: Some(side(10_001)),
        feerate_sat_per_kw: 253,
        commitment_fee_sat: 284,
        anchors_sat: 660,
        local_commitment_number: 41,
        remote_commitment_number: 42,
        awaiting_revocation: true,
        htlcs: Vec::new(),
        confirmations: 3,
        minimum_depth: 3,
        opened_ms: NOON_MS,
        total_sent_msat: 9_000_000,
        total_received_msat: 1_000_000,
        closing: None,
        last_error: String::new(),
        announcement: Some(Announcement {
            stage: AnnouncementStage::Announced.into(),
            confirmations_left: 0,
            height: 810,
        }),
    }
}

fn closing_channel() -> Channel {
    Channel {
        channel_id: vec![0xc2; 32],
        state: ChannelState::OnChain.into(),
        online: false,
        funder: false,
        local_msat: 0,
        remote_msat: 985_000_000,
        offered_msat: 0,
        received_msat: 15_000_000,
        available_to_send_msat: 0,
        available_to_receive_msat: 0,
        offered_htlcs: 0,
        awaiting_revocation: false,
        closing: Some(ClosingInfo {
            kind: CloseKind::LocalCommitment.into(),
            reason: "the preimage of HTLC 7 had to be shown in time".to_owned(),
            txid: vec![0xd1; 32],
            height: Some(809),
            fee_sat: 300,
            on_chain: Some(OnChainResolution { outputs: Vec::new(), pending_sat: 15_000, resolved_height: 953 }),
            recovered_sat: 0,
            claim_fees_sat: 0,
        }),
        last_error: "peer: internal error".to_owned(),
        ..open_channel()
    }
}

/// As a list shows them.
pub(crate) fn channels() -> Vec<Channel> {
    vec![open_channel(), closing_channel()]
}

/// As they are shown one by one.
pub(crate) fn channels_in_full() -> Vec<Channel> {
    let htlc = |htlc_id, offered, amount_msat, dust| Htlc {
        htlc_id,
        offered,
        amount_msat,
        payment_hash: vec![0xee; 32],
        cltv_expiry: 900,
        stage: "adding: irrevocable".to_owned(),
        dust,
    };
    let mut open = open_channel();
    open.htlcs = vec![htlc(3, true, 15_000_000, false), htlc(9, false, 5_000_000, true)];
    let mut closing = closing_channel();
    let on_chain = closing.closing.as_mut().unwrap().on_chain.as_mut().unwrap();
    on_chain.outputs = on_chain_outputs();
    vec![open, closing]
}

fn on_chain_outputs() -> Vec<OnChainOutput> {
    let output = |vout, amount_sat, kind: OutputKind, status: OutputStatus| OnChainOutput {
        outpoint: Some(OutPoint { txid: vec![0xd1; 32], vout }),
        amount_sat,
        kind: kind.into(),
        status: status.into(),
        claimable_height: 0,
        deadline_height: 0,
        claim_txid: Vec::new(),
        claim_height: None,
        payment_hash: Vec::new(),
        note: "the peer's".to_owned(),
    };
    let htlc = OnChainOutput {
        claimable_height: 809,
        deadline_height: 900,
        claim_txid: vec![0xd2; 32],
        payment_hash: vec![0xee; 32],
        note: "our transaction d2d2… waits for a block; it pays 210 sat".to_owned(),
        ..output(2, 15_000, OutputKind::ReceivedHtlc, OutputStatus::Claiming)
    };
    vec![output(1, 985_000, OutputKind::ToRemote, OutputStatus::NotOurs), htlc]
}

pub(crate) fn opening() -> Vec<OpenChannelProgress> {
    use open_channel_progress::Stage;
    let step = |temporary, stage| OpenChannelProgress {
        channel_id: vec![if temporary { 0x7e } else { 0xc1 }; 32],
        temporary,
        stage: Some(stage),
    };
    let depth = |have| Confirmations { txid: vec![0xac; 32], have, need: 3 };
    let negotiated = OpenNegotiated { minimum_depth: 3, remote_reserve_sat: 10_001, local_reserve_sat: 10_000 };
    let broadcast = FundingBroadcast { funding_outpoint: open_channel().funding_outpoint, fee_sat: 500 };
    vec![
        step(true, Stage::Negotiated(negotiated)),
        step(false, Stage::FundingBroadcast(broadcast)),
        step(false, Stage::Confirmations(depth(1))),
        step(false, Stage::Confirmations(depth(3))),
        step(false, Stage::Ready(open_channel())),
    ]
}

pub(crate) fn closing(force: bool) -> Vec<CloseChannelProgress> {
    use close_channel_progress::Stage;
    let step = |stage| CloseChannelProgress { channel_id: vec![0xc1; 32], stage: Some(stage) };
    let broadcast = |kind: CloseKind| ClosingBroadcast {
        txid: vec![0xd3; 32],
        kind: kind.into(),
        fee_sat: 211,
        local_sat: 700_000,
    };
    let depth = Confirmations { txid: vec![0xd3; 32], have: 1, need: 1 };
    let closed = |kind: CloseKind| Channel {
        state: ChannelState::Closed.into(),
        online: false,
        closing: Some(ClosingInfo {
            kind: kind.into(),
            reason: "asked for".to_owned(),
            txid: vec![0xd3; 32],
            height: Some(813),
            fee_sat: 211,
            on_chain: None,
            recovered_sat: 700_000,
            claim_fees_sat: 230,
        }),
        ..open_channel()
    };
    if force {
        let resolving = OnChainResolution { outputs: on_chain_outputs(), pending_sat: 15_000, resolved_height: 953 };
        return vec![
            step(Stage::Broadcast(broadcast(CloseKind::LocalCommitment))),
            step(Stage::Confirmations(depth)),
            step(Stage::Resolving(resolving)),
            step(Stage::Closed(closed(CloseKind::LocalCommitment))),
        ];
    }
    vec![
        step(Stage::ShutdownStarted(ShutdownStarted { htlcs_pending: 2 })),
        step(Stage::Broadcast(broadcast(CloseKind::Cooperative))),
        step(Stage::Confirmations(depth)),
        step(Stage::Closed(closed(CloseKind::Cooperative))),
    ]
}

pub(crate) fn open_invoice() -> Invoice {
    Invoice {
        payment_hash: vec![0xe1; 32],
        bolt11: BOLT11.to_owned(),
        amount_msat: Some(21_000),
        description: "coffee".to_owned(),
        description_hash: Vec::new(),
        status: InvoiceStatus::Open.into(),
        created_ms: NOON_MS,
        expires_ms: NOON_MS + 3_600_000,
        received_msat: None,
        paid_ms: None,
        preimage: Vec::new(),
        min_final_cltv_expiry_delta: 42,
        kind: InvoiceKind::Plain.into(),
        ..Invoice::default()
    }
}

/// A hold invoice whose payment is there, in two parts.
pub(crate) fn held_invoice() -> Invoice {
    Invoice {
        payment_hash: vec![0xe3; 32],
        status: InvoiceStatus::Held.into(),
        kind: InvoiceKind::Hold.into(),
        parts: parts(),
        held_msat: Some(21_000),
        held_ms: Some(NOON_MS + 500),
        settle_by_height: Some(812),
        ..open_invoice()
    }
}

/// The same, given back.
pub(crate) fn cancelled_invoice() -> Invoice {
    Invoice {
        status: InvoiceStatus::Cancelled.into(),
        held_msat: None,
        cancelled_ms: Some(NOON_MS + 9_000),
        cancel_reason: InvoiceCancelReason::Deadline.into(),
        ..held_invoice()
    }
}

/// A payment that no invoice asked for.
pub(crate) fn keysend() -> Invoice {
    Invoice {
        bolt11: String::new(),
        amount_msat: None,
        description: String::new(),
        status: InvoiceStatus::Paid.into(),
        received_msat: Some(7_000),
        paid_ms: Some(NOON_MS),
        preimage: vec![0x9d; 32],
        min_final_cltv_expiry_delta: 0,
        kind: InvoiceKind::Keysend.into(),
        ..open_invoice()
    }
}

fn parts() -> Vec<InvoicePart> {
    let part = |channel: u8, amount_msat| InvoicePart { channel_id: vec![channel; 32], htlc_id: 3, amount_msat };
    vec![part(0xc1, 20_000), part(0xc2, 1_000)]
}

pub(crate) fn paid_invoice() -> Invoice {
    Invoice {
        payment_hash: vec![0xe2; 32],
        amount_msat: None,
        description: String::new(),
        description_hash: vec![0xdd; 32],
        status: InvoiceStatus::Paid.into(),
        received_msat: Some(1_500),
        paid_ms: Some(NOON_MS + 1_000),
        preimage: vec![0x9e; 32],
        ..open_invoice()
    }
}

pub(crate) fn decoded() -> DecodeInvoiceResponse {
    DecodeInvoiceResponse {
        network: "signet".to_owned(),
        payment_hash: vec![0xe1; 32],
        payee_node_id: node(4),
        amount_msat: Some(21_000),
        description: "tea\u{1b}[2J".to_owned(),
        description_hash: Vec::new(),
        created_ms: NOON_MS,
        expires_ms: NOON_MS + 3_600_000,
        expired: true,
        min_final_cltv_expiry_delta: 18,
        features: vec![feature(14, "payment_secret")],
        route_hints: vec![RouteHint {
            hops: vec![RouteHintHop {
                node_id: node(5),
                short_channel_id: 1 << 40 | 2 << 16 | 3,
                fee_base_msat: 1_000,
                fee_proportional_millionths: 100,
                cltv_expiry_delta: 48,
            }],
        }],
        fallback_addresses: vec![ADDRESS.to_owned()],
        for_this_network: false,
    }
}

fn attempt(status: PaymentStatus) -> Attempt {
    Attempt {
        attempt: 1,
        status: status.into(),
        amount_msat: 21_000,
        fee_msat: 3,
        hops: vec![Hop {
            node_id: node(2),
            short_channel_id: 805 << 40 | 2 << 16 | 1,
            amount_msat: 21_000,
            fee_msat: 3,
            cltv_expiry: 900,
            held_ms: None,
        }],
        failure: None,
        started_ms: NOON_MS + 1,
        ended_ms: None,
    }
}

fn failure() -> PaymentFailure {
    PaymentFailure {
        reason: PaymentFailureReason::PayeeRefused.into(),
        message: "incorrect_or_unknown_payment_details".to_owned(),
        failure_code: 0x400f,
        hop_index: Some(1),
        hint: "Ask the payee for a new invoice.".to_owned(),
        node_id: node(2),
        failure_name: "incorrect_or_unknown_payment_details".to_owned(),
    }
}

pub(crate) fn paid_payment() -> Payment {
    Payment {
        payment_hash: vec![0xe1; 32],
        status: PaymentStatus::Succeeded.into(),
        amount_msat: 21_000,
        fee_msat: 3,
        payee_node_id: node(2),
        bolt11: BOLT11.to_owned(),
        description: "coffee".to_owned(),
        preimage: vec![0x9e; 32],
        failure: None,
        created_ms: NOON_MS,
        decided_ms: Some(NOON_MS + 7),
        attempts: vec![Attempt { ended_ms: Some(NOON_MS + 6), ..attempt(PaymentStatus::Succeeded) }],
    }
}

pub(crate) fn failed_payment() -> Payment {
    Payment {
        payment_hash: vec![0xe3; 32],
        status: PaymentStatus::Failed.into(),
        fee_msat: 0,
        preimage: Vec::new(),
        failure: Some(failure()),
        attempts: vec![
            Attempt {
                failure: Some(failure()),
                ended_ms: Some(NOON_MS + 6),
                hops: vec![hop(2, 10_510, 510, Some(1_200)), hop(3, 10_000, 0, None)],
                amount_msat: 10_000,
                fee_msat: 510,
                ..attempt(PaymentStatus::Failed)
            },
            Attempt { attempt: 2, ended_ms: Some(NOON_MS + 7), ..attempt(PaymentStatus::InFlight) },
        ],
        ..paid_payment()
    }
}

fn hop(to: u8, amount_msat: u64, fee_msat: u64, held_ms: Option<u32>) -> Hop {
    let short_channel_id = 805 << 40 | u64::from(to) << 16 | 1;
    Hop { node_id: node(to), short_channel_id, amount_msat, fee_msat, cltv_expiry: 900, held_ms }
}

pub(crate) fn estimated() -> EstimateRouteResponse {
    let hops = vec![hop(2, 10_510, 510, None), hop(3, 10_000, 0, None)];
    let over = Route { amount_msat: 10_000, fee_msat: 510, hops, chance_ppm: 1_000 };
    let direct = Route { amount_msat: 11_000, fee_msat: 0, hops: vec![hop(3, 11_000, 0, None)], chance_ppm: 989_999 };
    EstimateRouteResponse { routes: vec![over, direct], amount_msat: 21_000, fee_msat: 510 }
}

fn steps(outcome: Payment) -> Vec<PayProgress> {
    use pay_progress::Step;
    let accepted = PaymentAccepted { amount_msat: 21_000, payee_node_id: node(2) };
    let first = attempt(PaymentStatus::InFlight);
    [Step::Accepted(accepted), Step::Attempt(first), Step::Outcome(outcome)]
        .into_iter()
        .map(|step| PayProgress { payment_hash: vec![0xe1; 32], step: Some(step) })
        .collect()
}

pub(crate) fn paying() -> Vec<PayProgress> {
    steps(paid_payment())
}

pub(crate) fn failing() -> Vec<PayProgress> {
    steps(failed_payment())
}

/// One of each kind, in frames 70 to 73.
pub(crate) fn events() -> Vec<Event> {
    use event::Event as E;
    let channel_id = vec![0xc1; 32];
    let payment_hash = vec![0xe1; 32];
    let node_id = node(2);
    let kinds = vec![
        E::PeerConnected(PeerConnected {
            node_id: node_id.clone(),
            address: "127.0.0.1:19735".to_owned(),
            inbound: false,
        }),
        E::ChannelOpening(ChannelOpening {
            channel_id: channel_id.clone(),
            node_id: node_id.clone(),
            capacity_sat: 1_000_000,
            funder: true,
            funding_outpoint: open_channel().funding_outpoint,
        }),
        E::WalletTransaction(WalletTransactionSeen { transaction: Some(transaction()), replaced: true }),
        E::ChannelReady(ChannelReady {
            channel_id: channel_id.clone(),
            node_id: node_id.clone(),
            local_msat: 1_000_000_000,
            remote_msat: 0,
        }),
        E::InvoiceCreated(InvoiceCreated {
            payment_hash: payment_hash.clone(),
            amount_msat: None,
            expires_ms: NOON_MS,
            idempotency_key: "order-1".to_owned(),
            hold: false,
        }),
        E::InvoicePaid(InvoicePaid {
            payment_hash: payment_hash.clone(),
            received_msat: 1_500,
            preimage: vec![0x9e; 32],
            parts: parts(),
            keysend: false,
        }),
        E::InvoiceHeld(InvoiceHeld {
            payment_hash: payment_hash.clone(),
            held_msat: 21_000,
            parts: parts(),
            settle_by_height: 812,
        }),
        E::InvoiceCancelled(InvoiceCancelled {
            payment_hash: payment_hash.clone(),
            reason: InvoiceCancelReason::PartGone.into(),
        }),
        E::PaymentStarted(PaymentStarted {
            payment_hash: payment_hash.clone(),
            amount_msat: 21_000,
            payee_node_id: node_id.clone(),
            idempotency_key: String::new(),
        }),
        E::PaymentSucceeded(PaymentSucceeded {
            payment_hash: payment_hash.clone(),
            preimage: vec![0x9e; 32],
            amount_msat: 21_000,
            fee_msat: 3,
        }),
        E::PaymentFailed(PaymentFailed { payment_hash, failure: Some(failure()) }),
        E::ChannelClosing(ChannelClosing {
            channel_id: channel_id.clone(),
            node_id: node_id.clone(),
            kind: CloseKind::Cooperative.into(),
            reason: "asked for".to_owned(),
            txid: Vec::new(),
        }),
        E::ChannelClosed(ChannelClosed {
            channel_id,
            node_id: node_id.clone(),
            kind: CloseKind::Cooperative.into(),
            txid: vec![0xd3; 32],
            fee_sat: 211,
        }),
        E::PeerDisconnected(PeerDisconnected { node_id, reason: "connection closed".to_owned() }),
        E::ForwardEnded(forward(ForwardOutcome::Settled, 3_100)),
        E::ForwardEnded(forward(ForwardOutcome::Failed, 0)),
    ];
    let numbered = kinds.into_iter().enumerate();
    numbered
        .map(|(number, event)| Event {
            cursor: Some(Cursor { frame: 70 + number as u64 / 3, index: number as u32 % 3 }),
            time_ms: NOON_MS + number as u64 * 1000,
            event: Some(event),
        })
        .collect()
}

pub(crate) fn graph_info() -> GraphInfoResponse {
    GraphInfoResponse {
        channels: 37_454,
        policies: 66_964,
        nodes: 8_827,
        capacity_sat: 114_823_000_000,
        spent_channels: 3,
        last_sync_ms: NOON_MS,
        syncing_with: vec![node(7)],
        listening_to: 4,
    }
}

pub(crate) fn graph_channel() -> GraphChannel {
    GraphChannel {
        scid: 539_268 << 40 | 845 << 16 | 1,
        node_id_1: node(1),
        node_id_2: node(2),
        capacity_sat: 1_000_000,
        policy_1: Some(GraphPolicy {
            disabled: false,
            fee_base_msat: 1_000,
            fee_ppm: 100,
            cltv_delta: 80,
            htlc_minimum_msat: 1,
            htlc_maximum_msat: 990_000_000,
            updated_ms: NOON_MS,
        }),
        policy_2: None,
        known_since_ms: NOON_MS,
        spent_height: 812,
    }
}

pub(crate) fn graph_node() -> GraphNode {
    GraphNode {
        node_id: node(2),
        announced: true,
        alias: "bob".to_owned(),
        color: vec![0x68, 0xf4, 0x42],
        addresses: vec!["127.0.0.1:9735".to_owned()],
        features: vec![feature(7, "gossip_queries")],
        announced_ms: NOON_MS,
        channels: vec![graph_channel()],
        channel_count: 1,
    }
}
