//! `millrace-tower`: a watchtower as a program of its own, with its own folder, key, journal and connection with bitcoind.
//!
//! Exit codes: 0 done; 1 refused, or the tower could not start or go on; 2 the tower was not reached; 3 the command line or
//! a setting is wrong.

mod program;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Whoever makes a file here: it is its owner's alone.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    program::main()
}
