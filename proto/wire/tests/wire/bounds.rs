//! What a peer's bytes can make us do: allocate in proportion to their number, and never panic.

#![allow(unsafe_code, reason = "an allocator that counts is the only honest measure")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use millrace_wire::Message;
use proptest::prelude::*;

use crate::entry;
use crate::messages::encode;
use crate::samples::{Draw, every_message};

/// Adds up what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    ALLOCATED.with(|total| total.set(total.get().saturating_add(bytes)));
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocated_by_decoding(bytes: &[u8]) -> usize {
    let before = ALLOCATED.with(Cell::get);
    let decoded = Message::decode_with(bytes, |_| true);
    let after = ALLOCATED.with(Cell::get);
    drop(decoded);
    after - before
}

/// Boxes of fixed size, names in errors.
const FIXED_ALLOWANCE: usize = 2048;
/// A point takes 33 bytes on the wire and 64 here, a list of flags one and eight, a witness three and 24; LDK lets
/// vectors grow by doubling.
const ALLOWANCE_PER_BYTE: usize = 12;

fn assert_bounded(bytes: &[u8]) {
    let allowed = ALLOWANCE_PER_BYTE * bytes.len() + FIXED_ALLOWANCE;
    let allocated = allocated_by_decoding(bytes);
    assert!(allocated <= allowed, "{allocated} bytes for {} of {bytes:02x?}", bytes.len());
}

#[test]
fn the_allocator_counts() {
    let before = ALLOCATED.with(Cell::get);
    drop(std::hint::black_box(Vec::<u8>::with_capacity(12_345)));
    assert_eq!(ALLOCATED.with(Cell::get) - before, 12_345);
}

/// What a peer may write where a length or a count stands: the most in two bytes and in a BigSize, and just
/// what Bitcoin's own parser would still believe.
const LIES: [&[u8]; 5] = [
    &[0xff, 0xff],
    &[0xfe, 0xff, 0xff, 0xff, 0xff],
    &[0xff; 9],
    &[0xff, 0x00, 0xfe, 0x00, 0x09, 0x3d, 0x00],
    &[0xfd, 0xff, 0xff],
];

/// Every place of every message in turn claims more than there is.
#[test]
fn a_length_that_lies_allocates_nothing_for_it() {
    for seed in 0..4 {
        for message in every_message(seed) {
            let bytes = encode(&message);
            for at in 2..bytes.len() {
                for lie in LIES {
                    let mut lying = bytes.clone();
                    lying.truncate(at);
                    lying.extend_from_slice(lie);
                    assert_bounded(&lying);
                    lying.extend_from_slice(&bytes[at..]);
                    assert_bounded(&lying);
                }
            }
        }
    }
}

#[test]
fn the_longest_messages_allocate_in_proportion() {
    for type_number in 0..600u16 {
        for fill in [0x00, 0x01, 0x02, 0xff] {
            let mut bytes = vec![fill; 65_535];
            bytes[..2].copy_from_slice(&type_number.to_be_bytes());
            assert_bounded(&bytes);
        }
    }
}

/// One of every kind, then some of its bytes changed, cut out, doubled or put in.
fn mutated(seed: u64, changes: usize) -> Vec<u8> {
    let draw = &mut Draw(seed);
    let all = every_message(draw.u64());
    let mut bytes = encode(&all[draw.below(all.len())]);
    for _ in 0..changes {
        let at = 2 + draw.below(bytes.len().saturating_sub(2).max(1));
        let at = at.min(bytes.len());
        match draw.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, draw.u64() as u8),
            2 if at < bytes.len() => bytes[at] = draw.u64() as u8,
            3 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.extend(draw.bytes(12)),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_message_with_some_bytes_changed(seed: u64, changes in 1usize..6) {
        let bytes = mutated(seed, changes);
        assert_bounded(&bytes);
        entry::message(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_known_type(seed: u64, payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let draw = &mut Draw(seed);
        let all = every_message(0);
        let type_number = all[draw.below(all.len())].type_number();
        let bytes = [&type_number.to_be_bytes()[..], &payload].concat();
        assert_bounded(&bytes);
        entry::message(&bytes);
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        assert_bounded(&bytes);
        entry::message(&bytes);
    }
}
