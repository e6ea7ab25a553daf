//! Where the daemon is and how to prove who we are: address, certificate, token.
//!
//! The daemon writes three files into its data folder: `rpc.json` (`{"rpc": "https://…"}` and more), `tls.cert`
//! (its certificate, PEM) and `access.token` (text, readable by its owner only). Each can be named by itself. The
//! folder is the one that `millraced --data-dir` names, or `NETWORK` below the one given here.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::args::{Globals, Network};
use crate::fault::Fault;

/// Where a daemon listens unless it says otherwise.
pub(crate) const DEFAULT_URL: &str = "https://127.0.0.1:9737";

/// Address, certificate and token of a daemon.
pub(crate) struct Location {
    /// `https://HOST:PORT`.
    pub(crate) url: String,
    /// The daemon's certificate, PEM. No other is accepted.
    pub(crate) certificate: Vec<u8>,
    /// What the daemon accepts as proof.
    pub(crate) token: String,
}

/// The part of `rpc.json` that is needed; the daemon may write more.
#[derive(Deserialize)]
struct RpcFile {
    #[serde(alias = "url")]
    rpc: String,
    /// The daemon's network.
    #[serde(default)]
    network: String,
}

impl Location {
    /// From the flags and environment, else from the files in the daemon's data folder.
    pub(crate) fn find(globals: &Globals) -> Result<Self, Fault> {
        let folder = folder(globals)?;
        let url = match &globals.rpc {
            Some(url) => url.clone(),
            None => url_in(&folder, globals.network)?.unwrap_or_else(|| DEFAULT_URL.to_owned()),
        };
        if !url.starts_with("https://") {
            return Err(Fault::Usage(format!(
                "`{url}` does not begin with https://; the token never travels unencrypted"
            )));
        }
        let certificate_path = named_or(globals.tls_cert.as_deref(), &folder, "tls.cert");
        let token_path = named_or(globals.token_file.as_deref(), &folder, "access.token");
        Ok(Self { certificate: read_certificate(&certificate_path, &url)?, token: read_token(&token_path)?, url })
    }
}

fn named_or(named: Option<&Path>, folder: &Path, name: &str) -> PathBuf {
    named.map_or_else(|| folder.join(name), Path::to_path_buf)
}

/// The daemon's own folder, if that is what was named; else `DATA_DIR/NETWORK`, and without a network the only one
/// that a daemon has run on.
fn folder(globals: &Globals) -> Result<PathBuf, Fault> {
    let data_dir = match &globals.data_dir {
        Some(data_dir) => data_dir.clone(),
        None => default_data_dir()?,
    };
    if data_dir.join("access.token").exists() {
        check_network(&data_dir, globals.network)?;
        return Ok(data_dir);
    }
    if let Some(network) = globals.network {
        return Ok(data_dir.join(network.name()));
    }
    let used: Vec<Network> =
        Network::ALL.into_iter().filter(|network| data_dir.join(network.name()).join("rpc.json").exists()).collect();
    match used.as_slice() {
        [] => Ok(data_dir.join(Network::Regtest.name())),
        [only] => Ok(data_dir.join(only.name())),
        several => {
            let names: Vec<&str> = several.iter().map(|network| network.name()).collect();
            Err(Fault::Usage(format!(
                "{} holds nodes of several networks: say --network {}",
                data_dir.display(),
                names.join(" or --network ")
            )))
        }
    }
}

/// A folder is one network's, as the daemon wrote into it: a command for another must not reach it.
fn check_network(folder: &Path, wanted: Option<Network>) -> Result<(), Fault> {
    let Ok(found) = fs::read_to_string(folder.join("network")) else { return Ok(()) };
    is_of_network(&folder.display().to_string(), found.trim(), wanted)
}

fn is_of_network(what: &str, found: &str, wanted: Option<Network>) -> Result<(), Fault> {
    match wanted {
        Some(wanted) if !found.is_empty() && found != wanted.name() => Err(Fault::Usage(format!(
            "{what} is for the network {found}, and --network (or MILLRACE_NETWORK) says {}",
            wanted.name()
        ))),
        _ => Ok(()),
    }
}

fn default_data_dir() -> Result<PathBuf, Fault> {
    match std::env::var_os("HOME") {
        Some(home) if !home.is_empty() => Ok(PathBuf::from(home).join(".millrace")),
        _ => Err(Fault::Usage("no HOME: say --data-dir".to_owned())),
    }
}

fn url_in(folder: &Path, network: Option<Network>) -> Result<Option<String>, Fault> {
    let path = folder.join("rpc.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Fault::Io { what: path.display().to_string(), source }),
    };
    let file: RpcFile = serde_json::from_str(&text)
        .map_err(|error| Fault::Usage(format!("{} is not what a daemon writes: {error}", path.display())))?;
    is_of_network(&path.display().to_string(), &file.network, network)?;
    Ok(Some(file.rpc))
}

fn read_certificate(path: &Path, url: &str) -> Result<Vec<u8>, Fault> {
    fs::read(path).map_err(|error| Fault::Unreachable {
        url: url.to_owned(),
        cause: format!("its certificate {}: {error}", path.display()),
    })
}

fn read_token(path: &Path) -> Result<String, Fault> {
    let text = fs::read_to_string(path).map_err(|error| Fault::Unauthorised {
        cause: format!("token file {}: {error}", path.display()),
        hint: "Only the daemon's own user may read it; `--token-file` names another.".to_owned(),
    })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Fault::Unauthorised {
            cause: format!("token file {} is empty", path.display()),
            hint: "The daemon writes it when it starts.".to_owned(),
        });
    }
    Ok(token.to_owned())
}
