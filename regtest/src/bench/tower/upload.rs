//! What it costs to tell a tower of updates, and what it keeps of them: one channel whose updates go singly, one whose updates
//! go in batches, and others that make up the number. None of them is on the chain: their secrets are real chains of secrets.

use std::path::Path;
use std::time::{Duration, Instant};

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, ScriptBuf, Txid};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::secrets::RevealedSecrets;
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::{ChannelType, CommitmentFormat, PartyTerms, Terms};
use millrace_watchtower::client::{Client, Config, Link, Sent};
use millrace_watchtower::registration::Registration;
use millrace_wire::{ChainHash, ChannelId, CommitmentNumber, Msat, Sat};
use secp256k1::SECP256K1;

use super::pair::{bytes, secret_key};
use crate::bitcoind::Bitcoind;
use crate::network::{Error, SOON};
use crate::tower::Tower;

/// Updates of one batch.
const BATCH: u64 = 1_024;
/// How long updates wait for others, where they do: longer than it takes to note a whole batch.
const LINGER: Duration = Duration::from_secs(1);
/// Channels that are not measured one by one are told of in so many at once.
const AT_ONCE: usize = 100;

/// What it came to.
pub(super) struct Uploaded {
    pub(super) bytes_per_update: f64,
    pub(super) bytes_per_update_batched: f64,
    pub(super) socket_bytes_per_update: f64,
    pub(super) socket_bytes_per_update_batched: f64,
    pub(super) updates_per_s: f64,
    pub(super) updates_per_s_batched: f64,
    pub(super) stored_bytes_per_channel: f64,
    pub(super) cpu_us_per_update: f64,
    pub(super) rss_mib_peak: u64,
}

/// A client's configuration for a tower.
pub(super) fn config(tower: &Tower, seed: u64) -> Result<Config, Error> {
    let (key, address) = tower.key_and_address()?;
    Ok(Config::new(key, address, secret_key(seed, 0, "client"), ChainHash::REGTEST))
}

/// A channel that nobody has.
struct Imagined {
    registration: Registration,
    theirs: ChannelKeys,
}

impl Imagined {
    fn new(seed: u64, index: u64) -> Result<Self, Error> {
        let [ours, theirs] =
            ["imagined, ours", "imagined, theirs"].map(|what| ChannelKeys::from_seed(&bytes(seed, index, what)));
        let party = |keys: &ChannelKeys| PartyTerms {
            dust_limit: Sat(354),
            max_htlc_value_in_flight: Msat(u64::MAX),
            channel_reserve: Sat(10_000),
            htlc_minimum: Msat(1),
            to_self_delay: 144,
            max_accepted_htlcs: 483,
            basepoints: keys.basepoints().clone(),
            upfront_shutdown_script: None,
        };
        let funding_outpoint = OutPoint { txid: Txid::from_byte_array(bytes(seed, index, "imagined")), vout: 0 };
        let terms = Terms {
            channel_id: ChannelId::v1_from_funding(funding_outpoint),
            remote_node: theirs.basepoints().funding,
            funder: Side::Local,
            channel_type: ChannelType { format: CommitmentFormat::Anchors, scid_alias: false, zero_conf: false },
            funding_outpoint,
            capacity: Sat(1_000_000),
            push: Msat::ZERO,
            minimum_depth: 1,
            announce: false,
            parties: Both { local: party(&ours), remote: party(&theirs) },
        };
        let registration = Registration::of(&terms, &ours, sweep_script(seed, index));
        let registration = registration.map_err(|error| Error::Wrong(error.to_string()))?;
        Ok(Self { registration, theirs })
    }

    fn secrets(&self, updates: u64) -> Vec<[u8; 32]> {
        (0..updates).map(|number| self.theirs.commitment_secret(CommitmentNumber(number))).collect()
    }

    /// After so many updates. Of all the secrets only those are made that a store keeps (BOLT 3): the newest for each number of
    /// trailing zero bits of its index.
    fn revealed(&self, updates: u64) -> Result<RevealedSecrets, Error> {
        let last = CommitmentNumber::MAX.0;
        let lowest = last + 1 - updates;
        let first_with = |zeros: u32| (lowest.div_ceil(1 << zeros) | 1) << zeros;
        let kept = (0..u64::BITS).map(first_with).take_while(|index| *index <= last);
        let kept: Vec<[u8; 32]> =
            kept.map(|index| self.theirs.commitment_secret(CommitmentNumber(last - index))).collect();
        let mut secrets = RevealedSecrets::new();
        let advanced = secrets.advance(CommitmentNumber(updates), &kept);
        advanced.map_err(|error| Error::Wrong(format!("a made-up chain of secrets: {error}")))?;
        Ok(secrets)
    }
}

/// Where a tower is to bring what it takes for a channel.
pub(super) fn sweep_script(seed: u64, index: u64) -> ScriptBuf {
    let hash = bytes(seed, index, "sweep");
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array(std::array::from_fn(|at| hash[at])))
}

/// Waits until the tower has acknowledged so many secrets of a channel.
pub(super) async fn until_acknowledged(client: &Client, channel_id: ChannelId, updates: u64) -> Result<(), Error> {
    let progress = client.progress(channel_id);
    let mut progress = progress.ok_or_else(|| Error::Wrong(format!("{channel_id} is not registered")))?;
    let waited = tokio::time::timeout(SOON, progress.wait_for(|progress| progress.acknowledged >= updates)).await;
    match waited {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Error::Wrong("the client has ended".to_owned())),
        Err(_) => {
            let told = client.progress(channel_id).map(|progress| progress.borrow().clone());
            let state = format!("; it stands at {told:?}, the link at {:?}", client.link().borrow().clone());
            Err(Error::Late { what: format!("{updates} updates of {channel_id}"), seconds: SOON.as_secs(), state })
        }
    }
}

/// What was sent for some updates, and in which time.
struct Measured {
    updates: f64,
    payload: f64,
    socket: f64,
    seconds: f64,
}

/// Tells of a channel's updates in groups, each acknowledged before the next. The first update is not measured, since the
/// registration goes before it; nor is the rest that makes no whole group.
async fn feed(config: Config, channel: &Imagined, updates: u64, group: u64) -> Result<Measured, Error> {
    let secrets = channel.secrets(updates);
    let (client, _events) = Client::start(config);
    let id = client.register(channel.registration.clone(), RevealedSecrets::new());
    let note = |number: u64| {
        let secret = usize::try_from(number).ok().and_then(|at| secrets.get(at)).copied().unwrap_or_default();
        let noted = client.note_revoked(id, CommitmentNumber(number), secret);
        noted.map_err(|error| Error::Wrong(format!("update {number}: {error}")))
    };
    note(0)?;
    until_acknowledged(&client, id, 1).await?;
    let (before, begun) = (client.sent(), Instant::now());
    let whole = (updates - 1) / group * group;
    for next in (1..=whole).step_by(usize::try_from(group).unwrap_or(usize::MAX)) {
        (next..next + group).try_for_each(note)?;
        until_acknowledged(&client, id, next + group).await?;
    }
    let (after, seconds) = (client.sent(), begun.elapsed().as_secs_f64());
    (whole + 1..updates).try_for_each(note)?;
    until_acknowledged(&client, id, updates).await?;
    let difference = |of: fn(&Sent) -> u64| (of(&after) - of(&before)) as f64;
    Ok(Measured {
        // The client counts an update a moment after it tells of it.
        updates: whole as f64,
        payload: difference(|sent| sent.payload_bytes),
        socket: difference(|sent| sent.socket_bytes_sent),
        seconds,
    })
}

/// Measures it with a tower of its own.
pub(super) async fn measure(
    program: &Path,
    folder: &Path,
    bitcoind: &Bitcoind,
    channels: u64,
    updates: u64,
    seed: u64,
) -> Result<Uploaded, Error> {
    let mut tower = Tower::new(program, folder.join("upload"), bitcoind)?;
    tower.start().await?;
    let count = channels.max(2);
    let client = secret_key(seed, 0, "client").public_key(SECP256K1);
    tower.allow(&client, u32::try_from(count).unwrap_or(u32::MAX)).await?;
    let imagined: Vec<Imagined> = (0..count).map(|index| Imagined::new(seed, index)).collect::<Result<_, _>>()?;
    let cpu_before = tower.costs().0;
    let single = feed(config(&tower, seed)?, &imagined[0], updates, 1).await?;
    let cpu_us = tower.costs().0 - cpu_before;
    let patient = Config { linger: LINGER, batch_max: BATCH, ..config(&tower, seed)? };
    let batched = feed(patient, &imagined[1], updates, BATCH).await?;
    let (client, _events) = Client::start(config(&tower, seed)?);
    for some in imagined[2..].chunks(AT_ONCE) {
        let mut ids = Vec::new();
        for one in some {
            ids.push(client.register(one.registration.clone(), one.revealed(updates)?));
        }
        for id in ids {
            until_acknowledged(&client, id, updates).await?;
        }
    }
    drop(client);
    tower.stop()?;
    let stored = tower.checkpoint_bytes()? as f64 / count as f64;
    let rss_mib_peak = tower.costs().1;
    check_stored(&mut tower, &imagined, updates, seed).await?;
    tower.stop()?;
    Ok(Uploaded {
        bytes_per_update: single.payload / single.updates,
        bytes_per_update_batched: batched.payload / batched.updates,
        socket_bytes_per_update: single.socket / single.updates,
        socket_bytes_per_update_batched: batched.socket / batched.updates,
        updates_per_s: single.updates / single.seconds,
        updates_per_s_batched: batched.updates / batched.seconds,
        stored_bytes_per_channel: stored,
        cpu_us_per_update: cpu_us as f64 / single.updates,
        rss_mib_peak,
    })
}

/// A tower that has nothing but its files has every update: it says so, and is sent none again.
async fn check_stored(tower: &mut Tower, imagined: &[Imagined], updates: u64, seed: u64) -> Result<(), Error> {
    tower.start().await?;
    let (client, _events) = Client::start(config(tower, seed)?);
    let mut link = client.link();
    let up = tokio::time::timeout(SOON, link.wait_for(|link| *link == Link::Up)).await;
    if !matches!(up, Ok(Ok(_))) {
        return Err(Error::Wrong(format!("the tower does not let its client in again: {:?}", client.link().borrow())));
    }
    for one in imagined {
        let id = client.register(one.registration.clone(), one.revealed(updates)?);
        until_acknowledged(&client, id, updates).await?;
    }
    match client.sent().messages {
        0 => Ok(()),
        messages => Err(Error::Wrong(format!("after a restart the tower lacked updates of {messages} channels"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn secrets_that_a_store_keeps_are_those_of_one_that_was_told_all() {
        let channel = Imagined::new(3, 0).unwrap();
        for updates in [1, 2, 3, 64, 1_000, 1_023, 1_024, 1_025] {
            let mut told = RevealedSecrets::new();
            for (number, secret) in (0..).map(CommitmentNumber).zip(channel.secrets(updates)) {
                told.insert(number, secret).unwrap();
            }
            assert_eq!(channel.revealed(updates).unwrap(), told, "{updates}");
        }
    }
}
