//! One thing after the other.

use super::*;

const P1: Place = (A, HtlcId(1));
const P2: Place = (B, HtlcId(1));
const P3: Place = (A, HtlcId(2));

mod parts {
    use super::*;

    #[test]
    fn in_every_order() {
        let amounts = [(P1, 50_000), (P2, 30_000), (P3, 20_000)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut payee = Payee::new(&[plain(1)]);
            for index in order {
                assert!(payee.out.is_empty(), "nothing before all of it is there");
                let (place, amount) = amounts[index];
                payee.part(1, place, amount, 100_000).unwrap();
            }
            let first = amounts[order[0]].0;
            let (place, entry) = payee.first_fulfilment();
            assert_eq!(place, first);
            let InvoiceEntry::ClaimedParts { parts, .. } = &entry else { panic!("{entry:?}") };
            assert_eq!(parts.len(), 3, "the entry names the set");
            let others: Vec<Place> = order[1..].iter().map(|index| amounts[*index].0).collect();
            assert_eq!(payee.fulfilled(), others);
            let [Happened::InvoicePaidInParts { parts, .. }] = &payee.happened[..] else { panic!() };
            assert_eq!(crate::happened::sum_of(parts), ASKED);
            assert_eq!(payee.receiving.assembly.len(), 0);
        }
    }

    #[test]
    fn a_whole_payment_is_one_entry_as_ever() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 100_000, 100_000).unwrap();
        let (_, entry) = payee.first_fulfilment();
        assert!(matches!(entry, InvoiceEntry::Claimed { amount: ASKED, .. }));
        assert!(payee.take().is_empty());
        assert!(matches!(payee.happened[..], [Happened::InvoicePaid { .. }]));
        assert_eq!(payee.part(1, P2, 100_000, 100_000), Err(Unpaid::AlreadyPaid));
    }

    #[test]
    fn the_sender_is_told_for_how_long_each_was_held() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        payee.now = payee.now.plus(3_000);
        payee.part(1, P2, 50_000, 100_000).unwrap();
        let [Receipt::Fulfill(first)] = &payee.out[..] else { panic!("{:?}", payee.out) };
        let entry = first.entry.clone().unwrap();
        assert_eq!(payee.fulfilled_after(), [(P1, HoldTime(30))]);
        payee.told(entry);
        assert_eq!(payee.fulfilled_after(), [(P2, HoldTime(0))]);
        let spontaneous = Final { payment_secret: None, keysend_preimage: Some(preimage(2)), ..last(7, 7) };
        payee.htlc(part(2, P3, 7), &spontaneous).unwrap();
        assert_eq!(payee.fulfilled_after(), [(P3, HoldTime(0))]);
    }

    /// BOLT 4: what the sender meant for us counts; a hop that passes on too much buys the others nothing.
    #[test]
    fn what_a_hop_adds_does_not_count_for_the_others() {
        let mut payee = Payee::new(&[plain(1)]);
        let mut more = part(1, P1, 90_000);
        more.counts = Msat(50_000);
        payee.htlc(more, &last(50_000, 100_000)).unwrap();
        payee.part(1, P2, 49_999, 100_000).unwrap();
        assert!(payee.take().is_empty());
        payee.part(1, P3, 1, 100_000).unwrap();
        payee.first_fulfilment();
    }

    #[test]
    fn another_total_fails_all_of_them() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        payee.part(1, P2, 50_000, 100_001).unwrap();
        assert_eq!(payee.failed(), [P1, P2]);
        // The invoice is open still.
        payee.part(1, P3, 100_000, 100_000).unwrap();
        payee.first_fulfilment();
    }

    #[test]
    fn more_than_twice_as_much_in_all() {
        let mut payee = Payee::new(&[plain(1)]);
        let mut more = part(1, P1, 150_000);
        more.counts = Msat(50_000);
        payee.htlc(more, &last(50_000, 100_000)).unwrap();
        let mut too_much = part(1, P2, 50_001);
        too_much.counts = Msat(50_000);
        payee.htlc(too_much, &last(50_000, 100_000)).unwrap();
        assert_eq!(payee.failed(), [P2], "that one alone");
    }

    #[test]
    fn more_of_them_than_anybody_needs() {
        let mut payee = Payee::new(&[plain(1)]);
        for id in 0..assembly::PARTS_MAX as u64 {
            payee.part(1, (A, HtlcId(id)), 1, 100_000).unwrap();
        }
        payee.part(1, P2, 1, 100_000).unwrap();
        assert_eq!(payee.failed(), [P2]);
    }

    #[test]
    fn those_of_one_payment_are_not_those_of_another() {
        let mut payee = Payee::new(&[plain(1), plain(2)]);
        payee.part(1, P1, 60_000, 100_000).unwrap();
        payee.part(2, P2, 60_000, 100_000).unwrap();
        assert!(payee.take().is_empty());
        payee.part(2, P3, 40_000, 100_000).unwrap();
        assert_eq!(payee.first_fulfilment().0, P2);
    }

    #[test]
    fn one_second_short_of_the_timeout_and_at_it() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        payee.now = Millis(30_000);
        payee.part(1, P2, 49_000, 100_000).unwrap();
        payee.now = Millis(5 + MPP_TIMEOUT_MS - 1);
        payee.time();
        assert!(payee.take().is_empty());
        payee.now = Millis(5 + MPP_TIMEOUT_MS);
        payee.time();
        // Counted from the first; the sender is told for how long each was held, in tenths of a second.
        assert_eq!(payee.failed_after(), [(P1, HoldTime(600)), (P2, HoldTime(300))]);
        payee.part(1, P3, 1_000, 100_000).unwrap();
        assert!(payee.take().is_empty(), "what was failed does not count");
    }

    #[test]
    fn near_their_expiry() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        let mut early = part(1, P2, 40_000);
        early.received.cltv_expiry = CltvExpiry(742);
        payee.htlc(early, &last(40_000, 100_000)).unwrap();
        payee.height = BlockHeight(720);
        payee.time();
        assert!(payee.take().is_empty());
        payee.height = BlockHeight(721);
        payee.time();
        assert_eq!(payee.failed(), [P1, P2], "by the nearest");
    }

    /// The first fulfilment is durable, the others are not: after a crash they are owed, whatever else is true by then.
    #[test]
    fn a_crash_between_the_fulfilments() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        payee.part(1, P2, 30_000, 100_000).unwrap();
        payee.part(1, P3, 20_000, 100_000).unwrap();
        payee.first_fulfilment();
        let mut again = payee.restarted();
        again.receiving.invoices.prune(EXPIRES_MS + 1_000_000, 0);
        assert_eq!(again.receiving.owed(P1), None);
        for place in [P2, P3] {
            let owed = again.receiving.owed(place).unwrap();
            assert_eq!((owed.preimage.hash(), owed.entry), (hash(1), None));
        }
        again.receiving.invoices.on_removed(P2.0, P2.1);
        assert_eq!(again.receiving.owed(P2), None);
        again.receiving.invoices.prune(EXPIRES_MS + 2_000_000, 0);
        assert!(again.receiving.owed(P3).is_some());
        again.receiving.invoices.on_closed(A);
        again.receiving.invoices.prune(EXPIRES_MS + 3_000_000, 0);
        assert_eq!(again.receiving.invoices.len(), 0);
    }

    /// Before the entry is durable nothing is decided.
    #[test]
    fn a_crash_before_the_first_fulfilment() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        payee.part(1, P2, 50_000, 100_000).unwrap();
        let mut again = payee.restarted();
        assert_eq!(again.receiving.owed(P2), None);
        again.part(1, P2, 50_000, 100_000).unwrap();
        again.now = Millis(MPP_TIMEOUT_MS + 5);
        again.time();
        assert_eq!(again.failed(), [P2]);
    }

    #[test]
    fn the_first_is_gone() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        payee.part(1, P2, 50_000, 100_000).unwrap();
        let out = payee.take();
        let [Receipt::Fulfill(first)] = &out[..] else { panic!("{out:?}") };
        payee.receiving.on_refused(first, false, &mut payee.out);
        assert!(payee.take().is_empty(), "the other waits again");
        payee.part(1, P3, 50_000, 100_000).unwrap();
        assert_eq!(payee.first_fulfilment().0, P2);
        assert_eq!(payee.fulfilled(), [P3]);
    }
}

mod hold_invoice {
    use super::*;

    fn held(knows: bool) -> Payee {
        let mut payee = Payee::new(&[hold(1, knows)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        payee.part(1, P2, 50_000, 100_000).unwrap();
        let entry = payee.written();
        assert!(matches!(entry, InvoiceEntry::Held { deadline: BlockHeight(778), .. }), "{entry:?}");
        assert!(payee.take().is_empty());
        assert!(matches!(payee.happened[..], [Happened::InvoiceHeld { .. }]));
        payee
    }

    #[test]
    fn settled_by_the_preimage_or_by_the_one_that_was_drawn() {
        for (knows, with) in [(false, Some(preimage(1))), (true, None), (true, Some(preimage(1)))] {
            let mut payee = held(knows);
            let mut answer = payee.settle(1, with);
            assert!(answer.try_recv().is_err(), "not before it is durable");
            assert_eq!(payee.first_fulfilment().0, P1);
            assert_eq!(answer.try_recv().unwrap(), Ok(()));
            assert_eq!(payee.fulfilled(), [P2]);
            let mut again = payee.settle(1, Some(preimage(1)));
            assert_eq!(again.try_recv().unwrap(), Ok(()));
            assert_eq!(payee.cancel(1).try_recv().unwrap(), Err(HoldRefusal::Paid(hash(1))));
            assert!(payee.take().is_empty());
        }
        let mut unknown = held(false);
        assert_eq!(unknown.settle(1, None).try_recv().unwrap(), Err(HoldRefusal::PreimageMissing(hash(1))));
    }

    #[test]
    fn with_nothing_or_not_everything_there() {
        let mut payee = Payee::new(&[hold(1, true), plain(2)]);
        assert_eq!(payee.settle(1, None).try_recv().unwrap(), Err(HoldRefusal::NotHeld(hash(1))));
        payee.part(1, P1, 50_000, 100_000).unwrap();
        assert_eq!(payee.settle(1, None).try_recv().unwrap(), Err(HoldRefusal::NotHeld(hash(1))));
        assert_eq!(payee.settle(2, None).try_recv().unwrap(), Err(HoldRefusal::NotHold(hash(2))));
        assert_eq!(payee.settle(3, None).try_recv().unwrap(), Err(HoldRefusal::Unknown(hash(3))));
        assert_eq!(payee.cancel(3).try_recv().unwrap(), Err(HoldRefusal::Unknown(hash(3))));
    }

    #[test]
    fn cancelled_open_or_held() {
        let mut payee = held(true);
        payee.now = Millis(4_005);
        payee.time();
        let mut answer = payee.cancel(1);
        assert!(matches!(payee.written(), InvoiceEntry::Cancelled { why: CancelReason::Asked, .. }));
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        assert_eq!(payee.failed_after(), [(P1, HoldTime(40)), (P2, HoldTime(40))]);
        assert_eq!(payee.cancel(1).try_recv().unwrap(), Ok(()), "again");
        let cancelled = HoldRefusal::Cancelled { payment_hash: hash(1), why: CancelReason::Asked };
        assert_eq!(payee.settle(1, None).try_recv().unwrap(), Err(cancelled));
        assert_eq!(payee.part(1, P3, 100_000, 100_000), Err(Unpaid::AlreadyPaid));

        let mut open = Payee::new(&[plain(1)]);
        open.part(1, P1, 50_000, 100_000).unwrap();
        let mut answer = open.cancel(1);
        assert_eq!(open.part(1, P2, 50_000, 100_000), Err(Unpaid::AlreadyPaid), "from the moment it is asked for");
        open.written();
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        assert_eq!(open.failed(), [P1]);
    }

    #[test]
    fn at_its_deadline_and_one_block_before() {
        let mut payee = held(true);
        payee.height = BlockHeight(778);
        payee.time();
        assert!(payee.take().is_empty());
        payee.height = BlockHeight(779);
        payee.time();
        assert!(matches!(payee.written(), InvoiceEntry::Cancelled { why: CancelReason::Deadline, .. }));
        assert_eq!(payee.failed(), [P1, P2]);
        let cancelled = HoldRefusal::Cancelled { payment_hash: hash(1), why: CancelReason::Deadline };
        assert_eq!(payee.settle(1, None).try_recv().unwrap(), Err(cancelled));
        assert_eq!(payee.cancel(1).try_recv().unwrap(), Ok(()));
    }

    /// Whichever is on its way to the journal first wins, and everybody is told the same.
    #[test]
    fn settle_cancel_and_deadline_race() {
        let mut payee = held(true);
        let (mut settled, mut cancelled) = (payee.settle(1, None), payee.cancel(1));
        payee.height = BlockHeight(2_000);
        payee.time();
        assert_eq!(payee.first_fulfilment().0, P1);
        assert_eq!(payee.fulfilled(), [P2]);
        assert_eq!(settled.try_recv().unwrap(), Ok(()));
        assert_eq!(cancelled.try_recv().unwrap(), Err(HoldRefusal::Paid(hash(1))));

        let mut payee = held(true);
        let (mut cancelled, mut settled) = (payee.cancel(1), payee.settle(1, None));
        payee.height = BlockHeight(2_000);
        payee.time();
        assert!(matches!(payee.written(), InvoiceEntry::Cancelled { why: CancelReason::Asked, .. }));
        assert_eq!(payee.failed(), [P1, P2]);
        assert_eq!(cancelled.try_recv().unwrap(), Ok(()));
        let why = CancelReason::Asked;
        assert_eq!(settled.try_recv().unwrap(), Err(HoldRefusal::Cancelled { payment_hash: hash(1), why }));

        // A block that was not looked at yet comes before whoever settles after it.
        let mut payee = held(true);
        payee.height = BlockHeight(2_000);
        let mut settled = payee.settle(1, None);
        payee.written();
        let why = CancelReason::Deadline;
        assert_eq!(settled.try_recv().unwrap(), Err(HoldRefusal::Cancelled { payment_hash: hash(1), why }));
    }

    #[test]
    fn cancelled_while_what_holds_it_is_written() {
        let mut payee = Payee::new(&[hold(1, true)]);
        payee.part(1, P1, 100_000, 100_000).unwrap();
        let mut answer = payee.cancel(1);
        let out = payee.take();
        let [Receipt::Write(held), Receipt::Write(cancelled)] = &out[..] else { panic!("{out:?}") };
        for entry in [held, cancelled] {
            payee.told(InvoiceEntry::decode(&entry.bytes).unwrap());
        }
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        assert_eq!(payee.failed(), [P1]);
        let names = [matches!(payee.happened[0], Happened::InvoiceHeld { .. })];
        assert_eq!((names, payee.happened.len()), ([true], 2));
    }

    /// After a restart its HTLCs are told again one by one, some of them by channels that are slow.
    #[test]
    fn over_a_restart() {
        let mut payee = held(true).restarted();
        payee.height = BlockHeight(770);
        assert!(payee.receiving.is_held(&hash(1), P1) && !payee.receiving.is_held(&hash(1), P3));
        payee.part(1, P1, 50_000, 100_000).unwrap();
        assert!(payee.take().is_empty(), "it was judged before: nothing about it is looked at again");
        assert_eq!(payee.part(1, P3, 50_000, 100_000), Err(Unpaid::AlreadyPaid));
        let mut answer = payee.settle(1, None);
        assert_eq!(payee.first_fulfilment().0, P1);
        assert_eq!(payee.fulfilled(), [P2]);
        assert_eq!(answer.try_recv().unwrap(), Ok(()));

        let mut late = held(true).restarted();
        late.height = BlockHeight(900);
        late.time();
        assert!(matches!(late.written(), InvoiceEntry::Cancelled { why: CancelReason::Deadline, .. }));
        assert_eq!(late.part(1, P1, 50_000, 100_000), Err(Unpaid::AlreadyPaid), "failed when it is told");
    }

    #[test]
    fn its_part_is_gone() {
        let mut payee = held(true);
        let mut answer = payee.settle(1, None);
        let out = payee.take();
        let [Receipt::Fulfill(first)] = &out[..] else { panic!("{out:?}") };
        payee.receiving.on_refused(first, false, &mut payee.out);
        assert!(matches!(payee.written(), InvoiceEntry::Cancelled { why: CancelReason::PartGone, .. }));
        assert_eq!(payee.failed(), [P2]);
        let why = CancelReason::PartGone;
        assert_eq!(answer.try_recv().unwrap(), Err(HoldRefusal::Cancelled { payment_hash: hash(1), why }));
    }

    #[test]
    fn the_node_stops() {
        let mut payee = held(true);
        let mut answer = payee.settle(1, None);
        let out = payee.take();
        let [Receipt::Fulfill(first)] = &out[..] else { panic!("{out:?}") };
        payee.receiving.on_refused(first, true, &mut payee.out);
        assert!(payee.take().is_empty(), "nothing is decided: the next start finds it held");
        assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }

    #[test]
    fn held_beyond_the_life_of_its_invoice() {
        let mut payee = held(true);
        payee.receiving.invoices.prune(EXPIRES_MS + 1_000_000_000, 0);
        let _answer = payee.settle(1, None);
        payee.first_fulfilment();
    }
}

mod keysend {
    use super::*;

    fn spontaneous(n: u8) -> Final {
        Final { payment_secret: None, keysend_preimage: Some(preimage(n)), ..last(7, 7) }
    }

    #[test]
    fn taken_once_by_its_own_preimage() {
        let mut payee = Payee::new(&[]);
        payee.htlc(part(1, P1, 7), &spontaneous(1)).unwrap();
        assert_eq!(payee.htlc(part(1, P2, 7), &spontaneous(1)), Err(Unpaid::AlreadyPaid), "before it is durable");
        assert_eq!(payee.receiving.invoices.begin(hash(1)), Err(InvoiceRefusal::HashTaken(hash(1))));
        let (place, entry) = payee.first_fulfilment();
        assert_eq!(place, P1);
        assert!(matches!(payee.happened[..], [Happened::KeysendReceived { .. }]));
        assert!(payee.htlc(part(1, P3, 7), &spontaneous(1)).is_err(), "and after");
        assert_eq!(payee.receiving.invoices.begin(hash(1)), Err(InvoiceRefusal::HashTaken(hash(1))));
        let mut again = Payee::new(&[entry]);
        assert!(again.htlc(part(1, P3, 7), &spontaneous(1)).is_err(), "and after a restart");
    }

    #[test]
    fn of_another_hash_off_in_parts_or_for_an_invoice() {
        let mut payee = Payee::new(&[plain(2)]);
        assert_eq!(payee.htlc(part(1, P1, 7), &spontaneous(9)), Err(Unpaid::Unknown));
        let in_parts = Final { total_msat: Msat(8), payment_secret: Some(secret()), ..spontaneous(1) };
        assert!(matches!(payee.htlc(part(1, P1, 7), &in_parts), Err(Unpaid::Part { .. })));
        assert_eq!(payee.htlc(part(2, P1, 100_000), &spontaneous(2)), Err(Unpaid::Secret));
        let moment = Moment { now: Millis(0), unix_ms: 0, height: HEIGHT };
        let off = payee.receiving.on_htlc(part(1, P1, 7), &spontaneous(1), &secret(), false, moment, &mut payee.out);
        assert_eq!(off, Err(Unpaid::Keysend));
        assert!(payee.take().is_empty());
    }

    #[test]
    fn its_channel_did_not_take_it() {
        let mut payee = Payee::new(&[]);
        payee.htlc(part(1, P1, 7), &spontaneous(1)).unwrap();
        let out = payee.take();
        let [Receipt::Fulfill(first)] = &out[..] else { panic!("{out:?}") };
        payee.receiving.on_refused(first, false, &mut payee.out);
        payee.htlc(part(1, P2, 7), &spontaneous(1)).unwrap();
        assert_eq!(payee.first_fulfilment().0, P2);
    }
}

mod invoices {
    use super::*;

    #[test]
    fn a_hash_is_taken_from_the_moment_it_is_being_made() {
        let mut invoices = Invoices::default();
        invoices.begin(hash(1)).unwrap();
        assert_eq!(invoices.begin(hash(1)), Err(InvoiceRefusal::HashTaken(hash(1))));
        invoices.abandon(hash(1));
        invoices.begin(hash(1)).unwrap();
        invoices.on_entry(plain(1), 0, &mut Vec::new());
        assert_eq!(invoices.begin(hash(1)), Err(InvoiceRefusal::HashTaken(hash(1))));
    }

    /// The process may die before the claim is durable, and the HTLC may be failed: the invoice can be paid by another.
    #[test]
    fn a_checkpoint_holds_no_claim_that_is_not_durable() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.part(1, P1, 100_000, 100_000).unwrap();
        let restarted = payee.restarted();
        assert!(restarted.receiving.invoices.get(&hash(1)).unwrap().is_open());
        payee.first_fulfilment();
        assert!(!payee.restarted().receiving.invoices.get(&hash(1)).unwrap().is_open());
    }

    #[test]
    fn a_section_keeps_everything_that_is_durable() {
        let mut payee = Payee::new(&[plain(1), hold(2, false), hold(3, true), plain(4)]);
        payee.part(1, P1, 50_000, 100_000).unwrap();
        payee.part(1, P2, 50_000, 100_000).unwrap();
        payee.first_fulfilment();
        payee.take();
        payee.part(2, P3, 100_000, 100_000).unwrap();
        payee.written();
        let _answer = payee.cancel(3);
        payee.written();
        let section = payee.receiving.invoices.section();
        let bytes = super::super::super::super::entry::encode(&section);
        let back: Vec<(PaymentHash, Invoice)> = super::super::super::super::entry::decode(&bytes).unwrap();
        let mut again = Payee::new(&[]);
        again.receiving.invoices.restore(back);
        assert_eq!(again.receiving.invoices.section(), section);
        assert!(again.receiving.owed(P2).is_some() && again.receiving.is_held(&hash(2), P3));
        assert_eq!(again.receiving.invoices.past_deadline(BlockHeight(779)), [hash(2)]);
    }

    #[test]
    fn expired_ones_are_forgotten_in_time() {
        let mut payee = Payee::new(&[plain(1)]);
        payee.receiving.invoices.prune(EXPIRES_MS + 499, 500);
        assert_eq!(payee.receiving.invoices.len(), 1);
        payee.receiving.invoices.prune(EXPIRES_MS + 500, 500);
        assert_eq!(payee.receiving.invoices.len(), 0);
        assert!(payee.receiving.invoices.section().is_empty());
    }
}
