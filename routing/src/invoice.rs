//! Invoices read into types (BOLT 11), on lightning-invoice's bech32 and fields.
//!
//! [`Invoice::parse`] does one curve operation: it recovers the payee's key from the signature, or verifies with
//! the key that the invoice names; lightning-invoice's own constructor does both. Whether an invoice is of our
//! network, has expired or asks for a sensible amount is looked at by who pays it, with the methods here.
//! [`NewInvoice::sign`] makes invoices. Fallback addresses are skipped.

mod create;
#[cfg(test)]
mod tests;

use core::time::Duration;

use bitcoin::Network;
use lightning_invoice::{Currency, RawBolt11Invoice, SignedRawBolt11Invoice, TaggedField};
use millrace_wire::{CltvDelta, Feature, Features, Msat, PaymentHash, PaymentSecret, PublicKey, ShortChannelId};
use secp256k1::{Message, SECP256K1};

pub use create::{MIN_FINAL_CLTV, NewInvoice};

/// BOLT 11: what an invoice without an `x` field means.
pub const DEFAULT_EXPIRY: Duration = Duration::from_secs(3600);
/// BOLT 11: what an invoice without a `c` field means.
pub const DEFAULT_MIN_FINAL_CLTV: CltvDelta = CltvDelta(18);
/// BOLT 11 has no limit, a QR code holds half of this. It bounds the work for text that comes from anywhere.
pub const TEXT_BYTES_MAX: usize = 16_384;

/// BOLT 11: `p`, units of 10⁻¹² bitcoin, of which ten are one millisatoshi.
const PICO_PER_MSAT: u64 = 10;
const PICO_PER_BITCOIN: u64 = 1_000_000_000_000;

/// The features that an invoice may require of us.
const UNDERSTOOD: [Feature; 4] =
    [Feature::VarOnion, Feature::PaymentSecret, Feature::BasicMpp, Feature::PaymentMetadata];

/// An invoice whose signature holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invoice {
    /// By its prefix. Both testnets have the same: compare with [`Invoice::is_for`].
    pub network: Network,
    /// What it asks for; none leaves it to the payer.
    pub amount: Option<Msat>,
    /// What its HTLCs are locked to.
    pub payment_hash: PaymentHash,
    /// What proves to the payee that the payer has the invoice.
    pub payment_secret: PaymentSecret,
    /// What it is for, in words of the payee: escape them before they reach a terminal or a page.
    pub description: Description,
    /// When it was made, since the Unix epoch.
    pub timestamp: Duration,
    /// For how long after that it may be paid.
    pub expiry: Duration,
    /// How many blocks the last HTLC must leave.
    pub min_final_cltv: CltvDelta,
    /// Whom it pays.
    pub payee: PublicKey,
    /// What it offers and requires.
    pub features: Features,
    /// To be passed on with the payment, unread.
    pub payment_metadata: Option<Vec<u8>>,
    /// Ways to a payee whom the graph does not know.
    pub route_hints: Vec<Vec<HintHop>>,
}

/// What an invoice is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Description {
    /// In words, of 639 bytes at most.
    Text(String),
    /// The SHA-256 of words that are elsewhere.
    Hash([u8; 32]),
}

/// One channel of a way to the payee.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HintHop {
    /// Where the channel begins.
    pub node_id: PublicKey,
    /// The channel.
    pub short_channel_id: ShortChannelId,
    /// What its node takes for each payment.
    pub fee_base: Msat,
    /// What its node takes of a payment, in millionths.
    pub fee_proportional_millionths: u32,
    /// The blocks its node takes.
    pub cltv_expiry_delta: CltvDelta,
}

/// What is wrong with an invoice, or with one to be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvoiceError {
    /// It is not in BOLT 11's form.
    #[error("not a BOLT 11 invoice: {0}")]
    Malformed(String),
    /// Nobody needs so long an invoice.
    #[error("{bytes} bytes are too long for an invoice, {TEXT_BYTES_MAX} are the limit")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A chain that Millrace does not know.
    #[error("the invoice is for a network that is not supported: {0}")]
    Network(String),
    /// Not a positive whole number of millisatoshis, or more than there are: from 18.4 million bitcoin on it
    /// cannot be counted in BOLT 11's pico-bitcoin.
    #[error("the invoice's amount of {number} × {unit_pico} pico-bitcoin is no amount")]
    Amount {
        /// As written.
        number: u64,
        /// One unit of it, in pico-bitcoin.
        unit_pico: u64,
    },
    /// A field that has to be there exactly once.
    #[error("the invoice has {found} fields for its {field}, not one")]
    Field {
        /// BOLT 11's word for it.
        field: &'static str,
        /// How many there are.
        found: usize,
    },
    /// The blocks it asks for at the end are beyond reason.
    #[error("the invoice asks for {blocks} blocks at the last hop")]
    MinFinalCltv {
        /// How many.
        blocks: u64,
    },
    /// It requires what we do not know.
    #[error("the invoice requires unknown features: bits {bits:?}")]
    Features {
        /// The even bits.
        bits: Vec<u32>,
    },
    /// The signature is not the payee's, or not of this invoice.
    #[error("the invoice's signature is invalid")]
    Signature,
}

impl Invoice {
    /// Reads an invoice, in either case, with or without `lightning:` in front.
    ///
    /// # Errors
    /// [`InvoiceError`], in words for the person who pasted it.
    pub fn parse(text: &str) -> Result<Self, InvoiceError> {
        let text = without_scheme(text.trim());
        if text.len() > TEXT_BYTES_MAX {
            return Err(InvoiceError::TooLong { bytes: text.len() });
        }
        let signed: SignedRawBolt11Invoice =
            text.parse().map_err(|fault| InvoiceError::Malformed(format!("{fault}")))?;
        let payee = check_signature(&signed)?;
        Self::read(signed.raw_invoice(), payee)
    }

    /// Whether it is to be paid on this network.
    #[must_use]
    pub fn is_for(&self, network: Network) -> bool {
        self.network == if network == Network::Testnet4 { Network::Testnet } else { network }
    }

    /// Since the Unix epoch, when it may not be paid any more; `None` when that is beyond counting.
    #[must_use]
    pub fn expires_at(&self) -> Option<Duration> {
        self.timestamp.checked_add(self.expiry)
    }

    /// Whether it may not be paid any more at `now`, since the Unix epoch.
    #[must_use]
    pub fn has_expired(&self, now: Duration) -> bool {
        self.expires_at().is_some_and(|end| end <= now)
    }

    /// Whether the payee takes a payment in parts.
    #[must_use]
    pub fn may_be_paid_in_parts(&self) -> bool {
        self.features.supports(Feature::BasicMpp)
    }

    fn read(raw: &RawBolt11Invoice, payee: PublicKey) -> Result<Self, InvoiceError> {
        Ok(Self {
            network: network(&raw.hrp.currency)?,
            amount: amount(raw)?,
            payment_hash: exactly_one(raw, "payment hash", payment_hash)?,
            payment_secret: exactly_one(raw, "payment secret", payment_secret)?,
            description: exactly_one(raw, "description", description)?,
            timestamp: raw.data.timestamp.as_duration_since_epoch(),
            expiry: raw.expiry_time().map_or(DEFAULT_EXPIRY, |field| *field.as_duration()),
            min_final_cltv: min_final_cltv(raw)?,
            payee,
            features: features(raw)?,
            payment_metadata: raw.payment_metadata().cloned(),
            route_hints: route_hints(raw),
        })
    }
}

fn without_scheme(text: &str) -> &str {
    const SCHEME: &str = "lightning:";
    match text.get(..SCHEME.len()) {
        Some(start) if start.eq_ignore_ascii_case(SCHEME) => &text[SCHEME.len()..],
        Some(_) | None => text,
    }
}

/// BOLT 11: a named payee's signature is verified, which a high S fails; otherwise the key is recovered.
fn check_signature(signed: &SignedRawBolt11Invoice) -> Result<PublicKey, InvoiceError> {
    let message = Message::from_digest(*signed.signable_hash());
    let signature = &signed.signature().0;
    match signed.payee_pub_key() {
        Some(named) => SECP256K1.verify_ecdsa(&message, &signature.to_standard(), &named.0).map(|()| named.0),
        None => SECP256K1.recover_ecdsa(&message, signature),
    }
    .map_err(|_| InvoiceError::Signature)
}

fn network(currency: &Currency) -> Result<Network, InvoiceError> {
    match currency {
        Currency::Bitcoin => Ok(Network::Bitcoin),
        Currency::BitcoinTestnet => Ok(Network::Testnet),
        Currency::Regtest => Ok(Network::Regtest),
        Currency::Signet => Ok(Network::Signet),
        Currency::Simnet => Err(InvoiceError::Network("simnet".to_owned())),
    }
}

/// lightning-invoice takes an amount that overflows for none, which would leave the choice to the payer.
fn amount(raw: &RawBolt11Invoice) -> Result<Option<Msat>, InvoiceError> {
    let Some(number) = raw.hrp.raw_amount else {
        return Ok(None);
    };
    let unit_pico = raw.hrp.si_prefix.as_ref().map_or(PICO_PER_BITCOIN, |prefix| prefix.multiplier());
    number
        .checked_mul(unit_pico)
        .filter(|pico| *pico > 0 && pico % PICO_PER_MSAT == 0)
        .map(|pico| Msat(pico / PICO_PER_MSAT))
        .filter(|amount| amount.is_money())
        .map(Some)
        .ok_or(InvoiceError::Amount { number, unit_pico })
}

fn exactly_one<T>(
    raw: &RawBolt11Invoice,
    field: &'static str,
    read: fn(&TaggedField) -> Option<T>,
) -> Result<T, InvoiceError> {
    let mut values = raw.known_tagged_fields().filter_map(read);
    match (values.next(), values.count()) {
        (Some(value), 0) => Ok(value),
        (None, _) => Err(InvoiceError::Field { field, found: 0 }),
        (Some(_), more) => Err(InvoiceError::Field { field, found: more + 1 }),
    }
}

fn payment_hash(field: &TaggedField) -> Option<PaymentHash> {
    if let TaggedField::PaymentHash(hash) = field { Some(PaymentHash(*hash.0.as_ref())) } else { None }
}

fn payment_secret(field: &TaggedField) -> Option<PaymentSecret> {
    if let TaggedField::PaymentSecret(secret) = field { Some(PaymentSecret::new(secret.0)) } else { None }
}

fn description(field: &TaggedField) -> Option<Description> {
    if let TaggedField::Description(text) = field {
        Some(Description::Text(text.as_inner().0.clone()))
    } else if let TaggedField::DescriptionHash(hash) = field {
        Some(Description::Hash(*hash.0.as_ref()))
    } else {
        None
    }
}

fn min_final_cltv(raw: &RawBolt11Invoice) -> Result<CltvDelta, InvoiceError> {
    let Some(field) = raw.min_final_cltv_expiry_delta() else {
        return Ok(DEFAULT_MIN_FINAL_CLTV);
    };
    u16::try_from(field.0).map(CltvDelta).map_err(|_| InvoiceError::MinFinalCltv { blocks: field.0 })
}

/// BOLT 11: an unknown even bit means that the payment must fail.
fn features(raw: &RawBolt11Invoice) -> Result<Features, InvoiceError> {
    let Some(field) = raw.features() else {
        return Ok(Features::empty());
    };
    let big_endian: Vec<u8> = field.le_flags().iter().rev().copied().collect();
    let features = Features::from_be_bytes(&big_endian);
    let bits = features.unknown_even(&Features::from_bits(&UNDERSTOOD.map(Feature::optional_bit)));
    if bits.is_empty() { Ok(features) } else { Err(InvoiceError::Features { bits }) }
}

fn route_hints(raw: &RawBolt11Invoice) -> Vec<Vec<HintHop>> {
    let routes = raw.private_routes().into_iter();
    routes.map(|route| route.0.iter().map(HintHop::from).collect()).filter(|route: &Vec<_>| !route.is_empty()).collect()
}

impl From<&lightning_invoice::RouteHintHop> for HintHop {
    fn from(hop: &lightning_invoice::RouteHintHop) -> Self {
        Self {
            node_id: hop.src_node_id,
            short_channel_id: ShortChannelId(hop.short_channel_id),
            fee_base: Msat(hop.fees.base_msat.into()),
            fee_proportional_millionths: hop.fees.proportional_millionths,
            cltv_expiry_delta: CltvDelta(hop.cltv_expiry_delta),
        }
    }
}
