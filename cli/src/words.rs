//! Small things as text: ids as hex, short channel ids, times, lengths of time, feerates, enum values.
//!
//! Parsing refuses what it does not know; nothing here talks to the node.

use std::time::Duration;

/// Bytes as hex; none as nothing.
pub(crate) fn hex_or_none(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| hex::encode(bytes))
}

/// The first hex digits of an id, enough to tell it from its neighbours in a list.
pub(crate) fn short(id: &[u8]) -> String {
    hex::encode(id).chars().take(12).collect()
}

/// A hex text as exactly `N` bytes.
pub(crate) fn bytes<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let decoded = hex::decode(text.trim()).map_err(|error| format!("not hex: {error}"))?;
    let length = decoded.len();
    <[u8; N]>::try_from(decoded).map_err(|_| format!("{length} bytes, expected {N}"))
}

/// 32 bytes in hex: a payment hash, a transaction id.
pub(crate) fn id32(text: &str) -> Result<[u8; 32], String> {
    bytes::<32>(text)
}

/// A node id in hex: a compressed public key.
pub(crate) fn node_id(text: &str) -> Result<[u8; 33], String> {
    let id = bytes::<33>(text)?;
    match id[0] {
        2 | 3 => Ok(id),
        first => Err(format!("a node id begins with 02 or 03, not {first:02x}")),
    }
}

/// An enum value's name without its prefix, in lower case.
pub(crate) fn value(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

/// A number of things: `1 hop`, `2 hops`.
pub(crate) fn count(number: usize, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {thing}s"),
    }
}

/// Others' words without what could drive the reader's terminal: control characters, changes of direction.
pub(crate) fn printable(text: &str) -> String {
    let drives = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if drives(c) { ' ' } else { c }).collect()
}

/// A short channel id as `BLOCKxTRANSACTIONxOUTPUT`.
pub(crate) fn scid(number: u64) -> String {
    let block = number >> 40;
    let transaction = (number >> 16) & 0xff_ffff;
    let output = number & 0xffff;
    format!("{block}x{transaction}x{output}")
}

/// Reads a short channel id as `BLOCKxTRANSACTIONxOUTPUT`.
pub(crate) fn parse_scid(text: &str) -> Option<u64> {
    let mut parts = text.split('x').map(str::parse::<u64>);
    let (Some(Ok(block)), Some(Ok(transaction)), Some(Ok(output)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let fits = block < 1 << 24 && transaction < 1 << 24 && output < 1 << 16;
    fits.then_some(block << 40 | transaction << 16 | output)
}

/// A Unix time in milliseconds as date and time in UTC, to the second.
pub(crate) fn time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Days since 1970 as year, month, day. The year is counted from March, so that a leap day is its last.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// A length of time: `90s`, `15m`, `24h`, `7d`. A number without a unit is refused.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no length of time: write it like 90s, 15m, 24h or 7d");
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_s).map(Duration::from_secs).ok_or_else(|| format!("`{text}` is too long"))
}

/// A length of time in seconds that fits the contract's 32 bits.
pub(crate) fn parse_seconds(text: &str) -> Result<u32, String> {
    let seconds = parse_duration(text)?.as_secs();
    match u32::try_from(seconds) {
        Ok(0) => Err("must be at least 1s".to_owned()),
        Ok(seconds) => Ok(seconds),
        Err(_) => Err(format!("`{text}` is too long")),
    }
}

/// Seconds as `3d 4h`, `4h 5m`, `5m 6s` or `6s`.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A feerate in sat/vB, with at most three decimals, as satoshi per 1000 weight units, rounded up.
pub(crate) fn parse_feerate(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no feerate: write satoshi per vbyte, like 2 or 12.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return Err(wrong());
    }
    // 1 sat/vB is 250 satoshi per 1000 weight units, so a thousandth of it is a quarter.
    let thousandths: u64 = format!("{whole}{fraction:0<3}").parse().map_err(|_| wrong())?;
    match u32::try_from(thousandths.div_ceil(4)) {
        Ok(0) => Err("a feerate must be above 0".to_owned()),
        Ok(feerate) => Ok(feerate),
        Err(_) => Err(format!("`{text}` sat/vB is too much")),
    }
}

/// A feerate in satoshi per 1000 weight units as sat/vB.
pub(crate) fn feerate(sat_per_kw: u32) -> String {
    let thousandths = u64::from(sat_per_kw) * 4;
    format!("{}.{:03} sat/vB", thousandths / 1000, thousandths % 1000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn scid_there_and_back() {
        let number = 539_268 << 40 | 845 << 16 | 1;
        assert_eq!(scid(number), "539268x845x1");
        assert_eq!(parse_scid("539268x845x1"), Some(number));
        for text in ["", "1x2", "1x2x3x4", "16777216x0x0", "0x0x65536", "axbxc"] {
            assert_eq!(parse_scid(text), None, "{text}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(951_782_399_999), "2000-02-28 23:59:59 UTC");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(time(1_709_251_200_000), "2024-03-01 00:00:00 UTC");
        assert_eq!(time(1_767_225_599_000), "2025-12-31 23:59:59 UTC");
        assert_eq!(time(4_107_542_400_000), "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn durations() {
        assert_eq!(parse_seconds("90s"), Ok(90));
        assert_eq!(parse_seconds("7d"), Ok(604_800));
        for text in ["", "90", "0s", "1w", "h", "-1s", "99999999999d", "18446744073709551615d"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(3_661), "1h 1m");
        assert_eq!(duration(90_000), "1d 1h");
    }

    #[test]
    fn feerates_round_up() {
        assert_eq!(parse_feerate("1"), Ok(250));
        assert_eq!(parse_feerate("12.5"), Ok(3125));
        assert_eq!(parse_feerate("1.001"), Ok(251));
        for text in ["", "0", "1.", ".5", "1.2345", "-1", "1e3", "99999999"] {
            assert!(parse_feerate(text).is_err(), "{text}");
        }
        assert_eq!(feerate(253), "1.012 sat/vB");
    }

    #[test]
    fn others_words_cannot_drive_the_terminal() {
        assert_eq!(printable("tea\u{1b}[2J\n\u{202e}x"), "tea [2J  x");
    }

    #[test]
    fn ids() {
        assert_eq!(node_id(&"02".repeat(33)), Ok([2; 33]));
        assert!(node_id(&"04".repeat(33)).is_err());
        assert!(id32("00").unwrap_err().contains("1 bytes, expected 32"));
        assert!(id32("zz").is_err());
        assert_eq!(value("CHANNEL_STATE_ON_CHAIN", "CHANNEL_STATE_"), "on_chain");
    }
}
