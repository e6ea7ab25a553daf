//! What the fuzzer runs. The ordinary test suite runs the same functions over the committed corpus and over random input.

use millrace_wire::noise::{
    BODY_TAG_BYTES, Decryptor, Initiator, LENGTH_HEADER_BYTES, Responder, ResponderWaiting, Transport,
};
use millrace_wire::{Decoded, EncodeError, Message};
use secp256k1::{SECP256K1, SecretKey};

/// Any bytes as a message: no panic, and what is understood survives being written and read again.
pub(crate) fn message(data: &[u8]) {
    let Ok(Decoded::Message(message)) = Message::decode_with(data, |_| true) else {
        return;
    };
    let _ = (format!("{message:?}"), message.channel_id(), message.name());
    let mut again = Vec::new();
    match message.encode(&mut again) {
        Ok(()) => {
            let read = Message::decode_with(&again, |_| true);
            assert_eq!(read, Ok(Decoded::Message(message)), "changed on its way");
        }
        // Its feature bits below 14 are written twice, which may not fit any more.
        Err(EncodeError::TooLong { message: "init", .. }) if data.len() > 65_500 => {}
        Err(refused) => panic!("understood, but not to be written: {refused}"),
    }
}

/// The first byte chooses what the others are: an act, a stream of messages from the peer, or a message to send.
pub(crate) fn handshake(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 5 {
        0 => act_one(rest),
        1 => act_two(rest),
        2 => act_three(rest),
        3 => stream(rest),
        _ => round_trip(rest),
    }
}

fn key(byte: u8) -> SecretKey {
    SecretKey::from_slice(&[byte; 32]).expect("below the group's order")
}

fn initiator() -> (Initiator, [u8; 50]) {
    Initiator::new(key(0x11), key(0x21).public_key(SECP256K1), key(0x12))
}

fn responder() -> Responder {
    Responder::new(key(0x21), key(0x22))
}

fn waiting() -> (ResponderWaiting, [u8; 50]) {
    responder().act_one(&initiator().1).expect("genuine")
}

/// Acts one, two and three of one handshake, and what both sides have then.
pub(crate) fn genuine() -> ([u8; 50], [u8; 50], [u8; 66], Transport, Transport) {
    let (initiator, one) = initiator();
    let (waiting, two) = waiting();
    let (three, from) = initiator.act_two(&two).expect("genuine");
    let to = waiting.act_three(&three).expect("genuine");
    (one, two, three, from, to)
}

/// Anyone who knows our key can make an act one of its own, so nothing is said of what is accepted but its length.
fn act_one(bytes: &[u8]) {
    if responder().act_one(bytes).is_ok() {
        assert_eq!(bytes.len(), 50);
    }
}

/// Only the node that was called can answer: of the bytes a fuzzer finds, the genuine ones.
fn act_two(bytes: &[u8]) {
    let accepted = initiator().0.act_two(bytes).is_ok();
    assert_eq!(accepted, bytes == waiting().1, "{bytes:02x?}");
}

fn act_three(bytes: &[u8]) {
    let accepted = waiting().0.act_three(bytes).is_ok();
    assert_eq!(accepted, bytes == genuine().2, "{bytes:02x?}");
}

/// The stream of a peer that holds the keys: it sent two messages and nothing else is accepted.
fn stream(bytes: &[u8]) {
    let (_, _, _, mut from, mut to) = genuine();
    let mut sent = Vec::new();
    for message in GENUINE_MESSAGES {
        from.encryptor.encrypt(message, &mut sent).expect("short");
    }
    let (mut rest, mut position) = (bytes, 0);
    while let Some((taken, message)) = next(&mut to.decryptor, rest) {
        assert_eq!(rest[..taken], sent[position..position + taken]);
        assert!(GENUINE_MESSAGES.contains(&&message[..]));
        position += taken;
        rest = &rest[taken..];
    }
}

/// What the peer in `stream` sends.
pub(crate) const GENUINE_MESSAGES: [&[u8]; 2] = [b"hello", &[0x5a; 300]];

fn next(decryptor: &mut Decryptor, bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (header, rest) = bytes.split_first_chunk::<LENGTH_HEADER_BYTES>()?;
    let len = usize::from(decryptor.decrypt_length(header).ok()?) + BODY_TAG_BYTES;
    let mut body = rest.get(..len)?.to_vec();
    decryptor.decrypt_body(&mut body).ok()?;
    Some((LENGTH_HEADER_BYTES + len, body))
}

fn round_trip(message: &[u8]) {
    let (_, _, _, mut from, mut to) = genuine();
    let mut wire = Vec::new();
    let sent = from.encryptor.encrypt(message, &mut wire);
    assert_eq!(sent.is_ok(), message.len() <= 65_535);
    if sent.is_ok() {
        let taken = wire.len();
        assert_eq!(next(&mut to.decryptor, &wire), Some((taken, message.to_vec())));
    }
}
