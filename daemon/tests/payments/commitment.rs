//! What hands out a commitment, for demonstrations of cheating: on regtest alone.

use bitcoin::consensus::encode::deserialize;
use bitcoin::{Network, Transaction};
use millrace_rpc::v1::{self, ErrorReason, get_channel_request};

use crate::support::FakeChain;
use crate::world::{Differences, open_between, start_with};
use crate::{pair, reason};

#[tokio::test(flavor = "multi_thread")]
async fn a_commitment_is_handed_out_as_it_is_now() {
    let (chain, a_home, b_home) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = pair(&chain, [a_home.path(), b_home.path()]).await;
    let channel_id = open_between(&alice, &bob, &chain, 1_000_000, 0).await;
    let id = channel_id.0.to_vec();
    let mut channels = alice.channels().await;
    let request = v1::TakeCommitmentRequest { channel_id: id.clone() };
    let taken = channels.take_commitment(request).await.unwrap().into_inner();
    let by = Some(get_channel_request::Channel::ChannelId(id));
    let shown = channels.get(v1::GetChannelRequest { channel: by }).await.unwrap().into_inner().channel.unwrap();
    assert_eq!(taken.commitment_number, shown.local_commitment_number);
    let tx: Transaction = deserialize(&taken.transaction).unwrap();
    let funding = shown.funding_outpoint.clone().unwrap();
    let spent = tx.input[0].previous_output;
    // As people write it.
    assert_eq!((spent.txid.to_string(), spent.vout), (hex::encode(&funding.txid), funding.vout));
    assert_eq!(tx.input[0].witness.len(), 4, "both have signed");
    assert_eq!(shown.state(), v1::ChannelState::Normal);
    let unknown = v1::TakeCommitmentRequest { channel_id: vec![7; 32] };
    assert_eq!(reason(&channels.take_commitment(unknown).await.unwrap_err()), ErrorReason::NotFound);
    alice.stop().await;
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_no_other_network_is_it_handed_out() {
    for network in [Network::Bitcoin, Network::Testnet4, Network::Signet] {
        let (chain, home) = (FakeChain::new(), tempfile::tempdir().unwrap());
        let world = start_with(home.path(), &chain, Differences { network, ..Differences::default() }).await;
        let request = v1::TakeCommitmentRequest { channel_id: vec![7; 32] };
        let status = world.channels().await.take_commitment(request).await.unwrap_err();
        assert_eq!(reason(&status), ErrorReason::WrongNetwork, "{network}: {status}");
        world.stop().await;
    }
}
