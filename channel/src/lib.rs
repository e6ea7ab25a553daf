//! One Lightning channel's whole life as a pure state machine (BOLT 2, 3 and 5).
//!
//! Nothing here touches the world: no socket, file, clock, thread or source of entropy. Time, height,
//! randomness and keys come in as arguments; what should happen goes out as [`effect::Effects`].
//! The crate deliberately does not route, does not know other channels, and does not log.

mod announcement;
mod apply;
pub mod channel;
pub mod curve;
mod dance;
pub mod effect;
pub mod fault;
pub mod input;
pub mod keys;
pub mod ledger;
mod link;
pub mod phase;
pub mod record;
mod reestablish;
pub mod revocable;
pub mod secrets;
pub mod side;
pub mod terms;
pub mod tx;

pub use announcement::ANNOUNCE_DEPTH;
pub use channel::{Channel, Policy, ReplayError};
pub use effect::{Effect, Effects, Fact};
pub use fault::{PeerFault, Reaction, Refusal};
pub use input::{ChainEvent, Command, LinkEvent, LinkFeatures, Millis, Offer};
pub use record::{Opened, Record};
pub use side::{Both, Side};
pub use terms::{ChannelType, CommitmentFormat, PartyTerms, Terms};
