//! Every byte that crosses the Lightning network: units, messages, features, the BOLT 8 transport.
