//! The rules of the house, read from `cargo metadata` and from the sources: who may depend on whom, what is pure, and
//! what may be done in one place only.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The system that this compiler runs on, as it names it itself.
fn host() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

/// Ordinary dependencies of every package, by name; those for tests and builds are left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // A machine that has built everything need not have what only other systems need.
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host()])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let is_ordinary = |kind: &Value| kind["kind"].is_null();
    metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let ordinary = node["deps"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|dep| dep["dep_kinds"].as_array().unwrap().iter().any(is_ordinary));
            let deps = ordinary.map(|dep| names[dep["pkg"].as_str().unwrap()].to_owned()).collect();
            (names[node["id"].as_str().unwrap()].to_owned(), deps)
        })
        .collect()
}

/// Everything that a package comes with.
fn closure(of: &str, dependencies: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![of.to_owned()];
    while let Some(name) = open.pop() {
        for dep in &dependencies[&name] {
            if seen.insert(dep.clone()) {
                open.push(dep.clone());
            }
        }
    }
    seen
}

/// Which of our own crates each of them may name.
const MAY: &[(&str, &[&str])] = &[
    ("millrace-wire", &[]),
    ("millrace-rpc", &[]),
    ("millrace-channel", &["millrace-wire"]),
    ("millrace-routing", &["millrace-wire"]),
    // The tower's own contract is a file of the RPC's.
    (
        "millrace-watchtower",
        &["millrace-rpc", "millrace-channel", "millrace-wire", "millrace-journal", "millrace-chain"],
    ),
    ("millrace-journal", &[]),
    ("millrace-chain", &[]),
    (
        "millraced",
        &[
            "millrace-wire",
            "millrace-rpc",
            "millrace-channel",
            "millrace-routing",
            "millrace-watchtower",
            "millrace-journal",
            "millrace-chain",
        ],
    ),
    ("millrace", &["millrace-rpc"]),
    // `bench route` measures searches, which are no call of the daemon's.
    (
        "millrace-regtest",
        &["millrace-rpc", "millrace-watchtower", "millrace-wire", "millrace-channel", "millrace-routing"],
    ),
];

const PURE: &[&str] = &["millrace-wire", "millrace-channel", "millrace-routing"];

/// Crates that touch the world; none may be behind a pure crate.
const IMPURE: &[&str] =
    &["tokio", "mio", "socket2", "tonic", "hyper", "sled", "rustix", "tracing-subscriber", "chrono", "reqwest"];

#[test]
fn our_crates_depend_only_on_whom_they_may() {
    let dependencies = dependencies();
    let ours: BTreeSet<&str> = MAY.iter().map(|(name, _)| *name).collect();
    for (name, may) in MAY {
        for dep in dependencies[*name].iter().filter(|dep| ours.contains(dep.as_str())) {
            assert!(may.contains(&dep.as_str()), "{name} depends on {dep}");
        }
    }
    let unknown: Vec<&String> =
        dependencies.keys().filter(|name| name.starts_with("millrace") && !ours.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "crates without a rule: {unknown:?}");
}

#[test]
fn pure_crates_come_without_the_world() {
    let dependencies = dependencies();
    for name in PURE {
        let closure = closure(name, &dependencies);
        let found: Vec<&&str> = IMPURE.iter().filter(|impure| closure.contains(**impure)).collect();
        assert!(found.is_empty(), "{name} comes with {found:?}");
        // Others bring the source of chance along; what a crate does not name, it can only reach by a banned call.
        let chance: Vec<_> = ["rand", "getrandom"].into_iter().filter(|c| dependencies[*name].contains(*c)).collect();
        assert!(chance.is_empty(), "{name} names {chance:?}");
    }
    // The list would be worthless if these names were never found anywhere.
    assert!(closure("millraced", &dependencies).contains("tokio"));
}

#[test]
fn pure_crates_ban_the_calls_by_name() {
    for folder in ["proto/wire", "channel", "routing"] {
        let text = fs::read_to_string(root().join(folder).join("clippy.toml")).unwrap();
        for call in [
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "std::thread::spawn",
            "std::fs::read",
            "secp256k1::rand::thread_rng",
            "secp256k1::rand::rngs::OsRng",
            "std::collections::HashMap",
        ] {
            assert!(text.contains(call), "{folder}/clippy.toml does not ban {call}");
        }
    }
}

/// The Rust sources of the product (no tests, examples or benches), with their text.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                out.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    for folder in [
        "proto/wire",
        "proto/rpc",
        "channel",
        "routing",
        "watchtower",
        "daemon",
        "daemon/journal",
        "daemon/chain",
        "cli",
    ] {
        walk(&root().join(folder).join("src"), &mut paths);
    }
    let is_test = |name: &str| name.contains("/tests/") || name.ends_with("tests.rs");
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            // What follows `#[cfg(test)]` at the end of a file is its tests.
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
            (name, code)
        })
        .filter(|(name, _)| !is_test(name))
        .collect()
}

/// Lines of code (no comments) that hold `word`, outside the places that may.
fn found_outside(word: &str, may: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in sources() {
        if may.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            if line.contains(word) && !line.trim_start().starts_with("//") {
                found.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    found
}

#[test]
fn only_the_journal_syncs_and_the_files_that_are_named() {
    for word in ["sync_all(", "sync_data(", "fdatasync(", "fsync("] {
        // The data folder's own small files (seed, certificate, token) must survive a power cut as well.
        let found = found_outside(
            word,
            &[
                "daemon/journal/",
                "daemon/src/data_dir.rs",
                "daemon/src/seed.rs",
                "daemon/src/tls.rs",
                "daemon/src/token.rs",
                // The tower's key, by which its clients know it.
                "watchtower/src/program/identity.rs",
            ],
        );
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn tonic_is_spoken_only_at_the_edge() {
    let found = found_outside("tonic::", &["proto/rpc/", "daemon/src/api", "cli/", "watchtower/"]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_the_peer_module_opens_lightning_sockets() {
    for word in ["TcpStream", "TcpSocket"] {
        // Those of a tower and its clients carry no Lightning messages.
        let tower = [
            "watchtower/src/transport.rs",
            "watchtower/src/server.rs",
            "watchtower/src/client/line.rs",
            "watchtower/src/client/site.rs",
        ];
        let may: Vec<&str> = ["daemon/src/peer", "daemon/chain/", "cli/"].into_iter().chain(tower).collect();
        let found = found_outside(word, &may);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn nothing_unsafe_anywhere() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(text.contains("unsafe_code = \"deny\""));
    let found = found_outside("allow(unsafe_code)", &[]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for folder in [
        "proto/wire",
        "proto/rpc",
        "channel",
        "routing",
        "watchtower",
        "daemon",
        "daemon/journal",
        "daemon/chain",
        "cli",
        "regtest",
    ] {
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{folder} has lints of its own");
    }
}
