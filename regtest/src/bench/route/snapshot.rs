//! The snapshot in `data/graph-2021-04-16.bin`: who had channels with whom, and on what terms.
//!
//! Behind `mr-snap` and a version, whole numbers of seven bits a byte, the lowest first. The terms that occur: how many, and of
//! each base fee, proportional fee, CLTV delta and smallest HTLC. The channels: how many, and of each the blocks since the
//! one before, its index in the block, its output, its two nodes, its capacity, and a byte: bits 0 and 1 say whose terms are
//! known, 2 and 3 whose are disabled, 4-5 and 6-7 what the largest HTLC is (0 the capacity, 1 99 % of it, 2 said); then of
//! each known side which terms, and the largest HTLC if it is said.

const BYTES: &[u8] = include_bytes!("../../../data/graph-2021-04-16.bin");
const HEAD: &[u8] = b"mr-snap\x01";

/// A side's terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    pub(super) is_disabled: bool,
    pub(super) fee_base_msat: u32,
    pub(super) fee_ppm: u32,
    pub(super) cltv_delta: u16,
    pub(super) htlc_minimum_msat: u64,
    pub(super) htlc_maximum_msat: u64,
}

/// A channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channel {
    pub(super) scid: u64,
    pub(super) nodes: [u32; 2],
    pub(super) capacity_sat: u64,
    pub(super) sides: [Option<Side>; 2],
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }

    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.0.split_first().expect("the snapshot is whole");
        self.0 = rest;
        *byte
    }

    fn small<T: TryFrom<u64>>(&mut self) -> T {
        T::try_from(self.number()).ok().expect("the snapshot has numbers that fit")
    }
}

/// All channels, by their ids.
pub(super) fn channels() -> Vec<Channel> {
    let mut reader = Reader(BYTES.strip_prefix(HEAD).expect("the snapshot is one"));
    let terms: Vec<(u32, u32, u16, u64)> =
        (0..reader.number()).map(|_| (reader.small(), reader.small(), reader.small(), reader.number())).collect();
    let mut block = 0;
    (0..reader.number())
        .map(|_| {
            block += reader.number();
            let scid = block << 40 | reader.number() << 16 | reader.number();
            let nodes = [reader.small(), reader.small()];
            let capacity_sat = reader.number();
            let flags = reader.byte();
            let sides = [0, 1].map(|side| {
                (flags & 1 << side != 0).then(|| {
                    let (fee_base_msat, fee_ppm, cltv_delta, htlc_minimum_msat) = terms[reader.small::<usize>()];
                    let htlc_maximum_msat = match flags >> (4 + 2 * side) & 3 {
                        0 => capacity_sat * 1_000,
                        1 => capacity_sat * 990,
                        _ => reader.number(),
                    };
                    let is_disabled = flags & 4 << side != 0;
                    Side { is_disabled, fee_base_msat, fee_ppm, cltv_delta, htlc_minimum_msat, htlc_maximum_msat }
                })
            });
            Channel { scid, nodes, capacity_sat, sides }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_what_it_says() {
        let channels = channels();
        assert_eq!(channels.len(), 37_454);
        assert_eq!(channels.iter().flat_map(|channel| channel.sides).flatten().count(), 66_964);
        assert_eq!(channels.iter().flat_map(|channel| channel.nodes).max(), Some(8_826));
        // 513887x1177x0, the first line of the source: a side that is disabled, of 99 % and more.
        let first = channels.iter().find(|channel| channel.scid == 513_887 << 40 | 1_177 << 16);
        let first = first.expect("it is there");
        assert_eq!((first.nodes, first.capacity_sat), ([0, 1], 50_000));
        let side = first.sides.iter().flatten().find(|side| side.fee_base_msat == 1_000 && side.fee_ppm == 1);
        assert!(side.is_some_and(|side| side.cltv_delta == 144 && side.htlc_maximum_msat == 50_000_000));
    }
}
