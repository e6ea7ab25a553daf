//! BOLT 8, Appendix A: every transport vector, from the specification's own text; and what the vectors do not try.

use std::collections::BTreeMap;

use millrace_wire::PublicKey;
use millrace_wire::noise::{
    Act, BODY_TAG_BYTES, Decryptor, Encryptor, HandshakeError, Initiator, LENGTH_HEADER_BYTES, Part, Responder,
    Transport, TransportError,
};
use proptest::prelude::*;
use secp256k1::{SECP256K1, SecretKey};

const VECTORS: &str = include_str!("../vectors/bolt08/transport-appendixA.txt");

#[derive(Default)]
struct Case {
    name: String,
    keys: BTreeMap<String, String>,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<String>,
}

impl Case {
    fn secret(&self, name: &str) -> SecretKey {
        SecretKey::from_slice(&unhex(&self.keys[name])).unwrap()
    }
}

fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text.trim_start_matches("0x")).unwrap()
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in VECTORS.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("name: ") {
            cases.push(Case { name: name.to_owned(), ..Case::default() });
        }
        let Some(case) = cases.last_mut() else { continue };
        if let Some(input) = line.strip_prefix("input: ") {
            case.inputs.push(unhex(input));
        } else if let Some(output) = line.strip_prefix("output: ") {
            case.outputs.push(output.to_owned());
        } else if let Some((name, value)) = line.split_once([':', '=']) {
            case.keys.insert(name.to_owned(), value.trim().to_owned());
        }
    }
    cases
}

fn cases_of(side: &str) -> Vec<Case> {
    cases().into_iter().filter(|case| case.name.starts_with(side)).collect()
}

fn expected_error(output: &str) -> HandshakeError {
    let act = match &output["ERROR (".len()..][..4] {
        "ACT1" => Act::One,
        "ACT2" => Act::Two,
        "ACT3" => Act::Three,
        other => panic!("{other}"),
    };
    let needed = if act == Act::Three { 66 } else { 50 };
    match output["ERROR (ACT1_".len()..].trim_end_matches(')') {
        "READ_FAILED" => HandshakeError::Length { act, needed, found: needed - 1 },
        "BAD_VERSION" | "BAD_VERSION 1" => HandshakeError::Version { act, found: 1 },
        "BAD_PUBKEY" => HandshakeError::Key { act },
        "BAD_TAG" => HandshakeError::Mac { act },
        "BAD_CIPHERTEXT" => HandshakeError::Ciphertext,
        other => panic!("{other}"),
    }
}

/// The vectors give keys; a transport shows its keys by what it encrypts.
fn assert_speaks(transport: &mut Transport, sending: &str, receiving: &str) {
    assert_eq!(first_message(&mut transport.encryptor), first_with_key(sending));
    let mut from_peer = first_with_key(receiving);
    assert_eq!(read_one(&mut transport.decryptor, &mut from_peer), b"hello");
}

fn first_message(encryptor: &mut Encryptor) -> Vec<u8> {
    let mut out = Vec::new();
    encryptor.encrypt(b"hello", &mut out).unwrap();
    out
}

/// "hello" as the first message under a key, made without the code under test.
fn first_with_key(key: &str) -> Vec<u8> {
    use chacha20poly1305::aead::{Aead as _, KeyInit as _};
    let cipher = chacha20poly1305::ChaCha20Poly1305::new_from_slice(&unhex(key)).unwrap();
    let mut nonce = [0; 12];
    let mut message = cipher.encrypt(&nonce.into(), &[0, 5][..]).unwrap();
    nonce[4] = 1;
    message.extend(cipher.encrypt(&nonce.into(), &b"hello"[..]).unwrap());
    message
}

fn read_one(decryptor: &mut Decryptor, stream: &mut Vec<u8>) -> Vec<u8> {
    try_read_one(decryptor, stream).unwrap()
}

fn try_read_one(decryptor: &mut Decryptor, stream: &mut Vec<u8>) -> Result<Vec<u8>, TransportError> {
    let header: Vec<u8> = stream.drain(..LENGTH_HEADER_BYTES).collect();
    let len = decryptor.decrypt_length(&header.try_into().unwrap())?;
    let mut body: Vec<u8> = stream.drain(..usize::from(len) + BODY_TAG_BYTES).collect();
    decryptor.decrypt_body(&mut body)?;
    Ok(body)
}

/// `output: sk,rk=0x…,0x…`
fn keys(output: &str, prefix: &str) -> (String, String) {
    let both = output.strip_prefix(prefix).unwrap();
    let (first, second) = both.split_once(",0x").unwrap();
    (first.to_owned(), second.to_owned())
}

#[test]
fn initiator_vectors() {
    let cases = cases_of("transport-initiator");
    assert_eq!(cases.len(), 5);
    for case in cases {
        let remote: PublicKey = case.keys["rs.pub"].trim_start_matches("0x").parse().unwrap();
        let local = case.secret("ls.priv");
        let (initiator, act_one) = Initiator::new(local, remote, case.secret("e.priv"));
        assert_eq!(act_one[..], unhex(&case.outputs[0]), "{}", case.name);
        match initiator.act_two(&case.inputs[0]) {
            Ok((act_three, mut transport)) => {
                assert_eq!(case.outputs.len(), 3, "{}", case.name);
                assert_eq!(act_three[..], unhex(&case.outputs[1]));
                let (sending, receiving) = keys(&case.outputs[2], "sk,rk=0x");
                assert_eq!(transport.remote, remote);
                assert_speaks(&mut transport, &sending, &receiving);
            }
            Err(error) => assert_eq!(error, expected_error(&case.outputs[1]), "{}", case.name),
        }
    }
}

#[test]
fn responder_vectors() {
    let cases = cases_of("transport-responder");
    assert_eq!(cases.len(), 10);
    for case in cases {
        let last = case.outputs.last().unwrap();
        let responder = Responder::new(case.secret("ls.priv"), case.secret("e.priv"));
        let (waiting, act_two) = match responder.act_one(&case.inputs[0]) {
            Ok(next) => next,
            Err(error) => {
                assert_eq!((error, case.outputs.len()), (expected_error(last), 1), "{}", case.name);
                continue;
            }
        };
        assert_eq!(act_two[..], unhex(&case.outputs[0]), "{}", case.name);
        match waiting.act_three(&case.inputs[1]) {
            Ok(mut transport) => {
                let (receiving, sending) = keys(last, "rk,sk=0x");
                let initiator = "034f355bdcb7cc0af728ef3cceb9615d90684bb5b2ca5f859ab0f0b704075871aa";
                assert_eq!(transport.remote.to_string(), initiator);
                assert_speaks(&mut transport, &sending, &receiving);
            }
            Err(error) => assert_eq!(error, expected_error(last), "{}", case.name),
        }
    }
}

fn pair() -> (Transport, Transport) {
    let key = |byte| SecretKey::from_slice(&[byte; 32]).unwrap();
    let responder_id = key(0x21).public_key(SECP256K1);
    let (initiator, act_one) = Initiator::new(key(0x11), responder_id, key(0x12));
    let (waiting, act_two) = Responder::new(key(0x21), key(0x22)).act_one(&act_one).unwrap();
    let (act_three, initiator) = initiator.act_two(&act_two).unwrap();
    (initiator, waiting.act_three(&act_three).unwrap())
}

/// The keys of the vectors' handshake are those of `pair`, so its initiator sends the vectors' messages: two
/// rotations of the key included. The responder reads them all.
#[test]
fn message_vectors_across_two_key_rotations() {
    let case = &cases_of("transport-message")[0];
    let expected: BTreeMap<usize, Vec<u8>> = case
        .keys
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("output ")?.parse().unwrap(), unhex(value))))
        .collect();
    assert_eq!(expected.keys().copied().collect::<Vec<_>>(), [0, 1, 500, 501, 1000, 1001]);

    let (mut initiator, mut responder) = pair();
    for number in 0..=1001 {
        let mut message = first_message(&mut initiator.encryptor);
        if let Some(expected) = expected.get(&number) {
            assert_eq!(&message, expected, "message {number}");
        }
        assert_eq!(read_one(&mut responder.decryptor, &mut message), b"hello");
    }
}

#[test]
fn each_direction_has_its_own_keys_and_counters() {
    let (mut initiator, mut responder) = pair();
    let mut there = first_message(&mut initiator.encryptor);
    let mut back = first_message(&mut responder.encryptor);
    assert_ne!(there, back);
    assert_eq!(read_one(&mut responder.decryptor, &mut there), b"hello");
    assert_eq!(read_one(&mut initiator.decryptor, &mut back), b"hello");
}

#[test]
fn halves_work_on_threads_of_their_own() {
    fn assert_send<T: Send + 'static>(_: &T) {}
    let (initiator, _) = pair();
    let Transport { encryptor, decryptor, .. } = initiator;
    assert_send(&encryptor);
    assert_send(&decryptor);
}

#[test]
fn messages_of_nothing_and_of_the_longest() {
    let (mut initiator, mut responder) = pair();
    for len in [0, 1, 65_535] {
        let plain = vec![0xa5; len];
        let mut wire = vec![7; 3];
        initiator.encryptor.encrypt(&plain, &mut wire).unwrap();
        assert_eq!(wire.len(), 3 + LENGTH_HEADER_BYTES + len + BODY_TAG_BYTES);
        wire.drain(..3);
        assert_eq!(read_one(&mut responder.decryptor, &mut wire), plain);
    }
    let mut wire = vec![7];
    let refused = initiator.encryptor.encrypt(&vec![0; 65_536], &mut wire);
    assert_eq!((refused, wire), (Err(TransportError::TooLong { len: 65_536 }), vec![7]));
    assert_eq!(read_one(&mut responder.decryptor, &mut first_message(&mut initiator.encryptor)), b"hello");
}

#[test]
fn a_message_with_any_bit_changed_kills_the_connection() {
    let (mut sender, _) = pair();
    let genuine = first_message(&mut sender.encryptor);
    for bit in 0..genuine.len() * 8 {
        let (_, mut receiver) = pair();
        let mut changed = genuine.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let part = if bit / 8 < LENGTH_HEADER_BYTES { Part::Length } else { Part::Body };
        let failed = try_read_one(&mut receiver.decryptor, &mut changed);
        assert_eq!(failed, Err(TransportError::Mac { number: 0, part }), "bit {bit}");
        let again = try_read_one(&mut receiver.decryptor, &mut genuine.clone());
        assert_eq!(again, Err(TransportError::Dead), "bit {bit}");
    }
}

#[test]
fn messages_out_of_order_or_twice_are_not_authentic() {
    let (mut sender, mut receiver) = pair();
    let mut first = first_message(&mut sender.encryptor);
    let mut second = first_message(&mut sender.encryptor);
    let mut again = first.clone();
    read_one(&mut receiver.decryptor, &mut first);
    let twice = try_read_one(&mut receiver.decryptor, &mut again);
    assert_eq!(twice, Err(TransportError::Mac { number: 1, part: Part::Length }));
    let (_, mut receiver) = pair();
    let early = try_read_one(&mut receiver.decryptor, &mut second);
    assert_eq!(early, Err(TransportError::Mac { number: 0, part: Part::Length }));
}

#[test]
fn a_caller_that_mixes_up_length_and_body_loses_nothing() {
    let (mut sender, mut receiver) = pair();
    let mut wire = first_message(&mut sender.encryptor);
    let header: [u8; LENGTH_HEADER_BYTES] = *wire.first_chunk().unwrap();
    let decryptor = &mut receiver.decryptor;
    let out_of_turn = |part, expected, found| Err(TransportError::OutOfTurn { number: 0, part, expected, found });
    assert_eq!(decryptor.decrypt_body(&mut vec![0; 21]), out_of_turn(Part::Body, 0, 21));
    assert_eq!(decryptor.decrypt_length(&header), Ok(5));
    let second_length = decryptor.decrypt_length(&header).map(|_| ());
    assert_eq!(second_length, out_of_turn(Part::Length, 0, 18));
    for found in [20, 22] {
        assert_eq!(decryptor.decrypt_body(&mut vec![0; found]), out_of_turn(Part::Body, 21, found));
    }
    let mut body = wire.split_off(LENGTH_HEADER_BYTES);
    assert_eq!(decryptor.decrypt_body(&mut body), Ok(()));
    assert_eq!(body, b"hello");
}

#[test]
fn calling_the_wrong_node_fails_at_act_one() {
    let key = |byte| SecretKey::from_slice(&[byte; 32]).unwrap();
    let someone_else = key(0x55).public_key(SECP256K1);
    let (_, act_one) = Initiator::new(key(0x11), someone_else, key(0x12));
    let refused = Responder::new(key(0x21), key(0x22)).act_one(&act_one).unwrap_err();
    assert_eq!(refused, HandshakeError::Mac { act: Act::One });
    assert_eq!(refused.to_string(), "act one: authentication failed");
}

#[test]
fn an_act_of_any_other_length_is_refused() {
    let key = |byte| SecretKey::from_slice(&[byte; 32]).unwrap();
    for found in (0..200).filter(|len| *len != 50) {
        let refused = Responder::new(key(0x21), key(0x22)).act_one(&vec![0; found]).unwrap_err();
        assert_eq!(refused, HandshakeError::Length { act: Act::One, needed: 50, found });
    }
}

#[test]
fn nothing_secret_shows_in_debug() {
    let key = |byte| SecretKey::from_slice(&[byte; 32]).unwrap();
    let responder = Responder::new(key(0x21), key(0x22));
    let (initiator, act_one) = Initiator::new(key(0x11), key(0x21).public_key(SECP256K1), key(0x12));
    let before = format!("{initiator:?} {responder:?}");
    let (waiting, _) = responder.act_one(&act_one).unwrap();
    let (transport, _) = pair();
    let shown = format!("{before} {waiting:?} {transport:?}");
    for hidden in ["2121", "1111", "1212", "969ab31b", "150, 154"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_messages_arrive_whole_and_in_order(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..40),
    ) {
        let (mut sender, mut receiver) = pair();
        let mut wire = Vec::new();
        for message in &messages {
            sender.encryptor.encrypt(message, &mut wire).unwrap();
        }
        for message in &messages {
            prop_assert_eq!(&read_one(&mut receiver.decryptor, &mut wire), message);
        }
        prop_assert!(wire.is_empty());
    }
}
