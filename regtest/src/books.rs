//! Each node's own books: what it was given, received and paid must be what it has, and every fee in the blocks what its
//! payer says it is.
//!
//! Plain figures of two nodes, whoever gathered them (`accounts` does). They come from three sides that do not know each
//! other: what the story did, what the daemons say, what the blocks hold.

/// No transaction of a daemon may pay more, in sat per 1000 weight units. Regtest has nothing to estimate from: there a
/// daemon pays 1,000, and a quarter more for a commitment. This is twice that, and 10 sat/vB.
pub const FEERATE_MAX_PER_KW: u64 = 2_500;

/// All figures of a story that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Books {
    /// Both nodes.
    pub nodes: [Node; 2],
    /// The channels, each of them closed.
    pub channels: Vec<Channel>,
    /// By the blocks: every transaction that spends coins of the nodes.
    pub transactions: Vec<Transaction>,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// By the blocks: what was given to it.
    pub given_sat: u64,
    /// By its word: what its wallet holds.
    pub wallet_sat: u64,
    /// By its word: what its fundings and sweeps paid the miners.
    pub fees: Vec<Fee>,
}

/// A node's word of what a transaction of its own paid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fee {
    /// Which transaction.
    pub txid: String,
    /// The channel that it sweeps, as an index; none if it funds one.
    pub sweeps: Option<usize>,
    /// What it paid.
    pub sat: u64,
}

/// What was done with a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dealings {
    /// The node that opened it.
    pub funder: usize,
    /// Its size.
    pub capacity_sat: u64,
    /// The funder's gift at the start.
    pub push_msat: u64,
    /// What each node has paid to the other.
    pub paid_msat: [u64; 2],
}

/// A closed channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Channel {
    /// What was done with it.
    pub dealings: Dealings,
    /// The transaction that closed it.
    pub closing_txid: String,
    /// How it was closed.
    pub way: Way,
    /// What was first said of closing it.
    pub broadcast: Broadcast,
    /// What each node says of it.
    pub words: [Word; 2],
}

/// How a channel was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By a commitment.
    Alone {
        /// By the blocks: what both its anchors still hold.
        anchors_sat: u64,
    },
    /// By agreement.
    Together,
}

/// The word of the node that closed a channel, before any block had it. Another transaction may be mined instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broadcast {
    /// The node.
    pub by: usize,
    /// The transaction that it broadcast or saw.
    pub txid: String,
    /// What that pays the miners.
    pub fee_sat: u64,
    /// What that pays the node.
    pub local_sat: u64,
}

/// A node's word of a closed channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word {
    /// Its balance at the end.
    pub balance_msat: u64,
    /// What the closing transaction paid the miners, fractions of a satoshi included.
    pub fee_sat: u64,
    /// What has come back to its wallet.
    pub recovered_sat: u64,
}

/// A transaction, by the blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// Its id.
    pub txid: String,
    /// Inputs less outputs.
    pub fee_sat: u64,
    /// Its weight units.
    pub weight: u64,
}

impl Dealings {
    /// What a node must have in the channel after all that was paid.
    #[must_use]
    pub fn balance_msat(&self, node: usize) -> i128 {
        let opening = if node == self.funder {
            i128::from(self.capacity_sat) * 1000 - i128::from(self.push_msat)
        } else {
            i128::from(self.push_msat)
        };
        opening + i128::from(self.paid_msat[1 - node]) - i128::from(self.paid_msat[node])
    }

    /// The part of a balance that no output can hold.
    fn trimmed_msat(&self, node: usize) -> i128 {
        self.balance_msat(node).rem_euclid(1000)
    }

    fn balance_sat(&self, node: usize) -> i128 {
        self.balance_msat(node).div_euclid(1000)
    }
}

impl Channel {
    /// Who pays for closing: of a commitment the funder (BOLT 3, "Fee Payment"). Of a close by agreement each node makes a
    /// transaction that it pays itself, and miners take either (BOLT 2, "Closing Negotiation: `closing_complete` and
    /// `closing_sig`"): what was first said of one tells whose that one is, and if it is not the one in the blocks, that
    /// is the other node's.
    fn payer(&self) -> usize {
        let Broadcast { by, txid, local_sat, .. } = &self.broadcast;
        match self.way {
            Way::Alone { .. } => self.dealings.funder,
            Way::Together => {
                let is_its_own = i128::from(*local_sat) < self.dealings.balance_sat(*by);
                let is_mined = *txid == self.closing_txid;
                if is_its_own == is_mined { *by } else { 1 - by }
            }
        }
    }

    const fn anchors_sat(&self) -> u64 {
        match self.way {
            Way::Alone { anchors_sat } => anchors_sat,
            Way::Together => 0,
        }
    }

    /// What closing cost a node in fees, by its own word; fractions of a satoshi went to the miners too, and are no fee.
    fn fee_sat(&self, node: usize) -> i128 {
        if node != self.payer() {
            return 0;
        }
        let trimmed_sat = (self.dealings.trimmed_msat(0) + self.dealings.trimmed_msat(1)) / 1000;
        i128::from(self.words[node].fee_sat) - trimmed_sat
    }

    /// The anchors are the payer's coins, whoever may spend them.
    fn anchors_of(&self, node: usize) -> i128 {
        if node == self.payer() { self.anchors_sat().into() } else { 0 }
    }
}

impl Books {
    /// Compares everything.
    ///
    /// # Errors
    /// What differs, with the node and the numbers.
    pub fn check(&self) -> Result<(), String> {
        self.transactions.iter().try_for_each(check_feerate)?;
        self.check_fees()?;
        for (node, of) in self.nodes.iter().enumerate() {
            for index in 0..self.channels.len() {
                self.check_channel(node, index)?;
            }
            self.check_sum(node, of)?;
        }
        Ok(())
    }

    /// What the nodes say that their transactions paid, against the blocks. Every transaction is somebody's.
    fn check_fees(&self) -> Result<(), String> {
        let mut told = Vec::new();
        for (node, of) in self.nodes.iter().enumerate() {
            let own = of.fees.iter().map(|fee| (&fee.txid, fee.sat));
            let closings = self.channels.iter().map(|channel| (&channel.closing_txid, channel.words[node].fee_sat));
            told.extend(own.chain(closings).map(|(txid, sat)| (&of.name, txid, sat)));
        }
        for Channel { closing_txid, broadcast, .. } in &self.channels {
            if broadcast.txid == *closing_txid {
                told.push((&self.nodes[broadcast.by].name, closing_txid, broadcast.fee_sat));
            }
        }
        for (name, txid, sat) in &told {
            let Some(found) = self.transactions.iter().find(|tx| tx.txid == **txid) else {
                return Err(format!("{name} says that {txid} paid {sat} sat, and it is in no block"));
            };
            if found.fee_sat != *sat {
                let paid = found.fee_sat;
                return Err(format!("{name} says that {txid} paid {sat} sat, and by the blocks it paid {paid}"));
            }
        }
        for Transaction { txid, fee_sat, .. } in &self.transactions {
            if !told.iter().any(|(_, of, _)| *of == txid) {
                return Err(format!("nobody says that {txid} is theirs, which paid {fee_sat} sat"));
            }
        }
        Ok(())
    }

    fn check_channel(&self, node: usize, index: usize) -> Result<(), String> {
        let (channel, name) = (&self.channels[index], &self.nodes[node].name);
        let Word { balance_msat, recovered_sat, .. } = channel.words[node];
        let must_msat = channel.dealings.balance_msat(node);
        if i128::from(balance_msat) != must_msat {
            return Err(format!("channel {index} ended with {balance_msat} msat of {name}'s, and {must_msat} are due"));
        }
        let sweeps = self.nodes[node].fees.iter().filter(|fee| fee.sweeps == Some(index));
        let swept_sat: u64 = sweeps.map(|fee| fee.sat).sum();
        let (balance_sat, fee_sat) = (channel.dealings.balance_sat(node), channel.fee_sat(node));
        let anchors_sat = channel.anchors_of(node);
        let must_sat = balance_sat - fee_sat - anchors_sat - i128::from(swept_sat);
        if i128::from(recovered_sat) != must_sat {
            return Err(format!(
                "{name} recovered {recovered_sat} sat from channel {index}, and {must_sat} are due: {balance_sat} sat \
                 less {fee_sat} for closing, {anchors_sat} in anchors and {swept_sat} for sweeps"
            ));
        }
        Ok(())
    }

    /// Given + received - paid - fees = wallet + anchors, to the millisatoshi.
    fn check_sum(&self, node: usize, of: &Node) -> Result<(), String> {
        let sum = |part: &dyn Fn(&Channel) -> i128| -> i128 { self.channels.iter().map(part).sum() };
        let pushed = |is_funder: bool| {
            sum(&|channel| {
                let is_asked_for = (channel.dealings.funder == node) == is_funder;
                if is_asked_for { channel.dealings.push_msat.into() } else { 0 }
            })
        };
        let received_msat = pushed(false) + sum(&|channel| channel.dealings.paid_msat[1 - node].into());
        let paid_msat = pushed(true) + sum(&|channel| channel.dealings.paid_msat[node].into());
        let trimmed_msat = sum(&|channel| channel.dealings.trimmed_msat(node));
        let own_sat: u64 = of.fees.iter().map(|fee| fee.sat).sum();
        let fees_sat = i128::from(own_sat) + sum(&|channel| channel.fee_sat(node));
        let anchors_sat = sum(&|channel| channel.anchors_of(node));
        let Node { name, given_sat, wallet_sat, .. } = of;
        let due_msat = i128::from(*given_sat) * 1000 + received_msat - paid_msat - trimmed_msat - fees_sat * 1000;
        if due_msat == (i128::from(*wallet_sat) + anchors_sat) * 1000 {
            return Ok(());
        }
        Err(format!(
            "{name} was given {given_sat} sat, received {received_msat} msat and paid {paid_msat} msat over channels, \
             paid {fees_sat} sat in fees and lost {trimmed_msat} msat to whole satoshi: {due_msat} msat are due, and it \
             has {wallet_sat} sat in its wallet and {anchors_sat} in anchors"
        ))
    }
}

fn check_feerate(tx: &Transaction) -> Result<(), String> {
    let Transaction { txid, fee_sat, weight } = tx;
    if fee_sat * 1000 <= FEERATE_MAX_PER_KW * weight {
        return Ok(());
    }
    Err(format!("{txid} of {weight} weight units paid {fee_sat} sat: more than {FEERATE_MAX_PER_KW} for each 1000"))
}

#[cfg(test)]
mod tests;
