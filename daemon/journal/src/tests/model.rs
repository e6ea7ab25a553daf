//! Random histories of submitting, crashing and opening, against a plain count of what was acknowledged.

use proptest::prelude::*;

use super::*;
use crate::disk::simulated::Stop;

#[derive(Clone, Debug)]
enum Act {
    Step,
    Burst(u8),
    Barrier,
    Archive,
    Checkpoint,
    Close,
    Kill,
    LosePower(u64),
    CrashSoon { after: u64, write_bytes: usize, seed: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => Just(Act::Step),
        4 => (1..12_u8).prop_map(Act::Burst),
        2 => Just(Act::Barrier),
        2 => Just(Act::Archive),
        2 => Just(Act::Checkpoint),
        1 => Just(Act::Close),
        1 => Just(Act::Kill),
        1 => any::<u64>().prop_map(Act::LosePower),
        2 => (0..25_u64, 0..20_000_usize, any::<u64>())
            .prop_map(|(after, write_bytes, seed)| Act::CrashSoon { after, write_bytes, seed }),
    ];
    prop::collection::vec(act, 1..60)
}

struct Model {
    disk: SimulatedDisk,
    driver: Driver,
    /// What happens when the disk has stopped.
    seed: u64,
}

impl Model {
    fn new() -> Model {
        let disk = SimulatedDisk::default();
        let driver = Driver::open(&disk).unwrap();
        Model { disk, driver, seed: 0 }
    }

    fn act(self, act: &Act) -> Model {
        let mut model = self;
        let done = match *act {
            Act::Step => model.driver.step().map(|_| ()),
            Act::Burst(count) => (0..count).try_for_each(|_| model.driver.submit().map(|_| ())),
            Act::Barrier => model.driver.barrier(),
            Act::Archive => model.driver.archive(),
            Act::Checkpoint => model.driver.checkpoint(),
            Act::Close => return model.reopen(|disk| disk.after_kill(), true),
            Act::Kill => return model.reopen(|disk| disk.after_kill(), false),
            Act::LosePower(seed) => return model.reopen(|disk| disk.after_power_loss(coin(seed)), false),
            Act::CrashSoon { after, write_bytes, seed } => {
                model.seed = seed;
                let at = model.disk.operations() + after;
                model.disk.stop_at(Stop { at, write_bytes });
                Some(())
            }
        };
        let seed = model.seed;
        match done {
            Some(()) => model,
            None => {
                assert!(model.disk.is_stopped(), "refused by a disk that works: {:?}", model.disk.aborted());
                model.reopen(|disk| disk.after_power_loss(coin(seed)), false)
            }
        }
    }

    fn reopen(self, after: impl Fn(&SimulatedDisk) -> SimulatedDisk, is_closed: bool) -> Model {
        let mut told = Told { submitted: self.driver.submitted, acknowledged: self.driver.acknowledged };
        if is_closed && !self.disk.is_stopped() {
            drop(self.driver);
            if !self.disk.is_stopped() {
                told.acknowledged = told.submitted;
            }
        } else {
            self.disk.stop_now();
            drop(self.driver);
        }
        let disk = after(&self.disk);
        check(&disk, told);
        let driver = Driver::open(&disk).unwrap();
        Model { disk, driver, seed: 0 }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn history_of_crashes_loses_nothing_acknowledged(acts in acts()) {
        let model = acts.iter().fold(Model::new(), Model::act);
        model.reopen(|disk| disk.after_power_loss(|| false), false);
    }
}
