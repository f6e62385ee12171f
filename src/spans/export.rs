//! Sends spans to a collector: OTLP over HTTP/1.1, as Protocol Buffers. In batches, one after the other, each with a
//! deadline, each tried once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Collector, Spans, encode};

/// How long a span waits for others.
const ROUND: Duration = Duration::from_secs(1);
/// A collector that does not take them is asked again after twice the time, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Of one batch, from the dial to the answer: what OTLP has as its default.
const DEADLINE: Duration = Duration::from_secs(10);
/// Spans of one request.
const BATCH: usize = 512;

/// Sends what there is, for as long as it is polled. `collector`: where to, at this moment.
pub async fn run(spans: &Spans, collector: impl Fn() -> Option<Arc<Collector>>) {
    let mut pause = ROUND;
    loop {
        if pause > ROUND {
            sleep(pause).await;
        } else {
            let _ = timeout(ROUND, spans.many.notified()).await;
        }
        let sent = send(spans, collector()).await;
        match &sent {
            // Nothing was sent, and so nothing is known.
            Ok(0) => continue,
            Ok(_) if pause > ROUND => info!("spans are exported again"),
            Err(error) if pause == ROUND => warn!(%error, "spans cannot be exported"),
            Ok(_) | Err(_) => {}
        }
        pause = if sent.is_ok() { ROUND } else { LONGEST_PAUSE.min(2 * pause) };
    }
}

/// Sends what waits, once, and says how many that were. After the first batch that fails the others of this round are given up: the next one tells
/// whether the collector is back.
///
/// # Errors
/// Why it was not taken.
pub async fn send(spans: &Spans, collector: Option<Arc<Collector>>) -> io::Result<usize> {
    let waiting = spans.take();
    let Some(collector) = collector else { return Ok(0) };
    let mut left = waiting.len();
    for batch in waiting.chunks(BATCH) {
        let posted = timeout(DEADLINE, post(&collector, encode::request(batch))).await;
        if let Err(error) = posted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            spans.failed.fetch_add(u64::try_from(left).unwrap_or(u64::MAX), Relaxed);
            return Err(error);
        }
        spans.exported.fetch_add(u64::try_from(batch.len()).unwrap_or(u64::MAX), Relaxed);
        left -= batch.len();
    }
    Ok(waiting.len())
}

async fn post(collector: &Collector, body: Vec<u8>) -> io::Result<()> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(&*collector.path)
        .header(HOST, &*collector.authority)
        .header(USER_AGENT, concat!("wsbouncer/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/x-protobuf")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let stream = TcpStream::connect((&*collector.host, collector.port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // The connection ends with this request, because nobody holds its sender any longer.
    let status = async move { sender.send_request(request).await.map(|answer| answer.status()) };
    let (status, _) = tokio::join!(status, connection);
    match status.map_err(io::Error::other)? {
        StatusCode::OK => Ok(()),
        other => Err(io::Error::other(format!("the collector answered {}", other.as_u16()))),
    }
}
