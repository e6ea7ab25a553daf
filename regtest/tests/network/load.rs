//! A load while others kill and start nodes: payments are drawn between those that run at that moment.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Place, node, program};

/// How long the nodes may take to do what is waited for.
const LIMIT: Duration = Duration::from_secs(180);

/// A load that goes on until it is interrupted, or five minutes; killed with the test.
struct Load(Child);

impl Load {
    fn start(place: &Place) -> Self {
        let mut command = program();
        command.args(["load", "--rate", "20", "--seed", "5", "--seconds", "300", "--json", "--dir"]).arg(place.dir());
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Where nobody sees its count change, it says it every few seconds.
    fn wait_until_it_says(&mut self, words: &str) {
        let mut lines = BufReader::new(self.0.stderr.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains(words)), "it ended without saying {words:?}");
    }

    /// What it tells when it is interrupted, and whether it calls that a success.
    fn interrupt(mut self) -> (Value, bool) {
        let kill = format!("kill -INT {}", self.0.id());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (serde_json::from_str(text.lines().last().unwrap()).unwrap(), self.0.wait().unwrap().success())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Half of each channel was the other's at first.
fn has_moved(status: &Value, channel: usize) -> bool {
    status["channels"][channel]["to_msat"] != json!(5_000_000_000_u64)
}

#[track_caller]
fn wait_until(place: &Place, what: &str, is_so: impl Fn(&Value) -> bool) {
    let until = Instant::now() + LIMIT;
    loop {
        let status = place.done(&["status"]);
        if is_so(&status) {
            return;
        }
        assert!(Instant::now() < until, "{what}: {status:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_node_that_is_started_while_it_runs_takes_part() {
    let place = Place::new();
    place.done(&["up", "--nodes", "3", "--topology", "line"]);
    place.done(&["stop", "carol"]);
    let load = Load::start(&place);
    wait_until(&place, "alice and bob pay each other", |status| has_moved(status, 0));
    place.done(&["start", "carol"]);
    wait_until(&place, "carol takes part", |status| {
        node(status, "carol")["state"] == "running" && has_moved(status, 1)
    });
    let (told, is_success) = load.interrupt();
    assert_eq!((&told["ok"], is_success), (&json!(true), true), "{told}");
    assert_eq!(told["without_nodes"], 0, "two of them ran always: {told}");
}

#[test]
fn while_fewer_than_two_nodes_run_nothing_is_asked_for() {
    let place = Place::new();
    place.done(&["up", "--nodes", "2"]);
    let mut load = Load::start(&place);
    wait_until(&place, "they pay each other", |status| has_moved(status, 0));
    place.done(&["kill", "bob"]);
    load.wait_until_it_says("fewer than two nodes ran");
    let (told, _) = load.interrupt();
    assert!(told["without_nodes"].as_u64().unwrap() > 0, "{told}");
    assert!(told["paid"].as_u64().unwrap() > 0, "{told}");
}
