//! The programs under test: from a checkout they are built first, in this program's own profile, so that no stale
//! daemon is ever measured; elsewhere they lie beside this program.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::network::Error;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The daemon.
    pub millraced: PathBuf,
    /// The command line.
    pub millrace: PathBuf,
}

/// The checkout this crate was compiled in, if it is still there.
fn checkout() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let manifest = root.join("Cargo.toml");
    manifest.is_file().then(|| root.to_owned())
}

/// The folder of this program's profile: `target/PROFILE`, or wherever it is installed.
fn profile_folder() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(|source| Error::io("find this program", Path::new("."), source))?;
    let folder = own.parent().unwrap_or(Path::new("/")).to_owned();
    // Tests and examples lie one folder deeper.
    let is_deeper = folder.file_name().is_some_and(|name| name == "deps" || name == "examples");
    Ok(if is_deeper { folder.parent().unwrap_or(&folder).to_owned() } else { folder })
}

/// Found once for the whole process: its networks all run the same build, whatever becomes of the sources meanwhile.
static FOUND: Mutex<Option<Programs>> = Mutex::new(None);
static FOUND_TOWER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Where cargo builds into, so that whatever else is built for a test lies beside it, and goes with `cargo clean`.
pub(crate) fn target_folder() -> Result<PathBuf, Error> {
    let profile = profile_folder()?;
    Ok(profile.parent().unwrap_or(&profile).to_owned())
}

impl Programs {
    /// Builds them if this is a checkout, and finds them.
    ///
    /// # Errors
    /// If they cannot be built, or are not there.
    pub fn find() -> Result<Self, Error> {
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(programs) = &*found {
            return Ok(programs.clone());
        }
        let programs = Self::build_and_find()?;
        *found = Some(programs.clone());
        Ok(programs)
    }

    fn build_and_find() -> Result<Self, Error> {
        let [millraced, millrace] = build_and_find(["millraced", "millrace"])?;
        Ok(Self { millraced, millrace })
    }
}

/// The watchtower, built and found in the same way; only those build it who need it.
///
/// # Errors
/// As [`Programs::find`].
pub fn find_tower() -> Result<PathBuf, Error> {
    let mut found = FOUND_TOWER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(tower) = &*found {
        return Ok(tower.clone());
    }
    let [tower] = build_and_find(["millrace-tower"])?;
    *found = Some(tower.clone());
    Ok(tower)
}

fn build_and_find<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], Error> {
    let folder = profile_folder()?;
    if let Some(root) = checkout() {
        build(&root, &folder, &names)?;
    }
    let paths = names.map(|name| folder.join(name));
    match paths.iter().find(|path| !path.is_file()) {
        Some(missing) => Err(Error::NoProgram { path: missing.clone() }),
        None => Ok(paths),
    }
}

fn build(root: &Path, profile_folder: &Path, names: &[&str]) -> Result<(), Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).arg("build").args(names.iter().flat_map(|name| ["--bin", name]));
    // What cargo tells a program that it runs is not meant for another cargo: build scripts that look at it would take it
    // for a change, and half of the crates would be compiled again.
    let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        command.env_remove(name);
    }
    if profile_folder.file_name().is_some_and(|name| name == "release") {
        command.arg("--release");
    }
    if let Some(target) = profile_folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = |source| Error::io("run cargo to build the daemon in", root, source);
    let mut child = command.spawn().map_err(failed)?;
    let mut text = String::new();
    // Building from nothing takes minutes: whoever waits is shown that it goes on.
    for line in child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
        let line = line.map_err(failed)?;
        if line.trim_start().starts_with("Compiling") {
            eprintln!("{line}");
        }
        text.push_str(&line);
        text.push('\n');
    }
    if child.wait().map_err(failed)?.success() { Ok(()) } else { Err(Error::Build { text }) }
}
