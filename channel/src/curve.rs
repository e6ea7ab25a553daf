//! Signing and verifying in batches: the one argument through which curve work leaves the core.
//!
//! The core says what is to be signed or checked; [`Curve`] does it. [`Serial`] does one after the other; a
//! caller with threads spreads the same jobs over its cores. ECDSA on secp256k1 with RFC 6979 nonces and
//! without grinding for low R, which would double the cost.

use core::fmt;

use secp256k1::ecdsa::Signature;
use secp256k1::{Message, PublicKey, SECP256K1, SecretKey};

/// One signature to be made.
#[derive(Clone)]
pub struct SignJob {
    /// The sighash.
    pub digest: [u8; 32],
    /// The key to sign it with.
    pub key: SecretKey,
}

impl fmt::Debug for SignJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignJob").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// One signature to be checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyJob {
    /// The sighash.
    pub digest: [u8; 32],
    /// The key that should have signed it.
    pub key: PublicKey,
    /// The signature.
    pub signature: Signature,
}

/// Whatever makes and checks signatures. The results never depend on how it is done.
pub trait Curve {
    /// Appends to `out` one signature for each job, in the order of the jobs.
    fn sign_all(&self, jobs: &[SignJob], out: &mut Vec<Signature>);

    /// Checks all jobs.
    ///
    /// # Errors
    /// The index of the first job, in the order given, whose signature is not valid or not low-S.
    fn verify_all(&self, jobs: &[VerifyJob]) -> Result<(), usize>;
}

/// One job after the other on the calling thread.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Serial;

impl Curve for Serial {
    fn sign_all(&self, jobs: &[SignJob], out: &mut Vec<Signature>) {
        out.extend(jobs.iter().map(|job| sign(&job.digest, &job.key)));
    }

    fn verify_all(&self, jobs: &[VerifyJob]) -> Result<(), usize> {
        match jobs.iter().position(|job| !is_valid(job)) {
            Some(bad) => Err(bad),
            None => Ok(()),
        }
    }
}

/// One signature, low-S, with the RFC 6979 nonce.
#[must_use]
pub fn sign(digest: &[u8; 32], key: &SecretKey) -> Signature {
    SECP256K1.sign_ecdsa(&Message::from_digest(*digest), key)
}

/// Whether one signature is valid, low-S included (without which no transaction would be relayed).
#[must_use]
pub fn is_valid(job: &VerifyJob) -> bool {
    SECP256K1.verify_ecdsa(&Message::from_digest(job.digest), &job.signature, &job.key).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn jobs(count: u8) -> Vec<SignJob> {
        (1..=count)
            .map(|n| SignJob { digest: [n; 32], key: SecretKey::from_slice(&[n.wrapping_add(100); 32]).unwrap() })
            .collect()
    }

    fn checks(jobs: &[SignJob], signatures: &[Signature]) -> Vec<VerifyJob> {
        jobs.iter()
            .zip(signatures)
            .map(|(job, signature)| VerifyJob {
                digest: job.digest,
                key: job.key.public_key(SECP256K1),
                signature: *signature,
            })
            .collect()
    }

    fn sign_with(curve: &impl Curve, jobs: &[SignJob]) -> Vec<Signature> {
        let mut out = Vec::new();
        curve.sign_all(jobs, &mut out);
        out
    }

    #[test]
    fn signatures_come_in_the_order_of_the_jobs_after_what_was_there() {
        let jobs = jobs(5);
        let signatures = sign_with(&Serial, &jobs);
        assert_eq!(Serial.verify_all(&checks(&jobs, &signatures)), Ok(()));
        let mut out = vec![signatures[4]];
        Serial.sign_all(&jobs[..1], &mut out);
        assert_eq!(out, [signatures[4], signatures[0]]);
        assert_eq!(Serial.verify_all(&[]), Ok(()));
    }

    #[test]
    fn the_first_bad_signature_is_named() {
        let jobs = jobs(6);
        let mut checks = checks(&jobs, &sign_with(&Serial, &jobs));
        checks[5].digest[0] ^= 1;
        assert_eq!(Serial.verify_all(&checks), Err(5));
        checks[2].key = checks[3].key;
        assert_eq!(Serial.verify_all(&checks), Err(2));
    }

    #[test]
    fn a_high_s_signature_is_not_valid() {
        let jobs = jobs(1);
        let mut checks = checks(&jobs, &sign_with(&Serial, &jobs));
        let mut compact = checks[0].signature.serialize_compact();
        let s = SecretKey::from_slice(&compact[32..]).unwrap().negate();
        compact[32..].copy_from_slice(&s.secret_bytes());
        checks[0].signature = Signature::from_compact(&compact).unwrap();
        assert_eq!(Serial.verify_all(&checks), Err(0));
        checks[0].signature.normalize_s();
        assert_eq!(Serial.verify_all(&checks), Ok(()));
    }

    #[test]
    fn jobs_cross_threads_and_show_no_key() {
        fn assert_send<T: Send + Sync>() {}
        assert_send::<SignJob>();
        assert_send::<VerifyJob>();
        let shown = format!("{:?}", jobs(1)[0]);
        assert!(!shown.contains("101") && shown.contains("digest"), "{shown}");
    }

    #[test]
    fn nonces_are_not_ground_for_low_r() {
        let signatures = sign_with(&Serial, &jobs(100));
        let high = signatures.iter().filter(|s| s.serialize_compact()[0] >= 0x80).count();
        assert!((20..80).contains(&high), "{high} of 100 with a high R");
    }
}
