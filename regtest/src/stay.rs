//! A network that stays: its processes go on when the command that started them has ended, its data is kept.
//!
//! Everything is in one folder: `network.json` (what the network is, and how far it has come), `run/` (who its processes
//! are, sockets), and a folder and a log for each node. What a node itself knows (balances, peers) is asked of it.

mod answer;
pub mod command;
mod detached;
mod keeper;
mod load;
mod payer;
mod processes;
mod status;
mod up;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bitcoind::free_port;
use crate::network::{Error, random_key};
use crate::plan::Plan;
use crate::programs::Programs;
use detached::Detached;

/// bitcoind's name among the processes; no node has it.
const BITCOIND: &str = "bitcoind";
/// The form of `network.json` that this build reads and writes.
const VERSION: u32 = 1;

/// What the network is, and how far it has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Tells its calls from those of another network.
    id: String,
    plan: Plan,
    /// Of the last `up`.
    millraced: PathBuf,
    millrace: PathBuf,
    rpc_port: u16,
    nodes: BTreeMap<String, NodeState>,
    /// Of the plan's channels, in its order.
    channels: Vec<ChannelState>,
    /// Channels were opened, and the blocks that bury them are not mined yet.
    lacks_blocks: bool,
    /// The plan's policies that the nodes were told.
    policies_of: Option<Plan>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct NodeState {
    /// Where it listens for peers: they remember it.
    port: u16,
    is_funded: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct ChannelState {
    /// Once it is known.
    channel_id: Option<String>,
    /// How often opening it was given up.
    failures: u32,
}

/// A network in its folder.
pub struct Stay {
    folder: PathBuf,
    state: State,
    /// Held by whoever changes what runs.
    lock: Option<File>,
}

/// Where a network is unless it is said: in the user's data folder.
///
/// # Errors
/// If the system names none.
pub fn default_folder() -> Result<PathBuf, Error> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = named("XDG_DATA_HOME").or_else(|| Some(named("HOME")?.join(".local/share")));
    let none = || Error::Wrong("neither HOME nor XDG_DATA_HOME is set: say where by --dir".to_owned());
    Ok(data.ok_or_else(none)?.join("millrace-regtest"))
}

impl Stay {
    /// The network in a folder, if there is one.
    ///
    /// # Errors
    /// If there is something that cannot be read.
    pub fn find(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join("network.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::io("read", &path, source)),
        };
        let odd = |why: String| Error::Wrong(format!("{} is no network's file: {why}", path.display()));
        let state: State = serde_json::from_slice(&text).map_err(|error| odd(error.to_string()))?;
        if state.version != VERSION {
            return Err(odd(format!("it has version {}, and this program knows {VERSION}", state.version)));
        }
        let folder = fs::canonicalize(folder).map_err(|source| Error::io("find", folder, source))?;
        Ok(Some(Self { folder, state, lock: None }))
    }

    /// The network in a folder, which must be there.
    ///
    /// # Errors
    /// If it is not.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let none = || {
            let folder = folder.display();
            Error::Wrong(format!("there is no network in {folder}: make one by `up`, or name another folder by --dir"))
        };
        Self::find(folder)?.ok_or_else(none)
    }

    /// A new one, of which nothing runs yet.
    fn create(folder: &Path, plan: Plan, programs: &Programs) -> Result<Self, Error> {
        let is_empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
        if folder.exists() && !is_empty {
            let folder = folder.display();
            return Err(Error::Wrong(format!(
                "{folder} holds something else: name an empty folder, or one to be made"
            )));
        }
        // Tokens and seeds of the nodes are in it.
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(folder.join("run")).map_err(|source| Error::io("make", folder, source))?;
        let folder = fs::canonicalize(folder).map_err(|source| Error::io("find", folder, source))?;
        let state = State {
            version: VERSION,
            id: random_key(),
            plan: Plan::default(),
            millraced: programs.millraced.clone(),
            millrace: programs.millrace.clone(),
            rpc_port: free_port()?,
            nodes: BTreeMap::new(),
            channels: Vec::new(),
            lacks_blocks: false,
            policies_of: None,
        };
        let mut stay = Self { folder, state, lock: None };
        stay.take_plan(plan)?;
        Ok(stay)
    }

    /// Takes a plan that adds to the present one, or is it.
    fn take_plan(&mut self, plan: Plan) -> Result<(), Error> {
        self.state.plan.check_may_become(&plan).map_err(|why| self.other_plan(&why))?;
        for node in &plan.nodes {
            if !self.state.nodes.contains_key(&node.name) {
                let state = NodeState { port: self.unused_port()?, is_funded: false };
                self.state.nodes.insert(node.name.clone(), state);
            }
        }
        self.state.channels.resize(plan.channels.len(), ChannelState::default());
        self.state.plan = plan;
        self.save()
    }

    fn other_plan(&self, why: &str) -> Error {
        let folder = self.folder.display();
        Error::Wrong(format!(
            "{why}. The network in {folder} can only be added to: `down --wipe` ends it and its data, and --dir names a \
             place for another"
        ))
    }

    fn unused_port(&self) -> Result<u16, Error> {
        loop {
            let port = free_port()?;
            let is_taken = port == self.state.rpc_port || self.state.nodes.values().any(|node| node.port == port);
            if !is_taken {
                return Ok(port);
            }
        }
    }

    /// Keeps others from changing what runs, until this is dropped.
    ///
    /// # Errors
    /// If another is at it.
    pub fn lock(&mut self) -> Result<(), Error> {
        let path = self.folder.join("run/lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|source| Error::io("open", &path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let folder = self.folder.display();
                return Err(Error::Wrong(format!(
                    "another command is changing the network in {folder}: wait for its end"
                )));
            }
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path, source)),
        }
        self.lock = Some(file);
        // The other may have changed something just before.
        if let Some(present) = Self::find(&self.folder)? {
            self.state = present.state;
        }
        Ok(())
    }

    fn save(&self) -> Result<(), Error> {
        let path = self.folder.join("network.json");
        let new = self.folder.join("network.json.new");
        let text = serde_json::to_vec_pretty(&self.state).map_err(|error| Error::Wrong(error.to_string()))?;
        fs::write(&new, text).map_err(|source| Error::io("write", &new, source))?;
        fs::rename(&new, &path).map_err(|source| Error::io("write", &path, source))
    }

    /// Removes its data: what it made itself, and the folder if nothing else is in it.
    fn wipe(self) -> Result<(), Error> {
        let names = self.state.plan.nodes.iter().map(|node| node.name.as_str());
        for name in names.chain([BITCOIND, "run"]) {
            remove(&self.folder.join(name))?;
            remove(&self.folder.join(format!("{name}.log")))?;
        }
        for name in ["network.json.new", "network.json"] {
            remove(&self.folder.join(name))?;
        }
        // Not empty: then it holds what is not ours.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn programs(&self) -> Programs {
        Programs { millraced: self.state.millraced.clone(), millrace: self.state.millrace.clone() }
    }

    fn node_named(&self, name: &str) -> Result<usize, Error> {
        self.state.plan.node_named(name).ok_or_else(|| {
            let names: Vec<&str> = self.state.plan.nodes.iter().map(|node| node.name.as_str()).collect();
            Error::Wrong(format!("there is no node `{name}`: the nodes are {}", names.join(", ")))
        })
    }

    fn process_file(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(format!("{name}.json"))
    }

    /// The driver that an ldk-node's keeper holds.
    fn driver_file(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(format!("{name}.driver.json"))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(format!("{name}.sock"))
    }

    /// The process of a node, or of bitcoind, if it runs.
    fn running(&self, name: &str) -> Option<Detached> {
        Detached::find(&self.process_file(name))
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn programs() -> Programs {
        Programs { millraced: "/no/millraced".into(), millrace: "/no/millrace".into() }
    }

    #[test]
    fn it_is_found_again_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Stay::find(folder.path()).unwrap().is_none());
        let made = Stay::create(&folder.path().join("x"), Plan::line(3), &programs()).unwrap();
        let found = Stay::open(&folder.path().join("x")).unwrap();
        assert_eq!(found.state.plan, Plan::line(3));
        assert_eq!(found.state.nodes["carol"].port, made.state.nodes["carol"].port);
        let Err(error) = Stay::open(folder.path()) else { panic!("there is none") };
        assert!(error.to_string().contains("`up`"), "{error}");
    }

    #[test]
    fn a_plan_that_adds_keeps_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut stay = Stay::create(folder.path(), Plan::line(2), &programs()).unwrap();
        stay.state.channels[0].channel_id = Some("00".to_owned());
        let port = stay.state.nodes["bob"].port;
        stay.take_plan(Plan::line(4)).unwrap();
        assert_eq!((stay.state.channels.len(), stay.state.nodes["bob"].port), (3, port));
        assert_eq!(stay.state.channels[0].channel_id.as_deref(), Some("00"));
        let error = stay.take_plan(Plan::line(3)).unwrap_err().to_string();
        assert!(error.contains("dave") && error.contains("down --wipe"), "{error}");
    }

    #[test]
    fn wiping_leaves_what_is_not_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("x");
        Stay::create(&place, Plan::line(2), &programs()).unwrap().wipe().unwrap();
        assert!(!place.exists());
        let stay = Stay::create(&place, Plan::line(2), &programs()).unwrap();
        fs::write(place.join("letter"), "dear").unwrap();
        stay.wipe().unwrap();
        assert_eq!(fs::read_to_string(place.join("letter")).unwrap(), "dear");
        let Err(error) = Stay::create(&place, Plan::line(2), &programs()) else { panic!("it was taken") };
        assert!(error.to_string().contains("something else"), "{error}");
    }

    #[test]
    fn two_do_not_change_it_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut one = Stay::create(folder.path(), Plan::line(2), &programs()).unwrap();
        let mut other = Stay::open(folder.path()).unwrap();
        one.lock().unwrap();
        let error = other.lock().unwrap_err().to_string();
        assert!(error.contains("another command"), "{error}");
        drop(one);
        other.lock().unwrap();
    }

    #[test]
    fn a_file_of_a_later_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut stay = Stay::create(folder.path(), Plan::line(2), &programs()).unwrap();
        stay.state.version = 9;
        stay.save().unwrap();
        let Err(error) = Stay::find(folder.path()) else { panic!("it was taken") };
        assert!(error.to_string().contains("version 9"), "{error}");
    }
}
