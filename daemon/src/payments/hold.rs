//! The owner's decisions about invoices: to take what is held for one, or to take the invoice back.

use millrace_wire::{PaymentHash, Preimage};
use tokio::sync::oneshot;

use super::Payments;
use super::actor::Input;
use super::receive::{HoldRefusal, HoldReply};
use crate::channels::NoNewWork;

/// Why an invoice is not decided so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HoldError {
    /// As things stand.
    #[error(transparent)]
    Refused(#[from] HoldRefusal),
    /// The node is stopping: what is decided is seen at the next start.
    #[error(transparent)]
    NoNewWork(#[from] NoNewWork),
}

impl Payments {
    /// Takes what is held for an invoice; without a preimage, by the one that this node drew. Returns once that is durable,
    /// and again whenever it is asked for a second time.
    ///
    /// # Errors
    /// [`HoldError`]; it says what happened instead.
    pub async fn settle_invoice(&self, payment_hash: PaymentHash, preimage: Option<Preimage>) -> Result<(), HoldError> {
        self.ask_to_decide(|reply| Input::Settle(payment_hash, preimage, reply)).await
    }

    /// Takes back an invoice that is not paid, and fails what is held for it. Returns once that is durable, and again
    /// whenever it is asked for a second time.
    ///
    /// # Errors
    /// [`HoldError`]; it says what happened instead.
    pub async fn cancel_invoice(&self, payment_hash: PaymentHash) -> Result<(), HoldError> {
        self.ask_to_decide(|reply| Input::Cancel(payment_hash, reply)).await
    }

    async fn ask_to_decide(&self, input: impl FnOnce(HoldReply) -> Input) -> Result<(), HoldError> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(input(reply)).map_err(|_| NoNewWork::Stopping)?;
        Ok(answer.await.map_err(|_| NoNewWork::Stopping)??)
    }
}
