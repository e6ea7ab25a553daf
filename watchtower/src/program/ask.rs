//! Commands for a tower that is running.

use millrace_rpc::tower::v1::tower_client::TowerClient;
use millrace_rpc::tower::v1::{AllowBlobsRequest, AllowRequest, GetStatusRequest, GetStatusResponse};
use secp256k1::{PublicKey, SECP256K1};
use serde_json::json;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::settings::Settings;
use super::{Failure, identity, print};

/// What `allow` gives a client when nothing is named.
const CHANNELS_DEFAULT: u32 = 1_000;

async fn connect(settings: &Settings) -> Result<TowerClient<Channel>, Failure> {
    let socket = settings.socket();
    let not_reached = |error: &dyn std::fmt::Display| {
        Failure::NotReached(format!(
            "no tower answers at {}: {error}; `millrace-tower run` starts one",
            socket.display()
        ))
    };
    let endpoint =
        Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(|error| not_reached(&error))?;
    let channel = endpoint.connect().await.map_err(|error| not_reached(&error))?;
    Ok(TowerClient::new(channel))
}

fn failure(status: &tonic::Status) -> Failure {
    match status.code() {
        Code::Unavailable => Failure::NotReached(status.message().to_owned()),
        _ => Failure::Failed(status.message().to_owned()),
    }
}

/// `millrace-tower allow`: what is not named stays as it is.
pub(crate) async fn allow(
    settings: &Settings,
    client: &PublicKey,
    channels_max: Option<u32>,
    blobs_max: Option<u32>,
) -> Result<(), Failure> {
    let mut tower = connect(settings).await?;
    let key = client.serialize().to_vec();
    let channels_max = channels_max.or_else(|| blobs_max.is_none().then_some(CHANNELS_DEFAULT));
    if let Some(channels_max) = channels_max {
        let request = AllowRequest { client: key.clone(), channels_max };
        tower.allow(request).await.map_err(|status| failure(&status))?;
        match channels_max {
            0 => print(&format!("{client} may have no channels any more. What is watched for it stays watched."))?,
            _ => print(&format!("{client} may have {channels_max} channels watched."))?,
        }
    }
    if let Some(blobs_max) = blobs_max {
        let request = AllowBlobsRequest { client: key, blobs_max };
        tower.allow_blobs(request).await.map_err(|status| failure(&status))?;
        match blobs_max {
            0 => print(&format!("{client} may hand over no blobs any more. What it has handed over stays."))?,
            _ => print(&format!("{client} may hand over {blobs_max} blobs."))?,
        }
    }
    Ok(())
}

async fn get_status(settings: &Settings) -> Result<GetStatusResponse, Failure> {
    let answer = connect(settings).await?.get_status(GetStatusRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| failure(&status))
}

/// `millrace-tower status`.
pub(crate) async fn status(settings: &Settings, is_json: bool) -> Result<(), Failure> {
    let status = get_status(settings).await?;
    print(&if is_json { as_json(&status) } else { as_text(&status) })
}

/// `millrace-tower address`: of the running tower, which knows its port; else by the settings.
pub(crate) async fn address(settings: &Settings) -> Result<(), Failure> {
    if let Ok(status) = get_status(settings).await {
        return print(&status.address);
    }
    let Some(key) = identity::look(&settings.key_file())? else {
        let folder = settings.data_dir.display();
        return Err(Failure::Failed(format!("there is no tower in {folder} yet; `millrace-tower run` makes one")));
    };
    let address = settings.external_address.as_ref().unwrap_or(&settings.listen);
    print(&format!("{}@{address}", key.public_key(SECP256K1)))
}

fn as_json(status: &GetStatusResponse) -> String {
    let clients: Vec<_> = status
        .clients
        .iter()
        .map(|client| {
            json!({
                "client": hex::encode(&client.client), "channels": client.channels, "channels_max": client.channels_max,
                "blobs": client.blobs, "blobs_max": client.blobs_max,
            })
        })
        .collect();
    let channels: Vec<_> = status
        .channels
        .iter()
        .map(|channel| {
            json!({
                "funding_outpoint": channel.funding_outpoint, "client": hex::encode(&channel.client),
                "state": channel.state, "is_breach": channel.is_breach,
                "taken_sat": channel.taken_sat, "lost_sat": channel.lost_sat,
            })
        })
        .collect();
    let penalties: Vec<_> = status.penalties.iter().map(|penalty| {
        json!({ "txid": penalty.txid, "inputs": penalty.inputs, "fee_sat": penalty.fee_sat, "status": penalty.status })
    }).collect();
    let matches: Vec<_> = status
        .matches
        .iter()
        .map(|found| {
            json!({
                "client": hex::encode(&found.client), "group": hex::encode(&found.group), "sequence": found.sequence,
                "txid": found.txid, "state": found.state, "is_opened": found.is_opened, "value_sat": found.value_sat,
                "taken_sat": found.taken_sat, "lost_sat": found.lost_sat,
            })
        })
        .collect();
    json!({
        "tower": hex::encode(&status.tower), "address": status.address, "network": status.network,
        "version": status.version, "height": status.height, "chain": status.chain, "is_synced": status.is_synced,
        "clients": clients, "channels": channels, "penalties": penalties, "matches": matches,
        "to_take": status.to_take, "to_take_sat": status.to_take_sat,
    })
    .to_string()
}

fn as_text(status: &GetStatusResponse) -> String {
    let mut lines = vec![
        format!("address   {}", status.address),
        format!("network   {}", status.network),
        format!("chain     {}", status.chain),
        format!("to take   {} outputs of {} sat", status.to_take, status.to_take_sat),
    ];
    if status.clients.is_empty() {
        lines.push("clients   none: `millrace-tower allow KEY` lets one in".to_owned());
    }
    for client in &status.clients {
        let key = hex::encode(&client.client);
        let blobs = format!("{} of {} blobs", client.blobs, client.blobs_max);
        lines.push(format!("client    {key}: {} of {} channels, {blobs}", client.channels, client.channels_max));
    }
    for channel in &status.channels {
        let taken = format!("taken {} sat, lost {} sat", channel.taken_sat, channel.lost_sat);
        lines.push(format!("channel   {}: {}; {taken}", channel.funding_outpoint, channel.state));
    }
    for found in &status.matches {
        let (group, sequence) = (hex::encode(&found.group), found.sequence);
        lines.push(format!("match     {}: blob {sequence} of {group}: {}", found.txid, found.state));
    }
    for penalty in &status.penalties {
        let (txid, inputs, fee) = (&penalty.txid, penalty.inputs, penalty.fee_sat);
        lines.push(format!("penalty   {txid}: {inputs} outputs, fee {fee} sat, {}", penalty.status));
    }
    lines.join("\n")
}
