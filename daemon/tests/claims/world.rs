//! A real bitcoind, followed.

use std::time::Duration;

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Address, Amount, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use millrace_chain::fees::FeeEstimates;
use millrace_chain::{Auth, Bitcoind, ChainEvent, Config, SyncState, Timeouts, Trail, Watcher};
use millrace_regtest::bitcoind::{Bitcoind as Regtest, Options};
use millrace_wire::{BlockHeight, Sat};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::ends::{End, Owner};

const LIMIT: Duration = Duration::from_secs(60);

/// The chain.
pub(crate) struct World {
    pub(crate) regtest: Regtest,
    pub(crate) bitcoind: Bitcoind,
    pub(crate) sync: watch::Receiver<SyncState>,
    pub(crate) fees: watch::Receiver<FeeEstimates>,
    events: mpsc::Receiver<ChainEvent>,
}

impl World {
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        // Shown if the test fails.
        let _set_already = tracing_subscriber::fmt().with_test_writer().with_env_filter("info").try_init();
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let regtest = Regtest::start(Options { arguments, ..Options::default() }).unwrap();
        regtest.mine_to_wallet(110).unwrap();
        let config = Config {
            url: regtest.rpc_url(),
            auth: Auth::Cookie(regtest.cookie_path()),
            network: Network::Regtest,
            timeouts: Timeouts { poll: Duration::from_millis(200), ..Timeouts::default() },
        };
        let bitcoind = Bitcoind::connect(config).await.unwrap();
        let (watcher, sync) = Watcher::new(bitcoind.clone());
        let (sender, events) = mpsc::channel(8);
        tokio::spawn(watcher.run(Trail::default(), sender));
        let fees = FeeEstimates::follow(bitcoind.clone(), sync.clone());
        Self { regtest, bitcoind, sync, fees, events }
    }

    pub(crate) fn height(&self) -> BlockHeight {
        BlockHeight(self.regtest.height().unwrap())
    }

    /// Gives every block up to bitcoind's tip to whoever follows.
    pub(crate) async fn follow(&mut self, owners: &[&Owner], ends: &mut [&mut End]) {
        let wanted = self.height().0;
        loop {
            let event = timeout(LIMIT, self.events.recv()).await.expect("an event in time").unwrap();
            match event {
                ChainEvent::Connected { height, block, .. } => {
                    for owner in owners {
                        owner.wallet.apply_block(height, block.clone()).await.unwrap().unwrap();
                    }
                    for end in ends.iter_mut() {
                        end.on_block(height, &block).await;
                    }
                }
                ChainEvent::Tip { height, .. } if height == wanted => return,
                ChainEvent::Tip { .. } | ChainEvent::Away { .. } | ChainEvent::Back => {}
                ChainEvent::Disconnected { .. } => panic!("there is no reorg here"),
            }
        }
    }

    pub(crate) async fn mine(&mut self, blocks: u32, ends: &mut [&mut End]) {
        for _ in 0..blocks {
            self.regtest.mine_to_wallet(1).unwrap();
            self.follow(&[], ends).await;
        }
    }

    /// A block without any transaction of the mempool.
    pub(crate) async fn mine_empty(&mut self, ends: &mut [&mut End]) {
        let address = self.regtest.new_address().unwrap();
        self.regtest.call("generateblock", &json!([address.to_string(), []])).unwrap();
        self.follow(&[], ends).await;
    }

    /// Pays to a script and mines it.
    pub(crate) async fn pay(&mut self, script: &ScriptBuf, amount: Sat, owners: &[&Owner]) -> OutPoint {
        let address = Address::from_script(script, Network::Regtest).unwrap();
        let txid = self.regtest.send_to(&address, amount.to_amount()).unwrap();
        let tx = self.bitcoind.transaction(&txid, None).await.unwrap().unwrap();
        self.regtest.mine_to_wallet(1).unwrap();
        self.follow(owners, &mut []).await;
        let vout = tx.output.iter().position(|output| output.script_pubkey == *script).unwrap();
        OutPoint { txid, vout: u32::try_from(vout).unwrap() }
    }

    /// Fills a small mempool until it throws transactions out, and so demands more than the least that is relayed.
    /// Each of them pays at least `fee_least` out of a coin of so much.
    pub(crate) async fn fill_mempool(&mut self, fee_least: u64, coin_sat: u64, ends: &mut [&mut End]) {
        const TXS: usize = 60;
        let open = ScriptBuf::from_bytes(vec![0x51]);
        let address = Address::p2wsh(&open, Network::Regtest);
        let mut coins = Vec::new();
        for _ in 0..TXS {
            coins.push(self.regtest.send_to(&address, Amount::from_sat(coin_sat)).unwrap());
            if coins.len() % 20 == 0 {
                self.mine(1, ends).await;
            }
        }
        self.mine(1, ends).await;
        for (index, txid) in (0..).zip(coins) {
            let found = (0..2).map(|vout| OutPoint { txid, vout });
            let mut coin = None;
            for outpoint in found {
                let utxo = self.bitcoind.utxo(&outpoint, true).await.unwrap();
                if utxo.is_some_and(|utxo| utxo.script_pubkey == address.script_pubkey()) {
                    coin = Some(outpoint);
                }
            }
            let outputs = 2_200;
            let fee = fee_least + 10_000 * index;
            let each = (coin_sat - fee) / outputs;
            let tx = Transaction {
                version: Version::TWO,
                lock_time: LockTime::ZERO,
                input: vec![TxIn {
                    previous_output: coin.unwrap(),
                    script_sig: ScriptBuf::new(),
                    sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                    witness: Witness::from_slice(&[open.to_bytes()]),
                }],
                output: (0..outputs)
                    .map(|_| TxOut { value: Amount::from_sat(each), script_pubkey: address.script_pubkey() })
                    .collect(),
            };
            self.bitcoind.send(&tx).await.unwrap();
        }
        let info = self.bitcoind.mempool_info().await.unwrap();
        assert!(info.minimum > info.relay_minimum, "the mempool is not full: {info:?}");
    }
}
