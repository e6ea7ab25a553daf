//! BOLT 1's vectors for BigSize (Appendix A) and TLV streams (Appendix B), from the specification's own text.

#![allow(clippy::unwrap_used)]

use serde::Deserialize;

use super::*;

const BIG_SIZE_DECODE: &str = include_str!("../../../tests/vectors/bolt01/bigsize-decode.json");
const BIG_SIZE_ENCODE: &str = include_str!("../../../tests/vectors/bolt01/bigsize-encode.json");
const TLV: &str = include_str!("../../../tests/vectors/bolt01/tlv-appendixB.txt");

#[derive(Deserialize)]
struct BigSizeCase {
    name: String,
    value: u64,
    bytes: String,
    exp_error: Option<String>,
}

fn over(bytes: &[u8]) -> Reader<'_> {
    Reader::new("test", bytes, 0)
}

#[test]
fn big_size_decodes_as_in_appendix_a() {
    let cases: Vec<BigSizeCase> = serde_json::from_str(BIG_SIZE_DECODE).unwrap();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let bytes = hex::decode(&case.bytes).unwrap();
        let mut r = over(&bytes);
        let read = r.big_size("n");
        match case.exp_error.as_deref() {
            None => assert_eq!((read, r.remaining()), (Ok(case.value), 0), "{}", case.name),
            Some("decoded bigsize is not canonical") => {
                let not_minimal = |e: &DecodeError| e.to_string().contains("shortest form");
                assert!(read.is_err_and(|e| not_minimal(&e)), "{}", case.name);
            }
            Some(_) => {
                let short = |e: &DecodeError| e.to_string().contains("are left");
                assert!(read.is_err_and(|e| short(&e)), "{}", case.name);
            }
        }
    }
}

#[test]
fn big_size_encodes_as_in_appendix_a() {
    let cases: Vec<BigSizeCase> = serde_json::from_str(BIG_SIZE_ENCODE).unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let mut out = Vec::new();
        out.put_big_size(case.value);
        assert_eq!(hex::encode(out), case.bytes, "{}", case.name);
    }
}

/// The appendix's namespace `n1`, with the fields as text in the appendix's order.
fn read_n1(bytes: &[u8]) -> Result<Vec<String>, DecodeError> {
    let mut values = Vec::new();
    over(bytes).tlv_stream(|kind, value| {
        match kind {
            1 => values.push(format!("`amount_msat`={}", truncated(value, 8)?)),
            2 => {
                let scid = crate::ShortChannelId(value.u64("scid")?);
                values.push(format!("`scid`={scid}"));
            }
            3 => {
                values.push(format!("`node_id`={}", value.point("node_id")?));
                values.push(format!("`amount_msat_1`={}", value.u64("amount_msat_1")?));
                values.push(format!("`amount_msat_2`={}", value.u64("amount_msat_2")?));
            }
            254 => values.push(format!("`cltv_delta`={}", value.u16("cltv_delta")?)),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(values)
}

fn read_n2(bytes: &[u8]) -> Result<(), DecodeError> {
    over(bytes).tlv_stream(|kind, value| {
        match kind {
            0 => truncated(value, 8)?,
            11 => truncated(value, 4)?,
            _ => return Ok(false),
        };
        Ok(true)
    })
}

/// BOLT 1's `tu32` and `tu64`: big-endian without leading zeros. No message of this crate has one.
fn truncated(value: &mut Reader<'_>, most: usize) -> Result<u64, DecodeError> {
    let len = value.remaining().min(most);
    let bytes = value.take("number", len)?;
    if bytes.first() == Some(&0) {
        return Err(value.fault("number", FieldFault::NotMinimal { value: 0 }));
    }
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// One line of the appendix: a stream and what is said of it, under the heading it stands in.
struct StreamCase {
    heading: String,
    valid: bool,
    bytes: Vec<u8>,
    says: String,
}

fn stream_cases() -> Vec<StreamCase> {
    let mut cases = Vec::new();
    let mut heading = String::new();
    let mut lines = TLV.lines().peekable();
    while let Some(line) = lines.next() {
        let found = line.strip_prefix("1. Valid stream: 0x").map(|hex| (true, hex));
        let found = found.or_else(|| line.strip_prefix("1. Invalid stream: 0x").map(|hex| (false, hex)));
        if let Some((valid, text)) = found {
            let bytes = hex::decode(text.replace(' ', "")).unwrap();
            let says = (*lines.peek().unwrap()).to_owned();
            cases.push(StreamCase { heading: heading.clone(), valid, bytes, says });
        } else if line.starts_with('#') {
            heading.clear();
        } else if line.starts_with("The following") || line.starts_with("In addition") {
            heading = line.to_owned();
        } else if !line.is_empty() && !line.starts_with('2') {
            heading.push(' ');
            heading.push_str(line);
        }
    }
    cases
}

#[test]
fn tlv_streams_decode_as_in_appendix_b() {
    let cases = stream_cases();
    assert_eq!(cases.iter().filter(|case| case.valid).count(), 19);
    assert_eq!(cases.iter().filter(|case| !case.valid).count(), 38);
    for StreamCase { heading, valid, bytes, says } in cases {
        let of_n1 = !heading.contains("`n2`");
        let of_n2 = !heading.contains("`n1`");
        assert!(of_n1 || of_n2);
        if of_n1 {
            let values = read_n1(&bytes);
            assert_eq!(values.is_ok(), valid, "{says}: {values:?}");
            for value in values.iter().flatten() {
                assert!(says.contains(value.as_str()), "{says}: {value}");
            }
            let named = says.matches("`=").count();
            assert!(!valid || values.unwrap().len() == named, "{says}");
        }
        if of_n2 {
            assert_eq!(read_n2(&bytes).is_ok(), valid, "{says}");
        }
    }
}

/// "Any appending of an invalid stream to a valid stream should trigger a decoding failure", and a
/// higher-numbered valid one to a lower-numbered one should not.
#[test]
fn tlv_streams_appended_to_each_other() {
    let for_n1 = |case: &&StreamCase| !case.heading.contains("`n2`");
    let cases = stream_cases();
    for first in cases.iter().filter(for_n1).filter(|case| case.valid) {
        for second in cases.iter().filter(for_n1) {
            let joined = [&first.bytes[..], &second.bytes].concat();
            let rises = match (first_type(&first.bytes), first_type(&second.bytes)) {
                (Some(a), Some(b)) => a < b,
                _ => true,
            };
            assert_eq!(read_n1(&joined).is_ok(), second.valid && rises, "{joined:02x?}");
        }
    }
}

fn first_type(bytes: &[u8]) -> Option<u64> {
    over(bytes).big_size("type").ok()
}

#[test]
fn an_error_says_where_it_is() {
    let bytes = [0x01, 0x03, 0xaa, 0xbb, 0xcc, 0x05, 0xfd, 0xff, 0xff];
    let fault = Reader::new("init", &bytes, 2).unknown_extension().unwrap_err();
    assert_eq!(fault.to_string(), "init, tlv value at byte 11: needs 65535 bytes, 0 are left");
    let fault = Reader::new("init", &[0x04, 0x00], 2).unknown_extension().unwrap_err();
    assert_eq!(fault.to_string(), "init, tlv type at byte 2: type 4 is unknown and even, so it may not be ignored");
}
