//! An ldk-node in a network that stays.

use serde_json::json;

use crate::support::{Place, is_alive, node};

const PLAN: &str = r#"
[[nodes]]
name = "ours"
alias = "Ours"
[[nodes]]
name = "dora"
kind = "ldk"
[[channels]]
from = "dora"
to = "ours"
capacity_sat = 4_000_000
push_sat = 1_000_000
public = false
[[policies]]
node = "dora"
fee_base_msat = 77
"#;

#[test]
fn it_stays_pays_is_killed_and_comes_back() {
    let place = Place::new();
    let plan = place.file("plan.toml", PLAN);
    let status = place.done(&["up", "--file", plan.to_str().unwrap()]);
    let dora = node(&status, "dora").clone();
    assert_eq!((&dora["state"], &dora["kind"], &dora["peers"]), (&json!("running"), &json!("ldk"), &json!(1)));
    assert_eq!(node(&status, "ours")["alias"], "Ours");
    let channel = status["channels"][0].clone();
    assert_eq!(
        (&channel["from"], &channel["public"], &channel["state"]),
        (&json!("dora"), &json!(false), &json!("usable"))
    );
    assert_eq!((&channel["from_msat"], &channel["to_msat"]), (&json!(3_000_000_000_u64), &json!(1_000_000_000_u64)));

    // It pays and is paid.
    let load = place.done(&["load", "--rate", "5", "--seconds", "2", "--seed", "3"]);
    assert_eq!((&load["paid"], &load["failed"]), (&load["asked"], &json!(0)), "{load}");

    // Its keeper and its driver are two processes; a kill ends both.
    let pids = ["dora", "dora.driver"].map(|name| place.pid(name).unwrap());
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    place.done(&["stop", "dora"]);
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    place.done(&["start", "dora"]);
    let pids = ["dora", "dora.driver"].map(|name| place.pid(name).unwrap());
    assert_eq!(place.done(&["kill", "dora"])["was_running"], true);
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(node(&place.done(&["status"]), "dora")["state"], "away");

    // The whole network goes down and comes back: with another login of bitcoind's, and nothing opened twice.
    place.done(&["down"]);
    let back = place.done(&["up"]);
    assert_eq!(node(&back, "dora")["node_id"], dora["node_id"]);
    assert_eq!(back["channels"].as_array().unwrap().len(), 1, "{back}");
    assert_eq!(
        (&back["channels"][0]["channel_id"], &back["channels"][0]["state"]),
        (&channel["channel_id"], &json!("usable"))
    );

    // `millrace` does not talk to it.
    let why = place.refused(&["env", "dora"]);
    assert!(why.contains("ldk-node"), "{why}");
}
