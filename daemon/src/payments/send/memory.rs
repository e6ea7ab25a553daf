//! What payments have taught about the channels of others, and what parts under way hold of them.
//!
//! The first is kept over restarts, in a file of its own. It is no money: a file that cannot be read is begun anew.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_routing::graph::{Direction, NodeId};
use millrace_routing::liquidity::{Liquidity, Row, Way};
use millrace_routing::map::Map;
use millrace_routing::path::InFlight;
use millrace_wire::{Msat, ShortChannelId};

use crate::data_dir::replace_public;
use crate::route::Route;

/// The version that this build writes.
const VERSION: u8 = 1;

/// What is known. Searches hold what it was when they began.
#[derive(Default)]
pub(crate) struct Memory {
    liquidity: Arc<Liquidity>,
    in_flight: Arc<InFlight>,
    file: Option<PathBuf>,
    is_changed: bool,
}

/// To be written, away from the task that decides.
pub(crate) struct Saved {
    file: PathBuf,
    rows: Vec<Row>,
}

impl Memory {
    /// What was kept in a file, if it is there and can be read.
    pub(crate) fn load(file: PathBuf) -> Self {
        let liquidity = match read(&file) {
            Ok(rows) => Liquidity::from_rows(rows),
            Err(reason) => {
                tracing::warn!(file = %file.display(), reason, "what payments have taught is begun anew");
                Liquidity::default()
            }
        };
        Self { liquidity: Arc::new(liquidity), file: Some(file), ..Self::default() }
    }

    /// For a search.
    pub(crate) fn liquidity(&self) -> Arc<Liquidity> {
        Arc::clone(&self.liquidity)
    }

    /// For a search.
    pub(crate) fn in_flight(&self) -> Arc<InFlight> {
        Arc::clone(&self.in_flight)
    }

    // --- what an HTLC teaches ---

    /// It came to a hop's end, beside what other parts hold there.
    pub(crate) fn passed(&mut self, route: &Route, hop: usize, map: &Map, now_s: u32) {
        if let Some((way, amount, capacity)) = known(route, hop, map) {
            let amount = self.beside_others(way, amount);
            self.change().passed(way, amount, capacity, now_s);
        }
    }

    /// It did not, for want of liquidity: what other parts hold there is not wanting.
    pub(crate) fn refused(&mut self, route: &Route, hop: usize, map: &Map, now_s: u32) {
        if let Some((way, amount, capacity)) = known(route, hop, map) {
            let amount = self.beside_others(way, amount);
            self.change().refused(way, amount, capacity, now_s);
        }
    }

    /// An amount together with what is under way there: bounds are of both, as searches hold both against them.
    fn beside_others(&self, way: Way, amount: Msat) -> Msat {
        let held = self.in_flight.get(&way).map_or(0, |held| held.0);
        Msat(amount.0.saturating_add(held))
    }

    /// It was paid.
    pub(crate) fn moved(&mut self, route: &Route, map: &Map, now_s: u32) {
        for hop in 1..route.hops.len() {
            if let Some((way, amount, capacity)) = known(route, hop, map) {
                self.change().moved(way, amount, capacity, now_s);
            }
        }
    }

    fn change(&mut self) -> &mut Liquidity {
        self.is_changed = true;
        Arc::make_mut(&mut self.liquidity)
    }

    // --- what is under way ---

    /// An HTLC holds a part of each channel on its way. Ours are not counted: their own balances are known.
    pub(crate) fn hold(&mut self, route: &Route) {
        for hop in 1..route.hops.len() {
            let held = Arc::make_mut(&mut self.in_flight).entry(way_of(route, hop)).or_insert(Msat::ZERO);
            held.0 = held.0.saturating_add(route.hops[hop].amount.0);
        }
    }

    /// It holds nothing any more.
    pub(crate) fn free(&mut self, route: &Route) {
        for hop in 1..route.hops.len() {
            let in_flight = Arc::make_mut(&mut self.in_flight);
            let way = way_of(route, hop);
            let left = in_flight.get(&way).map_or(0, |held| held.0.saturating_sub(route.hops[hop].amount.0));
            if left == 0 {
                in_flight.remove(&way);
            } else {
                in_flight.insert(way, Msat(left));
            }
        }
    }

    // --- the file ---

    /// What is to be written, if anything has changed since the last time.
    pub(crate) fn unsaved(&mut self, now_s: u32) -> Option<Saved> {
        let file = self.file.clone().filter(|_| self.is_changed)?;
        self.change().prune(now_s);
        self.is_changed = false;
        Some(Saved { file, rows: self.liquidity.rows() })
    }
}

impl Saved {
    /// Puts it in its place at once. What fails is logged: nothing is lost but what was learned.
    pub(crate) fn write(&self) {
        let bytes = postcard::to_extend(&self.rows, vec![VERSION]).expect("plain data into memory: nothing can fail");
        if let Err(error) = replace_public(&self.file, &bytes) {
            tracing::warn!(file = %self.file.display(), %error, "what payments have taught was not written");
        }
    }
}

fn read(file: &Path) -> Result<Vec<Row>, String> {
    let bytes = match std::fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| error.to_string())?,
    };
    match bytes.split_first() {
        Some((&VERSION, rows)) => postcard::from_bytes(rows).map_err(|error| error.to_string()),
        Some((version, _)) => Err(format!("version {version}: this build knows version {VERSION}")),
        None => Err("it is empty".to_owned()),
    }
}

/// A channel's direction, by its ends: whoever has the lesser id sends from it.
pub(super) fn way(short_channel_id: ShortChannelId, from: NodeId, to: NodeId) -> Way {
    (short_channel_id, if from < to { Direction::FromLesser } else { Direction::FromGreater })
}

/// The channel of a hop behind the first.
pub(super) fn way_of(route: &Route, hop: usize) -> Way {
    let [from, to] = [hop - 1, hop].map(|index| NodeId::from(route.hops[index].node));
    way(route.hops[hop].scid, from, to)
}

/// None for channels that the map does not hold.
fn known(route: &Route, hop: usize, map: &Map) -> Option<(Way, Msat, Msat)> {
    let to = route.hops.get(hop).filter(|_| hop > 0)?;
    let edges = map.edges_to(map.index(&to.node.into())?);
    let edge = edges.iter().find(|edge| edge.short_channel_id == to.scid)?;
    Some((way_of(route, hop), to.amount, edge.capacity))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::network::{map, over};
    use super::*;

    const NOW: u32 = 1_700_000_000;

    fn taught(file: PathBuf) -> Memory {
        let mut memory = Memory::load(file);
        memory.refused(&over(&[3, 4], 500_000), 1, &map(), NOW);
        memory
    }

    #[test]
    fn what_was_learned_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("liquidity");
        let mut memory = taught(file.clone());
        memory.unsaved(NOW).unwrap().write();
        assert!(memory.unsaved(NOW).is_none(), "nothing new");
        assert_eq!(Memory::load(file.clone()).liquidity, memory.liquidity);
        assert_eq!(memory.liquidity.len(), 1);
        for damaged in [&b""[..], b"\x02", b"\x01\xff\xff\xff", b"noise"] {
            std::fs::write(&file, damaged).unwrap();
            assert!(Memory::load(file.clone()).liquidity.is_empty(), "{damaged:?}");
        }
    }

    #[test]
    fn what_is_held_is_freed_to_the_last_millisatoshi_and_channels_of_ours_are_not_counted() {
        let mut memory = Memory::default();
        let (one, two) = (over(&[3, 4], 500_000), over(&[3, 4], 300_000));
        memory.hold(&one);
        memory.hold(&two);
        assert_eq!(memory.in_flight.len(), 1);
        assert_eq!(memory.in_flight[&way_of(&one, 1)], Msat(800_000));
        memory.free(&one);
        assert_eq!(memory.in_flight[&way_of(&one, 1)], Msat(300_000));
        memory.free(&two);
        memory.free(&two);
        assert!(memory.in_flight.is_empty());
    }

    #[test]
    fn what_other_parts_hold_is_no_want_of_liquidity() {
        let mut memory = Memory::default();
        let (held, one) = (over(&[3, 4], 500_000), over(&[3, 4], 300_000));
        memory.hold(&held);
        memory.refused(&one, 1, &map(), NOW);
        let (way, _, capacity) = known(&one, 1, &map()).unwrap();
        assert_eq!(memory.liquidity.bounds(way, capacity, NOW).most, Msat(799_999));
        memory.passed(&over(&[3, 4], 100_000), 1, &map(), NOW);
        assert_eq!(memory.liquidity.bounds(way, capacity, NOW).least, Msat(600_000));
    }

    #[test]
    fn channels_that_the_map_does_not_hold_teach_nothing() {
        let mut memory = Memory::default();
        memory.passed(&over(&[3, 9], 500_000), 1, &map(), NOW);
        memory.moved(&over(&[3, 9], 500_000), &map(), NOW);
        assert!(memory.liquidity.is_empty());
    }
}
