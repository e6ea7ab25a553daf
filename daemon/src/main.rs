//! The Millrace daemon.
fn main() {}
