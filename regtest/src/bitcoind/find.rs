//! Which bitcoind to run: `$BITCOIND_EXE`, the PATH, a copy provisioned earlier, a new copy.
//!
//! It does not download (see `provision`) and does not run bitcoind beyond asking for its version.

use std::env;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use super::{Error, Progress, Result, provision};

/// The oldest bitcoind that will do: `submitpackage` with its limits, version 3 transactions.
pub const VERSION_MIN: Version = Version { major: 27, minor: 0 };

/// The environment variable that names the program.
const VARIABLE: &str = "BITCOIND_EXE";

/// A bitcoind's version, of Core or Knots alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl Version {
    /// Reads the first line of `bitcoind -version`, such as `Bitcoin Core daemon version v29.0.0`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?;
        let (_, number) = line.rsplit_once(" v")?;
        let mut parts = number.split(['.', '-']).map(str::trim);
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0);
        Some(Self { major, minor })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Where a program was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Named by `$BITCOIND_EXE`.
    Variable,
    /// On the PATH.
    Path,
    /// In the cache folder, from an earlier provisioning.
    Cache,
    /// Provisioned just now.
    Provisioned,
}

/// A bitcoind that runs and is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// What it says it is.
    pub version: Version,
    /// Where it came from.
    pub found: Found,
}

impl Program {
    /// Asks the program at `path` for its version.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it does not run or is older than [`VERSION_MIN`].
    pub fn check(path: &Path, found: Found) -> Result<Self> {
        let unusable = |reason: String| Error::Unusable { path: path.to_owned(), reason };
        let output = ask_version(path).map_err(|error| unusable(format!("does not run: {error}")))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(unusable(format!("-version ends with {}: {}", output.status, words.trim())));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = Version::parse(&text) else {
            let line = text.lines().next().unwrap_or_default();
            return Err(unusable(format!("says no version of Bitcoin Core or Knots: {line:?}")));
        };
        if version < VERSION_MIN {
            return Err(unusable(format!("is version {version}, {VERSION_MIN} or newer is needed")));
        }
        Ok(Self { path: path.to_owned(), version, found })
    }
}

/// Runs `path -version`. A program that was just written may still be open for writing in a child that
/// another thread is starting at this moment; that passes.
fn ask_version(path: &Path) -> io::Result<Output> {
    const TRIES_MAX: u32 = 100;
    const TRY_AGAIN: Duration = Duration::from_millis(10);
    let mut tries = 1;
    loop {
        match Command::new(path).arg("-version").output() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < TRIES_MAX => {
                tries += 1;
                thread::sleep(TRY_AGAIN);
            }
            other => return other,
        }
    }
}

/// The folder that holds provisioned copies: `${XDG_CACHE_HOME:-$HOME/.cache}/millrace/bitcoind`.
///
/// # Errors
/// [`Error::NotToBeHad`] if neither variable is set.
pub fn cache_folder() -> Result<PathBuf> {
    cache_folder_from(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
}

fn cache_folder_from(cache: Option<std::ffi::OsString>, home: Option<std::ffi::OsString>) -> Result<PathBuf> {
    let set = |value: Option<std::ffi::OsString>| value.filter(|value| !value.is_empty());
    let base = match (set(cache).map(PathBuf::from), set(home)) {
        (Some(cache), _) if cache.is_absolute() => cache,
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        (_, None) => {
            let reason = "neither XDG_CACHE_HOME nor HOME names a folder to keep one in".to_owned();
            return Err(Error::NotToBeHad { reason });
        }
    };
    Ok(base.join("millrace").join("bitcoind"))
}

/// Finds a bitcoind that is already here. A program on the PATH that is too old is passed over; one
/// named by `$BITCOIND_EXE` is not: whoever names one wants that one.
///
/// # Errors
/// [`Error::Unusable`] for a `$BITCOIND_EXE` that does not run or is too old.
pub fn find() -> Result<Option<Program>> {
    let folder = cache_folder().ok();
    let (program, _) = Search {
        variable: env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from),
        path: env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default(),
        cache: folder,
    }
    .run()?;
    Ok(program)
}

/// Finds a bitcoind, or provisions one into the cache folder.
///
/// # Errors
/// As [`find`] and [`provision`].
pub fn find_or_provision(progress: &mut dyn FnMut(&Progress)) -> Result<Program> {
    match find()? {
        Some(program) => Ok(program),
        None => provision(&cache_folder()?, progress),
    }
}

/// The places to look, as arguments so that a test can set them.
struct Search {
    variable: Option<PathBuf>,
    path: Vec<PathBuf>,
    cache: Option<PathBuf>,
}

impl Search {
    /// The program, and what was passed over on the way.
    fn run(&self) -> Result<(Option<Program>, Vec<Error>)> {
        if let Some(path) = &self.variable {
            let program = Program::check(path, Found::Variable).map_err(|error| match error {
                Error::Unusable { path, reason } => {
                    Error::Unusable { path, reason: format!("{reason} (named by {VARIABLE})") }
                }
                other => other,
            })?;
            return Ok((Some(program), Vec::new()));
        }
        let on_path = self.path.iter().map(|folder| (folder, Found::Path));
        let in_cache = self.cache.iter().map(|folder| (folder, Found::Cache));
        let mut passed_over = Vec::new();
        for (folder, found) in on_path.chain(in_cache) {
            let path = folder.join("bitcoind");
            if !path.is_file() {
                continue;
            }
            match Program::check(&path, found) {
                Ok(program) => return Ok((Some(program), passed_over)),
                Err(error) => passed_over.push(error),
            }
        }
        Ok((None, passed_over))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A stand-in that says `line` when asked for its version.
    fn stand_in(folder: &Path, line: &str) -> PathBuf {
        let path = folder.join("bitcoind");
        fs::write(&path, format!("#!/bin/sh\necho '{line}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    mod version {
        use super::*;

        #[test]
        fn core_and_knots() {
            let core = Version::parse("Bitcoin Core daemon version v29.1.0\nCopyright").unwrap();
            assert_eq!(core, Version { major: 29, minor: 1 });
            let knots = Version::parse("Bitcoin Knots daemon version v29.4.3.knots20260508\n");
            assert_eq!(knots.unwrap(), Version { major: 29, minor: 4 });
            let candidate = Version::parse("Bitcoin Core daemon version v30.0rc1").unwrap();
            assert_eq!(candidate, Version { major: 30, minor: 0 });
        }

        #[test]
        fn something_else() {
            assert_eq!(Version::parse("btcd version 0.24"), None);
            assert_eq!(Version::parse(""), None);
        }
    }

    mod search {
        use super::*;

        #[test]
        fn variable_goes_before_path_before_cache() {
            let [a, b, c] = [0; 3].map(|_| tempfile::tempdir().unwrap());
            let named = stand_in(a.path(), "Bitcoin Core daemon version v27.0.0");
            stand_in(b.path(), "Bitcoin Core daemon version v28.0.0");
            stand_in(c.path(), "Bitcoin Core daemon version v29.0.0");
            let mut search =
                Search { variable: Some(named), path: vec![b.path().to_owned()], cache: Some(c.path().to_owned()) };
            assert_eq!(search.run().unwrap().0.unwrap().found, Found::Variable);
            search.variable = None;
            assert_eq!(search.run().unwrap().0.unwrap().found, Found::Path);
            search.path.clear();
            assert_eq!(search.run().unwrap().0.unwrap().found, Found::Cache);
            search.cache = None;
            assert_eq!(search.run().unwrap().0, None);
        }

        #[test]
        fn too_old_on_the_path_is_passed_over() {
            let [old, cached] = [0; 2].map(|_| tempfile::tempdir().unwrap());
            stand_in(old.path(), "Bitcoin Core version v26.2.0");
            stand_in(cached.path(), "Bitcoin Core daemon version v29.0.0");
            let search =
                Search { variable: None, path: vec![old.path().to_owned()], cache: Some(cached.path().to_owned()) };
            let (program, passed_over) = search.run().unwrap();
            assert_eq!(program.unwrap().found, Found::Cache);
            assert!(passed_over[0].to_string().contains("is version 26.2"), "{passed_over:?}");
        }

        #[test]
        fn too_old_but_named_is_an_error() {
            let old = tempfile::tempdir().unwrap();
            let named = stand_in(old.path(), "Bitcoin Core version v26.2.0");
            let search = Search { variable: Some(named), path: Vec::new(), cache: None };
            let error = search.run().unwrap_err().to_string();
            assert!(error.contains("26.2") && error.contains("BITCOIND_EXE"), "{error}");
        }

        #[test]
        fn named_but_not_there() {
            let search = Search { variable: Some(PathBuf::from("/nowhere/bitcoind")), path: Vec::new(), cache: None };
            assert!(search.run().unwrap_err().to_string().contains("does not run"));
        }
    }

    mod cache_folder {
        use super::*;

        #[test]
        fn by_either_variable() {
            let folder = cache_folder_from(Some("/c".into()), Some("/h".into())).unwrap();
            assert_eq!(folder, Path::new("/c/millrace/bitcoind"));
            let folder = cache_folder_from(Some("relative".into()), Some("/h".into())).unwrap();
            assert_eq!(folder, Path::new("/h/.cache/millrace/bitcoind"));
            let folder = cache_folder_from(None, Some("/h".into())).unwrap();
            assert_eq!(folder, Path::new("/h/.cache/millrace/bitcoind"));
            assert!(cache_folder_from(None, Some("".into())).is_err());
        }
    }
}
