//! Any bytes as an act of the handshake, or as a stream after it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_wire_fuzz::handshake(data));
