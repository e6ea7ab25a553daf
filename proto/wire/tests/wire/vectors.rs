//! The specification's message vectors: extensions of `init` (BOLT 1, Appendix C) and extended queries (BOLT 7).

use millrace_wire::message::PerDirection;
use millrace_wire::{Init, Message, ShortChannelId};
use serde_json::Value;

use crate::messages::{decode, encode};

const EXTENSION: &str = include_str!("../vectors/bolt01/message-extension-appendixC.txt");
const QUERIES: &str = include_str!("../vectors/bolt07/extended-queries.json");

fn extension_cases(heading: &str) -> Vec<Vec<u8>> {
    let from = EXTENSION.split_once(heading).unwrap().1;
    let lines = from.lines().skip(2).take_while(|line| line.starts_with("- `0x"));
    lines.map(|line| hex::decode(line[5..].split('`').next().unwrap()).unwrap()).collect()
}

#[test]
fn init_extensions_of_appendix_c() {
    let valid = extension_cases("messages are valid:");
    let invalid = extension_cases("messages are invalid:");
    assert_eq!((valid.len(), invalid.len()), (2, 3));
    for bytes in valid {
        assert_eq!(decode(&bytes), Ok(Init::default().into()));
    }
    for (bytes, reason) in invalid.iter().zip(["are left", "unknown and even", "after type 201"]) {
        assert!(decode(bytes).unwrap_err().to_string().contains(reason), "{bytes:02x?}");
    }
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

fn short_channel_ids(expected: &Value) -> Vec<ShortChannelId> {
    let list = expected["shortChannelIds"]["array"].as_array().unwrap();
    list.iter().map(|id| id.as_str().unwrap().parse().unwrap()).collect()
}

fn pairs(list: &Value, first: &str, second: &str) -> Option<Vec<PerDirection>> {
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let pair = |of: &Value| PerDirection { node_1: number(&of[first]), node_2: number(&of[second]) };
    list.as_array().map(|list| list.iter().map(pair).collect())
}

fn assert_fields(message: &Message, expected: &Value) {
    match message {
        Message::QueryChannelRange(query) => {
            assert_eq!(query.chain_hash.to_string(), expected["chainHash"]);
            assert_eq!(query.first_block.0, expected["firstBlockNum"]);
            assert_eq!(query.number_of_blocks, expected["numberOfBlocks"]);
            let records = expected["tlvStream"]["records"].as_array().unwrap();
            let wants_both = records.first().map(|record| {
                assert_eq!(record, "WANT_TIMESTAMPS | WANT_CHECKSUMS");
                3
            });
            assert_eq!(query.query_options, wants_both);
        }
        Message::ReplyChannelRange(reply) => {
            assert_eq!(reply.first_block.0, expected["firstBlockNum"]);
            assert_eq!(reply.number_of_blocks, expected["numberOfBlocks"]);
            assert_eq!(u8::from(reply.sync_complete), expected["complete"]);
            assert_eq!(reply.short_channel_ids, short_channel_ids(expected));
            let timestamps = &expected["timestamps"]["timestamps"];
            assert_eq!(reply.timestamps, pairs(timestamps, "timestamp1", "timestamp2"));
            let checksums = &expected["checksums"]["checksums"];
            assert_eq!(reply.checksums, pairs(checksums, "checksum1", "checksum2"));
        }
        Message::QueryShortChannelIds(query) => {
            assert_eq!(query.short_channel_ids, short_channel_ids(expected));
            let records = expected["tlvStream"]["records"].as_array().unwrap();
            assert_eq!(query.query_flags, records.first().map(|record| numbers(&record["array"])));
        }
        other => panic!("{} is not in the vectors", other.name()),
    }
}

/// Those compressed with zlib, which BOLT 7 has since dropped, are refused by name.
#[test]
fn extended_queries_of_bolt_7() {
    let cases: Vec<Value> = serde_json::from_str(QUERIES).unwrap();
    let (mut plain, mut compressed) = (0, 0);
    for case in &cases {
        let bytes = hex::decode(case["hex"].as_str().unwrap()).unwrap();
        let expected = &case["msg"];
        if expected.to_string().contains("COMPRESSED_ZLIB") {
            let refused = decode(&bytes).unwrap_err().to_string();
            assert!(refused.contains("1 is not encoding type 0 (uncompressed)"), "{refused}");
            compressed += 1;
        } else {
            let message = decode(&bytes).unwrap();
            assert_fields(&message, expected);
            assert_eq!(encode(&message), bytes);
            plain += 1;
        }
    }
    assert_eq!((plain, compressed), (5, 5));
}
