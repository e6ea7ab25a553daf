//! A channel on the real chain, both of whose sides the test plays, and a peer who cheats with it.

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Address, Amount, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Witness};
use millrace_channel::curve::sign;
use millrace_channel::keys::{ChannelKeys, CommitmentKeys};
use millrace_channel::secrets::RevealedSecrets;
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::{ChannelType, CommitmentFormat, PartyTerms, Terms};
use millrace_channel::tx::sighash::{countersigned_htlc_kind, p2wsh_digest};
use millrace_channel::tx::{Commitment, CommitmentHtlc, CommitmentSpec, HtlcTx, script};
use millrace_regtest::bitcoind::Bitcoind;
use millrace_watchtower::registration::Registration;
use millrace_wire::{ChannelId, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, Preimage, Sat};

/// The delay on the cheater's outputs.
pub(crate) const DELAY: u16 = 30;
const CAPACITY: u64 = 1_000_000;

/// Both sides of a channel whose funding output is in the chain.
pub(crate) struct Channel {
    pub(crate) local: ChannelKeys,
    pub(crate) remote: ChannelKeys,
    pub(crate) terms: Terms,
}

fn party(keys: &ChannelKeys, to_self_delay: u16) -> PartyTerms {
    PartyTerms {
        dust_limit: Sat(546),
        max_htlc_value_in_flight: Msat(u64::MAX),
        channel_reserve: Sat(10_000),
        htlc_minimum: Msat(1),
        to_self_delay,
        max_accepted_htlcs: 483,
        basepoints: keys.basepoints().clone(),
        upfront_shutdown_script: None,
    }
}

impl Channel {
    /// Funds one, and mines it.
    pub(crate) fn open(bitcoind: &Bitcoind, seed: u8, format: CommitmentFormat) -> Self {
        let (local, remote) = (ChannelKeys::from_seed(&[seed; 32]), ChannelKeys::from_seed(&[seed ^ 0x80; 32]));
        let script = script::funding(&local.basepoints().funding, &remote.basepoints().funding);
        let funding_outpoint = pay(bitcoind, &script.to_p2wsh(), CAPACITY);
        let terms = Terms {
            channel_id: ChannelId::v1_from_funding(funding_outpoint),
            remote_node: remote.basepoints().funding,
            funder: Side::Local,
            channel_type: ChannelType { format, scid_alias: false, zero_conf: false },
            funding_outpoint,
            capacity: Sat(CAPACITY),
            push: Msat::ZERO,
            minimum_depth: 1,
            announce: false,
            parties: Both { local: party(&local, DELAY), remote: party(&remote, 144) },
        };
        Self { local, remote, terms }
    }

    pub(crate) fn registration(&self) -> Registration {
        Registration::of(&self.terms, &self.local, sweep_script()).unwrap()
    }

    /// The peer's first secrets.
    pub(crate) fn secrets(&self, count: u64) -> RevealedSecrets {
        let mut secrets = RevealedSecrets::new();
        for number in (0..count).map(CommitmentNumber) {
            secrets.insert(number, self.remote.commitment_secret(number)).unwrap();
        }
        secrets
    }

    /// The terms as the peer sees them.
    fn mirrored(&self) -> Terms {
        let Both { local, remote } = self.terms.parties.clone();
        Terms { funder: Side::Remote, parties: Both { local: remote, remote: local }, ..self.terms.clone() }
    }

    /// The peer's commitment, in which 300,000 sat are the peer's, one HTLC is offered by each side, and which is signed.
    pub(crate) fn cheat(&self, number: u64) -> Cheat {
        let number = CommitmentNumber(number);
        let terms = self.mirrored();
        let keys = CommitmentKeys::of(&terms, Side::Local, &self.remote.commitment_point(number));
        let htlc = |id, offered_by, seed| CommitmentHtlc {
            id: HtlcId(id),
            offered_by,
            amount: Msat(80_000_000),
            payment_hash: Preimage::new([seed; 32]).hash(),
            cltv_expiry: CltvExpiry(50),
        };
        // Equal amounts, and offered by both sides.
        let htlcs = [htlc(0, Side::Local, 0xa1), htlc(0, Side::Remote, 0xa2)];
        let balances = Both { local: Msat(300_000_000), remote: Msat((CAPACITY - 460_000) * 1_000) };
        let spec = CommitmentSpec { side: Side::Local, number, feerate: FeeratePerKw(1_000), balances, htlcs: &htlcs };
        let commitment = Commitment::build(&terms, &keys, &spec);
        let tx = commitment.signed_tx(
            &terms,
            &commitment.sign(&terms, &self.remote),
            &sign(&commitment.funding_sighash(&terms), self.local.funding_key()),
        );
        Cheat { terms, keys, commitment, tx, local: self.local.clone(), remote: self.remote.clone() }
    }
}

/// A commitment of the peer's, signed.
pub(crate) struct Cheat {
    terms: Terms,
    keys: CommitmentKeys,
    pub(crate) commitment: Commitment,
    pub(crate) tx: Transaction,
    local: ChannelKeys,
    remote: ChannelKeys,
}

impl Cheat {
    /// What the peer may take of it alone in the end: its delayed output, and both HTLCs.
    pub(crate) fn stake(&self) -> u64 {
        let to_local = self.commitment.output(self.commitment.to_local.unwrap()).value.to_sat();
        to_local + self.commitment.htlcs.iter().map(|htlc| htlc.amount.0 / 1_000).sum::<u64>()
    }

    /// The peer's HTLC transactions: with anchors both in one, with a coin for the fee between them and their outputs in
    /// the order of their inputs, as the signatures ask for.
    pub(crate) fn second_level(&self, bitcoind: &Bitcoind) -> Vec<Transaction> {
        let made =
            self.commitment.htlcs.iter().map(|htlc| HtlcTx::build(&self.terms, &self.keys, &self.commitment, htlc));
        let htlc_txs: Vec<HtlcTx> = made.collect();
        match self.terms.format() {
            CommitmentFormat::StaticRemotekey => {
                htlc_txs.iter().map(|one| self.signed(one.tx.clone(), &[(0, one)])).collect()
            }
            CommitmentFormat::Anchors => vec![self.aggregated(bitcoind, &htlc_txs)],
        }
    }

    fn aggregated(&self, bitcoind: &Bitcoind, htlc_txs: &[HtlcTx]) -> Transaction {
        let coin = pay(bitcoind, &anyones().to_p2wsh(), 50_000);
        let mut tx =
            Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: Vec::new(), output: Vec::new() };
        tx.input.push(TxIn {
            previous_output: coin,
            witness: Witness::from_slice(&[anyones().as_bytes()]),
            ..TxIn::default()
        });
        tx.output.push(TxOut { value: Amount::from_sat(40_000), script_pubkey: anyones().to_p2wsh() });
        for one in htlc_txs.iter().rev() {
            tx.input.extend(one.tx.input.clone());
            tx.output.extend(one.tx.output.clone());
            tx.lock_time = if one.tx.lock_time == LockTime::ZERO { tx.lock_time } else { one.tx.lock_time };
        }
        let order: Vec<(usize, &HtlcTx)> = (1..).zip(htlc_txs.iter().rev()).collect();
        self.signed(tx, &order)
    }

    fn signed(&self, mut tx: Transaction, order: &[(usize, &HtlcTx)]) -> Transaction {
        let point = &self.keys.per_commitment_point;
        let kind = countersigned_htlc_kind(self.terms.format());
        let witnesses: Vec<(usize, Witness)> = order
            .iter()
            .map(|(input, one)| {
                let value = Sat::from(one.prevout.value);
                let digest = p2wsh_digest(&tx, *input, &one.witness_script, value, kind);
                let ours = sign(&digest, &self.local.htlc_key(point));
                let key = self.remote.htlc_key(point);
                let witness = match one.htlc.offered_by {
                    Side::Local => one.timeout_witness(&tx, *input, &key, &ours),
                    Side::Remote => one.success_witness(&tx, *input, &key, &ours, &Preimage::new([0xa2; 32])),
                };
                (*input, witness)
            })
            .collect();
        witnesses.into_iter().for_each(|(input, witness)| tx.input[input].witness = witness);
        tx
    }
}

/// Where the tower takes everything.
pub(crate) fn sweep_script() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::hashes::Hash::from_byte_array([0x77; 20]))
}

fn anyones() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51])
}

/// Pays to a script out of bitcoind's wallet, mines it, and gives the output.
fn pay(bitcoind: &Bitcoind, script: &ScriptBuf, sat: u64) -> OutPoint {
    let address = Address::from_script(script, Network::Regtest).unwrap();
    let txid = bitcoind.send_to(&address, Amount::from_sat(sat)).unwrap();
    bitcoind.mine_to_wallet(1).unwrap();
    let block = bitcoind.tip().unwrap();
    let args = serde_json::json!([txid, true, block]);
    let found = bitcoind.call("getrawtransaction", &args).unwrap();
    let outputs = found["vout"].as_array().unwrap();
    let is_ours = |output: &serde_json::Value| output["scriptPubKey"]["hex"] == script.to_hex_string();
    let vout = outputs.iter().position(is_ours).unwrap();
    OutPoint { txid, vout: u32::try_from(vout).unwrap() }
}
