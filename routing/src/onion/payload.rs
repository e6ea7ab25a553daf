//! What a layer of an onion tells its hop (BOLT 4, "`payload` format").
//!
//! Written in the one form BOLT 4 allows, read strictly: types ascend, lengths are minimal, an even type that
//! is not understood here is a fault. Fields of blinded routes count as not understood.

use millrace_wire::{CltvExpiry, Msat, PaymentSecret, Preimage, ShortChannelId};

use super::OnionError;
use super::bigsize::{put_bigsize, read_tu32, read_tu64, take_bigsize, truncated};

const AMT_TO_FORWARD: u64 = 2;
const OUTGOING_CLTV_VALUE: u64 = 4;
const SHORT_CHANNEL_ID: u64 = 6;
const PAYMENT_DATA: u64 = 8;
const PAYMENT_METADATA: u64 = 16;
const KEYSEND_PREIMAGE: u64 = 5_482_373_484;
/// BOLT 4: types from here on are free for applications.
const FIRST_CUSTOM: u64 = 65_536;

/// What one hop is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// Pass it on.
    Forward(ForwardPayload),
    /// It is yours.
    Final(FinalPayload),
}

/// A hop's orders on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForwardPayload {
    /// The channel to pass it on over.
    pub next: ShortChannelId,
    /// `amt_to_forward`: what the next HTLC carries.
    pub amount: Msat,
    /// `outgoing_cltv_value`: when the next HTLC expires.
    pub expiry: CltvExpiry,
}

/// What the recipient is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FinalPayload {
    /// `amt_to_forward`: what the last HTLC carries at least.
    pub amount: Msat,
    /// `outgoing_cltv_value`: when the last HTLC expires at the earliest.
    pub expiry: CltvExpiry,
    /// What all parts of the payment carry together. Travels beside the payment secret.
    pub total: Msat,
    /// From the invoice. None only for a spontaneous payment in one part.
    pub payment_secret: Option<PaymentSecret>,
    /// From the invoice, unread.
    pub payment_metadata: Option<Vec<u8>>,
    /// The preimage itself, when the payment is spontaneous.
    pub keysend_preimage: Option<Preimage>,
    /// Records of applications: types from 65536 on, ascending.
    pub custom: Vec<(u64, Vec<u8>)>,
}

impl FinalPayload {
    /// A payment of an invoice in one part.
    #[must_use]
    pub fn new(amount: Msat, expiry: CltvExpiry, payment_secret: PaymentSecret, metadata: Option<Vec<u8>>) -> Self {
        Self {
            amount,
            expiry,
            total: amount,
            payment_secret: Some(payment_secret),
            payment_metadata: metadata,
            keysend_preimage: None,
            custom: Vec::new(),
        }
    }
}

/// Where a payload went wrong: what `invalid_onion_payload` reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PayloadFault {
    pub(super) kind: u64,
    /// From the start of the TLV stream.
    pub(super) offset: usize,
}

impl Payload {
    /// The TLV stream, without its length.
    pub(super) fn encode(&self) -> Result<Vec<u8>, OnionError> {
        match self {
            Self::Forward(forward) => Ok(forward.encode()),
            Self::Final(last) => last.encode(),
        }
    }

    /// Reads a TLV stream; `is_final` says which of the two it has to be.
    pub(super) fn decode(bytes: &[u8], is_final: bool) -> Result<Self, PayloadFault> {
        let records = Records::read(bytes)?;
        if is_final { records.into_final().map(Self::Final) } else { records.into_forward().map(Self::Forward) }
    }
}

impl ForwardPayload {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        put_record(AMT_TO_FORWARD, &truncated(self.amount.0), &mut out);
        put_record(OUTGOING_CLTV_VALUE, &truncated(self.expiry.0.into()), &mut out);
        put_record(SHORT_CHANNEL_ID, &self.next.0.to_be_bytes(), &mut out);
        out
    }
}

impl FinalPayload {
    fn encode(&self) -> Result<Vec<u8>, OnionError> {
        let mut out = Vec::with_capacity(96);
        put_record(AMT_TO_FORWARD, &truncated(self.amount.0), &mut out);
        put_record(OUTGOING_CLTV_VALUE, &truncated(self.expiry.0.into()), &mut out);
        if let Some(secret) = &self.payment_secret {
            put_record(PAYMENT_DATA, &[&secret.as_bytes()[..], &truncated(self.total.0)].concat(), &mut out);
        }
        if let Some(metadata) = &self.payment_metadata {
            put_record(PAYMENT_METADATA, metadata, &mut out);
        }
        let preimage = self.keysend_preimage.as_ref().map(|preimage| (KEYSEND_PREIMAGE, &preimage.as_bytes()[..]));
        let mut late: Vec<(u64, &[u8])> = self.custom.iter().map(|(kind, value)| (*kind, &value[..])).collect();
        late.extend(preimage);
        late.sort_by_key(|(kind, _)| *kind);
        let mut previous = FIRST_CUSTOM - 1;
        for (kind, value) in late {
            if kind <= previous {
                return Err(OnionError::CustomType { kind });
            }
            put_record(kind, value, &mut out);
            previous = kind;
        }
        Ok(out)
    }
}

fn put_record(kind: u64, value: &[u8], out: &mut Vec<u8>) {
    put_bigsize(kind, out);
    put_bigsize(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// A field's value and where its record began.
type Found<T> = Option<(T, usize)>;

/// All that a payload can hold, before it is clear whose it is.
#[derive(Default)]
struct Records {
    amount: Found<Msat>,
    expiry: Found<CltvExpiry>,
    next: Found<ShortChannelId>,
    payment_data: Found<(PaymentSecret, Msat)>,
    metadata: Found<Vec<u8>>,
    preimage: Found<Preimage>,
    custom: Vec<(u64, Vec<u8>)>,
    /// The stream's length, where a field that is missing is missed.
    end: usize,
}

impl Records {
    fn read(bytes: &[u8]) -> Result<Self, PayloadFault> {
        let mut records = Self { end: bytes.len(), ..Self::default() };
        let mut previous = None;
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = bytes.len() - rest.len();
            let kind = take_bigsize(&mut rest).ok_or(PayloadFault { kind: 0, offset })?;
            let fault = PayloadFault { kind, offset };
            if previous >= Some(kind) {
                return Err(fault);
            }
            let length = take_bigsize(&mut rest).and_then(|length| usize::try_from(length).ok()).ok_or(fault)?;
            let (value, after) = rest.split_at_checked(length).ok_or(fault)?;
            records.take(kind, value, offset).ok_or(fault)?;
            rest = after;
            previous = Some(kind);
        }
        Ok(records)
    }

    /// `None` for a value that is not right for its type, or an even type that is not understood.
    fn take(&mut self, kind: u64, value: &[u8], offset: usize) -> Option<()> {
        match kind {
            AMT_TO_FORWARD => self.amount = Some((Msat(read_tu64(value)?), offset)),
            OUTGOING_CLTV_VALUE => self.expiry = Some((CltvExpiry(read_tu32(value)?), offset)),
            SHORT_CHANNEL_ID => {
                self.next = Some((ShortChannelId(u64::from_be_bytes(value.try_into().ok()?)), offset));
            }
            PAYMENT_DATA => {
                let (secret, total) = value.split_first_chunk()?;
                self.payment_data = Some(((PaymentSecret::new(*secret), Msat(read_tu64(total)?)), offset));
            }
            PAYMENT_METADATA => self.metadata = Some((value.to_vec(), offset)),
            KEYSEND_PREIMAGE => self.preimage = Some((Preimage::new(value.try_into().ok()?), offset)),
            even if even % 2 == 0 => return None,
            FIRST_CUSTOM.. => self.custom.push((kind, value.to_vec())),
            _ignored => {}
        }
        Some(())
    }

    fn into_forward(self) -> Result<ForwardPayload, PayloadFault> {
        forbid(PAYMENT_DATA, self.payment_data.as_ref())?;
        forbid(PAYMENT_METADATA, self.metadata.as_ref())?;
        forbid(KEYSEND_PREIMAGE, self.preimage.as_ref())?;
        Ok(ForwardPayload {
            amount: demand(AMT_TO_FORWARD, self.amount, self.end)?,
            expiry: demand(OUTGOING_CLTV_VALUE, self.expiry, self.end)?,
            next: demand(SHORT_CHANNEL_ID, self.next, self.end)?,
        })
    }

    fn into_final(self) -> Result<FinalPayload, PayloadFault> {
        forbid(SHORT_CHANNEL_ID, self.next.as_ref())?;
        let amount = demand(AMT_TO_FORWARD, self.amount, self.end)?;
        let expiry = demand(OUTGOING_CLTV_VALUE, self.expiry, self.end)?;
        let (payment_secret, total) = match self.payment_data {
            Some(((secret, total), _)) => (Some(secret), total),
            None => (None, amount),
        };
        Ok(FinalPayload {
            amount,
            expiry,
            total,
            payment_secret,
            payment_metadata: self.metadata.map(|(metadata, _)| metadata),
            keysend_preimage: self.preimage.map(|(preimage, _)| preimage),
            custom: self.custom,
        })
    }
}

fn demand<T>(kind: u64, found: Found<T>, end: usize) -> Result<T, PayloadFault> {
    found.map(|(value, _)| value).ok_or(PayloadFault { kind, offset: end })
}

fn forbid<T>(kind: u64, found: Option<&(T, usize)>) -> Result<(), PayloadFault> {
    match found {
        Some((_, offset)) => Err(PayloadFault { kind, offset: *offset }),
        None => Ok(()),
    }
}
