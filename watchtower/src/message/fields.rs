//! The fields of a message that was received, one after the other.

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Txid};
use millrace_wire::{ChainHash, CommitmentNumber};
use secp256k1::ecdsa::Signature;

use super::*;
use crate::registration::REGISTRATION_BYTES_MAX;
use crate::sealed::{Hint, SEALED_BYTES};

pub(super) struct Fields<'a> {
    kind: u16,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) const fn new(kind: u16, whole: usize, rest: &'a [u8]) -> Self {
        Self { kind, whole, rest }
    }

    /// The message that they are, and nothing after it.
    pub(super) fn message(mut self) -> Result<Message, DecodeError> {
        let message = self.fields()?;
        if self.rest.is_empty() {
            return Ok(message);
        }
        Err(DecodeError::TooLong { kind: self.kind, bytes: self.rest.len() })
    }

    fn fields(&mut self) -> Result<Message, DecodeError> {
        Ok(match self.kind {
            HELLO => Message::Hello { version: self.u16()?, chain_hash: ChainHash::from(self.take::<32>()?) },
            WELCOME => Message::Welcome { version: self.u16()?, channels_max: self.u32()? },
            CHANNELS => Message::Channels { is_last: self.bool()?, held: self.many(CHANNELS_MAX, Self::held)? },
            REGISTER => self.registration()?,
            CHANNEL => Message::Channel(self.held()?),
            UPDATE => Message::Update { handle: self.handle()?, number: self.number()?, secret: self.secret()? },
            BATCH => Message::Batch {
                handle: self.handle()?,
                from: self.number()?,
                to: self.number()?,
                changed: self.many(SECRETS_MAX, Self::secret)?,
            },
            ACK => Message::Ack {
                handle: self.handle()?,
                next: self.number()?,
                time_s: self.u64()?,
                signature: self.signature()?,
            },
            REFUSED => Message::Refused {
                about: self.about()?,
                reason: self.reason()?,
                next: self.number()?,
                text: self.text()?,
            },
            PREIMAGES => Message::Preimages {
                handle: self.handle()?,
                first: self.u32()?,
                preimages: self.many(PREIMAGES_MAX, Self::take)?,
            },
            PREIMAGES_TAKEN => Message::PreimagesTaken { handle: self.handle()?, count: self.u32()? },
            FORGET => Message::Forget(self.handle()?),
            FORGOTTEN => Message::Forgotten(self.handle()?),
            PING => Message::Ping,
            PONG => Message::Pong,
            ERROR => Message::Error(self.text()?),
            LIST_GROUPS => Message::ListGroups,
            GROUPS => Message::Groups {
                is_last: self.bool()?,
                blobs_max: self.u32()?,
                held: self.many(GROUPS_MAX, Self::held_group)?,
            },
            BLOB => Message::Blob { group: self.group()?, sequence: self.u64()?, sealed: self.sealed()? },
            BLOB_ACK => Message::BlobAck {
                group: self.group()?,
                next: self.u64()?,
                time_s: self.u64()?,
                signature: self.signature()?,
            },
            RELEASE => Message::Release(self.group()?),
            RELEASED => Message::Released(self.group()?),
            ASK_RECEIPT => Message::AskReceipt(self.group()?),
            other => return Err(DecodeError::UnknownType(other)),
        })
    }

    fn wrong(&self, what: impl std::fmt::Display) -> DecodeError {
        DecodeError::Field { kind: self.kind, what: what.to_string() }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let short = DecodeError::TooShort { kind: self.kind, bytes: self.whole };
        let (first, rest) = self.rest.split_first_chunk().ok_or(short)?;
        self.rest = rest;
        Ok(*first)
    }

    /// All that is left, as fields of one kind.
    fn many<T>(&mut self, max: usize, one: fn(&mut Self) -> Result<T, DecodeError>) -> Result<Vec<T>, DecodeError> {
        let mut found = Vec::new();
        while !self.rest.is_empty() {
            if found.len() == max {
                return Err(self.wrong(format!("more than {max} of one kind")));
            }
            found.push(one(self)?);
        }
        Ok(found)
    }

    fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.wrong(format!("{other} is neither yes nor no"))),
        }
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn group(&mut self) -> Result<Group, DecodeError> {
        Ok(Group(self.take()?))
    }

    fn held_group(&mut self) -> Result<HeldGroup, DecodeError> {
        // Its receipts tell the time.
        Ok(HeldGroup { group: self.group()?, next: self.u64()?, time_s: 0 })
    }

    fn sealed(&mut self) -> Result<Sealed, DecodeError> {
        Ok(Sealed { hint: Hint(self.take()?), bytes: self.take::<SEALED_BYTES>()?.to_vec() })
    }

    fn handle(&mut self) -> Result<Handle, DecodeError> {
        Ok(Handle(self.u32()?))
    }

    fn number(&mut self) -> Result<CommitmentNumber, DecodeError> {
        let [a, b, c, d, e, f] = self.take()?;
        Ok(CommitmentNumber(u64::from_be_bytes([0, 0, a, b, c, d, e, f])))
    }

    fn secret(&mut self) -> Result<Secret, DecodeError> {
        Ok(Secret(self.take()?))
    }

    fn outpoint(&mut self) -> Result<OutPoint, DecodeError> {
        Ok(OutPoint { txid: Txid::from_byte_array(self.take()?), vout: self.u32()? })
    }

    fn held(&mut self) -> Result<Held, DecodeError> {
        Ok(Held {
            handle: self.handle()?,
            funding_outpoint: self.outpoint()?,
            next: self.number()?,
            // Its receipts tell.
            time_s: 0,
            is_resolved: self.bool()?,
        })
    }

    fn about(&mut self) -> Result<About, DecodeError> {
        match self.take()? {
            [0] => Ok(About::Channel(self.handle()?)),
            [1] => Ok(About::Registration(self.outpoint()?)),
            [2] => Ok(About::Group(self.group()?)),
            [other] => Err(self.wrong(format!("a refusal about {other}"))),
        }
    }

    fn reason(&mut self) -> Result<Reason, DecodeError> {
        let code = self.u16()?;
        let found = REASONS.into_iter().find(|reason| *reason as u16 == code);
        found.ok_or_else(|| self.wrong(format!("a refusal for the reason {code}")))
    }

    fn signature(&mut self) -> Result<Signature, DecodeError> {
        let bytes: [u8; 64] = self.take()?;
        Signature::from_compact(&bytes).map_err(|error| self.wrong(error))
    }

    fn registration(&mut self) -> Result<Message, DecodeError> {
        if self.rest.len() > REGISTRATION_BYTES_MAX {
            return Err(self.wrong(format!("a registration of {} bytes", self.rest.len())));
        }
        let registration = Registration::decode(self.rest).map_err(|error| self.wrong(error))?;
        self.rest = &[];
        Ok(Message::Register(Box::new(registration)))
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        if self.rest.len() > TEXT_BYTES_MAX {
            return Err(self.wrong(format!("a text of {} bytes", self.rest.len())));
        }
        let text = String::from_utf8(self.rest.to_vec()).map_err(|error| self.wrong(error))?;
        self.rest = &[];
        Ok(text)
    }
}
