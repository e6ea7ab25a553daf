//! Expected output as plain files in `tests/snapshots`.
//!
//! `MILLRACE_UPDATE_SNAPSHOTS=1 cargo test --test cli` writes them anew; what changed is then seen in the diff.

use std::fs;
use std::path::PathBuf;

/// Fails unless the text is what the file holds.
#[track_caller]
pub(crate) fn check(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("MILLRACE_UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; MILLRACE_UPDATE_SNAPSHOTS=1 writes it", path.display()));
    assert!(
        expected == text,
        "{name} differs from its snapshot (MILLRACE_UPDATE_SNAPSHOTS=1 writes it anew)\n\
         --- expected\n{expected}\n--- got\n{text}"
    );
}
