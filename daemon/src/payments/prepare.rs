//! A payment before anybody is asked: its invoice read once, held against the request, and, where its payee is a peer of
//! ours, its onion built.
//!
//! The curve work of such a payment is all here, away from the task that decides: one recovery of the payee's key, one
//! onion. The route is one hop long, so the onion does not depend on the channel. Where ways are to be looked for, the
//! search builds the onions (`send::search`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::Network;
use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use millrace_channel::Millis;
use millrace_routing::SharedSecret;
use millrace_routing::graph::Policy;
use millrace_routing::invoice::{HintHop, Invoice, MIN_FINAL_CLTV};
use millrace_routing::onion::{FinalPayload, ForwardPayload, Hop, OnionError, Payload, build, shared_secrets};
use millrace_routing::path::Hint;
use millrace_wire::{
    BlockHeight, CltvDelta, CltvExpiry, Msat, OnionPacket, PaymentHash, PaymentSecret, Preimage, PublicKey,
};
use secp256k1::SecretKey;

use super::listener::Listener;
use super::refusal::PayRefusal;
use crate::channels::NoNewWork;
use crate::happened::PaymentId;
use crate::idempotency::{KeyHash, RequestHash};
use crate::route::RouteHop;

/// Blocks that may come between our view of the chain and the payee's: it must still find its
/// `min_final_cltv_expiry_delta`.
const EXPIRY_PADDING: CltvDelta = CltvDelta(3);
/// After this long no further attempt is begun, unless the request says otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// So many parts at the same time, unless the request says otherwise: each holds a slot at every hop.
const PARTS_DEFAULT: u16 = 16;
/// And so many at most.
pub const PARTS_MAX: u16 = 64;
/// The most to pay for forwarding, unless the request says otherwise: the larger of this...
const FEE_LIMIT_MIN: Msat = Msat(5_000);
/// ...and the amount divided by this.
const FEE_LIMIT_SHARE: u64 = 100;
/// A payment without an invoice is remembered for so long, in milliseconds: longer than attempts may be made.
const SPONTANEOUS_LIFE_MS: u64 = 2 * 86_400_000;

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PayRequest {
    /// Who is paid, and what for.
    pub target: Target,
    /// For invoices that leave it open, where it must agree with one that does not; and for payments without an invoice.
    pub amount: Option<Msat>,
    /// The key and what it stands for, if the client gave one.
    pub key: Option<PayKey>,
    /// Its bounds.
    pub limits: Limits,
}

/// Who is paid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Whoever made this invoice.
    Invoice(String),
    /// This node, which has not asked for it: the preimage travels with the payment (keysend).
    Node(PublicKey),
}

/// The bounds of a payment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// After this long no further attempt is begun.
    pub timeout: Duration,
    /// The most to pay for forwarding. None: the larger of 5 sat and 1 % of the amount.
    pub fee: Option<Msat>,
    /// So many parts at the same time, if the payee takes parts.
    pub parts: u16,
    /// Our HTLCs expire at most so many blocks from now. None: what the node grants anyway.
    pub blocks: Option<u16>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout: TIMEOUT_DEFAULT, fee: None, parts: PARTS_DEFAULT, blocks: None }
    }
}

impl Limits {
    fn fee_of(&self, amount: Msat) -> Msat {
        self.fee.unwrap_or_else(|| Msat(amount.0 / FEE_LIMIT_SHARE).max(FEE_LIMIT_MIN))
    }
}

/// An idempotency key of a payment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PayKey {
    /// As the client wrote it.
    pub text: String,
    /// Its hash.
    pub hash: KeyHash,
    /// What it stands for.
    pub request: RequestHash,
}

/// What this node is, to its payments.
#[derive(Clone)]
pub struct PayerRules {
    /// The network.
    pub network: Network,
    /// The node's key.
    pub node_key: SecretKey,
    /// The node.
    pub node_id: PublicKey,
    /// The furthest expiry that is offered, in blocks from now.
    pub max_cltv_expiry_blocks: u16,
    /// How long a payment rests that finds no way but one that has refused it, at first, in milliseconds.
    pub first_pause_ms: u64,
}

/// What is to arrive, and what the payee must be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Goal {
    pub(crate) payment_hash: PaymentHash,
    pub(crate) payee: PublicKey,
    /// All parts together.
    pub(crate) amount: Msat,
    pub(crate) payment_secret: Option<PaymentSecret>,
    pub(crate) payment_metadata: Option<Vec<u8>>,
    pub(crate) keysend_preimage: Option<Preimage>,
    /// Blocks between our height and the last HTLC's expiry.
    pub(crate) final_delta: CltvDelta,
    /// The payee puts parts together.
    pub(crate) may_be_split: bool,
    /// Private channels to the payee.
    pub(crate) hints: Vec<Hint>,
    /// As Unix time in milliseconds: no further attempt is made.
    pub(crate) expires_ms: u64,
}

/// What attempts are made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) goal: Arc<Goal>,
    pub(crate) begun: Instant,
    pub(crate) deadline: Millis,
    pub(crate) fee_limit: Msat,
    pub(crate) parts_max: usize,
    pub(crate) blocks_max: u16,
}

/// A payment that could be tried.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) id: PaymentId,
    pub(crate) bolt11: String,
    pub(crate) key: Option<PayKey>,
    pub(crate) plan: Plan,
    /// Of the first attempt, if the payee is a peer.
    pub(crate) onion: Result<Option<BuiltAttempt>, PayRefusal>,
    pub(crate) listener: Listener,
}

/// An onion for a peer, and the expiry that it speaks of.
#[derive(Clone, Debug)]
pub(crate) struct BuiltAttempt {
    pub(crate) onion: Box<OnionPacket>,
    pub(crate) cltv_expiry: CltvExpiry,
}

/// When it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: Millis,
    pub(crate) unix_ms: u64,
    pub(crate) height: Option<BlockHeight>,
}

/// Reads the invoice, and builds the onion for a payee who is a peer.
///
/// What a repeated call must not be refused for, since it may get the result of the first (the invoice has expired
/// meanwhile), is left to whoever knows the payments.
pub(crate) fn prepare(
    request: PayRequest,
    rules: &PayerRules,
    moment: Moment,
    is_peer: impl FnOnce(&PublicKey) -> bool,
    listener: Listener,
) -> Result<Prepared, (PayRefusal, Listener)> {
    let goal = match goal(&request, rules, moment.unix_ms) {
        Ok(goal) => goal,
        Err(refusal) => return Err((refusal, listener)),
    };
    let id = PaymentId(crate::channels::random());
    let Limits { timeout, parts, blocks, .. } = request.limits;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let onion = if is_peer(&goal.payee) {
        build_attempt(&goal, id, 0, &rules.node_key, moment.height).map(Some)
    } else {
        Ok(None)
    };
    let plan = Plan {
        begun: Instant::now(),
        deadline: moment.now.plus(timeout_ms),
        fee_limit: request.limits.fee_of(goal.amount),
        parts_max: if goal.may_be_split { usize::from(parts.clamp(1, PARTS_MAX)) } else { 1 },
        blocks_max: blocks.unwrap_or(u16::MAX).min(rules.max_cltv_expiry_blocks),
        goal: Arc::new(goal),
    };
    let bolt11 = match request.target {
        Target::Invoice(bolt11) => bolt11,
        Target::Node(_) => String::new(),
    };
    Ok(Prepared { id, bolt11, key: request.key, plan, onion, listener })
}

fn goal(request: &PayRequest, rules: &PayerRules, unix_ms: u64) -> Result<Goal, PayRefusal> {
    let goal = match &request.target {
        Target::Invoice(bolt11) => of_invoice(bolt11, request.amount, rules)?,
        Target::Node(payee) => spontaneous(*payee, request.amount, unix_ms)?,
    };
    if goal.payee == rules.node_id {
        return Err(PayRefusal::SelfPayment);
    }
    let amount = goal.amount;
    if amount == Msat::ZERO {
        return Err(PayRefusal::BelowMinimum { amount, minimum: Msat(1) });
    }
    if !amount.is_money() {
        return Err(PayRefusal::AboveMaximum { amount, maximum: Msat::MAX_MONEY });
    }
    let blocks = u32::from(goal.final_delta.0);
    let max = u32::from(request.limits.blocks.unwrap_or(u16::MAX).min(rules.max_cltv_expiry_blocks));
    if blocks > max {
        return Err(PayRefusal::ExpiryTooFar { blocks, max });
    }
    Ok(goal)
}

fn of_invoice(bolt11: &str, asked: Option<Msat>, rules: &PayerRules) -> Result<Goal, PayRefusal> {
    let invoice = Invoice::parse(bolt11)?;
    if !invoice.is_for(rules.network) {
        return Err(PayRefusal::WrongNetwork { expected: rules.network, found: invoice.network });
    }
    if invoice.payee == rules.node_id {
        return Err(PayRefusal::SelfPayment);
    }
    let amount = match (invoice.amount, asked) {
        (None, None) => return Err(PayRefusal::AmountMissing),
        (Some(invoice), Some(asked)) if invoice != asked => {
            return Err(PayRefusal::AmountConflict { invoice, asked });
        }
        (Some(amount), _) | (None, Some(amount)) => amount,
    };
    let expires_at = invoice.expires_at().and_then(|at| u64::try_from(at.as_millis()).ok());
    Ok(Goal {
        payment_hash: invoice.payment_hash,
        payee: invoice.payee,
        amount,
        final_delta: padded(invoice.min_final_cltv),
        may_be_split: invoice.may_be_paid_in_parts(),
        hints: invoice.route_hints.iter().flat_map(|way| hints_of(way, invoice.payee)).collect(),
        expires_ms: expires_at.unwrap_or(u64::MAX),
        payment_secret: Some(invoice.payment_secret),
        payment_metadata: invoice.payment_metadata,
        keysend_preimage: None,
    })
}

/// A payment that nobody has asked for, in one part: its preimage is ours to choose, and travels with it.
fn spontaneous(payee: PublicKey, amount: Option<Msat>, unix_ms: u64) -> Result<Goal, PayRefusal> {
    let preimage = Preimage::new(crate::channels::random());
    Ok(Goal {
        payment_hash: preimage.hash(),
        payee,
        amount: amount.ok_or(PayRefusal::AmountMissing)?,
        payment_secret: None,
        payment_metadata: None,
        keysend_preimage: Some(preimage),
        final_delta: padded(MIN_FINAL_CLTV),
        may_be_split: false,
        hints: Vec::new(),
        expires_ms: unix_ms.saturating_add(SPONTANEOUS_LIFE_MS),
    })
}

fn padded(delta: CltvDelta) -> CltvDelta {
    delta.checked_add(EXPIRY_PADDING).unwrap_or(CltvDelta(u16::MAX))
}

/// BOLT 11, field `r`: each hop's channel leads to the next one's node, and the last one's to the payee. An invoice says
/// nothing of the least and the most.
fn hints_of(way: &[HintHop], payee: PublicKey) -> Vec<Hint> {
    let ends = way.iter().skip(1).map(|hop| hop.node_id).chain([payee]);
    let hints = way.iter().zip(ends).map(|(hop, end)| Hint {
        from: hop.node_id.into(),
        to: end.into(),
        short_channel_id: hop.short_channel_id,
        policy: Policy {
            is_disabled: false,
            cltv_expiry_delta: hop.cltv_expiry_delta.0,
            htlc_minimum: Msat::ZERO,
            htlc_maximum: Msat(u64::MAX),
            fee_base_msat: u32::try_from(hop.fee_base.0).unwrap_or(u32::MAX),
            fee_proportional_millionths: hop.fee_proportional_millionths,
        },
    });
    hints.collect()
}

/// The onion of an attempt that carries the whole amount to a peer. The same attempt of the same payment at the same
/// height has the same one.
pub(crate) fn build_attempt(
    goal: &Goal,
    id: PaymentId,
    attempt: u32,
    node_key: &SecretKey,
    height: Option<BlockHeight>,
) -> Result<BuiltAttempt, PayRefusal> {
    let height = height.ok_or_else(height_unknown)?;
    let cltv_expiry = expiry(height, u32::from(goal.final_delta.0))?;
    let hops = [Hop { node_id: goal.payee, payload: goal.payload(goal.amount, cltv_expiry) }];
    let onion = wrap(node_key, id, attempt, &hops, &goal.payment_hash)?;
    Ok(BuiltAttempt { onion, cltv_expiry })
}

/// The onion of an attempt over these hops.
pub(crate) fn build_over(
    goal: &Goal,
    id: PaymentId,
    attempt: u32,
    node_key: &SecretKey,
    hops: &[RouteHop],
) -> Result<Box<OnionPacket>, PayRefusal> {
    let next = hops.iter().skip(1).map(Some).chain([None]);
    let layers: Vec<Hop> = hops
        .iter()
        .zip(next)
        .map(|(hop, next)| {
            let payload = match next {
                Some(RouteHop { scid, amount, cltv_expiry, .. }) => {
                    Payload::Forward(ForwardPayload { next: *scid, amount: *amount, expiry: *cltv_expiry })
                }
                None => goal.payload(hop.amount, hop.cltv_expiry),
            };
            Hop { node_id: hop.node, payload }
        })
        .collect();
    wrap(node_key, id, attempt, &layers, &goal.payment_hash)
}

/// The height at which an HTLC expires so many blocks from here.
pub(crate) fn expiry(height: BlockHeight, blocks: u32) -> Result<CltvExpiry, PayRefusal> {
    let expiry = height.checked_add(blocks).map(|height| CltvExpiry(height.0)).filter(|expiry| expiry.is_height());
    expiry.ok_or_else(|| PayRefusal::Internal(format!("no expiry {blocks} blocks after height {}", height.0)))
}

pub(crate) fn height_unknown() -> PayRefusal {
    let reason = "its height is not known yet".to_owned();
    PayRefusal::NoNewWork(NoNewWork::Chain { reason, is_away: false, heights: None })
}

impl Goal {
    fn payload(&self, amount: Msat, expiry: CltvExpiry) -> Payload {
        Payload::Final(FinalPayload {
            amount,
            expiry,
            total: self.amount,
            payment_secret: self.payment_secret.clone(),
            payment_metadata: self.payment_metadata.clone(),
            keysend_preimage: self.keysend_preimage.clone(),
            custom: Vec::new(),
        })
    }
}

fn wrap(
    node_key: &SecretKey,
    id: PaymentId,
    attempt: u32,
    hops: &[Hop],
    payment_hash: &PaymentHash,
) -> Result<Box<OnionPacket>, PayRefusal> {
    match build(&session_key(node_key, id, attempt), hops, payment_hash) {
        Ok(built) => Ok(built.packet),
        Err(error @ OnionError::TooLong { .. }) => Err(PayRefusal::Channel(error.to_string())),
        Err(error) => Err(PayRefusal::Internal(error.to_string())),
    }
}

/// What the failures of an attempt are read with: nothing but its way needs to be kept for it.
pub(crate) fn secrets_of(node_key: &SecretKey, nodes: &[PublicKey], id: PaymentId, attempt: u32) -> Vec<SharedSecret> {
    shared_secrets(&session_key(node_key, id, attempt), nodes).unwrap_or_default()
}

/// Each attempt has its own key, which nobody else can know, and which is there again after a restart.
fn session_key(node_key: &SecretKey, id: PaymentId, attempt: u32) -> SecretKey {
    let mut engine = HmacEngine::<sha256::Hash>::new(&node_key.secret_bytes());
    engine.input(b"millrace/onion-session/1/");
    engine.input(&id.0);
    engine.input(&attempt.to_be_bytes());
    let bytes = Hmac::from_engine(engine).to_byte_array();
    SecretKey::from_slice(&bytes).expect("fails for one hash value in 2^127, which nobody can choose")
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_routing::invoice::{Description, NewInvoice};
    use millrace_wire::ShortChannelId;
    use secp256k1::SECP256K1;

    use super::*;

    pub(crate) fn key(n: u8) -> SecretKey {
        SecretKey::from_slice(&[n; 32]).unwrap()
    }

    pub(crate) fn node(n: u8) -> PublicKey {
        key(n).public_key(SECP256K1)
    }

    pub(crate) fn rules() -> PayerRules {
        PayerRules {
            network: Network::Regtest,
            node_key: key(1),
            node_id: node(1),
            max_cltv_expiry_blocks: 2016,
            first_pause_ms: 1_000,
        }
    }

    /// An invoice of node 2.
    pub(crate) fn new_invoice(n: u8) -> NewInvoice {
        NewInvoice {
            network: Network::Regtest,
            amount: Some(Msat(21_000)),
            payment_hash: hash(n),
            payment_secret: PaymentSecret::new([n; 32]),
            description: Description::Text("tea".to_owned()),
            timestamp: Duration::from_secs(1_000),
            expiry: Duration::from_secs(3_600),
            min_final_cltv: MIN_FINAL_CLTV,
            basic_mpp: false,
            payment_metadata: None,
            route_hints: Vec::new(),
        }
    }

    pub(crate) fn hash(n: u8) -> PaymentHash {
        Preimage::new([n; 32]).hash()
    }

    pub(crate) fn moment(now: Millis, unix_ms: u64) -> Moment {
        Moment { now, unix_ms, height: Some(BlockHeight(100)) }
    }

    pub(crate) fn request(bolt11: String) -> PayRequest {
        PayRequest { target: Target::Invoice(bolt11), amount: None, key: None, limits: Limits::default() }
    }

    fn prepared(request: PayRequest) -> Result<Prepared, PayRefusal> {
        let (listener, _) = Listener::pair(0, false);
        prepare(request, &rules(), moment(Millis(0), 0), |_| true, listener).map_err(|(refusal, _)| refusal)
    }

    #[test]
    fn a_good_invoice() {
        let prepared = prepared(request(new_invoice(9).sign(&key(2)).unwrap())).unwrap();
        assert_eq!(prepared.plan.goal.amount, Msat(21_000));
        assert_eq!(prepared.plan.goal.payee, node(2));
        assert_eq!(prepared.onion.unwrap().unwrap().cltv_expiry, CltvExpiry(100 + 42 + 3));
        assert_eq!((prepared.plan.fee_limit, prepared.plan.parts_max), (Msat(5_000), 1));
        assert_eq!(prepared.plan.deadline, Millis(60_000));
    }

    #[test]
    fn of_another_network() {
        let invoice = NewInvoice { network: Network::Bitcoin, ..new_invoice(9) }.sign(&key(2)).unwrap();
        let refusal = prepared(request(invoice)).unwrap_err();
        assert_eq!(refusal, PayRefusal::WrongNetwork { expected: Network::Regtest, found: Network::Bitcoin });
    }

    #[test]
    fn of_this_node() {
        let invoice = new_invoice(9).sign(&key(1)).unwrap();
        assert_eq!(prepared(request(invoice)).unwrap_err(), PayRefusal::SelfPayment);
    }

    #[test]
    fn amounts() {
        let fixed = new_invoice(9).sign(&key(2)).unwrap();
        let open = NewInvoice { amount: None, ..new_invoice(9) }.sign(&key(2)).unwrap();
        let ask = |bolt11: &str, amount: Option<u64>| {
            prepared(PayRequest { amount: amount.map(Msat), ..request(bolt11.to_owned()) }).map(|p| p.plan.goal.amount)
        };
        assert_eq!(ask(&fixed, Some(21_000)), Ok(Msat(21_000)));
        let conflict = PayRefusal::AmountConflict { invoice: Msat(21_000), asked: Msat(20_999) };
        assert_eq!(ask(&fixed, Some(20_999)), Err(conflict));
        assert_eq!(ask(&open, None), Err(PayRefusal::AmountMissing));
        assert_eq!(ask(&open, Some(7)), Ok(Msat(7)));
        assert_eq!(ask(&open, Some(0)), Err(PayRefusal::BelowMinimum { amount: Msat(0), minimum: Msat(1) }));
        assert!(matches!(ask(&open, Some(u64::MAX)), Err(PayRefusal::AboveMaximum { .. })));
    }

    #[test]
    fn a_lock_that_is_too_long() {
        let invoice = NewInvoice { min_final_cltv: CltvDelta(2014), ..new_invoice(9) }.sign(&key(2)).unwrap();
        assert_eq!(prepared(request(invoice)).unwrap_err(), PayRefusal::ExpiryTooFar { blocks: 2017, max: 2016 });
    }

    #[test]
    fn text_that_is_no_invoice() {
        for text in ["", "lnbcrt", "lightning:", "\u{1F600}", &"l".repeat(20_000)] {
            assert!(matches!(prepared(request(text.to_owned())), Err(PayRefusal::Invoice(_))), "{text}");
        }
        let mut changed = new_invoice(9).sign(&key(2)).unwrap();
        changed.pop();
        assert!(matches!(prepared(request(changed)), Err(PayRefusal::Invoice(_))));
    }

    #[test]
    fn the_fee_limit_is_the_larger_of_5_sat_and_1_percent_unless_it_is_said() {
        let of = |fee, amount| Limits { fee, ..Limits::default() }.fee_of(Msat(amount));
        assert_eq!(of(None, 500_099), Msat(5_000));
        assert_eq!(of(None, 500_100), Msat(5_001));
        assert_eq!(of(Some(Msat(0)), 500_100), Msat(0));
    }

    #[test]
    fn the_channels_of_a_hint_lead_one_to_another_and_the_last_to_the_payee() {
        let hop = |n: u8| HintHop {
            node_id: node(n),
            short_channel_id: ShortChannelId(n.into()),
            fee_base: Msat(7),
            fee_proportional_millionths: 8,
            cltv_expiry_delta: CltvDelta(9),
        };
        let invoice = NewInvoice { route_hints: vec![vec![hop(5), hop(6)], vec![hop(7)]], ..new_invoice(9) };
        let prepared = prepared(request(invoice.sign(&key(2)).unwrap())).unwrap();
        let ways: Vec<_> = prepared.plan.goal.hints.iter().map(|hint| (hint.from, hint.to)).collect();
        let expected = [(node(5), node(6)), (node(6), node(2)), (node(7), node(2))];
        assert_eq!(ways, expected.map(|(from, to)| (from.into(), to.into())));
        let policy = prepared.plan.goal.hints[0].policy;
        assert_eq!((policy.fee_base_msat, policy.cltv_expiry_delta, policy.htlc_maximum), (7, 9, Msat(u64::MAX)));
    }

    #[test]
    fn without_an_invoice_the_preimage_travels_along_and_each_payment_has_its_own() {
        let to = |payee| PayRequest { target: Target::Node(payee), amount: Some(Msat(5)), ..request(String::new()) };
        let [one, two] = [prepared(to(node(2))).unwrap(), prepared(to(node(2))).unwrap()];
        let goal = &one.plan.goal;
        assert_eq!(goal.keysend_preimage.as_ref().unwrap().hash(), goal.payment_hash);
        assert_ne!(goal.payment_hash, two.plan.goal.payment_hash);
        assert!(!goal.may_be_split && one.bolt11.is_empty());
        assert_eq!(prepared(to(node(1))).unwrap_err(), PayRefusal::SelfPayment);
        let open = PayRequest { amount: None, ..to(node(2)) };
        assert_eq!(prepared(open).unwrap_err(), PayRefusal::AmountMissing);
    }

    #[test]
    fn session_keys_differ_by_payment_and_attempt_and_come_back() {
        let (a, b) = (PaymentId([1; 32]), PaymentId([2; 32]));
        assert_ne!(session_key(&key(1), a, 0), session_key(&key(1), b, 0));
        assert_ne!(session_key(&key(1), a, 0), session_key(&key(1), a, 1));
        assert_eq!(session_key(&key(1), a, 1), session_key(&key(1), a, 1));
    }
}
