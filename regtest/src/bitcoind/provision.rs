//! A private copy of bitcoind, by apt, without touching the system.
//!
//! Debian's unstable suite carries `bitcoin-knots`. It needs newer libraries than a stable Debian
//! has, so they are fetched with it, everything is unpacked into one folder, and bitcoind starts
//! through that folder's own loader. apt runs with a private state (lists, cache, package status)
//! and checks the archive's signatures; the archive's address is the one this machine's own apt
//! uses. It does not install anything, and works only where there is a Debian apt.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, Found, Program, Result, file_error};

/// The package that holds bitcoind.
const PACKAGE: &str = "bitcoin-knots";
/// The suite that has it.
const SUITE: &str = "sid";
/// Where Debian keeps the keys of its archive; the name changed once.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];
/// The programs that do the work.
const TOOLS: [&str; 4] = ["apt-get", "apt-cache", "dpkg", "dpkg-deb"];

/// What the provisioning is doing, for a person who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Another process is provisioning; waiting for it.
    Waiting,
    /// Reading the archive's list of packages.
    Listing,
    /// Downloading this many packages.
    Downloading {
        /// How many.
        packages: usize,
    },
    /// Unpacking them.
    Unpacking {
        /// Unpacked so far.
        done: usize,
        /// How many there are.
        of: usize,
    },
    /// Done: the program is in place.
    Done {
        /// The program.
        path: PathBuf,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => write!(f, "waiting for another process that is getting bitcoind"),
            Self::Listing => write!(f, "reading the Debian archive's list of packages"),
            Self::Downloading { packages } => write!(f, "downloading {packages} packages"),
            Self::Unpacking { done, of } => write!(f, "unpacking {done} of {of}"),
            Self::Done { path } => write!(f, "bitcoind is at {}", path.display()),
        }
    }
}

/// Gets a bitcoind into `folder` (the program is `folder/bitcoind`), or returns the one that is
/// there and works. Two processes at once are held apart by a lock next to the folder; the folder
/// appears in one step, whole and tried, so a killed attempt leaves nothing that looks like one.
///
/// # Errors
/// [`Error::NotToBeHad`] where there is no Debian apt, [`Error::Provision`] if a step fails.
pub fn provision(folder: &Path, progress: &mut dyn FnMut(&Progress)) -> Result<Program> {
    let parent = folder
        .parent()
        .ok_or_else(|| Error::NotToBeHad { reason: format!("{} has no parent folder to work in", folder.display()) })?;
    fs::create_dir_all(parent).map_err(file_error(parent))?;
    let lock_path = folder.with_extension("lock");
    let lock = File::create(&lock_path).map_err(file_error(&lock_path))?;
    if lock.try_lock().is_err() {
        progress(&Progress::Waiting);
        lock.lock().map_err(file_error(&lock_path))?;
    }
    if let Ok(program) = Program::check(&folder.join("bitcoind"), Found::Cache) {
        return Ok(program);
    }
    let archive = Archive::of_this_machine()?;
    sweep(folder)?;
    let work = folder.with_extension(format!("new-{}", std::process::id()));
    let built = build(&archive, &work, progress).and_then(|()| put_in_place(&work, folder));
    if built.is_err() {
        // Best effort: the next attempt sweeps what is left.
        let _ = fs::remove_dir_all(&work);
    }
    built?;
    let program = Program::check(&folder.join("bitcoind"), Found::Provisioned)?;
    progress(&Progress::Done { path: program.path.clone() });
    Ok(program)
}

/// Removes what killed attempts left. Called under the lock.
fn sweep(folder: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(()) };
    let prefix = format!("{}.new-", name.to_string_lossy());
    for entry in fs::read_dir(parent).map_err(file_error(parent))? {
        let entry = entry.map_err(file_error(parent))?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_dir_all(entry.path()).map_err(file_error(entry.path()))?;
        }
    }
    Ok(())
}

/// Downloads and unpacks into `work`, writes the two programs, and tries bitcoind.
fn build(archive: &Archive, work: &Path, progress: &mut dyn FnMut(&Progress)) -> Result<()> {
    let apt = Apt::new(archive, &work.join("apt"))?;
    progress(&Progress::Listing);
    apt.update()?;
    let packages = apt.closure()?;
    progress(&Progress::Downloading { packages: packages.len() });
    let files = apt.download(&packages)?;
    let root = work.join("root");
    fs::create_dir_all(&root).map_err(file_error(&root))?;
    for (done, file) in files.iter().enumerate() {
        progress(&Progress::Unpacking { done, of: files.len() });
        let arguments = ["-x".into(), file.clone().into_os_string(), root.clone().into_os_string()];
        run("unpacking", Command::new("dpkg-deb").args(arguments))?;
    }
    for name in ["bitcoind", "bitcoin-cli"] {
        write_starter(archive, work, name)?;
    }
    Program::check(&work.join("bitcoind"), Found::Provisioned)?;
    fs::remove_dir_all(&apt.folder).map_err(file_error(&apt.folder))
}

/// Writes `work/name`: a script that starts the unpacked program through the unpacked loader. It
/// finds both from its own place, so that the folder can be renamed.
fn write_starter(archive: &Archive, work: &Path, name: &str) -> Result<()> {
    let libraries = format!("root/usr/lib/{}", archive.triple);
    let loader = format!("{libraries}/{}", archive.loader);
    let program = format!("root/usr/bin/{name}");
    for needed in [&loader, &program] {
        if !work.join(needed).exists() {
            let reason = format!("{needed} is not in the packages");
            return Err(Error::Provision { step: "unpacking", reason });
        }
    }
    let script = format!(
        "#!/bin/sh\n\
         here=$(CDPATH= cd -- \"$(dirname -- \"$0\")\" && pwd) || exit 1\n\
         exec \"$here/{loader}\" --library-path \"$here/{libraries}\" \"$here/{program}\" \"$@\"\n"
    );
    let path = work.join(name);
    fs::write(&path, script).map_err(file_error(&path))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(file_error(&path))
}

/// Makes `work` the folder. What was there did not work, or the caller would have used it.
fn put_in_place(work: &Path, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(file_error(folder))?;
    }
    fs::rename(work, folder).map_err(file_error(folder))
}

/// The Debian archive this machine uses.
struct Archive {
    address: String,
    keyring: &'static str,
    triple: &'static str,
    loader: &'static str,
}

impl Archive {
    fn of_this_machine() -> Result<Self> {
        let none = |reason: String| Error::NotToBeHad { reason };
        for tool in TOOLS {
            if Command::new(tool).arg("--version").output().is_err() {
                return Err(none(format!("this system has no {tool} to get one with")));
            }
        }
        let keyring = KEYRINGS
            .into_iter()
            .find(|path| File::open(path).is_ok())
            .ok_or_else(|| none(format!("{} is missing", KEYRINGS[0])))?;
        let architecture = run("asking for the architecture", Command::new("dpkg").arg("--print-architecture"))?;
        let (triple, loader) = match architecture.trim() {
            "amd64" => ("x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
            "arm64" => ("aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
            other => return Err(none(format!("the architecture {other} is not known here"))),
        };
        let address = address_from_lists()
            .or_else(address_from_sources)
            .ok_or_else(|| none("apt's configuration names no Debian archive".to_owned()))?;
        Ok(Self { address, keyring, triple, loader })
    }
}

/// The first Debian archive in apt's lists that is not the security one.
fn address_from_lists() -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI) $(ORIGIN)"]);
    let lists = run("reading apt's lists", &mut command).ok()?;
    pick_from_lists(&lists)
}

fn pick_from_lists(lists: &str) -> Option<String> {
    lists.lines().find_map(|line| match line.split_once(' ') {
        Some((address, "Debian")) if !address.contains("security") => Some(address.to_owned()),
        _ => None,
    })
}

/// The same from the sources, for a machine whose lists were never read or were removed.
fn address_from_sources() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut parts: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        parts.sort();
        files.extend(parts);
    }
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| pick_source(&text))
}

/// The first address in the text of a `.list` or `.sources` file that ends in `/debian`.
fn pick_source(text: &str) -> Option<String> {
    let is_debian = |word: &&str| word.trim_end_matches('/').ends_with("/debian");
    text.lines().map(str::trim).find_map(|line| {
        let addresses = line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb "))?;
        addresses.split_whitespace().find(is_debian).map(str::to_owned)
    })
}

/// apt with a private state.
struct Apt {
    folder: PathBuf,
    options: Vec<OsString>,
}

impl Apt {
    fn new(archive: &Archive, folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "debs"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(file_error(&part))?;
        }
        let source = folder.join("sources.list");
        let line = format!("deb [signed-by={}] {} {SUITE} main\n", archive.keyring, archive.address);
        fs::write(&source, line).map_err(file_error(&source))?;
        let status = folder.join("status");
        fs::write(&status, "").map_err(file_error(&status))?;

        let mut options = vec![OsString::from("-q")];
        for (name, value) in [
            ("Dir::Etc::SourceList", source.as_path()),
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            ("Dir::State::Lists", &folder.join("lists")),
            ("Dir::State::status", &status),
            ("Dir::Cache", &folder.join("cache")),
            // As root, apt would hand the download to a user who cannot write into this folder.
            ("APT::Sandbox::User", Path::new("root")),
            ("Acquire::Languages", Path::new("none")),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", Path::new("false")),
            ("Acquire::Retries", Path::new("3")),
            ("Acquire::http::Timeout", Path::new("30")),
            ("Acquire::https::Timeout", Path::new("30")),
        ] {
            let mut option = OsString::from(name);
            option.push("=");
            option.push(value);
            options.extend([OsString::from("-o"), option]);
        }
        Ok(Self { folder: folder.to_owned(), options })
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.args(&self.options);
        command
    }

    fn update(&self) -> Result<()> {
        // Without this, apt takes an archive it cannot reach for a mere warning.
        let mut command = self.tool("apt-get");
        command.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        run("reading the archive's list of packages", &mut command).map(drop)
    }

    /// bitcoind's package and the libraries it needs, with the libraries those need.
    fn closure(&self) -> Result<BTreeSet<String>> {
        const EDGES: [&str; 6] =
            ["--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"];
        let step = "asking what bitcoind needs";
        let mut direct = self.tool("apt-cache");
        direct.arg("depends").args(EDGES).arg(PACKAGE);
        let direct = library_dependencies(&run(step, &mut direct)?);
        if direct.is_empty() {
            let reason = format!("{PACKAGE} is not in the archive's suite {SUITE}");
            return Err(Error::Provision { step, reason });
        }
        let mut all = self.tool("apt-cache");
        all.args(["depends", "--recurse"]).args(EDGES).arg("libc6").args(&direct);
        let mut packages = named_libraries(&run(step, &mut all)?);
        packages.insert(PACKAGE.to_owned());
        Ok(packages)
    }

    fn download(&self, packages: &BTreeSet<String>) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join("debs");
        let mut command = self.tool("apt-get");
        command.arg("download").args(packages).current_dir(&folder);
        run("downloading", &mut command)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).map_err(file_error(&folder))? {
            files.push(entry.map_err(file_error(&folder))?.path());
        }
        files.sort();
        if files.len() < packages.len() {
            let reason = format!("{} packages wanted, {} came", packages.len(), files.len());
            return Err(Error::Provision { step: "downloading", reason });
        }
        Ok(files)
    }
}

/// The real libraries among the `Depends:` lines of `apt-cache depends` (a virtual one is in `<>`).
fn library_dependencies(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("Depends: "))
        .filter(|name| is_library(name))
        .map(str::to_owned)
        .collect()
}

/// The packages that `apt-cache depends --recurse` lists: one unindented line each.
fn named_libraries(text: &str) -> BTreeSet<String> {
    text.lines().filter(|line| is_library(line)).map(str::to_owned).collect()
}

fn is_library(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".+-".contains(c);
    name.starts_with("lib") && name.chars().all(plain)
}

/// Runs one tool to its end and returns what it printed.
fn run(step: &'static str, command: &mut Command) -> Result<String> {
    // apt's words are parsed: they must not be translated.
    let output = command.env("LC_ALL", "C").output().map_err(|error| Error::Provision {
        step,
        reason: format!("{} does not run: {error}", command.get_program().display()),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let program = command.get_program().display();
    let reason = format!("{program} ends with {}: {}", output.status, words.trim());
    Err(Error::Provision { step, reason })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    mod archive_address {
        use super::*;

        #[test]
        fn lists_without_security() {
            let lists = "http://security.example/debian-security/ Debian\n\
                         http://other.example/x/ Docker\n\
                         http://mirror.example/debian/ Debian\n";
            assert_eq!(pick_from_lists(lists).unwrap(), "http://mirror.example/debian/");
            assert_eq!(pick_from_lists("http://other.example/x/ Ubuntu\n"), None);
        }

        #[test]
        fn one_line_source() {
            let text = "# a comment\ndeb-src http://m.example/debian sid main\n\
                        deb [arch=amd64 signed-by=/k] http://m.example/debian bookworm main\n";
            assert_eq!(pick_source(text).unwrap(), "http://m.example/debian");
        }

        #[test]
        fn deb822_source() {
            let text = "Types: deb\nURIs: http://m.example/debian-security\n\n\
                        Types: deb\nURIs: http://m.example/debian/\nSuites: bookworm\n";
            assert_eq!(pick_source(text).unwrap(), "http://m.example/debian/");
        }

        #[test]
        fn commented_out_or_another_system() {
            assert_eq!(pick_source("#deb http://m.example/debian sid main\n"), None);
            assert_eq!(pick_source("deb http://m.example/ubuntu noble main\n"), None);
        }
    }

    mod dependencies {
        use super::*;

        #[test]
        fn real_libraries_only() {
            let text = "bitcoin-knots\n  Depends: libc6\n  Depends: <libvirtual>\n    libreal\n\
                        \x20 Depends: init-system-helpers\n  Depends: libevent-core-2.1-7t64\n";
            let expected = ["libc6", "libevent-core-2.1-7t64"].map(str::to_owned);
            assert_eq!(library_dependencies(text), BTreeSet::from(expected));
        }

        #[test]
        fn recursion_lists_each_once() {
            let text = "libc6\n  Depends: libgcc-s1\nlibgcc-s1\n  Depends: libc6\n<libvirtual>\n";
            let expected = ["libc6", "libgcc-s1"].map(str::to_owned);
            assert_eq!(named_libraries(text), BTreeSet::from(expected));
        }
    }

    mod folder {
        use super::*;

        #[test]
        fn one_that_works_is_returned_untouched() {
            let cache = tempfile::tempdir().unwrap();
            let folder = cache.path().join("bitcoind");
            fs::create_dir(&folder).unwrap();
            let program = folder.join("bitcoind");
            fs::write(&program, "#!/bin/sh\necho 'Bitcoin Core daemon version v28.1.0'\n").unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let found = provision(&folder, &mut |step| panic!("no step expected: {step}")).unwrap();
            assert_eq!((found.path, found.found), (program, Found::Cache));
        }

        #[test]
        fn what_killed_attempts_left_is_swept() {
            let cache = tempfile::tempdir().unwrap();
            for name in ["bitcoind", "bitcoind.new-1", "bitcoind.new-22", "another"] {
                fs::create_dir(cache.path().join(name)).unwrap();
            }
            sweep(&cache.path().join("bitcoind")).unwrap();
            let left: BTreeSet<_> = fs::read_dir(cache.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(left, BTreeSet::from(["bitcoind", "another"].map(str::to_owned)));
        }
    }

    mod starter {
        use super::*;

        #[test]
        fn follows_a_renamed_folder() {
            let cache = tempfile::tempdir().unwrap();
            let archive = Archive { address: String::new(), keyring: "", triple: "t", loader: "ld" };
            let work = cache.path().join("a folder.new-1");
            fs::create_dir_all(work.join("root/usr/lib/t")).unwrap();
            fs::create_dir_all(work.join("root/usr/bin")).unwrap();
            let loader = work.join("root/usr/lib/t/ld");
            fs::write(&loader, "#!/bin/sh\nexec \"$3\" \"$4\"\n").unwrap();
            let program = work.join("root/usr/bin/bitcoind");
            fs::write(&program, "#!/bin/sh\necho \"Bitcoin Core daemon version v30.0 $1\"\n").unwrap();
            for file in [&loader, &program] {
                fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
            }
            write_starter(&archive, &work, "bitcoind").unwrap();
            let folder = cache.path().join("a folder");
            put_in_place(&work, &folder).unwrap();
            assert!(Program::check(&folder.join("bitcoind"), Found::Cache).is_ok());
        }

        #[test]
        fn package_without_the_program() {
            let cache = tempfile::tempdir().unwrap();
            let archive = Archive { address: String::new(), keyring: "", triple: "t", loader: "ld" };
            let error = write_starter(&archive, cache.path(), "bitcoind").unwrap_err();
            assert!(error.to_string().contains("root/usr/lib/t/ld is not in"), "{error}");
        }
    }
}
