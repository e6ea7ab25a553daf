//! The certificate of the gRPC server: self-made, for the names under which this machine's clients call it.
//!
//! Clients trust exactly this certificate (`DATA_DIR/tls.cert`), so it is renewed in place: when it is about to expire,
//! or when the server listens under a new name. A note in front of the certificate, which PEM readers skip, says what it
//! covers. A certificate without that note was put there by the operator and is left alone.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::data_dir::{DataDir, make_private, replace_public, replace_secret};

/// How long a certificate is good for: it is trusted by name, not by an authority, so renewing gains little.
const LIFE: Duration = Duration::from_secs(5 * 365 * 86_400);
/// So long before its end it is renewed, at a start.
const MARGIN: Duration = Duration::from_secs(30 * 86_400);
/// Clocks of clients may be behind.
const CLOCK_SLACK: Duration = Duration::from_secs(86_400);
/// How the note begins.
const NOTE: &str = "millraced made this certificate; good until Unix time";

/// Certificate and key as PEM.
pub struct Tls {
    /// The certificate, public.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls(…)")
    }
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum TlsError {
    /// It could not be made.
    #[error("cannot make a certificate for gRPC: {0}")]
    Make(#[from] rcgen::Error),
    /// The certificate is there and its key is not, or the other way round.
    #[error("{missing} is missing, {present} is there: put it back, or remove both to have new ones made")]
    Half {
        /// What is missing.
        missing: PathBuf,
        /// What is there.
        present: PathBuf,
    },
    /// The disk.
    #[error("cannot read or write {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// The folder's certificate for a server at `address`, made or renewed if need be.
///
/// # Errors
/// [`TlsError`].
pub fn open(data_dir: &DataDir, address: SocketAddr, now: SystemTime) -> Result<Tls, TlsError> {
    let (cert, key) = (data_dir.tls_cert(), data_dir.tls_key());
    let names = names(address);
    match (cert.exists(), key.exists()) {
        (true, true) => {
            let text = read(&cert)?;
            if !is_due(&text, &names, now) {
                make_private(&key).map_err(failed(&key))?;
                return Ok(Tls { certificate_pem: text, key_pem: Zeroizing::new(read(&key)?) });
            }
        }
        (true, false) => return Err(TlsError::Half { missing: key, present: cert }),
        // A crash between the two writes below leaves a key alone: nobody has trusted anything yet.
        (false, _) => {}
    }
    let tls = make(names, now)?;
    replace_secret(&key, tls.key_pem.as_bytes()).map_err(failed(&key))?;
    replace_public(&cert, tls.certificate_pem.as_bytes()).map_err(failed(&cert))?;
    Ok(tls)
}

fn make(names: Vec<String>, now: SystemTime) -> Result<Tls, TlsError> {
    let unix = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let end = unix + LIFE;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.clone())?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "millraced");
    params.distinguished_name = subject;
    params.not_before = date_time_ymd(1970, 1, 1) + unix.saturating_sub(CLOCK_SLACK);
    params.not_after = date_time_ymd(1970, 1, 1) + end;
    let certificate = params.self_signed(&key)?;
    let certificate_pem = format!("{}\n{}", note(end.as_secs(), &names), certificate.pem());
    Ok(Tls { certificate_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
}

fn note(end: u64, names: &[String]) -> String {
    format!("{NOTE} {end} for {}", names.join(","))
}

/// Whether a certificate of ours ends soon or lacks a name.
fn is_due(certificate_pem: &str, names: &[String], now: SystemTime) -> bool {
    let Some((end, covered)) = certificate_pem.lines().next().and_then(parse_note) else { return false };
    let remaining = (UNIX_EPOCH + Duration::from_secs(end)).duration_since(now).unwrap_or_default();
    remaining < MARGIN || names.iter().any(|name| !covered.contains(&name.as_str()))
}

fn parse_note(line: &str) -> Option<(u64, Vec<&str>)> {
    let (end, names) = line.strip_prefix(NOTE)?.trim().split_once(" for ")?;
    // A time that no clock can tell would not add up: then it is not our note.
    let end = end.parse().ok().filter(|end| UNIX_EPOCH.checked_add(Duration::from_secs(*end)).is_some())?;
    Some((end, names.split(',').collect()))
}

/// Loopback always, and the address itself if it is another one.
fn names(address: SocketAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let own = address.ip();
    if !own.is_unspecified() && !own.is_loopback() {
        names.push(own.to_string());
    }
    if let (true, IpAddr::V4(v4)) = (own.is_loopback(), own)
        && v4 != std::net::Ipv4Addr::LOCALHOST
    {
        names.push(v4.to_string());
    }
    names.extend(host_name());
    names
}

/// This machine's own name, if a certificate can bear it.
fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_lowercase();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '.';
    let is_name = !name.is_empty() && name != "localhost" && name.len() <= 63 && name.chars().all(is_plain);
    (is_name && !name.starts_with(['-', '.']) && !name.ends_with(['-', '.'])).then_some(name)
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TlsError {
    let path = path.to_owned();
    move |error| TlsError::Io { path, error }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use bitcoin::Network;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Server, ServerTlsConfig};

    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    fn folder() -> (tempfile::TempDir, DataDir) {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::open(home.path(), Network::Regtest).unwrap();
        (home, data)
    }

    fn day(number: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(number * 86_400)
    }

    #[test]
    fn made_once_and_kept() {
        let (_home, data) = folder();
        let first = open(&data, LOOPBACK, day(20_000)).unwrap();
        assert_eq!(fs::metadata(data.tls_key()).unwrap().mode() & 0o777, 0o600);
        let second = open(&data, LOOPBACK, day(20_001)).unwrap();
        assert_eq!(second.certificate_pem, first.certificate_pem);
        assert_eq!(*second.key_pem, *first.key_pem);
    }

    #[test]
    fn renewed_before_it_ends_and_not_earlier() {
        let (_home, data) = folder();
        let first = open(&data, LOOPBACK, day(20_000)).unwrap().certificate_pem;
        let last_good = 20_000 + 5 * 365 - 30;
        assert_eq!(open(&data, LOOPBACK, day(last_good)).unwrap().certificate_pem, first);
        assert_ne!(open(&data, LOOPBACK, day(last_good + 1)).unwrap().certificate_pem, first);
    }

    #[test]
    fn renewed_for_a_new_name() {
        let (_home, data) = folder();
        let first = open(&data, LOOPBACK, day(20_000)).unwrap().certificate_pem;
        let second = open(&data, "192.0.2.7:1".parse().unwrap(), day(20_000)).unwrap().certificate_pem;
        assert_ne!(second, first);
        assert!(second.lines().next().unwrap().contains("192.0.2.7"));
        assert_eq!(open(&data, LOOPBACK, day(20_000)).unwrap().certificate_pem, second, "nothing is missing");
    }

    #[test]
    fn an_operators_own_certificate_is_left_alone() {
        let (_home, data) = folder();
        fs::write(data.tls_cert(), "-----BEGIN CERTIFICATE-----\n").unwrap();
        fs::write(data.tls_key(), "key").unwrap();
        let tls = open(&data, LOOPBACK, day(20_000)).unwrap();
        assert_eq!((tls.certificate_pem.as_str(), tls.key_pem.as_str()), ("-----BEGIN CERTIFICATE-----\n", "key"));
        assert_eq!(fs::metadata(data.tls_key()).unwrap().mode() & 0o777, 0o600);
        fs::remove_file(data.tls_key()).unwrap();
        assert!(matches!(open(&data, LOOPBACK, day(20_000)).unwrap_err(), TlsError::Half { .. }));
    }

    #[test]
    fn a_note_that_is_none() {
        for line in ["", "-----BEGIN", &format!("{NOTE} soon for localhost"), &format!("{NOTE} {} for x", u64::MAX)] {
            assert_eq!(parse_note(line), None, "{line}");
        }
    }

    /// A server with this certificate, and a client that trusts `trusted`.
    async fn connect(tls: &Tls, trusted: &str) -> Result<Channel, tonic::transport::Error> {
        let listener = tokio::net::TcpListener::bind(LOOPBACK).await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Identity::from_pem(&tls.certificate_pem, tls.key_pem.as_str());
        let (_reporter, health) = tonic_health::server::health_reporter();
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(health)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let client = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trusted));
        Channel::from_shared(format!("https://{address}")).unwrap().tls_config(client)?.connect().await
    }

    #[tokio::test]
    async fn a_client_that_has_the_certificate_connects_and_another_does_not() {
        let now = SystemTime::now();
        let ((_home, data), (_other_home, other)) = (folder(), folder());
        let tls = open(&data, LOOPBACK, now).unwrap();
        connect(&tls, &tls.certificate_pem).await.unwrap();
        let foreign = open(&other, LOOPBACK, now).unwrap();
        connect(&tls, &foreign.certificate_pem).await.unwrap_err();
    }
}
