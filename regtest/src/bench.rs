//! Benchmarks: always durable, always real daemons over loopback and a real bitcoind.

pub mod floor;
pub mod forward;
pub mod ldk;
pub mod payments;
pub mod process;
pub mod unary;
