//! A small blocking JSON-RPC client, for driving a bitcoind on this machine.
//!
//! One connection per call, HTTP only, the cookie read for each call (bitcoind writes a new one at
//! each start). It does not verify what it gets: this is the test's own bitcoind.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Error, Result};

/// How long one call may take: mining some thousand blocks takes seconds.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// A way to call one bitcoind on this machine.
#[derive(Debug, Clone)]
pub struct RpcClient {
    port: u16,
    cookie: PathBuf,
    wallet: Option<String>,
}

impl RpcClient {
    /// For the bitcoind whose RPC listens on `port` of 127.0.0.1 and whose cookie file is `cookie`.
    #[must_use]
    pub fn new(port: u16, cookie: &Path) -> Self {
        Self { port, cookie: cookie.to_owned(), wallet: None }
    }

    /// The same for calls about one wallet.
    #[must_use]
    pub fn with_wallet(&self, name: &str) -> Self {
        Self { wallet: Some(name.to_owned()), ..self.clone() }
    }

    /// Calls `method` with positional or named parameters.
    ///
    /// # Errors
    /// [`Error::Rpc`] if bitcoind refuses, [`Error::NoAnswer`] if it does not answer.
    pub fn call(&self, method: &str, params: &Value) -> Result<Value> {
        let no_answer = |reason: String| Error::NoAnswer { method: method.to_owned(), reason };
        let body = json!({ "jsonrpc": "1.0", "id": 1, "method": method, "params": params });
        let (status, text) = self.post(&body.to_string()).map_err(|error| no_answer(error.to_string()))?;
        let Ok(answer) = serde_json::from_slice::<Value>(&text) else {
            let words = String::from_utf8_lossy(&text);
            return Err(no_answer(format!("HTTP status {status}: {}", words.trim())));
        };
        match answer.get("error") {
            None | Some(Value::Null) => Ok(answer["result"].clone()),
            Some(error) => Err(Error::Rpc {
                method: method.to_owned(),
                code: error["code"].as_i64().unwrap_or_default(),
                message: error["message"].as_str().unwrap_or_default().to_owned(),
            }),
        }
    }

    fn post(&self, body: &str) -> io::Result<(u16, Vec<u8>)> {
        let cookie = fs::read_to_string(&self.cookie)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, CALL_LIMIT)?;
        stream.set_read_timeout(Some(CALL_LIMIT))?;
        stream.set_write_timeout(Some(CALL_LIMIT))?;
        let path = self.wallet.as_ref().map_or("/".to_owned(), |name| format!("/wallet/{name}"));
        let login = STANDARD.encode(cookie.trim());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic {login}\r\n\
             Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        read_answer(BufReader::new(stream))
    }
}

/// Reads one HTTP answer whose sender closes the connection or says its length.
fn read_answer(mut reader: impl BufRead) -> io::Result<(u16, Vec<u8>)> {
    let odd = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| odd(format!("not an HTTP answer: {line:?}")))?;
    let mut length = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let mut body = Vec::new();
    match length {
        Some(length) => {
            let read = reader.take(length).read_to_end(&mut body)?;
            if u64::try_from(read).ok() != Some(length) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        None => drop(reader.read_to_end(&mut body)?),
    }
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    mod read_answer {
        use super::*;

        #[test]
        fn with_length() {
            let text = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\nContent-length: 3\r\n\r\nabcMORE";
            assert_eq!(read_answer(&text[..]).unwrap(), (200, b"abc".to_vec()));
        }

        #[test]
        fn to_the_end_of_the_connection() {
            let text = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\nno";
            assert_eq!(read_answer(&text[..]).unwrap(), (401, b"no".to_vec()));
        }

        #[test]
        fn cut_short() {
            for text in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"] {
                let error = read_answer(text.as_bytes()).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{text:?}");
            }
        }

        #[test]
        fn something_else() {
            let error = read_answer(&b"SSH-2.0-x\r\n"[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
