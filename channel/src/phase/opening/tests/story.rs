//! Two openings against each other, up to two channels; and everything that may go wrong on the way.

use super::script::verify_tx;
use super::*;
use crate::effect::Watch;
use crate::ledger::Which;
use crate::phase::Phase;
use crate::side::{Both, Side};
use crate::terms::CommitmentFormat;
use crate::tx::CommitmentSpec;

/// Alice has asked, Bob has answered: Alice needs the transaction.
struct Agreed {
    alice: Opening,
    bob: Opening,
    tx: Transaction,
}

fn agreed_with(request: OpenRequest, params: AcceptParams) -> Agreed {
    let funding = request.funding;
    let (mut alice, open) = Opening::propose(request).unwrap();
    let (bob, accept) = Opening::accept(open_of(open), params, &around()).unwrap();
    let event = alice.on_message(accept, &around(), &Serial, &mut Effects::default()).unwrap();
    let Some(OpeningEvent::FundingNeeded { script_pubkey, amount }) = event else { panic!("{event:?}") };
    assert_eq!(amount, funding);
    Agreed { alice, bob, tx: funding_tx(&script_pubkey, amount) }
}

fn agreed() -> Agreed {
    agreed_with(request(), params())
}

impl Agreed {
    /// Alice funds: her `funding_created`.
    fn funded(&mut self) -> Message {
        let mut fx = Effects::default();
        self.alice.fund(self.tx.clone(), 1, &around(), &mut fx).unwrap();
        assert!(recorded(&fx).is_empty(), "nothing is durable before the peer has signed");
        let [message] = &sent(&fx)[..] else { panic!("{fx:?}") };
        message.clone()
    }
}

fn opened(event: Option<OpeningEvent>) -> Channel {
    let Some(OpeningEvent::Opened(channel)) = event else { panic!("{event:?}") };
    *channel
}

/// Both channels, and the effects with which they came to be.
pub(super) fn open(request: OpenRequest, params: AcceptParams) -> [(Channel, Effects); 2] {
    let mut agreed = agreed_with(request, params);
    let created = agreed.funded();
    let (mut fx_alice, mut fx_bob) = (Effects::default(), Effects::default());
    let bob = opened(agreed.bob.on_message(created, &around(), &Serial, &mut fx_bob).unwrap());
    let signed = sent(&fx_bob).remove(0);
    let alice = opened(agreed.alice.on_message(signed, &around(), &Serial, &mut fx_alice).unwrap());
    assert!(agreed.alice.is_over() && agreed.bob.is_over());
    [(alice, fx_alice), (bob, fx_bob)]
}

/// Our first commitment with both signatures stands up to the script interpreter.
fn assert_may_close_alone(channel: &Channel) {
    let view = channel.checked_view(Which::Current(Side::Local));
    let number = channel.number_of(Which::Current(Side::Local));
    let spec = CommitmentSpec {
        side: Side::Local,
        number,
        feerate: view.feerate,
        balances: view.balances,
        htlcs: &view.htlcs,
    };
    let terms = channel.terms();
    let commitment = crate::tx::Commitment::build(terms, &channel.local_keys(number), &spec);
    let ours = commitment.sign(terms, &channel.keys);
    let tx = commitment.signed_tx(terms, &ours, &channel.state.local.signature.0);
    verify_tx(&tx, &[channel.funding_txout()]).unwrap();
    let mut tampered = tx;
    tampered.output[0].value += Amount::ONE_SAT;
    assert!(verify_tx(&tampered, &[channel.funding_txout()]).is_err());
}

fn all_types() -> Vec<ChannelType> {
    let mut types = Vec::new();
    for format in [CommitmentFormat::StaticRemotekey, CommitmentFormat::Anchors] {
        for (scid_alias, zero_conf) in [(false, false), (true, false), (false, true), (true, true)] {
            types.push(ChannelType { format, scid_alias, zero_conf });
        }
    }
    types
}

#[test]
fn both_ends_of_every_type_and_push_agree_and_may_close_alone() {
    for channel_type in all_types() {
        for push in [0, 1, 999, 353_999, 354_000, 10_000_500, 998_216_000] {
            let request = OpenRequest { channel_type, push: Msat(push), ..request() };
            let params = AcceptParams { is_zero_conf_allowed: true, ..params() };
            let [(alice, _), (bob, _)] = open(request, params);
            assert_may_close_alone(&alice);
            assert_may_close_alone(&bob);
            assert_eq!(alice.id(), bob.id());
            let (of_alice, of_bob) = (alice.ledger().settled(), bob.ledger().settled());
            assert_eq!((of_alice.local, of_alice.remote), (of_bob.remote, of_bob.local));
            assert_eq!((of_alice.local.0 + push, of_alice.remote), (FUNDING.to_msat().0, Msat(push)));
            assert_eq!(alice.terms().channel_type, channel_type);
            let mirrored =
                Both { local: bob.terms().parties.remote.clone(), remote: bob.terms().parties.local.clone() };
            assert_eq!(alice.terms().parties, mirrored);
            assert_eq!((alice.terms().funder, bob.terms().funder), (Side::Local, Side::Remote));
            assert!(alice.is_link_up() && bob.is_link_up());
        }
    }
}

#[test]
fn the_record_comes_before_anything_leaves() {
    let [(alice, fx_alice), (bob, fx_bob)] = open(request(), params());
    let names = |fx: &Effects| -> Vec<&'static str> {
        let name = |effect: &Effect| match effect {
            Effect::Journal(_) => "journal",
            Effect::Send(message) => message.name(),
            Effect::Broadcast(Broadcast { purpose: Purpose::Funding, .. }) => "broadcast",
            Effect::Watch(Watch::Confirmation { .. }) => "watch confirmation",
            Effect::Watch(Watch::Spend { .. }) => "watch spend",
            Effect::Fact(Fact::Opened { .. }) => "opened",
            other => panic!("{other:?}"),
        };
        fx.list.iter().map(name).collect()
    };
    assert_eq!(names(&fx_alice), ["journal", "watch confirmation", "watch spend", "broadcast", "opened"]);
    assert_eq!(names(&fx_bob), ["journal", "funding_signed", "watch confirmation", "watch spend", "opened"]);
    for (channel, fx, keys) in [(&alice, fx_alice, request().keys), (&bob, fx_bob, params().keys)] {
        let [Record::Opened(record)] = &recorded(&fx)[..] else { panic!("{fx:?}") };
        let replayed = Channel::from_opened((**record).clone(), keys, Policy::default()).unwrap();
        assert!(replayed.is_same_state(channel));
        assert_eq!(*channel.phase(), Phase::Opening);
    }
    assert_eq!((alice.keys_index(), bob.keys_index()), (11, 22));
    assert_eq!((alice.aliases().0, bob.aliases().0), (ShortChannelId(111), ShortChannelId(222)));
}

#[test]
fn zero_conf_is_ready_at_once_and_any_other_is_not() {
    for zero_conf in [true, false] {
        let channel_type = ChannelType { zero_conf, ..ChannelType::ANCHORS };
        let params = AcceptParams { is_zero_conf_allowed: true, ..params() };
        let [(mut alice, fx_alice), (mut bob, fx_bob)] = open(OpenRequest { channel_type, ..request() }, params);
        let ready_of = |fx: &Effects| sent(fx).into_iter().find(|message| matches!(message, Message::ChannelReady(_)));
        let (from_alice, from_bob) = (ready_of(&fx_alice), ready_of(&fx_bob));
        assert_eq!((from_alice.is_some(), from_bob.is_some()), (zero_conf, zero_conf));
        if let (Some(from_alice), Some(from_bob)) = (from_alice, from_bob) {
            let mut fx = Effects::default();
            alice.on_message(from_bob, &Serial, &mut fx).unwrap();
            bob.on_message(from_alice, &Serial, &mut fx).unwrap();
            assert_eq!((alice.phase(), bob.phase()), (&Phase::Normal, &Phase::Normal));
            assert_eq!(alice.aliases(), (ShortChannelId(111), Some(ShortChannelId(222))));
        }
    }
}

#[test]
fn upfront_scripts_bind_as_negotiated() {
    let with = |is_negotiated: bool| {
        let (mut request, mut params) = (request(), params());
        request.local.upfront_shutdown_script = Some(p2wpkh(1));
        params.local.upfront_shutdown_script = Some(taproot());
        request.features.upfront_shutdown_script = is_negotiated;
        params.features.upfront_shutdown_script = is_negotiated;
        let [(alice, _), (bob, _)] = open(request, params);
        [alice, bob].map(|channel| {
            let Both { local, remote } = &channel.terms().parties;
            (local.upfront_shutdown_script.clone(), remote.upfront_shutdown_script.clone())
        })
    };
    let (of_alice, of_bob) = (Some(p2wpkh(1)), Some(taproot()));
    assert_eq!(with(true), [(of_alice.clone(), of_bob.clone()), (of_bob.clone(), of_alice.clone())]);
    assert_eq!(with(false), [(of_alice, None), (of_bob, None)]);
}

#[test]
fn wumbo_both_ways() {
    let funding = Sat(1_000_000_000);
    let local = LocalParams::usual_for(funding);
    let request = OpenRequest { funding, local: local.clone(), ..request() };
    let [(alice, _), (bob, _)] = open(request, AcceptParams { local, ..params() });
    assert_may_close_alone(&alice);
    assert_may_close_alone(&bob);
    assert_eq!(alice.terms().capacity, funding);
}

mod fund {
    use super::*;

    fn refused(change: impl FnOnce(&mut Transaction, &mut u32)) -> Unacceptable {
        let Agreed { mut alice, mut tx, .. } = agreed();
        let mut vout = 1;
        change(&mut tx, &mut vout);
        let mut fx = Effects::default();
        let refusal = alice.fund(tx, vout, &around(), &mut fx).unwrap_err();
        assert!(fx.is_empty() && !alice.is_over(), "nothing has changed");
        let Refusal::CannotOpen(why) = refusal else { panic!("{refusal}") };
        *why
    }

    #[test]
    fn the_output_is_exact() {
        let wrong = |vout| Unacceptable::WrongFundingOutput { vout, amount: FUNDING };
        assert_eq!(refused(|tx, _| tx.output[1].value -= Amount::ONE_SAT), wrong(1));
        assert_eq!(refused(|tx, _| tx.output[1].value += Amount::ONE_SAT), wrong(1));
        assert_eq!(refused(|tx, _| tx.output[1].script_pubkey = p2wpkh(1)), wrong(1));
        assert_eq!(refused(|_, vout| *vout = 0), wrong(0));
        assert_eq!(refused(|_, vout| *vout = 2), wrong(2));
        assert_eq!(refused(|_, vout| *vout = u32::MAX), wrong(u32::MAX));
    }

    #[test]
    fn the_output_index_fits_sixteen_bits() {
        let at = |position: usize| {
            let Agreed { mut alice, tx, .. } = agreed();
            let mut filled = tx.clone();
            filled.output = vec![tx.output[0].clone(); position];
            filled.output.push(tx.output[1].clone());
            let vout = u32::try_from(position).unwrap();
            alice.fund(filled, vout, &around(), &mut Effects::default())
        };
        assert_eq!(at(65_535), Ok(()));
        let wrong = Unacceptable::WrongFundingOutput { vout: 65_536, amount: FUNDING };
        assert_eq!(at(65_536), Err(wrong.into()));
    }

    #[test]
    fn no_input_lets_others_change_the_id() {
        let malleable = |input| Unacceptable::MalleableInput { input };
        let script_sig = || ScriptBuf::from_bytes(vec![1, 1]);
        assert_eq!(refused(|tx, _| tx.input[0].script_sig = script_sig()), malleable(0));
        assert_eq!(refused(|tx, _| tx.input[0].witness = Witness::new()), malleable(0));
        assert_eq!(refused(|tx, _| tx.input[0].previous_output = OutPoint::null()), malleable(0));
        let second = |tx: &mut Transaction, _: &mut u32| {
            let mut legacy = tx.input[0].clone();
            (legacy.script_sig, legacy.witness) = (script_sig(), Witness::new());
            tx.input.push(legacy);
        };
        assert_eq!(refused(second), malleable(1));
        assert_eq!(refused(|tx, _| tx.input.clear()), Unacceptable::NoInput);
    }

    #[test]
    fn not_with_an_output_that_funds_a_channel_already() {
        let Agreed { mut alice, tx, .. } = agreed();
        let id = ChannelId::v1_from_funding(OutPoint { txid: tx.compute_txid(), vout: 1 });
        let is_taken = |other| other == id;
        let around = Surroundings { is_taken: &is_taken, ..around() };
        let refusal = alice.fund(tx, 1, &around, &mut Effects::default());
        assert_eq!(refusal, Err(Unacceptable::ChannelIdTaken(id).into()));
    }

    #[test]
    fn only_once_and_only_when_asked_for() {
        let mut story = agreed();
        let not_waited = Err(Refusal::NotUsable("no funding transaction is waited for"));
        let tx = story.tx.clone();
        assert_eq!(story.bob.fund(tx.clone(), 1, &around(), &mut Effects::default()), not_waited);
        story.funded();
        assert_eq!(story.alice.fund(tx.clone(), 1, &around(), &mut Effects::default()), not_waited);
        let (mut asking, _) = Opening::propose(request()).unwrap();
        assert_eq!(asking.fund(tx, 1, &around(), &mut Effects::default()), not_waited);
    }
}

mod funding_created {
    use super::*;

    #[test]
    fn a_channel_id_that_exists_is_refused_before_anything_is_recorded() {
        let mut story = agreed();
        let created = story.funded();
        let id = story.alice.channel_id().unwrap();
        let is_taken = |other| other == id;
        let mut fx = Effects::default();
        let around = Surroundings { is_taken: &is_taken, ..around() };
        let fault = story.bob.on_message(created, &around, &Serial, &mut fx).unwrap_err();
        assert_eq!(fault.what, Unacceptable::ChannelIdTaken(id).to_string());
        assert!(recorded(&fx).is_empty() && story.bob.is_over());
        assert_eq!(sent(&fx), [Message::Error(Error::new(TEMPORARY, &fault.to_string()))]);
    }

    #[test]
    fn anything_that_is_not_what_alice_signed() {
        let changes: [fn(&mut FundingCreated); 4] = [
            |m| m.funding_txid = Txid::from_byte_array([1; 32]),
            |m| m.funding_output_index = 0,
            |m| m.signature = crate::curve::sign(&[1; 32], ChannelKeys::from_seed(&[1; 32]).funding_key()),
            |m| m.temporary_channel_id = ChannelId([8; 32]),
        ];
        for change in changes {
            let mut story = agreed();
            let Message::FundingCreated(mut created) = story.funded() else { panic!("not funding_created") };
            change(&mut created);
            let mut fx = Effects::default();
            let fault = story.bob.on_message(Message::FundingCreated(created), &around(), &Serial, &mut fx);
            assert_eq!(fault.unwrap_err().rule, RULE_CREATED);
            assert!(recorded(&fx).is_empty() && story.bob.is_over());
        }
    }
}

mod funding_signed {
    use super::*;

    #[test]
    fn a_wrong_signature_or_id_broadcasts_nothing() {
        let changes: [fn(&mut FundingSigned); 2] = [
            |m| m.signature = crate::curve::sign(&[1; 32], ChannelKeys::from_seed(&[2; 32]).funding_key()),
            |m| m.channel_id = TEMPORARY,
        ];
        for change in changes {
            let mut story = agreed();
            let created = story.funded();
            let mut fx = Effects::default();
            story.bob.on_message(created, &around(), &Serial, &mut fx).unwrap();
            let Message::FundingSigned(mut signed) = sent(&fx).remove(0) else { panic!("not funding_signed") };
            change(&mut signed);
            let id = story.alice.channel_id().unwrap();
            let mut fx = Effects::default();
            let fault = story.alice.on_message(Message::FundingSigned(signed), &around(), &Serial, &mut fx);
            let fault = fault.unwrap_err();
            assert_eq!(fault.rule, RULE_SIGNED);
            // BOLT 1: after funding_created the funder speaks of the channel by its final id.
            assert_eq!(fx.list, [Effect::Send(Box::new(Message::Error(Error::new(id, &fault.to_string()))))]);
        }
    }
}

/// An opening at each of its stages, by what it waits for.
fn at_every_stage() -> Vec<(&'static str, Opening)> {
    let asking = Opening::propose(request()).unwrap().0;
    let Agreed { alice: choosing, bob: awaiting, .. } = agreed();
    let mut created = agreed();
    created.funded();
    let mut over = agreed().alice;
    over.cancel("no coins", &mut Effects::default());
    vec![
        ("accept_channel", asking),
        ("our own funding_created", choosing),
        ("funding_created", awaiting),
        ("funding_signed", created.alice),
        ("nothing", over),
    ]
}

fn any_message() -> Vec<Message> {
    let (_, open) = Opening::propose(request()).unwrap();
    let (_, accept) = Opening::accept(open_of(open.clone()), params(), &around()).unwrap();
    let mut story = agreed();
    let created = story.funded();
    let mut fx = Effects::default();
    let mut channel = opened(story.bob.on_message(created.clone(), &around(), &Serial, &mut fx).unwrap());
    let signed = sent(&fx).remove(0);
    let ready = channel.channel_ready();
    let mut fx = Effects::default();
    channel.on_link(crate::input::LinkEvent::Up { features: LinkFeatures::default() }, &mut fx);
    let reestablish = sent(&fx).remove(0);
    let shutdown = millrace_wire::Shutdown { channel_id: TEMPORARY, script: p2wpkh(1) };
    vec![open, accept, created, signed, ready, reestablish, Message::Shutdown(shutdown)]
}

#[test]
fn a_message_out_of_turn_ends_the_opening_and_never_panics() {
    for message in any_message() {
        for (awaited, mut opening) in at_every_stage() {
            if message.name() == awaited {
                continue;
            }
            let mut fx = Effects::default();
            let fault = opening.on_message(message.clone(), &around(), &Serial, &mut fx).unwrap_err();
            assert_eq!(fault.what, format!("{} where {awaited} is due", message.name()));
            assert!(opening.is_over() && recorded(&fx).is_empty());
            assert!(matches!(&sent(&fx)[..], [Message::Error(_)]));
        }
    }
}

#[test]
fn words_of_the_peer_at_every_stage() {
    for (_, mut opening) in at_every_stage() {
        let was_over = opening.is_over();
        let mut fx = Effects::default();
        let warning = Message::Warning(Warning::new(TEMPORARY, "hm\n"));
        assert!(opening.on_message(warning, &around(), &Serial, &mut fx).unwrap().is_none());
        assert_eq!(opening.is_over(), was_over, "a warning changes nothing");
        let error = Message::Error(Error::new(TEMPORARY, "no\x07"));
        let event = opening.on_message(error, &around(), &Serial, &mut fx).unwrap();
        let Some(OpeningEvent::Refused { text }) = event else { panic!("{event:?}") };
        assert!(text.starts_with("no") && !text.contains('\x07') && opening.is_over());
        assert!(sent(&fx).is_empty(), "an error is not answered");
    }
}

#[test]
fn giving_up_tells_the_peer_once() {
    let Agreed { mut alice, .. } = agreed();
    let mut fx = Effects::default();
    alice.cancel("no coins", &mut fx);
    alice.cancel("no coins", &mut fx);
    assert_eq!(sent(&fx), [Message::Error(Error::new(TEMPORARY, "no coins"))]);
    assert!(alice.is_over());
}
