//! A node that dies in the midst of a forward: at each of its records, and between any two pieces of what follows from one.
//! And two that die at once, of which only one keeps what it was writing.

use super::scene::{A, B, Done, Fate, Played, Reads, Scene, Story};

/// Orders in which everything is played.
const ORDERS: std::ops::Range<u64> = 0..3;

/// All deaths of a node, in all orders: how many there are, and how many of the payments were paid all the same. It is known
/// how much the node does at least, so that none is forgotten.
fn every_death(scene: &Scene, node: usize, story: Story, least: Done) -> (usize, usize) {
    let (mut deaths, mut paid) = (0, 0);
    for order in ORDERS {
        let undisturbed = scene.play(order, story, Fate::Nobody);
        assert_eq!(undisturbed.is_paid, story == Story::Taken);
        let done = undisturbed.done[node];
        assert!(done.steps >= least.steps && done.pieces >= least.pieces, "{done:?}");
        let moments = Scene::deaths(done);
        assert_eq!(moments.len(), 2 * (done.steps + done.pieces));
        for death in moments {
            deaths += 1;
            paid += usize::from(playing(scene, order, story, Fate::One(node, death)).is_paid);
        }
        println!("{story:?}, order {order}: {} steps, {} pieces", done.steps, done.pieces);
    }
    println!("{story:?}: {deaths} deaths, {paid} payments were paid all the same");
    (deaths, paid)
}

/// Says what was played if it does not end well.
fn playing(scene: &Scene, order: u64, story: Story, fate: Fate) -> Played {
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scene.play(order, story, fate)));
    played.unwrap_or_else(|_| panic!("{story:?}, order {order}, {fate:?}: see above"))
}

/// On each leg an HTLC takes two steps to be there, and two to be gone. Ten messages are sent on both; five things are told
/// of an HTLC that succeeds, and four of one that does not.
#[test]
fn the_node_on_the_way_dies_at_every_moment_of_a_forward_that_succeeds() {
    let (deaths, paid) = every_death(&Scene::line(), B, Story::Taken, Done { steps: 8, pieces: 15 });
    assert_eq!(paid, deaths, "what it failed after its death was tried again");
}

#[test]
fn the_node_on_the_way_dies_at_every_moment_of_a_forward_that_fails() {
    let (_, paid) = every_death(&Scene::line(), B, Story::Refused, Done { steps: 8, pieces: 14 });
    assert_eq!(paid, 0);
}

#[test]
fn the_node_on_the_way_dies_at_every_moment_of_a_part_of_a_payment() {
    let (_, paid) = every_death(&Scene::diamond(), B, Story::Taken, Done { steps: 8, pieces: 15 });
    assert!(paid > 0);
}

/// The same again, with checkpoints: what is told anew at a start must do where the steps are gone.
#[test]
fn a_node_that_makes_checkpoints_dies_at_every_moment_of_a_forward() {
    let mut scene = Scene::line();
    scene.reads = Reads::Checkpoints;
    let (deaths, paid) = every_death(&scene, B, Story::Taken, Done { steps: 8, pieces: 15 });
    assert_eq!(paid, deaths, "what it failed after its death was tried again");
    let (_, paid) = every_death(&scene, B, Story::Refused, Done { steps: 8, pieces: 14 });
    assert_eq!(paid, 0);
}

#[test]
fn the_payer_dies_at_every_moment_of_a_payment() {
    let (deaths, paid) = every_death(&Scene::line(), A, Story::Taken, Done { steps: 4, pieces: 8 });
    assert!(paid * 2 > deaths && paid < deaths, "{paid} of {deaths}");
}

/// Ten messages again, for the two parts, and what was told of both.
#[test]
fn the_payee_dies_at_every_moment_of_a_payment_in_parts() {
    let scene = Scene::diamond();
    let (_, paid) = every_death(&scene, scene.payee, Story::Taken, Done { steps: 8, pieces: 14 });
    assert!(paid > 0);
}

/// The payer is paid for by one flush of the node on the way, and what that node has not written down by then it does again.
#[test]
fn a_preimage_goes_upstream_by_the_flush_that_makes_it_durable() {
    let mut scene = Scene::line();
    for reads in [Reads::Steps, Reads::Checkpoints] {
        scene.reads = reads;
        for order in 0..10 {
            assert!(playing(&scene, order, Story::Taken, Fate::WithPreimage(B)).is_paid);
        }
    }
}

#[test]
fn two_nodes_die_at_once_and_only_one_keeps_its_last_flush() {
    let scene = Scene::line();
    let (mut fates, mut both) = (0, 0);
    for story in [Story::Taken, Story::Refused] {
        for order in ORDERS {
            let done = scene.play(order, story, Fate::Nobody).done;
            for pair in [[A, B], [B, A], [B, scene.payee], [scene.payee, B]] {
                for steps in 0..done[pair[0]].steps {
                    for kept in pair {
                        let played = playing(&scene, order, story, Fate::Two { pair, steps, kept });
                        both += usize::from(played.lost_one_of_two);
                        fates += 1;
                    }
                }
            }
        }
    }
    println!("{fates} deaths of two; {both} times both had something on its way to the disk");
    assert!(fates >= 400 && both >= 40, "{both} of {fates}");
}

#[test]
fn the_same_order_plays_the_same_story() {
    let scene = Scene::line();
    let played = [7, 7, 8].map(|order| scene.play(order, Story::Taken, Fate::Nobody).digest);
    assert_eq!(played[0], played[1]);
    assert_ne!(played[0], played[2]);
}
