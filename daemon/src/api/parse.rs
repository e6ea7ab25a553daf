//! Fields of requests into types, and types into fields. Whatever a client sends, it is an error value at most.

use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, OutPoint, Txid};
use millrace_chain::fees::FeeEstimates;
use millrace_rpc::v1;
use millrace_wire::{ChannelId, Features, FeeratePerKw, PaymentHash, PublicKey, ShortChannelId};
use tonic::Status;

use super::fault;
use crate::view::RowKey;

/// Entries of a page that does not say.
const PAGE_DEFAULT: u32 = 100;
/// Entries of the largest page.
const PAGE_MAX: u32 = 1_000;
/// What an on-chain transaction aims at that does not say.
const TARGET_BLOCKS: u32 = 6;
/// bitcoind estimates no further.
const TARGET_BLOCKS_MAX: u32 = 1_008;
/// A host name has at most 253 bytes.
const ADDRESS_BYTES_MAX: usize = 300;

/// Exactly 32 bytes.
pub(super) fn bytes_32(name: &str, bytes: &[u8]) -> Result<[u8; 32], Status> {
    bytes.try_into().map_err(|_| fault::field(name, format!("{} bytes, 32 are due", bytes.len())))
}

/// A channel's id.
pub(super) fn channel_id(bytes: &[u8]) -> Result<ChannelId, Status> {
    bytes_32("channel_id", bytes).map(ChannelId)
}

/// A payment hash.
pub(super) fn payment_hash(bytes: &[u8]) -> Result<PaymentHash, Status> {
    bytes_32("payment_hash", bytes).map(PaymentHash)
}

/// A node's id.
pub(super) fn node_id(bytes: &[u8]) -> Result<PublicKey, Status> {
    if bytes.len() != 33 {
        return Err(fault::field("node_id", format!("{} bytes, 33 are due", bytes.len())));
    }
    PublicKey::from_slice(bytes).map_err(|_| fault::field("node_id", "not a compressed public key"))
}

/// A watchtower's key.
pub(super) fn tower(bytes: &[u8]) -> Result<PublicKey, Status> {
    if bytes.len() != 33 {
        return Err(fault::field("tower", format!("{} bytes, 33 are due", bytes.len())));
    }
    PublicKey::from_slice(bytes).map_err(|_| fault::field("tower", "not a compressed public key"))
}

/// Where somebody listens.
pub(super) fn check_address(address: &str) -> Result<(), Status> {
    if address.len() > ADDRESS_BYTES_MAX {
        return Err(fault::field("address", format!("{} bytes are too long for host:port", address.len())));
    }
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
    match port {
        Some(1_u16..) => Ok(()),
        Some(0) | None => Err(fault::field("address", "write it as host:port; an IPv6 address in brackets")),
    }
}

/// A transaction's id, in the order in which it is written.
pub(super) fn txid(bytes: &[u8]) -> Result<Txid, Status> {
    let mut bytes = bytes_32("txid", bytes)?;
    bytes.reverse();
    Ok(Txid::from_byte_array(bytes))
}

/// The other way round.
pub(super) fn txid_bytes(txid: &Txid) -> Vec<u8> {
    txid.to_byte_array().into_iter().rev().collect()
}

/// A block's hash, in the order in which it is written.
pub(super) fn block_hash_bytes(hash: &BlockHash) -> Vec<u8> {
    hash.to_byte_array().into_iter().rev().collect()
}

/// An output.
pub(super) fn outpoint(outpoint: &v1::OutPoint) -> Result<OutPoint, Status> {
    Ok(OutPoint { txid: txid(&outpoint.txid)?, vout: outpoint.vout })
}

/// The other way round.
pub(super) fn outpoint_message(outpoint: &OutPoint) -> v1::OutPoint {
    v1::OutPoint { txid: txid_bytes(&outpoint.txid), vout: outpoint.vout }
}

/// Where a page begins, and how many entries it has.
pub(super) fn page(page: Option<&v1::Page>) -> Result<(Option<RowKey>, usize), Status> {
    let Some(v1::Page { size, cursor }) = page else { return Ok((None, PAGE_DEFAULT as usize)) };
    let size = if *size == 0 { PAGE_DEFAULT } else { (*size).min(PAGE_MAX) };
    if cursor.is_empty() {
        return Ok((None, size as usize));
    }
    let mut key = RowKey::default();
    let decoded = hex::decode_to_slice(cursor, &mut key);
    decoded.map_err(|_| fault::field("page.cursor", "not a cursor that a list has answered"))?;
    Ok((Some(key), size as usize))
}

/// The cursor of the next page.
pub(super) fn cursor(next: Option<RowKey>) -> String {
    next.map(hex::encode).unwrap_or_default()
}

/// A page of a list that is in memory: which of its entries, and the cursor of the next ones.
pub(super) fn slice<T>(mut all: Vec<T>, page_wanted: Option<&v1::Page>) -> Result<(Vec<T>, String), Status> {
    let (from, size) = page(page_wanted)?;
    let skipped = from.map_or(0, |key| {
        let [.., a, b, c, d] = key;
        u32::from_be_bytes([a, b, c, d]) as usize
    });
    let rest = if skipped < all.len() { all.split_off(skipped) } else { Vec::new() };
    let is_more = rest.len() > size;
    let taken: Vec<T> = rest.into_iter().take(size).collect();
    let next = is_more.then(|| {
        let mut key = RowKey::default();
        key[8..].copy_from_slice(&u32::try_from(skipped + size).unwrap_or(u32::MAX).to_be_bytes());
        key
    });
    Ok((taken, cursor(next)))
}

/// What an on-chain transaction is to pay.
pub(super) fn feerate(choice: Option<&v1::FeeChoice>, fees: &FeeEstimates) -> Result<FeeratePerKw, Status> {
    use v1::fee_choice::Choice::{FeerateSatPerKw, TargetBlocks};
    match choice.and_then(|choice| choice.choice) {
        None => Ok(FeeratePerKw(fees.within(TARGET_BLOCKS).0)),
        Some(TargetBlocks(0)) => Err(fault::field("fee.target_blocks", "at least 1 block is due")),
        Some(TargetBlocks(blocks)) => Ok(FeeratePerKw(fees.within(blocks.min(TARGET_BLOCKS_MAX)).0)),
        Some(FeerateSatPerKw(rate)) if rate < FeeratePerKw::FLOOR.0 => Err(fault::field(
            "fee.feerate_sat_per_kw",
            format!("{rate} is below the {} that are relayed", FeeratePerKw::FLOOR.0),
        )),
        Some(FeerateSatPerKw(rate)) => Ok(FeeratePerKw(rate)),
    }
}

/// Features, as they are shown.
pub(super) fn features(features: &Features) -> Vec<v1::Feature> {
    let feature = |bit: u32| v1::Feature {
        bit,
        name: millrace_wire::Feature::of_bit(bit).map(|feature| feature.name().to_owned()).unwrap_or_default(),
        required: bit.is_multiple_of(2),
    };
    features.bits().map(feature).collect()
}

/// A short channel id as a number.
pub(super) const fn scid(scid: ShortChannelId) -> u64 {
    scid.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_have_their_length() {
        assert!(channel_id(&[1; 31]).is_err() && channel_id(&[1; 33]).is_err() && channel_id(&[1; 32]).is_ok());
        assert!(node_id(&[2; 33]).is_ok());
        assert!(node_id(&[5; 33]).is_err() && node_id(&[]).is_err() && node_id(&[2; 65]).is_err());
    }

    #[test]
    fn a_txid_is_shown_as_people_write_it() {
        let text = "00000000000000000000000000000000000000000000000000000000000000ff";
        let id: Txid = text.parse().unwrap();
        assert_eq!(hex::encode(txid_bytes(&id)), text);
        assert_eq!(txid(&hex::decode(text).unwrap()).unwrap(), id);
    }

    #[test]
    fn pages_and_cursors() {
        assert_eq!(page(None).unwrap(), (None, 100));
        let of = |size, cursor: &str| page(Some(&v1::Page { size, cursor: cursor.to_owned() }));
        assert_eq!(of(0, "").unwrap(), (None, 100));
        assert_eq!(of(u32::MAX, "").unwrap(), (None, 1000));
        let key = [7; 12];
        assert_eq!(of(5, &cursor(Some(key))).unwrap(), (Some(key), 5));
        for bad in ["x", "00", "\u{1F600}", &"0".repeat(26)] {
            assert!(of(5, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_in_memory_page_by_page() {
        let all: Vec<u32> = (0..7).collect();
        let mut wanted = v1::Page { size: 3, cursor: String::new() };
        let mut found = Vec::new();
        loop {
            let (rows, next) = slice(all.clone(), Some(&wanted)).unwrap();
            found.extend(rows);
            if next.is_empty() {
                break;
            }
            wanted.cursor = next;
        }
        assert_eq!(found, all);
        let beyond = v1::Page { size: 3, cursor: hex::encode([0xff; 12]) };
        assert_eq!(slice(all, Some(&beyond)).unwrap(), (vec![], String::new()));
    }
}
