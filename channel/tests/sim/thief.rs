//! A node that cheats: it publishes a commitment that it has revoked, and fights for every output of it with all that it
//! knows. Whoever it cheats must get everything.
//!
//! The thief is a channel of its own, read back from the first records of the cheater's disk. The cheater's other self goes
//! on as an honest node that meets its own revoked commitment: it may lose money, and must neither panic nor take any.

use std::sync::Arc;

use bitcoin::{Amount, ScriptBuf, Transaction, Txid};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::ledger::htlc::Htlc;
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::side::Side;
use millrace_channel::tx::claim::sweep_tx;
use millrace_channel::{ChainEvent, Channel, Command, Effect, Effects, Record};
use millrace_wire::{BlockHeight, FeeratePerKw};

use crate::blocks::Block;
use crate::end::policy;
use crate::payments::{preimage_of, read_onion};
use crate::world::{LINKS, World};

/// The cheater's other self.
pub struct Thief {
    channel: Channel,
    keys: ChannelKeys,
    wallet: ScriptBuf,
    claims: Option<Claims>,
    /// HTLC transactions that pay for themselves.
    complete: Vec<Transaction>,
    commitment: Option<Txid>,
    pub node: usize,
    pub link: usize,
}

impl Thief {
    fn take(&mut self, fx: Effects) -> Option<Transaction> {
        let mut commitment = None;
        for effect in fx.list {
            match effect {
                Effect::Claim(claims) => self.claims = Some(*claims),
                Effect::Broadcast(broadcast) if broadcast.purpose == millrace_channel::effect::Purpose::Commitment => {
                    commitment = Some(broadcast.tx);
                }
                Effect::Broadcast(broadcast) => self.complete.push(broadcast.tx),
                Effect::Journal(_) | Effect::Send(_) | Effect::Disconnect(_) | Effect::Watch(_) | Effect::Fact(_) => {}
            }
        }
        commitment
    }

    fn tell(&mut self, event: ChainEvent) {
        let mut fx = Effects::default();
        self.channel.on_chain(event, &mut fx);
        self.take(fx);
    }

    fn tell_block(&mut self, Block { height, txs, .. }: &Block) {
        self.tell(ChainEvent::Tip { height: *height, block: bitcoin::hashes::Hash::all_zeros() });
        for (index, tx) in (0..).zip(txs) {
            self.tell(ChainEvent::Confirmed { tx: Arc::new(tx.clone()), index });
        }
    }
}

/// Some node publishes what it has revoked. False if there is nothing to cheat with.
pub fn cheat(world: &mut World) -> bool {
    let link = world.pick(2) as usize;
    let node = LINKS[link][world.pick(2) as usize];
    let victim = World::peer_of(node, link);
    let Some(honest) = world.end(victim, link).channel() else { return false };
    let unrevoked = honest.commitment_numbers().remote.0 - u64::from(honest.awaits_revocation());
    let records = world.nodes[node].disk.records(link);
    let candidates = revoked_states(&records, &world.end(node, link).keys, unrevoked);
    if candidates.is_empty() || honest.short_channel_id().is_none() {
        return false;
    }
    let kept = candidates[world.pick(candidates.len() as u64) as usize];
    let Some(channel) = read_back(&records[..kept], &world.end(node, link).keys) else { return false };
    let mut thief = Thief {
        channel,
        keys: world.end(node, link).keys.clone(),
        wallet: ScriptBuf::new_p2wpkh(&bitcoin::hashes::Hash::from_byte_array([0xee; 20])),
        claims: None,
        complete: Vec::new(),
        commitment: None,
        node,
        link,
    };
    for block in &world.blocks.chain[1..] {
        thief.tell_block(block);
    }
    use_preimages(world, &mut thief);
    let mut fx = Effects::default();
    let reason = "it was a better one".to_owned();
    if thief.channel.on_command(Command::ForceClose { reason }, &mut fx).is_err() {
        return false;
    }
    let Some(commitment) = thief.take(fx) else { return false };
    let number = thief.channel.commitment_numbers().local.0;
    world.note(format!(
        "node {node} publishes commitment {number} of link {link}, and has revoked all below {unrevoked}"
    ));
    world.counters.count("fault: a revoked commitment is published");
    world.nodes[node].is_rolled_back = true;
    thief.commitment = Some(commitment.compute_txid());
    world.blocks.broadcast(commitment);
    world.thief = Some(thief);
    true
}

/// How many records to keep for each commitment that is revoked.
fn revoked_states(records: &[Record], keys: &ChannelKeys, unrevoked: u64) -> Vec<usize> {
    let mut kept = Vec::new();
    let mut channel: Option<Channel> = None;
    for (index, record) in records.iter().enumerate() {
        match (record.clone(), &mut channel) {
            (Record::Opened(opened), channel) => *channel = Channel::from_opened(*opened, keys.clone(), policy()).ok(),
            (record, Some(channel)) => {
                channel.replay(record, &mut Effects::default()).expect("only Opened is out of place");
            }
            (_, None) => {}
        }
        if channel.as_ref().is_some_and(|channel| channel.commitment_numbers().local.0 < unrevoked) {
            kept.push(index + 1);
        }
    }
    kept
}

fn read_back(records: &[Record], keys: &ChannelKeys) -> Option<Channel> {
    let mut channel: Option<Channel> = None;
    for record in records {
        match (record.clone(), &mut channel) {
            (Record::Opened(opened), channel) => *channel = Channel::from_opened(*opened, keys.clone(), policy()).ok(),
            (record, Some(channel)) => channel.replay(record, &mut Effects::default()).ok()?,
            (_, None) => {}
        }
    }
    channel
}

/// He knows the preimages of what was for him, and of what has been fulfilled since.
fn use_preimages(world: &World, thief: &mut Thief) {
    let live: Vec<&Htlc> = thief.channel.ledger().htlcs(Side::Remote).iter().filter(|htlc| htlc.is_live()).collect();
    let known = live.iter().filter_map(|htlc| {
        let (payment, to) = read_onion(htlc.add.onion.as_ref()?);
        let is_known = to == thief.node || world.payments[payment].is_fulfilled;
        is_known.then(|| (htlc.add.id, preimage_of(payment)))
    });
    for (id, preimage) in known.collect::<Vec<_>>() {
        let mut fx = Effects::default();
        let command = Command::Fulfill { id, preimage, attribution: None, is_durable: false };
        let _ = thief.channel.on_command(command, &mut fx);
        thief.take(fx);
    }
}

impl World {
    /// A block has come: the thief looks, and sometimes he is quick.
    pub fn tell_thief(&mut self, block: &Block) {
        let Some(mut thief) = self.thief.take() else { return };
        thief.tell_block(block);
        if !self.chance(3) {
            self.steal(&mut thief);
        }
        self.thief = Some(thief);
    }

    pub fn tell_thief_disconnected(&mut self, height: BlockHeight) {
        if let Some(thief) = &mut self.thief {
            thief.tell(ChainEvent::Disconnected { height });
        }
    }

    fn steal(&mut self, thief: &mut Thief) {
        let mut txs = thief.complete.clone();
        if let Some(claims) = &thief.claims {
            for sweep in &claims.sweeps {
                let claim = std::slice::from_ref(&sweep.claim);
                txs.extend(sweep_tx(claim, thief.wallet.clone(), FeeratePerKw(253), &thief.keys).ok());
            }
            for claim in &claims.htlc_txs {
                let mut tx = claim.htlc_tx.tx.clone();
                tx.input.push(self.blocks.coin(Amount::from_sat(5_000)));
                tx.input[0].witness = claim.witness(&tx, 0, &thief.keys);
                txs.push(tx);
                self.counters.count("fault: a thief's HTLC transaction");
            }
        }
        txs.into_iter().for_each(|tx| self.blocks.broadcast(tx));
    }

    /// The thief has nothing of the channel, and what an outer node was cheated of is all with it.
    pub fn check_theft(&mut self, cost_max_sat: u64, funding_sat: u64) {
        let Some(thief) = &self.thief else { return };
        let is_in_chain = |block: &Block| block.txs.iter().any(|tx| Some(tx.compute_txid()) == thief.commitment);
        if !self.blocks.chain.iter().any(is_in_chain) {
            return self.counters.count("a thief was too late");
        }
        let (stolen, victim) = (self.blocks.owned(&thief.wallet), Self::peer_of(thief.node, thief.link));
        let has = self.blocks.owned(&self.nodes[victim].wallet);
        if stolen > 0 {
            self.violate(format!("the thief has {stolen} sat"));
        }
        if victim != 1 && has + cost_max_sat < funding_sat {
            self.violate(format!("node {victim} was cheated, and has {has} of {funding_sat} sat"));
        }
        self.counters.count("checked: a thief has nothing");
    }
}
