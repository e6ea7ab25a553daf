//! Closing together: `shutdown`, and both ways to agree on a transaction.

mod cut;
mod legacy;
mod shutdown;
mod simple;

use bitcoin::{ScriptBuf, Transaction};
use millrace_channel::input::{CloseOrder, Command, LinkEvent, LinkFeatures};
use millrace_channel::phase::Phase;
use millrace_channel::phase::closing::SignedClose;
use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::funding;
use millrace_channel::tx::weight::closing_weight;
use millrace_channel::{Fact, PeerFault, Reaction, Refusal};
use millrace_wire::{FeeratePerKw, Message, Msat, Sat};

use crate::support::node::{Node, Options, disconnect, exchange, pair_with};
use crate::support::script::verify_tx;

const SIMPLE: LinkFeatures = LinkFeatures { simple_close: true, shutdown_anysegwit: true };
const LEGACY: LinkFeatures = LinkFeatures { simple_close: false, shutdown_anysegwit: true };

fn p2wpkh(byte: u8) -> ScriptBuf {
    ScriptBuf::from_bytes([&[0, 20], &[byte; 20][..]].concat())
}

fn taproot(byte: u8) -> ScriptBuf {
    ScriptBuf::from_bytes([&[0x51, 32], &[byte; 32][..]].concat())
}

fn op_return() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x6a, 6, 1, 2, 3, 4, 5, 6])
}

fn p2pkh() -> ScriptBuf {
    ScriptBuf::from_bytes([&[0x76, 0xa9, 20], &[1; 20][..], &[0x88, 0xac]].concat())
}

/// Where Alice wants to be paid.
fn to_alice() -> ScriptBuf {
    p2wpkh(0xa1)
}

/// Where Bob wants to be paid.
fn to_bob() -> ScriptBuf {
    taproot(0xb0)
}

fn pair(options: Options, features: LinkFeatures) -> (Node, Node) {
    let (mut alice, mut bob) = pair_with(options, |_| {});
    reconnect(&mut alice, &mut bob, features);
    (alice, bob)
}

fn reconnect(alice: &mut Node, bob: &mut Node, features: LinkFeatures) {
    disconnect(alice, bob);
    alice.link(LinkEvent::Up { features });
    bob.link(LinkEvent::Up { features });
    exchange(alice, bob);
}

/// At this feerate, and at most twice of it.
fn try_close(node: &mut Node, script: ScriptBuf, feerate: u32) -> Result<(), Refusal> {
    let feerate = FeeratePerKw(feerate);
    node.command(Command::Close(CloseOrder { script, feerate, feerate_max: FeeratePerKw(feerate.0 * 2) }))
}

/// Alice wants to close, and Bob does as he is asked.
fn close(alice: &mut Node, bob: &mut Node, feerate_of_alice: u32, feerate_of_bob: u32) {
    try_close(alice, to_alice(), feerate_of_alice).unwrap();
    exchange(alice, bob);
    assert!(bob.facts.contains(&Fact::CloseAsked) && !alice.facts.contains(&Fact::CloseAsked));
    try_close(bob, to_bob(), feerate_of_bob).unwrap();
    exchange(alice, bob);
}

fn closes(node: &Node) -> &[SignedClose] {
    if let Phase::Closing(closes) = node.channel.phase() { closes } else { &[] }
}

/// The closes that a node can broadcast: it has, and each is valid and pays what it says.
fn complete(node: &Node) -> Vec<Transaction> {
    let terms = node.channel.terms();
    let mut txs = Vec::new();
    for close in closes(node).iter().filter(|close| close.complete) {
        verify_tx(&close.tx, &[funding::output_of(terms)]).unwrap();
        let paid: u64 = close.tx.output.iter().map(|output| output.value.to_sat()).sum();
        assert_eq!(paid + close.fee.0, terms.capacity.0);
        assert!(node.broadcasts.iter().any(|broadcast| broadcast.tx == close.tx));
        txs.push(close.tx.clone());
    }
    txs
}

/// What a transaction pays to a script.
fn paid(tx: &Transaction, script: &ScriptBuf) -> Option<u64> {
    let mut outputs = tx.output.iter().filter(|output| output.script_pubkey == *script);
    let value = outputs.next().map(|output| output.value.to_sat());
    assert!(outputs.next().is_none());
    value
}

/// The fee of a close with both outputs.
fn fee(feerate: u32) -> u64 {
    let scripts = [to_alice(), to_bob()];
    FeeratePerKw(feerate).fee_ceil(closing_weight(scripts.iter().map(|script| script.as_script()))).0
}

fn names(node: &Node) -> Vec<&'static str> {
    node.outbox.iter().map(Message::name).collect()
}

fn assert_disconnects(result: Result<(), PeerFault>, node: &Node) {
    assert_eq!(result.unwrap_err().reaction, Reaction::Disconnect);
    assert!(!node.disconnects.is_empty());
    assert!(!matches!(node.channel.phase(), Phase::OnChain(_)), "nobody closes alone over it");
}

/// Another signature, by the same key.
fn other_signature(node: &Node) -> millrace_wire::Signature {
    millrace_channel::curve::sign(&[0x77; 32], node.keys.funding_key())
}
