//! What the integration tests share.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod chain;
pub mod node;
pub mod pair;
pub mod script;
pub mod seeds;
