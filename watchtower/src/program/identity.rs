//! The tower's key and folder. The key is made once, and is what nodes know the tower by: it survives a power cut before
//! anybody is told of it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use secp256k1::SecretKey;
use zeroize::Zeroizing;

use super::Failure;

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let text = format!("{doing} {}", path.display());
    move |error| Failure::Failed(format!("{text}: {error}"))
}

/// Makes the folder, if need be, and its owner's alone.
pub(crate) fn open_folder(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("cannot create", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed("cannot make private", path))
}

/// The key in a file, if there is one.
pub(crate) fn look(path: &Path) -> Result<Option<SecretKey>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("cannot read", path)(error)),
    };
    let mut bytes = Zeroizing::new([0; 32]);
    let decoded = hex::decode_to_slice(text.trim(), &mut *bytes).map_err(|error| error.to_string());
    let key = decoded.and_then(|()| SecretKey::from_slice(&*bytes).map_err(|error| error.to_string()));
    key.map(Some).map_err(|error| Failure::Failed(format!("{} holds no key: {error}", path.display())))
}

/// The key in a file; a new one, if there is no file.
pub(crate) fn open(path: &Path) -> Result<SecretKey, Failure> {
    if let Some(key) = look(path)? {
        return Ok(key);
    }
    let key = new_key()?;
    write(path, &key).map_err(failed("cannot write", path))?;
    Ok(key)
}

fn new_key() -> Result<SecretKey, Failure> {
    loop {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes).map_err(|error| Failure::Failed(format!("no randomness: {error}")))?;
        if let Ok(key) = SecretKey::from_slice(&*bytes) {
            return Ok(key);
        }
    }
}

fn write(path: &Path, key: &SecretKey) -> io::Result<()> {
    let temporary = path.with_extension("key.new");
    let leftover = std::fs::remove_file(&temporary);
    if let Err(error) = leftover
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let bytes = Zeroizing::new(key.secret_bytes());
    let text = Zeroizing::new(format!("{}\n", hex::encode(bytes.as_slice())));
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn key_is_made_once_and_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tower.key");
        std::fs::write(path.with_extension("key.new"), "leftover of a crash").unwrap();
        let key = open(&path).unwrap();
        assert_eq!(open(&path).unwrap(), key);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "garbage").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("holds no key"));
    }
}
