//! A coin, what it weighs to spend one, and the inputs that others bring.

use bitcoin::transaction::TxIn;
use bitcoin::{OutPoint, ScriptBuf, Sequence, TxOut, Weight, Witness};
use millrace_wire::Sat;
use serde::{Deserialize, Serialize};

use crate::keys::{Account, Branch};

/// Outpoint, empty script length, sequence.
const INPUT_BYTES: u64 = 32 + 4 + 1 + 4;

/// Kinds of address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum AddressType {
    /// Pay to taproot (BIP 86).
    #[default]
    Taproot,
    /// Pay to witness public key hash (BIP 84).
    Segwit,
}

impl AddressType {
    pub(super) const fn account(self) -> Account {
        match self {
            Self::Taproot => Account::Taproot,
            Self::Segwit => Account::Segwit,
        }
    }
}

/// An unspent output of the wallet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Coin {
    pub(super) outpoint: OutPoint,
    pub(super) output: TxOut,
    pub(super) account: Account,
    pub(super) branch: Branch,
    pub(super) index: u32,
    /// The block it is in.
    pub(super) height: Option<u32>,
    /// From a mined block, and not yet 100 deep.
    pub(super) is_immature: bool,
    /// Promised to a transaction that is being made.
    pub(super) is_locked: bool,
}

/// How far to go for coins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Reach {
    /// Confirmed ones.
    Confirmed,
    /// And our own change.
    OwnChange,
    /// And what others have sent, which they can take back.
    Anything,
}

impl Coin {
    pub(super) fn value(&self) -> Sat {
        Sat::from(self.output.value)
    }

    /// Whether it can be spent by those who go so far.
    pub(super) fn is_within(&self, reach: Reach) -> bool {
        let is_near = match reach {
            Reach::Confirmed => self.height.is_some(),
            // Nobody but this wallet pays to a change address.
            Reach::OwnChange => self.height.is_some() || self.branch == Branch::Change,
            Reach::Anything => true,
        };
        is_near && !self.is_immature && !self.is_locked
    }

    /// The most that spending it weighs.
    pub(super) const fn weight(&self) -> Weight {
        input_weight(self.account)
    }
}

/// The most that an input of this account weighs: BIP 340 signatures have 64 bytes; ECDSA ones, with a high R, a low S
/// and the sighash type, 72.
pub(super) const fn input_weight(account: Account) -> Weight {
    let witness = match account {
        Account::Taproot => 1 + 1 + 64,
        Account::Segwit => 1 + 1 + 72 + 1 + 33,
    };
    Weight::from_wu(4 * INPUT_BYTES + witness)
}

/// An input that is not the wallet's, to be signed by whoever brings it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputToAdd {
    /// What it spends.
    pub outpoint: OutPoint,
    /// The output that it spends. Must be a segwit one.
    pub output: TxOut,
    /// Its sequence.
    pub sequence: Sequence,
    /// The most that it weighs, witness included.
    pub weight: Weight,
}

impl InputToAdd {
    pub(super) fn to_input(&self) -> TxIn {
        unsigned_input(self.outpoint, self.sequence)
    }
}

pub(super) fn unsigned_input(outpoint: OutPoint, sequence: Sequence) -> TxIn {
    TxIn { previous_output: outpoint, script_sig: ScriptBuf::new(), sequence, witness: Witness::new() }
}
