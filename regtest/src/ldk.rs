//! A real ldk-node as the other side: built when first needed, run as a process of its own, and talked to by typed calls.
//!
//! ldk-node turns on features of LDK that would slow our own daemon, so its driver (`regtest/ldk`) is a crate outside the
//! workspace; `protocol` is what both ends say. This module knows nothing of the daemon.

pub(crate) mod build;
mod failures;
mod orders;
mod process;
pub mod protocol;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bitcoind::Bitcoind;
use crate::network::Error;
pub use failures::Decoded;
use process::{CallError, Process};
use protocol::{Command, Event, LogLevel, Reply, Start, Store};

/// Attempts at the first start: a free port may be taken between finding and using it.
const STARTS_MAX: u32 = 4;

/// How long it may take to stop in good order: LDK waits up to 30 s for its own event handler.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Lines of its log that go into an error.
const LOG_TAIL_LINES: usize = 30;

/// What LDK logs as an error on every regtest, where no fee can be estimated.
const NO_ESTIMATE: &str = "Failed to retrieve fee rate estimates";

/// How a node is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where it keeps its data.
    pub store: Store,
    /// What its log holds.
    pub log_level: LogLevel,
    /// It passes HTLCs on into channels that are not announced.
    pub forwards_to_private: bool,
}

impl Default for Options {
    /// ldk-node's own defaults.
    fn default() -> Self {
        Self { store: Store::Sqlite, log_level: LogLevel::Debug, forwards_to_private: false }
    }
}

/// An ldk-node. Dropping it kills it.
pub struct LdkNode {
    /// What people call it.
    pub name: String,
    // Before anything that removes folders: the process writes into its own.
    process: Option<Process>,
    data_dir: PathBuf,
    options: Options,
    rpc_port: u16,
    cookie: PathBuf,
    listen: Option<String>,
    alias: String,
    node_id: String,
}

/// A port that nobody listens on now.
fn free_address() -> Result<String, Error> {
    let port = crate::port::free_port();
    port.map(|port| format!("127.0.0.1:{port}"))
        .map_err(|source| Error::io("find a free port for", Path::new("ldk-node"), source))
}

impl LdkNode {
    /// A node that is not started yet, with its data in `folder/name`.
    #[must_use]
    pub fn new(name: &str, folder: &Path, bitcoind: &Bitcoind, options: Options) -> Self {
        Self {
            name: name.to_owned(),
            process: None,
            data_dir: folder.join(name),
            options,
            rpc_port: bitcoind.rpc_port(),
            cookie: bitcoind.cookie_path(),
            listen: None,
            alias: name.to_owned(),
            node_id: String::new(),
        }
    }

    /// What it calls itself from its next start on; its name unless said.
    pub fn set_alias(&mut self, alias: &str) {
        alias.clone_into(&mut self.alias);
    }

    /// Where it listens for peers from its next start on, instead of on a free port.
    pub fn listen_on(&mut self, address: &str) {
        self.listen = Some(address.to_owned());
    }

    // --- the process ---

    /// Builds the driver if need be, starts the node, and waits until it has read the chain.
    ///
    /// # Errors
    /// If it cannot be built or does not start.
    pub async fn start(&mut self) -> Result<(), Error> {
        let program = tokio::task::block_in_place(build::program)?;
        std::fs::create_dir_all(&self.data_dir).map_err(|source| Error::io("make", &self.data_dir, source))?;
        let mut attempt = 1;
        let listen = loop {
            let listen = self.listen.clone().map_or_else(free_address, Ok)?;
            match self.start_on(&program, &listen).await {
                Ok(()) => break listen,
                // Later starts must keep the address: peers know it.
                Err(Error::Node { what, .. })
                    if self.listen.is_none() && attempt < STARTS_MAX && what.contains("InvalidSocketAddress") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        };
        self.listen = Some(listen);
        self.ask_who().await?;
        self.sync().await
    }

    async fn ask_who(&mut self) -> Result<(), Error> {
        let Reply::NodeId(node_id) = self.call(Command::NodeId).await? else { return Err(self.odd_answer()) };
        self.node_id = node_id;
        Ok(())
    }

    /// Reaches a driver that a keeper holds, and starts the node in it if that has not been done. It goes on without us.
    ///
    /// # Errors
    /// If nobody listens at the socket, or the node does not start.
    pub async fn attach(&mut self, socket: &Path) -> Result<(), Error> {
        let process = Process::attach(socket).map_err(|source| Error::io("connect to", socket, source))?;
        self.process = Some(process);
        let attached = self.ask_or_start().await;
        if attached.is_err() {
            self.process = None;
        }
        attached
    }

    async fn ask_or_start(&mut self) -> Result<(), Error> {
        if self.ask_who().await.is_ok() {
            return Ok(());
        }
        let listen = self.lightning_address()?;
        self.call(self.start_command(&listen)?).await?;
        self.ask_who().await?;
        self.sync().await
    }

    async fn start_on(&mut self, program: &Path, listen: &str) -> Result<(), Error> {
        let start = self.start_command(listen)?;
        let process =
            Process::start(program, &self.words_path()).map_err(|source| Error::io("start", program, source))?;
        self.process = Some(process);
        let started = self.call(start).await;
        if started.is_err() {
            self.process = None;
        }
        started.map(drop)
    }

    /// With the login that bitcoind has written at its last start.
    fn start_command(&self, listen: &str) -> Result<Command, Error> {
        let login = std::fs::read_to_string(&self.cookie).map_err(|source| Error::io("read", &self.cookie, source))?;
        let Some((user, password)) = login.trim().split_once(':') else {
            return Err(Error::Wrong(format!("{} holds no login", self.cookie.display())));
        };
        let start = Start {
            data_dir: self.data_dir.clone(),
            rpc_host: "127.0.0.1".to_owned(),
            rpc_port: self.rpc_port,
            rpc_user: user.to_owned(),
            rpc_password: password.to_owned(),
            listen: listen.to_owned(),
            store: self.options.store,
            log_level: self.options.log_level,
            alias: Some(self.alias.clone()),
            forwards_to_private: self.options.forwards_to_private,
        };
        Ok(Command::Start(Box::new(start)))
    }

    /// Stops it in good order.
    ///
    /// # Errors
    /// If it does not stop in time.
    pub async fn stop(&mut self) -> Result<(), Error> {
        if self.process.is_none() {
            return Ok(());
        }
        self.call(Command::Stop).await?;
        let ended =
            self.process.as_mut().is_some_and(|process| tokio::task::block_in_place(|| process.wait_for(STOP_LIMIT)));
        self.process = None;
        if ended { Ok(()) } else { Err(self.failed(&format!("it did not end within {} s", STOP_LIMIT.as_secs()))) }
    }

    /// Kills it at once, as a power cut would end it.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn kill9(&mut self) -> Result<(), Error> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.kill().map_err(|source| Error::io("kill", Path::new("millrace-ldk"), source))
    }

    /// Stops it in good order and starts it again.
    ///
    /// # Errors
    /// As [`LdkNode::stop`] and [`LdkNode::start`].
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.stop().await?;
        self.start().await
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Whether there is a process to talk to.
    #[must_use]
    pub const fn is_attached(&self) -> bool {
        self.process.is_some()
    }

    /// The process's id, if it is our own.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::pid)
    }

    /// Its folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// LDK's log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.data_dir.join("ldk_node.log")
    }

    /// Where the process says what is not in LDK's log, a panic for instance.
    #[must_use]
    pub fn words_path(&self) -> PathBuf {
        self.data_dir.join("words.log")
    }

    /// Every error and warning in LDK's log so far, apart from the one that regtest always gives.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let is_complaint = |line: &&str| {
            let level = line.split_whitespace().nth(2);
            matches!(level, Some("ERROR" | "WARN")) && !line.contains(NO_ESTIMATE)
        };
        log.lines().filter(is_complaint).map(str::to_owned).collect()
    }

    /// The failures of its own payments that it could read, in their order, those of earlier processes included.
    #[must_use]
    pub fn decoded_failures(&self) -> Vec<Decoded> {
        failures::decoded(&std::fs::read_to_string(self.log_path()).unwrap_or_default())
    }

    /// What it says of answers to its own payments that it could not read, or whose attribution data it found wrong.
    #[must_use]
    pub fn unread_failures(&self) -> Vec<String> {
        failures::unread(&std::fs::read_to_string(self.log_path()).unwrap_or_default())
    }

    // --- calls ---

    async fn call(&self, command: Command) -> Result<Reply, Error> {
        let Some(process) = &self.process else { return Err(self.failed("it is not running")) };
        process.call(command).await.map_err(|error| match error {
            CallError::Refused(reason) => self.failed(&reason),
            CallError::Gone | CallError::Late => self.failed(&error.to_string()),
        })
    }

    async fn order(&self, command: Command) -> Result<(), Error> {
        match self.call(command).await? {
            Reply::Nothing => Ok(()),
            _ => Err(self.odd_answer()),
        }
    }

    fn odd_answer(&self) -> Error {
        self.failed("it answers something else than it was asked")
    }

    pub(crate) fn failed(&self, what: &str) -> Error {
        let tail = |path: PathBuf| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
        };
        let log = format!("{}\n{}", tail(self.log_path()), tail(self.words_path()));
        Error::Node { name: self.name.clone(), what: what.to_owned(), log }
    }

    /// Its public key, as hexadecimal.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// `HOST:PORT` for peers.
    ///
    /// # Errors
    /// If it was never started.
    pub fn lightning_address(&self) -> Result<String, Error> {
        self.listen.clone().ok_or_else(|| self.failed("it was never started"))
    }

    /// Everything that happened since the process started. Events of an earlier process that nobody had ticked off
    /// come again.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.process.as_ref().map(Process::events).unwrap_or_default()
    }

    /// The event with this number, counted from 0 since the process started, and the moment at which it was read.
    /// Waits for it; `None` when the process ends first.
    pub async fn event(&self, number: usize) -> Option<(Instant, Event)> {
        self.process.as_ref()?.event(number).await
    }
}
