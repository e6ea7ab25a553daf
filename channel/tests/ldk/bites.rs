//! The judge bites: a fault planted on the link is found, by a seed among a few. Nothing of it is in the product.

use std::collections::VecDeque;

use millrace_wire::{FeeratePerKw, Message, Msat};

use crate::run::play;

/// A fault on the way from us to LDK.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Tamper {
    /// An honest link.
    #[default]
    None,
    /// LDK is told another feerate than the one we sign for.
    Feerate,
    /// The first two HTLC signatures change places.
    HtlcSignatures,
    /// An HTLC is a millisatoshi larger for LDK than for us.
    Amount,
    /// After `channel_reestablish`, the first two messages that are sent again change places.
    RetransmissionOrder {
        /// A connection has just begun.
        armed: bool,
    },
    /// `revoke_and_ack` reveals another secret.
    Secret,
    /// An `update_add_htlc` is left out.
    MissingAdd,
}

impl Tamper {
    pub(crate) const fn on_connect(&mut self) {
        if let Self::RetransmissionOrder { armed } = self {
            *armed = true;
        }
    }

    pub(crate) fn on_outbox(&mut self, outbox: &mut VecDeque<Message>) {
        match self {
            Self::RetransmissionOrder { armed: armed @ true } => {
                let place = |name: &str| outbox.iter().position(|message| message.name() == name);
                if let (Some(commit), Some(revoke)) = (place("commitment_signed"), place("revoke_and_ack")) {
                    *armed = false;
                    outbox.swap(commit, revoke);
                }
            }
            Self::MissingAdd => {
                if let Some(Message::UpdateAddHtlc(_)) = outbox.front() {
                    outbox.pop_front();
                }
            }
            _ => {}
        }
    }

    pub(crate) fn on_message(self, message: &mut Message) {
        match (self, message) {
            (Self::Feerate, Message::UpdateFee(m)) => m.feerate = FeeratePerKw(m.feerate.0 + 10),
            (Self::HtlcSignatures, Message::CommitmentSigned(m)) if m.htlc_signatures.len() > 1 => {
                m.htlc_signatures.swap(0, 1);
            }
            (Self::Amount, Message::UpdateAddHtlc(m)) => m.amount = Msat(m.amount.0 + 1),
            (Self::Secret, Message::RevokeAndAck(m)) => m.per_commitment_secret[31] ^= 1,
            _ => {}
        }
    }
}

/// The first of some seeds that fails, and what it says.
fn first_failure(tamper: Tamper) -> Option<(u64, String)> {
    (0..60).find_map(|seed| play(seed, tamper).err().map(|failure| (seed, failure.what)))
}

fn assert_bites(tamper: Tamper, words: &[&str]) {
    let (seed, what) = first_failure(tamper).unwrap_or_else(|| panic!("{tamper:?} was not found"));
    assert!(words.iter().any(|word| what.contains(word)), "{tamper:?}, seed {seed}: {what}");
}

#[test]
fn a_wrong_feerate() {
    assert_bites(Tamper::Feerate, &["LDK objects"]);
}

#[test]
fn swapped_htlc_signatures() {
    assert_bites(Tamper::HtlcSignatures, &["LDK objects"]);
}

#[test]
fn an_amount_one_millisatoshi_off() {
    assert_bites(Tamper::Amount, &["LDK objects", "msat"]);
}

#[test]
fn a_retransmission_out_of_order() {
    assert_bites(Tamper::RetransmissionOrder { armed: false }, &["LDK objects", "we fault LDK"]);
}

#[test]
fn a_wrong_secret() {
    assert_bites(Tamper::Secret, &["LDK objects"]);
}

#[test]
fn an_add_that_never_arrives() {
    assert_bites(Tamper::MissingAdd, &["LDK objects"]);
}
