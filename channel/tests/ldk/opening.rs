//! A channel comes to be, opened by either side, up to `funding_signed` at the funder. Before that the opening may be
//! refused or cut, and nothing is lost but the attempt.

use std::collections::VecDeque;

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, ScriptBuf, Transaction, TxOut};
use millrace_channel::channel::Channel;
use millrace_channel::curve::Serial;
use millrace_channel::effect::Effects;
use millrace_channel::input::Millis;
use millrace_channel::keys::{ChannelKeys, Identity};
use millrace_channel::phase::opening::{
    AcceptParams, OpenRequest, Opening, OpeningEvent, OpeningFeatures, OpeningLimits, Surroundings,
};
use millrace_channel::side::Side;
use millrace_wire::{ChainHash, ChannelId, Features, Init, Message, Sat, ShortChannelId};
use secp256k1::{SECP256K1, SecretKey};

use crate::codec;
use crate::dice::Dice;
use crate::parts::anyones;
use crate::peer::Ldk;
use crate::plan::Plan;
use crate::support::chain::{Chain, anyones_input};
use crate::support::node::{HEIGHT, Node};

/// Coins of LDK's wallet, for the fees of its claims. It asks its user to have enough: HTLCs may expire one by one.
const LDK_COINS: usize = 40;

/// As many when every slot is filled.
const LDK_COINS_FULL: usize = 500;

/// Why there is no channel.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// One of the two does not want it on these terms.
    Refused(String),
    /// The link was cut in time.
    Cut,
    /// This must not happen.
    Broken(String),
}

/// Both ends of a channel that has just been opened, and the chain.
pub(crate) struct Opened {
    pub(crate) node: Node,
    pub(crate) ldk: Ldk,
    pub(crate) chain: Chain,
    pub(crate) init: Init,
    pub(crate) features: OpeningFeatures,
}

/// Both while they negotiate.
struct Table<'a> {
    plan: &'a Plan,
    keys: ChannelKeys,
    alias: ShortChannelId,
    temporary: ChannelId,
    features: OpeningFeatures,
    ldk: Ldk,
    chain: Chain,
    opening: Option<Opening>,
    channel: Option<Channel>,
    fx: Effects,
    to_ldk: VecDeque<Message>,
    /// Messages until the cut.
    left: Option<u64>,
}

pub(crate) fn open(plan: &Plan, dice: &mut Dice, is_cut: bool) -> Result<Opened, NotOpened> {
    let node_key = SecretKey::from_slice(&dice.bytes()).unwrap();
    let us = node_key.public_key(SECP256K1);
    let mut ldk = Ldk::new(dice.bytes(), us, HEIGHT.0, plan.feerate.0, &plan.ldk);
    let features = Features::ours(true);
    let init = Init { features, networks: vec![ChainHash::REGTEST], remote_address: None };
    ldk.connected(&init, dice.chance(50));
    let theirs = codec::init_of(&*ldk.manager, us);
    let mut table = Table {
        plan,
        keys: ChannelKeys::from_seed(&dice.bytes()).of_node(Identity::new(node_key, ChainHash::REGTEST)),
        alias: ShortChannelId(0x0bad_0000_0000 + dice.below(1 << 20)),
        temporary: ChannelId(dice.bytes()),
        features: OpeningFeatures::negotiated(&init.features, &theirs.features),
        ldk,
        chain: Chain::empty(),
        opening: None,
        channel: None,
        fx: Effects::default(),
        to_ldk: VecDeque::new(),
        left: is_cut.then(|| dice.below(4)),
    };
    match plan.opener {
        Side::Local => table.propose()?,
        Side::Remote => table.ask_ldk()?,
    }
    table.negotiate()?;
    let features = table.features;
    let (node, ldk, chain) = table.finish();
    Ok(Opened { node, ldk, chain, init, features })
}

impl Table<'_> {
    fn propose(&mut self) -> Result<(), NotOpened> {
        let plan = self.plan;
        let request = OpenRequest {
            remote_node: self.ldk.id,
            chain_hash: ChainHash::REGTEST,
            temporary_channel_id: self.temporary,
            funding: plan.funding,
            push: plan.push,
            feerate: plan.feerate,
            channel_type: plan.channel_type,
            announce: plan.announce,
            local: plan.local.clone(),
            limits: OpeningLimits::default(),
            features: self.features,
            keys: self.keys.clone(),
            keys_index: 1,
            local_alias: self.alias,
        };
        let (opening, message) =
            Opening::propose(request).map_err(|refusal| NotOpened::Refused(format!("by us: {refusal}")))?;
        self.opening = Some(opening);
        self.to_ldk.push_back(message);
        Ok(())
    }

    fn ask_ldk(&mut self) -> Result<(), NotOpened> {
        let (us, plan) = (self.ldk.us, self.plan);
        self.ldk
            .manager
            .create_channel(us, plan.funding.0, plan.push.0, 7, None, None)
            .map(drop)
            .map_err(|error| NotOpened::Refused(format!("by LDK: {error:?}")))
    }

    fn negotiate(&mut self) -> Result<(), NotOpened> {
        for _ in 0..30 {
            self.ldk.flush();
            if let Some(complaint) = self.ldk.complaints.pop() {
                return Err(NotOpened::Refused(format!("by LDK: {complaint}")));
            }
            self.answer_ldk()?;
            if self.is_done() {
                return Ok(());
            }
            if self.left == Some(0) {
                self.ldk.disconnected();
                return Err(NotOpened::Cut);
            }
            self.left = self.left.map(|left| left - 1);
            if let Some(bytes) = self.ldk.outbox.pop_front() {
                let message = codec::read_ours(&bytes).map_err(NotOpened::Broken)?;
                self.receive(message)?;
            } else if let Some(message) = self.to_ldk.pop_front() {
                self.ldk.receive(&message).map_err(NotOpened::Broken)?;
            } else {
                break;
            }
        }
        Err(NotOpened::Broken(format!("the opening fell silent: {:?}", self.opening)))
    }

    /// The funder has `funding_signed`.
    fn is_done(&self) -> bool {
        self.channel.is_some() && (self.plan.opener == Side::Local || self.to_ldk.is_empty())
    }

    /// What LDK asks its user.
    fn answer_ldk(&mut self) -> Result<(), NotOpened> {
        let us = self.ldk.us;
        if let Some(id) = self.ldk.open_request.take() {
            let accepted = if self.plan.channel_type.zero_conf {
                self.ldk.manager.accept_inbound_channel_from_trusted_peer_0conf(&id, &us, 7, None)
            } else {
                self.ldk.manager.accept_inbound_channel(&id, &us, 7, None)
            };
            accepted.map_err(|error| NotOpened::Refused(format!("by LDK: {error:?}")))?;
            self.ldk.flush();
        }
        if let Some((id, script, sat)) = self.ldk.funding_wanted.take() {
            let tx = self.funding_tx(&script, Sat(sat));
            let funded = self.ldk.manager.funding_transaction_generated(id, us, tx);
            funded.map_err(|error| NotOpened::Broken(format!("LDK does not take the funding: {error:?}")))?;
            self.ldk.flush();
        }
        Ok(())
    }

    fn receive(&mut self, message: Message) -> Result<(), NotOpened> {
        let around = Surroundings { height: HEIGHT, policy: self.plan.policy, is_taken: &|_| false };
        let Some(opening) = &mut self.opening else {
            let Message::OpenChannel(open) = message else {
                return Err(NotOpened::Broken(format!("{} where open_channel is due", message.name())));
            };
            let params = AcceptParams {
                remote_node: self.ldk.id,
                chain_hash: ChainHash::REGTEST,
                local: self.plan.local.clone(),
                limits: OpeningLimits::default(),
                features: self.features,
                minimum_depth: self.plan.minimum_depth,
                is_zero_conf_allowed: false,
                keys: self.keys.clone(),
                keys_index: 1,
                local_alias: self.alias,
            };
            let (opening, reply) = Opening::accept(*open, params, &around)
                .map_err(|refused| NotOpened::Refused(format!("by us: {}", refused.why)))?;
            self.opening = Some(opening);
            self.to_ldk.push_back(reply);
            return Ok(());
        };
        let event = opening
            .on_message(message, &around, &Serial, &mut self.fx)
            .map_err(|fault| NotOpened::Refused(format!("by us: {fault}")))?;
        match event {
            Some(OpeningEvent::FundingNeeded { script_pubkey, amount }) => {
                let tx = self.funding_tx(&script_pubkey, amount);
                let opening = self.opening.as_mut().unwrap();
                opening.fund(tx, 0, &around, &mut self.fx).map_err(|refusal| NotOpened::Broken(refusal.to_string()))?;
            }
            Some(OpeningEvent::Opened(channel)) => self.channel = Some(*channel),
            Some(OpeningEvent::Refused { text }) => return Err(NotOpened::Refused(format!("by LDK: {text}"))),
            None => {}
        }
        if self.channel.is_none() {
            self.send_effects();
        } else if self.plan.opener == Side::Remote {
            self.send_funding_signed();
        }
        Ok(())
    }

    /// Before there is a channel, all that comes out is messages.
    fn send_effects(&mut self) {
        for effect in std::mem::take(&mut self.fx).list {
            if let millrace_channel::Effect::Send(message) = effect {
                self.to_ldk.push_back(*message);
            }
        }
    }

    /// `funding_signed` is the opening's last message; the others are the channel's.
    fn send_funding_signed(&mut self) {
        let is_it = |effect: &millrace_channel::Effect| matches!(effect, millrace_channel::Effect::Send(message) if matches!(**message, Message::FundingSigned(_)));
        let at = self.fx.list.iter().position(is_it).expect("funding_signed is sent");
        let millrace_channel::Effect::Send(message) = self.fx.list.remove(at) else { unreachable!("just found") };
        self.to_ldk.push_back(*message);
    }

    fn funding_tx(&mut self, script: &ScriptBuf, amount: Sat) -> Transaction {
        let coin = self.chain.coin(Amount::from_sat(amount.0 + 1_000));
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![anyones_input(coin)],
            output: vec![TxOut { value: amount.to_amount(), script_pubkey: script.clone() }],
        }
    }

    fn finish(mut self) -> (Node, Ldk, Chain) {
        let mut node = Node {
            channel: self.channel.unwrap(),
            fx: self.fx,
            journal: Vec::new(),
            outbox: self.to_ldk,
            facts: Vec::new(),
            broadcasts: Vec::new(),
            watches: Vec::new(),
            disconnects: Vec::new(),
            claims: None,
            keys: self.keys,
            policy: self.plan.policy,
            now: Millis(0),
        };
        node.drain();
        node.tip(HEIGHT);
        let value = Amount::from_sat(1_000_000);
        for _ in 0..if self.plan.is_full { LDK_COINS_FULL } else { LDK_COINS } {
            let outpoint = self.chain.coin(value);
            self.ldk.give_coin(outpoint, TxOut { value, script_pubkey: anyones().to_p2wsh() });
        }
        (node, self.ldk, self.chain)
    }
}
