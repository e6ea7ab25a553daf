//! Few cells that have every pair of values of two dimensions which any cell has.

use std::collections::BTreeSet;

use crate::random::Random;

/// A value of one dimension with a value of another.
type Pair = (usize, u8, usize, u8);

fn pairs<const N: usize>(values: [u8; N]) -> impl Iterator<Item = Pair> {
    (0..N).flat_map(move |i| (i + 1..N).map(move |j| (i, values[i], j, values[j])))
}

/// Takes, again and again, one of those that bring most pairs not seen yet; which of them, the seed says.
pub(super) fn pairwise<T: Copy, const N: usize>(possible: &[T], values: impl Fn(&T) -> [u8; N], seed: u64) -> Vec<T> {
    let mut random = Random(seed);
    let mut missing: BTreeSet<Pair> = possible.iter().flat_map(|one| pairs(values(one))).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let brings = |one: &T| pairs(values(one)).filter(|pair| missing.contains(pair)).count();
        let most = possible.iter().map(&brings).max().unwrap_or(0);
        let best: Vec<T> = possible.iter().filter(|one| brings(one) == most).copied().collect();
        let Some(one) = best.get(random.below(best.len() as u64) as usize).copied() else { break };
        for pair in pairs(values(&one)) {
            missing.remove(&pair);
        }
        chosen.push(one);
    }
    chosen
}
