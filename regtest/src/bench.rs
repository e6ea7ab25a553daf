//! Benchmarks. Of payments: always durable, always real daemons over loopback and a real bitcoind. Of searches: the real graph.

pub mod floor;
pub mod forward;
pub mod ldk;
pub mod payments;
pub mod process;
pub mod route;
pub mod unary;
