//! Negotiating a channel (BOLT 2, "Channel Establishment v1"), until its first record.
