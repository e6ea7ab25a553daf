//! Nonsense in every field of every call: an answer each time, never a panic.

use millrace_rpc::v1;
use millrace_rpc::v1::FILE_DESCRIPTOR_SET;
use millrace_rpc::v1::node_client::NodeClient;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use crate::support::FakeChain;
use crate::world::{open_between, start};

/// Bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let bytes = input.chunk().to_vec();
        input.advance(input.remaining());
        Ok(Some(bytes))
    }
}

/// A small generator of numbers: what a seed gives, it gives again.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) ^ self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = [0, 1, 31, 32, 32, 33, 33, 64, 65, 300][self.below(10) as usize];
        let mut bytes: Vec<u8> = (0..length).map(|_| self.next() as u8).collect();
        if length == 33 && self.below(2) == 0 {
            bytes[0] = 2;
        }
        bytes
    }

    fn text(&mut self) -> String {
        match self.below(6) {
            0 => String::new(),
            1 => "lnbcrt1".to_owned(),
            2 => "127.0.0.1:9".to_owned(),
            3 => "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080".to_owned(),
            4 => "\u{1F600}".repeat(self.below(40) as usize),
            _ => hex::encode(self.bytes()),
        }
    }

    fn number(&mut self) -> u64 {
        [0, 1, 2, 250, 1_000, 65_536, u64::from(u32::MAX), u64::MAX, u64::MAX / 2, self.next()][self.below(10) as usize]
    }
}

/// A request with something in about two thirds of its fields; some of it of the wrong kind.
fn message(of: &DescriptorProto, all: &[DescriptorProto], numbers: &mut Numbers, depth: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for field in &of.field {
        if numbers.below(3) == 0 {
            continue;
        }
        let tag = u64::from(field.number().unsigned_abs()) << 3;
        let times = if field.label() == Label::Repeated { numbers.below(3) } else { 1 };
        for _ in 0..times {
            match field.r#type() {
                _ if numbers.below(40) == 0 => put_bytes(tag, &numbers.bytes(), &mut out),
                Type::Message if depth < 3 => {
                    let name = field.type_name().rsplit('.').next().unwrap().to_owned();
                    let Some(inner) = all.iter().find(|message| message.name() == name) else { continue };
                    put_bytes(tag, &message_of(inner, all, numbers, depth), &mut out);
                }
                Type::Message => {}
                Type::String => put_bytes(tag, numbers.text().as_bytes(), &mut out),
                Type::Bytes => put_bytes(tag, &numbers.bytes(), &mut out),
                _ => {
                    prost::encoding::encode_varint(tag, &mut out);
                    prost::encoding::encode_varint(numbers.number(), &mut out);
                }
            }
        }
    }
    out
}

fn message_of(of: &DescriptorProto, all: &[DescriptorProto], numbers: &mut Numbers, depth: u32) -> Vec<u8> {
    message(of, all, numbers, depth + 1)
}

fn put_bytes(tag: u64, bytes: &[u8], out: &mut Vec<u8>) {
    prost::encoding::encode_varint(tag | 2, out);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_in_every_field_is_answered() {
    const ROUNDS: u64 = 60;
    let (chain, a_home, b_home) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = (start(a_home.path(), &chain).await, start(b_home.path(), &chain).await);
    alice.connect(&bob).await;
    let channel_id = open_between(&alice, &bob, &chain, 1_000_000, 0).await;
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let all: Vec<DescriptorProto> = set.file.iter().flat_map(|file| file.message_type.clone()).collect();
    let mut client = tonic::client::Grpc::new(alice.link().await).max_decoding_message_size(8 << 20);
    let (mut calls, mut ok) = (0, 0);
    for (file, service) in set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service))) {
        for method in &service.method {
            let name = method.input_type().rsplit('.').next().unwrap();
            let input = all.iter().find(|message| message.name() == name).unwrap();
            let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
            let path: PathAndQuery = path.parse().unwrap();
            for seed in 0..ROUNDS {
                let mut numbers = Numbers(seed * 7_919 + calls);
                let body = message(input, &all, &mut numbers, 0);
                client.ready().await.unwrap();
                let requests = tokio_stream::iter([body.clone(), body.clone()][..1 + (seed % 2) as usize].to_vec());
                let is_stream = method.client_streaming();
                let requests = tokio_stream::StreamExt::take(requests, if is_stream { 2 } else { 1 });
                let called = client.streaming(Request::new(requests), path.clone(), Raw);
                let patience = std::time::Duration::from_secs(20);
                let status = match tokio::time::timeout(patience, called).await {
                    Ok(Ok(response)) => {
                        let mut stream = response.into_inner();
                        // What follows something has no end by itself.
                        let first = std::time::Duration::from_millis(200);
                        match tokio::time::timeout(first, stream.message()).await {
                            Ok(Ok(_)) | Err(_) => None,
                            Ok(Err(status)) => Some(status),
                        }
                    }
                    Ok(Err(status)) => Some(status),
                    Err(_) => panic!("{path}, seed {seed}: no answer"),
                };
                calls += 1;
                match status {
                    None => ok += 1,
                    Some(status) => {
                        let code = status.code();
                        let is_ours = !matches!(code, Code::Internal | Code::Unknown);
                        // Fields of the wrong kind never reach a handler: tonic calls them internal.
                        let is_wire = status.message().contains("decode");
                        assert!(is_ours || is_wire, "{path}, seed {seed}, {}: {status:?}", hex::encode(&body));
                    }
                }
            }
        }
    }
    println!("{calls} calls, {ok} with an answer");
    assert!(ok > calls / 20, "some of it must get through: {ok} of {calls}");
    let mut node = NodeClient::new(alice.link().await);
    node.get_info(v1::GetInfoRequest {}).await.expect("it lives");
    assert!(alice.node.registry().snapshot(channel_id).is_some());
    alice.stop().await;
    bob.stop().await;
}
