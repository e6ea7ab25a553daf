//! A network's folder, the program, and what it answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A place for a network. When it is dropped, nothing of the network runs any more.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

/// What the program said.
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("mr-net-").tempdir().unwrap() }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.folder.path().join("net")
    }

    /// A file beside the network's folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs a command of the network.
    pub(crate) fn run(&self, words: &[&str]) -> Said {
        let mut command = program();
        command.args(words).arg("--dir").arg(self.dir());
        Said::of(command.output().unwrap())
    }

    /// The same; it must be done. Its last line is JSON.
    #[track_caller]
    pub(crate) fn done(&self, words: &[&str]) -> Value {
        let said = self.run(&[words, &["--json"]].concat());
        assert!(said.ok, "{words:?}: {}\n{}", said.out, said.err);
        said.json()
    }

    /// The same; it must be refused, in words.
    #[track_caller]
    pub(crate) fn refused(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert!(!said.ok, "{words:?} was done: {}", said.out);
        assert!(said.err.contains("error: "), "{words:?}: no reason in {}", said.err);
        said.err
    }

    /// The process that a file of the network names, whether it runs or not.
    pub(crate) fn pid(&self, name: &str) -> Option<u64> {
        let text = fs::read(self.dir().join("run").join(format!("{name}.json"))).ok()?;
        serde_json::from_slice::<Value>(&text).ok()?["pid"].as_u64()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.dir().join("network.json").exists() {
            return;
        }
        let down = self.run(&["down"]);
        if std::thread::panicking() {
            for entry in fs::read_dir(self.dir()).unwrap().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "log") {
                    show_tail(&entry.path());
                }
            }
        }
        assert!(down.ok || std::thread::panicking(), "{}", down.err);
    }
}

fn show_tail(path: &Path) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("--- {}\n{}", path.display(), lines[lines.len().saturating_sub(40)..].join("\n"));
}

impl Said {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.out.lines().last().unwrap_or_default())
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.out, self.err))
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-regtest"));
    command.env_remove("REGTEST_DIR");
    command
}

/// Whether a process is there, and more than a corpse that nobody has buried.
pub(crate) fn is_alive(pid: u64) -> bool {
    let output = Command::new("/bin/sh")
        .args(["-c", &format!("kill -0 {pid} && ! grep -q '^State:.[ZX]' /proc/{pid}/status")])
        .output();
    output.unwrap().status.success()
}

/// A node of a status.
#[track_caller]
pub(crate) fn node<'a>(status: &'a Value, name: &str) -> &'a Value {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("no {name} in {status}"))
}
