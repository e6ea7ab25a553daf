//! The real bitcoind, found or provisioned, and what a test does with it.

#![allow(clippy::unwrap_used, missing_docs)]

use bitcoin::Amount;
use millrace_regtest::bitcoind::{Bitcoind, Error, Options, VERSION_MIN};
use serde_json::json;

#[test]
fn mines_and_pays() {
    let bitcoind = Bitcoind::start(Options::default()).unwrap();
    assert!(bitcoind.program().version >= VERSION_MIN);
    assert_eq!(bitcoind.height().unwrap(), 0);
    assert_eq!(bitcoind.mine_to_wallet(101).unwrap().len(), 101);
    assert_eq!(bitcoind.balance().unwrap(), Amount::from_int_btc(50));

    let address = bitcoind.new_address().unwrap();
    let txid = bitcoind.send_to(&address, Amount::from_sat(12_345)).unwrap();
    assert_eq!(bitcoind.mempool().unwrap(), [txid]);
    bitcoind.mine(1, &address).unwrap();
    assert!(bitcoind.mempool().unwrap().is_empty());
}

#[test]
fn has_no_peers_and_leaves_loopback_alone() {
    let bitcoind = Bitcoind::start(Options { listen: true, ..Options::default() }).unwrap();
    let info = bitcoind.call("getnetworkinfo", &json!([])).unwrap();
    assert_eq!(info["connections"], 0);
    assert_eq!(info["localaddresses"], json!([]));
    assert!(std::net::TcpStream::connect(("127.0.0.1", bitcoind.peer_port().unwrap())).is_ok());
}

#[test]
fn restart_keeps_the_chain_and_changes_the_cookie() {
    let mut bitcoind = Bitcoind::start(Options::default()).unwrap();
    bitcoind.mine_to_wallet(3).unwrap();
    let cookie = std::fs::read(bitcoind.cookie_path()).unwrap();
    bitcoind.restart().unwrap();
    assert_ne!(std::fs::read(bitcoind.cookie_path()).unwrap(), cookie);
    assert_eq!(bitcoind.height().unwrap(), 3);
    // The wallet is not loaded by itself after a restart.
    bitcoind.mine_to_wallet(1).unwrap();
}

#[test]
fn killed_and_started_again() {
    let mut bitcoind = Bitcoind::start(Options::default()).unwrap();
    bitcoind.kill9().unwrap();
    assert!(!bitcoind.is_running());
    assert!(matches!(bitcoind.height(), Err(Error::NoAnswer { .. })));
    bitcoind.start_again().unwrap();
    assert!(bitcoind.is_running());
    assert_eq!(bitcoind.height().unwrap(), 0);
}

#[test]
fn reorg_replaces_blocks_and_returns_their_transactions() {
    let bitcoind = Bitcoind::start(Options::default()).unwrap();
    bitcoind.mine_to_wallet(101).unwrap();
    let address = bitcoind.new_address().unwrap();
    let txid = bitcoind.send_to(&address, Amount::from_sat(12_345)).unwrap();
    let old = bitcoind.mine(2, &address).unwrap();
    let new = bitcoind.reorg(2, &address).unwrap();
    assert_eq!(new.len(), 3);
    assert_eq!(bitcoind.height().unwrap(), 104);
    assert_eq!(bitcoind.tip().unwrap(), new[2]);
    assert_ne!(bitcoind.block_hash(102).unwrap(), old[0]);
    assert_eq!(bitcoind.mempool().unwrap(), [txid]);
}

#[test]
fn bad_argument_shows_the_log() {
    let options = Options { arguments: vec!["-nosuchthing=1".into()], ..Options::default() };
    let Err(error) = Bitcoind::start(options) else { panic!("it started") };
    assert!(error.to_string().contains("nosuchthing"), "{error}");
}

#[test]
fn data_folder_given_stays() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { data_folder: Some(folder.path().to_owned()), ..Options::default() };
    let mut bitcoind = Bitcoind::start(options.clone()).unwrap();
    bitcoind.mine_to_wallet(2).unwrap();
    bitcoind.stop().unwrap();
    drop(bitcoind);
    assert_eq!(Bitcoind::start(options).unwrap().height().unwrap(), 2);
}
