//! One channel of the benchmark, and both of its sides in this process: ours, whose tower is measured, and the peer, which
//! will cheat. Each is the pure state machine; their messages go straight from one to the other.

use std::collections::VecDeque;
use std::sync::Arc;

use bitcoin::hashes::{Hash, sha256};
use bitcoin::{ScriptBuf, Transaction, TxOut};
use millrace_channel::channel::{Channel, Policy};
use millrace_channel::curve::Serial;
use millrace_channel::effect::{Effect, Effects, Fact};
use millrace_channel::input::{ChainEvent, Command, Millis, Offer};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::ledger::htlc::Origin;
use millrace_channel::phase::opening::{
    AcceptParams, LocalParams, OpenRequest, Opening, OpeningEvent, OpeningFeatures, OpeningLimits, Surroundings,
};
use millrace_channel::side::Side;
use millrace_channel::terms::{ChannelType, CommitmentFormat, Terms};
use millrace_wire::{
    BlockHeight, ChainHash, ChannelId, CltvExpiry, Features, FeeratePerKw, HtlcId, Message, Msat, OnionPacket,
    Preimage, Sat, ShortChannelId,
};
use secp256k1::{SECP256K1, SecretKey};

use crate::matrix::output::{Htlc, Part};
use crate::network::Error;
use crate::random::Random;

/// The delay on the cheater's outputs: the time that the tower has.
pub(super) const DELAY: u16 = 30;
const CAPACITY: Sat = Sat(1_200_000);
const PUSHED: Sat = Sat(600_000);
const FEERATE: FeeratePerKw = FeeratePerKw(1_000);
/// What an HTLC holds that is no dust, at least, and how much more at most.
const HTLC_SAT: u64 = 10_000;
const HTLC_SAT_MORE: u64 = 30_000;
/// What one holds that has no output in any commitment.
const TRIMMED_SAT: u64 = 300;
/// After so many turns, two that talk to each other have lost their way.
const TURNS_MAX: usize = 1_000;

/// What a channel is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) format: CommitmentFormat,
    pub(super) funder: Side,
    pub(super) has_htlcs: bool,
}

/// Both sides. `Side::Local` is ours.
pub(super) struct Pair {
    pub(super) kind: Kind,
    ours: Party,
    theirs: Party,
    /// What the peer has revealed, from commitment 0 on.
    secrets: Vec<[u8; 32]>,
    random: Random,
    htlcs: Vec<Htlc>,
    /// How many each side has offered.
    offered: [u64; 2],
}

/// What the peer held at a moment that is past.
pub(super) struct Past {
    pub(super) snapshot: Vec<u8>,
    /// What was in flight then.
    pub(super) htlcs: Vec<Htlc>,
}

struct Party {
    keys: ChannelKeys,
    opening: Option<Opening>,
    channel: Option<Channel>,
    funding: Option<(ScriptBuf, Sat)>,
    fx: Effects,
    outbox: VecDeque<Message>,
    is_ready: bool,
}

/// 32 bytes that a seed repeats.
pub(super) fn bytes(seed: u64, index: u64, what: &str) -> [u8; 32] {
    let text = [b"millrace bench tower", &seed.to_be_bytes()[..], &index.to_be_bytes(), what.as_bytes()].concat();
    sha256::Hash::hash(&text).to_byte_array()
}

/// A secret key that a seed repeats.
pub(super) fn secret_key(seed: u64, index: u64, what: &str) -> SecretKey {
    // One hash in 2^128 is no key.
    SecretKey::from_slice(&bytes(seed, index, what)).expect("a hash that is a key")
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::Wrong(format!("a channel of the benchmark: {what}"))
}

impl Pair {
    /// Opens one, until the output is needed that funds it.
    pub(super) fn open(seed: u64, index: u64, kind: Kind, height: u32) -> Result<(Self, TxOut), Error> {
        let party = |what: &str| Party::new(ChannelKeys::from_seed(&bytes(seed, index, what)));
        let mut random = Random(seed);
        random = Random(random.below(u64::MAX).wrapping_add(index));
        let mut pair = Self {
            kind,
            ours: party("ours"),
            theirs: party("theirs"),
            secrets: Vec::new(),
            random,
            htlcs: Vec::new(),
            offered: [0, 0],
        };
        let nodes = ["our node", "their node"].map(|what| secret_key(seed, index, what).public_key(SECP256K1));
        let features = Features::ours(false);
        let features = OpeningFeatures::negotiated(&features, &features);
        let (funder, accepter, to_self_delays) = match kind.funder {
            Side::Local => (&mut pair.ours, &mut pair.theirs, [DELAY, 144]),
            Side::Remote => (&mut pair.theirs, &mut pair.ours, [144, DELAY]),
        };
        let [local, accepting] =
            to_self_delays.map(|to_self_delay| LocalParams { to_self_delay, ..LocalParams::usual_for(CAPACITY) });
        let request = OpenRequest {
            remote_node: nodes[usize::from(kind.funder == Side::Local)],
            chain_hash: ChainHash::REGTEST,
            temporary_channel_id: ChannelId(bytes(seed, index, "temporary id")),
            funding: CAPACITY,
            push: PUSHED.to_msat(),
            feerate: FEERATE,
            channel_type: ChannelType { format: kind.format, scid_alias: false, zero_conf: false },
            announce: false,
            local,
            limits: OpeningLimits::default(),
            features,
            keys: funder.keys.clone(),
            keys_index: 0,
            local_alias: ShortChannelId(2 * index + 1),
        };
        let (opening, message) = Opening::propose(request).map_err(wrong)?;
        funder.opening = Some(opening);
        let Message::OpenChannel(open) = message else { return Err(wrong("a proposal is no open_channel")) };
        let params = AcceptParams {
            remote_node: nodes[usize::from(kind.funder == Side::Remote)],
            chain_hash: ChainHash::REGTEST,
            local: accepting,
            limits: OpeningLimits::default(),
            features,
            minimum_depth: 1,
            is_zero_conf_allowed: false,
            keys: accepter.keys.clone(),
            keys_index: 0,
            local_alias: ShortChannelId(2 * index + 2),
        };
        let (opening, reply) = Opening::accept(*open, params, &surroundings(height)).map_err(wrong)?;
        accepter.opening = Some(opening);
        funder.hear(reply, height)?;
        let (script_pubkey, value) = funder.funding.clone().ok_or_else(|| wrong("it needs no funding output"))?;
        Ok((pair, TxOut { value: value.to_amount(), script_pubkey }))
    }

    /// Both sign. The transaction is not broadcast here.
    pub(super) fn fund(&mut self, tx: &Transaction, vout: u32, height: u32) -> Result<(), Error> {
        let funder = match self.kind.funder {
            Side::Local => &mut self.ours,
            Side::Remote => &mut self.theirs,
        };
        let Some(opening) = &mut funder.opening else { return Err(wrong("nothing to fund")) };
        opening.fund(tx.clone(), vout, &surroundings(height), &mut funder.fx).map_err(wrong)?;
        funder.drain();
        self.exchange(height)
    }

    /// The funding transaction is in a block.
    pub(super) fn funded(&mut self, tx: &Arc<Transaction>, index: u32, height: u32) -> Result<(), Error> {
        for party in [&mut self.ours, &mut self.theirs] {
            let Some(channel) = &mut party.channel else { return Err(wrong("it was not opened")) };
            let block = bitcoin::hashes::Hash::all_zeros();
            channel.on_chain(ChainEvent::Tip { height: BlockHeight(height), block }, &mut party.fx);
            channel.on_chain(ChainEvent::Confirmed { tx: Arc::clone(tx), index }, &mut party.fx);
            party.drain();
        }
        self.exchange(height)?;
        if self.ours.is_ready && self.theirs.is_ready { Ok(()) } else { Err(wrong("it is not ready")) }
    }

    pub(super) fn channel(&self, side: Side) -> Result<&Channel, Error> {
        let party = match side {
            Side::Local => &self.ours,
            Side::Remote => &self.theirs,
        };
        party.channel.as_ref().ok_or_else(|| wrong("it was not opened"))
    }

    /// Our terms.
    pub(super) fn terms(&self) -> Result<&Terms, Error> {
        Ok(self.channel(Side::Local)?.terms())
    }

    pub(super) const fn our_keys(&self) -> &ChannelKeys {
        &self.ours.keys
    }

    pub(super) const fn their_keys(&self) -> &ChannelKeys {
        &self.theirs.keys
    }

    /// What the peer has revealed, from commitment 0 on.
    pub(super) fn secrets(&self) -> &[[u8; 32]] {
        &self.secrets
    }

    // --- updates ---

    /// HTLCs come and go in rounds; in one of them, by the seed, the peer keeps what it holds. All is revoked afterwards.
    pub(super) fn live(&mut self, height: u32) -> Result<Past, Error> {
        let rounds = 3 + self.random.below(3);
        // The newest revoked one as often as one of before.
        let kept = if self.random.below(2) == 0 { rounds - 1 } else { self.random.below(rounds) };
        let mut past = None;
        for round in 0..rounds {
            if round == kept && !self.kind.has_htlcs {
                past = Some(self.keep()?);
            }
            self.add(height)?;
            if round == kept && self.kind.has_htlcs {
                past = Some(self.keep()?);
            }
            self.remove(height)?;
        }
        past.ok_or_else(|| wrong("nothing was kept"))
    }

    fn keep(&self) -> Result<Past, Error> {
        let mut snapshot = Vec::new();
        self.channel(Side::Remote)?.snapshot(&mut snapshot);
        Ok(Past { snapshot, htlcs: self.htlcs.clone() })
    }

    /// One or two of each side's with an output, and now and then one without.
    fn add(&mut self, height: u32) -> Result<(), Error> {
        for is_ours in [true, false] {
            for _ in 0..=self.random.below(2) {
                let sat = HTLC_SAT + self.random.below(HTLC_SAT_MORE);
                self.offer(is_ours, sat, height)?;
            }
            if self.random.below(2) == 0 {
                self.offer(is_ours, TRIMMED_SAT, height)?;
            }
        }
        self.exchange(height)
    }

    fn offer(&mut self, is_ours: bool, sat: u64, height: u32) -> Result<(), Error> {
        let preimage = Preimage::new(std::array::from_fn(|_| self.random.below(256) as u8));
        // It expires in the block of the breach, or in one of the next.
        let cltv_expiry = CltvExpiry(height + 2 + self.random.below(6) as u32);
        let party = if is_ours { &mut self.ours } else { &mut self.theirs };
        let Some(channel) = &mut party.channel else { return Err(wrong("it was not opened")) };
        let payment_hash = preimage.hash();
        let offer = Offer {
            amount: Msat(sat * 1000),
            payment_hash,
            cltv_expiry,
            // Nobody peels it.
            onion: Box::new(OnionPacket([0; 1366])),
            path_key: None,
            origin: Origin::Payment { id: payment_hash.0, attempt: 0 },
        };
        channel.on_command(Command::Offer(offer), &mut party.fx).map_err(wrong)?;
        party.drain();
        let count = &mut self.offered[usize::from(is_ours)];
        let id = HtlcId(*count);
        *count += 1;
        self.htlcs.push(Htlc {
            is_offered: is_ours,
            sat,
            preimage,
            payment_hash,
            cltv_expiry,
            id,
            is_forward: false,
            part: Part::Whole,
        });
        Ok(())
    }

    /// Each is paid, or fails.
    fn remove(&mut self, height: u32) -> Result<(), Error> {
        for htlc in std::mem::take(&mut self.htlcs) {
            let is_paid = self.random.below(2) == 0;
            let party = if htlc.is_offered { &mut self.theirs } else { &mut self.ours };
            let Some(channel) = &mut party.channel else { return Err(wrong("it was not opened")) };
            let command = if is_paid {
                Command::Fulfill { id: htlc.id, preimage: htlc.preimage, attribution: None, is_durable: false }
            } else {
                Command::Fail { id: htlc.id, reason: vec![0; 292], attribution: None }
            };
            channel.on_command(command, &mut party.fx).map_err(wrong)?;
            party.drain();
        }
        self.exchange(height)
    }

    /// Lets both talk until they are silent.
    fn exchange(&mut self, height: u32) -> Result<(), Error> {
        for _ in 0..TURNS_MAX {
            self.ours.commit();
            self.theirs.commit();
            let (from_us, from_them) = (std::mem::take(&mut self.ours.outbox), std::mem::take(&mut self.theirs.outbox));
            if from_us.is_empty() && from_them.is_empty() {
                return Ok(());
            }
            for message in from_us {
                self.theirs.hear(message, height)?;
            }
            for message in from_them {
                if let Message::RevokeAndAck(revoked) = &message {
                    self.secrets.push(revoked.per_commitment_secret);
                }
                self.ours.hear(message, height)?;
            }
        }
        Err(wrong("the two never fall silent"))
    }
}

impl Party {
    fn new(keys: ChannelKeys) -> Self {
        Self {
            keys,
            opening: None,
            channel: None,
            funding: None,
            fx: Effects::default(),
            outbox: VecDeque::new(),
            is_ready: false,
        }
    }

    fn commit(&mut self) {
        if let Some(channel) = &mut self.channel {
            channel.commit(Millis(0), &Serial, &mut self.fx);
        }
        self.drain();
    }

    fn hear(&mut self, message: Message, height: u32) -> Result<(), Error> {
        if let Some(channel) = &mut self.channel {
            channel.on_message(message, &Serial, &mut self.fx).map_err(wrong)?;
        } else if let Some(opening) = &mut self.opening {
            match opening.on_message(message, &surroundings(height), &Serial, &mut self.fx).map_err(wrong)? {
                Some(OpeningEvent::FundingNeeded { script_pubkey, amount }) => {
                    self.funding = Some((script_pubkey, amount));
                }
                Some(OpeningEvent::Opened(channel)) => {
                    self.channel = Some(*channel);
                    self.opening = None;
                }
                Some(OpeningEvent::Refused { text }) => return Err(wrong(format!("it is refused: {text}"))),
                None => {}
            }
        }
        self.drain();
        Ok(())
    }

    fn drain(&mut self) {
        for effect in std::mem::take(&mut self.fx).list {
            match effect {
                Effect::Send(message) => self.outbox.push_back(*message),
                Effect::Fact(Fact::Ready) => self.is_ready = true,
                Effect::Fact(_)
                | Effect::Disconnect(_)
                | Effect::Journal(_)
                | Effect::Broadcast(_)
                | Effect::Watch(_)
                | Effect::Claim(_) => {}
            }
        }
    }
}

fn surroundings(height: u32) -> Surroundings<'static> {
    Surroundings { height: BlockHeight(height), policy: Policy::default(), is_taken: &|_| false }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use millrace_channel::secrets::RevealedSecrets;
    use millrace_wire::CommitmentNumber;

    use crate::matrix::claimant::Claimant;

    fn lived(index: u64, kind: Kind) -> (Pair, Past) {
        let (mut pair, output) = Pair::open(7, index, kind, 100).unwrap();
        // Native segwit, and signed as far as anybody can tell.
        let previous_output = bitcoin::OutPoint { txid: bitcoin::Txid::from_byte_array([1; 32]), vout: 0 };
        let witness = bitcoin::Witness::from_slice(&[[1]]);
        let coin = bitcoin::TxIn { previous_output, witness, ..bitcoin::TxIn::default() };
        let tx =
            Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![coin], output: vec![output] };
        pair.fund(&tx, 0, 100).unwrap();
        pair.funded(&Arc::new(tx), 1, 101).unwrap();
        let past = pair.live(101).unwrap();
        (pair, past)
    }

    fn kinds() -> impl Iterator<Item = Kind> {
        (0..8).map(|bits| Kind {
            format: if bits & 1 == 0 { CommitmentFormat::Anchors } else { CommitmentFormat::StaticRemotekey },
            funder: if bits & 2 == 0 { Side::Local } else { Side::Remote },
            has_htlcs: bits & 4 != 0,
        })
    }

    #[test]
    fn what_the_peer_kept_is_revoked_and_signed_by_both_sides() {
        for (index, kind) in (0..).zip(kinds()) {
            let (pair, past) = lived(index, kind);
            let mut secrets = RevealedSecrets::new();
            for (number, secret) in (0..).map(CommitmentNumber).zip(pair.secrets()) {
                secrets.insert(number, *secret).unwrap();
                assert_eq!(*secret, pair.their_keys().commitment_secret(number));
            }
            let mut cheater = Claimant::of(&past.snapshot, pair.their_keys()).unwrap();
            let tx = cheater.commitment().unwrap();
            assert!(secrets.get(cheater.commitment_numbers().local).is_some(), "{kind:?} is not revoked");
            assert_eq!(tx.input[0].previous_output, pair.terms().unwrap().funding_outpoint);
            assert_eq!(tx.input[0].witness.len(), 4, "both have signed");
            assert_eq!(past.htlcs.is_empty(), !kind.has_htlcs);
        }
    }

    #[test]
    fn kinds_of_htlcs_that_the_peers_keep_are_all_there() {
        let kind = Kind { format: CommitmentFormat::Anchors, funder: Side::Local, has_htlcs: true };
        let kept: Vec<Htlc> = (0..20).flat_map(|index| lived(index, kind).1.htlcs).collect();
        for is_offered in [true, false] {
            for is_trimmed in [true, false] {
                let is_such = |htlc: &&Htlc| htlc.is_offered == is_offered && (htlc.sat == TRIMMED_SAT) == is_trimmed;
                assert!(kept.iter().filter(is_such).count() > 3, "offered {is_offered}, trimmed {is_trimmed}");
            }
        }
    }
}
