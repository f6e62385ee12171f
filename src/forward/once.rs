//! The one request of a client's connection, sent on, and the head of its answer made anew.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::Service;
use tokio::time::Instant;

use super::body::{Down, Progress, Up};
use crate::denial::Denial;
use crate::fields::{is_end_to_end, only};
use crate::upstream::broken;

/// Answers one request, and no second one.
pub struct Once {
    call: Mutex<Option<Call>>,
    progress: Progress,
}

struct Call {
    sender: SendRequest<Up>,
    request: Request<()>,
    max_body: u64,
    request_id: Option<HeaderValue>,
    progress: Progress,
}

/// There is no answer; why, is in the [`Progress`].
#[derive(Debug)]
pub struct NoAnswer;

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")
    }
}

impl Error for NoAnswer {}

impl Once {
    pub fn new(
        sender: SendRequest<Up>,
        request: Request<()>,
        max_body: u64,
        request_id: &str,
        progress: Progress,
    ) -> Self {
        let request_id = HeaderValue::from_str(request_id).ok();
        let call = Call { sender, request, max_body, request_id, progress: progress.clone() };
        Self { call: Mutex::new(Some(call)), progress }
    }
}

impl Service<Request<Incoming>> for Once {
    type Response = Response<Down>;
    type Error = NoAnswer;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Down>, NoAnswer>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let call = self.call.lock().unwrap_or_else(PoisonError::into_inner).take();
        let progress = self.progress.clone();
        Box::pin(async move {
            // hyper was told to keep no connection alive, so there is none.
            let Some(call) = call else { return Err(NoAnswer) };
            call.run(request.into_body()).await.map_err(|denial| {
                progress.with(|state| state.denial = Some(denial));
                NoAnswer
            })
        })
    }
}

impl Call {
    async fn run(mut self, body: Incoming) -> Result<Response<Down>, Denial> {
        let up = Up { body, left: self.max_body, progress: self.progress.clone() };
        let (parts, ()) = self.request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let answer = self.sender.send_request(Request::from_parts(parts, up)).await;
        let (answer, body) = answer.map_err(|error| broken(describe(&error)))?.into_parts();
        let status = check(answer.status, &answer.headers).map_err(broken)?;
        let mut response = Response::new(Down { body, progress: self.progress.clone() });
        *response.status_mut() = status;
        *response.headers_mut() = cleaned(&answer.headers, is_head, self.request_id);
        self.progress.with(|state| {
            state.status = Some(status.as_u16());
            state.answered_at = Some(Instant::now());
        });
        Ok(response)
    }
}

/// With what is behind it: hyper's own words are few.
fn describe(error: &hyper::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn check(status: StatusCode, headers: &HeaderMap) -> Result<StatusCode, &'static str> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err("it switches protocols, which nobody asked for");
    }
    if status.as_u16() < 200 || status.as_u16() >= 600 {
        return Err("its status is none");
    }
    match only(headers, &TRANSFER_ENCODING) {
        Ok(None) => Ok(status),
        Ok(Some(_)) if headers.contains_key(CONTENT_LENGTH) => {
            Err("its answer has both Content-Length and Transfer-Encoding")
        }
        Ok(Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Ok(status),
        // What is around the chunks would reach the client without a word about it.
        _ => Err("its Transfer-Encoding is not chunked"),
    }
}

/// What of the answer's head is for the client: neither framing nor anything about the connection to us.
fn cleaned(headers: &HeaderMap, is_head: bool, request_id: Option<HeaderValue>) -> HeaderMap {
    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    let is_end_to_end = is_end_to_end(headers);
    let mut clean = HeaderMap::with_capacity(headers.len() + 2);
    for (name, value) in headers.iter().filter(|(name, _)| is_end_to_end(name)) {
        clean.append(name.clone(), value.clone());
    }
    // The answer to HEAD says how long that to GET would be (RFC 9110 section 8.6).
    if is_head && let Ok(Some(length)) = only(headers, &CONTENT_LENGTH) {
        clean.extend(length.parse::<u64>().map(|length| (CONTENT_LENGTH, HeaderValue::from(length))));
    }
    if let Some(id) = request_id.filter(|_| !headers.contains_key(REQUEST_ID)) {
        clean.insert(REQUEST_ID, id);
    }
    clean.insert(CONNECTION, HeaderValue::from_static("close"));
    clean
}
