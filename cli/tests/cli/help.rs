//! The help of every command, kept as files, so that a change to what people read is seen.

use std::process::Command;

use crate::snapshot;

const COMMANDS: [&[&str]; 51] = [
    &[],
    &["node"],
    &["node", "info"],
    &["node", "status"],
    &["node", "announce"],
    &["node", "stop"],
    &["wallet"],
    &["wallet", "new-address"],
    &["wallet", "balance"],
    &["wallet", "send"],
    &["wallet", "bump-fee"],
    &["wallet", "list"],
    &["wallet", "utxos"],
    &["peer"],
    &["peer", "connect"],
    &["peer", "disconnect"],
    &["peer", "list"],
    &["tower"],
    &["tower", "add"],
    &["tower", "remove"],
    &["tower", "list"],
    &["tower", "status"],
    &["channel"],
    &["channel", "open"],
    &["channel", "close"],
    &["channel", "list"],
    &["channel", "show"],
    &["channel", "take-commitment"],
    &["channel", "policy"],
    &["channel", "policy", "set"],
    &["graph"],
    &["graph", "info"],
    &["graph", "node"],
    &["graph", "channel"],
    &["graph", "route"],
    &["invoice"],
    &["invoice", "create"],
    &["invoice", "settle"],
    &["invoice", "cancel"],
    &["invoice", "decode"],
    &["invoice", "list"],
    &["invoice", "show"],
    &["pay"],
    &["payment"],
    &["payment", "list"],
    &["payment", "show"],
    &["forward"],
    &["forward", "list"],
    &["events"],
    &["completions"],
    &["man"],
];

fn millrace(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_millrace")).args(arguments).env_clear().output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn help_of_every_command() {
    for command in COMMANDS {
        let arguments = [command, &["--help"]].concat();
        let (code, text) = millrace(&arguments);
        assert_eq!(code, 0, "{arguments:?}");
        let name = [&["millrace"], command].concat().join("-");
        snapshot::check(&format!("help/{name}"), &text);
    }
}

/// A command that is missing from the list above would have no snapshot.
#[test]
fn every_command_has_a_snapshot() {
    for command in COMMANDS {
        let (_, text) = millrace(&[command, &["--help"]].concat());
        let Some((_, listed)) = text.split_once("\nCommands:\n") else {
            continue;
        };
        let lines = listed.lines().take_while(|line| !line.trim().is_empty());
        for line in lines.filter(|line| !line.starts_with("   ")) {
            let name = line.split_whitespace().next().unwrap();
            let full = [command, &[name]].concat();
            assert!(name == "help" || COMMANDS.contains(&full.as_slice()), "{full:?}");
        }
    }
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script) = millrace(&["completions", shell]);
        assert_eq!(code, 0);
        assert!(script.contains("new-address"), "{shell}");
    }
    assert_eq!(millrace(&["completions", "tcsh"]).0, 3);
}

#[test]
fn manual_pages() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _) = millrace(&["man", folder.path().to_str().unwrap()]);
    assert_eq!(code, 0);
    for page in ["millrace.1", "millrace-pay.1", "millrace-channel-open.1"] {
        assert!(folder.path().join(page).exists(), "{page}");
    }
    let (code, page) = millrace(&["man"]);
    assert_eq!(code, 0);
    assert!(page.contains(".TH millrace 1"));
}
