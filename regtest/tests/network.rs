//! The network that stays (`millrace-regtest up` and its companions), by its own program: real bitcoind, real daemons.
//!
//! Each test has a folder of its own, and ends every process in it by its id, whatever happens.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "network/failures.rs"]
mod failures;
#[path = "network/help.rs"]
mod help;
#[path = "network/ldk.rs"]
mod ldk;
#[path = "network/lines.rs"]
mod lines;
#[path = "network/load.rs"]
mod load;
#[path = "network/mesh.rs"]
mod mesh;
#[path = "network/parts.rs"]
mod parts;
#[path = "network/private.rs"]
mod private;
#[path = "network/refusals.rs"]
mod refusals;
#[path = "network/routes.rs"]
mod routes;
#[path = "network/story.rs"]
mod story;
#[path = "network/support.rs"]
mod support;
#[path = "network/tried.rs"]
mod tried;
