//! The journal: the only fsync.
