#![allow(clippy::unwrap_used)]
use millrace_journal::{Journal, Options};
use millrace_wire::{CltvExpiry, HtlcId, Msat, Preimage, ShortChannelId};
use secp256k1::{SECP256K1, SecretKey};

use super::*;
use crate::happened::{AttemptBegun, Failure, FailureReason, Happened, InvoiceCreated, PaymentStarted};
use crate::payments::PaymentStatus;

fn at(frame: u64, index: u32) -> Position {
    Position { frame, index }
}

fn started(id: u8, hash: u8) -> Happened {
    let attempt = AttemptBegun {
        attempt: 0,
        channel_id: ChannelId([1; 32]),
        scid: ShortChannelId(1),
        cltv_expiry: CltvExpiry(1),
    };
    Happened::PaymentStarted(Box::new(PaymentStarted {
        id: PaymentId([id; 32]),
        payment_hash: PaymentHash([hash; 32]),
        amount: Msat(u64::from(id)),
        payee: SecretKey::from_slice(&[2; 32]).unwrap().public_key(SECP256K1),
        bolt11: "ln".to_owned(),
        idempotency_key: String::new(),
        attempt,
    }))
}

fn failed(id: u8, hash: u8) -> Happened {
    let failure = Failure::here(FailureReason::NoRoute, "no");
    Happened::PaymentFailed { id: PaymentId([id; 32]), payment_hash: PaymentHash([hash; 32]), failure }
}

fn succeeded(id: u8, hash: u8) -> Happened {
    Happened::PaymentSucceeded {
        id: PaymentId([id; 32]),
        payment_hash: PaymentHash([hash; 32]),
        preimage: Preimage::new([9; 32]),
        amount: Msat(5),
        fee: Msat(0),
    }
}

fn invoice(hash: u8) -> [Happened; 2] {
    let payment_hash = PaymentHash([hash; 32]);
    let created = InvoiceCreated {
        payment_hash,
        amount: Some(Msat(7)),
        expires_ms: 50,
        bolt11: "ln".to_owned(),
        idempotency_key: String::new(),
    };
    let paid = Happened::InvoicePaid {
        payment_hash,
        received: Msat(8),
        preimage: Preimage::new([3; 32]),
        channel_id: ChannelId([1; 32]),
        htlc_id: HtlcId(2),
    };
    [Happened::InvoiceCreated(Box::new(created)), paid]
}

fn journal(dir: &Path) -> Journal {
    let options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, ..Options::default() };
    let (journal, _) = Journal::open(dir, options).unwrap();
    while journal.durable_end().frame <= 30 {
        journal.submit_and_wait(vec![1]).unwrap();
    }
    journal
}

fn story(log: &EventLog) {
    log.told(at(1, 0), 10, vec![started(1, 1), started(2, 2)]);
    log.told(at(2, 0), 20, vec![failed(1, 1)]);
    log.told(at(3, 0), 30, vec![succeeded(2, 2), started(3, 1)]);
    let [created, paid] = invoice(7);
    log.told(at(4, 0), 40, vec![created]);
    log.told(at(5, 0), 45, vec![paid]);
    log.settle(at(6, 0));
}

fn ids(page: &Page<PaymentRow>) -> Vec<u8> {
    page.rows.iter().map(|row| row.id.0[0]).collect()
}

fn check(view: &View) {
    let all = view.payments(None, 10, |_| true).unwrap();
    assert_eq!((ids(&all), all.next), (vec![3, 2, 1], None));
    let first = view.payments(None, 2, |_| true).unwrap();
    assert_eq!(ids(&first), [3, 2]);
    let second = view.payments(first.next, 2, |_| true).unwrap();
    assert_eq!((ids(&second), second.next), (vec![1], None));
    let failed = view.payments(None, 10, |row| matches!(row.status, PaymentStatus::Failed(_))).unwrap();
    assert_eq!(ids(&failed), [1]);
    assert_eq!(view.payment_by_hash(&PaymentHash([1; 32])).unwrap().unwrap().id, PaymentId([3; 32]));
    let succeeded = view.payment(&PaymentId([2; 32])).unwrap().unwrap();
    assert_eq!((succeeded.created_ms, succeeded.decided_ms), (10, Some(30)));
    assert_eq!(view.payment(&PaymentId([8; 32])).unwrap(), None);
    let invoice = view.invoice(&PaymentHash([7; 32])).unwrap().unwrap();
    assert_eq!(invoice.paid.unwrap().received, Msat(8));
    assert_eq!(view.invoices(None, 9, |_| true).unwrap().rows.len(), 1);
}

#[test]
fn deleted_and_folded_again_it_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir.path().join("journal"));
    let log = EventLog::new();
    log.attach(Arc::clone(journal.history()));
    story(&log);
    let path = dir.path().join("view");
    let view = View::open(&path, &log).unwrap();
    assert!(view.fold(&log).unwrap());
    assert!(!view.fold(&log).unwrap());
    check(&view);
    // Part of it is history by now.
    log.to_history(at(4, 0)).unwrap();
    drop(view);
    let again = View::open(&path, &log).unwrap();
    assert_eq!(again.applied(), at(6, 0), "it goes on where it was");
    check(&again);
    drop(again);
    std::fs::remove_dir_all(&path).unwrap();
    let fresh = View::open(&path, &log).unwrap();
    assert_eq!(fresh.applied(), Position::START);
    fresh.fold(&log).unwrap();
    check(&fresh);
}

#[test]
fn a_view_that_has_seen_more_than_there_is_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir.path().join("journal"));
    let log = EventLog::new();
    log.attach(Arc::clone(journal.history()));
    story(&log);
    let path = dir.path().join("view");
    View::open(&path, &log).unwrap().fold(&log).unwrap();
    let other = EventLog::new();
    let view = View::open(&path, &other).unwrap();
    assert_eq!(view.applied(), Position::START);
    assert!(view.payments(None, 9, |_| true).unwrap().rows.is_empty());
}

/// As after a journal was put back from an older copy: the start itself writes, and its steps stand where those stood that
/// the view has seen.
#[test]
fn a_view_that_has_seen_more_than_there_was_is_made_again_though_the_journal_has_grown_since() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir.path().join("journal"));
    let log = EventLog::new();
    log.attach(Arc::clone(journal.history()));
    story(&log);
    let path = dir.path().join("view");
    View::open(&path, &log).unwrap().fold(&log).unwrap();
    let older = EventLog::new();
    older.follow(Box::new(|| at(5, 0)));
    story(&older);
    let view = View::open(&path, &older).unwrap();
    assert_eq!(view.applied(), Position::START);
    drop(view);
    let same = EventLog::new();
    same.follow(Box::new(|| at(6, 0)));
    story(&same);
    View::open(&path, &same).unwrap().fold(&same).unwrap();
    assert_eq!(View::open(&path, &same).unwrap().applied(), at(6, 0), "one that fits is kept");
}

#[test]
fn garbage_in_its_folder_is_no_reason_not_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("view");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("conf"), b"garbage").unwrap();
    std::fs::write(path.join("db"), b"garbage").unwrap();
    let log = EventLog::new();
    let view = View::open(&path, &log).unwrap();
    assert_eq!(view.applied(), Position::START);
}

#[test]
fn rows_that_pass_a_filter_are_found_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let log = EventLog::new();
    for n in 1..=200_u8 {
        log.told(at(u64::from(n), 0), 1, vec![started(n, n)]);
    }
    log.settle(at(201, 0));
    let view = View::open(&dir.path().join("view"), &log).unwrap();
    view.fold(&log).unwrap();
    let (mut from, mut found) = (None, Vec::new());
    loop {
        let page = view.payments(from, 7, |row| row.id.0[0] % 3 == 0).unwrap();
        found.extend(ids(&page));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let expected: Vec<u8> = (1..=200).rev().filter(|n| n % 3 == 0).collect();
    assert_eq!(found, expected);
}

/// What is old is worse than no answer: a paid order would look open.
#[test]
fn a_view_that_has_stopped_refuses_until_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir.path().join("journal"));
    let log = EventLog::new();
    log.attach(Arc::clone(journal.history()));
    story(&log);
    let path = dir.path().join("view");
    let view = View::open(&path, &log).unwrap();
    view.fold(&log).unwrap();
    check(&view);
    view.stop(&ViewError::Row("no room".to_owned()));
    let refusals = [
        view.payments(None, 1, |_| true).map(drop),
        view.invoices(None, 1, |_| true).map(drop),
        view.channels(None, 1, |_| true).map(drop),
        view.payment(&PaymentId([2; 32])).map(drop),
        view.payment_by_hash(&PaymentHash([1; 32])).map(drop),
        view.invoice(&PaymentHash([7; 32])).map(drop),
        view.channel(&ChannelId([1; 32])).map(drop),
    ];
    for refused in refusals {
        let Err(ViewError::Stopped(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("no room"), "{why}");
    }
    drop(view);
    check(&View::open(&path, &log).unwrap());
}

#[test]
fn forwards_and_their_sums() {
    use crate::happened::{ForwardEnd, Forwarded};
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(&dir.path().join("journal"));
    let log = EventLog::new();
    log.attach(Arc::clone(journal.history()));
    let forwarded = |id: u64, end| {
        Happened::Forwarded(Box::new(Forwarded {
            incoming_channel: ChannelId([1; 32]),
            incoming_htlc: HtlcId(id),
            outgoing_channel: ChannelId([2; 32]),
            outgoing_htlc: HtlcId(id),
            payment_hash: PaymentHash([3; 32]),
            amount_in: Msat(1_050),
            amount_out: Msat(1_000),
            received_ms: 1,
            end,
        }))
    };
    let view = View::open(&dir.path().join("view"), &log).unwrap();
    log.told(at(1, 0), 5, vec![forwarded(1, ForwardEnd::Settled), forwarded(2, ForwardEnd::Failed)]);
    log.settle(at(2, 0));
    view.fold(&log).unwrap();
    log.told(at(2, 0), 6, vec![forwarded(3, ForwardEnd::Settled), forwarded(4, ForwardEnd::TimedOut)]);
    log.settle(at(3, 0));
    view.fold(&log).unwrap();
    let ids = |page: Page<ForwardRow>| page.rows.iter().map(|row| row.forwarded.incoming_htlc.0).collect::<Vec<_>>();
    assert_eq!(ids(view.forwards(None, 9, |_| true).unwrap()), [4, 3, 2, 1]);
    assert_eq!(ids(view.forwards(None, 9, |row| row.ended_ms == 5).unwrap()), [2, 1]);
    let totals = view.forward_totals().unwrap();
    assert_eq!(totals, ForwardTotals { settled: 2, failed: 2, forwarded: Msat(2_000), fees: Msat(100) });
}
