//! A run: which cells, in which batches, and what became of them.

use std::collections::BTreeMap;
use std::time::Instant;

use super::batch::{Batch, Plant};
use super::cell::{self, Cell, Reorg};
use super::report::{Ended, Outcomes, covered, tell, tell_impossible};
use crate::network::Error;
use crate::random::seed_of_now;
use crate::report::Report;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Only a subset with every pair of values of two dimensions.
    #[arg(long)]
    pub pairwise: bool,
    /// Only this cell, as --list names it; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub cell: Vec<Cell>,
    /// What the subset and the moments of restarts are drawn from; the present time unless given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Name the cells, and say why some are impossible; play none.
    #[arg(long)]
    pub list: bool,
    /// Tell the story of every cell, block by block, not only of those that fail.
    #[arg(long)]
    pub stories: bool,
    /// Cells that are played on one chain side by side, at most.
    #[arg(long, default_value_t = BATCH, value_parser = clap::value_parser!(u16).range(1..=400), value_name = "CELLS")]
    pub batch: u16,
    /// What is done wrong on purpose.
    #[arg(skip)]
    pub plant: Option<Plant>,
}

/// So many channels close at once without the daemon's claims being late by the machine's fault.
const BATCH: u16 = 60;

impl Default for Arguments {
    fn default() -> Self {
        Self { pairwise: false, cell: Vec::new(), seed: None, list: false, stories: false, batch: BATCH, plant: None }
    }
}

impl Arguments {
    fn cells(&self, seed: u64) -> Vec<Cell> {
        match (self.cell.is_empty(), self.pairwise) {
            (false, _) => self.cell.clone(),
            (true, true) => cell::subset(seed),
            (true, false) => cell::all(),
        }
    }
}

/// Names the cells on standard output.
pub fn list(arguments: &Arguments) {
    for cell in arguments.cells(arguments.seed.unwrap_or_default()) {
        match cell.impossible() {
            Some(why) => println!("{cell}  impossible: {why}"),
            None => println!("{cell}"),
        }
    }
}

/// Plays the cells, and tells of each on standard error.
///
/// # Errors
/// If nothing can be played at all; what a cell or a batch came to is in the outcomes.
pub async fn run(arguments: Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    let begun = Instant::now();
    let seed = arguments.seed.unwrap_or_else(seed_of_now);
    let asked = arguments.cells(seed);
    let mut possible = Vec::new();
    for cell in &asked {
        match cell.impossible() {
            Some(why) => tell_impossible(cell, why),
            None => possible.push(*cell),
        }
    }
    let batch_size = usize::from(arguments.batch.max(1));
    let (swapped, plain): (Vec<Cell>, Vec<Cell>) = possible.iter().partition(|cell| cell.reorg == Reorg::Swaps);
    let batches: Vec<&[Cell]> = plain.chunks(batch_size).chain(swapped.chunks(batch_size)).collect();
    let mut ended = BTreeMap::new();
    let mut restarts = 0;
    for (number, cells) in (1..).zip(&batches) {
        report.begin(&format!("batch {number} of {}: {} cells", batches.len(), cells.len()));
        let played = play(cells, seed, &arguments, report).await;
        report.end(&played.as_ref().map(|played| format!("{} restarts", played.restarts)).map_err(ToString::to_string));
        let of_batch = match played {
            Ok(played) => {
                restarts += played.restarts;
                played.ended
            }
            Err(error) => {
                cells.iter().map(|cell| (*cell, Ended::Failed(format!("    the batch: {error}\n")))).collect()
            }
        };
        for (cell, how) in of_batch {
            tell(&cell, &how, begun.elapsed(), seed);
            ended.insert(cell, how);
        }
    }
    Ok(Outcomes::of(&asked, &ended, seed, restarts, begun.elapsed()))
}

/// A batch that was played.
struct Played {
    ended: Vec<(Cell, Ended)>,
    restarts: u32,
}

async fn play(cells: &[Cell], seed: u64, arguments: &Arguments, report: &Report) -> Result<Played, Error> {
    let stories = arguments.stories;
    let mut batch = Batch::start(cells, seed, arguments.plant).await?;
    report.progress("setting up");
    batch.set_up().await?;
    batch.play(report).await?;
    report.progress("judging");
    let sums = batch.judge().await?;
    let unexplained = batch.unexplained_sat().await?;
    // A coin that is lost or waited for in vain was told of the cell that it was used in.
    let is_explained = batch.scenes.iter().any(|scene| !scene.failures.is_empty());
    let mut ended = Vec::new();
    for (scene, sums) in batch.scenes.iter().zip(&sums) {
        let mut failures = scene.failures.clone();
        if unexplained != 0 && !is_explained {
            failures
                .push(format!("the daemon's wallet has {unexplained} sat more than all blocks of the batch explain"));
        }
        let how = if failures.is_empty() {
            Ended::Covered(covered(sums), stories.then(|| scene.story.text()))
        } else {
            let why: Vec<String> = failures.iter().map(|why| format!("    {why}\n")).collect();
            Ended::Failed(why.concat() + &scene.story.text())
        };
        ended.push((scene.cell, how));
    }
    let restarts = batch.restarts;
    batch.network.nodes[0].stop().await?;
    Ok(Played { ended, restarts })
}
