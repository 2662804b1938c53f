//! Metrics in Prometheus' text format, over plain HTTP on a local address.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};

/// A request for the text.
pub(crate) type Request = oneshot::Sender<String>;

/// Time that a client has for its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients served at once; more wait.
const CLIENTS: usize = 4;

/// Serves until the agent's loop is gone.
pub(crate) async fn serve(address: SocketAddr, requests: mpsc::Sender<Request>) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(cause) => {
            tracing::error!(%address, %cause, "no metrics: the address cannot be listened on");
            return;
        }
    };
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CLIENTS));
    while let Ok(slot) = std::sync::Arc::clone(&slots).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    // Whatever the client does, it costs one slot for a while.
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, requests)).await;
                    drop(slot);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        if requests.is_closed() {
            return;
        }
    }
}

async fn answer(mut stream: TcpStream, requests: mpsc::Sender<Request>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 8192 {
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        head.extend(chunk.iter().take(n));
    }
    let (status, body) = if head.starts_with(b"GET /metrics ") {
        let (tx, rx) = oneshot::channel();
        let sent = requests.send(tx).await.is_ok();
        match rx.await {
            Ok(text) if sent => ("200 OK", text),
            _ => ("503 Service Unavailable", "the agent is going down\n".to_owned()),
        }
    } else {
        ("404 Not Found", "metrics are at /metrics\n".to_owned())
    };
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

/// Builds the text.
#[derive(Default)]
pub(crate) struct Text(String);

impl Text {
    /// Begins a metric.
    pub(crate) fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Adds a value.
    pub(crate) fn value(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{braces} {value}");
    }

    pub(crate) fn finish(self) -> String {
        self.0
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
