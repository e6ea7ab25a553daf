//! The handle of the channels, for the rest of the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_chain::SyncState;
use millrace_channel::input::CloseOrder;
use millrace_channel::ledger::past::PastHtlc;
use millrace_channel::phase::on_chain::complete::CompleteCommitment;
use millrace_channel::{Command, Offer};
use millrace_journal::QUEUED_BYTES_BUSY;
use millrace_wire::{AttributionData, ChannelId, FeeratePerKw, HtlcId, Preimage, PublicKey, ShortChannelId};
use tokio::sync::{mpsc, oneshot, watch};

use super::directory::{Directory, NoOpening};
use super::input::{AllDone, Done, Input, Waiting};
use super::mailbox::Mailbox;
use super::order::{CommandError, CommandResult, NoNewWork, OpenFailure, OpenOrder, OpenProgress};
use super::snapshot::ChannelSnapshot;
use crate::entry::Entry;
use crate::steps::{JournalHandle, StepLog};

/// Orders that may wait for one channel: twice its HTLCs in both directions, so that fulfilling everything that was
/// received fits beside a full load of offers.
pub const ORDERS_MAX: usize = 2 * 2 * 483;

/// The handle of the channels. Clones are the same.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    directory: Arc<Directory>,
    shards: Vec<Mailbox<Input>>,
    log: Arc<dyn StepLog>,
    chain: watch::Receiver<SyncState>,
    is_stopping: AtomicBool,
}

impl Registry {
    pub(crate) fn new(
        directory: Arc<Directory>,
        shards: Vec<Mailbox<Input>>,
        log: Arc<dyn StepLog>,
        chain: watch::Receiver<SyncState>,
    ) -> Self {
        let inner = Inner { directory, shards, log, chain, is_stopping: AtomicBool::new(false) };
        Self { inner: Arc::new(inner) }
    }

    // --- orders ---

    /// Opens a channel with a connected peer. The progress ends with `Opened` or `Failed`; whoever stops listening does
    /// not stop the opening.
    ///
    /// # Errors
    /// [`OpenFailure`] if it is not even begun.
    pub fn open_channel(&self, order: OpenOrder) -> Result<mpsc::UnboundedReceiver<OpenProgress>, OpenFailure> {
        self.check_new_work()?;
        let temporary_channel_id = ChannelId(random());
        let shard = self.shard_of(temporary_channel_id);
        let begun = self.inner.directory.begin_opening(order.peer, temporary_channel_id, shard);
        begun.map_err(|why| match why {
            NoOpening::TooMany { under_way, max } | NoOpening::TooManyOfPeer { under_way, max } => {
                OpenFailure::TooMany { under_way, max }
            }
            NoOpening::IdTaken(id) => unreachable!("{id} was drawn from 256 random bits"),
        })?;
        let (progress, receiver) = mpsc::unbounded_channel();
        self.put(shard, Input::Open { order, temporary_channel_id, progress });
        Ok(receiver)
    }

    /// Closes a channel together with the peer. Answered once our `shutdown` is durable; snapshots and facts tell how it
    /// goes on.
    ///
    /// # Errors
    /// [`CommandError`]; nothing has changed.
    pub async fn close(&self, channel_id: ChannelId, order: CloseOrder) -> CommandResult {
        self.command(channel_id, Command::Close(order), Vec::new()).await
    }

    /// Closes a channel alone, now. Answered once it is durable.
    ///
    /// # Errors
    /// [`CommandError`]; nothing has changed.
    pub async fn force_close(&self, channel_id: ChannelId, reason: String) -> CommandResult {
        self.command(channel_id, Command::ForceClose { reason }, Vec::new()).await
    }

    /// Offers an HTLC. `entries` are written in the same journal step, before anything of the offer leaves (D6, D14); a
    /// refused offer writes none. Never waits: the answer comes by itself.
    pub fn offer(&self, channel_id: ChannelId, offer: Offer, entries: Vec<Entry>) -> oneshot::Receiver<CommandResult> {
        let (reply, answer) = oneshot::channel();
        let result = self.check_new_work().map_err(CommandError::from);
        match result {
            Ok(()) => self.order(channel_id, Command::Offer(offer), entries, Some(reply)),
            Err(error) => answer_now(Some(reply), error),
        }
        answer
    }

    /// Fulfils a received HTLC that was for this node. Answered once it is durable.
    pub fn fulfill(
        &self,
        channel_id: ChannelId,
        id: HtlcId,
        preimage: Preimage,
        attribution: Option<Box<AttributionData>>,
        entries: Vec<Entry>,
    ) -> oneshot::Receiver<CommandResult> {
        let command = Command::Fulfill { id, preimage, attribution, is_durable: false };
        self.ask(channel_id, command, entries)
    }

    /// Fulfils a received HTLC that has gone on, with the preimage that another channel has told of: so that channel's
    /// record is durable, and the message does not wait for the one of this channel. Answered once that is durable, too.
    pub fn fulfill_forward(
        &self,
        channel_id: ChannelId,
        id: HtlcId,
        preimage: Preimage,
        attribution: Option<Box<AttributionData>>,
    ) -> oneshot::Receiver<CommandResult> {
        let command = Command::Fulfill { id, preimage, attribution, is_durable: true };
        self.ask(channel_id, command, Vec::new())
    }

    /// Fails a received HTLC. Answered once it is durable.
    pub fn fail(
        &self,
        channel_id: ChannelId,
        id: HtlcId,
        reason: Vec<u8>,
        attribution: Option<Box<AttributionData>>,
        entries: Vec<Entry>,
    ) -> oneshot::Receiver<CommandResult> {
        self.ask(channel_id, Command::Fail { id, reason, attribution }, entries)
    }

    /// Fails a received HTLC whose onion cannot be read. Answered once it is durable.
    pub fn fail_malformed(
        &self,
        channel_id: ChannelId,
        id: HtlcId,
        sha256_of_onion: [u8; 32],
        failure_code: u16,
    ) -> oneshot::Receiver<CommandResult> {
        self.ask(channel_id, Command::FailMalformed { id, sha256_of_onion, failure_code }, Vec::new())
    }

    /// The outcome of an offered HTLC was taken over: the channel may forget it (D13). Not answered.
    pub fn release_outcome(&self, channel_id: ChannelId, id: HtlcId) {
        self.order(channel_id, Command::ReleaseOutcome(id), Vec::new(), None);
    }

    /// Tells a channel what is kept of the HTLCs in its peer's revoked commitment. Answered once it is durable.
    ///
    /// # Errors
    /// [`CommandError`]; nothing has changed.
    pub(crate) async fn breach_htlcs(&self, channel_id: ChannelId, htlcs: Vec<PastHtlc>) -> CommandResult {
        self.command(channel_id, Command::BreachHtlcs(htlcs), Vec::new()).await
    }

    /// Tells a channel preimages that somebody else has seen on chain: HTLCs of ours with their hashes are fulfilled.
    /// Answered once it is durable.
    ///
    /// # Errors
    /// [`CommandError`]; nothing has changed.
    pub(crate) async fn preimages(&self, channel_id: ChannelId, preimages: Vec<Preimage>) -> CommandResult {
        self.command(channel_id, Command::Preimages(preimages), Vec::new()).await
    }

    /// Every channel hands what its peer has revoked to those who keep watch: somebody new does.
    pub(crate) fn tell_guards(&self) {
        self.put_all(|| Input::Guard);
    }

    /// Changes the feerate of a channel that this node funds. Not answered: a channel that cannot is asked again.
    pub(crate) fn update_fee(&self, channel_id: ChannelId, feerate: FeeratePerKw) {
        self.order(channel_id, Command::UpdateFee(feerate), Vec::new(), None);
    }

    // --- what is shown ---

    /// A channel as it was last published: a cheap read, some milliseconds old while payments flow. Closed ones are there until the next
    /// start.
    #[must_use]
    pub fn snapshot(&self, channel_id: ChannelId) -> Option<Arc<ChannelSnapshot>> {
        self.inner.directory.snapshot(channel_id)
    }

    /// A channel as it is now, once that is durable: it shows whatever happened before the call.
    pub async fn fresh_snapshot(&self, channel_id: ChannelId) -> Option<Arc<ChannelSnapshot>> {
        let place = self.inner.directory.place(channel_id)?;
        let (reply, answer) = oneshot::channel();
        self.put(place.shard, Input::Snapshot { channel_id, reply });
        match answer.await {
            Ok(snapshot) => Some(snapshot),
            // Closed: what was published last is what there is.
            Err(_) => self.snapshot(channel_id),
        }
    }

    /// Our newest commitment in a channel, complete, once it is durable. Whoever publishes it after the next
    /// update loses the channel: only for networks on which nothing is at stake.
    pub(crate) async fn complete_commitment(&self, channel_id: ChannelId) -> Option<Box<CompleteCommitment>> {
        let place = self.inner.directory.place(channel_id)?;
        let (reply, answer) = oneshot::channel();
        self.put(place.shard, Input::Commitment { channel_id, reply });
        answer.await.ok().flatten()
    }

    /// The news of a channel.
    #[must_use]
    pub fn watch(&self, channel_id: ChannelId) -> Option<watch::Receiver<Arc<ChannelSnapshot>>> {
        self.inner.directory.watch(channel_id)
    }

    /// All channels, by id.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Arc<ChannelSnapshot>> {
        self.inner.directory.snapshots()
    }

    /// The channels with a peer, by id.
    #[must_use]
    pub fn snapshots_with(&self, peer: &PublicKey) -> Vec<Arc<ChannelSnapshot>> {
        self.inner.directory.snapshots_with(peer)
    }

    /// The channel with this short channel id: the real one, or an alias that we gave.
    #[must_use]
    pub fn channel_by_scid(&self, scid: ShortChannelId) -> Option<ChannelId> {
        self.inner.directory.by_scid(scid)
    }

    /// The journal, for owners of entries.
    #[must_use]
    pub fn journal(&self) -> JournalHandle {
        JournalHandle::new(self.inner.shards[0].clone(), Arc::clone(&self.inner.log))
    }

    /// Ends once the folds were told of everything that was durable at the time of the call, in every source.
    pub fn all_told(&self) -> AllDone {
        let (done, all_done) = Done::new();
        self.put_all(|| Input::Settle { done: done.clone() });
        all_done
    }

    /// Whether new obligations may be taken on: opens, offers, payments, forwards.
    ///
    /// # Errors
    /// [`NoNewWork`] says why not.
    pub fn check_new_work(&self) -> Result<(), NoNewWork> {
        if self.inner.is_stopping.load(Ordering::Relaxed) {
            return Err(NoNewWork::Stopping);
        }
        if let Some(reason) = self.inner.log.space().shortage() {
            return Err(NoNewWork::DiskLow(reason));
        }
        let queued = self.inner.log.queued_bytes();
        if queued > QUEUED_BYTES_BUSY {
            return Err(NoNewWork::DiskBehind(queued));
        }
        let chain = self.inner.chain.borrow();
        if chain.is_synced() { Ok(()) } else { Err(not_synced(&chain)) }
    }

    // --- for the daemon's own parts ---

    /// Takes no new work from here on.
    pub(crate) fn stop_new_work(&self) {
        self.inner.is_stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn directory(&self) -> &Arc<Directory> {
        &self.inner.directory
    }

    pub(crate) fn log(&self) -> &Arc<dyn StepLog> {
        &self.inner.log
    }

    pub(crate) fn shard_of(&self, id: ChannelId) -> usize {
        shard_of(id, self.inner.shards.len())
    }

    pub(crate) fn shards(&self) -> usize {
        self.inner.shards.len()
    }

    pub(crate) fn put(&self, shard: usize, input: Input) {
        self.inner.shards[shard].put(input);
    }

    pub(crate) fn put_all(&self, mut input: impl FnMut() -> Input) {
        for shard in &self.inner.shards {
            shard.put(input());
        }
    }

    async fn command(&self, channel_id: ChannelId, command: Command, entries: Vec<Entry>) -> CommandResult {
        let answer = self.ask(channel_id, command, entries).await;
        answer.unwrap_or(Err(CommandError::NoNewWork(NoNewWork::Stopping)))
    }

    fn ask(&self, channel_id: ChannelId, command: Command, entries: Vec<Entry>) -> oneshot::Receiver<CommandResult> {
        let (reply, answer) = oneshot::channel();
        self.order(channel_id, command, entries, Some(reply));
        answer
    }

    fn order(
        &self,
        channel_id: ChannelId,
        command: Command,
        entries: Vec<Entry>,
        reply: Option<oneshot::Sender<CommandResult>>,
    ) {
        let Some(place) = self.inner.directory.place(channel_id) else {
            return answer_now(reply, CommandError::UnknownChannel(channel_id));
        };
        match Waiting::enter(&place.waiting, ORDERS_MAX) {
            Ok(waiting) => self.put(place.shard, Input::Command { channel_id, command, entries, reply, waiting }),
            Err(waiting) => answer_now(reply, CommandError::Busy { waiting }),
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("shards", &self.inner.shards.len()).finish_non_exhaustive()
    }
}

/// The shard of an id: ids are hashes, so any of their bits will do.
pub(crate) fn shard_of(id: ChannelId, shards: usize) -> usize {
    let [.., a, b, c, d] = id.0;
    u32::from_be_bytes([a, b, c, d]) as usize % shards
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[cfg(test)]
    if crate::sim::draw(&mut bytes) {
        return bytes;
    }
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}

fn answer_now(reply: Option<oneshot::Sender<CommandResult>>, error: CommandError) {
    if let Some(reply) = reply {
        // Whoever does not listen does not need it.
        let _gone = reply.send(Err(error));
    }
}

fn not_synced(chain: &SyncState) -> NoNewWork {
    let heights = match chain {
        SyncState::Syncing { blocks, headers, .. } => Some((*blocks, *headers)),
        SyncState::Stalled { height, .. } => Some((*height, *height)),
        SyncState::Away { .. } | SyncState::Synced { .. } => None,
    };
    NoNewWork::Chain { reason: describe(chain), is_away: matches!(chain, SyncState::Away { .. }), heights }
}

fn describe(chain: &SyncState) -> String {
    match chain {
        SyncState::Away { reason } => format!("bitcoind is away: {reason}"),
        SyncState::Syncing { blocks, headers, .. } => format!("{blocks} of {headers} blocks are there"),
        SyncState::Synced { height } => format!("at height {height}"),
        SyncState::Stalled { height, tip_time } => {
            format!("the last block, {height}, is old: its time is {tip_time}")
        }
    }
}
