//! Builds the driver, with its own lock file and into a folder of its own (`target/ldk`), when somebody first needs it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use crate::network::Error;
use crate::programs::target_folder;

/// Lines of cargo's words that go into an error.
const WORDS_TAIL_LINES: usize = 40;

/// How often, in crates, progress is told.
const TOLD_EVERY: usize = 25;

/// The driver's program, built if need be. Built once in this process, and by cargo only if something changed.
///
/// # Errors
/// [`Error::Ldk`], with what to do about it.
pub(crate) fn program() -> Result<PathBuf, Error> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build).clone().map_err(|text| Error::Ldk { text })
}

fn build() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ldk");
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        return Err(format!("{} is not there: it takes a checkout of Millrace to build ldk-node", manifest.display()));
    }
    let target = target_folder().map_err(|error| error.to_string())?.join("ldk");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run_cargo(&cargo, &folder, &target)?;
    let program = target.join("debug").join("millrace-ldk");
    if program.is_file() { Ok(program) } else { Err(format!("cargo built it, but {} is not there", program.display())) }
}

fn run_cargo(cargo: &OsString, folder: &Path, target: &Path) -> Result<(), String> {
    let mut command = Command::new(cargo);
    command.current_dir(folder).args(["build", "--locked", "--target-dir"]).arg(target);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_another_build) {
            command.env_remove(name);
        }
    }
    let no_cargo = |error: std::io::Error| format!("{} does not run: {error}. Install Rust", cargo.display());
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(no_cargo)?;
    let mut words = Vec::new();
    let (begun, mut compiled) = (Instant::now(), 0);
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            compiled += usize::from(tell(&line, compiled));
            words.push(line);
        }
    }
    let status = child.wait().map_err(no_cargo)?;
    if status.success() {
        if compiled > 0 {
            say(&format!("built in {} s", begun.elapsed().as_secs()));
        }
        return Ok(());
    }
    let tail = words[words.len().saturating_sub(WORDS_TAIL_LINES)..].join("\n");
    Err(format!(
        "it does not build, and the tests and the benchmark that need it cannot do without. It takes a C compiler and, \
         once, the crates from the registry; by hand: (cd {} && cargo build --locked --target-dir {}). cargo said:\n{tail}",
        folder.display(),
        target.display()
    ))
}

/// Whether a variable tells of the build that runs this one. With them, crates whose build scripts look at such a
/// variable would be compiled anew depending on who asks.
fn is_of_another_build(name: &str) -> bool {
    const NAMES: [&str; 5] =
        ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "OUT_DIR"];
    const BEGINNINGS: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_EXE_", "CARGO_PROFILE_"];
    NAMES.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Progress goes past the test harness, which would hold it back until the test has failed.
fn say(what: &str) {
    // A closed standard error is no reason to stop.
    let _ = writeln!(std::io::stderr(), "ldk-node: {what}");
}

/// Progress, in words of our own: cargo's would look like the workspace compiling something again. Whether the line
/// is about a crate that is compiled.
fn tell(line: &str, compiled_before: usize) -> bool {
    let is_compiling = line.trim_start().starts_with("Compiling ");
    if is_compiling && compiled_before == 0 {
        say("building it, which takes some minutes the first time");
    } else if is_compiling && compiled_before.is_multiple_of(TOLD_EVERY) {
        say(&format!("{compiled_before} crates done"));
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
    fn a_build_knows_nothing_of_the_one_that_runs_it() {
        for name in ["RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_PKG_VERSION_MAJOR", "CARGO_MANIFEST_DIR"] {
            assert!(is_of_another_build(name), "{name}");
        }
        // What says where the crates and the compiler are, and how to reach the registry.
        for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_TOOLCHAIN", "CARGO_NET_OFFLINE", "CC"] {
            assert!(!is_of_another_build(name), "{name}");
        }
    }

    #[test]
    fn no_cargo_is_an_error_too() {
        let folder = tempfile::tempdir().unwrap();
        let error = run_cargo(&"/no/such/cargo".into(), folder.path(), &folder.path().join("target")).unwrap_err();
        assert!(error.contains("/no/such/cargo does not run"), "{error}");
    }
}
