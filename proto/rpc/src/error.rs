//! How errors travel: an `ErrorDetail` as `Any` in the `google.rpc.Status` of the trailer
//! `grpc-status-details-bin`, as in every other language's gRPC library.
//!
//! Which gRPC code belongs to which reason stands in `common.proto`, and here in `ErrorReason::code`.
//! It does not decide what is an error.

use prost::Message;
use tonic::{Code, Status};

use crate::v1::{ErrorDetail, ErrorReason, StreamRefused};

const DETAIL_TYPE_URL: &str = "type.googleapis.com/millrace.v1.ErrorDetail";

/// `google.rpc.Status`, so far as it is needed.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

impl ErrorDetail {
    /// A detail with this reason, without facts and without a hint.
    #[must_use]
    pub fn new(reason: ErrorReason) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }

    /// Adds a fact; its name ends in the unit where it has one.
    #[must_use]
    pub fn fact(mut self, name: &str, value: impl ToString) -> Self {
        self.facts.insert(name.to_owned(), value.to_string());
        self
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The status to answer a call with: the reason's own code, this message, this detail.
    #[must_use]
    pub fn into_status(self, message: impl Into<String>) -> Status {
        let code = self.reason().code();
        let message = message.into();
        let packed = RpcStatus {
            code: code.into(),
            message: message.clone(),
            details: vec![prost_types::Any { type_url: DETAIL_TYPE_URL.to_owned(), value: self.encode_to_vec() }],
        };
        Status::with_details(code, message, packed.encode_to_vec().into())
    }

    /// The detail that a status carries; none if it carries none that can be read.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        let packed = RpcStatus::decode(status.details()).ok()?;
        let any = packed.details.iter().find(|any| any.type_url == DETAIL_TYPE_URL)?;
        Self::decode(any.value.as_slice()).ok()
    }
}

impl ErrorReason {
    /// The gRPC code that goes with the reason, as `common.proto` says.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::Unspecified => Code::Unknown,

            Self::InvalidField
            | Self::IdempotencyKeyInvalid
            | Self::WrongNetwork
            | Self::InvoiceInvalid
            | Self::AmountMissing
            | Self::AmountConflict
            | Self::AddressInvalid => Code::InvalidArgument,

            Self::IdempotencyConflict | Self::PreimageReused | Self::InvoiceAlreadyPaid => Code::AlreadyExists,
            Self::TokenInvalid => Code::Unauthenticated,
            Self::CursorTooOld => Code::OutOfRange,
            Self::NotFound => Code::NotFound,
            Self::Internal => Code::Internal,
            Self::TooManyRequests | Self::DiskFull => Code::ResourceExhausted,

            Self::NotReady | Self::ShuttingDown | Self::ChainAway | Self::ChainSyncing | Self::PeerUnreachable => {
                Code::Unavailable
            }

            Self::PeerRefused | Self::OpenFailed | Self::BroadcastRefused => Code::Aborted,

            Self::InvoiceExpired
            | Self::InvoiceFeatureUnknown
            | Self::AmountBelowMinimum
            | Self::AmountAboveMaximum
            | Self::InsufficientBalance
            | Self::SelfPayment
            | Self::NoRoute
            | Self::InvoiceNotHeld
            | Self::InvoiceCancelled
            | Self::PeerNotConnected
            | Self::PeerHandshakeFailed
            | Self::PeerFeatureMissing
            | Self::PeerHasChannels
            | Self::ChannelNotUsable
            | Self::TooManyHtlcs
            | Self::DustExposure
            | Self::AnchorReserve
            | Self::NotReplaceable
            | Self::FeerateOutOfRange => Code::FailedPrecondition,
        }
    }
}

/// A refusal on `Payments.Stream`: what a call of its own would have answered.
impl From<Status> for StreamRefused {
    fn from(status: Status) -> Self {
        Self {
            code: i32::from(status.code()).unsigned_abs(),
            message: status.message().to_owned(),
            detail: ErrorDetail::from_status(&status),
        }
    }
}

/// The status that the refusal stands for.
impl From<StreamRefused> for Status {
    fn from(refused: StreamRefused) -> Self {
        match refused.detail {
            Some(detail) => detail.into_status(refused.message),
            None => {
                let code = i32::try_from(refused.code).map_or(Code::Unknown, Code::from);
                Status::new(code, refused.message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::v1::FILE_DESCRIPTOR_SET;

    fn too_small() -> ErrorDetail {
        ErrorDetail::new(ErrorReason::AmountBelowMinimum)
            .fact("amount_msat", 999)
            .fact("htlc_minimum_msat", 1000)
            .hint("Pay at least 1000msat.")
    }

    #[test]
    fn a_detail_survives_the_status() {
        let status = too_small().into_status("999 msat is below htlc_minimum_msat 1000");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(ErrorDetail::from_status(&status), Some(too_small()));
    }

    #[test]
    fn a_status_without_or_with_other_details_has_no_detail() {
        assert_eq!(ErrorDetail::from_status(&Status::internal("x")), None);
        let garbage = Status::with_details(Code::Internal, "x", vec![0xff, 0x01].into());
        assert_eq!(ErrorDetail::from_status(&garbage), None);
        let other = RpcStatus {
            code: 13,
            message: "x".to_owned(),
            details: vec![prost_types::Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: too_small().encode_to_vec(),
            }],
        };
        let other = Status::with_details(Code::Internal, "x", other.encode_to_vec().into());
        assert_eq!(ErrorDetail::from_status(&other), None);
    }

    #[test]
    fn a_refusal_on_a_stream_is_the_same_status() {
        let refused = StreamRefused::from(too_small().into_status("too small"));
        assert_eq!(refused.code, 9);
        let status = Status::from(refused);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "too small");
        assert_eq!(ErrorDetail::from_status(&status), Some(too_small()));
        let bare = Status::from(StreamRefused::from(Status::unavailable("away")));
        assert_eq!((bare.code(), bare.message()), (Code::Unavailable, "away"));
    }

    fn descriptors() -> FileDescriptorSet {
        FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap()
    }

    /// The comment of each reason in `common.proto` begins with its code: both tables are one.
    #[test]
    fn codes_are_those_of_the_proto_file() {
        let set = descriptors();
        let file = set.file.iter().find(|file| file.name() == "millrace/v1/common.proto").unwrap();
        let enum_index = file.enum_type.iter().position(|e| e.name() == "ErrorReason").unwrap();
        let locations = &file.source_code_info.as_ref().unwrap().location;
        for (index, value) in file.enum_type[enum_index].value.iter().enumerate().skip(1) {
            let path = [5, enum_index as i32, 2, index as i32];
            let comment = locations.iter().find(|location| location.path == path).unwrap().leading_comments().trim();
            let (code, _) = comment.split_once(':').unwrap();
            let reason = ErrorReason::try_from(value.number()).unwrap();
            let ours = format!("{:?}", reason.code());
            assert_eq!(code.replace('_', ""), ours.to_uppercase(), "{reason:?}");
        }
    }

    /// Every service, call, message, field, enum and value has a comment.
    #[test]
    fn everything_in_the_contract_has_a_comment() {
        for file in descriptors().file {
            let commented: Vec<&[i32]> = file
                .source_code_info
                .as_ref()
                .unwrap()
                .location
                .iter()
                .filter(|location| !location.leading_comments().trim().is_empty())
                .map(|location| location.path.as_slice())
                .collect();
            let mut wanted: Vec<(Vec<i32>, String)> = Vec::new();
            for (m, message) in (0..).zip(&file.message_type) {
                wanted.push((vec![4, m], message.name().to_owned()));
                for (f, field) in (0..).zip(&message.field) {
                    let name = format!("{}.{}", message.name(), field.name());
                    wanted.push((vec![4, m, 2, f], name));
                }
            }
            for (e, an_enum) in (0..).zip(&file.enum_type) {
                wanted.push((vec![5, e], an_enum.name().to_owned()));
                for (v, value) in (0..).zip(&an_enum.value) {
                    wanted.push((vec![5, e, 2, v], value.name().to_owned()));
                }
            }
            for (s, service) in (0..).zip(&file.service) {
                wanted.push((vec![6, s], service.name().to_owned()));
                for (m, method) in (0..).zip(&service.method) {
                    wanted.push((vec![6, s, 2, m], method.name().to_owned()));
                }
            }
            for (path, name) in wanted {
                assert!(commented.contains(&path.as_slice()), "no comment: {name}");
            }
        }
    }

    /// A number of money or time says its unit in its name.
    #[test]
    fn amounts_and_times_say_their_unit() {
        let units = ["_sat", "_msat", "_ms", "_us", "_s", "_kw", "_blocks", "_ppm"];
        let speaks_of = ["amount", "fee", "balance", "capacity", "reserve", "expiry", "time"];
        let none_needed = [
            // BOLT names, in blocks or without a unit.
            "min_final_cltv_expiry_delta",
            "cltv_expiry_delta",
            "cltv_expiry",
            "fee_proportional_millionths",
        ];
        for file in descriptors().file {
            for message in file.message_type {
                for field in &message.field {
                    use prost_types::field_descriptor_proto::Type;
                    let name = field.name();
                    let number = matches!(field.r#type(), Type::Uint32 | Type::Uint64);
                    let unit = units.iter().any(|unit| name.ends_with(unit));
                    let spoken = speaks_of.iter().any(|word| name.contains(word));
                    let fine = !number || !spoken || unit || none_needed.contains(&name);
                    assert!(fine, "{}.{name} has no unit", message.name());
                }
            }
        }
    }

    /// Every call that changes something takes an idempotency key; no other does.
    #[test]
    fn mutating_calls_take_an_idempotency_key() {
        let reading = [
            "GetInfo",
            "GetStatus",
            "Get",
            "List",
            "Balance",
            "ListTransactions",
            "ListUtxos",
            "Decode",
            "Subscribe",
            // Of a payment that is not made: its request is that of one that is.
            "EstimateRoute",
            "Info",
            "GetNode",
            "GetChannel",
            // It hands out what there is.
            "TakeCommitment",
        ];
        let set = descriptors();
        for method in set.file.iter().flat_map(|f| &f.service).flat_map(|s| &s.method) {
            let input = method.input_type().trim_start_matches(".millrace.v1.");
            let request =
                set.file.iter().flat_map(|file| &file.message_type).find(|message| message.name() == input).unwrap();
            let has_key = request.field.iter().any(|f| f.name() == "idempotency_key");
            assert_eq!(has_key, !reading.contains(&method.name()), "{input}");
        }
    }
}
