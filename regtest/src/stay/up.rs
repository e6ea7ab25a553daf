//! Brings the network up: whatever is missing of it, and nothing twice.

use std::path::Path;

use super::{BITCOIND, Stay};
use crate::mesh::Mesh;
use crate::network::{Error, SOON, wait_for};
use crate::plan::Plan;
use crate::programs::Programs;
use crate::report::Report;

/// The miner has something to give from the 101st block on.
const BLOCKS_MIN: u32 = 110;

/// Tells a step that has ended.
fn told<T>(report: &mut Report, result: Result<(T, String), Error>) -> Result<T, Error> {
    report.end(&result.as_ref().map(|(_, note)| note.clone()).map_err(ToString::to_string));
    result.map(|(value, _)| value)
}

impl Stay {
    /// Brings up the network in a folder: a new one by the plan (a line of five without one), or what is missing of the
    /// one that is there.
    ///
    /// # Errors
    /// If any of it fails. What has been done stays done; the next call goes on from there.
    pub async fn up(folder: &Path, plan: Option<Plan>, report: &mut Report) -> Result<Self, Error> {
        // What stands against it should be known before anything is built or started.
        let found = Self::find(folder)?;
        if let (Some(stay), Some(plan)) = (&found, &plan) {
            stay.state.plan.check_may_become(plan).map_err(|why| stay.other_plan(&why))?;
        }
        report.begin("find the programs");
        let programs = tokio::task::block_in_place(Programs::find);
        let programs = told(report, programs.map(|programs| (programs, String::new())))?;
        let mut stay = match found {
            Some(stay) => stay,
            None => Self::create(folder, plan.clone().unwrap_or_else(|| Plan::line(5)), &programs)?,
        };
        stay.lock()?;
        stay.state.millraced = programs.millraced;
        stay.state.millrace = programs.millrace;
        let plan = plan.unwrap_or_else(|| stay.state.plan.clone());
        stay.take_plan(plan)?;

        report.begin("start bitcoind");
        let result = stay.bring_up_bitcoind().await.map(|note| ((), note));
        told(report, result)?;
        for node in 0..stay.state.plan.nodes.len() {
            let planned = &stay.state.plan.nodes[node];
            report.begin(&format!("start {} ({})", planned.name, planned.kind.name()));
            let result = stay.start_node(node).await;
            told(report, result.map(|is_new| ((), if is_new { String::new() } else { "runs already".to_owned() })))?;
        }
        let mut mesh = stay.mesh().await?;
        stay.adopt(&mut mesh).await?;
        stay.fund(&mut mesh, report).await?;
        report.begin("connect");
        let result = stay.connect(&mesh, None).await.map(|links| ((), format!("{links} links")));
        told(report, result)?;
        stay.open_channels(&mut mesh, report).await?;
        report.begin("wait until every channel can be used");
        let result = stay.wait_until_usable(&mesh).await.map(|count| ((), format!("{count} channels")));
        told(report, result)?;
        stay.set_policies(&mesh, report).await?;
        report.begin("wait until everyone knows the network");
        let result = mesh.wait_for_graphs().await.map(|()| ((), String::new()));
        told(report, result)?;
        Ok(stay)
    }

    async fn bring_up_bitcoind(&mut self) -> Result<String, Error> {
        let is_new = self.running(BITCOIND).is_none();
        if is_new {
            self.start_bitcoind().await?;
        }
        let bitcoind = self.bitcoind()?;
        let height = tokio::task::block_in_place(|| {
            let height = bitcoind.height()?;
            match BLOCKS_MIN.saturating_sub(height) {
                0 if !is_new => {}
                // After a day without blocks, bitcoind takes itself to be behind, and the daemons wait for it.
                0 => drop(bitcoind.mine_to_wallet(1)?),
                lacking => drop(bitcoind.mine_to_wallet(lacking)?),
            }
            bitcoind.height()
        })?;
        Ok(format!("{}, height {height}", if is_new { "started" } else { "runs already" }))
    }

    async fn fund(&mut self, mesh: &mut Mesh, report: &mut Report) -> Result<(), Error> {
        let unopened = self.unopened();
        let unfunded = self.state.nodes.values().any(|node| !node.is_funded);
        if unopened.is_empty() && !unfunded {
            return Ok(());
        }
        report.begin("fund wallets");
        let result = mesh.fund(&unopened, unfunded).await.map(|()| ((), String::new()));
        told(report, result)?;
        self.state.nodes.values_mut().for_each(|node| node.is_funded = true);
        self.save()
    }

    /// The channels that are still to be opened.
    fn unopened(&self) -> Vec<usize> {
        let channels = self.state.channels.iter().enumerate();
        channels.filter(|(_, channel)| channel.channel_id.is_none()).map(|(index, _)| index).collect()
    }

    /// Connects all that have a channel planned, or only one node with its peers, as far as they run. How many links.
    pub(super) async fn connect(&self, mesh: &Mesh, only: Option<usize>) -> Result<usize, Error> {
        let mut links = std::collections::BTreeSet::new();
        for channel in &self.state.plan.channels {
            let ends = [channel.from, channel.to];
            let do_run = ends.iter().all(|node| self.running(&self.state.plan.nodes[*node].name).is_some());
            if do_run && only.is_none_or(|node| ends.contains(&node)) {
                links.insert((channel.from.min(channel.to), channel.from.max(channel.to)));
            }
        }
        for (one, other) in &links {
            let names = [*one, *other].map(|node| self.state.plan.nodes[node].name.clone());
            // Both may be calling each other at this moment, and one of the two calls ends.
            wait_for(&format!("a connection of {} and {}", names[0], names[1]), SOON, async || {
                Ok(mesh.connect(*one, *other).await.map_err(|error| error.to_string()))
            })
            .await?;
        }
        Ok(links.len())
    }

    async fn open_channels(&mut self, mesh: &mut Mesh, report: &mut Report) -> Result<(), Error> {
        let unopened = self.unopened();
        if !unopened.is_empty() {
            report.begin("open channels");
            let count = unopened.len();
            let mut result = Ok(());
            for (done, index) in unopened.into_iter().enumerate() {
                report.progress(&format!("{done} of {count}"));
                result = self.open_channel(mesh, index).await;
                if result.is_err() {
                    break;
                }
            }
            told(report, result.map(|()| ((), format!("{count}"))))?;
        }
        if self.state.lacks_blocks {
            report.begin("bury their funding");
            let result = mesh.bury().await.map(|()| ((), String::new()));
            told(report, result)?;
            self.state.lacks_blocks = false;
            self.save()?;
        }
        Ok(())
    }

    async fn open_channel(&mut self, mesh: &mut Mesh, index: usize) -> Result<(), Error> {
        self.state.lacks_blocks = true;
        self.save()?;
        // By its key the daemon knows a call that was made before, if we ended before we saw its answer.
        let key = format!("{}-{index}-{}", self.state.id, self.state.channels[index].failures);
        let opened = mesh.open(index, &key).await;
        match &opened {
            Ok(channel_id) => self.put_down(mesh, index, channel_id),
            // A refusal must not be the answer for ever.
            Err(Error::Call { .. }) => self.state.channels[index].failures += 1,
            Err(_) => {}
        }
        self.save()?;
        opened.map(drop)
    }

    fn put_down(&mut self, mesh: &mut Mesh, index: usize, channel_id: &[u8]) {
        self.state.channels[index].channel_id = Some(hex::encode(channel_id));
        mesh.opened(index, channel_id.to_vec());
    }

    /// Puts down what an earlier call opened and did not live to put down: a channel of the planned opener's, with the
    /// planned peer and of the planned size, that is none of those we know.
    async fn adopt(&mut self, mesh: &mut Mesh) -> Result<(), Error> {
        for index in self.unopened() {
            let planned = self.state.plan.channels[index].clone();
            let peer = mesh.node_id(planned.to)?;
            let is_known = |id: &[u8]| {
                let id = hex::encode(id);
                self.state.channels.iter().any(|channel| channel.channel_id.as_ref() == Some(&id))
            };
            let sides = mesh.sides(planned.from).await?;
            let found = sides.into_iter().find(|side| {
                let is_such = side.peer == peer && side.capacity_sat == planned.capacity_sat;
                is_such && side.is_funder && !side.is_closing && !is_known(&side.channel_id)
            });
            if let Some(side) = found {
                self.put_down(mesh, index, &side.channel_id);
                self.state.lacks_blocks = true;
                self.save()?;
            }
        }
        Ok(())
    }

    /// Waits for every channel that is not closed or closing. How many those are.
    async fn wait_until_usable(&self, mesh: &Mesh) -> Result<usize, Error> {
        let mut count = 0;
        for (index, planned) in self.state.plan.channels.iter().enumerate() {
            let channel_id = mesh.channel_id(index).to_vec();
            let mut is_open = true;
            for node in [planned.from, planned.to] {
                let sides = mesh.sides(node).await?;
                is_open &= sides.iter().any(|side| side.channel_id == channel_id && !side.is_closing);
            }
            if !is_open {
                continue;
            }
            count += 1;
            for node in [planned.from, planned.to] {
                mesh.wait_until_usable_at(node, &channel_id).await?;
            }
        }
        Ok(count)
    }

    /// Tells the nodes what the plan says of forwarding, unless they were told: a change made by hand since should stay.
    async fn set_policies(&mut self, mesh: &Mesh, report: &mut Report) -> Result<(), Error> {
        if self.state.policies_of.as_ref() == Some(&self.state.plan) {
            return Ok(());
        }
        if !self.state.plan.policies.is_empty() {
            report.begin("set policies");
            let result = mesh.set_policies().await.map(|set| ((), format!("on {set} channels")));
            told(report, result)?;
        }
        self.state.policies_of = Some(self.state.plan.clone());
        self.save()
    }
}
