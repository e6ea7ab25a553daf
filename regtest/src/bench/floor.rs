//! What the cores can sign: the costs below which no payment can be, measured now on this machine.

use std::time::Instant;

use secp256k1::ecdh::SharedSecret;
use secp256k1::{Message, PublicKey, SECP256K1, SecretKey};

/// Repetitions of each measurement.
const TIMES: u32 = 2_000;

/// The time of one operation, in µs.
fn micros<T>(mut operation: impl FnMut() -> T) -> f64 {
    let begun = Instant::now();
    for _ in 0..TIMES {
        std::hint::black_box(operation());
    }
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES)
}

/// Payments per second that this machine's cores could do if a payment were nothing but its curve operations: 2 HTLC
/// signatures, 2 verifications, one onion layer built (a public key and an ECDH) and one peeled (an ECDH).
#[must_use]
pub fn payments_per_second() -> f64 {
    let key = SecretKey::from_slice(&[7; 32]).expect("not zero, and below the order");
    let public = PublicKey::from_secret_key(SECP256K1, &key);
    let message = Message::from_digest([9; 32]);
    let signature = SECP256K1.sign_ecdsa(&message, &key);
    let sign = micros(|| SECP256K1.sign_ecdsa(&message, &key));
    let verify = micros(|| SECP256K1.verify_ecdsa(&message, &signature, &public));
    let ecdh = micros(|| SharedSecret::new(&public, &key));
    let point = micros(|| PublicKey::from_secret_key(SECP256K1, &key));
    let payment = 2.0 * sign + 2.0 * verify + point + 2.0 * ecdh;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores as f64 * 1e6 / payment
}
