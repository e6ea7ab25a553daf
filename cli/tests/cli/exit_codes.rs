//! Each exit code, from each way of getting there, and what is said on standard error.

use serde_json::{Value, json};

use crate::fake::{Fake, Ran};

fn error(ran: &Ran) -> Value {
    serde_json::from_str::<Value>(&ran.stderr).unwrap()["error"].clone()
}

mod refused {
    use super::*;

    #[test]
    fn a_refusal_shows_its_facts_and_the_hint() {
        let fake = Fake::start();
        let ran = fake.run(&["wallet", "send", "poor", "50000sat"]);
        assert_eq!(ran.code, 1);
        assert_eq!(ran.stdout, "");
        assert_eq!(
            ran.stderr,
            "error: 50500 sat needed, 1200 sat available\n  available_sat: 1200\n  needed_sat: 50500\n\
             hint: Receive coins first: millrace wallet new-address.\n"
        );
    }

    #[test]
    fn a_refusal_in_json() {
        let fake = Fake::start();
        let ran = fake.run(&["wallet", "send", "poor", "50000sat", "--json"]);
        assert_eq!(ran.code, 1);
        assert_eq!(
            error(&ran),
            json!({
                "kind": "refused",
                "exit_code": 1,
                "message": "50500 sat needed, 1200 sat available",
                "hint": "Receive coins first: millrace wallet new-address.",
                "code": "FAILED_PRECONDITION",
                "reason": "INSUFFICIENT_BALANCE",
                "facts": { "needed_sat": "50500", "available_sat": "1200" },
            })
        );
    }

    #[test]
    fn a_payment_that_is_not_even_tried() {
        let ran = Fake::start().run(&["pay", "poor", "--json"]);
        assert_eq!(ran.code, 1);
        assert_eq!(error(&ran)["reason"], "INSUFFICIENT_BALANCE");
    }

    #[test]
    fn a_key_that_was_used_for_something_else() {
        let ran = Fake::start().run(&["pay", "conflict", "--idempotency-key", "k", "--json"]);
        assert_eq!(ran.code, 1);
        assert_eq!(error(&ran)["reason"], "IDEMPOTENCY_CONFLICT");
        assert_eq!(error(&ran)["code"], "ALREADY_EXISTS");
    }

    #[test]
    fn a_node_that_is_starting_is_not_asked_again() {
        let fake = Fake::start();
        let ran = fake.run(&["pay", "starting"]);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("the node is starting"));
        assert_eq!(fake.requests().len(), 1);
    }

    #[test]
    fn events_that_are_no_longer_kept() {
        let ran = Fake::start().run(&["events", "--from", "5:0", "--json"]);
        assert_eq!(ran.code, 1);
        assert_eq!(error(&ran)["code"], "OUT_OF_RANGE");
        assert_eq!(error(&ran)["facts"], json!({ "oldest_frame": "7", "oldest_index": "0" }));
    }

    #[test]
    fn a_channel_that_does_not_exist() {
        let ran = Fake::start().run(&["channel", "show", &"99".repeat(32), "--json"]);
        assert_eq!(ran.code, 1);
        assert_eq!(error(&ran)["reason"], "NOT_FOUND");
    }
}

mod unreachable {
    use super::*;

    #[test]
    fn nobody_listens() {
        let fake = Fake::start();
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("https://{free}");
        for command in [&["node", "info"][..], &["pay", "x"], &["events"], &["wallet", "send", "x", "1sat"]] {
            let ran = fake.run(&[command, &["--rpc", &url]].concat());
            assert_eq!(ran.code, 2, "{command:?}: {ran:?}");
            assert!(ran.stderr.contains(&url));
            assert!(ran.stderr.contains("Is millraced running?"));
        }
    }

    #[test]
    fn no_daemon_has_ever_run() {
        let fake = Fake::start();
        let empty = tempfile::tempdir().unwrap();
        let ran = fake.run(&["node", "info", "--data-dir", empty.path().to_str().unwrap()]);
        assert_eq!(ran.code, 2);
        assert!(ran.stderr.contains("https://127.0.0.1:9737"), "{}", ran.stderr);
    }

    /// Somebody else's server, with a certificate of its own, never sees the token.
    #[test]
    fn a_stranger_with_another_certificate() {
        let (fake, stranger) = (Fake::start(), Fake::start());
        let ran = fake.run(&["node", "info", "--rpc", &stranger.url()]);
        assert_eq!(ran.code, 2);
        assert!(stranger.requests().is_empty());
    }
}

mod usage {
    use super::*;

    /// A command for one network never reaches a daemon of another, however its folder was named.
    #[test]
    fn a_folder_of_another_network() {
        let fake = Fake::start();
        std::fs::write(fake.file("network"), "regtest\n").unwrap();
        let folder = fake.file("").to_str().unwrap().to_owned();
        let command = ["wallet", "new-address", "--data-dir", &folder];
        let by_flag = fake.run(&[&command[..], &["--network", "bitcoin"]].concat());
        let by_environment = fake.command(&command).env("MILLRACE_NETWORK", "bitcoin").output().unwrap();
        assert_eq!((by_flag.code, by_environment.status.code()), (3, Some(3)), "{by_flag:?}");
        assert!(by_flag.stderr.contains("is for the network regtest"), "{}", by_flag.stderr);
        assert!(fake.requests().is_empty());
        assert_eq!(fake.run(&[&command[..], &["--network", "regtest"]].concat()).code, 0);
    }

    #[test]
    fn what_cannot_be_understood() {
        let fake = Fake::start();
        let wrong: [&[&str]; 15] = [
            &[],
            &["nonsense"],
            &["wallet", "send", "bcrt1q", "21"],
            &["wallet", "send", "bcrt1q", "21msat"],
            &["wallet", "send", "bcrt1q", "1sat", "--target", "1", "--feerate", "1"],
            &["pay", "x", "--idempotency-key", ""],
            &["channel", "show", "c1"],
            &["channel", "close", "c1c1", "--force", "--address", "x"],
            &["node", "info", "--rpc", "http://127.0.0.1:1"],
            &["node", "info", "--json", "--table"],
            &["events", "--from", "1:2", "--from-start"],
            &["invoice", "create", "--expiry", "90"],
            &["invoice", "create", "--hash", "00"],
            &["invoice", "settle"],
            &["invoice", "cancel", "00"],
        ];
        for arguments in wrong {
            let ran = fake.run(arguments);
            assert_eq!(ran.code, 3, "{arguments:?}: {ran:?}");
            assert!(!ran.stderr.is_empty());
            assert_eq!(ran.stdout, "");
        }
        assert!(fake.requests().is_empty());
    }

    #[test]
    fn an_amount_without_a_unit_says_what_to_write() {
        let ran = Fake::start().run(&["pay", "x", "21"]);
        assert!(ran.stderr.contains("write 21sat, 21msat or 21btc"), "{}", ran.stderr);
    }

    #[test]
    fn several_networks_and_none_named() {
        let fake = Fake::start();
        let other = fake.data_dir().join("signet");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("rpc.json"), "{\"url\":\"https://127.0.0.1:1\"}").unwrap();
        let ran = fake.run(&["node", "info"]);
        assert_eq!(ran.code, 3);
        assert!(ran.stderr.contains("--network regtest or --network signet"), "{}", ran.stderr);
        assert_eq!(fake.run(&["node", "info", "--network", "regtest"]).code, 0);
    }

    #[test]
    fn the_beginning_of_an_id_that_names_none_or_several() {
        let fake = Fake::start();
        let ran = fake.run(&["channel", "show", "ffff"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (3, "error: no channel id begins with ffff\n"));
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for flag in ["--help", "-h", "--version"] {
            let ran = Fake::start().run(&[flag]);
            assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{flag}");
        }
    }
}

mod payment_failed {
    use super::*;

    #[test]
    fn a_payment_that_was_tried() {
        let fake = Fake::start();
        let ran = fake.run(&["pay", "unpayable"]);
        assert_eq!(ran.code, 4);
        assert_eq!(ran.lines().last().unwrap()["payment"]["status"], "failed");
        assert_eq!(
            ran.stderr,
            "error: payment failed: payee refused: incorrect_or_unknown_payment_details\n\
             hint: Ask the payee for a new invoice.\n"
        );
        assert_eq!(fake.requests().len(), 1);
    }

    #[test]
    fn in_json() {
        let ran = Fake::start().run(&["pay", "unpayable", "--json"]);
        assert_eq!(ran.code, 4);
        assert_eq!(error(&ran)["failure"]["reason"], "payee_refused");
    }
}

mod unauthorised {
    use super::*;

    #[test]
    fn a_wrong_token() {
        let fake = Fake::start();
        std::fs::write(fake.file("access.token"), "wrong").unwrap();
        for command in [&["node", "info"][..], &["pay", "x"], &["events"]] {
            let ran = fake.run(command);
            assert_eq!(ran.code, 6, "{ran:?}");
            assert!(ran.stderr.contains("no valid access token"));
            assert!(ran.stderr.contains("hint: The token stands in access.token."));
        }
        assert!(fake.requests().is_empty());
    }

    #[test]
    fn no_token_file_an_empty_one_and_one_with_odd_bytes() {
        let fake = Fake::start();
        std::fs::write(fake.file("access.token"), "\n").unwrap();
        assert_eq!(fake.run(&["node", "info"]).code, 6);
        std::fs::write(fake.file("access.token"), "a\nb").unwrap();
        assert_eq!(fake.run(&["node", "info"]).code, 6);
        std::fs::remove_file(fake.file("access.token")).unwrap();
        let ran = fake.run(&["node", "info"]);
        assert_eq!(ran.code, 6);
        assert!(ran.stderr.contains("access.token"));
    }

    /// The token is a secret: no message shows it.
    #[test]
    fn a_token_is_never_shown() {
        let fake = Fake::start();
        std::fs::write(fake.file("access.token"), "topsecret").unwrap();
        for json in [&["node", "info"][..], &["node", "info", "--json"]] {
            assert!(!fake.run(json).stderr.contains("topsecret"));
        }
    }
}

/// Each place named by itself, by flags and by the environment.
#[test]
fn places_named_one_by_one() {
    let fake = Fake::start();
    let empty = tempfile::tempdir().unwrap();
    let (cert, token) = (fake.file("tls.cert"), fake.file("access.token"));
    let by_flags = fake.run(&[
        "node",
        "info",
        "--data-dir",
        empty.path().to_str().unwrap(),
        "--rpc",
        &fake.url(),
        "--tls-cert",
        cert.to_str().unwrap(),
        "--token-file",
        token.to_str().unwrap(),
    ]);
    assert_eq!(by_flags.code, 0, "{by_flags:?}");
    let by_environment = fake
        .command(&["node", "info"])
        .env("MILLRACE_DATA_DIR", empty.path())
        .env("MILLRACE_RPC", fake.url())
        .env("MILLRACE_TLS_CERT", &cert)
        .env("MILLRACE_TOKEN_FILE", &token)
        .output()
        .unwrap();
    assert!(by_environment.status.success());
}

/// Whoever reads the output may stop reading. That is no error, and hides none.
mod a_reader_that_goes_away {
    use std::process::Stdio;

    use super::*;

    fn unread(arguments: &[&str]) -> Ran {
        let fake = Fake::start();
        let mut command = fake.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        Ran::from(child.wait_with_output().unwrap())
    }

    #[test]
    fn ends_the_events() {
        assert_eq!(unread(&["events", "--from-start"]).code, 0);
    }

    #[test]
    fn does_not_end_a_payment() {
        assert_eq!(unread(&["pay", "x"]).code, 0);
        assert_eq!(unread(&["pay", "unpayable"]).code, 4);
        assert_eq!(unread(&["pay", "vanish", "--retry-for", "0s"]).code, 5);
    }
}

/// What was done but could not be told is not refused.
#[test]
fn an_output_that_is_full() {
    let fake = Fake::start();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = fake.command(&["wallet", "send", "x", "1sat"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(fake.requests().len(), 1);
}

/// What a peer or a payee says cannot drive the terminal.
#[test]
fn no_escape_sequences() {
    let fake = Fake::start();
    for arguments in [&["invoice", "decode", "x", "--table"][..], &["wallet", "send", "escape", "1sat"]] {
        let ran = fake.run(arguments);
        assert!(!format!("{}{}", ran.stdout, ran.stderr).contains('\u{1b}'), "{ran:?}");
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains("[2J"), "{ran:?}");
    }
}
