//! Without the token nothing is answered, and without the certificate nobody is believed.

use millrace_regtest::client::Client;
use millrace_regtest::network::random_key;
use millrace_rpc::v1::node_client::NodeClient;
use millrace_rpc::v1::{
    BalanceRequest, ErrorReason, GetInfoRequest, GetStatusRequest, ListChannelsRequest, ListInvoicesRequest,
    ListPeersRequest, NewAddressRequest, PayRequest, SendRequest, StopRequest, SubscribeRequest,
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::support::{Pair, network, refused};

#[tokio::test(flavor = "multi_thread")]
async fn no_token_or_another() {
    let mut pair = Pair { network: network(&["alice"]), channel_id: Vec::new() };
    pair.network.nodes[0].start().await.unwrap();
    let info = pair.network.nodes[0].rpc_info().unwrap().clone();
    let certificate = std::fs::read_to_string(&info.cert).unwrap();

    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&certificate)).domain_name("localhost");
    let endpoint = Endpoint::from_shared(info.rpc.clone()).unwrap().tls_config(tls).unwrap();
    let mut bare = NodeClient::new(endpoint.connect().await.unwrap());
    refused(bare.get_info(GetInfoRequest {}).await, ErrorReason::TokenInvalid);
    refused(bare.get_status(GetStatusRequest {}).await, ErrorReason::TokenInvalid);
    refused(bare.stop(StopRequest { idempotency_key: random_key() }).await, ErrorReason::TokenInvalid);

    let right = std::fs::read_to_string(&info.token).unwrap();
    let shorter = &right.trim()[1..];
    for token in ["", "x", &"0".repeat(64), shorter] {
        let mut client = Client::connect(&info.rpc, &certificate, token).await.unwrap();
        let reason = ErrorReason::TokenInvalid;
        refused(client.node.get_info(GetInfoRequest {}).await, reason);
        refused(client.node.stop(StopRequest { idempotency_key: random_key() }).await, reason);
        refused(client.wallet.balance(BalanceRequest {}).await, reason);
        refused(client.wallet.send(SendRequest::default()).await, reason);
        let address = NewAddressRequest { idempotency_key: random_key(), address_type: 0 };
        refused(client.wallet.new_address(address).await, reason);
        refused(client.peers.list(ListPeersRequest {}).await, reason);
        refused(client.channels.list(ListChannelsRequest::default()).await, reason);
        refused(client.invoices.list(ListInvoicesRequest::default()).await, reason);
        refused(client.payments.pay(PayRequest::default()).await, reason);
        refused(client.payments.stream(tokio_stream::empty()).await, reason);
        refused(client.events.subscribe(SubscribeRequest::default()).await, reason);
    }
    // It has not stopped, and a certificate of somebody else's is not believed.
    pair.network.nodes[0].client().unwrap().node.get_info(GetInfoRequest {}).await.unwrap();
    pair.network.add("bob");
    pair.network.nodes[1].start().await.unwrap();
    let other = std::fs::read_to_string(&pair.network.nodes[1].rpc_info().unwrap().cert).unwrap();
    assert!(Client::connect(&info.rpc, &other, &right).await.is_err());
    // Nor is there an answer without TLS.
    let plain = info.rpc.replace("https://", "http://");
    let plain = match Endpoint::from_shared(plain).unwrap().connect().await {
        Ok(link) => NodeClient::new(link).get_status(GetStatusRequest {}).await.map(|_| ()).map_err(|_| ()),
        Err(_) => Err(()),
    };
    assert_eq!(plain, Err(()));
    pair.stop().await;
}
