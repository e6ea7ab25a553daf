//! The command line against the daemon: what it prints for programs, and its exit codes.

use std::time::Duration;

use millrace_regtest::network::wait_for;
use millrace_regtest::node::Node;
use serde_json::Value;

use super::process::{Ended, begin, end, run, signal};
use super::support::{ALICE, BOB, CAPACITY_SAT, LIMIT, Pair, network, pair, payments};

/// The command line as this node's user types it.
fn arguments<'a>(node: &'a Node, command: &[&'a str]) -> Vec<&'a str> {
    let data_dir = node.data_dir().to_str().unwrap();
    [&["--network", "regtest", "--data-dir", data_dir], command].concat()
}

async fn millrace(node: &Node, command: &[&str]) -> Ended {
    run(&node.programs().millrace, &arguments(node, command)).await
}

/// A command that does what it should, and its answer.
async fn done(node: &Node, command: &[&str]) -> Value {
    let ended = millrace(node, command).await;
    assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
    assert_eq!(ended.err, "", "{command:?}");
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{command:?}: {error}: {}", ended.out))
}

/// A command that tells its progress, an object per line.
async fn lines(node: &Node, command: &[&str]) -> Vec<Value> {
    let ended = millrace(node, command).await;
    assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
    ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A command that ends with this code; what it said on standard error, which with `--json` is JSON.
async fn fails(node: &Node, code: i32, command: &[&str]) -> Value {
    let command = [command, &["--json"]].concat();
    let ended = millrace(node, &command).await;
    assert_eq!(ended.code, Some(code), "{command:?}: {ended:?}");
    assert_eq!(ended.out, "", "{command:?}");
    serde_json::from_str(&ended.err).unwrap_or_else(|error| panic!("{command:?}: {error}: {}", ended.err))
}

fn text<'a>(json: &'a Value, name: &str) -> &'a str {
    json[name].as_str().unwrap_or_else(|| panic!("no text `{name}` in {json}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_empty_node_to_a_payment() {
    let mut pair = Pair { network: network(&["alice", "bob"]), channel_id: Vec::new() };
    for node in &mut pair.network.nodes {
        node.start().await.unwrap();
    }
    let (alice_id, bob_id) = {
        let [alice, bob] = &pair.network.nodes[..] else { panic!("two daemons") };
        (hex::encode(alice.node_id()), hex::encode(bob.node_id()))
    };

    // Who it is, and its wallet.
    let info = done(&pair.network.nodes[ALICE], &["node", "info"]).await;
    assert_eq!(
        (text(&info, "node_id"), text(&info, "alias"), text(&info, "network")),
        (&*alice_id, "alice", "regtest")
    );
    assert_eq!((text(&info, "sync_state"), &info["channels"]["usable"]), ("synced", &Value::from(0)));
    let answer = done(&pair.network.nodes[ALICE], &["wallet", "new-address"]).await;
    assert!(text(&answer, "address").starts_with("bcrt1p"), "{answer}");
    let answer = done(&pair.network.nodes[ALICE], &["wallet", "balance"]).await;
    assert_eq!(answer["confirmed_sat"], 0, "{answer}");
    let amount = bitcoin::Amount::from_sat(3_000_000);
    pair.network.fund(ALICE, amount).await.unwrap();
    // He needs some to close the channel with.
    pair.network.fund(BOB, bitcoin::Amount::from_sat(50_000)).await.unwrap();
    let answer = done(&pair.network.nodes[ALICE], &["wallet", "balance"]).await;
    assert_eq!(answer["confirmed_sat"], 3_000_000, "{answer}");
    let answer = done(&pair.network.nodes[ALICE], &["wallet", "utxos"]).await;
    assert_eq!(answer["utxos"].as_array().unwrap().len(), 1, "{answer}");
    let answer = done(&pair.network.nodes[ALICE], &["wallet", "list"]).await;
    assert_eq!(answer["transactions"].as_array().unwrap().len(), 1, "{answer}");
    let to = pair.network.bitcoind.new_address().unwrap().to_string();
    let sent = done(&pair.network.nodes[ALICE], &["wallet", "send", &to, "0.001btc"]).await;
    assert_eq!(sent["amount_sat"], 100_000, "{sent}");
    pair.network.wait_for_mempool(1).await.unwrap();
    pair.network.mine(1).await.unwrap();
    let answer = done(&pair.network.nodes[ALICE], &["wallet", "balance"]).await;
    assert_eq!(answer["confirmed_sat"], 2_900_000 - sent["fee_sat"].as_u64().unwrap(), "{answer}");

    // A peer and a channel.
    let target = format!("{bob_id}@{}", pair.network.nodes[BOB].lightning_address().unwrap());
    let answer = done(&pair.network.nodes[ALICE], &["peer", "connect", &target]).await;
    assert_eq!((text(&answer, "node_id"), &answer["connected"]), (&*bob_id, &Value::from(true)));
    let answer = done(&pair.network.nodes[BOB], &["peer", "list"]).await;
    assert_eq!(text(&answer["peers"][0], "node_id"), alice_id);
    let opening = ["channel", "open", &bob_id, "1000000sat", "--push", "400000sat"];
    let open = begin(&pair.network.nodes[ALICE].programs().millrace, &arguments(&pair.network.nodes[ALICE], &opening));
    pair.network.wait_for_mempool(1).await.unwrap();
    pair.network.mine(6).await.unwrap();
    let ended = end(open).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let steps: Vec<Value> = ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let channel_id = text(steps.last().unwrap(), "channel_id").to_owned();
    pair.channel_id = hex::decode(&channel_id).unwrap();
    pair.wait_until_usable().await;
    let answer = done(&pair.network.nodes[BOB], &["channel", "list"]).await;
    assert_eq!(text(&answer["channels"][0], "channel_id"), channel_id);
    assert_eq!(answer["channels"][0]["local_msat"], 400_000_000, "{answer}");
    let answer = done(&pair.network.nodes[ALICE], &["channel", "show", &channel_id]).await;
    assert_eq!((text(&answer, "state"), &answer["funder"]), ("normal", &Value::from(true)), "{answer}");

    // An invoice, and its payment.
    let made = done(&pair.network.nodes[BOB], &["invoice", "create", "21000msat", "--description", "coffee"]).await;
    let (bolt11, payment_hash) = (text(&made, "bolt11").to_owned(), text(&made, "payment_hash").to_owned());
    let read = done(&pair.network.nodes[ALICE], &["invoice", "decode", &bolt11]).await;
    assert_eq!((&read["amount_msat"], text(&read, "description")), (&Value::from(21_000), "coffee"));
    assert_eq!((text(&read, "payee_node_id"), text(&read, "payment_hash")), (&*bob_id, &*payment_hash));
    let steps = lines(&pair.network.nodes[ALICE], &["pay", &bolt11]).await;
    let names: Vec<&str> = steps.iter().map(|step| text(step, "step")).collect();
    assert_eq!((names.first(), names.last()), (Some(&"accepted"), Some(&"outcome")), "{names:?}");
    let paid = &steps.last().unwrap()["payment"];
    assert_eq!((text(paid, "status"), &paid["amount_msat"]), ("succeeded", &Value::from(21_000)));
    let shown = done(&pair.network.nodes[ALICE], &["payment", "show", &payment_hash]).await;
    assert_eq!(text(&shown, "preimage"), text(paid, "preimage"));
    let listed = done(&pair.network.nodes[ALICE], &["payment", "list"]).await;
    assert_eq!(text(&listed["payments"][0], "payment_hash"), payment_hash);
    let shown = done(&pair.network.nodes[BOB], &["invoice", "show", &payment_hash]).await;
    assert_eq!((text(&shown, "status"), text(&shown, "preimage")), ("paid", text(paid, "preimage")));
    let listed = done(&pair.network.nodes[BOB], &["invoice", "list", "--status", "paid"]).await;
    assert_eq!(listed["invoices"].as_array().unwrap().len(), 1, "{listed}");

    // What happened, and a person's tables.
    let events = lines(&pair.network.nodes[BOB], &["events", "--from-start", "--until-now", "--json"]).await;
    let names: Vec<&str> = events.iter().map(|event| text(event, "event")).collect();
    for name in ["channel_opening", "channel_ready", "invoice_created", "invoice_paid"] {
        assert_eq!(names.iter().filter(|found| **found == name).count(), 1, "{name} in {names:?}");
    }
    let table = millrace(&pair.network.nodes[ALICE], &["channel", "list", "--table"]).await;
    assert_eq!(table.code, Some(0));
    assert!(serde_json::from_str::<Value>(&table.out).is_err() && table.out.contains("CHANNEL"), "{}", table.out);

    // Closing, told to its end, and the node stopped by its own command.
    let closing = ["channel", "close", &channel_id];
    let close = begin(&pair.network.nodes[ALICE].programs().millrace, &arguments(&pair.network.nodes[ALICE], &closing));
    pair.network.wait_for_mempool(1).await.unwrap();
    pair.network.mine(110).await.unwrap();
    let ended = end(close).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let answer = done(&pair.network.nodes[ALICE], &["channel", "list", "--all"]).await;
    assert_eq!(text(&answer["channels"][0], "state"), "closed", "{answer}");
    done(&pair.network.nodes[ALICE], &["peer", "disconnect", &bob_id]).await;
    let answer = done(&pair.network.nodes[ALICE], &["peer", "list"]).await;
    assert_eq!(answer["peers"], Value::Array(Vec::new()), "{answer}");
    let answer = done(&pair.network.nodes[ALICE], &["node", "stop"]).await;
    assert_eq!(answer["stopping"], true);
    let stopped = pair.network.wait("the daemon gone", async || {
        let is_there = pair.network.nodes[ALICE].data_dir().join("rpc.json").exists();
        Ok(if is_there { Err("it is there".to_owned()) } else { Ok(()) })
    });
    stopped.await.unwrap();
}

/// 1 refused, 2 cannot reach the daemon, 3 usage, 6 not authorised.
#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_without_a_payment() {
    let mut pair = Pair { network: network(&["alice"]), channel_id: Vec::new() };
    pair.network.nodes[ALICE].start().await.unwrap();
    let node = &pair.network.nodes[ALICE];
    let error = fails(node, 1, &["pay", "not-an-invoice"]).await;
    assert!(error.to_string().contains("INVOICE_INVALID"), "{error}");
    fails(node, 1, &["payment", "show", &"00".repeat(32)]).await;
    fails(node, 1, &["channel", "open", &hex::encode(node.node_id()), "1000000sat"]).await;
    for command in
        [&["pay"][..], &["wallet", "send", "bcrt1q", "21"], &["nonsense"], &["node", "info", "--rpc", "http://x"]]
    {
        let ended = millrace(node, command).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(3), ""), "{command:?}: {ended:?}");
    }
    let wrong = pair.network.folder().join("wrong.token");
    std::fs::write(&wrong, "0".repeat(64)).unwrap();
    let error = fails(node, 6, &["node", "info", "--token-file", wrong.to_str().unwrap()]).await;
    assert!(error.to_string().contains("token"), "{error}");
    fails(node, 6, &["node", "info", "--token-file", "/nowhere/token"]).await;
    fails(node, 2, &["node", "info", "--rpc", "https://127.0.0.1:1"]).await;
    pair.network.nodes[ALICE].stop().await.unwrap();
    let error = fails(&pair.network.nodes[ALICE], 2, &["node", "info"]).await;
    assert!(error.to_string().contains("millraced"), "it does not say what to do: {error}");
}

/// Waits until a node has an HTLC in flight.
async fn wait_for_htlc(pair: &Pair, node: usize) {
    let waited = wait_for("an HTLC in flight", LIMIT, async || {
        let htlcs: u32 = pair.network.channels(node).await?.iter().map(|channel| channel.offered_htlcs).sum();
        Ok(if htlcs > 0 { Ok(()) } else { Err("there is none".to_owned()) })
    });
    waited.await.unwrap();
}

/// 4: tried, and failed. The payee is held still until its invoice has expired.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_fails() {
    let pair = pair().await;
    let [alice, bob] = &pair.network.nodes[..] else { panic!("two daemons") };
    let made = done(bob, &["invoice", "create", "1000sat", "--expiry", "5s"]).await;
    let bob_pid = bob.rpc_info().unwrap().pid;
    signal("STOP", bob_pid).await;
    let pay = begin(&alice.programs().millrace, &arguments(alice, &["pay", text(&made, "bolt11"), "--json"]));
    tokio::time::sleep(Duration::from_secs(7)).await;
    signal("CONT", bob_pid).await;
    let ended = end(pay).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    let error: Value = serde_json::from_str(&ended.err).unwrap();
    assert!(error.to_string().contains("payee_refused"), "{error}");
    let last: Value = serde_json::from_str(ended.out.lines().last().unwrap()).unwrap();
    assert_eq!((text(&last, "step"), text(&last["payment"], "status")), ("outcome", "failed"));
    pair.wait_until_at_rest().await;
    let channel = pair.network.channel(ALICE, &pair.channel_id).await.unwrap();
    assert_eq!(channel.local_msat, CAPACITY_SAT / 2 * 1000, "money has left");
    let shown = done(alice, &["payment", "show", text(&made, "payment_hash")]).await;
    assert_eq!(text(&shown, "status"), "failed");
    let again = millrace(alice, &["payment", "list", "--status", "failed"]).await;
    assert!(again.out.contains(text(&made, "payment_hash")), "{again:?}");
    pair.stop().await;
}

/// 5: the daemon dies while the payment is under way. The same command with the same key finds out.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_outcome_is_unknown_at_first() {
    let mut pair = pair().await;
    let bolt11 = pair.invoice(BOB, 1_000_000).await;
    let bob_pid = pair.network.nodes[BOB].rpc_info().unwrap().pid;
    let command = ["pay", &bolt11, "--idempotency-key", "order-4711", "--retry-for", "1s", "--json"];
    signal("STOP", bob_pid).await;
    let first = begin(&pair.network.nodes[ALICE].programs().millrace, &arguments(&pair.network.nodes[ALICE], &command));
    wait_for_htlc(&pair, ALICE).await;
    pair.network.nodes[ALICE].kill9().unwrap();
    let ended = end(first).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.err.contains("order-4711"), "it does not name the key: {ended:?}");
    signal("CONT", bob_pid).await;
    pair.network.nodes[ALICE].start().await.unwrap();
    let steps = lines(&pair.network.nodes[ALICE], &command).await;
    assert_eq!(text(&steps.last().unwrap()["payment"], "status"), "succeeded");
    let standing = pair.standing().await;
    assert_eq!(standing.sides[BOB].channels[0].local_msat, CAPACITY_SAT / 2 * 1000 + 1_000_000);
    assert_eq!(payments(&pair.client(ALICE)).await.len(), 1);
    pair.stop().await;
}
