//! Every failure of BOLT 4 at every hop that may raise it, on four whole nodes in a line, and what the sender makes of it:
//! the data that came over the wire, and the words in which its payment is shown.

#![allow(clippy::unwrap_used)]

mod again;
mod four;
mod garbage;
mod scene;
#[path = "../support/mod.rs"]
mod support;
mod table;
#[path = "../payments/world.rs"]
mod world;

use four::{A, B, C, D, Four, Told, read_update};
use millrace_channel::input::CloseOrder;
use millrace_routing::failure::{FailureMessage, code};
use millrace_routing::graph::{NodeId, VerifiedUpdate};
use millrace_rpc::v1;
use millrace_wire::{FeeratePerKw, Msat};
use millraced::channels::ChannelState;
use scene::{Sent, UNKNOWN_RECORD, amount, foreign, reset, set, wait};
use table::{Cause, Group, Row, TABLE};
use world::rand_bytes;

/// The most that a row carries. Each carries less than the one before: what a channel has refused is remembered.
const AMOUNT: u64 = 80_000_000;
const STEP: u64 = 500_000;

/// One row, at one hop.
#[derive(Clone, Copy, Debug)]
struct Case {
    code: u16,
    at: usize,
    cause: Cause,
}

fn cases(group: Group) -> impl Iterator<Item = Case> {
    let of_row = |row: &'static Row| row.at.iter().map(|at| Case { code: row.code, at: *at, cause: row.cause });
    TABLE.iter().filter(move |row| row.cause.group() == group).flat_map(of_row)
}

/// Goes through the rows of a group, and shows at the end that nothing is left of them.
async fn go_through(group: Group) {
    let four = Four::new().await;
    let mut next = AMOUNT;
    for case in cases(group) {
        next -= STEP;
        case.run(&four, next).await;
    }
    four.pay_well(next - STEP).await;
    four.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_forwarders_raise_by_their_terms_their_chain_and_their_channels() {
    go_through(Group::Forwarding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_raised_for_onions_that_cannot_be_read_and_by_other_makes() {
    go_through(Group::Wire).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_payee_raises() {
    go_through(Group::Payee).await;
}

/// Both forwarders close their channel with the next node, the second one first. An HTLC that is held keeps the first step
/// from ending.
#[tokio::test(flavor = "multi_thread")]
async fn what_forwarders_raise_while_their_channel_closes_and_after_it() {
    let mut four = Four::new().await;
    let mut next = AMOUNT;
    let mut step = || {
        next -= STEP;
        next
    };
    for at in [C, B] {
        let of = |cause: Cause| cases(Group::Endings).find(|case| case.at == at && case.cause == cause).unwrap();
        let invoice = four.invoice(|wanted| (wanted.amount_msat, wanted.hold) = (Some(5_000_000), true)).await;
        let bolt11 = four.forge(5_000_000, &invoice, |_| {});
        let while_it_closes = async {
            wait(&four, C, "Dave holds it", |snapshot| {
                snapshot.htlcs.iter().any(|htlc| htlc.stage == "adding: irrevocable")
            })
            .await;
            let script = bitcoin::ScriptBuf::from_bytes([vec![0, 20], vec![9; 20]].concat());
            let order = CloseOrder { script, feerate: FeeratePerKw(1000), feerate_max: FeeratePerKw(5000) };
            let registry = four.nodes[at].node.registry();
            registry.close(four.channels[at], order).await.unwrap();
            wait(&four, at, "it shuts down", |snapshot| snapshot.state == ChannelState::ShuttingDown).await;
            four.wait_for_update(at, |update| update.parsed().contents.channel_flags & 2 != 0).await;
            of(Cause::ShuttingDown).fail(&four, step()).await;
            let which = v1::settle_invoice_request::Which::PaymentHash(invoice.payment_hash.0.to_vec());
            let request = v1::SettleInvoiceRequest { idempotency_key: hex::encode(rand_bytes()), which: Some(which) };
            four.nodes[D].invoices().await.settle(request).await.unwrap();
        };
        let (paid, ()) = tokio::join!(four.pay(&bolt11), while_it_closes);
        assert_eq!(paid.status(), v1::PaymentStatus::Succeeded, "what was under way is paid: {:?}", paid.attempts);
        wait(&four, at, "the close is signed", |snapshot| snapshot.state == ChannelState::Closing).await;
        support::eventually("it is broadcast", || (!four.chain.mempool().is_empty()).then_some(())).await;
        four.chain.mine(101);
        four.tell_height();
        wait(&four, at, "it is closed", |snapshot| snapshot.state == ChannelState::Closed).await;
        of(Cause::Closed).fail(&four, step()).await;
        four.open_again(at).await;
        four.pay_well(step()).await;
    }
    four.stop().await;
}

impl Case {
    async fn run(self, four: &Four, usual: u64) {
        self.fail(four, amount(self.at, self.cause, usual)).await;
        reset(four, self.at, self.cause).await;
        four.at_rest().await;
    }

    /// Makes it fail, and looks at what comes back.
    async fn fail(self, four: &Four, amount: u64) {
        let sent = set(four, self.code, self.at, self.cause, amount).await;
        let since = four.taps[A].mark();
        let shown = match sent {
            Sent::Invoice(bolt11) => Some(four.pay(&bolt11).await),
            Sent::Offer(offer) => {
                let registry = four.nodes[A].node.registry();
                registry.offer(four.channels[A], *offer, Vec::new()).await.unwrap().unwrap();
                None
            }
        };
        let told = four.told(since).await;
        assert_eq!((told.by, told.message.code()), (self.told_by(), self.code), "{self:?}: {told:?}");
        assert_eq!(told.held_by, self.held_by(), "{self:?}: {told:?}");
        self.check_data(four, &told);
        self.check_update(four, &told);
        if let Some(payment) = shown {
            self.check_words(four, &told, &payment);
        }
    }

    /// How the payment is shown, of one that Alice makes by herself.
    async fn shown(self, four: &Four, amount: u64) -> v1::Payment {
        let Sent::Invoice(bolt11) = set(four, self.code, self.at, self.cause, amount).await else {
            panic!("{self:?}: an onion made by hand is no payment")
        };
        four.pay(&bolt11).await
    }

    fn is_malformed(self) -> bool {
        self.code & code::BADONION != 0
    }

    /// Who cannot read an onion has nothing to say it with: the node before does.
    fn told_by(self) -> usize {
        if self.is_malformed() { (self.at - 1).max(B) } else { self.at }
    }

    /// All up to the one that failed it say for how long they held it; who cannot read the onion has nothing to say it with.
    fn held_by(self) -> usize {
        if self.is_malformed() { self.at - 1 } else { self.at }
    }

    /// BOLT 4's fields, against the HTLCs by what their onion says.
    fn check_data(self, four: &Four, told: &Told) {
        let came = |node: usize| told.came[node - B];
        let height = |told: u32| match self.cause {
            Cause::ChainAhead(blocks) => assert_eq!(told, four.height() + blocks),
            _ => assert_eq!(told, four.height()),
        };
        if self.cause == Cause::Foreign {
            return assert_eq!(told.message, foreign(self.code));
        }
        match &told.message {
            FailureMessage::InvalidOnionVersion { sha256_of_onion }
            | FailureMessage::InvalidOnionHmac { sha256_of_onion }
            | FailureMessage::InvalidOnionKey { sha256_of_onion }
            | FailureMessage::InvalidOnionBlinding { sha256_of_onion } => {
                assert_eq!(*sha256_of_onion, four.onion_given_to(self.at), "{self:?}");
            }
            FailureMessage::AmountBelowMinimum { amount, .. } => assert_eq!(*amount, came(self.at + 1).amount),
            FailureMessage::FeeInsufficient { amount, .. } => assert_eq!(*amount, came(self.at).amount),
            FailureMessage::IncorrectCltvExpiry { expiry, .. } => assert_eq!(*expiry, came(self.at + 1).expiry),
            FailureMessage::IncorrectOrUnknownPaymentDetails { amount, height: at } => {
                assert_eq!(*amount, came(D).amount);
                height(at.0);
            }
            FailureMessage::FinalIncorrectCltvExpiry { expiry } => assert_eq!(*expiry, came(D).expiry),
            FailureMessage::FinalIncorrectHtlcAmount { incoming } => assert_eq!(*incoming, came(D).amount),
            FailureMessage::ChannelDisabled { flags, .. } => assert_eq!(*flags, 0),
            // LDK puts the encrypted data first, behind one byte of length.
            FailureMessage::InvalidOnionPayload { kind, offset } if self.at < D => {
                assert_eq!((*kind, *offset), (10, 1))
            }
            FailureMessage::InvalidOnionPayload { kind, offset } => {
                assert!(*kind == UNKNOWN_RECORD && *offset > 1, "{:?}", told.message);
            }
            FailureMessage::TemporaryNodeFailure
            | FailureMessage::TemporaryChannelFailure { .. }
            | FailureMessage::PermanentChannelFailure
            | FailureMessage::UnknownNextPeer
            | FailureMessage::ExpiryTooSoon { .. }
            | FailureMessage::ExpiryTooFar
            | FailureMessage::MppTimeout => {}
            other => panic!("{self:?}: {other:?}"),
        }
    }

    /// BOLT 4: a failure of a channel brings the hop's own `channel_update`, by the name that the onion used.
    fn check_update(self, four: &Four, told: &Told) {
        let bytes = told.message.channel_update();
        if self.code & code::UPDATE == 0 {
            return assert!(bytes.is_empty(), "{self:?}");
        }
        let update = read_update(bytes).unwrap_or_else(|| panic!("{self:?}: no whole channel_update: {bytes:?}"));
        let verified = VerifiedUpdate::verify(update, NodeId::from(four.nodes[self.at].node_id)).unwrap();
        let contents = &verified.update().parsed().contents;
        assert_eq!(contents.short_channel_id, told.named[self.at - B].0, "{self:?}");
        assert_eq!(contents.channel_flags & 2 != 0, self.code == code::CHANNEL_DISABLED, "{self:?}: disabled");
        match self.cause {
            Cause::BelowMinimum => assert!(Msat(contents.htlc_minimum_msat) > told.came[self.at + 1 - B].amount),
            Cause::AboveMaximum => assert!(Msat(contents.htlc_maximum_msat) < told.came[self.at + 1 - B].amount),
            _ => assert_eq!((contents.fee_base_msat, contents.cltv_expiry_delta), (1_000, 80), "{self:?}"),
        }
    }

    /// What `payment show` has of the attempt.
    fn check_words(self, four: &Four, told: &Told, payment: &v1::Payment) {
        let failure = payment.attempts[0].failure.as_ref().unwrap();
        let (name, node) = (code::name(self.code), four.nodes[told.by].node_id);
        assert_eq!(
            (failure.failure_code, failure.failure_name.as_str(), failure.hop_index),
            (u32::from(self.code), name, Some(u32::try_from(told.by).unwrap())),
            "{self:?}: {failure:?}"
        );
        assert_eq!(failure.node_id, node.serialize(), "{self:?}");
        let words = format!("hop {} of 3, {node}, says {name}: {}", told.by, told.message);
        assert_eq!(failure.message, words, "{self:?}");
        // Terms that the hop itself has told are kept to at the second try.
        let is_told = matches!(self.cause, Cause::LowFee | Cause::ShortDelta);
        // What a hop on the way refuses for the moment is tried again after three pauses, and is as it was.
        let is_passing = matches!(self.code, code::TEMPORARY_CHANNEL_FAILURE | code::TEMPORARY_NODE_FAILURE);
        let (status, attempts) = match (is_told, is_passing && told.by < D) {
            (true, _) => (v1::PaymentStatus::Succeeded, 2),
            (false, true) => (v1::PaymentStatus::Failed, 4),
            (false, false) => (v1::PaymentStatus::Failed, 1),
        };
        assert_eq!((payment.status(), payment.attempts.len()), (status, attempts), "{self:?}");
    }
}
