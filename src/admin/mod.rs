//! The operator's own listener: health, readiness, metrics, who is connected, how keys are used, reload, and a page that
//! shows it all.

mod answers;
mod connections;
mod events;
mod guard;
mod keys;
mod page;
mod query;
mod rules;
mod status;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::ACCEPT;
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Either;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::warn;

use self::answers::Answer;
use self::events::Events;
use crate::metrics::in_older_format;
use crate::proxy::Proxy;
use crate::reload::{Ask, Reloader, Status};
use crate::rules::Settings;

/// Connections at a time: a scraper, a probe, some people.
const MAX_CONNECTIONS: usize = 32;
/// ... of which so many may look at events.
const MAX_EVENTS: usize = 8;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A reload of a million keys fits in.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Admin {
    proxy: Arc<Proxy>,
    status: Arc<Mutex<Status>>,
    asks: mpsc::Sender<Ask>,
    settings: Arc<Settings>,
    events: Arc<Semaphore>,
}

impl Admin {
    pub fn new(proxy: Arc<Proxy>, reloader: &Reloader) -> Self {
        let events = Arc::new(Semaphore::new(MAX_EVENTS));
        let settings = Arc::new(reloader.settings().clone());
        Self { proxy, status: reloader.status(), asks: reloader.asks(), settings, events }
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
                        admin.converse(stream, is_local).await;
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

    /// One request and its answer.
    async fn converse(&self, stream: TcpStream, is_local: bool) {
        let streams = AtomicBool::new(false);
        let service = service_fn(async |request: Request<_>| {
            let answer = self.handle(&request.into_parts().0, is_local).await;
            streams.store(matches!(answer.body(), Either::Right(_)), Relaxed);
            Ok::<_, Infallible>(answer)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(16 * 1024)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        if timeout(TOTAL_TIMEOUT, &mut connection).await.is_err() && streams.load(Relaxed) {
            let _ = timeout(events::LONGEST, connection).await;
        }
    }

    async fn handle(&self, request: &Parts, is_local: bool) -> Answer {
        if let Err(why) = guard::check_caller(request, is_local) {
            return answers::text(StatusCode::FORBIDDEN, why);
        }
        let (path, query) = (request.uri.path(), request.uri.query());
        let is_operator = guard::shows_token(&request.headers, self.proxy.rules.load().admin_token.as_ref());
        if !is_operator && !matches!(path, "/" | "/healthz" | "/readyz") {
            return answers::no_token();
        }
        let proxy = &*self.proxy;
        match (path, &request.method) {
            ("/connections", &Method::DELETE) => connections::close(&proxy.tunnels, query),
            ("/reload", &Method::POST) => self.reload().await,
            ("/reload", _) => answers::not_allowed("POST"),
            ("/events", &Method::GET) => self.events(),
            ("/", &Method::GET | &Method::HEAD) => page::page(),
            ("/healthz", &Method::GET | &Method::HEAD) => answers::text(StatusCode::OK, "ok\n"),
            ("/readyz", &Method::GET | &Method::HEAD) => self.ready(is_operator),
            ("/metrics", &Method::GET | &Method::HEAD) => self.metrics(&request.headers),
            ("/version", &Method::GET | &Method::HEAD) => version(),
            ("/status", &Method::GET | &Method::HEAD) => {
                answers::json(StatusCode::OK, &status::now(proxy, &self.status()))
            }
            ("/connections", &Method::GET | &Method::HEAD) => connections::list(&proxy.tunnels, query),
            ("/keys", &Method::GET | &Method::HEAD) => keys::list(&proxy.rules.load(), &proxy.counts, query),
            ("/routes", &Method::GET | &Method::HEAD) => rules::routes(&proxy.rules.load(), &proxy.metrics),
            ("/config", &Method::GET | &Method::HEAD) => {
                rules::config(&proxy.rules.load(), &proxy.counts.limits(), &self.settings, &self.status())
            }
            ("/connections", _) => answers::not_allowed("GET, HEAD, DELETE"),
            ("/events", _) => answers::not_allowed("GET"),
            (
                "/" | "/healthz" | "/readyz" | "/metrics" | "/version" | "/status" | "/keys" | "/routes" | "/config",
                _,
            ) => answers::not_allowed("GET, HEAD"),
            _ => answers::text(StatusCode::NOT_FOUND, PATHS),
        }
    }

    fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whoever has not shown the token learns no more than what a probe needs.
    fn ready(&self, is_operator: bool) -> Answer {
        let draining = self.proxy.tunnels.is_draining();
        let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let mut body = json!({ "ready": !draining, "draining": draining });
        if is_operator {
            let reload = self.status();
            body["reload"] = status::last_reload(&reload);
            body["restart_needed"] = json!(reload.restart_needed);
            body["config_hash"] = json!(self.proxy.rules.load().fingerprint);
            body["version"] = json!(env!("CARGO_PKG_VERSION"));
        }
        answers::json(status, &body)
    }

    fn metrics(&self, headers: &HeaderMap) -> Answer {
        match self.proxy.metrics.print() {
            Ok(body) if wants_open_metrics(headers) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                answers::whole(StatusCode::OK, kind, body)
            }
            Ok(body) => {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                answers::whole(StatusCode::OK, kind, in_older_format(&body))
            }
            Err(_) => answers::text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n"),
        }
    }

    fn events(&self) -> Answer {
        if self.proxy.tunnels.is_draining() {
            return answers::text(StatusCode::SERVICE_UNAVAILABLE, ABOUT_TO_STOP);
        }
        let Ok(place) = self.events.clone().try_acquire_owned() else {
            return answers::text(StatusCode::SERVICE_UNAVAILABLE, "too many look at events already\n");
        };
        let events = Events::new(self.proxy.clone(), self.status.clone(), place);
        answers::answer(StatusCode::OK, "text/event-stream", Either::Right(events))
    }

    async fn reload(&self) -> Answer {
        let (ask, answer) = oneshot::channel();
        if self.asks.send(ask).await.is_err() {
            return answers::text(StatusCode::SERVICE_UNAVAILABLE, ABOUT_TO_STOP);
        }
        match answer.await {
            Ok(status) if status.ok => answers::json(StatusCode::OK, &status::last_reload(&status)),
            Ok(status) => answers::json(StatusCode::UNPROCESSABLE_ENTITY, &status::last_reload(&status)),
            Err(_) => answers::text(StatusCode::SERVICE_UNAVAILABLE, ABOUT_TO_STOP),
        }
    }
}

const ABOUT_TO_STOP: &str = "this proxy is about to stop\n";

const PATHS: &str = "GET / /healthz /readyz /metrics /version /status /events /connections /keys /routes /config, \
POST /reload, DELETE /connections\n";

fn version() -> Answer {
    answers::json(
        StatusCode::OK,
        &json!({
            "name": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "system": std::env::consts::OS,
            "architecture": std::env::consts::ARCH,
            "debug": cfg!(debug_assertions),
        }),
    )
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
