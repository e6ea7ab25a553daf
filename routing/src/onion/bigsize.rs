//! BOLT 1's BigSize and truncated integers, as far as onions use them. Non-minimal forms are refused.

/// Appends `value` as BigSize.
pub(crate) fn put_bigsize(value: u64, out: &mut Vec<u8>) {
    let bytes = value.to_be_bytes();
    match value {
        0..=0xfc => out.push(bytes[7]),
        0xfd..=0xffff => {
            out.push(0xfd);
            out.extend_from_slice(&bytes[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xfe);
            out.extend_from_slice(&bytes[4..]);
        }
        _ => {
            out.push(0xff);
            out.extend_from_slice(&bytes);
        }
    }
}

/// Takes a BigSize off the front, or `None` when it is cut short or not minimal.
pub(crate) fn take_bigsize(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first()?;
    let (size, least) = match first {
        0xfd => (2, 0xfd),
        0xfe => (4, 0x1_0000),
        0xff => (8, 0x1_0000_0000),
        small => {
            *bytes = rest;
            return Some(u64::from(*small));
        }
    };
    let (number, rest) = rest.split_at_checked(size)?;
    let value = be(number);
    *bytes = rest;
    (value >= least).then_some(value)
}

/// The number without its leading zero bytes: `tu64` and `tu32`.
pub(super) fn truncated(value: u64) -> Vec<u8> {
    let zeros = usize::try_from(value.leading_zeros() / 8).expect("8 at most");
    value.to_be_bytes()[zeros..].to_vec()
}

/// A `tu64` that fills all of `bytes`, or `None` when it is longer or not minimal.
pub(super) fn read_tu64(bytes: &[u8]) -> Option<u64> {
    (bytes.len() <= 8 && bytes.first() != Some(&0)).then(|| be(bytes))
}

/// A `tu32` that fills all of `bytes`, or `None` when it is longer or not minimal.
pub(super) fn read_tu32(bytes: &[u8]) -> Option<u32> {
    read_tu64(bytes).and_then(|value| u32::try_from(value).ok())
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn bigsize_round_trips_at_every_border() {
        for value in [0, 1, 0xfc, 0xfd, 0xfe, 0xff, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
            let mut out = Vec::new();
            put_bigsize(value, &mut out);
            let mut rest = out.as_slice();
            assert_eq!(take_bigsize(&mut rest), Some(value));
            assert!(rest.is_empty());
            for cut in 0..out.len() {
                assert_eq!(take_bigsize(&mut &out[..cut]), None);
            }
        }
    }

    #[test]
    fn bigsize_refuses_what_is_not_minimal() {
        for bytes in [&[0xfd, 0, 0xfc][..], &[0xfe, 0, 0, 0xff, 0xff], &[0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
            let mut rest = bytes;
            assert_eq!(take_bigsize(&mut rest), None);
        }
    }

    #[test]
    fn truncated_integers_round_trip_and_are_minimal() {
        for value in [0, 1, 0xff, 0x100, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(read_tu64(&truncated(value)), Some(value));
        }
        assert_eq!(truncated(0), Vec::<u8>::new());
        assert_eq!(read_tu64(&[0, 1]), None);
        assert_eq!(read_tu64(&[1; 9]), None);
        assert_eq!(read_tu32(&[1; 5]), None);
        assert_eq!(read_tu32(&[0xff; 4]), Some(u32::MAX));
    }
}
