//! One `millraced` process: started, killed, started again, and talked to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_rpc::v1::{GetInfoRequest, GetStatusRequest, StartStage};
use serde::Deserialize;

use crate::client::Client;
use crate::network::{Error, random_key};
use crate::programs::Programs;
use crate::supervisor::Supervised;

/// How long a daemon may take to be ready, or to stop.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Lines of its log that go into an error.
const LOG_TAIL_LINES: usize = 30;

/// A port that nobody has now; 0, for any, if there is none.
fn free_port() -> u16 {
    crate::port::free_port().unwrap_or(0)
}

/// What the daemon writes into its data folder for its clients.
#[derive(Deserialize, Clone, Debug)]
pub struct RpcInfo {
    /// `https://HOST:PORT`.
    pub rpc: String,
    /// The certificate's path.
    pub cert: PathBuf,
    /// The token's path.
    pub token: PathBuf,
    /// `HOST:PORT` for peers.
    pub lightning: String,
    /// `http://HOST:PORT/metrics`, if metrics are on.
    pub metrics: Option<String>,
    /// The process.
    pub pid: u32,
}

/// A daemon.
pub struct Node {
    /// What people call it.
    pub name: String,
    programs: Programs,
    data_dir: PathBuf,
    arguments: Vec<OsString>,
    /// The program that starts the daemon, and its arguments; nothing if it is started by itself.
    starter: Vec<OsString>,
    process: Option<Supervised>,
    client: Option<Client>,
    info: Option<RpcInfo>,
    node_id: Vec<u8>,
}

impl Node {
    /// A daemon that is not started yet.
    #[must_use]
    pub fn new(name: &str, programs: &Programs, data_dir: PathBuf, bitcoind_url: &str, cookie: &Path) -> Self {
        Self::listening(name, programs, data_dir, bitcoind_url, cookie, free_port())
    }

    /// The same, listening for peers on a port of this machine that is said.
    #[must_use]
    pub fn listening(
        name: &str,
        programs: &Programs,
        data_dir: PathBuf,
        bitcoind_url: &str,
        cookie: &Path,
        port: u16,
    ) -> Self {
        let mut arguments: Vec<OsString> = vec!["--network".into(), "regtest".into()];
        arguments.extend(["--data-dir".into(), data_dir.clone().into_os_string()]);
        arguments.extend(["--bitcoind-url".into(), bitcoind_url.into()]);
        arguments.extend(["--bitcoind-cookie".into(), cookie.as_os_str().to_owned()]);
        arguments.extend(["--alias".into(), name.into()]);
        // Peers remember where it was: it must be there again after a restart.
        arguments.extend(["--listen".into(), format!("127.0.0.1:{port}").into()]);
        arguments.extend(["--rpc-listen".into(), "127.0.0.1:0".into()]);
        let programs = programs.clone();
        Self {
            name: name.to_owned(),
            programs,
            data_dir,
            arguments,
            starter: Vec::new(),
            process: None,
            client: None,
            info: None,
            node_id: Vec::new(),
        }
    }

    /// A further argument for every start from now on.
    pub fn argument(&mut self, argument: &str) {
        self.arguments.push(argument.into());
    }

    /// What it calls itself from its next start on; its name unless said.
    pub fn set_alias(&mut self, alias: &str) {
        if let Some(flag) = self.arguments.iter().position(|argument| argument == "--alias") {
            self.arguments[flag + 1] = alias.into();
        }
    }

    /// The daemon's arguments, for whoever starts it otherwise.
    pub(crate) fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Reaches a daemon that runs without us: whether it is ready. It goes on without us.
    ///
    /// # Errors
    /// If it is ready and then does not say who it is.
    pub(crate) async fn attach(&mut self, pid: u32) -> Result<bool, Error> {
        // What an earlier process has written is not this one's.
        if self.read_info().is_none_or(|info| info.pid != pid) || !self.is_ready().await {
            return Ok(false);
        }
        self.ask_who().await?;
        Ok(true)
    }

    async fn ask_who(&mut self) -> Result<(), Error> {
        let info = self.client()?.node.get_info(GetInfoRequest {}).await.map_err(|status| self.call_failed(&status))?;
        self.node_id = info.into_inner().node_id;
        Ok(())
    }

    /// Starts it, from now on, by a program that becomes the daemon (`exec`): these words, then the daemon's program and
    /// its arguments. Without words, by itself again.
    pub fn start_by(&mut self, words: &[&str]) {
        self.starter = words.iter().map(OsString::from).collect();
    }

    /// Serves metrics from the next start on; their address is in [`Node::rpc_info`]. The daemon takes no port 0 for
    /// them, which would be another one at every start.
    pub fn serve_metrics(&mut self) {
        self.argument("--metrics-listen");
        self.argument(&format!("127.0.0.1:{}", free_port()));
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// If it ends or does not become ready in time; the error holds the end of its log.
    pub async fn start(&mut self) -> Result<(), Error> {
        self.launch()?;
        self.wait_until_ready().await
    }

    /// Starts the process and waits for nothing.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn launch(&mut self) -> Result<(), Error> {
        std::fs::create_dir_all(&self.data_dir).map_err(|source| Error::io("make", &self.data_dir, source))?;
        let own = std::iter::once(self.programs.millraced.clone().into_os_string());
        let mut words = self.starter.iter().cloned().chain(own).chain(self.arguments.iter().cloned());
        let program = words.next().map(PathBuf::from).unwrap_or_default();
        let arguments: Vec<OsString> = words.collect();
        let process = Supervised::start(&program, &arguments, &self.log_path())
            .map_err(|source| Error::io("start", &program, source))?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn wait_until_ready(&mut self) -> Result<(), Error> {
        let until = Instant::now() + START_LIMIT;
        loop {
            if let Some(ended) = self.ended() {
                return Err(self.failed(&format!("it ended with {ended}")));
            }
            if self.is_ready().await {
                break;
            }
            if Instant::now() > until {
                return Err(self.failed(&format!("it was not ready within {} s", START_LIMIT.as_secs())));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.ask_who().await
    }

    async fn is_ready(&mut self) -> bool {
        // The file of a killed daemon lies there until the new one has written its own.
        let Some(info) = self.read_info() else { return false };
        let (Ok(certificate), Ok(token)) = (std::fs::read_to_string(&info.cert), std::fs::read_to_string(&info.token))
        else {
            return false;
        };
        let Ok(mut client) = Client::connect(&info.rpc, &certificate, &token).await else { return false };
        let Ok(status) = client.node.get_status(GetStatusRequest {}).await else { return false };
        self.client = Some(client);
        self.info = Some(info);
        status.into_inner().stage == i32::from(StartStage::Ready)
    }

    fn read_info(&self) -> Option<RpcInfo> {
        let text = std::fs::read_to_string(self.data_dir.join("rpc.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn ended(&mut self) -> Option<String> {
        let process = self.process.as_mut()?;
        process.ended().ok().flatten().map(|status| status.to_string())
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_some() && self.ended().is_none()
    }

    /// Kills it at once, as a power cut would end it.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn kill9(&mut self) -> Result<(), Error> {
        self.client = None;
        if let Some(mut process) = self.process.take() {
            process.kill().map_err(|source| Error::io("kill", &self.programs.millraced, source))?;
        }
        // Whoever asks for the next one must not find the last one's address.
        let _ = std::fs::remove_file(self.data_dir.join("rpc.json"));
        Ok(())
    }

    /// Ends it as its user would.
    ///
    /// # Errors
    /// If it does not end in time, or not well.
    pub async fn stop(&mut self) -> Result<(), Error> {
        self.client = None;
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.terminate();
        let waited = tokio::task::block_in_place(|| process.wait_for(STOP_LIMIT));
        match waited {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(self.failed(&format!("it ended with {status} when it was asked to stop"))),
            Ok(None) => Err(self.failed(&format!("it did not stop within {} s", STOP_LIMIT.as_secs()))),
            Err(source) => Err(Error::io("stop", &self.programs.millraced, source)),
        }
    }

    /// Lets it run on when this process ends.
    pub fn leave_running(&mut self) {
        if let Some(process) = &mut self.process {
            process.leave_running();
        }
    }

    /// The connection to it.
    ///
    /// # Errors
    /// If it is not running.
    pub fn client(&self) -> Result<Client, Error> {
        self.client.clone().ok_or_else(|| self.failed("it is not running"))
    }

    /// Its node id, 33 bytes.
    #[must_use]
    pub fn node_id(&self) -> &[u8] {
        &self.node_id
    }

    /// `HOST:PORT` for peers.
    ///
    /// # Errors
    /// If it is not running.
    pub fn lightning_address(&self) -> Result<String, Error> {
        self.info.as_ref().map(|info| info.lightning.clone()).ok_or_else(|| self.failed("it is not running"))
    }

    /// What it wrote for its clients.
    #[must_use]
    pub const fn rpc_info(&self) -> Option<&RpcInfo> {
        self.info.as_ref()
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.data_dir.with_extension("log")
    }

    /// The programs it was started from.
    #[must_use]
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    pub(crate) fn failed(&self, what: &str) -> Error {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        Error::Node { name: self.name.clone(), what: what.to_owned(), log: tail }
    }

    /// A call that failed, in words.
    #[must_use]
    pub fn call_failed(&self, status: &tonic::Status) -> Error {
        Error::Call { name: self.name.clone(), what: format!("{:?}: {}", status.code(), status.message()) }
    }

    /// A key for a call that is to happen once.
    #[must_use]
    pub fn key(&self) -> String {
        random_key()
    }
}
