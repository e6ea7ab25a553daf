//! Reading and writing of the primitive types that messages are made of (BOLT 1, "Fundamental Types" and
//! "Type-Length-Value Format").
//!
//! A [`Reader`] hands out slices of the message it stands on: a length that was not checked against the
//! bytes left never reaches an allocation. What a field means is up to the message.

use secp256k1::PublicKey;
use secp256k1::ecdsa::Signature;

use super::error::{DecodeError, FieldFault};

/// A cursor over one message, or over the value of one TLV record in it.
pub(crate) struct Reader<'a> {
    message: &'static str,
    bytes: &'a [u8],
    /// Where the first of `bytes` stands in the whole message, its type included.
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Over `bytes`, which start at `offset` of the message called `message`.
    pub(crate) const fn new(message: &'static str, bytes: &'a [u8], offset: usize) -> Self {
        Self { message, bytes, offset }
    }

    /// A second cursor at the same place.
    pub(crate) const fn fork(&self) -> Self {
        Self { message: self.message, bytes: self.bytes, offset: self.offset }
    }

    /// Bytes not yet read.
    pub(crate) const fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// An error about `field`, which starts here.
    pub(crate) const fn fault(&self, field: &'static str, fault: FieldFault) -> DecodeError {
        DecodeError::Field { message: self.message, field, offset: self.offset, fault }
    }

    /// Everything not yet read, left where it is.
    pub(crate) const fn peek(&self) -> &'a [u8] {
        self.bytes
    }

    /// Everything not yet read.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = self.bytes;
        self.skip(rest.len());
        rest
    }

    pub(crate) fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some(taken) = self.bytes.get(..len) else {
            let left = self.remaining();
            return Err(self.fault(field, FieldFault::Short { needed: len as u64, left }));
        };
        self.skip(len);
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// BOLT 1, "BigSize": one, three, five or nine bytes, and never more than needed.
    pub(crate) fn big_size(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let at = self.fork();
        let (value, least) = match self.u8(field)? {
            0xfd => (u64::from(self.u16(field)?), 0xfd),
            0xfe => (u64::from(self.u32(field)?), 0x1_0000),
            0xff => (self.u64(field)?, 0x1_0000_0000),
            small => (u64::from(small), 0),
        };
        if value < least {
            return Err(at.fault(field, FieldFault::NotMinimal { value }));
        }
        Ok(value)
    }

    /// A compressed point that is on the curve.
    pub(crate) fn point(&mut self, field: &'static str) -> Result<PublicKey, DecodeError> {
        let at = self.fork();
        let bytes: [u8; 33] = self.array(field)?;
        PublicKey::from_slice(&bytes).map_err(|_| at.fault(field, FieldFault::NotAPoint))
    }

    /// A signature in 64 bytes.
    pub(crate) fn signature(&mut self, field: &'static str) -> Result<Signature, DecodeError> {
        let at = self.fork();
        let bytes: [u8; 64] = self.array(field)?;
        Signature::from_compact(&bytes).map_err(|_| at.fault(field, FieldFault::NotASignature))
    }

    /// Bytes behind a two-byte count.
    pub(crate) fn counted(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.u16(field)?;
        self.take(field, usize::from(len))
    }

    /// The bytes behind a two-byte count, to be read further.
    pub(crate) fn counted_reader(&mut self, field: &'static str) -> Result<Self, DecodeError> {
        let len = self.u16(field)?;
        let offset = self.offset;
        let bytes = self.take(field, usize::from(len))?;
        Ok(Self { message: self.message, bytes, offset })
    }

    /// A TLV stream up to the end. `known` reads the value of a record it knows and returns
    /// true, or returns false.
    ///
    /// BOLT 1, "Type-Length-Value Format": types rise strictly, a value is read to its last byte, an
    /// unknown even type is an error and an unknown odd one is passed over.
    pub(crate) fn tlv_stream(
        &mut self,
        mut known: impl FnMut(u64, &mut Reader<'a>) -> Result<bool, DecodeError>,
    ) -> Result<(), DecodeError> {
        let mut previous = None;
        while self.remaining() > 0 {
            let at = self.fork();
            let found = self.big_size("tlv type")?;
            if let Some(previous) = previous.filter(|previous| *previous >= found) {
                return Err(at.fault("tlv type", FieldFault::TlvOrder { previous, found }));
            }
            previous = Some(found);
            let mut value = self.tlv_value()?;
            if known(found, &mut value)? {
                value.end()?;
            } else if found % 2 == 0 {
                return Err(at.fault("tlv type", FieldFault::TlvUnknownEven { found }));
            }
        }
        Ok(())
    }

    /// The TLV stream of a message for which none is defined: BOLT 1 allows every message one.
    pub(crate) fn unknown_extension(&mut self) -> Result<(), DecodeError> {
        self.tlv_stream(|_, _| Ok(false))
    }

    fn tlv_value(&mut self) -> Result<Self, DecodeError> {
        let len = self.big_size("tlv length")?;
        let left = self.remaining();
        if len > left as u64 {
            return Err(self.fault("tlv value", FieldFault::Short { needed: len, left }));
        }
        let offset = self.offset;
        let bytes = self.take("tlv value", len as usize)?;
        Ok(Self { message: self.message, bytes, offset })
    }

    fn end(&self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            extra => Err(self.fault("tlv value", FieldFault::Trailing { extra })),
        }
    }

    /// Moves past `len` bytes that are there.
    pub(crate) fn skip(&mut self, len: usize) {
        self.bytes = &self.bytes[len..];
        self.offset += len;
    }
}

/// Appends the primitive types to a buffer that the caller owns.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    fn put_big_size(&mut self, value: u64) {
        match value {
            0..=0xfc => self.put(&[value as u8]),
            0xfd..=0xffff => {
                self.put_u8(0xfd);
                self.put_u16(value as u16);
            }
            0x1_0000..=0xffff_ffff => {
                self.put_u8(0xfe);
                self.put_u32(value as u32);
            }
            0x1_0000_0000.. => {
                self.put_u8(0xff);
                self.put_u64(value);
            }
        }
    }

    fn put_point(&mut self, point: &PublicKey) {
        self.put(&point.serialize());
    }

    fn put_signature(&mut self, signature: &Signature) {
        self.put(&signature.serialize_compact());
    }

    /// A two-byte count. One that does not fit belongs to a message that is too long as a whole, which its
    /// encoder refuses.
    fn put_count(&mut self, count: usize) {
        self.put_u16(u16::try_from(count).unwrap_or(u16::MAX));
    }

    fn put_counted(&mut self, bytes: &[u8]) {
        self.put_count(bytes.len());
        self.put(bytes);
    }

    fn put_tlv(&mut self, kind: u64, value: &[u8]) {
        self.put_big_size(kind);
        self.put_big_size(value.len() as u64);
        self.put(value);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Stores arrays too long for serde's own implementation as a run of bytes.
pub(crate) mod fixed_bytes {
    use core::fmt;

    use serde::de::{Error, SeqAccess, Visitor};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
        deserializer.deserialize_bytes(FixedBytes::<N>)
    }

    struct FixedBytes<const N: usize>;

    impl<'de, const N: usize> Visitor<'de> for FixedBytes<N> {
        type Value = [u8; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{N} bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut bytes = [0; N];
            for (index, byte) in bytes.iter_mut().enumerate() {
                let next = seq.next_element()?;
                *byte = next.ok_or_else(|| A::Error::invalid_length(index, &self))?;
            }
            if seq.next_element::<u8>()?.is_some() {
                return Err(A::Error::invalid_length(N + 1, &self));
            }
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests;
