//! Answers of the operator's listener.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, Response, StatusCode};
use http_body_util::{Either, Full};
use serde_json::Value;

use super::events::Events;

/// Whole, or an event a second.
pub type Body = Either<Full<Bytes>, Events>;
pub type Answer = Response<Body>;

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

pub fn answer(status: StatusCode, kind: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (RESOURCE_POLICY, "same-origin"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

pub fn whole(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    answer(status, kind, Either::Left(Full::new(body.into())))
}

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    whole(status, "text/plain; charset=utf-8", body)
}

pub fn json(status: StatusCode, body: &Value) -> Answer {
    whole(status, "application/json", format!("{body}\n"))
}

pub fn bad_request(why: impl Into<Bytes>) -> Answer {
    text(StatusCode::BAD_REQUEST, why)
}

pub fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

pub fn no_token() -> Answer {
    let mut answer = text(StatusCode::UNAUTHORIZED, "send Authorization: Bearer and the token of admin.token\n");
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"wsbouncer\""));
    answer
}
