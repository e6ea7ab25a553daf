//! The on-chain wallet: BDK's two accounts, taproot (BIP 86) and segwit (BIP 84), behind one door.
//!
//! [`Wallet`] is a plain struct: it is fed with blocks and mempool news, it makes signed transactions, and it never
//! broadcasts. It has no file: what changed comes out of [`Wallet::take_staged`] as bytes for the journal, and
//! [`Wallet::load`] folds them back. [`WalletHandle`] is the small actor around it.
//!
//! Taproot receives by default and takes all change; segwit receives on request. Every input of every transaction is a
//! segwit one, so that no transaction id changes after the fact. BDK keeps the coins and selects among them; putting
//! transactions together and signing them is done here, in one place for all purposes.
//!
//! It does not search the chain's past: it knows what happened since its first block.

mod chain;
mod codec;
mod coin;
mod compose;
mod error;
mod handle;
mod ledger;
mod list;
mod reserve;
mod sign;
mod spend;

pub(crate) use codec::seen_in_record;
pub use codec::{Label, TxKind};
pub use coin::{AddressType, InputToAdd};
pub use error::{LoadError, WalletError};
pub use handle::{Closed, WalletHandle, spawn};
pub use ledger::Wallet;
pub use list::{Balance, Utxo, WalletTx};
pub use reserve::ReservePolicy;
pub use spend::{Amount, AttachFee, Cpfp, Made};

#[cfg(test)]
mod tests;
