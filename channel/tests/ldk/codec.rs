//! The wire between the two: what LDK's codec wrote our codec reads, and the other way round.

use lightning::ln::msgs::{self, ChannelMessageHandler};
use lightning::util::ser::{LengthReadable, Writeable};
use millrace_wire::{Decoded, Message};
use secp256k1::PublicKey;

/// A message of LDK's, as it goes over the wire.
pub(crate) fn encode(type_number: u16, message: &impl Writeable) -> Vec<u8> {
    let mut bytes = type_number.to_be_bytes().to_vec();
    message.write(&mut bytes).unwrap();
    bytes
}

/// Ours, as LDK's bytes say. What our codec understood of it, it writes again as LDK did, but for odd TLV records that
/// it does not know.
pub(crate) fn read_ours(bytes: &[u8]) -> Result<Message, String> {
    let decoded = Message::decode(bytes).map_err(|error| format!("our codec cannot read LDK's message: {error}"))?;
    let Decoded::Message(message) = decoded else { return Err(format!("our codec does not know {decoded:?}")) };
    let mut again = Vec::new();
    message.encode(&mut again).map_err(|error| format!("our codec cannot write {}: {error}", message.name()))?;
    let is_odd_record = |rest: &[u8]| rest.first().is_none_or(|kind| kind % 2 == 1);
    if !bytes.strip_prefix(&again[..]).is_some_and(is_odd_record) {
        let (theirs, ours) = (hex::encode(bytes), hex::encode(&again));
        return Err(format!("{} of LDK's is {theirs}, and we would write {ours}", message.name()));
    }
    Ok(message)
}

fn read<T: LengthReadable + Writeable>(bytes: &[u8]) -> Result<T, String> {
    let mut body = &bytes[2..];
    let message = T::read_from_fixed_length_buffer(&mut body).map_err(|error| {
        format!("LDK's codec cannot read type {}: {error:?}", u16::from_be_bytes([bytes[0], bytes[1]]))
    })?;
    let again = encode(u16::from_be_bytes([bytes[0], bytes[1]]), &message);
    if !body.is_empty() || again != bytes {
        return Err(format!("ours is {}, and LDK would write {}", hex::encode(bytes), hex::encode(again)));
    }
    Ok(message)
}

/// Hands one of our messages to LDK by its codec.
pub(crate) fn deliver<M: ChannelMessageHandler>(to: &M, from: PublicKey, message: &Message) -> Result<(), String> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).map_err(|error| format!("our codec cannot write {}: {error}", message.name()))?;
    match message {
        Message::OpenChannel(_) => to.handle_open_channel(from, &read(&bytes)?),
        Message::AcceptChannel(_) => to.handle_accept_channel(from, &read(&bytes)?),
        Message::FundingCreated(_) => to.handle_funding_created(from, &read(&bytes)?),
        Message::FundingSigned(_) => to.handle_funding_signed(from, &read(&bytes)?),
        Message::ChannelReady(_) => to.handle_channel_ready(from, &read(&bytes)?),
        Message::ChannelReestablish(_) => to.handle_channel_reestablish(from, &read(&bytes)?),
        Message::UpdateAddHtlc(_) => to.handle_update_add_htlc(from, &read(&bytes)?),
        Message::UpdateFulfillHtlc(_) => to.handle_update_fulfill_htlc(from, read(&bytes)?),
        Message::UpdateFailHtlc(_) => to.handle_update_fail_htlc(from, &read(&bytes)?),
        Message::UpdateFailMalformedHtlc(_) => to.handle_update_fail_malformed_htlc(from, &read(&bytes)?),
        Message::UpdateFee(_) => to.handle_update_fee(from, &read(&bytes)?),
        Message::CommitmentSigned(_) => to.handle_commitment_signed(from, &read(&bytes)?),
        Message::RevokeAndAck(_) => to.handle_revoke_and_ack(from, &read(&bytes)?),
        Message::Shutdown(_) => to.handle_shutdown(from, &read(&bytes)?),
        Message::ClosingSigned(_) => to.handle_closing_signed(from, &read(&bytes)?),
        Message::AnnouncementSignatures(_) => to.handle_announcement_signatures(from, &read(&bytes)?),
        Message::Error(_) => to.handle_error(from, &read(&bytes)?),
        other => return Err(format!("we sent {}, which LDK takes no part in", other.name())),
    }
    to.message_received();
    Ok(())
}

/// LDK's own words about a connection: its `init`, by both codecs.
pub(crate) fn init_of<M: ChannelMessageHandler>(ldk: &M, to: PublicKey) -> millrace_wire::Init {
    let init = msgs::Init { features: ldk.provided_init_features(to), networks: None, remote_network_address: None };
    let Message::Init(init) = read_lenient(&encode(16, &init)) else { panic!("not an init") };
    init
}

/// Our `init`, by both codecs.
pub(crate) fn to_ldk_init(init: &millrace_wire::Init) -> msgs::Init {
    let mut bytes = Vec::new();
    Message::Init(init.clone()).encode(&mut bytes).unwrap();
    msgs::Init::read_from_fixed_length_buffer(&mut &bytes[2..]).unwrap()
}

/// Where LDK's bytes may differ from ours without a difference in meaning.
pub(crate) fn read_lenient(bytes: &[u8]) -> Message {
    match Message::decode(bytes).unwrap() {
        Decoded::Message(message) => message,
        Decoded::Ignored { type_number } => panic!("type {type_number} is not known to us"),
    }
}
