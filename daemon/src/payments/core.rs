//! All that is folded here, as one state: payments, invoices, keys, and what is told of channels.
//!
//! It is one state because one step of the journal may hold something for each of them, and a checkpoint must show all
//! of a step or nothing. Which steps it has seen it knows by their exact positions, from the last checkpoint on: a replay
//! may tell again what a section holds already.

use std::collections::BTreeSet;
use std::sync::Arc;

use millrace_channel::Fact;
use millrace_journal::Position;
use serde::{Deserialize, Serialize};

use super::channel_news::ChannelNews;
use super::entry::{InvoiceEntry, PaymentEntry, decode, encode};
use super::forward::{Act, CircuitsSection, Forwarding};
use super::judge::Received;
use super::receive::{Invoice, Receipt, Receiving};
use super::send::{Order, Sending, SendingSection, World};
use crate::entry::{Entry, Kind};
use crate::events::{EventLog, EventsSection};
use crate::facts::{Item, News, ReceivedOnion, Source, Telling};
use crate::happened::{ForwardEnd, Happened};
use crate::idempotency::Idempotency;
use crate::metrics;
use crate::policy::Policies;

/// An HTLC to be peeled.
pub(crate) type ToPeel = (Received, Box<ReceivedOnion>);

/// What follows from news.
#[derive(Default)]
pub(crate) struct Consequences {
    pub(crate) orders: Vec<Order>,
    pub(crate) to_peel: Vec<ToPeel>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) acts: Vec<Act>,
}

/// The state.
pub(crate) struct Core {
    pub(crate) sending: Sending,
    pub(crate) receiving: Receiving,
    pub(crate) forwarding: Forwarding,
    pub(crate) policies: Policies,
    channels: ChannelNews,
    /// Steps that were seen, from the last checkpoint on.
    seen: BTreeSet<(u64, u32)>,
    pub(crate) keys: Idempotency,
    log: Arc<EventLog>,
    /// What could not be read, if anything: then nothing of this can be trusted.
    fault: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Section {
    sending: SendingSection,
    invoices: Vec<(millrace_wire::PaymentHash, Invoice)>,
    channels: ChannelNews,
    seen: Vec<(u64, u32)>,
    keys: Vec<u8>,
    events: EventsSection,
    circuits: CircuitsSection,
    policies: Vec<u8>,
}

impl Core {
    /// An empty one.
    pub(crate) fn new(keys: Idempotency, policies: Policies, log: Arc<EventLog>) -> Self {
        Self {
            sending: Sending::default(),
            receiving: Receiving::default(),
            forwarding: Forwarding::default(),
            policies,
            channels: ChannelNews::default(),
            seen: BTreeSet::new(),
            keys,
            log,
            fault: None,
        }
    }

    /// Takes a section back.
    pub(crate) fn restore(&mut self, section: &[u8]) -> Result<(), String> {
        let section: Section = decode(section)?;
        self.keys.restore(&section.keys)?;
        self.sending.restore(section.sending);
        self.receiving.invoices.restore(section.invoices);
        self.channels = section.channels;
        self.seen = section.seen.into_iter().collect();
        self.log.restore(section.events);
        self.forwarding.restore(section.circuits);
        self.policies.restore(&section.policies)?;
        Ok(())
    }

    /// All of it, as of now; what was seen below `up_to` is never told again.
    pub(crate) fn section(&mut self, up_to: Position) -> Vec<u8> {
        self.seen = self.seen.split_off(&(up_to.frame, up_to.index));
        encode(&Section {
            sending: self.sending.section(),
            invoices: self.receiving.invoices.section(),
            channels: self.channels.clone(),
            seen: self.seen.iter().copied().collect(),
            keys: self.keys.section(),
            events: self.log.section(up_to),
            circuits: self.forwarding.section(),
            policies: self.policies.section(),
        })
    }

    /// What could not be read.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Takes news. Without a world (on replay), nothing is decided.
    pub(crate) fn tell(&mut self, news: News, world: Option<&World<'_>>, out: &mut Consequences) {
        if let Some(position) = news.position
            && !self.seen.insert((position.frame, position.index))
        {
            return;
        }
        let News { source, terms, position, time_ms, telling, items, .. } = news;
        let is_replay = telling == Telling::Replay;
        let mut happened = Vec::new();
        for item in items {
            match item {
                Item::Entry(entry) => self.on_entry(&entry, time_ms, out, &mut happened),
                Item::Fact { fact, received } => {
                    let Source::Channel(channel_id) = source else { continue };
                    let onion = received.as_deref();
                    let acts = &mut out.acts;
                    self.forwarding.on_fact(channel_id, &fact, onion, time_ms, is_replay, acts, &mut happened);
                    if let Fact::Closed(_) = fact {
                        self.policies.forget(&channel_id);
                    }
                    if !is_replay && let Some(to_peel) = to_peel(channel_id, &fact, received) {
                        out.to_peel.push(to_peel);
                    }
                    if position.is_some() {
                        // What has no position was told before, or is not durable: it is no event.
                        self.channels.on_fact(channel_id, terms.as_deref(), &fact, &mut happened);
                    }
                    match fact {
                        Fact::RemovalIrrevocable { id, .. } => self.receiving.invoices.on_removed(channel_id, id),
                        Fact::Closed(_) => self.receiving.invoices.on_closed(channel_id),
                        _ => {}
                    }
                    let world = world.filter(|_| !is_replay);
                    self.sending.on_fact(channel_id, fact, time_ms, is_replay, world, &mut out.orders, &mut happened);
                }
            }
        }
        if telling == Telling::Live {
            count(&happened);
        }
        match position {
            Some(position) => self.log.told(position, time_ms, happened),
            None if happened.is_empty() => {}
            // An outcome told again at a start, whose step was replayed: it was an event then.
            None => tracing::debug!(events = happened.len(), "told again"),
        }
    }

    fn on_entry(&mut self, entry: &Entry, time_ms: u64, out: &mut Consequences, happened: &mut Vec<Happened>) {
        let result = match entry.kind {
            Kind::Payment => PaymentEntry::decode(&entry.bytes).map(|entry| {
                self.sending.on_entry(entry, time_ms, &self.keys, &mut out.orders, happened);
            }),
            Kind::Invoice => InvoiceEntry::decode(&entry.bytes)
                .map(|entry| self.receiving.on_entry(entry, time_ms, &mut out.receipts, happened)),
            Kind::Idempotency => self.keys.apply(&entry.bytes, time_ms),
            Kind::Wallet => crate::wallet::seen_in_record(&entry.bytes).map(|seen| {
                happened.extend(seen.into_iter().map(|seen| Happened::WalletTransaction(Box::new(seen))));
            }),
            Kind::Policy => self.policies.apply(&entry.bytes, time_ms),
            Kind::Link => crate::links::happened(&entry.bytes).map(|what| happened.push(what)),
            Kind::ChainCursor | Kind::Peer | Kind::Keys | Kind::Announce | Kind::Tower => Ok(()),
        };
        if let Err(reason) = result {
            let fault = format!("an entry of kind {:?}: {reason}", entry.kind);
            tracing::error!(fault, "what was written cannot be read");
            self.fault.get_or_insert(fault);
        }
    }
}

/// Counted when it happens, not when it is read back.
fn count(happened: &[Happened]) {
    for what in happened {
        if let Happened::Forwarded(forwarded) = what {
            let outcome = if forwarded.end == ForwardEnd::Settled { "settled" } else { "failed" };
            ::metrics::counter!(metrics::FORWARDS, "outcome" => outcome).increment(1);
            ::metrics::counter!(metrics::FORWARD_FEES).increment(forwarded.fee().0);
        }
    }
}

fn to_peel(channel_id: millrace_wire::ChannelId, fact: &Fact, received: Option<Box<ReceivedOnion>>) -> Option<ToPeel> {
    let Fact::HtlcReceived { id, amount, payment_hash, cltv_expiry, over_dust_exposure } = *fact else { return None };
    let Some(onion) = received else {
        tracing::error!(%channel_id, htlc_id = id.0, "an HTLC came without its onion");
        return None;
    };
    let received = Received { channel_id, id, amount, payment_hash, cltv_expiry, over_dust_exposure };
    Some((received, onion))
}
