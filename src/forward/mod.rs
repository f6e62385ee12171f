//! Plain HTTP beside the socket, on routes that say `http: forward`: one request and its answer, after the same questions
//! and on the same list as a tunnel.
//!
//! Both messages are made anew. Their heads are ours, from what was vetted; their bodies are framed by hyper, whose server
//! is shown a head that says no more than how the body is framed, and whose client has a fresh connection that ends with
//! this request. One task drives all of it, and drops all of it: whoever goes away takes the other side along.

mod body;
mod both;
mod once;
mod wire;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, EXPECT, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request};
use hyper::{client, server};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use self::body::Progress;
use self::both::Both;
use self::once::Once;
use self::wire::{FromClient, ToUpstream};
use crate::denial::Denial;
use crate::end::Cause;
use crate::fields::only;
use crate::log::{self, Entry};
use crate::metrics::{Metrics, Outcome};
use crate::relay::Bounds;
use crate::route::{Http, Route};
use crate::socket::Socket;
use crate::tunnels::Seat;
use crate::upstream::{self, Patience, Stream, Upstream};

/// What hyper may hold of each direction on each side. Heads have to fit in.
const BUFFER: usize = 64 * 1024;

/// A request that asks for no upgrade, on a route that lets such requests through: how its body is framed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain {
    body: Framing,
    /// It wants to hear `100 Continue` before it sends its body.
    expects_continue: bool,
}

#[derive(Debug, Clone, Copy, Default)]
enum Framing {
    #[default]
    None,
    Length(u64),
    Chunked,
}

/// Whether a vetted request is to be passed on as it is. `None`: it has to be an upgrade, or is refused. Whatever speaks of
/// an upgrade is never a plain request: neither to another protocol (h2c), nor one whose `Upgrade` was lost on its way.
///
/// # Errors
/// 400 for a body where none is taken and for an `Expect` that is not known, 405 for TRACE.
pub fn asked_for(route: &Route, parts: &Parts) -> Result<Option<Plain>, Denial> {
    let headers = &parts.headers;
    let is_chunked = headers.contains_key(TRANSFER_ENCODING);
    if route.http == Http::Refuse {
        return if is_chunked { Err(Denial::bad_handshake("Transfer-Encoding is not served here")) } else { Ok(None) };
    }
    if headers.contains_key(UPGRADE) || headers.contains_key(SEC_WEBSOCKET_KEY) {
        return Ok(None);
    }
    if parts.method == Method::TRACE {
        return Err(Denial::trace_method());
    }
    let expects_continue = match only(headers, &EXPECT) {
        Ok(None) => false,
        Ok(Some(what)) if what.eq_ignore_ascii_case("100-continue") => true,
        _ => return Err(Denial::bad_handshake("the Expect header asks for more than 100-continue")),
    };
    // Vetted: at most one of the two, once, and well-formed.
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let body = match length {
        _ if is_chunked => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::None,
    };
    Ok(Some(Plain { body, expects_continue }))
}

impl Plain {
    /// How large the body may become.
    ///
    /// # Errors
    /// 413 `body_too_large` for one that says so itself.
    pub fn check_size(self, route: &Route) -> Result<u64, Denial> {
        let Http::Forward { max_request_body } = route.http else { return Ok(0) };
        match self.body {
            Framing::Length(length) if length > max_request_body => Err(Denial::too_large()),
            _ => Ok(max_request_body),
        }
    }

    /// The head that hyper's server gets to see.
    fn head(self, method: &Method) -> String {
        let method = if method == Method::HEAD { "HEAD" } else { "POST" };
        let framing = match self.body {
            Framing::None => String::new(),
            Framing::Length(length) => format!("content-length: {length}\r\n"),
            Framing::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
        };
        let expect = if self.expects_continue { "expect: 100-continue\r\n" } else { "" };
        format!("{method} / HTTP/1.1\r\n{framing}{expect}\r\n")
    }

    fn write_framing(self, request: &mut Request<()>) {
        match self.body {
            Framing::None => {}
            Framing::Length(length) => drop(request.headers_mut().insert(CONTENT_LENGTH, length.into())),
            Framing::Chunked => {
                request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
    }
}

/// An admitted plain request, ready to go.
pub struct Forward {
    seat: Seat,
    /// As the upstream gets it, but for what frames its body.
    request: Request<()>,
    plain: Plain,
    /// Bytes.
    max_body: u64,
    upstream: Arc<Upstream>,
    patience: Patience,
    bounds: Bounds,
}

/// What is left when it is over.
pub struct Ended {
    pub client: Socket,
    /// Why there was no answer, to be said to the client and counted.
    pub refusal: Option<Denial>,
    /// The client was answered, and may still be sending.
    pub is_more_to_come: bool,
}

impl Forward {
    /// A plain request that was admitted.
    ///
    /// # Errors
    /// 413 `body_too_large`; 400 for what hyper cannot write, which nothing that was vetted is.
    pub fn new(seat: Seat, request: Option<Request<()>>, plain: Plain, route: &Route) -> Result<Self, Denial> {
        let request = request.ok_or_else(|| Denial::bad_handshake("the request cannot be passed on"))?;
        let key = || seat.live().principal.key().map(|key| key.id.clone());
        let max_body = plain.check_size(route).map_err(|denial| denial.of_key(key()))?;
        let (patience, bounds) = (route.patience(), route.bounds());
        Ok(Self { seat, request, plain, max_body, upstream: route.upstream.clone(), patience, bounds })
    }

    /// Sends the request to the upstream and its answer to the client. One line in the log at the end, unless it is refused.
    pub async fn run(
        mut self,
        entry: &Entry,
        client: Socket,
        early: Vec<u8>,
        keepalive: Option<Duration>,
        metrics: &Metrics,
    ) -> Ended {
        let method = log::printable(self.request.method().as_str().as_bytes());
        let progress = Progress::default();
        metrics.forwarding(self.seat.live());
        let (verdict, client, is_more_to_come) = self.exchange(entry, client, &early, keepalive, &progress).await;
        let live = self.seat.live();
        let refusal = match verdict {
            Ok(cause) => {
                let status = progress.with(|state| state.status);
                metrics.forwarded(live, Some(cause));
                let took = progress.with(|state| state.answered_at).unwrap_or_else(Instant::now);
                let took = took.into_std().saturating_duration_since(entry.since);
                metrics.answered(entry.route_label(), Outcome::Forwarded, took);
                entry.ended(Outcome::Forwarded.word(), status);
                log::forwarded(live, entry, &log::Forwarded { method: &method, status, cause });
                None
            }
            Err(denial) => {
                metrics.forwarded(live, None);
                let key = live.principal.key().map(|key| key.id.clone());
                Some(denial.of_key(key))
            }
        };
        Ended { client, refusal, is_more_to_come }
    }

    async fn exchange(
        &mut self,
        entry: &Entry,
        mut client: Socket,
        early: &[u8],
        keepalive: Option<Duration>,
        progress: &Progress,
    ) -> (Result<Cause, Denial>, Socket, bool) {
        match self.seat.confirm() {
            Ok(confirmed) => self.seat.opened(confirmed, None),
            Err(denial) => return (Err(denial), client, true),
        }
        let dialled = tokio::select! {
            biased;
            dialled = self.upstream.connect(&self.seat, self.patience) => dialled,
            () = client.hung_up(), if early.is_empty() => return (Ok(Cause::ClientLost), client, false),
        };
        let stream = match dialled {
            Ok(stream) => stream,
            Err(denial) => return (Err(denial), client, true),
        };
        if let (Some(idle), Stream::Tcp(upstream)) = (keepalive, &stream) {
            upstream.ask_after(idle);
        }
        let length = match self.plain.body {
            Framing::None => 0,
            Framing::Length(length) => length,
            Framing::Chunked => u64::MAX,
        };
        progress.with(|state| state.up_done = length == 0);
        let head = self.plain.head(self.request.method());
        let client = FromClient::new(head, early, length, client, progress.clone());
        self.plain.write_framing(&mut self.request);
        let request = std::mem::take(&mut self.request);
        let io = TokioIo::new(ToUpstream { stream, progress: progress.clone() });
        let (sender, upstream) = match client::conn::http1::Builder::new().max_buf_size(BUFFER).handshake(io).await {
            Ok(both) => both,
            Err(error) => return (Err(upstream::broken(error.to_string())), client.into_socket(), true),
        };
        let once = Once::new(sender, request, self.max_body, &entry.id, progress.clone());
        let mut server = server::conn::http1::Builder::new();
        let server = server.keep_alive(false).max_buf_size(BUFFER).serve_connection(TokioIo::new(client), once);
        let mut both = Both::new((&self.seat, self.patience, &self.bounds), server, upstream, progress);
        let verdict = poll_fn(|cx| both.poll(cx)).await;
        let parts = both.into_server().into_parts();
        let client = parts.io.into_inner();
        let is_body_read = progress.with(|state| state.up_done);
        let is_more_to_come = !is_body_read || !parts.read_buf.is_empty() || client.has_unread();
        (verdict, client.into_socket(), is_more_to_come)
    }
}
