//! Invoices of our own (BOLT 11, "Requirements" for a writer).

use core::time::Duration;

use bitcoin::Network;
use bitcoin::hashes::{Hash as _, sha256};
use lightning::types::features::Bolt11InvoiceFeatures;
use lightning_invoice::{
    Currency, ExpiryTime, MinFinalCltvExpiryDelta, PositiveTimestamp, PrivateRoute, RawBolt11Invoice, RawDataPart,
    RawHrp, RouteHint, RouteHintHop, RoutingFees, Sha256, SiPrefix, TaggedField,
};
use millrace_wire::{CltvDelta, Feature, Features, Msat, PaymentHash, PaymentSecret};
use secp256k1::{SECP256K1, SecretKey};

use super::{Description, HintHop, InvoiceError, PICO_PER_MSAT, TEXT_BYTES_MAX};
use crate::onion::FINAL_EXPIRY_MARGIN;

/// What our invoices ask for at the last hop. Beyond what peeling insists on, so that a payer whose chain is some
/// blocks behind is still served; and LDK as a recipient asks for as much.
pub const MIN_FINAL_CLTV: CltvDelta = CltvDelta(42);

const _: () = assert!(MIN_FINAL_CLTV.0 > FINAL_EXPIRY_MARGIN.0, "an honest payer must pass");

/// BOLT 11: a field's length has ten bits, of five-bit groups.
const FIELD_BYTES_MAX: usize = 639;

/// An invoice to be signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewInvoice {
    /// Where it is to be paid.
    pub network: Network,
    /// What it asks for; none leaves it to the payer.
    pub amount: Option<Msat>,
    /// What its HTLCs are to be locked to.
    pub payment_hash: PaymentHash,
    /// Fresh and random.
    pub payment_secret: PaymentSecret,
    /// What it is for.
    pub description: Description,
    /// Now, since the Unix epoch.
    pub timestamp: Duration,
    /// For how long it may be paid, in whole seconds.
    pub expiry: Duration,
    /// How many blocks the last HTLC must leave; [`MIN_FINAL_CLTV`] as a rule.
    pub min_final_cltv: CltvDelta,
    /// Whether it may be paid in parts.
    pub basic_mpp: bool,
    /// What the payer is to pass on with the payment.
    pub payment_metadata: Option<Vec<u8>>,
    /// Ways to us, for a node that the graph does not know.
    pub route_hints: Vec<Vec<HintHop>>,
}

impl NewInvoice {
    /// The invoice as text, signed with the node's key. The same invoice and key make the same text.
    ///
    /// # Errors
    /// [`InvoiceError`] for what BOLT 11 cannot say: a description beyond 639 bytes, a date beyond the year 3058,
    /// an amount of nothing.
    pub fn sign(&self, node_secret: &SecretKey) -> Result<String, InvoiceError> {
        let raw = RawBolt11Invoice { hrp: self.prefix()?, data: self.data()? };
        let signed =
            raw.sign(|message| Ok::<_, InvoiceError>(SECP256K1.sign_ecdsa_recoverable(message, node_secret)))?;
        let text = signed.to_string();
        if text.len() > TEXT_BYTES_MAX {
            return Err(InvoiceError::TooLong { bytes: text.len() });
        }
        Ok(text)
    }

    fn prefix(&self) -> Result<RawHrp, InvoiceError> {
        let currency = currency(self.network);
        let Some(amount) = self.amount else {
            return Ok(RawHrp { currency, raw_amount: None, si_prefix: None });
        };
        let fault = InvoiceError::Amount { number: amount.0, unit_pico: PICO_PER_MSAT };
        if amount == Msat::ZERO || !amount.is_money() {
            return Err(fault);
        }
        let pico = amount.0.checked_mul(PICO_PER_MSAT).ok_or(fault)?;
        // BOLT 11: the shortest form, which is the largest unit that divides.
        let unit = *SiPrefix::values_desc()
            .iter()
            .find(|unit| pico % unit.multiplier() == 0)
            .expect("everything is a whole number of pico");
        Ok(RawHrp { currency, raw_amount: Some(pico / unit.multiplier()), si_prefix: Some(unit) })
    }

    fn data(&self) -> Result<RawDataPart, InvoiceError> {
        let timestamp = PositiveTimestamp::from_duration_since_epoch(self.timestamp).map_err(malformed)?;
        let mut fields = vec![
            TaggedField::PaymentSecret(lightning_invoice::PaymentSecret(*self.payment_secret.as_bytes())),
            TaggedField::PaymentHash(sha256(self.payment_hash.0)),
            self.description()?,
            TaggedField::ExpiryTime(ExpiryTime::from_seconds(self.expiry.as_secs())),
            TaggedField::MinFinalCltvExpiryDelta(MinFinalCltvExpiryDelta(self.min_final_cltv.0.into())),
        ];
        if let Some(metadata) = &self.payment_metadata {
            if metadata.len() > FIELD_BYTES_MAX {
                let words = format!("payment metadata of {} bytes, of {FIELD_BYTES_MAX} at most", metadata.len());
                return Err(InvoiceError::Malformed(words));
            }
            fields.push(TaggedField::PaymentMetadata(metadata.clone()));
        }
        for route in &self.route_hints {
            let hint = RouteHint(route.iter().map(hint_hop).collect::<Result<_, _>>()?);
            fields.push(TaggedField::PrivateRoute(PrivateRoute::new(hint).map_err(malformed)?));
        }
        fields.push(TaggedField::Features(self.features()));
        Ok(RawDataPart { timestamp, tagged_fields: fields.into_iter().map(Into::into).collect() })
    }

    fn description(&self) -> Result<TaggedField, InvoiceError> {
        match &self.description {
            Description::Text(text) => {
                lightning_invoice::Description::new(text.clone()).map(TaggedField::Description).map_err(malformed)
            }
            Description::Hash(hash) => Ok(TaggedField::DescriptionHash(sha256(*hash))),
        }
    }

    /// BOLT 9: what a payer has to do is required, what he may do is not. Metadata is required, since a payment
    /// without it could not be recognised.
    fn features(&self) -> Bolt11InvoiceFeatures {
        let mut bits = Features::from_bits(&[Feature::VarOnion.required_bit(), Feature::PaymentSecret.required_bit()]);
        if self.basic_mpp {
            bits.set(Feature::BasicMpp.optional_bit());
        }
        if self.payment_metadata.is_some() {
            bits.set(Feature::PaymentMetadata.required_bit());
        }
        Bolt11InvoiceFeatures::from_be_bytes(bits.to_be_bytes())
    }
}

fn currency(network: Network) -> Currency {
    match network {
        Network::Bitcoin => Currency::Bitcoin,
        Network::Testnet | Network::Testnet4 => Currency::BitcoinTestnet,
        Network::Signet => Currency::Signet,
        Network::Regtest => Currency::Regtest,
    }
}

fn malformed(fault: lightning_invoice::CreationError) -> InvoiceError {
    InvoiceError::Malformed(fault.to_string())
}

fn sha256(bytes: [u8; 32]) -> Sha256 {
    Sha256(sha256::Hash::from_byte_array(bytes))
}

fn hint_hop(hop: &HintHop) -> Result<RouteHintHop, InvoiceError> {
    let base_msat = u32::try_from(hop.fee_base.0)
        .map_err(|_| InvoiceError::Malformed(format!("a base fee of {} in a route hint", hop.fee_base)))?;
    Ok(RouteHintHop {
        src_node_id: hop.node_id,
        short_channel_id: hop.short_channel_id.0,
        fees: RoutingFees { base_msat, proportional_millionths: hop.fee_proportional_millionths },
        cltv_expiry_delta: hop.cltv_expiry_delta.0,
        htlc_minimum_msat: None,
        htlc_maximum_msat: None,
    })
}
