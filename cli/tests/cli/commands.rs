//! Every command's happy path: what it asks the daemon, and what it answers, as JSON and for a person.
//!
//! Each snapshot shows the command, the requests that the daemon got and the output.

use crate::fake::Fake;
use crate::snapshot;

const NODE: &str = "020202020202020202020202020202020202020202020202020202020202020202";
const HASH: &str = "e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1";

/// Runs a command in both forms and compares both with their snapshots.
#[track_caller]
fn both(name: &str, arguments: &[&str]) {
    let fake = Fake::start();
    let json = fake.run(arguments);
    check(&fake, &format!("json/{name}"), arguments, &json);
    for line in json.stdout.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON");
    }
    let for_people = [arguments, &["--table"]].concat();
    let table = fake.run(&for_people);
    check(&fake, &format!("table/{name}"), &for_people, &table);
}

#[track_caller]
fn check(fake: &Fake, name: &str, arguments: &[&str], ran: &crate::fake::Ran) {
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut text = format!("$ millrace {}\n", arguments.join(" "));
    for request in fake.requests() {
        text.push_str(&format!("> {request}\n"));
    }
    text.push_str(&ran.stdout);
    for line in ran.stderr.lines() {
        text.push_str(&format!("stderr: {line}\n"));
    }
    snapshot::check(name, &text);
}

mod node {
    use super::*;

    #[test]
    fn info() {
        both("node-info", &["node", "info"]);
    }

    #[test]
    fn status() {
        both("node-status", &["node", "status"]);
    }

    #[test]
    fn announce() {
        let face = ["--alias", "alice", "--color", "#3399ff", "--address", "203.0.113.7:9735"];
        both("node-announce", &[&["node", "announce", "--idempotency-key", "k"], &face[..]].concat());
    }

    #[test]
    fn stop() {
        both("node-stop", &["node", "stop", "--idempotency-key", "k"]);
    }
}

mod wallet {
    use super::*;

    #[test]
    fn new_address() {
        both("wallet-new-address", &["wallet", "new-address", "--idempotency-key", "k"]);
    }

    #[test]
    fn new_address_segwit_without_qr() {
        let arguments = ["wallet", "new-address", "--type", "segwit", "--no-qr", "--idempotency-key", "k"];
        both("wallet-new-address-segwit", &arguments);
    }

    #[test]
    fn balance() {
        both("wallet-balance", &["wallet", "balance"]);
    }

    #[test]
    fn send() {
        let arguments = ["wallet", "send", "bcrt1q", "0.0005btc", "--target", "3", "--idempotency-key", "k"];
        both("wallet-send", &arguments);
    }

    #[test]
    fn send_all() {
        let arguments = ["wallet", "send", "bcrt1q", "all", "--feerate", "2.5", "--idempotency-key", "k"];
        both("wallet-send-all", &arguments);
    }

    #[test]
    fn bump_fee() {
        let arguments = ["wallet", "bump-fee", HASH, "--feerate", "20", "--idempotency-key", "k"];
        both("wallet-bump-fee", &arguments);
    }

    #[test]
    fn list() {
        both("wallet-list", &["wallet", "list", "--limit", "2", "--cursor", "40"]);
    }

    #[test]
    fn utxos() {
        both("wallet-utxos", &["wallet", "utxos"]);
    }
}

mod peer {
    use super::*;

    #[test]
    fn connect() {
        let target = format!("{NODE}@127.0.0.1:19735");
        both("peer-connect", &["peer", "connect", &target, "--idempotency-key", "k"]);
    }

    #[test]
    fn disconnect() {
        both("peer-disconnect", &["peer", "disconnect", NODE, "--force", "--idempotency-key", "k"]);
    }

    #[test]
    fn list() {
        both("peer-list", &["peer", "list"]);
    }
}

mod tower {
    use super::*;

    #[test]
    fn add() {
        let target = format!("{NODE}@127.0.0.1");
        both("tower-add", &["tower", "add", &target, "--idempotency-key", "k"]);
        let target = format!("{NODE}@[::1]:9911");
        both("tower-add-unreached", &["tower", "add", &target, "--mode", "blob", "--idempotency-key", "k"]);
    }

    #[test]
    fn remove() {
        both("tower-remove", &["tower", "remove", NODE, "--idempotency-key", "k"]);
    }

    #[test]
    fn list() {
        both("tower-list", &["tower", "list"]);
    }

    #[test]
    fn status() {
        both("tower-status", &["tower", "status"]);
        both("tower-status-one", &["tower", "status", NODE]);
    }
}

mod graph {
    use super::*;

    #[test]
    fn info() {
        both("graph-info", &["graph", "info"]);
    }

    #[test]
    fn node() {
        both("graph-node", &["graph", "node", NODE]);
    }

    #[test]
    fn channel() {
        both("graph-channel", &["graph", "channel", "539268x845x1"]);
    }

    #[test]
    fn route() {
        both("graph-route", &["graph", "route", NODE, "50000sat", "--fee-limit", "10sat", "--max-blocks", "500"]);
    }
}

mod channel {
    use super::*;

    #[test]
    fn open() {
        let arguments = [
            "channel",
            "open",
            NODE,
            "0.01btc",
            "--push",
            "50000sat",
            "--zero-conf",
            "--to-self-delay",
            "6",
            "--htlc-minimum",
            "1sat",
            "--max-in-flight",
            "0.005btc",
            "--close-address",
            "bcrt1q",
            "--target",
            "6",
            "--idempotency-key",
            "k",
        ];
        both("channel-open", &arguments);
    }

    /// The connection has a random key of its own, so only the shape is compared.
    #[test]
    fn open_connects_first_if_an_address_is_given() {
        let fake = Fake::start();
        let ran = fake.run(&["channel", "open", &format!("{NODE}@host:1"), "20000sat"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let requests = fake.requests();
        assert!(requests[0].starts_with("ConnectRequest"), "{requests:?}");
        assert!(requests[0].contains("host:1"));
        assert!(requests[1].starts_with("OpenChannelRequest"));
        assert!(requests[1].contains("capacity_sat: 20000"));
    }

    #[test]
    fn close() {
        let arguments =
            ["channel", "close", "c1c1c1", "--address", "bcrt1q", "--feerate", "3", "--idempotency-key", "k"];
        both("channel-close", &arguments);
    }

    #[test]
    fn close_by_force() {
        let id = "c1".repeat(32);
        both("channel-close-force", &["channel", "close", &id, "--force", "--idempotency-key", "k"]);
    }

    #[test]
    fn list() {
        both("channel-list", &["channel", "list", "--all", "--peer", NODE]);
    }

    #[test]
    fn show_open() {
        both("channel-show-open", &["channel", "show", "805x2x1"]);
    }

    #[test]
    fn show_on_chain() {
        both("channel-show-on-chain", &["channel", "show", "c2c2"]);
    }

    #[test]
    fn take_commitment() {
        both("channel-take-commitment", &["channel", "take-commitment", "c1c1"]);
    }

    #[test]
    fn show_by_funding_output() {
        let fake = Fake::start();
        let ran = fake.run(&["channel", "show", &format!("{HASH}:1")]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(fake.requests()[0].contains("FundingOutpoint(OutPoint { txid: [225, 225"));
    }
}

mod invoice {
    use super::*;

    #[test]
    fn create() {
        let arguments =
            ["invoice", "create", "21sat", "--description", "coffee", "--expiry", "2h", "--idempotency-key", "k"];
        both("invoice-create", &arguments);
    }

    #[test]
    fn create_for_any_amount_with_a_description_hash() {
        let arguments = [
            "invoice",
            "create",
            "--description-hash",
            HASH,
            "--min-final-cltv",
            "80",
            "--no-qr",
            "--idempotency-key",
            "k",
        ];
        both("invoice-create-any", &arguments);
    }

    #[test]
    fn create_with_its_preimage_from_standard_input() {
        let fake = Fake::start();
        let preimage = "07".repeat(32);
        let ran = fake.run_with_input(&["invoice", "create", "--preimage-file", "-"], &format!("{preimage}\n"));
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(fake.requests()[0].contains("preimage: [7, 7, 7"));
        let ran = fake.run_with_input(&["invoice", "create", "--preimage-file", "-"], "0707");
        assert_eq!(ran.code, 3);
        assert!(fake.requests().is_empty());
    }

    #[test]
    fn create_one_that_is_held_for_a_hash_of_ones_own() {
        let fake = Fake::start();
        let ran = fake.run(&["invoice", "create", "21sat", "--hold", "--hash", HASH, "--no-hints"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let request = &fake.requests()[0];
        assert!(request.contains("hold: true, payment_hash: [") && request.contains("no_hints: true"), "{request}");
    }

    #[test]
    fn settle() {
        both("invoice-settle", &["invoice", "settle", HASH, "--idempotency-key", "k"]);
    }

    #[test]
    fn settle_by_the_hash_alone() {
        let fake = Fake::start();
        let ran = fake.run(&["invoice", "settle", "--hash", HASH]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(fake.requests()[0].contains("which: Some(PaymentHash("));
    }

    #[test]
    fn cancel() {
        both("invoice-cancel", &["invoice", "cancel", HASH, "--idempotency-key", "k"]);
    }

    #[test]
    fn decode() {
        both("invoice-decode", &["invoice", "decode", "lntbs1…"]);
    }

    #[test]
    fn list() {
        both("invoice-list", &["invoice", "list", "--status", "paid"]);
    }

    #[test]
    fn show() {
        both("invoice-show", &["invoice", "show", HASH]);
    }
}

mod pay {
    use super::*;

    #[test]
    fn paid() {
        let arguments =
            ["pay", "lnbcrt1…", "21sat", "--fee-limit", "1sat", "--timeout", "5s", "--idempotency-key", "k"];
        both("pay", &arguments);
    }

    #[test]
    fn a_node_that_has_made_no_invoice() {
        let node = "02".repeat(33);
        both("pay-node", &["pay", "--node", &node, "--amount", "21sat", "--max-parts", "4", "--idempotency-key", "k"]);
    }

    #[test]
    fn what_it_would_cost() {
        both("pay-dry-run", &["pay", "lnbcrt1…", "--dry-run", "--max-blocks", "500"]);
    }
}

mod payment {
    use super::*;

    #[test]
    fn list() {
        both("payment-list", &["payment", "list", "--status", "in-flight"]);
    }

    #[test]
    fn show() {
        both("payment-show", &["payment", "show", HASH]);
    }
}

mod forward {
    use super::*;

    #[test]
    fn list() {
        both("forward-list", &["forward", "list", "--outcome", "settled", "--limit", "2"]);
    }

    #[test]
    fn only_the_last_hour() {
        let fake = Fake::start();
        let ran = fake.run(&["forward", "list", "--since", "1h"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(fake.requests()[0].contains("from_ms: Some("));
    }
}

mod channel_policy {
    use super::*;

    #[test]
    fn set_for_all() {
        let arguments =
            ["channel", "policy", "set", "--all", "--base", "2sat", "--ppm", "250", "--idempotency-key", "k"];
        both("channel-policy-set", &arguments);
    }

    #[test]
    fn set_for_one_by_its_beginning() {
        let fake = Fake::start();
        let ran = fake.run(&["channel", "policy", "set", "c1c1", "--cltv-delta", "144", "--max-htlc", "0sat"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let requests = fake.requests();
        let request = requests.last().unwrap();
        assert!(request.contains("cltv_delta_blocks: Some(144)") && request.contains("htlc_maximum_msat: Some(0)"));
        assert!(request.contains("channel_id: [193, 193") && request.contains("fee_ppm: None"), "{request}");
    }

    #[test]
    fn of_which_channel_and_what_must_be_said() {
        let fake = Fake::start();
        for arguments in [&["--ppm", "1"][..], &["--all"], &["--all", "c1c1", "--ppm", "1"]] {
            assert_eq!(fake.run(&[&["channel", "policy", "set"], arguments].concat()).code, 3, "{arguments:?}");
        }
        assert!(fake.requests().is_empty());
    }
}

mod events {
    use super::*;

    #[test]
    fn from_the_start_until_now() {
        both("events", &["events", "--from-start", "--until-now"]);
    }

    #[test]
    fn after_a_position() {
        both("events-after", &["events", "--after", "73:1", "--until-now"]);
    }
}
