//! A request described by flags, pasted, or taken out of a curl command, as the bytes that a client would send.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What flags or a curl command say of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// `None`: GET, or POST where there is a body.
    pub method: Option<String>,
    pub url: String,
    pub headers: Vec<String>,
    /// Whether the lines of a WebSocket handshake are added.
    pub upgrade: bool,
    pub subprotocols: Vec<String>,
    pub origin: Option<String>,
}

impl Described {
    /// # Errors
    /// What cannot be a request, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        self.target().map(drop)?;
        match self.headers.iter().find(|header| !header.contains(':') || header.contains(['\r', '\n'])) {
            Some(_) => Err("a header is \"Name: value\" in one line".into()),
            None => Ok(()),
        }
    }

    /// Host, and path with query.
    fn target(&self) -> Result<(&str, String), String> {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("ws", &self.url));
        if !["ws", "wss", "http", "https"].contains(&scheme) {
            return Err("a URL begins with ws://, wss://, http:// or https://".into());
        }
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(at);
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        if host.is_empty() {
            return Err("the URL names no host".into());
        }
        let path = path.split('#').next().unwrap_or_default();
        Ok((host, if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }))
    }

    /// The bytes of its head.
    pub fn head(&self) -> Vec<u8> {
        let (host, target) = self.target().unwrap_or(("", String::from("/")));
        let method = self.method.as_deref().unwrap_or("GET");
        let has = |name: &str| self.headers.iter().any(|header| name_of(header).eq_ignore_ascii_case(name));
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        let mut line = |name: &str, value: &str| {
            if !has(name) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        };
        line("Host", host);
        if self.upgrade {
            line("Upgrade", "websocket");
            line("Connection", "Upgrade");
            line("Sec-WebSocket-Version", "13");
            // The example of RFC 6455 section 1.3.
            line("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        }
        if !self.subprotocols.is_empty() {
            line("Sec-WebSocket-Protocol", &self.subprotocols.join(", "));
        }
        if let Some(origin) = &self.origin {
            line("Origin", origin);
        }
        for header in &self.headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

fn name_of(header: &str) -> &str {
    header.split(':').next().unwrap_or_default().trim()
}

/// A head as people paste it: with line ends of any kind, and perhaps without the empty line behind it.
pub fn pasted(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.trim_start().lines().map(str::trim_end).take_while(|line| !line.is_empty());
    let mut head: Vec<u8> = lines.flat_map(|line| [line.as_bytes(), b"\r\n"].concat()).collect();
    head.extend(b"\r\n");
    head
}

/// What a curl command would send. Options that do not change the request are passed over.
///
/// # Errors
/// What is not understood, as a sentence.
pub fn of_curl(command: &str) -> Result<Described, String> {
    let mut words = words(command)?.into_iter().peekable();
    words.next_if(|word| word == "curl" || word.ends_with("/curl"));
    let mut described = Described::default();
    let mut length = None;
    while let Some(word) = words.next() {
        let (option, glued) = match word.strip_prefix("--").and_then(|rest| rest.split_once('=')) {
            Some((name, value)) => (format!("--{name}"), Some(value.to_owned())),
            None if word.starts_with('-') && !word.starts_with("--") && word.len() > 2 && takes_value(&word[..2]) => {
                (word[..2].to_owned(), Some(word[2..].to_owned()))
            }
            None => (word.clone(), None),
        };
        let mut value = || glued.clone().or_else(|| words.next()).ok_or(format!("{option} wants a value"));
        match &*option {
            "-H" | "--header" => described.headers.push(value()?),
            "-X" | "--request" => described.method = Some(value()?),
            "-u" | "--user" => {
                let encoded = STANDARD.encode(value()?);
                described.headers.push(format!("Authorization: Basic {encoded}"));
            }
            "-b" | "--cookie" => described.headers.push(format!("Cookie: {}", value()?)),
            "-A" | "--user-agent" => described.headers.push(format!("User-Agent: {}", value()?)),
            "-e" | "--referer" => described.headers.push(format!("Referer: {}", value()?)),
            "-d" | "--data" | "--data-raw" | "--data-binary" => length = Some(value()?.len()),
            "-I" | "--head" => described.method = Some("HEAD".into()),
            "--url" => described.url = value()?,
            other if takes_value(other) => drop(value()?),
            other if other.starts_with('-') => {}
            _ if described.url.is_empty() => described.url = word,
            _ => return Err("the command has two URLs".into()),
        }
    }
    if let Some(length) = length {
        described.method.get_or_insert_with(|| "POST".into());
        described.headers.push(format!("Content-Length: {length}"));
    }
    if described.url.is_empty() {
        return Err("the command has no URL".into());
    }
    described.check()?;
    Ok(described)
}

/// Options of curl that take a value; the others stand alone.
fn takes_value(option: &str) -> bool {
    matches!(
        option,
        "-H" | "-X"
            | "-u"
            | "-b"
            | "-A"
            | "-e"
            | "-d"
            | "-o"
            | "-w"
            | "-m"
            | "-x"
            | "-E"
            | "-c"
            | "-T"
            | "-F"
            | "--output"
            | "--write-out"
            | "--max-time"
            | "--connect-timeout"
            | "--resolve"
            | "--cacert"
            | "--cert"
            | "--key"
            | "--proxy"
            | "--cookie-jar"
            | "--retry"
    )
}

/// Splits a command as a shell does, quotes and backslashes included; nothing is expanded.
fn words(command: &str) -> Result<Vec<String>, String> {
    let (mut all, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => match letters.next() {
                Some('\n') | None => {}
                Some(next) => word.get_or_insert_default().push(next),
            },
            (None, _) if letter.is_whitespace() => all.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    all.extend(word);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curl_command_is_what_curl_would_send() {
        let command = "curl -sv --http1.1 \\\n -H 'X-Api-Key: a \"b\"' -u alice:secret --cookie=a=1 -XPUT \
            \"http://chat.example.com:8080/ws?a=1&b='2'#x\" -o /dev/null";
        let head = String::from_utf8(of_curl(command).unwrap().head()).unwrap();
        assert_eq!(
            head,
            "PUT /ws?a=1&b='2' HTTP/1.1\r\nHost: chat.example.com:8080\r\nX-Api-Key: a \"b\"\r\n\
             Authorization: Basic YWxpY2U6c2VjcmV0\r\nCookie: a=1\r\n\r\n"
        );
        let post = of_curl("curl localhost -d 'four'").unwrap().head();
        assert!(post.starts_with(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"));
        for bad in ["curl", "curl -H", "curl 'x", "curl ftp://x", "curl a b", "curl a -H x"] {
            assert!(of_curl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pasted_head_has_the_line_ends_of_http() {
        assert_eq!(pasted(b"\nGET / HTTP/1.1\nHost: a\r\nX: y  \n"), b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n");
        assert_eq!(pasted(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody"), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
}
