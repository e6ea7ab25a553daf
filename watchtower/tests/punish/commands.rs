//! What the owner types, and what comes of it.

use std::os::unix::fs::PermissionsExt;

use millrace_regtest::bitcoind::{Bitcoind, Options};
use secp256k1::{SECP256K1, SecretKey};

use crate::program::{Tower, eventually};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn owner_lets_a_node_in_looks_and_stops_it() {
    let bitcoind = Bitcoind::start(Options::default()).unwrap();
    bitcoind.mine_to_wallet(1).unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut tower = Tower::start(home.path(), &bitcoind);
    let client = SecretKey::from_slice(&[9; 32]).unwrap().public_key(SECP256K1).to_string();

    let allowed = tower.ask(&["allow", &client, "--channels", "7"]);
    assert!(allowed.status.success(), "{}", text(&allowed.stderr));
    assert!(text(&allowed.stdout).contains("may have 7 channels"));
    assert_eq!(text(&tower.ask(&["address"]).stdout).trim(), tower.address);
    eventually("the tip", || (tower.status()["is_synced"] == true).then_some(()));
    let status = tower.status();
    assert_eq!(status["clients"][0]["client"], client.as_str());
    assert_eq!((&status["clients"][0]["channels_max"], &status["network"]), (&7.into(), &"regtest".into()));
    assert!(text(&tower.ask(&["status"]).stdout).contains("0 of 7 channels"));

    // What is not named stays as it is.
    let blobs = tower.ask(&["allow", &client, "--blobs", "90"]);
    assert_eq!(text(&blobs.stdout).trim(), format!("{client} may hand over 90 blobs."));
    let numbers = |status: &serde_json::Value| {
        ["channels_max", "blobs_max"].map(|name| status["clients"][0][name].as_u64().unwrap())
    };
    assert_eq!(numbers(&tower.status()), [7, 90]);
    assert!(tower.ask(&["allow", &client, "--channels", "8"]).status.success());
    assert_eq!(numbers(&tower.status()), [8, 90]);
    assert!(text(&tower.ask(&["status"]).stdout).contains("0 of 90 blobs"));

    let mode = |name: &str| std::fs::metadata(tower.folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("admin.sock"), mode("tower.key"), mode("journal")), (0o700, 0o600, 0o600, 0o700));

    // A second one in the same folder is kept out, and the first one lives on.
    let second = tower.command().args(["--listen=127.0.0.1:0", "run"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("in use by another process"), "{}", text(&second.stderr));
    tower.status();

    assert_eq!(tower.stop(), Some(0));
    assert!(!tower.folder.join("admin.sock").exists());
    let away = tower.ask(&["status"]);
    assert_eq!(away.status.code(), Some(2));
    assert!(text(&away.stderr).contains("millrace-tower run"), "{}", text(&away.stderr));
    // Its key stays, and with it its name; who was let in still is.
    let before = tower.address.clone();
    tower.run();
    assert_eq!(tower.address, before);
    assert_eq!(tower.status()["clients"][0]["client"], client.as_str());
}

#[test]
fn settings_that_are_wrong_are_named() {
    let home = tempfile::tempdir().unwrap();
    let bitcoind = Bitcoind::start(Options::default()).unwrap();
    let mut tower = Tower::start(home.path(), &bitcoind);
    assert_eq!(tower.stop(), Some(0));
    let complains = |arguments: &[&str], code: i32, about: &str| {
        let output = tower.ask(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(about), "{said} does not mention {about}");
    };
    complains(&["--network=mars", "run"], 3, "mars is none of");
    complains(&["--network=signet", "run"], 1, "is for the network regtest, not for signet");
    complains(&["--bitcoind-url=https://127.0.0.1", "run"], 3, "must begin with http://");
    complains(&["allow", "nonsense"], 3, "nonsense");
    std::fs::write(tower.folder.join("millrace-tower.toml"), "lisen = \"x\"\n").unwrap();
    complains(&["run"], 3, "lisen");
}
