//! The page for people: one file with all that it needs. Its policy lets nothing else into it.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_FRAME_OPTIONS};
use http::{HeaderName, StatusCode};
use sha2::{Digest as _, Sha256};

use super::answers::{self, Answer};

const PAGE: &str = include_str!("page.html");

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

pub fn page() -> Answer {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(policy);
    let mut answer = answers::whole(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    answer
}

/// Its script and its style by their digests (CSP level 3), requests to this listener, and nothing else.
fn policy() -> HeaderValue {
    let [script, style] = ["script", "style"].map(|element| STANDARD.encode(Sha256::digest(inside(element))));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

/// The text of the only element of this name.
fn inside(element: &str) -> &'static str {
    let begin = PAGE.split_once(&format!("<{element}>")).map_or("", |(_, rest)| rest);
    begin.split_once(&format!("</{element}>")).map_or("", |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        assert!(inside("script").len() > 1000 && inside("style").len() > 1000);
        for (element, count) in
            [("<script", 1), ("<style", 1), ("style=", 0), (" onclick", 0), ("src=", 0), ("@import", 0)]
        {
            assert_eq!(PAGE.matches(element).count(), count, "{element}");
        }
        let foreign = PAGE
            .match_indices("//")
            .filter(|(at, _)| PAGE[..*at].ends_with("http:") || PAGE[..*at].ends_with("https:"));
        let foreign: Vec<&str> = foreign.map(|(at, _)| &PAGE[at..][..20]).collect();
        assert!(foreign.iter().all(|url| url.starts_with("//www.w3.org/")), "{foreign:?}");
    }
}
