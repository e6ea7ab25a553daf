//! The demo: the main job of two daemons on a real chain, played with progress shown, and every satoshi accounted for
//! at its end; then five daemons that pay each other over one another (`routes`); then a cheater and a watchtower (`watch`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use bitcoin::Amount;
use millrace_rpc::v1::{ChannelState, CloseChannelRequest, InvoiceStatus, ListInvoicesRequest, close_channel_progress};
use serde_json::json;

use crate::accounts::{self, Played};
use crate::books::{Books, Broadcast, Dealings};
use crate::network::{Error, Network, random_key, wait_for, whole_page};
use crate::pay_stream::{Outcome, PayStream, make_invoices};
use crate::report::Report;

/// What each daemon is given, in sat.
const GIVEN_SAT: u64 = 20_000_000;
/// The channel, in sat.
const CAPACITY_SAT: u64 = 10_000_000;
/// Payments outstanding each way at once.
const AT_ONCE: usize = 250;
/// Of those, dust.
const DUST: usize = 50;
/// Payments each way while a daemon is killed.
const UNDER_FIRE: usize = 150;
/// The delay on one's own outputs after closing alone, in blocks: short, so that the demo need not mine for days.
const TO_SELF_DELAY: u32 = 24;
/// A payment may take so long, restarts of a daemon included.
const PAYMENT_LIMIT: Duration = Duration::from_secs(60);

const ALICE: usize = 0;
const BOB: usize = 1;

/// Plays the demo on a network of its own.
pub struct Demo {
    network: Network,
    from_height: u32,
    /// Every channel so far; the last is the one that is open, if any is.
    played: Vec<Played>,
    /// What the end was settled by.
    books: Option<Books>,
    figures: Figures,
}

/// What was seen, by name.
type Figures = BTreeMap<&'static str, serde_json::Value>;

/// Plays it. The network is returned if it came to be, whatever happened then.
pub async fn play(report: &mut Report) -> Option<Demo> {
    report.begin("start bitcoind and two daemons");
    let started = Demo::start().await;
    report.end(&started.as_ref().map(|demo| demo.greeting()).map_err(|error| error.to_string()));
    let mut demo = started.ok()?;
    demo.story(report).await;
    if report.is_ok() {
        demo.figures.extend(routes::play(report).await);
    }
    if report.is_ok() {
        demo.figures.extend(watch::play(report).await);
    }
    Some(demo)
}

macro_rules! step {
    ($report:ident, $name:expr, $work:expr) => {{
        $report.begin($name);
        let result: Result<String, Error> = $work.await;
        $report.end(&result);
        if result.is_err() {
            return;
        }
    }};
}

// Behind the macro, which it uses.
mod routes;
mod watch;

impl Demo {
    async fn start() -> Result<Self, Error> {
        let mut network = tokio::task::block_in_place(Network::start)?;
        for name in ["alice", "bob"] {
            let index = network.add(name);
            network.nodes[index].argument("--channel-to-self-delay-blocks");
            network.nodes[index].argument(&TO_SELF_DELAY.to_string());
        }
        for index in [ALICE, BOB] {
            network.nodes[index].start().await?;
        }
        let from_height = tokio::task::block_in_place(|| network.bitcoind.height())?;
        Ok(Self { network, from_height, played: Vec::new(), books: None, figures: BTreeMap::new() })
    }

    fn greeting(&self) -> String {
        let name = |index: usize| {
            let node = &self.network.nodes[index];
            format!("{} {}…", node.name, &hex::encode(node.node_id())[..12])
        };
        format!("{} and {}", name(ALICE), name(BOB))
    }

    async fn story(&mut self, report: &mut Report) {
        step!(report, "fund wallets", self.fund());
        step!(report, "connect", self.connect());
        step!(report, "open a channel", self.open());
        step!(report, "pay one invoice each way", self.pay_singles());
        step!(report, "pay 250 each way at once, 50 of them dust", self.pay_at_once());
        step!(report, "kill -9 bob in the middle of payments", self.pay_under_fire());
        step!(report, "close together", self.close_together());
        step!(report, "open again", self.open());
        step!(report, "pay on the new channel", self.pay_singles());
        step!(report, "close alone and sweep", self.close_alone());
        step!(report, "account for every satoshi", self.account());
    }

    async fn fund(&mut self) -> Result<String, Error> {
        for node in [ALICE, BOB] {
            // Several coins: the anchors' reserve must not lock all there is.
            for _ in 0..2 {
                self.network.fund(node, Amount::from_sat(GIVEN_SAT / 2)).await?;
            }
        }
        Ok(format!("{GIVEN_SAT} sat each"))
    }

    async fn connect(&mut self) -> Result<String, Error> {
        self.network.connect(ALICE, BOB).await?;
        Ok(String::new())
    }

    async fn open(&mut self) -> Result<String, Error> {
        let push_msat = CAPACITY_SAT / 2 * 1000;
        let channel_id = self.network.open(ALICE, BOB, CAPACITY_SAT, push_msat).await?;
        let told = format!("{}… of {CAPACITY_SAT} sat, half of it bob's", &hex::encode(&channel_id)[..12]);
        let dealings = Dealings { funder: ALICE, capacity_sat: CAPACITY_SAT, push_msat, paid_msat: [0; 2] };
        self.played.push(Played { channel_id, dealings, broadcast: None });
        Ok(told)
    }

    /// The channel that is open.
    async fn open_channel(&self, node: usize) -> Result<millrace_rpc::v1::Channel, Error> {
        let channels = self.network.channels(node).await?;
        let found = channels.into_iter().find(|channel| channel.state() == ChannelState::Normal);
        found.ok_or_else(|| Error::Wrong(format!("{} has no open channel", self.network.nodes[node].name)))
    }

    // --- payments ---

    async fn pay_singles(&mut self) -> Result<String, Error> {
        let mut took = Vec::new();
        for (from, to, amount) in [(ALICE, BOB, 250_000_000), (BOB, ALICE, 123_456_789)] {
            let invoices = make_invoices(&self.network.nodes[to].client()?, &[amount], "one").await?;
            let mut stream = PayStream::open(&self.network.nodes[from]).await?;
            stream.pay(0, invoices[0].clone(), random_key()).await?;
            match stream.next().await? {
                Some((_, Outcome::Paid, time)) => took.push(time.as_secs_f64() * 1000.0),
                other => return Err(Error::Wrong(format!("the payment came to {other:?}"))),
            }
            self.count(from, amount);
        }
        self.check_balances().await?;
        Ok(format!("{:.1} ms and {:.1} ms", took[0], took[1]))
    }

    fn count(&mut self, from: usize, amount_msat: u64) {
        self.last_played().dealings.paid_msat[from] += amount_msat;
    }

    fn last_played(&mut self) -> &mut Played {
        self.played.last_mut().expect("the story opens a channel before it pays or closes")
    }

    /// Ever paid by a node.
    fn paid_msat(&self, by: usize) -> u64 {
        self.played.iter().map(|played| played.dealings.paid_msat[by]).sum()
    }

    async fn pay_at_once(&mut self) -> Result<String, Error> {
        let amounts: Vec<u64> = (0..AT_ONCE)
            .map(|index| if index < DUST { 100_000 + index as u64 } else { 1_000_000 + index as u64 })
            .collect();
        let begun = std::time::Instant::now();
        let mut peak = 0;
        let mut streams = Vec::new();
        for (from, to) in [(ALICE, BOB), (BOB, ALICE)] {
            let invoices = make_invoices(&self.network.nodes[to].client()?, &amounts, "at once").await?;
            streams.push((PayStream::open(&self.network.nodes[from]).await?, invoices));
        }
        for (stream, invoices) in &mut streams {
            for (id, invoice) in (0..).zip(invoices.drain(..)) {
                stream.pay(id, invoice, random_key()).await?;
            }
            peak += stream.outstanding();
        }
        let most_htlcs = Cell::new(0);
        let paid = async {
            for (stream, _) in &mut streams {
                all_paid(stream, AT_ONCE).await?;
            }
            Ok::<(), Error>(())
        };
        tokio::select! {
            paid = paid => paid?,
            failed = self.watch_htlcs(&most_htlcs) => return Err(failed),
        }
        let seconds = begun.elapsed().as_secs_f64();
        // As much each way: the balances are what they were.
        [ALICE, BOB].into_iter().for_each(|from| self.count(from, amounts.iter().sum()));
        self.check_balances().await?;
        self.figures.insert("outstanding_at_once", json!(peak));
        self.figures.insert("most_htlcs_seen", json!(most_htlcs.get()));
        Ok(format!(
            "{} payments, {peak} asked for before the first was counted, up to {} HTLCs seen in the channel, {seconds:.1} s",
            2 * AT_ONCE,
            most_htlcs.get()
        ))
    }

    /// Notes the most HTLCs that Alice's channel is seen to hold. Ends only if it cannot be looked at.
    async fn watch_htlcs(&self, most: &Cell<u32>) -> Error {
        loop {
            match self.open_channel(ALICE).await {
                Ok(channel) => most.set(most.get().max(channel.offered_htlcs + channel.received_htlcs)),
                Err(error) => return error,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Payments both ways; Bob is killed among them and comes back. Every payment is asked for again with its own
    /// key, so that none can be made twice, until its outcome is known.
    async fn pay_under_fire(&mut self) -> Result<String, Error> {
        let amounts: Vec<u64> = (0..UNDER_FIRE as u64).map(|index| 2_000_000 + index).collect();
        let mut orders = Vec::new();
        for (from, to) in [(ALICE, BOB), (BOB, ALICE)] {
            let invoices = make_invoices(&self.network.nodes[to].client()?, &amounts, "under fire").await?;
            orders.push((from, invoices.into_iter().map(|invoice| (invoice, random_key())).collect::<Vec<_>>()));
        }
        let mut streams = Vec::new();
        for (from, order) in &orders {
            let mut stream = PayStream::open(&self.network.nodes[*from]).await?;
            for (id, (invoice, key)) in (0..).zip(order) {
                stream.pay(id, invoice.clone(), key.clone()).await?;
            }
            streams.push(stream);
        }
        // Some are through, others on their way.
        for _ in 0..20 {
            streams[0].next().await?;
        }
        let in_flight =
            self.network.channels(ALICE).await?.iter().map(|c| c.offered_htlcs + c.received_htlcs).sum::<u32>();
        self.network.nodes[BOB].kill9()?;
        drop(streams);
        self.network.nodes[BOB].start().await?;
        let channel_id = self.open_channel(ALICE).await?.channel_id;
        self.network.wait_until_usable(ALICE, &channel_id).await?;
        self.network.wait_until_usable(BOB, &channel_id).await?;
        let mut failed = 0;
        for (from, order) in orders {
            for (index, outcome) in self.outcomes(from, &order).await? {
                match outcome {
                    Outcome::Paid => self.count(from, amounts[index]),
                    Outcome::Failed(_) => failed += 1,
                    Outcome::Refused(why) => return Err(Error::Wrong(format!("a payment was refused: {why}"))),
                }
            }
        }
        self.wait_until_at_rest().await?;
        self.check_balances().await?;
        self.check_invoices().await?;
        if in_flight == 0 {
            return Err(Error::Wrong("nothing was in flight when it died: it was no kill in the middle".to_owned()));
        }
        if failed > UNDER_FIRE {
            return Err(Error::Wrong(format!("{failed} of {} payments failed", 2 * UNDER_FIRE)));
        }
        self.figures.insert("in_flight_at_kill", json!(in_flight));
        Ok(format!(
            "{in_flight} HTLCs in flight when it died; {} paid, {failed} failed, none twice",
            2 * UNDER_FIRE - failed
        ))
    }

    /// Asks for the same payments again, with the same keys: what has become of each.
    async fn outcomes(&self, from: usize, order: &[(String, String)]) -> Result<Vec<(usize, Outcome)>, Error> {
        let mut stream = PayStream::open(&self.network.nodes[from]).await?;
        for (id, (invoice, key)) in (0..).zip(order) {
            stream.pay(id, invoice.clone(), key.clone()).await?;
        }
        let mut outcomes = Vec::new();
        while outcomes.len() < order.len() {
            let answer = tokio::time::timeout(PAYMENT_LIMIT, stream.next()).await;
            let answer =
                answer.map_err(|_| Error::Wrong(format!("{} payments never end", order.len() - outcomes.len())))?;
            let Some((id, outcome, _)) = answer? else {
                return Err(Error::Wrong("the payment stream ended early".to_owned()));
            };
            outcomes.push((id as usize, outcome));
        }
        Ok(outcomes)
    }

    async fn wait_until_at_rest(&self) -> Result<(), Error> {
        self.network
            .wait("no HTLC in flight", async || {
                let mut htlcs = 0;
                for node in [ALICE, BOB] {
                    let channels = self.network.channels(node).await?;
                    htlcs += channels.iter().map(|channel| channel.offered_htlcs + channel.received_htlcs).sum::<u32>();
                }
                Ok(if htlcs == 0 { Ok(()) } else { Err(format!("{htlcs} are")) })
            })
            .await
    }

    /// Both daemons say the same of the channel, and it is what the payments come to, to the millisatoshi.
    async fn check_balances(&self) -> Result<(), Error> {
        let dealings = self.played.last().expect("the story opens a channel before it pays").dealings;
        for (node, other) in [(ALICE, BOB), (BOB, ALICE)] {
            let (local, remote) = (dealings.balance_msat(node), dealings.balance_msat(other));
            let name = self.network.nodes[node].name.clone();
            self.network
                .wait(&format!("{name} with {local} msat"), async || {
                    let channel = self.open_channel(node).await?;
                    let has = (i128::from(channel.local_msat), i128::from(channel.remote_msat));
                    Ok(if has == (local, remote) {
                        Ok(())
                    } else {
                        Err(format!("it says {} and {} msat", has.0, has.1))
                    })
                })
                .await?;
        }
        Ok(())
    }

    /// What the invoices received is what the payers paid, by each payee's own list.
    async fn check_invoices(&self) -> Result<(), Error> {
        for (node, paid) in [(ALICE, self.paid_msat(BOB)), (BOB, self.paid_msat(ALICE))] {
            let mut page = whole_page();
            let mut received: u64 = 0;
            loop {
                let request = ListInvoicesRequest { page: Some(page), status: InvoiceStatus::Paid.into() };
                let answer = self.network.nodes[node].client()?.invoices.list(request).await;
                let answer = answer.map_err(|status| self.network.nodes[node].call_failed(&status))?.into_inner();
                received += answer.invoices.iter().filter_map(|invoice| invoice.received_msat).sum::<u64>();
                if answer.next_cursor.is_empty() {
                    break;
                }
                page = millrace_rpc::v1::Page { cursor: answer.next_cursor, ..whole_page() };
            }
            if received != paid {
                let name = &self.network.nodes[node].name;
                return Err(Error::Wrong(format!("{name}'s invoices received {received} msat, and {paid} were paid")));
            }
        }
        Ok(())
    }

    // --- closing ---

    async fn close_together(&mut self) -> Result<String, Error> {
        let channel = self.open_channel(ALICE).await?;
        let request = CloseChannelRequest {
            idempotency_key: random_key(),
            channel_id: channel.channel_id.clone(),
            ..CloseChannelRequest::default()
        };
        self.close(request).await?;
        self.network.mine(110).await?;
        self.wait_until_closed(&channel.channel_id).await?;
        Ok("both sides signed".to_owned())
    }

    /// Closes, notes what is first said of the closing transaction, and waits until it is in the mempool.
    async fn close(&mut self, request: CloseChannelRequest) -> Result<(), Error> {
        let node = &self.network.nodes[ALICE];
        let answer = node.client()?.channels.close(request).await;
        let mut progress = answer.map_err(|status| node.call_failed(&status))?.into_inner();
        let told = loop {
            let step = tokio::time::timeout(PAYMENT_LIMIT, progress.message()).await;
            let step = step.map_err(|_| Error::Wrong("closing makes no progress".to_owned()))?;
            let step = step.map_err(|status| node.call_failed(&status))?;
            let Some(step) = step else { return Err(Error::Wrong("closing ended without a word".to_owned())) };
            if let Some(close_channel_progress::Stage::Broadcast(broadcast)) = step.stage {
                break broadcast;
            }
        };
        let (txid, fee_sat, local_sat) = (hex::encode(told.txid), told.fee_sat, told.local_sat);
        self.last_played().broadcast = Some(Broadcast { by: ALICE, txid, fee_sat, local_sat });
        self.network.wait_for_mempool(1).await
    }

    async fn wait_until_closed(&self, channel_id: &[u8]) -> Result<(), Error> {
        for node in [ALICE, BOB] {
            self.network
                .wait(&format!("{}'s channel closed", self.network.nodes[node].name), async || {
                    let state = self.network.channel(node, channel_id).await?.state();
                    Ok(if state == ChannelState::Closed { Ok(()) } else { Err(format!("it is {state:?}")) })
                })
                .await?;
        }
        Ok(())
    }

    async fn close_alone(&mut self) -> Result<String, Error> {
        let channel = self.open_channel(ALICE).await?;
        let request = CloseChannelRequest {
            idempotency_key: random_key(),
            channel_id: channel.channel_id.clone(),
            force: true,
            ..CloseChannelRequest::default()
        };
        self.close(request).await?;
        // The commitment, then the sweeps as they become mature, then their burial.
        for _ in 0..TO_SELF_DELAY + 6 {
            self.network.mine(1).await?;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        self.network.mine(110).await?;
        self.wait_until_closed(&channel.channel_id).await?;
        Ok(format!("swept after {TO_SELF_DELAY} blocks"))
    }

    // --- the end ---

    async fn account(&mut self) -> Result<String, Error> {
        let (settled, settled_books) = (Cell::new(None), RefCell::new(None));
        wait_for("the accounts to agree", Duration::from_secs(20), async || {
            let (accounts, books) = accounts::settle(&self.network, self.from_height, &self.played).await?;
            settled.set(Some(accounts));
            let missing = accounts.missing_sat();
            if missing != 0 {
                return Ok(Err(format!("{missing} sat are missing: {accounts:?}")));
            }
            let checked = books.check();
            *settled_books.borrow_mut() = Some(books);
            Ok(checked)
        })
        .await?;
        let accounts = settled.get().unwrap_or_default();
        self.figures.insert("accounts", json!(accounts));
        self.books = settled_books.take();
        Ok(format!(
            "{} sat given = {} in wallets + {} in channels + {} in fees + {} in unspent anchors + {} of trimmed msat; each \
             node has what its own books say",
            accounts.given_sat,
            accounts.wallets_sat,
            accounts.channels_sat,
            accounts.fees_sat,
            accounts.anchors_sat,
            accounts.trimmed_msat / 1000
        ))
    }

    /// The network, to be left running or stopped.
    pub fn into_network(self) -> Network {
        self.network
    }

    /// Each node's books at the end, if it came to that.
    #[must_use]
    pub const fn books(&self) -> Option<&Books> {
        self.books.as_ref()
    }

    /// Figures for the JSON object.
    #[must_use]
    pub const fn figures(&self) -> &BTreeMap<&'static str, serde_json::Value> {
        &self.figures
    }
}

async fn all_paid(stream: &mut PayStream, count: usize) -> Result<(), Error> {
    for _ in 0..count {
        let answer = tokio::time::timeout(PAYMENT_LIMIT, stream.next()).await;
        match answer.map_err(|_| Error::Wrong(format!("{} payments never end", stream.outstanding())))?? {
            Some((_, Outcome::Paid, _)) => {}
            other => return Err(Error::Wrong(format!("a payment came to {other:?}"))),
        }
    }
    Ok(())
}
