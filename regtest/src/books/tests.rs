//! Books that are right, and what happens to them when a figure is not.

#![allow(clippy::unwrap_used)]

use super::*;

const ALICE: usize = 0;
const BOB: usize = 1;

fn fee(txid: &str, sweeps: Option<usize>, sat: u64) -> Fee {
    Fee { txid: txid.to_owned(), sweeps, sat }
}

fn tx(txid: &str, fee_sat: u64) -> Transaction {
    Transaction { txid: txid.to_owned(), fee_sat, weight: 600 }
}

const fn word(balance_msat: u64, fee_sat: u64, recovered_sat: u64) -> Word {
    Word { balance_msat, fee_sat, recovered_sat }
}

/// Alice opens two channels of 10,000 sat and gives Bob half. The first they close together, and Bob's transaction is
/// mined; the second Alice closes alone.
fn books() -> Books {
    let dealings = Dealings { funder: ALICE, capacity_sat: 10_000, push_msat: 5_000_000, paid_msat: [1_000_700, 400] };
    // 3,999,700 msat of Alice's and 6,000,300 of Bob's: 1 sat of fractions.
    let broadcast = |txid: &str, fee_sat, local_sat| Broadcast { by: ALICE, txid: txid.to_owned(), fee_sat, local_sat };
    Books {
        nodes: [
            Node {
                name: "alice".to_owned(),
                given_sat: 50_000,
                // 50,000 - 2 fundings of 10,000 and 90, + 3,999, + 3,999 - 120 - 660 - 50
                wallet_sat: 36_988,
                fees: vec![fee("funding 0", None, 90), fee("funding 1", None, 90), fee("sweep", Some(1), 50)],
            },
            Node {
                name: "bob".to_owned(),
                given_sat: 20_000,
                // 20,000 + 6,000 - 100, + 6,000 - 40
                wallet_sat: 31_860,
                fees: vec![fee("sweep of bob", Some(1), 40)],
            },
        ],
        channels: vec![
            Channel {
                dealings,
                closing_txid: "close of bob".to_owned(),
                way: Way::Together,
                broadcast: broadcast("close of alice", 101, 3_899),
                words: [word(3_999_700, 101, 3_999), word(6_000_300, 101, 5_900)],
            },
            Channel {
                dealings,
                closing_txid: "commitment".to_owned(),
                way: Way::Alone { anchors_sat: 660 },
                broadcast: broadcast("commitment", 121, 3_219),
                words: [word(3_999_700, 121, 3_169), word(6_000_300, 121, 5_960)],
            },
        ],
        transactions: vec![
            tx("funding 0", 90),
            tx("funding 1", 90),
            tx("close of bob", 101),
            tx("commitment", 121),
            tx("sweep", 50),
            tx("sweep of bob", 40),
        ],
    }
}

/// The books after a change are found to be wrong, in these words.
fn wrong(change: impl FnOnce(&mut Books)) -> String {
    let mut books = books();
    change(&mut books);
    books.check().unwrap_err()
}

#[test]
fn right_books() {
    assert_eq!(books().check(), Ok(()));
}

#[test]
fn right_books_of_a_close_that_its_asker_pays() {
    let mut books = books();
    let channel = &mut books.channels[0];
    channel.closing_txid = "close of alice".to_owned();
    books.transactions[2].txid = "close of alice".to_owned();
    assert!(books.check().unwrap_err().starts_with("alice recovered 3999 sat from channel 0, and 3899 are due"));
    books.channels[0].words = [word(3_999_700, 101, 3_899), word(6_000_300, 101, 6_000)];
    books.nodes[ALICE].wallet_sat -= 100;
    books.nodes[BOB].wallet_sat += 100;
    assert_eq!(books.check(), Ok(()));
}

#[test]
fn close_that_its_asker_saw_and_the_other_node_pays() {
    let mut books = books();
    books.channels[0].broadcast =
        Broadcast { by: ALICE, txid: "close of bob".to_owned(), fee_sat: 101, local_sat: 3_999 };
    assert_eq!(books.check(), Ok(()));
    books.channels[0].broadcast.fee_sat = 100;
    assert_eq!(books.check().unwrap_err(), "alice says that close of bob paid 100 sat, and by the blocks it paid 101");
}

#[test]
fn one_satoshi_in_a_wallet() {
    for (node, name) in [(ALICE, "alice"), (BOB, "bob")] {
        for by in [1, -1] {
            let text = wrong(|books| {
                let wallet = &mut books.nodes[node].wallet_sat;
                *wallet = wallet.checked_add_signed(by).unwrap();
            });
            assert!(text.starts_with(&format!("{name} was given ")), "{text}");
        }
    }
    let text = wrong(|books| books.nodes[BOB].wallet_sat -= 1);
    assert_eq!(
        text,
        "bob was given 20000 sat, received 12001400 msat and paid 800 msat over channels, paid 140 sat in fees and lost \
         600 msat to whole satoshi: 31860000 msat are due, and it has 31859 sat in its wallet and 0 in anchors"
    );
}

#[test]
fn one_satoshi_from_one_wallet_in_the_other() {
    let text = wrong(|books| {
        books.nodes[ALICE].wallet_sat -= 1;
        books.nodes[BOB].wallet_sat += 1;
    });
    assert!(text.starts_with("alice was given 50000 sat"), "{text}");
}

#[test]
fn deposit_of_the_other_node() {
    let text = wrong(|books| {
        books.nodes[ALICE].given_sat += 10_000;
        books.nodes[BOB].given_sat -= 10_000;
    });
    assert!(text.starts_with("alice was given 60000 sat"), "{text}");
}

#[test]
fn wallets_swapped() {
    let text = wrong(|books| {
        let [alice, bob] = &mut books.nodes;
        std::mem::swap(&mut alice.wallet_sat, &mut bob.wallet_sat);
    });
    assert!(text.ends_with("it has 31860 sat in its wallet and 660 in anchors"), "{text}");
}

#[test]
fn balance_one_millisatoshi_off() {
    let text = wrong(|books| books.channels[1].words[BOB].balance_msat += 1);
    assert_eq!(text, "channel 1 ended with 6000301 msat of bob's, and 6000300 are due");
}

#[test]
fn balances_swapped() {
    let text = wrong(|books| {
        let words = &mut books.channels[1].words;
        (words[ALICE].balance_msat, words[BOB].balance_msat) = (words[BOB].balance_msat, words[ALICE].balance_msat);
    });
    assert_eq!(text, "channel 1 ended with 6000300 msat of alice's, and 3999700 are due");
}

#[test]
fn payment_that_the_other_node_made() {
    let text = wrong(|books| books.channels[0].dealings.paid_msat.reverse());
    assert!(text.starts_with("channel 0 ended with 3999700 msat of alice's, and 6000300 are due"), "{text}");
}

#[test]
fn recovered_one_satoshi_off() {
    for (node, name) in [(ALICE, "alice"), (BOB, "bob")] {
        for channel in [0, 1] {
            let text = wrong(|books| books.channels[channel].words[node].recovered_sat -= 1);
            assert!(text.starts_with(&format!("{name} recovered ")), "{text}");
            assert!(text.contains(&format!("from channel {channel}, and ")), "{text}");
        }
    }
}

#[test]
fn fee_of_a_close_taken_from_the_other_node() {
    let text = wrong(|books| {
        books.channels[1].words[ALICE].recovered_sat += 120;
        books.channels[1].words[BOB].recovered_sat -= 120;
        books.nodes[ALICE].wallet_sat += 120;
        books.nodes[BOB].wallet_sat -= 120;
    });
    assert!(text.starts_with("alice recovered 3289 sat from channel 1, and 3169 are due"), "{text}");
}

#[test]
fn fee_told_one_satoshi_off() {
    let text = wrong(|books| books.nodes[BOB].fees[0].sat += 1);
    assert_eq!(text, "bob says that sweep of bob paid 41 sat, and by the blocks it paid 40");
    let text = wrong(|books| books.channels[1].words[BOB].fee_sat -= 1);
    assert_eq!(text, "bob says that commitment paid 120 sat, and by the blocks it paid 121");
    let text = wrong(|books| books.transactions[0].fee_sat += 1);
    assert_eq!(text, "alice says that funding 0 paid 90 sat, and by the blocks it paid 91");
}

#[test]
fn fees_of_two_sweeps_swapped() {
    let text = wrong(|books| {
        let [alice, bob] = &mut books.nodes;
        std::mem::swap(&mut alice.fees[2].sat, &mut bob.fees[0].sat);
    });
    assert_eq!(text, "alice says that sweep paid 40 sat, and by the blocks it paid 50");
}

#[test]
fn transaction_that_only_one_side_knows() {
    let text = wrong(|books| books.transactions.push(tx("gift", 10)));
    assert_eq!(text, "nobody says that gift is theirs, which paid 10 sat");
    let text = wrong(|books| {
        books.transactions.pop();
    });
    assert_eq!(text, "bob says that sweep of bob paid 40 sat, and it is in no block");
}

#[test]
fn anchor_that_is_gone() {
    let text = wrong(|books| books.channels[1].way = Way::Alone { anchors_sat: 330 });
    assert!(text.starts_with("alice recovered 3169 sat from channel 1, and 3499 are due"), "{text}");
}

/// Wallets, words and blocks agree, and the miners are rich.
#[test]
fn close_that_burns_money() {
    let burnt = |sat: u64| {
        let mut books = books();
        books.transactions[3].fee_sat += sat;
        books.channels[1].broadcast.fee_sat += sat;
        books.channels[1].words.iter_mut().for_each(|word| word.fee_sat += sat);
        books.channels[1].words[ALICE].recovered_sat -= sat;
        books.nodes[ALICE].wallet_sat -= sat;
        books.check()
    };
    // 600 weight units may pay 1,500 sat.
    assert_eq!(burnt(1_500 - 121), Ok(()));
    let text = burnt(1_501 - 121).unwrap_err();
    assert_eq!(text, "commitment of 600 weight units paid 1501 sat: more than 2500 for each 1000");
}
