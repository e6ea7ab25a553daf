//! One `millrace-tower` process: started, killed, started again, and asked how it stands. What its lives have cost is kept.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_rpc::tower::v1::tower_client::TowerClient;
use millrace_rpc::tower::v1::{AllowBlobsRequest, AllowRequest, GetStatusRequest, GetStatusResponse};
use secp256k1::PublicKey;
use tonic::transport::{Channel, Endpoint};

use crate::bench::process::{cpu_us, rss_mib_peak};
use crate::bitcoind::Bitcoind;
use crate::network::Error;
use crate::supervisor::Supervised;

/// How long it may take to be ready, or to stop with a checkpoint of everything.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Lines of its log that go into an error.
const LOG_TAIL_LINES: usize = 20;
/// Says who it is, then becomes the program.
const SHELL: &str = r#"echo $$ > "$1.new" && mv "$1.new" "$1" && shift && exec "$@""#;

/// A tower's folder, and the process while it runs.
pub struct Tower {
    folder: PathBuf,
    words: Vec<OsString>,
    process: Option<Supervised>,
    client: Option<TowerClient<Channel>>,
    address: String,
    cpu_us_before: u64,
    rss_mib_before: u64,
}

impl Tower {
    /// One in a folder of its own, with the chain of this bitcoind. It is not started yet.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn new(program: &Path, folder: PathBuf, bitcoind: &Bitcoind) -> Result<Self, Error> {
        let port = crate::bitcoind::free_port()?;
        let mut words = vec![program.as_os_str().to_owned(), "--data-dir".into(), folder.clone().into_os_string()];
        words.extend(["--network=regtest".into(), format!("--listen=127.0.0.1:{port}").into()]);
        words.push(format!("--bitcoind-url={}", bitcoind.rpc_url()).into());
        words.extend(["--bitcoind-cookie".into(), bitcoind.cookie_path().into_os_string(), "run".into()]);
        Ok(Self {
            folder,
            words,
            process: None,
            client: None,
            address: String::new(),
            cpu_us_before: 0,
            rss_mib_before: 0,
        })
    }

    /// Starts it, and waits until it can be asked.
    ///
    /// # Errors
    /// If it does not answer in time; the error holds the end of its log.
    pub async fn start(&mut self) -> Result<(), Error> {
        let pid_file = self.pid_file();
        // Of the life before; there is none at first.
        let _none = std::fs::remove_file(&pid_file);
        let mut arguments: Vec<OsString> = vec!["-c".into(), SHELL.into(), "tower".into(), pid_file.into_os_string()];
        arguments.extend(self.words.iter().cloned());
        let process = Supervised::start(Path::new("/bin/sh"), &arguments, &self.log_path());
        self.process = Some(process.map_err(|source| Error::io("start", &self.folder, source))?);
        let until = Instant::now() + LIMIT;
        loop {
            match self.connect().await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until || !self.is_running() => {
                    return Err(self.failed(&format!("it does not answer: {error}")));
                }
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    async fn connect(&mut self) -> Result<(), String> {
        let socket = format!("unix://{}", self.folder.join("admin.sock").display());
        let endpoint = Endpoint::from_shared(socket).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let mut client = TowerClient::new(channel);
        let told = client.get_status(GetStatusRequest {}).await.map_err(|status| status.message().to_owned())?;
        self.address = told.into_inner().address;
        self.client = Some(client);
        Ok(())
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.ended(), Ok(None)))
    }

    /// Its key, and where it listens.
    ///
    /// # Errors
    /// If it has not said them.
    pub fn key_and_address(&self) -> Result<(PublicKey, String), Error> {
        let parts =
            self.address.split_once('@').and_then(|(key, address)| Some((key.parse().ok()?, address.to_owned())));
        parts.ok_or_else(|| self.failed(&format!("`{}` is no address of a tower", self.address)))
    }

    /// Lets a client in.
    ///
    /// # Errors
    /// If it does not run, or refuses.
    pub async fn allow(&mut self, client: &PublicKey, channels_max: u32) -> Result<(), Error> {
        let request = AllowRequest { client: client.serialize().to_vec(), channels_max };
        let Some(tower) = &mut self.client else { return Err(self.failed("it does not run")) };
        let answer = tower.allow(request).await;
        answer.map(drop).map_err(|status| self.failed(status.message()))
    }

    /// Lets a client hand over sealed penalties.
    ///
    /// # Errors
    /// If it does not run, or refuses.
    pub async fn allow_blobs(&mut self, client: &PublicKey, blobs_max: u32) -> Result<(), Error> {
        let request = AllowBlobsRequest { client: client.serialize().to_vec(), blobs_max };
        let Some(tower) = &mut self.client else { return Err(self.failed("it does not run")) };
        let answer = tower.allow_blobs(request).await;
        answer.map(drop).map_err(|status| self.failed(status.message()))
    }

    /// How it stands.
    ///
    /// # Errors
    /// If it does not run, or does not answer.
    pub async fn status(&self) -> Result<GetStatusResponse, Error> {
        let Some(mut tower) = self.client.clone() else { return Err(self.failed("it does not run")) };
        let answer = tower.get_status(GetStatusRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.failed(status.message()))
    }

    /// kill -9. Does nothing if it does not run.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.note_costs();
        self.client = None;
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.kill().map(drop).map_err(|source| Error::io("kill the tower in", &self.folder, source))
    }

    /// Stops it as its owner would: it makes a checkpoint.
    ///
    /// # Errors
    /// If it does not stop in time, or says that it has failed.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.note_costs();
        self.client = None;
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.terminate();
        let ended = process.wait_for(LIMIT).map_err(|source| Error::io("stop the tower in", &self.folder, source))?;
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failed(&format!("it ended with {status}"))),
            None => Err(self.failed(&format!("it did not stop within {} s", LIMIT.as_secs()))),
        }
    }

    /// Bytes of its checkpoint.
    ///
    /// # Errors
    /// If there is none.
    pub fn checkpoint_bytes(&self) -> Result<u64, Error> {
        let path = self.folder.join("journal").join("checkpoint");
        std::fs::metadata(&path).map(|file| file.len()).map_err(|source| Error::io("read", &path, source))
    }

    /// CPU time of all of its lives, in µs, and the most memory that one of them has held, in MiB.
    #[must_use]
    pub fn costs(&self) -> (u64, u64) {
        let (cpu, rss) = self.pid().map_or((0, 0), |pid| (cpu_us(pid), rss_mib_peak(pid)));
        (self.cpu_us_before + cpu, self.rss_mib_before.max(rss))
    }

    fn note_costs(&mut self) {
        let has_ended = !self.is_running();
        if !has_ended {
            (self.cpu_us_before, self.rss_mib_before) = self.costs();
        }
        // What the file names is a process no more.
        let _gone = std::fs::remove_file(self.pid_file());
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.with_extension("pid")
    }

    /// The process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        std::fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    fn failed(&self, what: &str) -> Error {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let log = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        Error::Node { name: "millrace-tower".to_owned(), what: what.to_owned(), log }
    }
}
