//! What BOLT 5 gives to whom, and from which block on: the judge that the daemon is held against. It knows nothing of how
//! the daemon does it.

use super::cell::{Cell, Conduct, InFlight, Known, Stands};
use super::output::{Htlc, Part, Role};
use super::peer::DAEMON_DELAY;

/// Whose an output is in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// The daemon's.
    Us,
    /// The peer's.
    Peer,
    /// It stays where it is: only the peer could take it, and the peer is silent.
    Nobody,
    /// An anchor: worth nothing but as a handle.
    Anyone,
}

/// How a payment of ours, or for us, ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Paid.
    Paid,
    /// Failed, or never taken.
    Failed,
}

/// Whose an output of the commitment that stands is.
pub(super) fn owner(cell: &Cell, role: Role, htlcs: &[Htlc]) -> Owner {
    let is_silent = cell.conduct == Conduct::Silent;
    let of_the_peer = if is_silent { Owner::Nobody } else { Owner::Peer };
    match role {
        Role::OurAnchor | Role::TheirAnchor => Owner::Anyone,
        Role::OurMain => Owner::Us,
        // BOLT 5, "Revoked Transaction Close Handling": everything in it.
        Role::TheirMain | Role::Htlc(_) if cell.stands == Stands::Revoked => Owner::Us,
        Role::TheirMain => of_the_peer,
        Role::Htlc(index) if htlcs[index].is_offered => {
            // What was added last is never known to the peer.
            let is_known = cell.known != Known::Never && htlcs[index].part != Part::HalfAdded;
            if is_known && !is_silent { Owner::Peer } else { Owner::Us }
        }
        Role::Htlc(_) if cell.known != Known::Never => Owner::Us,
        Role::Htlc(_) => of_the_peer,
    }
}

/// Whether an HTLC has an output in a commitment.
pub(super) const fn is_in(htlc: &Htlc, stands: Stands) -> bool {
    match htlc.part {
        Part::Whole => true,
        Part::Trimmed => false,
        Part::HalfAdded => matches!(stands, Stands::TheirNext),
        Part::HalfFulfilled | Part::HalfFailed => matches!(stands, Stands::Theirs | Stands::Revoked),
        Part::HalfSettled => !matches!(stands, Stands::TheirNext),
    }
}

/// What the daemon's balance in a commitment is more for an HTLC, and less, in sat.
pub(super) const fn more_and_less(htlc: &Htlc, stands: Stands) -> (u64, u64) {
    match (htlc.part, is_in(htlc, stands)) {
        (Part::Whole | Part::Trimmed | Part::HalfFulfilled, _) | (Part::HalfAdded | Part::HalfFailed, true) => {
            (0, if htlc.is_offered { htlc.sat } else { 0 })
        }
        (Part::HalfAdded | Part::HalfFailed, false) | (Part::HalfSettled, true) => (0, 0),
        (Part::HalfSettled, false) => (htlc.sat, 0),
    }
}

/// How what the daemon offered ends for its payer: paid exactly if the preimage is ever seen.
///
/// Where what it received has the same hash, its own claim of that shows it. From then on the peer could take what it was
/// offered, whether it does or not: the payer is to pay. A cheater that learns its preimage late shows it only if it is faster
/// than the punishment, `is_taken`; it gains nothing by it.
///
/// What has no output is shown off chain or not at all.
pub(super) fn offered_end(cell: &Cell, part: Part, is_taken: bool) -> End {
    let is_shown = match part {
        Part::HalfFulfilled => true,
        Part::HalfAdded | Part::HalfFailed => false,
        Part::Trimmed => (cell.stands, cell.known) == (Stands::Revoked, Known::Early),
        Part::Whole | Part::HalfSettled => is_whole_shown(cell, is_taken),
    };
    if is_shown { End::Paid } else { End::Failed }
}

fn is_whole_shown(cell: &Cell, is_taken: bool) -> bool {
    match (cell.stands, cell.known) {
        (_, Known::Never) => false,
        // Settled off chain, before what it stood in was revoked.
        (Stands::Revoked, Known::Early) => true,
        (Stands::Revoked, Known::Late) => is_taken,
        (Stands::Ours | Stands::Theirs | Stands::TheirNext, Known::Early | Known::Late) => {
            cell.conduct != Conduct::Silent || cell.in_flight == InFlight::Equal
        }
    }
}

/// How what the daemon received ends for its payee.
pub(super) fn received_end(cell: &Cell, part: Part) -> End {
    if cell.known == Known::Never || part == Part::Trimmed { End::Failed } else { End::Paid }
}

/// The first block that may hold the daemon's spend of an output that is the daemon's, of a commitment in the block at
/// `confirmed`; none if the daemon does not know the preimage yet.
pub(super) fn due(cell: &Cell, role: Role, htlcs: &[Htlc], confirmed: u32, is_settled: bool) -> Option<u32> {
    if owner(cell, role, htlcs) != Owner::Us {
        return None;
    }
    let delay = u32::from(DAEMON_DELAY);
    let next = confirmed + 1;
    match (cell.stands, role) {
        (_, Role::OurAnchor | Role::TheirAnchor) => None,
        (Stands::Ours, Role::OurMain) => Some(confirmed + delay),
        (_, Role::OurMain | Role::TheirMain) | (Stands::Revoked, Role::Htlc(_)) => Some(next),
        // A lock time is below the height of the block that holds it.
        (_, Role::Htlc(index)) if htlcs[index].is_offered => Some(next.max(htlcs[index].cltv_expiry.0 + 1)),
        (_, Role::Htlc(_)) => is_settled.then_some(next),
    }
}

/// The same, of an output of an HTLC transaction that is in the block at `confirmed`: the daemon's own after the delay,
/// a revoked one of the peer's at once.
pub(super) fn second_due(cell: &Cell, confirmed: u32) -> Option<u32> {
    match cell.stands {
        Stands::Ours => Some(confirmed + u32::from(DAEMON_DELAY)),
        Stands::Revoked => Some(confirmed + 1),
        Stands::Theirs | Stands::TheirNext => None,
    }
}
