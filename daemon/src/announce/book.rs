//! What was said: our newest `channel_update` of each channel and our newest `node_announcement`, so that a later one is
//! later also after a restart or with a clock that was set back; the peers' updates for our channels; and what the owner
//! wants said of the node.

use std::collections::{BTreeMap, BTreeSet};

use millrace_channel::Fact;
use millrace_wire::ChannelId;
use serde::{Deserialize, Serialize};

use super::node::Wishes;
use crate::entry::{Entry, Kind};
use crate::facts::{Applied, Item, News, Source};

/// The version that this build writes, of entries and of the section.
const VERSION: u8 = 1;

/// What is written down. Messages are without their type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum AnnounceEntry {
    /// Our `channel_update`.
    Ours { channel_id: ChannelId, update: Vec<u8> },
    /// The peer's.
    Theirs { channel_id: ChannelId, update: Vec<u8> },
    /// Our `node_announcement`.
    Node { announcement: Vec<u8> },
    /// What the owner wants said of the node.
    Wishes(Wishes),
}

impl AnnounceEntry {
    pub(super) fn entry(&self) -> Entry {
        let bytes = postcard::to_extend(self, vec![VERSION]).expect("plain data into memory: nothing can fail");
        Entry::new(Kind::Announce, bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
            Some((version, _)) => Err(format!("version {version} of an announcement's entry")),
            None => Err("an empty entry of an announcement".to_owned()),
        }
    }
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Book {
    applied: Applied,
    pub(super) ours: BTreeMap<ChannelId, Vec<u8>>,
    pub(super) theirs: BTreeMap<ChannelId, Vec<u8>>,
    pub(super) node: Option<Vec<u8>>,
    pub(super) wishes: Wishes,
}

impl Book {
    pub(super) fn restore(section: &[u8]) -> Result<Self, String> {
        match section.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
            Some((version, _)) => Err(format!("version {version} of the announcements")),
            None => Err("the announcements are empty".to_owned()),
        }
    }

    pub(super) fn section(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("plain data into memory: nothing can fail")
    }

    pub(super) fn tell(&mut self, news: &News) -> Result<(), String> {
        if !self.applied.take(news.source, news.position) {
            return Ok(());
        }
        for item in &news.items {
            match item {
                Item::Entry(Entry { kind: Kind::Announce, bytes }) => self.apply(AnnounceEntry::decode(bytes)?),
                Item::Fact { fact: Fact::Closed(_), .. } => {
                    if let Source::Channel(id) = news.source {
                        self.forget(id);
                    }
                }
                Item::Entry(_) | Item::Fact { .. } => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, entry: AnnounceEntry) {
        match entry {
            AnnounceEntry::Ours { channel_id, update } => {
                self.ours.insert(channel_id, update);
            }
            AnnounceEntry::Theirs { channel_id, update } => {
                self.theirs.insert(channel_id, update);
            }
            AnnounceEntry::Node { announcement } => self.node = Some(announcement),
            AnnounceEntry::Wishes(wishes) => self.wishes = wishes,
        }
    }

    fn forget(&mut self, channel_id: ChannelId) {
        self.applied.forget(channel_id);
        self.ours.remove(&channel_id);
        self.theirs.remove(&channel_id);
    }

    /// An entry may have been written after its channel was closed.
    pub(super) fn keep_only(&mut self, channels: &BTreeSet<ChannelId>) {
        self.ours.retain(|id, _| channels.contains(id));
        self.theirs.retain(|id, _| channels.contains(id));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_journal::Position;

    use super::*;
    use crate::announce::node::Color;
    use crate::facts::Telling;

    /// As the first version wrote them: each must be read for ever.
    const STORED: [&str; 4] = [
        "01000707070707070707070707070707070707070707070707070707070707070707020a0b",
        "01010707070707070707070707070707070707070707070707070707070707070707020a0b",
        "0102020a0b",
        "01030102416c010102030101103230332e302e3131332e373a39373335",
    ];

    fn entries() -> [AnnounceEntry; 4] {
        let (channel_id, bytes) = (ChannelId([7; 32]), vec![10, 11]);
        [
            AnnounceEntry::Ours { channel_id, update: bytes.clone() },
            AnnounceEntry::Theirs { channel_id, update: bytes.clone() },
            AnnounceEntry::Node { announcement: bytes },
            AnnounceEntry::Wishes(Wishes {
                alias: Some("Al".to_owned()),
                color: Some(Color([1, 2, 3])),
                addresses: Some(vec!["203.0.113.7:9735".parse().unwrap()]),
            }),
        ]
    }

    fn news(source: Source, frame: u64, item: Item) -> News {
        let position = Some(Position { frame, index: 0 });
        News { source, peer: None, terms: None, position, time_ms: 0, telling: Telling::Replay, items: vec![item] }
    }

    #[test]
    fn entries_stay_what_they_were() {
        for (entry, stored) in entries().into_iter().zip(STORED) {
            assert_eq!(hex::encode(&entry.entry().bytes), stored);
            assert_eq!(AnnounceEntry::decode(&hex::decode(stored).unwrap()), Ok(entry));
        }
        for bytes in [&[][..], &[0], &[VERSION], &[VERSION, 9]] {
            assert!(AnnounceEntry::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_told_is_kept_and_told_twice_changes_nothing() {
        let mut book = Book::default();
        for (frame, entry) in (1..).zip(entries()) {
            book.tell(&news(Source::Node, frame, Item::Entry(entry.entry()))).unwrap();
        }
        let older = AnnounceEntry::Node { announcement: vec![9] };
        book.tell(&news(Source::Node, 3, Item::Entry(older.entry()))).unwrap();
        assert_eq!(book.node, Some(vec![10, 11]));
        assert_eq!(Book::restore(&book.section()), Ok(book.clone()));
        assert!(Book::restore(&[]).is_err() && Book::restore(&[9]).is_err());
        book.keep_only(&BTreeSet::new());
        assert_eq!((book.ours.len(), book.theirs.len(), book.wishes.alias.as_deref()), (0, 0, Some("Al")));
    }
}
