//! `bench watched`: whether a watchtower slows payments. The same load in turns: without a tower, with one that answers, with
//! one that says nothing any more, with one that is full, and with somebody else's, for which penalties are sealed.

use std::path::Path;
use std::process::Command;

use millrace_rpc::v1::{AddTowerRequest, GetTowerStatusRequest, RemoveTowerRequest, TowerMode, TowerStatus};
use secp256k1::PublicKey;
use serde::Serialize;

use super::ldk::median;
use super::payments::{self, Latency};
use crate::network::{Error, Network, random_key, wait_for};
use crate::pay_stream::make_invoices;
use crate::programs::find_tower;
use crate::report::Report;
use crate::tower::Tower;

/// The payer.
const PAYER: usize = 0;
/// Two channels: a tower that takes one of them is full for the other.
const CHANNELS: u32 = 2;
/// More than any turn revokes: below the bound, nothing may wait.
const LAG_MAX: &str = "16000";
/// Penalties that somebody else's tower takes: more than there are.
const BLOBS: u32 = 1_000_000;
/// How long a tower may take to have everything.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// What to run.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Arguments {
    /// Payments outstanding at once
    #[arg(long, default_value_t = 200)]
    pub outstanding: usize,
    /// Payments in each turn of each kind
    #[arg(long, default_value_t = 3_000)]
    pub payments: usize,
    /// Turns of each kind
    #[arg(long, default_value_t = 5)]
    pub turns: usize,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// Whether the sums after a restart are what was paid, and each tower was as it should be.
    pub ok: bool,
    /// Payments in each turn.
    pub payments: usize,
    /// Without a tower.
    pub none: Kind,
    /// With one that answers.
    pub live: Kind,
    /// With one that was relied on, and says nothing any more.
    pub silent: Kind,
    /// With one that refuses one of two channels.
    pub full: Kind,
    /// With somebody else's, for which the payer seals a penalty for each revoked commitment.
    pub sealed: Kind,
}

/// The turns of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kind {
    /// Payments per second: the middle of the turns.
    pub payments_per_s: f64,
    /// The half and the slowest hundredth: the middle of the turns each, in ms.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p99_ms: f64,
    /// Payments per second to those without a tower.
    pub ratio: f64,
    /// Revoked commitments that the tower lacked at the end of the last turn, of the channel with the most.
    pub lag: u64,
    /// Each turn.
    pub turns_per_s: Vec<f64>,
}

/// The turns of one kind, as they come.
#[derive(Default)]
struct Turns {
    per_s: Vec<f64>,
    latency: Vec<Latency>,
    lag: u64,
}

impl Turns {
    fn kind(&self, without: f64) -> Kind {
        let middle = |of: fn(&Latency) -> f64| median(&self.latency.iter().map(of).collect::<Vec<_>>());
        let payments_per_s = median(&self.per_s);
        Kind {
            payments_per_s,
            p50_ms: middle(|one| one.p50),
            p99_ms: middle(|one| one.p99),
            ratio: payments_per_s / without,
            lag: self.lag,
            turns_per_s: self.per_s.clone(),
        }
    }
}

/// Two daemons, and the towers.
struct Stage {
    network: Network,
    arguments: payments::Arguments,
    live: Tower,
    full: Tower,
    foreign: Tower,
    paid: usize,
}

/// Runs it.
///
/// # Errors
/// If anything fails, a payment included.
pub async fn run(arguments: Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    report.begin("start two daemons and two watchtowers");
    let stage = Stage::start(arguments).await;
    report.end(&stage.as_ref().map(|_| format!("{CHANNELS} channels")).map_err(ToString::to_string));
    let mut stage = stage?;
    let mut all: [Turns; 5] = Default::default();
    for turn in 1..=arguments.turns {
        report.begin(&format!("turn {turn} of {}", arguments.turns));
        let result = stage.turn(&mut all).await;
        let note = all.iter().filter_map(|kind| kind.per_s.last()).map(|per_s| format!("{per_s:.0}"));
        let note = format!("{} per second: none, live, silent, full, sealed", note.collect::<Vec<_>>().join(", "));
        report.end(&result.as_ref().map(|()| note).map_err(ToString::to_string));
        result?;
    }
    report.begin("kill both, start again, and compare the sums");
    let same = payments::sums_after_restart(&mut stage.network, stage.arguments.amount, stage.paid).await;
    report.end(&same.as_ref().map(|()| "the same".to_owned()).map_err(ToString::to_string));
    for node in &mut stage.network.nodes {
        node.stop().await?;
    }
    let without = median(&all[0].per_s);
    let [none, live, silent, full, sealed] = all.map(|turns| turns.kind(without));
    // Or it was not what it is taken for.
    let is_as_said = live.lag < silent.lag && none.lag == 0 && full.lag > 0 && sealed.lag < silent.lag;
    Ok(Outcomes { ok: same.is_ok() && is_as_said, payments: arguments.payments, none, live, silent, full, sealed })
}

impl Stage {
    async fn start(wanted: Arguments) -> Result<Self, Error> {
        let all = wanted.payments * wanted.turns * 5;
        let arguments = payments::Arguments {
            channels: CHANNELS,
            outstanding: wanted.outstanding,
            payments: all,
            amount: 10_000,
            implementation: None,
        };
        let network = payments::start(arguments, &["--tower-lag-max", LAG_MAX]).await?;
        let program = find_tower()?;
        let tower = |name: &str| Tower::new(&program, network.folder().join(name), &network.bitcoind);
        let (mut live, mut full, mut foreign) = (tower("live")?, tower("full")?, tower("foreign")?);
        for tower in [&mut live, &mut full, &mut foreign] {
            tower.start().await?;
        }
        let arguments = payments::Arguments { payments: wanted.payments, ..arguments };
        Ok(Self { network, arguments, live, full, foreign, paid: 0 })
    }

    async fn turn(&mut self, all: &mut [Turns; 5]) -> Result<(), Error> {
        let [none, live, silent, full, sealed] = all;
        self.pay(none).await?;
        let (key, address) = self.live.key_and_address()?;
        let client = self.add(&key, &address, TowerMode::Compact).await?;
        self.live.allow(&client, CHANNELS).await?;
        self.wait_for_tower(&key, "the tower with everything", |status| {
            let tower = status.tower.clone().unwrap_or_default();
            tower.relied_on && tower.channels == CHANNELS && tower.lag == 0
        })
        .await?;
        self.pay(live).await?;
        signal(&self.live, "-STOP")?;
        let paid = self.pay(silent).await;
        signal(&self.live, "-CONT")?;
        paid?;
        self.remove(&key).await?;
        let (key, address) = self.full.key_and_address()?;
        let client = self.add(&key, &address, TowerMode::Compact).await?;
        self.full.allow(&client, 1).await?;
        self.wait_for_tower(&key, "a channel refused", |status| {
            status.channels.iter().any(|channel| !channel.refused.is_empty())
        })
        .await?;
        self.pay(full).await?;
        self.remove(&key).await?;
        let (key, address) = self.foreign.key_and_address()?;
        let client = self.add(&key, &address, TowerMode::Blob).await?;
        self.foreign.allow_blobs(&client, BLOBS).await?;
        self.wait_for_tower(&key, "somebody else's tower with everything", |status| {
            status.tower.as_ref().is_some_and(|tower| tower.relied_on && tower.channels == CHANNELS)
        })
        .await?;
        self.pay(sealed).await?;
        self.remove(&key).await
    }

    async fn pay(&mut self, turns: &mut Turns) -> Result<(), Error> {
        let amounts = vec![self.arguments.amount * 1000; self.arguments.payments];
        let invoices = make_invoices(&self.network.nodes[1].client()?, &amounts, "bench").await?;
        let measured = payments::measure(&self.network, PAYER, self.arguments, invoices).await?;
        self.paid += measured.payments;
        turns.per_s.push(measured.payments_per_s);
        turns.latency.push(measured.latency_ms);
        turns.lag = self.status().await?.first().and_then(|status| status.tower.as_ref()).map_or(0, |tower| tower.lag);
        Ok(())
    }

    async fn add(&self, tower: &PublicKey, address: &str, mode: TowerMode) -> Result<PublicKey, Error> {
        let node = &self.network.nodes[PAYER];
        let request = AddTowerRequest {
            idempotency_key: random_key(),
            tower: tower.serialize().to_vec(),
            address: address.to_owned(),
            mode: mode.into(),
        };
        let answer = node.client()?.towers.add(request).await.map_err(|status| node.call_failed(&status))?;
        let added = answer.into_inner().tower.unwrap_or_default();
        PublicKey::from_slice(&added.client_key).map_err(|error| Error::Wrong(error.to_string()))
    }

    async fn remove(&self, tower: &PublicKey) -> Result<(), Error> {
        let node = &self.network.nodes[PAYER];
        let request = RemoveTowerRequest { idempotency_key: random_key(), tower: tower.serialize().to_vec() };
        node.client()?.towers.remove(request).await.map(drop).map_err(|status| node.call_failed(&status))
    }

    async fn status(&self) -> Result<Vec<TowerStatus>, Error> {
        let node = &self.network.nodes[PAYER];
        let answer = node.client()?.towers.get_status(GetTowerStatusRequest::default()).await;
        Ok(answer.map_err(|status| node.call_failed(&status))?.into_inner().towers)
    }

    /// Waits until the tower is as it is to be; it is called again and again, for it did not know the node at first.
    async fn wait_for_tower(
        &self,
        key: &PublicKey,
        what: &str,
        is_so: impl Fn(&TowerStatus) -> bool,
    ) -> Result<(), Error> {
        wait_for(what, LIMIT, async || {
            let towers = self.status().await?;
            let of_key = |one: &&TowerStatus| one.tower.as_ref().is_some_and(|one| one.tower == key.serialize());
            let Some(status) = towers.iter().find(of_key) else { return Ok(Err("it is not there".to_owned())) };
            Ok(if is_so(status) { Ok(()) } else { Err(format!("{:?}", status.tower)) })
        })
        .await
    }
}

/// A process that is stopped holds its connections and says nothing.
fn signal(tower: &Tower, which: &str) -> Result<(), Error> {
    let pid = tower.pid().ok_or_else(|| Error::Wrong("the tower does not run".to_owned()))?;
    let sent = Command::new("kill").args([which, &pid.to_string()]).status();
    let sent = sent.map_err(|source| Error::io("run", Path::new("kill"), source))?;
    if sent.success() { Ok(()) } else { Err(Error::Wrong(format!("kill {which} {pid} failed"))) }
}
