//! The settings: flag, then environment (`MILLRACETOWER_…`: those of the daemon begin with `MILLRACE_`, and it takes
//! others for slips), then the file `millrace-tower.toml` in the data folder, then what stands here.

use std::path::{Path, PathBuf};

use bitcoin::Network;
use millrace_chain::Auth;
use serde::Deserialize;
use thiserror::Error;

/// The file in the data folder.
const FILE_NAME: &str = "millrace-tower.toml";
/// The port that nodes call, without a word about it.
const PORT: u16 = 9911;

/// Why the settings are not right.
#[derive(Debug, Error)]
pub(crate) enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not right.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: String,
    },
    /// A setting is not right.
    #[error("`{key}`: {reason}")]
    Value {
        /// Which.
        key: &'static str,
        /// Why.
        reason: String,
    },
}

/// What the command line and the environment say.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Flags {
    /// The tower's folder: its key, its journal and its socket. By default ~/.millrace-tower.
    #[arg(long, global = true, env = "MILLRACETOWER_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// regtest (the default), signet, testnet4 or bitcoin.
    #[arg(long, global = true, env = "MILLRACETOWER_NETWORK")]
    network: Option<String>,
    /// Where nodes call: 127.0.0.1:9911 by default.
    #[arg(long, global = true, env = "MILLRACETOWER_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,
    /// What nodes are told to call, if it is another address.
    #[arg(long, global = true, env = "MILLRACETOWER_EXTERNAL_ADDRESS", value_name = "HOST:PORT")]
    external_address: Option<String>,
    /// bitcoind's RPC, such as http://127.0.0.1:8332.
    #[arg(long, global = true, env = "MILLRACETOWER_BITCOIND_URL", value_name = "URL")]
    bitcoind_url: Option<String>,
    /// The cookie file of bitcoind.
    #[arg(long, global = true, env = "MILLRACETOWER_BITCOIND_COOKIE", value_name = "FILE")]
    bitcoind_cookie: Option<PathBuf>,
    /// Instead of a cookie: the user of bitcoind's RPC. The password stands in the environment
    /// (MILLRACETOWER_BITCOIND_PASSWORD) or in the file.
    #[arg(long, global = true, env = "MILLRACETOWER_BITCOIND_USER")]
    bitcoind_user: Option<String>,
    /// What is logged: error, warn, info (the default), debug, trace, or a filter such as info,millrace_watchtower=debug.
    #[arg(long, global = true, env = "MILLRACETOWER_LOG_LEVEL", value_name = "FILTER")]
    log_level: Option<String>,
}

/// What the file may say.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
struct File {
    network: Option<String>,
    listen: Option<String>,
    external_address: Option<String>,
    bitcoind_url: Option<String>,
    bitcoind_cookie: Option<PathBuf>,
    bitcoind_user: Option<String>,
    bitcoind_password: Option<String>,
    log_level: Option<String>,
}

/// The settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) network: Network,
    pub(crate) listen: String,
    pub(crate) external_address: Option<String>,
    pub(crate) bitcoind_url: String,
    pub(crate) bitcoind_auth: Auth,
    pub(crate) log_level: String,
}

impl Settings {
    /// The socket of the administration.
    pub(crate) fn socket(&self) -> PathBuf {
        self.data_dir.join("admin.sock")
    }

    /// The journal's folder.
    pub(crate) fn journal(&self) -> PathBuf {
        self.data_dir.join("journal")
    }

    /// The file with the tower's key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.data_dir.join("tower.key")
    }
}

/// Reads and checks all settings.
pub(crate) fn load(flags: Flags) -> Result<Settings, SettingsError> {
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty()).unwrap_or_else(|| "/".into());
    let data_dir = flags.data_dir.clone().unwrap_or_else(|| home.join(".millrace-tower"));
    let file = read_file(&data_dir.join(FILE_NAME))?;
    let password = std::env::var("MILLRACETOWER_BITCOIND_PASSWORD").ok().or(file.bitcoind_password);
    let network = parse_network(flags.network.or(file.network).as_deref().unwrap_or("regtest"))?;
    let (user, cookie) = (flags.bitcoind_user.or(file.bitcoind_user), flags.bitcoind_cookie.or(file.bitcoind_cookie));
    let bitcoind_auth = match (user, password) {
        (Some(user), Some(password)) => Auth::UserPass { user, password },
        (Some(_), None) => return Err(wrong("bitcoind_user", "needs bitcoind_password beside it")),
        (None, Some(_)) => return Err(wrong("bitcoind_password", "needs bitcoind_user beside it")),
        (None, None) => Auth::Cookie(cookie.unwrap_or_else(|| default_cookie(&home, network))),
    };
    let bitcoind_url = flags.bitcoind_url.or(file.bitcoind_url).unwrap_or_else(|| default_url(network));
    if !bitcoind_url.starts_with("http://") {
        return Err(wrong("bitcoind_url", "must begin with http:// (bitcoind's RPC has no TLS)"));
    }
    Ok(Settings {
        data_dir,
        network,
        listen: flags.listen.or(file.listen).unwrap_or_else(|| format!("127.0.0.1:{PORT}")),
        external_address: flags.external_address.or(file.external_address),
        bitcoind_url,
        bitcoind_auth,
        log_level: flags.log_level.or(file.log_level).unwrap_or_else(|| "info".to_owned()),
    })
}

fn wrong(key: &'static str, reason: impl Into<String>) -> SettingsError {
    SettingsError::Value { key, reason: reason.into() }
}

fn read_file(path: &Path) -> Result<File, SettingsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|error| SettingsError::File { path: path.to_owned(), error: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(error) => Err(SettingsError::Read { path: path.to_owned(), error }),
    }
}

fn parse_network(name: &str) -> Result<Network, SettingsError> {
    match name {
        "regtest" => Ok(Network::Regtest),
        "signet" => Ok(Network::Signet),
        "testnet4" => Ok(Network::Testnet4),
        "bitcoin" => Ok(Network::Bitcoin),
        other => Err(wrong("network", format!("{other} is none of regtest, signet, testnet4 and bitcoin"))),
    }
}

fn default_url(network: Network) -> String {
    let port = match network {
        Network::Regtest => 18443,
        Network::Signet => 38332,
        Network::Testnet4 => 48332,
        _ => 8332,
    };
    format!("http://127.0.0.1:{port}")
}

fn default_cookie(home: &Path, network: Network) -> PathBuf {
    let folder = match network {
        Network::Regtest => "regtest",
        Network::Signet => "signet",
        Network::Testnet4 => "testnet4",
        _ => "",
    };
    home.join(".bitcoin").join(folder).join(".cookie")
}

/// The network's name, as in the settings.
pub(crate) const fn network_name(network: Network) -> &'static str {
    match network {
        Network::Regtest => "regtest",
        Network::Signet => "signet",
        Network::Testnet4 => "testnet4",
        _ => "bitcoin",
    }
}
