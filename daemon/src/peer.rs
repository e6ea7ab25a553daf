//! The connections with other Lightning nodes: the only Lightning sockets of the daemon (BOLT 1 and 8).

pub(crate) mod link;
