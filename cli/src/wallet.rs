//! `millrace wallet`: addresses, balances and transactions on chain.

use clap::{Subcommand, ValueEnum};
use millrace_rpc::v1::wallet_client::WalletClient;
use millrace_rpc::v1::{
    AddressType, BalanceRequest, BalanceResponse, BumpFeeRequest, BumpFeeResponse, ListTransactionsRequest,
    ListUtxosRequest, NewAddressRequest, OutPoint, SendRequest, SendResponse, Utxo, WalletTransaction, send_request,
};
use serde_json::{Value, json};

use crate::amount::Amount;
use crate::args::{FeeArgs, KeyArg, PageArgs};
use crate::fault::Fault;
use crate::output::{Column, Output, facts, list, page, qr};
use crate::session::{Order, Session};
use crate::words;

/// Commands about coins on chain.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Get a fresh address to receive coins at
    ///
    /// Examples:
    ///   millrace wallet new-address
    ///   millrace wallet new-address --type segwit --json | jq -r .address
    #[command(verbatim_doc_comment)]
    NewAddress {
        /// Kind of address
        #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t = Kind::Taproot)]
        kind: Kind,
        /// Print no QR code
        #[arg(long)]
        no_qr: bool,
        #[command(flatten)]
        key: KeyArg,
    },
    /// Show what the node owns, on chain and in channels
    Balance,
    /// Send coins to an address
    ///
    /// The reserve that gets commitments confirmed stays, also with `all`.
    ///
    /// Examples:
    ///   millrace wallet send bcrt1q… 50000sat
    ///   millrace wallet send bcrt1q… 0.01btc --target 3
    ///   millrace wallet send bcrt1q… all --feerate 2.5
    #[command(verbatim_doc_comment)]
    Send {
        /// Where to
        address: String,
        /// How much: an amount in whole satoshi, or `all`
        #[arg(value_name = "AMOUNT|all")]
        amount: SendAmount,
        #[command(flatten)]
        fee: FeeArgs,
        #[command(flatten)]
        key: KeyArg,
    },
    /// Make an unconfirmed transaction of yours pay more
    ///
    /// Examples:
    ///   millrace wallet bump-fee TXID --feerate 20
    #[command(verbatim_doc_comment)]
    BumpFee {
        /// The transaction
        #[arg(value_parser = words::id32)]
        txid: [u8; 32],
        #[command(flatten)]
        fee: FeeArgs,
        #[command(flatten)]
        key: KeyArg,
    },
    /// List transactions, the newest first
    List {
        #[command(flatten)]
        page: PageArgs,
    },
    /// List unspent outputs
    Utxos {
        #[command(flatten)]
        page: PageArgs,
    },
}

/// Kinds of address.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// Pay to taproot
    Taproot,
    /// Pay to witness public key hash
    Segwit,
}

/// How much to send.
#[derive(Clone, Copy)]
pub(crate) enum SendAmount {
    Sat(u64),
    All,
}

impl std::str::FromStr for SendAmount {
    type Err = crate::amount::AmountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            amount => Ok(Self::Sat(amount.parse::<Amount>()?.whole_sat()?)),
        }
    }
}

impl Command {
    /// Asks and shows.
    pub(crate) async fn run(self, session: &Session, output: &mut Output) -> Result<(), Fault> {
        match self {
            Self::NewAddress { kind, no_qr, key } => new_address(session, output, kind, no_qr, &key).await,
            Self::Balance => {
                let balance = session
                    .read(|link| async move { WalletClient::new(link).balance(BalanceRequest {}).await })
                    .await?;
                output.answer(&balance_json(&balance), || balance_text(&balance))
            }
            Self::Send { address, amount, fee, key } => send(session, output, address, amount, &fee, &key).await,
            Self::BumpFee { txid, fee, key } => bump_fee(session, output, txid, &fee, &key).await,
            Self::List { page } => list_transactions(session, output, &page).await,
            Self::Utxos { page } => list_utxos(session, output, &page).await,
        }
    }
}

async fn new_address(
    session: &Session,
    output: &mut Output,
    kind: Kind,
    no_qr: bool,
    key: &KeyArg,
) -> Result<(), Fault> {
    let order = Order::new("wallet new-address", key.key.as_deref())?;
    let address_type = match kind {
        Kind::Taproot => AddressType::Taproot,
        Kind::Segwit => AddressType::Segwit,
    };
    let request = NewAddressRequest { idempotency_key: order.key.clone(), address_type: address_type.into() };
    let address = session
        .change(&order, |link| {
            let request = request.clone();
            async move { WalletClient::new(link).new_address(request).await }
        })
        .await?
        .address;
    output.answer(&json!({ "address": address }), || {
        if no_qr {
            return address.clone();
        }
        // Upper case makes a smaller code, and means the same in a bech32 address.
        format!("{}\n{address}", qr(&format!("bitcoin:{address}").to_uppercase()))
    })
}

async fn send(
    session: &Session,
    output: &mut Output,
    address: String,
    amount: SendAmount,
    fee: &FeeArgs,
    key: &KeyArg,
) -> Result<(), Fault> {
    let order = Order::new("wallet send", key.key.as_deref())?;
    let request = SendRequest {
        idempotency_key: order.key.clone(),
        address,
        amount: Some(match amount {
            SendAmount::Sat(sat) => send_request::Amount::AmountSat(sat),
            SendAmount::All => send_request::Amount::All(true),
        }),
        fee: fee.choice(),
    };
    let sent = session
        .change(&order, |link| {
            let request = request.clone();
            async move { WalletClient::new(link).send(request).await }
        })
        .await?;
    output.answer(&sent_json(&sent), || {
        facts(
            [
                ("Transaction", hex::encode(&sent.txid)),
                ("Arrives", sat(sent.amount_sat)),
                ("Fee", fee_text(sent.fee_sat, sent.feerate_sat_per_kw)),
            ]
            .into_iter()
            .chain(waiting_text(&sent.waiting)),
        )
    })
}

async fn bump_fee(
    session: &Session,
    output: &mut Output,
    txid: [u8; 32],
    fee: &FeeArgs,
    key: &KeyArg,
) -> Result<(), Fault> {
    let order = Order::new("wallet bump-fee", key.key.as_deref())?;
    let request = BumpFeeRequest { idempotency_key: order.key.clone(), txid: txid.to_vec(), fee: fee.choice() };
    let bumped: BumpFeeResponse = session
        .change(&order, |link| {
            let request = request.clone();
            async move { WalletClient::new(link).bump_fee(request).await }
        })
        .await?;
    let json = json!({
        "txid": hex::encode(&bumped.txid),
        "fee_sat": bumped.fee_sat,
        "feerate_sat_per_kw": bumped.feerate_sat_per_kw,
        "waiting": bumped.waiting,
    });
    output.answer(&json, || {
        facts(
            [("Replaced by", hex::encode(&bumped.txid)), ("Fee", fee_text(bumped.fee_sat, bumped.feerate_sat_per_kw))]
                .into_iter()
                .chain(waiting_text(&bumped.waiting)),
        )
    })
}

async fn list_transactions(session: &Session, output: &mut Output, args: &PageArgs) -> Result<(), Fault> {
    let request = ListTransactionsRequest { page: args.page() };
    let answer = session.read(|link| async move { WalletClient::new(link).list_transactions(request).await }).await?;
    let transactions: Vec<Value> = answer.transactions.iter().map(transaction_json).collect();
    let json = json!({ "transactions": transactions, "next_cursor": answer.next_cursor });
    output.answer(&json, || {
        let columns = [
            Column::Text("TIME"),
            Column::Text("KIND"),
            Column::Number("CHANGE"),
            Column::Number("FEE"),
            Column::Number("CONFIRMATIONS"),
            Column::Text("TRANSACTION"),
        ];
        let rows = answer.transactions.iter().map(transaction_row).collect();
        page(list(&columns, rows, "No transactions yet."), &answer.next_cursor)
    })
}

async fn list_utxos(session: &Session, output: &mut Output, args: &PageArgs) -> Result<(), Fault> {
    let request = ListUtxosRequest { page: args.page() };
    let answer = session.read(|link| async move { WalletClient::new(link).list_utxos(request).await }).await?;
    let utxos: Vec<Value> = answer.utxos.iter().map(utxo_json).collect();
    let json = json!({ "utxos": utxos, "next_cursor": answer.next_cursor });
    output.answer(&json, || {
        let columns = [
            Column::Number("AMOUNT"),
            Column::Number("CONFIRMATIONS"),
            Column::Text("HELD FOR"),
            Column::Text("ADDRESS"),
            Column::Text("OUTPUT"),
        ];
        let rows = answer.utxos.iter().map(utxo_row).collect();
        page(list(&columns, rows, "No unspent outputs."), &answer.next_cursor)
    })
}

/// Satoshi for a person.
pub(crate) fn sat(sat: u64) -> String {
    match sat.checked_mul(1000) {
        Some(msat) => Amount::from_msat(msat).to_string(),
        None => format!("{sat} sat"),
    }
}

/// Millisatoshi for a person.
pub(crate) fn msat(msat: u64) -> String {
    Amount::from_msat(msat).to_string()
}

/// An output as `TXID:INDEX`; nothing if there is none.
pub(crate) fn outpoint(outpoint: Option<&OutPoint>) -> Option<String> {
    outpoint.map(|point| format!("{}:{}", hex::encode(&point.txid), point.vout))
}

fn fee_text(fee_sat: u64, feerate_sat_per_kw: u32) -> String {
    format!("{} ({})", sat(fee_sat), words::feerate(feerate_sat_per_kw))
}

/// Why bitcoind does not have a transaction yet.
fn waiting_text(waiting: &str) -> Option<(&'static str, String)> {
    (!waiting.is_empty()).then(|| ("Waits", format!("{waiting}; it is sent again until bitcoind has it")))
}

fn sent_json(sent: &SendResponse) -> Value {
    json!({
        "txid": hex::encode(&sent.txid),
        "amount_sat": sent.amount_sat,
        "fee_sat": sent.fee_sat,
        "feerate_sat_per_kw": sent.feerate_sat_per_kw,
        "waiting": sent.waiting,
    })
}

fn balance_json(balance: &BalanceResponse) -> Value {
    let channels: Vec<Value> = balance
        .channels
        .iter()
        .map(|state| {
            json!({
                "state": words::value(state.state().as_str_name(), "CHANNEL_STATE_"),
                "count": state.count,
                "local_msat": state.local_msat,
                "remote_msat": state.remote_msat,
                "offered_msat": state.offered_msat,
                "received_msat": state.received_msat,
            })
        })
        .collect();
    json!({
        "confirmed_sat": balance.confirmed_sat,
        "unconfirmed_sat": balance.unconfirmed_sat,
        "immature_sat": balance.immature_sat,
        "anchor_reserve_sat": balance.anchor_reserve_sat,
        "spendable_sat": balance.spendable_sat,
        "claimable_sat": balance.claimable_sat,
        "channels": channels,
    })
}

fn balance_text(balance: &BalanceResponse) -> String {
    let some_sat = |amount: u64| if amount == 0 { String::new() } else { sat(amount) };
    let on_chain = facts([
        ("Spendable on chain", sat(balance.spendable_sat)),
        ("Confirmed", sat(balance.confirmed_sat)),
        ("Unconfirmed", some_sat(balance.unconfirmed_sat)),
        ("Not yet mature", some_sat(balance.immature_sat)),
        ("Reserve for anchors", some_sat(balance.anchor_reserve_sat)),
        ("Coming from closed channels", some_sat(balance.claimable_sat)),
    ]);
    let columns = [
        Column::Text("CHANNELS"),
        Column::Number("COUNT"),
        Column::Number("OURS"),
        Column::Number("THEIRS"),
        Column::Number("ON ITS WAY OUT"),
        Column::Number("ON ITS WAY IN"),
    ];
    let rows = balance
        .channels
        .iter()
        .map(|state| {
            vec![
                words::value(state.state().as_str_name(), "CHANNEL_STATE_").replace('_', " "),
                state.count.to_string(),
                msat(state.local_msat),
                msat(state.remote_msat),
                msat(state.offered_msat),
                msat(state.received_msat),
            ]
        })
        .collect();
    format!("{on_chain}\n\n{}", list(&columns, rows, "No channels."))
}

fn transaction_kind(transaction: &WalletTransaction) -> String {
    words::value(transaction.kind().as_str_name(), "TRANSACTION_KIND_")
}

/// A transaction for a program.
pub(crate) fn transaction_json(transaction: &WalletTransaction) -> Value {
    json!({
        "txid": hex::encode(&transaction.txid),
        "kind": transaction_kind(transaction),
        "received_sat": transaction.received_sat,
        "sent_sat": transaction.sent_sat,
        "fee_sat": transaction.fee_sat,
        "height": transaction.height,
        "confirmations": transaction.confirmations,
        "time_ms": transaction.time_ms,
        "channel_id": words::hex_or_none(&transaction.channel_id),
    })
}

fn transaction_row(transaction: &WalletTransaction) -> Vec<String> {
    vec![
        words::time(transaction.time_ms),
        transaction_kind(transaction).replace('_', " "),
        change_text(transaction.received_sat, transaction.sent_sat),
        transaction.fee_sat.map(sat).unwrap_or_default(),
        transaction.confirmations.to_string(),
        hex::encode(&transaction.txid),
    ]
}

/// What a transaction did to the wallet, with its sign.
pub(crate) fn change_text(received_sat: u64, sent_sat: u64) -> String {
    if received_sat >= sent_sat {
        format!("+{}", sat(received_sat - sent_sat))
    } else {
        format!("-{}", sat(sent_sat - received_sat))
    }
}

fn utxo_json(utxo: &Utxo) -> Value {
    json!({
        "outpoint": outpoint(utxo.outpoint.as_ref()),
        "amount_sat": utxo.amount_sat,
        "address": utxo.address,
        "confirmations": utxo.confirmations,
        "reserved": utxo.reserved,
        "locked": utxo.locked,
    })
}

fn utxo_row(utxo: &Utxo) -> Vec<String> {
    let held_for = match (utxo.reserved, utxo.locked) {
        (true, _) => "anchors",
        (false, true) => "a transaction",
        (false, false) => "",
    };
    vec![
        sat(utxo.amount_sat),
        utxo.confirmations.to_string(),
        held_for.to_owned(),
        utxo.address.clone(),
        outpoint(utxo.outpoint.as_ref()).unwrap_or_default(),
    ]
}
