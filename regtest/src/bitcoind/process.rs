//! One running bitcoind: started, asked, mined with, stopped, killed, started again.
//!
//! It has its own data folder and its own ports on 127.0.0.1, and no peers. It ends with its
//! [`Bitcoind`], or with this process (see `supervisor`).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bitcoin::{Address, Amount, BlockHash, Network, Txid};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Error, Program, Result, RpcClient, file_error, find_or_provision};
use crate::supervisor::Supervised;

/// The wallet that mines and pays.
const WALLET: &str = "miner";
/// How often RPC is asked for while bitcoind starts.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Attempts to start: a free port may be taken between finding and using it.
const STARTS_MAX: u32 = 4;
/// How much of the log goes into an error.
const LOG_TAIL_LINES: usize = 25;
/// How much of the log is read to find its last lines.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// How to start a bitcoind.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program; `None` finds one, or provisions one and says so on standard error.
    pub program: Option<Program>,
    /// The data folder; `None` makes a temporary one, removed at the end.
    pub data_folder: Option<PathBuf>,
    /// Whether it listens for peers, on a free port of 127.0.0.1.
    pub listen: bool,
    /// Further arguments, such as `-minrelaytxfee=0.00002`.
    pub arguments: Vec<String>,
    /// How long it may take until RPC answers, or until it has stopped.
    pub limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { program: None, data_folder: None, listen: false, arguments: Vec::new(), limit: Duration::from_secs(60) }
    }
}

/// A bitcoind on regtest. Dropping it kills it.
pub struct Bitcoind {
    // Before the folder: fields are dropped in order, and the process writes into the folder.
    child: Option<Supervised>,
    program: Program,
    options: Options,
    folder: PathBuf,
    temporary: Option<TempDir>,
    rpc_port: u16,
    peer_port: Option<u16>,
    rpc: RpcClient,
}

/// A payment that bitcoind's mempool does not take is made anew so often, with a pause.
const RESENDS: usize = 50;
const RESEND_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl Bitcoind {
    /// Starts one and waits until its RPC answers.
    ///
    /// # Errors
    /// If there is no bitcoind, or it does not start in time; the error holds the end of its log.
    pub fn start(options: Options) -> Result<Self> {
        let program = match &options.program {
            Some(program) => program.clone(),
            None => find_or_provision(&mut |step| eprintln!("bitcoind: {step}"))?,
        };
        let (folder, temporary) = match &options.data_folder {
            Some(folder) => (folder.clone(), None),
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("millrace-bitcoind-")
                    .tempdir()
                    .map_err(file_error(std::env::temp_dir()))?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        fs::create_dir_all(&folder).map_err(file_error(&folder))?;
        // bitcoind takes a relative data folder as relative to its own idea of a base.
        let folder = fs::canonicalize(&folder).map_err(file_error(&folder))?;
        let rpc = RpcClient::new(0, &folder.join("regtest").join(".cookie"));
        let mut bitcoind = Self { child: None, program, options, folder, temporary, rpc_port: 0, peer_port: None, rpc };
        bitcoind.start_on_free_ports()?;
        Ok(bitcoind)
    }

    /// One that runs without us, or shall, with its data in `folder` and its RPC on `rpc_port`. Dropping this leaves it
    /// running.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn attach(program: Program, folder: &Path, rpc_port: u16, arguments: Vec<String>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(file_error(folder))?;
        let folder = fs::canonicalize(folder).map_err(file_error(folder))?;
        let rpc = RpcClient::new(rpc_port, &folder.join("regtest").join(".cookie"));
        let options = Options { data_folder: Some(folder.clone()), arguments, ..Options::default() };
        Ok(Self { child: None, program, options, folder, temporary: None, rpc_port, peer_port: None, rpc })
    }

    fn start_on_free_ports(&mut self) -> Result<()> {
        let mut attempt = 1;
        loop {
            self.rpc_port = free_port()?;
            self.peer_port = if self.options.listen { Some(free_port()?) } else { None };
            self.rpc = RpcClient::new(self.rpc_port, &self.cookie_path());
            match self.start_again() {
                Err(Error::Ended { log, .. }) if attempt < STARTS_MAX && log.contains("nable to bind") => {
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// Starts it again after [`Bitcoind::stop`] or [`Bitcoind::kill9`], with the same data and ports
    /// (and a new cookie). Does nothing if it runs.
    ///
    /// # Errors
    /// If it does not start in time.
    pub fn start_again(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let output = self.folder.join("output.log");
        // One left by a kill would look like a bitcoind that is ready to be asked.
        let cookie = self.cookie_path();
        if cookie.exists() {
            fs::remove_file(&cookie).map_err(file_error(&cookie))?;
        }
        let child = Supervised::start(&self.program.path, &self.arguments(), &output)
            .map_err(file_error(&self.program.path))?;
        self.child = Some(child);
        let ready = self.wait_until_ready();
        if ready.is_err() {
            self.child = None;
        }
        ready
    }

    /// What it is started with.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut data = OsString::from("-datadir=");
        data.push(&self.folder);
        let mut arguments = vec![data];
        let own = [
            "-regtest",
            "-server=1",
            "-daemon=0",
            "-printtoconsole=0",
            // No peers: nothing here may leave this machine.
            "-connect=0",
            "-dnsseed=0",
            "-fixedseeds=0",
            "-discover=0",
            "-listenonion=0",
            "-rpcbind=127.0.0.1",
            "-rpcallowip=127.0.0.1",
            // Every node of a test holds a long poll open, each in an RPC thread of its own.
            "-rpcthreads=16",
            "-rpcworkqueue=256",
            // Regtest has no fee history to estimate from.
            "-fallbackfee=0.00010000",
        ];
        arguments.extend(own.map(OsString::from));
        arguments.push(format!("-rpcport={}", self.rpc_port).into());
        match self.peer_port {
            Some(port) => {
                arguments.extend(["-listen=1".into(), format!("-bind=127.0.0.1:{port}").into()]);
            }
            None => arguments.push("-listen=0".into()),
        }
        arguments.extend(self.options.arguments.iter().map(OsString::from));
        arguments
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let until = Instant::now() + self.options.limit;
        loop {
            let last = match self.rpc.call("getblockcount", &json!([])) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let ended = match &mut self.child {
                Some(child) => child.ended().map_err(file_error(&self.program.path))?,
                None => None,
            };
            if let Some(status) = ended {
                let what = format!("ended while starting, with {status}");
                return Err(Error::Ended { what, log: self.log_tail() });
            }
            if Instant::now() >= until {
                let what = format!("was not ready within {:?}: {last}", self.options.limit);
                return Err(Error::Ended { what, log: self.log_tail() });
            }
            thread::sleep(ASK_AGAIN);
        }
    }

    /// Stops it as its operator would, and waits until it is gone. Does nothing if it is stopped.
    ///
    /// # Errors
    /// If it has not ended within the time limit; it is killed then.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.terminate();
        let path = &self.program.path;
        if child.wait_for(self.options.limit).map_err(file_error(path))?.is_some() {
            return Ok(());
        }
        child.kill().map_err(file_error(path))?;
        let what = format!("did not stop within {:?} and was killed", self.options.limit);
        Err(Error::Ended { what, log: self.log_tail() })
    }

    /// Kills it without a warning, as a power cut would. It may have lost its last blocks when it
    /// is started again.
    ///
    /// # Errors
    /// If the system cannot wait for the process.
    pub fn kill9(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().map(drop).map_err(file_error(&self.program.path))
    }

    /// Stops it and starts it again.
    ///
    /// # Errors
    /// As [`Bitcoind::stop`] and [`Bitcoind::start_again`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.ended(), Ok(None)))
    }

    /// Where its RPC listens, such as `http://127.0.0.1:18443`.
    #[must_use]
    pub fn rpc_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.rpc_port)
    }

    /// The port of its RPC.
    #[must_use]
    pub fn rpc_port(&self) -> u16 {
        self.rpc_port
    }

    /// The port for peers, if it listens for them.
    #[must_use]
    pub fn peer_port(&self) -> Option<u16> {
        self.peer_port
    }

    /// The file with the RPC's login, written anew at each start.
    #[must_use]
    pub fn cookie_path(&self) -> PathBuf {
        self.folder.join("regtest").join(".cookie")
    }

    /// Its data folder.
    #[must_use]
    pub fn data_folder(&self) -> &Path {
        &self.folder
    }

    /// The program it runs.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// A client of its RPC, for calls of one's own.
    #[must_use]
    pub fn rpc(&self) -> &RpcClient {
        &self.rpc
    }

    /// Lets it run on when this process ends, and keeps its data: it is ended by its RPC's `stop`.
    pub fn leave_running(&mut self) {
        self.keep_data();
        if let Some(child) = &mut self.child {
            child.leave_running();
        }
    }

    /// Leaves the data folder in place at the end, even if it is a temporary one, and names it.
    pub fn keep_data(&mut self) -> &Path {
        if let Some(temporary) = self.temporary.take() {
            self.folder = temporary.keep();
        }
        &self.folder
    }

    /// Any call.
    ///
    /// # Errors
    /// [`Error::Rpc`] if bitcoind refuses, [`Error::NoAnswer`] if it does not answer.
    pub fn call(&self, method: &str, params: &Value) -> Result<Value> {
        self.rpc.call(method, params)
    }

    /// Mines blocks that pay `address`.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn mine(&self, blocks: u32, address: &Address) -> Result<Vec<BlockHash>> {
        self.typed(&self.rpc, "generatetoaddress", &json!([blocks, address.to_string()]))
    }

    /// Mines blocks that pay the miner's wallet. 101 of them make the first reward spendable.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn mine_to_wallet(&self, blocks: u32) -> Result<Vec<BlockHash>> {
        self.mine(blocks, &self.new_address()?)
    }

    /// A new address of the miner's wallet.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn new_address(&self) -> Result<Address> {
        const METHOD: &str = "getnewaddress";
        let text: String = self.typed(&self.wallet()?, METHOD, &json!(["", "bech32"]))?;
        let unchecked = text.parse::<Address<_>>();
        unchecked
            .and_then(|address| address.require_network(Network::Regtest))
            .map_err(|error| Error::NoAnswer { method: METHOD.to_owned(), reason: format!("{text:?}: {error}") })
    }

    /// Pays from the miner's wallet, without mining.
    ///
    /// # Errors
    /// As [`Bitcoind::call`]; the wallet needs spendable coins, see [`Bitcoind::mine_to_wallet`].
    pub fn send_to(&self, address: &Address, amount: Amount) -> Result<Txid> {
        let params = json!([address.to_string(), amount.to_string_in(bitcoin::Denomination::Bitcoin)]);
        let mut attempt = 1;
        loop {
            let txid: Txid = self.typed(&self.wallet()?, "sendtoaddress", &params)?;
            // The wallet keeps a payment also when its own mempool did not take it, and says nothing. It dates some of them
            // by a block of up to a hundred before, and some builds of bitcoind relay none that is dated by block 21.
            let told: Value = self.typed(&self.wallet()?, "gettransaction", &json!([txid.to_string()]))?;
            match self.typed::<Txid>(&self.rpc, "sendrawtransaction", &json!([told["hex"]])) {
                // Somebody has mined it meanwhile.
                Err(_) if self.confirmations(&txid)? > 0 => return Ok(txid),
                Err(_) if attempt < RESENDS => {
                    attempt += 1;
                    self.typed::<Value>(&self.wallet()?, "abandontransaction", &json!([txid.to_string()]))?;
                    std::thread::sleep(RESEND_PAUSE);
                }
                result => return result,
            }
        }
    }

    /// In how many blocks a transaction of the miner's wallet is deep: 0 in the mempool; -1 or less if it conflicts.
    ///
    /// # Errors
    /// As [`Bitcoind::call`]; also for a transaction that is not the wallet's.
    pub fn confirmations(&self, txid: &Txid) -> Result<i64> {
        let told: Value = self.typed(&self.wallet()?, "gettransaction", &json!([txid.to_string()]))?;
        told["confirmations"].as_i64().ok_or_else(|| Error::NoAnswer {
            method: "gettransaction".to_owned(),
            reason: format!("{told} has no confirmations"),
        })
    }

    /// What the miner's wallet can spend.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn balance(&self) -> Result<Amount> {
        const METHOD: &str = "getbalance";
        let value: f64 = self.typed(&self.wallet()?, METHOD, &json!([]))?;
        Amount::from_btc(value)
            .map_err(|error| Error::NoAnswer { method: METHOD.to_owned(), reason: format!("{value}: {error}") })
    }

    /// The height of the chain.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn height(&self) -> Result<u32> {
        self.typed(&self.rpc, "getblockcount", &json!([]))
    }

    /// The last block.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn tip(&self) -> Result<BlockHash> {
        self.typed(&self.rpc, "getbestblockhash", &json!([]))
    }

    /// The block at a height.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn block_hash(&self, height: u32) -> Result<BlockHash> {
        self.typed(&self.rpc, "getblockhash", &json!([height]))
    }

    /// The transactions that wait for a block.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn mempool(&self) -> Result<Vec<Txid>> {
        self.typed(&self.rpc, "getrawmempool", &json!([]))
    }

    /// Declares a block, and all that follow it, invalid: mine others afterwards for a reorg.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn invalidate_block(&self, hash: &BlockHash) -> Result<()> {
        self.call("invalidateblock", &json!([hash])).map(drop)
    }

    /// Takes [`Bitcoind::invalidate_block`] back.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn reconsider_block(&self, hash: &BlockHash) -> Result<()> {
        self.call("reconsiderblock", &json!([hash])).map(drop)
    }

    /// Replaces the last `depth` blocks by `depth + 1` empty-handed ones that pay `address`: a
    /// reorg. The transactions of the old blocks are back in the mempool and not mined again.
    ///
    /// # Errors
    /// As [`Bitcoind::call`], also if the chain is not `depth` blocks long.
    pub fn reorg(&self, depth: u32, address: &Address) -> Result<Vec<BlockHash>> {
        let height = self.height()?;
        let Some(first) = height.checked_sub(depth).and_then(|fork| fork.checked_add(1)) else {
            let reason = format!("a chain of {height} blocks has no {depth} to replace");
            return Err(Error::NoAnswer { method: "reorg".to_owned(), reason });
        };
        self.invalidate_block(&self.block_hash(first)?)?;
        let mut mined = Vec::new();
        for _ in 0..=depth {
            let params = json!([address.to_string(), []]);
            let block = self.call("generateblock", &params)?;
            mined.push(read("generateblock", block["hash"].clone())?);
        }
        Ok(mined)
    }

    /// A client for calls about the miner's wallet, which is loaded, or made, if it is not there yet.
    ///
    /// # Errors
    /// As [`Bitcoind::call`].
    pub fn wallet(&self) -> Result<RpcClient> {
        const NO_SUCH_WALLET: i64 = -18;
        const ALREADY_LOADED: [i64; 2] = [-35, -4];
        let wallet = self.rpc.with_wallet(WALLET);
        match wallet.call("getwalletinfo", &json!([])) {
            Err(Error::Rpc { code: NO_SUCH_WALLET, .. }) => {}
            Err(other) => return Err(other),
            Ok(_) => return Ok(wallet),
        }
        let on_disk = match self.rpc.call("loadwallet", &json!([WALLET])) {
            Err(Error::Rpc { code: NO_SUCH_WALLET, .. }) => false,
            // Two threads asked at once.
            Err(Error::Rpc { code, .. }) if ALREADY_LOADED.contains(&code) => true,
            Err(other) => return Err(other),
            Ok(_) => true,
        };
        if !on_disk {
            match self.rpc.call("createwallet", &json!([WALLET])) {
                Err(Error::Rpc { code, .. }) if ALREADY_LOADED.contains(&code) => {}
                other => drop(other?),
            }
        }
        Ok(wallet)
    }

    fn typed<T: DeserializeOwned>(&self, rpc: &RpcClient, method: &str, params: &Value) -> Result<T> {
        read(method, rpc.call(method, params)?)
    }

    /// The last lines of what it printed and of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let files = [self.folder.join("output.log"), self.folder.join("regtest").join("debug.log")];
        let tails = files.iter().map(|file| tail(file)).filter(|tail| !tail.is_empty());
        tails.collect::<Vec<_>>().join("\n")
    }
}

fn read<T: DeserializeOwned>(method: &str, value: Value) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|error| Error::NoAnswer { method: method.to_owned(), reason: error.to_string() })
}

/// A port that nobody listens on right now.
pub(crate) fn free_port() -> Result<u16> {
    crate::port::free_port().map_err(file_error("127.0.0.1"))
}

/// The last lines of a file; empty if there is none.
fn tail(path: &Path) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        file.read_to_end(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tail_is_the_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert_eq!(tail(&path), "");
        let lines: Vec<_> = (0..40).map(|n| format!("line {n}")).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        assert_eq!(tail(&path), lines[40 - LOG_TAIL_LINES..].join("\n"));
    }
}
