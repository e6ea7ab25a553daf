//! Processes that go on when this one has ended, and that another run of this program finds again.
//!
//! Each is known by its id together with the moment it began: an id alone may belong to somebody else's process by now.
//! A file holds both. Nothing is ever ended by its name.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// How often the end of a process is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Detached {
    /// Its id.
    pub(super) pid: u32,
    /// When it began, as the system says it: with the id, it is no other.
    began: String,
}

/// What the system says of a process.
struct Seen {
    began: String,
    /// It has ended, and nobody has asked how.
    is_dead: bool,
}

impl Detached {
    /// Starts a program that outlives us, in a process group of its own, so that what ends ours at the terminal does not
    /// reach it, and without settings of ours. What it prints goes to the end of `output`; `file` says who it is.
    ///
    /// # Errors
    /// If it cannot be started, or the file not be written; then it is ended again.
    pub(super) fn start(program: &Path, arguments: &[OsString], output: &Path, file: &Path) -> io::Result<Self> {
        let output = File::options().create(true).append(true).open(output)?;
        let mut command = Command::new(program);
        // What tells our caller's `millrace` about some node is nothing for this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MILLRACE_")) {
            command.env_remove(name);
        }
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        let written = Self::of(child.id()).and_then(|detached| detached.write(file).map(|()| detached));
        if written.is_err() {
            let mut child = child;
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        written
    }

    /// A process that runs now.
    ///
    /// # Errors
    /// If there is none with this id.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let seen = look(pid)?.ok_or_else(|| io::Error::other(format!("there is no process {pid}")))?;
        Ok(Self { pid, began: seen.began })
    }

    /// Puts it down in a file, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, file)
    }

    /// Who a file says it is, if that process still runs.
    #[must_use]
    pub(super) fn find(file: &Path) -> Option<Self> {
        let found: Self = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        found.is_running().then_some(found)
    }

    /// Whether it runs: it, and not another with its id.
    #[must_use]
    pub(super) fn is_running(&self) -> bool {
        look(self.pid).ok().flatten().is_some_and(|seen| seen.began == self.began && !seen.is_dead)
    }

    /// Kills it at once, and waits until it is gone. One that is gone already is left in peace.
    ///
    /// # Errors
    /// If the system does not let us, or it is not gone in time.
    pub(super) fn kill(&self, limit: Duration) -> io::Result<()> {
        self.signal(Signal::KILL)?;
        if self.wait(limit) { Ok(()) } else { Err(io::Error::other(format!("process {} does not die", self.pid))) }
    }

    /// Asks it to end.
    ///
    /// # Errors
    /// If the system does not let us.
    pub(super) fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other(format!("{} is no process id", self.pid)))?;
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end; whether it came.
    #[must_use]
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(LOOK_AGAIN);
        }
        true
    }
}

fn look(pid: u32) -> io::Result<Option<Seen>> {
    if Path::new("/proc/self/stat").exists() { look_in_proc(pid) } else { look_by_ps(pid) }
}

/// Linux: the process's own file. Times are counted from the system's start, so that goes with it.
fn look_in_proc(pid: u32) -> io::Result<Option<Seen>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // It ended while it was being read.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Ok(read_stat(&stat)
        .map(|(state, ticks)| Seen { began: format!("{} {ticks}", boot.trim()), is_dead: matches!(state, 'Z' | 'X') }))
}

/// State and start (fields 3 and 22) of a `stat`. The name before them may hold spaces and parentheses.
fn read_stat(stat: &str) -> Option<(char, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// Elsewhere: `ps`, which says when to the second.
fn look_by_ps(pid: u32) -> io::Result<Option<Seen>> {
    let output = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((state, began)) = text.trim().split_once(char::is_whitespace) else { return Ok(None) };
    Ok(Some(Seen { began: began.trim().to_owned(), is_dead: state.starts_with('Z') }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn sleeper(folder: &Path) -> Detached {
        let arguments = ["-c".into(), "echo word; exec sleep 600".into()];
        Detached::start(Path::new("/bin/sh"), &arguments, &folder.join("log"), &folder.join("who")).unwrap()
    }

    #[test]
    fn it_is_found_again_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        let started = sleeper(folder.path());
        let found = Detached::find(&folder.path().join("who")).unwrap();
        assert_eq!(found, started);
        let said = || fs::read_to_string(folder.path().join("log")).unwrap();
        let until = Instant::now() + LIMIT;
        while said().is_empty() {
            assert!(Instant::now() < until, "it says nothing");
            thread::sleep(LOOK_AGAIN);
        }
        found.kill(LIMIT).unwrap();
        assert!(!started.is_running());
        assert_eq!(Detached::find(&folder.path().join("who")), None);
        // Once more does nothing.
        found.kill(LIMIT).unwrap();
        assert_eq!(said(), "word\n");
    }

    #[test]
    fn another_process_with_its_id_is_left_in_peace() {
        let folder = tempfile::tempdir().unwrap();
        let real = sleeper(folder.path());
        let stale = Detached { pid: real.pid, began: "long ago".to_owned() };
        stale.write(&folder.path().join("stale")).unwrap();
        assert_eq!(Detached::find(&folder.path().join("stale")), None);
        stale.kill(LIMIT).unwrap();
        stale.terminate().unwrap();
        assert!(real.is_running());
        real.kill(LIMIT).unwrap();
    }

    #[test]
    fn a_file_that_holds_something_else_names_nobody() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Detached::find(&folder.path().join("none")), None);
        fs::write(folder.path().join("odd"), "17").unwrap();
        assert_eq!(Detached::find(&folder.path().join("odd")), None);
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_in_stat() {
        let stat = "17 (a ) b) S 1 17 17 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        assert_eq!(read_stat(stat), Some(('S', 987_654)));
        assert_eq!(read_stat("17 (a"), None);
    }
}
