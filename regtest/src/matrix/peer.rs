//! The other end of a channel with a daemon, in this process: the pure state machine behind a real connection.
//!
//! What it remembers it can be asked for as of any moment (`snapshot`), and what was true then can be published later.

use std::time::Duration;

use bitcoin::Transaction;
use millrace_channel::channel::{Channel, Policy};
use millrace_channel::curve::Serial;
use millrace_channel::effect::{Effect, Effects, Fact};
use millrace_channel::input::{ChainEvent, Command, LinkEvent, LinkFeatures, Millis, Offer};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::ledger::htlc::Origin;
use millrace_channel::phase::opening::{
    LocalParams, OpenRequest, Opening, OpeningEvent, OpeningFeatures, OpeningLimits, Surroundings,
};
use millrace_channel::terms::{ChannelType, CommitmentFormat};
use millrace_wire::message::Pong;
use millrace_wire::{
    BlockHeight, ChainHash, ChannelId, CltvExpiry, CommitmentNumber, Features, FeeratePerKw, HtlcId, Message, Msat,
    OnionPacket, PaymentHash, Preimage, PublicKey, Sat, ShortChannelId,
};
use secp256k1::{SECP256K1, SecretKey};
use tokio::time::timeout;

use super::link::{Link, random_secret};
use crate::network::Error;

/// How long the daemon may take for an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// The delay that this side asks of the daemon's outputs: short, so that the matrix is.
pub(super) const DAEMON_DELAY: u16 = 6;

/// What a channel is opened with.
#[derive(Clone, Copy)]
pub(super) struct Opens {
    pub(super) capacity: Sat,
    pub(super) push: Msat,
    pub(super) format: CommitmentFormat,
    pub(super) feerate: FeeratePerKw,
}

/// One peer and its one channel.
pub(super) struct Peer {
    key: SecretKey,
    keys: ChannelKeys,
    link: Option<Link>,
    opening: Option<Opening>,
    channel: Option<Channel>,
    fx: Effects,
    facts: Vec<Fact>,
    /// The daemon's commitment points, by the number of the commitment.
    points: Vec<PublicKey>,
    /// What the daemon complained of.
    said: Vec<String>,
    height: BlockHeight,
    funding: Option<(bitcoin::ScriptBuf, Sat)>,
}

/// What a peer holds just before it takes the daemon's signature for its next commitment, and just after.
pub(super) struct Withheld {
    pub(super) before: Vec<u8>,
    pub(super) after: Vec<u8>,
}

impl Peer {
    pub(super) fn new() -> Self {
        Self {
            key: random_secret(),
            keys: ChannelKeys::from_seed(&random_secret().secret_bytes()),
            link: None,
            opening: None,
            channel: None,
            fx: Effects::default(),
            facts: Vec::new(),
            points: Vec::new(),
            said: Vec::new(),
            height: BlockHeight(0),
            funding: None,
        }
    }

    // --- what others may see ---

    pub(super) fn node_id(&self) -> PublicKey {
        self.key.public_key(SECP256K1)
    }

    pub(super) const fn node_key(&self) -> &SecretKey {
        &self.key
    }

    pub(super) const fn keys(&self) -> &ChannelKeys {
        &self.keys
    }

    pub(super) fn channel(&self) -> Result<&Channel, Error> {
        self.channel.as_ref().ok_or_else(|| Error::Wrong(format!("there is no channel{}", self.complaints())))
    }

    /// The facts so far.
    pub(super) fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// The daemon's point of this commitment of its.
    pub(super) fn point(&self, number: CommitmentNumber) -> Option<PublicKey> {
        self.points.get(usize::try_from(number.0).ok()?).copied()
    }

    /// What the funding transaction is to pay.
    pub(super) fn funding(&self) -> Option<&(bitcoin::ScriptBuf, Sat)> {
        self.funding.as_ref()
    }

    /// Everything that this peer holds now.
    pub(super) fn snapshot(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.channel()?.snapshot(&mut bytes);
        Ok(bytes)
    }

    fn complaints(&self) -> String {
        if self.said.is_empty() { String::new() } else { format!("; the daemon said: {}", self.said.join("; ")) }
    }

    // --- the connection ---

    pub(super) async fn connect(&mut self, address: &str, daemon: &PublicKey) -> Result<(), Error> {
        self.link = Some(Link::call(address, daemon, self.key).await?);
        if let Some(channel) = &mut self.channel {
            let ours = Features::ours(false);
            let features = LinkFeatures::negotiated(&ours, &ours);
            channel.on_link(LinkEvent::Down, &mut self.fx);
            channel.on_link(LinkEvent::Up { features }, &mut self.fx);
            self.drain().await?;
        }
        Ok(())
    }

    /// Gone, with whatever had come and was not looked at.
    pub(super) fn hang_up(&mut self) {
        self.link = None;
    }

    // --- opening ---

    /// Proposes a channel, until the funding transaction is needed.
    pub(super) async fn propose(&mut self, daemon: PublicKey, opens: Opens, height: u32) -> Result<(), Error> {
        self.height = BlockHeight(height);
        let ours = Features::ours(false);
        let request = OpenRequest {
            remote_node: daemon,
            chain_hash: ChainHash::REGTEST,
            temporary_channel_id: ChannelId(random_secret().secret_bytes()),
            funding: opens.capacity,
            push: opens.push,
            feerate: opens.feerate,
            channel_type: ChannelType { format: opens.format, scid_alias: false, zero_conf: false },
            announce: false,
            local: LocalParams { to_self_delay: DAEMON_DELAY, ..LocalParams::usual_for(opens.capacity) },
            limits: OpeningLimits::default(),
            features: OpeningFeatures::negotiated(&ours, &ours),
            keys: self.keys.clone(),
            keys_index: 0,
            local_alias: ShortChannelId(u64::from_be_bytes(first_eight(random_secret()))),
        };
        let (opening, message) = Opening::propose(request).map_err(|refusal| Error::Wrong(refusal.to_string()))?;
        self.opening = Some(opening);
        self.say(&message).await?;
        self.until("accept_channel", |peer| peer.funding.is_some()).await
    }

    /// Brings the funding transaction, until the daemon has signed. It is not broadcast here.
    pub(super) async fn fund(&mut self, tx: &Transaction, vout: u32) -> Result<(), Error> {
        let height = self.height;
        let Some(opening) = &mut self.opening else { return Err(Error::Wrong("nothing to fund".to_owned())) };
        let funded = opening.fund(tx.clone(), vout, &surroundings(height), &mut self.fx);
        funded.map_err(|refusal| Error::Wrong(refusal.to_string()))?;
        self.drain().await?;
        self.until("funding_signed", |peer| peer.channel.is_some()).await
    }

    /// The funding transaction is in a block.
    pub(super) async fn funded(&mut self, tx: &Transaction, index: u32, height: u32) -> Result<(), Error> {
        self.height = BlockHeight(height);
        let Some(channel) = &mut self.channel else { return Err(Error::Wrong("no channel was opened".to_owned())) };
        let block = bitcoin::hashes::Hash::all_zeros();
        channel.on_chain(ChainEvent::Tip { height: self.height, block }, &mut self.fx);
        channel.on_chain(ChainEvent::Confirmed { tx: std::sync::Arc::new(tx.clone()), index }, &mut self.fx);
        self.drain().await
    }

    // --- the dance ---

    /// Offers an HTLC.
    pub(super) async fn offer(
        &mut self,
        amount: Msat,
        payment_hash: PaymentHash,
        cltv_expiry: CltvExpiry,
        onion: Box<OnionPacket>,
    ) -> Result<(), Error> {
        let origin = Origin::Payment { id: random_secret().secret_bytes(), attempt: 0 };
        self.command(Command::Offer(Offer { amount, payment_hash, cltv_expiry, onion, path_key: None, origin })).await
    }

    /// Takes an HTLC of the daemon's by its preimage, off chain.
    pub(super) async fn fulfill(&mut self, id: HtlcId, preimage: Preimage) -> Result<(), Error> {
        self.command(Command::Fulfill { id, preimage, attribution: None, is_durable: false }).await
    }

    /// Fails an HTLC of the daemon's, off chain, in words that nobody can read.
    pub(super) async fn fail(&mut self, id: HtlcId) -> Result<(), Error> {
        self.command(Command::Fail { id, reason: vec![0; 292], attribution: None }).await
    }

    /// `update_fee`.
    pub(super) async fn update_fee(&mut self, feerate: FeeratePerKw) -> Result<(), Error> {
        self.command(Command::UpdateFee(feerate)).await
    }

    async fn command(&mut self, command: Command) -> Result<(), Error> {
        let Some(channel) = &mut self.channel else { return Err(Error::Wrong("no channel".to_owned())) };
        let done = channel.on_command(command, &mut self.fx);
        done.map_err(|refusal| Error::Wrong(format!("the peer's own channel refuses: {refusal}")))?;
        self.drain().await
    }

    /// Listens and answers until something is so.
    pub(super) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> Result<(), Error> {
        loop {
            self.commit().await?;
            if is_so(self) {
                return Ok(());
            }
            let message = self.next(what).await?;
            self.hear(message).await?;
        }
    }

    /// Listens until the daemon has signed this peer's next commitment, and says nothing to that: its `revoke_and_ack`
    /// does not leave.
    pub(super) async fn withhold(&mut self) -> Result<Withheld, Error> {
        loop {
            self.commit().await?;
            let message = self.next("commitment_signed").await?;
            if !matches!(message, Message::CommitmentSigned(_)) {
                self.hear(message).await?;
                continue;
            }
            let before = self.snapshot()?;
            let Some(channel) = &mut self.channel else { return Err(Error::Wrong("no channel".to_owned())) };
            let taken = channel.on_message(message, &Serial, &mut self.fx);
            taken.map_err(|fault| Error::Wrong(format!("the daemon is at fault: {fault}")))?;
            self.fx.clear();
            return Ok(Withheld { before, after: self.snapshot()? });
        }
    }

    async fn next(&mut self, what: &str) -> Result<Message, Error> {
        let complaints = self.complaints();
        let Some(link) = &mut self.link else {
            return Err(Error::Wrong(format!("{what} is waited for without a connection{complaints}")));
        };
        match timeout(ANSWER, link.hear()).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Error::Wrong(format!("the daemon hung up before {what}{complaints}"))),
            Err(_) => Err(Error::Wrong(format!("no {what} within {} s{complaints}", ANSWER.as_secs()))),
        }
    }

    async fn hear(&mut self, message: Message) -> Result<(), Error> {
        match &message {
            Message::Ping(ping) => {
                let pong = Pong { ignored_len: ping.num_pong_bytes };
                return self.say(&Message::Pong(pong)).await;
            }
            Message::Error(error) => self.said.push(format!("error: {}", error.text())),
            Message::Warning(warning) => self.said.push(format!("warning: {}", warning.text())),
            Message::AcceptChannel(accept) => self.points.push(accept.first_per_commitment_point),
            Message::ChannelReady(ready) if self.points.len() == 1 => self.points.push(ready.next_per_commitment_point),
            Message::RevokeAndAck(revoked) => self.points.push(revoked.next_per_commitment_point),
            _ => {}
        }
        let is_of_channel = message.channel_id().is_some();
        if let Some(channel) = self.channel.as_mut().filter(|_| is_of_channel) {
            let taken = channel.on_message(message, &Serial, &mut self.fx);
            taken.map_err(|fault| Error::Wrong(format!("the daemon is at fault: {fault}")))?;
        } else if let Some(opening) = self.opening.as_mut().filter(|_| is_of_channel) {
            let event = opening.on_message(message, &surroundings(self.height), &Serial, &mut self.fx);
            match event.map_err(|fault| Error::Wrong(format!("the daemon is at fault: {fault}")))? {
                Some(OpeningEvent::FundingNeeded { script_pubkey, amount }) => {
                    self.funding = Some((script_pubkey, amount));
                }
                Some(OpeningEvent::Opened(channel)) => {
                    self.channel = Some(*channel);
                    self.opening = None;
                }
                Some(OpeningEvent::Refused { text }) => {
                    return Err(Error::Wrong(format!("the daemon refuses the channel: {text}")));
                }
                None => {}
            }
        }
        self.drain().await
    }

    async fn commit(&mut self) -> Result<(), Error> {
        if let Some(channel) = &mut self.channel {
            channel.commit(Millis(0), &Serial, &mut self.fx);
        }
        self.drain().await
    }

    async fn drain(&mut self) -> Result<(), Error> {
        let fx = std::mem::take(&mut self.fx);
        for effect in fx.list {
            match effect {
                Effect::Send(message) => self.say(&message).await?,
                Effect::Fact(fact) => self.facts.push(fact),
                Effect::Disconnect(why) => self.said.push(format!("our own end hangs up: {why}")),
                Effect::Journal(_) | Effect::Broadcast(_) | Effect::Watch(_) | Effect::Claim(_) => {}
            }
        }
        Ok(())
    }

    async fn say(&mut self, message: &Message) -> Result<(), Error> {
        match &mut self.link {
            Some(link) => link.say(message).await,
            None => Ok(()),
        }
    }
}

fn surroundings(height: BlockHeight) -> Surroundings<'static> {
    Surroundings { height, policy: Policy::default(), is_taken: &|_| false }
}

fn first_eight(key: SecretKey) -> [u8; 8] {
    let bytes = key.secret_bytes();
    std::array::from_fn(|index| bytes[index])
}
