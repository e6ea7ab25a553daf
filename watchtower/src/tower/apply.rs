//! How the tower's state changes: by a record, live and on replay alike.

use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, OutPoint};
use millrace_wire::BlockHeight;

use super::{BLOCKS_KEPT, PREIMAGES_MAX, Tower};
use crate::record::{Handle, Record};
use crate::story::{Closing, Spending, Story};
use crate::watched::{Phase, Watched};

impl Tower {
    pub(super) fn record(&mut self, record: Record, out: &mut Vec<Record>) {
        out.push(record.clone());
        self.apply(record);
    }

    /// Changes the state as a record says.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::ClientAllowed { client, channels_max } => drop(self.clients.insert(client, channels_max)),
            Record::Registered { handle, client, registration } => {
                self.next_handle = self.next_handle.max(handle.0.saturating_add(1));
                self.insert(handle, Watched::new(client, registration));
            }
            Record::Revealed { handle, number, secret, time_s } => {
                self.change(handle, |watched| {
                    watched.time_s = time_s;
                    watched.secrets.insert(number, secret.0).expect("it was checked before it was recorded");
                    watched.judge();
                });
            }
            Record::Advanced { handle, to, changed, time_s } => {
                let changed: Vec<[u8; 32]> = changed.into_iter().map(|secret| secret.0).collect();
                self.change(handle, |watched| {
                    watched.time_s = time_s;
                    watched.secrets.advance(to, &changed).expect("they were checked before they were recorded");
                    watched.judge();
                });
            }
            Record::Closed { handle, height, closing } => self.apply_closed(handle, height, &closing),
            Record::Spent { handle, height, spending } => self.apply_spent(handle, height, spending),
            Record::Connected { height, hash } => {
                self.blocks.push_back((height, BlockHash::from_byte_array(hash)));
                if self.blocks.len() > BLOCKS_KEPT {
                    self.blocks.pop_front();
                }
            }
            Record::Disconnected { height } => {
                self.blocks.retain(|(other, _)| *other < height);
                self.take_back(height);
                self.vault.take_back(height);
            }
            Record::Resolved { handle } => self.apply_resolved(handle),
            Record::PreimagesTaken { handle, count } => self.change(handle, |watched| watched.preimages_taken = count),
            Record::Forgotten { handle } => self.apply_forgotten(handle),
            Record::Checked { handle } => {
                self.unchecked.remove(&handle);
                self.change(handle, |watched| watched.is_checked = true);
            }
            Record::Blob(record) => self.vault.apply(record),
        }
    }

    fn change(&mut self, handle: Handle, change: impl FnOnce(&mut Watched)) {
        if let Some(watched) = self.channels.get_mut(&handle) {
            change(watched);
        }
    }

    fn apply_closed(&mut self, handle: Handle, height: BlockHeight, closing: &Closing) {
        // What an unfinished block had told is told again.
        self.stop_watching_story(handle);
        let Some(watched) = self.channels.get_mut(&handle) else { return };
        watched.phase = Phase::Closing(Story::new(height, closing));
        watched.judge();
        self.closing.insert(handle);
        self.watch_story(handle);
    }

    fn apply_spent(&mut self, handle: Handle, height: BlockHeight, spending: Spending) {
        let Some(watched) = self.channels.get_mut(&handle) else { return };
        let Phase::Closing(story) = &mut watched.phase else { return };
        story.go_on(height, &spending);
        for preimage in spending.preimages {
            if watched.preimages.len() < PREIMAGES_MAX && !watched.preimages.contains(&preimage) {
                watched.preimages.push(preimage);
            }
        }
        self.watch_story(handle);
    }

    fn apply_resolved(&mut self, handle: Handle) {
        self.stop_watching_story(handle);
        let Some(watched) = self.channels.get_mut(&handle) else { return };
        watched.end();
        self.unchecked.remove(&handle);
        let funding = watched.registration.funding_outpoint;
        self.unwatch(&funding, handle);
        self.closing.remove(&handle);
    }

    fn apply_forgotten(&mut self, handle: Handle) {
        self.stop_watching_story(handle);
        let Some(watched) = self.channels.remove(&handle) else { return };
        self.unchecked.remove(&handle);
        let funding = watched.registration.funding_outpoint;
        self.unwatch(&funding, handle);
        self.closing.remove(&handle);
        self.by_funding.remove(&(watched.client, funding));
        if let Some(count) = self.counts.get_mut(&watched.client) {
            *count = count.saturating_sub(1);
        }
    }

    fn watch_story(&mut self, handle: Handle) {
        for outpoint in self.outpoints_of_story(handle) {
            self.watch(outpoint, handle);
        }
    }

    fn stop_watching_story(&mut self, handle: Handle) {
        for outpoint in self.outpoints_of_story(handle) {
            self.unwatch(&outpoint, handle);
        }
    }

    fn outpoints_of_story(&self, handle: Handle) -> Vec<OutPoint> {
        let story = self.channels.get(&handle).and_then(Watched::story);
        story.map(|story| story.outputs.keys().copied().collect()).unwrap_or_default()
    }
}
