//! Removals whose channel is too busy.

use millrace_chain::SyncState;
use millrace_channel::Command;
use millrace_journal::{Space, SubmitError, Ticket, WakeHandle};
use tokio::sync::watch;

use super::*;
use crate::channels::Registry;
use crate::channels::directory::Directory;
use crate::channels::input::Input;
use crate::channels::mailbox::{Mail, Mailbox};
use crate::payments::forward::Hand;
use crate::steps::StepLog;

/// A journal that nobody writes to.
struct NoLog;

impl StepLog for NoLog {
    fn submit(&self, _step: Vec<u8>, _wake: WakeHandle) -> Result<Ticket, SubmitError> {
        panic!("no shard is there that could")
    }

    fn queued_bytes(&self) -> u64 {
        0
    }

    fn space(&self) -> Space {
        Space::Enough
    }
}

/// Orders that a shard takes out of its mailbox, and answers by forgetting them.
fn taken(mailbox: &Mailbox<Input>) -> Vec<Command> {
    let mut mail = Mail::default();
    mailbox.take(usize::MAX, Some(std::time::Duration::ZERO), &mut mail);
    let commands = mail.inputs.drain(..).filter_map(|input| match input {
        Input::Command { command, .. } => Some(command),
        _ => None,
    });
    commands.collect()
}

/// Or the preimage would wait for the next start, and the HTLC expire upstream.
#[tokio::test]
async fn a_removal_is_handed_in_again_until_its_channel_takes_it() {
    let mailbox = Mailbox::new();
    let directory = Arc::new(Directory::new(5, 50));
    directory.publish(Arc::new(channel(IN, 1)), 0);
    let (_sync, synced) = watch::channel(SyncState::Synced { height: 100 });
    let registry = Registry::new(directory, vec![mailbox.clone()], Arc::new(NoLog), synced);
    while !matches!(
        registry.fulfill(IN, HtlcId(0), preimage(), None, Vec::new()).try_recv(),
        Ok(Err(CommandError::Busy { .. }))
    ) {}
    let mut hand = Hand::default();
    let act = Act::Fulfill { key: KEY, preimage: preimage(), attribution: None };
    hand.carry_out(vec![act], &registry);
    for _ in 0..3 {
        assert!(matches!(hand.next().await, Some(None)), "it is refused");
        assert!(hand.is_idle(), "it is not handed in again at once");
        hand.on_tick(&registry);
    }
    assert!(matches!(hand.next().await, Some(None)));
    assert!(!taken(&mailbox).is_empty());
    hand.on_tick(&registry);
    let commands = taken(&mailbox);
    assert!(matches!(&commands[..], [Command::Fulfill { id, .. }] if *id == KEY.1), "{commands:?}");
}
