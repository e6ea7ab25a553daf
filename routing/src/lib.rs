//! Onions and failure packets (BOLT 4), invoices, graph and path finding (BOLT 7). Pure.
