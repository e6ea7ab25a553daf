//! Four whole nodes in a line, Alice who pays, Bob and Carol who forward, Dave who is paid, and between each two of them a
//! tap. Alice knows the others by a map that the test draws.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::Network;
use bitcoin::hashes::{Hash as _, sha256};
use millrace_chain::SyncState;
use millrace_routing::SharedSecret;
use millrace_routing::failure::{Decoded, FailureMessage, decode_attributed};
use millrace_routing::graph::{Direction, NodeId, Policy};
use millrace_routing::invoice::{Description, Invoice, NewInvoice};
use millrace_routing::map::{Map, Usable};
use millrace_routing::onion::{Incoming, PeelFault, PeeledHop, peel};
use millrace_rpc::v1;
use millrace_wire::message::{UpdateAddHtlc, UpdateFailHtlc, UpdateFailMalformedHtlc};
use millrace_wire::{
    BlockHeight, ChannelId, ChannelUpdate, CltvDelta, CltvExpiry, HtlcId, Message, Msat, OnionPacket, ShortChannelId,
};
use millraced::payments::FIRST_PAUSE_MS;
use millraced::policy::ForwardPolicy;

use crate::support::tap::{Tap, To};
use crate::support::{FakeChain, Homes, eventually};
use crate::world::{Differences, World, open_between, rand_bytes, start_with};

/// The nodes by their places.
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const C: usize = 2;
pub(crate) const D: usize = 3;

/// Blocks that Dave's invoices ask for.
pub(crate) const FINAL: u32 = 42;
/// Parts of a payment wait so long for the others.
const MPP_TIMEOUT_MS: u64 = 400;
/// What each channel holds, in satoshi: less from hop to hop, so that each forwarder can be asked for too much.
const CAPACITIES: [u64; 3] = [10_000_000, 4_000_000, 3_000_000];

pub(crate) struct Four {
    pub(crate) chain: FakeChain,
    pub(crate) nodes: [World; 4],
    pub(crate) taps: [Tap; 3],
    pub(crate) channels: [ChannelId; 3],
    _homes: Homes<4>,
}

/// What an HTLC carries, and when it expires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Htlc {
    pub(crate) amount: Msat,
    pub(crate) expiry: CltvExpiry,
}

/// What the sender is told of an HTLC that failed, and what its onion said.
#[derive(Debug)]
pub(crate) struct Told {
    /// Who says so.
    pub(crate) by: usize,
    pub(crate) message: FailureMessage,
    /// How many hops vouch for how long they held it.
    pub(crate) held_by: usize,
    /// What was to come in at each node.
    pub(crate) came: Vec<Htlc>,
    /// The channel that each node was to pass it on over.
    pub(crate) named: Vec<ShortChannelId>,
}

/// Alice's map: the channels from Bob to Carol and from Carol to Dave, as she believes them to be.
pub(crate) type Drawn = [Usable; 2];

impl Four {
    /// Payments that fail for the moment are tried again soon.
    pub(crate) async fn new() -> Self {
        Self::with_pause(FIRST_PAUSE_MS / 10).await
    }

    pub(crate) async fn with_pause(first_pause_ms: u64) -> Self {
        let chain = FakeChain::new();
        let homes = Homes::new();
        let [a, b, c, d] = &*homes;
        let differences = Differences { mpp_timeout_ms: MPP_TIMEOUT_MS, first_pause_ms, ..Differences::default() };
        let nodes = [
            start_with(a.path(), &chain, differences).await,
            start_with(b.path(), &chain, differences).await,
            start_with(c.path(), &chain, differences).await,
            start_with(d.path(), &chain, differences).await,
        ];
        let tap = async |left: usize| {
            let (left, right) = (&nodes[left], &nodes[left + 1]);
            let tap = Tap::between(left.node_key, right.node_key, right.lightning).await;
            left.node.peers().connect(right.node_id, &tap.address.to_string()).await.unwrap();
            tap
        };
        let taps = [tap(A).await, tap(B).await, tap(C).await];
        let mut channels = [ChannelId([0; 32]); 3];
        for (left, capacity) in CAPACITIES.into_iter().enumerate() {
            channels[left] = open_between(&nodes[left], &nodes[left + 1], &chain, capacity, 0).await;
        }
        let four = Self { chain, nodes, taps, channels, _homes: homes };
        four.tell_height();
        four.draw(|_| {});
        four
    }

    pub(crate) async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }

    /// Another channel in place of one that is gone.
    pub(crate) async fn open_again(&mut self, left: usize) {
        let (from, to) = (&self.nodes[left], &self.nodes[left + 1]);
        self.channels[left] = open_between(from, to, &self.chain, CAPACITIES[left], 0).await;
        self.tell_height();
        self.draw(|_| {});
    }

    pub(crate) fn height(&self) -> u32 {
        self.chain.height()
    }

    /// All know where the chain is.
    pub(crate) fn tell_height(&self) {
        for node in &self.nodes {
            node.sync.send_replace(SyncState::Synced { height: self.height() });
        }
    }

    /// What a node calls its channel with the next one.
    pub(crate) fn alias(&self, left: usize) -> ShortChannelId {
        self.nodes[left].node.registry().snapshot(self.channels[left]).unwrap().local_alias
    }

    /// Draws Alice's map: as it is, but for what the test changes.
    pub(crate) fn draw(&self, change: impl FnOnce(&mut Drawn)) {
        let mut drawn = [B, C].map(|left| {
            let [from, to] = [left, left + 1].map(|node| NodeId::from(self.nodes[node].node_id));
            let usual = ForwardPolicy::default();
            Usable {
                short_channel_id: self.alias(left),
                direction: Direction::FromLesser,
                from,
                to,
                policy: Policy {
                    is_disabled: false,
                    cltv_expiry_delta: usual.cltv_delta.0,
                    htlc_minimum: Msat(1),
                    htlc_maximum: Msat(10_000_000_000),
                    fee_base_msat: u32::try_from(usual.fee_base.0).unwrap(),
                    fee_proportional_millionths: usual.fee_ppm,
                },
                capacity: Msat(10_000_000_000),
            }
        });
        change(&mut drawn);
        for channel in &mut drawn {
            channel.direction = if channel.from < channel.to { Direction::FromLesser } else { Direction::FromGreater };
        }
        self.nodes[A].network.publish(Arc::new(Map::of_channels(drawn.to_vec())));
    }

    // --- invoices ---

    /// An invoice of Dave's.
    pub(crate) async fn invoice(&self, change: impl FnOnce(&mut v1::CreateInvoiceRequest)) -> Invoice {
        let mut request = v1::CreateInvoiceRequest {
            idempotency_key: hex::encode(rand_bytes()),
            no_hints: true,
            ..v1::CreateInvoiceRequest::default()
        };
        change(&mut request);
        let made = self.nodes[D].invoices().await.create(request).await.unwrap().into_inner().invoice.unwrap();
        Invoice::parse(&made.bolt11).unwrap()
    }

    /// Dave's word for something else than what he has in his books.
    pub(crate) fn forge(&self, amount: u64, of: &Invoice, change: impl FnOnce(&mut NewInvoice)) -> String {
        let mut invoice = NewInvoice {
            network: Network::Regtest,
            amount: Some(Msat(amount)),
            payment_hash: of.payment_hash,
            payment_secret: of.payment_secret.clone(),
            description: Description::Text("tea".to_owned()),
            timestamp: SystemTime::now().duration_since(UNIX_EPOCH).unwrap(),
            expiry: Duration::from_secs(3_600),
            min_final_cltv: CltvDelta(u16::try_from(FINAL).unwrap()),
            basic_mpp: true,
            payment_metadata: None,
            route_hints: Vec::new(),
        };
        change(&mut invoice);
        invoice.sign(&self.nodes[D].node_key).unwrap()
    }

    // --- payments ---

    /// Alice pays, in one part: how it is shown when it is over.
    pub(crate) async fn pay(&self, bolt11: &str) -> v1::Payment {
        let request = v1::PayRequest { bolt11: bolt11.to_owned(), max_parts: 1, ..v1::PayRequest::default() };
        let payment_hash = self.nodes[A].pay(request).await.unwrap().payment_hash;
        let request = v1::GetPaymentRequest { payment_hash };
        self.nodes[A].payments_client().await.get(request).await.unwrap().into_inner().payment.unwrap()
    }

    /// An ordinary payment goes through.
    pub(crate) async fn pay_well(&self, amount: u64) {
        self.draw(|_| {});
        let invoice = self.invoice(|wanted| wanted.amount_msat = Some(amount)).await;
        let paid = self.pay(&self.forge(amount, &invoice, |_| {})).await;
        assert_eq!((paid.status(), paid.attempts.len()), (v1::PaymentStatus::Succeeded, 1), "{:?}", paid.attempts);
        self.at_rest().await;
    }

    /// Waits until no channel holds an HTLC.
    pub(crate) async fn at_rest(&self) {
        for (left, channel) in self.channels.iter().enumerate() {
            for node in [left, left + 1] {
                let what = format!("nothing is in flight between {left} and {}", left + 1);
                eventually(&what, || {
                    let snapshot = self.nodes[node].node.registry().snapshot(*channel)?;
                    (snapshot.htlcs.is_empty() && snapshot.is_usable()).then_some(())
                })
                .await;
            }
        }
    }

    // --- policies ---

    /// Sets a forwarder's terms, without the time in which those before are taken, and waits until it says so.
    pub(crate) async fn set_policy(&self, left: usize, policy: ForwardPolicy) {
        self.put_policy(left, policy);
        self.wait_for_update(left, |update| {
            let said = &update.parsed().contents;
            said.htlc_minimum_msat == policy.htlc_minimum.0
                && policy.htlc_maximum.is_none_or(|most| said.htlc_maximum_msat == most.0)
        })
        .await;
    }

    /// The usual terms again.
    pub(crate) async fn reset_policy(&self, left: usize) {
        let before = self.nodes[left].payments.policies().of(&self.channels[left]);
        self.put_policy(left, ForwardPolicy::default());
        self.wait_for_update(left, |update| {
            let said = &update.parsed().contents;
            said.htlc_minimum_msat < before.htlc_minimum.0.max(2)
                && before.htlc_maximum.is_none_or(|most| said.htlc_maximum_msat != most.0)
        })
        .await;
    }

    fn put_policy(&self, left: usize, policy: ForwardPolicy) {
        for _ in 0..2 {
            self.nodes[left].payments.policies().set(self.channels[left], policy);
        }
    }

    /// Waits until a node says this of its channel with the next.
    pub(crate) async fn wait_for_update(&self, left: usize, is_so: impl Fn(&ChannelUpdate) -> bool) {
        let alias = self.alias(left);
        eventually("the node says so", || {
            let update = read_update(&self.nodes[left].announcer.update_of(alias)?)?;
            is_so(&update).then_some(())
        })
        .await;
    }

    // --- what Alice is told ---

    /// The first HTLC that Alice has offered since, as it came back. Each layer of its onion is opened with the key of the
    /// node that it is for.
    pub(crate) async fn told(&self, (heard, said): (usize, usize)) -> Told {
        let (added, removal) = eventually("Alice's HTLC comes back", || {
            let added = self.taps[A].heard(heard).iter().find_map(added)?.clone();
            let removal = self.taps[A].said(said).iter().find_map(|one| removed(one, added.id))?;
            Some((added, removal))
        })
        .await;
        let Opened { secrets, came, named } = self.open_all(&added);
        let (decoded, held_by) = match removal {
            Removed::Fail(fail) => {
                let read = decode_attributed(&secrets, &fail.reason, fail.attribution.as_deref());
                (read.failure.unwrap(), read.hold_times.hops.len())
            }
            Removed::Malformed(fail) => {
                let message = FailureMessage::from_malformed(fail.failure_code, fail.sha256_of_onion);
                (Decoded { hop: 0, message }, 0)
            }
        };
        Told { by: decoded.hop + 1, message: decoded.message, held_by, came, named }
    }

    fn open_all(&self, added: &UpdateAddHtlc) -> Opened {
        let mut opened = Opened { secrets: Vec::new(), came: vec![], named: vec![] };
        let (mut onion, mut htlc) = (added.onion.clone(), Htlc { amount: added.amount, expiry: added.cltv_expiry });
        for node in &self.nodes[B..] {
            opened.came.push(htlc);
            let incoming = Incoming {
                packet: &onion,
                payment_hash: &added.payment_hash,
                amount: htlc.amount,
                cltv_expiry: htlc.expiry,
                height: BlockHeight(0),
                path_key: None,
            };
            match peel(&node.node_key, &incoming) {
                Ok(peeled) => {
                    opened.secrets.push(peeled.shared_secret);
                    let PeeledHop::Forward(forward) = peeled.hop else { break };
                    opened.named.push(forward.next);
                    htlc = Htlc { amount: forward.amount, expiry: forward.expiry };
                    onion = forward.packet;
                }
                Err(PeelFault::Fail { shared_secret, .. }) => {
                    opened.secrets.push(shared_secret);
                    break;
                }
                Err(PeelFault::Malformed { .. }) => break,
            }
        }
        opened
    }

    /// The hash of the onion that a node was given last.
    pub(crate) fn onion_given_to(&self, node: usize) -> [u8; 32] {
        let said = self.taps[node - 1].said(0);
        let onion = said.iter().rev().find_map(added).map(|added| added.onion.clone()).expect("it was given one");
        sha256::Hash::hash(&onion.0).to_byte_array()
    }
}

struct Opened {
    secrets: Vec<SharedSecret>,
    came: Vec<Htlc>,
    named: Vec<ShortChannelId>,
}

enum Removed {
    Fail(UpdateFailHtlc),
    Malformed(UpdateFailMalformedHtlc),
}

/// An HTLC that goes to the right.
fn added((to, message): &(To, Message)) -> Option<&UpdateAddHtlc> {
    match message {
        Message::UpdateAddHtlc(add) if *to == To::Right => Some(add),
        _ => None,
    }
}

fn removed((to, message): &(To, Message), htlc: HtlcId) -> Option<Removed> {
    match message {
        Message::UpdateFailHtlc(fail) if *to == To::Left && fail.id == htlc => Some(Removed::Fail(fail.clone())),
        Message::UpdateFailMalformedHtlc(fail) if *to == To::Left && fail.id == htlc => {
            Some(Removed::Malformed(fail.clone()))
        }
        _ => None,
    }
}

/// A node's own layer off an onion that was given to it.
pub(crate) fn secret_of(node: &secp256k1::SecretKey, add: &UpdateAddHtlc) -> SharedSecret {
    let incoming = Incoming {
        packet: &add.onion,
        payment_hash: &add.payment_hash,
        amount: add.amount,
        cltv_expiry: add.cltv_expiry,
        height: BlockHeight(0),
        path_key: None,
    };
    match peel(node, &incoming) {
        Ok(peeled) => peeled.shared_secret,
        Err(PeelFault::Fail { shared_secret, .. }) => shared_secret,
        Err(fault @ PeelFault::Malformed { .. }) => panic!("{fault}"),
    }
}

/// A whole `channel_update`.
pub(crate) fn read_update(message: &[u8]) -> Option<ChannelUpdate> {
    match Message::decode(message) {
        Ok(millrace_wire::Decoded::Message(Message::ChannelUpdate(update))) => Some(*update),
        _ => None,
    }
}

/// An onion with one byte changed.
pub(crate) fn spoil(onion: &mut OnionPacket, at: usize) {
    onion.0[at] ^= 0x11;
}
