//! A shard without a thread: whoever plays the node says when it has its turn.

use super::*;

impl Shard {
    /// Whether something has arrived, or is due.
    pub(crate) fn has_work(&self) -> bool {
        !self.mailbox.is_empty() || self.patience() == Some(Duration::ZERO)
    }

    /// One turn, with so many inputs at most.
    pub(crate) fn turn_by_hand(&mut self, inputs_max: usize) {
        let mut mail = Mail::default();
        self.mailbox.clone().take(inputs_max, Some(Duration::ZERO), &mut mail);
        self.act(&mut mail);
    }
}
