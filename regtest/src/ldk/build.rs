//! Builds the driver, with its own lock file and its own target folder, when somebody first needs it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::network::Error;

/// Lines of cargo's words that go into an error.
const WORDS_TAIL_LINES: usize = 40;

/// How often, in crates, progress is told.
const TOLD_EVERY: usize = 25;

/// The driver's program, built if need be. Built once in this process, and by cargo only if something changed.
///
/// # Errors
/// [`Error::Ldk`], with what to do about it.
pub(super) fn program() -> Result<PathBuf, Error> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build).clone().map_err(|text| Error::Ldk { text })
}

fn build() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ldk");
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        return Err(format!("{} is not there: it takes a checkout of Millrace to build ldk-node", manifest.display()));
    }
    let target = folder.join("target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run_cargo(&cargo, &folder, &target)?;
    let program = target.join("debug").join("millrace-ldk");
    if program.is_file() { Ok(program) } else { Err(format!("cargo built it, but {} is not there", program.display())) }
}

fn run_cargo(cargo: &OsString, folder: &Path, target: &Path) -> Result<(), String> {
    let mut command = Command::new(cargo);
    command.current_dir(folder).args(["build", "--locked", "--target-dir"]).arg(target);
    // Of the workspace's build, which may be what runs this; they are not for this one.
    for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        command.env_remove(name);
    }
    let no_cargo = |error: std::io::Error| format!("{} does not run: {error}. Install Rust", cargo.display());
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(no_cargo)?;
    let mut words = Vec::new();
    let mut compiled = 0;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            compiled += usize::from(tell(&line, compiled));
            words.push(line);
        }
    }
    let status = child.wait().map_err(no_cargo)?;
    if status.success() {
        if compiled > 0 {
            eprintln!("ldk-node: built");
        }
        return Ok(());
    }
    let tail = words[words.len().saturating_sub(WORDS_TAIL_LINES)..].join("\n");
    Err(format!(
        "it does not build, and the tests and the benchmark that need it cannot do without. It takes a C compiler and, \
         once, the crates from the registry; by hand: (cd {} && cargo build --locked). cargo said:\n{tail}",
        folder.display()
    ))
}

/// Progress, in words of our own: cargo's would look like the workspace compiling something again. Whether the line
/// is about a crate that is compiled.
fn tell(line: &str, compiled_before: usize) -> bool {
    let is_compiling = line.trim_start().starts_with("Compiling ");
    if is_compiling && compiled_before == 0 {
        eprintln!("ldk-node: building it, which takes some minutes the first time");
    } else if is_compiling && compiled_before.is_multiple_of(TOLD_EVERY) {
        eprintln!("ldk-node: {compiled_before} crates done");
    }
    is_compiling
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_build_that_fails_says_why_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = run_cargo(&"cargo".into(), folder.path(), &folder.path().join("target")).unwrap_err();
        assert!(error.contains("Cargo.toml"), "{error}");
        assert!(error.contains("cargo build --locked"), "{error}");
    }

    #[test]
    fn no_cargo_is_an_error_too() {
        let folder = tempfile::tempdir().unwrap();
        let error = run_cargo(&"/no/such/cargo".into(), folder.path(), &folder.path().join("target")).unwrap_err();
        assert!(error.contains("/no/such/cargo does not run"), "{error}");
    }
}
