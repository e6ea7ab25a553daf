//! Calls to the daemon: connecting, the token, and what a broken connection means.
//!
//! A call that only reads fails when its connection breaks. A call that changes something is made again with
//! the same idempotency key, so it can never be done twice; when that does not help in time, its outcome is
//! unknown, and said to be. Never does a broken connection count as a refusal.

use std::error::Error;
use std::future::Future;
use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::fault::{Fault, chain};
use crate::locate::Location;

/// A connection on which every call carries the token.
pub(crate) type Link = InterceptedService<Channel, Bearer>;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent connection is asked whether it still lives this often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The waits between tries: from the first, doubling, to the longest.
const RETRY_WAIT_FIRST: Duration = Duration::from_millis(50);
const RETRY_WAIT_LONGEST: Duration = Duration::from_secs(1);

/// Puts `authorization: Bearer TOKEN` on every call.
#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// The way to one daemon.
pub(crate) struct Session {
    endpoint: Endpoint,
    url: String,
    bearer: Bearer,
    retry_for: Duration,
}

/// A change that was asked for: its name and the key that makes it happen once.
pub(crate) struct Order {
    /// The command, for messages.
    pub(crate) what: &'static str,
    /// The idempotency key.
    pub(crate) key: String,
    /// True if, once taken, nothing but its outcome ends it: a payment.
    decided_by_outcome: bool,
}

/// What a message of progress was.
pub(crate) enum Step<R> {
    /// The same as one before it, or of a kind that this version does not know.
    Known,
    /// Something new.
    New,
    /// The last one, with the result.
    Last(R),
}

impl Order {
    /// An order with the user's key, or a random one.
    pub(crate) fn new(what: &'static str, key: Option<&str>) -> Result<Self, Fault> {
        let key = match key {
            Some("") => return Err(Fault::Usage("--idempotency-key is empty".to_owned())),
            Some(key) if key.len() > 64 => {
                let length = key.len();
                return Err(Fault::Usage(format!("--idempotency-key has {length} bytes, at most 64 are allowed")));
            }
            Some(key) => key.to_owned(),
            None => random_key()?,
        };
        Ok(Self { what, key, decided_by_outcome: false })
    }

    /// Once the daemon has taken it, a refusal is no answer any more: only the outcome is.
    pub(crate) fn decided_by_outcome(mut self) -> Self {
        self.decided_by_outcome = true;
        self
    }

    fn unknown(&self, cause: impl Into<String>) -> Fault {
        Fault::OutcomeUnknown { what: self.what, cause: cause.into(), key: self.key.clone() }
    }
}

fn random_key() -> Result<String, Fault> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Fault::Io {
        what: "random idempotency key".to_owned(),
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(hex::encode(bytes))
}

impl Session {
    /// Prepares calls; nothing is sent yet.
    pub(crate) fn new(location: Location, retry_for: Duration) -> Result<Self, Fault> {
        // The certificate is the only one that is trusted, so its name need not be the host's.
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&location.certificate))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(location.url.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| Fault::Usage(format!("`{}`: {}", location.url, chain(&error))))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .tcp_nodelay(true);
        let value =
            format!("Bearer {}", location.token).parse::<MetadataValue<Ascii>>().map_err(|_| Fault::Unauthorised {
                cause: "the token holds bytes that no token has".to_owned(),
                hint: "Is the token file the one of this daemon?".to_owned(),
            })?;
        Ok(Self { endpoint, url: location.url, bearer: Bearer(value), retry_for })
    }

    /// Connects. Whatever fails here, no call was made.
    async fn connect(&self) -> Result<Link, Fault> {
        match self.endpoint.connect().await {
            Ok(channel) => Ok(InterceptedService::new(channel, self.bearer.clone())),
            Err(error) => Err(self.unreachable(chain(&error))),
        }
    }

    /// How long to try again after a connection broke.
    pub(crate) fn retry_for(&self) -> Duration {
        self.retry_for
    }

    /// No connection, or no longer.
    pub(crate) fn unreachable(&self, cause: String) -> Fault {
        Fault::Unreachable { url: self.url.clone(), cause }
    }

    /// Makes a call that changes nothing.
    pub(crate) async fn read<T, F>(&self, call: impl FnOnce(Link) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let link = self.connect().await?;
        match call(link).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.read_failed(&status)),
        }
    }

    /// What a status means to a call that changes nothing.
    pub(crate) fn read_failed(&self, status: &Status) -> Fault {
        if is_broken(status) { self.unreachable(chain(status)) } else { Fault::answered(status) }
    }

    /// Makes a call that changes something, again with the same key while the connection breaks.
    pub(crate) async fn change<T, F>(&self, order: &Order, call: impl Fn(Link) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut retry = Retry::new(self.retry_for);
        loop {
            let link = self.connect_again(order, &mut retry).await?;
            match call(link).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => retry.after(order, &status).await?,
            }
        }
    }

    /// Makes a call that changes something and tells its progress. `on` takes each message and says what it was. Begins again with the same key while the connection breaks; then the daemon
    /// tells where the work stands, so `on` may see a message twice.
    pub(crate) async fn follow<M, R, F>(
        &self,
        order: &Order,
        call: impl Fn(Link) -> F,
        mut on: impl FnMut(M) -> Result<Step<R>, Fault>,
    ) -> Result<R, Fault>
    where
        F: Future<Output = Result<Response<Streaming<M>>, Status>>,
    {
        let mut retry = Retry::new(self.retry_for);
        loop {
            let link = self.connect_again(order, &mut retry).await?;
            let broken = match call(link).await {
                Ok(response) => {
                    let mut stream = response.into_inner();
                    loop {
                        let message = tokio::select! {
                            message = stream.message() => message,
                            _ = tokio::signal::ctrl_c() => return Err(order.unknown("interrupted")),
                        };
                        match message {
                            Ok(Some(message)) => {
                                retry.taken();
                                match on(message)? {
                                    Step::Last(result) => return Ok(result),
                                    Step::New => retry.progress(),
                                    Step::Known => {}
                                }
                            }
                            Ok(None) => {
                                retry.may_have_arrived = true;
                                break Status::unavailable("the daemon ended the stream early");
                            }
                            Err(status) => break status,
                        }
                    }
                }
                Err(status) => status,
            };
            retry.after(order, &broken).await?;
        }
    }

    /// Connects; once the order may have arrived, until the time for trying again is over.
    async fn connect_again(&self, order: &Order, retry: &mut Retry) -> Result<Link, Fault> {
        loop {
            match self.connect().await {
                Ok(link) => {
                    retry.connected_at = Instant::now();
                    return Ok(link);
                }
                Err(fault) if !retry.may_have_arrived => return Err(fault),
                Err(fault) => retry.wait(order, &fault.to_string()).await?,
            }
        }
    }
}

/// Trying again: how long already, and whether an earlier try may have reached the daemon.
struct Retry {
    patience: Duration,
    /// When the present connection came about.
    connected_at: Instant,
    /// Since when no connection has held; none while one does.
    broken_since: Option<Instant>,
    wait: Duration,
    may_have_arrived: bool,
    /// True once the daemon has answered with progress: it has taken the order.
    taken: bool,
}

impl Retry {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            connected_at: Instant::now(),
            broken_since: None,
            wait: RETRY_WAIT_FIRST,
            may_have_arrived: false,
            taken: false,
        }
    }

    /// The daemon has answered: it has the order.
    fn taken(&mut self) {
        self.taken = true;
        self.may_have_arrived = true;
    }

    /// The work goes on: patience begins anew. A daemon that only repeats itself does not earn that.
    fn progress(&mut self) {
        self.broken_since = None;
        self.wait = RETRY_WAIT_FIRST;
    }

    /// Decides after a status: the answer, an unknown outcome, or a wait and another try.
    async fn after(&mut self, order: &Order, status: &Status) -> Result<(), Fault> {
        match judge(status, self.may_have_arrived) {
            Verdict::Again => {
                self.may_have_arrived = true;
                // A connection that held longer than we would wait for one was not part of the trouble.
                if self.connected_at.elapsed() > self.patience {
                    self.progress();
                }
                self.wait(order, &chain(status)).await
            }
            Verdict::Unknown => Err(order.unknown(chain(status))),
            Verdict::Answer if self.taken && order.decided_by_outcome => Err(order.unknown(chain(status))),
            Verdict::Answer => Err(Fault::answered(status)),
        }
    }

    async fn wait(&mut self, order: &Order, cause: &str) -> Result<(), Fault> {
        let broken_since = *self.broken_since.get_or_insert_with(Instant::now);
        if broken_since.elapsed() + self.wait > self.patience {
            return Err(order.unknown(cause));
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(RETRY_WAIT_LONGEST);
        Ok(())
    }
}

/// What a status says about an order.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The daemon has answered.
    Answer,
    /// The connection broke, or the daemon is starting again after it did.
    Again,
    /// It cannot be told, and asking again at once would not help.
    Unknown,
}

fn judge(status: &Status, may_have_arrived: bool) -> Verdict {
    if is_broken(status) {
        return Verdict::Again;
    }
    match status.code() {
        Code::Unavailable if may_have_arrived => Verdict::Again,
        Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted if may_have_arrived => {
            Verdict::Unknown
        }
        Code::Internal | Code::Unknown | Code::DataLoss | Code::Cancelled | Code::DeadlineExceeded => Verdict::Unknown,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unavailable
        | Code::Unauthenticated => Verdict::Answer,
    }
}

/// True if the status was made on our side because the connection failed: the daemon's own have no source.
fn is_broken(status: &Status) -> bool {
    status.source().is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn broken() -> Status {
        Status::from_error(Box::new(std::io::Error::other("connection reset")))
    }

    #[test]
    fn a_broken_connection_is_tried_again() {
        assert_eq!(judge(&broken(), false), Verdict::Again);
        assert_eq!(judge(&broken(), true), Verdict::Again);
    }

    #[test]
    fn unavailable_is_an_answer_unless_an_order_is_under_way() {
        assert_eq!(judge(&Status::unavailable("starting"), false), Verdict::Answer);
        assert_eq!(judge(&Status::unavailable("starting"), true), Verdict::Again);
    }

    #[test]
    fn a_refusal_is_final_and_an_internal_error_is_not_one() {
        let refused = Status::failed_precondition("no");
        assert_eq!(judge(&refused, true), Verdict::Answer);
        assert_eq!(judge(&Status::internal("bug"), false), Verdict::Unknown);
        assert_eq!(judge(&Status::unauthenticated("who?"), false), Verdict::Answer);
        assert_eq!(judge(&Status::unauthenticated("who?"), true), Verdict::Unknown);
    }

    #[test]
    fn keys() {
        let random = Order::new("x", None).unwrap().key;
        assert_eq!(random.len(), 32);
        assert_ne!(random, Order::new("x", None).unwrap().key);
        assert_eq!(Order::new("x", Some("mine")).unwrap().key, "mine");
        assert!(Order::new("x", Some("")).is_err());
        assert!(Order::new("x", Some(&"a".repeat(65))).is_err());
    }
}
