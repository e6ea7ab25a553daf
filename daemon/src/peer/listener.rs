//! Where other nodes call this one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::table::Peers;

/// After an error of the listener itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

impl Peers {
    /// Listens, and answers callers until the node stops. Returns where it listens, which matters with port 0.
    ///
    /// # Errors
    /// If nobody can be listened for there.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        tokio::spawn(self.clone().accept(listener, self.inner.stopping.clone()));
        Ok(address)
    }

    async fn accept(self, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.wait_for(|is_stopping| *is_stopping) => return,
            };
            match accepted {
                Ok((socket, address)) => {
                    let peers = self.clone();
                    tokio::spawn(async move { peers.answer(socket, address.to_string()).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a caller could not be answered");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
