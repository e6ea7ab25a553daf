//! How much is written at once.

use millrace_channel::ledger::htlc::Origin;

use super::*;

/// As many HTLCs as there is room for, all offered in a moment, each with something large to be written.
fn with_many_htlcs(bench: &mut Bench, entry_bytes: usize) -> (ChannelId, u8) {
    const HTLCS: u8 = 100;
    let id = bench.open();
    let answers: Vec<_> = (0..HTLCS)
        .map(|number| {
            let mut one = offer(&Preimage::new([number; 32]));
            (one.amount, one.origin) = (Msat(1_000_000), Origin::Payment { id: [number; 32], attempt: 0 });
            let entries = vec![Entry::new(Kind::Payment, vec![number; entry_bytes])];
            bench.registry.offer(id, one, entries)
        })
        .collect();
    for answer in answers {
        assert!(is_offered(&answer.blocking_recv().unwrap()));
    }
    for _ in 0..20 {
        bench.exchange();
        if bench.snapshot(id).htlc_counts.local == usize::from(HTLCS) {
            break;
        }
    }
    assert_eq!(bench.snapshot(id).htlc_counts.local, usize::from(HTLCS));
    (id, HTLCS)
}

fn largest_step(bench: &Bench) -> usize {
    bench.log.largest_step.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn a_turn_with_much_to_write_is_several_steps() {
    let mut bench = bench();
    with_many_htlcs(&mut bench, 64 << 10);
    assert!(largest_step(&bench) < 2 << 20, "{} bytes", largest_step(&bench));
}

/// A peer fails everything at once, each with as long a reason as a message holds: it is written down, and answered.
#[test]
fn long_reasons_of_all_htlcs_at_once_are_written_down() {
    let mut bench = bench();
    let (id, htlcs) = with_many_htlcs(&mut bench, 10);
    let messages = bench.peer_does(|channel, fx| {
        for number in 0..htlcs {
            let reason = vec![1; 65_000];
            let fail =
                millrace_channel::Command::Fail { id: millrace_wire::HtlcId(number.into()), reason, attribution: None };
            channel.on_command(fail, fx).unwrap();
        }
    });
    messages.into_iter().for_each(|message| bench.say(message));
    assert!(matches!(bench.next(), Message::RevokeAndAck(_)));
    assert!(largest_step(&bench) < 1 << 20, "{} bytes", largest_step(&bench));
    bench.eventually("the failures are shown", |bench| {
        bench.snapshot(id).htlcs.iter().all(|htlc| htlc.stage.starts_with("removing"))
    });
}
