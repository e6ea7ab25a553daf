//! The fuzz targets' bodies, apart from the fuzzer.

mod entry;

/// Any bytes as a message.
pub fn message(data: &[u8]) {
    entry::message(data);
}

/// Any bytes as an act of the handshake, or as a stream after it.
pub fn handshake(data: &[u8]) {
    entry::handshake(data);
}
