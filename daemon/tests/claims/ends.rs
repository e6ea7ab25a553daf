//! Two ends of one channel whose funding output is in a real block: made without peers, each with a wallet and a
//! claiming task of its own.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::{Network, OutPoint, Transaction, Txid};
use millrace_chain::broadcast::{Broadcaster, Submission};
use millrace_channel::curve::Serial;
use millrace_channel::effect::Purpose;
use millrace_channel::keys::{ChannelKeys, CommitmentKeys};
use millrace_channel::ledger::htlc::Origin;
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::record::{Opened, Signature64};
use millrace_channel::tx::{Commitment, CommitmentSpec};
use millrace_channel::{
    Both, ChainEvent, Channel, ChannelType, Command, CommitmentFormat, Effect, Effects, LinkEvent, LinkFeatures,
    Millis, Offer, PartyTerms, Policy, Side, Terms,
};
use millrace_wire::{
    BlockHeight, ChannelId, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Message, Msat, OnionPacket, Preimage,
    Sat, ShortChannelId,
};
use millraced::claims::{ClaimParts, Claimer, ClaimsStatus, OutputState};
use millraced::keys::Keys;
use millraced::seed::Seed;
use millraced::wallet::{ReservePolicy, Wallet, WalletHandle};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::world::World;

/// Which of the node's channel keys the channel uses.
const KEYS_INDEX: u64 = 7;
/// What each side must wait for its own money.
const DELAY: u16 = 10;
/// Buried soon, so that the tests are short.
pub(crate) const POLICY: Policy = Policy {
    max_dust_exposure: Msat(50_000_000),
    offered_grace: 2,
    received_margin: 18,
    revoke_timeout_ms: 30_000,
    burial_depth: 6,
};
const FEATURES: LinkFeatures = LinkFeatures { simple_close: true, shutdown_anysegwit: true };
const NO_RESERVE: ReservePolicy = ReservePolicy { per_channel: Sat(0), max: Sat(0) };
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const CAPACITY: Sat = Sat(10_000_000);
/// What each side has at first.
pub(crate) const HALF: Sat = Sat(5_000_000);

/// Whoever owns one end: its keys and its wallet.
pub(crate) struct Owner {
    pub(crate) keys: Keys,
    pub(crate) wallet: WalletHandle,
    wallet_task: JoinHandle<Wallet>,
    records: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// One end, and all that claims for it.
pub(crate) struct End {
    pub(crate) owner: Owner,
    pub(crate) channel: Channel,
    pub(crate) claimer: Claimer,
    pub(crate) broadcaster: Broadcaster,
    pub(crate) claims: Option<Claims>,
    pub(crate) commitment: Option<Transaction>,
    fx: Effects,
    outbox: VecDeque<Message>,
}

impl Owner {
    pub(crate) fn new(seed: u8) -> Self {
        Self::with_reserve(seed, NO_RESERVE)
    }

    pub(crate) fn with_reserve(seed: u8, reserve: ReservePolicy) -> Self {
        let keys = Keys::derive(&Seed::from_entropy(&[seed; 32]), Network::Regtest);
        Self::with_records(keys, Arc::default(), reserve)
    }

    /// Another channel's owner, with the same wallet.
    pub(crate) fn share(&self) -> Self {
        let wallet_task = tokio::spawn(std::future::pending());
        Self { keys: self.keys.clone(), wallet: self.wallet.clone(), wallet_task, records: Arc::clone(&self.records) }
    }

    /// The wallet as its records tell it.
    fn with_records(keys: Keys, records: Arc<Mutex<Vec<Vec<u8>>>>, reserve: ReservePolicy) -> Self {
        let known = records.lock().unwrap().clone();
        let wallet = Wallet::load(known, keys.wallet().clone(), reserve).unwrap();
        let journal = Arc::clone(&records);
        let (wallet, wallet_task) = millraced::wallet::spawn(wallet, move |bytes| {
            journal.lock().unwrap().push(bytes);
            std::future::ready(())
        });
        Self { keys, wallet, wallet_task, records }
    }

    pub(crate) fn channel_keys(&self) -> ChannelKeys {
        self.keys.channel_keys(KEYS_INDEX)
    }
}

/// The terms as the first of the two sees them; the funding output is not known yet.
pub(crate) fn terms(alice: &Owner, bob: &Owner, format: CommitmentFormat) -> Terms {
    let party = |keys: &ChannelKeys| PartyTerms {
        dust_limit: Sat(546),
        max_htlc_value_in_flight: Msat(u64::MAX),
        channel_reserve: Sat(10_000),
        htlc_minimum: Msat(1),
        to_self_delay: DELAY,
        max_accepted_htlcs: 483,
        basepoints: keys.basepoints().clone(),
        upfront_shutdown_script: None,
    };
    Terms {
        channel_id: ChannelId([0xc1; 32]),
        remote_node: bob.keys.node_id(),
        funder: Side::Local,
        channel_type: ChannelType { format, scid_alias: false, zero_conf: false },
        funding_outpoint: OutPoint::null(),
        capacity: CAPACITY,
        push: HALF.to_msat(),
        minimum_depth: 0,
        announce: false,
        parties: Both { local: party(&alice.channel_keys()), remote: party(&bob.channel_keys()) },
    }
}

fn mirrored(terms: &Terms, alice: &Owner) -> Terms {
    let Both { local, remote } = terms.parties.clone();
    Terms {
        funder: terms.funder.other(),
        parties: Both { local: remote, remote: local },
        remote_node: alice.keys.node_id(),
        ..terms.clone()
    }
}

/// Both ends of a channel that is ready.
pub(crate) fn open(world: &World, alice: Owner, bob: Owner, terms: &Terms, feerate: FeeratePerKw) -> (End, End) {
    let theirs = mirrored(terms, &alice);
    let height = world.height();
    let (alice_opened, bob_opened) =
        (opened(terms, &theirs, &alice, &bob, feerate, height), opened(&theirs, terms, &bob, &alice, feerate, height));
    let mut alice = End::new(world, alice, alice_opened);
    let mut bob = End::new(world, bob, bob_opened);
    alice.channel.on_link(LinkEvent::Up { features: FEATURES }, &mut alice.fx);
    bob.channel.on_link(LinkEvent::Up { features: FEATURES }, &mut bob.fx);
    for end in [&mut alice, &mut bob] {
        let event = ChainEvent::Tip { height, block: bitcoin::hashes::Hash::all_zeros() };
        end.channel.on_chain(event, &mut end.fx);
    }
    exchange(&mut alice, &mut bob);
    (alice, bob)
}

/// Our commitment 0, signed by the peer.
fn opened(
    terms: &Terms,
    theirs: &Terms,
    owner: &Owner,
    peer: &Owner,
    feerate: FeeratePerKw,
    height: BlockHeight,
) -> Opened {
    let number = CommitmentNumber(0);
    let point = owner.channel_keys().commitment_point(number);
    let spec = CommitmentSpec { side: Side::Remote, number, feerate, balances: theirs.first_balances(), htlcs: &[] };
    let commitment = Commitment::build(theirs, &CommitmentKeys::of(theirs, Side::Remote, &point), &spec);
    Opened {
        terms: terms.clone(),
        keys_index: KEYS_INDEX,
        feerate,
        signature: Signature64(commitment.sign(theirs, &peer.channel_keys())),
        remote_first_point: peer.channel_keys().commitment_point(number),
        funding_tx: None,
        opened_at: height,
        local_alias: ShortChannelId(if terms.funder == Side::Local { 11 } else { 22 }),
    }
}

/// Lets both talk until they are silent.
pub(crate) fn exchange(alice: &mut End, bob: &mut End) {
    loop {
        for end in [&mut *alice, &mut *bob] {
            end.channel.commit(Millis(0), &Serial, &mut end.fx);
            end.drain();
        }
        if alice.outbox.is_empty() && bob.outbox.is_empty() {
            return;
        }
        while let Some(message) = alice.outbox.pop_front() {
            bob.channel.on_message(message, &Serial, &mut bob.fx).unwrap();
        }
        bob.drain();
        while let Some(message) = bob.outbox.pop_front() {
            alice.channel.on_message(message, &Serial, &mut alice.fx).unwrap();
        }
        alice.drain();
    }
}

pub(crate) fn disconnect(alice: &mut End, bob: &mut End) {
    for end in [alice, bob] {
        end.channel.on_link(LinkEvent::Down, &mut end.fx);
        end.drain();
        end.outbox.clear();
    }
}

fn claimer(world: &World, owner: &Owner, broadcaster: &Broadcaster) -> Claimer {
    let keys = owner.keys.clone();
    let (claimer, _task) = millraced::claims::start(ClaimParts {
        bitcoind: world.bitcoind.clone(),
        broadcaster: broadcaster.clone(),
        wallet: owner.wallet.clone(),
        keys_of: Arc::new(move |index| keys.channel_keys(index)),
        fees: world.fees.clone(),
        sync: world.sync.clone(),
    });
    claimer
}

impl End {
    fn new(world: &World, owner: Owner, opened: Opened) -> Self {
        let broadcaster = Broadcaster::start(world.bitcoind.clone(), world.sync.clone());
        let claimer = claimer(world, &owner, &broadcaster);
        let channel = Channel::from_opened(opened, owner.channel_keys(), POLICY).unwrap();
        Self {
            owner,
            channel,
            claimer,
            broadcaster,
            claims: None,
            commitment: None,
            fx: Effects::default(),
            outbox: VecDeque::new(),
        }
    }

    fn drain(&mut self) {
        for effect in std::mem::take(&mut self.fx).list {
            match effect {
                Effect::Send(message) => self.outbox.push_back(*message),
                Effect::Broadcast(broadcast) => {
                    if broadcast.purpose == Purpose::Commitment {
                        self.commitment = Some(broadcast.tx.clone());
                    }
                    let broadcaster = self.broadcaster.clone();
                    tokio::spawn(async move { broadcaster.submit(Submission::Single(broadcast.tx)).await });
                }
                Effect::Claim(claims) => {
                    self.claims = Some((*claims).clone());
                    self.claimer.claim(self.channel.id(), *claims);
                }
                Effect::Journal(_) | Effect::Watch(_) | Effect::Fact(_) | Effect::Disconnect(_) => {}
            }
        }
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.channel.on_command(command, &mut self.fx).unwrap();
        self.drain();
    }

    pub(crate) fn offer(&mut self, amount: Msat, seed: u8, cltv_expiry: u32) -> HtlcId {
        let offer = Offer {
            amount,
            payment_hash: Preimage::new([seed; 32]).hash(),
            cltv_expiry: CltvExpiry(cltv_expiry),
            onion: Box::new(OnionPacket([seed; 1366])),
            path_key: None,
            origin: Origin::Payment { id: [seed; 32], attempt: 0 },
        };
        let id = self.channel.offer(offer, &mut self.fx).unwrap();
        self.drain();
        id
    }

    pub(crate) fn fulfill(&mut self, id: HtlcId, seed: u8) {
        self.command(Command::Fulfill {
            id,
            preimage: Preimage::new([seed; 32]),
            attribution: None,
            is_durable: false,
        });
    }

    /// A block, as the chain feed tells it: the wallet first, then the channel.
    pub(crate) async fn on_block(&mut self, height: u32, block: &Arc<bitcoin::Block>) {
        self.owner.wallet.apply_block(height, Arc::clone(block)).await.unwrap().unwrap();
        let event = ChainEvent::Tip { height: BlockHeight(height), block: block.block_hash() };
        self.channel.on_chain(event, &mut self.fx);
        for (index, tx) in (0..).zip(&block.txdata) {
            self.channel.on_chain(ChainEvent::Confirmed { tx: Arc::new(tx.clone()), index }, &mut self.fx);
        }
        self.drain();
    }

    /// What the channel claims now, but for the anchor, which is in whichever commitment the mempool has.
    fn claimed(&self) -> BTreeSet<OutPoint> {
        let Some(claims) = &self.claims else { return BTreeSet::new() };
        let sweeps = claims.sweeps.iter().map(|sweep| sweep.claim.outpoint);
        let htlc_txs = claims.htlc_txs.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output);
        sweeps.chain(htlc_txs).collect()
    }

    /// Waits until the claiming task has done for every output what it can, as the condition says.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&ClaimsStatus) -> bool) -> ClaimsStatus {
        let claimed = self.claimed();
        let mut status = self.claimer.status();
        let waits_for_anchor = self.claims.as_ref().is_some_and(|claims| claims.others.is_some());
        let whole = |status: &ClaimsStatus| {
            let own = || status.outputs.iter().filter(|(_, output)| output.channel_id == self.channel.id());
            let (anchors, told): (Vec<_>, Vec<_>) = own().partition(|(_, output)| output.amount == Sat::ZERO);
            let told: BTreeSet<OutPoint> = told.into_iter().map(|(outpoint, _)| *outpoint).collect();
            told == claimed && anchors.is_empty() != waits_for_anchor && is_so(status)
        };
        let found = timeout(LIMIT, status.wait_for(whole)).await.map(|found| found.unwrap().clone());
        found.unwrap_or_else(|_| panic!("not in time: {what}\n{:#?}\n{claimed:#?}", self.claimer.status().borrow()))
    }

    /// Waits until everything that is claimed is in the mempool.
    pub(crate) async fn until_sent(&mut self) -> ClaimsStatus {
        let is_done = |state: &OutputState| {
            matches!(state, OutputState::InMempool { .. } | OutputState::NotNeeded | OutputState::Spent)
        };
        self.until("sent", |status| status.outputs.values().all(|output| is_done(&output.state))).await
    }

    /// Waits until the claiming task has looked at all that this channel claims.
    pub(crate) async fn until_settled(&mut self) -> ClaimsStatus {
        self.until("looked at", |_| true).await
    }

    /// The process ends and starts again, with nothing but what was written down.
    pub(crate) async fn restart(self, world: &World) -> Self {
        let Self { owner, channel, claimer: old, .. } = self;
        drop(old);
        let mut bytes = Vec::new();
        channel.snapshot(&mut bytes);
        let Owner { keys, wallet, wallet_task, records } = owner;
        drop(wallet);
        timeout(LIMIT, wallet_task).await.expect("the claiming task lets go of the wallet").unwrap();
        let owner = Owner::with_records(keys, records, NO_RESERVE);
        let broadcaster = Broadcaster::start(world.bitcoind.clone(), world.sync.clone());
        let claimer = claimer(world, &owner, &broadcaster);
        let channel = Channel::restore(&bytes, POLICY, |_| owner.channel_keys()).unwrap();
        let mut end = Self {
            owner,
            channel,
            claimer,
            broadcaster,
            claims: None,
            commitment: None,
            fx: Effects::default(),
            outbox: VecDeque::new(),
        };
        let event = ChainEvent::Tip { height: world.height(), block: bitcoin::hashes::Hash::all_zeros() };
        end.channel.on_chain(event, &mut end.fx);
        end.channel.resume(&mut end.fx);
        end.drain();
        end
    }

    pub(crate) async fn confirmed(&self) -> Sat {
        self.owner.wallet.balance().await.unwrap().confirmed
    }
}

/// The transactions of ours that are in the mempool, and what they pay.
pub(crate) fn bids(status: &ClaimsStatus) -> Vec<(OutPoint, Txid, Sat)> {
    let bid = |(outpoint, output): (&OutPoint, &millraced::claims::OutputStatus)| match output.state {
        OutputState::InMempool { txid, fee } => Some((*outpoint, txid, fee)),
        _ => None,
    };
    status.outputs.iter().filter_map(bid).collect()
}
