//! JSON-RPC over HTTP: the login, the time limits, and which error means what.
//!
//! One connection per call, so a late answer cannot be taken for another call's; the answer's id is
//! checked all the same. It does not know any call by name.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jsonrpc::bitreq_http_async::{Builder, Error as HttpFailure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::to_raw_value;

use crate::{ChainError, Result};

/// bitcoind's code while it loads its block index.
const RPC_IN_WARMUP: i32 = -28;

/// How to log in.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// By the file that bitcoind writes anew at each start.
    Cookie(PathBuf),
    /// By a user's name and password, from bitcoind's `rpcauth`.
    UserPass {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie(path) => f.debug_tuple("Cookie").field(path).finish(),
            Self::UserPass { user, .. } => f.debug_struct("UserPass").field("user", user).finish_non_exhaustive(),
        }
    }
}

/// How long to wait for bitcoind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// An ordinary call.
    pub call: Duration,
    /// A call that moves much: a block, a package, the mempool.
    pub bulk: Duration,
    /// One long poll for the next block. A reorg to a chain that is not longer is seen after this at
    /// the latest; a longer chain is seen at once.
    pub poll: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { call: Duration::from_secs(30), bulk: Duration::from_secs(120), poll: Duration::from_secs(2) }
    }
}

/// A bitcoind inside of this process, such as a simulated one: it gets calls as one behind a socket would.
pub trait Answers: Send + Sync {
    /// What it answers.
    ///
    /// # Errors
    /// As a bitcoind behind a socket: [`ChainError::Rpc`], [`ChainError::Away`], [`ChainError::Odd`].
    fn answer(&self, method: &str, arguments: &[Value]) -> Result<Value>;
}

/// Which time limit a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Call,
    Bulk,
    Poll,
}

/// The way to one bitcoind.
pub(super) struct Client {
    url: String,
    auth: Auth,
    timeouts: Timeouts,
    login: Mutex<Option<Arc<Login>>>,
    within: Option<Arc<dyn Answers>>,
}

/// Connections under one login.
struct Login {
    secret: String,
    call: jsonrpc::client_async::Client,
    bulk: jsonrpc::client_async::Client,
    poll: jsonrpc::client_async::Client,
}

impl Client {
    pub(super) fn new(url: &str, auth: Auth, timeouts: Timeouts) -> Result<Self> {
        let bad = |reason| ChainError::Url { url: url.to_owned(), reason };
        let Some(host) = url.strip_prefix("http://") else {
            return Err(bad("it has to begin with http:// (bitcoind itself speaks no TLS)"));
        };
        if host.contains('@') {
            return Err(bad("the login does not belong into the address"));
        }
        if host.trim_end_matches('/').is_empty() {
            return Err(bad("it names no host"));
        }
        Ok(Self { url: url.to_owned(), auth, timeouts, login: Mutex::new(None), within: None })
    }

    /// To one inside of this process.
    pub(super) fn within(bitcoind: Arc<dyn Answers>) -> Self {
        let auth = Auth::UserPass { user: String::new(), password: String::new() };
        let (url, timeouts) = ("within this process".to_owned(), Timeouts::default());
        Self { url, auth, timeouts, login: Mutex::new(None), within: Some(bitcoind) }
    }

    pub(super) fn poll_limit(&self) -> Duration {
        self.timeouts.poll
    }

    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        arguments: &[Value],
        patience: Patience,
    ) -> Result<T> {
        if let Some(bitcoind) = &self.within {
            return read(method, bitcoind.answer(method, arguments));
        }
        let login = self.login()?;
        match call_under(&login, method, arguments, patience).await {
            Err(ChainError::Auth { reason }) => {
                let login = self.login_anew(&login, reason)?;
                call_under(&login, method, arguments, patience).await
            }
            other => other,
        }
    }

    /// Several calls of one method in one request; the answers in the order of the arguments.
    pub(super) async fn batch<T: DeserializeOwned>(
        &self,
        method: &str,
        arguments: &[Vec<Value>],
    ) -> Result<Vec<Result<T>>> {
        if let Some(bitcoind) = &self.within {
            return Ok(arguments.iter().map(|one| read(method, bitcoind.answer(method, one))).collect());
        }
        let login = self.login()?;
        match batch_under(&login, method, arguments).await {
            Err(ChainError::Auth { reason }) => {
                let login = self.login_anew(&login, reason)?;
                batch_under(&login, method, arguments).await
            }
            other => other,
        }
    }

    fn login(&self) -> Result<Arc<Login>> {
        let mut current = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(login) = current.as_ref() {
            return Ok(Arc::clone(login));
        }
        let login = Arc::new(self.make_login(self.read_secret()?));
        *current = Some(Arc::clone(&login));
        Ok(login)
    }

    /// The login after `refused` was: a bitcoind that was restarted has written a new cookie.
    fn login_anew(&self, refused: &Arc<Login>, reason: String) -> Result<Arc<Login>> {
        let secret = self.read_secret()?;
        if secret == refused.secret {
            return Err(ChainError::Auth { reason });
        }
        let login = Arc::new(self.make_login(secret));
        let mut current = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Arc::clone(&login));
        Ok(login)
    }

    fn read_secret(&self) -> Result<String> {
        let path = match &self.auth {
            Auth::UserPass { user, password } => return Ok(format!("{user}:{password}")),
            Auth::Cookie(path) => path,
        };
        let shown = path.display();
        match fs::read_to_string(path) {
            Ok(text) if text.trim().contains(':') => Ok(text.trim().to_owned()),
            Ok(_) => Err(ChainError::Auth { reason: format!("{shown} is not a cookie file") }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let reason = format!("there is no cookie file {shown}, which bitcoind writes when it starts");
                Err(ChainError::Away { reason })
            }
            Err(error) => Err(ChainError::Auth { reason: format!("cookie file {shown}: {error}") }),
        }
    }

    fn make_login(&self, secret: String) -> Login {
        // bitcoind answers a long poll when its own limit is over; ours is only for one that hangs.
        let poll = self.timeouts.poll.saturating_add(self.timeouts.call);
        let [call, bulk, poll] = [self.timeouts.call, self.timeouts.bulk, poll].map(|limit| {
            let (user, password) = secret.split_once(':').unwrap_or((&secret, ""));
            let builder = Builder::new().timeout(limit).basic_auth(user.to_owned(), Some(password.to_owned()));
            let transport = builder.url(&self.url).expect("the builder takes any text as the address");
            jsonrpc::client_async::Client::with_transport(transport.build())
        });
        Login { secret, call, bulk, poll }
    }
}

fn read<T: DeserializeOwned>(method: &str, answer: Result<Value>) -> Result<T> {
    serde_json::from_value(answer?).map_err(|error| ChainError::odd(method, error.to_string()))
}

async fn call_under<T: DeserializeOwned>(
    login: &Login,
    method: &str,
    arguments: &[Value],
    patience: Patience,
) -> Result<T> {
    let client = match patience {
        Patience::Call => &login.call,
        Patience::Bulk => &login.bulk,
        Patience::Poll => &login.poll,
    };
    let arguments = to_raw_value(arguments).map_err(|error| ChainError::odd(method, error.to_string()))?;
    client.call(method, Some(&arguments)).await.map_err(|error| classify(method, error))
}

async fn batch_under<T: DeserializeOwned>(
    login: &Login,
    method: &str,
    arguments: &[Vec<Value>],
) -> Result<Vec<Result<T>>> {
    if arguments.is_empty() {
        return Ok(Vec::new());
    }
    let raw = arguments.iter().map(to_raw_value).collect::<serde_json::Result<Vec<_>>>();
    let raw = raw.map_err(|error| ChainError::odd(method, error.to_string()))?;
    let requests: Vec<_> = raw.iter().map(|raw| login.bulk.build_request(method, Some(raw))).collect();
    let answers = login.bulk.send_batch(&requests).await.map_err(|error| classify(method, error))?;
    let read = |answer: Option<jsonrpc::Response>| match answer {
        Some(answer) => answer.result().map_err(|error| classify(method, error)),
        None => Err(ChainError::odd(method, "a batch came back with an answer missing")),
    };
    Ok(answers.into_iter().map(read).collect())
}

/// What an error of the library means for us.
fn classify(method: &str, error: jsonrpc::Error) -> ChainError {
    use jsonrpc::Error as Rpc;
    match error {
        Rpc::Rpc(error) if error.code == RPC_IN_WARMUP => {
            ChainError::Away { reason: format!("it is starting: {}", error.message) }
        }
        Rpc::Rpc(error) => ChainError::Rpc { method: method.to_owned(), code: error.code, message: error.message },
        Rpc::Transport(error) => match error.downcast_ref::<HttpFailure>() {
            Some(HttpFailure::Http(answer)) => classify_status(answer.status_code, answer.body.trim()),
            Some(HttpFailure::Bitreq(jsonrpc::bitreq::Error::SerdeJsonError(error))) => {
                ChainError::odd(method, format!("not JSON-RPC: {error}"))
            }
            _ => ChainError::Away { reason: error.to_string() },
        },
        other => ChainError::odd(method, other.to_string()),
    }
}

fn classify_status(status: i32, body: &str) -> ChainError {
    match status {
        401 => ChainError::Auth { reason: "wrong user, password or cookie (HTTP status 401)".to_owned() },
        403 => ChainError::Auth { reason: "its rpcallowip does not let us in (HTTP status 403)".to_owned() },
        _ => ChainError::Away { reason: format!("HTTP status {status} {body}").trim_end().to_owned() },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn client(url: &str, auth: Auth) -> Result<Client> {
        Client::new(url, auth, Timeouts::default())
    }

    fn cookie(path: &str) -> Auth {
        Auth::Cookie(path.into())
    }

    mod url {
        use super::*;

        #[test]
        fn https_a_login_inside_or_no_host() {
            for url in ["https://127.0.0.1:8332", "127.0.0.1:8332", "http://a:b@127.0.0.1:8332", "http://"] {
                assert!(matches!(client(url, cookie("/c")), Err(ChainError::Url { .. })), "{url}");
            }
            assert!(client("http://127.0.0.1:8332", cookie("/c")).is_ok());
        }
    }

    mod login {
        use super::*;

        #[test]
        fn no_cookie_means_away() {
            let client = client("http://127.0.0.1:1", cookie("/nowhere/.cookie")).unwrap();
            let Err(ChainError::Away { reason }) = client.read_secret() else { panic!() };
            assert!(reason.contains("/nowhere/.cookie"), "{reason}");
        }

        #[test]
        fn a_file_that_is_no_cookie() {
            let file = tempfile::NamedTempFile::new().unwrap();
            let client = client("http://127.0.0.1:1", Auth::Cookie(file.path().to_owned())).unwrap();
            assert!(matches!(client.read_secret(), Err(ChainError::Auth { .. })));
        }

        #[test]
        fn debug_shows_no_password() {
            let auth = Auth::UserPass { user: "alice".to_owned(), password: "hunter2".to_owned() };
            let shown = format!("{auth:?}");
            assert!(shown.contains("alice") && !shown.contains("hunter2"), "{shown}");
        }
    }

    mod status {
        use super::*;

        #[test]
        fn by_what_to_do() {
            assert!(matches!(classify_status(401, ""), ChainError::Auth { .. }));
            assert!(matches!(classify_status(403, ""), ChainError::Auth { .. }));
            let busy = classify_status(503, "Work queue depth exceeded");
            assert_eq!(busy.to_string(), "bitcoind is away: HTTP status 503 Work queue depth exceeded");
        }
    }
}
