//! Following the chain: catching up, reorgs, restarts.

use std::time::Duration;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use millrace_chain::{Bitcoind, ChainError, ChainEvent, Cursor, SyncState, Trail};

use crate::support::{Consumer, Proxy, Short, connect, cursor, regtest, regtest_with, ups};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_seen_yet_starts_at_the_tip() {
    let regtest = regtest();
    regtest.mine_to_wallet(5).unwrap();
    let mut consumer = Consumer::start(connect(&regtest).await, None);
    assert_eq!(consumer.until_tip(5).await, ups(&regtest, 5..=5));
    consumer.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_chain_starts_at_its_first_block() {
    let regtest = regtest();
    let mut consumer = Consumer::start(connect(&regtest).await, None);
    assert_eq!(consumer.until_tip(0).await, ups(&regtest, 0..=0));
    regtest.mine_to_wallet(1).unwrap();
    assert_eq!(consumer.until_tip(1).await, ups(&regtest, 1..=1));
}

#[tokio::test(flavor = "multi_thread")]
async fn catches_up_from_the_cursor_and_follows() {
    let regtest = regtest();
    regtest.mine_to_wallet(150).unwrap();
    let mut consumer = Consumer::start(connect(&regtest).await, Some(cursor(&regtest, 2)));
    consumer.until_state(|state| matches!(state, SyncState::Syncing { headers: 150, .. })).await;
    assert_eq!(consumer.until_tip(150).await, ups(&regtest, 3..=150));
    consumer.until_state(|state| *state == SyncState::Synced { height: 150 }).await;

    regtest.mine_to_wallet(2).unwrap();
    assert_eq!(consumer.until_tip(152).await, ups(&regtest, 151..=152));
    consumer.until_state(|state| *state == SyncState::Synced { height: 152 }).await;
    consumer.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tip_has_the_block_time() {
    let regtest = regtest();
    regtest.mine_to_wallet(3).unwrap();
    let bitcoind = connect(&regtest).await;
    let header = bitcoind.header_at(3).await.unwrap().unwrap().header;
    let mut consumer = Consumer::start(bitcoind, Some(cursor(&regtest, 3)));
    let expected = ChainEvent::Tip { height: 3, hash: header.block_hash(), time: header.time };
    assert_eq!(consumer.next().await, expected);
}

mod reorg {
    use super::*;

    fn downs(blocks: &[Cursor]) -> Vec<Short> {
        blocks.iter().rev().map(|cursor| Short::Down(cursor.height, cursor.hash)).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_several_blocks_under_way() {
        let regtest = regtest();
        regtest.mine_to_wallet(10).unwrap();
        let mut consumer = Consumer::start(connect(&regtest).await, Some(cursor(&regtest, 10)));
        assert_eq!(consumer.until_tip(10).await, []);

        let old: Vec<Cursor> = (7..=10).map(|height| cursor(&regtest, height)).collect();
        regtest.reorg(4, &regtest.new_address().unwrap()).unwrap();
        let expected = [downs(&old), ups(&regtest, 7..=11)].concat();
        assert_eq!(consumer.until_tip(11).await, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_several_blocks_while_off() {
        let regtest = regtest();
        regtest.mine_to_wallet(10).unwrap();
        let old: Vec<Cursor> = (8..=10).map(|height| cursor(&regtest, height)).collect();
        regtest.reorg(3, &regtest.new_address().unwrap()).unwrap();
        let mut consumer = Consumer::start(connect(&regtest).await, old.last().copied());
        let expected = [downs(&old), ups(&regtest, 8..=11)].concat();
        assert_eq!(consumer.until_tip(11).await, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn to_a_chain_of_the_same_height() {
        let regtest = regtest();
        regtest.mine_to_wallet(10).unwrap();
        let mut consumer = Consumer::start(connect(&regtest).await, Some(cursor(&regtest, 10)));
        consumer.until_tip(10).await;
        let old = [cursor(&regtest, 10)];
        let address = regtest.new_address().unwrap();
        regtest.invalidate_block(&old[0].hash).unwrap();
        regtest.mine(1, &address).unwrap();
        assert_ne!(cursor(&regtest, 10), old[0]);
        assert_eq!(consumer.until_tip(10).await, [downs(&old), ups(&regtest, 10..=10)].concat());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn not_down_to_a_chain_with_less_work() {
        let regtest = regtest();
        regtest.mine_to_wallet(10).unwrap();
        let mut consumer = Consumer::start(connect(&regtest).await, Some(cursor(&regtest, 10)));
        consumer.until_tip(10).await;
        let old: Vec<Cursor> = (9..=10).map(|height| cursor(&regtest, height)).collect();
        let address = regtest.new_address().unwrap();
        regtest.invalidate_block(&old[0].hash).unwrap();
        consumer.until_state(|state| matches!(state, SyncState::Syncing { blocks: 8, headers: 10, .. })).await;
        regtest.mine(1, &address).unwrap();
        consumer.until_state(|state| matches!(state, SyncState::Syncing { blocks: 9, headers: 10, .. })).await;
        assert!(consumer.events.try_recv().is_err());
        regtest.mine(2, &address).unwrap();
        assert_eq!(consumer.until_tip(11).await, [downs(&old), ups(&regtest, 9..=11)].concat());
    }
}

mod outage {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn restart_with_a_new_cookie() {
        let mut regtest = regtest();
        regtest.mine_to_wallet(3).unwrap();
        let mut consumer = Consumer::start(connect(&regtest).await, Some(cursor(&regtest, 3)));
        consumer.until_tip(3).await;

        regtest.stop().unwrap();
        let ChainEvent::Away { reason } = consumer.next().await else { panic!("no word that it is away") };
        assert!(reason.contains("away"), "{reason}");
        consumer.until_state(|state| matches!(state, SyncState::Away { .. })).await;
        regtest.start_again().unwrap();
        regtest.mine_to_wallet(2).unwrap();
        let mut expected = vec![Short::Back];
        expected.extend(ups(&regtest, 4..=5));
        assert_eq!(consumer.until_tip(5).await, expected);
        consumer.until_state(|state| *state == SyncState::Synced { height: 5 }).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn away_from_the_beginning() {
        let mut regtest = regtest();
        regtest.mine_to_wallet(2).unwrap();
        let start = cursor(&regtest, 1);
        regtest.stop().unwrap();
        let bitcoind = Bitcoind::new(crate::support::config(&regtest)).unwrap();
        let mut consumer = Consumer::start(bitcoind, Some(start));
        assert!(matches!(consumer.next().await, ChainEvent::Away { .. }));
        regtest.start_again().unwrap();
        let expected = [vec![Short::Back], ups(&regtest, 2..=2)].concat();
        assert_eq!(consumer.until_tip(2).await, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn consumer_may_leave_meanwhile() {
        let mut regtest = regtest();
        let mut consumer = Consumer::start(connect(&regtest).await, None);
        consumer.until_tip(0).await;
        regtest.kill9().unwrap();
        assert!(matches!(consumer.next().await, ChainEvent::Away { .. }));
        consumer.end().await.unwrap();
    }
}

mod cursor_unknown {
    use super::*;

    fn unheard_of(height: u32) -> Cursor {
        Cursor { height, hash: BlockHash::from_byte_array([7; 32]) }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn is_an_error_that_names_it() {
        let regtest = regtest();
        regtest.mine_to_wallet(5).unwrap();
        for height in [4, 50] {
            let stopped = unheard_of(height);
            let mut consumer = Consumer::start(connect(&regtest).await, Some(stopped));
            assert_eq!(consumer.events.recv().await, None);
            let error = consumer.task.await.unwrap().unwrap_err();
            assert_eq!(error, ChainError::UnknownCursor { height, hash: stopped.hash, blocks: 5 });
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn falls_back_along_the_trail() {
        let regtest = regtest();
        regtest.mine_to_wallet(7).unwrap();
        let forgotten = unheard_of(6);
        let trail = Trail::new([cursor(&regtest, 4), cursor(&regtest, 5), forgotten]);
        let mut consumer = Consumer::start(connect(&regtest).await, trail);
        let expected = [vec![Short::Down(6, forgotten.hash)], ups(&regtest, 6..=7)].concat();
        assert_eq!(consumer.until_tip(7).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_fetched_only_as_fast_as_they_are_taken() {
    let regtest = regtest();
    regtest.mine_to_wallet(30).unwrap();
    let proxy = Proxy::start(&regtest).await;
    let bitcoind = Bitcoind::connect(proxy.config(&regtest)).await.unwrap();
    let mut consumer = Consumer::with_room(bitcoind, Some(cursor(&regtest, 0)), 2);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(proxy.calls("getblock"), 2);
    assert_eq!(consumer.until_tip(30).await, ups(&regtest, 1..=30));
    assert_eq!(proxy.calls("getblock"), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn pruned_below_the_cursor() {
    let regtest = regtest_with(&["-prune=1", "-fastprune"]);
    regtest.mine_to_wallet(700).unwrap();
    regtest.call("pruneblockchain", &serde_json::json!([400])).unwrap();
    let bitcoind = connect(&regtest).await;
    let kept_from = bitcoind.chain_info().await.unwrap().kept_from.unwrap();
    assert!(kept_from > 11, "nothing was pruned");

    let consumer = Consumer::start(bitcoind.clone(), Some(cursor(&regtest, 10)));
    let error = consumer.task.await.unwrap().unwrap_err();
    assert_eq!(error, ChainError::Pruned { wanted: 11, kept_from });

    let mut consumer = Consumer::start(bitcoind, Some(cursor(&regtest, 690)));
    assert_eq!(consumer.until_tip(700).await, ups(&regtest, 691..=700));
}
