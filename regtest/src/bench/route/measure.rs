//! What is measured, in a process that does nothing else: the graph is loaded, searches are made, and gossip goes on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use millrace_routing::graph::{Graph, NodeId, VerifiedUpdate};
use millrace_routing::map::{Edge, Map};
use millrace_routing::path::{Caps, DELTA_MAX, FirstHop, HOPS_MAX, InFlight, Request, Search, Weights};
use millrace_wire::{ChainHash, Message, Msat};

use super::payer::Payer;
use super::signed::{TIMESTAMP, read_updates};
use super::{Arguments, Measured};
use crate::bench::payments::Latency;
use crate::bench::process::rss_mib_peak;

/// Updates that are taken at a time...
const BATCH: usize = 50;
/// ...so often: 500 a second, some times what the whole network says.
const BATCH_EVERY: Duration = Duration::from_millis(100);
/// A new map is made so often, as the daemon does.
const MAP_EVERY: Duration = Duration::from_secs(1);
/// What the last hop is given, as most invoices ask.
const FINAL_DELTA: u32 = 42;
/// The default fee limit: the larger of this and 1 %.
const FEE_LIMIT_MIN: Msat = Msat(5_000);
/// As long as gossip has not made a map that could be searched on, searches go on for so long, also beyond those that were
/// asked for. These count for nothing else: how many they are depends on the machine.
const GOSSIP_WAIT_MAX: Duration = Duration::from_secs(30);

/// Numbers from a seed (SplitMix64).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end as u64)).unwrap_or(0)
    }
}

/// The graph and its newest map.
struct Held {
    graph: RwLock<Graph>,
    map: RwLock<Arc<Map>>,
}

const LOCK: &str = "nothing panics while it is locked";

/// Measures what was prepared in a folder.
///
/// # Errors
/// If it cannot be read.
pub(super) fn measure(arguments: &Arguments, folder: &Path) -> std::io::Result<Measured> {
    let begun = Instant::now();
    let bytes = std::fs::read(folder.join("graph"))?;
    let graph = Graph::load(&bytes, ChainHash::BITCOIN, TIMESTAMP).map_err(std::io::Error::other)?;
    let file_mib = bytes.len() >> 20;
    drop(bytes);
    let map = Arc::new(Map::new(&graph));
    let load_s = begun.elapsed().as_secs_f64();
    let (channels, nodes) = (graph.channels().len(), graph.nodes().len());
    let messages = read_updates(&std::fs::read(folder.join("updates"))?);
    let updates = messages.len();
    let held = Held { graph: RwLock::new(graph), map: RwLock::new(map) };
    let (is_over, taken, maps) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut searched = std::thread::scope(|scope| {
        scope.spawn(|| gossip(&held, messages, &is_over, &taken, &maps));
        let searched = search(arguments, &held);
        is_over.store(true, Ordering::Relaxed);
        searched
    });
    let times_ms = &mut searched.times_ms;
    times_ms.sort_by(f64::total_cmp);
    let at = |share: f64| times_ms.get((times_ms.len() as f64 * share) as usize).copied().unwrap_or_default();
    let latency_ms = Latency { p50: at(0.50), p95: at(0.95), p99: at(0.99) };
    Ok(Measured {
        channels,
        nodes,
        searches: searched.searches,
        seconds: searched.seconds,
        latency_ms,
        success_share: searched.found as f64 / searched.times_ms.len().max(1) as f64,
        arrived_share: searched.arrived as f64 / searched.found.max(1) as f64,
        ways_learned: searched.ways_learned,
        rss_mib: rss_mib_peak(std::process::id()),
        load_s,
        file_mib,
        updates,
        updates_taken: taken.into_inner(),
        maps_made: maps.into_inner(),
        searches_on_new_maps: searched.on_new_maps,
    })
}

/// Updates come in, are verified and taken, and maps are made, until the searches are over.
fn gossip(held: &Held, updates: Vec<Message>, is_over: &AtomicBool, taken: &AtomicUsize, maps: &AtomicUsize) {
    let mut mapped = Instant::now();
    let mut left = updates.into_iter().peekable();
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        for message in left.by_ref().take(BATCH) {
            let Message::ChannelUpdate(update) = message else { continue };
            let now = TIMESTAMP + 60;
            let Ok(by) = held.graph.read().expect(LOCK).sender_of(&update, now) else { continue };
            let Ok(verified) = VerifiedUpdate::verify(*update, by) else { continue };
            if held.graph.write().expect(LOCK).apply_update(&verified, now).is_ok() {
                taken.fetch_add(1, Ordering::Relaxed);
            }
        }
        if mapped.elapsed() >= MAP_EVERY {
            let map = Arc::new(Map::new(&held.graph.read().expect(LOCK)));
            *held.map.write().expect(LOCK) = map;
            maps.fetch_add(1, Ordering::Relaxed);
            mapped = Instant::now();
        }
        std::thread::sleep(BATCH_EVERY.saturating_sub(begun.elapsed()));
    }
}

/// What came of the searches.
#[derive(Default)]
struct Searched {
    /// Of those that were asked for.
    times_ms: Vec<f64>,
    /// How many of these found a way.
    found: usize,
    /// All that were made.
    searches: usize,
    /// How many of all were made on a map that gossip has made.
    on_new_maps: usize,
    /// Payments over these ways that arrived.
    arrived: usize,
    /// Directions of channels that the payments have taught something of.
    ways_learned: usize,
    seconds: f64,
}

/// Searches between nodes that are drawn from the seed: from one that could send the amount to one that could get it, since
/// everything else is known without a search. What is found is paid, which teaches the next ones; that is not in their time.
fn search(arguments: &Arguments, held: &Held) -> Searched {
    let mut dice = Dice(arguments.seed);
    let newest = || Arc::clone(&held.map.read().expect(LOCK));
    let first = newest();
    let own = own_channels(&first);
    let amount = Msat(arguments.amount * 1_000);
    let fee_limit = FEE_LIMIT_MIN.max(Msat(amount.0 / 100));
    let can_send = |hops: &[FirstHop]| hops.iter().any(|hop| hop.most.0 >= amount.0 + fee_limit.0);
    let sources: Vec<NodeId> = own.iter().filter(|(_, hops)| can_send(hops)).map(|(node, _)| *node).collect();
    let payees = who_could_get(&first, amount);
    let mut searched = Searched::default();
    if sources.is_empty() || payees.len() < 2 {
        return searched;
    }
    let (mut payer, mut search) = (Payer::default(), Search::default());
    let (in_flight, caps) = (InFlight::new(), Caps::new());
    let begun = Instant::now();
    let is_enough = |searched: &Searched| {
        let waits = searched.on_new_maps == 0 && begun.elapsed() < GOSSIP_WAIT_MAX;
        searched.times_ms.len() >= arguments.pairs && !waits
    };
    while !is_enough(&searched) {
        let (source, payee) = (sources[dice.below(sources.len())], payees[dice.below(payees.len())]);
        if source == payee {
            continue;
        }
        let request = Request {
            source,
            payee,
            amount,
            final_delta: FINAL_DELTA,
            fee_limit,
            delta_limit: DELTA_MAX,
            hops_limit: HOPS_MAX,
            first_hops: &own[&source],
            hints: &[],
        };
        let weights = Weights {
            liquidity: &payer.liquidity,
            in_flight: &in_flight,
            caps: &caps,
            now: TIMESTAMP,
            is_last_resort: false,
        };
        let begun = Instant::now();
        let map = newest();
        let way = search.find(&map, &request, &weights);
        let took = begun.elapsed();
        searched.searches += 1;
        searched.on_new_maps += usize::from(!Arc::ptr_eq(&map, &first));
        if searched.times_ms.len() >= arguments.pairs {
            continue;
        }
        searched.times_ms.push(took.as_secs_f64() * 1_000.0);
        if let Ok(path) = way {
            searched.found += 1;
            payer.pay(&map, &path, TIMESTAMP);
        }
    }
    searched.seconds = begun.elapsed().as_secs_f64();
    (searched.arrived, searched.ways_learned) = (payer.arrived, payer.liquidity.len());
    searched
}

/// The nodes that a channel leads to which forwards the amount.
fn who_could_get(map: &Map, amount: Msat) -> Vec<NodeId> {
    let forwards = |edge: &Edge| {
        let bounds = edge.policy.htlc_minimum..=edge.policy.htlc_maximum.min(edge.capacity);
        bounds.contains(&amount)
    };
    let could = |node: &&NodeId| map.index(node).is_some_and(|index| map.edges_to(index).iter().any(forwards));
    map.nodes().iter().filter(could).copied().collect()
}

/// What each node could send over first: half of each of its channels.
fn own_channels(map: &Map) -> BTreeMap<NodeId, Vec<FirstHop>> {
    let mut own: BTreeMap<NodeId, Vec<FirstHop>> = BTreeMap::new();
    for place in 0..map.node_count() {
        let peer = map.nodes()[place];
        let Some(index) = map.index(&peer) else { continue };
        for edge in map.edges_to(index) {
            let most = Msat(edge.capacity.0 / 2);
            let hop = FirstHop { peer, short_channel_id: edge.short_channel_id, least: Msat(1), most };
            own.entry(*map.node(edge.from)).or_default().push(hop);
        }
    }
    own
}
