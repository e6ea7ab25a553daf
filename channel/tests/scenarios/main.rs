//! Stories of two ends of one channel: what is asked, and what both then have.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used, missing_docs, dead_code)]

#[path = "../support/mod.rs"]
mod support;

mod announcing;
mod breach;
mod by_hand;
mod closing;
mod dance;
mod ending;
mod faults;
mod limits;
mod lossy;
mod on_chain;
mod others;
mod ready;
mod reconnect;
mod resume;
mod spent;
