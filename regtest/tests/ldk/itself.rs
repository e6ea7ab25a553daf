//! Two ldk-nodes on a real bitcoind: what the driver can be asked for, done once.

use bitcoin::Amount;
use millrace_regtest::bitcoind::{Bitcoind, Options};
use millrace_regtest::ldk::protocol::{Event, PaymentStatus, Store};
use millrace_regtest::ldk::{self, LdkNode};
use millrace_regtest::network::{SOON, wait_for};

const CAPACITY: u64 = 1_000_000;

struct Pair {
    alice: LdkNode,
    bob: LdkNode,
    bitcoind: Bitcoind,
    _folder: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        let bitcoind = Bitcoind::start(Options::default()).unwrap();
        bitcoind.mine_to_wallet(110).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut alice = LdkNode::new("alice", folder.path(), &bitcoind, ldk::Options::default());
        let options = ldk::Options { store: Store::Fs, ..ldk::Options::default() };
        let mut bob = LdkNode::new("bob", folder.path(), &bitcoind, options);
        for node in [&mut alice, &mut bob] {
            node.start().await.unwrap();
            bitcoind.send_to(&node.new_address().await.unwrap(), Amount::from_sat(3_000_000)).unwrap();
        }
        let pair = Self { alice, bob, bitcoind, _folder: folder };
        pair.mine(1).await;
        assert_eq!(pair.alice.balances().await.unwrap().onchain_sat, 3_000_000);
        pair
    }

    async fn mine(&self, blocks: u32) {
        self.bitcoind.mine_to_wallet(blocks).unwrap();
        let height = self.bitcoind.height().unwrap();
        self.alice.sync_to(height).await.unwrap();
        self.bob.sync_to(height).await.unwrap();
    }

    async fn wait_for_mempool(&self) {
        let in_mempool = async || {
            let count = self.bitcoind.mempool().unwrap().len();
            Ok(if count > 0 { Ok(()) } else { Err("it is empty".to_owned()) })
        };
        wait_for("a transaction in the mempool", SOON, in_mempool).await.unwrap();
    }

    async fn open(&self) -> String {
        let (id, address) = (self.bob.node_id(), self.bob.lightning_address().unwrap());
        self.alice.open_channel(id, &address, CAPACITY, 100_000_000).await.unwrap();
        self.wait_for_mempool().await;
        self.mine(6).await;
        let channel_id = self.alice.channels().await.unwrap()[0].channel_id.clone();
        self.alice.wait_until_usable(&channel_id).await.unwrap();
        self.bob.wait_until_usable(&channel_id).await.unwrap();
        channel_id
    }

    /// Both sides' balances, in satoshi, are these as soon as nothing is in flight: a payment is complete before its
    /// HTLC has left the commitments.
    async fn check_sums(&self, channel_id: &str, wanted: (u64, u64)) {
        let both = async || {
            let alice = self.alice.channel(channel_id).await?.local_msat();
            let bob = self.bob.channel(channel_id).await?.local_msat();
            let has = (alice, bob);
            let is_so = has == (Some(wanted.0 * 1000), Some(wanted.1 * 1000));
            Ok(if is_so { Ok(()) } else { Err(format!("they have {has:?} msat")) })
        };
        wait_for(&format!("{wanted:?} sat"), SOON, both).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ldk_talks_to_itself() {
    let mut pair = Pair::start().await;
    let channel_id = pair.open().await;
    pair.check_sums(&channel_id, (900_000, 100_000)).await;

    // The amount in the invoice, and the amount left open; both ways.
    let invoice = pair.bob.receive(Some(50_000_000), "a test").await.unwrap();
    let paid = pair.alice.pay(&invoice, None).await.unwrap();
    pair.alice.wait_until_paid(&paid).await.unwrap();
    assert!(pair.alice.pay(&invoice, None).await.is_err(), "an invoice was paid twice");
    let invoice = pair.alice.receive(None, "any").await.unwrap();
    let paid = pair.bob.pay(&invoice, Some(20_000_000)).await.unwrap();
    pair.bob.wait_until_paid(&paid).await.unwrap();
    let received = Event::PaymentReceived { payment_id: paid, amount_msat: 20_000_000 };
    let told = async || Ok(pair.alice.events().contains(&received).then_some(()).ok_or_else(String::new));
    wait_for("the event of the payment received", SOON, told).await.unwrap();

    pair.bob.restart().await.unwrap();
    let (id, address) = (pair.alice.node_id().to_owned(), pair.alice.lightning_address().unwrap());
    pair.bob.connect(&id, &address).await.unwrap();
    pair.bob.wait_until_usable(&channel_id).await.unwrap();
    pair.check_sums(&channel_id, (870_000, 130_000)).await;
    let payments = pair.bob.payments().await.unwrap();
    assert_eq!(payments.iter().filter(|payment| payment.status == PaymentStatus::Succeeded).count(), 2);

    pair.bob.close_channel(&channel_id).await.unwrap();
    pair.wait_for_mempool().await;
    pair.mine(6).await;
    assert!(pair.alice.channels().await.unwrap().is_empty());
    pair.mine(6).await;
    let bob = pair.bob.balances().await.unwrap();
    assert!(bob.onchain_sat > 3_129_000, "{bob:?}");

    pair.bob.kill9().unwrap();
    assert!(!pair.bob.is_running());
    assert!(pair.bob.balances().await.is_err());
    pair.alice.stop().await.unwrap();
}
