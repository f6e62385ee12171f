//! From a bound address to requests: an accept loop that never gives up, and one task for each connection that reads its
//! head, lets hyper serve one request, and becomes the tunnel.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::head::{self, Fault, Head, Replay};
use crate::log::{self, Entry};
use crate::peer::Peer;
use crate::proxy::{Opened, Proxy, Slot};
use crate::relay;

/// Pauses between attempts to accept when descriptors or memory are out.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to read an answer of ours.
const ANSWER: Duration = Duration::from_secs(10);
/// What a refused client may still send while it reads the refusal, and for how long: closing a socket with unread bytes
/// would take the answer with it.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_millis(500);

/// Accepts until its task is dropped. `room` holds a permit for each connection that descriptors suffice for.
pub async fn accept(listener: TcpListener, proxy: Arc<Proxy>, room: Arc<Semaphore>) {
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, address)) => {
                let (proxy, counted) = (proxy.clone(), proxy.counts.connection());
                // What the handshake needs is on the heap, so that it is gone when the tunnel stands: the task is as large
                // as the largest thing that it holds across a wait, for as long as it lives.
                let arriving = Box::pin(arrive(stream, address, proxy.clone()));
                #[expect(
                    clippy::disallowed_methods,
                    reason = "counted by its connection guard, which drains wait for"
                )]
                tokio::spawn(async move {
                    if let Some(mut tunnel) = arriving.await {
                        tunnel.relay(&proxy).await;
                    }
                    drop((counted, place));
                });
            }
            Err(error) if is_about_one_connection(&error) => proxy.metrics.accept_failed(),
            Err(error) => {
                proxy.metrics.accept_failed();
                warn!(%error, "cannot accept connections, trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Errors of a connection that ended before it was accepted (accept(2)): the next one may be fine.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// A connection that became a tunnel.
struct Tunnel {
    client: TcpStream,
    opened: Opened,
}

impl Tunnel {
    async fn relay(&mut self, proxy: &Proxy) {
        let Opened { seat, upstream, start, bounds } = &mut self.opened;
        let start = std::mem::take(start);
        let end = relay::copy_bidirectional(&mut self.client, upstream, start, &seat.live().control, bounds).await;
        proxy.metrics.closed(seat.live(), end.cause);
        log::closed(seat.live(), end);
    }
}

/// From an accepted socket to a tunnel, or to a refusal that was read.
async fn arrive(mut stream: TcpStream, address: SocketAddr, proxy: Arc<Proxy>) -> Option<Box<Tunnel>> {
    let peer = Peer::new(address);
    let _ = stream.set_nodelay(true);
    let (head_timeout, keepalive) = {
        let rules = proxy.rules.load();
        (rules.head_timeout, rules.tcp_keepalive)
    };
    match head::read(&mut stream, head_timeout).await {
        Ok(head) => {
            let tunnel = handshake(stream, head, peer, &proxy).await?;
            keep_alive(&tunnel, keepalive);
            return Some(tunnel);
        }
        Err(Fault::Gone) => debug!(caller = %peer.address.ip(), "connection without a request"),
        Err(Fault::Denied(denial)) => {
            let response = proxy.deny(&Entry::without_request(peer.address.ip()), &denial);
            let _ = timeout(ANSWER, stream.write_all(&raw(&response))).await;
            linger(stream).await;
        }
    }
    None
}

/// Lets hyper answer the one request of this connection. `Some` when our answer was a 101, and only then.
async fn handshake(stream: TcpStream, head: Head, peer: Peer, proxy: &Proxy) -> Option<Box<Tunnel>> {
    let slot = Slot::default();
    let limit = proxy.rules.load().routes.longest_handshake() + ANSWER;
    let service = service_fn(|request: Request<Incoming>| proxy.handle(peer, request, &slot));
    let connection = http1::Builder::new()
        .max_headers(head::MAX_LINES + 1)
        .max_buf_size(2 * head::MAX_HEAD)
        .serve_connection(TokioIo::new(Replay::new(head, stream)), service);
    // Answers other than 101 say `Connection: close`, so that there is never a second request.
    let served = timeout(limit, connection.without_shutdown()).await;
    let opened = slot.take();
    let parts = match served {
        Ok(Ok(parts)) => parts,
        Ok(Err(error)) => return gone(opened, proxy, &error.to_string()),
        Err(_) => return gone(opened, proxy, "the client did not read the answer"),
    };
    let (stream, rest) = parts.io.into_inner().into_parts();
    let Some(mut opened) = opened else {
        linger(stream).await;
        return None;
    };
    opened.start.from_client = [&parts.read_buf[..], &rest].concat();
    Some(Box::new(Tunnel { client: stream, opened }))
}

/// The client went away before it had its answer.
fn gone(opened: Option<Opened>, proxy: &Proxy, why: &str) -> Option<Box<Tunnel>> {
    debug!(why, "connection ended during the handshake");
    if let Some(opened) = opened {
        log::never_began(opened.seat.live(), why);
        let end = crate::end::End { cause: crate::end::Cause::ClientLost, code: None };
        log::closed(opened.seat.live(), end);
        proxy.metrics.closed(opened.seat.live(), end.cause);
    }
    None
}

/// Has TCP look after peers that vanish without a word.
fn keep_alive(tunnel: &Tunnel, idle: Option<Duration>) {
    let Some(idle) = idle else { return };
    let probes = socket2::TcpKeepalive::new().with_time(idle).with_interval(Duration::from_secs(15)).with_retries(4);
    let _ = socket2::SockRef::from(&tunnel.client).set_tcp_keepalive(&probes);
    if let crate::upstream::Stream::Tcp(stream) = &tunnel.opened.upstream {
        let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&probes);
    }
}

/// Closes our side and reads on for a moment.
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let _ = timeout(LINGER, async {
        let mut left = LINGER_BYTES;
        let mut buffer = [0; 1024];
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    })
    .await;
}

/// A refusal as bytes, for requests that hyper never sees.
fn raw(response: &Response<Bytes>) -> Vec<u8> {
    let status = response.status();
    let mut bytes = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("Refused"));
    for (name, value) in response.headers() {
        bytes.push_str(name.as_str());
        bytes.push_str(": ");
        bytes.push_str(value.to_str().unwrap_or_default());
        bytes.push_str("\r\n");
    }
    bytes.push_str(&format!("content-length: {}\r\n\r\n", response.body().len()));
    [bytes.as_bytes(), response.body()].concat()
}
