#![allow(clippy::unwrap_used)]
//! The log on a real journal: what is found, before and after checkpoints, crashes and restarts.

use std::path::Path;

use millrace_channel::side::Side;
use millrace_journal::{Checkpoint, Options};
use millrace_wire::CltvExpiry;

use super::*;

const OPTIONS: Options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, history_file_bytes: 4_000 };

fn channel(n: u8) -> ChannelId {
    ChannelId([n; 32])
}

fn htlc(n: u32) -> PastHtlc {
    let mut hash160 = [0; 20];
    hash160[..4].copy_from_slice(&n.to_le_bytes());
    let (first, last) = (CommitmentNumber(u64::from(n)), CommitmentNumber(u64::from(n) + 10));
    PastHtlc { offered_by: Side::Local, hash160, cltv_expiry: CltvExpiry(700), first, last }
}

/// A journal in a folder, and the log on top of it.
struct World {
    journal: Arc<Journal>,
    log: Arc<HtlcLog>,
    /// Everything that was told, to be told again after a restart.
    told: Vec<News>,
}

impl World {
    fn open(dir: &Path, told: Vec<News>, section: Option<&[u8]>) -> Self {
        let (journal, recovered) = Journal::open(dir, OPTIONS).unwrap();
        let (journal, log) = (Arc::new(journal), HtlcLog::keeping(0));
        let stored = recovered.checkpoint.as_ref().map(|checkpoint| checkpoint.sections[0].bytes.as_slice());
        if let Some(section) = stored.or(section) {
            log.restore(section).unwrap();
        }
        let from = recovered.checkpoint.as_ref().map_or(Position::START, |checkpoint| checkpoint.replay_from);
        for news in told.iter().filter(|news| news.position.is_some_and(|position| position >= from)) {
            log.tell(&News { telling: Telling::Replay, ..news.clone() });
        }
        log.attach(&journal).unwrap();
        Self { journal, log, told }
    }

    fn tell(&mut self, of: ChannelId, facts: Vec<Fact>) -> Position {
        let position = self.journal.submit_and_wait(vec![1, 2, 3]).unwrap();
        let news = News {
            source: Source::Channel(of),
            peer: None,
            terms: None,
            position: Some(position),
            time_ms: 0,
            telling: Telling::Live,
            items: facts.into_iter().map(|fact| Item::Fact { fact, received: None }).collect(),
        };
        self.told.push(news.clone());
        self.log.tell(&news);
        position
    }

    fn past(&mut self, of: ChannelId, numbers: impl IntoIterator<Item = u32>) -> Position {
        self.tell(of, numbers.into_iter().map(|n| Fact::HtlcPast(htlc(n))).collect())
    }

    fn checkpoint(&self) {
        let replay_from = self.journal.durable_end();
        let bytes = self.log.section(replay_from).unwrap();
        let sections = vec![millrace_journal::Section { name: b"fold/htlc_log".to_vec(), bytes }];
        self.journal.write_checkpoint(&Checkpoint { replay_from, sections }).unwrap();
    }

    fn restart(self, dir: &Path) -> Self {
        let Self { journal, log, told } = self;
        drop((journal, log));
        Self::open(dir, told, None)
    }

    fn found(&self, of: ChannelId, number: u64) -> Vec<PastHtlc> {
        self.log.find(of, CommitmentNumber(number)).unwrap()
    }

    fn files(&self, dir: &Path) -> usize {
        std::fs::read_dir(dir.join(FOLDER)).unwrap().count()
    }
}

fn opened(of: ChannelId) -> Vec<Fact> {
    vec![Fact::Opened { channel_id: of }]
}

fn closed() -> Vec<Fact> {
    let last = millrace_channel::phase::on_chain::ending::LastState {
        short_channel_id: None,
        local_alias: millrace_wire::ShortChannelId(1),
        remote_alias: None,
        required_depth: 1,
        balances: millrace_channel::Both::default(),
        feerate: millrace_wire::FeeratePerKw(253),
        commitment_numbers: millrace_channel::Both::default(),
        ending: None,
    };
    vec![Fact::Closed(Box::new(last))]
}

#[test]
fn what_may_stand_in_a_commitment_is_found_of_its_own_channel_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), Vec::new(), None);
    world.past(channel(1), [5, 6, 40]);
    world.past(channel(2), [7]);
    for _ in 0..2 {
        assert_eq!(world.found(channel(1), 15), [htlc(5), htlc(6)]);
        assert_eq!(world.found(channel(1), 4), []);
        assert_eq!(world.found(channel(1), 50), [htlc(40)]);
        assert_eq!(world.found(channel(2), 7), [htlc(7)]);
        // The same from the log's files.
        world.checkpoint();
        assert!(world.log.state.lock().unwrap().recent.is_empty());
    }
}

#[test]
fn nothing_is_lost_or_doubled_over_checkpoints_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), Vec::new(), None);
    for round in 0..6 {
        world.past(channel(1), [round]);
        if round % 2 == 0 {
            world.checkpoint();
        }
        world.past(channel(1), [round + 100]);
        world = world.restart(dir.path());
        for n in 0..=round {
            assert_eq!(world.found(channel(1), u64::from(n)).iter().filter(|found| **found == htlc(n)).count(), 1);
        }
    }
    let items = || {
        let log = world.log.log.get().unwrap();
        let mut reader = log.reader(log.oldest()).unwrap();
        let items = std::iter::from_fn(|| reader.next_item().unwrap());
        items.map(|(_, bytes)| Kept::decode(&bytes).unwrap().htlcs.len()).sum::<usize>()
    };
    world.checkpoint();
    assert_eq!(items(), 12, "each is written once");
}

/// The log was appended to, and the checkpoint that it was for was never written.
#[test]
fn a_crash_between_the_log_and_the_checkpoint_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), Vec::new(), None);
    world.past(channel(1), [1, 2]);
    let section = world.log.section(world.journal.durable_end()).unwrap();
    drop(section);
    world.past(channel(1), [3]);
    let world = world.restart(dir.path());
    assert_eq!(world.log.state.lock().unwrap().recent.len(), 1, "what the log has is not kept twice");
    assert_eq!(world.found(channel(1), 5), [htlc(1), htlc(2), htlc(3)]);
}

/// What a section holds beyond the place from which is read again is told once.
#[test]
fn what_came_while_a_checkpoint_was_made_is_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), Vec::new(), None);
    world.past(channel(1), [1]);
    let replay_from = world.journal.durable_end();
    world.past(channel(1), [2]);
    let bytes = world.log.section(replay_from).unwrap();
    let sections = vec![millrace_journal::Section { name: b"fold/htlc_log".to_vec(), bytes }];
    world.journal.write_checkpoint(&Checkpoint { replay_from, sections }).unwrap();
    world.past(channel(1), [3]);
    let world = world.restart(dir.path());
    assert_eq!(world.log.state.lock().unwrap().recent.len(), 2);
    assert_eq!(world.found(channel(1), 5), [htlc(1), htlc(2), htlc(3)]);
}

#[test]
fn a_log_that_does_not_reach_as_far_as_the_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), Vec::new(), None);
    world.past(channel(1), [1]);
    world.checkpoint();
    let told = world.told.clone();
    drop(world);
    std::fs::remove_dir_all(dir.path().join(FOLDER)).unwrap();
    let (journal, recovered) = Journal::open(dir.path(), OPTIONS).unwrap();
    let log = HtlcLog::new();
    log.restore(&recovered.checkpoint.unwrap().sections[0].bytes).unwrap();
    let refused = log.attach(&Arc::new(journal)).unwrap_err().to_string();
    assert!(refused.contains("counted on"), "{refused}");
    assert!(log.restore(&[9]).unwrap_err().contains("version 9"));
    drop(told);
}

#[test]
fn files_go_once_no_open_channel_has_anything_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), Vec::new(), None);
    world.tell(channel(1), opened(channel(1)));
    world.tell(channel(2), opened(channel(2)));
    for round in 0..30 {
        world.past(channel(1), (round * 20)..(round * 20 + 20));
        world.checkpoint();
    }
    let many = world.files(dir.path());
    assert!(many >= 4, "{many} files");
    world.tell(channel(1), closed());
    world.checkpoint();
    assert_eq!(world.files(dir.path()), many, "the other channel is older than all of it");
    world.tell(channel(2), closed());
    world.checkpoint();
    assert_eq!(world.files(dir.path()), 1);
    assert_eq!(world.found(channel(1), 300), []);
}

/// Few stay with the checkpoint, and are found after a restart.
#[test]
fn few_are_kept_by_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), Vec::new(), None);
    world.log = HtlcLog::keeping(5);
    world.log.attach(&world.journal).unwrap();
    world.past(channel(1), [1, 2]);
    world.checkpoint();
    assert_eq!(world.files(dir.path()), 0);
    let world = world.restart(dir.path());
    assert_eq!(world.found(channel(1), 5), [htlc(1), htlc(2)]);
}

/// More than is appended at once, in steps that must not be torn apart.
#[test]
fn much_at_once_goes_in_whole_steps() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::open(dir.path(), Vec::new(), None);
    let step = BATCH as u32 / 2 + 1;
    for n in 0..5 {
        world.past(channel(n), 0..step);
    }
    world.checkpoint();
    for n in 0..5 {
        assert_eq!(world.found(channel(n), u64::from(step)).len(), 10, "{n}");
    }
    assert_eq!(world.found(channel(7), 3), []);
}

/// Told on replay, it is nobody's business; live and at a start, it is asked.
#[tokio::test]
async fn a_breach_is_asked_about_live_and_at_a_start() {
    let log = HtlcLog::new();
    let mut questions = log.questions.lock().unwrap().take().unwrap();
    for (telling, is_asked) in [(Telling::Replay, false), (Telling::Resume, true), (Telling::Live, true)] {
        let fact = Fact::Breached { number: CommitmentNumber(3) };
        log.tell(&News {
            source: Source::Channel(channel(1)),
            peer: None,
            terms: None,
            position: None,
            time_ms: 0,
            telling,
            items: vec![Item::Fact { fact, received: None }],
        });
        assert_eq!(questions.try_recv().ok(), is_asked.then_some((channel(1), CommitmentNumber(3))));
    }
}

/// An item as the first release wrote it.
#[test]
fn a_stored_item_stays_decodable() {
    let kept =
        Kept { channel_id: channel(7), htlcs: vec![htlc(1), PastHtlc { offered_by: Side::Remote, ..htlc(300) }] };
    let stored = "01\
        0707070707070707070707070707070707070707070707070707070707070707\
        02\
        000100000000000000000000000000000000000000bc05010b\
        012c01000000000000000000000000000000000000bc05ac02b602";
    assert_eq!(hex::encode(kept.encode()), stored);
    assert_eq!(Kept::decode(&hex::decode(stored).unwrap()).unwrap(), kept);
    assert!(matches!(Kept::decode(&[2]), Err(BadItem::UnknownVersion(2))));
    assert!(matches!(Kept::decode(&[]), Err(BadItem::Malformed(_))));
}
