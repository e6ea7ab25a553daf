//! Together: `shutdown` from both, the HTLCs end, `closing_signed` until both have the same transaction.

use bitcoin::Transaction;
use lightning::events::ClosureReason;
use millrace_channel::Fact;
use millrace_channel::effect::Purpose;
use millrace_channel::input::{CloseOrder, Command};
use millrace_channel::side::Side;
use millrace_wire::FeeratePerKw;

use super::our_wallet;
use crate::world::{MayEnd, World};

impl World {
    pub(super) fn close_together(&mut self, by: Side) -> Result<(), String> {
        self.be_up()?;
        if self.has_htlcs() {
            self.tally.count("mutual close with htlcs");
        }
        self.may_end = MayEnd::Together;
        match by {
            Side::Local => {
                self.say("we close together");
                self.tally.count("mutual close by us");
                self.order_close().map_err(|refusal| format!("we do not close: {refusal}"))?;
            }
            Side::Remote => {
                self.say("LDK closes together");
                self.tally.count("mutual close by ldk");
                self.begin_ldk_close()?;
            }
        }
        self.negotiate(by)
            .and_then(|()| self.bury_mutual_close())
            .map_err(|what| format!("{what}; the balances are {:?}", self.node.balances()))
    }

    fn begin_ldk_close(&mut self) -> Result<(), String> {
        for _ in 0..100 {
            self.be_up()?;
            match self.ask_ldk_to_close() {
                // What it is about to do has to be done first.
                Err(why) if why.contains("pending HTLCs") || why.contains("Cannot begin shutdown while") => {
                    self.let_talk(5)?;
                }
                result => return result,
            }
        }
        Err("LDK never gets to close".to_owned())
    }

    fn ask_ldk_to_close(&mut self) -> Result<(), String> {
        self.is_ldk_ahead = true;
        let closed = self.ldk.manager.close_channel(&self.ldk_channel_id(), &self.ldk.us);
        closed.map_err(|error| format!("LDK does not close: {error:?}"))
    }

    /// Both links stand, whatever else is under way.
    fn be_up(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            self.connect();
            self.let_talk(5)?;
            if self.node.channel.is_link_up() && self.ldk.channel().is_some_and(|channel| channel.is_usable) {
                return Ok(());
            }
        }
        Err("the link does not come up".to_owned())
    }

    fn order_close(&mut self) -> Result<(), String> {
        let upfront = self.node.channel.terms().party(Side::Local).upfront_shutdown_script.clone();
        let order = CloseOrder {
            script: upfront.unwrap_or_else(our_wallet),
            feerate: FeeratePerKw(self.dice.between(253, 2_000) as u32),
            feerate_max: FeeratePerKw(10_000),
        };
        self.node.command(Command::Close(order)).map_err(|refusal| refusal.to_string())
    }

    fn negotiate(&mut self, by: Side) -> Result<(), String> {
        let mut cuts = self.dice.below(3);
        for _ in 0..if self.plan.is_full { 3_000 } else { 300 } {
            self.connect();
            let steps = self.dice.below(12);
            self.let_talk(steps)?;
            if self.has_ldk_closed() {
                // Its last closing_signed may be on its way; from here on it knows no such channel.
                while self.deliver_to_us()? {}
                return Ok(());
            }
            self.decide_all();
            self.ldk_decide_all();
            self.answer_shutdown(by)?;
            if cuts > 0 && self.dice.chance(25) {
                cuts -= 1;
                self.tally.count("mutual close cut");
                self.disturb_close();
                self.cut();
            }
        }
        Err(format!(
            "the two do not agree on a close: we are {} with {:?}, LDK {:?} with {:?}",
            self.node.channel.phase().name(),
            self.node.channel.ledger(),
            self.ldk.told,
            self.ldk.channel()
        ))
    }

    /// LDK 0.2 does not index a channel that is shutting down by its alias when it starts again, and then never looks at
    /// HTLCs that come in or wait to be looked at: it stays up while there are any.
    fn disturb_close(&mut self) {
        match self.dice.below(4) {
            0 => self.restart_us(),
            1 if self.node.channel.ledger().htlcs(Side::Local).is_empty() => self.restart_ldk(),
            _ => {}
        }
    }

    /// Someone is left with exactly LDK's dust limit, which LDK leaves out and BOLT 3 does not.
    fn is_at_ldks_edge(&self) -> bool {
        let terms = self.node.channel.terms();
        let (limit, fee) = (terms.party(Side::Remote).dust_limit.0, self.last_closing_fee);
        let is_edge = |side: Side| {
            let balance = self.node.balances().of(side).floor_to_sat().0;
            balance.saturating_sub(if terms.funder == side { fee } else { 0 }) == limit
        };
        is_edge(Side::Local) || is_edge(Side::Remote)
    }

    fn has_ldk_closed(&mut self) -> bool {
        self.ldk.think();
        self.ldk.told.closed.is_some()
    }

    /// We answer LDK's wish; LDK, if it forgot its own in a restart, is asked again.
    fn answer_shutdown(&mut self, by: Side) -> Result<(), String> {
        let is_asked = self.node.facts.iter().any(|fact| matches!(fact, Fact::CloseAsked));
        let is_told = self.node.facts.iter().any(|fact| matches!(fact, Fact::ShuttingDown));
        if is_asked && self.node.channel.is_link_up() && self.node.channel.phase().name() == "shutting_down" {
            self.node.facts.retain(|fact| !matches!(fact, Fact::CloseAsked));
            self.order_close().map_err(|refusal| format!("we do not answer shutdown: {refusal}"))?;
        }
        let is_usable = self.ldk.channel().is_some_and(|channel| channel.is_usable);
        if by == Side::Remote && !is_told && is_usable {
            // An error means that it remembers.
            drop(self.ask_ldk_to_close());
        }
        Ok(())
    }

    fn bury_mutual_close(&mut self) -> Result<(), String> {
        self.flush()?;
        let closed = self.ldk.told.closed.clone().expect("LDK has closed");
        if !matches!(
            closed.reason,
            ClosureReason::LegacyCooperativeClosure
                | ClosureReason::CounterpartyInitiatedCooperativeClosure
                | ClosureReason::LocallyInitiatedCooperativeClosure
        ) {
            return Err(format!("LDK has closed otherwise: {:?}", closed.reason));
        }
        let balances = self.node.balances();
        if closed.balance_msat != Some(balances.remote.0) {
            return Err(format!("LDK closed with {:?} msat, we say {}", closed.balance_msat, balances.remote));
        }
        self.check_replay()?;
        let tx = self.mutual_close()?;
        self.check_mutual_close(&tx)?;
        if self.is_at_ldks_edge() {
            self.tally.count("mutual close at ldk's dust edge");
        }
        self.say(format!("the close {} confirms", tx.compute_txid()));
        self.mine(&[tx]);
        for _ in 0..self.plan.policy.burial_depth + 1 {
            self.mine(&[]);
        }
        match self.node.channel.phase().name() {
            "closed" => self.check_replay(),
            phase => Err(format!("the close is buried, and we are {phase}")),
        }
    }

    /// LDK's, and ours if we have the last signature: the same.
    fn mutual_close(&self) -> Result<Transaction, String> {
        let funding = self.node.channel.terms().funding_outpoint;
        let spends = |tx: &&Transaction| tx.input[0].previous_output == funding;
        let theirs = self.ldk.mempool.iter().rfind(spends).ok_or("LDK broadcasts no close")?;
        let ours = self.node.broadcasts.iter().filter(|broadcast| broadcast.purpose == Purpose::MutualClose);
        let ours: Vec<_> = ours.map(|broadcast| broadcast.tx.compute_txid()).collect();
        if !ours.is_empty() && !ours.contains(&theirs.compute_txid()) {
            return Err(format!("LDK closes with {}, we with {ours:?}", theirs.compute_txid()));
        }
        self.chain.refusal(theirs).map_or_else(|| Ok(theirs.clone()), |why| Err(format!("the close is refused: {why}")))
    }

    /// We are paid to the satoshi.
    fn check_mutual_close(&self, tx: &Transaction) -> Result<(), String> {
        let terms = self.node.channel.terms();
        let paid: u64 = tx.output.iter().map(|output| output.value.to_sat()).sum();
        let fee = terms.capacity.0 - paid;
        let script = terms.party(Side::Local).upfront_shutdown_script.clone().unwrap_or_else(our_wallet);
        let ours = tx.output.iter().find(|output| output.script_pubkey == script).map(|output| output.value.to_sat());
        let balance = self.node.balances().local.floor_to_sat().0;
        let is_funder = terms.funder == Side::Local;
        let is_right = match ours {
            // The funder pays the fee; what is dust at the other, or a fraction of a satoshi, is lost to it as well.
            Some(sat) if is_funder => sat + fee >= balance && sat <= balance,
            Some(sat) => sat == balance,
            None => balance < 546 || is_funder && balance < 546 + fee,
        };
        if is_right {
            Ok(())
        } else {
            Err(format!("the close pays us {ours:?} of {balance} sat, and {fee} sat as fee"))
        }
    }
}
