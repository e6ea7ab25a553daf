//! What becomes of each output of a commitment, in words for a person.

use millrace_channel::Side;
use millrace_channel::phase::on_chain::ending::{Ending, Output, OutputKind};
use millrace_wire::{BlockHeight, Sat};

use crate::claims::{ClaimsStatus, OutputState, OutputStatus};

/// What an output is waiting for, or what has become of it.
pub(super) fn note(output: &Output, claim: Option<&OutputStatus>, is_moved_on: bool) -> String {
    if let Some((by, _, height)) = output.spent {
        return spent(output.kind, by, height, is_moved_on);
    }
    match claim.map(|claim| &claim.state) {
        Some(OutputState::InMempool { txid, fee }) => {
            format!("our transaction {txid} waits for a block; it pays {fee}")
        }
        Some(OutputState::Sending { txid, reason }) => {
            format!("our transaction {txid} is not taken yet ({reason}); it is tried again with each block")
        }
        Some(OutputState::Waiting { reason }) => reason.clone(),
        Some(OutputState::NotNeeded) => "left alone: the commitment pays enough by itself".to_owned(),
        Some(OutputState::Spent) | None => unspent(output),
    }
}

fn spent(kind: OutputKind, by: Side, height: BlockHeight, is_moved_on: bool) -> String {
    let words = match (kind, by) {
        (OutputKind::Anchor(_), _) => "spent",
        (_, Side::Local) if is_moved_on => "taken by our HTLC transaction, whose output is listed as second level",
        (_, Side::Local) => "claimed by us",
        (OutputKind::Balance(_), Side::Remote) => "taken by the peer",
        (OutputKind::Htlc { offered_by: Side::Local, .. }, Side::Remote) => "taken by the peer with the preimage",
        (OutputKind::Htlc { offered_by: Side::Remote, .. }, Side::Remote) => "taken back by the peer after its expiry",
        (OutputKind::RevokedHtlc { .. }, Side::Remote) if is_moved_on => {
            "moved by the peer's HTLC transaction, whose output, listed as second level, is ours to take"
        }
        (OutputKind::RevokedHtlc { .. } | OutputKind::Unknown, Side::Remote) => "taken by the peer",
        (OutputKind::SecondLevel, Side::Remote) => "lost: taken by the peer when its delay was over",
    };
    format!("{words}, in block {height}")
}

fn unspent(output: &Output) -> String {
    let until = output.deadline.map(|height| format!(", to be confirmed before block {height}")).unwrap_or_default();
    if let Some(height) = output.claimable {
        let why = match output.kind {
            OutputKind::Htlc { offered_by: Side::Local, .. } => "the HTLC has then expired",
            OutputKind::Balance(Side::Remote) | OutputKind::RevokedHtlc { .. } => "as a penalty",
            OutputKind::Htlc { offered_by: Side::Remote, .. } => "with the preimage",
            OutputKind::Balance(Side::Local) | OutputKind::SecondLevel => "once it is old enough",
            OutputKind::Anchor(_) | OutputKind::Unknown => "as it is",
        };
        return format!("ours from block {height} on, {why}{until}");
    }
    match output.kind {
        OutputKind::Balance(Side::Local) => "ours, as the commitment says",
        OutputKind::Balance(Side::Remote) => "the peer's",
        OutputKind::Htlc { offered_by: Side::Remote, .. } => {
            "waits for its preimage; without it, the peer takes it back"
        }
        OutputKind::Htlc { offered_by: Side::Local, .. } => "waits for its expiry, or for the peer's preimage",
        OutputKind::RevokedHtlc { .. } => "the peer's to take",
        OutputKind::SecondLevel => "waits for its delay",
        OutputKind::Anchor(Side::Local) => "left alone: it is worth less than its fee",
        OutputKind::Anchor(Side::Remote) => "the peer's",
        OutputKind::Unknown => "nothing is known of it here",
    }
    .to_owned()
}

/// Whether what spent an output made a second-level one of it.
pub(super) fn is_moved_on(output: &Output, ending: &Ending) -> bool {
    let Some((_, txid, _)) = output.spent else { return false };
    let is_second = |other: &&Output| other.kind == OutputKind::SecondLevel && other.outpoint.txid == txid;
    output.kind != OutputKind::SecondLevel && ending.outputs.iter().any(|other| is_second(&other))
}

/// What claims have cost so far: all that went from the commitment towards the wallet, less what has arrived there. Fees
/// that the wallet's own coins have paid are in it.
pub(super) fn claim_fees(ending: &Ending, claims: &ClaimsStatus, recovered: Sat) -> Sat {
    let is_under_way = |output: &Output| {
        let claim = claims.outputs.get(&output.outpoint);
        claim.is_some_and(|claim| claim.pays_wallet && matches!(claim.state, OutputState::InMempool { .. }))
    };
    let is_taken = |output: &&Output| match output.spent {
        Some((Side::Local, ..)) => !matches!(output.kind, OutputKind::Anchor(_)) && !is_moved_on(output, ending),
        Some((Side::Remote, ..)) => false,
        None => is_under_way(output),
    };
    let taken: Sat = ending.outputs.iter().filter(is_taken).map(|output| output.amount).sum();
    taken.saturating_sub(recovered)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bitcoin::hashes::Hash;
    use bitcoin::{OutPoint, Txid};
    use millrace_wire::{ChannelId, PaymentHash};

    use super::*;

    fn txid(n: u8) -> Txid {
        Txid::from_byte_array([n; 32])
    }

    fn output(vout: u32, kind: OutputKind) -> Output {
        let outpoint = OutPoint { txid: txid(1), vout };
        Output { outpoint, amount: Sat(10_000), kind, claimable: None, deadline: None, spent: None }
    }

    fn htlc(offered_by: Side) -> OutputKind {
        OutputKind::Htlc { offered_by, payment_hash: PaymentHash([3; 32]) }
    }

    #[test]
    fn an_output_that_waits_says_for_what_and_until_when() {
        let (claimable, deadline) = (Some(BlockHeight(120)), Some(BlockHeight(144)));
        let waits = |kind| Output { claimable, deadline, ..output(0, kind) };
        for (kind, words) in [
            (htlc(Side::Local), "ours from block 120 on, the HTLC has then expired, to be confirmed before block 144"),
            (htlc(Side::Remote), "ours from block 120 on, with the preimage, to be confirmed before block 144"),
            (
                OutputKind::Balance(Side::Remote),
                "ours from block 120 on, as a penalty, to be confirmed before block 144",
            ),
        ] {
            assert_eq!(note(&waits(kind), None, false), words);
        }
        let undecided = note(&output(0, htlc(Side::Remote)), None, false);
        assert_eq!(undecided, "waits for its preimage; without it, the peer takes it back");
    }

    #[test]
    fn a_claim_says_how_it_stands() {
        let claim = |state| OutputStatus {
            channel_id: ChannelId([1; 32]),
            amount: Sat(10_000),
            deadline: None,
            pays_wallet: true,
            state,
        };
        let ours = Output { claimable: Some(BlockHeight(120)), ..output(0, OutputKind::SecondLevel) };
        let waiting = claim(OutputState::InMempool { txid: txid(7), fee: Sat(210) });
        let words = format!("our transaction {} waits for a block; it pays 210 sat", txid(7));
        assert_eq!(note(&ours, Some(&waiting), false), words);
        let poor = claim(OutputState::Waiting { reason: "it waits for lower fees".to_owned() });
        assert_eq!(note(&ours, Some(&poor), false), "it waits for lower fees");
    }

    #[test]
    fn a_spent_output_says_by_whom_and_how() {
        let by = |side| Some((side, txid(9), BlockHeight(130)));
        for (kind, side, is_moved, words) in [
            (htlc(Side::Local), Side::Remote, false, "taken by the peer with the preimage, in block 130"),
            (htlc(Side::Remote), Side::Remote, false, "taken back by the peer after its expiry, in block 130"),
            (
                OutputKind::SecondLevel,
                Side::Remote,
                false,
                "lost: taken by the peer when its delay was over, in block 130",
            ),
            (OutputKind::Balance(Side::Local), Side::Local, false, "claimed by us, in block 130"),
            (
                htlc(Side::Local),
                Side::Local,
                true,
                "taken by our HTLC transaction, whose output is listed as second level, in block 130",
            ),
        ] {
            assert_eq!(note(&Output { spent: by(side), ..output(0, kind) }, None, is_moved), words);
        }
    }

    #[test]
    fn claims_have_cost_what_did_not_arrive() {
        let spent = |by, tx| Some((by, txid(tx), BlockHeight(130)));
        let second = Output {
            outpoint: OutPoint { txid: txid(5), vout: 0 },
            spent: spent(Side::Local, 6),
            ..output(0, OutputKind::SecondLevel)
        };
        let outputs = vec![
            Output { spent: spent(Side::Local, 4), ..output(0, OutputKind::Balance(Side::Local)) },
            Output { spent: spent(Side::Local, 5), ..output(1, htlc(Side::Local)) },
            Output { spent: spent(Side::Remote, 8), ..output(2, htlc(Side::Local)) },
            Output { amount: Sat(330), spent: spent(Side::Local, 9), ..output(3, OutputKind::Anchor(Side::Local)) },
            second,
        ];
        let ending = Ending { txid: txid(1), height: None, fee: Sat(100), direct: Sat(0), outputs };
        assert!(is_moved_on(&ending.outputs[1], &ending) && !is_moved_on(&ending.outputs[0], &ending));
        // The balance and the second level arrived, less 700 sat.
        assert_eq!(claim_fees(&ending, &ClaimsStatus::default(), Sat(19_300)), Sat(700));
        assert_eq!(claim_fees(&ending, &ClaimsStatus::default(), Sat(30_000)), Sat(0));
    }
}
