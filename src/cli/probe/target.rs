//! Whom to ask.

/// A URL taken apart, as far as a request needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was typed, for messages.
    pub(super) text: String,
    /// As it stands in the URL, for the Host header: `localhost:9901`, `[::1]:9901`.
    pub(super) authority: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
    /// `ws://` rather than `http://`.
    pub(super) is_socket: bool,
}

impl Target {
    /// For clap: `http://host[:port][/path][?query]`, or the same with `ws://`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a URL has no blanks and only ASCII characters".into());
        }
        let (is_socket, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ws") => (true, rest),
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("wss") => {
                return Err("wss:// is not supported: probe speaks no TLS; ask the plain listener, by ws://".into());
            }
            Some((scheme, _)) => return Err(format!("{scheme}:// is not supported, only http:// and ws://")),
            None => return Err("write it in full, as http://HOST:PORT/PATH or ws://HOST:PORT/PATH".into()),
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("a user name or password does not belong into this URL".into());
        }
        let (host, port) = split_authority(authority).ok_or("the host or the port is not valid")?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            text: text.into(),
            authority: authority.into(),
            host: host.into(),
            port,
            path: format!("{slash}{path}"),
            is_socket,
        })
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`; port 80 when there is none.
fn split_authority(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, port)
    } else {
        authority.split_at(authority.find(':').unwrap_or(authority.len()))
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port > 0)?
        }
        Some(_) => return None,
        None if port.is_empty() => 80,
        None => return None,
    };
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, port: u16, authority: &str, path: &str) -> Option<(String, u16, String, String)> {
        Some((host.into(), port, authority.into(), path.into()))
    }

    fn parsed(text: &str) -> Option<(String, u16, String, String)> {
        Target::parse(text).ok().map(|target| (target.host, target.port, target.authority, target.path))
    }

    #[test]
    fn urls() {
        assert_eq!(parsed("http://127.0.0.1:9901/readyz"), target("127.0.0.1", 9901, "127.0.0.1:9901", "/readyz"));
        assert_eq!(parsed("http://localhost"), target("localhost", 80, "localhost", "/"));
        assert_eq!(parsed("HTTP://a.example?x=1#y"), target("a.example", 80, "a.example", "/?x=1"));
        assert_eq!(parsed("http://[::1]:9901/a/b?c"), target("::1", 9901, "[::1]:9901", "/a/b?c"));
        assert_eq!(parsed("http://[::1]/"), target("::1", 80, "[::1]", "/"));
        assert_eq!(parsed("ws://a.example:1/ws"), target("a.example", 1, "a.example:1", "/ws"));
        assert!(Target::parse("WS://a").is_ok_and(|target| target.is_socket));
        assert!(Target::parse("http://a").is_ok_and(|target| !target.is_socket));
    }

    #[test]
    fn wrong_urls_say_why() {
        let why = |text| Target::parse(text).err().unwrap_or_else(|| panic!("{text} is taken"));
        assert!(why("https://127.0.0.1/").contains("only http://"));
        assert!(why("wss://127.0.0.1/").contains("TLS"));
        assert!(why("127.0.0.1:9901").contains("http://HOST:PORT/PATH"));
        assert!(why("http://me:secret@127.0.0.1/").contains("password"));
        assert!(why("http://a b/").contains("blanks"));
        assert!(why("http://a/\r\nX: y").contains("blanks"));
        for text in ["http://", "http://:80", "http://a:", "http://a:0", "http://a:x", "http://a:+1", "http://a:65536"]
        {
            assert!(why(text).contains("the host or the port"), "{text}");
        }
        for text in ["http://[::1", "http://[x]:1", "http://[::1]x", "http://::1:80/"] {
            assert!(why(text).contains("the host or the port"), "{text}");
        }
    }
}
