//! A child process that does not outlive us, not even if we are killed.
//!
//! A small shell stands between: it starts the program and reads a pipe whose other end only this
//! process holds. Words on the pipe are signals to pass on; the end of the pipe, which the system
//! brings about however this process ends, kills the program. (The system's own call for this,
//! `PR_SET_PDEATHSIG`, exists on Linux only and needs `unsafe`.)
//!
//! It does not clean up files: a killed test leaves its temporary folder.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The shell's part. The reader is a process of its own, so that the shell can wait for the program
/// at the same time; it runs in the background, where a shell gives no standard input unless told. What the shell itself
/// has to say, such as that the program was killed, does not belong into the program's output.
const SCRIPT: &str = r#"
exec 3<&0
"$@" 3<&- </dev/null &
program=$!
exec 2>/dev/null
{
    while read -r signal <&3; do
        [ "$signal" = LEAVE ] && exit
        kill -s "$signal" "$program" 2>/dev/null
    done
    kill -s KILL "$program" 2>/dev/null
} >/dev/null 2>&1 &
reader=$!
exec 3<&-
wait "$program"
code=$?
kill -s KILL "$reader" 2>/dev/null
exit "$code"
"#;

/// How often the end of the program is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A running program.
pub(crate) struct Supervised {
    shell: Child,
    pipe: Option<ChildStdin>,
    is_left: bool,
}

impl Supervised {
    /// Starts `program`; what it prints goes to the end of the file `output`.
    pub(crate) fn start(program: &Path, arguments: &[OsString], output: &Path) -> io::Result<Self> {
        let output = File::options().create(true).append(true).open(output)?;
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "supervisor"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe, is_left: false })
    }

    /// Whether and how it has ended.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.shell.try_wait()
    }

    /// Waits for its end; `None` if the time limit comes first.
    pub(crate) fn wait_for(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Asks it to end.
    pub(crate) fn terminate(&mut self) {
        if let Some(pipe) = &mut self.pipe {
            // A pipe that nobody reads any more belongs to a program that has ended.
            let _ = pipe.write_all(b"TERM\n");
        }
    }

    /// Lets it go on when this process has ended.
    pub(crate) fn leave_running(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // As above: a pipe that nobody reads belongs to a program that has ended.
            let _ = pipe.write_all(b"LEAVE\n");
        }
        self.is_left = true;
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&mut self) -> io::Result<ExitStatus> {
        drop(self.pipe.take());
        self.shell.wait()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if !self.is_left {
            let _ = self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A program that writes its process id and then sleeps; `trap` is put before that.
    fn sleeper(folder: &Path, trap: &str) -> (Supervised, PathBuf) {
        let pid = folder.join("pid");
        let text =
            format!("{trap}\necho $$ > '{0}.new'; mv '{0}.new' '{0}'; while :; do sleep 0.05; done", pid.display());
        let arguments = ["-c".into(), text.into()];
        let child = Supervised::start(Path::new("/bin/sh"), &arguments, &folder.join("out")).unwrap();
        let until = Instant::now() + LIMIT;
        while !pid.exists() {
            assert!(Instant::now() < until, "the program did not start");
            thread::sleep(LOOK_AGAIN);
        }
        (child, pid)
    }

    fn is_alive(pid_file: &Path) -> bool {
        let pid = fs::read_to_string(pid_file).unwrap();
        Command::new("/bin/sh")
            .args(["-c", &format!("kill -0 {}", pid.trim())])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    #[test]
    fn exit_code_passes_through() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["-c".into(), "echo word; exit 7".into()];
        let output = folder.path().join("out");
        let mut child = Supervised::start(Path::new("/bin/sh"), &arguments, &output).unwrap();
        assert_eq!(child.wait_for(LIMIT).unwrap().unwrap().code(), Some(7));
        assert_eq!(fs::read_to_string(output).unwrap(), "word\n");
    }

    #[test]
    fn terminate_lets_it_end_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, pid) = sleeper(folder.path(), "trap 'exit 3' TERM");
        child.terminate();
        assert_eq!(child.wait_for(LIMIT).unwrap().unwrap().code(), Some(3));
        assert!(!is_alive(&pid));
    }

    #[test]
    fn output_of_a_killed_one_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, _pid) = sleeper(folder.path(), "echo word >&2");
        child.kill().unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("out")).unwrap(), "word\n");
    }

    #[test]
    fn kill_takes_one_that_will_not_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, pid) = sleeper(folder.path(), "trap '' TERM");
        child.terminate();
        assert_eq!(child.wait_for(Duration::from_millis(200)).unwrap(), None);
        child.kill().unwrap();
        assert!(!is_alive(&pid));
    }

    #[test]
    fn leave_running_outlives_us() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, pid) = sleeper(folder.path(), "");
        child.leave_running();
        drop(child);
        thread::sleep(Duration::from_millis(200));
        assert!(is_alive(&pid));
        let pid = fs::read_to_string(pid).unwrap();
        Command::new("/bin/sh").args(["-c", &format!("kill -9 {}", pid.trim())]).status().unwrap();
    }

    /// What a killed test process amounts to: the pipe's end closes, and nobody waits.
    #[test]
    fn closed_pipe_kills_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, pid) = sleeper(folder.path(), "trap '' TERM");
        drop(child.pipe.take());
        let until = Instant::now() + LIMIT;
        while is_alive(&pid) {
            assert!(Instant::now() < until, "it outlived the pipe");
            thread::sleep(LOOK_AGAIN);
        }
    }
}
