//! The scripts of BOLT 3, each in its own function, and the HTLC scripts with their fixed part prepared once.
//!
//! Only witness scripts and the script public keys made from them; what satisfies them is with the
//! transactions that spend them.

use bitcoin::hashes::{Hash, hash160, ripemd160};
use bitcoin::opcodes::all::{
    OP_CHECKMULTISIG, OP_CHECKSIG, OP_CHECKSIGVERIFY, OP_CLTV, OP_CSV, OP_DROP, OP_DUP, OP_ELSE, OP_ENDIF, OP_EQUAL,
    OP_EQUALVERIFY, OP_HASH160, OP_IF, OP_IFDUP, OP_NOTIF, OP_SIZE, OP_SWAP,
};
use bitcoin::script::Builder;
use bitcoin::{ScriptBuf, WPubkeyHash};
use millrace_wire::{CltvExpiry, PaymentHash};
use secp256k1::PublicKey;

use crate::keys::CommitmentKeys;
use crate::terms::CommitmentFormat;

/// The longest HTLC script: a received one with anchors and an expiry of five bytes.
pub(crate) const HTLC_SCRIPT_BYTES_MAX: usize = 144;

/// BOLT 3, "Funding Transaction Output": both keys sign, the lexicographically lesser first.
#[must_use]
pub fn funding(one: &PublicKey, other: &PublicKey) -> ScriptBuf {
    let (one, other) = (one.serialize(), other.serialize());
    let (first, second) = if one < other { (one, other) } else { (other, one) };
    Builder::new()
        .push_int(2)
        .push_slice(first)
        .push_slice(second)
        .push_int(2)
        .push_opcode(OP_CHECKMULTISIG)
        .into_script()
}

/// BOLT 3, "`to_local` Output", which is also the output of both HTLC transactions: the broadcaster after the
/// delay, or the other side with the revocation key at once.
#[must_use]
pub fn to_local(revocation: &PublicKey, to_self_delay: u16, broadcaster_delayed: &PublicKey) -> ScriptBuf {
    Builder::new()
        .push_opcode(OP_IF)
        .push_slice(revocation.serialize())
        .push_opcode(OP_ELSE)
        .push_int(i64::from(to_self_delay))
        .push_opcode(OP_CSV)
        .push_opcode(OP_DROP)
        .push_slice(broadcaster_delayed.serialize())
        .push_opcode(OP_ENDIF)
        .push_opcode(OP_CHECKSIG)
        .into_script()
}

/// BOLT 3, "`to_remote` Output" with `option_anchors`: the countersignatory after one block.
#[must_use]
pub fn to_remote_anchors(countersignatory_payment: &PublicKey) -> ScriptBuf {
    Builder::new()
        .push_slice(countersignatory_payment.serialize())
        .push_opcode(OP_CHECKSIGVERIFY)
        .push_int(1)
        .push_opcode(OP_CSV)
        .into_script()
}

/// The script public key of `to_remote`: P2WPKH without anchors, P2WSH of [`to_remote_anchors`] with them.
#[must_use]
pub fn to_remote_pubkey(format: CommitmentFormat, countersignatory_payment: &PublicKey) -> ScriptBuf {
    match format {
        CommitmentFormat::StaticRemotekey => {
            ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(&countersignatory_payment.serialize()))
        }
        CommitmentFormat::Anchors => to_remote_anchors(countersignatory_payment).to_p2wsh(),
    }
}

/// BOLT 3, "`to_local_anchor` and `to_remote_anchor` Output": its side at once, anyone after 16 blocks.
#[must_use]
pub fn anchor(funding: &PublicKey) -> ScriptBuf {
    Builder::new()
        .push_slice(funding.serialize())
        .push_opcode(OP_CHECKSIG)
        .push_opcode(OP_IFDUP)
        .push_opcode(OP_NOTIF)
        .push_int(16)
        .push_opcode(OP_CSV)
        .push_opcode(OP_ENDIF)
        .into_script()
}

/// The HTLC scripts of one commitment: what all of them share is worked out once.
#[derive(Clone, Debug)]
pub struct HtlcScripts {
    format: CommitmentFormat,
    revocation_hash: [u8; 20],
    broadcaster_htlc: [u8; 33],
    countersignatory_htlc: [u8; 33],
}

impl HtlcScripts {
    /// For the commitment with these keys.
    #[must_use]
    pub fn new(format: CommitmentFormat, keys: &CommitmentKeys) -> Self {
        Self {
            format,
            revocation_hash: hash160::Hash::hash(&keys.revocation.serialize()).to_byte_array(),
            broadcaster_htlc: keys.broadcaster_htlc.serialize(),
            countersignatory_htlc: keys.countersignatory_htlc.serialize(),
        }
    }

    /// BOLT 3, "Offered HTLC Outputs": an HTLC that the broadcaster offered.
    #[must_use]
    pub fn offered(&self, payment_hash: &PaymentHash) -> ScriptBuf {
        self.write_offered(preimage_hash160(payment_hash), Vec::new())
    }

    /// BOLT 3, "Received HTLC Outputs": an HTLC that the countersignatory offered.
    #[must_use]
    pub fn received(&self, payment_hash: &PaymentHash, cltv_expiry: CltvExpiry) -> ScriptBuf {
        self.write_received(preimage_hash160(payment_hash), cltv_expiry, Vec::new())
    }

    /// One or the other, of an HTLC of whose hash only `RIPEMD160(payment_hash)` is known.
    #[must_use]
    pub fn of_hash160(&self, offered_by_broadcaster: bool, hash160: [u8; 20], cltv_expiry: CltvExpiry) -> ScriptBuf {
        if offered_by_broadcaster {
            self.write_offered(hash160, Vec::new())
        } else {
            self.write_received(hash160, cltv_expiry, Vec::new())
        }
    }

    /// One or the other, written into the room of a buffer that has served before.
    pub(crate) fn write(
        &self,
        offered_by_broadcaster: bool,
        payment_hash: &PaymentHash,
        cltv_expiry: CltvExpiry,
        mut room: Vec<u8>,
    ) -> ScriptBuf {
        room.clear();
        if offered_by_broadcaster {
            self.write_offered(preimage_hash160(payment_hash), room)
        } else {
            self.write_received(preimage_hash160(payment_hash), cltv_expiry, room)
        }
    }

    fn write_offered(&self, hash160: [u8; 20], room: Vec<u8>) -> ScriptBuf {
        let builder = self
            .revocation_or(room)
            .push_opcode(OP_NOTIF)
            .push_opcode(OP_DROP)
            .push_int(2)
            .push_opcode(OP_SWAP)
            .push_slice(self.broadcaster_htlc)
            .push_int(2)
            .push_opcode(OP_CHECKMULTISIG)
            .push_opcode(OP_ELSE)
            .push_opcode(OP_HASH160)
            .push_slice(hash160)
            .push_opcode(OP_EQUALVERIFY)
            .push_opcode(OP_CHECKSIG)
            .push_opcode(OP_ENDIF);
        self.end(builder)
    }

    fn write_received(&self, hash160: [u8; 20], cltv_expiry: CltvExpiry, room: Vec<u8>) -> ScriptBuf {
        let builder = self
            .revocation_or(room)
            .push_opcode(OP_IF)
            .push_opcode(OP_HASH160)
            .push_slice(hash160)
            .push_opcode(OP_EQUALVERIFY)
            .push_int(2)
            .push_opcode(OP_SWAP)
            .push_slice(self.broadcaster_htlc)
            .push_int(2)
            .push_opcode(OP_CHECKMULTISIG)
            .push_opcode(OP_ELSE)
            .push_opcode(OP_DROP)
            .push_int(i64::from(cltv_expiry.0))
            .push_opcode(OP_CLTV)
            .push_opcode(OP_DROP)
            .push_opcode(OP_CHECKSIG)
            .push_opcode(OP_ENDIF);
        self.end(builder)
    }

    /// The beginning of both: the revocation branch, then whether the next witness item is 32 bytes long.
    fn revocation_or(&self, room: Vec<u8>) -> Builder {
        Builder::from(room)
            .push_opcode(OP_DUP)
            .push_opcode(OP_HASH160)
            .push_slice(self.revocation_hash)
            .push_opcode(OP_EQUAL)
            .push_opcode(OP_IF)
            .push_opcode(OP_CHECKSIG)
            .push_opcode(OP_ELSE)
            .push_slice(self.countersignatory_htlc)
            .push_opcode(OP_SWAP)
            .push_opcode(OP_SIZE)
            .push_int(32)
            .push_opcode(OP_EQUAL)
    }

    /// The end of both: with anchors, one block must pass on every branch but revocation.
    fn end(&self, builder: Builder) -> ScriptBuf {
        let builder = match self.format {
            CommitmentFormat::StaticRemotekey => builder,
            CommitmentFormat::Anchors => builder.push_int(1).push_opcode(OP_CSV).push_opcode(OP_DROP),
        };
        builder.push_opcode(OP_ENDIF).into_script()
    }
}

/// `RIPEMD160(payment_hash)`, which is the HASH160 of the preimage.
pub(crate) fn preimage_hash160(payment_hash: &PaymentHash) -> [u8; 20] {
    ripemd160::Hash::hash(&payment_hash.0).to_byte_array()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::keys::ChannelKeys;
    use millrace_wire::CommitmentNumber;

    fn keys() -> CommitmentKeys {
        let (one, other) = (ChannelKeys::from_seed(&[1; 32]), ChannelKeys::from_seed(&[2; 32]));
        CommitmentKeys::derive(one.basepoints(), other.basepoints(), &one.commitment_point(CommitmentNumber(0)))
    }

    #[test]
    fn htlc_scripts_have_the_lengths_of_appendix_a() {
        let hash = PaymentHash([7; 32]);
        for (format, offered, received) in
            [(CommitmentFormat::StaticRemotekey, 133, 139), (CommitmentFormat::Anchors, 136, 142)]
        {
            let scripts = HtlcScripts::new(format, &keys());
            assert_eq!(scripts.offered(&hash).len(), offered);
            assert_eq!(scripts.received(&hash, CltvExpiry(800_000)).len(), received);
        }
    }

    #[test]
    fn writing_into_used_room_gives_the_same_script() {
        let scripts = HtlcScripts::new(CommitmentFormat::Anchors, &keys());
        let (hash, expiry) = (PaymentHash([7; 32]), CltvExpiry(500));
        let room = scripts.received(&hash, expiry).into_bytes();
        let offered = scripts.write(true, &hash, expiry, room);
        assert_eq!(offered, scripts.offered(&hash));
        assert_eq!(scripts.write(false, &hash, expiry, offered.into_bytes()), scripts.received(&hash, expiry));
    }

    #[test]
    fn funding_script_does_not_depend_on_who_asks() {
        let keys = keys();
        let script = funding(&keys.broadcaster_htlc, &keys.revocation);
        assert_eq!(script, funding(&keys.revocation, &keys.broadcaster_htlc));
        assert_eq!(script.len(), 71);
    }
}
