//! A daemon that is played: every service of the contract with TLS and the token, answers from `answers`, a
//! record of the requests, and a connection that can be cut.
//!
//! The client talks to a relay, which passes bytes on to the server; cutting the relay's connections is what a
//! network or a killed daemon does to the client.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_rpc::v1::channels_server::{Channels, ChannelsServer};
use millrace_rpc::v1::events_server::{Events, EventsServer};
use millrace_rpc::v1::forwards_server::{Forwards, ForwardsServer};
use millrace_rpc::v1::graph_server::{Graph, GraphServer};
use millrace_rpc::v1::invoices_server::{Invoices, InvoicesServer};
use millrace_rpc::v1::node_server::{Node, NodeServer};
use millrace_rpc::v1::payments_server::{Payments, PaymentsServer};
use millrace_rpc::v1::peers_server::{Peers, PeersServer};
use millrace_rpc::v1::towers_server::TowersServer;
use millrace_rpc::v1::wallet_server::{Wallet, WalletServer};
use millrace_rpc::v1::{ErrorDetail, ErrorReason, *};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::answers;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The played daemon with its data folder.
pub(crate) struct Fake {
    stage: Stage,
    data_dir: TempDir,
    _runtime: Runtime,
}

/// What the services share.
#[derive(Clone)]
pub(crate) struct Stage {
    requests: Arc<Mutex<Vec<String>>>,
    relay: Relay,
}

/// Passes bytes between the client and the server until it is cut.
#[derive(Clone)]
struct Relay {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    listener: Arc<Mutex<Option<AbortHandle>>>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay =
            Self { address: listener.local_addr().unwrap(), connections: Arc::default(), listener: Arc::default() };
        let connections = relay.connections.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let connection = tokio::spawn(async move {
                    let mut server = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
                connections.lock().unwrap().push(connection.abort_handle());
            }
        });
        *relay.listener.lock().unwrap() = Some(accepting.abort_handle());
        relay
    }

    fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }

    fn close(&self) {
        if let Some(listener) = self.listener.lock().unwrap().take() {
            listener.abort();
        }
        self.cut();
    }
}

impl Fake {
    /// A daemon with its files written, on a network called regtest.
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = certified.cert.pem();
        let identity = Identity::from_pem(&certificate, certified.signing_key.serialize_pem());
        let stage = runtime.block_on(serve(identity));

        let data_dir = tempfile::tempdir().unwrap();
        let folder = data_dir.path().join("regtest");
        std::fs::create_dir(&folder).unwrap();
        let url = format!("{{\"url\":\"https://{}\"}}", stage.relay.address);
        std::fs::write(folder.join("rpc.json"), url).unwrap();
        std::fs::write(folder.join("tls.cert"), certificate).unwrap();
        std::fs::write(folder.join("access.token"), format!("{TOKEN}\n")).unwrap();
        Self { stage, data_dir, _runtime: runtime }
    }

    /// The folder that holds the networks' folders.
    pub(crate) fn data_dir(&self) -> &Path {
        self.data_dir.path()
    }

    /// One of the daemon's files.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.data_dir.path().join("regtest").join(name)
    }

    /// `https://` and the address that the client reaches it at.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.stage.relay.address)
    }

    /// The requests that have come in since last asked.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.stage.requests.lock().unwrap())
    }

    /// `millrace` with these arguments, to be run against this daemon.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(arguments).env_clear().env("MILLRACE_DATA_DIR", self.data_dir());
        command
    }

    /// Runs `millrace` with these arguments.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// Runs `millrace` with these arguments and this standard input.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Ran::from(child.wait_with_output().unwrap())
    }
}

/// How a run of `millrace` ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Standard output as one JSON object per line.
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        let parse = |line| serde_json::from_str(line).unwrap();
        self.stdout.lines().map(parse).collect()
    }
}

async fn serve(identity: Identity) -> Stage {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stage = Stage { requests: Arc::default(), relay: Relay::start(listener.local_addr().unwrap()).await };
    let router = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(NodeServer::with_interceptor(stage.clone(), check_token))
        .add_service(WalletServer::with_interceptor(stage.clone(), check_token))
        .add_service(GraphServer::with_interceptor(stage.clone(), check_token))
        .add_service(PeersServer::with_interceptor(stage.clone(), check_token))
        .add_service(TowersServer::with_interceptor(stage.clone(), check_token))
        .add_service(ChannelsServer::with_interceptor(stage.clone(), check_token))
        .add_service(InvoicesServer::with_interceptor(stage.clone(), check_token))
        .add_service(PaymentsServer::with_interceptor(stage.clone(), check_token))
        .add_service(EventsServer::with_interceptor(stage.clone(), check_token))
        .add_service(ForwardsServer::with_interceptor(stage.clone(), check_token));
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    stage
}

fn check_token(request: Request<()>) -> Result<Request<()>, Status> {
    let given = request.metadata().get("authorization");
    match given.and_then(|value| value.to_str().ok()) {
        Some(value) if value == format!("Bearer {TOKEN}") => Ok(request),
        _ => Err(ErrorDetail::new(ErrorReason::TokenInvalid)
            .hint("The token stands in access.token.")
            .into_status("no valid access token")),
    }
}

/// What becomes of a call, as its text argument says: `break-once`, `break-always`, `vanish`, …
enum Fate {
    Answer,
    /// The connection breaks instead of an answer.
    Break,
    Refuse(Status),
}

impl Stage {
    pub(crate) fn note<T: std::fmt::Debug>(&self, request: &Request<T>) -> usize {
        let text = format!("{:?}", request.get_ref());
        let mut requests = self.requests.lock().unwrap();
        requests.push(text.clone());
        requests.iter().filter(|earlier| **earlier == text).count()
    }

    /// Cuts the connection a little later, when what was answered so far has arrived.
    fn cut_soon(&self, close: bool) {
        self.cut_after(Duration::from_millis(100), close);
    }

    fn cut_after(&self, time: Duration, close: bool) {
        let relay = self.relay.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            if close { relay.close() } else { relay.cut() }
        });
    }

    /// The fate that a request asks for in its text; `times`: how often the same request has come.
    fn fate(&self, text: &str, times: usize) -> Fate {
        match text {
            "break-once" if times == 1 => {
                self.cut_soon(false);
                Fate::Break
            }
            "break-late" if times == 1 => {
                self.cut_after(Duration::from_millis(1500), false);
                Fate::Break
            }
            "break-always" => {
                self.cut_soon(false);
                Fate::Break
            }
            "vanish" => {
                self.cut_soon(true);
                Fate::Break
            }
            "break-then-start" => match times {
                1 => {
                    self.cut_soon(false);
                    Fate::Break
                }
                2 => Fate::Refuse(ErrorDetail::new(ErrorReason::NotReady).into_status("starting")),
                _ => Fate::Answer,
            },
            "break-then-refuse" if times == 1 => {
                self.cut_soon(false);
                Fate::Break
            }
            "poor" | "break-then-refuse" => Fate::Refuse(answers::too_poor()),
            "starting" => Fate::Refuse(
                ErrorDetail::new(ErrorReason::NotReady)
                    .hint("Wait until it is ready.")
                    .into_status("the node is starting"),
            ),
            "conflict" => {
                Fate::Refuse(ErrorDetail::new(ErrorReason::IdempotencyConflict).into_status("key used before"))
            }
            "escape" => Fate::Refuse(
                ErrorDetail::new(ErrorReason::PeerRefused)
                    .fact("peer_message", "\u{1b}[2Jhello")
                    .into_status("the peer refused"),
            ),
            "internal" => Fate::Refuse(Status::internal("a rule was broken")),
            _ => Fate::Answer,
        }
    }

    async fn unary<T>(&self, text: &str, times: usize, answer: T) -> Result<Response<T>, Status> {
        match self.fate(text, times) {
            Fate::Answer => Ok(Response::new(answer)),
            Fate::Break => std::future::pending().await,
            Fate::Refuse(status) => Err(status),
        }
    }

    /// A stream of progress: all of it, or only the first message before the connection breaks.
    fn stream<T: Send + 'static>(
        &self,
        text: &str,
        times: usize,
        messages: Vec<T>,
    ) -> Result<Response<Answers<T>>, Status> {
        let messages = tokio_stream::iter(messages.into_iter().map(Ok));
        match self.fate(text, times) {
            Fate::Answer => Ok(Response::new(Box::pin(messages))),
            Fate::Break => {
                use tokio_stream::StreamExt;
                let never = tokio_stream::pending();
                Ok(Response::new(Box::pin(messages.take(1).chain(never))))
            }
            Fate::Refuse(status) => Err(status),
        }
    }
}

#[tonic::async_trait]
impl Node for Stage {
    async fn get_info(&self, request: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::info()))
    }

    async fn get_status(&self, request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::status()))
    }

    async fn announce(&self, request: Request<AnnounceRequest>) -> Result<Response<AnnounceResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::announced()))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        self.note(&request);
        Ok(Response::new(StopResponse {}))
    }
}

#[tonic::async_trait]
impl Wallet for Stage {
    async fn new_address(&self, request: Request<NewAddressRequest>) -> Result<Response<NewAddressResponse>, Status> {
        self.note(&request);
        let address = answers::ADDRESS.to_owned();
        Ok(Response::new(NewAddressResponse { address }))
    }

    async fn balance(&self, request: Request<BalanceRequest>) -> Result<Response<BalanceResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::balance()))
    }

    async fn send(&self, request: Request<SendRequest>) -> Result<Response<SendResponse>, Status> {
        let times = self.note(&request);
        self.unary(&request.get_ref().address, times, answers::sent()).await
    }

    async fn bump_fee(&self, request: Request<BumpFeeRequest>) -> Result<Response<BumpFeeResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::bumped()))
    }

    async fn list_transactions(
        &self,
        request: Request<ListTransactionsRequest>,
    ) -> Result<Response<ListTransactionsResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::transactions()))
    }

    async fn list_utxos(&self, request: Request<ListUtxosRequest>) -> Result<Response<ListUtxosResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::utxos()))
    }
}

#[tonic::async_trait]
impl Graph for Stage {
    async fn info(&self, request: Request<GraphInfoRequest>) -> Result<Response<GraphInfoResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::graph_info()))
    }

    async fn get_node(&self, request: Request<GetGraphNodeRequest>) -> Result<Response<GetGraphNodeResponse>, Status> {
        self.note(&request);
        Ok(Response::new(GetGraphNodeResponse { node: Some(answers::graph_node()) }))
    }

    async fn get_channel(
        &self,
        request: Request<GetGraphChannelRequest>,
    ) -> Result<Response<GetGraphChannelResponse>, Status> {
        self.note(&request);
        Ok(Response::new(GetGraphChannelResponse { channel: Some(answers::graph_channel()) }))
    }
}

#[tonic::async_trait]
impl Peers for Stage {
    async fn connect(&self, request: Request<ConnectRequest>) -> Result<Response<ConnectResponse>, Status> {
        self.note(&request);
        let peer = Some(answers::peers().remove(0));
        Ok(Response::new(ConnectResponse { peer }))
    }

    async fn disconnect(&self, request: Request<DisconnectRequest>) -> Result<Response<DisconnectResponse>, Status> {
        self.note(&request);
        Ok(Response::new(DisconnectResponse {}))
    }

    async fn list(&self, request: Request<ListPeersRequest>) -> Result<Response<ListPeersResponse>, Status> {
        self.note(&request);
        Ok(Response::new(ListPeersResponse { peers: answers::peers() }))
    }
}

#[tonic::async_trait]
impl Channels for Stage {
    type OpenStream = Answers<OpenChannelProgress>;
    type CloseStream = Answers<CloseChannelProgress>;

    async fn open(&self, request: Request<OpenChannelRequest>) -> Result<Response<Self::OpenStream>, Status> {
        let times = self.note(&request);
        self.stream(&request.get_ref().close_address, times, answers::opening())
    }

    async fn close(&self, request: Request<CloseChannelRequest>) -> Result<Response<Self::CloseStream>, Status> {
        let times = self.note(&request);
        self.stream(&request.get_ref().address, times, answers::closing(request.get_ref().force))
    }

    async fn list(&self, request: Request<ListChannelsRequest>) -> Result<Response<ListChannelsResponse>, Status> {
        self.note(&request);
        Ok(Response::new(ListChannelsResponse { channels: answers::channels(), next_cursor: String::new() }))
    }

    async fn get(&self, request: Request<GetChannelRequest>) -> Result<Response<GetChannelResponse>, Status> {
        self.note(&request);
        let wanted = match &request.get_ref().channel {
            Some(get_channel_request::Channel::ChannelId(id)) => id.clone(),
            _ => vec![0xc1; 32],
        };
        let channel = answers::channels_in_full().into_iter().find(|channel| channel.channel_id == wanted);
        match channel {
            Some(channel) => Ok(Response::new(GetChannelResponse { channel: Some(channel) })),
            None => Err(ErrorDetail::new(ErrorReason::NotFound).fact("kind", "channel").into_status("no such channel")),
        }
    }

    async fn set_policy(&self, request: Request<SetPolicyRequest>) -> Result<Response<SetPolicyResponse>, Status> {
        self.note(&request);
        Ok(Response::new(SetPolicyResponse { policies: answers::policies() }))
    }

    async fn take_commitment(
        &self,
        request: Request<TakeCommitmentRequest>,
    ) -> Result<Response<TakeCommitmentResponse>, Status> {
        self.note(&request);
        let htlc = TakenHtlc { transaction: vec![0x02, 0, 0, 1], payment_hash: vec![0x11; 32], is_success: true };
        let transaction = vec![0x02, 0, 0, 0];
        Ok(Response::new(TakeCommitmentResponse { transaction, commitment_number: 17, htlcs: vec![htlc] }))
    }
}

#[tonic::async_trait]
impl Forwards for Stage {
    async fn list(&self, request: Request<ListForwardsRequest>) -> Result<Response<ListForwardsResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::forwards()))
    }
}

#[tonic::async_trait]
impl Invoices for Stage {
    async fn create(&self, request: Request<CreateInvoiceRequest>) -> Result<Response<CreateInvoiceResponse>, Status> {
        self.note(&request);
        Ok(Response::new(CreateInvoiceResponse { invoice: Some(answers::open_invoice()) }))
    }

    async fn get(&self, request: Request<GetInvoiceRequest>) -> Result<Response<GetInvoiceResponse>, Status> {
        self.note(&request);
        Ok(Response::new(GetInvoiceResponse { invoice: Some(answers::paid_invoice()) }))
    }

    async fn list(&self, request: Request<ListInvoicesRequest>) -> Result<Response<ListInvoicesResponse>, Status> {
        self.note(&request);
        Ok(Response::new(ListInvoicesResponse {
            invoices: vec![
                answers::open_invoice(),
                answers::paid_invoice(),
                answers::held_invoice(),
                answers::cancelled_invoice(),
                answers::keysend(),
            ],
            next_cursor: "17".to_owned(),
        }))
    }

    async fn decode(&self, request: Request<DecodeInvoiceRequest>) -> Result<Response<DecodeInvoiceResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::decoded()))
    }

    async fn settle(&self, request: Request<SettleInvoiceRequest>) -> Result<Response<SettleInvoiceResponse>, Status> {
        self.note(&request);
        Ok(Response::new(SettleInvoiceResponse { invoice: Some(answers::paid_invoice()) }))
    }

    async fn cancel(&self, request: Request<CancelInvoiceRequest>) -> Result<Response<CancelInvoiceResponse>, Status> {
        self.note(&request);
        Ok(Response::new(CancelInvoiceResponse { invoice: Some(answers::cancelled_invoice()) }))
    }
}

#[tonic::async_trait]
impl Payments for Stage {
    type PayStream = Answers<PayProgress>;
    type StreamStream = Answers<StreamPayResponse>;

    async fn pay(&self, request: Request<PayRequest>) -> Result<Response<Self::PayStream>, Status> {
        let times = self.note(&request);
        let bolt11 = request.get_ref().bolt11.as_str();
        let messages = match bolt11 {
            "unpayable" => answers::failing(),
            "silent" => answers::paying().into_iter().take(1).collect(),
            _ => answers::paying(),
        };
        self.stream(bolt11, times, messages)
    }

    async fn stream(&self, _: Request<Streaming<StreamPayRequest>>) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("the command line does not use it"))
    }

    async fn get(&self, request: Request<GetPaymentRequest>) -> Result<Response<GetPaymentResponse>, Status> {
        self.note(&request);
        Ok(Response::new(GetPaymentResponse { payment: Some(answers::failed_payment()) }))
    }

    async fn estimate_route(
        &self,
        request: Request<EstimateRouteRequest>,
    ) -> Result<Response<EstimateRouteResponse>, Status> {
        self.note(&request);
        Ok(Response::new(answers::estimated()))
    }

    async fn list(&self, request: Request<ListPaymentsRequest>) -> Result<Response<ListPaymentsResponse>, Status> {
        self.note(&request);
        Ok(Response::new(ListPaymentsResponse {
            payments: vec![answers::paid_payment(), answers::failed_payment()],
            next_cursor: String::new(),
        }))
    }
}

#[tonic::async_trait]
impl Events for Stage {
    type SubscribeStream = Answers<Event>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let times = self.note(&request);
        let place = |cursor: &Cursor| (cursor.frame, cursor.index);
        let from = request.get_ref().from_cursor.unwrap_or_default();
        let rest: Vec<Event> = answers::events()
            .into_iter()
            .filter(|event| place(event.cursor.as_ref().unwrap()) >= place(&from))
            .collect();
        let fate = match from.frame {
            5 => {
                let detail =
                    ErrorDetail::new(ErrorReason::CursorTooOld).fact("oldest_frame", 7).fact("oldest_index", 0);
                return Err(detail.into_status("frame 5 is no longer kept"));
            }
            70 => "break-once",
            72 => "break-always",
            _ => "",
        };
        self.stream(fate, times, rest)
    }
}
