//! Programs as their user runs them: to their end, with what they said; and signals.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::timeout;

/// No program of a test runs longer.
const LIMIT: Duration = Duration::from_secs(60);

/// What a program came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A program that is running, without settings from this process's environment; it ends with its handle.
pub(crate) fn begin(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Child {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MILLRACE_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true).spawn().unwrap()
}

/// Waits until it has ended.
pub(crate) async fn end(child: Child) -> Ended {
    let output = timeout(LIMIT, child.wait_with_output()).await.expect("it does not end").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs it to its end.
pub(crate) async fn run(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Ended {
    end(begin(program, arguments)).await
}

/// Sends a signal, by its name. A process that is to be held still stands still when this returns.
pub(crate) async fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().await.unwrap();
    assert!(status.success());
    while name == "STOP" && !stands_still(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether every thread of it has stopped: a signal says when it was sent, not when it was obeyed.
fn stands_still(pid: u32) -> bool {
    // Elsewhere than on Linux it is taken at its word.
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default()).all(|stat| {
        // The state follows the name, which stands in brackets and may hold anything.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}
