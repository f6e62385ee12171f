//! A credential in the first message: how some protocols over WebSockets do it, graphql-transport-ws first among them.

use std::time::Duration;

use zeroize::Zeroizing;

use super::credential::{Carrier, Credential};
use crate::secret::Secret;

/// What a route expects of the first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstMessage {
    pub format: Format,
    /// What is selected of the offer before the upstream was asked.
    pub subprotocol: Option<Box<str>>,
    /// Whether the upstream gets the message, credential included.
    pub forward: bool,
    /// From our 101 to the end of the message.
    pub timeout: Duration,
    /// The payload of the message, over all its fragments.
    pub max_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// The whole message.
    Text,
    /// The text that this pointer leads to (RFC 6901).
    Json(Box<str>),
}

impl FirstMessage {
    /// The credential in a message. `Bearer ` in front of it is taken off, as libraries that think of headers put it there.
    pub fn read(&self, message: &str) -> Option<Credential> {
        let text = Zeroizing::new(match &self.format {
            Format::Text => message.to_owned(),
            Format::Json(pointer) => {
                let mut json: serde_json::Value = serde_json::from_str(message).ok()?;
                match json.pointer_mut(pointer)?.take() {
                    serde_json::Value::String(text) => text,
                    _ => return None,
                }
            }
        });
        let text = text.trim_ascii();
        let (scheme, rest) = text.split_at_checked(7).unwrap_or(("", text));
        let secret = Secret::new(if scheme.eq_ignore_ascii_case("bearer ") { rest.trim_ascii() } else { text });
        (!secret.is_empty()).then(|| Credential::new(secret, Carrier::Request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(format: Format, message: &str) -> Option<String> {
        let timeout = Duration::from_secs(5);
        let first = FirstMessage { format, subprotocol: None, forward: false, timeout, max_bytes: 4096 };
        first.read(message).map(|credential| credential.digest().to_hex())
    }

    #[test]
    fn the_credential_is_where_the_route_says() {
        let secret = Some(Secret::new("s3cret").digest().to_hex());
        let json = |pointer: &str, message: &str| digest(Format::Json(pointer.into()), message);
        assert_eq!(digest(Format::Text, "s3cret"), secret);
        assert_eq!(digest(Format::Text, " Bearer  s3cret\n"), secret);
        assert_eq!(json("/payload/token", r#"{"type":"connection_init","payload":{"token":"s3cret"}}"#), secret);
        assert_eq!(json("/payload/Authorization", r#"{"payload":{"Authorization":"bearer s3cret"}}"#), secret);
        assert_eq!(json("/0/a~1b", r#"[{"a/b":"s3cret"}]"#), secret);
        for (pointer, message) in [
            ("/token", r#"{"token":7}"#),
            ("/token", r#"{"token":""}"#),
            ("/token", r#"{"token":null}"#),
            ("/token", r#"{"tok":"s3cret"}"#),
            ("/token", r#"{"token":"s3cret""#),
            ("/token", ""),
        ] {
            assert_eq!(json(pointer, message), None, "{message}");
        }
        assert_eq!(digest(Format::Text, "  "), None);
        let deep = "[".repeat(4096);
        assert_eq!(json("/0", &deep), None, "and no stack overflows");
    }
}
