//! The program `millraced` from outside: what it says, and how it ends, when it cannot or shall not run.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const BITCOIND_PASSWORD: &str = "hunter2hunter2";

fn millraced(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millraced"));
    command.env_clear().env("HOME", home).env("MILLRACE_BITCOIND_PASSWORD", BITCOIND_PASSWORD);
    command.arg("--bitcoind-user=bob").args(arguments).output().unwrap()
}

/// Exit code, standard output, standard error; in neither is the password.
fn outcome(home: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = millraced(home, arguments);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(!out.contains(BITCOIND_PASSWORD) && !err.contains(BITCOIND_PASSWORD), "{out}{err}");
    (output.status.code().unwrap(), out, err)
}

#[test]
fn help_and_version_are_answers() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, _) = outcome(home.path(), &["--help"]);
    assert_eq!(code, 0);
    assert!(out.contains("--channel-reserve-ppm") && out.contains("MILLRACE_RPC_LISTEN"), "{out}");
    assert!(!out.contains("--bitcoind-password"), "{out}");
    let (code, out, _) = outcome(home.path(), &["--version"]);
    assert_eq!((code, out.starts_with("millraced ")), (0, true));
}

#[test]
fn mistakes_on_the_command_line_and_in_settings_are_3() {
    let home = tempfile::tempdir().unwrap();
    let (code, _, err) = outcome(home.path(), &["--lissten=1"]);
    assert!(code == 3 && err.contains("--listen"), "{err}");
    let (code, _, err) = outcome(home.path(), &["--network=mainnet"]);
    assert!(code == 3 && err.contains("regtest, signet, testnet4 or bitcoin"), "{err}");
    let file = home.path().join("settings.toml");
    std::fs::write(&file, "[channel]\nreserve_pmm = 1\n").unwrap();
    let (code, _, err) = outcome(home.path(), &["--config", file.to_str().unwrap()]);
    assert!(code == 3 && err.contains("line 2: unknown key `channel.reserve_pmm`"), "{err}");
}

#[test]
fn settings_are_shown_with_their_sources() {
    let home = tempfile::tempdir().unwrap();
    let (code, out, _) = outcome(home.path(), &["--print-config", "--alias=miller"]);
    assert_eq!(code, 0);
    assert!(out.contains("alias = \"miller\"  # flag, --alias"), "{out}");
    assert!(out.contains("# password = (not shown)  # environment, MILLRACE_BITCOIND_PASSWORD"), "{out}");
    let (code, out, _) = outcome(home.path(), &["--check-config"]);
    assert_eq!((code, out.as_str()), (0, "The settings are right.\n"));
    assert!(!home.path().join(".millrace").exists(), "looking creates nothing");
}

#[test]
fn real_money_needs_consent() {
    let home = tempfile::tempdir().unwrap();
    let (code, _, err) = outcome(home.path(), &["--network=bitcoin"]);
    assert_eq!(code, 1);
    assert!(err.contains("--i-accept-the-risk-of-losing-money"), "{err}");
    assert!(!home.path().join(".millrace").exists());
}

#[test]
fn a_folder_in_use_is_named_with_its_holder() {
    use bitcoin::Network;
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("data");
    let _held = millraced::data_dir::DataDir::open(&folder, Network::Regtest).unwrap();
    let (code, _, err) = outcome(home.path(), &["--data-dir", folder.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(err.contains(&format!("in use by another millraced (process {})", std::process::id())), "{err}");
}

#[test]
fn a_seed_is_restored_but_not_shown_to_a_pipe() {
    let home = tempfile::tempdir().unwrap();
    let words = home.path().join("words");
    let seed = millraced::seed::Seed::from_entropy(&[3; 32]);
    std::fs::write(&words, seed.words()).unwrap();
    let argument = format!("--restore-seed-file={}", words.display());
    let (code, out, err) = outcome(home.path(), &[&argument]);
    assert_eq!(code, 0, "{err}");
    let keys = millraced::keys::Keys::derive(&seed, bitcoin::Network::Regtest);
    assert!(out.contains(&keys.node_id().to_string()), "{out}");
    let (code, _, err) = outcome(home.path(), &[&argument]);
    assert!(code == 1 && err.contains("exists already and is not overwritten"), "{err}");
    let (code, out, err) = outcome(home.path(), &["--print-seed"]);
    assert!(code == 1 && err.contains("on a terminal only"), "{err}");
    let first = seed.words().split(' ').next().unwrap();
    assert!(!out.contains(first) && !err.contains(first));
}
