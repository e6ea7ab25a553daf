//! LDK's codec as the oracle: what we write it reads and writes the same, field for field.

use lightning::ln::msgs;
use lightning::ln::wire::Type;
use lightning::types::features::{ChannelTypeFeatures, InitFeatures};
use lightning::util::ser::{LengthReadable, Writeable};
use millrace_wire::{Features, Message};

use crate::messages::{decode, encode};
use crate::samples::every_message;

/// LDK reads what is behind the type number, and gives it back unchanged.
fn reread<T: LengthReadable + Type>(bytes: &[u8]) -> T {
    let read = T::read_from_fixed_length_buffer(&mut &bytes[2..]).unwrap();
    assert_eq!(read.type_id().to_be_bytes(), bytes[..2]);
    assert_eq!(read.encode(), &bytes[2..]);
    read
}

/// LDK's struct, made from our fields, is what LDK reads from our bytes and what it writes as our bytes.
fn assert_same<T>(message: &Message, made: &T)
where
    T: LengthReadable + Type + PartialEq,
{
    let bytes = encode(message);
    assert_eq!(&reread::<T>(&bytes), made);
    let theirs = [&made.type_id().to_be_bytes()[..], &made.encode()].concat();
    assert_eq!(&decode(&theirs).unwrap(), message);
}

fn channel_type(features: Option<&Features>) -> Option<ChannelTypeFeatures> {
    features.map(|features| ChannelTypeFeatures::from_be_bytes(features.to_be_bytes()))
}

#[test]
fn control_messages() {
    for message in (0..64).flat_map(every_message) {
        match &message {
            Message::Init(init) => {
                let networks = Some(init.networks.clone()).filter(|list| !list.is_empty());
                let made = msgs::Init {
                    features: InitFeatures::from_be_bytes(init.features.to_be_bytes()),
                    networks,
                    remote_network_address: init.remote_address.clone(),
                };
                assert_same(&message, &made);
            }
            Message::Error(error) => {
                let data = String::from_utf8(error.data.clone()).unwrap();
                let channel_id = error.channel_id.into();
                assert_same(&message, &msgs::ErrorMessage { channel_id, data });
            }
            Message::Warning(warning) => {
                let data = String::from_utf8(warning.data.clone()).unwrap();
                let channel_id = warning.channel_id.into();
                assert_same(&message, &msgs::WarningMessage { channel_id, data });
            }
            Message::Ping(ping) => {
                let made = msgs::Ping { ponglen: ping.num_pong_bytes, byteslen: ping.ignored_len };
                assert_same(&message, &made);
            }
            Message::Pong(pong) => {
                assert_same(&message, &msgs::Pong { byteslen: pong.ignored_len });
            }
            _ => {}
        }
    }
}

#[test]
fn opening_messages() {
    for message in (0..64).flat_map(every_message) {
        match &message {
            Message::OpenChannel(open) => assert_same(&message, &open_channel(open)),
            Message::AcceptChannel(accept) => assert_same(&message, &accept_channel(accept)),
            Message::FundingCreated(created) => {
                let made = msgs::FundingCreated {
                    temporary_channel_id: created.temporary_channel_id.into(),
                    funding_txid: created.funding_txid,
                    funding_output_index: created.funding_output_index,
                    signature: created.signature,
                };
                assert_same(&message, &made);
            }
            Message::FundingSigned(signed) => {
                let channel_id = signed.channel_id.into();
                let made = msgs::FundingSigned { channel_id, signature: signed.signature };
                assert_same(&message, &made);
            }
            Message::ChannelReady(ready) => {
                let made = msgs::ChannelReady {
                    channel_id: ready.channel_id.into(),
                    next_per_commitment_point: ready.next_per_commitment_point,
                    short_channel_id_alias: ready.alias.map(|alias| alias.0),
                };
                assert_same(&message, &made);
            }
            _ => {}
        }
    }
}

fn open_channel(open: &millrace_wire::OpenChannel) -> msgs::OpenChannel {
    msgs::OpenChannel {
        common_fields: msgs::CommonOpenChannelFields {
            chain_hash: open.chain_hash,
            temporary_channel_id: open.temporary_channel_id.into(),
            funding_satoshis: open.funding.0,
            dust_limit_satoshis: open.dust_limit.0,
            max_htlc_value_in_flight_msat: open.max_htlc_value_in_flight.0,
            htlc_minimum_msat: open.htlc_minimum.0,
            commitment_feerate_sat_per_1000_weight: open.feerate.0,
            to_self_delay: open.to_self_delay,
            max_accepted_htlcs: open.max_accepted_htlcs,
            funding_pubkey: open.funding_pubkey,
            revocation_basepoint: open.revocation_basepoint,
            payment_basepoint: open.payment_basepoint,
            delayed_payment_basepoint: open.delayed_payment_basepoint,
            htlc_basepoint: open.htlc_basepoint,
            first_per_commitment_point: open.first_per_commitment_point,
            channel_flags: open.channel_flags,
            shutdown_scriptpubkey: open.upfront_shutdown_script.clone(),
            channel_type: channel_type(open.channel_type.as_ref()),
        },
        push_msat: open.push.0,
        channel_reserve_satoshis: open.channel_reserve.0,
    }
}

fn accept_channel(accept: &millrace_wire::AcceptChannel) -> msgs::AcceptChannel {
    msgs::AcceptChannel {
        common_fields: msgs::CommonAcceptChannelFields {
            temporary_channel_id: accept.temporary_channel_id.into(),
            dust_limit_satoshis: accept.dust_limit.0,
            max_htlc_value_in_flight_msat: accept.max_htlc_value_in_flight.0,
            htlc_minimum_msat: accept.htlc_minimum.0,
            minimum_depth: accept.minimum_depth,
            to_self_delay: accept.to_self_delay,
            max_accepted_htlcs: accept.max_accepted_htlcs,
            funding_pubkey: accept.funding_pubkey,
            revocation_basepoint: accept.revocation_basepoint,
            payment_basepoint: accept.payment_basepoint,
            delayed_payment_basepoint: accept.delayed_payment_basepoint,
            htlc_basepoint: accept.htlc_basepoint,
            first_per_commitment_point: accept.first_per_commitment_point,
            shutdown_scriptpubkey: accept.upfront_shutdown_script.clone(),
            channel_type: channel_type(accept.channel_type.as_ref()),
        },
        channel_reserve_satoshis: accept.channel_reserve.0,
    }
}

#[test]
fn closing_messages() {
    for message in (0..64).flat_map(every_message) {
        match &message {
            Message::Shutdown(shutdown) => {
                let made =
                    msgs::Shutdown { channel_id: shutdown.channel_id.into(), scriptpubkey: shutdown.script.clone() };
                assert_same(&message, &made);
            }
            Message::ClosingSigned(signed) => {
                let range = signed.fee_range.map(|range| msgs::ClosingSignedFeeRange {
                    min_fee_satoshis: range.min.0,
                    max_fee_satoshis: range.max.0,
                });
                let made = msgs::ClosingSigned {
                    channel_id: signed.channel_id.into(),
                    fee_satoshis: signed.fee.0,
                    signature: signed.signature,
                    fee_range: range,
                };
                assert_same(&message, &made);
            }
            Message::ClosingComplete(complete) => {
                let made = msgs::ClosingComplete {
                    channel_id: complete.channel_id.into(),
                    closer_scriptpubkey: complete.closer_script.clone(),
                    closee_scriptpubkey: complete.closee_script.clone(),
                    fee_satoshis: complete.fee.0,
                    locktime: complete.locktime,
                    closer_output_only: complete.signatures.closer_output_only,
                    closee_output_only: complete.signatures.closee_output_only,
                    closer_and_closee_outputs: complete.signatures.closer_and_closee_outputs,
                };
                assert_same_untyped(&message, 40, &made);
            }
            Message::ClosingSig(sig) => {
                let made = msgs::ClosingSig {
                    channel_id: sig.channel_id.into(),
                    closer_scriptpubkey: sig.closer_script.clone(),
                    closee_scriptpubkey: sig.closee_script.clone(),
                    fee_satoshis: sig.fee.0,
                    locktime: sig.locktime,
                    closer_output_only: sig.signatures.closer_output_only,
                    closee_output_only: sig.signatures.closee_output_only,
                    closer_and_closee_outputs: sig.signatures.closer_and_closee_outputs,
                };
                assert_same_untyped(&message, 41, &made);
            }
            _ => {}
        }
    }
}

/// For the structs that LDK gives no type number yet.
fn assert_same_untyped<T>(message: &Message, type_number: u16, made: &T)
where
    T: LengthReadable + Writeable + PartialEq + core::fmt::Debug,
{
    let bytes = encode(message);
    assert_eq!(bytes, [&type_number.to_be_bytes()[..], &made.encode()].concat());
    assert_eq!(&T::read_from_fixed_length_buffer(&mut &bytes[2..]).unwrap(), made);
}

/// `reason` and `sha256_of_onion` are private in LDK, and attribution data has no constructor: those
/// LDK reads from our bytes and writes back.
#[test]
fn htlc_messages() {
    for message in (0..64).flat_map(every_message) {
        let bytes = encode(&message);
        match &message {
            Message::UpdateAddHtlc(add) => {
                let onion = lightning::util::ser::Readable::read(&mut &add.onion.0[..]).unwrap();
                let made = msgs::UpdateAddHTLC {
                    channel_id: add.channel_id.into(),
                    htlc_id: add.id.0,
                    amount_msat: add.amount.0,
                    payment_hash: add.payment_hash.into(),
                    cltv_expiry: add.cltv_expiry.0,
                    skimmed_fee_msat: None,
                    onion_routing_packet: onion,
                    blinding_point: add.path_key,
                    hold_htlc: None,
                };
                assert_same(&message, &made);
            }
            Message::UpdateFulfillHtlc(fulfill) => {
                let read: msgs::UpdateFulfillHTLC = reread(&bytes);
                assert_eq!(read.attribution_data.is_some(), fulfill.attribution.is_some());
                let made = msgs::UpdateFulfillHTLC {
                    channel_id: fulfill.channel_id.into(),
                    htlc_id: fulfill.id.0,
                    payment_preimage: (&fulfill.preimage).into(),
                    attribution_data: read.attribution_data,
                };
                assert_same(&message, &made);
            }
            Message::UpdateFailHtlc(fail) => {
                let read: msgs::UpdateFailHTLC = reread(&bytes);
                assert_eq!(read.channel_id, fail.channel_id.into());
                assert_eq!(read.htlc_id, fail.id.0);
                assert_eq!(read.attribution_data.is_some(), fail.attribution.is_some());
            }
            Message::UpdateFailMalformedHtlc(fail) => {
                let read: msgs::UpdateFailMalformedHTLC = reread(&bytes);
                assert_eq!(read.channel_id, fail.channel_id.into());
                assert_eq!((read.htlc_id, read.failure_code), (fail.id.0, fail.failure_code));
            }
            _ => {}
        }
    }
}

#[test]
fn commitment_messages() {
    for message in (0..64).flat_map(every_message) {
        match &message {
            Message::CommitmentSigned(signed) => {
                let made = msgs::CommitmentSigned {
                    channel_id: signed.channel_id.into(),
                    signature: signed.signature,
                    htlc_signatures: signed.htlc_signatures.clone(),
                    funding_txid: None,
                };
                assert_same(&message, &made);
            }
            Message::RevokeAndAck(revoke) => {
                let made = msgs::RevokeAndACK {
                    channel_id: revoke.channel_id.into(),
                    per_commitment_secret: revoke.per_commitment_secret,
                    next_per_commitment_point: revoke.next_per_commitment_point,
                    release_htlc_message_paths: Vec::new(),
                };
                assert_same(&message, &made);
            }
            Message::UpdateFee(update) => {
                let made = msgs::UpdateFee { channel_id: update.channel_id.into(), feerate_per_kw: update.feerate.0 };
                assert_same(&message, &made);
            }
            Message::AnnouncementSignatures(signatures) => {
                let made = msgs::AnnouncementSignatures {
                    channel_id: signatures.channel_id.into(),
                    short_channel_id: signatures.short_channel_id.0,
                    node_signature: signatures.node_signature,
                    bitcoin_signature: signatures.bitcoin_signature,
                };
                assert_same(&message, &made);
            }
            Message::ChannelReestablish(reestablish) => {
                let made = msgs::ChannelReestablish {
                    channel_id: reestablish.channel_id.into(),
                    next_local_commitment_number: reestablish.next_commitment_number,
                    next_remote_commitment_number: reestablish.next_revocation_number,
                    your_last_per_commitment_secret: reestablish.your_last_per_commitment_secret,
                    my_current_per_commitment_point: reestablish.my_current_per_commitment_point,
                    next_funding: None,
                    my_current_funding_locked: None,
                };
                assert_same(&message, &made);
            }
            _ => {}
        }
    }
}

/// What stays bytes here LDK parses, and writes back the same.
#[test]
fn interactive_messages() {
    use bitcoin::consensus::deserialize;

    for message in (0..64).flat_map(every_message) {
        match &message {
            Message::TxAddInput(add) => {
                let prevtx = Some(&add.prevtx).filter(|bytes| !bytes.is_empty());
                let made = msgs::TxAddInput {
                    channel_id: add.channel_id.into(),
                    serial_id: add.serial_id,
                    prevtx: prevtx.map(|bytes| deserialize(bytes).unwrap()),
                    prevtx_out: add.prevtx_vout,
                    sequence: add.sequence,
                    shared_input_txid: add.shared_input_txid,
                };
                assert_same(&message, &made);
            }
            Message::TxAddOutput(add) => {
                let made = msgs::TxAddOutput {
                    channel_id: add.channel_id.into(),
                    serial_id: add.serial_id,
                    sats: add.amount.0,
                    script: add.script.clone(),
                };
                assert_same(&message, &made);
            }
            Message::TxSignatures(signatures) => {
                let witnesses = signatures.witnesses.iter().map(|bytes| deserialize(bytes).unwrap());
                let made = msgs::TxSignatures {
                    channel_id: signatures.channel_id.into(),
                    tx_hash: signatures.txid,
                    witnesses: witnesses.collect(),
                    shared_input_signature: signatures.shared_input_signature,
                };
                assert_same(&message, &made);
            }
            Message::TxAbort(abort) => {
                let channel_id = abort.channel_id.into();
                assert_same(&message, &msgs::TxAbort { channel_id, data: abort.data.clone() });
            }
            Message::PeerStorage(storage) => {
                assert_same(&message, &msgs::PeerStorage { data: storage.blob.clone() });
            }
            Message::PeerStorageRetrieval(storage) => {
                assert_same(&message, &msgs::PeerStorageRetrieval { data: storage.blob.clone() });
            }
            _ => {}
        }
    }
}

/// LDK's query structs have no extensions, so ours are compared without.
#[test]
fn queries() {
    for message in (0..64).flat_map(every_message) {
        match message {
            Message::QueryShortChannelIds(mut query) => {
                query.query_flags = None;
                let made: msgs::QueryShortChannelIds = query.clone().into();
                assert_eq!(millrace_wire::QueryShortChannelIds::from(made.clone()), query);
                assert_same(&query.into(), &made);
            }
            Message::ReplyShortChannelIdsEnd(reply) => {
                let made: msgs::ReplyShortChannelIdsEnd = reply.into();
                assert_eq!(millrace_wire::ReplyShortChannelIdsEnd::from(made.clone()), reply);
                assert_same(&reply.into(), &made);
            }
            Message::QueryChannelRange(mut query) => {
                query.query_options = None;
                let made: msgs::QueryChannelRange = query.into();
                assert_eq!(millrace_wire::QueryChannelRange::from(made.clone()), query);
                assert_same(&query.into(), &made);
            }
            Message::ReplyChannelRange(mut reply) => {
                (reply.timestamps, reply.checksums) = (None, None);
                let made: msgs::ReplyChannelRange = reply.clone().into();
                assert_eq!(millrace_wire::ReplyChannelRange::from(made.clone()), reply);
                assert_same(&reply.into(), &made);
            }
            Message::GossipTimestampFilter(filter) => {
                let made: msgs::GossipTimestampFilter = filter.into();
                assert_eq!(millrace_wire::GossipTimestampFilter::from(made.clone()), filter);
                assert_same(&filter.into(), &made);
            }
            _ => {}
        }
    }
}

/// Those that keep LDK's struct have the type number LDK gives them.
#[test]
fn kept_structs_have_ldks_type_numbers() {
    let mut seen = 0;
    for message in every_message(0) {
        let theirs = match &message {
            Message::Stfu(kept) => kept.type_id(),
            Message::OpenChannel2(kept) => kept.type_id(),
            Message::AcceptChannel2(kept) => kept.type_id(),
            Message::TxRemoveInput(kept) => kept.type_id(),
            Message::TxRemoveOutput(kept) => kept.type_id(),
            Message::TxComplete(kept) => kept.type_id(),
            Message::TxInitRbf(kept) => kept.type_id(),
            Message::TxAckRbf(kept) => kept.type_id(),
            Message::SpliceLocked(kept) => kept.type_id(),
            Message::SpliceInit(kept) => kept.type_id(),
            Message::SpliceAck(kept) => kept.type_id(),
            Message::StartBatch(kept) => kept.type_id(),
            Message::ChannelAnnouncement(kept) => kept.parsed().type_id(),
            Message::NodeAnnouncement(kept) => kept.parsed().type_id(),
            Message::ChannelUpdate(kept) => kept.parsed().type_id(),
            Message::OnionMessage(kept) => kept.type_id(),
            _ => continue,
        };
        assert_eq!(theirs, message.type_number(), "{}", message.name());
        seen += 1;
    }
    assert_eq!(seen, 16);
}
