//! Idempotency keys: the same call twice is one call (durability.md, D14).
//!
//! A key stands for the hash of its request. The same key with the same request gives the result that there is, or that
//! is being made; with another request it is refused. A key is durable before the first outward effect of its call: a
//! call writes [`Claim::begun`] and waits, or hands [`Claim::done_entry`] to whoever writes the effect itself, so that
//! both are one step of the journal. A call that was refused before it had any effect leaves no key behind, and may be
//! tried again with it.
//!
//! A payment's key is in the payment's own entry; here it is only looked up (`payments::send`). Keys are forgotten
//! after 24 hours, or what the settings say. What a result means is its call's affair: here it is bytes.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::{Arc, Mutex, MutexGuard};

use bitcoin::hashes::{Hash, HashEngine, sha256};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::entry::{Entry, Kind};

/// The longest key.
pub const KEY_BYTES_MAX: usize = 64;
/// The version of entries and sections that this build writes.
const VERSION: u8 = 1;
const LOCK: &str = "nothing panics while the keys are locked";

/// A key, by its SHA-256: of one size, whatever the client chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct KeyHash(pub [u8; 32]);

/// What was asked for: which call, and all of its request but the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct RequestHash(pub [u8; 32]);

impl KeyHash {
    /// Of a key.
    ///
    /// # Errors
    /// [`KeyError`] if it is empty or too long.
    pub fn of(key: &str) -> Result<Self, KeyError> {
        match key.len() {
            0 => Err(KeyError::Empty),
            bytes if bytes > KEY_BYTES_MAX => Err(KeyError::TooLong { bytes }),
            _ => Ok(Self(sha256::Hash::hash(key.as_bytes()).to_byte_array())),
        }
    }
}

impl RequestHash {
    /// Of a call and its request, encoded without the key.
    #[must_use]
    pub fn of(call: &str, request: &[u8]) -> Self {
        let mut engine = sha256::Hash::engine();
        engine.input(&(call.len() as u64).to_le_bytes());
        engine.input(call.as_bytes());
        engine.input(request);
        Self(sha256::Hash::from_engine(engine).to_byte_array())
    }
}

/// Why a key is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// Calls that change something need one.
    #[error("the idempotency key is empty")]
    Empty,
    /// Longer than a key may be.
    #[error("the idempotency key has {bytes} bytes, more than {KEY_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It stands for something else.
    #[error("the idempotency key was used for another request")]
    Conflict,
}

/// What became of a result: there, or given up without one.
type Running = watch::Receiver<Option<Arc<[u8]>>>;

#[derive(Clone, Debug)]
struct Slot {
    request: RequestHash,
    time_ms: u64,
    /// The journal has it.
    is_durable: bool,
    result: Option<Arc<[u8]>>,
    /// Somebody in this process works on it.
    running: Option<Running>,
}

/// The keys of the node. Clones are the same.
#[derive(Clone, Debug)]
pub struct Idempotency {
    slots: Arc<Mutex<HashMap<KeyHash, Slot>>>,
    kept_ms: u64,
}

/// What a key stands for.
#[derive(Debug)]
pub enum Entered {
    /// It is new, or was interrupted without a result: work on it.
    New(Claim),
    /// It is being worked on.
    UnderWay(Waiter),
    /// It is done.
    Done(Arc<[u8]>),
}

/// What a key stands for, to those who do not work on it here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reserved {
    /// It was new, and now stands for what was given.
    New,
    /// It stands for this already.
    Same(Arc<[u8]>),
}

/// An entry in the journal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Written {
    Begun { key: KeyHash, request: RequestHash },
    Done { key: KeyHash, request: RequestHash, result: Vec<u8> },
}

#[derive(Serialize, Deserialize)]
struct Kept {
    key: KeyHash,
    request: RequestHash,
    time_ms: u64,
    result: Option<Vec<u8>>,
}

impl Idempotency {
    /// No keys yet; they will be kept this long.
    #[must_use]
    pub fn new(kept_ms: u64) -> Self {
        Self { slots: Arc::default(), kept_ms }
    }

    /// Says what a key stands for, and takes it if it is new.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn enter(&self, key: &str, request: RequestHash, now_ms: u64) -> Result<Entered, KeyError> {
        let key = KeyHash::of(key)?;
        let mut slots = self.lock();
        let (sender, running) = watch::channel(None);
        let claim = |was_begun| Claim { keys: self.clone(), key, request, sender, was_begun, is_begun: was_begun };
        match slots.entry(key) {
            MapEntry::Vacant(vacant) => {
                vacant.insert(Slot {
                    request,
                    time_ms: now_ms,
                    is_durable: false,
                    result: None,
                    running: Some(running),
                });
                Ok(Entered::New(claim(false)))
            }
            MapEntry::Occupied(mut occupied) => {
                let slot = occupied.get_mut();
                if slot.request != request {
                    return Err(KeyError::Conflict);
                }
                match (&slot.result, &slot.running) {
                    (Some(result), _) => Ok(Entered::Done(Arc::clone(result))),
                    (None, Some(running)) => Ok(Entered::UnderWay(Waiter(running.clone()))),
                    (None, None) => {
                        slot.running = Some(running);
                        Ok(Entered::New(claim(true)))
                    }
                }
            }
        }
    }

    /// Lets a key stand for a result that is already known but not yet written, unless it stands for one.
    ///
    /// # Errors
    /// [`KeyError::Conflict`].
    pub fn reserve(
        &self,
        key: KeyHash,
        request: RequestHash,
        result: &[u8],
        now_ms: u64,
    ) -> Result<Reserved, KeyError> {
        match self.lock().entry(key) {
            MapEntry::Vacant(vacant) => {
                let result = Some(result.into());
                vacant.insert(Slot { request, time_ms: now_ms, is_durable: false, result, running: None });
                Ok(Reserved::New)
            }
            MapEntry::Occupied(occupied) => match occupied.get() {
                Slot { request: known, result: Some(result), .. } if *known == request => {
                    Ok(Reserved::Same(Arc::clone(result)))
                }
                _ => Err(KeyError::Conflict),
            },
        }
    }

    /// A reserved key is free again: what it stood for never was.
    pub fn unreserve(&self, key: &KeyHash) {
        let mut slots = self.lock();
        if slots.get(key).is_some_and(|slot| !slot.is_durable && slot.running.is_none()) {
            slots.remove(key);
        }
    }

    // --- the fold ---

    /// Takes an entry that is durable. Entries may come twice, and a result before its beginning.
    ///
    /// # Errors
    /// In words, if it is none of ours.
    pub fn apply(&self, bytes: &[u8], time_ms: u64) -> Result<(), String> {
        match decode::<Written>(bytes)? {
            Written::Begun { key, request } => self.note(key, request, None, time_ms),
            Written::Done { key, request, result } => self.note(key, request, Some(&result), time_ms),
        }
        Ok(())
    }

    /// Something durable says what a key stands for.
    pub fn note(&self, key: KeyHash, request: RequestHash, result: Option<&[u8]>, time_ms: u64) {
        let mut slots = self.lock();
        let slot = slots.entry(key).or_insert(Slot { request, time_ms, is_durable: true, result: None, running: None });
        slot.is_durable = true;
        if let Some(result) = result {
            slot.result = Some(result.into());
        }
    }

    /// Forgets what is too old.
    pub fn prune(&self, now_ms: u64) {
        let kept_ms = self.kept_ms;
        self.lock().retain(|_, slot| slot.running.is_some() || slot.time_ms.saturating_add(kept_ms) > now_ms);
    }

    /// What is durable of it, for a checkpoint.
    #[must_use]
    pub fn section(&self) -> Vec<u8> {
        let slots = self.lock();
        let durable = slots.iter().filter(|(_, slot)| slot.is_durable);
        let mut kept: Vec<Kept> = durable
            .map(|(key, slot)| Kept {
                key: *key,
                request: slot.request,
                time_ms: slot.time_ms,
                result: slot.result.as_ref().map(|result| result.to_vec()),
            })
            .collect();
        drop(slots);
        kept.sort_unstable_by_key(|kept| (kept.time_ms, kept.key));
        encode(&kept)
    }

    /// Takes a section back.
    ///
    /// # Errors
    /// In words, if the bytes are no section that this build knows.
    pub fn restore(&self, section: &[u8]) -> Result<(), String> {
        for Kept { key, request, time_ms, result } in decode::<Vec<Kept>>(section)? {
            self.note(key, request, result.as_deref(), time_ms);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KeyHash, Slot>> {
        self.slots.lock().expect(LOCK)
    }
}

/// The right, and the duty, to work on what a key stands for. Dropped without a result, whoever waits for one is told.
#[derive(Debug)]
pub struct Claim {
    keys: Idempotency,
    key: KeyHash,
    request: RequestHash,
    sender: watch::Sender<Option<Arc<[u8]>>>,
    was_begun: bool,
    is_begun: bool,
}

impl Claim {
    /// True if this was begun before, and the node stopped before it had a result: its effect may have taken place.
    #[must_use]
    pub const fn was_interrupted(&self) -> bool {
        self.was_begun
    }

    /// What must be durable before the first outward effect.
    #[must_use]
    pub fn begun(&mut self) -> Entry {
        self.is_begun = true;
        entry(&Written::Begun { key: self.key, request: self.request })
    }

    /// What makes a result durable.
    #[must_use]
    pub fn done_entry(&self, result: &[u8]) -> Entry {
        entry(&Written::Done { key: self.key, request: self.request, result: result.to_vec() })
    }

    /// For who makes the entry of a result later, when this claim is elsewhere.
    #[must_use]
    pub fn names(&self) -> (KeyHash, RequestHash) {
        (self.key, self.request)
    }

    /// The result is there, and durable: everybody gets it from now on.
    pub fn done(self, result: &[u8]) {
        let result: Arc<[u8]> = result.into();
        if let Some(slot) = self.keys.lock().get_mut(&self.key) {
            slot.is_durable = true;
            slot.result = Some(Arc::clone(&result));
        }
        self.sender.send_replace(Some(result));
    }
}

/// What makes a result durable, by the names of its claim.
#[must_use]
pub fn done_entry((key, request): (KeyHash, RequestHash), result: &[u8]) -> Entry {
    entry(&Written::Done { key, request, result: result.to_vec() })
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut slots = self.keys.lock();
        let MapEntry::Occupied(mut occupied) = slots.entry(self.key) else { return };
        let slot = occupied.get_mut();
        slot.running = None;
        if slot.result.is_none() && !slot.is_durable && !self.is_begun {
            occupied.remove();
        }
    }
}

/// Waits for the result of somebody else's work.
#[derive(Debug)]
pub struct Waiter(Running);

impl Waiter {
    /// The result; none if the work ended without one, and the key is free again.
    pub async fn wait(mut self) -> Option<Arc<[u8]>> {
        // An error means that the claim was dropped without one.
        let found = self.0.wait_for(Option::is_some).await.is_ok();
        if found { self.0.borrow().clone() } else { None }
    }
}

fn entry(written: &Written) -> Entry {
    Entry::new(Kind::Idempotency, encode(written))
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("plain data into memory: nothing can fail")
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
        Some((&version, _)) => Err(format!("version {version} of idempotency keys: this build knows {VERSION}")),
        None => Err("it is empty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DAY: u64 = 86_400_000;

    fn request(n: u8) -> RequestHash {
        RequestHash::of("Test", &[n])
    }

    fn new(keys: &Idempotency, key: &str, n: u8) -> Claim {
        match keys.enter(key, request(n), 0).unwrap() {
            Entered::New(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_have_1_to_64_bytes() {
        let keys = Idempotency::new(DAY);
        assert_eq!(keys.enter("", request(1), 0).unwrap_err(), KeyError::Empty);
        assert_eq!(keys.enter(&"k".repeat(65), request(1), 0).unwrap_err(), KeyError::TooLong { bytes: 65 });
        drop(new(&keys, &"k".repeat(64), 1));
    }

    #[test]
    fn calls_are_told_apart_even_if_their_bytes_run_together() {
        assert_ne!(RequestHash::of("ab", b"c"), RequestHash::of("a", b"bc"));
    }

    #[tokio::test]
    async fn the_same_request_waits_for_the_first_and_gets_its_result() {
        let keys = Idempotency::new(DAY);
        let claim = new(&keys, "k", 1);
        let Entered::UnderWay(waiter) = keys.enter("k", request(1), 0).unwrap() else { panic!() };
        let waiting = tokio::spawn(waiter.wait());
        claim.done(b"result");
        assert_eq!(waiting.await.unwrap().as_deref(), Some(&b"result"[..]));
        let Entered::Done(result) = keys.enter("k", request(1), 0).unwrap() else { panic!() };
        assert_eq!(&result[..], b"result");
    }

    #[test]
    fn another_request_is_refused_at_every_stage() {
        let keys = Idempotency::new(DAY);
        let claim = new(&keys, "k", 1);
        assert_eq!(keys.enter("k", request(2), 0).unwrap_err(), KeyError::Conflict);
        claim.done(b"result");
        assert_eq!(keys.enter("k", request(2), 0).unwrap_err(), KeyError::Conflict);
        let key = KeyHash::of("k").unwrap();
        assert_eq!(keys.reserve(key, request(2), b"x", 0).unwrap_err(), KeyError::Conflict);
    }

    #[tokio::test]
    async fn refused_before_any_effect_the_key_is_free() {
        let keys = Idempotency::new(DAY);
        let claim = new(&keys, "k", 1);
        let Entered::UnderWay(waiter) = keys.enter("k", request(1), 0).unwrap() else { panic!() };
        drop(claim);
        assert_eq!(waiter.wait().await, None);
        assert!(!new(&keys, "k", 2).was_interrupted());
    }

    #[test]
    fn begun_and_interrupted_it_is_known_as_such_after_a_restart() {
        let keys = Idempotency::new(DAY);
        let mut claim = new(&keys, "k", 1);
        let begun = claim.begun();
        let restarted = Idempotency::new(DAY);
        restarted.apply(&begun.bytes, 5).unwrap();
        assert_eq!(restarted.enter("k", request(2), 6).unwrap_err(), KeyError::Conflict);
        let Entered::New(claim) = restarted.enter("k", request(1), 6).unwrap() else { panic!() };
        assert!(claim.was_interrupted());
        let done = claim.done_entry(b"r");
        drop(claim);
        restarted.apply(&done.bytes, 7).unwrap();
        restarted.apply(&begun.bytes, 5).unwrap();
        let Entered::Done(result) = restarted.enter("k", request(1), 8).unwrap() else { panic!() };
        assert_eq!(&result[..], b"r");
    }

    #[test]
    fn a_section_holds_what_is_durable_and_nothing_else() {
        let keys = Idempotency::new(DAY);
        let (durable, volatile) = (KeyHash::of("durable").unwrap(), KeyHash::of("volatile").unwrap());
        keys.note(durable, request(1), Some(b"r"), 9);
        assert_eq!(keys.reserve(volatile, request(2), b"v", 9).unwrap(), Reserved::New);
        let restored = Idempotency::new(DAY);
        restored.restore(&keys.section()).unwrap();
        assert_eq!(restored.reserve(durable, request(1), b"other", 9).unwrap(), Reserved::Same(b"r"[..].into()));
        assert_eq!(restored.reserve(volatile, request(3), b"other", 9).unwrap(), Reserved::New);
        assert_eq!(restored.section(), keys.section());
        assert!(restored.restore(&[9, 9]).is_err() && restored.restore(&[]).is_err());
    }

    #[test]
    fn unreserve_frees_what_was_never_written() {
        let keys = Idempotency::new(DAY);
        let key = KeyHash::of("k").unwrap();
        assert_eq!(keys.reserve(key, request(1), b"a", 0).unwrap(), Reserved::New);
        keys.unreserve(&key);
        assert_eq!(keys.reserve(key, request(2), b"b", 0).unwrap(), Reserved::New);
        keys.note(key, request(2), Some(b"b"), 0);
        keys.unreserve(&key);
        assert_eq!(keys.reserve(key, request(2), b"c", 0).unwrap(), Reserved::Same(b"b"[..].into()));
    }

    #[test]
    fn keys_are_forgotten_in_time() {
        let keys = Idempotency::new(DAY);
        let key = KeyHash::of("k").unwrap();
        keys.note(key, request(1), Some(b"r"), 1000);
        keys.prune(1000 + DAY - 1);
        assert_eq!(keys.reserve(key, request(1), b"x", 0).unwrap(), Reserved::Same(b"r"[..].into()));
        keys.prune(1000 + DAY);
        assert_eq!(keys.reserve(key, request(2), b"x", 0).unwrap(), Reserved::New);
    }

    /// Entries as version 1 wrote them on its first day: they must be read for ever.
    #[test]
    fn version_1_stays_what_it_was() {
        let (key, request) = (KeyHash([1; 32]), RequestHash([2; 32]));
        let begun = entry(&Written::Begun { key, request });
        let done = entry(&Written::Done { key, request, result: vec![7, 8] });
        assert_eq!(hex::encode(&begun.bytes), format!("0100{}{}", "01".repeat(32), "02".repeat(32)));
        assert_eq!(hex::encode(&done.bytes), format!("0101{}{}020708", "01".repeat(32), "02".repeat(32)));
    }
}
