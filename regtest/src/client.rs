//! gRPC with one daemon: its certificate, its token, its services.

use std::time::Duration;

use millrace_rpc::v1::channels_client::ChannelsClient;
use millrace_rpc::v1::events_client::EventsClient;
use millrace_rpc::v1::forwards_client::ForwardsClient;
use millrace_rpc::v1::graph_client::GraphClient;
use millrace_rpc::v1::invoices_client::InvoicesClient;
use millrace_rpc::v1::node_client::NodeClient;
use millrace_rpc::v1::payments_client::PaymentsClient;
use millrace_rpc::v1::peers_client::PeersClient;
use millrace_rpc::v1::towers_client::TowersClient;
use millrace_rpc::v1::wallet_client::WalletClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::network::Error;

/// A connection on which every call carries the token.
pub type Link = InterceptedService<Channel, Bearer>;

/// The largest answer that is taken: lists of a long test.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Puts the token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// All services of one daemon.
#[derive(Clone)]
pub struct Client {
    /// `Node`.
    pub node: NodeClient<Link>,
    /// `Wallet`.
    pub wallet: WalletClient<Link>,
    /// `Peers`.
    pub peers: PeersClient<Link>,
    /// `Channels`.
    pub channels: ChannelsClient<Link>,
    /// `Invoices`.
    pub invoices: InvoicesClient<Link>,
    /// `Payments`.
    pub payments: PaymentsClient<Link>,
    /// `Events`.
    pub events: EventsClient<Link>,
    /// `Forwards`.
    pub forwards: ForwardsClient<Link>,
    /// `Graph`.
    pub graph: GraphClient<Link>,
    /// `Towers`.
    pub towers: TowersClient<Link>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens, or the certificate is not the daemon's.
    pub async fn connect(url: &str, certificate_pem: &str, token: &str) -> Result<Self, Error> {
        let refused = |source| Error::Rpc { url: url.to_owned(), source };
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certificate_pem)).domain_name("localhost");
        let endpoint = Endpoint::from_shared(url.to_owned())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(refused)?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true);
        let bearer = format!("Bearer {}", token.trim()).parse().map_err(|_| Error::BadToken)?;
        let link = InterceptedService::new(endpoint.connect().await.map_err(refused)?, Bearer(bearer));
        Ok(Self {
            node: NodeClient::new(link.clone()),
            wallet: WalletClient::new(link.clone()),
            peers: PeersClient::new(link.clone()),
            channels: ChannelsClient::new(link.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            invoices: InvoicesClient::new(link.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            payments: PaymentsClient::new(link.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            events: EventsClient::new(link.clone()),
            forwards: ForwardsClient::new(link.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            graph: GraphClient::new(link.clone()),
            towers: TowersClient::new(link),
        })
    }
}
