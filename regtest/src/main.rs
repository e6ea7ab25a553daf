//! Demo networks, crash tests and benchmarks on a real bitcoind.
fn main() {}
