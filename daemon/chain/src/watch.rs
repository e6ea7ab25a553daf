//! The chain as a stream of events, in order, whatever happens to the chain or to bitcoind.
//!
//! [`Watcher::run`] starts from the last block that the caller has recorded, catches up, follows the
//! tip, walks back on a reorg, and outlasts bitcoind's restarts. Every block that it delivers follows
//! on the one before by its own header; a block is fetched only when the consumer has room for it.
//!
//! It polls (`waitforblockheight`); it keeps nothing on disk: the cursor is the caller's.

mod follow;
mod matching;
mod sync;
mod trail;

use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Block, BlockHash};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::warn;

pub use matching::{Match, Watched, find_matches};
pub use sync::{SyncState, TIP_AGE_MAX};
pub use trail::{Cursor, TRAIL_MAX, Trail};

use crate::{Bitcoind, ChainError, Result};
use follow::{Follower, Step};

/// The room that a consumer's queue should have: a block is up to 4 MB, and a few of them keep
/// fetching and consuming going at the same time.
pub const EVENTS_MAX: usize = 8;

/// The first pause after bitcoind was found away; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What happens to the chain, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainEvent {
    /// A block on top of the last one.
    Connected {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: BlockHash,
        /// The block.
        block: Arc<Block>,
    },
    /// The last block is no longer in the chain; the one below is now the last.
    Disconnected {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: BlockHash,
    },
    /// The consumer now has every block that a synced bitcoind has.
    Tip {
        /// The height of the last block.
        height: u32,
        /// Its hash.
        hash: BlockHash,
        /// Its time, in seconds of the Unix epoch.
        time: u32,
    },
    /// bitcoind does not answer, or not sensibly. Nothing is known about the chain meanwhile.
    Away {
        /// What was seen.
        reason: String,
    },
    /// bitcoind answers again. What was missed follows.
    Back,
}

/// Follows one bitcoind's chain.
#[derive(Debug)]
pub struct Watcher {
    bitcoind: Bitcoind,
    state: watch::Sender<SyncState>,
    from: Option<u32>,
}

impl Watcher {
    /// A watcher, and the state of its sync for whoever wants to know.
    #[must_use]
    pub fn new(bitcoind: Bitcoind) -> (Self, watch::Receiver<SyncState>) {
        let (state, receiver) = watch::channel(SyncState::Away { reason: "not asked yet".to_owned() });
        (Self { bitcoind, state, from: None }, receiver)
    }

    /// Lets a node that has seen nothing begin at this height instead of the tip, unless it is above the tip.
    #[must_use]
    pub fn beginning_at(self, height: Option<u32>) -> Self {
        Self { from: height, ..self }
    }

    /// Delivers all that happens after the trail's newest block, until the consumer hangs up.
    ///
    /// With an empty trail it waits until bitcoind is synced and starts at the tip, whose block is
    /// then the first one [`ChainEvent::Connected`]; see [`Watcher::beginning_at`].
    ///
    /// # Errors
    /// Only what waiting cannot mend: [`ChainError::UnknownCursor`], [`ChainError::WrongNetwork`],
    /// [`ChainError::TooOld`], [`ChainError::Pruned`]. The rest becomes [`ChainEvent::Away`].
    pub async fn run(self, trail: Trail, consumer: mpsc::Sender<ChainEvent>) -> Result<()> {
        let mut follower = Follower::new(&self.bitcoind, &self.state, trail, self.from, &consumer);
        let mut pause = PAUSE_MIN;
        loop {
            let error = match follower.step().await {
                Ok(Step::Done) => {
                    pause = PAUSE_MIN;
                    continue;
                }
                Ok(Step::ConsumerGone) => return Ok(()),
                Err(error) => error,
            };
            if error.is_fatal() {
                return Err(self.give_up(error));
            }
            if follower.go_away(&error).await == Step::ConsumerGone {
                return Ok(());
            }
            // Whoever answers after the pause may be another bitcoind than before.
            loop {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = consumer.closed() => return Ok(()),
                }
                pause = (pause * 2).min(PAUSE_MAX);
                match self.bitcoind.check().await {
                    Ok(_) => break,
                    Err(error) if error.is_fatal() => return Err(self.give_up(error)),
                    Err(error) => follower.still_away(&error),
                }
            }
        }
    }

    fn give_up(&self, error: ChainError) -> ChainError {
        warn!(%error, "the chain cannot be followed");
        self.state.send_replace(SyncState::Away { reason: error.to_string() });
        error
    }
}
