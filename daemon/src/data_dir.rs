//! The node's folder: whose it is, which network it is for, and that only one process has it.
//!
//! ```text
//! DATA_DIR/                 0700
//!   lock                    held by flock while the node runs; says which process holds it
//!   network                 the network's name, written once
//!   millrace.toml           the operator's settings, if any
//!   seed                    0600, the 24 words                     (seed)
//!   restore-from            with a restored seed: from which height on its coins are looked for
//!   tls.cert, tls.key       certificate of gRPC; the key is 0600   (tls)
//!   access.token            0600, what gRPC clients must show      (token)
//!   rpc.json                where the running node listens         (this module)
//!   journal/                the truth                              (millrace-journal)
//!   graph                   the public graph, can be deleted       (gossip)
//!   liquidity               what payments have taught of others' channels, can be deleted   (payments::send::memory)
//!   view/                   indexes, can be deleted                (sled)
//! ```
//!
//! The wallet has no file: its changes are in the journal.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bitcoin::Network;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::network_name;

/// Rights of the folder: its owner alone.
const FOLDER_MODE: u32 = 0o700;
/// Rights of a file with a secret: its owner alone.
const SECRET_MODE: u32 = 0o600;
/// Name of the file with the height from which on a restored wallet looks for its coins.
const RESTORE_FROM: &str = "restore-from";
/// Rights of a file without secrets.
const PUBLIC_MODE: u32 = 0o644;

/// The folder, locked for this process as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Closing it ends the lock.
    _lock: File,
}

/// Where the running node listens, for the command line and other programs on this machine: `rpc.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RpcInfo {
    /// gRPC's address, `https://HOST:PORT`.
    pub rpc: String,
    /// Path of the certificate to trust.
    pub cert: PathBuf,
    /// Path of the access token.
    pub token: PathBuf,
    /// Where Lightning peers connect to, `HOST:PORT`.
    pub lightning: String,
    /// Where metrics are, if anywhere, `http://HOST:PORT/metrics`.
    pub metrics: Option<String>,
    /// The network's name.
    pub network: String,
    /// The process.
    pub pid: u32,
}

/// Why the folder cannot be used.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "the data folder {path} is in use by another millraced{}; stop that one first, or name another folder by \
         --data-dir",
        held_by(pid)
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process, if it wrote its number down.
        pid: Option<u32>,
    },
    /// It belongs to another network.
    #[error(
        "the data folder {path} is for the network {found}, not for {expected}; run with --network {found}, or name \
         another folder by --data-dir"
    )]
    WrongNetwork {
        /// The folder.
        path: PathBuf,
        /// The network asked for.
        expected: &'static str,
        /// The network it is for.
        found: String,
    },
    /// It belongs to another user.
    #[error(
        "the data folder {path} belongs to user {owner}, but millraced runs as user {user}; run it as its owner, or name \
         another folder by --data-dir"
    )]
    NotOwner {
        /// The folder.
        path: PathBuf,
        /// The owner's number.
        owner: u32,
        /// Our number.
        user: u32,
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

fn held_by(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |error| DataDirError::Io { doing, path, error }
}

impl DataDir {
    /// Creates the folder if need be, makes it its owner's alone, and locks it.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open(path: &Path, network: Network) -> Result<Self, DataDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(path)
            .map_err(failed("cannot create the data folder", path))?;
        let path = path.canonicalize().map_err(failed("cannot find the data folder", path))?;
        check_owner(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(FOLDER_MODE))
            .map_err(failed("cannot make private the data folder", &path))?;
        let lock = lock(&path)?;
        let this = Self { path, _lock: lock };
        this.check_network(network)?;
        Ok(this)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The seed's words.
    #[must_use]
    pub fn seed(&self) -> PathBuf {
        self.path.join(crate::seed::FILE_NAME)
    }

    /// The certificate of gRPC.
    #[must_use]
    pub fn tls_cert(&self) -> PathBuf {
        self.path.join("tls.cert")
    }

    /// The certificate's key.
    #[must_use]
    pub fn tls_key(&self) -> PathBuf {
        self.path.join("tls.key")
    }

    /// What gRPC clients must show.
    #[must_use]
    pub fn access_token(&self) -> PathBuf {
        self.path.join("access.token")
    }

    /// The journal's folder.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The public graph's file.
    #[must_use]
    pub fn graph(&self) -> PathBuf {
        self.path.join("graph")
    }

    /// The file with what payments have taught about the channels of others.
    #[must_use]
    pub fn liquidity(&self) -> PathBuf {
        self.path.join("liquidity")
    }

    /// The view's folder.
    #[must_use]
    pub fn view(&self) -> PathBuf {
        self.path.join("view")
    }

    /// Where the node says how to reach it.
    #[must_use]
    pub fn rpc_info(&self) -> PathBuf {
        self.path.join("rpc.json")
    }

    /// The file with the height from which on the coins of a restored seed are looked for.
    #[must_use]
    pub fn restore_from_file(&self) -> PathBuf {
        self.path.join(RESTORE_FROM)
    }

    /// From which height on the coins of a restored seed are looked for, if the seed was restored.
    ///
    /// # Errors
    /// [`DataDirError::Io`], also if it is no height.
    pub fn restore_from(&self) -> Result<Option<u32>, DataDirError> {
        let path = self.restore_from_file();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let height = text.trim().parse();
                let height = height.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
                Ok(Some(height.map_err(failed("cannot read", &path))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("cannot read", &path)(error)),
        }
    }

    /// Says how to reach the node, once it listens.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn write_rpc_info(
        &self,
        rpc: SocketAddr,
        lightning: SocketAddr,
        metrics: Option<SocketAddr>,
        network: Network,
    ) -> Result<RpcInfo, DataDirError> {
        let info = RpcInfo {
            rpc: format!("https://{}", reachable(rpc)),
            cert: self.tls_cert(),
            token: self.access_token(),
            lightning: lightning.to_string(),
            metrics: metrics.map(|address| format!("http://{}/metrics", reachable(address))),
            network: network_name(network).to_owned(),
            pid: std::process::id(),
        };
        let path = self.rpc_info();
        let text =
            serde_json::to_string_pretty(&info).map_err(io::Error::from).map_err(failed("cannot write", &path))?;
        replace_public(&path, format!("{text}\n").as_bytes()).map_err(failed("cannot write", &path))?;
        Ok(info)
    }

    /// Takes back what [`DataDir::write_rpc_info`] said, when the node stops listening.
    pub fn remove_rpc_info(&self) {
        // Whoever reads a stale one finds nobody there and says so: a failure here is harmless.
        let _ = fs::remove_file(self.rpc_info());
    }

    fn check_network(&self, network: Network) -> Result<(), DataDirError> {
        let (path, expected) = (self.path.join("network"), network_name(network));
        match fs::read_to_string(&path) {
            Ok(found) if found.trim() == expected => Ok(()),
            Ok(found) => {
                let found = found.trim().to_owned();
                Err(DataDirError::WrongNetwork { path: self.path.clone(), expected, found })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                replace_public(&path, format!("{expected}\n").as_bytes()).map_err(failed("cannot write", &path))
            }
            Err(error) => Err(failed("cannot read", &path)(error)),
        }
    }
}

/// An address at which a client on this machine finds a listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

fn check_owner(path: &Path) -> Result<(), DataDirError> {
    let owner = fs::metadata(path).map_err(failed("cannot look at the data folder", path))?.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner == user {
        return Ok(());
    }
    Err(DataDirError::NotOwner { path: path.to_owned(), owner, user })
}

fn lock(folder: &Path) -> Result<File, DataDirError> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(SECRET_MODE)
        .open(&path)
        .map_err(failed("cannot open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(DataDirError::InUse { path: folder.to_owned(), pid });
        }
        Err(error) => return Err(failed("cannot lock", &path)(error.into())),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    written.map_err(failed("cannot write", &path))?;
    Ok(file)
}

/// Puts a file in its place at once, readable by its owner alone.
///
/// # Errors
/// Why the disk did not take it.
pub(crate) fn replace_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, SECRET_MODE)
}

/// Puts a file in its place at once.
///
/// # Errors
/// Why the disk did not take it.
pub(crate) fn replace_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, PUBLIC_MODE)
}

/// Not synced: what is written this way can be written again. The seed has a way of its own.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_of(path);
    // A leftover of a crash may have other rights.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

/// The name under which a file is written before it is put in its place.
pub(crate) fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Makes a file its owner's alone, if it is not.
///
/// # Errors
/// Why the disk refused.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.mode() & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(SECRET_MODE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_folder_is_its_owners_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        let data = DataDir::open(&path, Network::Regtest).unwrap();
        assert_eq!(mode(data.path()), 0o700);
        assert_eq!(mode(&data.path().join("lock")), 0o600);
        assert_eq!(fs::read_to_string(data.path().join("network")).unwrap(), "regtest\n");
    }

    #[test]
    fn an_open_folder_is_closed_to_others() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = DataDir::open(home.path(), Network::Regtest).unwrap();
        assert_eq!(mode(data.path()), 0o700);
    }

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let home = tempfile::tempdir().unwrap();
        let first = DataDir::open(home.path(), Network::Regtest).unwrap();
        let error = DataDir::open(home.path(), Network::Regtest).unwrap_err();
        let DataDirError::InUse { pid, .. } = &error else { panic!("{error}") };
        assert_eq!(*pid, Some(std::process::id()));
        assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
        drop(first);
        DataDir::open(home.path(), Network::Regtest).unwrap();
    }

    #[test]
    fn a_folder_of_another_network_is_refused() {
        let home = tempfile::tempdir().unwrap();
        drop(DataDir::open(home.path(), Network::Signet).unwrap());
        let error = DataDir::open(home.path(), Network::Regtest).unwrap_err().to_string();
        assert!(error.contains("is for the network signet, not for regtest"), "{error}");
        assert_eq!(fs::read_to_string(home.path().join("network")).unwrap(), "signet\n");
        DataDir::open(home.path(), Network::Signet).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::open(&file.join("data"), Network::Regtest).unwrap_err().to_string();
        assert!(error.contains("cannot create the data folder") && error.contains("file/data"), "{error}");
    }

    #[test]
    fn rpc_json_says_where_the_node_is() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::open(home.path(), Network::Regtest).unwrap();
        let (rpc, lightning) = ("0.0.0.0:9737".parse().unwrap(), "127.0.0.1:9735".parse().unwrap());
        let written = data.write_rpc_info(rpc, lightning, None, Network::Regtest).unwrap();
        let read: RpcInfo = serde_json::from_slice(&fs::read(data.rpc_info()).unwrap()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.rpc, "https://127.0.0.1:9737");
        assert_eq!(read.lightning, "127.0.0.1:9735");
        assert_eq!((read.cert, read.token), (data.tls_cert(), data.access_token()));
        data.remove_rpc_info();
        assert!(!data.rpc_info().exists());
    }

    #[test]
    fn replacing_a_file_keeps_its_rights_and_survives_a_leftover() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        fs::write(temporary_of(&path), "leftover").unwrap();
        replace_secret(&path, b"one").unwrap();
        replace_secret(&path, b"two").unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"two".to_vec(), 0o600));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        make_private(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }
}
