//! Who is calling: the socket's other end, and the party it speaks for when it is a trusted proxy.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::HeaderName;
use ipnet::IpNet;

/// The socket's other end. Addresses are canonical: `::ffff:10.0.0.1` is `10.0.0.1`.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: SocketAddr,
}

impl Peer {
    pub fn new(address: SocketAddr) -> Self {
        Self { address: SocketAddr::new(address.ip().to_canonical(), address.port()) }
    }
}

/// An address to be written, without the formatter that knows of widths and padding.
pub struct Shown(pub IpAddr);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IpAddr::V4(address) = self.0 else { return self.0.fmt(f) };
        let (mut text, mut length) = ([b'.'; "255.255.255.255".len()], 0);
        for (at, part) in address.octets().into_iter().enumerate() {
            length += usize::from(at > 0);
            for (unit, is_needed) in [(100, part >= 100), (10, part >= 10), (1, true)] {
                if is_needed {
                    text[length] = b'0' + part / unit % 10;
                    length += 1;
                }
            }
        }
        f.write_str(std::str::from_utf8(&text[..length]).unwrap_or_default())
    }
}

/// Proxies whose `X-Forwarded-*` is believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(pub Vec<IpNet>);

/// For whom the peer speaks, and what to tell the upstream about it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The nearest address that is not a trusted proxy.
    pub address: IpAddr,
    /// Whether the peer is a trusted proxy, whose word counts.
    pub by_proxy: bool,
    pub forwarded_for: String,
    pub forwarded_proto: &'static str,
    /// What a trusted proxy said the host was, else `None`: our own `Host` then.
    pub forwarded_host: Option<String>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by_proxy {
            write!(f, "{}, as a trusted proxy says (X-Forwarded-For: {})", self.address, self.forwarded_for)
        } else {
            write!(f, "{}, which is no trusted proxy: what it says of others is not believed", self.address)
        }
    }
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A longer chain than this is not a chain of proxies.
const MAX_HOPS: usize = 32;

impl TrustedProxies {
    /// Whether what comes from this address may come from others.
    pub fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    /// Walks `X-Forwarded-For` from the right as long as the proxies are trusted ones. What a client that is not a trusted
    /// proxy wrote there is dropped.
    pub fn caller(&self, peer: Peer, headers: &HeaderMap) -> Caller {
        let from = peer.address.ip();
        let mut caller = Caller {
            address: from,
            by_proxy: self.trust(from),
            forwarded_for: Shown(from).to_string(),
            forwarded_proto: "http",
            forwarded_host: None,
        };
        if !caller.by_proxy {
            return caller;
        }
        let mut chain = Vec::new();
        let lines = headers.get_all(FORWARDED_FOR);
        let text: Vec<&str> = lines.iter().filter_map(|line| line.to_str().ok()).collect();
        for hop in text.iter().rev().flat_map(|line| line.rsplit(',')).take(MAX_HOPS) {
            let Some(address) = hop_address(hop.trim()) else { break };
            chain.push(address);
            caller.address = address;
            if !self.trust(address) {
                break;
            }
        }
        chain.reverse();
        chain.push(from);
        caller.forwarded_for = chain.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        if only(headers, &FORWARDED_PROTO).is_some_and(|proto| matches!(proto, "https" | "wss")) {
            caller.forwarded_proto = "https";
        }
        caller.forwarded_host = only(headers, &FORWARDED_HOST).filter(|host| is_host(host)).map(str::to_owned);
        caller
    }
}

/// `203.0.113.7`, `203.0.113.7:80`, `2001:db8::1` or `[2001:db8::1]:80`.
fn hop_address(text: &str) -> Option<IpAddr> {
    let parsed = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .or_else(|_| text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>());
    parsed.ok().map(|address| address.to_canonical())
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// Whether this is `host` or `host:port` and nothing that could be read as more (RFC 9112 section 3.2).
pub fn is_host(text: &str) -> bool {
    split_host(text).is_some()
}

/// Splits `host[:port]`; the host keeps the brackets of an IPv6 literal.
pub fn split_host(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if text.starts_with('[') {
        let end = text.find(']')? + 1;
        text[1..end - 1].parse::<std::net::Ipv6Addr>().ok()?;
        let (host, rest) = text.split_at(end);
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if host.is_empty() || host.len() > 255 || !host.bytes().all(good) {
            return None;
        }
        (host, port)
    };
    match port {
        None => Some((host, None)),
        Some(port) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(port.parse().ok()?)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(trusted: &[&str], peer: &str, headers: &[(&'static str, &str)]) -> Caller {
        let trusted = TrustedProxies(trusted.iter().map(|net| net.parse().unwrap()).collect());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        trusted.caller(Peer::new(SocketAddr::new(peer.parse().unwrap(), 1)), &map)
    }

    #[test]
    fn addresses_look_as_they_do_elsewhere() {
        for text in ["0.0.0.0", "127.0.0.1", "255.255.255.255", "10.200.9.99", "100.101.90.1", "::1", "2001:db8::7"] {
            assert_eq!(Shown(text.parse().unwrap()).to_string(), text);
        }
    }

    #[test]
    fn a_stranger_cannot_speak_for_another() {
        let caller = caller(&["10.0.0.0/8"], "203.0.113.7", &[("x-forwarded-for", "6.6.6.6")]);
        assert_eq!((caller.address.to_string(), caller.forwarded_for), ("203.0.113.7".into(), "203.0.113.7".into()));
    }

    #[test]
    fn a_trusted_proxy_is_walked_from_the_right() {
        let chain = [("x-forwarded-for", "6.6.6.6, 203.0.113.7"), ("x-forwarded-for", "10.0.0.9")];
        let caller = caller(&["10.0.0.0/8"], "::ffff:10.0.0.1", &chain);
        assert_eq!(caller.address.to_string(), "203.0.113.7");
        assert_eq!(caller.forwarded_for, "203.0.113.7, 10.0.0.9, 10.0.0.1");
    }

    #[test]
    fn hosts_that_could_be_read_as_more_are_none() {
        for good in ["a", "a.example:80", "127.0.0.1:1", "[::1]:8080", "[2001:db8::1]"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "a b", "u@a", "a/..", "a, b", "a:99999", "a:", "[::1", "[::1]x", "[x]", ":80", "a:+1"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
