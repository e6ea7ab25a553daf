//! millrace: the command line of a Millrace node.
fn main() {}
