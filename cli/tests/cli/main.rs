//! `millrace` as its users meet it: the real binary against a daemon that is played by a gRPC server in the
//! test's own process, with TLS, token and a connection that can be cut.

#![allow(clippy::unwrap_used)]

mod answers;
mod commands;
mod exit_codes;
mod fake;
mod help;
mod retry;
mod snapshot;
mod towers;
