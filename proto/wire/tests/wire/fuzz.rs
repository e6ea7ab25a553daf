//! The fuzz targets in the ordinary suite: over the committed corpus, over the corpus with bytes changed, and over anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use crate::entry;
use crate::seeds::seeds;

fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read(path).unwrap())
    };
    fs::read_dir(folder).unwrap().map(read).collect()
}

/// A seed that is out of date is written anew by `cargo run -p millrace-wire --example seed_corpus`.
#[test]
fn corpus_holds_every_seed_as_it_is_made() {
    for target in ["message", "handshake"] {
        let committed = corpus(target);
        for seed in seeds().iter().filter(|seed| seed.target == target) {
            assert_eq!(committed.get(&seed.name), Some(&seed.bytes), "{target}/{}", seed.name);
        }
    }
}

#[test]
fn targets_over_the_corpus() {
    let (messages, handshakes) = (corpus("message"), corpus("handshake"));
    assert!(messages.len() >= 102 && handshakes.len() >= 5);
    messages.values().for_each(|bytes| entry::message(bytes));
    handshakes.values().for_each(|bytes| entry::handshake(bytes));
}

#[test]
fn handshake_target_over_every_seed_with_any_byte_changed() {
    for bytes in corpus("handshake").values() {
        for at in 1..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            entry::handshake(&changed);
            entry::handshake(&bytes[..at]);
        }
    }
}

proptest! {
    #[test]
    fn message_target_over_anything(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        entry::message(&data);
    }

    #[test]
    fn handshake_target_over_anything(data in prop::collection::vec(any::<u8>(), 0..200)) {
        entry::handshake(&data);
    }
}
