//! The program, as its owner runs it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use millrace_regtest::bitcoind::Bitcoind;
use serde_json::Value;

/// How long anything may take before the test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// A tower's folder, and the process while it runs.
pub(crate) struct Tower {
    pub(crate) folder: PathBuf,
    arguments: Vec<String>,
    listen: String,
    process: Option<Child>,
    pub(crate) address: String,
}

impl Tower {
    /// Starts one in an empty folder.
    pub(crate) fn start(folder: &Path, bitcoind: &Bitcoind) -> Self {
        let folder = folder.join("tower");
        let arguments = vec![
            "--data-dir".to_owned(),
            folder.display().to_string(),
            "--network=regtest".to_owned(),
            format!("--bitcoind-url={}", bitcoind.rpc_url()),
            format!("--bitcoind-cookie={}", bitcoind.cookie_path().display()),
            "--log-level=info,millrace_watchtower=debug".to_owned(),
        ];
        let mut tower =
            Self { folder, arguments, listen: "127.0.0.1:0".to_owned(), process: None, address: String::new() };
        tower.run();
        tower
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-tower"));
        command.args(&self.arguments).env_clear();
        command
    }

    /// Starts it again, where it listened before.
    pub(crate) fn run(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut process = self
            .command()
            .arg(format!("--listen={}", self.listen))
            .arg("run")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains('@'), "the tower did not start: {line}\n{}", self.log());
        self.address = line.trim().to_owned();
        self.listen = self.address.split_once('@').unwrap().1.to_owned();
        self.process = Some(process);
    }

    fn log_path(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM; gives its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut process = self.process.take().unwrap();
        let pid = process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        process.wait().unwrap().code()
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.ask(&["status", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Tower {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ended = process.kill();
            let _waited = process.wait();
        }
    }
}

/// Asks until it is so.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
