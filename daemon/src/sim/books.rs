//! What the disks say in the end, and whether it adds up. Nothing that lives is asked: a node is what can be read back of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use millrace_channel::Fact;
use millrace_channel::ledger::htlc::Origin;
use millrace_journal::Position;
use millrace_wire::{ChannelId, HtlcId, Msat, PaymentHash};

use super::node::Node;
use super::payment::Asked;
use super::world::World;
use crate::channels::ChannelSnapshot;
use crate::channels::actor::Actor;
use crate::facts::{Fold, Item, News, Source};
use crate::happened::{ForwardEnd, Happened, sum_of};
use crate::payments::{Payments, Told};

/// One node's.
pub(super) struct Account {
    pub(super) happened: Vec<Happened>,
    pub(super) channels: Vec<Arc<ChannelSnapshot>>,
    /// Outcomes that a channel still keeps.
    kept: usize,
    facts: Vec<(ChannelId, Fact)>,
}

/// How a payment ended, by its payer's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Paid {
        fee: Msat,
    },
    Failed,
    /// It was not even begun.
    Never,
}

/// A fold that keeps everything, beside payments.
struct Witness {
    payments: Arc<Payments>,
    facts: Mutex<Vec<(ChannelId, Fact)>>,
}

impl Fold for Witness {
    fn name(&self) -> &'static str {
        self.payments.name()
    }

    fn restore(&self, section: &[u8]) -> Result<(), String> {
        self.payments.restore(section)
    }

    fn tell(&self, news: &News) {
        if let Source::Channel(id) = news.source {
            let facts = news.items.iter().filter_map(|item| match item {
                Item::Fact { fact, .. } => Some((id, fact.clone())),
                Item::Entry(_) => None,
            });
            self.facts.lock().unwrap().extend(facts);
        }
        self.payments.tell(news);
    }

    fn section(&self, up_to: Position) -> Result<Vec<u8>, String> {
        self.payments.section(up_to)
    }
}

impl Account {
    /// Read back from a node's disk.
    pub(super) fn of(node: &Node) -> Self {
        let payments = Payments::new(node.keys.clone(), node.rules.clone());
        let witness = Arc::new(Witness { payments: Arc::clone(&payments), facts: Mutex::default() });
        let recovery = node.read_all(Arc::clone(&witness) as Arc<dyn Fold>);
        let others = node.read_back(Payments::new(node.keys.clone(), node.rules.clone()) as Arc<dyn Fold>);
        let is_same = recovery.actors.iter().map(Actor::snapshot).eq(others.actors.iter().map(Actor::snapshot));
        assert!(is_same, "a checkpoint says something else than the steps");
        let log = payments.log();
        log.settle(log.end());
        let all = log.subscribe(Some(Position::START)).unwrap().next_batch(usize::MAX).unwrap();
        let facts = std::mem::take(&mut *witness.facts.lock().unwrap());
        Self {
            happened: all.into_iter().map(|(_, happening)| happening.what.clone()).collect(),
            channels: recovery.actors.iter().map(Actor::snapshot).collect(),
            kept: recovery.actors.iter().map(|actor| actor.channel.kept_outcomes().count()).sum(),
            facts,
        }
    }

    pub(super) fn balance(&self) -> u64 {
        self.channels.iter().map(|channel| channel.balances.local.0).sum()
    }

    /// What was received for an invoice, each time that it was.
    pub(super) fn received(&self, hash: &PaymentHash) -> Vec<Msat> {
        let received = self.happened.iter().filter_map(|what| match what {
            Happened::InvoicePaid { payment_hash, received, .. } if payment_hash == hash => Some(*received),
            Happened::InvoicePaidInParts { payment_hash, parts, .. } if payment_hash == hash => Some(sum_of(parts)),
            _ => None,
        });
        received.collect()
    }

    /// How a payment of this node ended.
    pub(super) fn outcome(&self, hash: &PaymentHash) -> Outcome {
        let mut ends = Vec::new();
        let mut begun = 0;
        for what in &self.happened {
            match what {
                Happened::PaymentStarted(started) if started.payment_hash == *hash => begun += 1,
                Happened::PaymentSucceeded { payment_hash, fee, .. } if payment_hash == hash => {
                    ends.push(Outcome::Paid { fee: *fee });
                }
                Happened::PaymentFailed { payment_hash, .. } if payment_hash == hash => ends.push(Outcome::Failed),
                _ => {}
            }
        }
        assert_eq!(begun, ends.len(), "payment {hash} ended as {ends:?}");
        assert!(ends.len() <= 1, "payment {hash} ended as {ends:?}");
        ends.pop().unwrap_or(Outcome::Never)
    }

    /// Fees of forwards that have succeeded.
    pub(super) fn earned(&self) -> u64 {
        let fees = self.happened.iter().filter_map(|what| match what {
            Happened::Forwarded(forwarded) => Some(forwarded.fee().0),
            _ => None,
        });
        fees.sum()
    }

    pub(super) fn forwards(&self, wanted: ForwardEnd) -> usize {
        let is_it = |what: &&Happened| matches!(what, Happened::Forwarded(forwarded) if forwarded.end == wanted);
        self.happened.iter().filter(is_it).count()
    }

    /// Whether anything was offered for an HTLC of a peer.
    pub(super) fn has_gone_on(&self) -> bool {
        let went_on = |fact: &Fact| matches!(fact, Fact::OfferCommitted { origin: Origin::Forward { .. }, .. });
        self.facts.iter().any(|(_, fact)| went_on(fact))
    }

    /// Everything that came in went out again, one way or the other, once.
    fn check_htlcs(&self, name: usize) {
        let mut received: BTreeMap<(ChannelId, HtlcId), bool> = BTreeMap::new();
        let mut removed: BTreeMap<(ChannelId, HtlcId), bool> = BTreeMap::new();
        let mut went_on: BTreeSet<(ChannelId, HtlcId)> = BTreeSet::new();
        let mut succeeded: BTreeSet<(ChannelId, HtlcId)> = BTreeSet::new();
        for (channel, fact) in &self.facts {
            match fact {
                Fact::HtlcReceived { id, .. } => {
                    assert_eq!(received.insert((*channel, *id), true), None, "node {name}: {fact:?} twice");
                }
                Fact::RemovalIrrevocable { id, fulfilled } => {
                    let before = removed.insert((*channel, *id), *fulfilled);
                    assert_eq!(before, None, "node {name}: {fact:?} twice");
                }
                Fact::OfferCommitted { origin: Origin::Forward { channel_id, htlc_id }, .. } => {
                    assert!(went_on.insert((*channel_id, *htlc_id)), "node {name} forwards twice: {fact:?}");
                }
                Fact::OfferFulfilled { origin: Origin::Forward { channel_id, htlc_id }, .. } => {
                    succeeded.insert((*channel_id, *htlc_id));
                }
                _ => {}
            }
        }
        for key in received.keys() {
            let end = removed.get(key).unwrap_or_else(|| panic!("node {name}: {key:?} never ended"));
            if went_on.contains(key) {
                assert_eq!(*end, succeeded.contains(key), "node {name}: {key:?} ended otherwise than downstream");
            }
        }
        assert_eq!(went_on.len(), self.forwards(ForwardEnd::Settled) + self.forwards(ForwardEnd::Failed));
        assert_eq!(succeeded.len(), self.forwards(ForwardEnd::Settled));
    }
}

/// All nodes'.
pub(super) struct Books {
    pub(super) accounts: Vec<Account>,
}

impl Books {
    pub(super) fn of(world: &World) -> Self {
        Self { accounts: world.nodes.iter().map(Account::of).collect() }
    }

    /// Nothing is left under way, no money came or went, and each node has what it should have.
    pub(super) fn check(&self, before: &Self, world: &World, payments: &[Asked]) {
        for channel in &world.channels {
            let [a, b] = channel.ends.map(|n| {
                let account = &self.accounts[n];
                account.channels.iter().find(|one| one.channel_id == channel.id).expect("channels stay open")
            });
            assert!(a.htlcs.is_empty() && b.htlcs.is_empty(), "{:?} and {:?} are left", a.htlcs, b.htlcs);
            assert_eq!((a.balances.local, a.balances.remote), (b.balances.remote, b.balances.local));
            assert_eq!(Msat(a.balances.local.0 + b.balances.local.0), channel.capacity.to_msat());
        }
        let mut owed: Vec<i128> = self.accounts.iter().map(|account| account.earned().into()).collect();
        for payment in payments {
            let received = self.accounts[payment.payee].received(&payment.payment_hash);
            match self.accounts[payment.payer].outcome(&payment.payment_hash) {
                Outcome::Paid { fee } => {
                    assert_eq!(
                        received.len(),
                        1,
                        "{} was paid for, and received as {received:?}",
                        payment.payment_hash
                    );
                    assert!(received[0] >= payment.amount);
                    owed[payment.payer] -= i128::from(payment.amount.0 + fee.0);
                    owed[payment.payee] += i128::from(received[0].0);
                }
                Outcome::Failed | Outcome::Never => {
                    assert_eq!(received, [], "{} was received, and not paid for", payment.payment_hash);
                }
            }
        }
        for (n, (now, before)) in self.accounts.iter().zip(&before.accounts).enumerate() {
            let changed = i128::from(now.balance()) - i128::from(before.balance());
            assert_eq!(changed, owed[n], "node {n} has won or lost something");
            assert_eq!(now.kept, 0, "node {n} keeps outcomes that nobody needs");
            now.check_htlcs(n);
        }
    }

    /// What the client of a payer that lived through it was told is what happened.
    pub(super) fn check_told(&self, payment: &mut Asked) {
        payment.listen();
        let outcome = self.accounts[payment.payer].outcome(&payment.payment_hash);
        let agrees = match (&payment.ends[..], outcome) {
            ([Told::Paid { fee: told, .. }], Outcome::Paid { fee }) => *told == fee,
            ([Told::Failed { .. }], Outcome::Failed) | ([Told::Refused(_)], Outcome::Never) => true,
            _ => false,
        };
        assert!(agrees, "{:?} was told of a payment that ended as {outcome:?}", payment.ends);
    }
}
