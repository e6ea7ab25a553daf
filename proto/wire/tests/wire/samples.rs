//! Messages of every kind, made from a seed: the same seed gives the same messages.

use bitcoin::consensus::serialize;
use bitcoin::hashes::Hash as _;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, absolute, transaction};
use lightning::ln::msgs;
use lightning::onion_message::packet::Packet;
use lightning::routing::gossip::{NodeAlias, NodeId};
use lightning::types::features::{ChannelFeatures, ChannelTypeFeatures, NodeFeatures};
use millrace_wire::message::{
    Custom, FeeRange, PerDirection, QueryChannelRange, QueryShortChannelIds, ReplyChannelRange, ReplyShortChannelIdsEnd,
};
use millrace_wire::{
    AcceptChannel, AnnouncementSignatures, AttributionData, ChainHash, ChannelAnnouncement, ChannelId, ChannelReady,
    ChannelReestablish, ChannelUpdate, ClosingComplete, ClosingSig, ClosingSignatures, ClosingSigned, CltvExpiry,
    CommitmentSigned, Error, Features, FeeratePerKw, FundingCreated, FundingSigned, GossipTimestampFilter, HtlcId,
    Init, Message, Msat, NodeAnnouncement, OnionPacket, OpenChannel, PaymentHash, PeerStorage, PeerStorageRetrieval,
    Ping, Pong, Preimage, PublicKey, RevokeAndAck, Sat, ShortChannelId, Shutdown, Signature, TxAbort, TxAddInput,
    TxAddOutput, TxSignatures, UpdateAddHtlc, UpdateFailHtlc, UpdateFailMalformedHtlc, UpdateFee, UpdateFulfillHtlc,
    Warning,
};
use secp256k1::{SECP256K1, SecretKey};

/// A small generator of numbers (SplitMix64), so that a seed is all there is to a sample.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn u32(&mut self) -> u32 {
        self.u64() as u32
    }

    fn u16(&mut self) -> u16 {
        self.u64() as u16
    }

    fn flag(&mut self) -> bool {
        self.u64() & 1 == 1
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.u64() % bound as u64) as usize
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        core::array::from_fn(|_| self.u64() as u8)
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most + 1);
        (0..len).map(|_| self.u64() as u8).collect()
    }

    fn list<T>(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let len = self.below(most + 1);
        (0..len).map(|_| item(self)).collect()
    }

    fn maybe<T>(&mut self, item: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| item(self))
    }

    fn point(&mut self) -> PublicKey {
        let mut bytes: [u8; 32] = self.array();
        bytes[0] = 1;
        SecretKey::from_slice(&bytes).expect("below the group's order").public_key(SECP256K1)
    }

    fn signature(&mut self) -> Signature {
        let mut bytes: [u8; 64] = self.array();
        bytes[0] = 1;
        bytes[32] = 1;
        Signature::from_compact(&bytes).expect("below the group's order")
    }

    fn channel_id(&mut self) -> ChannelId {
        ChannelId(self.array())
    }

    fn ldk_channel_id(&mut self) -> lightning::ln::types::ChannelId {
        self.channel_id().into()
    }

    fn txid(&mut self) -> Txid {
        Txid::from_byte_array(self.array())
    }

    fn script(&mut self) -> ScriptBuf {
        ScriptBuf::from_bytes(self.bytes(40))
    }

    fn chain_hash(&mut self) -> ChainHash {
        ChainHash::from(self.array())
    }

    fn short_channel_id(&mut self) -> ShortChannelId {
        ShortChannelId(self.u64())
    }

    fn node_id(&mut self) -> NodeId {
        NodeId::from_pubkey(&self.point())
    }

    /// Sets as real nodes have them: LDK pads some others, which is why those are not in its oracle.
    fn features(&mut self) -> Features {
        Features::ours(self.flag())
    }

    fn channel_type(&mut self) -> Features {
        let types: [&[u32]; 4] = [&[12], &[12, 22], &[12, 22, 46], &[12, 22, 46, 50]];
        Features::from_bits(types[self.below(4)])
    }

    fn address(&mut self) -> msgs::SocketAddress {
        let port = self.u16();
        match self.below(5) {
            0 => msgs::SocketAddress::TcpIpV4 { addr: self.array(), port },
            1 => msgs::SocketAddress::TcpIpV6 { addr: self.array(), port },
            2 => msgs::SocketAddress::OnionV2(self.array()),
            3 => msgs::SocketAddress::OnionV3 { ed25519_pubkey: self.array(), checksum: self.u16(), version: 3, port },
            _ => {
                let hostname = "node.example".to_owned().try_into().expect("a host name");
                msgs::SocketAddress::Hostname { hostname, port }
            }
        }
    }

    fn attribution(&mut self) -> Box<AttributionData> {
        Box::new(AttributionData { hold_times: self.array(), hmacs: self.array() })
    }

    fn pair(&mut self) -> PerDirection {
        PerDirection { node_1: self.u32(), node_2: self.u32() }
    }

    fn transaction(&mut self) -> Vec<u8> {
        let input = TxIn {
            previous_output: OutPoint { txid: self.txid(), vout: self.u32() },
            script_sig: ScriptBuf::new(),
            sequence: Sequence(self.u32()),
            witness: self.witness(),
        };
        let output = TxOut { value: Amount::from_sat(self.u64() >> 16), script_pubkey: self.script() };
        serialize(&Transaction {
            version: transaction::Version::TWO,
            lock_time: absolute::LockTime::from_consensus(self.u32()),
            input: vec![input],
            output: vec![output],
        })
    }

    fn witness(&mut self) -> Witness {
        Witness::from_slice(&[self.bytes(72), self.bytes(33)])
    }
}

/// One message of every kind.
pub(crate) fn every_message(seed: u64) -> Vec<Message> {
    let draw = &mut Draw(seed);
    let mut all = control(draw);
    all.extend(opening(draw));
    all.extend(closing(draw));
    all.extend(htlcs(draw));
    all.extend(commitments(draw));
    all.extend(foreign(draw));
    all.extend(announcements(draw));
    all.extend(queries(draw));
    all.push(Custom { type_number: 32_768 | draw.u16(), bytes: draw.bytes(50) }.into());
    all
}

fn control(draw: &mut Draw) -> Vec<Message> {
    vec![
        Init {
            features: draw.features(),
            networks: draw.list(2, Draw::chain_hash),
            remote_address: draw.maybe(Draw::address),
        }
        .into(),
        Error { channel_id: draw.channel_id(), data: b"internal error".to_vec() }.into(),
        Warning { channel_id: ChannelId::ALL, data: "späte Warnung".into() }.into(),
        Ping { num_pong_bytes: draw.u16(), ignored_len: draw.u16() % 64 }.into(),
        Pong { ignored_len: draw.u16() % 64 }.into(),
    ]
}

fn opening(draw: &mut Draw) -> Vec<Message> {
    vec![
        OpenChannel {
            chain_hash: draw.chain_hash(),
            temporary_channel_id: draw.channel_id(),
            funding: Sat(draw.u64()),
            push: Msat(draw.u64()),
            dust_limit: Sat(draw.u64()),
            max_htlc_value_in_flight: Msat(draw.u64()),
            channel_reserve: Sat(draw.u64()),
            htlc_minimum: Msat(draw.u64()),
            feerate: FeeratePerKw(draw.u32()),
            to_self_delay: draw.u16(),
            max_accepted_htlcs: draw.u16(),
            funding_pubkey: draw.point(),
            revocation_basepoint: draw.point(),
            payment_basepoint: draw.point(),
            delayed_payment_basepoint: draw.point(),
            htlc_basepoint: draw.point(),
            first_per_commitment_point: draw.point(),
            channel_flags: draw.u64() as u8,
            upfront_shutdown_script: draw.maybe(Draw::script),
            channel_type: draw.maybe(Draw::channel_type),
        }
        .into(),
        AcceptChannel {
            temporary_channel_id: draw.channel_id(),
            dust_limit: Sat(draw.u64()),
            max_htlc_value_in_flight: Msat(draw.u64()),
            channel_reserve: Sat(draw.u64()),
            htlc_minimum: Msat(draw.u64()),
            minimum_depth: draw.u32(),
            to_self_delay: draw.u16(),
            max_accepted_htlcs: draw.u16(),
            funding_pubkey: draw.point(),
            revocation_basepoint: draw.point(),
            payment_basepoint: draw.point(),
            delayed_payment_basepoint: draw.point(),
            htlc_basepoint: draw.point(),
            first_per_commitment_point: draw.point(),
            upfront_shutdown_script: draw.maybe(Draw::script),
            channel_type: draw.maybe(Draw::channel_type),
        }
        .into(),
        FundingCreated {
            temporary_channel_id: draw.channel_id(),
            funding_txid: draw.txid(),
            funding_output_index: draw.u16(),
            signature: draw.signature(),
        }
        .into(),
        FundingSigned { channel_id: draw.channel_id(), signature: draw.signature() }.into(),
        ChannelReady {
            channel_id: draw.channel_id(),
            next_per_commitment_point: draw.point(),
            alias: draw.maybe(Draw::short_channel_id),
        }
        .into(),
    ]
}

fn closing_signatures(draw: &mut Draw) -> ClosingSignatures {
    ClosingSignatures {
        closer_output_only: draw.maybe(Draw::signature),
        closee_output_only: draw.maybe(Draw::signature),
        closer_and_closee_outputs: draw.maybe(Draw::signature),
    }
}

fn closing(draw: &mut Draw) -> Vec<Message> {
    let range = |draw: &mut Draw| FeeRange { min: Sat(draw.u64()), max: Sat(draw.u64()) };
    vec![
        Shutdown { channel_id: draw.channel_id(), script: draw.script() }.into(),
        ClosingSigned {
            channel_id: draw.channel_id(),
            fee: Sat(draw.u64()),
            signature: draw.signature(),
            fee_range: draw.maybe(range),
        }
        .into(),
        ClosingComplete {
            channel_id: draw.channel_id(),
            closer_script: draw.script(),
            closee_script: draw.script(),
            fee: Sat(draw.u64()),
            locktime: draw.u32(),
            signatures: closing_signatures(draw),
        }
        .into(),
        ClosingSig {
            channel_id: draw.channel_id(),
            closer_script: draw.script(),
            closee_script: draw.script(),
            fee: Sat(draw.u64()),
            locktime: draw.u32(),
            signatures: closing_signatures(draw),
        }
        .into(),
    ]
}

fn htlcs(draw: &mut Draw) -> Vec<Message> {
    vec![
        UpdateAddHtlc {
            channel_id: draw.channel_id(),
            id: HtlcId(draw.u64()),
            amount: Msat(draw.u64()),
            payment_hash: PaymentHash(draw.array()),
            cltv_expiry: CltvExpiry(draw.u32()),
            onion: Box::new(onion(draw)),
            path_key: draw.maybe(Draw::point),
        }
        .into(),
        UpdateFulfillHtlc {
            channel_id: draw.channel_id(),
            id: HtlcId(draw.u64()),
            preimage: Preimage::new(draw.array()),
            attribution: draw.maybe(Draw::attribution),
        }
        .into(),
        UpdateFailHtlc {
            channel_id: draw.channel_id(),
            id: HtlcId(draw.u64()),
            reason: draw.bytes(292),
            attribution: draw.maybe(Draw::attribution),
        }
        .into(),
        UpdateFailMalformedHtlc {
            channel_id: draw.channel_id(),
            id: HtlcId(draw.u64()),
            sha256_of_onion: draw.array(),
            failure_code: draw.u16(),
        }
        .into(),
    ]
}

/// With a valid point in its place, as LDK's struct writes another back as zeros.
fn onion(draw: &mut Draw) -> OnionPacket {
    let mut onion = OnionPacket(draw.array());
    onion.0[1..34].copy_from_slice(&draw.point().serialize());
    onion
}

fn commitments(draw: &mut Draw) -> Vec<Message> {
    vec![
        CommitmentSigned {
            channel_id: draw.channel_id(),
            signature: draw.signature(),
            htlc_signatures: draw.list(6, Draw::signature),
        }
        .into(),
        RevokeAndAck {
            channel_id: draw.channel_id(),
            per_commitment_secret: draw.array(),
            next_per_commitment_point: draw.point(),
        }
        .into(),
        UpdateFee { channel_id: draw.channel_id(), feerate: FeeratePerKw(draw.u32()) }.into(),
        ChannelReestablish {
            channel_id: draw.channel_id(),
            next_commitment_number: draw.u64(),
            next_revocation_number: draw.u64(),
            your_last_per_commitment_secret: draw.array(),
            my_current_per_commitment_point: draw.point(),
        }
        .into(),
    ]
}

fn dual_funding(draw: &mut Draw) -> Vec<Message> {
    let open = msgs::OpenChannelV2 {
        common_fields: msgs::CommonOpenChannelFields {
            chain_hash: draw.chain_hash(),
            temporary_channel_id: draw.ldk_channel_id(),
            funding_satoshis: draw.u64(),
            dust_limit_satoshis: draw.u64(),
            max_htlc_value_in_flight_msat: draw.u64(),
            htlc_minimum_msat: draw.u64(),
            commitment_feerate_sat_per_1000_weight: draw.u32(),
            to_self_delay: draw.u16(),
            max_accepted_htlcs: draw.u16(),
            funding_pubkey: draw.point(),
            revocation_basepoint: draw.point(),
            payment_basepoint: draw.point(),
            delayed_payment_basepoint: draw.point(),
            htlc_basepoint: draw.point(),
            first_per_commitment_point: draw.point(),
            channel_flags: draw.u64() as u8,
            shutdown_scriptpubkey: draw.maybe(Draw::script),
            channel_type: draw.maybe(ldk_channel_type),
        },
        funding_feerate_sat_per_1000_weight: draw.u32(),
        locktime: draw.u32(),
        second_per_commitment_point: draw.point(),
        require_confirmed_inputs: draw.maybe(|_| ()),
    };
    let accept = msgs::AcceptChannelV2 {
        common_fields: msgs::CommonAcceptChannelFields {
            temporary_channel_id: draw.ldk_channel_id(),
            dust_limit_satoshis: draw.u64(),
            max_htlc_value_in_flight_msat: draw.u64(),
            htlc_minimum_msat: draw.u64(),
            minimum_depth: draw.u32(),
            to_self_delay: draw.u16(),
            max_accepted_htlcs: draw.u16(),
            funding_pubkey: draw.point(),
            revocation_basepoint: draw.point(),
            payment_basepoint: draw.point(),
            delayed_payment_basepoint: draw.point(),
            htlc_basepoint: draw.point(),
            first_per_commitment_point: draw.point(),
            shutdown_scriptpubkey: draw.maybe(Draw::script),
            channel_type: draw.maybe(ldk_channel_type),
        },
        funding_satoshis: draw.u64(),
        second_per_commitment_point: draw.point(),
        require_confirmed_inputs: draw.maybe(|_| ()),
    };
    vec![Box::new(open).into(), Box::new(accept).into()]
}

fn ldk_channel_type(draw: &mut Draw) -> ChannelTypeFeatures {
    ChannelTypeFeatures::from_be_bytes(draw.channel_type().to_be_bytes())
}

fn foreign(draw: &mut Draw) -> Vec<Message> {
    let mut all = dual_funding(draw);
    all.extend(interactive(draw));
    all.extend(splicing(draw));
    all.extend([
        msgs::Stfu { channel_id: draw.ldk_channel_id(), initiator: draw.flag() }.into(),
        PeerStorage { blob: draw.bytes(100) }.into(),
        PeerStorageRetrieval { blob: draw.bytes(100) }.into(),
        msgs::StartBatch {
            channel_id: draw.ldk_channel_id(),
            batch_size: draw.u16(),
            message_type: draw.maybe(Draw::u16),
        }
        .into(),
        AnnouncementSignatures {
            channel_id: draw.channel_id(),
            short_channel_id: ShortChannelId(draw.u64()),
            node_signature: draw.signature(),
            bitcoin_signature: draw.signature(),
        }
        .into(),
        Box::new(msgs::OnionMessage {
            blinding_point: draw.point(),
            onion_routing_packet: Packet {
                version: 0,
                public_key: draw.point(),
                hop_data: draw.bytes(1300),
                hmac: draw.array(),
            },
        })
        .into(),
    ]);
    all
}

fn interactive(draw: &mut Draw) -> Vec<Message> {
    let contribution = |draw: &mut Draw| draw.u64() as i64;
    vec![
        TxAddInput {
            channel_id: draw.channel_id(),
            serial_id: draw.u64(),
            prevtx: draw.maybe(Draw::transaction).unwrap_or_default(),
            prevtx_vout: draw.u32(),
            sequence: draw.u32(),
            shared_input_txid: draw.maybe(Draw::txid),
        }
        .into(),
        TxAddOutput {
            channel_id: draw.channel_id(),
            serial_id: draw.u64(),
            amount: Sat(draw.u64()),
            script: draw.script(),
        }
        .into(),
        msgs::TxRemoveInput { channel_id: draw.ldk_channel_id(), serial_id: draw.u64() }.into(),
        msgs::TxRemoveOutput { channel_id: draw.ldk_channel_id(), serial_id: draw.u64() }.into(),
        msgs::TxComplete { channel_id: draw.ldk_channel_id() }.into(),
        TxSignatures {
            channel_id: draw.channel_id(),
            txid: draw.txid(),
            witnesses: draw.list(3, |draw| serialize(&draw.witness())),
            shared_input_signature: draw.maybe(Draw::signature),
        }
        .into(),
        msgs::TxInitRbf {
            channel_id: draw.ldk_channel_id(),
            locktime: draw.u32(),
            feerate_sat_per_1000_weight: draw.u32(),
            funding_output_contribution: draw.maybe(contribution),
        }
        .into(),
        msgs::TxAckRbf { channel_id: draw.ldk_channel_id(), funding_output_contribution: draw.maybe(contribution) }
            .into(),
        TxAbort { channel_id: draw.channel_id(), data: draw.bytes(60) }.into(),
    ]
}

fn splicing(draw: &mut Draw) -> Vec<Message> {
    vec![
        msgs::SpliceInit {
            channel_id: draw.ldk_channel_id(),
            funding_contribution_satoshis: draw.u64() as i64,
            funding_feerate_per_kw: draw.u32(),
            locktime: draw.u32(),
            funding_pubkey: draw.point(),
            require_confirmed_inputs: draw.maybe(|_| ()),
        }
        .into(),
        msgs::SpliceAck {
            channel_id: draw.ldk_channel_id(),
            funding_contribution_satoshis: draw.u64() as i64,
            funding_pubkey: draw.point(),
            require_confirmed_inputs: draw.maybe(|_| ()),
        }
        .into(),
        msgs::SpliceLocked { channel_id: draw.ldk_channel_id(), splice_txid: draw.txid() }.into(),
    ]
}

fn announcements(draw: &mut Draw) -> Vec<Message> {
    let channel = msgs::ChannelAnnouncement {
        node_signature_1: draw.signature(),
        node_signature_2: draw.signature(),
        bitcoin_signature_1: draw.signature(),
        bitcoin_signature_2: draw.signature(),
        contents: msgs::UnsignedChannelAnnouncement {
            features: ChannelFeatures::from_be_bytes(draw.bytes(4)),
            chain_hash: draw.chain_hash(),
            short_channel_id: draw.u64(),
            node_id_1: draw.node_id(),
            node_id_2: draw.node_id(),
            bitcoin_key_1: draw.node_id(),
            bitcoin_key_2: draw.node_id(),
            excess_data: draw.bytes(20),
        },
    };
    let node = msgs::NodeAnnouncement {
        signature: draw.signature(),
        contents: msgs::UnsignedNodeAnnouncement {
            features: NodeFeatures::from_be_bytes(draw.bytes(8)),
            timestamp: draw.u32(),
            node_id: draw.node_id(),
            rgb: draw.array(),
            alias: NodeAlias(draw.array()),
            addresses: draw.list(3, Draw::address),
            excess_address_data: Vec::new(),
            excess_data: draw.bytes(20),
        },
    };
    let update = msgs::ChannelUpdate {
        signature: draw.signature(),
        contents: msgs::UnsignedChannelUpdate {
            chain_hash: draw.chain_hash(),
            short_channel_id: draw.u64(),
            timestamp: draw.u32(),
            message_flags: draw.u64() as u8 | 1,
            channel_flags: draw.u64() as u8,
            cltv_expiry_delta: draw.u16(),
            htlc_minimum_msat: draw.u64(),
            htlc_maximum_msat: draw.u64(),
            fee_base_msat: draw.u32(),
            fee_proportional_millionths: draw.u32(),
            excess_data: draw.bytes(20),
        },
    };
    vec![
        Box::new(ChannelAnnouncement::new(channel)).into(),
        Box::new(NodeAnnouncement::new(node)).into(),
        Box::new(ChannelUpdate::new(update)).into(),
    ]
}

fn queries(draw: &mut Draw) -> Vec<Message> {
    vec![
        QueryShortChannelIds {
            chain_hash: draw.chain_hash(),
            short_channel_ids: draw.list(9, Draw::short_channel_id),
            query_flags: draw.maybe(|draw| draw.list(9, |draw| draw.u64() % 32)),
        }
        .into(),
        ReplyShortChannelIdsEnd { chain_hash: draw.chain_hash(), full_information: draw.flag() }.into(),
        QueryChannelRange {
            chain_hash: draw.chain_hash(),
            first_block: millrace_wire::BlockHeight(draw.u32()),
            number_of_blocks: draw.u32(),
            query_options: draw.maybe(|draw| draw.u64() % 4),
        }
        .into(),
        ReplyChannelRange {
            chain_hash: draw.chain_hash(),
            first_block: millrace_wire::BlockHeight(draw.u32()),
            number_of_blocks: draw.u32(),
            sync_complete: draw.flag(),
            short_channel_ids: draw.list(9, Draw::short_channel_id),
            timestamps: draw.maybe(|draw| draw.list(9, Draw::pair)),
            checksums: draw.maybe(|draw| draw.list(9, Draw::pair)),
        }
        .into(),
        GossipTimestampFilter {
            chain_hash: draw.chain_hash(),
            first_timestamp: draw.u32(),
            timestamp_range: draw.u32(),
        }
        .into(),
    ]
}
