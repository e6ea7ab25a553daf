//! One channel as the tower keeps it: what it was told, the peer's secrets, and how the channel ends.

use millrace_channel::secrets::RevealedSecrets;
use millrace_wire::{CommitmentNumber, Sat};
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::registration::Registration;
use crate::story::Story;

/// A channel that is watched, or was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Watched {
    /// Whose it is.
    pub client: PublicKey,
    /// What the client said of it.
    pub registration: Registration,
    /// The peer's secrets. After its end they are wiped.
    pub secrets: RevealedSecrets,
    /// When the newest of them was taken, in seconds of the Unix epoch. It never goes back.
    pub time_s: u64,
    /// Whether the blocks before its registration were looked through, or need not be.
    pub is_checked: bool,
    /// How far it is.
    pub phase: Phase,
    /// What was seen of preimages, in the order in which they were.
    pub preimages: Vec<[u8; 32]>,
    /// How many of them the client has.
    pub preimages_taken: u32,
}

/// How far a channel is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Its funding output is not spent in any block that was seen.
    Open,
    /// It is.
    Closing(Story),
    /// Nothing can happen any more; kept until the client knows.
    Resolved(Ended),
}

/// What remains to be said of a channel that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// The first commitment that was not known to be revoked.
    pub next: CommitmentNumber,
    /// Whether the peer published a revoked commitment.
    pub was_breach: bool,
    /// What was taken for it.
    pub taken: Sat,
    /// What the cheater got of the outputs that could have been taken.
    pub lost: Sat,
}

impl Watched {
    pub(crate) fn new(client: PublicKey, registration: Registration) -> Self {
        Self {
            client,
            registration,
            secrets: RevealedSecrets::new(),
            time_s: 0,
            is_checked: false,
            phase: Phase::Open,
            preimages: Vec::new(),
            preimages_taken: 0,
        }
    }

    /// The lowest commitment whose secret the tower does not have: it has those of all below.
    #[must_use]
    pub const fn next(&self) -> CommitmentNumber {
        match &self.phase {
            Phase::Open | Phase::Closing(_) => self.secrets.next(),
            Phase::Resolved(ended) => ended.next,
        }
    }

    /// How it ends, while it does.
    #[must_use]
    pub const fn story(&self) -> Option<&Story> {
        match &self.phase {
            Phase::Closing(story) => Some(story),
            Phase::Open | Phase::Resolved(_) => None,
        }
    }

    /// Preimages that the client does not have.
    #[must_use]
    pub fn preimages_left(&self) -> &[[u8; 32]] {
        self.preimages.get(self.preimages_taken as usize..).unwrap_or_default()
    }

    /// Looks at the story again, after a secret came or after a start.
    pub(crate) fn judge(&mut self) {
        let Phase::Closing(story) = &mut self.phase else { return };
        let secret = story.number.and_then(|number| self.secrets.get(number));
        if let Some(secret) = secret {
            story.judge(&self.registration, &secret);
        }
    }

    /// It has ended.
    pub(crate) fn end(&mut self) {
        let Phase::Closing(story) = &self.phase else { return };
        let (taken, lost) = story.taken_and_lost(self.registration.to_self_delay);
        let ended = Ended { next: self.secrets.next(), was_breach: story.is_breach(), taken, lost };
        self.phase = Phase::Resolved(ended);
        self.is_checked = true;
        self.secrets = RevealedSecrets::new();
    }
}
