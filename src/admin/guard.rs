//! Who is an operator: not a page of somebody else in a browser on this machine, and where a token is asked for nobody
//! without it.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use http::request::Parts;
use http::{HeaderName, Method};

use crate::secret::{Digest, Secret};

/// What our own page sends when it changes something. A page of another origin can send it only after it has asked, and
/// that is answered with a refusal.
const OURS: HeaderName = HeaderName::from_static("x-wsbouncer");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether the request comes from a program, or from the page that this listener serves. Pages of others send an `Origin`
/// when they change something, say so in `Sec-Fetch-Site`, and have a name as `Host` when they have rebound one to this
/// address.
///
/// # Errors
/// What is wrong, as a line for people.
pub fn check_caller(request: &Parts, is_local: bool) -> Result<(), &'static str> {
    let text = |name: HeaderName| request.headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(HOST).unwrap_or_default();
    let name = crate::peer::split_host(host).map_or("", |(name, _)| name);
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost");
    if is_local && !is_address {
        return Err("the Host has to be an address or localhost\n");
    }
    let is_change = !matches!(request.method, Method::GET | Method::HEAD);
    let origins = request.headers.get_all(ORIGIN).iter().count();
    if let Some(origin) = text(ORIGIN) {
        let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if origins > 1 || own.is_none_or(|own| !own.eq_ignore_ascii_case(host)) {
            return Err("pages of other origins are not served here\n");
        }
        if is_change && text(OURS) != Some("1") {
            return Err("a page that changes something has to send X-Wsbouncer: 1\n");
        }
    }
    // The page itself may be linked to: there is nothing in it.
    let is_foreign = text(FETCH_SITE).is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if is_foreign && (is_change || request.uri.path() != "/") {
        return Err("pages of other origins are not served here\n");
    }
    Ok(())
}

/// Whether the request shows the token (RFC 6750 section 2.1), where there is one. Compared in constant time, by digest.
pub fn shows_token(headers: &HeaderMap, wanted: Option<&Digest>) -> bool {
    let Some(wanted) = wanted else { return true };
    let mut sent = headers.get_all(AUTHORIZATION).iter();
    let (Some(only), None) = (sent.next(), sent.next()) else { return false };
    let Some((scheme, token)) = only.as_bytes().split_at_checked("bearer ".len()) else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ") && Secret::new(token).digest() == *wanted
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: &str, path: &str, headers: &[(&str, &str)]) -> Parts {
        let request = headers
            .iter()
            .fold(Request::builder().method(method).uri(path), |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_our_own_page_may_change_something() {
        let may = |method, path, headers: &[(&str, &str)]| {
            let host = ("host", "127.0.0.1:9901");
            check_caller(&parts(method, path, &[&[host], headers].concat()), true).is_ok()
        };
        let own = ("origin", "http://127.0.0.1:9901");
        assert!(may("POST", "/reload", &[own, ("x-wsbouncer", "1"), ("sec-fetch-site", "same-origin")]));
        assert!(
            may("POST", "/reload", &[])
                && may("GET", "/keys", &[own])
                && may("GET", "/keys", &[("sec-fetch-site", "none")])
        );
        assert!(may("GET", "/", &[("sec-fetch-site", "cross-site")]));
        for bad in [
            &[own][..],
            &[own, ("x-wsbouncer", "0")],
            &[own, own, ("x-wsbouncer", "1")],
            &[("origin", "http://127.0.0.1:9902"), ("x-wsbouncer", "1")],
            &[("origin", "http://127.0.0.1"), ("x-wsbouncer", "1")],
            &[("origin", "null"), ("x-wsbouncer", "1")],
            &[("sec-fetch-site", "same-site"), ("x-wsbouncer", "1")],
            &[("origin", "file://127.0.0.1:9901"), ("x-wsbouncer", "1")],
        ] {
            assert!(!may("POST", "/reload", bad), "{bad:?}");
        }
        assert!(!may("GET", "/keys", &[("sec-fetch-site", "cross-site")]));
        assert!(!may("POST", "/", &[("sec-fetch-site", "cross-site")]));
    }

    #[test]
    fn a_token_is_shown_once_and_whole() {
        let wanted = Digest::of(b"token");
        let shows = |values: &[&str]| {
            let headers: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
            shows_token(&parts("GET", "/", &headers).headers, Some(&wanted))
        };
        assert!(shows(&["Bearer token"]) && shows(&["bearer token"]));
        for bad in [&[][..], &["Bearer toke"], &["Bearer token "], &["Basic token"], &["Bearer"], &["Bearer token"; 2]]
        {
            assert!(!shows(bad), "{bad:?}");
        }
        assert!(shows_token(&HeaderMap::new(), None));
    }
}
