//! Connections from one listener on to another address, across namespaces: a socket in a folder is seen from both sides.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// From a TCP port to a socket in a folder, for as long as it is polled.
pub(super) async fn port_to_socket(listener: TcpListener, socket: PathBuf) -> Result<()> {
    loop {
        let (mut from, _) = listener.accept().await.context("cannot accept a connection")?;
        let socket = socket.clone();
        // Either side may go at any time; that ends only this connection.
        tokio::spawn(async move {
            let mut to = UnixStream::connect(socket).await?;
            copy_bidirectional(&mut from, &mut to).await
        });
    }
}

/// From a socket in a folder to a TCP port, for as long as it is polled.
pub(super) async fn socket_to_port(listener: UnixListener, port: SocketAddr) -> Result<()> {
    loop {
        let (mut from, _) = listener.accept().await.context("cannot accept a connection")?;
        tokio::spawn(async move {
            let mut to = TcpStream::connect(port).await?;
            copy_bidirectional(&mut from, &mut to).await
        });
    }
}
