//! Every refusal: its reason word, status, headers and body. One closed list, so that the answer, the log line and the
//! metric can never disagree.

use std::borrow::Cow;
use std::sync::Arc;

use http::StatusCode;

use crate::answer::{Answer, Draft};
use crate::cap::Cap;
use crate::fields::push_json;
use crate::secret::Digest;

/// Why a request is refused. The word is part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    BadHandshake,
    BadFirstMessage,
    ConflictingCredentials,
    AmbiguousPath,
    MissingCredential,
    InvalidCredential,
    ExpiredCredential,
    NotAllowedOnRoute,
    OriginNotAllowed,
    AddressNotAllowed,
    NoRoute,
    RequestTimeout,
    BodyTooLarge,
    TargetTooLong,
    UpgradeRequired,
    TooManyConnections,
    TooManyAttempts,
    HeadTooLarge,
    UpstreamUnreachable,
    UpstreamBadHandshake,
    Draining,
    AtCapacity,
    UpstreamTimeout,
}

impl Reason {
    pub const ALL: [Self; 23] = [
        Self::BadHandshake,
        Self::BadFirstMessage,
        Self::ConflictingCredentials,
        Self::AmbiguousPath,
        Self::MissingCredential,
        Self::InvalidCredential,
        Self::ExpiredCredential,
        Self::NotAllowedOnRoute,
        Self::OriginNotAllowed,
        Self::AddressNotAllowed,
        Self::NoRoute,
        Self::RequestTimeout,
        Self::BodyTooLarge,
        Self::TargetTooLong,
        Self::UpgradeRequired,
        Self::TooManyConnections,
        Self::TooManyAttempts,
        Self::HeadTooLarge,
        Self::UpstreamUnreachable,
        Self::UpstreamBadHandshake,
        Self::Draining,
        Self::AtCapacity,
        Self::UpstreamTimeout,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::BadHandshake => "bad_handshake",
            Self::BadFirstMessage => "bad_first_message",
            Self::ConflictingCredentials => "conflicting_credentials",
            Self::AmbiguousPath => "ambiguous_path",
            Self::MissingCredential => "missing_credential",
            Self::InvalidCredential => "invalid_credential",
            Self::ExpiredCredential => "expired_credential",
            Self::NotAllowedOnRoute => "not_allowed_on_route",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::NoRoute => "no_route",
            Self::RequestTimeout => "request_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::UpgradeRequired => "upgrade_required",
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyAttempts => "too_many_attempts",
            Self::HeadTooLarge => "head_too_large",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamBadHandshake => "upstream_bad_handshake",
            Self::Draining => "draining",
            Self::AtCapacity => "at_capacity",
            Self::UpstreamTimeout => "upstream_timeout",
        }
    }

    pub fn status(self) -> StatusCode {
        match self {
            Self::BadHandshake | Self::BadFirstMessage | Self::ConflictingCredentials | Self::AmbiguousPath => {
                StatusCode::BAD_REQUEST
            }
            Self::MissingCredential | Self::InvalidCredential | Self::ExpiredCredential => StatusCode::UNAUTHORIZED,
            Self::NotAllowedOnRoute | Self::OriginNotAllowed | Self::AddressNotAllowed => StatusCode::FORBIDDEN,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            Self::TooManyConnections | Self::TooManyAttempts => StatusCode::TOO_MANY_REQUESTS,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UpstreamUnreachable | Self::UpstreamBadHandshake => StatusCode::BAD_GATEWAY,
            Self::Draining | Self::AtCapacity => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Seconds after which a retry makes sense.
    fn retry_after(self) -> Option<&'static str> {
        match self {
            Self::TooManyConnections | Self::Draining | Self::AtCapacity => Some("5"),
            Self::TooManyAttempts => Some("60"),
            Self::BadHandshake
            | Self::BadFirstMessage
            | Self::ConflictingCredentials
            | Self::AmbiguousPath
            | Self::MissingCredential
            | Self::InvalidCredential
            | Self::ExpiredCredential
            | Self::NotAllowedOnRoute
            | Self::OriginNotAllowed
            | Self::AddressNotAllowed
            | Self::NoRoute
            | Self::RequestTimeout
            | Self::BodyTooLarge
            | Self::TargetTooLong
            | Self::UpgradeRequired
            | Self::HeadTooLarge
            | Self::UpstreamUnreachable
            | Self::UpstreamBadHandshake
            | Self::UpstreamTimeout => None,
        }
    }
}

/// A refusal: the reason for everybody, a detail for the client, the cause for the operator.
#[derive(Debug)]
pub struct Denial {
    pub reason: Reason,
    /// 405 for CONNECT and TRACE; everything else has its reason's own status.
    status: StatusCode,
    /// What the client is told. Never made from what the request held.
    pub detail: Cow<'static, str>,
    /// What the log is told besides.
    pub cause: Cow<'static, str>,
    /// Whose credential it was, where that is known.
    pub key: Option<Arc<str>>,
    /// ... and which of its secrets. Apart, because a refusal is passed on many times.
    pub secret: Option<Box<Digest>>,
    /// `WWW-Authenticate`, for a 401.
    challenge: Option<&'static str>,
    /// `Allow`, for a 405.
    allow: &'static str,
    /// Of a Close frame, where the framing itself was wrong.
    close: Option<u16>,
    /// The limit that was reached, where that is why.
    pub cap: Option<Cap>,
}

impl Denial {
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            status: reason.status(),
            detail: detail.into(),
            cause: Cow::Borrowed(""),
            key: None,
            secret: None,
            challenge: None,
            allow: "GET",
            close: None,
            cap: None,
        }
    }

    /// For whoever is one too many.
    pub fn full(cap: Cap) -> Self {
        let (reason, detail) = match cap {
            Cap::Connections | Cap::Waiting | Cap::Declined | Cap::OpenFiles | Cap::Memory => {
                (Reason::AtCapacity, "all connections are in use")
            }
            Cap::FailedAttempts => (Reason::TooManyAttempts, "too many failed attempts from this address"),
            Cap::ConnectionsPerAddress
            | Cap::ConnectionsOfRoute
            | Cap::ConnectionsOfKey
            | Cap::ConnectionsOfKeyOnRoute
            | Cap::PendingPerAddress
            | Cap::PendingPerKey
            | Cap::DeclinedPerAddress
            | Cap::WaitingPerAddress => (Reason::TooManyConnections, "too many connections are open already"),
        };
        Self { cap: Some(cap), ..Self::new(reason, detail).because(cap.says()) }
    }

    pub fn bad_handshake(detail: &'static str) -> Self {
        Self::new(Reason::BadHandshake, detail)
    }

    /// For a resource that takes only these methods.
    pub fn method(allow: &'static str) -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self { status, allow, ..Self::bad_handshake("this method is not served here") }
    }

    /// The only method that is refused whatever stands around it.
    pub fn connect_method() -> Self {
        Self { status: StatusCode::METHOD_NOT_ALLOWED, ..Self::bad_handshake("CONNECT is not served here") }
    }

    /// A method that would show the client what the upstream gets.
    pub fn trace_method() -> Self {
        Self { status: StatusCode::METHOD_NOT_ALLOWED, ..Self::bad_handshake("TRACE is not served here") }
    }

    pub fn too_large() -> Self {
        Self::new(Reason::BodyTooLarge, "the request body is larger than this route takes")
    }

    #[must_use]
    pub fn because(self, cause: impl Into<Cow<'static, str>>) -> Self {
        Self { cause: cause.into(), ..self }
    }

    #[must_use]
    pub fn of_key(self, key: Option<Arc<str>>) -> Self {
        Self { key, ..self }
    }

    #[must_use]
    pub fn of_secret(self, secret: Option<Digest>) -> Self {
        Self { secret: secret.map(Box::new), ..self }
    }

    #[must_use]
    pub fn challenge(self, challenge: &'static str) -> Self {
        Self { challenge: Some(challenge), ..self }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The code by which a page learns of it, where the handshake is completed to be closed: the status, among the codes
    /// that are free for private use (RFC 6455 section 7.4.2).
    pub fn close_code(&self) -> u16 {
        self.close.unwrap_or(4000 + self.status.as_u16())
    }

    /// The code where the handshake was completed long before, so that what failed since is like a tunnel that ends.
    pub fn late_close_code(&self) -> u16 {
        match self.reason {
            Reason::UpstreamUnreachable | Reason::UpstreamBadHandshake => 1014,
            Reason::UpstreamTimeout | Reason::AtCapacity => 1013,
            Reason::Draining => 1012,
            _ => self.close_code(),
        }
    }

    #[must_use]
    pub fn closing_with(self, code: u16) -> Self {
        Self { close: Some(code), ..self }
    }

    /// The answer (RFC 9457). It ends the connection, as every answer but a 101 does.
    pub fn answer(&self, request_id: &str) -> Answer {
        self.draft(request_id).with_body(&self.problem(request_id))
    }

    /// [`Denial::answer`], with these header lines besides.
    pub fn answer_with(&self, request_id: &str, lines: impl FnOnce(&mut Draft)) -> Answer {
        let mut draft = self.draft(request_id);
        lines(&mut draft);
        draft.with_body(&self.problem(request_id))
    }

    fn draft(&self, request_id: &str) -> Draft {
        let mut draft = Answer::of(self.status);
        draft.line("content-type", b"application/problem+json");
        draft.line("cache-control", b"no-store");
        draft.line("x-request-id", request_id.as_bytes());
        if let Some(seconds) = self.reason.retry_after() {
            draft.line("retry-after", seconds.as_bytes());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // A 401 without it is none (RFC 9110 section 15.5.2).
            draft.line("www-authenticate", self.challenge.unwrap_or("ApiKey realm=\"wsbouncer\"").as_bytes());
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            draft.line("allow", self.allow.as_bytes());
        }
        if self.reason == Reason::UpgradeRequired {
            // RFC 9110 section 15.5.22 and RFC 6455 section 4.4.
            draft.line("upgrade", b"websocket");
            draft.line("sec-websocket-version", b"13");
            draft.line("connection", b"Upgrade, close");
        } else {
            draft.line("connection", b"close");
        }
        draft
    }

    /// The body (RFC 9457 section 3), in the order in which people read it.
    fn problem(&self, request_id: &str) -> Vec<u8> {
        let mut body = Vec::with_capacity(512);
        body.extend_from_slice(b"{\"type\":\"urn:wsbouncer:");
        body.extend_from_slice(self.reason.word().as_bytes());
        body.extend_from_slice(b"\",\"title\":");
        push_json(&mut body, self.status.canonical_reason().unwrap_or("Refused"));
        body.extend_from_slice(b",\"status\":");
        body.extend_from_slice(self.status.as_str().as_bytes());
        body.extend_from_slice(b",\"detail\":");
        push_json(&mut body, &self.detail);
        body.extend_from_slice(b",\"reason\":");
        push_json(&mut body, self.reason.word());
        body.extend_from_slice(b",\"request_id\":");
        push_json(&mut body, request_id);
        body.extend_from_slice(b"}\n");
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_json() {
        let denial = Denial::new(Reason::BadHandshake, "say \"please\"").because("not told");
        let problem: serde_json::Value = serde_json::from_slice(&denial.problem("1\u{7f}")).unwrap();
        let wanted = serde_json::json!({
            "type": "urn:wsbouncer:bad_handshake",
            "title": "Bad Request",
            "status": 400,
            "detail": "say \"please\"",
            "reason": "bad_handshake",
            "request_id": "1\u{7f}",
        });
        assert_eq!(problem, wanted);
    }

    #[test]
    fn words_are_unique_and_snake_case() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        assert!(words.iter().all(|word| word.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase())));
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
