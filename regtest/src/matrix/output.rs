//! What each output of a commitment is, told by BOLT 3's scripts and nothing else.

use bitcoin::{OutPoint, Transaction};
use millrace_channel::keys::CommitmentKeys;
use millrace_channel::side::Side;
use millrace_channel::terms::Terms;
use millrace_channel::tx::script::{self, HtlcScripts};
use millrace_wire::{CltvExpiry, HtlcId, PaymentHash, Preimage, PublicKey};

/// An HTLC of a scene.
#[derive(Clone, Debug)]
pub(crate) struct Htlc {
    /// By the daemon; otherwise by the peer.
    pub(crate) is_offered: bool,
    pub(crate) sat: u64,
    pub(crate) preimage: Preimage,
    pub(crate) payment_hash: PaymentHash,
    pub(crate) cltv_expiry: CltvExpiry,
    /// Among those of the side that offered it.
    pub(crate) id: HtlcId,
    /// A forward of the payer's, not a payment of the daemon's own.
    pub(crate) is_forward: bool,
    pub(crate) part: Part,
}

/// Which part an HTLC has in the commitments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// It has an output in all of them.
    Whole,
    /// It is too small for an output, and is neither settled nor failed off chain.
    Trimmed,
    /// The daemon has added it, and the peer has not revoked the commitment without it: the peer's next alone has it.
    HalfAdded,
    /// The peer has fulfilled what the daemon offered: the daemon has revoked the commitment with it, the peer has not.
    HalfFulfilled,
    /// The same, and the peer has failed it.
    HalfFailed,
    /// The daemon has fulfilled what it received, and the peer has not revoked the commitment with it: its next has none.
    HalfSettled,
}

/// What an output is. "Ours" is the daemon's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Role {
    OurMain,
    TheirMain,
    OurAnchor,
    TheirAnchor,
    /// By its place in the scene's list.
    Htlc(usize),
}

/// An output of a commitment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) outpoint: OutPoint,
    pub(crate) sat: u64,
    pub(crate) role: Role,
}

/// The outputs of a commitment, in order.
///
/// `terms` are the peer's, so that `Side::Remote` is the daemon; `side` is whose commitment it is, `point` its point.
/// HTLCs that are equal in everything a script says are told apart by their outputs alone; those that are expected come first.
pub(crate) fn outputs(
    tx: &Transaction,
    terms: &Terms,
    side: Side,
    point: &PublicKey,
    htlcs: &[Htlc],
    is_expected: impl Fn(&Htlc) -> bool,
) -> Result<Vec<Output>, String> {
    let keys = CommitmentKeys::of(terms, side, point);
    let main = |of: Side| if of == Side::Remote { Role::OurMain } else { Role::TheirMain };
    let anchor = |of: Side| if of == Side::Remote { Role::OurAnchor } else { Role::TheirAnchor };
    let mut known = vec![
        (script::to_local(&keys.revocation, terms.delay_of(side), &keys.broadcaster_delayed).to_p2wsh(), main(side)),
        (script::to_remote_pubkey(terms.format(), &keys.countersignatory_payment), main(side.other())),
    ];
    for of in [Side::Local, Side::Remote] {
        known.push((script::anchor(&terms.party(of).basepoints.funding).to_p2wsh(), anchor(of)));
    }
    let scripts = HtlcScripts::new(terms.format(), &keys);
    let (expected, others): (Vec<_>, Vec<_>) = htlcs.iter().enumerate().partition(|(_, htlc)| is_expected(htlc));
    for (index, htlc) in expected.into_iter().chain(others) {
        let is_of_broadcaster = htlc.is_offered == (side == Side::Remote);
        let script = if is_of_broadcaster {
            scripts.offered(&htlc.payment_hash)
        } else {
            scripts.received(&htlc.payment_hash, htlc.cltv_expiry)
        };
        known.push((script.to_p2wsh(), Role::Htlc(index)));
    }
    let txid = tx.compute_txid();
    let mut outputs = Vec::new();
    for (vout, output) in (0..).zip(&tx.output) {
        let Some(at) = known.iter().position(|(script, _)| *script == output.script_pubkey) else {
            return Err(format!(
                "output {vout} of {txid}, {} sat, is nothing that BOLT 3 knows",
                output.value.to_sat()
            ));
        };
        let (_, role) = known.remove(at);
        let sat = output.value.to_sat();
        if let Role::Htlc(index) = role
            && htlcs[index].sat != sat
        {
            return Err(format!("HTLC output {vout} of {txid} holds {sat} sat, not {}", htlcs[index].sat));
        }
        outputs.push(Output { outpoint: OutPoint { txid, vout }, sat, role });
    }
    Ok(outputs)
}
