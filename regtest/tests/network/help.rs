//! The help of every command, kept as files in `tests/snapshots`, so that a change to what people read is seen.
//!
//! `MILLRACE_UPDATE_SNAPSHOTS=1 cargo test --test network` writes them anew.

use std::fs;
use std::path::Path;

use crate::support::program;

const COMMANDS: [&[&str]; 18] = [
    &[],
    &["up"],
    &["status"],
    &["mine"],
    &["env"],
    &["kill"],
    &["stop"],
    &["start"],
    &["load"],
    &["down"],
    &["crash"],
    &["matrix"],
    &["bench"],
    &["bench", "payments"],
    &["bench", "forward"],
    &["bench", "route"],
    &["bench", "tower"],
    &["bench", "watched"],
];

fn help(command: &[&str]) -> String {
    let output = program().args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_of_every_command() {
    for command in COMMANDS {
        let text = help(command);
        let name = [&["millrace-regtest"], command].concat().join("-");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
        if std::env::var_os("MILLRACE_UPDATE_SNAPSHOTS").is_some() {
            fs::write(&path, &text).unwrap();
            continue;
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(expected, text, "{} differs: MILLRACE_UPDATE_SNAPSHOTS=1 writes it anew", path.display());
    }
}

/// A command that is missing from the list above would have no snapshot.
#[test]
fn every_command_is_in_the_list() {
    for group in [&[][..], &["bench"]] {
        let text = help(group);
        let commands = text.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        for line in commands.lines() {
            let name = line.split_whitespace().next().unwrap();
            let wanted = [group, &[name]].concat();
            assert!(name == "help" || COMMANDS.contains(&wanted.as_slice()), "{wanted:?} is not in the list");
        }
    }
}
