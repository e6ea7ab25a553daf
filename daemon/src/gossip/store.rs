//! The graph's file: written whole and put in its place at once, now and then, after each sync and at a stop. It is no
//! money: one that is damaged or missing is begun anew, and peers are asked.
//!
//! `mr-gossip` and a version; the last block's height; the length of the graph and the graph (`millrace-routing` says how);
//! for each channel its id and its funding transaction; the SHA-256 of it all but the graph, which has a checksum of its own.
//! Numbers are little-endian.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use bitcoin::Txid;
use bitcoin::hashes::{Hash, HashEngine, sha256};
use millrace_routing::graph::Graph;
use millrace_wire::{BlockHeight, ChainHash, ShortChannelId};

use super::book::{Book, outpoint_of};
use super::{Inner, LOCK};
use crate::data_dir::replace_public;

const HEAD: &[u8; 10] = b"mr-gossip\x01";
const HASH_BYTES: usize = 32;
/// Of one channel: its id and its transaction.
const OUTPUT_BYTES: usize = 8 + 32;

/// What was saved; nothing if there is no such file, or it is none.
pub(super) fn load(file: Option<&Path>, chain_hash: ChainHash) -> Book {
    let empty = || Book::new(Graph::new(chain_hash), HashMap::new());
    let Some(path) = file else { return empty() };
    let begun = std::time::Instant::now();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return empty(),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the graph cannot be read, and is begun anew");
            return empty();
        }
    };
    match decode(&bytes, chain_hash) {
        Ok(book) => {
            let (channels, ms) = (book.graph.channels().len(), begun.elapsed().as_millis());
            tracing::info!(channels, ms, "the graph is loaded");
            book
        }
        Err(why) => {
            tracing::warn!(file = %path.display(), why, "the graph's file is of no use, and it is begun anew");
            empty()
        }
    }
}

/// Writes the graph down, if it has changed since it was.
pub(super) fn save(inner: &Inner) {
    let Some(path) = &inner.rules.file else { return };
    let _saving = inner.saving.lock().expect(LOCK);
    if inner.is_saved() {
        return;
    }
    let (bytes, changes) = {
        let book = inner.read();
        (encode(&book), book.changes)
    };
    match replace_public(path, &bytes) {
        Ok(()) => inner.read().saved.store(changes, Ordering::Relaxed),
        Err(error) => tracing::warn!(file = %path.display(), %error, "the graph is not saved"),
    }
}

fn encode(book: &Book) -> Vec<u8> {
    let mut out = HEAD.to_vec();
    out.extend(book.height.unwrap_or_default().0.to_le_bytes());
    let length_at = out.len();
    out.extend([0; 8]);
    let graph_at = out.len();
    book.graph.save(&mut out);
    let graph_end = out.len();
    out[length_at..graph_at].copy_from_slice(&((graph_end - graph_at) as u64).to_le_bytes());
    for (outpoint, id) in &book.outpoints {
        out.extend(id.0.to_le_bytes());
        out.extend(outpoint.txid.to_byte_array());
    }
    let hash = hash_of(&out[..graph_at], &out[graph_end..]);
    out.extend(hash);
    out
}

fn hash_of(head: &[u8], outputs: &[u8]) -> [u8; HASH_BYTES] {
    let mut engine = sha256::Hash::engine();
    engine.input(head);
    engine.input(outputs);
    sha256::Hash::from_engine(engine).to_byte_array()
}

fn decode(bytes: &[u8], chain_hash: ChainHash) -> Result<Book, String> {
    const SHORT: &str = "it ends early";
    let rest = bytes.strip_prefix(HEAD).ok_or("it is of another program or version")?;
    let (height, rest) = rest.split_first_chunk().ok_or(SHORT)?;
    let (length, rest) = rest.split_first_chunk().ok_or(SHORT)?;
    let (rest, hash) = rest.split_last_chunk::<HASH_BYTES>().ok_or(SHORT)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| SHORT)?;
    let (graph, outputs) = rest.split_at_checked(length).ok_or(SHORT)?;
    let head_bytes = HEAD.len() + 4 + 8;
    if hash_of(&bytes[..head_bytes], outputs) != *hash || outputs.len() % OUTPUT_BYTES != 0 {
        return Err("it is damaged".to_owned());
    }
    let graph = Graph::load(graph, chain_hash, Inner::now()).map_err(|error| error.to_string())?;
    let mut outpoints = HashMap::with_capacity(outputs.len() / OUTPUT_BYTES);
    for output in outputs.chunks_exact(OUTPUT_BYTES) {
        let (id, txid) = output.split_at(8);
        let id = ShortChannelId(u64::from_le_bytes(id.try_into().expect("8 bytes")));
        let txid = Txid::from_slice(txid).expect("32 bytes");
        outpoints.insert(outpoint_of(id, txid), id);
    }
    let is_watched = |id: &ShortChannelId| graph.channels().contains_key(id);
    if outpoints.len() != graph.channels().len() || !outpoints.values().all(is_watched) {
        return Err("its channels and their outputs differ".to_owned());
    }
    let mut book = Book::new(graph, outpoints);
    book.height = Some(BlockHeight(u32::from_le_bytes(*height))).filter(|height| height.0 > 0);
    Ok(book)
}
