//! The seed corpus of the fuzz targets: small, and made from the samples, so that it can be made again.

use millrace_wire::Message;

use crate::entry;
use crate::samples::every_message;

/// A seed's target, its file name and its bytes.
pub(crate) struct Seed {
    pub(crate) target: &'static str,
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// Every kind of message, once with few and once with many of its optional fields, and each part of a handshake.
pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for message in every_message(0) {
        let alike = (0..16).flat_map(every_message).filter(|other| other.name() == message.name());
        let mut encoded: Vec<Vec<u8>> = alike.map(|message| encode(&message)).collect();
        encoded.sort_by_key(Vec::len);
        let last = encoded.len() - 1;
        for (size, index) in [("short", 0), ("long", last)] {
            let name = format!("{}-{size}", message.name());
            seeds.push(Seed { target: "message", name, bytes: encoded[index].clone() });
        }
    }
    seeds.extend(handshake_seeds());
    seeds
}

fn encode(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out).expect("samples are short");
    out
}

fn handshake_seeds() -> Vec<Seed> {
    let (one, two, three, mut from, _) = entry::genuine();
    let mut stream = Vec::new();
    for message in entry::GENUINE_MESSAGES {
        from.encryptor.encrypt(message, &mut stream).expect("short");
    }
    let parts: [(&str, &[u8]); 5] =
        [("act-one", &one), ("act-two", &two), ("act-three", &three), ("stream", &stream), ("round-trip", b"hello")];
    let seed = |(choice, (name, bytes)): (u8, (&str, &[u8]))| Seed {
        target: "handshake",
        name: name.to_owned(),
        bytes: [&[choice], bytes].concat(),
    };
    (0u8..).zip(parts).map(seed).collect()
}
