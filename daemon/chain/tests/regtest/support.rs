//! What the tests share: a bitcoind, a consumer of events, a proxy that changes answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::{BlockHash, Network};
use millrace_chain::{Auth, Bitcoind, ChainError, ChainEvent, Config, Cursor, SyncState, Timeouts, Trail, Watcher};
use millrace_regtest::bitcoind::{Bitcoind as Regtest, Options};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn regtest() -> Regtest {
    regtest_with(&[])
}

pub(crate) fn regtest_with(arguments: &[&str]) -> Regtest {
    let arguments = arguments.iter().map(ToString::to_string).collect();
    Regtest::start(Options { arguments, ..Options::default() }).unwrap()
}

pub(crate) fn config(regtest: &Regtest) -> Config {
    Config {
        url: regtest.rpc_url(),
        auth: Auth::Cookie(regtest.cookie_path()),
        network: Network::Regtest,
        timeouts: Timeouts { poll: Duration::from_millis(300), ..Timeouts::default() },
    }
}

pub(crate) async fn connect(regtest: &Regtest) -> Bitcoind {
    Bitcoind::connect(config(regtest)).await.unwrap()
}

pub(crate) fn cursor(regtest: &Regtest, height: u32) -> Cursor {
    Cursor { height, hash: regtest.block_hash(height).unwrap() }
}

/// A watcher at work, and what it says.
pub(crate) struct Consumer {
    pub(crate) events: mpsc::Receiver<ChainEvent>,
    pub(crate) sync: watch::Receiver<SyncState>,
    pub(crate) task: JoinHandle<Result<(), ChainError>>,
}

/// An event without its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Short {
    Up(u32, BlockHash),
    Down(u32, BlockHash),
    Tip(u32),
    Away,
    Back,
}

impl Consumer {
    pub(crate) fn start(bitcoind: Bitcoind, trail: impl Into<Trail>) -> Self {
        Self::with_room(bitcoind, trail, 4)
    }

    pub(crate) fn with_room(bitcoind: Bitcoind, trail: impl Into<Trail>, room: usize) -> Self {
        let (watcher, sync) = Watcher::new(bitcoind);
        let (sender, events) = mpsc::channel(room);
        let task = tokio::spawn(watcher.run(trail.into(), sender));
        Self { events, sync, task }
    }

    pub(crate) async fn next(&mut self) -> ChainEvent {
        timeout(LIMIT, self.events.recv()).await.expect("an event in time").expect("the watcher at work")
    }

    /// All up to the tip at `height`. Other tips on the way depend on timing and are left out.
    pub(crate) async fn until_tip(&mut self, height: u32) -> Vec<Short> {
        let mut seen = Vec::new();
        loop {
            let short = match self.next().await {
                ChainEvent::Connected { height, hash, block } => {
                    assert_eq!(block.block_hash(), hash);
                    Short::Up(height, hash)
                }
                ChainEvent::Disconnected { height, hash } => Short::Down(height, hash),
                ChainEvent::Tip { height, .. } => Short::Tip(height),
                ChainEvent::Away { .. } => Short::Away,
                ChainEvent::Back => Short::Back,
            };
            match short {
                Short::Tip(at) if at == height => return seen,
                Short::Tip(_) => {}
                other => seen.push(other),
            }
        }
    }

    pub(crate) async fn until_state(&mut self, wanted: impl Fn(&SyncState) -> bool) -> SyncState {
        let found = timeout(LIMIT, self.sync.wait_for(wanted)).await.expect("the state in time");
        found.expect("the watcher at work").clone()
    }

    pub(crate) async fn end(self) -> Result<(), ChainError> {
        drop(self.events);
        timeout(LIMIT, self.task).await.expect("its end in time").expect("no panic")
    }
}

/// What `regtest` has at these heights, going up.
pub(crate) fn ups(regtest: &Regtest, heights: std::ops::RangeInclusive<u32>) -> Vec<Short> {
    heights.map(|height| Short::Up(height, regtest.block_hash(height).unwrap())).collect()
}

/// Asks until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let attempts = 600;
    for _ in 0..attempts {
        if is_so() {
            return;
        }
        tokio::time::sleep(LIMIT / attempts).await;
    }
    panic!("not in time: {what}");
}

/// Changes the result of a call; its arguments are the method and the result.
pub(crate) type Lie = Box<dyn FnMut(&str, &mut Value) + Send>;

/// Between us and bitcoind: counts calls, and changes answers.
#[derive(Clone)]
pub(crate) struct Proxy {
    port: u16,
    lie: Arc<Mutex<Option<Lie>>>,
    calls: Arc<Mutex<HashMap<String, u32>>>,
}

impl Proxy {
    pub(crate) async fn start(regtest: &Regtest) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Self { port, lie: Arc::default(), calls: Arc::default() };
        let (serving, target) = (proxy.clone(), regtest.rpc_port());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream, target));
            }
        });
        proxy
    }

    pub(crate) fn config(&self, regtest: &Regtest) -> Config {
        Config { url: format!("http://127.0.0.1:{}", self.port), ..config(regtest) }
    }

    pub(crate) fn lie(&self, lie: impl FnMut(&str, &mut Value) + Send + 'static) {
        *self.lie.lock().unwrap() = Some(Box::new(lie));
    }

    pub(crate) fn be_honest(&self) {
        *self.lie.lock().unwrap() = None;
    }

    pub(crate) fn calls(&self, method: &str) -> u32 {
        self.calls.lock().unwrap().get(method).copied().unwrap_or_default()
    }

    /// One connection, one call.
    async fn serve(self, client: TcpStream, target: u16) -> Option<()> {
        let mut client = BufReader::new(client);
        let (head, body) = read_message(&mut client).await?;
        let request: Value = serde_json::from_slice(&body).ok()?;
        let method = request["method"].as_str().unwrap_or("batch").to_owned();
        *self.calls.lock().unwrap().entry(method.clone()).or_default() += 1;

        let mut server = BufReader::new(TcpStream::connect(("127.0.0.1", target)).await.ok()?);
        server.write_all(&[head, body].concat()).await.ok()?;
        let (head, mut body) = read_message(&mut server).await?;
        if let Some(lie) = self.lie.lock().unwrap().as_mut()
            && let Ok(mut answer) = serde_json::from_slice::<Value>(&body)
        {
            lie(&method, &mut answer["result"]);
            body = answer.to_string().into_bytes();
        }
        let status = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
        let head = format!("{status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        client.write_all(&[head.into_bytes(), body].concat()).await.ok()
    }
}

/// Reads the head, as it is, and the body of one HTTP message.
async fn read_message(stream: &mut BufReader<TcpStream>) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut head = Vec::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        head.extend_from_slice(line.as_bytes());
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().ok()?,
            _ if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}
