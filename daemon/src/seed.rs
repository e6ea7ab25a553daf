//! The seed: 24 words (BIP 39) from which every key of the node comes.
//!
//! They are drawn once, from the operating system, and lie in `DATA_DIR/seed`, readable by the owner alone. There is no
//! passphrase. The words give back the on-chain wallet and the node's identity; open channels also need the journal.
//!
//! **The one fsync outside the journal** is [`store_synced`]: coins could be sent to an address whose seed a power cut
//! took away.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bip39::{Language, Mnemonic};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::data_dir::{DataDir, make_private, temporary_of};

/// Its file in the data folder.
pub(crate) const FILE_NAME: &str = "seed";

/// Words that this node makes and takes.
pub const WORDS: usize = 24;

/// The words and the 64 bytes that they stand for, wiped when dropped.
#[derive(Clone)]
pub struct Seed {
    words: Zeroizing<String>,
    bytes: Zeroizing<[u8; 64]>,
}

/// What [`open`] found or did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// It was there.
    Found,
    /// It was made just now: show it to the operator.
    Created,
}

/// Why there is no seed.
#[derive(Debug, Error)]
pub enum SeedError {
    /// The operating system gave no randomness.
    #[error("the operating system gives no random numbers ({0}); without them no key is safe")]
    Randomness(getrandom::Error),
    /// These are not the words of a seed.
    #[error("{path} does not hold the {WORDS} words of a seed: {reason}. Check every word against your copy")]
    Words {
        /// The file.
        path: PathBuf,
        /// What is wrong; names no word.
        reason: String,
    },
    /// The journal is there, the seed is not.
    #[error(
        "{path} is missing, but this data folder has a journal: a new seed could not open its channels. Put the seed \
         back with --restore-seed-file FILE"
    )]
    Lost {
        /// Where the seed should be.
        path: PathBuf,
    },
    /// There is a seed already.
    #[error("{path} exists already and is not overwritten; restore into an empty data folder (--data-dir)")]
    Exists {
        /// The seed.
        path: PathBuf,
    },
    /// The disk.
    #[error("{doing} {path}: {error}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

impl Seed {
    /// Draws a new one.
    ///
    /// # Errors
    /// [`SeedError::Randomness`].
    pub fn generate() -> Result<Self, SeedError> {
        let mut entropy = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *entropy).map_err(SeedError::Randomness)?;
        Ok(Self::from_entropy(&entropy))
    }

    /// The seed of these 256 bits.
    #[must_use]
    pub fn from_entropy(entropy: &[u8; 32]) -> Self {
        let mnemonic = Mnemonic::from_entropy_in(Language::English, entropy).expect("256 bits are a length of BIP 39");
        Self::of(&mnemonic)
    }

    /// The seed of these words, in any spacing.
    ///
    /// # Errors
    /// What is wrong with them, without naming any.
    pub fn from_words(words: &str) -> Result<Self, String> {
        let words = Zeroizing::new(words.to_lowercase());
        let count = words.split_whitespace().count();
        if count != WORDS {
            return Err(format!("found {count} words"));
        }
        let mnemonic = Mnemonic::parse_in(Language::English, words.as_str()).map_err(|error| match error {
            bip39::Error::UnknownWord(index) => format!("word {} is not in the list of BIP 39", index + 1),
            bip39::Error::InvalidChecksum => {
                "the checksum does not fit: a word is wrong or in the wrong place".to_owned()
            }
            _ => "not words of BIP 39".to_owned(),
        })?;
        Ok(Self::of(&mnemonic))
    }

    fn of(mnemonic: &Mnemonic) -> Self {
        let mut text = mnemonic.to_string();
        let words = Zeroizing::new(text.clone());
        text.zeroize();
        Self { words, bytes: Zeroizing::new(mnemonic.to_seed("")) }
    }

    /// The words, separated by blanks. Whoever calls this must not log them.
    #[must_use]
    pub fn words(&self) -> &str {
        &self.words
    }

    /// The 64 bytes that keys are derived from (BIP 39, no passphrase).
    #[must_use]
    pub fn bytes(&self) -> &[u8; 64] {
        &self.bytes
    }

    /// The words in numbered lines, for paper.
    #[must_use]
    pub fn for_paper(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(512));
        for (index, word) in self.words.split_whitespace().enumerate() {
            let separator = if index % 4 == 3 { "\n" } else { "  " };
            out.push_str(&format!("{:>2}. {word:<10}{separator}", index + 1));
        }
        out
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

/// The folder's seed; in a new folder, a new one.
///
/// # Errors
/// [`SeedError`].
pub fn open(data_dir: &DataDir) -> Result<(Seed, Origin), SeedError> {
    let path = data_dir.seed();
    if path.exists() {
        make_private(&path).map_err(failed("cannot make private", &path))?;
        return Ok((read(&path)?, Origin::Found));
    }
    if data_dir.journal().exists() {
        return Err(SeedError::Lost { path });
    }
    let seed = Seed::generate()?;
    store_synced(&seed, &path).map_err(failed("cannot store the seed in", &path))?;
    Ok((seed, Origin::Created))
}

/// The seed of a folder that may be in use, to be shown to its owner.
///
/// # Errors
/// [`SeedError`].
pub fn look(folder: &Path) -> Result<Seed, SeedError> {
    read(&folder.join(FILE_NAME))
}

/// Puts the seed whose words are in `words_file` into a folder that has none. Its coins are looked for from the block at
/// `from_height` on: this is stored first, since a seed without it would be taken for one whose coins are known.
///
/// # Errors
/// [`SeedError`].
pub fn restore(data_dir: &DataDir, words_file: &Path, from_height: u32) -> Result<Seed, SeedError> {
    let path = data_dir.seed();
    if path.exists() {
        return Err(SeedError::Exists { path });
    }
    let seed = read(words_file)?;
    let restore_from = data_dir.restore_from_file();
    let line = format!("{from_height}\n");
    replace_synced(&restore_from, line.as_bytes()).map_err(failed("cannot write", &restore_from))?;
    store_synced(&seed, &path).map_err(failed("cannot store the seed in", &path))?;
    Ok(seed)
}

fn read(path: &Path) -> Result<Seed, SeedError> {
    let text = fs::read_to_string(path).map(Zeroizing::new).map_err(failed("cannot read the seed in", path))?;
    Seed::from_words(&text).map_err(|reason| SeedError::Words { path: path.to_owned(), reason })
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SeedError {
    let path = path.to_owned();
    move |error| SeedError::Io { doing, path, error }
}

/// Writes the words so that they survive a power cut before any key of theirs is used.
fn store_synced(seed: &Seed, path: &Path) -> io::Result<()> {
    let mut line = Zeroizing::new(seed.words().as_bytes().to_vec());
    line.push(b'\n');
    replace_synced(path, &line)
}

/// File synced, renamed, folder synced. Nothing but this and the journal may sync (durability.md); everything else here
/// can be made again.
fn replace_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_of(path);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use bitcoin::Network;

    use super::*;

    /// BIP 39's own vector for 32 zero bytes, and the seed that another program gives for it without passphrase.
    const ZEROS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                         abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon art";
    const ZEROS_SEED: &str = "408b285c123836004f4b8842c89324c1f01382450c0d439af345ba7fc49acf705489c6fc77dbd4e3dc1dd8cc6\
                              bc9f043db8ada1e243c4a0eafb290d399480840";

    fn folder() -> (tempfile::TempDir, DataDir) {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::open(home.path(), Network::Regtest).unwrap();
        (home, data)
    }

    #[test]
    fn words_and_bytes_of_bip_39() {
        let seed = Seed::from_entropy(&[0; 32]);
        assert_eq!(seed.words(), ZEROS);
        assert_eq!(hex::encode(seed.bytes()), ZEROS_SEED);
        assert_eq!(
            hex::encode(Seed::from_words(&format!("  {}\n", ZEROS.to_uppercase())).unwrap().bytes()),
            ZEROS_SEED
        );
    }

    #[test]
    fn wrong_words_are_refused_without_naming_them() {
        let swapped = ZEROS.replace("art", "zoo");
        for (words, reason) in [
            ("abandon", "found 1 words"),
            (swapped.as_str(), "the checksum"),
            (&ZEROS.replacen("abandon", "millrace", 1), "word 1 is not in the list"),
        ] {
            let error = Seed::from_words(words).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("abandon") && !error.contains("millrace"), "{error}");
        }
    }

    #[test]
    fn the_first_start_makes_one_and_the_second_finds_it() {
        let (_home, data) = folder();
        let (made, origin) = open(&data).unwrap();
        assert_eq!(origin, Origin::Created);
        assert_eq!(made.words().split_whitespace().count(), WORDS);
        assert_eq!(fs::metadata(data.seed()).unwrap().mode() & 0o777, 0o600);
        let (found, origin) = open(&data).unwrap();
        assert_eq!((found.bytes(), origin), (made.bytes(), Origin::Found));
    }

    #[test]
    fn two_seeds_differ() {
        assert_ne!(Seed::generate().unwrap().bytes(), Seed::generate().unwrap().bytes());
    }

    #[test]
    fn a_lost_seed_is_not_replaced_by_a_new_one() {
        let (_home, data) = folder();
        fs::create_dir(data.journal()).unwrap();
        assert!(matches!(open(&data).unwrap_err(), SeedError::Lost { .. }));
        assert!(!data.seed().exists());
    }

    #[test]
    fn a_seed_is_restored_into_an_empty_folder_only() {
        let (home, data) = folder();
        let words = home.path().join("words");
        fs::write(&words, ZEROS).unwrap();
        let restored = restore(&data, &words, 7).unwrap();
        assert_eq!(hex::encode(restored.bytes()), ZEROS_SEED);
        assert_eq!(open(&data).unwrap().1, Origin::Found);
        assert!(matches!(restore(&data, &words, 7).unwrap_err(), SeedError::Exists { .. }));
    }

    #[test]
    fn a_damaged_seed_file_is_refused_and_kept() {
        let (_home, data) = folder();
        fs::write(data.seed(), "abandon abandon").unwrap();
        let error = open(&data).unwrap_err().to_string();
        assert!(error.contains("found 2 words") && !error.contains("abandon"), "{error}");
        assert_eq!(fs::read_to_string(data.seed()).unwrap(), "abandon abandon");
    }

    #[test]
    fn nothing_but_words_shows_the_words() {
        let seed = Seed::from_entropy(&[0; 32]);
        assert_eq!(format!("{seed:?}"), "Seed(…)");
        let paper = seed.for_paper();
        assert!(paper.contains(" 1. abandon") && paper.contains("24. art"), "{}", *paper);
        assert_eq!(paper.lines().count(), 6);
    }
}
