//! Putting a transaction together: which coins, how much change, what fee. One place for all purposes.
//!
//! BDK selects the coins (branch and bound, then at random); the fee is then worked out from the most that the finished
//! transaction can weigh, so that it never falls below the feerate asked for and exceeds it only by what would have
//! been a change output too small to be worth its cost.

use bdk_wallet::coin_selection::{BranchAndBoundCoinSelection, CoinSelectionAlgorithm, SingleRandomDraw};
use bdk_wallet::{Utxo, WeightedUtxo};
use bitcoin::transaction::Version;
use bitcoin::{FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Weight, absolute, psbt};
use millrace_wire::{FeeratePerKw, Sat};
use secp256k1::rand::rngs::StdRng;
use secp256k1::rand::seq::SliceRandom;
use secp256k1::rand::{RngCore, SeedableRng, thread_rng};

use super::coin::{Coin, InputToAdd, unsigned_input};
use super::error::WalletError;

/// The most that is relayed (BIP 141's weight of 100,000 vbytes).
pub(super) const WEIGHT_MAX: Weight = Weight::from_wu(400_000);
/// The least that is relayed.
pub(super) const FEERATE_MIN: FeeratePerKw = FeeratePerKw::FLOOR;
/// 1,000 sat/vB: above it, somebody has mistaken the unit.
pub(super) const FEERATE_MAX: FeeratePerKw = FeeratePerKw(250_000);
/// A P2TR output: value, length, script.
const CHANGE_BYTES: u64 = 8 + 1 + 34;
/// Each round closes a gap of a few satoshis that rounding left.
const ROUNDS_MAX: u32 = 16;
/// What a replacement must pay for its own weight on top of what it replaces (BIP 125, rule 4).
const INCREMENTAL: FeeratePerKw = FeeratePerKw::FLOOR;

/// What is wanted.
pub(super) struct Plan {
    /// Inputs that come first, in this order, signed by somebody else.
    pub(super) foreign: Vec<InputToAdd>,
    /// Outputs that come first, in this order.
    pub(super) outputs: Vec<TxOut>,
    /// Coins that must be spent.
    pub(super) required: Vec<Coin>,
    /// Coins that may be spent.
    pub(super) optional: Vec<Coin>,
    /// Where change goes.
    pub(super) change_script: ScriptBuf,
    /// Whether there must be change: something that is not worth a coin of its own still needs an output.
    pub(super) needs_change: bool,
    /// The feerate.
    pub(super) feerate: FeeratePerKw,
    /// The weight and the fee of the parent that this one pays for.
    pub(super) parent: Option<(Weight, Sat)>,
    /// The fee of the transaction that this one replaces.
    pub(super) replaced_fee: Option<Sat>,
    pub(super) version: Version,
    pub(super) lock_time: absolute::LockTime,
    /// Whether order may be hidden: only if nobody relies on it.
    pub(super) shuffles: bool,
}

/// A transaction that is complete but for its signatures.
pub(super) struct Draft {
    pub(super) tx: Transaction,
    /// What each input spends.
    pub(super) prevouts: Vec<TxOut>,
    /// The wallet's own inputs.
    pub(super) coins: Vec<Coin>,
    pub(super) fee: Sat,
    /// The change output's value.
    pub(super) change: Option<Sat>,
}

/// Checks that a feerate is no mistake.
pub(super) fn check_feerate(feerate: FeeratePerKw) -> Result<(), WalletError> {
    if feerate >= FEERATE_MIN && feerate <= FEERATE_MAX {
        return Ok(());
    }
    Err(WalletError::Feerate { feerate, min: FEERATE_MIN, max: FEERATE_MAX })
}

/// Whether an output to this script is relayed with this amount.
pub(super) fn check_dust(output: &TxOut) -> Result<(), WalletError> {
    let (amount, dust) = (Sat::from(output.value), Sat::from(output.script_pubkey.minimal_non_dust()));
    if amount >= dust { Ok(()) } else { Err(WalletError::Dust { amount, dust }) }
}

impl Plan {
    /// Selects coins and works out fee and change.
    pub(super) fn compose(&self) -> Result<Draft, WalletError> {
        check_feerate(self.feerate)?;
        self.check_foreign()?;
        let mut missing = Sat::ZERO;
        for _ in 0..ROUNDS_MAX {
            let coins = self.select(missing)?;
            match self.settle(coins) {
                Ok(draft) => return Ok(draft),
                Err(Unsettled::Short(more)) => missing = add(missing, more),
                Err(Unsettled::Refused(error)) => return Err(error),
            }
        }
        // Each round asked for more: no selection of these coins covers its own cost.
        Err(self.insufficient(missing))
    }

    /// All required coins into the first output, whatever it says, but for the fee, the other outputs, and what is to be kept
    /// as change.
    pub(super) fn compose_all(mut self, keep: Sat) -> Result<Draft, WalletError> {
        check_feerate(self.feerate)?;
        let keep = (keep > Sat::ZERO).then(|| keep.max(self.dust()));
        let coins = std::mem::take(&mut self.required);
        let available: Sat = coins.iter().map(Coin::value).sum();
        let weight = self.weight(coins.iter().map(Coin::weight), keep.is_some());
        let fee = self.fee(weight);
        let (output, others) = self.outputs.split_first_mut().expect("everything goes to the first output");
        let dust = Sat::from(output.script_pubkey.minimal_non_dust());
        let others: Sat = others.iter().map(|output| Sat::from(output.value)).sum();
        let costs = add(add(fee, others), keep.unwrap_or(Sat::ZERO));
        let Some(amount) = available.checked_sub(costs).filter(|amount| *amount >= dust) else {
            return Err(WalletError::InsufficientFunds { needed: add(costs, dust), available });
        };
        output.value = amount.to_amount();
        self.assemble(coins, fee, keep, weight)
    }

    /// The fee of a transaction of this weight.
    fn fee(&self, weight: Weight) -> Sat {
        let (parent_weight, parent_fee) = self.parent.unwrap_or((Weight::ZERO, Sat::ZERO));
        let own = self.feerate.fee_ceil(parent_weight + weight).saturating_sub(parent_fee);
        let to_replace = self.replaced_fee.map_or(Sat::ZERO, |fee| add(fee, INCREMENTAL.fee_ceil(weight)));
        // A child must be relayed by itself too, whatever its parent pays.
        own.max(to_replace).max(FEERATE_MIN.fee_ceil(weight))
    }

    fn outputs_value(&self) -> Sat {
        self.outputs.iter().map(|output| Sat::from(output.value)).sum()
    }

    fn weight(&self, inputs: impl ExactSizeIterator<Item = Weight>, with_change: bool) -> Weight {
        let input_count = inputs.len() as u64;
        let scripts = self.outputs.iter().map(|output| output.script_pubkey.len() as u64);
        let change = with_change.then_some(self.change_script.len() as u64);
        let (mut output_count, mut bytes) = (0, 0);
        for script in scripts.chain(change) {
            output_count += 1;
            bytes += 8 + length_bytes(script) + script;
        }
        let base = 4 + length_bytes(input_count) + length_bytes(output_count) + bytes + 4;
        Weight::from_wu(4 * base + 2 + inputs.map(Weight::to_wu).sum::<u64>())
    }

    fn check_foreign(&self) -> Result<(), WalletError> {
        let malleable = self.foreign.iter().find(|input| !input.output.script_pubkey.is_witness_program());
        malleable
            .map_or(Ok(()), |input| Err(WalletError::Input { outpoint: input.outpoint, reason: "is not a segwit one" }))
    }

    /// Coins that cover the outputs, their own cost, and `missing` more.
    fn select(&self, missing: Sat) -> Result<Vec<Coin>, WalletError> {
        let pool = self.foreign.len() + self.required.len() + self.optional.len();
        // The frame around the inputs, as wide as it can get.
        let frame = self.weight(std::iter::empty(), self.needs_change);
        let frame = frame + Weight::from_wu(4 * (length_bytes(pool as u64) - 1));
        let least_change = if self.needs_change { self.dust() } else { Sat::ZERO };
        let target = [self.fee(frame), least_change, missing].into_iter().fold(self.outputs_value(), add);
        let foreign = self.foreign.iter().map(|input| weighted(input.outpoint, &input.output, input.weight));
        let required = foreign.chain(self.required.iter().map(Coin::weighted)).collect();
        let optional = self.optional.iter().map(Coin::weighted).collect();
        let selection = BranchAndBoundCoinSelection::new(CHANGE_BYTES, SingleRandomDraw).coin_select(
            required,
            optional,
            FeeRate::from_sat_per_kwu(u64::from(self.feerate.0)),
            target.to_amount(),
            &self.change_script,
            &mut rng(),
        );
        let selection = selection.map_err(|short| WalletError::InsufficientFunds {
            needed: Sat::from(short.needed),
            available: Sat::from(short.available),
        })?;
        let outpoints: Vec<OutPoint> = selection.selected.iter().map(Utxo::outpoint).collect();
        let own = self.required.iter().chain(&self.optional);
        Ok(own.filter(|coin| outpoints.contains(&coin.outpoint)).cloned().collect())
    }

    fn dust(&self) -> Sat {
        Sat::from(self.change_script.minimal_non_dust())
    }

    /// Fee and change of a transaction with these coins.
    fn settle(&self, coins: Vec<Coin>) -> Result<Draft, Unsettled> {
        let weights: Vec<Weight> =
            self.foreign.iter().map(|input| input.weight).chain(coins.iter().map(Coin::weight)).collect();
        let foreign_value: Sat = self.foreign.iter().map(|input| Sat::from(input.output.value)).sum();
        let own_value: Sat = coins.iter().map(Coin::value).sum();
        let (value, outputs) = (add(foreign_value, own_value), self.outputs_value());
        let with_change = self.weight(weights.iter().copied(), true);
        let for_change = value.checked_sub(add(outputs, self.fee(with_change)));
        if let Some(change) = for_change.filter(|change| *change >= self.dust()) {
            let fee = self.fee(with_change);
            return self.assemble(coins, fee, Some(change), with_change).map_err(Unsettled::Refused);
        }
        if self.needs_change {
            let wanted = [outputs, self.fee(with_change), self.dust()].into_iter().fold(Sat::ZERO, add);
            return Err(Unsettled::Short(wanted.saturating_sub(value).max(Sat(1))));
        }
        let without = self.weight(weights.iter().copied(), false);
        let wanted = add(outputs, self.fee(without));
        match value.checked_sub(outputs) {
            Some(fee) if value >= wanted => self.assemble(coins, fee, None, without).map_err(Unsettled::Refused),
            _ => Err(Unsettled::Short(wanted.saturating_sub(value).max(Sat(1)))),
        }
    }

    fn assemble(&self, coins: Vec<Coin>, fee: Sat, change: Option<Sat>, weight: Weight) -> Result<Draft, WalletError> {
        if weight > WEIGHT_MAX {
            return Err(WalletError::TooHeavy { weight_wu: weight.to_wu(), max_wu: WEIGHT_MAX.to_wu() });
        }
        let mut coins = coins;
        let mut outputs = self.outputs.clone();
        outputs.extend(change.map(|value| self.change_output(value)));
        if self.shuffles {
            coins.shuffle(&mut rng());
            outputs.shuffle(&mut rng());
        }
        let own = coins.iter().map(|coin| unsigned_input(coin.outpoint, Sequence::ENABLE_RBF_NO_LOCKTIME));
        let input: Vec<TxIn> = self.foreign.iter().map(InputToAdd::to_input).chain(own).collect();
        let foreign = self.foreign.iter().map(|input| input.output.clone());
        let prevouts = foreign.chain(coins.iter().map(|coin| coin.output.clone())).collect();
        let tx = Transaction { version: self.version, lock_time: self.lock_time, input, output: outputs };
        Ok(Draft { tx, prevouts, coins, fee, change })
    }

    fn change_output(&self, value: Sat) -> TxOut {
        TxOut { value: value.to_amount(), script_pubkey: self.change_script.clone() }
    }

    fn insufficient(&self, missing: Sat) -> WalletError {
        let coins = self.required.iter().chain(&self.optional);
        let available: Sat = coins.map(Coin::value).sum();
        WalletError::InsufficientFunds { needed: add(available, missing), available }
    }
}

/// Why a selection does not do.
enum Unsettled {
    /// It is so much too small.
    Short(Sat),
    /// No selection will do.
    Refused(WalletError),
}

impl Coin {
    fn weighted(&self) -> WeightedUtxo {
        weighted(self.outpoint, &self.output, self.weight())
    }
}

/// As BDK's selection wants it. What is ours and what is not makes no difference there.
fn weighted(outpoint: OutPoint, output: &TxOut, weight: Weight) -> WeightedUtxo {
    let psbt_input = psbt::Input { witness_utxo: Some(output.clone()), ..psbt::Input::default() };
    let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
    let empty = TxIn::default().segwit_weight();
    WeightedUtxo {
        satisfaction_weight: Weight::from_wu(weight.to_wu().saturating_sub(empty.to_wu())),
        utxo: Utxo::Foreign { outpoint, sequence, psbt_input: Box::new(psbt_input) },
    }
}

/// Sums of coins that exist, and of fees that are bounded by weight and feerate.
pub(super) fn add(one: Sat, other: Sat) -> Sat {
    one.checked_add(other).expect("coins and bounded fees fit 64 bits")
}

/// What hides which output is change, and chooses among coins: drawn from the seed in a simulation.
fn rng() -> StdRng {
    let mut seed = [0; 32];
    #[cfg(test)]
    if crate::sim::draw(&mut seed) {
        return StdRng::from_seed(seed);
    }
    thread_rng().fill_bytes(&mut seed);
    StdRng::from_seed(seed)
}

/// The bytes that Bitcoin's compact integers take.
const fn length_bytes(value: u64) -> u64 {
    match value {
        0..=0xfc => 1,
        0xfd..=0xffff => 3,
        _ => 5,
    }
}
