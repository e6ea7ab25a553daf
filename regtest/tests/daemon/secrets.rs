//! No secret is in anything that the daemon tells: logs, `rpc.json`, metrics. And what holds secrets is its owner's alone.
//!
//! The secrets are known because this test reads the daemon's own folder after the run, and derives the keys from the
//! words in it. Every one is searched for in each form in which a log line could hold it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use bitcoin::bip32::{ChildNumber, Xpriv};
use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use millrace_channel::keys::ChannelKeys;
use millrace_regtest::network::random_key;
use millrace_rpc::v1::{CreateInvoiceRequest, PaymentStatus};
use secp256k1::SECP256K1;

use super::support::{
    ALICE, BOB, Pair, check_refusal, invoices, metrics_page, order, pair_with, pay, payments, turn_metrics_on,
};

/// "MILL", under which the node's own keys are derived.
const PURPOSE: u32 = 0x4d49_4c4c;
/// Files that hold no secret; beside the folder's own rights they need none.
const OPEN: &[&str] = &["tls.cert", "rpc.json", "network", "lock"];
/// A preimage of an invoice that nobody pays.
const UNPAID_PREIMAGE: [u8; 32] = *b"a preimage that stays a secret..";

/// Something that nobody may be told.
struct Secret {
    what: String,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    fn text(what: &str, text: &str) -> Self {
        Self { what: what.to_owned(), forms: vec![text.as_bytes().to_vec()] }
    }

    /// Bytes: as they are, in hex, in base64, and as Rust and JSON print a list of them.
    fn bytes(what: impl Into<String>, bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 16, "so few bytes are found by chance");
        let listed = |separator: &str| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(separator).into_bytes();
        let lines = format!("{bytes:#?}").lines().map(str::trim).collect::<Vec<_>>().join("\n");
        let standard = base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes);
        let forms = vec![
            bytes.to_vec(),
            hex::encode(bytes).into_bytes(),
            hex::encode_upper(bytes).into_bytes(),
            hex::encode(bytes.iter().rev().copied().collect::<Vec<_>>()).into_bytes(),
            standard.into_bytes(),
            listed(", "),
            listed(","),
            lines.into_bytes(),
        ];
        Self { what: what.into(), forms }
    }
}

/// The first place of `form` in `text`.
fn find(text: &[u8], form: &[u8]) -> Option<usize> {
    let first = *form.first()?;
    let mut from = 0;
    while let Some(offset) = text[from..].iter().position(|byte| *byte == first) {
        let at = from + offset;
        if text[at..].starts_with(form) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// Everything that follows from the words in the folder. `node_id` proves that the derivation is the daemon's.
fn secrets_of_seed(words: &str, node_id: &[u8]) -> Vec<Secret> {
    let mnemonic = bip39::Mnemonic::parse(words).unwrap();
    let seed = mnemonic.to_seed("");
    let master = Xpriv::new_master(bitcoin::NetworkKind::Test, &seed).unwrap();
    let account = |path: [u32; 3]| {
        let path: Vec<ChildNumber> = path.iter().map(|index| ChildNumber::Hardened { index: *index }).collect();
        master.derive_priv(SECP256K1, &path).unwrap()
    };
    let own = |family| account([PURPOSE, 1, family]).private_key;
    let node = own(0);
    assert_eq!(node.public_key(SECP256K1).serialize(), node_id, "these are not the daemon's keys");
    let mut secrets = vec![
        Secret::text("the words", words),
        Secret::bytes("the entropy", &mnemonic.to_entropy()),
        Secret::bytes("the seed", &seed),
        Secret::bytes("the master key", &master.private_key.secret_bytes()),
        Secret::bytes("the node key", &node.secret_bytes()),
        Secret::bytes("the channels' key", &own(1).secret_bytes()),
        Secret::bytes("the invoices' key", &own(2).secret_bytes()),
    ];
    let words: Vec<&str> = words.split_whitespace().collect();
    // A few words side by side are no accident either, whatever stands between them.
    for separator in [" ", ", ", "\", \""] {
        secrets.extend(words.windows(3).map(|three| Secret::text("some of the words", &three.join(separator))));
    }
    for purpose in [84, 86] {
        let account = account([purpose, 1, 0]);
        secrets.push(Secret::bytes(format!("the wallet's account {purpose}"), &account.private_key.secret_bytes()));
        secrets.push(Secret::text("a wallet's account", &account.to_string()));
    }
    for index in 0..4_u64 {
        let mut engine = HmacEngine::<sha256::Hash>::new(&own(1).secret_bytes());
        engine.input(b"millrace/channel-seed/1/");
        engine.input(&index.to_be_bytes());
        let seed = Hmac::from_engine(engine).to_byte_array();
        let keys = ChannelKeys::from_seed(&seed);
        secrets.push(Secret::bytes(format!("the seed of channel {index}"), &seed));
        secrets.push(Secret::bytes(format!("the funding key of channel {index}"), &keys.funding_key().secret_bytes()));
        secrets.push(Secret::bytes(format!("the payment key of channel {index}"), &keys.payment_key().secret_bytes()));
    }
    secrets
}

/// What the daemon's folder holds.
fn secrets_of_folder(folder: &Path, node_id: &[u8]) -> Vec<Secret> {
    let words = fs::read_to_string(folder.join("seed")).unwrap();
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut secrets = secrets_of_seed(&words, node_id);
    secrets.push(Secret::text("the token", fs::read_to_string(folder.join("access.token")).unwrap().trim()));
    let pem = fs::read_to_string(folder.join("tls.key")).unwrap();
    let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    assert!(!lines.is_empty());
    secrets.extend(lines.iter().map(|line| Secret::text("a line of the TLS key", line)));
    let der = base64::engine::general_purpose::STANDARD.decode(lines.concat()).unwrap();
    secrets.push(Secret::bytes("the TLS key", &der));
    // PKCS #8 of an elliptic curve holds the 32 secret bytes after the tag of an octet string.
    let at = find(&der, &[0x02, 0x01, 0x01, 0x04, 0x20]).expect("a key on a curve of 256 bits") + 5;
    secrets.push(Secret::bytes("the TLS key's number", &der[at..at + 32]));
    secrets
}

/// Preimages that the daemon knows.
async fn preimages(pair: &Pair, node: usize) -> Vec<Secret> {
    let client = pair.client(node);
    let paid = invoices(&client).await.into_iter().map(|invoice| invoice.preimage);
    let sent = payments(&client).await.into_iter().map(|payment| payment.preimage);
    let known: Vec<Vec<u8>> = paid.chain(sent).filter(|preimage| !preimage.is_empty()).collect();
    assert!(known.len() >= 4, "only {} preimages", known.len());
    let mut secrets: Vec<Secret> = known.iter().map(|preimage| Secret::bytes("a preimage", preimage)).collect();
    secrets.push(Secret::bytes("the preimage of an unpaid invoice", &UNPAID_PREIMAGE));
    secrets
}

/// What bitcoind accepts as login, so far as it is known: it changes with each of its starts.
fn cookie(pair: &Pair) -> Secret {
    let text = fs::read_to_string(pair.network.bitcoind.cookie_path()).unwrap();
    let (_, password) = text.split_once(':').unwrap();
    let header = base64::engine::general_purpose::STANDARD.encode(&text);
    Secret { what: "bitcoind's cookie".to_owned(), forms: vec![password.into(), header.into_bytes()] }
}

/// Payments both ways, a failed call, a kill, a start, and a close: everything that writes log lines.
async fn story(pair: &mut Pair) {
    for (from, to) in [(ALICE, BOB), (BOB, ALICE), (ALICE, BOB), (BOB, ALICE)] {
        let bolt11 = pair.invoice(to, 25_000).await;
        assert_eq!(pair.pay(from, &bolt11).await.unwrap().status(), PaymentStatus::Succeeded);
    }
    for node in [ALICE, BOB] {
        let request = CreateInvoiceRequest {
            idempotency_key: random_key(),
            amount_msat: Some(99_000),
            preimage: UNPAID_PREIMAGE.to_vec(),
            ..CreateInvoiceRequest::default()
        };
        pair.client(node).invoices.create(request).await.unwrap();
    }
    let refusal = pay(&pair.client(ALICE), order("not an invoice")).await.unwrap_err();
    check_refusal(&refusal, millrace_rpc::v1::ErrorReason::InvoiceInvalid);
    pair.network.nodes[BOB].kill9().unwrap();
    pair.network.nodes[BOB].start().await.unwrap();
    pair.wait_until_usable().await;
    let bolt11 = pair.invoice(BOB, 26_000).await;
    pair.pay(ALICE, &bolt11).await.unwrap();
    let close = millrace_rpc::v1::CloseChannelRequest {
        idempotency_key: random_key(),
        channel_id: pair.channel_id.clone(),
        ..Default::default()
    };
    pair.client(ALICE).channels.close(close).await.unwrap();
    pair.network.wait_for_mempool(1).await.unwrap();
    pair.network.mine(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_told_holds_a_secret() {
    let mut pair = pair_with(
        |node| {
            node.argument("--log-level");
            node.argument("trace");
            node.argument("--log");
            node.argument(if node.name == "alice" { "text" } else { "json" });
            if node.name == "alice" {
                turn_metrics_on(node);
            }
        },
        |_| {},
    )
    .await;
    story(&mut pair).await;
    let page = metrics_page(&pair.network.nodes[ALICE]).await.into_bytes();
    assert!(find(&page, b"millrace_").is_some(), "{}", String::from_utf8_lossy(&page));

    for node in [ALICE, BOB] {
        let (folder, node_id) =
            (pair.network.nodes[node].data_dir().to_owned(), pair.network.nodes[node].node_id().to_vec());
        let mut secrets = secrets_of_folder(&folder, &node_id);
        secrets.extend(preimages(&pair, node).await);
        secrets.push(cookie(&pair));
        let rpc_json = fs::read(folder.join("rpc.json")).unwrap();
        pair.network.nodes[node].stop().await.unwrap();
        let log = fs::read(pair.network.nodes[node].log_path()).unwrap();
        // The log is one, at its loudest, in its form, and speaks of this run.
        assert!(find(&log, b"TRACE").is_some());
        let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok_and(|json| json.is_object());
        for line in String::from_utf8(log.clone()).unwrap().lines() {
            assert_eq!(is_json(line), node == BOB, "{line}");
        }
        assert!(find(&log, hex::encode(&node_id).as_bytes()).is_some());
        let told = [("the log", &log), ("rpc.json", &rpc_json), ("the metrics", &page)];
        check_silent(&told, &secrets);
    }
}

fn check_silent(told: &[(&str, &Vec<u8>)], secrets: &[Secret]) {
    for (place, text) in told {
        for secret in secrets {
            for form in &secret.forms {
                if let Some(at) = find(text, form) {
                    let line = text[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
                    let end = (at + form.len() + 40).min(text.len());
                    panic!("{place} holds {}: {}", secret.what, String::from_utf8_lossy(&text[line..end]));
                }
            }
        }
    }
}

/// That the search finds what is there, in every form.
#[test]
fn a_secret_that_is_told_is_found() {
    let bytes: Vec<u8> = (100..132).collect();
    let secret = || vec![Secret::bytes("it", &bytes)];
    let told = [
        format!("key={}", hex::encode(&bytes)),
        format!("key={bytes:?}"),
        serde_json::to_string(&bytes).unwrap(),
        base64::engine::general_purpose::STANDARD.encode(&bytes),
    ];
    for text in told {
        let text = format!("a line\n{text}\n").into_bytes();
        assert!(std::panic::catch_unwind(|| check_silent(&[("a text", &text)], &secret())).is_err());
    }
    check_silent(&[("a text", &b"a line\n".to_vec())], &secret());
}

fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
    out.push(folder.to_owned());
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, out) } else { out.push(path) }
    }
}

/// Nobody but the owner gets into the folder, and the files with secrets are closed by themselves as well.
#[tokio::test(flavor = "multi_thread")]
async fn folders_and_files_are_their_owners_alone() {
    let pair = super::support::pair().await;
    let bolt11 = pair.invoice(BOB, 25_000).await;
    pair.pay(ALICE, &bolt11).await.unwrap();
    for node in &pair.network.nodes {
        let mut found = Vec::new();
        walk(node.data_dir(), &mut found);
        for name in ["seed", "tls.key", "access.token"] {
            assert!(found.contains(&node.data_dir().join(name)), "{name} is missing: {found:?}");
        }
        for path in found {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let name = path.file_name().unwrap().to_str().unwrap();
            let expected = match path.is_dir() {
                true => 0o700,
                false if OPEN.contains(&name) => mode & 0o744,
                false => 0o600,
            };
            assert_eq!(mode, expected, "{} has {mode:o}", path.display());
        }
    }
    pair.stop().await;
}
