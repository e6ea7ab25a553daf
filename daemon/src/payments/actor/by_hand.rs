//! The payments' task without a runtime: whoever plays the node says what it hears next.

use futures::FutureExt;

use super::super::send::Job;
use super::super::{Payments, PaymentsError};
use super::workers::Work;
use super::*;

/// What the task may hear next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    Inputs,
    Offered,
    Decided,
    Forwarded,
    Written,
}

impl Heard {
    pub(crate) const ALL: [Self; 5] = [Self::Inputs, Self::Offered, Self::Decided, Self::Forwarded, Self::Written];
}

/// Work is done where it is asked for; there are no files.
struct AtOnce;

impl Workers for AtOnce {
    fn peel(&self, work: Work) {
        work();
    }

    fn search(&self, job: Job, then: Finder) {
        then(job.run());
    }

    fn write(&self, _work: Work) {}
}

impl Actor {
    /// Its first turn.
    pub(crate) fn begin_by_hand(&mut self) {
        self.begin();
    }

    /// One turn with so many of these; false if there are none.
    pub(crate) fn hear(&mut self, heard: Heard, inputs_max: usize) -> bool {
        let mut batch = Vec::new();
        let call = match heard {
            Heard::Inputs => {
                while batch.len() < inputs_max {
                    let Ok(input) = self.inputs.try_recv() else { break };
                    batch.push(input);
                }
                (!batch.is_empty()).then(|| Call::Inputs(batch.drain(..)))
            }
            Heard::Offered => {
                self.offers.next().now_or_never().flatten().map(|(tag, result)| Call::Offered(tag, result))
            }
            Heard::Decided => {
                self.decisions.next().now_or_never().flatten().map(|(tag, result)| Call::Decided(tag, result))
            }
            Heard::Forwarded => self.hand.next().now_or_never().flatten().map(Call::Forwarded),
            Heard::Written => self.writes.next().now_or_never().flatten().map(|()| Call::Written),
        };
        let is_any = call.is_some();
        if let Some(call) = call {
            self.turn(call);
        }
        is_any
    }

    /// One turn because some time has passed.
    pub(crate) fn tick(&mut self) {
        self.turn(Call::Tick);
    }

    /// For a checkpoint: with everything in it that was told before the call.
    pub(crate) fn section_by_hand(&mut self, up_to: Position) -> Vec<u8> {
        while self.hear(Heard::Inputs, TURN_MAX) {}
        self.core.section(up_to)
    }

    /// HTLCs that are on their way through this node, or are being decided.
    pub(crate) fn busy_with(&self) -> (usize, usize, usize) {
        (self.core.forwarding.len(), self.deciding.len(), self.core.sending.len())
    }
}

impl Payments {
    /// The task, for whoever plays this node. Payments are looked up nowhere, and spontaneous ones not taken.
    pub(crate) fn task_by_hand(
        &self,
        registry: Registry,
        sync: watch::Receiver<SyncState>,
    ) -> Result<Actor, PaymentsError> {
        let archive: Archive =
            Arc::new(|_, listener| listener.refuse(PayRefusal::Internal("nothing is stored".to_owned())));
        self.task(registry, sync, archive, Arc::new(|_| true), Arc::new(AtOnce))
    }

    /// As [`Payments::find_ways`], without a file.
    pub(crate) fn find_ways_by_hand(&self, network: Network) {
        let _second = self.network.set(network);
    }
}
