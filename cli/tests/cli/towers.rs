//! Watchtowers, as the played daemon has them.

use millrace_rpc::v1::towers_server::Towers;
use millrace_rpc::v1::*;
use tonic::{Request, Response, Status};

use crate::fake::Stage;

/// A moment in 2026, in Unix milliseconds.
const NOON_MS: u64 = 1_767_268_800_000;

fn key(last: u8) -> Vec<u8> {
    let mut key = vec![2; 33];
    key[32] = last;
    key
}

fn own() -> Tower {
    Tower {
        tower: key(7),
        address: "127.0.0.1:9911".to_owned(),
        client_key: key(8),
        connected: true,
        last_error: String::new(),
        added_ms: NOON_MS,
        relied_on: true,
        channels: 2,
        lag: 3,
        updates: 1_204,
        payload_bytes: 9_001,
        socket_bytes_sent: 31_000,
        mode: TowerMode::Compact.into(),
    }
}

fn unreached() -> Tower {
    Tower {
        tower: key(9),
        address: "[::1]:9911".to_owned(),
        client_key: key(10),
        connected: false,
        last_error: "the tower says:\u{1b} not allowed".to_owned(),
        relied_on: false,
        lag: 1,
        updates: 0,
        payload_bytes: 0,
        socket_bytes_sent: 0,
        mode: TowerMode::Blob.into(),
        ..own()
    }
}

fn status() -> GetTowerStatusResponse {
    let near = TowerChannel {
        channel_id: vec![0xaa; 32],
        revoked: 1_207,
        acknowledged: 1_204,
        receipt: Some(TowerReceipt {
            next: 1_204,
            time_s: NOON_MS / 1_000,
            signature: vec![0x5a; 64],
            group: Vec::new(),
        }),
        refused: String::new(),
        tower_ahead: false,
        resolved: false,
        from: 0,
    };
    let sealed = TowerChannel {
        receipt: Some(TowerReceipt {
            next: 7,
            time_s: NOON_MS / 1_000,
            signature: vec![0x5b; 64],
            group: vec![0x66; 16],
        }),
        revoked: 27,
        acknowledged: 27,
        from: 20,
        ..near.clone()
    };
    let refused = TowerChannel {
        channel_id: vec![0xbb; 32],
        revoked: 1,
        acknowledged: 0,
        receipt: None,
        refused: "2 channels are watched for you, and no more may be".to_owned(),
        ..near.clone()
    };
    let ahead =
        TowerChannel { channel_id: vec![0xcc; 32], revoked: 4, acknowledged: 4, tower_ahead: true, ..near.clone() };
    let over = TowerChannel { channel_id: vec![0xdd; 32], revoked: 4, acknowledged: 4, resolved: true, ..near.clone() };
    let own = TowerStatus { tower: Some(own()), channels: vec![near, refused, ahead, over] };
    let unreached = TowerStatus { tower: Some(unreached()), channels: vec![sealed] };
    GetTowerStatusResponse { towers: vec![own, unreached], lag_max: 1_000 }
}

#[tonic::async_trait]
impl Towers for Stage {
    async fn add(&self, request: Request<AddTowerRequest>) -> Result<Response<AddTowerResponse>, Status> {
        self.note(&request);
        let is_there = request.get_ref().address.starts_with("127.");
        Ok(Response::new(AddTowerResponse { tower: Some(if is_there { own() } else { unreached() }) }))
    }

    async fn remove(&self, request: Request<RemoveTowerRequest>) -> Result<Response<RemoveTowerResponse>, Status> {
        self.note(&request);
        Ok(Response::new(RemoveTowerResponse {}))
    }

    async fn list(&self, request: Request<ListTowersRequest>) -> Result<Response<ListTowersResponse>, Status> {
        self.note(&request);
        Ok(Response::new(ListTowersResponse { towers: vec![own(), unreached()] }))
    }

    async fn get_status(
        &self,
        request: Request<GetTowerStatusRequest>,
    ) -> Result<Response<GetTowerStatusResponse>, Status> {
        self.note(&request);
        Ok(Response::new(status()))
    }
}
