//! TLS listeners: handshakes run beside each other and are bounded in number and time.

use rustls::{ServerConfig, pki_types::CertificateDer};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tenet_model::HostName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time; more wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Connections of a listener at a time; more wait in the kernel's queue. Whoever keeps REST's busy without having a
/// token does not take the descriptors that the agents' listener needs.
const CONNECTIONS: usize = 4096;

/// Accepted connections that have passed the handshake.
pub(crate) struct Incoming {
    addr: SocketAddr,
    streams: mpsc::Receiver<(Stream, SocketAddr)>,
}

impl Incoming {
    /// Accepts on a listener until dropped.
    pub(crate) fn new(listener: TcpListener, tls: Arc<ServerConfig>) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let (to, streams) = mpsc::channel(64);
        tokio::spawn(accept(listener, TlsAcceptor::from(tls), to));
        Ok(Self { addr, streams })
    }

    /// As the stream that tonic wants.
    pub(crate) fn into_stream(self) -> impl futures::Stream<Item = io::Result<Stream>> {
        futures::stream::unfold(
            self,
            |mut me| async move { me.streams.recv().await.map(|(s, _)| (Ok(s), me)) },
        )
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, to: mpsc::Sender<(Stream, SocketAddr)>) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = to.closed() => return,
        };
        let (tcp, peer) = match accepted {
            Ok(a) => a,
            Err(error) => {
                // Out of file descriptors or the like: the listener itself stays good.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, to) = (tls.clone(), to.clone());
        tokio::spawn(async move {
            let _slot = slot;
            // Small messages are the rule on both listeners.
            let _ = tcp.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, tls.accept(tcp)).await {
                Ok(Ok(stream)) => drop(to.send((Stream(stream, place), peer)).await),
                Ok(Err(error)) => tracing::info!(%peer, %error, "a TLS handshake failed"),
                Err(_) => tracing::info!(%peer, "a TLS handshake took too long"),
            }
        });
    }
}

impl axum::serve::Listener for Incoming {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        match self.streams.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }
}

/// Who is at the other end, by the certificate that the handshake has verified.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The certificate's common name, if it is a host's.
    pub(crate) host: Option<HostName>,
}

/// A TLS connection and its place among those of the listener.
pub(crate) struct Stream(
    TlsStream<TcpStream>,
    #[expect(dead_code, reason = "held until the connection ends")] OwnedSemaphorePermit,
);

impl Connected for Stream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let certificate: Option<&CertificateDer<'_>> =
            self.0.get_ref().1.peer_certificates().and_then(<[_]>::first);
        Peer { host: certificate.and_then(crate::pki::common_name) }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
