//! The operator's own listener: health, readiness, metrics, who is connected, reload.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::clock::UnixTime;
use crate::metrics::in_older_format;
use crate::proxy::Proxy;
use crate::reload::{Ask, Reloader, Status};
use crate::tunnels::Live;

/// Connections at a time: a scraper, a probe, a person.
const MAX_CONNECTIONS: usize = 32;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A reload of a million keys fits in.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Admin {
    proxy: Arc<Proxy>,
    status: Arc<Mutex<Status>>,
    asks: mpsc::Sender<Ask>,
}

impl Admin {
    pub fn new(proxy: Arc<Proxy>, reloader: &Reloader) -> Self {
        Self { proxy, status: reloader.status(), asks: reloader.asks() }
    }

    /// Serves until its task is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let admin = self.clone();
                    #[expect(clippy::disallowed_methods, reason = "bounded by its permit and its deadline")]
                    tokio::spawn(async move {
                        let service = service_fn(|request| admin.handle(request, is_local));
                        let connection = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEAD_TIMEOUT)
                            .max_buf_size(16 * 1024)
                            .keep_alive(false)
                            .serve_connection(TokioIo::new(stream), service);
                        let _ = timeout(TOTAL_TIMEOUT, connection).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept connections on the admin listener, trying again");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn handle<B>(&self, request: Request<B>, is_local: bool) -> Result<Response<Full<Bytes>>, Infallible> {
        if let Err(why) = check_caller(&request, is_local) {
            return Ok(text(StatusCode::FORBIDDEN, why));
        }
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        let post = request.method() == Method::POST;
        Ok(match request.uri().path() {
            "/healthz" if get => text(StatusCode::OK, "ok\n"),
            "/readyz" if get => self.ready(),
            "/metrics" if get => self.metrics(request.headers()),
            "/connections" if get => self.connections(),
            "/reload" if post => self.reload().await,
            "/healthz" | "/readyz" | "/metrics" | "/connections" => not_allowed("GET"),
            "/reload" => not_allowed("POST"),
            _ => text(StatusCode::NOT_FOUND, "GET /healthz /readyz /metrics /connections, POST /reload\n"),
        })
    }

    fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let draining = self.proxy.tunnels.is_draining();
        let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let reload = self.status();
        let body = json!({
            "ready": !draining,
            "draining": draining,
            "reload": reload_json(&reload),
            "restart_needed": reload.restart_needed,
            "config_hash": self.proxy.rules.load().fingerprint,
            "version": env!("CARGO_PKG_VERSION"),
        });
        json_response(status, &body)
    }

    fn metrics(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        match self.proxy.metrics.print() {
            Ok(body) if wants_open_metrics(headers) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response(StatusCode::OK, kind, body)
            }
            Ok(body) => {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                response(StatusCode::OK, kind, in_older_format(&body))
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n"),
        }
    }

    fn connections(&self) -> Response<Full<Bytes>> {
        let all = self.proxy.tunnels.all();
        let open: Vec<Value> = all.iter().filter(|live| live.is_open()).map(|live| connection_json(live)).collect();
        json_response(StatusCode::OK, &json!({ "connections": open }))
    }

    async fn reload(&self) -> Response<Full<Bytes>> {
        let (ask, answer) = oneshot::channel();
        if self.asks.send(ask).await.is_err() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "this proxy is about to stop\n");
        }
        match answer.await {
            Ok(status) if status.ok => json_response(StatusCode::OK, &reload_json(&status)),
            Ok(status) => json_response(StatusCode::UNPROCESSABLE_ENTITY, &reload_json(&status)),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "this proxy is about to stop\n"),
        }
    }
}

/// Pages in a browser on this machine are not the operator: they send an Origin when they change something, and a name as
/// Host when they have rebound one to this address.
fn check_caller<B>(request: &Request<B>, is_local: bool) -> Result<(), &'static str> {
    if request.headers().contains_key(ORIGIN) {
        return Err("requests with an Origin are not served here\n");
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = crate::peer::split_host(host).map_or("", |(name, _)| name);
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost");
    if is_local && !is_address {
        return Err("the Host has to be an address or localhost\n");
    }
    Ok(())
}

/// Prometheus names it among what it accepts; whoever does not name it gets what every scraper reads.
fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let is_it = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
        is_it && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
    })
}

fn reload_json(status: &Status) -> Value {
    json!({ "ok": status.ok, "at": date(status.at.0), "error": status.error, "restart_needed": status.restart_needed })
}

fn connection_json(live: &Live) -> Value {
    use std::sync::atomic::Ordering::Relaxed;
    let opening = live.opening();
    let opened_at = opening.and_then(|opening| opening.at.duration_since(std::time::UNIX_EPOCH).ok());
    json!({
        "id": live.id,
        "kind": live.kind.word(),
        "route": &*live.route,
        "key": live.key(),
        "caller": live.caller.to_string(),
        "origin": live.origin,
        "subprotocol": opening.and_then(|opening| opening.subprotocol.as_deref()),
        "upstream": &*live.upstream,
        "opened_at": opened_at.and_then(|at| i64::try_from(at.as_secs()).ok()).map(date),
        "seconds": opening.map(|opening| opening.since.elapsed().as_secs_f64()),
        "up_bytes": live.control.up_bytes.load(Relaxed),
        "down_bytes": live.control.down_bytes.load(Relaxed),
        "up_messages": live.control.up_messages.load(Relaxed),
        "down_messages": live.control.down_messages.load(Relaxed),
        "expires_at": live.control.expires_at().map(|UnixTime(at)| date(at)),
    })
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |date| date.to_string())
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body)
}

fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    response(status, "application/json", format!("{body}\n"))
}

fn not_allowed(method: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    response
}
