//! The way out of a node's channels: messages to peers, and news to payments, in the order in which they leave. After a
//! given number of pieces the gate shuts in the midst of whatever lets them go.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use millrace_journal::Position;
use millrace_wire::{Message, PublicKey};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::facts::{Fold, News, Telling};
use crate::payments::Payments;
use crate::peer::link::Outgoing;

pub(super) struct Gate {
    payments: Arc<Payments>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    links: BTreeMap<PublicKey, UnboundedReceiver<Outgoing>>,
    left: VecDeque<(PublicKey, Box<Message>)>,
    passed: usize,
    passes_max: Option<usize>,
    is_shut: bool,
}

impl State {
    fn collect(&mut self) {
        let mut said = Vec::new();
        for (peer, outgoing) in &mut self.links {
            while let Ok(out) = outgoing.try_recv() {
                match out {
                    Outgoing::Message(message) => said.push((*peer, message)),
                    Outgoing::Bytes(_) => panic!("gossip, where there is none"),
                    Outgoing::Close(why) => panic!("a connection is closed: {why}"),
                }
            }
        }
        for one in said {
            if self.passes() {
                self.left.push_back(one);
            }
        }
    }

    fn passes(&mut self) -> bool {
        if self.passes_max.is_some_and(|most| self.passed >= most) {
            self.is_shut = true;
        }
        if !self.is_shut {
            self.passed += 1;
        }
        !self.is_shut
    }
}

impl Gate {
    pub(super) fn new(payments: Arc<Payments>) -> Arc<Self> {
        Arc::new(Self { payments, state: Mutex::default() })
    }

    pub(super) fn link(&self, peer: PublicKey, outgoing: UnboundedReceiver<Outgoing>) {
        self.state.lock().unwrap().links.insert(peer, outgoing);
    }

    pub(super) fn unlink(&self, peer: &PublicKey) {
        self.state.lock().unwrap().links.remove(peer);
    }

    /// What has left since the last time.
    pub(super) fn take(&self) -> VecDeque<(PublicKey, Box<Message>)> {
        let mut state = self.state.lock().unwrap();
        state.collect();
        std::mem::take(&mut state.left)
    }

    /// Pieces that have left so far.
    pub(super) fn passed(&self) -> usize {
        self.state.lock().unwrap().passed
    }

    /// Shuts after so many more pieces.
    pub(super) fn shut_after(&self, pieces: usize) {
        let mut state = self.state.lock().unwrap();
        state.passes_max = Some(state.passed + pieces);
    }

    /// Whether something was cut off.
    pub(super) fn is_shut(&self) -> bool {
        self.state.lock().unwrap().is_shut
    }

    pub(super) fn open(&self) {
        let mut state = self.state.lock().unwrap();
        (state.passes_max, state.is_shut) = (None, false);
    }
}

impl Fold for Gate {
    fn name(&self) -> &'static str {
        self.payments.name()
    }

    fn restore(&self, section: &[u8]) -> Result<(), String> {
        self.payments.restore(section)
    }

    fn tell(&self, news: &News) {
        let passes = {
            let mut state = self.state.lock().unwrap();
            state.collect();
            news.telling == Telling::Replay || state.passes()
        };
        if passes {
            self.payments.tell(news);
        }
    }

    fn section(&self, up_to: Position) -> Result<Vec<u8>, String> {
        self.payments.section(up_to)
    }
}
