//! What can go wrong for the caller of `millrace`, and the exit code for each.
//!
//! Scripts stand on these numbers: 0 done, 1 refused, 2 cannot reach the daemon, 3 usage, 4 payment failed,
//! 5 outcome unknown, 6 not authorised.

use std::error::Error;
use std::io;

use millrace_rpc::v1::{ErrorDetail, ErrorReason, PaymentFailure};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::words;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The daemon said no; nothing has changed.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// No connection came about, or it broke while only reading.
    #[error("cannot reach the daemon at {url}: {cause}")]
    Unreachable { url: String, cause: String },
    /// The command cannot be carried out as written.
    #[error("{0}")]
    Usage(String),
    /// The payment was tried and failed; no money has left.
    #[error("payment failed: {}", crate::payment::failure_text(.0))]
    PaymentFailed(Box<PaymentFailure>),
    /// The daemon may or may not have done it.
    #[error("{what}: outcome unknown: {cause}")]
    OutcomeUnknown {
        /// Which command.
        what: &'static str,
        /// What broke.
        cause: String,
        /// The key that finds out, by asking the same again.
        key: String,
    },
    /// The token is missing, cannot be read, or is not the daemon's.
    #[error("not authorised: {cause}")]
    Unauthorised { cause: String, hint: String },
    /// The answer could not be written; what was asked for may well be done.
    #[error("the answer cannot be written to standard output: {0}")]
    Untold(io::Error),
    /// A file that the command names, or the system below us.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

/// What the daemon said when it refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    code: Code,
    message: String,
    detail: Option<ErrorDetail>,
}

impl Fault {
    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Io { .. } => 1,
            Self::Unreachable { .. } => 2,
            Self::Usage(_) => 3,
            Self::PaymentFailed(_) => 4,
            Self::OutcomeUnknown { .. } | Self::Untold(_) => 5,
            Self::Unauthorised { .. } => 6,
        }
    }

    /// A status that the daemon answered with.
    pub(crate) fn answered(status: &Status) -> Self {
        let detail = ErrorDetail::from_status(status);
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Self::Unauthorised {
                cause: status.message().to_owned(),
                hint: detail
                    .map(|detail| detail.hint)
                    .filter(|hint| !hint.is_empty())
                    .unwrap_or_else(|| "Is the token file the one of this daemon?".to_owned()),
            },
            code => Self::Refused(Refusal { code, message: status.message().to_owned(), detail }),
        }
    }

    /// What a person can do about it.
    fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => {
                refusal.detail.as_ref().map(|detail| detail.hint.clone()).filter(|hint| !hint.is_empty())
            }
            Self::Unreachable { .. } => Some(
                "Is millraced running? `--data-dir` and `--network` say whose daemon is meant, \
                 `--rpc` its address."
                    .to_owned(),
            ),
            Self::PaymentFailed(failure) => Some(failure.hint.clone()).filter(|hint| !hint.is_empty()),
            Self::OutcomeUnknown { key, .. } => Some(format!(
                "It may have been done, or still go on. The same command with \
                 `--idempotency-key {key}` finds out and never does it twice."
            )),
            Self::Unauthorised { hint, .. } => Some(hint.clone()),
            Self::Usage(_) | Self::Untold(_) | Self::Io { .. } => None,
        }
    }

    /// For a person: the error, its facts and the hint.
    pub(crate) fn to_text(&self) -> String {
        let mut lines = vec![format!("error: {self}")];
        if let Self::Refused(Refusal { detail: Some(detail), .. }) = self {
            let fact = |(name, value): (&String, &String)| format!("  {name}: {value}");
            lines.extend(detail.facts.iter().map(fact));
        }
        lines.extend(self.hint().map(|hint| format!("hint: {hint}")));
        let printable: Vec<String> = lines.iter().map(|line| words::printable(line)).collect();
        printable.join("\n")
    }

    /// For a program: the same as one JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let mut error = json!({
            "kind": self.kind(),
            "exit_code": self.exit_code(),
            "message": self.to_string(),
            "hint": self.hint(),
        });
        match self {
            Self::Refused(refusal) => {
                error["code"] = json!(code_name(refusal.code));
                if let Some(detail) = &refusal.detail {
                    error["reason"] = json!(reason_name(detail.reason()));
                    error["facts"] = json!(detail.facts);
                }
            }
            Self::PaymentFailed(failure) => {
                error["failure"] = crate::payment::failure_json(failure);
            }
            Self::OutcomeUnknown { key, .. } => error["idempotency_key"] = json!(key),
            Self::Unreachable { .. }
            | Self::Usage(_)
            | Self::Unauthorised { .. }
            | Self::Untold(_)
            | Self::Io { .. } => {}
        }
        json!({ "error": error })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unreachable { .. } => "unreachable",
            Self::Usage(_) => "usage",
            Self::PaymentFailed(_) => "payment_failed",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::Unauthorised { .. } => "unauthorised",
            Self::Untold(_) => "untold",
            Self::Io { .. } => "io",
        }
    }

    /// True if trying again soon may help: no connection, or a daemon that is starting or stopping.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused(refusal) => refusal.code == Code::Unavailable,
            Self::Usage(_)
            | Self::PaymentFailed(_)
            | Self::OutcomeUnknown { .. }
            | Self::Unauthorised { .. }
            | Self::Untold(_)
            | Self::Io { .. } => false,
        }
    }
}

/// An error with all its causes, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

/// A refusal's reason as it stands in the contract, without its prefix.
fn reason_name(reason: ErrorReason) -> String {
    words::value(reason.as_str_name(), "ERROR_REASON_").to_uppercase()
}

/// A gRPC code as it is usually written.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
