//! Tickets over the counter: an authenticated plain request gets what opens one handshake a moment later (design
//! section 7). Pages ask for them with `fetch()`, so what a browser wants of a request to another origin is answered too.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue, ORIGIN, UPGRADE};
use http::request::Parts;
use http::{Method, StatusCode};
use serde::Serialize;

use crate::admit::{Conditions, Door, allow, check_origin};
use crate::answer::{Answer, Draft};
use crate::auth::ticket::{Bound, Signer};
use crate::auth::{Credential, Kind, Principal, Verifier};
use crate::clock::UnixTime;
use crate::denial::{Denial, Reason};
use crate::log::Entry;
use crate::peer::Caller;
use crate::route::{Cookie, Issue, PathPattern, Route};
use crate::rules::Rules;

/// What the counter takes. GET too: a client with a cookie jar may know nothing else.
const METHODS: &str = "GET, POST, OPTIONS";

/// The counter for tickets that a request has come to. What asks for an upgrade never does.
pub fn find_desk<'r>(rules: &'r Rules, host: &str, parts: &Parts) -> Option<(&'r Arc<Route>, &'r Issue)> {
    if !rules.routes.has_desks() || parts.headers.contains_key(UPGRADE) {
        return None;
    }
    let route = rules.routes.find_desk(host, parts.uri.path())?;
    route.tickets.as_ref().map(|issue| (route, issue))
}

/// What a counter did.
pub enum Served {
    /// A browser was told that it may ask.
    Preflight(Answer),
    Ticket(Answer),
}

/// A ticket for whoever proves by a key that it may use the route. Takes no place there: whoever dials does. `verify`
/// makes a principal of a key.
///
/// # Errors
/// As for a handshake, and 405 `bad_handshake`.
pub fn serve(
    (route, issue): (&Route, &Issue),
    parts: &mut Parts,
    caller: &Caller,
    signer: &Signer,
    entry: &mut Entry,
    verify: impl FnOnce(Option<&Credential>, &HeaderMap) -> Result<Principal, Denial>,
) -> Result<Served, Denial> {
    match parts.method {
        Method::GET | Method::POST => {}
        Method::OPTIONS => return preflight(route, &parts.headers).map(Served::Preflight),
        _ => return Err(Denial::method(METHODS)),
    }
    let credential = route.verifier.take_credential(parts, &mut Vec::new(), true)?;
    if credential.as_ref().is_some_and(|credential| credential.kind() == Kind::Ticket) {
        return Err(Denial::new(Reason::InvalidCredential, "a ticket gets no ticket: send the key"));
    }
    let principal = verify(credential.as_ref(), &parts.headers)?;
    entry.key = principal.key().map(|key| key.id.clone());
    let door = Door { name: &route.name, conditions: &route.conditions };
    allow(&door, &principal, credential.as_ref().map(Credential::carrier), &parts.headers)?;
    hand_out((route, issue), &principal, &parts.headers, caller, signer, &entry.id).map(Served::Ticket)
}

/// The ticket for a principal, and the answer that hands it over.
///
/// # Errors
/// 503 `at_capacity` when the system has no randomness.
fn hand_out(
    (route, issue): (&Route, &Issue),
    principal: &Principal,
    headers: &HeaderMap,
    caller: &Caller,
    signer: &Signer,
    request_id: &str,
) -> Result<Answer, Denial> {
    let (Some(key), Some(secret)) = (principal.key(), principal.secret()) else {
        // The configuration has no such route.
        return Err(Denial::new(Reason::NoRoute, "nothing is served here"));
    };
    let bound = Bound {
        route: &route.name,
        origin: issue.bind_origin.then(|| origin(headers)),
        address: issue.bind_address.then_some(caller.address),
    };
    let seconds = issue.ttl.as_secs().max(1);
    let until = UnixTime(UnixTime::now().0.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX)));
    let ticket = signer.issue((secret, &key.id), &bound, until).ok_or_else(|| {
        Denial::new(Reason::AtCapacity, "no ticket can be made now").because("the system has no randomness")
    })?;
    let mut draft = Answer::of(StatusCode::OK);
    draft.line("content-type", b"application/json");
    draft.line("cache-control", b"no-store");
    draft.line("x-request-id", request_id.as_bytes());
    if let Some(cookie) = &issue.cookie {
        draft.line("set-cookie", cookie_line(cookie, &ticket, seconds, &route.path).as_bytes());
    }
    share(&mut draft, &route.conditions, headers);
    draft.line("connection", b"close");
    let mut body = Vec::with_capacity(256);
    // Two fields into memory: there is nothing in it that could fail.
    let _ = serde_json::to_writer(&mut body, &Issued { ticket: &ticket, expires_in: seconds });
    body.push(b'\n');
    Ok(draft.with_body(&body))
}

#[derive(Serialize)]
struct Issued<'t> {
    ticket: &'t str,
    expires_in: u64,
}

/// `Origin` as it was sent; empty where there is none.
pub fn origin(headers: &HeaderMap) -> &[u8] {
    headers.get(ORIGIN).map_or(b"", HeaderValue::as_bytes)
}

/// Sent back to the route alone, and by no other site's page (RFC 6265bis section 4.1.2).
fn cookie_line(cookie: &Cookie, ticket: &str, seconds: u64, path: &PathPattern) -> String {
    let path = match path {
        PathPattern::Any => "/",
        PathPattern::Exact(path) | PathPattern::Prefix(path) => path,
    };
    let secure = if cookie.secure { "; Secure" } else { "" };
    format!("{}={ticket}; Max-Age={seconds}; Path={path}; HttpOnly; SameSite=Strict{secure}", cookie.name)
}

/// Lets the page that asked read the answer, if it is one that may connect (Fetch standard, CORS protocol).
pub fn share(draft: &mut Draft, conditions: &Conditions, headers: &HeaderMap) {
    if conditions.origins.is_none() {
        return;
    }
    // Caches must not give the answer for one page to another.
    draft.line("vary", b"Origin");
    if headers.contains_key(ORIGIN) && check_origin(conditions.origins.as_deref(), headers, None).is_ok() {
        draft.line("access-control-allow-origin", origin(headers));
        // Every sandboxed page of every site is `null`, and has the credentials of the user who looks at it.
        if origin(headers) != b"null" {
            draft.line("access-control-allow-credentials", b"true");
        }
        draft.line("access-control-expose-headers", b"x-request-id, retry-after");
    }
}

/// What a browser asks before it sends a key to another origin.
///
/// # Errors
/// 403 `origin_not_allowed`.
fn preflight(route: &Route, headers: &HeaderMap) -> Result<Answer, Denial> {
    check_origin(route.conditions.origins.as_deref(), headers, None)?;
    let mut draft = Answer::of(StatusCode::NO_CONTENT);
    draft.line("allow", METHODS.as_bytes());
    share(&mut draft, &route.conditions, headers);
    if route.conditions.origins.is_some() {
        draft.line("access-control-allow-methods", b"GET, POST");
        let names = allowed_headers(&route.verifier);
        draft.line("access-control-allow-headers", names.as_bytes());
        draft.line("access-control-max-age", b"600");
    }
    draft.line("connection", b"close");
    Ok(draft.with_body(b""))
}

fn allowed_headers(verifier: &Verifier) -> String {
    let mut names = vec!["content-type".to_owned()];
    names.extend(verifier.headers().map(str::to_owned));
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_goes_where_its_route_is() {
        let cookie = |secure| Cookie { name: "t".into(), secure };
        let line = |path, secure| cookie_line(&cookie(secure), "abc", 30, &path);
        assert_eq!(
            line(PathPattern::Exact("/ws".into()), true),
            "t=abc; Max-Age=30; Path=/ws; HttpOnly; SameSite=Strict; Secure"
        );
        assert_eq!(
            line(PathPattern::Prefix("/chat/".into()), false),
            "t=abc; Max-Age=30; Path=/chat/; HttpOnly; SameSite=Strict"
        );
        assert!(line(PathPattern::Any, true).contains("Path=/;"));
    }
}
