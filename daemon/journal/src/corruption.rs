//! A place on disk that holds what was never written: what a refusal to start names.
//!
//! Nothing here repairs anything. A torn tail is not corruption: `recovery` says how they differ.

use std::path::{Path, PathBuf};

/// Something acknowledged is missing or damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("corrupt: {} at byte {offset}, frame {frame}: {what}", file.display())]
pub struct Corruption {
    /// The file that is damaged or missing.
    pub file: PathBuf,
    /// The offset in it.
    pub offset: u64,
    /// The frame that should be there; 0 when no frame is concerned.
    pub frame: u64,
    /// What is wrong.
    pub what: String,
}

impl Corruption {
    pub(crate) fn new(file: &Path, offset: u64, frame: u64, what: impl Into<String>) -> Corruption {
        Corruption { file: file.to_path_buf(), offset, frame, what: what.into() }
    }
}
