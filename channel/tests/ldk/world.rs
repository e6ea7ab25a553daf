//! Both ends, the link between them and the chain under them; and what must hold after every step.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bitcoin::Transaction;
use lightning::types::payment::PaymentHash;
use millrace_channel::input::{LinkEvent, LinkFeatures};
use millrace_channel::phase::Phase;
use millrace_channel::side::Side;
use millrace_channel::{Channel, Fact};
use millrace_wire::{Init, Message, Preimage};

use crate::bites::Tamper;
use crate::codec;
use crate::dice::Dice;
use crate::opening::{NotOpened, Opened, open};
use crate::peer::{Block, Ldk, genesis};
use crate::plan::Plan;
use crate::support::chain::Chain;
use crate::support::node::Node;
use crate::tally::Tally;

/// What was done, kept outside so that a panic does not take it away.
pub(crate) type Story = Arc<Mutex<Vec<String>>>;

/// Everything.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) tally: Tally,
    story: Story,
    pub(crate) node: Node,
    pub(crate) ldk: Ldk,
    pub(crate) chain: Chain,
    pub(crate) blocks: Vec<Block>,
    init: Init,
    features: LinkFeatures,
    pub(crate) is_connected: bool,
    /// LDK has taken something in since it last let anything out.
    pub(crate) is_ldk_ahead: bool,
    pub(crate) preimages: BTreeMap<PaymentHash, Preimage>,
    /// How the channel may end now, if it may.
    pub(crate) may_end: MayEnd,
    pub(crate) tamper: Tamper,
    /// The fee in the last `closing_signed` of either, in sat.
    pub(crate) last_closing_fee: u64,
}

/// Why LDK may fail an HTLC of ours: a secret that it does not know, an onion that it cannot read; and, as interop.md
/// knows it of receivers, no room for the fee-spike buffer, when HTLCs of its own have crossed ours.
const EXPECTED_FAILURES: [&str; 3] = [
    "Some(Local { reason: IncorrectPaymentDetails })",
    "Some(Local { reason: InvalidOnionHMAC })",
    "Some(Local { reason: FeeSpikeBuffer })",
];

/// Why it may when it is closing.
const CLOSING: &str = "Some(Local { reason: ChannelClosed })";

/// What is no failure any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MayEnd {
    /// Nothing ends.
    No,
    /// Both close together: no error, no commitment.
    Together,
    /// One has closed alone.
    Alone,
}

impl World {
    /// A world with a channel that both sides have.
    pub(crate) fn open(seed: u64, story: &Story, tamper: Tamper) -> Result<Self, String> {
        let mut dice = Dice::new(seed);
        let mut tally = Tally::default();
        let mut plan = Plan::of(seed, &mut dice);
        let mut is_cut = plan.is_opening_cut;
        for _ in 0..4 {
            story.lock().unwrap().push(format!("{plan:?}"));
            match open(&plan, &mut dice, is_cut) {
                Ok(opened) => return Ok(Self::new(plan, dice, tally, story.clone(), opened, tamper)),
                Err(NotOpened::Refused(why)) => {
                    story.lock().unwrap().push(format!("refused {why}"));
                    plan = plan.plain();
                }
                Err(NotOpened::Cut) => {
                    story.lock().unwrap().push("the opening was cut".to_owned());
                    tally.count("opening cut");
                    is_cut = false;
                }
                Err(NotOpened::Broken(what)) => return Err(what),
            }
        }
        Err("no opening came to anything".to_owned())
    }

    fn new(plan: Plan, dice: Dice, tally: Tally, story: Story, opened: Opened, tamper: Tamper) -> Self {
        let Opened { node, ldk, chain, init, features } = opened;
        let mut world = Self {
            plan,
            dice,
            tally,
            story,
            node,
            ldk,
            chain,
            blocks: Vec::new(),
            init,
            features: features.link,
            is_connected: true,
            is_ldk_ahead: false,
            preimages: BTreeMap::new(),
            may_end: MayEnd::No,
            tamper,
            last_closing_fee: 0,
        };
        world.count_opening();
        world
    }

    fn count_opening(&mut self) {
        let channel_type = self.plan.channel_type;
        self.tally.count(match self.plan.opener {
            Side::Local => "opened by us",
            Side::Remote => "opened by ldk",
        });
        self.tally.count(match channel_type.format {
            millrace_channel::CommitmentFormat::Anchors => "opened with anchors",
            millrace_channel::CommitmentFormat::StaticRemotekey => "opened with static_remotekey",
        });
        for (is_so, kind) in [
            (channel_type.scid_alias, "opened with scid_alias"),
            (channel_type.zero_conf, "opened with zero-conf"),
            (self.plan.is_full, "opened with a full dance"),
        ] {
            if is_so {
                self.tally.count(kind);
            }
        }
    }

    pub(crate) fn say(&self, text: impl Into<String>) {
        self.story.lock().unwrap().push(text.into());
    }

    // --- the link ---

    pub(crate) fn connect(&mut self) {
        if !self.is_connected {
            self.say("connect");
            let is_inbound = self.dice.chance(50);
            self.ldk.connected(&self.init, is_inbound);
            self.node.link(LinkEvent::Up { features: self.features });
            self.is_connected = true;
            self.is_ldk_ahead = true;
            self.tamper.on_connect();
        }
    }

    /// The link goes, with everything on it.
    pub(crate) fn cut(&mut self) {
        if self.is_connected {
            let lost = self.node.outbox.len() + self.ldk.outbox.len();
            self.say(format!("cut, {lost} messages lost"));
            self.tally.count(if lost > 0 { "cut with messages lost" } else { "cut" });
            self.lose_link();
            self.ldk.disconnected();
        }
    }

    /// Our end of it.
    fn lose_link(&mut self) {
        self.node.link(LinkEvent::Down);
        self.node.outbox.clear();
        self.is_connected = false;
    }

    pub(crate) fn restart_us(&mut self) {
        self.cut();
        self.say("restart");
        self.tally.count("restart");
        self.node.restart();
        self.node.tip(self.chain.height);
    }

    /// LDK stops and comes back as it was saved last: whatever it took in since, it has forgotten.
    pub(crate) fn restart_ldk(&mut self) {
        let forgets = self.is_ldk_ahead;
        self.say(if forgets { "ldk restart that forgets" } else { "ldk restart" });
        self.tally.count(if forgets { "ldk restart that forgets" } else { "ldk restart" });
        self.lose_link();
        self.ldk.restart(&self.blocks);
        self.is_ldk_ahead = false;
    }

    // --- one step at a time ---

    /// The end of a batch of ours. Proposals that cannot be signed any more are withdrawn, and the connection with them.
    pub(crate) fn commit(&mut self) {
        self.node.commit();
        let is_withdrawal = |why: &String| why.contains("ours are withdrawn");
        if let Some(at) = self.node.disconnects.iter().position(is_withdrawal) {
            let why = self.node.disconnects.remove(at);
            self.say(format!("we disconnect: {why}"));
            self.cut();
        }
    }

    /// LDK lets out what it has.
    pub(crate) fn flush(&mut self) -> Result<(), String> {
        self.ldk.flush();
        self.is_ldk_ahead = false;
        if self.ldk.wants_disconnect {
            self.ldk.wants_disconnect = false;
            self.cut();
        }
        self.check()
    }

    /// Delivers our next message. False if there is none.
    pub(crate) fn deliver_to_ldk(&mut self) -> Result<bool, String> {
        self.tamper.on_outbox(&mut self.node.outbox);
        let Some(mut message) = self.node.outbox.pop_front() else { return Ok(false) };
        self.tamper.on_message(&mut message);
        self.hear(&message);
        self.say(format!("→ {}", words(&message)));
        match (&message, self.may_end) {
            // For the connection around LDK's channels; before the end we have nothing to warn of.
            (Message::Warning(_), MayEnd::Alone) => {}
            _ => self.ldk.receive(&message)?,
        }
        self.is_ldk_ahead = true;
        self.check()?;
        Ok(true)
    }

    /// Delivers LDK's next message. False if there is none.
    pub(crate) fn deliver_to_us(&mut self) -> Result<bool, String> {
        let Some(bytes) = self.ldk.outbox.pop_front() else { return Ok(false) };
        let message = codec::read_ours(&bytes)?;
        self.hear(&message);
        self.say(format!("← {}", words(&message)));
        let result = self.node.receive(message);
        if self.may_end != MayEnd::Alone {
            result.map_err(|fault| format!("we fault LDK: {fault}"))?;
        }
        self.check()?;
        Ok(true)
    }

    const fn hear(&mut self, message: &Message) {
        if let Message::ClosingSigned(closing_signed) = message {
            self.last_closing_fee = closing_signed.fee.0;
        }
    }

    /// Some deliveries, in the order that the seed wants.
    pub(crate) fn let_talk(&mut self, steps: u64) -> Result<(), String> {
        for _ in 0..steps {
            match self.dice.below(10) {
                0..=3 => drop(self.deliver_to_ldk()?),
                4..=6 => drop(self.deliver_to_us()?),
                7 => self.commit(),
                _ => self.flush()?,
            }
        }
        Ok(())
    }

    /// Everything that either has to say, until both are silent.
    pub(crate) fn exchange(&mut self) -> Result<(), String> {
        for _ in 0..20_000 {
            self.commit();
            self.flush()?;
            let mut moved = false;
            while self.deliver_to_ldk()? {
                moved = true;
            }
            self.flush()?;
            while self.deliver_to_us()? {
                moved = true;
            }
            if !moved {
                return Ok(());
            }
        }
        Err("the two never fall silent".to_owned())
    }

    // --- the chain ---

    /// The next block.
    pub(crate) fn mine(&mut self, txs: &[Transaction]) {
        self.chain.mine(txs, &mut [&mut self.node]);
        let previous = self.blocks.last().map_or_else(genesis, |block| block.header.block_hash());
        let block = Block::after(previous, self.chain.height.0, txs.to_vec());
        self.ldk.connect_block(&block);
        self.blocks.push(block);
        self.is_ldk_ahead = true;
        self.ldk.forget_spent_coins(|outpoint| self.chain.is_unspent(outpoint));
    }

    // --- what must hold ---

    /// After every step: LDK has said no `error` and closed nothing, and neither have we.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.may_end == MayEnd::Alone {
            return Ok(());
        }
        if let Some(complaint) = self.ldk.complaints.first() {
            return Err(format!("LDK objects: {complaint}"));
        }
        let is_expected = |why: &&String| {
            EXPECTED_FAILURES.contains(&why.as_str()) || (self.may_end == MayEnd::Together && *why == CLOSING)
        };
        if let Some(why) = self.ldk.told.handling_failures.iter().find(|why| !is_expected(why)) {
            return Err(format!("LDK fails an HTLC of ours by itself: {why}"));
        }
        if let Some(closed) = &self.ldk.told.closed
            && self.may_end == MayEnd::No
        {
            return Err(format!("LDK has closed by itself: {:?}", closed.reason));
        }
        if let Some(why) = self.node.disconnects.first() {
            return Err(format!("we disconnect: {why}"));
        }
        if let Phase::OnChain(on_chain) = self.node.channel.phase()
            && self.may_end == MayEnd::No
        {
            return Err(format!("we have failed the channel: {}", on_chain.reason));
        }
        let said = self.node.facts.iter().find(|fact| matches!(fact, Fact::PeerSaid { .. }));
        said.map_or(Ok(()), |fact| Err(format!("{fact:?}")))
    }

    /// Replaying the journal arrives at the live channel, less what no record covers.
    pub(crate) fn check_replay(&self) -> Result<(), String> {
        let mut bytes = Vec::new();
        self.node.channel.snapshot(&mut bytes);
        let live = Channel::restore(&bytes, self.node.policy, |_| self.node.keys.clone()).map_err(|e| e.to_string())?;
        let replayed = self.node.replayed(self.node.journal.len());
        if replayed.is_same_state(&live) {
            Ok(())
        } else {
            Err(format!("replay differs from live\n{replayed:#?}\n{live:#?}"))
        }
    }
}

/// A message for the story.
fn words(message: &Message) -> String {
    match message {
        Message::UpdateAddHtlc(m) => format!("update_add_htlc {} of {}", m.id.0, m.amount),
        Message::UpdateFulfillHtlc(m) => format!("update_fulfill_htlc {}", m.id.0),
        Message::UpdateFailHtlc(m) => format!("update_fail_htlc {}", m.id.0),
        Message::UpdateFailMalformedHtlc(m) => format!("update_fail_malformed_htlc {}", m.id.0),
        Message::UpdateFee(m) => format!("update_fee to {}", m.feerate.0),
        Message::CommitmentSigned(m) => format!("commitment_signed with {} HTLC signatures", m.htlc_signatures.len()),
        Message::ChannelReestablish(m) => {
            format!("channel_reestablish {} {}", m.next_commitment_number, m.next_revocation_number)
        }
        Message::ClosingSigned(m) => format!("closing_signed with a fee of {}", m.fee),
        Message::Error(m) => format!("error: {}", m.text()),
        other => other.name().to_owned(),
    }
}
