//! One Lightning channel's whole life as a pure state machine (BOLT 2, 3 and 5).
//!
//! Nothing here touches the world: no socket, file, clock, thread or source of entropy. Time, height,
//! randomness and keys come in as arguments; what should happen goes out as [`effect::Effects`].
//! The crate deliberately does not route, does not know other channels, and does not log.

pub mod keys;
pub mod secrets;
pub mod side;
pub mod terms;
pub mod tx;
