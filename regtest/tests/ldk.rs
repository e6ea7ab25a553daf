//! LDK as the other side: a real ldk-node against itself (a test of its driver), and against a real `millraced`.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "ldk/announced.rs"]
mod announced;
#[path = "ldk/in_flight.rs"]
mod in_flight;
#[path = "ldk/itself.rs"]
mod itself;
#[path = "ldk/mixed.rs"]
mod mixed;
#[path = "ldk/with_us.rs"]
mod with_us;
