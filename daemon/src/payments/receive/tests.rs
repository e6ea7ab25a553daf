//! Receiving: parts in every order, time, blocks, owners and crashes.

#![allow(clippy::unwrap_used)]

mod property;
mod story;

use millrace_routing::SharedSecret;
use millrace_routing::failure::{HoldTime, decode_attributed, hold_times};
use millrace_wire::CltvExpiry;
use tokio::sync::oneshot;

use super::super::entry::{Made, MadeHold};
use super::super::prepare::tests::hash;
use super::*;
use crate::happened::InvoiceCreated;

const A: ChannelId = ChannelId([0xa; 32]);
const B: ChannelId = ChannelId([0xb; 32]);
const ASKED: Msat = Msat(100_000);
const EXPIRES_MS: u64 = 9_000_000;
const HEIGHT: BlockHeight = BlockHeight(700);
const EXPIRY: CltvExpiry = CltvExpiry(800);

type Answer = oneshot::Receiver<Result<(), HoldRefusal>>;

fn secret() -> PaymentSecret {
    PaymentSecret::new([4; 32])
}

fn preimage(n: u8) -> Preimage {
    Preimage::new([n; 32])
}

fn created(n: u8) -> InvoiceCreated {
    InvoiceCreated {
        payment_hash: hash(n),
        amount: Some(ASKED),
        expires_ms: EXPIRES_MS,
        bolt11: "ln".to_owned(),
        idempotency_key: String::new(),
    }
}

fn plain(n: u8) -> InvoiceEntry {
    InvoiceEntry::Made(Box::new(Made { created: created(n), preimage: preimage(n), min_final_cltv: 42 }))
}

fn hold(n: u8, knows: bool) -> InvoiceEntry {
    let preimage = knows.then(|| preimage(n));
    InvoiceEntry::MadeHold(Box::new(MadeHold { created: created(n), preimage, min_final_cltv: 42 }))
}

fn part(n: u8, place: Place, amount: u64) -> HeldPart {
    let received = Received {
        channel_id: place.0,
        id: place.1,
        amount: Msat(amount),
        payment_hash: hash(n),
        cltv_expiry: EXPIRY,
        over_dust_exposure: false,
    };
    HeldPart { received, counts: Msat(amount), secret: SharedSecret::new([7; 32]), since: Millis(0) }
}

fn last(amount: u64, total: u64) -> Final {
    Final {
        amount_to_forward: Msat(amount),
        outgoing_cltv: EXPIRY,
        total_msat: Msat(total),
        payment_secret: Some(secret()),
        payment_metadata: None,
        keysend_preimage: None,
        custom: Vec::new(),
    }
}

/// What a node does with HTLCs, and what it has written.
struct Payee {
    receiving: Receiving,
    out: Vec<Receipt>,
    happened: Vec<Happened>,
    now: Millis,
    height: BlockHeight,
}

impl Payee {
    fn new(entries: &[InvoiceEntry]) -> Self {
        let mut payee = Self {
            receiving: Receiving::default(),
            out: Vec::new(),
            happened: Vec::new(),
            now: Millis(5),
            height: HEIGHT,
        };
        for entry in entries {
            payee.told(entry.clone());
        }
        payee.happened.clear();
        payee
    }

    fn told(&mut self, entry: InvoiceEntry) {
        self.receiving.on_entry(entry, 77, &mut self.out, &mut self.happened);
    }

    fn htlc(&mut self, part: HeldPart, last: &Final) -> Result<(), Unpaid> {
        let part = HeldPart { since: self.now, ..part };
        let moment = Moment { now: self.now, unix_ms: 1_000, height: self.height };
        self.receiving.on_htlc(part, last, &secret(), true, moment, &mut self.out)
    }

    fn part(&mut self, n: u8, place: Place, amount: u64, total: u64) -> Result<(), Unpaid> {
        self.htlc(part(n, place, amount), &last(amount, total))
    }

    fn time(&mut self) {
        let Self { receiving, out, now, height, .. } = self;
        receiving.on_time(*now, MPP_TIMEOUT_MS, Some(*height), out);
    }

    fn take(&mut self) -> Vec<Receipt> {
        std::mem::take(&mut self.out)
    }

    /// What comes out, if it is the first fulfilment of a payment; its entry is durable from then on.
    fn first_fulfilment(&mut self) -> (Place, InvoiceEntry) {
        let out = self.take();
        let [Receipt::Fulfill(first)] = &out[..] else { panic!("{out:?}") };
        let entry = first.entry.clone().unwrap();
        self.told(entry.clone());
        (first.place, entry)
    }

    /// What comes out, if it is one entry; it is durable from then on.
    fn written(&mut self) -> InvoiceEntry {
        let out = self.take();
        let [Receipt::Write(entry)] = &out[..] else { panic!("{out:?}") };
        let entry = InvoiceEntry::decode(&entry.bytes).unwrap();
        self.told(entry.clone());
        entry
    }

    fn failed(&mut self) -> Vec<Place> {
        self.failed_after().into_iter().map(|(place, _)| place).collect()
    }

    /// What fails, and for how long the sender is told that it was held.
    fn failed_after(&mut self) -> Vec<(Place, HoldTime)> {
        let told = |receipt: Receipt| match receipt {
            Receipt::Fail(place, Removing::Fail(reason, attribution)) => {
                let read = decode_attributed(&[SharedSecret::new([7; 32])], &reason, Some(&attribution));
                assert!(read.failure.is_ok(), "the sender reads it");
                (place, read.hold_times.hops[0])
            }
            other => panic!("{other:?}"),
        };
        self.take().into_iter().map(told).collect()
    }

    fn fulfilled(&mut self) -> Vec<Place> {
        let place = |receipt: Receipt| match receipt {
            Receipt::Fulfill(Fulfilment { place, entry: None, .. }) => place,
            other => panic!("{other:?}"),
        };
        self.take().into_iter().map(place).collect()
    }

    /// What is fulfilled, and for how long the sender is told that it was held.
    fn fulfilled_after(&mut self) -> Vec<(Place, HoldTime)> {
        let told = |receipt: Receipt| match receipt {
            Receipt::Fulfill(Fulfilment { place, attribution: Some(attribution), .. }) => {
                let read = hold_times(&[SharedSecret::new([7; 32])], &attribution);
                assert_eq!(read.broken_at, None);
                (place, read.hops[0])
            }
            other => panic!("{other:?}"),
        };
        self.take().into_iter().map(told).collect()
    }

    fn settle(&mut self, n: u8, with: Option<Preimage>) -> Answer {
        let (reply, answer) = oneshot::channel();
        let height = Some(self.height);
        self.receiving.settle(hash(n), with, height, reply, &mut self.out);
        answer
    }

    fn cancel(&mut self, n: u8) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.receiving.cancel(hash(n), reply, &mut self.out);
        answer
    }

    /// As it is after a restart, by its entries or by a checkpoint.
    fn restarted(&self) -> Self {
        let mut again = Self::new(&[]);
        again.receiving.invoices.restore(self.receiving.invoices.section());
        again
    }
}
