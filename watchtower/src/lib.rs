//! The watchtower.
