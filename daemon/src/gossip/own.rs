//! This node's own announcements, on their way into the graph and to the peers.

use std::sync::Arc;

use millrace_routing::graph::Unwanted;
use millrace_wire::{Decoded, Message};
use tokio::sync::mpsc;

use super::Inner;
use super::book::From;
use super::verify::{self, Announcement};

pub(super) async fn take(inner: Arc<Inner>, mut messages: mpsc::UnboundedReceiver<Vec<Vec<u8>>>) {
    while let Some(messages) = messages.recv().await {
        let batch: Vec<Announcement> = messages.iter().filter_map(|bytes| announcement(bytes)).collect();
        let refused = verify::take(&inner, batch, From::Own).await;
        for fault in refused.faults {
            tracing::error!(%fault, "an announcement of our own does not hold");
        }
        for why in refused.unwanted.into_iter().filter(|why| *why != Unwanted::Known) {
            tracing::warn!(%why, "an announcement of our own is not taken");
        }
        for id in refused.unfunded {
            tracing::warn!(short_channel_id = %id, "a channel of our own has no funding output in the chain");
        }
    }
}

fn announcement(bytes: &[u8]) -> Option<Announcement> {
    match Message::decode(bytes) {
        Ok(Decoded::Message(Message::ChannelAnnouncement(message))) => Some(Announcement::Channel(message)),
        Ok(Decoded::Message(Message::NodeAnnouncement(message))) => Some(Announcement::Node(message)),
        Ok(Decoded::Message(Message::ChannelUpdate(message))) => Some(Announcement::Update(message)),
        Ok(_) | Err(_) => {
            tracing::error!(bytes = bytes.len(), "what was to be announced is no announcement");
            None
        }
    }
}
