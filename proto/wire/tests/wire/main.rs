//! The wire crate from outside: every message against LDK's codec, against the specification's vectors, and against bytes
//! that mean no good; the transport against BOLT 8's vectors.

#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "tests read the committed corpus")]

mod bounds;
#[path = "../../fuzz/src/entry.rs"]
mod entry;
mod fuzz;
mod ldk;
mod messages;
mod noise;
mod samples;
mod seeds;
mod vectors;
