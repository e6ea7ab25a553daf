//! Writes the fuzz targets' seed corpus into `fuzz/corpus`: `cargo run -p millrace-wire --example seed_corpus`.

#![allow(clippy::disallowed_methods, reason = "a tool beside the crate, not part of it")]
#![allow(dead_code, reason = "the shared files hold more than the seeds need")]

#[path = "../fuzz/src/entry.rs"]
mod entry;
#[path = "../tests/wire/samples.rs"]
mod samples;
#[path = "../tests/wire/seeds.rs"]
mod seeds;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let seeds = seeds::seeds();
    for seed in &seeds {
        let folder = corpus.join(seed.target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(&seed.name), &seed.bytes)?;
    }
    println!("{} seeds in {}", seeds.len(), corpus.display());
    Ok(())
}
