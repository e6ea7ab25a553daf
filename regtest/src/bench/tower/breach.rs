//! The breach: every channel's revoked commitment in one block, then block by block what the cheaters and the tower can do,
//! until nothing is left to be taken. Blocks hold whatever the cheaters want, at once and without a fee.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bitcoin::{OutPoint, Transaction};

use super::cheat::Cheat;
use super::judge::{Judge, OfChannel, Sums};
use super::pair::DELAY;
use crate::bitcoind::Bitcoind;
use crate::matrix::chain::{Chain, Made};
use crate::matrix::claimant::Coin;
use crate::network::Error;
use crate::random::Random;
use crate::report::Report;
use crate::tower::Tower;

/// How long the tower may take to look through a block.
const SEEN_LIMIT: Duration = Duration::from_secs(120);
/// How long is waited for a penalty that is due, while others come.
const PENALTY_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// So often the tower is killed, at most: a run is to end.
const KILLS_MAX: u32 = 12;

/// What is to be played.
pub(super) struct Breach<'a> {
    pub(super) bitcoind: &'a Bitcoind,
    pub(super) tower: &'a mut Tower,
    pub(super) cheats: Vec<Cheat>,
    pub(super) coins: Vec<Coin>,
    pub(super) random: Random,
    /// Whether the tower is killed now and then.
    pub(super) is_killed: bool,
    /// So many blocks after the breach hold nothing of the tower's.
    pub(super) held_blocks: u32,
}

/// What came of it.
pub(super) struct Played {
    pub(super) sums: Sums,
    pub(super) kills: u32,
    /// Blocks after the breach, up to the last in which something was taken.
    pub(super) blocks_needed: u32,
    pub(super) seconds: f64,
    /// The longest that one block was waited for.
    pub(super) seconds_block_max: f64,
    /// Penalties that did not come in time for the next block.
    pub(super) late: usize,
}

/// When the tower is killed, seen from a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment {
    Never,
    /// It is away while the block is made.
    Before,
    /// As soon as the block is there.
    At,
    /// When the first penalties are there.
    Midway,
    /// When all are.
    After,
}

impl Moment {
    fn drawn(random: &mut Random) -> Self {
        match random.below(8) {
            0 => Self::Before,
            1 => Self::At,
            2 | 3 => Self::Midway,
            4 => Self::After,
            _ => Self::Never,
        }
    }
}

/// A play under way.
struct Play<'a> {
    bitcoind: &'a Bitcoind,
    /// Whether there is a tower at all.
    has_tower: bool,
    tower: &'a mut Tower,
    cheats: Vec<Cheat>,
    coins: Vec<Coin>,
    chain: Chain,
    judge: Judge,
    random: Random,
    kills_left: u32,
    kills: u32,
    held_until: u32,
    /// Penalties that were not there in time, once: they are not waited for again.
    late: HashSet<OutPoint>,
    seconds_block_max: f64,
}

impl Breach<'_> {
    /// Plays it.
    pub(super) async fn play(self, report: &Report) -> Result<Played, Error> {
        let begun = Instant::now();
        let Self { bitcoind, tower, cheats, coins, random, is_killed, held_blocks } = self;
        let chain = tokio::task::block_in_place(|| Chain::new(bitcoind))?;
        let judge = Judge::new(cheats.iter().map(|cheat| cheat.accused.clone()).collect());
        let breach = tokio::task::block_in_place(|| bitcoind.height())? + 1;
        let mut play = Play {
            bitcoind,
            has_tower: tower.is_running(),
            tower,
            cheats,
            coins,
            chain,
            judge,
            random,
            kills_left: if is_killed { KILLS_MAX } else { 0 },
            kills: 0,
            held_until: breach + held_blocks,
            late: HashSet::new(),
            seconds_block_max: 0.0,
        };
        let commitments: Vec<Transaction> = play.cheats.iter().map(|cheat| cheat.commitment.clone()).collect();
        play.block(&commitments, is_killed.then_some(Moment::Midway)).await?;
        let last_expiry = play.cheats.iter().map(|cheat| cheat.last_expiry).max().unwrap_or_default();
        // By then every HTLC was gone for, and whatever the tower has not taken is the cheater's.
        let quiet = last_expiry.max(breach) + 2;
        let end = quiet + u32::from(DELAY) + 1;
        let mut height = breach;
        while height < end && (height < quiet || play.judge.open().next().is_some()) {
            let wanted = play.wanted();
            play.block(&wanted, None).await?;
            height += 1;
            let open = play.judge.open().count();
            report.progress(&format!("{} blocks after the breach, {open} outputs to be taken", height - breach));
        }
        let sums = play.judge.sums();
        Ok(Played {
            sums,
            kills: play.kills,
            blocks_needed: sums.last_taken.map_or(0, |last| last - breach),
            seconds: begun.elapsed().as_secs_f64(),
            seconds_block_max: play.seconds_block_max,
            late: play.late.len(),
        })
    }
}

impl Play<'_> {
    /// What the cheaters want in the next block.
    fn wanted(&mut self) -> Vec<Transaction> {
        let (judge, coins) = (&self.judge, &mut self.coins);
        let each = self.cheats.iter_mut();
        each.flat_map(|cheat| cheat.transactions(|outpoint| judge.is_spent(outpoint), || coins.pop())).collect()
    }

    /// One block with all of this and what the mempool has, and what everybody does about it. The tower is killed at a moment
    /// that is given, or drawn.
    async fn block(&mut self, forced: &[Transaction], moment: Option<Moment>) -> Result<(), Error> {
        let moment = moment.unwrap_or_else(|| Moment::drawn(&mut self.random));
        let moment = if self.has_tower && self.kills_left > 0 { moment } else { Moment::Never };
        if moment == Moment::Before {
            self.kill()?;
        }
        let made = self.make(forced)?;
        let begun = Instant::now();
        let mut concerned: OfChannel = self.judge.on_block(&made);
        if self.has_tower {
            self.tower_acts(made.height, moment).await?;
        }
        self.seconds_block_max = self.seconds_block_max.max(begun.elapsed().as_secs_f64());
        for (channel, cheat) in self.cheats.iter_mut().enumerate() {
            cheat.on_block(made.height, &concerned.remove(&channel).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Gives the tower the time that it needs for a block, with a kill at a moment.
    async fn tower_acts(&mut self, height: u32, moment: Moment) -> Result<(), Error> {
        match moment {
            Moment::Never => {}
            Moment::Before => self.tower.start().await?,
            Moment::At => self.restart().await?,
            Moment::Midway => {
                self.until_acted(height, 1).await?;
                self.restart().await?;
            }
            Moment::After => {
                self.until_acted(height, usize::MAX).await?;
                self.restart().await?;
            }
        }
        self.until_acted(height, usize::MAX).await
    }

    fn make(&mut self, forced: &[Transaction]) -> Result<Made, Error> {
        let (chain, bitcoind, judge) = (&mut self.chain, self.bitcoind, &self.judge);
        let next = tokio::task::block_in_place(|| bitcoind.height())? + 1;
        let is_held = next <= self.held_until;
        tokio::task::block_in_place(|| chain.make(bitcoind, forced, |tx| is_held && judge.is_the_towers(tx)))
    }

    fn kill(&mut self) -> Result<(), Error> {
        self.kills += 1;
        self.kills_left -= 1;
        self.tower.kill()
    }

    async fn restart(&mut self) -> Result<(), Error> {
        self.kill()?;
        self.tower.start().await
    }

    /// Waits until the tower has looked through the block, and then until what is its to take is on its way into the next one:
    /// so many outputs more than at first, or all. What does not come is noted, and not waited for again.
    async fn until_acted(&mut self, height: u32, wanted: usize) -> Result<(), Error> {
        self.until_seen(height).await?;
        let first = self.missing()?.len();
        let (mut before, mut patience) = (first, Instant::now() + PENALTY_PATIENCE);
        loop {
            let missing = self.missing()?;
            if missing.is_empty() || first.saturating_sub(missing.len()) >= wanted {
                return Ok(());
            }
            if missing.len() < before {
                (before, patience) = (missing.len(), Instant::now() + PENALTY_PATIENCE);
            } else if Instant::now() > patience {
                self.late.extend(missing);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn until_seen(&mut self, height: u32) -> Result<(), Error> {
        let until = Instant::now() + SEEN_LIMIT;
        loop {
            let status = self.tower.status().await?;
            if status.height == height && status.is_synced {
                return Ok(());
            }
            if Instant::now() > until {
                let state = format!("; it is at block {}, {}", status.height, status.chain);
                let what = format!("the tower's look at block {height}");
                return Err(Error::Late { what, seconds: SEEN_LIMIT.as_secs(), state });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What is the tower's to take and nothing in the mempool spends.
    fn missing(&mut self) -> Result<Vec<OutPoint>, Error> {
        let (chain, bitcoind) = (&mut self.chain, self.bitcoind);
        let spends = tokio::task::block_in_place(|| chain.spends(bitcoind))?;
        let is_missing = |outpoint: &&OutPoint| !spends.contains_key(outpoint) && !self.late.contains(outpoint);
        Ok(self.judge.open().filter(is_missing).copied().collect())
    }
}
