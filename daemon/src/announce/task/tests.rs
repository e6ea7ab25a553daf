#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Mutex;

use bitcoin::OutPoint;
use millrace_chain::SyncState;
use millrace_channel::keys::ChannelKeys;
use millrace_channel::{Both, ChannelType, PartyTerms, Side, Terms};
use millrace_journal::{Position, SubmitError, Ticket, WakeHandle};
use millrace_wire::{BlockHeight, ChainHash, CommitmentNumber, Decoded, Features, FeeratePerKw, Msat, Sat};
use secp256k1::{SECP256K1, SecretKey};

use super::super::Parts;
use super::super::node::Face;
use super::super::presence::{AWAY_AFTER_MS, BACK_AFTER_MS};
use super::super::update::Signer;
use super::*;
use crate::channels::Announced;
use crate::channels::directory::Directory;
use crate::channels::input::Input;
use crate::channels::mailbox::{Mail, Mailbox};
use crate::clock::simulated;
use crate::facts::{Fold, Item, News, Source, Telling};
use crate::network::Network;
use crate::peer::PeerRules;
use crate::policy::{ForwardPolicy, Policies};
use crate::steps::StepLog;

const CHANNEL: ChannelId = ChannelId([7; 32]);
const MINUTE_MS: u64 = 60_000;

fn key(n: u8) -> SecretKey {
    SecretKey::from_slice(&[n; 32]).unwrap()
}

/// A channel that is announced.
fn channel() -> ChannelSnapshot {
    let party = || PartyTerms {
        dust_limit: Sat(354),
        max_htlc_value_in_flight: Msat(900_000_000),
        channel_reserve: Sat(10_000),
        htlc_minimum: Msat(1_000),
        to_self_delay: 144,
        max_accepted_htlcs: 483,
        basepoints: ChannelKeys::from_seed(&[1; 32]).basepoints().clone(),
        upfront_shutdown_script: None,
    };
    let peer = key(2).public_key(SECP256K1);
    let terms = Terms {
        channel_id: CHANNEL,
        remote_node: peer,
        funder: Side::Local,
        channel_type: ChannelType::ANCHORS,
        funding_outpoint: OutPoint::null(),
        capacity: Sat(1_000_000),
        push: Msat(0),
        minimum_depth: 3,
        announce: true,
        parties: Both { local: party(), remote: party() },
    };
    ChannelSnapshot {
        channel_id: CHANNEL,
        peer,
        terms: Arc::new(terms),
        state: ChannelState::Normal,
        is_online: true,
        opened_ms: 0,
        short_channel_id: Some(ShortChannelId(1 << 40)),
        local_alias: ShortChannelId(1),
        remote_alias: Some(ShortChannelId(2)),
        funding_depth: 6,
        required_depth: 3,
        balances: Both::default(),
        in_flight: Both::default(),
        htlc_counts: Both::default(),
        available_to_send: Msat(0),
        feerate: FeeratePerKw(1_000),
        commitment_numbers: Both { local: CommitmentNumber(0), remote: CommitmentNumber(0) },
        htlcs: Vec::new(),
        awaits_revocation: false,
        announcement: Some(Announced { height: BlockHeight(6), bytes: vec![0; 10] }),
        ending: None,
        last_error: None,
    }
}

/// A journal that only says that there is room.
struct Roomy;

impl StepLog for Roomy {
    fn submit(&self, _step: Vec<u8>, _wake: WakeHandle) -> Result<Ticket, SubmitError> {
        unreachable!("entries go by the mailbox")
    }

    fn queued_bytes(&self) -> u64 {
        0
    }

    fn space(&self) -> Space {
        Space::Enough
    }
}

/// A node with one channel, and a clock that the test turns.
struct Stage {
    announcer: Arc<Announcer>,
    registry: Registry,
    peers: Peers,
    task: Task,
    shard: Mailbox<Input>,
    frame: u64,
    channel: ChannelSnapshot,
    now: Millis,
    passed_on: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Stage {
    fn new(channel: ChannelSnapshot) -> Self {
        let announcer = Announcer::new(Parts {
            node_key: key(1),
            chain_hash: ChainHash::REGTEST,
            features: Features::ours(false),
            face: Face::default(),
            policies: Policies::new(ForwardPolicy::default()),
            peer_share_percent: 50,
            network: Network::default(),
        });
        let passed_on = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let all = Arc::clone(&passed_on);
        announcer.relay_by(Arc::new(move |messages| all.lock().unwrap().extend(messages)));
        let shard = Mailbox::new();
        let (directory, synced) =
            (Arc::new(Directory::new(5, 50)), watch::channel(SyncState::Synced { height: 100 }).1);
        let registry = Registry::new(directory, vec![shard.clone()], Arc::new(Roomy), synced);
        let (rules, stopping) = (PeerRules::default(), watch::channel(false).1);
        let peers =
            Peers::new(key(1), ChainHash::REGTEST, rules, registry.clone(), BTreeMap::new(), None, None, stopping);
        let task = Task::new(Arc::clone(&announcer), registry.clone(), peers.clone());
        Self { announcer, registry, peers, task, shard, frame: 0, channel, now: Millis(0), passed_on }
    }

    /// The task forgets what it has not written down.
    fn restart(&mut self) {
        self.task = Task::new(Arc::clone(&self.announcer), self.registry.clone(), self.peers.clone());
    }

    /// So much time goes by with the peer there, or gone: which updates are passed on.
    async fn pass(&mut self, time_ms: u64, is_online: bool) -> Vec<ChannelUpdate> {
        self.channel.is_online = is_online;
        self.registry.directory().publish(Arc::new(self.channel.clone()), 0);
        for _ in 0..time_ms / MINUTE_MS {
            self.now = self.now.plus(MINUTE_MS);
            simulated::set(Some(self.now.0));
            tokio::select! {
                looked = self.task.look() => looked.unwrap(),
                never = write(&self.shard, &self.announcer, &mut self.frame) => match never {},
            }
        }
        let passed_on = std::mem::take(&mut *self.passed_on.lock().unwrap());
        let updates = passed_on.iter().filter_map(|bytes| match Message::decode(bytes) {
            Ok(Decoded::Message(Message::ChannelUpdate(update))) => Some(*update),
            _ => None,
        });
        updates.collect()
    }

    /// What was written last of the channel.
    fn said(&self) -> ChannelUpdate {
        update::decode(&self.announcer.book().ours[&CHANNEL]).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        simulated::set(None);
    }
}

/// What a shard does with entries.
async fn write(shard: &Mailbox<Input>, announcer: &Announcer, frame: &mut u64) -> Infallible {
    loop {
        let mut mail = Mail::default();
        shard.take(usize::MAX, Some(Duration::ZERO), &mut mail);
        for input in mail.inputs {
            let Input::Write { entries, reply } = input else { panic!("{input:?}") };
            *frame += 1;
            let position = Position { frame: *frame, index: 0 };
            announcer.tell(&News {
                source: Source::Node,
                peer: None,
                terms: None,
                position: Some(position),
                time_ms: 0,
                telling: Telling::Live,
                items: entries.into_iter().map(Item::Entry).collect(),
            });
            reply.send(position).unwrap();
        }
        tokio::task::yield_now().await;
    }
}

fn one(updates: Vec<ChannelUpdate>) -> ChannelUpdate {
    let [update] = &updates[..] else { panic!("{updates:?}") };
    update.clone()
}

fn read(update: &ChannelUpdate) -> (Said, u32) {
    let contents = &update.parsed().contents;
    (Said::read(contents), contents.timestamp)
}

#[tokio::test]
async fn an_announced_channel_is_disabled_while_its_peer_stays_away() {
    let mut stage = Stage::new(channel());
    let (usable, first_s) = read(&one(stage.pass(5 * MINUTE_MS, true).await));
    assert!(!usable.is_disabled);
    // That it is gone is seen after the first minute.
    assert_eq!(stage.pass(AWAY_AFTER_MS, false).await, []);
    let disabled = one(stage.pass(MINUTE_MS, false).await);
    let (said, then_s) = read(&disabled);
    assert_eq!(said, Said { is_disabled: true, ..usable });
    assert!(then_s > first_s);
    assert_eq!(stage.pass(60 * MINUTE_MS, false).await, []);
    // A restart passes on what was said, and says nothing else.
    stage.restart();
    assert_eq!(stage.pass(60 * MINUTE_MS, false).await, [disabled]);
    assert_eq!(stage.pass(BACK_AFTER_MS, true).await, []);
    let (said, again_s) = read(&one(stage.pass(MINUTE_MS, true).await));
    assert_eq!(said, usable);
    assert!(again_s > then_s);
    assert_eq!(stage.pass(60 * MINUTE_MS, true).await, []);
}

#[tokio::test]
async fn a_peer_that_is_away_only_now_and_then_has_its_channel_usable() {
    let mut stage = Stage::new(channel());
    one(stage.pass(MINUTE_MS, true).await);
    for _ in 0..10 {
        assert_eq!(stage.pass(AWAY_AFTER_MS, false).await, []);
        assert_eq!(stage.pass(MINUTE_MS, true).await, []);
    }
}

/// Its peer is the only one who is told of it, and knows best whether it is there.
#[tokio::test]
async fn a_channel_that_is_not_announced_is_never_disabled() {
    let mut private = channel();
    private.announcement = None;
    let mut stage = Stage::new(private);
    assert_eq!(stage.pass(MINUTE_MS, true).await, []);
    let before = stage.said();
    assert_eq!(stage.pass(10 * AWAY_AFTER_MS, false).await, []);
    assert_eq!(stage.said(), before);
    assert!(!read(&before).0.is_disabled);
}

#[test]
fn time_only_goes_forward_in_what_is_said() {
    assert_eq!(later_than(None, 100), 100);
    assert_eq!(later_than(Some(99), 100), 100);
    assert_eq!(later_than(Some(100), 100), 101);
    assert_eq!(later_than(Some(5_000), 100), 5_001, "the clock was set back");
}

#[test]
fn a_peer_that_always_says_something_new_is_written_down_only_so_often() {
    let signer = Signer::new(SecretKey::from_slice(&[1; 32]).unwrap(), ChainHash::REGTEST);
    let said = Said {
        scid: ShortChannelId(1),
        is_public: false,
        is_disabled: false,
        cltv_expiry_delta: 40,
        htlc_minimum: Msat(1),
        htlc_maximum: Msat(2),
        fee_base_msat: 3,
        fee_ppm: 4,
    };
    let mut theirs = Theirs::new();
    let (mut written, mut last) = (0, 0);
    // One a second, for an hour.
    for second in 1..=3_600 {
        theirs.waiting = Some(Box::new(said.signed(&signer, &signer.node_id, second)));
        if let Some(update) = theirs.take(Millis(u64::from(second) * 1_000)) {
            (written, last) = (written + 1, update.parsed().contents.timestamp);
        }
    }
    let refills = 3_600_000 / THEIRS_ONE_MORE_MS;
    assert!(u64::from(written) <= u64::from(THEIRS_MAX) + refills, "{written}");
    assert!(written > THEIRS_MAX && last > 3_000, "{written}, the last at {last}");
    // Its last word counts in the end.
    let update = theirs.take(Millis(3_600_000 + THEIRS_ONE_MORE_MS)).unwrap();
    assert_eq!(update.parsed().contents.timestamp, 3_600);
    assert!(theirs.take(Millis(u64::MAX)).is_none());
}

#[test]
fn what_is_said_is_repeated_before_it_is_forgotten() {
    let day = 24 * 3600;
    assert!(!is_old(0, 6 * day) && is_old(0, 7 * day));
    const { assert!(REPEAT_AFTER_S < millrace_routing::graph::STALE_AFTER_SECONDS) }
}
