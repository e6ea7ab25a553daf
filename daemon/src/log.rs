//! Log lines, on standard error: text for people or one JSON object a line.
//!
//! Secrets are kept out by their types: none of them has a `Debug` that shows anything.

use std::io;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogFormat;

/// Why there are no log lines.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter is none.
    #[error(
        "log_level `{filter}` is not right: {reason}; use error, warn, info, debug, trace or a filter such as info,millraced::peer=debug"
    )]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logs were begun twice.
    #[error("logging has been started already")]
    Twice,
}

/// Begins to log, for the whole process.
///
/// # Errors
/// [`LogError`].
pub fn start(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let subscriber = subscriber(format, parse_filter(filter)?, io::stderr);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    let wrong = |reason: String| LogError::Filter { filter: filter.to_owned(), reason };
    if filter.trim().is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    // The filter takes any single word as a module's name, and then shows nothing of the others.
    let levels = ["error", "warn", "info", "debug", "trace", "off"];
    let is_bare = |part: &&str| !part.contains(['=', ':', '[']);
    if let Some(word) = filter.split(',').map(str::trim).filter(is_bare).find(|word| !levels.contains(word)) {
        return Err(wrong(format!("`{word}` is not a level")));
    }
    EnvFilter::builder().parse(filter).map_err(|error| wrong(error.to_string()))
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => Box::new(builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use bitcoin::Network;

    use super::*;
    use crate::config::Secret;
    use crate::keys::Keys;
    use crate::seed::Seed;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written of `events` with this format and filter.
    fn logged(format: LogFormat, filter: &str, events: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let subscriber = subscriber(format, parse_filter(filter).unwrap(), move || writer.clone());
        tracing::subscriber::with_default(subscriber, events);
        String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_is_an_object_a_line_with_the_fields_at_its_top() {
        let text = logged(LogFormat::Json, "info", || {
            tracing::info!(htlc_id = 7, "accepted");
            tracing::debug!("not shown");
        });
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((line["message"].as_str(), line["htlc_id"].as_u64()), (Some("accepted"), Some(7)));
    }

    #[test]
    fn text_has_message_and_fields() {
        let text = logged(LogFormat::Text, "warn,millraced=debug", || tracing::debug!(height = 9, "connected"));
        assert!(text.contains("connected") && text.contains("height") && text.contains('9'), "{text}");
    }

    #[test]
    fn filters_that_are_none() {
        for filter in ["", "loud", "info,lowd", "millraced=loud"] {
            let error = parse_filter(filter).unwrap_err().to_string();
            assert!(error.contains("use error, warn, info"), "{error}");
        }
    }

    #[test]
    fn no_secret_is_written_even_when_somebody_logs_the_types_that_hold_them() {
        let seed = Seed::from_entropy(&[7; 32]);
        let keys = Keys::derive(&seed, Network::Regtest);
        let password = Secret::new("hunter2");
        let channel = keys.channel_keys(0);
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, "trace", || {
                tracing::info!(?seed, ?keys, wallet = ?keys.wallet(), ?password, ?channel, "all of it");
            });
            assert!(text.contains("all of it"));
            let forms = [
                seed.words().split(' ').next().unwrap().to_owned(),
                hex::encode(seed.bytes()),
                hex::encode(keys.node_key().secret_bytes()),
                hex::encode(channel.funding_key().secret_bytes()),
                hex::encode(*keys.channel_seed(0)),
                "hunter2".to_owned(),
            ];
            for secret in forms {
                assert!(!text.contains(&secret), "{secret} in {text}");
            }
        }
    }
}
