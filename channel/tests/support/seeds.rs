//! Which seeds a run by seed is to play.
#![allow(clippy::disallowed_methods, reason = "a test reads its environment")]

use std::ops::Range;

/// The seeds of `MILLRACE_SEEDS=FROM..TO`, or the ordinary ones.
pub fn seeds_or(ordinary: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("MILLRACE_SEEDS") else { return ordinary };
    parse(&text).unwrap_or_else(|why| panic!("MILLRACE_SEEDS={text}: {why}"))
}

/// A run of no seed finds no failure, and must not look like one that found none.
fn parse(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..").and_then(|(from, to)| Some((from.trim().parse().ok()?, to.trim().parse().ok()?)));
    let (from, to): (u64, u64) = ends.ok_or("FROM..TO is expected, as in 0..1000")?;
    if from >= to {
        return Err(format!("no seed is in it: TO is excluded, and {to} is not above {from}"));
    }
    Ok(from..to)
}

#[test]
fn a_range_that_holds_no_seed_is_refused() {
    assert_eq!(parse("0..1000"), Ok(0..1000));
    assert_eq!(parse(" 7 .. 8 "), Ok(7..8));
    for (text, says) in [
        ("5..5", "no seed is in it: TO is excluded, and 5 is not above 5"),
        ("9..3", "no seed is in it: TO is excluded, and 3 is not above 9"),
        ("7", "FROM..TO is expected, as in 0..1000"),
        ("..7", "FROM..TO is expected, as in 0..1000"),
        ("0..=7", "FROM..TO is expected, as in 0..1000"),
        ("", "FROM..TO is expected, as in 0..1000"),
    ] {
        assert_eq!(parse(text), Err(says.to_owned()), "{text}");
    }
}
