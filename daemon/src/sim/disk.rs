//! A journal in memory. A step is there once it was written, and whoever waits for it is told later: between the two a
//! node may die, as between any two steps.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use millrace_channel::Record;
use millrace_journal::{Checkpoint, DurableStep, Flush, Position, Space, SubmitError, Ticket, WakeHandle};

use crate::entry::{Part, Step};
use crate::steps::StepLog;

#[derive(Default)]
pub(super) struct Disk(Mutex<State>);

#[derive(Default)]
struct State {
    written: Vec<DurableStep>,
    /// The newest. The steps before it are kept all the same: whoever checks a node reads all of them.
    checkpoint: Option<Checkpoint>,
    /// Submitted, and not written.
    pending: VecDeque<(Vec<u8>, WakeHandle)>,
    /// Written, and not told.
    untold: VecDeque<(Flush, Vec<WakeHandle>)>,
    frames: u64,
}

impl StepLog for Disk {
    fn submit(&self, step: Vec<u8>, wake: WakeHandle) -> Result<Ticket, SubmitError> {
        let mut state = self.0.lock().unwrap();
        state.pending.push_back((step, wake));
        Ok(Ticket((state.written.len() + state.pending.len()) as u64))
    }

    fn queued_bytes(&self) -> u64 {
        self.0.lock().unwrap().pending.iter().map(|(step, _)| step.len() as u64).sum()
    }

    fn space(&self) -> Space {
        Space::Enough
    }
}

impl Disk {
    /// A disk with what another one holds.
    pub(super) fn copy(&self) -> Arc<Self> {
        let state = self.0.lock().unwrap();
        let (written, checkpoint) = (state.written.clone(), state.checkpoint.clone());
        let copy = State { written, checkpoint, frames: state.frames, ..State::default() };
        Arc::new(Self(Mutex::new(copy)))
    }

    /// Steps that wait to be written.
    pub(super) fn pending(&self) -> usize {
        self.0.lock().unwrap().pending.len()
    }

    /// Writes so many of them, as one frame.
    pub(super) fn write(&self, steps: usize) {
        let mut state = self.0.lock().unwrap();
        let steps = steps.min(state.pending.len());
        if steps == 0 {
            return;
        }
        state.frames += 1;
        let (frame, first) = (state.frames, Ticket(state.written.len() as u64 + 1));
        let mut wakes: Vec<WakeHandle> = Vec::new();
        for index in 0..steps as u32 {
            let (bytes, wake) = state.pending.pop_front().unwrap();
            let ticket = Ticket(first.0 + u64::from(index));
            state.written.push(DurableStep { ticket, position: Position { frame, index }, bytes });
            if !wakes.iter().any(|known| Arc::ptr_eq(known, &wake)) {
                wakes.push(wake);
            }
        }
        state.untold.push_back((Flush::new(frame, first, steps as u32), wakes));
    }

    /// Whether something was written that nobody was told of.
    pub(super) fn has_untold(&self) -> bool {
        !self.0.lock().unwrap().untold.is_empty()
    }

    /// Tells of the oldest such frame.
    pub(super) fn tell(&self) {
        let told = self.0.lock().unwrap().untold.pop_front();
        if let Some((flush, wakes)) = told {
            wakes.iter().for_each(|wake| wake.durable(&flush));
        }
    }

    /// What was not written is gone.
    pub(super) fn crash(&self) {
        let mut state = self.0.lock().unwrap();
        state.pending.clear();
        state.untold.clear();
    }

    /// All that was written.
    pub(super) fn steps(&self) -> Vec<DurableStep> {
        self.0.lock().unwrap().written.clone()
    }

    /// Where the written steps end.
    pub(super) fn end(&self) -> Position {
        Position::start_of(self.0.lock().unwrap().frames + 1)
    }

    /// Whether there are steps that the newest checkpoint was not begun after.
    pub(super) fn is_beyond_checkpoint(&self) -> bool {
        let state = self.0.lock().unwrap();
        let end = Position::start_of(state.frames + 1);
        state.checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.replay_from < end)
    }

    pub(super) fn write_checkpoint(&self, checkpoint: Checkpoint) {
        self.0.lock().unwrap().checkpoint = Some(checkpoint);
    }

    /// What a start reads: the newest checkpoint, and the steps that it does not hold.
    pub(super) fn recovered(&self) -> (Option<Checkpoint>, Vec<DurableStep>) {
        let state = self.0.lock().unwrap();
        let from = state.checkpoint.as_ref().map_or(Position::START, |checkpoint| checkpoint.replay_from);
        let tail = state.written.iter().filter(|step| step.position >= from).cloned();
        (state.checkpoint.clone(), tail.collect())
    }

    /// Whether, behind so many steps, there is a record of some channel that is like that.
    pub(super) fn holds(&self, behind: usize, is_it: impl Fn(&Record) -> bool) -> bool {
        let state = self.0.lock().unwrap();
        let is_in = |bytes: &[u8]| {
            let parts = Step::decode(bytes).unwrap().parts.into_iter();
            let records = parts.flat_map(|part| match part {
                Part::Records { records, .. } => records,
                Part::Entry { .. } => Vec::new(),
            });
            records.into_iter().any(|record| is_it(&Record::decode(record).unwrap()))
        };
        state.written[behind..].iter().any(|step| is_in(&step.bytes))
    }

    pub(super) fn written(&self) -> usize {
        self.0.lock().unwrap().written.len()
    }
}
