//! How the node is told to stop: SIGINT and SIGTERM, seen by everybody through one watch channel.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Says that the node must stop.
#[derive(Clone, Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Sees whether the node must stop.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// A pair of them.
#[must_use]
pub fn pair() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Stops the node. Idempotent.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Whether the node must stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the node must stop. Also returns when nobody is left who could say so.
    pub async fn wait(&mut self) {
        // An error means that every trigger is gone, and with them whoever ran the node.
        let _ = self.0.wait_for(|is_stopping| *is_stopping).await;
    }
}

/// Stops on the first SIGINT or SIGTERM; the second ends the process at once, which the journal survives.
/// Must be called on a tokio runtime.
///
/// # Errors
/// If the signals cannot be caught.
pub fn on_signals() -> io::Result<(Trigger, Shutdown)> {
    let (trigger, shutdown) = pair();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let on_signal = trigger.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            if *on_signal.0.borrow() {
                tracing::warn!(signal = name, "stopping at once");
                std::process::exit(130);
            }
            tracing::info!(signal = name, "stopping; once more stops at once");
            on_signal.stop();
        }
    });
    Ok((trigger, shutdown))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn everybody_sees_it_early_and_late() {
        let (trigger, shutdown) = pair();
        let mut early = shutdown.clone();
        let waiting = tokio::spawn(async move { early.wait().await });
        assert!(!shutdown.is_stopping());
        trigger.stop();
        trigger.stop();
        waiting.await.unwrap();
        let mut late = shutdown.clone();
        late.wait().await;
        assert!(late.is_stopping());
    }

    #[tokio::test]
    async fn waiting_ends_when_nobody_can_stop_it_any_more() {
        let (trigger, mut shutdown) = pair();
        drop(trigger);
        shutdown.wait().await;
        assert!(!shutdown.is_stopping());
    }

    #[tokio::test]
    async fn sigterm_stops() {
        let (_trigger, mut shutdown) = on_signals().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        shutdown.wait().await;
        assert!(shutdown.is_stopping());
    }
}
