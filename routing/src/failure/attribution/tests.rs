#![allow(clippy::unwrap_used)]

use millrace_wire::{BlockHeight, Msat};
use proptest::prelude::*;

use super::*;

const VECTOR: &str = include_str!("../../../tests/vectors/errors-and-attribution-data.txt");

/// All values of a name, in the file's order.
fn values(text: &str, name: &str) -> Vec<Vec<u8>> {
    let prefix = format!("{name} = ");
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix(&prefix));
    lines.map(|value| hex::decode(value.trim()).unwrap()).collect()
}

/// What stands behind `name` for node 4, 3, … 0: on the same line or on the next.
fn for_nodes(text: &str, name: &str) -> Vec<Vec<u8>> {
    let of = |node: usize| {
        let after = text.split_once(&format!("{name} for node {node}:")).unwrap().1;
        hex::decode(after.split_whitespace().next().unwrap()).unwrap()
    };
    (0..5).rev().map(of).collect()
}

/// The file's part on failures, and that on success.
fn parts() -> (&'static str, &'static str) {
    VECTOR.split_once("## Returning success").unwrap()
}

/// Of the vector's route, first hop first.
fn secrets() -> Vec<SharedSecret> {
    let mut secrets: Vec<_> = values(parts().0, "shared_secret").into_iter().skip(1).collect();
    secrets.reverse();
    assert_eq!(secrets.len(), 5);
    secrets.into_iter().map(|bytes| SharedSecret::new(bytes.try_into().unwrap())).collect()
}

fn some_secrets(count: u8) -> Vec<SharedSecret> {
    (1..=count).map(|byte| SharedSecret::new([byte; 32])).collect()
}

fn bytes(attribution: &AttributionData) -> Vec<u8> {
    [&attribution.hold_times[..], &attribution.hmacs[..]].concat()
}

/// The vector's times: its bytes have 1 at the last node and 5 at the first, though its heading has them the other
/// way round.
fn held_in_vector(index: usize) -> HoldTime {
    HoldTime(5 - u32::try_from(index).unwrap())
}

fn times_in_vector() -> HoldTimes {
    HoldTimes { hops: (0..5).map(held_in_vector).collect(), broken_at: None }
}

/// The hop at `index` of a route holds for one unit more than its index.
fn held(index: usize) -> HoldTime {
    HoldTime(u32::try_from(index).unwrap() + 1)
}

fn times(count: usize) -> Vec<HoldTime> {
    (0..count).map(held).collect()
}

fn message() -> FailureMessage {
    FailureMessage::IncorrectOrUnknownPaymentDetails { amount: Msat(100), height: BlockHeight(800_000) }
}

/// The failure of the hop `from`, passed back by all before it.
fn sent_back(secrets: &[SharedSecret], from: usize) -> Failure {
    let failure = fail(&secrets[from], &message(), held(from));
    (0..from)
        .rev()
        .fold(failure, |failure, hop| pass_back(&secrets[hop], failure.reason, Some(&failure.attribution), held(hop)))
}

fn fulfilled(secrets: &[SharedSecret]) -> Box<AttributionData> {
    let hops = (0..secrets.len()).rev();
    hops.fold(None, |downstream: Option<Box<AttributionData>>, hop| {
        Some(fulfill(&secrets[hop], downstream.as_deref(), held(hop)))
    })
    .unwrap()
}

#[test]
fn failures_of_the_vector_byte_for_byte() {
    let secrets = secrets();
    // The vector pads to 1024 bytes, and counts length and padding of its own to the message.
    let padded = values(parts().0, "encoded_failure_message").remove(0);
    let raw = authenticate(&secrets[4], &padded[..0x140], 1024);
    assert_eq!(raw, values(parts().0, "raw_error_packet").remove(0));

    let packets = for_nodes(parts().0, "error packet");
    let attributions = for_nodes(parts().0, "attribution data");
    let mut failure = finish(&secrets[4], raw, blank(), held_in_vector(4));
    for (step, hop) in (0..5).rev().enumerate() {
        if hop < 4 {
            failure = pass_back(&secrets[hop], failure.reason, Some(&failure.attribution), held_in_vector(hop));
        }
        assert_eq!(failure.reason, packets[step], "node {hop}");
        assert_eq!(bytes(&failure.attribution), attributions[step], "node {hop}");
    }
    let decoded = decode_attributed(&secrets, &failure.reason, Some(&failure.attribution));
    assert_eq!(decoded.failure, Ok(Decoded { hop: 4, message: message() }));
    assert_eq!(decoded.hold_times, times_in_vector());
}

#[test]
fn success_of_the_vector_byte_for_byte() {
    let secrets = secrets();
    let expected = for_nodes(parts().1, "attribution data");
    let mut attribution = None;
    for (step, hop) in (0..5).rev().enumerate() {
        let next = fulfill(&secrets[hop], attribution.as_deref(), held_in_vector(hop));
        assert_eq!(bytes(&next), expected[step], "node {hop}");
        attribution = Some(next);
    }
    assert_eq!(hold_times(&secrets, &attribution.unwrap()), times_in_vector());
}

#[test]
fn every_hop_of_every_route_is_attributed() {
    for hops in 1..=20 {
        let secrets = some_secrets(hops);
        let count = usize::from(hops);
        for from in 0..count {
            let failure = sent_back(&secrets, from);
            let decoded = decode_attributed(&secrets, &failure.reason, Some(&failure.attribution));
            assert_eq!(decoded.failure, Ok(Decoded { hop: from, message: message() }));
            assert_eq!(decoded.hold_times, HoldTimes { hops: times(from + 1), broken_at: None }, "{from} of {hops}");
        }
        let read = hold_times(&secrets, &fulfilled(&secrets));
        assert_eq!(read, HoldTimes { hops: times(count), broken_at: None });
    }
}

#[test]
fn longer_routes_decode_without_attribution() {
    let secrets = some_secrets(27);
    let failure = sent_back(&secrets, 26);
    let decoded = decode_attributed(&secrets, &failure.reason, Some(&failure.attribution));
    assert_eq!(decoded.failure, Ok(Decoded { hop: 26, message: message() }));
    assert_eq!(decoded.hold_times.broken_at, Some(0));
}

#[test]
fn the_hop_after_a_garbling_one_is_named() {
    let secrets = some_secrets(6);
    for garbling in 0..5 {
        let next = garbling + 1;
        let mut failure = fail(&secrets[5], &message(), held(5));
        for hop in (0..5).rev() {
            if hop == garbling {
                failure.reason[40] ^= 1;
            }
            failure = pass_back(&secrets[hop], failure.reason, Some(&failure.attribution), held(hop));
        }
        let decoded = decode_attributed(&secrets, &failure.reason, Some(&failure.attribution));
        assert_eq!(decoded.failure, Err(Undecodable::Nobodys { hops: 6, bytes: 292 }));
        assert_eq!(decoded.hold_times, HoldTimes { hops: times(next), broken_at: Some(next) });
    }
}

#[test]
fn a_hop_without_attribution_ends_it_and_the_failure_still_decodes() {
    let secrets = some_secrets(4);
    let failure = fail(&secrets[3], &message(), held(3));
    let failure = pass_back(&secrets[2], failure.reason, Some(&failure.attribution), held(2));
    let reason = wrap(&secrets[1], failure.reason);
    let failure = pass_back(&secrets[0], reason, None, held(0));
    let decoded = decode_attributed(&secrets, &failure.reason, Some(&failure.attribution));
    assert_eq!(decoded.failure, Ok(Decoded { hop: 3, message: message() }));
    assert_eq!(decoded.hold_times, HoldTimes { hops: times(1), broken_at: Some(1) });

    let decoded = decode_attributed(&secrets, &failure.reason, None);
    assert_eq!(decoded.failure, Ok(Decoded { hop: 3, message: message() }));
    assert_eq!(decoded.hold_times, HoldTimes::default());
}

#[test]
fn hold_times_count_in_tenths_of_a_second() {
    assert_eq!(HoldTime::floor(Duration::from_millis(99)), HoldTime(0));
    assert_eq!(HoldTime::floor(Duration::from_millis(1250)), HoldTime(12));
    assert_eq!(HoldTime::floor(Duration::MAX), HoldTime(u32::MAX));
    assert_eq!(HoldTime(12).to_duration(), Duration::from_millis(1200));
}

proptest! {
    #[test]
    fn arbitrary_attribution_never_panics(
        hops in 0u8..30,
        reason in prop::collection::vec(any::<u8>(), 0..300),
        noise in prop::collection::vec(any::<u8>(), 920),
    ) {
        let attribution = AttributionData {
            hold_times: noise[..80].try_into().unwrap(),
            hmacs: noise[80..].try_into().unwrap(),
        };
        let secrets = some_secrets(hops);
        let decoded = decode_attributed(&secrets, &reason, Some(&attribution));
        prop_assert!(decoded.hold_times.hops.len() <= usize::from(hops));
        prop_assert!(hold_times(&secrets, &attribution).hops.len() <= usize::from(hops));
        let _ = pass_back(&SharedSecret::new([9; 32]), reason, Some(&attribution), HoldTime(1));
    }
}
