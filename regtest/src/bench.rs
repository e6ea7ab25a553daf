//! Benchmarks. Of payments: always durable, always real daemons over loopback and a real bitcoind. Of searches: the real graph.
//! Of the watchtower: the real one, and a real chain full of cheaters.

pub mod floor;
pub mod forward;
pub mod ldk;
pub mod payments;
pub mod process;
pub mod route;
pub mod tower;
pub mod unary;
pub mod watched;
