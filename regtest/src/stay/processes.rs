//! The network's processes: started so that they stay, found again, stopped and killed.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::detached::Detached;
use super::keeper::SOCKET_PATH_BYTES_MAX;
use super::{BITCOIND, Stay};
use crate::bitcoind::{Bitcoind, find_or_provision, free_port};
use crate::ldk::{self, LdkNode};
use crate::mesh::{Mesh, Place};
use crate::network::{Error, Network};
use crate::node::Node;
use crate::plan::{Kind, NODES_MAX};

/// How long a process may take to be ready, on a machine that does much else.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long one may take to end by itself; then it is killed. LDK waits for its own event handler.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long a killed one may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(30);

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// It did not run.
    WasAway,
    /// By itself, as asked.
    Stopped,
    /// It took too long, and was killed.
    Killed,
}

impl Stay {
    // --- bitcoind ---

    /// A handle on the network's bitcoind, whether it runs or not.
    pub(super) fn bitcoind(&self) -> Result<Bitcoind, Error> {
        let program = find_or_provision(&mut |step| eprintln!("bitcoind: {step}"))?;
        // Every node holds a long poll open.
        let threads = format!("-rpcthreads={}", NODES_MAX + 16);
        Ok(Bitcoind::attach(program, &self.folder.join(BITCOIND), self.state.rpc_port, vec![threads])?)
    }

    /// The same of one that must run.
    pub(super) fn running_bitcoind(&self) -> Result<Bitcoind, Error> {
        if self.running(BITCOIND).is_none() {
            return Err(Error::Wrong("the network's bitcoind does not run: `up` starts it".to_owned()));
        }
        self.bitcoind()
    }

    /// Starts bitcoind. What depends on its login and port is stopped: both may be others afterwards.
    pub(super) async fn start_bitcoind(&mut self) -> Result<(), Error> {
        let is_port_free = std::net::TcpListener::bind(("127.0.0.1", self.state.rpc_port)).is_ok();
        for node in self.state.plan.nodes.clone() {
            if node.kind == Kind::Ldk || !is_port_free {
                self.stop_node(&node.name).await?;
            }
        }
        if !is_port_free {
            self.state.rpc_port = free_port()?;
            self.save()?;
        }
        let bitcoind = self.bitcoind()?;
        // One left by a kill would look like a bitcoind that is ready to be asked.
        let _ = fs::remove_file(bitcoind.cookie_path());
        let (program, output) = (bitcoind.program().path.clone(), bitcoind.data_folder().join("output.log"));
        let process = Detached::start(&program, &bitcoind.arguments(), &output, &self.process_file(BITCOIND))
            .map_err(|source| Error::io("start", &program, source))?;
        let until = Instant::now() + START_LIMIT;
        while tokio::task::block_in_place(|| bitcoind.height()).is_err() {
            if !process.is_running() || Instant::now() > until {
                return Err(Error::Wrong(format!("bitcoind does not start:\n{}", bitcoind.log_tail())));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    pub(super) fn stop_bitcoind(&self) -> Result<Ending, Error> {
        let Some(process) = self.running(BITCOIND) else { return Ok(Ending::WasAway) };
        // If it does not answer, it is killed below.
        let _ = self.bitcoind()?.call("stop", &json!([]));
        self.wait_or_kill(BITCOIND, &process)
    }

    // --- nodes ---

    pub(super) fn daemon(&self, name: &str, alias: &str, bitcoind: &Bitcoind) -> Node {
        let (data_dir, port) = (self.folder.join(name), self.state.nodes[name].port);
        let (url, cookie) = (bitcoind.rpc_url(), bitcoind.cookie_path());
        let mut node = Node::listening(name, &self.programs(), data_dir, &url, &cookie, port);
        node.set_alias(alias);
        node
    }

    pub(super) fn ldk_node(&self, name: &str, alias: &str, bitcoind: &Bitcoind) -> LdkNode {
        let plan = &self.state.plan;
        let forwards_to_private = plan.node_named(name).is_some_and(|node| plan.forwards_to_private(node));
        let options = ldk::Options { forwards_to_private, ..ldk::Options::default() };
        let mut node = LdkNode::new(name, &self.folder, bitcoind, options);
        node.set_alias(alias);
        node.listen_on(&format!("127.0.0.1:{}", self.state.nodes[name].port));
        node
    }

    /// Starts a node, unless it runs, and waits until it is ready. Whether it had to be started.
    pub(super) async fn start_node(&self, node: usize) -> Result<bool, Error> {
        let planned = &self.state.plan.nodes[node];
        let bitcoind = self.running_bitcoind()?;
        let found = self.running(&planned.name);
        match planned.kind {
            Kind::Millrace => {
                let mut daemon = self.daemon(&planned.name, &planned.alias, &bitcoind);
                let process = match &found {
                    Some(process) => process.clone(),
                    None => self.launch(&planned.name, &daemon)?,
                };
                wait_until_ready(&mut daemon, &process).await?;
            }
            Kind::Ldk => {
                let mut ldk = self.ldk_node(&planned.name, &planned.alias, &bitcoind);
                let process = match &found {
                    Some(process) => process.clone(),
                    None => self.launch_keeper(&planned.name, &ldk)?,
                };
                self.attach_ldk(&mut ldk, &process).await?;
            }
        }
        Ok(found.is_none())
    }

    fn launch(&self, name: &str, daemon: &Node) -> Result<Detached, Error> {
        let program = &self.state.millraced;
        if !program.is_file() {
            return Err(Error::NoProgram { path: program.clone() });
        }
        fs::create_dir_all(daemon.data_dir()).map_err(|source| Error::io("make", daemon.data_dir(), source))?;
        Detached::start(program, daemon.arguments(), &daemon.log_path(), &self.process_file(name))
            .map_err(|source| Error::io("start", program, source))
    }

    fn launch_keeper(&self, name: &str, node: &LdkNode) -> Result<Detached, Error> {
        let socket = self.socket(name);
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_BYTES_MAX {
            return Err(Error::Wrong(format!(
                "{} has {length} bytes, and a socket's path may have {SOCKET_PATH_BYTES_MAX}: name a shorter --dir",
                socket.display()
            )));
        }
        let driver = tokio::task::block_in_place(ldk::build::program)?;
        // The driver ends with its keeper; a node's data must never have two.
        self.kill_driver(name)?;
        let _ = fs::remove_file(&socket);
        fs::create_dir_all(node.data_dir()).map_err(|source| Error::io("make", node.data_dir(), source))?;
        let own = std::env::current_exe().map_err(|source| Error::io("find this program", Path::new("."), source))?;
        let mut arguments: Vec<OsString> = vec!["keep-ldk".into()];
        arguments.extend(["--program".into(), driver.into_os_string()]);
        arguments.extend(["--socket".into(), socket.into_os_string()]);
        arguments.extend(["--driver-file".into(), self.driver_file(name).into_os_string()]);
        Detached::start(&own, &arguments, &node.words_path(), &self.process_file(name))
            .map_err(|source| Error::io("start", &own, source))
    }

    async fn attach_ldk(&self, node: &mut LdkNode, keeper: &Detached) -> Result<(), Error> {
        let socket = self.socket(&node.name);
        let until = Instant::now() + START_LIMIT;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if !keeper.is_running() {
                return Err(node.failed("its keeper ended"));
            }
            if Instant::now() > until {
                return Err(node.failed("its keeper does not listen"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        node.attach(&socket).await
    }

    /// Stops a node as its user would; if that takes too long, kills it.
    pub(super) async fn stop_node(&self, name: &str) -> Result<Ending, Error> {
        let node = &self.state.plan.nodes[self.node_named(name)?];
        let Some(process) = self.running(name) else { return Ok(Ending::WasAway) };
        match node.kind {
            Kind::Millrace => process.terminate().map_err(|source| Error::io("stop", Path::new(name), source))?,
            Kind::Ldk => {
                let mut ldk = self.ldk_node(name, &node.alias, &self.bitcoind()?);
                // If it cannot be asked, it is killed below.
                if ldk.attach(&self.socket(name)).await.is_ok() {
                    let _ = ldk.stop().await;
                }
            }
        }
        let ending = self.wait_or_kill(name, &process)?;
        self.kill_driver(name)?;
        Ok(ending)
    }

    fn wait_or_kill(&self, name: &str, process: &Detached) -> Result<Ending, Error> {
        let failed = |source| Error::io("end", Path::new(name), source);
        let ending = match tokio::task::block_in_place(|| process.wait(STOP_LIMIT)) {
            true => Ending::Stopped,
            false => {
                process.kill(KILL_LIMIT).map_err(failed)?;
                Ending::Killed
            }
        };
        let _ = fs::remove_file(self.process_file(name));
        Ok(ending)
    }

    /// Kills a node at once, as a power cut would end it. Whether it ran.
    pub(super) fn kill_node(&self, name: &str) -> Result<bool, Error> {
        self.node_named(name)?;
        let Some(process) = self.running(name) else { return Ok(false) };
        let killed = tokio::task::block_in_place(|| process.kill(KILL_LIMIT));
        killed.map_err(|source| Error::io("kill", Path::new(name), source))?;
        self.kill_driver(name)?;
        let _ = fs::remove_file(self.process_file(name));
        Ok(true)
    }

    /// An ldk-node's driver ends by itself when its keeper does; this makes sure, and waits.
    fn kill_driver(&self, name: &str) -> Result<(), Error> {
        let file = self.driver_file(name);
        let Some(driver) = Detached::find(&file) else { return Ok(()) };
        let killed = tokio::task::block_in_place(|| driver.kill(KILL_LIMIT));
        killed.map_err(|source| Error::io("kill the driver of", Path::new(name), source))
    }

    // --- all of it ---

    /// What runs, to be asked. A node that does not run, or is not ready, is in it without a connection.
    pub(super) async fn mesh(&self) -> Result<Mesh, Error> {
        let bitcoind = self.running_bitcoind()?;
        let (mut nodes, mut ldk, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for planned in &self.state.plan.nodes {
            let process = self.running(&planned.name);
            match planned.kind {
                Kind::Millrace => {
                    let mut node = self.daemon(&planned.name, &planned.alias, &bitcoind);
                    if let Some(process) = process {
                        node.attach(process.pid).await?;
                    }
                    places.push(Place::Ours(nodes.len()));
                    nodes.push(node);
                }
                Kind::Ldk => {
                    let mut node = self.ldk_node(&planned.name, &planned.alias, &bitcoind);
                    if process.is_some() {
                        // One that cannot be reached is without a connection.
                        let _ = node.attach(&self.socket(&planned.name)).await;
                    }
                    places.push(Place::Ldk(ldk.len()));
                    ldk.push(node);
                }
            }
        }
        let channel_id =
            |channel: &super::ChannelState| channel.channel_id.as_deref().and_then(|id| hex::decode(id).ok());
        let channels = self.state.channels.iter().map(|channel| channel_id(channel).unwrap_or_default()).collect();
        let network = Network::attached(bitcoind, nodes, &self.folder, self.programs())?;
        Ok(Mesh::of(network, ldk, self.state.plan.clone(), places, channels))
    }
}

async fn wait_until_ready(daemon: &mut Node, process: &Detached) -> Result<(), Error> {
    let until = Instant::now() + START_LIMIT;
    while !daemon.attach(process.pid).await? {
        if !process.is_running() {
            return Err(daemon.failed("it ended"));
        }
        if Instant::now() > until {
            return Err(daemon.failed(&format!("it was not ready within {} s", START_LIMIT.as_secs())));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
