//! The floor: what a proxy costs that is written in an afternoon from hyper and `copy_bidirectional`. It asks for one key,
//! and has no limits, no logs, no metrics, no timeouts.
//!
//!     naive LISTEN UPSTREAM KEY

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

type Body = BoxBody<Bytes, hyper::Error>;

struct Rules {
    upstream: String,
    key: String,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(upstream), Some(key)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: naive LISTEN UPSTREAM KEY"));
    };
    let listener = TcpListener::bind(listen).await?;
    let rules = Arc::new(Rules { upstream, key });
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        tokio::spawn(serve(stream, rules.clone()));
    }
}

async fn serve(stream: TcpStream, rules: Arc<Rules>) {
    // A connection that fails is one that its client gives up.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| handle(request, rules.clone()));
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.with_upgrades().await;
}

async fn handle(mut request: Request<Incoming>, rules: Arc<Rules>) -> Result<Response<Body>, hyper::Error> {
    if request.headers().get("x-api-key").is_none_or(|key| key.as_bytes() != rules.key.as_bytes()) {
        return Ok(refusal(StatusCode::UNAUTHORIZED));
    }
    let Ok(stream) = TcpStream::connect(&rules.upstream).await else { return Ok(refusal(StatusCode::BAD_GATEWAY)) };
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let upgrade = request.headers().get(header::UPGRADE);
    let is_websocket = upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let down = is_websocket.then(|| hyper::upgrade::on(&mut request));
    let mut response = sender.send_request(request).await?;
    if let Some(down) = down.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS) {
        let up = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(down), Ok(up)) = tokio::join!(down, up) {
                let _ = copy_bidirectional(&mut TokioIo::new(down), &mut TokioIo::new(up)).await;
            }
        });
    }
    Ok(response.map(|body| body.boxed()))
}

fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
