//! Calls that change something, once each: the idempotency key around what they do (durability.md, D14).
//!
//! The work runs on a task of its own, so that a client that goes away does not leave it half done. Before its first
//! effect it calls [`Once::begin`]; what is refused before that leaves no key behind, what fails after it is the key's
//! result like a success.

use std::sync::Arc;

use millrace_rpc::v1::ErrorDetail;
use prost::Message;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use super::{Inner, Shared, fault};
use crate::clock;
use crate::entry::Entry;
use crate::idempotency::{Claim, Entered, KeyHash, RequestHash, done_entry};

/// The result of a call, as its key keeps it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) enum Stored {
    /// The answer, encoded.
    Answer(Vec<u8>),
    /// What the answer can be made of again: an id.
    Reference(Vec<u8>),
    /// A refusal.
    Refused {
        /// gRPC's code.
        code: i32,
        /// In words.
        message: String,
        /// The details, encoded.
        detail: Vec<u8>,
    },
}

impl Stored {
    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data into memory: nothing can fail")
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Status> {
        postcard::from_bytes(bytes)
            .map_err(|error| fault::internal(format!("a stored result does not decode: {error}")))
    }

    pub(super) fn refused(status: &Status) -> Self {
        let detail = ErrorDetail::from_status(status).map(|detail| detail.encode_to_vec()).unwrap_or_default();
        Self::Refused { code: status.code().into(), message: status.message().to_owned(), detail }
    }

    /// The refusal, if it is one.
    pub(super) fn status(&self) -> Option<Status> {
        let Self::Refused { code, message, detail } = self else { return None };
        let detail = ErrorDetail::decode(detail.as_slice()).ok().filter(|detail| !detail.hint.is_empty());
        Some(match detail {
            Some(detail) => detail.into_status(message.clone()),
            None => Status::new(Code::from(*code), message.clone()),
        })
    }
}

/// One call that is being worked on.
pub(super) struct Once {
    inner: Shared,
    claim: Claim,
    has_begun: bool,
}

impl Once {
    /// Before the first outward effect: returns once the key is durable.
    pub(super) async fn begin(&mut self) -> Result<(), Status> {
        if !self.has_begun {
            let entry = self.claim.begun();
            self.write(vec![entry]).await?;
            self.has_begun = true;
        }
        Ok(())
    }

    /// Whether it was begun before, and the node stopped before it had a result.
    pub(super) const fn was_interrupted(&self) -> bool {
        self.claim.was_interrupted()
    }

    /// What makes a result durable, for whoever writes it with the effect itself.
    pub(super) fn entry(&self, stored: &Stored) -> Entry {
        self.claim.done_entry(&stored.encode())
    }

    /// The same, to be made elsewhere.
    pub(super) fn names(&self) -> (KeyHash, RequestHash) {
        self.claim.names()
    }

    /// Makes a result durable now, ahead of the effect that it stands for.
    pub(super) async fn write_result(&self, stored: &Stored) -> Result<(), Status> {
        self.write(vec![self.entry(stored)]).await
    }

    async fn write(&self, entries: Vec<Entry>) -> Result<(), Status> {
        let journal = self.inner.api.registry.journal();
        journal.write(entries).await.map(|_| ()).map_err(|_| fault::stopping())
    }

    /// The result is durable: the key stands for it.
    pub(super) fn finish(self, stored: &Stored) {
        self.claim.done(&stored.encode());
    }

    /// Ends it with a refusal: the key's result if it has begun.
    pub(super) async fn fail(self, status: &Status) -> Result<(), Status> {
        self.end(&Err(status.clone())).await
    }

    /// Ends it with what came out, durable or not.
    async fn end(self, result: &Result<Finished, Status>) -> Result<(), Status> {
        match result {
            Ok(Finished { stored, is_durable }) => {
                if !is_durable {
                    self.write_result(stored).await?;
                }
                self.finish(stored);
            }
            Err(status) if self.has_begun && status.code() != Code::Unavailable => {
                let stored = Stored::refused(status);
                self.write_result(&stored).await?;
                self.finish(&stored);
            }
            // Nothing was done, or the node is stopping: the key may be used again.
            Err(_) => {}
        }
        Ok(())
    }
}

/// What a call came to.
pub(super) struct Finished {
    /// The result.
    pub(super) stored: Stored,
    /// It is in the journal already.
    pub(super) is_durable: bool,
}

impl Finished {
    /// An answer that is to be written down.
    pub(super) fn answer(message: &impl Message) -> Self {
        Self { stored: Stored::Answer(message.encode_to_vec()), is_durable: false }
    }
}

/// A key's result, or the right to work on it.
pub(super) enum Start {
    /// It is there.
    Done(Stored),
    /// Work on it.
    Work(Once),
}

/// Finds out what a key stands for, and waits while somebody else works on it.
pub(super) async fn start(
    inner: &Shared,
    call: &'static str,
    key: &str,
    request: &impl Message,
) -> Result<Start, Status> {
    let request = RequestHash::of(call, &request.encode_to_vec());
    loop {
        match inner.api.payments.idempotency().enter(key, request, clock::unix_ms()).map_err(fault::key)? {
            Entered::Done(result) => return Stored::decode(&result).map(Start::Done),
            Entered::New(claim) => {
                let has_begun = claim.was_interrupted();
                return Ok(Start::Work(Once { inner: Arc::clone(inner), claim, has_begun }));
            }
            Entered::UnderWay(waiter) => {
                if let Some(result) = waiter.wait().await {
                    return Stored::decode(&result).map(Start::Done);
                }
                // Refused before it had any effect: now it is our turn.
            }
        }
    }
}

/// Does a call once. `work` runs to its end even if the client goes away.
pub(super) async fn once<W, F>(
    inner: &Shared,
    call: &'static str,
    key: &str,
    request: &impl Message,
    work: W,
) -> Result<Stored, Status>
where
    W: FnOnce(Shared, Once) -> F + Send + 'static,
    F: Future<Output = (Once, Result<Finished, Status>)> + Send,
{
    let once = match start(inner, call, key, request).await? {
        Start::Done(stored) => return stored.status().map_or(Ok(stored), Err),
        Start::Work(once) => once,
    };
    let inner = Arc::clone(inner);
    let task = tokio::spawn(async move {
        let (once, result) = work(inner, once).await;
        once.end(&result).await?;
        result.map(|finished| finished.stored)
    });
    task.await.unwrap_or_else(|error| Err(fault::internal(format!("the call's task ended: {error}"))))
}

/// The answer in a result.
pub(super) fn answer<T: Message + Default>(stored: &Stored) -> Result<T, Status> {
    match stored {
        Stored::Answer(bytes) => T::decode(bytes.as_slice())
            .map_err(|error| fault::internal(format!("a stored answer does not decode: {error}"))),
        Stored::Reference(_) | Stored::Refused { .. } => {
            Err(fault::internal("a key stands for another kind of result"))
        }
    }
}

/// The reference in a result.
pub(super) fn reference(stored: &Stored) -> Result<&[u8], Status> {
    match stored {
        Stored::Reference(bytes) => Ok(bytes),
        Stored::Answer(_) | Stored::Refused { .. } => Err(fault::internal("a key stands for another kind of result")),
    }
}

/// An entry that lets a key stand for an id.
pub(super) fn reference_entry(names: (KeyHash, RequestHash), id: &[u8]) -> Entry {
    done_entry(names, &Stored::Reference(id.to_vec()).encode())
}

impl Inner {
    /// Most calls need a node that has started.
    pub(super) fn ready(&self) -> Result<(), Status> {
        let readiness = self.api.readiness.borrow();
        if readiness.is_ready() { Ok(()) } else { Err(fault::not_ready(&readiness)) }
    }
}
