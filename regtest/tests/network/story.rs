//! A network's whole life, as its user sees it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Place, is_alive, node, program};

/// Both sides' sums of the one channel, in msat.
fn sums(status: &Value) -> (u64, u64) {
    let channel = &status["channels"][0];
    (channel["from_msat"].as_u64().unwrap(), channel["to_msat"].as_u64().unwrap())
}

/// What `millrace` says after the exports of `env`, by a shell.
fn millrace_by_env(place: &Place, name: &str, words: &str) -> Value {
    let program = program().get_program().to_string_lossy().into_owned();
    let script =
        format!("eval \"$('{program}' env {name} --dir '{}')\" && millrace {words} --json", place.dir().display());
    let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn up_load_kill_start_mine_env_down_and_up_again() {
    let place = Place::new();
    let status = place.done(&["up", "--nodes", "2"]);
    for name in ["alice", "bob"] {
        let node = node(&status, name);
        assert_eq!((&node["state"], &node["peers"], &node["kind"]), (&json!("running"), &json!(1), &json!("millrace")));
        assert!(is_alive(place.pid(name).unwrap()), "{name} does not outlive the command");
    }
    assert_eq!(sums(&status), (5_000_000_000, 5_000_000_000));
    assert_eq!(status["channels"][0]["state"], "usable");
    assert_eq!(status["mempool"], 0);

    // Once more: nothing is started, given or opened again.
    let pids = ["alice", "bob", "bitcoind"].map(|name| place.pid(name).unwrap());
    let again = place.done(&["up"]);
    assert_eq!(["alice", "bob", "bitcoind"].map(|name| place.pid(name).unwrap()), pids);
    assert_eq!(again["channels"], status["channels"]);
    assert_eq!(again["height"], status["height"]);
    assert_eq!(node(&again, "alice")["wallet_sat"], node(&status, "alice")["wallet_sat"]);

    // Payments both ways. What is counted as paid is what has moved.
    let load = place.done(&["load", "--rate", "40", "--seconds", "2", "--amount", "1000..9000", "--seed", "7"]);
    let (asked, paid) = (load["asked"].as_u64().unwrap(), load["paid"].as_u64().unwrap());
    assert!(asked >= 10, "{load}");
    assert_eq!((paid, &load["failed"], &load["unanswered"]), (asked, &json!(0), &json!(0)), "{load}");
    assert_eq!(load["seed"], 7);
    assert!(load["latency_ms"]["p50"].as_f64().unwrap() > 0.0, "{load}");
    let invoices = |name: &str| {
        let listed = millrace_by_env(&place, name, "invoice list --status paid --limit 1000");
        let received = |invoice: &Value| invoice["received_msat"].as_u64().unwrap();
        let invoices = listed["invoices"].as_array().unwrap().clone();
        (invoices.len() as u64, invoices.iter().map(received).sum::<u64>())
    };
    let ((of_alice, to_alice), (of_bob, to_bob)) = (invoices("alice"), invoices("bob"));
    assert_eq!((of_alice + of_bob, to_alice + to_bob), (paid, load["amount_msat"].as_u64().unwrap()));
    let moved = (5_000_000_000 + to_alice - to_bob, 5_000_000_000 + to_bob - to_alice);
    assert_eq!(sums(&place.done(&["status"])), moved);

    // A node is killed, seen to be away, and comes back with what it had.
    let pid = place.pid("bob").unwrap();
    assert_eq!(place.done(&["kill", "bob"])["was_running"], true);
    assert!(!is_alive(pid));
    let status = place.done(&["status"]);
    assert_eq!(
        (&node(&status, "bob")["state"], &status["channels"][0]["state"]),
        (&json!("away"), &json!("peer away"))
    );
    assert_eq!(sums(&status), moved, "the other one knows as well");
    assert_eq!(place.done(&["kill", "bob"])["was_running"], false);
    assert_eq!(place.done(&["start", "bob"])["links"], 1);
    let status = place.done(&["status"]);
    assert_eq!((&node(&status, "bob")["state"], sums(&status)), (&json!("running"), moved));

    let height = status["height"].as_u64().unwrap();
    assert_eq!(place.done(&["mine", "3"])["height"], height + 3);
    let info = millrace_by_env(&place, "bob", "node info");
    assert_eq!((&info["alias"], info["tip_height"].as_u64()), (&json!("bob"), Some(height + 3)));
    assert_eq!(info["node_id"], node(&status, "bob")["node_id"]);

    // A person's view.
    let table = place.run(&["status"]).out;
    for part in ["alice", "bob", "█", "░", "usable", &format!("height {}", height + 3)] {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }

    // Down: nothing runs. Up: the same nodes, the same channel, the same sums.
    let pids = ["alice", "bob", "bitcoind"].map(|name| place.pid(name).unwrap());
    assert_eq!(place.done(&["stop", "alice"])["was_running"], true);
    assert_eq!(place.done(&["down"])["was_running"], true);
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let away = place.done(&["status"]);
    assert_eq!((&away["bitcoind"], &away["channels"][0]["state"]), (&json!(false), &json!("unknown")));
    assert_eq!(place.done(&["down"])["was_running"], false);
    let back = place.done(&["up"]);
    assert_eq!(sums(&back), moved);
    assert_eq!(back["channels"][0]["channel_id"], status["channels"][0]["channel_id"]);
    assert_eq!(node(&back, "alice")["node_id"], node(&status, "alice")["node_id"]);
    assert_eq!(back["channels"][0]["state"], "usable");

    assert_eq!(place.done(&["down", "--wipe"])["wiped"], true);
    assert!(!place.dir().exists());
}

/// Killed between the daemon's opening of the channel and the blocks that bury it.
#[test]
fn an_up_that_is_killed_while_it_opens_is_finished_by_the_next_and_opens_nothing_twice() {
    let place = Place::new();
    let mut up = program();
    up.args(["up", "--nodes", "2", "--dir"]).arg(place.dir()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut up = up.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(300);
    let is_opening = || {
        let text = fs::read(place.dir().join("network.json")).unwrap_or_default();
        serde_json::from_slice::<Value>(&text).is_ok_and(|state| state["lacks_blocks"] == true)
    };
    while !is_opening() {
        assert_eq!(up.try_wait().unwrap(), None, "it ended without opening a channel");
        assert!(Instant::now() < until, "it opens no channel");
        std::thread::sleep(Duration::from_millis(2));
    }
    up.kill().unwrap();
    up.wait().unwrap();
    let pids = ["alice", "bob", "bitcoind"].map(|name| place.pid(name).unwrap());
    assert!(pids.iter().all(|pid| is_alive(*pid)), "they go on without it");

    let status = place.done(&["up"]);
    assert_eq!(["alice", "bob", "bitcoind"].map(|name| place.pid(name).unwrap()), pids);
    assert_eq!((status["channels"].as_array().unwrap().len(), &status["channels"][0]["state"]), (1, &json!("usable")));
    let listed = millrace_by_env(&place, "alice", "channel list --all");
    assert_eq!(listed["channels"].as_array().unwrap().len(), 1, "{listed}");
}
