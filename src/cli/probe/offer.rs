//! The request for a WebSocket: what is asked for, and where the key stands in it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::report::Cleaner;
use super::target::Target;
use crate::cli::SocketArgs;
use crate::fields::is_token;
use crate::random;
use crate::secret::Secret;

/// Longer secrets are in no header that the proxy reads: a head of it has 16 KiB.
const MAX_KEY: u64 = 8 * 1024;

/// A handshake that is ready to be sent.
pub struct Offer {
    head: Secret,
    /// `Sec-WebSocket-Key`; nothing secret.
    pub nonce: String,
    /// What the other side may select; the key is offered as well and never selected.
    pub protocols: Vec<String>,
    key: Option<Arc<Secret>>,
}

impl Offer {
    /// # Errors
    /// What is wrong with the command line or the key, as a sentence without any part of the key.
    pub fn new(url: &Target, args: &SocketArgs) -> Result<Self, String> {
        let key = read_key(args)?.map(Arc::new);
        if key.is_none() && (args.header.is_some() || args.subprotocol_pair.is_some()) {
            return Err("where the key goes is said, and no key: give it by --key-env or --key-file".into());
        }
        let nonce = STANDARD.encode(random::bytes::<16>());
        let host = args.host.as_deref().unwrap_or(&url.authority);
        let mut head = format!("GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: wsbouncer-probe\r\n", url.path);
        head.push_str("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n");
        head.push_str(&format!("Sec-WebSocket-Key: {nonce}\r\n"));
        if let Some(origin) = &args.origin {
            head.push_str(&format!("Origin: {origin}\r\n"));
        }
        let mut items = args.subprotocol.clone();
        let mut protocols = items.clone();
        if let Some(key) = &key {
            let text = String::from_utf8_lossy(key.as_bytes());
            match &args.subprotocol_pair {
                Some(marker) if is_token(&text) => {
                    protocols.insert(0, marker.clone());
                    items.splice(0..0, [marker.clone(), text.into_owned()]);
                }
                Some(_) => return Err("the key has characters that no subprotocol has: send it in a header".into()),
                None => head.push_str(&in_header(args.header.as_deref().unwrap_or("X-Api-Key"), &text)),
            }
        }
        if !items.is_empty() {
            head.push_str(&format!("Sec-WebSocket-Protocol: {}\r\n", items.join(", ")));
        }
        head.push_str("\r\n");
        Ok(Self { head: Secret::new(head), nonce, protocols, key })
    }

    pub fn bytes(&self) -> &[u8] {
        self.head.as_bytes()
    }

    /// For what the other side says: it may say the key.
    pub fn cleaner(&self) -> Cleaner {
        Cleaner::new(self.key.clone())
    }
}

fn in_header(name: &str, key: &str) -> String {
    // A key has no blank; what has one names its scheme itself.
    let scheme = if name.eq_ignore_ascii_case("authorization") && !key.contains(' ') { "Bearer " } else { "" };
    format!("{name}: {scheme}{key}\r\n")
}

/// Out of the environment or a file, without the newline at its end.
fn read_key(args: &SocketArgs) -> Result<Option<Secret>, String> {
    let mut bytes = match (&args.key_env, &args.key_file) {
        // Not which: whoever writes the key itself there shall not see it printed.
        (Some(name), _) => match std::env::var(name) {
            Ok(value) => value.into_bytes(),
            Err(_) => return Err("the variable that --key-env names is not set".into()),
        },
        (None, Some(path)) => read_file(path)?,
        (None, None) => return Ok(None),
    };
    for end in [b'\n', b'\r'] {
        bytes.pop_if(|byte| *byte == end);
    }
    let is_good = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    if bytes.is_empty() || bytes.len() as u64 > MAX_KEY || !is_good {
        return Err("the key is not one line of visible ASCII characters, of at most 8 KiB".into());
    }
    Ok(Some(Secret::new(bytes)))
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // Two more for the newline, one to see that there is more.
    let read = File::open(path).and_then(|file| file.take(MAX_KEY + 3).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// For clap: a token, such as a subprotocol.
///
/// # Errors
/// What is wrong with it.
pub fn token(text: &str) -> Result<String, String> {
    if is_token(text) { Ok(text.into()) } else { Err("letters, digits and !#$%&'*+-.^_`|~ only".into()) }
}

/// For clap: the name of a header that the handshake itself does not need.
///
/// # Errors
/// What is wrong with it.
pub fn header(text: &str) -> Result<String, String> {
    let name = token(text)?;
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("sec-websocket-") || matches!(&*lower, "host" | "upgrade" | "connection" | "origin") {
        return Err("the handshake itself needs this header".into());
    }
    Ok(name)
}

/// For clap: the value of a header.
///
/// # Errors
/// What is wrong with it.
pub fn value(text: &str) -> Result<String, String> {
    let is_good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_good { Ok(text.into()) } else { Err("visible ASCII characters only".into()) }
}

/// For clap: `500ms`, `5s`, `1m`; more than nothing and at most an hour.
///
/// # Errors
/// How to write it.
pub fn timeout(text: &str) -> Result<Duration, String> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => 0,
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let in_bounds = millis.filter(|millis| (1..=3_600_000).contains(millis));
    in_bounds.map(Duration::from_millis).ok_or_else(|| "write a whole number and a unit, 1ms to 60m".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(timeout("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(timeout("60m"), Ok(Duration::from_secs(3600)));
        for text in ["", "5", "0s", "s", "61m", "-1s", "5 s", "99999999999999999999s", "5h"] {
            assert!(timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn headers_that_the_handshake_needs_carry_no_key() {
        assert!(header("X-Api-Key").is_ok() && header("Authorization").is_ok() && header("Cookie").is_ok());
        for name in ["Host", "upgrade", "Sec-WebSocket-Key", "X Y", "", "X:"] {
            assert!(header(name).is_err(), "{name}");
        }
    }
}
