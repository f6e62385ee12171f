//! Routes found by host and path, against a search through all of them; and paths that have one reading, read in other
//! ways. The input: a host and a path on the first line, then patterns, one host and path on each.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use wsbouncer::admit::Conditions;
use wsbouncer::auth::Verifier;
use wsbouncer::route::{
    HostPattern, Http, NotFound, OnFailure, PathPattern, Route, RouteTable, Timeouts, is_ambiguous,
};
use wsbouncer::traffic::Traffic;
use wsbouncer::upstream::{Endpoint, Upstream};

use crate::bytes::host_and_port;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines().take(20).map(|line| line.split_once(' ').unwrap_or((line, "")));
    let Some((host, path)) = lines.next() else { return };
    // Heads with others are refused before.
    let is_path = |byte: u8| byte.is_ascii_graphic() && !b"\\#?\"<>{}^`".contains(&byte);
    if !path.starts_with('/') || !path.bytes().all(is_path) || host_and_port(host.as_bytes()).is_none() {
        return;
    }
    check_readings(path);
    let mut patterns: Vec<(&str, &str)> = lines.collect();
    patterns.sort_unstable();
    patterns.dedup();
    let routes = patterns.iter().enumerate().map(|(index, (host, path))| route(index, host, path)).collect();
    // Patterns that differ only by case are the same one.
    let Ok(table) = RouteTable::new(routes) else { return };
    let wanted = best(&patterns, host, path);
    match table.find(host, path) {
        Ok(route) => assert_eq!(Some(&*route.name), wanted.map(|index| index.to_string()).as_deref()),
        Err(NotFound::NoRoute) => assert_eq!(wanted, None),
        Err(NotFound::AmbiguousPath) => {
            assert!(is_ambiguous(path) && patterns.iter().any(|(_, path)| !path.is_empty()));
        }
    }
}

fn host_pattern(text: &str) -> HostPattern {
    let text = text.to_ascii_lowercase();
    match text.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') => HostPattern::Below(suffix.into()),
        _ if text.is_empty() => HostPattern::Any,
        _ => HostPattern::Exact(text.into()),
    }
}

fn path_pattern(text: &str) -> PathPattern {
    match text.strip_suffix('*') {
        Some(prefix) => PathPattern::Prefix(prefix.into()),
        None if text.is_empty() => PathPattern::Any,
        None => PathPattern::Exact(text.into()),
    }
}

fn route(index: usize, host: &str, path: &str) -> Route {
    let second = Duration::from_secs(1);
    Route {
        name: index.to_string().into(),
        host: host_pattern(host),
        path: path_pattern(path),
        verifier: Verifier::Open,
        conditions: Conditions::default(),
        hide_credentials: true,
        on_failure: OnFailure::Http,
        tickets: None,
        http: Http::Refuse,
        headers: Vec::new(),
        timeouts: Timeouts {
            connect: second,
            handshake: second,
            idle: None,
            max_lifetime: None,
            half_close: second,
            write_stall: None,
            ping_interval: None,
            ping_timeout: second,
        },
        traffic: Traffic::default(),
        strict_frames: false,
        upstream: Arc::new(Upstream {
            name: "u".into(),
            endpoint: Endpoint::Address(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))),
            host: None,
        }),
    }
}

/// The best of all that match: by host first, then by path; exact ones before the longest before any.
fn best(patterns: &[(&str, &str)], host: &str, path: &str) -> Option<usize> {
    let (name, _) = host_and_port(host.as_bytes())?;
    let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let by_host = |pattern: &str| {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix("*.") {
            _ if pattern.is_empty() => Some(0),
            Some(domain) => name.strip_suffix(domain).filter(|below| below.ends_with('.')).map(|_| 1 + domain.len()),
            None => (pattern == name).then_some(usize::MAX),
        }
    };
    let by_path = |pattern: &str| match pattern.strip_suffix('*') {
        _ if pattern.is_empty() => Some(0),
        Some(start) => path.starts_with(start).then_some(1 + start.len()),
        None => (pattern == path).then_some(usize::MAX),
    };
    let ranked =
        patterns.iter().enumerate().filter_map(|(index, (host, path))| Some(((by_host(host)?, by_path(path)?), index)));
    ranked.max().map(|(_, index)| index)
}

/// A path that passes is the same one to somebody who decodes it, twice even, cuts parameters off, takes backslashes for
/// slashes, merges slashes and resolves dots.
fn check_readings(path: &str) {
    if is_ambiguous(path) {
        return;
    }
    let segments = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
    let mut reading = path.as_bytes().to_vec();
    for _ in 0..3 {
        let plain: Vec<u8> = reading.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect();
        assert_eq!(resolved(&plain), plain, "{path}");
        assert!(!plain.contains(&b';') && !plain.iter().any(u8::is_ascii_control), "{path}");
        assert!(std::str::from_utf8(&plain).is_ok_and(|text| !text.chars().any(char::is_control)), "{path}");
        assert_eq!(segments(&plain), segments(path.as_bytes()), "{path}");
        reading = decoded(&reading);
    }
    // Nothing to be decoded is left after the first time.
    assert_eq!(reading, decoded(path.as_bytes()), "{path}");
}

/// RFC 3986 section 5.2.4, and slashes merged.
fn resolved(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let all: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    for (at, segment) in all.iter().enumerate() {
        match *segment {
            b"." => {}
            b".." => _ = kept.pop(),
            b"" if at + 1 < all.len() => {}
            segment => kept.push(segment),
        }
    }
    [b"/", &kept.join(&b'/')[..]].concat()
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let code = path.get(at + 1..at + 3).filter(|_| path[at] == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                at += 3;
            }
            None => {
                bytes.push(path[at]);
                at += 1;
            }
        }
    }
    bytes
}
