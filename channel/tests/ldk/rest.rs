//! Everything ends, and then: balances agree to the millisatoshi, both commitments stand up to the script
//! interpreter, and nothing is left over.

use lightning::ln::types::ChannelId;
use millrace_channel::effect::{Effect, Effects, Purpose};
use millrace_channel::input::Command;
use millrace_channel::ledger::Which;
use millrace_channel::side::Side;
use millrace_wire::Msat;

use crate::world::World;

impl World {
    /// The funding transaction confirms, and both say `channel_ready`; the link may go at any message.
    pub(crate) fn confirm(&mut self) -> Result<(), String> {
        let steps = self.dice.below(6);
        self.let_talk(steps)?;
        self.disturb();
        self.flush()?;
        let ours = self.node.broadcasts.iter().map(|broadcast| &broadcast.tx);
        let funding = self.node.channel.terms().funding_outpoint.txid;
        let found = ours.chain(&self.ldk.mempool).find(|tx| tx.compute_txid() == funding).cloned();
        let tx = found.ok_or("nobody has broadcast the funding transaction")?;
        self.mine(&[tx]);
        for _ in 0..7 {
            self.mine(&[]);
            let steps = self.dice.below(4);
            self.let_talk(steps)?;
            self.disturb();
        }
        self.connect();
        self.exchange()?;
        let is_usable = self.ldk.channel().is_some_and(|channel| channel.is_usable);
        if !is_usable || self.node.channel.phase().name() != "normal" {
            return Err(format!("not ready: LDK {is_usable}, we are {}", self.node.channel.phase().name()));
        }
        Ok(())
    }

    /// A cut or a restart, now and then.
    pub(crate) fn disturb(&mut self) {
        match self.dice.below(24) {
            0 => self.cut(),
            1 => self.restart_us(),
            2 => self.restart_ldk(),
            _ => {}
        }
        if self.dice.chance(60) {
            self.connect();
        }
    }

    /// Every HTLC ends.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.say("settle");
        for _ in 0..60 {
            self.connect();
            self.exchange()?;
            self.decide_all();
            self.ldk_decide_all();
            self.exchange()?;
            if self.is_at_rest() {
                return self.check_rest();
            }
        }
        Err(format!("never at rest: {:?}, LDK {:?}", self.node.channel.ledger(), self.ldk.channel()))
    }

    /// With nothing else under way, each side offers exactly what it may, and the other takes it: LDK to its user, we to
    /// our node.
    pub(crate) fn offer_all_alone(&mut self) -> Result<(), String> {
        let available = self.node.available();
        if available > Msat::ZERO {
            self.tally.count("all available taken by ldk");
            self.offer_good(available)?;
            self.exchange()?;
            self.ldk.think();
            if !self.ldk.told.claimable.iter().any(|claimable| claimable.amount_msat == available.0) {
                let failures = &self.ldk.told.handling_failures;
                return Err(format!("LDK does not take the {available} that are available: {failures:?}"));
            }
            self.settle()?;
        }
        let Some(channel) = self.ldk.channel() else { return Err("LDK has no channel".to_owned()) };
        let limit = channel.next_outbound_htlc_limit_msat;
        if limit >= channel.next_outbound_htlc_minimum_msat.max(1) {
            self.tally.count("ldk's limit taken by us");
            self.ldk_offer(&channel, limit);
            self.exchange()?;
            let received = self.node.channel.ledger().htlcs(Side::Remote);
            if !received.iter().any(|htlc| htlc.is_live() && htlc.add.amount.0 == limit) {
                return Err(format!("LDK's {limit} msat have not come: {received:?}"));
            }
            self.settle()?;
        }
        Ok(())
    }

    fn is_at_rest(&self) -> bool {
        let Some(channel) = self.ldk.channel() else { return false };
        self.node.channel.is_at_rest()
            && channel.pending_inbound_htlcs.is_empty()
            && channel.pending_outbound_htlcs.is_empty()
            && self.ldk.told.claimable.is_empty()
    }

    fn check_rest(&mut self) -> Result<(), String> {
        self.tally.count("rest");
        self.check_replay()?;
        self.check_announced()?;
        self.check_our_commitment()?;
        let theirs = self.check_ldk_commitment()?;
        let balances = self.node.balances();
        if balances.remote.0 != theirs {
            return Err(format!("LDK has {theirs} msat, and we say it has {}", balances.remote));
        }
        let whole = self.node.channel.terms().capacity.to_msat().0;
        if balances.local.0 + theirs != whole {
            return Err(format!("{} and {theirs} msat are not {whole}", balances.local.0));
        }
        let channel = self.ldk.channel().expect("it is at rest");
        let (ours, theirs) =
            (self.node.channel.ledger().feerate(Which::Current(Side::Local)).0, channel.feerate_sat_per_1000_weight);
        if theirs != Some(ours) {
            return Err(format!("our feerate is {ours}, LDK's {theirs:?}"));
        }
        Ok(())
    }

    /// Both pass the same announcement on, byte for byte.
    fn check_announced(&mut self) -> Result<(), String> {
        let channel = &self.node.channel;
        if !channel.terms().announce || channel.phase().name() != "normal" {
            let announced = channel.announced().is_some() || self.ldk.told.announced.is_some();
            return if announced && !channel.terms().announce {
                Err("a private channel is announced".to_owned())
            } else {
                Ok(())
            };
        }
        let ours = channel.announced().map(|(_, bytes)| bytes.to_vec());
        if ours.is_none() || ours != self.ldk.told.announced {
            let depth = channel.funding_depth();
            return Err(format!("announced as {ours:?} and by LDK as {:?}, {depth} deep", self.ldk.told.announced));
        }
        self.tally.count("announced alike");
        Ok(())
    }

    /// A replica of ours broadcasts its commitment: the next block would take it.
    pub(crate) fn check_our_commitment(&self) -> Result<(), String> {
        let mut replica = self.node.replayed(self.node.journal.len());
        let mut fx = Effects::default();
        let reason = "to see whether it could".to_owned();
        replica.on_command(Command::ForceClose { reason }, &mut fx).map_err(|refusal| refusal.to_string())?;
        let commitment = fx.list.iter().find_map(|effect| match effect {
            Effect::Broadcast(broadcast) if broadcast.purpose == Purpose::Commitment => Some(&broadcast.tx),
            _ => None,
        });
        let tx = commitment.ok_or("our replica broadcasts nothing")?;
        self.chain.refusal(tx).map_or(Ok(()), |why| Err(format!("our commitment is refused: {why}")))
    }

    /// A copy of LDK closes alone: the next block would take its commitment. What it says it owns, in msat.
    pub(crate) fn check_ldk_commitment(&mut self) -> Result<u64, String> {
        let mut copy = self.ldk.copy();
        copy.force_close(self.ldk_channel_id())?;
        copy.flush();
        let funding = self.node.channel.terms().funding_outpoint;
        let tx = copy
            .mempool
            .iter()
            .find(|tx| tx.input.iter().any(|input| input.previous_output == funding))
            .ok_or_else(|| format!("LDK broadcasts no commitment: {:?}", copy.parts.log.lines()))?;
        if let Some(why) = self.chain.refusal(tx) {
            return Err(format!("LDK's commitment is refused: {why}"));
        }
        let closed = copy.told.closed.ok_or("LDK does not say that it has closed")?;
        closed.balance_msat.ok_or_else(|| "LDK does not say its balance".to_owned())
    }

    pub(crate) fn ldk_channel_id(&self) -> ChannelId {
        ChannelId(self.node.channel.id().0)
    }
}
