//! What a failure that came back means, in words (BOLT 4, "Returning Errors").

use millrace_channel::ledger::htlc::Removal;
use millrace_routing::SharedSecret;
use millrace_routing::failure::{FailureMessage, Undecodable, code, decode_attributed};
use millrace_wire::PublicKey;

use crate::happened::{Failure, FailureReason};

/// A failure as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Read {
    /// What is shown, and written down.
    pub(crate) failure: Failure,
    /// What the hop said; none if nothing can be made out.
    pub(crate) message: Option<FailureMessage>,
    /// Which hop said it, from 0; none if nobody vouches for it.
    pub(crate) hop: Option<usize>,
    /// It is our own peer that could not read the onion (BOLT 2, `update_fail_malformed_htlc`): what it says is of itself.
    /// Where a hop says the same in a failure, it tells of the next one.
    pub(crate) is_malformed: bool,
    /// How long each hop says that it held the HTLC, in milliseconds.
    pub(crate) held_ms: Vec<u32>,
}

impl Read {
    /// A failure of this node's own.
    pub(crate) const fn here(failure: Failure) -> Self {
        Self { failure, message: None, hop: None, is_malformed: false, held_ms: Vec::new() }
    }
}

/// Reads how the HTLC of an attempt over these nodes was removed. A fulfilment is none of its business.
pub(crate) fn read(removal: &Removal, secrets: &[SharedSecret], nodes: &[PublicKey]) -> Option<Read> {
    match removal {
        Removal::Fulfill { .. } => None,
        Removal::Fail { reason, attribution } => {
            let attributed = decode_attributed(secrets, reason, attribution.as_deref());
            let held = attributed.hold_times.hops.iter().map(|held| held.0.saturating_mul(100)).collect();
            Some(match attributed.failure {
                Ok(decoded) => Read { held_ms: held, ..named(decoded.message, decoded.hop, nodes) },
                Err(error) => Read { held_ms: held, ..unreadable(error) },
            })
        }
        Removal::Malformed { sha256_of_onion, failure_code } => {
            let message = FailureMessage::from_malformed(*failure_code, *sha256_of_onion);
            Some(Read { is_malformed: true, ..named(message, 0, nodes) })
        }
    }
}

fn unreadable(error: Undecodable) -> Read {
    let hop = match error {
        Undecodable::Nobodys { .. } => None,
        Undecodable::Garbage { hop, .. } => Some(hop),
    };
    let failure = Failure {
        reason: FailureReason::Unreadable,
        message: format!("the answer cannot be read: {error}"),
        code: 0,
        hop: hop.and_then(number),
    };
    Read { failure, message: None, hop, is_malformed: false, held_ms: Vec::new() }
}

fn named(message: FailureMessage, hop: usize, nodes: &[PublicKey]) -> Read {
    let failure_code = message.code();
    let is_payee = hop + 1 >= nodes.len();
    let reason = match failure_code {
        code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS
        | code::FINAL_INCORRECT_CLTV_EXPIRY
        | code::FINAL_INCORRECT_HTLC_AMOUNT
        | code::MPP_TIMEOUT
            if is_payee =>
        {
            FailureReason::PayeeRefused
        }
        code if code & code::PERM == 0 => FailureReason::Temporary,
        _ => FailureReason::Permanent,
    };
    let words = match nodes.get(hop) {
        Some(node) if nodes.len() > 1 => {
            let (place, hops, name) = (hop + 1, nodes.len(), code::name(failure_code));
            format!("hop {place} of {hops}, {node}, says {name}: {message}")
        }
        Some(_) | None => message.to_string(),
    };
    let failure = Failure { reason, message: words, code: failure_code, hop: number(hop) };
    Read { failure, message: Some(message), hop: Some(hop), is_malformed: false, held_ms: Vec::new() }
}

/// As it is shown: 0 is this node.
fn number(hop: usize) -> Option<u32> {
    u32::try_from(hop + 1).ok()
}

#[cfg(test)]
mod tests {
    use millrace_routing::failure::{HoldTime, encrypt, fail, pass_back, wrap};
    use millrace_wire::{BlockHeight, Msat};

    use super::super::prepare::tests::node;
    use super::*;

    fn told(removal: &Removal, secrets: &[SharedSecret], nodes: &[PublicKey]) -> Read {
        read(removal, secrets, nodes).expect("it is a failure")
    }

    #[test]
    fn a_refusal_of_the_payee_is_named() {
        let secret = SharedSecret::new([7; 32]);
        let message = FailureMessage::IncorrectOrUnknownPaymentDetails { amount: Msat(5), height: BlockHeight(6) };
        let removal = Removal::Fail { reason: encrypt(&secret, &message), attribution: None };
        let Read { failure, .. } = told(&removal, std::slice::from_ref(&secret), &[node(2)]);
        assert_eq!((failure.reason, failure.code, failure.hop), (FailureReason::PayeeRefused, 0x400f, Some(1)));
        assert_eq!(failure.message, message.to_string());
    }

    #[test]
    fn the_hop_on_the_way_is_named_and_no_hop_but_the_payee_can_refuse_for_the_payee() {
        let secrets = [SharedSecret::new([7; 32]), SharedSecret::new([8; 32]), SharedSecret::new([9; 32])];
        let nodes = [node(2), node(3), node(4)];
        let message = FailureMessage::IncorrectOrUnknownPaymentDetails { amount: Msat(5), height: BlockHeight(6) };
        let reason = wrap(&secrets[0], encrypt(&secrets[1], &message));
        let Read { failure, hop, .. } = told(&Removal::Fail { reason, attribution: None }, &secrets, &nodes);
        assert_eq!((failure.reason, failure.hop, hop), (FailureReason::Permanent, Some(2), Some(1)));
        assert!(failure.message.contains(&node(3).to_string()), "{}", failure.message);
        assert!(failure.message.contains("incorrect_or_unknown_payment_details"), "{}", failure.message);
    }

    #[test]
    fn hold_times_are_read_if_they_are_there() {
        let secrets = [SharedSecret::new([7; 32]), SharedSecret::new([8; 32])];
        let failed = fail(&secrets[1], &FailureMessage::TemporaryNodeFailure, HoldTime(3));
        let back = pass_back(&secrets[0], failed.reason, Some(&failed.attribution), HoldTime(5));
        let removal = Removal::Fail { reason: back.reason, attribution: Some(back.attribution) };
        assert_eq!(told(&removal, &secrets, &[node(2), node(3)]).held_ms, [500, 300]);
    }

    #[test]
    fn noise_and_malformed_onions_are_named() {
        let noise = Removal::Fail { reason: vec![1; 292], attribution: None };
        let Read { failure, .. } = told(&noise, &[SharedSecret::new([7; 32])], &[node(2)]);
        assert_eq!((failure.reason, failure.hop), (FailureReason::Unreadable, None));
        let malformed = Removal::Malformed { sha256_of_onion: [1; 32], failure_code: code::INVALID_ONION_HMAC };
        let Read { failure, is_malformed, .. } = told(&malformed, &[], &[node(2)]);
        assert_eq!((failure.reason, failure.code), (FailureReason::Permanent, code::INVALID_ONION_HMAC));
        assert!(is_malformed);
        // In a failure, it is what the first hop says of the second.
        let secret = SharedSecret::new([7; 32]);
        let passed_on = FailureMessage::InvalidOnionHmac { sha256_of_onion: [1; 32] };
        let removal = Removal::Fail { reason: encrypt(&secret, &passed_on), attribution: None };
        assert!(!told(&removal, &[secret], &[node(2)]).is_malformed);
    }
}
