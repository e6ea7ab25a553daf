//! A real bitcoind on regtest: found, or provisioned, and run for one test or demo.
//!
//! ```no_run
//! use millrace_regtest::bitcoind::{Bitcoind, Options};
//! let bitcoind = Bitcoind::start(Options::default())?;
//! bitcoind.mine_to_wallet(101)?;
//! assert_eq!(bitcoind.height()?, 101);
//! # Ok::<(), millrace_regtest::bitcoind::Error>(())
//! ```
//!
//! Everything here blocks; from async code, call it on a multi-threaded runtime (a test's calls are
//! short) or through `spawn_blocking`. It does not do: other networks than regtest, a bitcoind with
//! peers, systems without `sh`.

mod find;
mod process;
mod provision;
mod rpc;

pub use find::{Found, Program, VERSION_MIN, Version, cache_folder, find, find_or_provision};
pub(crate) use process::free_port;
pub use process::{Bitcoind, Options};
pub use provision::{Progress, provision};
pub use rpc::RpcClient;

use std::path::PathBuf;

/// What can go wrong with a bitcoind, with what to do about it where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program that was named does not run, or is too old.
    #[error("{path}: {reason}")]
    Unusable {
        /// The program.
        path: PathBuf,
        /// What is wrong with it, and where it was named.
        reason: String,
    },
    /// There is none here, and none could be had.
    #[error(
        "no bitcoind: {reason}. Install Bitcoin Core or Bitcoin Knots, {VERSION_MIN} or newer, and \
         put `bitcoind` on the PATH, or set BITCOIND_EXE to the program"
    )]
    NotToBeHad {
        /// What was tried, and why it did not work.
        reason: String,
    },
    /// A step of the provisioning failed.
    #[error("provisioning bitcoind, {step}: {reason}")]
    Provision {
        /// What was being done.
        step: &'static str,
        /// What the tool that did it said.
        reason: String,
    },
    /// A file or folder of ours.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It did not start, or ended by itself.
    #[error("bitcoind {what}\n{log}")]
    Ended {
        /// What happened.
        what: String,
        /// The last lines of its log.
        log: String,
    },
    /// It answered with an error.
    #[error("bitcoind refuses {method}: {message} (code {code})")]
    Rpc {
        /// The call.
        method: String,
        /// bitcoind's error code.
        code: i64,
        /// bitcoind's words.
        message: String,
    },
    /// It did not answer, or not in a way that makes sense.
    #[error("bitcoind does not answer {method}: {reason}")]
    NoAnswer {
        /// The call.
        method: String,
        /// What was seen instead.
        reason: String,
    },
}

/// Shorthand of this module's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Turns an I/O error into one that names the file.
fn file_error(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { path, source }
}
