//! A payment before anybody is asked: the invoice read once, held against the request, its onion built.
//!
//! All curve work of a payment is here, away from the task that decides: one recovery of the payee's key, one onion. The
//! route is one hop long, so the onion does not depend on the channel.

use std::time::{Duration, Instant};

use bitcoin::Network;
use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use millrace_channel::Millis;
use millrace_routing::SharedSecret;
use millrace_routing::invoice::Invoice;
use millrace_routing::onion::{FinalPayload, Hop, OnionError, Payload, build, shared_secrets};
use millrace_wire::{BlockHeight, CltvDelta, CltvExpiry, Msat, OnionPacket, PublicKey};
use secp256k1::SecretKey;

use super::listener::Listener;
use super::refusal::PayRefusal;
use crate::channels::NoNewWork;
use crate::happened::PaymentId;
use crate::idempotency::{KeyHash, RequestHash};

/// Blocks that may come between our view of the chain and the payee's: it must still find its
/// `min_final_cltv_expiry_delta`.
const EXPIRY_PADDING: CltvDelta = CltvDelta(3);
/// After this long no further attempt is begun, unless the request says otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PayRequest {
    /// The invoice as text.
    pub bolt11: String,
    /// For invoices that leave it open; must agree with one that does not.
    pub amount: Option<Msat>,
    /// The key and what it stands for, if the client gave one.
    pub key: Option<PayKey>,
    /// After this long no further attempt is begun.
    pub timeout: Duration,
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
}

/// What attempts are made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) invoice: Invoice,
    pub(crate) begun: Instant,
    pub(crate) deadline: Millis,
}

/// A payment that could be tried.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) id: PaymentId,
    pub(crate) bolt11: String,
    pub(crate) amount: Msat,
    pub(crate) key: Option<PayKey>,
    pub(crate) plan: Plan,
    /// Of the first attempt.
    pub(crate) onion: Result<BuiltAttempt, PayRefusal>,
    pub(crate) listener: Listener,
}

/// An onion and the expiry that it speaks of.
#[derive(Clone, Debug)]
pub(crate) struct BuiltAttempt {
    pub(crate) onion: Box<OnionPacket>,
    pub(crate) cltv_expiry: CltvExpiry,
}

/// Reads the invoice and builds the onion.
///
/// What a repeated call must not be refused for, since it may get the result of the first (the invoice has expired
/// meanwhile), is left to whoever knows the payments.
pub(crate) fn prepare(
    request: PayRequest,
    rules: &PayerRules,
    now: Millis,
    height: Option<BlockHeight>,
    listener: Listener,
) -> Result<Prepared, (PayRefusal, Listener)> {
    match check(&request, rules) {
        Ok((invoice, amount)) => {
            let id = PaymentId(crate::channels::random());
            let timeout_ms = u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX);
            let plan = Plan { invoice, begun: Instant::now(), deadline: now.plus(timeout_ms) };
            let onion = build_attempt(&plan.invoice, amount, id, 0, rules, height);
            Ok(Prepared { id, bolt11: request.bolt11, amount, key: request.key, plan, onion, listener })
        }
        Err(refusal) => Err((refusal, listener)),
    }
}

fn check(request: &PayRequest, rules: &PayerRules) -> Result<(Invoice, Msat), PayRefusal> {
    let invoice = Invoice::parse(&request.bolt11)?;
    if !invoice.is_for(rules.network) {
        return Err(PayRefusal::WrongNetwork { expected: rules.network, found: invoice.network });
    }
    if invoice.payee == rules.node_id {
        return Err(PayRefusal::SelfPayment);
    }
    let amount = match (invoice.amount, request.amount) {
        (None, None) => return Err(PayRefusal::AmountMissing),
        (Some(invoice), Some(asked)) if invoice != asked => {
            return Err(PayRefusal::AmountConflict { invoice, asked });
        }
        (Some(amount), _) | (None, Some(amount)) => amount,
    };
    if amount == Msat::ZERO {
        return Err(PayRefusal::BelowMinimum { amount, minimum: Msat(1) });
    }
    if !amount.is_money() {
        return Err(PayRefusal::AboveMaximum { amount, maximum: Msat::MAX_MONEY });
    }
    let blocks = u32::from(invoice.min_final_cltv.0) + u32::from(EXPIRY_PADDING.0);
    let max = u32::from(rules.max_cltv_expiry_blocks);
    if blocks > max {
        return Err(PayRefusal::ExpiryTooFar { blocks, max });
    }
    Ok((invoice, amount))
}

/// The onion of an attempt. The same attempt of the same payment at the same height has the same one.
pub(crate) fn build_attempt(
    invoice: &Invoice,
    amount: Msat,
    id: PaymentId,
    attempt: u32,
    rules: &PayerRules,
    height: Option<BlockHeight>,
) -> Result<BuiltAttempt, PayRefusal> {
    let unknown = || {
        PayRefusal::NoNewWork(NoNewWork::Chain {
            reason: "its height is not known yet".to_owned(),
            is_away: false,
            heights: None,
        })
    };
    let height = height.ok_or_else(unknown)?;
    let delta = invoice.min_final_cltv.checked_add(EXPIRY_PADDING);
    let expiry = delta.and_then(|delta| height.expiry_after(delta)).filter(|expiry| expiry.is_height());
    let cltv_expiry = expiry.ok_or_else(|| PayRefusal::Internal(format!("no expiry after height {}", height.0)))?;
    let metadata = invoice.payment_metadata.clone();
    let payload = FinalPayload::new(amount, cltv_expiry, invoice.payment_secret.clone(), metadata);
    let hops = [Hop { node_id: invoice.payee, payload: Payload::Final(payload) }];
    let built = build(&session_key(&rules.node_key, id, attempt), &hops, &invoice.payment_hash);
    match built {
        Ok(built) => Ok(BuiltAttempt { onion: built.packet, cltv_expiry }),
        Err(error @ OnionError::TooLong { .. }) => Err(PayRefusal::Channel(error.to_string())),
        Err(error) => Err(PayRefusal::Internal(error.to_string())),
    }
}

/// What the payee's failures of an attempt are read with: nothing needs to be kept for it.
pub(crate) fn secrets_of(node_key: &SecretKey, payee: PublicKey, id: PaymentId, attempt: u32) -> Vec<SharedSecret> {
    shared_secrets(&session_key(node_key, id, attempt), &[payee]).unwrap_or_default()
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
    use millrace_routing::invoice::{Description, MIN_FINAL_CLTV, NewInvoice};
    use millrace_wire::{PaymentHash, PaymentSecret, Preimage};
    use secp256k1::SECP256K1;

    use super::*;

    pub(crate) fn key(n: u8) -> SecretKey {
        SecretKey::from_slice(&[n; 32]).unwrap()
    }

    pub(crate) fn node(n: u8) -> PublicKey {
        key(n).public_key(SECP256K1)
    }

    pub(crate) fn rules() -> PayerRules {
        PayerRules { network: Network::Regtest, node_key: key(1), node_id: node(1), max_cltv_expiry_blocks: 2016 }
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

    pub(crate) fn request(bolt11: String) -> PayRequest {
        PayRequest { bolt11, amount: None, key: None, timeout: TIMEOUT_DEFAULT }
    }

    fn prepared(request: PayRequest) -> Result<Prepared, PayRefusal> {
        let (listener, _) = Listener::pair(0, false);
        prepare(request, &rules(), Millis(0), Some(BlockHeight(100)), listener).map_err(|(refusal, _)| refusal)
    }

    #[test]
    fn a_good_invoice() {
        let prepared = prepared(request(new_invoice(9).sign(&key(2)).unwrap())).unwrap();
        assert_eq!(prepared.amount, Msat(21_000));
        assert_eq!(prepared.plan.invoice.payee, node(2));
        assert_eq!(prepared.onion.unwrap().cltv_expiry, CltvExpiry(100 + 42 + 3));
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
            prepared(PayRequest { amount: amount.map(Msat), ..request(bolt11.to_owned()) }).map(|p| p.amount)
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
    fn session_keys_differ_by_payment_and_attempt_and_come_back() {
        let (a, b) = (PaymentId([1; 32]), PaymentId([2; 32]));
        assert_ne!(session_key(&key(1), a, 0), session_key(&key(1), b, 0));
        assert_ne!(session_key(&key(1), a, 0), session_key(&key(1), a, 1));
        assert_eq!(session_key(&key(1), a, 1), session_key(&key(1), a, 1));
    }
}
