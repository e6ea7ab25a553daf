//! Settings and data folders with which the daemon does not start: it says why, says what to do, and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_regtest::programs::Programs;
use millrace_rpc::v1::GetInfoRequest;

use super::process::{Ended, run};
use super::support::{Pair, network};

/// Exit codes of `millraced`.
const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(3);

fn millraced() -> PathBuf {
    Programs::find().unwrap().millraced
}

/// That it ended so, and that what it said holds all of this.
#[track_caller]
fn check(ended: &Ended, code: Option<i32>, said: &[&str]) {
    assert_eq!(ended.code, code, "{}", ended.err);
    for words in said {
        assert!(ended.err.contains(words), "`{words}` is not in: {}", ended.err);
    }
}

/// Every file below a folder, with its bytes; folders are empty files.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, Vec::new());
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

#[tokio::test]
async fn keys_that_do_not_exist_name_the_right_ones() {
    let (program, folder) = (millraced(), tempfile::tempdir().unwrap());
    let data_dir = folder.path().to_str().unwrap();
    let file = folder.path().join("millrace.toml");
    for (text, line, key, meant) in [
        ("alias = \"a\"\n[bitcoind]\nulr = \"http://127.0.0.1:1\"\n", "line 3", "`bitcoind.ulr`", "`bitcoind.url`"),
        ("log_levle = \"info\"\n", "line 1", "`log_levle`", "`log_level`"),
        ("\n\n[channel]\nminimum_dept = 1\n", "line 4", "`channel.minimum_dept`", "`channel.minimum_depth`"),
    ] {
        fs::write(&file, text).unwrap();
        let before = contents(folder.path());
        let ended = run(&program, &["--network", "regtest", "--data-dir", data_dir]).await;
        check(&ended, USAGE, &[line, "unknown key", key, "did you mean", meant]);
        assert_eq!(contents(folder.path()), before);
    }
    fs::remove_file(&file).unwrap();
    let ended = run(&program, &["--network", "regtest", "--data-dir", data_dir, "--bitcoind-ulr", "x"]).await;
    check(&ended, USAGE, &["--bitcoind-ulr", "--bitcoind-url"]);
    assert!(contents(folder.path()).is_empty());
}

#[tokio::test]
async fn values_that_make_no_sense_name_their_place() {
    let (program, folder) = (millraced(), tempfile::tempdir().unwrap());
    let data_dir = folder.path().to_str().unwrap();
    for (flag, value, said) in [
        ("--network", "mainnet", "network"),
        ("--channel-max-accepted-htlcs", "484", "channel.max_accepted_htlcs"),
        ("--listen", "nowhere", "listen"),
        ("--log-level", "loud", "log"),
    ] {
        let ended = run(&program, &["--data-dir", data_dir, flag, value]).await;
        assert!(ended.code == USAGE || ended.code == FAILED, "{ended:?}");
        assert!(ended.err.contains(said), "{ended:?}");
        assert!(contents(folder.path()).is_empty(), "{flag}");
    }
}

/// Nobody but this machine reaches gRPC or a peer's port unless the owner says so; metrics are off.
#[tokio::test]
async fn listens_on_loopback_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(&millraced(), &["--print-config", "--data-dir", folder.path().to_str().unwrap()]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for line in ["rpc_listen = \"127.0.0.1:9737\"", "listen = \"127.0.0.1:9735\"", "# metrics_listen ="] {
        assert!(ended.out.lines().any(|found| found.starts_with(line)), "`{line}` is not in: {}", ended.out);
    }
}

#[tokio::test]
async fn real_money_needs_a_second_word() {
    let (program, folder) = (millraced(), tempfile::tempdir().unwrap());
    let data_dir = folder.path().join("node");
    let ended = run(&program, &["--network", "bitcoin", "--data-dir", data_dir.to_str().unwrap()]).await;
    check(&ended, FAILED, &["--i-accept-the-risk-of-losing-money"]);
    assert!(!data_dir.exists());
}

/// A folder in use, a folder of another network, and a bitcoind of another chain.
#[tokio::test(flavor = "multi_thread")]
async fn folders_and_chains_that_do_not_fit() {
    let mut pair = Pair { network: network(&["alice", "bob"]), channel_id: Vec::new() };
    for node in &mut pair.network.nodes {
        node.start().await.unwrap();
    }
    let program = millraced();
    let url = pair.network.bitcoind.rpc_url();
    let cookie = pair.network.bitcoind.cookie_path();
    let start = async |network: &str, data_dir: &Path| {
        let (data_dir, cookie) = (data_dir.to_str().unwrap(), cookie.to_str().unwrap());
        let fixed = ["--network", network, "--data-dir", data_dir, "--bitcoind-url", &url, "--bitcoind-cookie", cookie];
        let ports = ["--listen", "127.0.0.1:0", "--rpc-listen", "127.0.0.1:0"];
        run(&program, &[fixed.as_slice(), &ports].concat()).await
    };

    // In use: the daemon that has it goes on.
    let folder = pair.network.nodes[0].data_dir().to_owned();
    let pid = pair.network.nodes[0].rpc_info().unwrap().pid;
    let rpc_json = fs::read(folder.join("rpc.json")).unwrap();
    let ended = start("regtest", &folder).await;
    check(&ended, FAILED, &["is in use", &format!("process {pid}"), "--data-dir"]);
    assert_eq!(fs::read(folder.join("rpc.json")).unwrap(), rpc_json);
    let mut client = pair.network.nodes[0].client().unwrap().node;
    assert_eq!(client.get_info(GetInfoRequest {}).await.unwrap().into_inner().alias, "alice");

    // Of another network.
    let folder = pair.network.nodes[1].data_dir().to_owned();
    let node_id = pair.network.nodes[1].node_id().to_vec();
    pair.network.nodes[1].stop().await.unwrap();
    let without_lock = |mut contents: BTreeMap<PathBuf, Vec<u8>>| {
        // It names the process that has, or had, the folder.
        contents.remove(&folder.join("lock"));
        contents
    };
    let before = without_lock(contents(&folder));
    check(
        &start("signet", &folder).await,
        FAILED,
        &["is for the network regtest, not for signet", "--network regtest"],
    );
    assert!(without_lock(contents(&folder)) == before, "the folder has changed");
    pair.network.nodes[1].start().await.unwrap();
    assert_eq!(pair.network.nodes[1].node_id(), node_id);

    // A bitcoind of another chain.
    let fresh = pair.network.folder().join("carol");
    check(&start("signet", &fresh).await, FAILED, &["signet", "bitcoind is on regtest"]);
    pair.stop().await;
}

/// Another node has the port: it says so, with the address.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (network, folder) = (network(&[]), tempfile::tempdir().unwrap());
    let cookie = network.bitcoind.cookie_path();
    let mut arguments = vec!["--network", "regtest", "--rpc-listen", "127.0.0.1:0", "--listen", &address];
    arguments.extend(["--data-dir", folder.path().to_str().unwrap()]);
    let url = network.bitcoind.rpc_url();
    arguments.extend(["--bitcoind-url", &url, "--bitcoind-cookie", cookie.to_str().unwrap()]);
    let ended = run(&millraced(), &arguments).await;
    check(&ended, FAILED, &[&address]);
    assert!(!ended.err.contains("not followed any more"), "{}", ended.err);
}
