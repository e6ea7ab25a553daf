//! Who wants to know what becomes of a payment.

use millrace_wire::{Msat, PaymentHash, Preimage, PublicKey};
use tokio::sync::mpsc;

use super::refusal::PayRefusal;
use super::row::{AttemptRow, PaymentRow};
use crate::happened::Failure;

/// What a listener is told. The last is `Paid`, `Failed` or `Refused`.
#[derive(Clone, PartialEq, Debug)]
pub enum Told {
    /// The payment is durable, and will be decided.
    Accepted {
        /// Its hash.
        payment_hash: PaymentHash,
        /// What should arrive.
        amount: Msat,
        /// With whom.
        payee: PublicKey,
    },
    /// An attempt has begun, or ended without success.
    Attempt(Box<AttemptRow>),
    /// It succeeded.
    Paid {
        /// The proof.
        preimage: Preimage,
        /// What routing cost.
        fee: Msat,
        /// All of it, for those who want the steps.
        row: Option<Box<PaymentRow>>,
    },
    /// It failed.
    Failed {
        /// Why.
        failure: Failure,
        /// All of it, for those who want the steps.
        row: Option<Box<PaymentRow>>,
    },
    /// It was not tried.
    Refused(PayRefusal),
}

/// Who wants to know. The queue behind it is bounded by what its owner lets be under way at once: each payment tells it
/// one outcome and, if it wants them, a few steps.
#[derive(Clone, Debug)]
pub struct Listener {
    tag: u64,
    wants_steps: bool,
    to: mpsc::UnboundedSender<(u64, Told)>,
}

impl Listener {
    /// Told under this number.
    #[must_use]
    pub const fn new(tag: u64, wants_steps: bool, to: mpsc::UnboundedSender<(u64, Told)>) -> Self {
        Self { tag, wants_steps, to }
    }

    /// One, and what it hears.
    #[must_use]
    pub fn pair(tag: u64, wants_steps: bool) -> (Self, mpsc::UnboundedReceiver<(u64, Told)>) {
        let (to, receiver) = mpsc::unbounded_channel();
        (Self::new(tag, wants_steps, to), receiver)
    }

    /// Tells a step, if it wants to know.
    pub(crate) fn step(&self, told: impl FnOnce() -> Told) {
        if self.wants_steps {
            self.tell(told());
        }
    }

    /// Tells the outcome of a payment.
    pub(crate) fn outcome(&self, row: &PaymentRow) {
        use super::row::PaymentStatus::{Failed, InFlight, Succeeded};
        let whole = || self.wants_steps.then(|| Box::new(row.clone()));
        match &row.status {
            Succeeded { preimage, fee } => {
                self.tell(Told::Paid { preimage: preimage.clone(), fee: *fee, row: whole() });
            }
            Failed(failure) => self.tell(Told::Failed { failure: failure.clone(), row: whole() }),
            InFlight => {}
        }
    }

    /// Tells that it is not even tried.
    pub fn refuse(&self, refusal: PayRefusal) {
        self.tell(Told::Refused(refusal));
    }

    fn tell(&self, told: Told) {
        // Whoever has gone away does not need it.
        let _gone = self.to.send((self.tag, told));
    }
}
