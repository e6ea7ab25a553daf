//! The Millrace daemon: everything that touches the world.

pub mod channels;
mod clock;
pub mod entry;
pub mod facts;
pub mod peer;
pub mod readiness;
pub mod steps;
