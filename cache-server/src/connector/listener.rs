//! A port: accepts connections, ends TLS, hands requests on, drains.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::{Request, Response};
use http_body::Body as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connection::{Connection, Serving},
    recall::{Recalled, Recalling},
    stream::{ClientStream, Limits},
};

/// Answers requests.
pub trait Answer: Clone + Send + Sync + Unpin + 'static {
    /// What an answer carries.
    type Body: http_body::Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>> + Send + 'static;

    /// An answer that was given a moment ago.
    type Recalled: Recalled;

    /// Answers one request; `serving` lives until the answer's body has been sent.
    fn answer(
        &self,
        connection: Arc<Connection>,
        serving: Serving,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// The answer that [`Self::answer`] gave to these bytes, if it would give the same now. They are all that came, and came
    /// when nothing else was under way.
    fn recall(&self, connection: &Connection, request: &[u8]) -> Option<Self::Recalled>;
}

/// A port that listens.
pub struct Listener {
    socket: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    connections: TaskTracker,
    stop: CancellationToken,
}

impl Listener {
    /// A port for plain HTTP, or for TLS with `tls`. Its connections are counted in `connections`; when `stop` is
    /// cancelled, it accepts no more, and connections end after the answer that they are about to send.
    #[must_use]
    pub fn new(
        socket: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        limits: &crds::cache_server::ClientLimits,
        connections: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { socket, tls, limits: limits.into(), connections, stop }
    }

    /// Accepts until it is stopped.
    pub async fn run(self, answer: impl Answer) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let serving = serve(stream, peer, self.tls.clone(), self.limits, self.stop.clone(), answer.clone());
                    self.connections.spawn(serving);
                }
                Err(error) => pause_after(&error).await,
            }
        }
    }
}

/// An accept that failed because the process is out of descriptors would fail again at once.
async fn pause_after(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::error!(%error, "failed to accept a connection; raise the limit of open files if this repeats");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
    stop: CancellationToken,
    answer: impl Answer,
) {
    // Small answers leave at once; a failure costs speed only.
    let _ = stream.set_nodelay(true);
    let connection = Connection::new(peer, tls.is_some());
    let stream = ClientStream::new(stream, Arc::clone(&connection), limits);
    match tls {
        None => serve_http(stream, connection, stop, answer).await,
        // What TLS needs would take memory from every plain connection, were it not behind a pointer.
        Some(config) => match Box::pin(TlsAcceptor::from(config).accept(stream)).await {
            Ok(stream) => Box::pin(serve_http(stream, connection, stop, answer)).await,
            Err(error) => tracing::debug!(client = %peer, %error, "a TLS handshake failed"),
        },
    }
}

/// Answers the requests of one connection, until it ends or `stop` is cancelled.
pub(super) async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: Arc<Connection>,
    stop: CancellationToken,
    answer: impl Answer,
) {
    let peer = connection.peer();
    let stream = Recalling::new(stream, Arc::clone(&connection), answer.clone());
    let service = service_fn(|request: Request<Incoming>| {
        if !request.body().is_end_stream() {
            connection.set_had_body();
        }
        let serving = Serving::begin(&connection);
        let (answer, connection) = (answer.clone(), Arc::clone(&connection));
        async move { Ok::<_, Infallible>(answer.answer(connection, serving, request).await) }
    });
    let mut builder = http1::Builder::new();
    // The stream below keeps the time limits.
    builder.timer(TokioTimer::new()).header_read_timeout(None);
    let http = builder.serve_connection(TokioIo::new(stream), service);
    let mut http = std::pin::pin!(http);
    // A set of one polls it when it was woken only: asking the token takes a lock that all connections share.
    let mut stopped: FuturesUnordered<_> = std::iter::once(stop.cancelled()).collect();
    let result = tokio::select! {
        biased;
        result = &mut http => result,
        Some(()) = stopped.next() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(client = %peer, error = &error as &dyn std::error::Error, "a connection ended early");
    }
}
