//! `allowed_origins` against origins written out in full. The input: a pattern, and what is sent, on a line each.

use http::HeaderMap;
use http::header::{HeaderValue, ORIGIN};
use wsbouncer::admit::{Origin, check_origin};
use wsbouncer::auth::credential::Carrier;
use wsbouncer::peer::{is_host, split_host};

use crate::bytes::host_and_port;

pub fn run(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let (pattern, sent) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    check_host(sent);
    let Ok(pattern_text) = std::str::from_utf8(pattern) else { return };
    let wanted = full(pattern);
    let parsed = Origin::parse(pattern_text);
    assert_eq!(parsed.is_ok(), wanted.is_some(), "{parsed:?} {wanted:?}");
    let Ok(parsed) = parsed else { return };
    let Ok(value) = HeaderValue::from_bytes(sent) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(ORIGIN, value);
    let verdict = |carrier: Option<Carrier>| {
        check_origin(Some(std::slice::from_ref(&parsed)), &headers, carrier.as_ref()).is_ok()
    };
    let matches = wanted.is_some_and(|wanted| is_one_of(&wanted, sent));
    assert_eq!(verdict(None), matches);
    assert_eq!(verdict(Some(Carrier::Basic)), matches);
    // Any site can have a page whose origin is null, and the cookies come along.
    for cookie in [Carrier::Cookie, Carrier::TicketCookie] {
        assert_eq!(verdict(Some(cookie)), matches && sent != b"null");
    }
    let value = headers.get(ORIGIN).unwrap().clone();
    headers.append(ORIGIN, value);
    assert!(check_origin(Some(&[parsed]), &headers, None).is_err(), "two are none");
}

/// `https://a.example` as `https://a.example:443`; `None` for what is no origin.
fn full(text: &[u8]) -> Option<String> {
    if text == b"null" {
        return Some("null".into());
    }
    let text = std::str::from_utf8(text).ok()?.to_ascii_lowercase();
    let at = text.find("://")?;
    let (scheme, host) = (&text[..at], &text[at + 3..]);
    let is_scheme = scheme.chars().all(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '+' | '-' | '.'));
    if scheme.is_empty() || !is_scheme {
        return None;
    }
    let (star, host) = if let Some(host) = host.strip_prefix("*.") { ("*.", host) } else { ("", host) };
    let (host, port) = host_and_port(host.as_bytes())?;
    let usual = match scheme {
        "http" | "ws" => "80",
        "https" | "wss" => "443",
        _ => "none",
    };
    let port = port.map_or(usual.to_owned(), |port| port.to_string());
    Some(format!("{scheme}://{star}{}:{port}", std::str::from_utf8(host).ok()?))
}

fn is_one_of(pattern: &str, sent: &[u8]) -> bool {
    let Some(sent) = full(sent).filter(|sent| !sent.contains('*')) else { return false };
    let Some((scheme, below)) = pattern.split_once("*.") else { return sent == pattern };
    let Some(host) = sent.strip_prefix(scheme) else { return false };
    host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == below)
}

/// `Host` and the hosts of origins are read alike.
fn check_host(text: &[u8]) {
    let wanted = host_and_port(text);
    let Ok(text) = std::str::from_utf8(text) else { return };
    assert_eq!(is_host(text), wanted.is_some());
    assert_eq!(split_host(text).map(|(host, port)| (host.as_bytes(), port)), wanted);
}
