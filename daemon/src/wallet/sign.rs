//! Signing the wallet's own inputs (BIP 143, BIP 341): each covers all inputs and outputs.

use bitcoin::key::TapTweak;
use bitcoin::secp256k1::Message;
use bitcoin::sighash::{EcdsaSighashType, Prevouts, SighashCache, TapSighashType};
use bitcoin::{Transaction, Witness};
use secp256k1::{Keypair, SECP256K1};

use super::coin::Coin;
use super::compose::Draft;
use crate::keys::{Account, WalletKeys};

impl Draft {
    /// The transaction with the wallet's inputs signed; those of others stay empty.
    pub(super) fn sign(mut self, keys: &WalletKeys) -> (Transaction, Self) {
        let mut signed = self.tx.clone();
        for (index, input) in signed.input.iter_mut().enumerate() {
            if let Some(coin) = self.coins.iter().find(|coin| coin.outpoint == input.previous_output) {
                let keypair = keys.keypair(coin.account, coin.branch, coin.index);
                input.witness = self.witness(index, coin, &keypair);
            }
        }
        self.tx = signed.clone();
        (signed, self)
    }

    fn witness(&self, index: usize, coin: &Coin, keypair: &Keypair) -> Witness {
        match coin.account {
            Account::Taproot => self.taproot_witness(index, keypair),
            Account::Segwit => self.segwit_witness(index, coin, keypair),
        }
    }

    fn taproot_witness(&self, index: usize, keypair: &Keypair) -> Witness {
        let prevouts = Prevouts::All(&self.prevouts);
        let hash = SighashCache::new(&self.tx)
            .taproot_key_spend_signature_hash(index, &prevouts, TapSighashType::Default)
            .expect("there is one prevout for each input");
        let tweaked = keypair.tap_tweak(SECP256K1, None).to_keypair();
        let signature = SECP256K1.sign_schnorr(&Message::from(hash), &tweaked);
        let signature = bitcoin::taproot::Signature { signature, sighash_type: TapSighashType::Default };
        Witness::p2tr_key_spend(&signature)
    }

    fn segwit_witness(&self, index: usize, coin: &Coin, keypair: &Keypair) -> Witness {
        let hash = SighashCache::new(&self.tx)
            .p2wpkh_signature_hash(index, &coin.output.script_pubkey, coin.output.value, EcdsaSighashType::All)
            .expect("a coin of the segwit account is P2WPKH");
        let signature = SECP256K1.sign_ecdsa(&Message::from(hash), &keypair.secret_key());
        let signature = bitcoin::ecdsa::Signature { signature, sighash_type: EcdsaSighashType::All };
        Witness::p2wpkh(&signature, &keypair.public_key())
    }
}
