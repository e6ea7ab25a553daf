//! Claims without channels, and a mempool that takes what it should take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, TxOut, Txid, Weight};
use millrace_channel::keys::{ChannelKeys, CommitmentKeys};
use millrace_channel::phase::on_chain::{Claims, Cpfp, HtlcTxClaim, Sweep};
use millrace_channel::secrets::Secret;
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::{ChannelType, CommitmentFormat, PartyTerms, Terms};
use millrace_channel::tx::htlc::HtlcTxKind;
use millrace_channel::tx::{Claim, ClaimKind, Commitment, CommitmentHtlc, CommitmentSpec, HtlcTx, claim, weight};
use millrace_wire::{BlockHeight, ChannelId, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, Preimage, Sat};

use crate::claims::plan::{Plan, Situation, Spending, SweepWanted, Wanted, plan};
use crate::claims::rates::Rates;

/// 1,000 sat/kw, for whatever target.
pub(super) fn rates() -> Rates {
    rates_of(1_000)
}

pub(super) fn rates_of(rate: u32) -> Rates {
    Rates::new([FeeratePerKw(rate); 5], FeeratePerKw::FLOOR)
}

fn claim(value: u64, kind: ClaimKind, lock_time: u32) -> Claim {
    Claim {
        outpoint: OutPoint::null(),
        output: TxOut { value: Amount::from_sat(value), script_pubkey: ScriptBuf::from_bytes(vec![0; 34]) },
        kind,
        witness_script: ScriptBuf::from_bytes(vec![0; 100]),
        sequence: Sequence(1),
        lock_time,
        weight: Weight::from_wu(400),
    }
}

fn point() -> millrace_wire::PublicKey {
    keys(1).commitment_point(CommitmentNumber(0))
}

pub(super) fn keys(seed: u8) -> ChannelKeys {
    ChannelKeys::from_seed(&[seed; 32])
}

pub(super) fn to_remote(value: u64) -> Claim {
    claim(value, ClaimKind::ToRemote, 0)
}

pub(super) fn delayed(value: u64) -> Claim {
    claim(value, ClaimKind::Delayed { point: point() }, 0)
}

pub(super) fn preimage(value: u64) -> Claim {
    claim(value, ClaimKind::HtlcPreimage { point: point(), preimage: Preimage::new([7; 32]) }, 0)
}

pub(super) fn timeout(value: u64, expiry: u32) -> Claim {
    claim(value, ClaimKind::HtlcTimeout { point: point() }, expiry)
}

pub(super) fn penalty(value: u64, is_htlc: bool) -> Claim {
    claim(value, ClaimKind::Penalty { secret: Secret([5; 32]), is_htlc }, 0)
}

/// All that a plan is worked out from.
pub(super) struct World {
    pub(super) tip: BlockHeight,
    pub(super) rates: Rates,
    pub(super) claims: BTreeMap<ChannelId, Claims>,
    pub(super) spends: BTreeMap<OutPoint, Arc<Spending>>,
    pub(super) spent: BTreeSet<OutPoint>,
    pub(super) refused: BTreeMap<OutPoint, u32>,
    serial: u64,
}

impl World {
    pub(super) fn at(height: u32) -> Self {
        Self {
            tip: BlockHeight(height),
            rates: rates(),
            claims: BTreeMap::new(),
            spends: BTreeMap::new(),
            spent: BTreeSet::new(),
            refused: BTreeMap::new(),
            serial: 0,
        }
    }

    pub(super) fn plan(&self) -> Plan {
        let Self { tip, rates, claims, spends, spent, refused, .. } = self;
        plan(&Situation { tip: *tip, rates: *rates, claims, spends, spent, refused })
    }

    fn txid(&mut self) -> Txid {
        self.serial += 1;
        let mut bytes = [0; 32];
        // Ids are compared by their last bytes first.
        bytes[..8].copy_from_slice(&self.serial.to_be_bytes());
        Txid::from_byte_array(bytes)
    }

    pub(super) fn of(&mut self, channel: u8) -> &mut Claims {
        let channel_id = ChannelId([channel; 32]);
        self.claims.entry(channel_id).or_insert_with(|| Claims {
            channel_id,
            keys_index: u64::from(channel),
            parent: None,
            sweeps: Vec::new(),
            htlc_txs: Vec::new(),
        })
    }

    pub(super) fn sweep(&mut self, channel: u8, claim: Claim, deadline: Option<u32>) {
        let outpoint = OutPoint { txid: self.txid(), vout: 0 };
        let sweep = Sweep { claim: Claim { outpoint, ..claim }, deadline: deadline.map(BlockHeight) };
        self.of(channel).sweeps.push(sweep);
    }

    /// In the order in which they were added.
    pub(super) fn outpoints(&self) -> Vec<OutPoint> {
        let mut all: Vec<OutPoint> =
            self.claims.values().flat_map(|claims| &claims.sweeps).map(|sweep| sweep.claim.outpoint).collect();
        all.sort_by_key(|outpoint| outpoint.txid.to_byte_array());
        all
    }

    /// Our commitment, in no block yet, of this feerate. With a deadline 200,000 sat hang on it.
    pub(super) fn commitment(&mut self, channel: u8, feerate: u32, deadline: Option<u32>) {
        let (terms, commitment, _) = built(&mut self.serial, FeeratePerKw(feerate), 2, 540);
        let cpfp = Cpfp {
            anchor: claim::anchor(&terms, &commitment).unwrap(),
            parent: signed(&terms, &commitment),
            parent_fee: commitment.fee,
            deadline: deadline.map(BlockHeight),
            at_stake: if deadline.is_some() { Sat(200_000) } else { Sat::ZERO },
            balance: Sat(1_000_000),
        };
        self.of(channel).parent = Some(cpfp);
    }

    /// Our commitment in a block, with so many HTLCs each way of 50,000 sat.
    pub(super) fn local_commitment(&mut self, channel: u8, htlcs: u64, expiry: u32) {
        let (terms, commitment, keys) = built(&mut self.serial, FeeratePerKw(1_000), htlcs, expiry);
        let signature = secp256k1::ecdsa::Signature::from_compact(&[1; 64]).unwrap();
        for htlc in &commitment.htlcs {
            let htlc_tx = HtlcTx::build(&terms, &keys, &commitment, htlc);
            let (preimage, deadline) = match htlc_tx.kind {
                HtlcTxKind::Timeout => (None, None),
                HtlcTxKind::Success => (Some(Preimage::new([7; 32])), Some(BlockHeight(expiry))),
            };
            let point = keys.per_commitment_point;
            let claim = HtlcTxClaim { htlc_tx, remote_signature: signature, preimage, point, deadline };
            self.of(channel).htlc_txs.push(claim);
        }
    }

    /// Somebody else's transaction in the mempool.
    pub(super) fn rival(&mut self, outpoint: OutPoint, fee: Sat, weight: Weight) {
        let spending = Spending {
            txid: self.txid(),
            claims: vec![outpoint],
            fee,
            to_replace: fee,
            weight,
            is_ours: false,
            is_in_mempool: true,
            destination: None,
        };
        self.spends.insert(outpoint, Arc::new(spending));
    }

    pub(super) fn weight_of(&self, sweep: &SweepWanted) -> Weight {
        let script = ScriptBuf::from_bytes(vec![0; 34]);
        weight::spend_weight(sweep.inputs.iter().map(|input| input.claim.weight), [script.as_script()].into_iter())
    }

    /// What the plan wants is in the mempool from here on. Fails if a real mempool would not take it.
    pub(super) fn accept(&mut self, plan: &Plan) {
        for wanted in &plan.txs {
            self.accept_one(wanted);
        }
    }

    pub(super) fn accept_one(&mut self, wanted: &Wanted) {
        let (claims, fee, weight) = match wanted {
            Wanted::Keep(_) => return,
            Wanted::Sweep(sweep) => {
                let claims: Vec<OutPoint> = sweep.inputs.iter().map(|input| input.claim.outpoint).collect();
                (claims, sweep.fee, self.weight_of(sweep))
            }
            Wanted::HtlcTx(wanted) => {
                let claims: Vec<OutPoint> =
                    wanted.claims.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output).collect();
                let weight =
                    wanted.claims.iter().map(|claim| claim.htlc_tx.input_weight() + Weight::from_wu(172)).sum();
                // A wallet with the coin that the plan expects.
                let weight: Weight = weight;
                let weight = weight + Weight::from_wu(42 + 230 + 172);
                (claims, wanted.feerate.fee_ceil(weight), weight)
            }
            Wanted::Child(child) => {
                let weight = Weight::from_wu(42 + 230 + 172) + child.cpfp.anchor.weight;
                let together = child.feerate.fee_ceil(weight + child.cpfp.parent.weight());
                (vec![child.cpfp.anchor.outpoint], Sat(together.0 - child.cpfp.parent_fee.0), weight)
            }
        };
        let replaced: BTreeMap<Txid, Arc<Spending>> = claims
            .iter()
            .filter_map(|outpoint| self.spends.get(outpoint))
            .filter(|spending| spending.is_in_mempool)
            .map(|spending| (spending.txid, Arc::clone(spending)))
            .collect();
        let gone: Sat = replaced.values().map(|spending| spending.to_replace).sum();
        if !replaced.is_empty() {
            assert!(fee.0 >= gone.0 + weight.to_wu() / 4, "{fee} does not outbid {gone}: {wanted:?}");
            assert!(
                replaced.values().all(|spending| fee.0 * spending.weight.to_wu() > spending.fee.0 * weight.to_wu())
            );
        }
        self.spends.retain(|_, spending| !replaced.contains_key(&spending.txid));
        let spending = Arc::new(Spending {
            txid: self.txid(),
            claims: claims.clone(),
            fee,
            to_replace: fee,
            weight,
            is_ours: true,
            is_in_mempool: true,
            destination: Some(ScriptBuf::from_bytes(vec![u8::try_from(self.serial % 256).unwrap(); 34])),
        });
        self.spends.extend(claims.into_iter().map(|outpoint| (outpoint, Arc::clone(&spending))));
    }

    /// The mempool is empty; what was made here is still known here.
    pub(super) fn forget_mempool(&mut self) {
        self.spends.retain(|_, spending| spending.is_ours);
        for spending in self.spends.values_mut() {
            *spending = Arc::new(Spending { is_in_mempool: false, ..(**spending).clone() });
        }
    }
}

/// Our commitment with HTLCs of 50,000 sat, so many offered and so many received.
fn built(serial: &mut u64, feerate: FeeratePerKw, htlcs: u64, expiry: u32) -> (Terms, Commitment, CommitmentKeys) {
    *serial += 1;
    let mut txid = [0xf0; 32];
    txid[..8].copy_from_slice(&serial.to_be_bytes());
    let (local, remote) = (keys(1), keys(2));
    let party = |keys: &ChannelKeys| PartyTerms {
        dust_limit: Sat(354),
        max_htlc_value_in_flight: Msat(u64::MAX),
        channel_reserve: Sat(10_000),
        htlc_minimum: Msat(1),
        to_self_delay: 144,
        max_accepted_htlcs: 483,
        basepoints: keys.basepoints().clone(),
        upfront_shutdown_script: None,
    };
    let terms = Terms {
        channel_id: ChannelId([0xc1; 32]),
        remote_node: remote.basepoints().funding,
        funder: Side::Local,
        channel_type: ChannelType { format: CommitmentFormat::Anchors, scid_alias: false, zero_conf: false },
        funding_outpoint: OutPoint { txid: Txid::from_byte_array(txid), vout: 1 },
        capacity: Sat(10_000_000),
        push: Msat::ZERO,
        minimum_depth: 3,
        announce: false,
        parties: Both { local: party(&local), remote: party(&remote) },
    };
    let number = CommitmentNumber(0);
    let keys = CommitmentKeys::of(&terms, Side::Local, &local.commitment_point(number));
    let htlc = |offered_by, id| CommitmentHtlc {
        id: HtlcId(id),
        offered_by,
        amount: Msat(50_000_000),
        payment_hash: Preimage::new([7; 32]).hash(),
        cltv_expiry: CltvExpiry(expiry),
    };
    let both = [Side::Local, Side::Remote];
    let htlcs: Vec<CommitmentHtlc> = (0..htlcs).flat_map(|id| both.map(|side| htlc(side, id))).collect();
    let in_htlcs = 50_000_000 * htlcs.len() as u64;
    let spec = CommitmentSpec {
        side: Side::Local,
        number,
        feerate,
        balances: Both { local: Msat(5_000_000_000), remote: Msat(5_000_000_000 - in_htlcs) },
        htlcs: &htlcs,
    };
    let commitment = Commitment::build(&terms, &keys, &spec);
    (terms, commitment, keys)
}

/// With a witness as long as the real one.
fn signed(_terms: &Terms, commitment: &Commitment) -> bitcoin::Transaction {
    let mut tx = commitment.tx.clone();
    tx.input[0].witness = bitcoin::Witness::from_slice(&[vec![], vec![1; 72], vec![1; 72], vec![1; 71]]);
    tx
}
