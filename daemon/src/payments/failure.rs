//! What a failure that came back means, in words (BOLT 4, "Returning Errors").
//!
//! For now every route has one hop: whatever comes back comes from the payee.

use millrace_channel::ledger::htlc::Removal;
use millrace_routing::SharedSecret;
use millrace_routing::failure::{FailureMessage, code, decode};

use crate::happened::{Failure, FailureReason};

/// Reads how the HTLC of an attempt was removed. A fulfilment is none of its business.
pub(crate) fn read(removal: &Removal, secrets: &[SharedSecret]) -> Option<Failure> {
    match removal {
        Removal::Fulfill { .. } => None,
        Removal::Fail { reason, .. } => Some(match decode(secrets, reason) {
            Ok(decoded) => named(&decoded.message, u32::try_from(decoded.hop + 1).ok()),
            Err(error) => Failure {
                reason: FailureReason::Unreadable,
                message: format!("the answer cannot be read: {error}"),
                code: 0,
                hop: None,
            },
        }),
        Removal::Malformed { sha256_of_onion, failure_code } => {
            Some(named(&FailureMessage::from_malformed(*failure_code, *sha256_of_onion), Some(1)))
        }
    }
}

fn named(message: &FailureMessage, hop: Option<u32>) -> Failure {
    let failure_code = message.code();
    let reason = match failure_code {
        code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS
        | code::FINAL_INCORRECT_CLTV_EXPIRY
        | code::FINAL_INCORRECT_HTLC_AMOUNT
        | code::MPP_TIMEOUT => FailureReason::PayeeRefused,
        code if code & code::PERM == 0 => FailureReason::Temporary,
        _ => FailureReason::Permanent,
    };
    Failure { reason, message: message.to_string(), code: failure_code, hop }
}

/// Whether the same payment may succeed by another channel.
pub(crate) fn may_try_again(failure: &Failure) -> bool {
    matches!(failure.code, code::TEMPORARY_CHANNEL_FAILURE | code::TEMPORARY_NODE_FAILURE)
        || failure.reason == FailureReason::PeerDisconnected
}

#[cfg(test)]
mod tests {
    use millrace_routing::failure::encrypt;
    use millrace_wire::{BlockHeight, Msat};

    use super::*;

    #[test]
    fn a_refusal_of_the_payee_is_named() {
        let secret = SharedSecret::new([7; 32]);
        let message = FailureMessage::IncorrectOrUnknownPaymentDetails { amount: Msat(5), height: BlockHeight(6) };
        let removal = Removal::Fail { reason: encrypt(&secret, &message), attribution: None };
        let failure = read(&removal, std::slice::from_ref(&secret)).expect("it is a failure");
        assert_eq!((failure.reason, failure.code, failure.hop), (FailureReason::PayeeRefused, 0x400f, Some(1)));
        assert!(!may_try_again(&failure));
    }

    #[test]
    fn a_busy_channel_is_tried_again_elsewhere() {
        let secret = SharedSecret::new([7; 32]);
        let message = FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() };
        let removal = Removal::Fail { reason: encrypt(&secret, &message), attribution: None };
        let failure = read(&removal, std::slice::from_ref(&secret)).expect("it is a failure");
        assert_eq!(failure.reason, FailureReason::Temporary);
        assert!(may_try_again(&failure));
    }

    #[test]
    fn noise_and_malformed_onions_are_named() {
        let noise = Removal::Fail { reason: vec![1; 292], attribution: None };
        let failure = read(&noise, &[SharedSecret::new([7; 32])]).expect("it is a failure");
        assert_eq!((failure.reason, failure.hop), (FailureReason::Unreadable, None));
        let malformed = Removal::Malformed { sha256_of_onion: [1; 32], failure_code: code::INVALID_ONION_HMAC };
        let failure = read(&malformed, &[]).expect("it is a failure");
        assert_eq!((failure.reason, failure.code), (FailureReason::Permanent, code::INVALID_ONION_HMAC));
    }
}
