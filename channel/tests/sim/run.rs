//! One seed: a life of the line, chosen by the seed, played to its end and checked.

use millrace_channel::phase::Phase;
use millrace_channel::side::Side;
use millrace_channel::{ANNOUNCE_DEPTH, Command, Effect, Effects};
use millrace_wire::{FeeratePerKw, Msat};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::counters::Counters;
use crate::payments::State;
use crate::thief;
use crate::world::{Bug, FUNDING, LINKS, PUSH, World};

/// What a seed came to.
pub struct Outcome {
    pub violation: Option<String>,
    pub counters: Counters,
    pub log: Vec<String>,
}

/// How the life of a seed ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Rest,
    CloseTogether,
    ForceClose,
    RollBack,
    Cheat,
}

/// What closing on chain may cost a node in fees, anchors and dust; an HTLC that is no dust is worth more.
const CLOSING_COST_SAT: i128 = 150_000;

pub fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    let mut world = World::new(ChaCha8Rng::seed_from_u64(seed), bug);
    let ending = match world.pick(9) {
        0 | 1 => Ending::Rest,
        2 | 3 => Ending::CloseTogether,
        4 | 5 => Ending::ForceClose,
        6 => Ending::RollBack,
        _ => Ending::Cheat,
    };
    world.note(format!("seed {seed}: {:?}, simple close {}, ending {ending:?}", world.format, world.simple_close));
    // Most lives begin with both channels open; the others open them among cuts and crashes.
    if world.chance(4) {
        world.note("opening among faults".to_owned());
    } else {
        drain(&mut world);
    }
    let steps = 150 + world.pick(450);
    for _ in 0..steps {
        act(&mut world);
        if world.violation.is_some() {
            break;
        }
    }
    if world.violation.is_none() {
        end(&mut world, ending);
    }
    if world.violation.is_none() {
        drain(&mut world);
        settle_accounts(&mut world, ending);
    }
    Outcome { violation: world.violation, counters: world.counters, log: world.log }
}

/// One thing that happens.
fn act(world: &mut World) {
    world.now = world.now.plus(world.pick(20));
    let link = world.pick(2) as usize;
    let node = LINKS[link][world.pick(2) as usize];
    match world.pick(130) {
        0..=11 => pay(world),
        12..=54 => deliver_some(world),
        55..=74 => world.commit(node, link),
        75..=99 => {
            let node = world.pick(3) as usize;
            let waiting = world.nodes[node].disk.waiting() as u64;
            let count = world.pick(waiting + 1);
            if count < waiting {
                world.counters.count("fault: flush held back");
            }
            world.flush(node, count as usize);
        }
        100..=109 => {
            world.decide(node, link);
        }
        110 => {
            world.note(format!("cut link {link}"));
            world.counters.count("fault: cut");
            world.cut(link);
        }
        111..=117 => {
            for link in 0..2 {
                world.connect(link);
                world.open(link);
            }
        }
        118 => crash(world, node),
        119..=121 => update_fee(world, link),
        122..=124 => world.mine(),
        125 if world.chance(3) => reorg(world),
        // The blocks of a funding transaction are few: they are taken back more often than others.
        126..=129 if world.is_opening() => reorg(world),
        _ => {
            if world.bug == Some(Bug::ForwardAtAcked) {
                world.forward_early();
            }
        }
    }
    if world.bug == Some(Bug::ForwardAtAcked) {
        world.forward_early();
    }
}

/// A message of a queue that holds one.
fn deliver_some(world: &mut World) {
    let is_waiting = |(link, to): &(usize, usize)| !world.wires[*link].queues[*to].is_empty();
    let waiting: Vec<(usize, usize)> = [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().filter(is_waiting).collect();
    if let Some((link, to)) = waiting.get(world.pick(waiting.len() as u64) as usize).copied() {
        world.deliver(link, to);
    }
}

fn pay(world: &mut World) {
    let from = world.pick(3) as usize;
    let to = (from + 1 + world.pick(2) as usize) % 3;
    // Dust, or so much that closing costs less.
    let amount = if world.chance(4) { 1_000 + world.pick(299_000) } else { 200_000_000 + world.pick(300_000_000) };
    world.pay(from, to, Msat(amount));
}

fn crash(world: &mut World, node: usize) {
    let waiting = world.nodes[node].disk.waiting();
    let kept = world.pick(waiting as u64 + 1) as usize;
    let is_opening =
        World::links_of(node).any(|link| world.end(node, link).channel().is_none() && world.wires[link].is_up);
    world.note(format!("node {node} crashes: {kept} of {waiting} unflushed steps kept"));
    world.counters.count(if kept < waiting { "fault: crash, some lost" } else { "fault: crash, all kept" });
    if is_opening {
        world.counters.count("fault: crash while opening");
    }
    world.crash(node, kept);
}

fn reorg(world: &mut World) {
    let depth = 1 + world.pick(2) as usize;
    world.note(format!("reorg of {depth} blocks"));
    world.counters.count("fault: reorg");
    world.reorg(depth);
}

fn update_fee(world: &mut World, link: usize) {
    let feerate = FeeratePerKw(253 + world.pick(2_000) as u32);
    if world.command(LINKS[link][0], link, Command::UpdateFee(feerate)).is_ok() {
        world.counters.count("act: update fee");
    }
}

/// The life ends in its own way.
fn end(world: &mut World, ending: Ending) {
    let link = world.pick(2) as usize;
    let node = LINKS[link][world.pick(2) as usize];
    match ending {
        Ending::Rest => {}
        Ending::CloseTogether => close_together(world, node, link),
        Ending::ForceClose => {
            let reason = "by hand".to_owned();
            if let Some(Bug::BroadcastRevoked) = world.bug {
                return broadcast_revoked(world, node, link);
            }
            if world.command(node, link, Command::ForceClose { reason }).is_ok() {
                world.note(format!("node {node} force-closes link {link}"));
                world.counters.count("fault: force close");
            }
        }
        Ending::RollBack => roll_back(world),
        Ending::Cheat => be_cheated(world),
    }
}

/// After some more payments, whose states are what is to be cheated with, somebody cheats amid others; life goes on for a
/// while.
fn be_cheated(world: &mut World) {
    for _ in 0..2 + world.pick(4) {
        for _ in 0..1 + world.pick(4) {
            pay(world);
        }
        quiet(world);
    }
    for _ in 0..world.pick(40) {
        act(world);
    }
    if thief::cheat(world) {
        for _ in 0..world.pick(60) {
            act(world);
        }
        world.mine();
    }
}

fn close_together(world: &mut World, node: usize, link: usize) {
    quiet(world);
    let order = world.close_order(node);
    if world.command(node, link, Command::Close(order)).is_ok() {
        world.note(format!("node {node} closes link {link} together"));
        world.counters.count("act: close together");
        for _ in 0..world.pick(60) {
            act(world);
        }
    }
}

/// Planted: what the node once could have broadcast, and has revoked since.
fn broadcast_revoked(world: &mut World, node: usize, link: usize) {
    quiet(world);
    let records = world.nodes[node].disk.records(link);
    let half = records.len() / 2;
    let mut fx = Effects::default();
    let Some(mut old) = world
        .end_mut(node, link)
        .restart(records.clone())
        .0
        .and(world.end_mut(node, link).restart(records[..half].to_vec()).0)
    else {
        return;
    };
    let _ = world.end_mut(node, link).restart(records);
    let _ = old.on_command(Command::ForceClose { reason: "planted".to_owned() }, &mut fx);
    fx.list.retain(|effect| matches!(effect, Effect::Broadcast(_)));
    world.absorb(node, link, fx);
}

/// An old disk is put into one of the outer nodes, and it connects.
fn roll_back(world: &mut World) {
    quiet(world);
    let (node, link) = if world.chance(2) { (0, 0) } else { (2, 1) };
    let records = world.nodes[node].disk.records(link).len();
    let ready = world.end(node, link).channel().is_some_and(|channel| *channel.phase() == Phase::Normal);
    if !ready || records < 12 {
        return;
    }
    let keep = records - 1 - world.pick(records as u64 / 3) as usize;
    let steps = world.nodes[node].disk.steps_through(link, keep);
    world.note(format!("the disk of node {node} is rolled back to {keep} of {records} records"));
    world.counters.count("fault: disk rolled back");
    for link in World::links_of(node) {
        world.cut(link);
    }
    world.nodes[node].is_rolled_back = true;
    world.nodes[node].disk.roll_back_to(steps);
    world.start(node);
}

/// Lets everything that was begun come to its end, without chance.
fn quiet(world: &mut World) -> bool {
    for _ in 0..2_000 {
        let mut moved = false;
        for (link, ends) in LINKS.into_iter().enumerate() {
            if !world.wires[link].is_up {
                world.connect(link);
                moved = true;
            }
            let is_empty = |node| world.end(node, link).channel().is_none();
            if is_empty(ends[0]) && is_empty(ends[1]) && world.wires[link].queues.iter().all(|queue| queue.is_empty()) {
                world.open(link);
                moved = true;
            }
            for to in 0..2 {
                while world.deliver(link, to) {
                    moved = true;
                }
            }
            for node in ends {
                while world.decide(node, link) {
                    moved = true;
                }
                world.answer_close(node, link);
                world.commit(node, link);
            }
        }
        for node in 0..3 {
            let waiting = world.nodes[node].disk.waiting();
            moved |= waiting > 0;
            world.flush(node, waiting);
        }
        let queued = world.wires.iter().any(|wire| wire.queues.iter().any(|queue| !queue.is_empty()));
        if world.violation.is_some() || (!moved && !queued) {
            return true;
        }
    }
    world.violate("the line never comes to rest".to_owned());
    false
}

/// Until nothing is under way, on the links and on the chain.
fn drain(world: &mut World) {
    for _ in 0..400 {
        quiet(world);
        if world.violation.is_some() || (world.is_chain_settled() && !world.is_opening()) {
            return;
        }
        world.mine();
    }
    let unclaimed = |node, link| world.end(node, link).channel().map(millrace_channel::Channel::unclaimed_outputs);
    let phases: Vec<String> = (0..2)
        .flat_map(|link| {
            LINKS[link].map(|node| {
                let phase = world.phase_name(node, link);
                format!("node {node} link {link}: {phase}, unclaimed {:?}", unclaimed(node, link).unwrap_or_default())
            })
        })
        .collect();
    world.violate(format!("400 blocks did not settle the chain: {phases:?}"));
}

/// Everyone has what the payments say.
fn settle_accounts(world: &mut World, ending: Ending) {
    if world.violation.is_some() {
        return;
    }
    let rolled_back = |world: &World, node: usize| world.nodes[node].is_rolled_back;
    let is_on_chain = (0..2).any(|link| world.phase_name(LINKS[link][0], link) == "closed");
    for index in 0..world.payments.len() {
        let payment = &world.payments[index];
        let (from, to, state, is_fulfilled, amount) =
            (payment.from, payment.to, payment.state, payment.is_fulfilled, payment.amount);
        if rolled_back(world, from) || rolled_back(world, to) {
            continue;
        }
        // It went through a node that has lost what it was to pass on.
        let is_over_a_cheater = world.thief.is_some() && from.abs_diff(to) == 2 && rolled_back(world, 1);
        let is_lost_dust = is_on_chain && amount.0 < 400_000;
        if state == State::Pending {
            world.violate(format!("payment {index} from {from} to {to} is stuck"));
        } else if (state == State::Succeeded) != is_fulfilled && !is_lost_dust && !is_over_a_cheater {
            world.violate(format!(
                "payment {index}: the payer says {state:?}, the payee has fulfilled it: {is_fulfilled}"
            ));
        }
    }
    for link in 0..2 {
        check_agreement(world, link);
    }
    for node in 0..3 {
        if !rolled_back(world, node) {
            check_wealth(world, node, is_on_chain || ending == Ending::CloseTogether);
        }
    }
    world.check_theft(CLOSING_COST_SAT as u64, FUNDING.0);
}

fn check_agreement(world: &mut World, link: usize) {
    let [one, other] = LINKS[link];
    let (Some(a), Some(b)) = (world.end(one, link).channel(), world.end(other, link).channel()) else { return };
    if *a.phase() != Phase::Normal || *b.phase() != Phase::Normal {
        return;
    }
    let said = [a, b].map(|channel| channel.announced().map(|(_, bytes)| bytes.to_vec()));
    let is_deep = a.funding_depth() >= ANNOUNCE_DEPTH && b.funding_depth() >= ANNOUNCE_DEPTH;
    if is_deep && (said[0].is_none() || said[0] != said[1]) {
        return world.violate(format!("link {link}: announced as {said:?}"));
    }
    let (of_a, of_b) = (a.ledger().settled(), b.ledger().settled());
    let is_agreed = of_a.local == of_b.remote && of_a.remote == of_b.local;
    let is_at_rest = a.is_at_rest() && b.is_at_rest();
    let is_all = of_a.local.0 + of_a.remote.0 == FUNDING.to_msat().0;
    if !is_agreed || !is_at_rest || !is_all {
        world.violate(format!("link {link} at rest ({is_at_rest}): {of_a:?} and {of_b:?}"));
    }
}

fn check_wealth(world: &mut World, node: usize, may_cost: bool) {
    let mut has = i128::from(world.blocks.owned(&world.nodes[node].wallet)) * 1_000;
    let mut had = 0;
    for link in World::links_of(node) {
        let is_funder = LINKS[link][0] == node;
        let Some(channel) = world.end(node, link).channel() else { continue };
        had += i128::from(if is_funder { FUNDING.to_msat().0 - PUSH.0 } else { PUSH.0 });
        if *channel.phase() == Phase::Normal {
            has += i128::from(channel.ledger().settled().of(Side::Local).0);
        }
    }
    for payment in &world.payments {
        if payment.from == node && payment.state == State::Succeeded {
            had -= i128::from(payment.amount.0);
        }
        if payment.to == node && payment.is_fulfilled {
            had += i128::from(payment.amount.0);
        }
    }
    let change = has - had;
    // Whoever was cheated has what the cheater had.
    let gain_max = if world.thief.is_some() { i128::MAX } else { 20_000_000 };
    let is_fine = if may_cost { (-CLOSING_COST_SAT * 1_000..=gain_max).contains(&change) } else { change == 0 };
    if !is_fine {
        world.violate(format!("node {node} has {change:+} msat that no payment explains"));
    }
}
